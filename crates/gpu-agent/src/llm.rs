//! The agent's model: loads and unloads, their tasks, and what follows a failure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rigor_config::ModelKind;
use rigor_policy::admission::{FailedLoad, LlmState, Slots};
use rigor_queue::claim::Held;
use rigor_queue::heartbeat::LlmBeat;
use rigor_queue::record::{AttemptRecord, FailureKind, Outcome, Peaks};
use rigor_queue::records;
use rigor_queue::task::Class;
use rigor_runtime::{LoadError, Loaded, RuntimeEvent, UnloadError, Unloaded};

use crate::agent::Agent;
use crate::committer::Job;
use crate::device::MODEL_LEASE;
use crate::model::runtime_spec;
use crate::side::Ask;

/// The wait after a first failed load; it doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_secs(30);
/// The longest wait between two loads of one model.
const BACKOFF_MOST: Duration = Duration::from_secs(600);
/// What serves llm tasks.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) model: String,
    pub(crate) base_url: String,
    /// `chat` or `embedding`.
    pub(crate) kind: &'static str,
    tier: u32,
    slots: u32,
    load_ms: u64,
    since: Timestamp,
}

/// A meta task that the agent works on, and when it began.
#[derive(Debug)]
struct Duty {
    held: Held,
    began: Instant,
    began_at: Timestamp,
}

#[derive(Debug)]
enum Phase {
    Cold,
    Loading {
        model: String,
        duty: Duty,
    },
    Hot(Served),
    Draining {
        model: String,
        duty: Duty,
    },
    Unloading {
        model: String,
        duty: Option<Duty>,
    },
    /// The runtime ended by itself; its host is removing what it left. The duty is an unload that
    /// waited for llm tasks to end.
    Ended {
        model: String,
        duty: Option<Duty>,
    },
}

#[derive(Debug)]
struct Failure {
    cause: String,
    in_a_row: u32,
    until: Instant,
    until_at: Timestamp,
}

/// The agent's side of its runtime.
#[derive(Debug)]
pub(crate) struct Llm {
    phase: Phase,
    failures: HashMap<String, Failure>,
    /// What each model was seen to take of the GPU's memory, MiB.
    pub(crate) measured_mb: HashMap<String, u64>,
}

impl Llm {
    pub(crate) fn new() -> Llm {
        Llm {
            phase: Phase::Cold,
            failures: HashMap::new(),
            measured_mb: HashMap::new(),
        }
    }

    pub(crate) fn served(&self) -> Option<&Served> {
        match &self.phase {
            Phase::Hot(served) => Some(served),
            Phase::Cold
            | Phase::Loading { .. }
            | Phase::Draining { .. }
            | Phase::Unloading { .. }
            | Phase::Ended { .. } => None,
        }
    }

    pub(crate) fn is_busy(&self) -> bool {
        match self.phase {
            Phase::Loading { .. }
            | Phase::Draining { .. }
            | Phase::Unloading { .. }
            | Phase::Ended { .. } => true,
            Phase::Cold | Phase::Hot(_) => false,
        }
    }

    /// LLM slots: in all.
    pub(crate) fn slots(&self) -> u32 {
        self.served().map_or(0, |served| served.slots)
    }

    pub(crate) fn admission(&self, now: Instant, used: u32) -> LlmState {
        match &self.phase {
            Phase::Cold => LlmState::Cold,
            Phase::Loading { model, duty } => LlmState::Loading {
                model: model.clone(),
                for_s: (now - duty.began).as_secs(),
            },
            Phase::Hot(served) => LlmState::Hot {
                model: served.model.clone(),
                tier: served.tier,
                slots: Slots {
                    used,
                    total: served.slots,
                },
            },
            Phase::Draining { model, .. } => LlmState::Draining {
                model: model.clone(),
            },
            Phase::Unloading { model, .. } | Phase::Ended { model, .. } => LlmState::Unloading {
                model: model.clone(),
            },
        }
    }

    pub(crate) fn failed_loads(&self, now: Instant) -> Vec<FailedLoad> {
        let failed = self.failures.iter().map(|(model, failure)| FailedLoad {
            model: model.clone(),
            cause: failure.cause.clone(),
            retry_in_s: failure
                .until
                .saturating_duration_since(now)
                .as_millis()
                .div_ceil(1000) as u64,
        });
        failed.collect()
    }

    /// When the next backoff is over.
    pub(crate) fn retry_due(&self, now: Instant) -> Option<Instant> {
        self.failures
            .values()
            .map(|failure| failure.until)
            .filter(|until| *until > now)
            .min()
    }

    pub(crate) fn beat(&self, now: Instant) -> LlmBeat {
        match &self.phase {
            Phase::Cold => {
                let failing = self
                    .failures
                    .iter()
                    .filter(|(_, failure)| failure.until > now);
                match failing.max_by_key(|(_, failure)| failure.until) {
                    Some((model, failure)) => LlmBeat::Failed {
                        model: model.clone(),
                        cause: failure.cause.clone(),
                        until: failure.until_at,
                    },
                    None => LlmBeat::Cold,
                }
            }
            Phase::Loading { model, duty } => LlmBeat::Loading {
                model: model.clone(),
                since: duty.began_at,
            },
            Phase::Hot(served) => LlmBeat::Hot {
                model: served.model.clone(),
                slots: served.slots,
                load_ms: served.load_ms,
                since: served.since,
            },
            Phase::Draining { model, .. } => LlmBeat::Draining {
                model: model.clone(),
            },
            Phase::Unloading { model, .. } | Phase::Ended { model, .. } => LlmBeat::Unloading {
                model: model.clone(),
            },
        }
    }

    fn failed(&mut self, model: &str, cause: &str) -> Duration {
        let in_a_row = self
            .failures
            .get(model)
            .map_or(1, |failure| failure.in_a_row + 1);
        let doubled = BACKOFF_FIRST.saturating_mul(1 << (in_a_row - 1).min(16));
        let wait = doubled.min(BACKOFF_MOST);
        let failure = Failure {
            cause: cause.to_owned(),
            in_a_row,
            until: Instant::now() + wait,
            until_at: Timestamp::now() + SignedDuration::try_from(wait).unwrap_or_default(),
        };
        self.failures.insert(model.to_owned(), failure);
        wait
    }
}

impl Agent {
    pub(crate) fn start_load(&mut self, held: Held, model: &str) {
        let duty = Duty {
            held,
            began: Instant::now(),
            began_at: Timestamp::now(),
        };
        if self
            .llm
            .served()
            .is_some_and(|served| served.model == model)
        {
            tracing::info!(task = %duty.held.name.id, "{model} is loaded on {} already", self.name);
            let record = AttemptRecord {
                // Nothing was loaded, so there is no load time to learn from.
                started: None,
                ..self.duty_record(&duty, Outcome::Succeeded, None)
            };
            return self.commit_duty(duty, record);
        }
        let quiet = self.attempts.of_class(Class::Script) == 0;
        let spec = match (self.config.model(model), self.port) {
            (Ok(model), Some(port)) => runtime_spec(&self.config, model, port, quiet),
            (Err(error), _) => return self.load_failed(model, duty, &error.to_string()),
            (Ok(_), None) => return self.load_failed(model, duty, "this agent has no GPU"),
        };
        tracing::info!(task = %duty.held.name.id, "Loading {model} on {}", self.name);
        self.llm.phase = Phase::Loading {
            model: model.to_owned(),
            duty,
        };
        self.side.ask(Ask::Load(Box::new(spec)));
    }

    pub(crate) fn loaded(&mut self, result: Result<Loaded, LoadError>) {
        let Phase::Loading { model, duty } = std::mem::replace(&mut self.llm.phase, Phase::Cold)
        else {
            return tracing::error!("The runtime reports a load that nobody asked for: {result:?}");
        };
        let loaded = match result {
            Ok(loaded) => loaded,
            Err(error) => {
                let cause = error.cause.to_string();
                if let Some(left) = &error.left_behind {
                    self.quarantine_gpu(&left.to_string());
                }
                return self.load_failed(&model, duty, &cause);
            }
        };
        self.llm.failures.remove(&model);
        let took = loaded.vram_delta_mb.and_then(|mb| u64::try_from(mb).ok());
        if let Some(mb) = took {
            self.llm.measured_mb.insert(model.clone(), mb);
        }
        if let Some(device) = &mut self.device {
            // Without a measurement the estimate stands.
            if let Some(mb) = took {
                device.ledger.settle(MODEL_LEASE, mb);
            }
            device.request();
        }
        let entry = self.config.model(&model);
        let kind = match entry.as_ref().map(|entry| entry.kind) {
            Ok(ModelKind::Embedding) => "embedding",
            Ok(ModelKind::Chat) | Err(_) => "chat",
        };
        let tier = entry.map_or(0, |entry| entry.tier);
        tracing::info!(
            model = %model,
            "model ready in {} - {} is now HOT",
            seconds(loaded.load_ms),
            self.name
        );
        self.llm.phase = Phase::Hot(Served {
            model,
            base_url: loaded.base_url,
            kind,
            tier,
            slots: loaded.slots,
            load_ms: loaded.load_ms,
            since: Timestamp::now(),
        });
        self.end_duty(duty, Outcome::Succeeded, took);
    }

    fn load_failed(&mut self, model: &str, duty: Duty, cause: &str) {
        self.release_model_memory();
        let wait = self.llm.failed(model, cause);
        tracing::error!(
            model = %model,
            "Load of {model} on {} failed: {cause}; not tried again for {}s",
            self.name,
            wait.as_secs()
        );
        let outcome = Outcome::Failed {
            kind: FailureKind::LoadFailed,
            reason: format!("load {model}: {cause}"),
        };
        self.end_duty(duty, outcome, None);
    }

    pub(crate) fn start_unload(&mut self, held: Held) {
        let duty = Duty {
            held,
            began: Instant::now(),
            began_at: Timestamp::now(),
        };
        match std::mem::replace(&mut self.llm.phase, Phase::Cold) {
            Phase::Hot(served) => {
                tracing::info!("Unloading {} from {}", served.model, self.name);
                self.llm.phase = Phase::Draining {
                    model: served.model,
                    duty,
                };
                self.unload_when_drained();
            }
            // Admission lets an unload through only when hot or cold.
            other => {
                self.llm.phase = other;
                self.end_duty(duty, Outcome::Succeeded, None);
            }
        }
    }

    /// Unloads once no llm task runs any more.
    pub(crate) fn unload_when_drained(&mut self) {
        if self.attempts.of_class(Class::Llm) > 0 {
            return;
        }
        match std::mem::replace(&mut self.llm.phase, Phase::Cold) {
            Phase::Draining { model, duty } => {
                self.llm.phase = Phase::Unloading {
                    model,
                    duty: Some(duty),
                };
                self.side.ask(Ask::Unload);
            }
            other => self.llm.phase = other,
        }
    }

    pub(crate) fn unloaded(&mut self, result: Result<Unloaded, UnloadError>) {
        let (model, duty) = match std::mem::replace(&mut self.llm.phase, Phase::Cold) {
            Phase::Unloading { model, duty } => (model, duty),
            other => {
                self.llm.phase = other;
                return tracing::error!(
                    "The runtime reports an unload that nobody asked for: {result:?}"
                );
            }
        };
        self.release_model_memory();
        let outcome = match result {
            Ok(unloaded) => {
                let forced = if unloaded.forced {
                    " (it had to be killed)"
                } else {
                    ""
                };
                tracing::info!(
                    model = %model,
                    "model unloaded in {}{forced} - {} is now COLD",
                    seconds(unloaded.unload_ms),
                    self.name
                );
                Outcome::Succeeded
            }
            Err(error) => {
                let reason = format!("unload {model}: {error}");
                self.quarantine_gpu(&reason);
                Outcome::Failed {
                    kind: FailureKind::LoadFailed,
                    reason,
                }
            }
        };
        if let Some(duty) = duty {
            self.end_duty(duty, outcome, None);
        }
    }

    /// The runtime did something by itself.
    pub(crate) fn runtime_event(&mut self, event: RuntimeEvent) {
        match event {
            // Told by the answers to what was asked.
            RuntimeEvent::Ready(_) | RuntimeEvent::Failed { .. } | RuntimeEvent::Unloaded(_) => {}
            RuntimeEvent::Stuck { model, cause } => {
                let reason = format!("the runtime of {model} cannot be removed: {cause}");
                self.quarantine_gpu(&reason);
                let outcome = Outcome::Failed {
                    kind: FailureKind::LoadFailed,
                    reason,
                };
                self.runtime_removed(outcome);
            }
            RuntimeEvent::Removed { model } => {
                tracing::info!(model = %model, "{} is now COLD", self.name);
                self.runtime_removed(Outcome::Succeeded);
            }
            RuntimeEvent::Exited {
                model,
                status,
                cause,
            } => {
                let wait = self.llm.failed(&model, &format!("{cause} ({status})"));
                tracing::error!(
                    model = %model,
                    "The runtime of {model} ended by itself: {cause} ({status}); {} removes what it left, and does not load it again for {}s",
                    self.name,
                    wait.as_secs()
                );
                self.lose_llm_attempts(&format!("the runtime of {model} ended by itself: {cause}"));
                self.llm.phase = match std::mem::replace(&mut self.llm.phase, Phase::Cold) {
                    Phase::Hot(_) => Phase::Ended { model, duty: None },
                    Phase::Draining { duty, .. } => Phase::Ended {
                        model,
                        duty: Some(duty),
                    },
                    // An unload that was asked for meanwhile is answered when this is over.
                    other @ (Phase::Cold
                    | Phase::Loading { .. }
                    | Phase::Unloading { .. }
                    | Phase::Ended { .. }) => other,
                };
            }
        }
    }

    /// The host is done with what a runtime left that ended by itself.
    fn runtime_removed(&mut self, outcome: Outcome) {
        match std::mem::replace(&mut self.llm.phase, Phase::Cold) {
            Phase::Ended { duty, .. } => {
                self.release_model_memory();
                if let Some(duty) = duty {
                    self.end_duty(duty, outcome, None);
                }
            }
            other => self.llm.phase = other,
        }
    }

    /// The GPU is gone: the runtime has nothing to serve with.
    pub(crate) fn abandon_model(&mut self) {
        if let Phase::Hot(served) = &self.llm.phase {
            self.llm.phase = Phase::Unloading {
                model: served.model.clone(),
                duty: None,
            };
            self.side.ask(Ask::Unload);
        }
    }

    /// The agent ends: a load or unload that is under way goes back to the queue.
    pub(crate) fn abandon_duty(&mut self) {
        let duty = match std::mem::replace(&mut self.llm.phase, Phase::Cold) {
            Phase::Loading { duty, .. } | Phase::Draining { duty, .. } => Some(duty),
            Phase::Unloading { duty, .. } | Phase::Ended { duty, .. } => duty,
            Phase::Cold | Phase::Hot(_) => None,
        };
        if let Some(duty) = duty {
            let reason = format!("agent {} is shutting down", self.name);
            self.end_duty(duty, Outcome::Lost { reason }, None);
        }
    }

    fn release_model_memory(&mut self) {
        if let Some(device) = &mut self.device {
            device.release(MODEL_LEASE);
        }
    }

    fn end_duty(&mut self, duty: Duty, outcome: Outcome, vram_mb: Option<u64>) {
        let record = self.duty_record(&duty, outcome, vram_mb);
        self.commit_duty(duty, record);
    }

    fn duty_record(&self, duty: &Duty, outcome: Outcome, vram_mb: Option<u64>) -> AttemptRecord {
        let held = &duty.held;
        AttemptRecord {
            started: Some(duty.began_at),
            duration_ms: duty.began.elapsed().as_millis() as u64,
            peaks: Peaks {
                vram_mb,
                ..Peaks::default()
            },
            ..AttemptRecord::without_worker(&self.name, &held.name, &held.spec, outcome)
        }
    }

    fn commit_duty(&mut self, duty: Duty, record: AttemptRecord) {
        let name = duty.held.name;
        // The committer takes the lock again for the move.
        drop(duty);
        let written = records::replace(&self.rig, &record);
        self.committer.finish(Job {
            name,
            record,
            rewrite: written.is_err(),
        });
        self.worked(Class::Meta);
    }
}

fn seconds(ms: u64) -> String {
    if ms < 10_000 {
        format!("{:.1}s", ms as f64 / 1000.0)
    } else {
        format!("{}s", ms / 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_of_a_model_doubles_to_ten_minutes_and_is_its_own() {
        let mut llm = Llm::new();
        let waits: Vec<u64> = (0..7)
            .map(|_| llm.failed("a", "no file").as_secs())
            .collect();
        assert_eq!(waits, [30, 60, 120, 240, 480, 600, 600]);
        assert_eq!(llm.failed("b", "no file").as_secs(), 30);
        let now = Instant::now();
        assert!(matches!(llm.beat(now), LlmBeat::Failed { model, .. } if model == "a"));
        assert!(llm.retry_due(now).is_some());
        let later = now + BACKOFF_MOST + BACKOFF_FIRST;
        assert_eq!(llm.beat(later), LlmBeat::Cold);
        assert!(
            llm.failed_loads(later)
                .iter()
                .all(|failed| failed.retry_in_s == 0)
        );
    }
}
