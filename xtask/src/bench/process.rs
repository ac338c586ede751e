//! What a running component takes, as the kernel counts it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::rig::Rig;

/// A component of a running rig.
pub(super) struct Process {
    pub(super) name: String,
    dir: PathBuf,
}

/// The agents' thread that asks NVML.
const NVML_THREAD: &str = "nvml";

/// What it has taken since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Taken {
    /// Of all its threads, milliseconds.
    pub(super) cpu_ms: f64,
    /// Of it, in the thread that asks NVML, milliseconds.
    pub(super) nvml_ms: f64,
    /// How often a thread of it waited and went on.
    pub(super) wake_ups: f64,
}

/// The brain and the agents of a rig.
pub(super) fn components(rig: &Rig) -> Result<Vec<Process>> {
    let status: Value = serde_json::from_str(&rig.rigor(&["status", "--json"])?)
        .context("`rigor status --json` printed something unknown")?;
    let agents = status["agents"].as_array().map_or(&[][..], Vec::as_slice);
    let named = |agent: &Value| {
        (
            agent["name"].as_str().unwrap_or_default().to_owned(),
            agent["pid"].clone(),
        )
    };
    std::iter::once(("brain".to_owned(), status["brain"]["pid"].clone()))
        .chain(agents.iter().map(named))
        .map(|(name, pid)| {
            let pid = pid.as_u64().with_context(|| format!("{name} has no pid"))?;
            Ok(Process {
                name,
                dir: PathBuf::from(format!("/proc/{pid}")),
            })
        })
        .collect()
}

impl Process {
    /// Resident memory now, MiB.
    pub(super) fn rss_mb(&self) -> Result<f64> {
        Ok(self.status("VmRSS")? / 1024.0)
    }

    /// The most resident memory since its start or the last [`Process::forget_peak`], MiB.
    pub(super) fn peak_mb(&self) -> Result<f64> {
        Ok(self.status("VmHWM")? / 1024.0)
    }

    /// Makes the present memory the peak.
    pub(super) fn forget_peak(&self) -> Result<()> {
        // proc(5), clear_refs: 5 resets the peak resident set size.
        fs::write(self.dir.join("clear_refs"), "5").context("cannot reset the peak memory")
    }

    pub(super) fn taken(&self) -> Result<Taken> {
        let mut taken = Taken::default();
        let tasks = self.dir.join("task");
        for entry in
            fs::read_dir(&tasks).with_context(|| format!("cannot list {}", tasks.display()))?
        {
            let dir = entry?.path();
            // A thread may end in between.
            let (Ok(schedstat), Ok(status)) = (
                fs::read_to_string(dir.join("schedstat")),
                fs::read_to_string(dir.join("status")),
            ) else {
                continue;
            };
            let on_cpu = schedstat.split_whitespace().next().unwrap_or_default();
            let ms = on_cpu.parse::<f64>().context("schedstat")? / 1e6;
            taken.cpu_ms += ms;
            if status.starts_with(&format!("Name:\t{NVML_THREAD}\n")) {
                taken.nvml_ms += ms;
            }
            taken.wake_ups += field(&status, "voluntary_ctxt_switches").context("its status")?;
        }
        Ok(taken)
    }

    fn status(&self, key: &str) -> Result<f64> {
        let path = self.dir.join("status");
        let text = read(&path)?;
        field(&text, key).with_context(|| format!("{} has no {key}", path.display()))
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The number behind `key:` at the beginning of a line.
fn field(text: &str, key: &str) -> Option<f64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_has_taken_time() {
        let own = Process {
            name: "own".to_owned(),
            dir: PathBuf::from("/proc/self"),
        };
        let before = own.taken().expect("it is there");
        assert!(own.rss_mb().expect("it is there") > 0.5);
        own.forget_peak().expect("it may");
        assert!(own.peak_mb().expect("it is there") >= own.rss_mb().expect("it is there") * 0.5);
        assert_eq!(before.nvml_ms, 0.0);
        let counted = std::thread::Builder::new().name(NVML_THREAD.to_owned());
        let (counting, counted_on) = std::sync::mpsc::channel();
        let thread = counted.spawn(move || {
            let started = std::time::Instant::now();
            while started.elapsed().as_millis() < 20 {}
            counting.send(()).expect("somebody waits");
            std::thread::park();
        });
        let thread = thread.expect("a thread starts");
        counted_on.recv().expect("it has run");
        let after = own.taken().expect("it is there");
        assert!(after.cpu_ms >= before.cpu_ms && after.cpu_ms > 0.0);
        assert!(after.nvml_ms > 0.0 && after.nvml_ms < after.cpu_ms);
        thread.thread().unpark();
        thread.join().expect("it ends");
    }

    #[test]
    fn a_field_is_a_whole_word() {
        let text = "nonvoluntary_ctxt_switches:\t9\nvoluntary_ctxt_switches:\t4\nVmRSS:\t  12 kB\n";
        assert_eq!(field(text, "voluntary_ctxt_switches"), Some(4.0));
        assert_eq!(field(text, "VmRSS"), Some(12.0));
        assert_eq!(field(text, "Vm"), None);
    }
}
