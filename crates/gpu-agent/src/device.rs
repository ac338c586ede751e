//! The agent's GPU: readings by a thread of its own (a sick driver blocks for seconds), the ledger
//! of its memory, and its condition.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rigor_gpu::{
    Condition, GpuError, GpuInfo, Gpus, Ledger, Limits, Measured, Reading, condition, holders,
};
use rigor_queue::heartbeat::{GpuBeat, Refusal, Verdict};

use crate::event::{Event, Farewell};

/// Between two readings while anything runs on the GPU.
pub(crate) const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// After a script started: early, so that short ones are seen too.
pub(crate) const SAMPLE_FIRST: Duration = Duration::from_millis(150);
/// A failure to read that lasts this long is warned about.
const FAILING_WARN: Duration = Duration::from_secs(60);
/// The ledger's name for the LLM runtime's lease.
pub(crate) const MODEL_LEASE: &str = "model";

/// A reading, and whose attempt each process on the GPU belongs to.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) reading: Reading,
    pub(crate) owners: BTreeMap<u32, String>,
}

/// The GPU as the dispatcher knows it.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) info: GpuInfo,
    pub(crate) ledger: Ledger,
    pub(crate) limits: Limits,
    pub(crate) condition: Condition,
    pub(crate) last: Reading,
    /// Who else holds most of its memory, in words.
    pub(crate) foreign: Option<String>,
    /// When the next reading is due, where one is.
    pub(crate) sample_at: Option<Instant>,
    requests: Sender<()>,
    asked: bool,
    failing: Option<Failing>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    said: HashSet<String>,
    warned: bool,
}

impl Device {
    /// Reads the GPU for the first time and starts its thread.
    pub(crate) fn start(
        gpus: Arc<Gpus>,
        uuid: &str,
        limits: Limits,
        rig_id: &str,
        events: Sender<Event>,
    ) -> Result<Device, GpuError> {
        let sample = take(&gpus, uuid, rig_id)?;
        let info = gpus.list()?.into_iter().find(|info| info.uuid == uuid);
        let info = info.unwrap_or_else(|| GpuInfo {
            index: sample.reading.index,
            uuid: uuid.to_owned(),
            name: "GPU".to_owned(),
            total_mb: sample.reading.total_mb,
            stand_in: gpus.stand_in(),
        });
        let (requests, inbox) = mpsc::channel();
        let (uuid, rig_id) = (uuid.to_owned(), rig_id.to_owned());
        let sampler = move || {
            let _farewell = Farewell {
                thread: "nvml",
                events: events.clone(),
            };
            sample_on_request(&gpus, &uuid, &rig_id, &inbox, &events);
        };
        thread::Builder::new()
            .name("nvml".to_owned())
            .spawn(sampler)
            .expect("a machine without room for a thread has none for tasks either");
        let mut device = Device {
            ledger: Ledger::new(limits.budget_mb(sample.reading.total_mb)),
            info,
            limits,
            condition: Condition::Ok,
            last: Reading::default(),
            foreign: None,
            sample_at: None,
            requests,
            asked: false,
            failing: None,
        };
        device.observe(sample);
        Ok(device)
    }

    /// Asks for a reading now, unless one is on its way.
    pub(crate) fn request(&mut self) {
        self.sample_at = None;
        if !self.asked {
            self.asked = true;
            // The thread ends with this sender only, or by a panic that was reported.
            let _ = self.requests.send(());
        }
    }

    /// Asks for a reading in a while.
    pub(crate) fn request_at(&mut self, at: Instant) {
        self.sample_at = Some(self.sample_at.map_or(at, |before| before.min(at)));
    }

    /// Takes in a reading. `true`: the condition has changed.
    pub(crate) fn taken(&mut self, result: Result<Sample, GpuError>, now: Instant) -> bool {
        self.asked = false;
        let before = self.condition.clone();
        match result {
            Ok(sample) => {
                self.failing = None;
                self.observe(sample);
            }
            Err(error) => {
                if let Some(lost) = Condition::from_error(&error) {
                    self.condition = lost;
                }
                self.failed(&error, now);
            }
        }
        // A temperature that moves is no change; another condition is.
        std::mem::discriminant(&before) != std::mem::discriminant(&self.condition)
    }

    fn observe(&mut self, sample: Sample) {
        let owners = &sample.owners;
        self.ledger
            .observe(&sample.reading, |pid| owners.get(&pid).map(String::as_str));
        let holders = holders(&sample.reading, |pid| owners.contains_key(&pid));
        self.foreign = holders.first().map(ToString::to_string);
        self.condition = condition(&self.condition, &sample.reading, &self.limits);
        self.last = sample.reading;
    }

    fn failed(&mut self, error: &GpuError, now: Instant) {
        let failing = self.failing.get_or_insert_with(|| Failing {
            since: now,
            said: HashSet::new(),
            warned: false,
        });
        let text = error.to_string();
        if failing.said.insert(text.clone()) {
            tracing::debug!("GPU reading failed: {text}");
        }
        if !failing.warned && now - failing.since >= FAILING_WARN {
            failing.warned = true;
            tracing::warn!(
                "GPU readings have failed for {}s: {text}",
                FAILING_WARN.as_secs()
            );
        }
    }

    /// Ends a lease and gives the peak of its holder.
    pub(crate) fn release(&mut self, lease: &str) -> Option<Measured> {
        let peak = self.ledger.release(lease);
        // What it used counts as in use until a reading shows that it is not.
        self.request();
        peak
    }

    /// Why it takes no GPU work.
    pub(crate) fn ailment(&self) -> Option<Verdict> {
        let code = match &self.condition {
            Condition::Ok => return None,
            Condition::Thermal { .. } => Refusal::Thermal,
            Condition::Power { .. } => Refusal::Power,
            Condition::Lost { .. } => Refusal::GpuLost,
        };
        Some(Verdict {
            code,
            detail: self.condition.to_string(),
        })
    }

    pub(crate) fn beat(&self) -> GpuBeat {
        GpuBeat {
            index: self.last.index,
            uuid: self.info.uuid.clone(),
            name: self.info.name.clone(),
            stand_in: self.info.stand_in,
            used_mb: self.last.used_mb,
            total_mb: self.last.total_mb,
            budget_mb: self.ledger.budget_mb(),
            available_mb: self.ledger.available_mb(),
            foreign: self.foreign.clone(),
            temperature_c: self.last.temperature_c,
            utilization: self.last.utilization,
            power_w: self.last.power_w,
        }
    }
}

fn sample_on_request(
    gpus: &Gpus,
    uuid: &str,
    rig_id: &str,
    inbox: &Receiver<()>,
    events: &Sender<Event>,
) {
    while inbox.recv().is_ok() {
        if events
            .send(Event::Reading(take(gpus, uuid, rig_id)))
            .is_err()
        {
            return;
        }
    }
}

fn take(gpus: &Gpus, uuid: &str, rig_id: &str) -> Result<Sample, GpuError> {
    let reading = gpus.reading(uuid)?;
    let owners = reading
        .processes
        .iter()
        .filter_map(|process| Some((process.pid, owner(process.pid, rig_id)?)))
        .collect();
    Ok(Sample { reading, owners })
}

/// The lease that a process belongs to, by the cookie in the environment it was started with.
fn owner(pid: u32, rig_id: &str) -> Option<String> {
    let environ = std::fs::read(Path::new("/proc").join(pid.to_string()).join("environ")).ok()?;
    let value = |name: &str| {
        environ.split(|byte| *byte == 0).find_map(|entry| {
            let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(String::from_utf8_lossy(value).into_owned())
        })
    };
    if let Some(cookie) = value(rigor_exec::COOKIE_VARIABLE) {
        return cookie
            .strip_prefix(rig_id)?
            .strip_prefix(':')
            .map(str::to_owned);
    }
    value(rigor_runtime::COOKIE_VARIABLE).map(|_| MODEL_LEASE.to_owned())
}
