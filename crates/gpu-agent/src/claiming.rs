//! The claim loop: what is queued, what may be admitted, lock, recheck, rename, start.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rigor_policy::admission::{self, AgentState, LlmState, Needs, Running, Slots, VramNeed};
use rigor_queue::QueueError;
use rigor_queue::claim::{self, Held};
use rigor_queue::heartbeat::{Refusal, Verdict};
use rigor_queue::name::FileName;
use rigor_queue::records;
use rigor_queue::rig::Place;
use rigor_queue::task::{Class, Work};

use crate::agent::Agent;
use crate::judged::Judged;
use crate::model::model_need;
use crate::queues::{Knowledge, Listed};

/// How soon a claim is on the disk where durability is `default`.
const CLAIM_DURABLE_WITHIN: Duration = Duration::from_secs(1);

/// What came of one round of the loop.
enum Round {
    /// Something was claimed, or a candidate fell away: look again.
    Again,
    /// Nothing can be claimed now.
    Nothing,
}

/// Claims that were tried and not got, in one run of the loop.
#[derive(Debug, Default)]
struct Tried {
    lost: usize,
    /// The classes of those.
    classes: BTreeSet<Class>,
    claimed: usize,
}

impl Tried {
    fn lose(&mut self, class: Class) {
        self.lost += 1;
        self.classes.insert(class);
    }
}

impl Agent {
    /// Claims until nothing more is admitted. Every round takes a file from the index, puts one
    /// off, or is the last, so it ends.
    pub(crate) fn claim_all(&mut self) {
        let mut tried = Tried::default();
        loop {
            // After a failure nothing is claimed for a while, and not before results that could
            // not be written are: there would only be more of them.
            if self.refusing().is_some() {
                break;
            }
            match self.claim_next(&mut tried) {
                Ok(Round::Again) => {}
                Ok(Round::Nothing) => break,
                Err(error) => self.in_trouble(&error.to_string()),
            }
        }
        self.say_nothing_claimed(&tried);
    }

    fn claim_next(&mut self, tried: &mut Tried) -> Result<Round, QueueError> {
        let now = Instant::now();
        let listed = self.list_candidates(now)?;
        let (candidates, keys) = listed
            .into_iter()
            .map(|listed| (listed.candidate, listed.key))
            .unzip();
        let judged = Judged::of(self.admission_state(now), candidates, keys);
        self.queues
            .note_refusals(&judged.keys, &judged.decision.refusals, now);
        let chosen = judged.decision.admit.and_then(|at| {
            let needs = judged.candidates[at].needs.clone();
            Some((judged.keys[at]?, needs))
        });
        self.judged = Some(judged);
        let Some(((class, name), needs)) = chosen else {
            return Ok(Round::Nothing);
        };
        self.try_claim(class, name, &needs, tried)?;
        Ok(Round::Again)
    }

    /// Reads what needs follow from, where that has changed.
    pub(crate) fn refresh_needs(&mut self) {
        if self.measured.refresh() {
            self.llm.measured_mb.gathered(self.measured.gathered());
        }
        self.llm.measured_mb.refresh(&self.config, Instant::now());
    }

    fn list_candidates(&mut self, now: Instant) -> Result<Vec<Listed>, QueueError> {
        let config = &self.config;
        let loads = &self.llm.measured_mb;
        let model_need = |model: &str| model_need(config, loads, model);
        let with = Knowledge {
            agent: &self.name,
            measured: &self.measured,
            model_need: &model_need,
            foreign_model_mb: self.foreign_model_mb(),
        };
        self.queues.candidates(&self.rig, now, &with)
    }

    fn try_claim(
        &mut self,
        class: Class,
        name: FileName,
        needs: &Needs,
        tried: &mut Tried,
    ) -> Result<(), QueueError> {
        let short = name.id.short();
        tracing::debug!(task = %name.id, "Attempting claim: {short}");
        let held = match claim::candidate(&self.rig, class, &name)? {
            claim::Candidate::Ready(held) => held,
            claim::Candidate::LostRace => {
                tracing::debug!(task = %name.id, "Lost race: {short} (claimed by another worker)");
                self.queues.index(class).remove(&name);
                tried.lose(class);
                return Ok(());
            }
            claim::Candidate::LockBusy => {
                tracing::debug!(task = %name.id, "Lock busy: {short} (another worker has it)");
                self.queues.index(class).defer(&name, Instant::now());
                tried.lose(class);
                return Ok(());
            }
            claim::Candidate::Quarantined { reason } => {
                tracing::warn!(task = %name.id, "Quarantined task file {name}: {reason}");
                self.queues.index(class).remove(&name);
                return Ok(());
            }
        };
        // The decision was made on the shape in the name: the content has to be of that shape, or a
        // record says what it needs instead. One that cannot be read was read for the decision.
        if let Err(QueueError::Untrusted { why: reason, .. }) =
            records::raised_need(&self.rig, &held.spec, &name)
        {
            tracing::warn!(task = %name.id, "Quarantined task file {name}: {reason}");
            self.queues.index(class).remove(&name);
            return held.quarantine(&self.rig, &reason);
        }
        let lease = match self.lease_memory(&held, needs) {
            Ok(lease) => lease,
            Err(short_of) => {
                // The ledger knows of a reading that the decision did not; the next one will.
                tracing::debug!(task = %name.id, "Not claimed: {short}: {short_of}");
                self.queues.index(class).defer(&name, Instant::now());
                return Ok(());
            }
        };
        let at_most_once = held.spec.retries == 0 && class != Class::Meta;
        let durable = self.durability.syncs()
            && (self.durability == rigor_queue::submit::Durability::Strict || at_most_once);
        let claimed = held.claim(&self.rig, &self.name, durable);
        let claimed = match claimed {
            Ok(claimed) => claimed,
            Err(error) => {
                self.give_back(lease.as_deref());
                return self.claim_refused(class, &name, error);
            }
        };
        self.queues.index(class).remove(&name);
        let Some(held) = claimed else {
            self.give_back(lease.as_deref());
            tracing::debug!(task = %name.id, "Lost race: {short} (claimed by another worker)");
            tried.lose(class);
            return Ok(());
        };
        if !durable && self.durability.syncs() && self.claims_sync_at.is_none() {
            self.claims_sync_at = Some(Instant::now() + CLAIM_DURABLE_WITHIN);
        }
        rigor_queue::crash_point!("claimed");
        tried.claimed += 1;
        self.trouble_over();
        self.claimed(held, needs, lease);
        Ok(())
    }

    /// A file whose name is taken in `processing/` is a second copy of a task: to quarantine.
    fn claim_refused(
        &mut self,
        class: Class,
        name: &FileName,
        error: QueueError,
    ) -> Result<(), QueueError> {
        match error {
            QueueError::Untrusted { why, .. } => {
                tracing::warn!(task = %name.id, "Quarantined task file {name}: {why}");
                self.queues.index(class).remove(name);
                claim::quarantine(&self.rig, &self.rig.path(Place::Queue(class), name), &why)
            }
            other => Err(other),
        }
    }

    /// Promises the memory before the claim, so that no claim has to be given back for want of it.
    fn lease_memory(
        &mut self,
        held: &Held,
        needs: &Needs,
    ) -> Result<Option<String>, rigor_gpu::Short> {
        let (id, vram) = match needs {
            Needs::Script { vram, .. } => (held.name.attempt_stem(), *vram),
            Needs::Load { vram, .. } | Needs::Lend { vram, .. } => {
                (crate::device::MODEL_LEASE.to_owned(), *vram)
            }
            Needs::Contended
            | Needs::Elsewhere { .. }
            | Needs::Cpu { .. }
            | Needs::Llm { .. }
            | Needs::Unload { .. } => return Ok(None),
        };
        // What is loaded already, or kept for the load, has its memory.
        if id == crate::device::MODEL_LEASE && (self.llm.served().is_some() || self.llm.is_lent()) {
            return Ok(None);
        }
        let Some(device) = &mut self.device else {
            return Ok(None);
        };
        let mb = match vram {
            VramNeed::Mb(mb) => Some(mb),
            VramNeed::Alone => None,
        };
        device.ledger.lease(&id, rigor_gpu::Need { mb })?;
        self.note_sharing();
        Ok(Some(id))
    }

    fn give_back(&mut self, lease: Option<&str>) {
        if let (Some(device), Some(lease)) = (&mut self.device, lease) {
            device.ledger.take_back(lease);
            device.request();
        }
    }

    fn claimed(&mut self, held: Held, needs: &Needs, lease: Option<String>) {
        let short = held.name.id.short();
        let class = held.spec.class;
        let what = match &held.spec.work {
            Work::LoadLlm { .. } => "load_llm",
            Work::UnloadLlm { .. } => "unload_llm",
            Work::LendGpu { .. } => "lend_gpu",
            Work::Command { .. } | Work::Prompt(_) | Work::Plan(_) => &held.spec.name,
        };
        let memory = match (needs, &self.device) {
            (
                Needs::Script {
                    vram: VramNeed::Mb(mb),
                    ..
                },
                Some(device),
            ) => {
                format!(" [{mb}MB, {}MB remaining]", device.ledger.available_mb())
            }
            (
                Needs::Script {
                    vram: VramNeed::Alone,
                    ..
                },
                _,
            ) => " [alone on the GPU until measured]".to_owned(),
            _ => String::new(),
        };
        tracing::info!(
            task = %held.name.id,
            attempt = held.name.attempt,
            batch = %held.spec.batch,
            agent = %self.name,
            "Claimed {class} task: {short} ({what}){memory}"
        );
        self.worked(class);
        match &held.spec.work {
            Work::LoadLlm { model, lenders, .. } => {
                let (model, lenders) = (model.clone(), lenders.clone());
                self.start_load(held, &model, lenders);
            }
            Work::LendGpu { to, model, .. } => {
                let (to, model) = (to.clone(), model.clone());
                self.lend(held, model, to);
            }
            Work::UnloadLlm { .. } => self.start_unload(held),
            Work::Command { .. } | Work::Prompt(_) | Work::Plan(_) => {
                self.start_attempt(held, lease);
            }
        }
    }

    /// All that admission looks at.
    pub(crate) fn admission_state(&self, now: Instant) -> AgentState {
        let (health, ailment) = self.health();
        let llm = self.llm.admission(now, self.attempts.of_class(Class::Llm));
        let gpu = self.device.as_ref().map(|device| {
            let scripts = self.attempts.of_class(Class::Script);
            admission::GpuState {
                budget_mb: device.ledger.budget_mb(),
                available_mb: device.ledger.available_mb(),
                leased_mb: device.ledger.leases().map(|(_, mb)| mb.unwrap_or(0)).sum(),
                scripts,
                foreign: device.foreign.clone(),
                script_slots: self.config.limits.script_slots,
                alone: device
                    .ledger
                    .leases()
                    .find(|(_, mb)| mb.is_none())
                    .map(|(id, _)| id.chars().take(8).collect()),
                settling: device
                    .ledger
                    .settling()
                    .map(|id| id.chars().take(8).collect()),
                near_limit: device.near.map(|near| near.to_string()),
            }
        });
        AgentState {
            name: self.name.clone(),
            health,
            ailment,
            default_model: self.default_model.clone(),
            llm,
            failed_loads: self.llm.failed_loads(now),
            cpu: Slots {
                used: self.attempts.cpus(),
                total: self.cpu_slots,
            },
            gpu,
            running: self
                .attempts
                .iter()
                .map(|attempt| Running {
                    class: attempt.class(),
                    label: attempt.name().id.short(),
                    for_s: (now - attempt.started()).as_secs(),
                })
                .collect(),
        }
    }

    fn say_nothing_claimed(&mut self, tried: &Tried) {
        if tried.claimed > 0 {
            self.lines.reset();
        }
        let counts = self.queues.counts();
        let queue = crate::lines::queue_words(&counts);
        let now = Instant::now();
        if tried.lost > 0 && tried.claimed == 0 {
            let classes: Vec<&str> = tried.classes.iter().map(|class| class.as_str()).collect();
            let text = format!(
                "Claim attempt: {} tasks available in [{}], all claimed by others",
                tried.lost,
                classes.join(", ")
            );
            return self.lines.nothing(Refusal::LostRace, &text, now);
        }
        let empty = Verdict {
            code: Refusal::QueueEmpty,
            detail: String::new(),
        };
        let verdict = self.nothing_because().unwrap_or(empty);
        let code = verdict.code;
        let text = match code {
            Refusal::QueueEmpty => "Queue empty".to_owned(),
            Refusal::NoSuitableClass
            | Refusal::ModelNotLoaded
            | Refusal::WrongModel
            | Refusal::RuntimeFailing => {
                let state = self.judged.as_ref().map(|judged| &judged.state);
                let preferred = state.map_or(&[][..], admission::preferred);
                let preferred: Vec<&str> = preferred.iter().map(|it| it.as_str()).collect();
                let loaded = matches!(
                    self.llm.admission(now, 0),
                    LlmState::Hot { .. } | LlmState::Draining { .. }
                );
                format!(
                    "No suitable tasks - Queue: [{queue}], Preferred: [{}], Model loaded: {loaded}",
                    preferred.join(", ")
                )
            }
            Refusal::HoldingModel
            | Refusal::VramShort
            | Refusal::SlotsFull
            | Refusal::CpuSlotsFull
            | Refusal::Thermal
            | Refusal::Power
            | Refusal::Paused
            | Refusal::Draining
            | Refusal::Backoff
            | Refusal::LostRace
            | Refusal::GpuLost => {
                format!(
                    "Not claiming: {} {} - Queue: [{queue}]",
                    code.as_str(),
                    verdict.detail
                )
            }
        };
        self.lines.nothing(code, &text, now);
    }
}
