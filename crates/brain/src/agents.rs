//! Who is there: heartbeats as they change, and the recovery of what a dead agent left.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use rigor_exec::Containment;
use rigor_exec::recovery::{self, RecoveryLimits};
use rigor_queue::QueueError;
use rigor_queue::heartbeat::Heartbeat;
use rigor_queue::presence::{self, ComponentLock, Role};
use rigor_queue::rig::Place;
use serde_json::json;

use crate::context::Context;
use crate::journal::Entry;

/// One agent as the brain sees it.
#[derive(Debug)]
pub(crate) struct Agent {
    /// Its lock is held.
    pub alive: bool,
    /// Its last heartbeat.
    pub heartbeat: Option<Heartbeat>,
    /// When the heartbeat's number last moved, by this process's clock.
    pub moved: Instant,
    /// Staleness was warned about, at this age; again at twice that.
    warned: Option<Duration>,
    /// What could not be taken back was said.
    stuck_said: bool,
}

/// All agents.
#[derive(Debug, Default)]
pub(crate) struct Agents {
    agents: BTreeMap<String, Agent>,
}

impl Agents {
    /// The agents by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Agent)> {
        self.agents.iter()
    }

    /// One of them.
    pub(crate) fn get(&self, name: &str) -> Option<&Agent> {
        self.agents.get(name)
    }

    /// How many are alive, of how many.
    pub(crate) fn alive(&self) -> (usize, usize) {
        (
            self.agents.values().filter(|agent| agent.alive).count(),
            self.agents.len(),
        )
    }

    /// Looks at every lock and heartbeat, recovers the dead. `true`: something changed that
    /// placement looks at.
    pub(crate) fn look(
        &mut self,
        brain: &mut Context,
        containment: &Containment,
        now: Instant,
    ) -> Result<bool> {
        let mut changed = false;
        let mut failure = Ok(());
        let mut names = brain.rig.agents()?;
        names.extend(brain.config.agent_names().map(str::to_owned));
        names.sort_unstable();
        names.dedup();
        for name in names {
            let dir = brain.rig.agent_dir(&name);
            if !self.agents.contains_key(&name) {
                if dir.is_dir() {
                    // Heartbeats of a new agent wake the brain from now on.
                    brain.watcher.watch(&dir)?;
                    brain
                        .watcher
                        .watch(&brain.rig.dir(Place::Processing(&name)))?;
                } else if !brain.config.agent_names().any(|agent| agent == name) {
                    continue;
                } else {
                    brain.rig.prepare_agent(&name)?;
                    brain.watcher.watch(&dir)?;
                    brain
                        .watcher
                        .watch(&brain.rig.dir(Place::Processing(&name)))?;
                }
                // Listed after it is watched: a claim in between is not missed.
                let names = brain.rig.list(Place::Processing(&name))?.names;
                brain
                    .processing
                    .insert(name.clone(), names.into_iter().collect());
                changed = true;
                let agent = Agent {
                    alive: false,
                    heartbeat: None,
                    moved: now,
                    warned: None,
                    stuck_said: false,
                };
                self.agents.insert(name.clone(), agent);
            }
            changed |= self.read_heartbeat(brain, &name, now);
            match self.check_lock(brain, containment, &name) {
                Ok(differs) => changed |= differs,
                // The others are looked at all the same.
                Err(error) => failure = Err(error.context(format!("recover agent {name}"))),
            }
            self.warn_if_stale(brain, &name, now);
        }
        failure.map(|()| changed)
    }

    /// Takes the newest heartbeat. `true`: something besides its number changed.
    pub(crate) fn read_heartbeat(&mut self, brain: &Context, name: &str, now: Instant) -> bool {
        let Some(agent) = self.agents.get_mut(name) else {
            return false;
        };
        // One that cannot be read is as good as none: its age will be warned about.
        let Ok(Some(heartbeat)) = presence::heartbeat(&brain.rig, name) else {
            return false;
        };
        let known = agent.heartbeat.as_ref();
        let same_beat =
            known.is_some_and(|old| (old.pid, old.sequence) == (heartbeat.pid, heartbeat.sequence));
        if same_beat {
            return false;
        }
        let matters = known.is_none_or(|old| {
            old.llm != heartbeat.llm
                || old.health != heartbeat.health
                || old.llm_slots != heartbeat.llm_slots
                || old.verdicts != heartbeat.verdicts
        });
        agent.moved = now;
        agent.warned = None;
        agent.heartbeat = Some(heartbeat);
        matters
    }

    fn check_lock(
        &mut self,
        brain: &mut Context,
        containment: &Containment,
        name: &str,
    ) -> Result<bool> {
        let Some(agent) = self.agents.get_mut(name) else {
            return Ok(false);
        };
        let held = presence::is_held(&brain.rig, name)?.unwrap_or(false);
        if held {
            let came = !agent.alive;
            agent.alive = true;
            agent.stuck_said = false;
            if came {
                tracing::info!(agent = name, "Agent {name} is alive");
            }
            return Ok(came);
        }
        let left = brain.rig.list(Place::Processing(name))?;
        let empty = left.names.is_empty() && left.foreign.is_empty();
        if empty && !agent.alive {
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
        if empty {
            let message =
                format!("Agent {name} is gone (its lock is free); it had nothing in processing");
            tracing::info!(agent = name, "{message}");
            brain.journal.write(
                Entry::AgentDead,
                &message,
                json!({"agent": name, "left": 0}),
            );
            return Ok(true);
        }
        let limits = RecoveryLimits {
            grace: brain.config.timing.grace,
            uncharged_attempts: brain.config.limits.uncharged_attempts,
            durability: brain.durability,
        };
        let why = format!("agent {name} died (its lock is free)");
        let recovered = recovery::recover(&brain.rig, name, &owner, containment, limits, &why)?;
        drop(owner);
        let requeued = recovered.requeued.len();
        if requeued + recovered.adopted.len() + recovered.charged.len() > 0 || was_alive {
            let mut message = format!(
                "Agent {name} is dead (its lock is free): requeued {requeued} {}, killed {} processes",
                if requeued == 1 { "task" } else { "tasks" },
                recovered.killed
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
            tracing::warn!(agent = name, "{message}");
            brain.journal.write(
                Entry::AgentDead,
                &message,
                json!({"agent": name, "killed": recovered.killed}),
            );
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
            && !std::mem::replace(&mut agent.stuck_said, true)
        {
            for (file, task, why) in &recovered.unkillable {
                tracing::error!(agent = name, task = %file.id,
                    "{task} ({}) of dead agent {name} stays in processing: {why}. Do not use its GPU before those processes are gone", file.id.short());
            }
        }
        Ok(true)
    }

    fn warn_if_stale(&mut self, brain: &Context, name: &str, now: Instant) {
        let Some(agent) = self.agents.get_mut(name) else {
            return;
        };
        if !agent.alive || agent.heartbeat.is_none() {
            return;
        }
        let threshold = brain.config.timing.heartbeat_warn;
        let age = now.duration_since(agent.moved);
        let due = agent.warned.map_or(threshold, |warned| warned * 2);
        if age >= due {
            agent.warned = Some(age);
            tracing::warn!(
                agent = name,
                "Agent {name} last heartbeat {}s ago (threshold: {}s)",
                age.as_secs(),
                threshold.as_secs()
            );
        }
    }
}
