//! Tasks that are stuck: said, and where the rig wants it ended.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use rigor_policy::stuck::{self, Action, Limits, Past, Stuck, Task};
use rigor_queue::heartbeat::RunningBeat;
use rigor_queue::name::TaskId;
use rigor_queue::outlook::StuckTask;
use rigor_queue::presence;
use rigor_queue::rig::BRAIN;
use rigor_queue::task::Class;
use serde_json::json;

use crate::agents::Agents;
use crate::attempts::Attempts;
use crate::context::Context;
use crate::journal::Entry;

/// What was said and done so far.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    past: BTreeMap<(TaskId, u32), Past>,
    current: Vec<StuckTask>,
}

impl Watch {
    /// The tasks that were stuck at the last look, by agent and start.
    pub(crate) fn current(&self) -> &[StuckTask] {
        &self.current
    }

    /// Looks at every running task. `true`: other tasks are stuck than before.
    pub(crate) fn look(
        &mut self,
        brain: &mut Context,
        agents: &Agents,
        attempts: &mut Attempts,
        now: Instant,
    ) -> Result<bool> {
        let wall = Timestamp::now();
        let zone = TimeZone::system();
        let limits = Limits {
            stuck_after: brain.config.timing.stuck_after,
            abort_after: brain.config.stuck.abort_after,
            abort_grace: brain.config.timing.abort_grace,
        };
        let stale_after = brain.config.timing.heartbeat_warn;
        let mut running: Vec<(String, RunningBeat, Timestamp, Duration)> = Vec::new();
        for (name, agent) in agents.iter().filter(|(_, agent)| agent.alive) {
            let Some(beat) = &agent.heartbeat else {
                continue;
            };
            let age = agent.age(now);
            let names = brain.processing.get(name);
            for task in &beat.running {
                // Its end may be newer than the heartbeat.
                let there = names.is_some_and(|names| {
                    names
                        .iter()
                        .any(|name| (name.id, name.attempt) == (task.id, task.attempt))
                });
                if there && task.class != Class::Meta {
                    running.push((name.clone(), task.clone(), beat.at, age));
                }
            }
        }
        let own = attempts.activity(&brain.rig);
        running.extend(
            own.into_iter()
                .map(|task| (BRAIN.to_owned(), task, wall, Duration::ZERO)),
        );
        self.past.retain(|key, _| {
            running
                .iter()
                .any(|(_, task, ..)| (task.id, task.attempt) == *key)
        });
        let mut current = Vec::new();
        let mut failure = Ok(());
        for (agent, beat, seen, age) in &running {
            let key = (beat.id, beat.attempt);
            let past = self.past.get(&key).copied().unwrap_or_default();
            let task = Task {
                agent,
                beat,
                seen: *seen,
                age: *age,
                stale: *age >= stale_after,
            };
            let Some(found) = stuck::judge(&task, &past, now, &limits, &zone) else {
                self.past.remove(&key);
                continue;
            };
            let past = self.past.entry(key).or_default();
            if let Some(line) = &found.line {
                past.said = Some(found.quiet);
                let message = format!("Stuck tasks detected: {line}");
                tracing::warn!(task = %beat.id, agent = %agent, batch = %beat.batch, "{message}");
                brain.journal.write(
                    Entry::Stuck,
                    &message,
                    json!({"task_id": beat.id, "name": beat.name, "batch": beat.batch,
                           "assigned_to": agent, "elapsed_min": minutes(found.elapsed),
                           "quiet_min": minutes(found.quiet), "end": found.end}),
                );
            }
            if let Some(action) = found.action {
                let result = act(brain, attempts, agent, beat, action, &found);
                match result {
                    Ok(()) => match action {
                        Action::Abort => past.aborted = Some(now),
                        Action::Kill => past.killed = Some(now),
                        Action::Escalate => past.escalated = true,
                    },
                    // It is tried again at the next look.
                    Err(error) => failure = Err(error),
                }
            }
            let before = |length: Duration| {
                wall - jiff::SignedDuration::try_from(length).unwrap_or_default()
            };
            current.push(StuckTask {
                id: beat.id,
                name: beat.name.clone(),
                agent: agent.clone(),
                since: before(found.elapsed),
                quiet_since: before(found.quiet + *age),
                end: found.end,
            });
        }
        let ids =
            |tasks: &[StuckTask]| -> Vec<TaskId> { tasks.iter().map(|task| task.id).collect() };
        let changed = ids(&self.current) != ids(&current);
        self.current = current;
        failure.map(|()| changed)
    }
}

/// Tells whoever runs it to end it, or a person that nobody can.
fn act(
    brain: &mut Context,
    attempts: &Attempts,
    agent: &str,
    beat: &RunningBeat,
    action: Action,
    found: &Stuck,
) -> Result<()> {
    let short = beat.id.short();
    let stem = format!("{}.a{}", beat.id, beat.attempt);
    let reason = &found.reason;
    let what = format!("{} ({short}) on {agent}", beat.name);
    let details = json!({"task_id": beat.id, "name": beat.name, "batch": beat.batch,
        "agent": agent, "attempt": beat.attempt, "reason": reason});
    let (entry, verb, message) = match action {
        Action::Abort => (
            Entry::AbortSignal,
            "abort",
            format!("Aborting {what}: {reason}"),
        ),
        Action::Kill => (
            Entry::ForceKill,
            "kill",
            format!("Killing {what}: {reason}"),
        ),
        Action::Escalate => {
            let message = format!(
                "{what} cannot be ended: {reason}. Look at its processes (rigor show {short}), and restart {agent} if it does not answer"
            );
            tracing::error!(task = %beat.id, agent = %agent, batch = %beat.batch, "{message}");
            brain.escalate(&format!("{stem}-stuck"), &message, details);
            return Ok(());
        }
    };
    if agent == BRAIN {
        attempts.end_stuck(&stem, reason, action == Action::Kill, brain);
    } else {
        let content = json!({"reason": reason, "stuck": true}).to_string();
        presence::send(&brain.rig, agent, &format!("{stem}.{verb}"), &content)?;
    }
    tracing::warn!(task = %beat.id, agent = %agent, batch = %beat.batch, "{message}");
    brain.journal.write(entry, &message, details);
    Ok(())
}

/// Minutes with one decimal.
pub(crate) fn minutes(length: std::time::Duration) -> f64 {
    (length.as_secs_f64() / 6.0).round() / 10.0
}
