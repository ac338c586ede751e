//! Taking back what a dead agent left in `processing/`.

use std::collections::HashSet;
use std::time::Duration;

use rigor_queue::QueueError;
use rigor_queue::claim::{self, Held};
use rigor_queue::lane::Lane;
use rigor_queue::name::FileName;
use rigor_queue::presence::ComponentLock;
use rigor_queue::record::{AttemptRecord, FailureKind, Outcome};
use rigor_queue::records;
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::Durability;
use rigor_queue::task::{Class, TaskSpec, Work};

use crate::containment::Containment;
use crate::error::ExecError;
use crate::settle::{LOCK_PATIENCE, move_on, open};

/// How far a recovery goes.
#[derive(Clone, Copy, Debug)]
pub struct RecoveryLimits {
    /// How long a killed tree may take to be gone.
    pub grace: Duration,
    /// Attempts that may be lost with their agents without being charged to the task; the next one
    /// is, so that a task that kills its agent each time comes to an end.
    pub uncharged_attempts: u32,
    /// What the records of lost attempts must survive.
    pub durability: Durability,
}

/// What was found and done.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Back in the queue as their next attempt (the name they have now, the task's name).
    pub requeued: Vec<(FileName, String)>,
    /// Moved on as the record says that their worker had left (the name, the task's name).
    pub adopted: Vec<(FileName, String)>,
    /// Failed, and so charged: lost too often, or `retries: 0` (the name, the task's name).
    pub charged: Vec<(FileName, String)>,
    /// Processes that were killed.
    pub killed: usize,
    /// Left where they are, since something of them cannot be killed: the device they used must
    /// not be used (the name, the task's name, why).
    pub unkillable: Vec<(FileName, String, String)>,
    /// What could not be trusted (the file's name).
    pub quarantined: Vec<String>,
}

/// Takes back all in `processing/<agent>/`. An attempt with a valid record is moved on as that
/// says; of any other the tree is killed, a `Lost` record is written, and the task goes back to
/// the queue as the next attempt. A crash in the middle leaves the rest for the next recovery.
///
/// `_owner` is the proof that the agent is dead: its lock. `why` says what happened to it
/// (`agent gpu-1 died (its lock is free)`).
pub fn recover(
    rig: &Rig,
    agent: &str,
    _owner: &ComponentLock,
    containment: &Containment,
    limits: RecoveryLimits,
    why: &str,
) -> Result<Recovered, ExecError> {
    let mut done = Recovered::default();
    let listing = rig.list(Place::Processing(agent))?;
    for path in listing.foreign {
        claim::quarantine(
            rig,
            &path,
            "it lies among claimed tasks and its name is no task's",
        )?;
        done.quarantined.push(
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        );
    }
    let mut ready: Vec<(Held, AttemptRecord, bool)> = Vec::new();
    for name in listing.names {
        match take_back(rig, agent, &name, containment, limits, why, &mut done) {
            Ok(Some(one)) => ready.push(one),
            Ok(None) => {}
            Err(error @ (ExecError::Unkillable { .. } | ExecError::NotOurs { .. })) => {
                // Somebody else's move is no failure of this one.
                if rig.path(Place::Processing(agent), &name).exists() {
                    let task = task_name(rig, agent, &name);
                    done.unkillable.push((name, task, error.to_string()));
                }
            }
            Err(error) => return Err(error),
        }
    }
    // One commit for all, before any of them moves.
    let attempts: Vec<_> = ready
        .iter()
        .map(|(_, record, _)| (record.batch.clone(), record.id, record.attempt))
        .collect();
    records::commit(rig, &attempts, limits.durability)?;
    for (held, record, adopted) in ready {
        let (name, task) = (held.name, held.spec.name.clone());
        move_on(rig, held, &record.outcome)?;
        rigor_queue::crash_point!("recover.moved");
        match record.outcome {
            Outcome::Lost { .. } => done.requeued.push((name.next_attempt(false), task)),
            _ if adopted => done.adopted.push((name, task)),
            _ => done.charged.push((name, task)),
        }
    }
    Ok(done)
}

/// Ends and removes what groups hold of attempts that are in nobody's hands: their agent died, and
/// was recovered by a program that cannot see its groups, or before they were empty. Returns the
/// attempts (`<id>.aN`) with how many processes were killed.
pub fn clear_leftovers(
    rig: &Rig,
    containment: &Containment,
    grace: Duration,
) -> Result<Vec<(String, usize)>, ExecError> {
    // Groups first: an attempt is in `processing` before it gets one and until it has none.
    let with_groups = containment.attempts();
    let mut running = HashSet::new();
    for agent in rig.subdirs(Lane::Processing)? {
        let names = rig.list(Place::Processing(&agent))?.names;
        running.extend(names.iter().map(|name| (name.id, name.attempt)));
    }
    let mut cleared = Vec::new();
    for (id, attempt) in with_groups {
        if !running.contains(&(id, attempt)) {
            let killed = containment.leave(id, attempt, grace)?;
            cleared.push((format!("{id}.a{attempt}"), killed));
        }
    }
    Ok(cleared)
}

/// Ends what runs of one attempt and settles its record: the lock, the record, and whether that
/// was its worker's.
fn take_back(
    rig: &Rig,
    agent: &str,
    name: &FileName,
    containment: &Containment,
    limits: RecoveryLimits,
    why: &str,
    done: &mut Recovered,
) -> Result<Option<(Held, AttemptRecord, bool)>, ExecError> {
    // Plans lie in the brain's `processing/` while their batch is active: nothing runs of them.
    if claim::peek(rig, Place::Processing(agent), name)
        .is_ok_and(|spec| spec.is_some_and(|spec| matches!(spec.work, Work::Plan(_))))
    {
        return Ok(None);
    }
    // The name's id is enough to find the tree: also of a file that turns out to be damaged. A
    // worker that has written its record has ended its tree itself and only has to exit.
    done.killed += containment.kill_attempt(name.id, name.attempt, limits.grace)?;
    rigor_queue::crash_point!("recover.killed");
    let Some(held) = open(rig, agent, name, LOCK_PATIENCE)? else {
        done.quarantined.push(name.to_string());
        return Ok(None);
    };
    // Read under the lock, after the tree is gone: nobody can write it any more.
    let record = match records::read(rig, &held.spec.batch, name.id, name.attempt) {
        // It has a result that this build cannot read: it must not run again.
        Err(error @ QueueError::Untrusted { .. }) => {
            held.quarantine(rig, &format!("the record of its attempt: {error}"))?;
            done.quarantined.push(name.to_string());
            return Ok(None);
        }
        record => record?,
    };
    if let Some(record) = record {
        if limits.durability.syncs() {
            // What is read may be in memory alone: where an fsync of it has failed before, another
            // one says nothing.
            records::replace(rig, &record)?;
        }
        return Ok(Some((held, record, true)));
    }
    let outcome = lost_outcome(name, &held.spec, limits.uncharged_attempts, why);
    let record = AttemptRecord::without_worker(agent, name, &held.spec, outcome);
    rig.prepare_batch(&held.spec.batch)?;
    records::replace(rig, &record)?;
    Ok(Some((held, record, false)))
}

/// The outcome of an attempt that was lost with what it needed (its agent, its GPU, its model's
/// runtime): [`Outcome::Lost`], or a failure where the task allows no second run or was lost more
/// than `uncharged` times.
pub fn lost_outcome(name: &FileName, spec: &TaskSpec, uncharged: u32, why: &str) -> Outcome {
    let lost_so_far = name.attempt.saturating_sub(name.charged);
    // The agent's own tasks are repeatable by nature.
    if spec.retries == 0 && spec.class != Class::Meta {
        return Outcome::Failed {
            kind: FailureKind::WorkerLost,
            reason: format!("{why}; it may have run, and `retries: 0` allows no second run"),
        };
    }
    if lost_so_far > uncharged {
        return Outcome::Failed {
            kind: FailureKind::WorkerLost,
            reason: format!(
                "{why}; {lost_so_far} attempts of this task ended with their agent or its device (limit {uncharged}), so this one counts against its retries"
            ),
        };
    }
    Outcome::Lost {
        reason: why.to_owned(),
    }
}

fn task_name(rig: &Rig, agent: &str, name: &FileName) -> String {
    match claim::peek(rig, Place::Processing(agent), name) {
        Ok(Some(spec)) => spec.name,
        Ok(None) | Err(_) => name.id.short(),
    }
}
