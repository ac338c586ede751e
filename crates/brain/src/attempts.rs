//! The brain's own tasks (`executor: brain`): the same claim, worker, record and moves as an
//! agent's, beside the loop.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};
use rigor_exec::activity::{Sampler, Watched};
use rigor_exec::{Containment, ExecError, Launch, Running};
use rigor_policy::span::count;
use rigor_queue::claim::{Candidate, Held};
use rigor_queue::heartbeat::RunningBeat;
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::presence::ComponentLock;
use rigor_queue::record::{AttemptRecord, FailureKind, Outcome};
use rigor_queue::rig::{BRAIN, Rig};
use rigor_queue::submit::Durability;
use rigor_queue::task::{Class, Work};
use rigor_queue::{claim, records};

use crate::context::Context;

/// Runs tasks of class `brain`.
#[derive(Debug)]
pub(crate) struct Attempts {
    running: Vec<Running>,
    unsettled: Vec<(FileName, AttemptRecord)>,
    /// The last commit failed: what it was for is written anew.
    uncommitted: bool,
    unstarted: Vec<(FileName, String)>,
    containment: Containment,
    sampler: Sampler,
    worker: PathBuf,
    slots: usize,
    /// Attempts that succeeded, and that failed.
    pub counts: (u64, u64),
}

/// What a claim brought.
#[derive(Debug)]
pub(crate) enum Taken {
    /// A submitted plan, to be opened as a batch.
    Plan(Held),
    /// A task that runs now.
    Started,
    /// Nothing to claim.
    Nothing,
}

impl Attempts {
    /// At most `slots` at once.
    pub(crate) fn new(containment: Containment, worker: PathBuf, slots: usize) -> Attempts {
        Attempts {
            running: Vec::new(),
            unsettled: Vec::new(),
            uncommitted: false,
            unstarted: Vec::new(),
            sampler: Sampler::new(containment.clone()),
            containment,
            worker,
            slots,
            counts: (0, 0),
        }
    }

    /// What an earlier brain was running itself when it died.
    pub(crate) fn recover_own(&self, brain: &Context, lock: &ComponentLock) -> Result<()> {
        let limits = rigor_exec::recovery::RecoveryLimits {
            grace: brain.config.timing.grace,
            uncharged_attempts: brain.config.limits.uncharged_attempts,
            durability: brain.durability,
        };
        let recovered = rigor_exec::recovery::recover(
            &brain.rig,
            BRAIN,
            lock,
            &self.containment,
            limits,
            "the brain died",
        )?;
        if recovered.requeued.len() + recovered.adopted.len() > 0 {
            tracing::warn!(
                "The brain had died: requeued {} of its own, adopted {}, killed processes: {}",
                count(recovered.requeued.len(), "task"),
                count(recovered.adopted.len(), "result"),
                recovered.killed
            );
        }
        self.clear_leftovers(brain);
        Ok(())
    }

    /// Ends what earlier programs of the rig left of attempts that are over.
    fn clear_leftovers(&self, brain: &Context) {
        let grace = brain.config.timing.grace;
        match rigor_exec::recovery::clear_leftovers(&brain.rig, &self.containment, grace) {
            Ok(cleared) => {
                for (attempt, killed) in cleared.iter().filter(|(_, killed)| *killed > 0) {
                    tracing::warn!("Killed {killed} processes that were left of attempt {attempt}");
                }
            }
            Err(error) => tracing::warn!("What is left of earlier attempts stays: {error}"),
        }
    }

    /// Attempts that run.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// Claims the next task of class `brain`.
    pub(crate) fn take(&mut self, brain: &mut Context, now: Instant) -> Result<Taken> {
        // Submissions are taken up even while all slots are in use.
        let names: Vec<FileName> = brain
            .index(Class::Brain)
            .shapes(now)
            .into_iter()
            .map(|(_, _, first)| first)
            .collect();
        for name in names {
            let candidate = claim::candidate(&brain.rig, Class::Brain, &name)?;
            let held = match candidate {
                Candidate::Ready(held) => held,
                Candidate::LockBusy => {
                    brain.index(Class::Brain).defer(&name, now);
                    continue;
                }
                Candidate::LostRace => {
                    brain.index(Class::Brain).remove(&name);
                    continue;
                }
                Candidate::Quarantined { reason } => {
                    tracing::warn!(task = %name.id, "Moved {} to quarantine: {reason}", name.id.short());
                    brain.index(Class::Brain).remove(&name);
                    continue;
                }
            };
            let is_plan = matches!(held.spec.work, Work::Plan(_));
            if !is_plan && self.running.len() >= self.slots {
                continue;
            }
            let durable = brain.durability.syncs()
                && (brain.durability == Durability::Strict || held.spec.retries == 0);
            brain.index(Class::Brain).remove(&name);
            let Some(held) = held.claim(&brain.rig, BRAIN, durable)? else {
                continue;
            };
            if is_plan {
                return Ok(Taken::Plan(held));
            }
            tracing::info!(task = %name.id, batch = %held.spec.batch, "Claimed brain task: {} ({})", name.id.short(), held.spec.name);
            self.start(brain, held);
            return Ok(Taken::Started);
        }
        Ok(Taken::Nothing)
    }

    /// Ends what has exited: records, moves.
    pub(crate) fn reap(&mut self, brain: &mut Context) -> Result<()> {
        let mut index = 0;
        while let Some(running) = self.running.get_mut(index) {
            let Some(status) = running.try_wait().context("wait for a worker")? else {
                index += 1;
                continue;
            };
            let grace = brain.config.timing.grace;
            let settled = rigor_exec::settle(
                &brain.rig,
                BRAIN,
                &self.containment,
                running,
                status,
                None,
                grace,
            );
            match settled {
                Ok(record) => {
                    let worked = record.outcome == Outcome::Succeeded;
                    let (done, failed) = &mut self.counts;
                    *(if worked { done } else { failed }) += 1;
                    tracing::info!(task = %record.id, batch = %record.batch,
                        "Worker {}-{} finished: {} ({:.1}s)", BRAIN, running.pid(),
                        if worked { "OK" } else { "FAIL" }, record.duration_ms as f64 / 1000.0);
                    self.unsettled.push((running.name, record));
                    self.running.swap_remove(index);
                }
                Err(error @ ExecError::Unkillable { .. }) => {
                    tracing::error!(task = %running.spec.id, "{} stays in processing: {error}", running.spec.name);
                    self.running.swap_remove(index);
                }
                // It stays among the running and is settled again, with a full disk say.
                Err(error) => return Err(error).context("settle an attempt"),
            }
        }
        while let Some((name, reason)) = self.unstarted.last() {
            rigor_exec::fail_unstarted(
                &brain.rig,
                BRAIN,
                name,
                FailureKind::Setup,
                reason,
                brain.durability,
            )
            .context("record a task that could not be started")?;
            self.unstarted.pop();
        }
        if self.unsettled.is_empty() {
            return Ok(());
        }
        let ended: Vec<(String, TaskId, u32)> = self
            .unsettled
            .iter()
            .map(|(_, record)| (record.batch.clone(), record.id, record.attempt))
            .collect();
        if self.uncommitted {
            // A second fsync of the same bytes would say nothing.
            for (_, record) in &self.unsettled {
                records::replace(&brain.rig, record)?;
            }
        }
        self.uncommitted = true;
        records::commit(&brain.rig, &ended, brain.durability)?;
        self.uncommitted = false;
        while let Some((name, record)) = self.unsettled.last() {
            match rigor_exec::finish(&brain.rig, BRAIN, name, record) {
                Ok(_) => {}
                Err(error @ ExecError::NotOurs { .. }) => {
                    tracing::error!(task = %name.id, "{error}")
                }
                Err(error) => return Err(error).context("move a task on"),
            }
            self.unsettled.pop();
        }
        Ok(())
    }

    /// Asks one attempt to end. `false`: it does not run here.
    pub(crate) fn abort(&self, stem: &str, reason: &str) -> bool {
        let found = self
            .running
            .iter()
            .find(|running| running.name.attempt_stem() == stem);
        if let Some(running) = found
            && let Err(error) = running.terminate(reason)
        {
            tracing::warn!("worker {} cannot be told to end: {error}", running.pid());
        }
        found.is_some()
    }

    /// The tasks that run, with their signs of life.
    pub(crate) fn activity(&mut self, rig: &Rig) -> Vec<RunningBeat> {
        let watched: Vec<Watched> = self
            .running
            .iter()
            .map(|running| running.watched(rig, None))
            .collect();
        let signs = self.sampler.sample(&watched);
        self.running
            .iter()
            .zip(&signs)
            .map(|(running, signs)| running.beat(Some(signs)))
            .collect()
    }

    /// Ends a stuck attempt, so that it counts as one that failed.
    pub(crate) fn end_stuck(&self, stem: &str, reason: &str, kill: bool, brain: &Context) {
        let found = self
            .running
            .iter()
            .find(|running| running.name.attempt_stem() == stem);
        let Some(running) = found else { return };
        running.end_as(FailureKind::Stuck);
        let ended = if kill {
            let grace = brain.config.timing.grace;
            running
                .kill(&self.containment, grace, reason)
                .map(drop)
                .map_err(anyhow::Error::from)
        } else {
            running.terminate(reason).map_err(anyhow::Error::from)
        };
        if let Err(error) = ended {
            tracing::warn!(task = %running.name.id, "worker {} cannot be ended: {error:#}", running.pid());
        }
    }

    fn start(&mut self, brain: &Context, held: Held) {
        let name = held.name;
        let title = held.spec.name.clone();
        let mut env = vec![("CUDA_VISIBLE_DEVICES".to_owned(), String::new())];
        for secret in held.spec.secrets.clone() {
            let value = brain
                .config
                .secret(&secret)
                .map_err(|error| error.to_string())
                .and_then(|known| known.resolve().map_err(|error| error.to_string()));
            match value {
                Ok(text) => env.push((secret, text.reveal().to_owned())),
                Err(why) => {
                    // Its lock is needed to move it on.
                    drop(held);
                    return self.not_started(&name, &format!("secret {secret}: {why}"));
                }
            }
        }
        let launch = Launch {
            rig: &brain.rig,
            agent: BRAIN,
            held,
            env,
            containment: &self.containment,
            worker: &self.worker,
            output_cap_bytes: brain.config.limits.output_cap_bytes,
            grace: brain.config.timing.grace,
            limits: rigor_exec::Limits {
                processes: Some(brain.config.limits.processes.into()),
                memory_bytes: brain.config.limits.memory_bytes,
                file_size_bytes: brain.config.limits.file_size_bytes,
            },
        };
        match rigor_exec::spawn(launch) {
            Ok(running) => {
                tracing::info!(task = %name.id, "Spawned worker {BRAIN}-{} (PID {}) for brain task {} ({title})", running.pid(), running.pid(), name.id.short());
                self.running.push(running);
            }
            Err(error) => self.not_started(&name, &error.to_string()),
        }
    }

    /// The next [`Attempts::reap`] records it.
    fn not_started(&mut self, name: &FileName, reason: &str) {
        tracing::warn!(task = %name.id, "{} could not be started: {reason}", name.id.short());
        self.unstarted.push((*name, reason.to_owned()));
    }

    /// How processes are contained.
    pub(crate) fn containment(&self) -> &Containment {
        &self.containment
    }
}
