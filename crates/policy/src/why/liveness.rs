//! Whether a component is there and answers.

use super::*;
use crate::span::span_s;

/// How a component lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Liveness {
    /// It never ran here.
    Never,
    /// Its lock is free.
    Down,
    /// The brain takes back what it left.
    Recovering,
    /// It has its lock and has not beaten yet.
    Starting,
    /// It has its lock and does not beat.
    Mute,
    /// It lives, and what its heartbeat says is old: it cannot write.
    CannotWrite,
    /// As it should be.
    Fresh,
}

impl Component {
    /// The heartbeat of the process that runs.
    pub fn current(&self) -> Option<&Heartbeat> {
        self.beat.as_ref().filter(|beat| {
            self.presence == Presence::Alive && self.pid.is_none_or(|pid| pid == beat.pid)
        })
    }

    pub(super) fn liveness(&self, facts: &Facts) -> Liveness {
        match self.presence {
            Presence::Gone if self.beat.is_none() => return Liveness::Never,
            Presence::Gone => return Liveness::Down,
            Presence::Recovering => return Liveness::Recovering,
            Presence::Alive => {}
        }
        let Some(beat) = self.current() else {
            return Liveness::Starting;
        };
        let warn = facts.heartbeat_warn.as_secs();
        if self.silent_s(facts) > warn {
            Liveness::Mute
        } else if seconds_between(beat.at, facts.now) > warn + self.silent_s(facts) {
            Liveness::CannotWrite
        } else {
            Liveness::Fresh
        }
    }

    /// Seconds since its last sign of life.
    pub(super) fn silent_s(&self, facts: &Facts) -> u64 {
        self.seen.map_or(0, |seen| seconds_between(seen, facts.now))
    }

    /// What is wrong with it, in one clause; none: nothing.
    pub(super) fn trouble(&self, facts: &Facts) -> Option<String> {
        let name = &self.name;
        Some(match self.liveness(facts) {
            Liveness::Fresh => return None,
            Liveness::Never => format!("{name} is down: it was never started"),
            Liveness::Down => {
                let seen = self.seen.map_or_else(String::new, |seen| {
                    let time = clock(facts, seen);
                    format!(" since {time}")
                });
                format!(
                    "{name} is down: dead{seen} (its lock is free; last heartbeat {} ago)",
                    span_s(self.silent_s(facts))
                )
            }
            Liveness::Recovering => {
                format!("{name} is dead: the brain holds its lock and takes back what it left")
            }
            Liveness::Starting => format!("{name} is starting: it has not beaten yet"),
            Liveness::Mute => {
                let silent = self.silent_s(facts);
                let hung = facts.heartbeat_hung.as_secs();
                let brain = facts.brain.presence == Presence::Alive;
                let follows = if name == "brain" {
                    String::new()
                } else if !brain {
                    "; nobody ends it: the brain is not running".to_owned()
                } else if silent < hung {
                    format!("; the brain kills it at {hung}s")
                } else {
                    format!("; the brain kills it now ({hung}s are over)")
                };
                let process = self
                    .process
                    .and_then(process_words)
                    .map(|words| format!(", its process {words}"))
                    .unwrap_or_default();
                format!(
                    "{name} does not answer: lock held, no heartbeat for {silent}s{process}{follows}"
                )
            }
            Liveness::CannotWrite => {
                let age = self
                    .beat
                    .as_ref()
                    .map_or(0, |beat| seconds_between(beat.at, facts.now));
                format!(
                    "{name} cannot write: it lives, and its last heartbeat could be written {} ago",
                    span_s(age)
                )
            }
        })
    }
}

/// What is odd about a process in that state.
pub(super) fn process_words(state: char) -> Option<&'static str> {
    match state {
        'T' | 't' => {
            Some("is stopped (state T: SIGSTOP or a debugger; `kill -CONT` lets it go on)")
        }
        'D' => Some("waits for the disk or a driver (state D)"),
        'Z' => Some("is a zombie (state Z)"),
        _ => None,
    }
}

/// Whole seconds from one instant to a later one.
pub(super) fn seconds_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_secs()).unwrap_or(0)
}

/// How long ago.
pub(super) fn ago(facts: &Facts, then: Timestamp) -> String {
    span_s(seconds_between(then, facts.now))
}

/// The time of day, with the date where it is another day's.
pub(super) fn clock(facts: &Facts, at: Timestamp) -> String {
    let now = facts.now.to_zoned_datetime(facts.zone.clone());
    let at = at.to_zoned_datetime(facts.zone.clone());
    if at.date() == now.date() {
        at.strftime("%H:%M:%S").to_string()
    } else {
        at.strftime("%Y-%m-%d %H:%M:%S").to_string()
    }
}
