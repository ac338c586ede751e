//! What a command may use: set before it is there, and what came of it, told when it is over.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rigor_exec::{NotCounted, WorkerArgs, oom};
use rigor_queue::record::FailureKind;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, Signal};

use crate::outcome::{Failure, words};

/// Added to how much the kernel's out-of-memory killer likes a process, thousandths of the memory
/// (proc_pid_oom_score_adj(5)): where the machine's memory is short a task is ended, which can be
/// tried again, before an agent, a model's server, or somebody's editor.
const OOM_SCORE: &[u8] = b"500";
/// What a shell adds to the signal that ended its command.
const SHELL_SIGNAL: i32 = 128;
/// The words of EFBIG, for programs that ignore SIGXFSZ.
const FILE_TOO_LARGE: &str = "File too large";

/// Has the command start within its limits.
pub(crate) fn put_up(command: &mut Command, args: &WorkerArgs) -> Result<(), Failure> {
    let entrances = args.groups.entrances();
    let entrances = entrances.map_err(|error| Failure::setup(error.to_string()))?;
    let file_size = args.file_size_bytes;
    // SAFETY: between fork and exec only system calls are made: nothing is allocated, no lock is
    // taken, and what is used was made before the fork.
    unsafe {
        command.pre_exec(move || enter(&entrances, file_size));
    }
    Ok(())
}

fn enter(entrances: &[File], file_size: Option<u64>) -> io::Result<()> {
    for procs in entrances {
        rustix::io::write(procs, b"0")?;
    }
    if let Some(most) = file_size {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        rustix::process::setrlimit(Resource::Fsize, limit)?;
    }
    // More than was set for this process is always allowed; without it the kernel's own rules hold.
    let score = rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY, Mode::empty());
    if let Ok(score) = score {
        let _ = rustix::io::write(score, OOM_SCORE);
    }
    Ok(())
}

/// Says of a command that failed which limit it had hit, where it is known to have hit one.
/// `said` is its last line of output.
pub(crate) fn explain(
    failure: Failure,
    args: &WorkerArgs,
    ended_by: (Option<i32>, Option<i32>),
    oom_kills_before: Option<u64>,
    ran: std::time::Duration,
    said: Option<&str>,
) -> Failure {
    let mut failure = failure;
    let by = |signal: Signal| {
        let number = signal.as_raw();
        ended_by.1 == Some(number) || ended_by.0 == Some(SHELL_SIGNAL + number)
    };
    // Who was told to end was not ended by that.
    let on_its_own = matches!(
        failure.kind,
        FailureKind::ExitCode | FailureKind::Signal | FailureKind::OutOfMemory
    );
    match args.groups.oom_kill() {
        Ok(Some(killed)) if on_its_own => {
            failure.kind = FailureKind::OomKilled;
            failure.reason = format!("out of main memory after {}: {killed}", words(ran));
        }
        Ok(Some(killed)) => failure.reason.push_str(&format!("; {killed}")),
        Ok(None) => {}
        Err(NotCounted) if on_its_own && by(Signal::KILL) => {
            failure.reason.push_str(oom::suspicion(oom_kills_before));
        }
        Err(NotCounted) => {}
    }
    if let Some(hit) = args.groups.process_limit_hit() {
        failure.reason.push_str(&format!("; {hit}"));
    }
    if let Some(most) = args.file_size_bytes
        && on_its_own
        && (by(Signal::XFSZ) || said.is_some_and(|line| line.contains(FILE_TOO_LARGE)))
    {
        failure.reason.push_str(&format!(
            "; a file that it wrote reached the limit of {}MB (limits.file_size in rig.toml)",
            most / 1_000_000
        ));
    }
    failure
}
