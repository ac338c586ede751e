//! The journal of what the agent's time goes into, and what the last agent of its name left there.

use jiff::Timestamp;
use rigor_policy::admission::LlmState;
use rigor_policy::gpu_time;
use rigor_queue::heartbeat::Health;
use rigor_queue::presence;
use rigor_queue::reasons::{Cause, Reason, ReasonLog};
use rigor_queue::rig::Rig;
use rigor_queue::task::Class;

use crate::agent::Agent;

/// How the last entry of an agent begins that said itself why it ends.
const OWN_ENDS: [&str; 2] = ["stopped", "crashed"];

/// The journal, where there is one. A failure to write costs entries, never work.
#[derive(Debug)]
pub(crate) struct Journal {
    log: Option<ReasonLog>,
    /// What could not be written, from when it held: said once.
    failing: Option<Reason>,
}

impl Journal {
    /// Opens the journal, and says what became of the last agent of that name if it could not.
    pub(crate) fn open(rig: &Rig, name: &str) -> Journal {
        let log = match ReasonLog::open(rig, name) {
            Ok(log) => Some(log),
            Err(error) => {
                tracing::warn!("No reasons are journalled: {error}");
                None
            }
        };
        if let Some(last) = log.as_ref().and_then(ReasonLog::last)
            && let Some(line) = fenced_line(name, last, Timestamp::now())
        {
            tracing::info!("{line}");
        }
        let mut journal = Journal { log, failing: None };
        journal.note_gap(rig, name);
        journal
    }

    /// The last agent ended and nobody wrote it, as when the machine lost its power: what was since
    /// its last sign of life is no time that it worked.
    fn note_gap(&mut self, rig: &Rig, name: &str) {
        let last = self.log.as_ref().and_then(ReasonLog::last);
        let Some(last) = last.filter(|last| last.cause != Cause::AgentDown) else {
            return;
        };
        let beat = presence::heartbeat(rig, name).ok().flatten();
        let since = beat.map_or(last.since, |beat| beat.at.max(last.since));
        self.note(Reason {
            since,
            cause: Cause::AgentDown,
            code: None,
            detail: "ended without a word, and no brain saw it".to_owned(),
            batches: Vec::new(),
        });
    }

    fn note(&mut self, mut reason: Reason) {
        let Some(log) = &mut self.log else { return };
        // What holds since the disk is full is written with that time once there is room.
        let unwritten = self.failing.as_ref();
        if let Some(since) = unwritten
            .filter(|it| (it.cause, it.code) == (reason.cause, reason.code))
            .map(|it| it.since)
        {
            reason.since = since;
        }
        match log.note(reason.clone()) {
            Ok(true) => self.failing = None,
            // Nothing was to be written.
            Ok(false) => {}
            Err(error) => {
                if self.failing.is_none() {
                    tracing::warn!("Cannot journal reasons: {error}; the work goes on");
                }
                self.failing = Some(reason);
            }
        }
    }
}

/// What others wrote of the last agent's end.
fn fenced_line(name: &str, last: &Reason, now: Timestamp) -> Option<String> {
    let own = OWN_ENDS.iter().any(|end| last.detail.starts_with(end));
    if last.cause != Cause::AgentDown || own {
        return None;
    }
    let ago = now.duration_since(last.since).as_secs().max(0);
    // Minutes are exact enough after ten, and so on.
    let ago = match ago {
        0..600 => ago,
        600..36_000 => ago - ago % 60,
        _ => ago - ago % 3600,
    };
    let ago = jiff::SignedDuration::from_secs(ago);
    Some(format!(
        "The last {name} was declared dead {ago:#} ago: {}",
        last.detail
    ))
}

impl Agent {
    /// Journals what the time goes into from now on, if that has changed.
    pub(crate) fn note_reason(&mut self) {
        let Some(idle) = self.gpu_idle_because() else {
            return;
        };
        let mut batches: Vec<String> = self
            .attempts
            .iter()
            .filter(|attempt| self.is_main_work(attempt.class()))
            .map(|attempt| attempt.running().spec.batch.clone())
            .collect();
        let working = batches.len();
        batches.sort_unstable();
        batches.dedup();
        let llm = self.llm.admission(
            std::time::Instant::now(),
            self.attempts.of_class(Class::Llm),
        );
        // Whose heartbeat cannot be written cannot use the rig's directory, whatever it could do.
        let health = match self.beat.failing {
            Some(_) => Health::Quarantined,
            None => self.health().0,
        };
        let cause = gpu_time::cause(health, &llm, working, Some(&idle));
        let (code, detail) = match (cause, &llm) {
            (Cause::Running, _) => (None, String::new()),
            (
                Cause::Loading | Cause::Unloading,
                LlmState::Loading { model, .. }
                | LlmState::Draining { model }
                | LlmState::Unloading { model },
            ) => (None, model.clone()),
            (Cause::Lent, LlmState::Lent { model, to }) => (None, format!("{model} on {to}")),
            _ => (Some(idle.code), idle.detail),
        };
        self.journal.note(Reason {
            since: Timestamp::now(),
            cause,
            code,
            detail,
            batches,
        });
    }

    /// Journals that the agent ends.
    pub(crate) fn note_end(&mut self, why: &str) {
        self.journal.note(Reason {
            since: Timestamp::now(),
            cause: Cause::AgentDown,
            code: None,
            detail: why.to_owned(),
            batches: Vec::new(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_others_wrote_is_told() {
        let now = Timestamp::from_second(10_000).unwrap();
        let ended = |cause, detail: &str| Reason {
            since: Timestamp::from_second(9_820).unwrap(),
            cause,
            code: None,
            detail: detail.to_owned(),
            batches: Vec::new(),
        };
        let line = |cause, detail| fenced_line("gpu-1", &ended(cause, detail), now);
        assert_eq!(
            line(Cause::AgentDown, "hung: killed").as_deref(),
            Some("The last gpu-1 was declared dead 3m ago: hung: killed")
        );
        assert_eq!(line(Cause::AgentDown, "stopped: SIGTERM received"), None);
        assert_eq!(line(Cause::AgentDown, "crashed: no disk"), None);
        assert_eq!(line(Cause::NoWork, "nothing queued"), None);
    }
}
