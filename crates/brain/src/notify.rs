//! `[notify]` of rig.toml: tells somebody by a command of theirs. Never holds the brain up, and
//! what becomes of it changes nothing.

mod command;
mod gate;
mod idle;

use std::collections::BTreeMap;
use std::time::Instant;

use rigor_config::{Config, Notify, NotifyEvent, Secret};
use rigor_queue::heartbeat::{Health, Heartbeat, LlmBeat, Verdict};
use rigor_queue::task::Class;
use serde_json::{Value, json};

use crate::agents::Agents;
use crate::context::Context;
use command::{Job, Runner};
use gate::Gate;
use idle::{IdleGpu, IdleWatch};

/// A message is cut at so many characters: it is for a phone.
const MESSAGE_MOST: usize = 1000;

/// Something worth telling.
#[derive(Debug)]
pub(crate) struct Notice {
    /// What happened.
    pub event: NotifyEvent,
    /// To what: a batch, an agent.
    pub subject: String,
    /// In one line.
    pub message: String,
    /// With numbers.
    pub details: Value,
}

/// Runs the command, if there is one, for what passes the limits.
#[derive(Debug, Default)]
pub(crate) struct Notifier {
    told: Option<Told>,
}

#[derive(Debug)]
struct Told {
    rig: String,
    settings: Notify,
    gate: Gate,
    idle: IdleWatch,
    runner: Runner,
}

impl Notifier {
    /// Tells nobody where rig.toml names no command.
    pub(crate) fn new(config: &Config) -> Notifier {
        let Some(settings) = config.notify.clone() else {
            return Notifier::default();
        };
        // The brain's environment may hold secrets of the tasks; they are not this command's.
        let hidden = config.secrets.iter().flat_map(|(name, secret)| {
            let variable = match secret {
                Secret::Env(variable) => Some(variable.clone()),
                Secret::File(_) | Secret::Literal(_) => None,
            };
            [Some(name.clone()), variable].into_iter().flatten()
        });
        let runner = Runner::start(&settings, config.rig_dir(), hidden.collect());
        let told = runner.map(|runner| Told {
            rig: config.rig.name.clone(),
            gate: Gate::new(settings.every),
            idle: IdleWatch::default(),
            settings,
            runner,
        });
        match told {
            Ok(told) => Notifier { told: Some(told) },
            Err(error) => {
                tracing::warn!("[notify] tells nobody: its thread cannot be started: {error}");
                Notifier::default()
            }
        }
    }

    /// Tells it, unless it is not wanted or too much.
    pub(crate) fn tell(&mut self, notice: Notice, now: Instant) {
        let Some(told) = &mut self.told else {
            return;
        };
        if !told.settings.on.contains(&notice.event) {
            return;
        }
        let Some(suppressed) = told.gate.pass(notice.event, &notice.subject, now) else {
            tracing::debug!("Not told (too many): {}", notice.message);
            return;
        };
        let job = job(&told.rig, &notice, &suppressed);
        if !told.runner.run(job) {
            told.gate.lost(notice.event, suppressed);
        }
    }

    /// An agent's lock is free. One that said that it was about to end is not told of.
    pub(crate) fn agent_gone(
        &mut self,
        name: &str,
        last: Option<&Heartbeat>,
        message: &str,
        now: Instant,
    ) {
        if last.is_none_or(|beat| beat.health != Health::Draining) {
            self.agent_dead(name, message, now);
        }
    }

    /// An agent died or hangs.
    pub(crate) fn agent_dead(&mut self, name: &str, message: &str, now: Instant) {
        let notice = Notice {
            event: NotifyEvent::AgentDead,
            subject: name.to_owned(),
            message: message.to_owned(),
            details: json!({ "agent": name }),
        };
        self.tell(notice, now);
    }

    /// A plan was rejected.
    pub(crate) fn rejected(&mut self, batch: &str, problems: &str, now: Instant) {
        let notice = Notice {
            event: NotifyEvent::BatchFailed,
            subject: batch.to_owned(),
            message: format!("Batch {batch} is rejected: {problems}"),
            details: json!({"batch": batch, "state": "rejected"}),
        };
        self.tell(notice, now);
    }

    fn gpus(&mut self, gpus: &[(String, Option<Verdict>)], queued: usize, now: Instant) {
        let Some(told) = &mut self.told else {
            return;
        };
        let after = told.settings.gpu_idle_after;
        for idle in told.idle.look(gpus, queued, after, now) {
            self.tell(idle_notice(&idle, queued), now);
        }
    }
}

/// Looks for GPUs that have been idle for long while work for GPUs waits.
pub(crate) fn look_at_gpus(brain: &mut Context, agents: &Agents, now: Instant) {
    if brain.notify.told.is_none() {
        return;
    }
    let queued = brain.queued(Class::Script) + brain.queued(Class::Llm);
    let gpus: Vec<(String, Option<Verdict>)> = brain
        .config
        .gpus
        .iter()
        .map(|gpu| {
            let claimed = brain
                .processing
                .get(&gpu.name)
                .map_or(0, |names| names.len());
            let verdict = agents
                .get(&gpu.name)
                .filter(|agent| agent.alive)
                .and_then(|agent| agent.heartbeat.as_ref())
                .and_then(|beat| idle_because(beat, claimed));
            (gpu.name.clone(), verdict)
        })
        .collect();
    brain.notify.gpus(&gpus, queued, now);
}

/// Why a GPU does nothing; none while it does something. Cpu tasks of its agent do not count.
fn idle_because(beat: &Heartbeat, claimed: usize) -> Option<Verdict> {
    let works = if beat.running.len() == claimed {
        beat.running.iter().any(|task| task.class != Class::Cpu)
    } else {
        claimed > 0
    };
    let moves = match beat.llm {
        LlmBeat::Loading { .. } | LlmBeat::Draining { .. } | LlmBeat::Unloading { .. } => true,
        LlmBeat::Cold | LlmBeat::Hot { .. } | LlmBeat::Lent { .. } | LlmBeat::Failed { .. } => {
            false
        }
    };
    if works || moves {
        return None;
    }
    let of = |class| beat.verdicts.get(&class);
    beat.idle
        .as_ref()
        .or_else(|| of(Class::Llm))
        .or_else(|| of(Class::Script))
        .cloned()
}

fn idle_notice(idle: &IdleGpu, queued: usize) -> Notice {
    let IdleGpu {
        name,
        verdict,
        idle,
    } = idle;
    let seconds = idle.as_secs();
    let words = if seconds >= 120 {
        format!("{}m", seconds / 60)
    } else {
        format!("{seconds}s")
    };
    let code = verdict.code.as_str();
    Notice {
        event: NotifyEvent::GpuIdle,
        subject: name.clone(),
        message: format!(
            "{name} has been idle for {words} with {queued} queued: {code}: {}. See: rigor why {name}",
            verdict.detail
        ),
        details: json!({
            "agent": name,
            "idle_seconds": seconds,
            "queued": queued,
            "code": code,
            "reason": verdict.detail,
        }),
    }
}

fn job(rig: &str, notice: &Notice, suppressed: &BTreeMap<NotifyEvent, u64>) -> Job {
    let message: String = notice
        .message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MESSAGE_MOST)
        .collect();
    let suppressed: BTreeMap<&str, u64> = suppressed
        .iter()
        .map(|(event, count)| (event.as_str(), *count))
        .collect();
    let object = json!({
        "schema": 1,
        "event": notice.event.as_str(),
        "rig": rig,
        "at": jiff::Timestamp::now().to_string(),
        "subject": notice.subject,
        "message": message,
        "details": notice.details,
        "suppressed": suppressed,
    });
    Job {
        event: notice.event,
        subject: notice.subject.clone(),
        message,
        input: format!("{object}\n"),
    }
}

#[cfg(test)]
mod tests;
