//! The end of an attempt: its tree, its record, its move.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use rigor_queue::claim::{self, Held, Moved, Opened};
use rigor_queue::lane::{Lane, Move};
use rigor_queue::name::FileName;
use rigor_queue::record::{AttemptRecord, FailureKind, Outcome};
use rigor_queue::records;
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::Durability;

use crate::containment::Containment;
use crate::error::ExecError;
use crate::groups::NotCounted;
use crate::launch::Running;
use crate::limits::OomKill;
use crate::oom;

/// How long a lock whose holder is gone may look taken: a process that was being forked when its
/// parent was killed has a copy of the descriptor until it execs or dies.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// After the worker exited: kills what is left of its tree, completes the record and returns it.
///
/// A worker that left no record, or a torn one, gets one with [`FailureKind::WorkerLost`]. The
/// record survives a crash of this process, and a power cut only after
/// [`records::commit`]. On [`ExecError::Unkillable`] the attempt is not over.
pub fn settle(
    rig: &Rig,
    agent: &str,
    containment: &Containment,
    running: &Running,
    status: ExitStatus,
    vram_mb: Option<u64>,
    grace: Duration,
) -> Result<AttemptRecord, ExecError> {
    let (spec, attempt) = (&running.spec, running.name.attempt);
    let read = || -> Result<Option<AttemptRecord>, ExecError> {
        let record = records::read(rig, &spec.batch, spec.id, attempt)?;
        // One of another claim is what a power cut left of a claim that it forgot.
        Ok(record.filter(|record| record.nonce.as_deref() == Some(&running.nonce)))
    };
    let mut found = None;
    // Before its groups are gone.
    let oom = containment.groups(spec.id, attempt).oom_kill_with_worker();
    if status.success() {
        found = read()?;
    }
    let found = match found {
        Some(record) => {
            containment.leave(spec.id, attempt, grace)?;
            Some(record)
        }
        None => {
            containment.kill_attempt(spec.id, attempt, grace)?;
            read()?
        }
    };
    let lost = found.is_none();
    let mut record = found.unwrap_or_else(|| lost_record(agent, running, status, oom));
    let mut changed = lost;
    if vram_mb.is_some() {
        record.peaks.vram_mb = vram_mb;
        changed = true;
    }
    if let (
        Some(why),
        Outcome::Failed {
            kind: kind @ FailureKind::Aborted,
            reason,
        },
    ) = (running.ended_because.get(), &mut record.outcome)
    {
        // The worker knows that it was told to end, not why.
        let ended_as = running.ended_as.get().copied().unwrap_or(*kind);
        changed |= why != reason || ended_as != *kind;
        *kind = ended_as;
        reason.clone_from(why);
    }
    if changed {
        records::replace(rig, &record)?;
    }
    Ok(record)
}

/// Takes the task's lock again and moves it on as its record says: to `complete`, to `retry`, or
/// (an attempt that was lost) back to the queue. The record must be durable.
pub fn finish(
    rig: &Rig,
    agent: &str,
    name: &FileName,
    record: &AttemptRecord,
) -> Result<Lane, ExecError> {
    match open(rig, agent, name, LOCK_PATIENCE)? {
        Some(held) => move_on(rig, held, &record.outcome),
        None => Ok(Lane::Quarantine),
    }
}

/// Writes the record of an attempt whose worker could not be started, makes it durable, and moves
/// the task from `processing` to `retry`. The caller holds the lock no more.
pub fn fail_unstarted(
    rig: &Rig,
    agent: &str,
    name: &FileName,
    kind: FailureKind,
    reason: &str,
    durability: Durability,
) -> Result<AttemptRecord, ExecError> {
    let outcome = Outcome::Failed {
        kind,
        reason: reason.to_owned(),
    };
    settle_unstarted(rig, agent, name, outcome, durability)
}

/// As [`fail_unstarted`], with any outcome: [`Outcome::Lost`] gives the task back uncharged.
pub fn settle_unstarted(
    rig: &Rig,
    agent: &str,
    name: &FileName,
    outcome: Outcome,
    durability: Durability,
) -> Result<AttemptRecord, ExecError> {
    let path = rig.path(Place::Processing(agent), name);
    let Some(held) = open(rig, agent, name, LOCK_PATIENCE)? else {
        return Err(ExecError::NotOurs {
            path,
            why: "it went to quarantine".to_owned(),
        });
    };
    let record = AttemptRecord::without_worker(agent, name, &held.spec, outcome);
    records::replace(rig, &record)?;
    records::commit(
        rig,
        &[(record.batch.clone(), record.id, record.attempt)],
        durability,
    )?;
    move_on(rig, held, &record.outcome)?;
    Ok(record)
}

/// Opens a task in `processing/<agent>/` under its lock, waiting a while for the lock. `None`: it
/// could not be trusted and lies in quarantine.
pub(crate) fn open(
    rig: &Rig,
    agent: &str,
    name: &FileName,
    patience: Duration,
) -> Result<Option<Held>, ExecError> {
    let place = Place::Processing(agent);
    let not_ours = |why: &str| ExecError::NotOurs {
        path: rig.path(place, name),
        why: why.to_owned(),
    };
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_micros(100);
    loop {
        match claim::open_in(rig, place, name)? {
            Opened::Held(held) => return Ok(Some(held)),
            Opened::Untrusted { .. } => return Ok(None),
            Opened::Gone => return Err(not_ours("it is not there any more: somebody moved it")),
            Opened::Busy if Instant::now() >= deadline => {
                return Err(not_ours("its lock is held by a process that still runs"));
            }
            Opened::Busy => {
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
        }
    }
}

/// The move that an outcome asks for. What is cancelled goes to `retry`, from where the brain
/// moves it on.
pub(crate) fn move_on(rig: &Rig, held: Held, outcome: &Outcome) -> Result<Lane, ExecError> {
    let path = held.path().to_owned();
    let step = Move::after(outcome);
    let lane = step.rule().to;
    match held.end(rig, step)? {
        Moved::Done => Ok(lane),
        Moved::Gone => Err(ExecError::NotOurs {
            path,
            why: "it was moved by somebody else".to_owned(),
        }),
    }
}

fn lost_record(
    agent: &str,
    running: &Running,
    status: ExitStatus,
    oom: Result<Option<OomKill>, NotCounted>,
) -> AttemptRecord {
    let after = format!("after {:.1}s", running.started.elapsed().as_secs_f64());
    let mut kind = FailureKind::WorkerLost;
    let how = match (status.signal(), status.code()) {
        (Some(9), _) => {
            let why = match oom {
                Ok(Some(oom)) => {
                    kind = FailureKind::OomKilled;
                    format!("; {oom}")
                }
                Ok(None) => String::new(),
                Err(NotCounted) => oom::suspicion(running.oom_kills_before).to_owned(),
            };
            format!("killed by SIGKILL {after}{why}")
        }
        (Some(signal), _) => format!("ended by signal {signal} {after}"),
        (None, Some(0)) => format!("exited with code 0 {after}"),
        (None, code) => {
            format!(
                "exited with code {} {after}; its message is in logs/{agent}.log",
                code.unwrap_or(-1)
            )
        }
    };
    let outcome = match running.ended_because.get() {
        Some(why) => Outcome::Failed {
            kind: running
                .ended_as
                .get()
                .copied()
                .unwrap_or(FailureKind::Aborted),
            reason: why.clone(),
        },
        None => Outcome::Failed {
            kind,
            reason: format!(
                "worker lost: pid {} {how}, and left no record",
                running.pid()
            ),
        },
    };
    AttemptRecord {
        nonce: Some(running.nonce.clone()),
        started: Some(running.started_at),
        duration_ms: running.started.elapsed().as_millis() as u64,
        ..AttemptRecord::without_worker(agent, &running.name, &running.spec, outcome)
    }
}
