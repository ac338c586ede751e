//! What attempts have of the GPU's memory: seen, promised, and not enough.

use rigor_gpu::MeasuredBy;
use rigor_queue::record::{FailureKind, GpuMemory, Outcome};

use crate::agent::Agent;
use crate::attempts::Attempt;
use crate::device::{MODEL_LEASE, SAMPLE_FIRST};
use crate::sampler::Sample;

impl Agent {
    /// The most memory of the GPU that it was seen to use; 0 where it was looked at and surely had
    /// none.
    pub(crate) fn peak_of(&self, attempt: &Attempt) -> Option<u64> {
        let (device, lease) = (self.device.as_ref()?, attempt.lease.as_deref()?);
        let seen = device
            .ledger
            .measured(lease)
            .map(|measured| measured.peak_mb);
        let told = attempt.sampled && (attempt.attributed || !attempt.shared);
        seen.or(told.then_some(0))
    }

    /// What an attempt had of the GPU's memory that ran out of it.
    pub(crate) fn memory_had(&self, attempt: &Attempt, outcome: &Outcome) -> Option<GpuMemory> {
        let Outcome::Failed {
            kind: FailureKind::OutOfMemory,
            ..
        } = outcome
        else {
            return None;
        };
        let (device, lease) = (self.device.as_ref()?, attempt.lease.as_deref()?);
        let (_, leased_mb) = device.ledger.leases().find(|(id, _)| *id == lease)?;
        Some(GpuMemory {
            leased_mb,
            budget_mb: device.ledger.budget_mb(),
            raised: attempt.raised,
            next: None,
        })
    }

    /// A reading came in: whoever runs on the GPU was seen.
    pub(crate) fn note_sample(&mut self, sample: &Sample) {
        // A list without anybody is also what a driver gives that does not tell.
        let processes = &sample.reading.processes;
        let attributed =
            !processes.is_empty() && processes.iter().all(|process| process.used_mb.is_some());
        for attempt in &mut self.attempts.running {
            // Before its first process is there a worker is only about to start.
            let stem = attempt.running.name.attempt_stem();
            if attempt.lease.is_some()
                && (sample.owners.values().any(|owner| *owner == stem)
                    || attempt.running.started.elapsed() >= SAMPLE_FIRST)
            {
                attempt.sampled = true;
                attempt.attributed &= attributed;
            }
        }
    }

    /// The ledger has taken in a reading: how much one task or model can have may have changed.
    pub(crate) fn bound_needs(&mut self) {
        if let Some(device) = &self.device {
            let (budget_mb, most_mb) = (device.ledger.budget_mb(), device.ledger.most_mb());
            self.measured.bound(budget_mb, most_mb);
            self.llm.measured_mb.bound(budget_mb, most_mb);
        }
    }

    /// The ledger has taken in a reading: what runs and takes more than was promised to it raises
    /// the need of all of its name.
    pub(crate) fn note_overdrafts(&mut self) {
        let Some(device) = &self.device else { return };
        let leased = device.ledger.leases().find(|(id, _)| *id == MODEL_LEASE);
        if let (Some(served), Some((_, Some(promised))), Some(peak)) = (
            self.llm.served(),
            leased,
            device.ledger.measured(MODEL_LEASE),
        ) && peak.by == MeasuredBy::Process
            && peak.peak_mb > promised
        {
            // Its runtime took more with its first long requests than with its load, and so it did
            // on each GPU that the model is on.
            let gpus = 1 + served.lenders.len() as u64;
            let (model, whole_mb) = (served.model.clone(), peak.peak_mb * gpus);
            self.llm.measured_mb.insert(model, whole_mb);
        }
        for attempt in &self.attempts.running {
            let Some(lease) = attempt.lease.as_deref() else {
                continue;
            };
            let promised = device.ledger.leases().find(|(id, _)| *id == lease);
            let peak = device.ledger.measured(lease).map(|it| it.peak_mb);
            if let (Some((_, Some(promised))), Some(peak)) = (promised, peak)
                && peak > promised
            {
                self.measured
                    .takes(&attempt.running.spec.measured_as(), peak);
            }
        }
    }

    /// Leases have changed: whoever has company now cannot be measured by the whole GPU any more.
    pub(crate) fn note_sharing(&mut self) {
        let leases = self.device.as_ref().map(|it| it.ledger.leases().count());
        if leases.is_some_and(|count| count > 1) {
            for attempt in &mut self.attempts.running {
                attempt.shared = true;
            }
        }
    }
}

/// `it had 1000MB of the 4915MB for tasks`.
pub(crate) fn memory_words(had: GpuMemory) -> String {
    match had.leased_mb {
        Some(mb) => format!("it had {mb}MB of the {}MB for tasks", had.budget_mb),
        None => format!("it had the GPU alone, {}MB for tasks", had.budget_mb),
    }
}
