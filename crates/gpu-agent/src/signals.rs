//! What operators and the brain ask of the agent, by files in `signals/<agent>/`.
//!
//! | file | meaning |
//! |---|---|
//! | `drain` | finish what runs, then exit, as on SIGTERM |
//! | `stop` | end what runs, give it back to the queue and exit, as on a second SIGTERM |
//! | `pause` | claim nothing while the file is there |
//! | `<id>.aN.abort` | ask the attempt to end |
//! | `<id>.aN.kill` | end the attempt's process tree at once |
//! | `log-level` | log at `level` until `until`, while the file is there |

use jiff::Timestamp;
use rigor_queue::presence;
use rigor_queue::record::FailureKind;
use rigor_telemetry::Level;
use serde::Deserialize;

use crate::agent::{Agent, Stop};

/// The content of `log-level`.
#[derive(Debug, Deserialize)]
struct LevelSignal {
    level: String,
    #[serde(default)]
    until: Option<Timestamp>,
}

/// What an operator may write into a signal.
#[derive(Debug, Default, Deserialize)]
struct Note {
    #[serde(default)]
    reason: Option<String>,
    /// The brain ends an attempt because it is stuck.
    #[serde(default)]
    stuck: bool,
}

impl Agent {
    /// Acts on the signals that are there.
    pub(crate) fn take_signals(&mut self) {
        self.signals_changed = false;
        let signals = match presence::signals(&self.rig, &self.name) {
            Ok(signals) => signals,
            Err(error) => return tracing::warn!("Cannot read signals: {error}"),
        };
        let (mut paused, mut drained, mut level) = (None, None, None);
        for (signal, content) in signals {
            let note = serde_json::from_str::<Note>(&content).unwrap_or_default();
            let stuck = note.stuck;
            let reason = note.reason.unwrap_or_else(|| "by the operator".to_owned());
            match signal.as_str() {
                "pause" => paused = Some(format!("paused {reason}")),
                "log-level" => level = self.wanted_level(&content),
                "drain" => drained = Some(format!("drained {reason}")),
                "stop" => {
                    self.consume(&signal);
                    self.begin_drain(&format!("stopped {reason}"));
                    self.stop = Stop::AtOnce;
                }
                other => {
                    self.end_attempt(other, &reason, stuck);
                    self.consume(other);
                }
            }
        }
        if paused != self.paused {
            match &paused {
                Some(reason) => tracing::info!("Claiming nothing: {reason}"),
                None => tracing::info!("Claiming again: resumed"),
            }
            self.paused = paused;
        }
        if drained != self.drained {
            match &drained {
                Some(reason) => tracing::info!("Taking nothing more: {reason}"),
                None => tracing::info!("Claiming again: no longer drained"),
            }
            self.drained = drained;
        }
        self.apply_level(level);
    }

    fn end_attempt(&mut self, signal: &str, reason: &str, stuck: bool) {
        let (stem, kill) = match signal.rsplit_once('.') {
            Some((stem, "abort")) => (stem, false),
            Some((stem, "kill")) => (stem, true),
            Some(_) | None => {
                return tracing::warn!("Signal {signal:?} is unknown and was removed");
            }
        };
        let Some(running) = self.attempt(stem) else {
            return tracing::debug!("Signal {signal:?}: that attempt does not run here");
        };
        let short = running.name.id.short();
        if stuck {
            running.end_as(FailureKind::Stuck);
        }
        let ended = if kill {
            tracing::warn!(task = %running.name.id, "Killing {short}: {reason}");
            let grace = self.config.timing.grace;
            running
                .kill(&self.containment, grace, reason)
                .map(drop)
                .map_err(|error| error.to_string())
        } else {
            tracing::warn!(task = %running.name.id, "Ending {short}: {reason}");
            running.terminate(reason).map_err(|error| error.to_string())
        };
        if let Err(error) = ended {
            tracing::error!("Cannot end {short}: {error}");
        }
    }

    fn consume(&self, signal: &str) {
        if let Err(error) = presence::unsend(&self.rig, &self.name, signal) {
            tracing::warn!("Cannot remove a signal: {error}");
        }
    }

    fn wanted_level(&self, content: &str) -> Option<(Level, Option<Timestamp>)> {
        let signal: LevelSignal = match serde_json::from_str(content) {
            Ok(signal) => signal,
            Err(error) => {
                tracing::warn!("Signal log-level is not understood: {error}");
                self.consume("log-level");
                return None;
            }
        };
        if signal.until.is_some_and(|until| until <= Timestamp::now()) {
            self.consume("log-level");
            return None;
        }
        match signal.level.parse() {
            Ok(level) => Some((level, signal.until)),
            Err(error) => {
                tracing::warn!("Signal log-level: {error}");
                self.consume("log-level");
                None
            }
        }
    }

    fn apply_level(&mut self, wanted: Option<(Level, Option<Timestamp>)>) {
        let level = wanted.map_or(self.own_level, |(level, _)| level);
        self.level_until = wanted.and_then(|(_, until)| until);
        if self.levels.get() != level {
            self.levels.set(level);
            tracing::info!("Log level is now {level}");
        }
    }
}
