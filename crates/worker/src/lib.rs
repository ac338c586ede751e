//! One attempt of one task: a shell command or a prompt.
//!
//! A worker is started by an agent with the locked task file as its standard input. It holds that
//! lock, which is the lease, until it dies; runs the task; ends everything that the task started;
//! and leaves the attempt's record. It exits with 0 if there is a record, whatever that says.

mod capture;
mod command;
mod environment;
mod executor;
mod fence;
mod files;
mod llm;
mod log;
mod outcome;
mod prompt;
mod record;
mod signals;
mod tree;

use std::ffi::OsString;
use std::time::Instant;

use anyhow::{Context, anyhow};
use jiff::Timestamp;
use rigor_exec::WorkerArgs;
use rigor_queue::Lease;
use rigor_queue::claim;
use rigor_queue::rig::Rig;
use rigor_queue::task::{TaskSpec, Work};

use crate::capture::Capture;
use crate::log::Log;
use crate::outcome::{Ended, Failure};
use crate::signals::Signals;

/// What an attempt runs with.
struct Attempt<'a> {
    args: &'a WorkerArgs,
    spec: &'a TaskSpec,
    started: Instant,
    signals: &'a mut Signals,
    output: &'a mut Capture,
    log: &'a Log,
}

/// Runs one attempt to its record. `args` is the command line without the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    let (started, started_at) = (Instant::now(), Timestamp::now());
    // First of all, before anything could inherit it.
    let lease = Lease::from_stdin().context("take over the lease from standard input")?;
    let args = WorkerArgs::parse(args)?;
    let log = Log::new(&args);
    isolate(&args, &log)?;
    let mut signals = Signals::new().context("install signal handlers")?;
    let rig = Rig::open(&args.rig)?;
    let spec = claim::read_leased(&lease, &args.file)
        .map_err(|why| anyhow!("read the task {} from standard input: {why}", args.file))?;
    let path = rig.output_path(&spec.batch, spec.id, args.file.attempt);
    let mut output = Capture::new(path, args.output_cap_bytes);
    let mut attempt = Attempt {
        args: &args,
        spec: &spec,
        started,
        signals: &mut signals,
        output: &mut output,
        log: &log,
    };
    rigor_queue::crash_point!("worker.before_command");
    let ended = attempt.run();
    rigor_queue::crash_point!("worker.before_record");
    output.finish();
    if let Some(error) = output.error() {
        log.warning(&format!(
            "output of task {} was lost: {error}",
            spec.id.short()
        ));
    }
    let record = record::compose(&args, &spec, started, started_at, ended, &output);
    record::write(&rig, &record, &mut signals, &log)?;
    rigor_queue::crash_point!("worker.after_record");
    // The lease goes last: a free lock with a valid record means that only the move is missing.
    drop(lease);
    Ok(())
}

impl Attempt<'_> {
    fn run(&mut self) -> Ended {
        let ended = self.prepare().and_then(|()| match &self.spec.work {
            Work::Command { command } => self.run_command(command),
            Work::Prompt(prompt) => self.run_prompt(prompt),
            Work::LoadLlm { .. }
            | Work::UnloadLlm { .. }
            | Work::LendGpu { .. }
            | Work::Plan(_) => Err(Failure::setup(
                "this kind of work is not a worker's: an agent or the brain does it itself",
            )),
        });
        let ended = ended.unwrap_or_else(|failure| {
            self.say_blocked(&failure);
            Ended::failed(failure)
        });
        if !ended.succeeded() {
            return ended;
        }
        match files::missing(&self.spec.plan_dir, &self.spec.produces) {
            Ok(missing) if missing.is_empty() => ended,
            Ok(missing) => ended.but(Failure::missing_product(&missing)),
            Err(failure) => ended.but(failure),
        }
    }

    fn prepare(&self) -> Result<(), Failure> {
        let missing = files::missing(&self.spec.plan_dir, &self.spec.requires)?;
        if missing.is_empty() {
            Ok(())
        } else {
            Err(Failure::missing_requirement(&missing))
        }
    }
}

/// Makes this process the root of the attempt's tree.
fn isolate(args: &WorkerArgs, log: &Log) -> anyhow::Result<()> {
    if let Err(error) = args.groups.join_as_worker() {
        log.warning(&format!(
            "task {} runs without a cgroup: {error}",
            args.file.id.short()
        ));
    }
    match rustix::process::setsid() {
        // It leads a group already when a shell with job control started it.
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(errno) => return Err(errno).context("start a session"),
    }
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("become the parent of orphaned descendants")
}
