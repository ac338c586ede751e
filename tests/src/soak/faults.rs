//! What is done to the rig, and when.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rigor_queue::rig::BRAIN;
use rustix::process::Signal;
use serde::Serialize;

use super::draw::{Draws, Stream, around, milliseconds, one};
use super::load::Load;
use super::report::Report;
use super::{LEFT_ALONE, Options, hostile};
use crate::processes::{self, Process};
use crate::{Rig, mounts};

/// A killed program is started again after this long, milliseconds.
const DOWN_MS: std::ops::Range<u64> = 0..4_000;
/// A short freeze: nobody has to be killed for it.
const FROZEN_MS: std::ops::Range<u64> = 200..3_000;
/// A long one, longer than the brain lets an agent be silent.
const HUNG_MS: std::ops::Range<u64> = 13_000..16_000;
/// The disk is full for so long.
const FULL_MS: std::ops::Range<u64> = 500..5_000;
/// A program may give up over a full disk, and says so a moment later.
const AFTER_FULL: Duration = Duration::from_secs(20);

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The brain is killed, and started again after a moment.
    BrainKilled,
    /// An agent is killed, and started again after a moment.
    AgentKilled,
    /// A running worker is killed.
    WorkerKilled,
    /// A process that a task started is killed.
    CommandKilled,
    /// A running LLM runtime is killed.
    RuntimeKilled,
    /// A `rigor submit` is killed before it has ended.
    SubmitKilled,
    /// The brain is stopped for less than three seconds, and goes on.
    BrainFrozen,
    /// An agent is stopped for less than three seconds, and goes on.
    AgentFrozen,
    /// An agent is stopped for longer than the brain lets it be silent.
    AgentHung,
    /// A worker is stopped for less than three seconds, and goes on.
    WorkerFrozen,
    /// The disk is full for less than five seconds.
    DiskFull,
    /// Bytes that are no task in a lane, under the name of one or not.
    BadFile,
    /// A queued task's file is copied under the name of another task.
    FileCopied,
    /// Some of the bytes of a queued task's file are others.
    FileDamaged,
    /// A record of an attempt that has not begun, torn.
    BadRecord,
    /// An agent's heartbeat turns into bytes that are none.
    BadHeartbeat,
    /// A signal that nobody knows.
    BadSignal,
}

/// By turns; what there is more of is hit more often.
const KILLS: [Fault; 12] = [
    Fault::AgentKilled,
    Fault::AgentKilled,
    Fault::AgentKilled,
    Fault::AgentKilled,
    Fault::WorkerKilled,
    Fault::WorkerKilled,
    Fault::WorkerKilled,
    Fault::BrainKilled,
    Fault::BrainKilled,
    Fault::CommandKilled,
    Fault::RuntimeKilled,
    Fault::RuntimeKilled,
];
const OTHERS: [Fault; 13] = [
    Fault::BrainFrozen,
    Fault::AgentFrozen,
    Fault::AgentFrozen,
    Fault::AgentHung,
    Fault::WorkerFrozen,
    Fault::DiskFull,
    Fault::BadFile,
    Fault::BadFile,
    Fault::FileCopied,
    Fault::FileDamaged,
    Fault::BadRecord,
    Fault::BadHeartbeat,
    Fault::BadSignal,
];

/// A row of faults, one after the other.
struct Row {
    stream: Stream,
    kinds: &'static [Fault],
    number: u64,
    next: Instant,
}

/// Faults as they become due. None waits for another: several programs may be down at once.
pub(super) struct Faults {
    draws: Draws,
    every: Duration,
    rows: [Row; 2],
    /// Killed or frozen by choice; the brain among them.
    programs: Vec<String>,
    all: Vec<String>,
    /// Programs that are down, and when they are started again.
    down: BTreeMap<String, Instant>,
    /// Processes that are stopped, and when they go on.
    frozen: Vec<(u32, Instant)>,
    /// The file that takes all the room, and until when.
    full: Option<(PathBuf, Instant)>,
    full_at: Option<Instant>,
    own_disk: bool,
    done: BTreeMap<Fault, usize>,
    /// Programs that ended though nobody here killed them.
    ended: Vec<String>,
    started: Instant,
    log: File,
}

impl Faults {
    pub(super) fn new(options: &Options, draws: Draws, programs: &[String]) -> io::Result<Faults> {
        let row = |stream, kinds| Row {
            stream,
            kinds,
            number: 0,
            next: Instant::now() + options.every,
        };
        Ok(Faults {
            draws,
            every: options.every,
            rows: [row(Stream::Kills, &KILLS), row(Stream::Faults, &OTHERS)],
            programs: programs
                .iter()
                .filter(|it| *it != LEFT_ALONE)
                .cloned()
                .collect(),
            all: programs.to_vec(),
            down: BTreeMap::new(),
            frozen: Vec::new(),
            full: None,
            full_at: None,
            own_disk: options.own_disk,
            done: BTreeMap::new(),
            ended: Vec::new(),
            started: Instant::now(),
            log: File::create(options.keep.join("faults.log"))?,
        })
    }

    pub(super) fn count(&self) -> usize {
        self.done.values().sum()
    }

    pub(super) fn disk_is_full(&self) -> bool {
        self.full.is_some()
    }

    /// Does what is due: programs that go on or are started again, and perhaps a fault.
    pub(super) fn step(&mut self, rig: &mut Rig, load: &mut Load) {
        self.go_on(Instant::now());
        self.see_ended(rig, DOWN_MS.end);
        let now = Instant::now();
        let due: Vec<String> = self
            .down
            .iter()
            .filter(|it| *it.1 <= now)
            .map(|it| it.0.clone())
            .collect();
        for name in due {
            self.down.remove(&name);
            rig.spawn(&name);
        }
        for at in 0..self.rows.len() {
            let row = &mut self.rows[at];
            if row.next > now {
                continue;
            }
            let mut rng = self.draws.of(row.stream, row.number);
            row.number += 1;
            row.next = now + around(&mut rng, self.every);
            let first = rng.usize(0..row.kinds.len());
            let kinds = row.kinds;
            // Where there is nothing of a kind, the next one is taken.
            for n in 0..kinds.len() {
                let fault = kinds[(first + n) % kinds.len()];
                // One that finds nothing draws as much as one that does.
                let mut rng = self
                    .draws
                    .of(self.rows[at].stream, self.rows[at].number | 1 << 40);
                if let Some(what) = self.strike(rig, load, fault, &mut rng) {
                    self.note(fault, &what);
                    break;
                }
            }
        }
    }

    fn note(&mut self, fault: Fault, what: &str) {
        *self.done.entry(fault).or_insert(0) += 1;
        let at = self.started.elapsed().as_secs_f64();
        let time = jiff::Timestamp::now();
        let _ = writeln!(self.log, "{time:.3} {at:8.3}s {fault:?}: {what}");
    }

    fn say(&mut self, what: &str) {
        let time = jiff::Timestamp::now();
        let _ = writeln!(self.log, "{time:.3} {what}");
    }

    fn go_on(&mut self, now: Instant) {
        self.frozen.retain(|(pid, until)| {
            let goes_on = *until <= now;
            if goes_on {
                processes::send(*pid, Signal::CONT);
            }
            !goes_on
        });
        if self.full.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.make_room();
        }
    }

    fn make_room(&mut self) {
        if let Some((path, _)) = self.full.take() {
            // It was made here; nobody else removes it.
            fs::remove_file(path).expect("remove what fills the disk");
            self.full_at = Some(Instant::now());
            self.say("there is room again");
        }
    }

    /// Programs that have ended without being killed here: the brain kills an agent that hangs.
    fn see_ended(&mut self, rig: &mut Rig, within_ms: u64) {
        for name in self.all.clone() {
            let Some(status) = rig.reap(&name) else {
                continue;
            };
            let full =
                self.full.is_some() || self.full_at.is_some_and(|at| at.elapsed() < AFTER_FULL);
            let stderr = rig.stderr(&name);
            let line = stderr.lines().last().unwrap_or_default();
            let what = format!("{name} ended: {status}: {line}");
            self.say(&what);
            if !is_expected(status, full) {
                self.ended.push(what);
            }
            self.down
                .insert(name, Instant::now() + Duration::from_millis(within_ms / 2));
        }
    }

    /// Ends every fault and starts everything again that is down.
    pub(super) fn mend(&mut self, rig: &mut Rig) {
        for (pid, _) in std::mem::take(&mut self.frozen) {
            processes::send(pid, Signal::CONT);
        }
        self.make_room();
        self.start_ended(rig);
    }

    /// Starts what is down or has ended.
    pub(super) fn start_ended(&mut self, rig: &mut Rig) {
        self.see_ended(rig, 0);
        for name in std::mem::take(&mut self.down).into_keys() {
            rig.spawn(&name);
        }
    }

    pub(super) fn tell(&self, report: &mut Report) {
        report
            .faults
            .extend(self.done.iter().map(|(fault, count)| (*fault, *count)));
        if !self.own_disk {
            report.skipped.push(
                "the rig lies on no file system of its own: the disk was never full".to_owned(),
            );
        }
        report.wrong.extend(self.ended.iter().cloned());
    }

    /// What was done, if there was something to do it to.
    fn strike(
        &mut self,
        rig: &mut Rig,
        load: &mut Load,
        fault: Fault,
        rng: &mut fastrand::Rng,
    ) -> Option<String> {
        let until = |rng: &mut fastrand::Rng, range| Instant::now() + milliseconds(rng, range);
        let agents: Vec<String> = self
            .programs
            .iter()
            .filter(|it| *it != BRAIN)
            .cloned()
            .collect();
        match fault {
            Fault::BrainKilled => self.kill(rig, BRAIN, rng),
            Fault::AgentKilled => {
                let up: Vec<String> = agents.into_iter().filter(|it| rig.is_started(it)).collect();
                let agent = one(rng, &up)?.clone();
                self.kill(rig, &agent, rng)
            }
            Fault::WorkerKilled | Fault::CommandKilled | Fault::RuntimeKilled => {
                let process = one(rng, &running(rig, fault))?.clone();
                processes::send(process.pid, Signal::KILL);
                rig.was_hit();
                Some(shown(&process))
            }
            Fault::BrainFrozen => {
                let until = until(rng, FROZEN_MS);
                self.freeze_program(rig, BRAIN, until)
            }
            Fault::AgentFrozen | Fault::AgentHung => {
                let up: Vec<String> = agents.into_iter().filter(|it| rig.is_started(it)).collect();
                let agent = one(rng, &up)?.clone();
                let range = if fault == Fault::AgentHung {
                    HUNG_MS
                } else {
                    FROZEN_MS
                };
                let until = until(rng, range);
                self.freeze_program(rig, &agent, until)
            }
            Fault::WorkerFrozen => {
                let process = one(rng, &running(rig, Fault::WorkerKilled))?.clone();
                let until = until(rng, FROZEN_MS);
                processes::send(process.pid, Signal::STOP);
                self.frozen.push((process.pid, until));
                Some(shown(&process))
            }
            Fault::DiskFull => {
                if !self.own_disk || self.full.is_some() {
                    return None;
                }
                let path = rig.root().with_file_name("filler");
                let until = until(rng, FULL_MS);
                mounts::fill(&path);
                self.full = Some((path, until));
                Some(format!(
                    "for {:.1}s",
                    until.duration_since(Instant::now()).as_secs_f64()
                ))
            }
            // Load does it, in its own time.
            Fault::SubmitKilled => None,
            Fault::BadFile
            | Fault::FileCopied
            | Fault::FileDamaged
            | Fault::BadRecord
            | Fault::BadHeartbeat
            | Fault::BadSignal => {
                if self.full.is_some() {
                    return None;
                }
                hostile::strike(rig, load, fault, &agents, rng)
            }
        }
    }

    fn kill(&mut self, rig: &mut Rig, name: &str, rng: &mut fastrand::Rng) -> Option<String> {
        let after = milliseconds(rng, DOWN_MS);
        if !rig.is_started(name) {
            return None;
        }
        let pid = rig.pid(name);
        rig.kill(name);
        self.frozen.retain(|(frozen, _)| *frozen != pid);
        self.down.insert(name.to_owned(), Instant::now() + after);
        Some(format!(
            "{name} (pid {pid}), down for {:.1}s",
            after.as_secs_f64()
        ))
    }

    fn freeze_program(&mut self, rig: &Rig, name: &str, until: Instant) -> Option<String> {
        if !rig.is_started(name) {
            return None;
        }
        let pid = rig.pid(name);
        if self.frozen.iter().any(|(frozen, _)| *frozen == pid) {
            return None;
        }
        processes::send(pid, Signal::STOP);
        self.frozen.push((pid, until));
        let seconds = until.duration_since(Instant::now()).as_secs_f64();
        Some(format!("{name} (pid {pid}) for {seconds:.1}s"))
    }
}

/// An agent that hangs is killed by the brain; with a full disk a program may be unable to start.
fn is_expected(status: ExitStatus, disk_was_full: bool) -> bool {
    status.signal() == Some(Signal::KILL.as_raw()) || (disk_was_full && status.code() == Some(1))
}

/// Running processes of a kind, by number.
fn running(rig: &Rig, kind: Fault) -> Vec<Process> {
    let mut found = rig.processes();
    found.retain(|one| {
        let worker = one.command.contains("/worker ");
        let runtime = one.command.contains("runtime-stand-in ");
        match kind {
            Fault::WorkerKilled => worker,
            Fault::RuntimeKilled => runtime,
            _ => one.cookie.is_some() && !worker && !runtime,
        }
    });
    found.sort_by_key(|one| one.pid);
    found
}

fn shown(process: &Process) -> String {
    let cookie = process.cookie.as_deref().unwrap_or("no attempt");
    let words: String = process.command.chars().take(60).collect();
    format!("{} ({cookie}): {}", process.pid, words.replace('\n', " "))
}
