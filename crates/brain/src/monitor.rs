//! The monitor line: every half minute, the state of the rig in one line.

use std::collections::BTreeMap;
use std::time::Instant;

use rigor_queue::heartbeat::LlmBeat;
use rigor_queue::rig::BRAIN;
use rigor_queue::task::Class;
use serde_json::{Value, json};

use crate::agents::Agents;
use crate::context::Context;
use crate::journal::Entry;

/// Says how things stand, if anything is active.
pub(crate) fn say(brain: &mut Context, agents: &Agents, active_batches: usize, now: Instant) {
    let queued: BTreeMap<Class, usize> = Class::ALL
        .into_iter()
        .map(|class| (class, brain.queued(class)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let pending: usize = queued.values().sum();
    let processing = claimed(brain, active_batches);
    if pending + processing + active_batches == 0 {
        return;
    }
    let classes: Vec<String> = queued
        .iter()
        .map(|(class, count)| format!("{class}:{count}"))
        .collect();
    let gpus = gpu_counts(brain, agents);
    let (alive, all) = agents.alive();
    let message = format!(
        "MONITOR: GPUs: {gpus}, Agents: {alive}/{all} alive, Queue: {pending} ({}), Processing: {processing}",
        if classes.is_empty() {
            "empty".to_owned()
        } else {
            classes.join(", ")
        },
    );
    tracing::info!("{message}");
    let by_worker: BTreeMap<&String, Value> = brain
        .processing
        .iter()
        .map(|(agent, names)| (agent, json!({"processing": names.len()})))
        .collect();
    let hot: Vec<&String> = agents
        .iter()
        .filter(|(_, agent)| {
            agent
                .heartbeat
                .as_ref()
                .is_some_and(|beat| matches!(beat.llm, LlmBeat::Hot { .. }))
        })
        .map(|(name, _)| name)
        .collect();
    let details = json!({
        "queue_stats": {"total_pending": pending, "by_class": queued, "by_worker": by_worker},
        "processing_count": processing,
        "hot_agents": hot,
        "agents_alive": alive,
    });
    let recent = brain.completed_recently(now);
    let mut details = details;
    details["queue_stats"]["completed_last_5min"] = json!(recent);
    brain.journal.write(Entry::Monitor, &message, details);
}

/// `2/3 busy (idle: 1 model_not_loaded; hot: 2)`
fn gpu_counts(brain: &Context, agents: &Agents) -> String {
    let (mut busy, mut hot) = (0, 0);
    let mut idle: BTreeMap<&str, usize> = BTreeMap::new();
    for gpu in &brain.config.gpus {
        let works = brain
            .processing
            .get(&gpu.name)
            .is_some_and(|names| !names.is_empty());
        let agent = agents.get(&gpu.name);
        let beat = agent.and_then(|agent| agent.heartbeat.as_ref());
        hot += usize::from(beat.is_some_and(|beat| matches!(beat.llm, LlmBeat::Hot { .. })));
        if works {
            busy += 1;
        } else if !agent.is_some_and(|agent| agent.alive) {
            *idle.entry("agent_down").or_default() += 1;
        } else {
            let code = beat
                .and_then(|beat| beat.idle.as_ref())
                .map_or("queue_empty", |verdict| verdict.code.as_str());
            *idle.entry(code).or_default() += 1;
        }
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
    format!(
        "{busy}/{} busy ({})",
        brain.config.gpus.len(),
        notes.join("; ")
    )
}

/// Claimed tasks, the plans of active batches not among them.
fn claimed(brain: &Context, active_batches: usize) -> usize {
    brain
        .processing
        .iter()
        .map(|(agent, names)| {
            if agent == BRAIN {
                names.len().saturating_sub(active_batches)
            } else {
                names.len()
            }
        })
        .sum()
}
