//! The heartbeat: at intervals, and at once when something changes.

use std::fs::File;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use rigor_queue::heartbeat::{Health, Heartbeat, LlmBeat, Refusal};
use rigor_queue::presence;
use rigor_queue::task::Class;

use crate::agent::Agent;

/// Changes are told at most so often.
const CHANGE_EVERY: Duration = Duration::from_millis(100);

/// What was told last.
#[derive(Debug)]
pub(crate) struct Beat {
    sequence: u64,
    started: Timestamp,
    sent_at: Option<Instant>,
    told: Option<State>,
    /// Why the file could not be written; said once.
    pub(crate) failing: Option<String>,
}

/// What makes a heartbeat due at once.
#[derive(Clone, Debug, PartialEq)]
struct State {
    health: Health,
    llm: LlmBeat,
    /// Models whose failed loads wait.
    failing: Vec<String>,
    running: usize,
    idle: Option<Refusal>,
    completed: u64,
    failed: u64,
}

impl Beat {
    pub(crate) fn new() -> Beat {
        Beat {
            sequence: 0,
            started: Timestamp::now(),
            sent_at: None,
            told: None,
            failing: None,
        }
    }
}

impl Agent {
    /// When the next heartbeat is due.
    pub(crate) fn beat_due(&self, now: Instant) -> Instant {
        let Some(sent) = self.beat.sent_at else {
            return now;
        };
        if self.beat.told.as_ref() != Some(&self.beat_state(now)) {
            return sent + CHANGE_EVERY;
        }
        sent + self.config.timing.heartbeat_every
    }

    /// Writes a heartbeat if one is due.
    pub(crate) fn beat_if_due(&mut self, now: Instant) {
        if self.beat_due(now) <= now {
            self.send_beat(now);
        }
    }

    pub(crate) fn send_beat(&mut self, now: Instant) {
        self.sample_activity(now);
        let state = self.beat_state(now);
        let heartbeat = self.heartbeat(now);
        self.beat.sent_at = Some(now);
        self.beat.told = Some(state);
        match presence::beat(&self.rig, &self.name, &heartbeat) {
            Ok(()) => {
                self.beat.failing = None;
                self.say_beat(&heartbeat, now);
            }
            Err(error) => {
                // Room for a new file may be lacking; a time in the old one needs none, and tells
                // the brain that the agent lives.
                let path = self.rig.agent_dir(&self.name).join("heartbeat.json");
                let touched =
                    File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
                let said = self.beat.failing.replace(error.to_string()).is_some();
                if !said {
                    let instead = match touched {
                        Ok(()) => "its time is touched instead",
                        Err(_) => "nor can its time be touched",
                    };
                    tracing::warn!("Cannot write the heartbeat: {error}; {instead}");
                }
            }
        }
    }

    fn beat_state(&self, now: Instant) -> State {
        let mut llm = self.llm.beat(now);
        if let LlmBeat::Failed { until, .. } = &mut llm {
            // It is reckoned anew each time, and what differs by that is no change.
            *until = Timestamp::UNIX_EPOCH;
        }
        let failing = self.llm.failing(now).into_iter();
        State {
            health: self.health().0,
            llm,
            failing: failing.map(|failed| failed.model).collect(),
            running: self.attempts.len(),
            idle: self.idle().map(|verdict| verdict.code),
            completed: self.counts.completed(),
            failed: self.counts.failed(),
        }
    }

    fn heartbeat(&mut self, now: Instant) -> Heartbeat {
        self.beat.sequence += 1;
        let (health, ailment) = self.health();
        let refused = self.refused(now);
        let idle = self.idle();
        Heartbeat {
            health_reason: ailment.map(|verdict| verdict.detail).or_else(|| {
                let near = self.device.as_ref()?.near?;
                Some(format!("half of the slots are used: {near}"))
            }),
            gpu: self.device.as_ref().map(crate::device::Device::beat),
            llm: self.llm.beat(now),
            failed_loads: self.llm.failing(now),
            idle_since: idle.is_some().then_some(self.last_work_at),
            idle,
            verdicts: refused.verdicts,
            shapes: refused.shapes,
            shapes_cut: refused.cut,
            running: self.running_beats(),
            completed: self.counts.completed(),
            failed: self.counts.failed(),
            cpu_slots: (self.attempts.cpus(), self.cpu_slots),
            llm_slots: (self.attempts.of_class(Class::Llm), self.llm.slots()),
            ..Heartbeat::alive(self.beat.sequence, self.beat.started, health)
        }
    }

    fn say_beat(&self, heartbeat: &Heartbeat, now: Instant) {
        let running = self.attempts.len();
        let status = if running > 0 {
            format!("processing, tasks: {running}")
        } else if self.llm.is_busy() {
            heartbeat.llm.as_str().to_owned()
        } else {
            format!("idle, idle: {}s", (now - self.last_work).as_secs())
        };
        let gpu = heartbeat.gpu.as_ref().map_or(String::new(), |gpu| {
            let temperature = gpu
                .temperature_c
                .map_or("-".to_owned(), |celsius| format!("{celsius}C"));
            let load = gpu
                .utilization
                .map_or("-".to_owned(), |percent| format!("{percent}%"));
            format!(
                ", GPU: {temperature} {}MB/{}MB {load}",
                gpu.used_mb, gpu.total_mb
            )
        });
        tracing::debug!("Heartbeat sent - status: {status}{gpu}");
    }
}
