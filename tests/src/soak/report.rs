//! What came of a soak.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::Regex;
use serde::Serialize;
use serde_json::Value;
use walkdir::WalkDir;

use super::memory::{Files, Memory};
use super::{Fault, Options};
use crate::Rig;

/// The counts of a soak.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Of all that was drawn.
    pub seed: u64,
    /// How long it took in all.
    pub seconds: f64,
    /// How long it took after the last fault until every batch was over.
    pub drain_seconds: f64,
    /// By kind.
    pub faults: BTreeMap<Fault, usize>,
    /// What this machine does not allow.
    pub skipped: Vec<String>,
    /// Plans whose submission was acknowledged.
    pub batches: usize,
    /// The most that were open at a time.
    pub open_most: usize,
    /// Their tasks.
    pub submitted: usize,
    /// Tasks that succeeded.
    pub completed: usize,
    /// Tasks that failed for good.
    pub failed: usize,
    /// Tasks that were cancelled.
    pub cancelled: usize,
    /// Tasks whose file the soak damaged: they are in quarantine.
    pub damaged: usize,
    /// Tasks of cancelled batches, and after damaged tasks, that were never made.
    pub never_made: usize,
    /// Tasks that failed or were cancelled, by reason; numbers in reasons read `N`.
    pub failures: BTreeMap<String, usize>,
    /// Attempts that did not succeed, by outcome and reason.
    pub attempts: BTreeMap<String, usize>,
    /// Attempts that began after a task's first.
    pub reruns: usize,
    /// Attempts that came to a good end after another of the task did: it was killed before that was
    /// on the disk.
    pub repeated: usize,
    /// Attempts of one task that ran at the same time, or that must not have run at all.
    pub overlaps: usize,
    /// Tasks that came to no end, or are complete though none of their attempts came to its end.
    pub lost: usize,
    /// Processes and cgroups of the rig that are left after everything was stopped.
    pub leaked_processes: usize,
    /// What is left in the rig's directory and belongs to nothing.
    pub leaked_files: usize,
    /// Commands of an operator that were refused, by their words: a full disk refuses.
    pub refused: BTreeMap<String, usize>,
    /// Lines of the logs at ERROR, by their words.
    pub errors: BTreeMap<String, usize>,
    /// Per program.
    pub memory: Vec<Memory>,
    /// Of the rig's directory, over time.
    pub files: Vec<Files>,
    /// What must not be, in words.
    pub wrong: Vec<String>,
    /// Where the rig lies now, if something is wrong.
    pub kept: Option<PathBuf>,
}

impl Report {
    pub(super) fn new(options: &Options) -> Report {
        Report {
            seed: options.seed,
            ..Report::default()
        }
    }

    /// Whether everything is as promised.
    pub fn is_good(&self) -> bool {
        self.wrong.is_empty()
            && self.lost + self.overlaps + self.leaked_processes + self.leaked_files == 0
    }
}

/// Stops the rig, checks it, and counts what is left of it.
pub(super) fn close(rig: &mut Rig, programs: &[String], report: &mut Report) {
    let found = rig.close();
    let count = |what: &str| found.iter().filter(|it| it.contains(what)).count();
    let cgroups = cgroups(rig.id());
    report.leaked_processes = count("a process is left") + cgroups.len();
    report.lost += count("is in no lane");
    let mut left: Vec<String> = cgroups;
    let fsck = rig.rigor(&["fsck", "--dry-run", "--json"]);
    let said: Value = serde_json::from_str(&fsck.stdout).unwrap_or_default();
    match said["findings"].as_array() {
        Some(findings) => {
            let shown = |it: &Value| {
                format!(
                    "{}: {}",
                    it["path"].as_str().unwrap_or("?"),
                    it["what"].as_str().unwrap_or("?")
                )
            };
            left.extend(findings.iter().filter(|it| !is_young(it)).map(shown));
        }
        None => report.wrong.push(format!("rigor fsck: {}", fsck.stderr)),
    }
    report.leaked_files = left.len() - (report.leaked_processes - count("a process is left"));
    left.extend(ports_in_use(rig));
    report.wrong.extend(found);
    report
        .wrong
        .extend(left.into_iter().map(|what| format!("left: {what}")));
    for name in programs {
        errors(&rig.log(name), name, report);
    }
}

/// Unfinished writing of one that was killed is nobody's fault for a minute.
fn is_young(finding: &Value) -> bool {
    const LITTER_SECONDS: u64 = 60;
    let path = Path::new(finding["path"].as_str().unwrap_or_default());
    let modified = fs::symlink_metadata(path).and_then(|meta| meta.modified());
    let age = modified.ok().and_then(|at| at.elapsed().ok());
    finding["check"] == "litter" && age.is_some_and(|age| age.as_secs() < LITTER_SECONDS)
}

/// Control groups that carry the rig's id.
fn cgroups(id: &str) -> Vec<String> {
    let dirs = WalkDir::new("/sys/fs/cgroup")
        .max_depth(6)
        .into_iter()
        .flatten();
    dirs.filter(|entry| entry.file_type().is_dir())
        .filter(|entry| entry.file_name().to_string_lossy().contains(id))
        .map(|entry| format!("a cgroup: {}", entry.path().display()))
        .collect()
}

/// Ports of the runtimes that somebody still has.
fn ports_in_use(rig: &Rig) -> Vec<String> {
    let toml = fs::read_to_string(rig.root().join("rig.toml")).unwrap_or_default();
    let ports = toml
        .lines()
        .filter_map(|line| line.strip_prefix("port = ")?.parse::<u16>().ok());
    ports
        .filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_err())
        .map(|port| format!("port {port} is in use"))
        .collect()
}

fn errors(log: &str, name: &str, report: &mut Report) {
    // What a program says of its own defects, at any level.
    const DEFECTS: [&str; 3] = ["panicked", "please report", "bug:"];

    for line in log.lines() {
        if DEFECTS.iter().any(|defect| line.contains(defect)) {
            report.wrong.push(format!("{name}: {line}"));
        }
        let Some((_, words)) = line.split_once("] ERROR ") else {
            continue;
        };
        let short: String = without_numbers(words).chars().take(120).collect();
        *report.errors.entry(format!("{name}: {short}")).or_insert(0) += 1;
    }
}

/// Texts that differ in a pid, a time, an id, a batch or the rig's directory only are one.
pub(super) fn without_numbers(text: &str) -> String {
    static SAME: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        let same = |pattern, by| (Regex::new(pattern).expect("a pattern"), by);
        [
            same(r"[^ ]*/rigor-test-[^/ ]+/rig/", "RIG/"),
            same(r"soak-[0-9]+-[0-9]+-[0-9]+-[0-9a-z]+", "BATCH"),
            same(r"[0-9a-f]{16}", "ID"),
            same(r"[0-9]+", "N"),
        ]
    });
    let mut text = text.to_owned();
    for (pattern, by) in SAME.iter() {
        text = pattern.replace_all(&text, *by).into_owned();
    }
    text
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: usize = self.faults.values().sum();
        writeln!(f, "seed                 {}", self.seed)?;
        writeln!(
            f,
            "seconds              {:.0}, of which {:.0} from the last fault to the last batch's end",
            self.seconds, self.drain_seconds
        )?;
        writeln!(f, "faults               {total}")?;
        for (fault, count) in &self.faults {
            writeln!(f, "  {:<19}{count}", format!("{fault:?}"))?;
        }
        for skipped in &self.skipped {
            writeln!(f, "skipped: {skipped}")?;
        }
        for (what, count) in [
            ("batches", self.batches),
            ("submitted", self.submitted),
            ("completed", self.completed),
            ("failed", self.failed),
            ("cancelled", self.cancelled),
            ("damaged by the soak", self.damaged),
            ("never made", self.never_made),
            ("reruns", self.reruns),
            ("repeated", self.repeated),
            ("overlaps", self.overlaps),
            ("lost", self.lost),
            ("leaked processes", self.leaked_processes),
            ("leaked files", self.leaked_files),
        ] {
            writeln!(f, "{what:<21}{count}")?;
        }
        for (title, counts) in [
            ("tasks that did not complete, by reason", &self.failures),
            ("attempts that did not succeed, by reason", &self.attempts),
            ("commands refused", &self.refused),
            ("lines at ERROR", &self.errors),
        ] {
            writeln!(f, "{title}")?;
            for (reason, count) in counts {
                writeln!(f, "  {count:>4}  {reason}")?;
            }
        }
        writeln!(
            f,
            "memory, KiB          starts    first     last     most  growth a minute"
        )?;
        for memory in &self.memory {
            let shown = |value: Option<f64>| value.map_or("-".to_owned(), |it| format!("{it:.0}"));
            let [first, last, slope] = [memory.first, memory.last, memory.slope].map(shown);
            writeln!(
                f,
                "  {:<19}{:>6}{first:>9}{last:>9}{:>9}{slope:>9}",
                memory.name, memory.incarnations, memory.most
            )?;
        }
        let most = self
            .files
            .iter()
            .max_by_key(|files| files.count)
            .copied()
            .unwrap_or_default();
        for (what, files) in [
            ("first", self.files.first()),
            ("most", Some(&most)),
            ("last", self.files.last()),
        ] {
            if let Some(files) = files {
                let mb = files.bytes / 1_000_000;
                writeln!(
                    f,
                    "files of the rig     {what:<6}{:>7}, {mb} MB, at {:.0}s",
                    files.count, files.at
                )?;
            }
        }
        for wrong in &self.wrong {
            writeln!(f, "WRONG: {wrong}")?;
        }
        if let Some(kept) = &self.kept {
            writeln!(f, "kept: {}", kept.display())?;
        }
        let verdict = if self.is_good() { "good" } else { "NOT GOOD" };
        writeln!(
            f,
            "verdict              {verdict} (GPUs and LLM runtime are stand-ins)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::without_numbers;

    #[test]
    fn what_differs_in_names_and_numbers_is_one() {
        let texts = [
            "write /tmp/x/rigor-test-Ab1/rig/attempts/soak-7-20261124-095144-qnrd/bb8d1e3eca0bdedb.a1.json: pid 12",
            "write /tmp/y/rigor-test-9Zq/rig/attempts/soak-12-20261124-101144-77aa/0b8d1e3eca0bdedb.a3.json: pid 4711",
        ];
        for text in texts {
            assert_eq!(
                without_numbers(text),
                "write RIG/attempts/BATCH/ID.aN.json: pid N"
            );
        }
    }
}
