//! What a dead agent left is taken back.

use anyhow::Result;
use jiff::Timestamp;
use rigor_exec::recovery::{self, RecoveryLimits};
use rigor_queue::heartbeat::Health;
use rigor_queue::presence::{ComponentLock, Role};
use rigor_queue::reasons::{Cause, Reason, ReasonLog};
use rigor_queue::rig::Rig;
use rigor_queue::{QueueError, Result as QueueResult};
use serde_json::json;

use super::*;
use crate::journal::Entry;

impl Agents {
    /// Looks whether the agent's lock is held; recovers one whose lock is free. `true`: that
    /// differs from before.
    pub(super) fn check_lock(
        &mut self,
        brain: &mut Context,
        containment: &Containment,
        name: &str,
        now: Instant,
    ) -> Result<bool> {
        let Some(agent) = self.agents.get_mut(name) else {
            return Ok(false);
        };
        let Some(held) = presence::is_held(&brain.rig, name)? else {
            // It never ran.
            return Ok(false);
        };
        if held {
            let came = !agent.alive;
            agent.alive = true;
            agent.unkillable_said = false;
            if came {
                // What its heartbeat says is of a process before this one.
                agent.moved = now;
                agent.warned = None;
                agent.killed = None;
                agent.kill_failed_said = false;
                agent.down_noted = false;
                tracing::info!(agent = name, "Agent {name} is alive");
            }
            return Ok(came);
        }
        let left = brain.rig.list(Place::Processing(name))?;
        let empty = left.names.is_empty() && left.foreign.is_empty();
        if empty && !agent.alive && agent.down_noted {
            return Ok(false);
        }
        // The table of locks is only a hint; to have the lock is to know.
        let owner = match ComponentLock::acquire(&brain.rig, name, Role::Recovering) {
            Ok(owner) => owner,
            // It lives, or came back this very moment and takes back its own.
            Err(QueueError::Held { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let was_alive = std::mem::replace(&mut agent.alive, false);
        let hung = agent.killed.take().map(|(_, age)| age);
        let mut news = was_alive;
        if !std::mem::replace(&mut agent.down_noted, true) {
            match note_down(&brain.rig, name, agent.heartbeat.as_ref(), hung) {
                // It died between two looks, or while no brain was there: nobody has said so yet.
                Ok(noted) => news |= noted,
                Err(error) => tracing::warn!(
                    agent = name,
                    "That {name} is down is not in its journal: {error}"
                ),
            }
        }
        if empty && !news {
            return Ok(false);
        }
        if empty {
            // An agent that ends in order says that it drains, last of all.
            let in_order = hung.is_none()
                && agent
                    .heartbeat
                    .as_ref()
                    .is_some_and(|beat| beat.health == Health::Draining);
            let message = if in_order {
                let message = format!(
                    "Agent {name} is gone (its lock is free); it had nothing in processing"
                );
                tracing::info!(agent = name, "{message}");
                message
            } else {
                let message = format!(
                    "Agent {name} is dead (its lock is free); it had nothing in processing. Its log ends where it died; start it again with `rigor up`{}",
                    runtime_left(&brain.rig, name)
                );
                tracing::warn!(agent = name, "{message}");
                message
            };
            brain.journal.write(
                Entry::AgentDead,
                &message,
                json!({"agent": name, "left": 0, "hung": hung.is_some()}),
            );
            let last = agent.heartbeat.as_ref().filter(|_| hung.is_none());
            brain.notify.agent_gone(name, last, &message, now);
            return Ok(true);
        }
        let limits = RecoveryLimits {
            grace: brain.config.timing.grace,
            uncharged_attempts: brain.config.limits.uncharged_attempts,
            durability: brain.durability,
        };
        let why = match hung {
            Some(age) => format!("agent {name} hung (no heartbeat for {}s)", age.as_secs()),
            None => format!("agent {name} died (its lock is free)"),
        };
        let recovered = recovery::recover(&brain.rig, name, &owner, containment, limits, &why)?;
        drop(owner);
        let requeued = recovered.requeued.len();
        if requeued + recovered.adopted.len() + recovered.charged.len() > 0 || news {
            let mut message = format!(
                "Agent {name} is dead (its lock is free): requeued {requeued} {}, killed {} {}",
                if requeued == 1 { "task" } else { "tasks" },
                recovered.killed,
                if recovered.killed == 1 {
                    "process"
                } else {
                    "processes"
                }
            );
            if !recovered.adopted.is_empty() {
                message.push_str(&format!(", adopted {} results", recovered.adopted.len()));
            }
            if !recovered.charged.is_empty() {
                message.push_str(&format!(
                    ", failed {} lost too often",
                    recovered.charged.len()
                ));
            }
            message.push_str(&runtime_left(&brain.rig, name));
            tracing::warn!(agent = name, "{message}");
            brain.journal.write(
                Entry::AgentDead,
                &message,
                json!({"agent": name, "killed": recovered.killed, "hung": hung.is_some()}),
            );
            brain.notify.agent_dead(name, &message, now);
            for (file, task) in &recovered.requeued {
                brain.journal.write(
                    Entry::OrphanRequeue,
                    &format!("{task} ({}) of {name} is queued again as attempt {}", file.id.short(), file.attempt),
                    json!({"task_id": file.id, "name": task, "agent": name, "attempt": file.attempt}),
                );
            }
        }
        let agent = self.agents.get_mut(name);
        if let (Some(agent), false) = (agent, recovered.unkillable.is_empty())
            && !std::mem::replace(&mut agent.unkillable_said, true)
        {
            for (file, task, why) in &recovered.unkillable {
                tracing::error!(agent = name, task = %file.id,
                    "{task} ({}) of dead agent {name} stays in processing: {why}. Do not use its GPU before those processes are gone", file.id.short());
            }
        }
        Ok(true)
    }
}

/// Writes into the journal of a dead agent, whose lock the caller holds, since when it is down and
/// why, unless it has done so itself. `true`: this is the first that says so.
fn note_down(
    rig: &Rig,
    name: &str,
    heartbeat: Option<&Heartbeat>,
    hung: Option<Duration>,
) -> QueueResult<bool> {
    let mut log = ReasonLog::open(rig, name)?;
    let last = log.last().map(|last| (last.since, last.cause));
    if last.is_some_and(|(_, cause)| cause == Cause::AgentDown) {
        return Ok(false);
    }
    // It lived when it wrote its last entry, too.
    let seen = heartbeat.map(|beat| beat.at);
    let Some(since) = seen.max(last.map(|(since, _)| since)) else {
        return Ok(false);
    };
    let detail = match hung {
        Some(age) => format!(
            "hung: no heartbeat for {}s, killed by the brain",
            age.as_secs()
        ),
        None if heartbeat.is_some_and(|beat| beat.health == Health::Draining) => {
            "stopped".to_owned()
        }
        None => format!(
            "died: its lock was free {}s after its last heartbeat",
            Timestamp::now().duration_since(since).as_secs().max(0)
        ),
    };
    log.note(Reason {
        since,
        cause: Cause::AgentDown,
        code: None,
        detail,
        batches: Vec::new(),
    })?;
    Ok(true)
}

/// The LLM runtime that outlives the agent, in words, or nothing. The brain leaves it alone: the
/// agent that is started again takes it over with its model loaded, and only that agent can tell
/// whether it still serves.
fn runtime_left(rig: &Rig, agent: &str) -> String {
    match rigor_runtime::orphan(&rig.agent_dir(agent).join(rigor_runtime::MANIFEST_NAME)) {
        None => String::new(),
        Some((model, pids)) => {
            let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
            let pids = pids.join(" ");
            format!(
                "; its runtime of {model} still runs and holds VRAM (pid {pids}): {agent} takes it over or ends it when it is started again; if it is not to be, `kill {pids}`"
            )
        }
    }
}
