//! The monitor line: every half minute, the state of the rig in one line.

use std::collections::BTreeMap;
use std::time::Instant;

use jiff::Timestamp;
use rigor_queue::heartbeat::{Heartbeat, LlmBeat};
use rigor_queue::outlook::StuckTask;
use rigor_queue::rig::BRAIN;
use rigor_queue::task::Class;
use serde_json::{Value, json};

use crate::agents::{Agent, Agents};
use crate::context::Context;
use crate::fit;
use crate::journal::Entry;
use crate::stuck::minutes;

/// How many batches are there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batches {
    /// Open ones.
    pub open: usize,
    /// Those that an operator holds, of them.
    pub held: usize,
}

/// Says how things stand, if anything is active.
pub(crate) fn say(
    brain: &mut Context,
    agents: &Agents,
    stuck: &[StuckTask],
    batches: Batches,
    now: Instant,
) {
    let queued: BTreeMap<Class, usize> = Class::ALL
        .into_iter()
        .map(|class| (class, brain.queued(class)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let pending: usize = queued.values().sum();
    let processing = claimed(brain, batches.open);
    if pending + processing == 0 && batches.open == batches.held {
        return;
    }
    let classes: Vec<String> = queued
        .iter()
        .map(|(class, count)| format!("{class}:{count}"))
        .collect();
    let gpus = gpu_counts(brain, agents, now);
    let (alive, all) = agents.alive();
    let message = format!(
        "MONITOR: GPUs: {gpus}, Agents: {alive}/{all} alive, Queue: {pending} ({}), Processing: {processing}, Stuck: {}",
        if classes.is_empty() {
            "empty".to_owned()
        } else {
            classes.join(", ")
        },
        stuck.len(),
    );
    tracing::info!("{message}");
    let is_hot = |agent: &Agent| {
        let beat = agent.heartbeat.as_ref();
        agent.alive && beat.is_some_and(|beat| matches!(beat.llm, LlmBeat::Hot { .. }))
    };
    let named = |wanted: &dyn Fn(&Agent) -> bool| -> Vec<&String> {
        let of = agents.iter().filter(|(_, agent)| wanted(agent));
        of.map(|(name, _)| name).collect()
    };
    let hot = named(&is_hot);
    let running = named(&|agent| agent.alive);
    let wall = Timestamp::now();
    let since = |at: Timestamp| {
        minutes(std::time::Duration::try_from(wall.duration_since(at)).unwrap_or_default())
    };
    let stuck_tasks: Vec<Value> = stuck
        .iter()
        .map(|task| {
            json!({"task_id": task.id, "assigned_to": task.agent, "name": task.name,
                   "elapsed_min": since(task.since), "quiet_min": since(task.quiet_since)})
        })
        .collect();
    let by_worker = by_worker(brain, agents, now);
    let details = json!({
        "queue_stats": {"total_pending": pending, "by_class": queued, "by_worker": by_worker},
        "stuck_tasks": stuck_tasks,
        "processing_count": processing,
        "running_agents": running,
        "hot_agents": hot,
        "agents_alive": alive,
    });
    brain.journal.write(Entry::Monitor, &message, details);
}

/// What each agent could take, has, and completed.
fn by_worker(brain: &mut Context, agents: &Agents, now: Instant) -> BTreeMap<String, Value> {
    let completed = brain.completed_recently(now);
    let known = fit::agents(brain, agents);
    let mut names: Vec<String> = brain.processing.keys().cloned().collect();
    names.extend(known.iter().map(|agent| agent.name.clone()));
    names.sort_unstable();
    names.dedup();
    let mut found = BTreeMap::new();
    for name in names {
        let pending: usize = match known.iter().find(|agent| agent.name == name) {
            Some(agent) => fit::could_take(brain, agent).values().sum(),
            None if name == BRAIN => brain.queued(Class::Brain),
            None => 0,
        };
        let processing = brain
            .processing
            .get(&name)
            .map_or(0, std::collections::BTreeSet::len);
        let completed = completed.get(&name).copied().unwrap_or(0);
        let value = json!({"pending": pending, "processing": processing,
                           "completed_last_5min": completed});
        found.insert(name, value);
    }
    found
}

/// `2/3 busy (idle: 1 model_not_loaded; hot: 2)`
fn gpu_counts(brain: &Context, agents: &Agents, now: Instant) -> String {
    let stale_after = brain.config.timing.heartbeat_warn;
    let mut hot = 0;
    let states = brain.config.gpus.iter().map(|gpu| {
        let agent = agents.get(&gpu.name).filter(|agent| agent.alive);
        let Some(agent) = agent else {
            return Some("agent_down");
        };
        let beat = agent.heartbeat.as_ref();
        let Some(beat) = beat.filter(|_| agent.age(now) < stale_after) else {
            return Some("no_heartbeat");
        };
        hot += usize::from(matches!(beat.llm, LlmBeat::Hot { .. }));
        idle_code(beat)
    });
    let states: Vec<Option<&str>> = states.collect();
    gpu_words(&states, hot)
}

/// Why the GPU of a live agent runs no script or llm task; none: it runs one.
fn idle_code(beat: &Heartbeat) -> Option<&'static str> {
    let busy = beat
        .running
        .iter()
        .any(|task| matches!(task.class, Class::Script | Class::Llm));
    if busy {
        return None;
    }
    let verdict = |class| beat.verdicts.get(&class);
    Some(match (&beat.idle, &beat.llm) {
        (
            _,
            LlmBeat::Loading { .. }
            | LlmBeat::Lent { .. }
            | LlmBeat::Draining { .. }
            | LlmBeat::Unloading { .. },
        ) => beat.llm.as_str(),
        (Some(verdict), _) => verdict.code.as_str(),
        // It works, but not on its GPU.
        (None, _) => verdict(Class::Script)
            .or(verdict(Class::Llm))
            .map_or("queue_empty", |verdict| verdict.code.as_str()),
    })
}

fn gpu_words(states: &[Option<&str>], hot: usize) -> String {
    let mut idle: BTreeMap<&str, usize> = BTreeMap::new();
    for code in states.iter().flatten() {
        *idle.entry(code).or_default() += 1;
    }
    let mut notes = Vec::new();
    if !idle.is_empty() {
        let codes: Vec<String> = idle
            .iter()
            .map(|(code, count)| format!("{count} {code}"))
            .collect();
        notes.push(format!("idle: {}", codes.join(", ")));
    }
    notes.push(format!("hot: {hot}"));
    let busy = states.iter().filter(|state| state.is_none()).count();
    format!("{busy}/{} busy ({})", states.len(), notes.join("; "))
}

/// Claimed tasks, the plans of open batches not among them.
fn claimed(brain: &Context, open_batches: usize) -> usize {
    brain
        .processing
        .iter()
        .map(|(agent, names)| {
            if agent == BRAIN {
                names.len().saturating_sub(open_batches)
            } else {
                names.len()
            }
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use rigor_queue::heartbeat::{Health, Refusal, RunningBeat, Verdict};
    use rigor_queue::name::TaskId;

    use super::*;

    #[test]
    fn the_words_are_those_of_the_contract() {
        let states = [
            None,
            None,
            Some("model_not_loaded"),
            Some("thermal"),
            Some("model_not_loaded"),
        ];
        assert_eq!(
            gpu_words(&states, 2),
            "2/5 busy (idle: 2 model_not_loaded, 1 thermal; hot: 2)"
        );
        assert_eq!(gpu_words(&[None], 0), "1/1 busy (hot: 0)");
    }

    #[test]
    fn a_gpu_beside_which_only_cpu_tasks_run_is_idle_for_the_reason_of_its_own_classes() {
        let mut beat = Heartbeat::alive(1, Timestamp::UNIX_EPOCH, Health::Healthy);
        assert_eq!(idle_code(&beat), Some("queue_empty"));
        let running = |class| RunningBeat {
            id: TaskId::derive("b", "t", None),
            attempt: 1,
            name: "t".to_owned(),
            batch: "b".to_owned(),
            class,
            since: Timestamp::UNIX_EPOCH,
            active_at: Timestamp::UNIX_EPOCH,
            output_at: None,
            cpu_percent: None,
            gpu_percent: None,
            timeout_s: None,
            kill_if_silent_s: None,
        };
        beat.running.push(running(Class::Cpu));
        beat.verdicts.insert(
            Class::Llm,
            Verdict {
                code: Refusal::ModelNotLoaded,
                detail: String::new(),
            },
        );
        assert_eq!(idle_code(&beat), Some("model_not_loaded"));
        beat.running.push(running(Class::Llm));
        assert_eq!(idle_code(&beat), None);
    }
}
