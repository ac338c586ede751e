//! The thread that asks NVML: a sick driver blocks for seconds, or for ever, and nothing else may
//! wait for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rigor_gpu::{GpuError, GpuInfo, Gpus, Reading};

use crate::device::MODEL_LEASE;
use crate::event::{Event, Farewell};

/// The GPUs, once NVML could be opened.
pub(crate) type OpenGpus = Arc<OnceLock<Arc<Gpus>>>;

/// A reading, and whose attempt each process on the GPU belongs to.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) reading: Reading,
    pub(crate) owners: BTreeMap<u32, String>,
    /// Processes that ended while they were looked at: nobody's, and nobody to be named.
    pub(crate) ended: BTreeSet<u32>,
}

/// The GPU was found and read.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) info: GpuInfo,
    pub(crate) sample: Sample,
}

/// The thread's handle.
#[derive(Debug)]
pub(crate) struct Sampler {
    requests: Sender<()>,
    /// An answer is to come since then.
    asked_at: Option<Instant>,
    /// So long without an answer NVML hangs.
    hung_after: Duration,
    hung: bool,
}

/// What the thread needs to know.
#[derive(Debug)]
pub(crate) struct Which {
    /// None: the system's NVML.
    pub(crate) library: Option<PathBuf>,
    pub(crate) uuid: String,
    pub(crate) rig_id: String,
    pub(crate) hung_after: Duration,
}

impl Sampler {
    /// Starts the thread, which answers each request: with [`Event::Opened`] until NVML is open and
    /// has the GPU, from then on with [`Event::Reading`].
    pub(crate) fn start(which: Which, found: OpenGpus, events: Sender<Event>) -> Sampler {
        let (requests, inbox) = mpsc::channel();
        let hung_after = which.hung_after;
        let run = move || {
            let _farewell = Farewell {
                thread: "nvml",
                events: events.clone(),
            };
            answer(&which, &found, &inbox, &events);
        };
        thread::Builder::new()
            .name("nvml".to_owned())
            .spawn(run)
            .expect("a machine without room for a thread has none for tasks either");
        Sampler {
            requests,
            asked_at: None,
            hung_after,
            hung: false,
        }
    }

    /// Asks, unless an answer is on its way. `true`: it asked.
    pub(crate) fn request(&mut self) -> bool {
        if self.asked_at.is_some() {
            return false;
        }
        self.asked_at = Some(Instant::now());
        // The thread ends with this sender only, or by a panic that was reported.
        let _ = self.requests.send(());
        true
    }

    /// The answer is there.
    pub(crate) fn answered(&mut self) {
        let took = self.asked_at.take().map(|at| at.elapsed());
        if std::mem::take(&mut self.hung) {
            let took = took.unwrap_or_default().as_secs();
            tracing::info!("NVML answers again, after {took}s");
        }
    }

    /// How long NVML has not answered, where that is too long. Said once.
    pub(crate) fn hung_for(&mut self, what: &str) {
        if let Some(waited) = self.hangs()
            && !std::mem::replace(&mut self.hung, true)
        {
            tracing::warn!(
                "NVML has not answered for {}s: {what} hangs in the driver (see `dmesg` for `NVRM` and `Xid`); no GPU work is claimed until it does",
                waited.as_secs()
            );
        }
    }

    /// How long NVML has not answered, where that is too long.
    pub(crate) fn hangs(&self) -> Option<Duration> {
        let waited = self.asked_at?.elapsed();
        (waited >= self.hung_after).then_some(waited)
    }

    /// When an answer that is on its way is overdue.
    pub(crate) fn overdue_at(&self) -> Option<Instant> {
        self.asked_at
            .filter(|_| !self.hung)
            .map(|at| at + self.hung_after)
    }
}

fn answer(which: &Which, found: &OpenGpus, inbox: &Receiver<()>, events: &Sender<Event>) {
    let mut owners = Owners::default();
    let mut opened: Option<Arc<Gpus>> = None;
    while inbox.recv().is_ok() {
        let event = match &opened {
            Some(gpus) => Event::Reading(take(gpus, which, &mut owners)),
            None => Event::Opened(match open(which, &mut owners) {
                Ok((gpus, first)) => {
                    let gpus = opened.insert(gpus);
                    // Set once: this is the only thread that sets it, and it does not come here again.
                    let _ = found.set(Arc::clone(gpus));
                    Ok(Box::new(first))
                }
                Err(error) => Err(error),
            }),
        };
        if events.send(event).is_err() {
            return;
        }
    }
}

/// Opens NVML anew each time: a driver that was put in order since is not seen by an open one.
fn open(which: &Which, owners: &mut Owners) -> Result<(Arc<Gpus>, Opened), GpuError> {
    let gpus = Arc::new(Gpus::open(which.library.as_deref())?);
    let sample = take(&gpus, which, owners)?;
    let found = gpus.list()?.into_iter().find(|it| it.uuid == which.uuid);
    let info = found.unwrap_or_else(|| GpuInfo {
        index: sample.reading.index,
        uuid: which.uuid.clone(),
        name: "GPU".to_owned(),
        total_mb: sample.reading.total_mb,
        stand_in: gpus.stand_in(),
    });
    Ok((gpus, Opened { info, sample }))
}

fn take(gpus: &Gpus, which: &Which, owners: &mut Owners) -> Result<Sample, GpuError> {
    let reading = gpus.reading(&which.uuid)?;
    let pids = reading.processes.iter().map(|process| process.pid);
    let (owners, ended) = owners.look(pids, Path::new("/proc"), &which.rig_id);
    Ok(Sample {
        reading,
        owners,
        ended,
    })
}

/// Whose the processes of the last reading were.
#[derive(Debug, Default)]
struct Owners {
    ours: BTreeMap<u32, String>,
    /// Those of which nothing could be seen.
    unseen: BTreeSet<u32>,
}

impl Owners {
    /// The lease that each of `pids` belongs to, and those that have just ended. NVML lists a
    /// process until the driver has cleared up after it, and then it has no environment any more:
    /// it is whose it was. One that was never seen and is gone ended meanwhile, unless it is listed
    /// again: then it lives where it cannot be seen from here.
    fn look(
        &mut self,
        pids: impl Iterator<Item = u32>,
        proc: &Path,
        rig_id: &str,
    ) -> (BTreeMap<u32, String>, BTreeSet<u32>) {
        let mut ours = BTreeMap::new();
        let mut unseen = BTreeSet::new();
        for pid in pids {
            let environ = std::fs::read(proc.join(pid.to_string()).join("environ"));
            let environ = environ.unwrap_or_default();
            let lease = match environ.is_empty() {
                true => self.ours.get(&pid).cloned(),
                false => owner(&environ, rig_id),
            };
            if let Some(lease) = lease {
                ours.insert(pid, lease);
            } else if environ.is_empty() && !proc.join(pid.to_string()).join("comm").exists() {
                unseen.insert(pid);
            }
        }
        let ended = unseen.difference(&self.unseen).copied().collect();
        self.ours = ours.clone();
        self.unseen = unseen;
        (ours, ended)
    }
}

/// The lease that a process belongs to, by the cookie in the environment it was started with.
fn owner(environ: &[u8], rig_id: &str) -> Option<String> {
    let value = |name: &str| {
        environ.split(|byte| *byte == 0).find_map(|entry| {
            let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(String::from_utf8_lossy(value).into_owned())
        })
    };
    let of_this_rig = |cookie: String| {
        let rest = cookie.strip_prefix(rig_id)?.strip_prefix(':')?;
        Some(rest.to_owned())
    };
    if let Some(cookie) = value(rigor_exec::COOKIE_VARIABLE) {
        return of_this_rig(cookie);
    }
    // Another rig's model on this GPU is as foreign as anything else.
    value(rigor_runtime::COOKIE_VARIABLE)
        .and_then(of_this_rig)
        .map(|_| MODEL_LEASE.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn an_ending_process_is_whose_it_was_and_an_unknown_one_is_named_only_when_it_stays() {
        let proc = tempfile::tempdir().unwrap();
        let dir = |pid: &str| proc.path().join(pid);
        let live = |pid: &str, environ: String| {
            fs::create_dir_all(dir(pid)).unwrap();
            fs::write(dir(pid).join("environ"), environ).unwrap();
            fs::write(dir(pid).join("comm"), "python3\n").unwrap();
        };
        live(
            "7",
            format!("A=b\0{}=rig:abc.a1\0", rigor_exec::COOKIE_VARIABLE),
        );
        live("8", "A=b\0".to_owned());
        live(
            "9",
            format!("{}=another:abc.a1\0", rigor_exec::COOKIE_VARIABLE),
        );
        let mut owners = Owners::default();
        let mut look = || {
            let (ours, ended) = owners.look([7, 8, 9, 10].into_iter(), proc.path(), "rig");
            let ours: Vec<_> = ours.into_iter().collect();
            (ours, ended.into_iter().collect::<Vec<_>>())
        };
        let ours = vec![(7, "abc.a1".to_owned())];
        assert_eq!(look(), (ours.clone(), vec![10]));
        // A zombie has an empty environment; then it is gone.
        fs::write(dir("7").join("environ"), "").unwrap();
        assert_eq!(
            look(),
            (ours.clone(), vec![]),
            "10 stays: it lives elsewhere"
        );
        fs::remove_dir_all(dir("7")).unwrap();
        assert_eq!(look(), (ours, vec![]));
    }

    #[test]
    fn a_runtime_of_another_rig_is_nobody_of_ours() {
        let of = |cookie: &str| {
            let environ = format!("A=b\0{}={cookie}\0", rigor_runtime::COOKIE_VARIABLE);
            owner(environ.as_bytes(), "rig")
        };
        assert_eq!(of("rig:0c0ffee1").as_deref(), Some(MODEL_LEASE));
        assert_eq!(of("rig2:0c0ffee1"), None);
        assert_eq!(of("0c0ffee1"), None);
    }
}
