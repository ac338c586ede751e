//! Signs of life of running attempts: what they print, the CPU time of their process trees, the
//! work of the GPU that they have.
//!
//! For a thread of its own, at heartbeat intervals: one look at /proc serves all attempts, and
//! where each has a cgroup none is needed. While a worker lives nothing of its attempt escapes it
//! (orphans become its children), so a tree is all that descends from the worker.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use jiff::{SignedDuration, Timestamp};
use rigor_queue::heartbeat::RunningBeat;
use rigor_queue::name::TaskId;
use rigor_queue::rig::Rig;

use crate::containment::Containment;
use crate::launch::Running;

/// A tree that takes more than this of one CPU is at work, percent: shells that wait and workers
/// that look after them take less.
const CPU_ACTIVE_PERCENT: f64 = 1.0;
/// A GPU that is used this much is at work, percent.
const GPU_ACTIVE_PERCENT: u32 = 5;
/// CPU time is compared over this much time at least: the kernel may count in steps of 10 ms.
const CPU_OVER: Duration = Duration::from_secs(1);

/// An attempt whose signs of life are wanted.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The task.
    pub id: TaskId,
    /// Which attempt.
    pub attempt: u32,
    /// Its worker; not reaped yet, so that the pid is its own.
    pub pid: u32,
    /// When the worker was started.
    pub started: Instant,
    /// Where its output goes.
    pub output: PathBuf,
    /// Utilization of the GPU that it has, as last read; none for a task without one. It is that of
    /// the whole device, so a quiet task beside a busy one on the same GPU looks alive.
    pub gpu_percent: Option<u32>,
    /// The first process of the server that works for it, where nothing else tells whether it does:
    /// CPU time of that tree is a sign of life too. It works for all that ask it, so a quiet task
    /// beside a busy one looks alive.
    pub server_pid: Option<u32>,
}

/// The signs of life of an attempt, by the monotonic clock: the wall clock may be set meanwhile.
#[derive(Clone, Debug, PartialEq)]
pub struct Activity {
    /// The task.
    pub id: TaskId,
    /// Which attempt.
    pub attempt: u32,
    /// The last sign of life; its start where there was none yet.
    pub active: Instant,
    /// When it last printed something; none: it printed nothing yet.
    pub printed: Option<Instant>,
    /// CPU of its process tree over the last sample, percent of one CPU; none: not known yet.
    pub cpu_percent: Option<u32>,
    /// As it was given.
    pub gpu_percent: Option<u32>,
}

/// Compares what attempts do with what they did before.
#[derive(Debug)]
pub struct Sampler {
    containment: Containment,
    seen: HashMap<(TaskId, u32), Seen>,
}

#[derive(Debug)]
struct Seen {
    active: Instant,
    /// The last look.
    looked: Instant,
    /// When its output was last written to, by the file system's clock and by ours.
    printed: Option<(SystemTime, Instant)>,
    cpu_percent: Option<u32>,
    /// The CPU time at the beginning of the sample that is being taken.
    base: Option<(Instant, Duration)>,
    /// And that of its server.
    server_base: Option<(Instant, Duration)>,
}

impl Sampler {
    /// For attempts that are contained like that.
    pub fn new(containment: Containment) -> Sampler {
        Sampler {
            containment,
            seen: HashMap::new(),
        }
    }

    /// The signs of life of these attempts, in their order; those that are not among them are
    /// forgotten. Reads files and may wait for the disk.
    pub fn sample(&mut self, watched: &[Watched]) -> Vec<Activity> {
        let cpu = self.cpu_times(watched);
        let servers = server_times(watched);
        let (now, wall) = (Instant::now(), SystemTime::now());
        let wanted: HashSet<(TaskId, u32)> =
            watched.iter().map(|one| (one.id, one.attempt)).collect();
        self.seen.retain(|key, _| wanted.contains(key));
        let signs = watched
            .iter()
            .zip(cpu)
            .zip(servers)
            .map(|((one, cpu), server)| {
                let seen = self.seen.entry((one.id, one.attempt)).or_insert(Seen {
                    active: one.started,
                    looked: one.started,
                    printed: None,
                    cpu_percent: None,
                    base: None,
                    server_base: None,
                });
                let used = seen.use_of_cpu(cpu, now);
                let served = server.and_then(|time| used_since(&mut seen.server_base, time, now));
                if is_active(used, one.gpu_percent) || is_active(served, None) {
                    seen.active = now;
                }
                seen.look_at_output(&one.output, now, wall);
                seen.looked = now;
                let printed = seen.printed.map(|(_, at)| at);
                seen.active = seen.active.max(printed.unwrap_or(one.started));
                Activity {
                    id: one.id,
                    attempt: one.attempt,
                    active: seen.active,
                    printed,
                    cpu_percent: seen.cpu_percent,
                    gpu_percent: one.gpu_percent,
                }
            });
        signs.collect()
    }

    fn cpu_times(&self, watched: &[Watched]) -> Vec<Option<Duration>> {
        let mut times: Vec<Option<Duration>> = watched
            .iter()
            .map(|one| self.containment.cpu_time(one.id, one.attempt))
            .collect();
        if times.iter().any(Option::is_none) {
            let processes = processes();
            for (time, one) in times.iter_mut().zip(watched) {
                *time = time.or_else(|| tree_time(&processes, one.pid));
            }
        }
        times
    }
}

impl Seen {
    /// That the file's time has changed is what counts. How long ago that was is taken from the wall
    /// clock, but not further back than to the last look: between two looks it may have been set.
    fn look_at_output(&mut self, output: &Path, now: Instant, wall: SystemTime) {
        let modified = modified(output);
        if modified == self.printed.map(|(modified, _)| modified) {
            return;
        }
        let most = now.saturating_duration_since(self.looked);
        self.printed = modified.map(|modified| {
            let ago = wall.duration_since(modified).unwrap_or_default();
            (modified, now - ago.min(most))
        });
    }

    /// The CPU time used since the last sample and its length, once that is long enough.
    fn use_of_cpu(&mut self, cpu: Option<Duration>, now: Instant) -> Option<(Duration, Duration)> {
        let (used, over) = used_since(&mut self.base, cpu?, now)?;
        self.cpu_percent = Some((used.as_secs_f64() / over.as_secs_f64() * 100.0).round() as u32);
        Some((used, over))
    }
}

/// The CPU time used since `base` and how long that is, once it is long enough; then `base` is now.
fn used_since(
    base: &mut Option<(Instant, Duration)>,
    cpu: Duration,
    now: Instant,
) -> Option<(Duration, Duration)> {
    let Some((since, before)) = *base else {
        *base = Some((now, cpu));
        return None;
    };
    let over = now - since;
    if over < CPU_OVER {
        return None;
    }
    *base = Some((now, cpu));
    // Less than before: a process was reaped by somebody who is not of the tree.
    Some((cpu.saturating_sub(before), over))
}

/// The CPU time of the tree of each one's server.
fn server_times(watched: &[Watched]) -> Vec<Option<Duration>> {
    if watched.iter().all(|one| one.server_pid.is_none()) {
        return vec![None; watched.len()];
    }
    let processes = processes();
    watched
        .iter()
        .map(|one| tree_time(&processes, one.server_pid?))
        .collect()
}

impl Running {
    /// What a [`Sampler`] has to know of it. `gpu_percent`: of the GPU that it has, if it has one.
    pub fn watched(&self, rig: &Rig, gpu_percent: Option<u32>) -> Watched {
        Watched {
            id: self.spec.id,
            attempt: self.name.attempt,
            pid: self.pid(),
            started: self.started,
            output: rig.output_path(&self.spec.batch, self.spec.id, self.name.attempt),
            gpu_percent,
            server_pid: None,
        }
    }

    /// As a heartbeat tells of it. Without signs of life yet its start is the last one.
    pub fn beat(&self, activity: Option<&Activity>) -> RunningBeat {
        let (now, wall) = (Instant::now(), Timestamp::now());
        // Reckoned back from now: the wall clock may have been set since.
        let at = |then: Instant| {
            let ago = now.saturating_duration_since(then);
            wall - SignedDuration::try_from(ago).unwrap_or_default()
        };
        RunningBeat {
            id: self.spec.id,
            attempt: self.name.attempt,
            name: self.spec.name.clone(),
            batch: self.spec.batch.clone(),
            class: self.spec.class,
            since: at(self.started),
            active_at: at(activity.map_or(self.started, |signs| signs.active)),
            output_at: activity.and_then(|signs| signs.printed).map(at),
            cpu_percent: activity.and_then(|signs| signs.cpu_percent),
            gpu_percent: activity.and_then(|signs| signs.gpu_percent),
            timeout_s: self.spec.timeout_s,
            kill_if_silent_s: self.spec.kill_if_silent_s,
        }
    }
}

/// Whether so much CPU time over such a while, or such a use of the GPU, is a sign of life.
fn is_active(cpu: Option<(Duration, Duration)>, gpu_percent: Option<u32>) -> bool {
    let computes = cpu.is_some_and(|(used, over)| {
        used.as_secs_f64() * 100.0 > over.as_secs_f64() * CPU_ACTIVE_PERCENT
    });
    computes || gpu_percent.is_some_and(|percent| percent >= GPU_ACTIVE_PERCENT)
}

/// When something was last written to the file; none: it is not there, or empty.
fn modified(output: &Path) -> Option<SystemTime> {
    let meta = fs::metadata(output).ok()?;
    let modified = meta.modified().ok()?;
    (meta.len() > 0).then_some(modified)
}

/// A process: its parent, and the CPU time of itself and of the children that it has waited for.
#[derive(Clone, Copy, Debug)]
struct Process {
    parent: u32,
    ticks: u64,
}

/// All processes, zombies included: their time is their parent's only when they are waited for.
fn processes() -> HashMap<u32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return HashMap::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Some((pid, read_process(&text)?))
    })
    .collect()
}

/// proc_pid_stat(5): fields are counted after the name, which may hold blanks and parentheses.
fn read_process(text: &[u8]) -> Option<Process> {
    let after = text.iter().rposition(|byte| *byte == b')')?;
    let text = std::str::from_utf8(&text[after + 1..]).ok()?;
    let fields: Vec<&str> = text.split_whitespace().collect();
    // utime, stime, cutime, cstime; the last two are signed.
    let mut ticks = 0_u64;
    for field in fields.get(11..15)? {
        ticks += u64::try_from(field.parse::<i64>().ok()?).unwrap_or(0);
    }
    Some(Process {
        parent: fields.get(1)?.parse().ok()?,
        ticks,
    })
}

/// The CPU time of a process and all that descends from it; none: it is not there.
fn tree_time(processes: &HashMap<u32, Process>, root: u32) -> Option<Duration> {
    let mut ticks = processes.get(&root)?.ticks;
    let mut found = HashSet::from([root]);
    loop {
        let more: Vec<u32> = processes
            .iter()
            .filter(|(pid, process)| !found.contains(*pid) && found.contains(&process.parent))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            break;
        }
        ticks += more.iter().map(|pid| processes[pid].ticks).sum::<u64>();
        found.extend(more);
    }
    let a_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Duration::from_millis(ticks * 1000 / a_second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_that_waits_is_quiet_and_one_that_computes_is_not() {
        let over = Duration::from_secs(5);
        let cpu = |ms| Some((Duration::from_millis(ms), over));
        assert!(!is_active(None, None));
        assert!(!is_active(cpu(50), None), "1% is a shell that waits");
        assert!(is_active(cpu(60), None));
        assert!(!is_active(cpu(0), Some(4)));
        assert!(is_active(cpu(0), Some(5)));
    }

    #[test]
    fn a_sample_is_a_second_long_at_least() {
        let start = Instant::now();
        let mut seen = Seen {
            active: Instant::now(),
            looked: Instant::now(),
            printed: None,
            cpu_percent: None,
            base: None,
            server_base: None,
        };
        let mut at = |ms, cpu| {
            let now = start + Duration::from_millis(ms);
            seen.use_of_cpu(Some(Duration::from_millis(cpu)), now)
        };
        assert_eq!(at(0, 500), None, "the first reading is only a beginning");
        assert_eq!(at(400, 600), None);
        let used = at(1000, 750);
        assert_eq!(used, Some((Duration::from_millis(250), CPU_OVER)));
        assert_eq!(
            at(2000, 700),
            Some((Duration::ZERO, CPU_OVER)),
            "less is none"
        );
        assert_eq!(seen.cpu_percent, Some(0));
    }

    #[test]
    fn a_tree_is_what_descends_from_its_worker() {
        let stat = b"31 (a) b) S 20 20 20 0 -1 4194304 1 2 3 4 7 5 2 1 20 0 1 0 99 1 1".as_slice();
        let process = read_process(stat).expect("it is whole");
        assert_eq!((process.parent, process.ticks), (20, 15));
        let one = |parent, ticks| Process { parent, ticks };
        let all = HashMap::from([
            (1, one(0, 1000)),
            (10, one(1, 100)),
            (20, one(10, 3)),
            (31, process),
            (32, one(31, 2)),
            (40, one(10, 50)),
        ]);
        let a_second = rustix::param::clock_ticks_per_second();
        let expected = Duration::from_millis(20 * 1000 / a_second);
        assert_eq!(tree_time(&all, 20), Some(expected));
        assert_eq!(tree_time(&all, 99), None);
    }

    #[test]
    fn living_trees_are_told_apart() {
        let start = |command: &str| {
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", command]).spawn().expect("sh starts")
        };
        let dir = tempfile::tempdir().expect("a directory");
        let mut children = [
            start("sleep 30; true"),
            start("timeout 30 sh -c 'while :; do :; done'; true"),
        ];
        let started = Instant::now();
        let watched: Vec<Watched> = children
            .iter()
            .enumerate()
            .map(|(n, child)| Watched {
                id: TaskId::derive("b", &n.to_string(), None),
                attempt: 1,
                pid: child.id(),
                started,
                output: dir.path().join(n.to_string()),
                gpu_percent: None,
                server_pid: None,
            })
            .collect();
        let mut sampler = Sampler::new(Containment::cookie_only("activity"));
        let deadline = Instant::now() + Duration::from_secs(20);
        let signs = loop {
            let signs = sampler.sample(&watched);
            let busy = signs[1].active > started;
            if (busy && signs[0].cpu_percent.is_some()) || Instant::now() > deadline {
                break signs;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        assert_eq!(signs[0].active, started, "{signs:?}");
        assert!(signs[1].active > started, "{signs:?}");
        fs::write(&watched[0].output, "").expect("write");
        assert_eq!(sampler.sample(&watched)[0].printed, None);
        fs::write(&watched[0].output, "a line").expect("write");
        let printed = &sampler.sample(&watched)[0];
        assert!(printed.printed.is_some_and(|at| at >= started));
        assert!(printed.active > started);
        sampler.sample(&[]);
        assert!(sampler.seen.is_empty());
        let processes = processes();
        for child in &mut children {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
        // `timeout` takes its loop along.
        for (pid, _) in processes
            .iter()
            .filter(|(_, process)| children.iter().any(|child| process.parent == child.id()))
        {
            let pid = rustix::process::Pid::from_raw(*pid as i32).expect("a pid");
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    #[test]
    fn a_server_at_work_is_a_sign_of_life_of_whom_it_serves() {
        let start = |command: &str| {
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", command]).spawn().expect("sh starts")
        };
        let mut client = start("sleep 60; true");
        let mut idle = start("sleep 60; true");
        let mut busy = start("timeout 60 sh -c 'while :; do :; done'; true");
        let started = Instant::now();
        let watched: Vec<Watched> = [None, Some(idle.id()), Some(busy.id())]
            .into_iter()
            .enumerate()
            .map(|(n, server_pid)| Watched {
                id: TaskId::derive("b", &n.to_string(), None),
                attempt: 1,
                pid: client.id(),
                started,
                output: "/nowhere".into(),
                gpu_percent: None,
                server_pid,
            })
            .collect();
        let mut sampler = Sampler::new(Containment::cookie_only("server"));
        let deadline = Instant::now() + Duration::from_secs(20);
        let signs = loop {
            let signs = sampler.sample(&watched);
            if signs[2].active > started || Instant::now() > deadline {
                break signs;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        for child in [&mut client, &mut idle, &mut busy] {
            let tree = processes();
            for (pid, _) in tree.iter().filter(|(_, one)| one.parent == child.id()) {
                // `timeout` hands it on.
                let pid = rustix::process::Pid::from_raw(*pid as i32).expect("a pid");
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        assert!(signs[2].active > started, "its server works");
        assert_eq!(signs[0].active, started);
        assert_eq!(signs[1].active, started, "its server waits too");
    }
}
