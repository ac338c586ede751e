//! The agent's model: loads and unloads, their tasks, and what follows a failure.

use std::time::Instant;

use jiff::Timestamp;
use rigor_config::ModelKind;
use rigor_policy::admission::{LlmState, Slots};
use rigor_queue::claim::Held;
use rigor_queue::heartbeat::LlmBeat;
use rigor_queue::record::{AttemptRecord, FailureKind, Outcome, Peaks};
use rigor_queue::records;
use rigor_queue::task::{Class, Work};
use rigor_runtime::{Backoff, LoadClass, LoadError, Loaded, UnloadError, Unloaded};

use crate::agent::Agent;
use crate::committer::Job;
use crate::device::MODEL_LEASE;
use crate::lend::Lent;
use crate::model::{ModelMemory, Room, runtime_spec};
use crate::runtime_health::Trying;
use crate::side::Ask;
use crate::warm;

/// What serves llm tasks.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) model: String,
    /// What requests must name.
    pub(crate) served_as: String,
    pub(crate) base_url: String,
    /// `chat` or `embedding`.
    pub(crate) kind: &'static str,
    tier: u32,
    slots: u32,
    load_ms: u64,
    since: Timestamp,
    /// Agents whose GPUs it is on besides this one's.
    pub(crate) lenders: Vec<String>,
}

/// A meta task that the agent works on, and when it began.
#[derive(Debug)]
pub(crate) struct Duty {
    held: Held,
    began: Instant,
    began_at: Timestamp,
}

impl Duty {
    pub(crate) fn begin(held: Held) -> Duty {
        Duty {
            held,
            began: Instant::now(),
            began_at: Timestamp::now(),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Phase {
    Cold,
    Loading {
        model: String,
        duty: Duty,
        lenders: Vec<String>,
    },
    Hot(Served),
    Lent(Lent),
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

/// The agent's side of its runtime.
#[derive(Debug)]
pub(crate) struct Llm {
    pub(crate) phase: Phase,
    pub(crate) failures: Backoff,
    /// What the load under way began with.
    pub(crate) trying: Option<Trying>,
    /// When an llm task last ended, or the model got hot; none where none runs.
    pub(crate) progress_at: Option<Instant>,
    /// When the files of failed loads are looked at again.
    pub(crate) look_at: Option<Instant>,
    /// Why the GPU is quarantined, where that is for what a runtime left.
    pub(crate) stuck: Option<String>,
    /// What each model was seen to take of the GPU's memory, MiB.
    pub(crate) measured_mb: ModelMemory,
}

impl Llm {
    pub(crate) fn new() -> Llm {
        Llm {
            phase: Phase::Cold,
            failures: Backoff::default(),
            trying: None,
            progress_at: None,
            look_at: None,
            stuck: None,
            measured_mb: ModelMemory::default(),
        }
    }

    pub(crate) fn served(&self) -> Option<&Served> {
        match &self.phase {
            Phase::Hot(served) => Some(served),
            Phase::Cold
            | Phase::Lent(_)
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
            Phase::Cold | Phase::Hot(_) | Phase::Lent(_) => false,
        }
    }

    /// Its memory is leased for another agent's runtime, or for a load over several GPUs.
    pub(crate) fn is_lent(&self) -> bool {
        matches!(self.phase, Phase::Lent(_))
    }

    /// LLM slots: in all.
    pub(crate) fn slots(&self) -> u32 {
        self.served().map_or(0, |served| served.slots)
    }

    pub(crate) fn admission(&self, now: Instant, used: u32) -> LlmState {
        match &self.phase {
            Phase::Cold => LlmState::Cold,
            Phase::Lent(lent) => lent.state(),
            Phase::Loading { model, duty, .. } => LlmState::Loading {
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

    /// When the next backoff is over.
    pub(crate) fn retry_due(&self, now: Instant) -> Option<Instant> {
        self.failures.next_due(now)
    }

    pub(crate) fn beat(&self, now: Instant) -> LlmBeat {
        match &self.phase {
            Phase::Cold => {
                let failing = self.failing(now).into_iter();
                match failing.max_by_key(|failure| failure.until) {
                    Some(failed) => LlmBeat::Failed {
                        model: failed.model,
                        cause: failed.cause,
                        until: failed.until,
                    },
                    None => LlmBeat::Cold,
                }
            }
            Phase::Lent(lent) => lent.beat(),
            Phase::Loading {
                model,
                duty,
                lenders,
            } => LlmBeat::Loading {
                model: model.clone(),
                since: duty.began_at,
                lenders: lenders.clone(),
            },
            Phase::Hot(served) => LlmBeat::Hot {
                model: served.model.clone(),
                slots: served.slots,
                load_ms: served.load_ms,
                since: served.since,
                lenders: served.lenders.clone(),
            },
            Phase::Draining { model, .. } => LlmBeat::Draining {
                model: model.clone(),
            },
            Phase::Unloading { model, .. } | Phase::Ended { model, .. } => LlmBeat::Unloading {
                model: model.clone(),
            },
        }
    }
}

impl Agent {
    /// Loads over this agent's GPU and those that `lenders` lend.
    pub(crate) fn start_load(&mut self, held: Held, model: &str, lenders: Vec<String>) {
        let duty = Duty::begin(held);
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
        let quiet = self.attempts.of_class(Class::Script) == 0 && self.are_quiet(&lenders);
        let more_gpus = match self.lent_gpus(model, &lenders) {
            Ok(uuids) => uuids,
            Err(why) => return self.load_not_begun(model, duty, &why),
        };
        let mut spec = match (self.config.model(model), self.port) {
            (Ok(model), Some(port)) => runtime_spec(&self.config, model, port, self.room(), quiet),
            (Err(error), _) => return self.load_failed(model, duty, &error.to_string()),
            (Ok(_), None) => return self.load_failed(model, duty, "this agent has no GPU"),
        };
        spec.more_gpus = more_gpus;
        spec.gpu_indices = self.gpu_indices(&lenders);
        self.llm.trying = Some(Trying::new(&spec, self.room()));
        let over = match lenders.as_slice() {
            [] => String::new(),
            lenders => format!(" over its GPU and those of {}", lenders.join(", ")),
        };
        tracing::info!(task = %duty.held.name.id, "Loading {model} on {}{over}", self.name);
        self.llm.phase = Phase::Loading {
            model: model.to_owned(),
            duty,
            lenders,
        };
        self.side.ask(Ask::Load(Box::new(spec)));
        rigor_queue::crash_point!("load.asked");
    }

    pub(crate) fn loaded(&mut self, result: Result<Loaded, LoadError>) {
        let Phase::Loading {
            model,
            duty,
            lenders,
        } = std::mem::replace(&mut self.llm.phase, Phase::Cold)
        else {
            return tracing::error!("The runtime reports a load that nobody asked for: {result:?}");
        };
        let loaded = match result {
            Ok(loaded) => loaded,
            Err(error) => {
                if let Some(left) = &error.left_behind {
                    self.runtime_stuck(&left.to_string());
                }
                return self.load_failed_as(
                    &model,
                    duty,
                    error.cause.class(),
                    &error.cause.to_string(),
                );
            }
        };
        rigor_queue::crash_point!("load.proven");
        self.llm.failures.succeeded(&model);
        self.llm.trying = None;
        self.note_loaded(&loaded);
        let took = loaded.vram_delta_mb.and_then(|mb| u64::try_from(mb).ok());
        if let Some(mb) = took {
            self.llm.measured_mb.insert(model.clone(), mb);
        }
        if let Some(device) = &mut self.device {
            // Without a measurement the estimate stands.
            if let Some(mb) = took {
                let gpus = 1 + lenders.len() as u64;
                device.ledger.settle(MODEL_LEASE, mb.div_ceil(gpus));
            }
            device.request();
        }
        tracing::info!(
            model = %model,
            "{model}: model ready in {} - {} is now HOT",
            seconds(loaded.load_ms),
            self.name
        );
        self.serve(loaded, Timestamp::now(), lenders);
        self.end_duty(duty, Outcome::Succeeded, took);
    }

    /// `loaded` serves llm tasks from now on.
    pub(crate) fn serve(&mut self, loaded: Loaded, since: Timestamp, lenders: Vec<String>) {
        let entry = self.config.model(&loaded.model);
        let kind = match entry.as_ref().map(|entry| entry.kind) {
            Ok(ModelKind::Embedding) => "embedding",
            Ok(ModelKind::Chat) | Err(_) => "chat",
        };
        let tier = entry.map_or(0, |entry| entry.tier);
        self.llm.phase = Phase::Hot(Served {
            model: loaded.model,
            served_as: loaded.served_as,
            base_url: loaded.base_url,
            kind,
            tier,
            slots: loaded.slots,
            load_ms: loaded.load_ms,
            since,
            lenders,
        });
    }

    fn load_failed(&mut self, model: &str, duty: Duty, cause: &str) {
        self.load_failed_as(model, duty, LoadClass::Transient, cause);
    }

    /// A GPU of the group is not there any more. That is no failure of the model's: nothing backs
    /// off, this agent goes on lending its own GPU, and the brain sees to what lacks.
    fn load_not_begun(&mut self, model: &str, duty: Duty, why: &str) {
        tracing::warn!(
            model = %model,
            "Load of {model} on {} was not begun: {why}; the brain gathers its GPUs anew",
            self.name
        );
        let outcome = Outcome::Failed {
            kind: FailureKind::Setup,
            reason: format!("load {model}: {why}"),
        };
        self.end_duty(duty, outcome, None);
    }

    fn load_failed_as(&mut self, model: &str, duty: Duty, class: LoadClass, cause: &str) {
        self.release_model_memory();
        let advice = self.note_failed_load(model, class, cause);
        tracing::error!(
            model = %model,
            "Load of {model} on {} failed: {cause}; {advice}",
            self.name
        );
        let outcome = Outcome::Failed {
            kind: FailureKind::LoadFailed,
            reason: format!("load {model}: {cause}; {advice}"),
        };
        self.end_duty(duty, outcome, None);
    }

    pub(crate) fn start_unload(&mut self, held: Held) {
        if let Some(reason) = self.makes_room_in_vain(&held) {
            tracing::warn!(task = %held.name.id, "Nothing is unloaded from {}: {reason}", self.name);
            let outcome = Outcome::Failed {
                kind: FailureKind::LoadFailed,
                reason,
            };
            return self.end_duty(Duty::begin(held), outcome, None);
        }
        if let Work::UnloadLlm {
            next: Some(next), ..
        } = &held.spec.work
            && let Ok(model) = self.config.model(next)
        {
            warm::start(model);
        }
        let duty = Duty::begin(held);
        match std::mem::replace(&mut self.llm.phase, Phase::Cold) {
            Phase::Hot(served) => {
                tracing::info!("Unloading {} from {}", served.model, self.name);
                self.llm.phase = Phase::Draining {
                    model: served.model,
                    duty,
                };
                self.unload_when_drained();
            }
            Phase::Lent(lent) => self.end_lend(&lent, duty),
            // Admission lets an unload through only when hot, lent or cold.
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
        rigor_queue::crash_point!("unload.stopped");
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
                    "{model}: model unloaded in {}{forced} - {} is now COLD",
                    seconds(unloaded.unload_ms),
                    self.name
                );
                Outcome::Succeeded
            }
            Err(error) => {
                let reason = format!("unload {model}: {error}");
                self.runtime_stuck(&reason);
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
            Phase::Cold | Phase::Hot(_) | Phase::Lent(_) => None,
        };
        if let Some(duty) = duty {
            let reason = format!("agent {} is shutting down", self.name);
            self.end_duty(duty, Outcome::Lost { reason }, None);
        }
    }

    /// The memory of the agent's GPU as last read.
    pub(crate) fn room(&self) -> Option<Room> {
        let device = self.device.as_ref()?;
        Some(Room {
            total_mb: device.last.total_mb,
            free_mb: device.last.free_mb,
            share: device.limits.vram_share,
        })
    }

    pub(crate) fn release_model_memory(&mut self) {
        if let Some(device) = &mut self.device {
            device.release(MODEL_LEASE);
        }
    }

    pub(crate) fn end_duty(&mut self, duty: Duty, outcome: Outcome, vram_mb: Option<u64>) {
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
