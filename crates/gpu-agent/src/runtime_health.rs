//! The runtime beside its loads and unloads: taken over at the start, doubted when nothing comes of
//! it, and what follows from a failed load.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rigor_gpu::Need;
use rigor_policy::admission::{FailedLoad, VramNeed};
use rigor_queue::claim::Held;
use rigor_queue::heartbeat::FailedLoadBeat;
use rigor_queue::record::{FailureKind, Outcome};
use rigor_queue::task::{Class, Work};
use rigor_runtime::{Fingerprint, LoadClass, Loaded, ModelSpec, RuntimeEvent};

use crate::agent::Agent;
use crate::device::MODEL_LEASE;
use crate::llm::{Llm, Phase};
use crate::model::{Room, model_need};
use crate::side::Ask;

/// How long one token may take where an llm task has just failed and no other is there.
const PROOF_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the files of a load that fails until they change.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What a load began with, for what follows should it fail.
#[derive(Debug)]
pub(crate) struct Trying {
    files: Fingerprint,
    /// Free on the agent's GPU, MiB, where it can be read.
    free_mb: Option<u64>,
}

impl Trying {
    pub(crate) fn new(spec: &ModelSpec, room: Option<Room>) -> Trying {
        Trying {
            files: spec.fingerprint(),
            free_mb: room.map(|room| room.free_mb),
        }
    }
}

impl Llm {
    /// Every load that failed since the last one that succeeded.
    pub(crate) fn failed_loads(&self, now: Instant) -> Vec<FailedLoad> {
        let failed = self.failures.iter().map(|(model, failure)| FailedLoad {
            model: model.to_owned(),
            cause: failure.cause.clone(),
            retry_in_s: failure
                .until
                .saturating_duration_since(now)
                .as_millis()
                .div_ceil(1000) as u64,
        });
        failed.collect()
    }

    /// The failed loads whose wait is not over.
    pub(crate) fn failing(&self, now: Instant) -> Vec<FailedLoadBeat> {
        let wall = Timestamp::now();
        let failing = self.failures.iter().filter(|(_, it)| it.until > now);
        let told = failing.map(|(model, failure)| FailedLoadBeat {
            model: model.to_owned(),
            cause: failure.cause.clone(),
            until: wall + SignedDuration::try_from(failure.until - now).unwrap_or_default(),
        });
        told.collect()
    }
}

impl Agent {
    /// An operator wants room for a model that this GPU never has: why nothing is unloaded for it.
    /// The brain, which is told the same numbers, asks for no such thing.
    pub(crate) fn makes_room_in_vain(&self, held: &Held) -> Option<String> {
        let Work::UnloadLlm {
            next: Some(next), ..
        } = &held.spec.work
        else {
            return None;
        };
        // An operator names the agent.
        if held.spec.on.is_empty() {
            return None;
        }
        let budget_mb = self.device.as_ref()?.ledger.budget_mb();
        match model_need(&self.config, &self.llm.measured_mb, next) {
            VramNeed::Mb(mb) if mb > budget_mb => Some(format!(
                "{next} needs {mb}MB and never fits here, where tasks and models have {budget_mb}MB"
            )),
            VramNeed::Mb(_) | VramNeed::Alone => None,
        }
    }

    /// Serves with the runtime that the agent before this one had started.
    pub(crate) fn adopt(&mut self, loaded: Loaded, started_at: Timestamp) {
        let took = loaded.vram_delta_mb.and_then(|mb| u64::try_from(mb).ok());
        if let Some(mb) = took {
            self.llm.measured_mb.insert(loaded.model.clone(), mb);
        }
        let mb =
            took.or_else(
                || match model_need(&self.config, &self.llm.measured_mb, &loaded.model) {
                    VramNeed::Mb(mb) => Some(mb),
                    VramNeed::Alone => None,
                },
            );
        if let Some(device) = &mut self.device {
            device.ledger.adopt(MODEL_LEASE, Need { mb });
            device.request();
        }
        let ago = Timestamp::now().duration_since(started_at).as_secs().max(0);
        tracing::info!(
            model = %loaded.model,
            "Adopted the runtime of {} (pid {}), loaded {ago}s ago - {} is HOT",
            loaded.model,
            loaded.pid,
            self.name
        );
        self.serve(loaded, started_at, Vec::new());
    }

    /// Says what is not as it should be with a model that serves.
    pub(crate) fn note_loaded(&self, loaded: &Loaded) {
        if let Some(note) = &loaded.note {
            tracing::warn!(model = %loaded.model, "{} on {}: {note}", loaded.model, self.name);
        }
    }

    /// Notes a failed load, or the end of a runtime, and says when the model is tried again and
    /// what is to be done.
    pub(crate) fn note_failed_load(
        &mut self,
        model: &str,
        class: LoadClass,
        cause: &str,
    ) -> String {
        let trying = self.llm.trying.take();
        let free_mb = trying.as_ref().and_then(|trying| trying.free_mb);
        let files = trying.map(|trying| trying.files);
        let wait = self
            .llm
            .failures
            .failed(model, class, cause, files, Instant::now())
            .as_secs();
        match class {
            LoadClass::Transient => format!("not tried again for {wait}s"),
            LoadClass::Permanent => format!(
                "it will fail again until the file, the program or rig.toml is corrected (restart the agent after a change of rig.toml): tried again when the file changes, else in {wait}s"
            ),
            LoadClass::OutOfMemory => match self.raise_need(model, free_mb) {
                Some(need_mb) => format!(
                    "it is now taken to need {need_mb} MB, which this GPU must have free first; not tried again for {wait}s"
                ),
                None => format!("not tried again for {wait}s"),
            },
        }
    }

    /// It needs more than was free, and so more than the estimate. Not more than the GPU can have
    /// free for it, as else it could never be tried again; the backoff stands.
    fn raise_need(&mut self, model: &str, free_mb: Option<u64>) -> Option<u64> {
        self.llm.measured_mb.raise(model, free_mb? + 1);
        match model_need(&self.config, &self.llm.measured_mb, model) {
            VramNeed::Mb(mb) => Some(mb),
            VramNeed::Alone => None,
        }
    }

    /// An llm task has ended.
    pub(crate) fn llm_attempt_ended(&mut self, outcome: &Outcome) {
        self.llm.progress_at = Some(Instant::now());
        let failed = matches!(
            outcome,
            Outcome::Failed {
                kind: FailureKind::LlmError,
                ..
            }
        );
        if failed && self.llm.served().is_some() {
            // Slots that are busy with long answers are no sign of a runtime that hangs.
            let patience = match self.attempts.of_class(Class::Llm) {
                0 => PROOF_PATIENCE,
                _ => PROOF_PATIENCE.max(self.config.timing.stuck_after),
            };
            self.side.ask(Ask::Suspect {
                why: "an llm task had no answer".to_owned(),
                patience,
            });
        }
    }

    /// Doubts a runtime whose tasks go on for long without any of them ending, and looks whether
    /// what made a load fail has changed. Cheap.
    pub(crate) fn watch_runtime(&mut self, now: Instant) {
        if self.attempts.of_class(Class::Llm) == 0 || self.llm.served().is_none() {
            self.llm.progress_at = None;
        } else {
            let since = *self.llm.progress_at.get_or_insert(now);
            let patience = self.config.timing.stuck_after;
            if now.saturating_duration_since(since) >= patience {
                // Asked again only after as long again.
                self.llm.progress_at = Some(now);
                // All slots may be busy with long answers: the proof waits for one of them.
                self.side.ask(Ask::Suspect {
                    why: format!("no llm task has ended for {}s", patience.as_secs()),
                    patience,
                });
            }
        }
        if self.llm.look_at.is_none_or(|at| at <= now) && self.llm.failures.watches_files(now) {
            self.llm.look_at = Some(now + LOOK_EVERY);
            for model in self.llm.failures.forget_changed(now) {
                tracing::info!(model = %model, "What {model} is loaded from has changed: it may be tried again");
            }
        }
    }

    /// The runtime did something by itself.
    pub(crate) fn runtime_event(&mut self, event: RuntimeEvent) {
        match event {
            // Told by the answers to what was asked.
            RuntimeEvent::Ready(_) | RuntimeEvent::Failed { .. } | RuntimeEvent::Unloaded(_) => {}
            RuntimeEvent::Stuck { model, cause } => {
                let reason = format!("the runtime of {model} cannot be removed: {cause}");
                self.runtime_stuck(&reason);
                let outcome = Outcome::Failed {
                    kind: FailureKind::LoadFailed,
                    reason,
                };
                self.runtime_removed(outcome);
            }
            RuntimeEvent::Removed { model } => {
                self.runtime_unstuck(&model);
                tracing::info!(model = %model, "{} is now COLD", self.name);
                self.runtime_removed(Outcome::Succeeded);
            }
            RuntimeEvent::Exited {
                model,
                status,
                cause,
            } => {
                let advice = self.note_failed_load(
                    &model,
                    LoadClass::Transient,
                    &format!("{cause} ({status})"),
                );
                tracing::error!(
                    model = %model,
                    "The runtime of {model} ended by itself: {cause} ({status}); {} removes what it left, and it is {advice}",
                    self.name,
                );
                self.stopped_serving(
                    model.clone(),
                    &format!("the runtime of {model} ended by itself: {cause}"),
                );
            }
            RuntimeEvent::Wedged { model, cause } => {
                let advice = self.note_failed_load(&model, LoadClass::Transient, &cause);
                tracing::error!(
                    model = %model,
                    "The runtime of {model} is wedged: {cause}; {} removes it, and it is {advice}",
                    self.name,
                );
                self.stopped_serving(
                    model.clone(),
                    &format!("the runtime of {model} is wedged: {cause}"),
                );
            }
        }
    }

    /// Processes or memory of a runtime remain. Its host goes on trying to remove them.
    pub(crate) fn runtime_stuck(&mut self, reason: &str) {
        let every = rigor_runtime::AGAIN_EVERY.as_secs();
        let reason = format!("{reason}; tried again every {every}s");
        self.quarantine_gpu(&reason);
        self.llm.stuck.get_or_insert(reason);
    }

    /// What could not be removed is gone: that was all that the GPU was quarantined for, or else
    /// what it is quarantined for remains.
    fn runtime_unstuck(&mut self, model: &str) {
        let stuck = self.llm.stuck.take();
        if stuck.is_some() && stuck == self.quarantine {
            self.quarantine = None;
            tracing::info!(
                "{} is no longer quarantined: nothing is left of the runtime of {model}",
                self.name
            );
        }
    }

    /// Nothing is served any more, and the host removes what is left.
    fn stopped_serving(&mut self, model: String, reason: &str) {
        self.lose_llm_attempts(reason);
        self.llm.phase = match std::mem::replace(&mut self.llm.phase, Phase::Cold) {
            Phase::Hot(_) => Phase::Ended { model, duty: None },
            Phase::Draining { duty, .. } => Phase::Ended {
                model,
                duty: Some(duty),
            },
            // An unload that was asked for meanwhile is answered when this is over.
            other @ (Phase::Cold
            | Phase::Lent(_)
            | Phase::Loading { .. }
            | Phase::Unloading { .. }
            | Phase::Ended { .. }) => other,
        };
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
}
