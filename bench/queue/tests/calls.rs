//! How many file system calls the queue makes for a claim and for a task's whole way. They do not
//! depend on the machine, so they are held exactly: who saves one lowers the number, and one more
//! is a decision.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rigor_queue::name::{FileName, TaskId};
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::{self, Durability};
use rigor_queue::task::{Class, TaskSpec, Work};

/// Calls, by their names.
type Calls = BTreeMap<String, i64>;

/// A few tasks and many: what both have in common is no part of a task.
const FEW: i64 = 10;
const MANY: i64 = 30;

/// Calls on memory, and `fcntl`, with which the standard library looks at each descriptor that it
/// closes in builds with debug assertions.
const LEFT_OUT: [&str; 4] = ["fcntl", "mmap", "munmap", "mprotect"];

/// A task's claim.
const CLAIM: [(&str, i64); 6] = [
    ("close", 2),
    ("flock", 1),
    ("openat2", 3),
    ("read", 6),
    ("renameat2", 1),
    ("statx", 6),
];

/// Its file written with an expansion, its release, its claim, its end.
const LIFE: [(&str, i64); 9] = [
    ("close", 7),
    ("flock", 1),
    ("openat", 1),
    ("openat2", 7),
    ("read", 6),
    ("renameat2", 3),
    ("statx", 6),
    // The benchmark removes its rig.
    ("unlinkat", 1),
    ("write", 1),
];

#[test]
fn a_claim_takes_these_calls() {
    let calls = each(|dir, count| {
        let root = dir.join("rig");
        queue(&root, count);
        let root = root.to_string_lossy();
        ["claimant", "ours", &root, "gpu-1"]
            .map(str::to_owned)
            .to_vec()
    });
    if let Some(calls) = calls {
        assert_eq!(calls, expected(&CLAIM));
    }
}

#[test]
fn a_task_takes_these_calls_from_its_expansion_to_its_end() {
    let calls = each(|dir, count| {
        let dir = dir.to_string_lossy();
        ["life", &dir, &count.to_string()]
            .map(str::to_owned)
            .to_vec()
    });
    if let Some(calls) = calls {
        assert_eq!(calls, expected(&LIFE));
    }
}

/// Queues so many tasks in a new rig.
fn queue(root: &Path, count: i64) {
    let rig = Rig::create(root).expect("a rig can be made");
    rig.prepare_agent("gpu-1").expect("an agent's folders");
    for sequence in 0..count as u64 {
        // Two digits, so that all files are of one size.
        let item = (sequence + 10).to_string();
        let id = TaskId::derive("b", "t", Some(&item));
        let work = Work::Command {
            command: "true".to_owned(),
        };
        let spec = TaskSpec::new(id, "b", "t", Class::Cpu, work);
        let name = FileName::first(spec.priority, sequence, spec.shape(), spec.id);
        let place = Place::Queue(Class::Cpu);
        let queued = submit::submit(&rig, place, &name, &spec, Durability::Process);
        assert!(queued.expect("it can be queued"));
    }
}

/// The calls of `bench-queue` for each task; none without strace. `words` makes what it needs in a
/// new directory and says what it is to do.
fn each(words: impl Fn(&Path, i64) -> Vec<String>) -> Option<Calls> {
    let traced = |count| {
        let dir = tempfile::tempdir().expect("a directory");
        let words = words(dir.path(), count);
        calls(dir.path(), &words)
    };
    let (few, many) = (traced(FEW)?, traced(MANY)?);
    let mut each = Calls::new();
    for (name, count) in many {
        let more = count - few.get(&name).copied().unwrap_or_default();
        let tasks = MANY - FEW;
        // A call that is made for all at once grows by less than one for each.
        assert_eq!(more % tasks, 0, "{name}: {more} more for {tasks} tasks");
        if more > 0 {
            each.insert(name, more / tasks);
        }
    }
    Some(each)
}

fn calls(dir: &Path, words: &[String]) -> Option<Calls> {
    let trace = dir.join("trace");
    let strace = Command::new("strace")
        .args(["-qq", "-f", "-e", "trace=%file,%desc,getdents64", "-o"])
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_bench-queue"))
        .args(words)
        .stdin(Stdio::null())
        .output();
    let Ok(said) = strace else {
        eprintln!("skipped: there is no strace");
        return None;
    };
    let words = String::from_utf8_lossy(&said.stderr);
    if words.contains("PTRACE") || words.contains("ptrace") {
        eprintln!("skipped: {}", words.trim());
        return None;
    }
    assert!(said.status.success(), "{words}");
    let text = fs::read_to_string(&trace).expect("strace has written it");
    let mut calls = Calls::new();
    for line in text.lines() {
        // `123 openat(AT_FDCWD, ...`; a line without a parenthesis is no call.
        let call = line
            .split_whitespace()
            .nth(1)
            .and_then(|rest| rest.split_once('('));
        let Some((name, _)) = call else { continue };
        if !LEFT_OUT.contains(&name) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    Some(calls)
}

fn expected(calls: &[(&str, i64)]) -> Calls {
    let calls = calls.iter();
    calls
        .map(|(name, count)| ((*name).to_owned(), *count))
        .collect()
}
