//! What an attempt's command may use at most, and what came of it.

use std::fmt;
use std::fs;
use std::path::Path;

use crate::error::ExecError;

/// Of the main memory, what one attempt may take where nothing else is said, percent: the rest
/// keeps the programs of the rig and the system alive when a command takes all that it gets.
const MEMORY_PERCENT: u64 = 90;

/// What a command and all that it starts may use. How far that can be held depends on the machine:
/// [`Containment`](crate::Containment).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Processes and threads at once; none: not limited.
    pub processes: Option<u64>,
    /// Main memory of all processes together with what they have put into the page cache and not
    /// written yet, bytes, without swap; none: nine tenths of the machine's, and swap.
    pub memory_bytes: Option<u64>,
    /// The size of each file that is written, bytes; none: not limited.
    pub file_size_bytes: Option<u64>,
}

impl Limits {
    /// The most memory, bytes; none where the kernel does not tell how much there is.
    pub fn memory_max_bytes(&self) -> Option<u64> {
        self.memory_bytes.or_else(|| {
            let text = fs::read_to_string("/proc/meminfo").ok()?;
            let total = text
                .lines()
                .find_map(|line| line.strip_prefix("MemTotal:"))?;
            // proc_meminfo(5): in KiB, whatever it says.
            let kib: u64 = total.trim().strip_suffix(" kB")?.trim().parse().ok()?;
            Some(kib * 1024 / 100 * MEMORY_PERCENT)
        })
    }
}

/// Limits how many processes there may be in a cgroup of either version.
pub(crate) fn limit_processes(group: &Path, most: u64) -> Result<(), ExecError> {
    write(group, "pids.max", &most.to_string())
}

/// Limits the memory of a cgroup of either version. Unless it may `swap` that is all that it gets;
/// where swap is not accounted for it may.
pub(crate) fn limit_memory(group: &Path, bytes: u64, swap: bool) -> Result<(), ExecError> {
    let bytes = bytes.to_string();
    if group.join("memory.max").exists() {
        write(group, "memory.max", &bytes)?;
        if !swap {
            write_if_there(group, "memory.swap.max", "0")?;
        }
        // A command that lost one of its processes would wait for that one for ever.
        return write_if_there(group, "memory.oom.group", "1");
    }
    write(group, "memory.limit_in_bytes", &bytes)?;
    if swap {
        return Ok(());
    }
    write_if_there(group, "memory.memsw.limit_in_bytes", &bytes)
}

fn write_if_there(group: &Path, file: &str, text: &str) -> Result<(), ExecError> {
    if group.join(file).exists() {
        write(group, file, text)?;
    }
    Ok(())
}

fn write(group: &Path, file: &str, text: &str) -> Result<(), ExecError> {
    let path = group.join(file);
    fs::write(&path, text).map_err(ExecError::io("write", &path))
}

/// Processes that could not be started, since there were as many as the limit allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessLimitHit {
    /// The limit.
    pub limit: u64,
    /// How often.
    pub times: u64,
}

impl fmt::Display for ProcessLimitHit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (limit, times) = (self.limit, self.times);
        write!(
            f,
            "it hit its limit of {limit} processes {times} times (limits.processes in rig.toml; threads count)"
        )
    }
}

/// Processes that the kernel killed for want of main memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OomKill {
    /// How many.
    pub kills: u64,
    /// The limit that the attempt had reached, bytes; none: the machine's memory was short.
    pub limit_bytes: Option<u64>,
    /// What the attempt used at most, bytes; none on kernels that do not tell.
    pub peak_bytes: Option<u64>,
}

impl fmt::Display for OomKill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MB: u64 = 1_000_000;
        let killed = match self.kills {
            1 => "one of its processes".to_owned(),
            more => format!("{more} of its processes"),
        };
        let peak = self.peak_bytes.map_or(String::new(), |bytes| {
            format!("; it had {}MB at most", bytes / MB)
        });
        match self.limit_bytes {
            Some(limit) => write!(
                f,
                "it reached its limit of {}MB and the kernel killed {killed}{peak}; raise `memory` in [limits] of rig.toml, or have it do less at once",
                limit / MB
            ),
            None => write!(
                f,
                "the machine had no memory left and the kernel killed {killed}{peak}; run fewer tasks at once (`cpu_slots`, `max_parallel`), or give it a limit (`memory` in [limits] of rig.toml)"
            ),
        }
    }
}

/// How often a process was refused in a cgroup; none: never, or it is not counted.
pub(crate) fn process_limit_hit(group: &Path) -> Option<ProcessLimitHit> {
    let times = count(group, "pids.events", "max")?;
    let limit = number(group, "pids.max")?;
    (times > 0).then_some(ProcessLimitHit { limit, times })
}

/// Processes of a cgroup that the kernel killed for want of memory; none: none, or not counted.
pub(crate) fn oom_kill(group: &Path) -> Option<OomKill> {
    // Version 2, then version 1.
    let unified = count(group, "memory.events", "oom_kill");
    let kills = unified.or_else(|| count(group, "memory.oom_control", "oom_kill"))?;
    if kills == 0 {
        return None;
    }
    if unified.is_some() {
        let reached = count(group, "memory.events", "oom").is_some_and(|times| times > 0);
        return Some(OomKill {
            kills,
            limit_bytes: number(group, "memory.max").filter(|_| reached),
            peak_bytes: number(group, "memory.peak"),
        });
    }
    // Version 1 does not count refusals on all kernels; who was at its limit was refused.
    let peak = number(group, "memory.max_usage_in_bytes");
    let reached = |limit: &u64| peak.is_some_and(|peak| peak + PEAK_SLACK_BYTES >= *limit);
    Some(OomKill {
        kills,
        limit_bytes: number(group, "memory.limit_in_bytes").filter(reached),
        peak_bytes: peak,
    })
}

/// Memory is charged to a cgroup in portions, for each CPU: so far below its limit it may have been
/// when it was refused more, bytes.
const PEAK_SLACK_BYTES: u64 = 2 << 20;

/// Whether the kernel counts in that cgroup whom it kills for want of memory.
pub(crate) fn counts_oom_kills(group: &Path) -> bool {
    ["memory.events", "memory.oom_control"]
        .iter()
        .any(|file| count(group, file, "oom_kill").is_some())
}

fn number(group: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(group.join(file))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// The number behind a word, one of each on a line.
fn count(group: &Path, file: &str, word: &str) -> Option<u64> {
    let text = fs::read_to_string(group.join(file)).ok()?;
    text.lines().find_map(|line| {
        let (name, number) = line.split_once(' ')?;
        (name == word).then(|| number.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (file, text) in files {
            fs::write(dir.path().join(file), text).expect("write");
        }
        dir
    }

    #[test]
    fn an_own_limit_is_told_from_a_machine_without_memory() {
        let unified = |oom: u64, kills: u64| {
            let events = format!("low 0\nhigh 0\nmax 9\noom {oom}\noom_kill {kills}\n");
            oom_kill(
                group(&[
                    ("memory.events", &events),
                    ("memory.max", "2000000000\n"),
                    ("memory.peak", "1999000000\n"),
                ])
                .path(),
            )
        };
        assert_eq!(unified(4, 0), None);
        let own = unified(1, 3).expect("killed");
        assert_eq!((own.kills, own.limit_bytes), (3, Some(2 * GB)));
        assert!(own.to_string().contains("limit of 2000MB"), "{own}");
        assert!(own.to_string().contains("it had 1999MB at most"), "{own}");
        let others = unified(0, 1).expect("killed");
        assert_eq!(others.limit_bytes, None);
        assert!(others.to_string().contains("the machine had no memory"));

        let legacy = |peak: &str, kills: u64| {
            let control = format!("oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n");
            oom_kill(
                group(&[
                    ("memory.oom_control", &control),
                    ("memory.limit_in_bytes", "2000000000\n"),
                    ("memory.max_usage_in_bytes", peak),
                ])
                .path(),
            )
        };
        assert_eq!(legacy("2000000000\n", 0), None);
        assert_eq!(
            legacy("1999999000\n", 1).expect("killed").limit_bytes,
            Some(2 * GB)
        );
        assert_eq!(legacy("1200000000\n", 1).expect("killed").limit_bytes, None);
        assert_eq!(oom_kill(group(&[]).path()), None);
    }

    #[test]
    fn refused_processes_are_counted() {
        let hit = |times: &str, limit: &str| {
            process_limit_hit(group(&[("pids.events", times), ("pids.max", limit)]).path())
        };
        assert_eq!(hit("max 0\n", "30\n"), None);
        assert_eq!(hit("max 4\n", "max\n"), None);
        let words = hit("max 4\n", "30\n").expect("it was hit").to_string();
        assert!(words.contains("limit of 30 processes 4 times"), "{words}");
    }

    #[test]
    fn each_version_is_limited_by_its_files() {
        let read = |dir: &tempfile::TempDir, file: &str| {
            fs::read_to_string(dir.path().join(file)).unwrap_or_default()
        };
        let unified = group(&[
            ("memory.max", "max"),
            ("memory.swap.max", "max"),
            ("memory.oom.group", "0"),
        ]);
        limit_memory(unified.path(), GB, true).expect("limited");
        assert_eq!(read(&unified, "memory.max"), "1000000000");
        assert_eq!(read(&unified, "memory.swap.max"), "max");
        limit_memory(unified.path(), GB, false).expect("limited");
        assert_eq!(read(&unified, "memory.swap.max"), "0");
        assert_eq!(read(&unified, "memory.oom.group"), "1");
        let legacy = group(&[("memory.memsw.limit_in_bytes", "")]);
        limit_memory(legacy.path(), GB, true).expect("limited");
        assert_eq!(read(&legacy, "memory.memsw.limit_in_bytes"), "");
        limit_memory(legacy.path(), GB, false).expect("limited");
        assert_eq!(read(&legacy, "memory.limit_in_bytes"), "1000000000");
        assert_eq!(read(&legacy, "memory.memsw.limit_in_bytes"), "1000000000");
    }

    #[test]
    fn without_a_limit_most_of_the_machine_is_one() {
        let most = Limits::default().memory_max_bytes().expect("it is told");
        assert!(most > GB / 4, "{most}");
        let own = Limits {
            memory_bytes: Some(7),
            ..Limits::default()
        };
        assert_eq!(own.memory_max_bytes(), Some(7));
    }
}
