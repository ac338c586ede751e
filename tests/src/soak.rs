//! A soak: a mixed load on a rig while everything is killed, frozen, filled up and littered at random;
//! at the end everything is counted.
//!
//! What a task did is known from the task itself: each attempt notes its start and its end in a file
//! outside of the rig, and holds the lock of a file of its task for as long as anything of it lives, so
//! that an overlap is seen by the kernel and not by comparing clocks.

mod account;
pub mod cli;
mod draw;
mod faults;
mod hostile;
mod load;
mod memory;
mod plans;
mod report;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rigor_queue::rig::BRAIN;
use serde_json::json;

pub use faults::Fault;
pub use memory::Memory;
pub use report::Report;

use crate::{Rig, Setup, mounts, parts};
use draw::Draws;
use faults::Faults;
use load::Load;
use memory::Sampler;

/// The agent that nobody kills or freezes, so that the memory of one is seen over the whole time.
/// What it runs is killed like everything else.
const LEFT_ALONE: &str = "cpu-1";
/// Logs stay small, so that what else grows is seen.
const LOG: &str = "[log]\nmax_size = \"2MB\"\nkeep = 2\n";
/// Batches are archived soon, so that the rig's files are those of what is open.
const RETENTION: &str = "[retention]\ncompact_after = \"30s\"\n";
/// By then all batches are.
const ARCHIVED: Duration = Duration::from_secs(90);
/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(50);
/// Between two lines about how far it is.
const TOLD: Duration = Duration::from_secs(30);
/// For what is open to come to its end once everything runs again.
const DRAIN: Duration = Duration::from_secs(300);
/// The file system that the rig lies on, MB.
pub const DISK_MB: u32 = 768;

/// What a soak is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long work is submitted and faults happen.
    pub time: Duration,
    /// Of all that is drawn: plans, faults, their subjects and the time between them. What a fault
    /// finds the rig at depends on the machine too.
    pub seed: u64,
    /// Between two kills; and, on their own, between two other faults. Each draws its own time from
    /// half to one and a half of it.
    pub every: Duration,
    /// Agents, each with a stand-in GPU. One without a GPU comes on top.
    pub agents: usize,
    /// How long the rig then stays without work and faults: after more than a minute unfinished
    /// writing has to be gone.
    pub calm: Duration,
    /// Where tasks note what they do, and where the rig is left if something is wrong.
    pub keep: PathBuf,
    /// The rig lies on a file system of its own, which may be filled.
    pub own_disk: bool,
}

/// Runs a soak to its end. Its GPUs and its LLM runtime are stand-ins.
///
/// # Errors
///
/// `keep` cannot be written.
pub fn run(options: &Options) -> io::Result<Report> {
    // What an earlier one left there would be taken for this one's.
    match fs::remove_dir_all(&options.keep) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for dir in ["journal", "locks"] {
        fs::create_dir_all(options.keep.join(dir))?;
    }
    let mut rig = rig(options);
    rig.start_all();
    let mut programs = rig.agents();
    programs.insert(0, BRAIN.to_owned());
    let draws = Draws::new(options.seed);
    let mut faults = Faults::new(options, draws, &programs)?;
    let mut load = Load::new(options, draws);
    let mut sampler = Sampler::new(&rig);
    let started = Instant::now();
    let mut told = Instant::now();
    while started.elapsed() < options.time {
        faults.step(&mut rig, &mut load);
        load.step(&mut rig, faults.disk_is_full());
        sampler.step(&rig, &programs, load.open());
        if told.elapsed() > TOLD {
            told = Instant::now();
            let seconds = started.elapsed().as_secs();
            eprintln!(
                "soak: {seconds}s, {} faults, {}",
                faults.count(),
                load.progress()
            );
        }
        sleep(TICK);
    }
    faults.mend(&mut rig);
    eprintln!("soak: no more faults, {}", load.progress());
    let drained = Instant::now() + DRAIN;
    while !load.is_finished() && Instant::now() < drained {
        faults.start_ended(&mut rig);
        load.finish(&mut rig);
        if told.elapsed() > TOLD {
            told = Instant::now();
            eprintln!("soak: {}", load.progress());
        }
        sampler.step(&rig, &programs, load.open());
        sleep(TICK);
    }
    let mut report = Report::new(options);
    report.drain_seconds = DRAIN.as_secs_f64() - (drained - Instant::now()).as_secs_f64();
    let calm = Instant::now() + options.calm;
    while Instant::now() < calm {
        faults.start_ended(&mut rig);
        sampler.step(&rig, &programs, load.open());
        sleep(TICK);
    }
    faults.tell(&mut report);
    sampler.tell(&mut report, &programs);
    account::tell(&rig, &load, options, &mut report);
    if options.calm >= ARCHIVED && memory::has_more_files(&report.files, report.batches) {
        let what = format!("the rig's files grow: {:?}", report.files.last());
        report.wrong.push(what);
    }
    report::close(&mut rig, &programs, &mut report);
    report.seconds = started.elapsed().as_secs_f64();
    if report.is_good() {
        fs::remove_dir_all(&options.keep)?;
        return Ok(report);
    }
    report.kept = Some(options.keep.clone());
    let written = serde_json::to_vec_pretty(&report).expect("a report is JSON");
    fs::write(options.keep.join("report.json"), written)?;
    copy(rig.root(), &options.keep.join("rig"))?;
    copy(&rig.plans(), &options.keep.join("plans"))?;
    Ok(report)
}

/// A rig's own file system goes with the program.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    if !status.success() {
        eprintln!("soak: cp -a {}: {status}", from.display());
    }
    Ok(())
}

/// A rig with a model that the stand-in runtime serves.
fn rig(options: &Options) -> Rig {
    let rig = Setup {
        gpus: options.agents,
        cpu_agents: 1,
        // Whatever is killed is tried again until it is done.
        limits: "uncharged_attempts = 1000\ncpu_slots = 1\noutput_cap = \"64KB\"",
        timing: "heartbeat_warn = \"4s\"\nheartbeat_hung = \"10s\"\n",
        ..Setup::default()
    }
    .make();
    let behaviour = rig.root().with_file_name("runtime-stand-in.json");
    let told = json!({"load_ms": 300, "latency_ms": 200, "vram_mb": 3000});
    fs::write(&behaviour, told.to_string()).expect("write the stand-in's behaviour");
    let server = parts::program("runtime-stand-in").display().to_string();
    rig.edit_toml(|text| {
        let llama = parts::fixture("llama_server").display().to_string();
        text.replace(&llama, &server)
            .replacen("[log]\n", LOG, 1)
            .replacen("[retention]\n", RETENTION, 1)
            + &format!(
                "\n[[model]]\nid = \"{}\"\nkind = \"chat\"\nruntime = \"llama-server\"\nfile = {:?}\nslots = 2\ncontext = 2048\n\
                 vram_mb = 3000\nenv = {{ RIGOR_SIM_VRAM_MB = \"3000\", RIGOR_RUNTIME_STAND_IN = {behaviour:?} }}\n",
                plans::MODEL,
                parts::fixture("model")
            )
    });
    rig
}

/// Runs this program again where its temporary files lie on a file system of their own.
///
/// # Errors
///
/// Why this machine allows none.
pub fn again(words: &[&str], keep: &Path) -> Result<std::process::ExitStatus, String> {
    mounts::again(words, Some(DISK_MB), keep)
}
