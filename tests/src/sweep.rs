//! Every system call of a program that touches a rig, failed one after the other by `strace -e
//! inject`: the program is killed at it, or the call answers with an error.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rigor_queue::lane::Lane;
use rigor_queue::name::TaskId;

use crate::driver::{self, Operation};
use crate::mounts::Image;
use crate::{checker, parts};

/// How strace begins the line of a write to standard output.
const ACKNOWLEDGEMENT: &str = "write(1<";
/// A fault that has hit another call is tried again so often.
const TRIES: usize = 8;
/// What a program that died was writing may lie there so long.
const LITTER_AGE: Duration = Duration::from_secs(60);

/// What is done to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The program is killed when it enters the call: nothing of the call is done.
    Kill,
    /// The disk is full.
    Full,
    /// The disk is broken.
    Broken,
}

impl Fault {
    fn injection(self) -> &'static str {
        match self {
            Fault::Kill => "signal=KILL",
            Fault::Full => "error=ENOSPC",
            Fault::Broken => "error=EIO",
        }
    }
}

/// One system call of a run.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its name.
    pub name: String,
    /// Which call of that name, from 1.
    pub nth: usize,
    /// Which of those of that name that touch the rig, from 1.
    of_rig: usize,
    /// As strace prints it.
    line: String,
}

impl Call {
    /// What can be done to it that makes a difference.
    ///
    /// A kill at a call that changes nothing leaves what a kill at the next one that does leaves,
    /// so it is left out; so are errors of calls that only take apart what this process has
    /// (`close`, `munmap`) or ask for its own state (`fcntl`, `lseek`, `ioctl`): their answers
    /// are not looked at. A call that allocates nothing never finds the disk full.
    fn faults(&self) -> Vec<Fault> {
        let creates = self.name.starts_with("open") && self.line.contains("O_CREAT");
        let allocates = creates
            || matches!(
                self.name.as_str(),
                "write"
                    | "pwrite64"
                    | "writev"
                    | "fsync"
                    | "fdatasync"
                    | "syncfs"
                    | "rename"
                    | "renameat"
                    | "renameat2"
                    | "mkdir"
                    | "mkdirat"
                    | "link"
                    | "linkat"
                    | "ftruncate"
                    | "copy_file_range"
            );
        let changes = allocates
            || matches!(
                self.name.as_str(),
                "unlink" | "unlinkat" | "rmdir" | "flock" | "chmod" | "fchmod"
            );
        if self.is_acknowledgement() {
            return vec![Fault::Kill];
        }
        if matches!(
            self.name.as_str(),
            "close" | "munmap" | "mmap" | "fcntl" | "lseek" | "ioctl"
        ) {
            return Vec::new();
        }
        let mut faults = vec![Fault::Broken];
        if changes {
            faults.push(Fault::Kill);
        }
        if allocates {
            faults.push(Fault::Full);
        }
        faults
    }

    fn is_acknowledgement(&self) -> bool {
        self.line.starts_with(ACKNOWLEDGEMENT)
    }

    fn syncs(&self) -> bool {
        matches!(self.name.as_str(), "fsync" | "fdatasync" | "syncfs")
    }
}

/// What a sweep has done.
#[derive(Debug)]
pub struct Swept {
    /// Cases by the call's name: how many calls, how many faults.
    pub calls: BTreeMap<String, (usize, usize)>,
    /// What was wrong: a line for each.
    pub wrong: Vec<String>,
}

/// Whether system calls can be failed on this machine; the error says why not.
pub fn available() -> Result<(), String> {
    if !parts::on_path("strace") {
        return Err("no strace (apt-get install strace)".to_owned());
    }
    let probe = Command::new("strace")
        .args([
            "-o",
            "/dev/null",
            "-e",
            "inject=fsync:error=EIO:when=1",
            "true",
        ])
        .output();
    match probe {
        Ok(said) if said.status.success() => Ok(()),
        Ok(said) => Err(String::from_utf8_lossy(&said.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// How `unshare` runs a program that sees no other process; `None`: this machine does not let it.
pub fn alone() -> Option<&'static [&'static str]> {
    const WAYS: [&[&str]; 2] = [
        &["--pid", "--fork", "--mount-proc"],
        &[
            "--user",
            "--map-root-user",
            "--pid",
            "--fork",
            "--mount-proc",
        ],
    ];
    WAYS.into_iter().find(|way| {
        let mut probe = Command::new("unshare");
        probe.args(*way).args(["strace", "-o", "/dev/null", "true"]);
        probe.output().is_ok_and(|said| said.status.success())
    })
}

/// Runs the operation once for each of its calls and each fault of that, each time on a rig of its
/// own, and checks the rig after the fault, after a restart, and after the operation was brought to
/// its end. `threads` cases run at once.
pub fn sweep(driver: &Path, operation: Operation, threads: usize) -> Swept {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    sweep_on(driver, operation, threads, scratch.path(), None)
}

/// The same with a power cut at each change of the disk in place of the faults: the program is
/// killed at the call, and what is not durable by then is gone. One at a time, in `scratch`, which
/// lies on the image.
pub fn sweep_power(driver: &Path, operation: Operation, image: &Image, scratch: &Path) -> Swept {
    sweep_on(driver, operation, 1, scratch, Some(image))
}

fn sweep_on(
    driver: &Path,
    operation: Operation,
    threads: usize,
    scratch: &Path,
    image: Option<&Image>,
) -> Swept {
    let bench = Bench {
        driver: driver.to_owned(),
        operation,
        scratch: scratch.to_owned(),
        image,
        alone: match operation {
            Operation::Recover | Operation::Adopt => alone().unwrap_or_default(),
            _ => &[],
        },
    };
    let calls = bench.clean();
    let cases: Vec<(&Call, Fault)> = calls
        .iter()
        .flat_map(|call| call.faults().into_iter().map(move |fault| (call, fault)))
        .filter(|(_, fault)| image.is_none() || *fault == Fault::Kill)
        .collect();
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for call in &calls {
        counts.entry(call.name.clone()).or_default().0 += 1;
    }
    for (call, _) in &cases {
        counts.entry(call.name.clone()).or_default().1 += 1;
    }
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(match image {
        Some(_) => bench.after_acknowledgement(),
        None => Vec::new(),
    });
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((call, fault)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = bench.case(call, *fault);
                    let mut all = wrong.lock().expect("no thread panics with it");
                    all.extend(found.into_iter().map(|what| {
                        format!(
                            "{operation}: {fault:?} at {} {}: {what}\n    {}",
                            call.name, call.nth, call.line
                        )
                    }));
                }
            });
        }
    });
    Swept {
        calls: counts,
        wrong: wrong.into_inner().expect("no thread panics with it"),
    }
}

struct Bench<'a> {
    /// What the rigs lie on, where its power is cut.
    image: Option<&'a Image>,
    driver: PathBuf,
    operation: Operation,
    scratch: PathBuf,
    /// How `unshare` runs it without other processes in sight; empty: not needed.
    alone: &'static [&'static str],
}

struct Said {
    acknowledged: Option<Vec<TaskId>>,
    stderr: String,
}

impl Bench<'_> {
    /// The calls of a run without a fault that touch the rig, and the acknowledgement.
    fn clean(&self) -> Vec<Call> {
        let root = self.scratch.join("clean");
        self.step("prepare", &root);
        let log = self.scratch.join("clean.strace");
        let said = self.traced(&root, &log, &[]);
        assert!(
            said.acknowledged.is_some(),
            "{}: {}",
            self.operation,
            said.stderr
        );
        let text = fs::read_to_string(&log).expect("read what strace wrote");
        let calls = touching(&text, &root);
        let acknowledged = calls
            .iter()
            .filter(|call| call.is_acknowledgement())
            .count();
        assert_eq!(acknowledged, 1, "the acknowledgement is one write");
        calls
    }

    /// Brings one fault about; everything that is wrong after it.
    fn case(&self, call: &Call, fault: Fault) -> Vec<String> {
        let mut nth = call.nth;
        for attempt in 0..TRIES {
            let name = format!("{}-{}-{fault:?}-{attempt}", call.name, call.of_rig);
            let root = self.scratch.join(name);
            let before = self.step("prepare", &root);
            if let Some(image) = self.image {
                image.sync().expect("make the rig durable");
            }
            let log = root.with_extension("strace");
            let injection = format!("inject={}:{}:when={nth}", call.name, fault.injection());
            let trace = format!("trace={}", call.name);
            let said = self.traced(&root, &log, &["-e", &trace, "-e", &injection]);
            let text = fs::read_to_string(&log).expect("read what strace wrote");
            let calls = touching(&text, &root);
            let target = calls.iter().find(|one| one.of_rig == call.of_rig);
            let hit = target.is_some_and(|target| match fault {
                Fault::Kill => {
                    text.contains("+++ killed by SIGKILL +++")
                        && calls.last().map(|last| last.of_rig) == Some(target.of_rig)
                        && target.nth == nth
                }
                Fault::Full | Fault::Broken => target.line.contains("(INJECTED)"),
            });
            if hit {
                return self.after(call, fault, &root, before, said);
            }
            // A run may differ by a call or two.
            nth = target.map_or(nth + 1, |target| target.nth);
        }
        vec![format!("the fault did not take place in {TRIES} tries")]
    }

    /// Everything that is wrong after a fault.
    fn after(
        &self,
        call: &Call,
        fault: Fault,
        root: &Path,
        before: Vec<TaskId>,
        said: Said,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        if let Some(image) = self.image {
            image.cut().expect("cut the power");
        }
        if said.acknowledged.is_some() && (fault == Fault::Kill || call.syncs()) {
            wrong.push("acknowledged all the same".to_owned());
        }
        if said.stderr.contains("panicked") {
            wrong.push(said.stderr.clone());
        }
        let mut known = before;
        known.extend(said.acknowledged.unwrap_or_default());
        wrong.extend(self.look("after the fault", root, LITTER_AGE, &known));
        let finished = checker::finished(root, &known);
        self.step("restart", root);
        // From here on nothing unfinished may be left.
        wrong.extend(self.look("after the restart", root, Duration::ZERO, &known));
        for id in finished {
            if !checker::is_in(root, id, &[Lane::Complete]) {
                wrong.push(format!(
                    "{id} had a valid result and is not complete after a restart"
                ));
            }
        }
        known.extend(self.step("again", root));
        wrong.extend(self.look("at the end", root, Duration::ZERO, &known));
        let end = self.operation.ends_in();
        for id in known
            .iter()
            .filter(|id| !checker::is_in(root, **id, &[end]))
        {
            wrong.push(format!("{id} is not in {end} at the end"));
        }
        if wrong.is_empty() {
            let _ = fs::remove_dir_all(root);
        }
        wrong
    }

    /// What the checker finds.
    fn look(&self, when: &str, root: &Path, litter_age: Duration, known: &[TaskId]) -> Vec<String> {
        let found = checker::check_driver(root, self.operation, litter_age, known);
        let said = found.into_iter().map(|what| format!("{when}: {what}"));
        said.collect()
    }

    /// What a power cut just after the acknowledgement leaves.
    fn after_acknowledgement(&self) -> Vec<String> {
        let root = self.scratch.join("acknowledged");
        let mut known = self.step("prepare", &root);
        if let Some(image) = self.image {
            image.sync().expect("make the rig durable");
            known.extend(self.step("act", &root));
            image.cut().expect("cut the power");
        }
        let mut wrong = checker::check_driver(&root, self.operation, LITTER_AGE, &known);
        self.step("restart", &root);
        wrong.extend(checker::check_driver(
            &root,
            self.operation,
            Duration::ZERO,
            &known,
        ));
        if self.operation.is_durable() {
            let end = self.operation.ends_in();
            for id in known
                .iter()
                .filter(|id| !checker::is_in(&root, **id, &[end]))
            {
                wrong.push(format!("{id} was acknowledged and is not in {end}"));
            }
        }
        wrong
    }

    /// The operation under strace.
    fn traced(&self, root: &Path, log: &Path, words: &[&str]) -> Said {
        // What lies in /proc, which a recovery looks through, must be the same each time.
        let mut command = Command::new(if self.alone.is_empty() {
            "strace"
        } else {
            "unshare"
        });
        if !self.alone.is_empty() {
            command.args(self.alone).arg("strace");
        }
        let output = command
            .args(["-y", "-s", "200", "-o"])
            .arg(log)
            .args(words)
            .arg(&self.driver)
            .args(["act", self.operation.as_str()])
            .arg(root)
            .env("RUST_BACKTRACE", "0")
            .output()
            .expect("start strace");
        Said {
            acknowledged: driver::acknowledged(&String::from_utf8_lossy(&output.stdout)),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// A part of a case in which nothing fails.
    #[track_caller]
    fn step(&self, what: &str, root: &Path) -> Vec<TaskId> {
        let output = Command::new(&self.driver)
            .args([what, self.operation.as_str()])
            .arg(root)
            .output()
            .expect("start the driver");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let said = driver::acknowledged(&String::from_utf8_lossy(&output.stdout));
        said.unwrap_or_else(|| panic!("{what} {} in {}: {stderr}", self.operation, root.display()))
    }
}

/// The calls in a log of strace that name the directory or something in it, and writes to standard
/// output, each with its number among the calls of its name.
fn touching(log: &str, root: &Path) -> Vec<Call> {
    let root = root.to_string_lossy();
    let mut numbers: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let Some((name, _)) = line.split_once('(') else {
            continue;
        };
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            continue;
        }
        let (nth, of_rig) = numbers.entry(name).or_default();
        *nth += 1;
        let touches = name != "execve" && line.contains(&*root);
        if touches || line.starts_with(ACKNOWLEDGEMENT) {
            *of_rig += 1;
            calls.push(Call {
                name: name.to_owned(),
                nth: *nth,
                of_rig: *of_rig,
                line: line.to_owned(),
            });
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_numbered_by_name_and_those_of_the_rig_are_kept() {
        let log = "execve(\"driver\", [\"/r/rig\"], 0x1 /* 3 vars */) = 0\n\
                   openat(AT_FDCWD</w>, \"/etc/ld.so.cache\", O_RDONLY) = 3</etc/ld.so.cache>\n\
                   openat(AT_FDCWD</w>, \"/r/rig/tasks\", O_RDWR|O_CREAT, 0600) = 3</r/rig/tasks>\n\
                   fsync(3</r/rig/tasks>) = 0\n\
                   close(3</r/rig/tasks>) = 0\n\
                   write(1</dev/pts/0>, \"acknowledged\", 12) = 12\n\
                   +++ exited with 0 +++\n";
        let calls = touching(log, Path::new("/r/rig"));
        let found: Vec<(&str, usize, usize)> = calls
            .iter()
            .map(|call| (call.name.as_str(), call.nth, call.faults().len()))
            .collect();
        assert_eq!(
            found,
            [
                ("openat", 2, 3),
                ("fsync", 1, 3),
                ("close", 1, 0),
                ("write", 1, 1)
            ]
        );
    }
}
