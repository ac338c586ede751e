//! Which live processes hold memory of which stand-in GPU.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::CLAIM_VARIABLE;

/// Processes are looked up at most this often: a reading asks several questions, which should
/// agree, and a look at every process takes milliseconds.
pub const SCAN_EVERY: Duration = Duration::from_millis(100);

const VISIBLE_VARIABLE: &str = "CUDA_VISIBLE_DEVICES";

/// CUDA takes the start of a UUID where it is unique; one shorter than this names nothing.
const UUID_START_LEN: usize = "GPU-".len() + 8;

/// Programs that hand the variables on without computing on a GPU themselves.
const OWN_PROGRAMS: [&str; 4] = ["worker", "gpu-agent", "brain", "rigor"];

const KIB: u64 = 1024;
const MIB: u64 = 1024 * 1024;

/// A process that names GPUs.
#[derive(Clone, Debug, PartialEq)]
struct Process {
    pid: u32,
    parent: u32,
    /// The value of `CUDA_VISIBLE_DEVICES`.
    visible: String,
    claim_mb: Option<u64>,
    rss_bytes: u64,
}

/// The processes that hold memory of the GPU `uuid`, with the bytes each holds, in order of pid.
pub(crate) fn holders(uuid: &str) -> Vec<(u32, u64)> {
    static LAST: Mutex<Option<(Instant, Vec<Process>)>> = Mutex::new(None);

    let mut last = LAST.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let processes = match &*last {
        Some((at, processes)) if at.elapsed() < SCAN_EVERY => processes,
        _ => &last.insert((Instant::now(), scan(Path::new("/proc")))).1,
    };
    held(uuid, processes)
}

fn held(uuid: &str, processes: &[Process]) -> Vec<(u32, u64)> {
    let by_pid: HashMap<u32, &Process> = processes
        .iter()
        .map(|process| (process.pid, process))
        .collect();
    let mut held: Vec<_> = processes
        .iter()
        .filter(|process| process.names(uuid))
        .filter(|process| {
            !by_pid
                .get(&process.parent)
                .is_some_and(|parent| process.inherits_claim(parent))
        })
        .map(|process| {
            let bytes = process
                .claim_mb
                .map_or(process.rss_bytes, |mb| mb.saturating_mul(MIB));
            (process.pid, bytes / process.entries().count().max(1) as u64)
        })
        .collect();
    held.sort_unstable();
    held
}

impl Process {
    fn entries(&self) -> impl Iterator<Item = &str> {
        self.visible
            .split(',')
            .map(str::trim)
            .filter(|entry| entry.len() >= UUID_START_LEN)
    }

    fn names(&self, uuid: &str) -> bool {
        self.entries().any(|entry| uuid.starts_with(entry))
    }

    fn inherits_claim(&self, parent: &Process) -> bool {
        self.claim_mb.is_some()
            && self.claim_mb == parent.claim_mb
            && self.visible == parent.visible
    }
}

fn scan(proc: &Path) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir(proc) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid = entry.file_name().to_str()?.parse().ok()?;
            process(pid, &entry.path())
        })
        .collect()
}

/// None for a process that names no GPU, that ended meanwhile (also while a zombie: its
/// environment is empty), that belongs to somebody else, or that is one of Rigor's own.
fn process(pid: u32, folder: &Path) -> Option<Process> {
    let environment = std::fs::read(folder.join("environ")).ok()?;
    let visible =
        variable(&environment, VISIBLE_VARIABLE).filter(|value| value.contains("GPU-"))?;
    let status = std::fs::read_to_string(folder.join("status")).ok()?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    };
    if OWN_PROGRAMS.contains(&field("Name")?) {
        return None;
    }
    let rss_kib: u64 = field("VmRSS")?.strip_suffix("kB")?.trim().parse().ok()?;
    Some(Process {
        pid,
        parent: field("PPid")?.parse().ok()?,
        claim_mb: variable(&environment, CLAIM_VARIABLE)
            .and_then(|value| value.trim().parse().ok()),
        visible,
        rss_bytes: rss_kib * KIB,
    })
}

fn variable(environment: &[u8], name: &str) -> Option<String> {
    environment.split(|byte| *byte == 0).find_map(|entry| {
        let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(String::from_utf8_lossy(value).into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "GPU-11111111-aaaa-4000-8000-000000000001";
    const TWO: &str = "GPU-22222222-aaaa-4000-8000-000000000002";

    fn process(pid: u32, parent: u32, visible: &str, claim_mb: Option<u64>) -> Process {
        Process {
            pid,
            parent,
            visible: visible.to_owned(),
            claim_mb,
            rss_bytes: 10 * MIB,
        }
    }

    #[test]
    fn resident_memory_stands_for_vram() {
        let processes = [
            process(2, 1, ONE, None),
            process(3, 2, ONE, None),
            process(4, 1, TWO, None),
        ];
        assert_eq!(held(ONE, &processes), [(2, 10 * MIB), (3, 10 * MIB)]);
    }

    #[test]
    fn an_inherited_claim_counts_once_and_equal_claims_of_siblings_each() {
        let claim = Some(500);
        let processes = [
            process(2, 1, ONE, claim),
            process(3, 2, ONE, claim),
            process(4, 3, ONE, claim),
        ];
        assert_eq!(held(ONE, &processes), [(2, 500 * MIB)]);
        // The parent died: the claim passes to what is left of the tree.
        assert_eq!(held(ONE, &processes[1..]), [(3, 500 * MIB)]);
        let siblings = [
            process(2, 1, ONE, None),
            process(3, 2, ONE, claim),
            process(4, 2, ONE, claim),
        ];
        assert_eq!(
            held(ONE, &siblings),
            [(2, 10 * MIB), (3, 500 * MIB), (4, 500 * MIB)]
        );
    }

    #[test]
    fn several_gpus_share_and_a_uuid_may_be_shortened() {
        let both = format!("{ONE}, {TWO}");
        assert_eq!(
            held(TWO, &[process(2, 1, &both, Some(500))]),
            [(2, 250 * MIB)]
        );
        assert_eq!(
            held(ONE, &[process(2, 1, "GPU-11111111", None)]),
            [(2, 10 * MIB)]
        );
        assert_eq!(
            held(
                ONE,
                &[process(2, 1, "GPU-", None), process(3, 1, "0", None)]
            ),
            []
        );
    }

    #[test]
    fn own_programs_hold_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for (pid, name) in [
            ("10", "worker"),
            ("11", "gpu-agent"),
            ("12", "python3"),
            ("self", "python3"),
        ] {
            let entry = folder.path().join(pid);
            std::fs::create_dir(&entry).unwrap();
            let environment = format!("A=b\0{VISIBLE_VARIABLE}={ONE}\0{CLAIM_VARIABLE}=7\0");
            std::fs::write(entry.join("environ"), environment).unwrap();
            let status =
                format!("Name:\t{name}\nState:\tS (sleeping)\nPPid:\t1\nVmRSS:\t    2048 kB\n");
            std::fs::write(entry.join("status"), status).unwrap();
        }
        let found = scan(folder.path());
        let expected = Process {
            pid: 12,
            parent: 1,
            visible: ONE.to_owned(),
            claim_mb: Some(7),
            rss_bytes: 2 * MIB,
        };
        assert_eq!(found, [expected]);
    }
}
