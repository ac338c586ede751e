//! The agent's GPU as the dispatcher knows it: the ledger of its memory, and its condition.
//!
//! An agent whose GPU cannot be opened lives ([`Opening`]), says why, and tries again: the driver
//! may be put in order, or the GPU come late at boot. A driver that hangs or fails later makes what
//! is known of the GPU old: nothing is decided from it, but cpu work goes on.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rigor_gpu::{
    Condition, GpuError, GpuInfo, Ledger, Limits, Measured, Near, Reading, condition, holders, near,
};
use rigor_queue::heartbeat::{GpuBeat, Refusal, Verdict};

use crate::sampler::{Opened, Sample, Sampler};

/// Between two readings while anything runs on the GPU.
pub(crate) const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// After a script started: early, so that short ones are seen too. And while the memory of one that
/// has ended is waited for.
pub(crate) const SAMPLE_FIRST: Duration = Duration::from_millis(150);
/// A failure to read that lasts this long is warned about.
const FAILING_WARN: Duration = Duration::from_secs(60);
/// Between the first two tries to open NVML; it doubles.
const OPEN_AGAIN: Duration = Duration::from_secs(2);
/// The longest time between two tries to open NVML.
const OPEN_AGAIN_MOST: Duration = Duration::from_secs(60);
/// What is said of a lost GPU that can be read.
const ANSWERS_AGAIN: &str =
    ", and answers again: start its agent anew to use it (`rigor down`, then `rigor up`)";
/// The ledger's name for the LLM runtime's lease.
pub(crate) const MODEL_LEASE: &str = "model";

/// A GPU that could not be opened yet.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) sampler: Sampler,
    limits: Limits,
    /// Why not, with the remedy; none: NVML has not answered yet.
    error: Option<String>,
    since: Instant,
    wait: Duration,
    pub(crate) try_at: Option<Instant>,
}

impl Opening {
    /// Asks for the first time.
    pub(crate) fn begin(mut sampler: Sampler, limits: Limits) -> Opening {
        sampler.request();
        Opening {
            sampler,
            limits,
            error: None,
            since: Instant::now(),
            wait: OPEN_AGAIN,
            try_at: None,
        }
    }

    /// It was in vain, and is tried again in a while.
    pub(crate) fn failed(&mut self, agent: &str, error: &GpuError, now: Instant) {
        self.sampler.answered();
        let text = error.to_string();
        if self.error.as_ref() != Some(&text) {
            tracing::error!("{agent} is quarantined: {text}; tried again until it works");
        }
        self.error = Some(text);
        self.try_at = Some(now + self.wait);
        self.wait = (self.wait * 2).min(OPEN_AGAIN_MOST);
    }

    /// It is there.
    pub(crate) fn opened(mut self, agent: &str, opened: Opened) -> Device {
        self.sampler.answered();
        if self.error.is_some() {
            let waited = self.since.elapsed().as_secs();
            tracing::info!("The GPU of {agent} can be read, after {waited}s");
        }
        Device::new(self.sampler, self.limits, opened)
    }

    /// Asks again if that is due.
    pub(crate) fn retry(&mut self, now: Instant) {
        if self.try_at.is_some_and(|at| at <= now) && self.sampler.request() {
            self.try_at = None;
        }
        self.sampler.hung_for("opening the GPU");
    }

    /// When something is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.try_at.or(self.sampler.overdue_at())
    }

    /// Why there is no GPU.
    pub(crate) fn ailment(&self) -> Verdict {
        let detail = match (self.sampler.hangs(), &self.error) {
            (Some(waited), _) => hung(waited),
            (None, Some(error)) => error.clone(),
            (None, None) => "the GPU is being opened".to_owned(),
        };
        Verdict {
            code: Refusal::GpuLost,
            detail,
        }
    }
}

/// The GPU as the dispatcher knows it.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) info: GpuInfo,
    pub(crate) ledger: Ledger,
    pub(crate) limits: Limits,
    pub(crate) condition: Condition,
    /// Close to a limit: half of the slots.
    pub(crate) near: Option<Near>,
    pub(crate) last: Reading,
    /// What LLM runtimes of the rig had of it then, MiB.
    pub(crate) model_mb: u64,
    /// Who else holds most of its memory, in words.
    pub(crate) foreign: Option<String>,
    /// When the next reading is due, where one is.
    pub(crate) sample_at: Option<Instant>,
    pub(crate) sampler: Sampler,
    failing: Option<Failing>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    last: String,
    said: HashSet<String>,
    warned: bool,
}

impl Device {
    fn new(sampler: Sampler, limits: Limits, opened: Opened) -> Device {
        let Opened { info, sample } = opened;
        let mut device = Device {
            ledger: Ledger::new(limits.budget_mb(sample.reading.total_mb)),
            info,
            limits,
            condition: Condition::Ok,
            near: None,
            last: Reading::default(),
            model_mb: 0,
            foreign: None,
            sample_at: None,
            sampler,
            failing: None,
        };
        device.observe(sample);
        device
    }

    /// Asks for a reading now, unless one is on its way.
    pub(crate) fn request(&mut self) {
        self.sample_at = None;
        if self.sampler.request() {
            self.ledger.reading_asked();
        }
    }

    /// Asks for a reading in a while.
    pub(crate) fn request_at(&mut self, at: Instant) {
        self.sample_at = Some(self.sample_at.map_or(at, |before| before.min(at)));
    }

    /// Takes in a reading. `true`: the condition has changed.
    pub(crate) fn taken(&mut self, result: Result<Sample, GpuError>, now: Instant) -> bool {
        self.sampler.answered();
        let before = self.condition.clone();
        match result {
            Ok(sample) => {
                if self.failing.take().is_some_and(|failing| failing.warned) {
                    tracing::info!("The GPU can be read again");
                }
                self.answers_again();
                self.observe(sample);
            }
            Err(error) => {
                self.ledger.lost_sight();
                if let Some(lost) = Condition::from_error(&error) {
                    self.condition = lost;
                }
                self.failed(&error, now);
            }
        }
        // A temperature that moves is no change; another condition is.
        std::mem::discriminant(&before) != std::mem::discriminant(&self.condition)
    }

    /// A lost GPU that is read once more may have been reset: what ran on it is gone, and whether it
    /// can be trusted is for its owner to say, who is told how.
    fn answers_again(&mut self) {
        if let Condition::Lost { cause } = &mut self.condition
            && !cause.contains(ANSWERS_AGAIN)
        {
            *cause += ANSWERS_AGAIN;
            tracing::warn!("The GPU was lost{ANSWERS_AGAIN}");
        }
    }

    fn observe(&mut self, sample: Sample) {
        let owners = &sample.owners;
        self.ledger
            .observe(&sample.reading, |pid| owners.get(&pid).map(String::as_str));
        let holders = holders(&sample.reading, |pid| {
            owners.contains_key(&pid) || sample.ended.contains(&pid)
        });
        self.foreign = holders.first().map(ToString::to_string);
        self.condition = condition(&self.condition, &sample.reading, &self.limits);
        let near = near(self.near, &sample.reading, &self.limits);
        match near {
            Some(near) if self.near.is_none() => {
                tracing::info!("Half of the slots are used: {near}");
            }
            None if self.near.is_some() => tracing::info!("All slots are used again"),
            Some(_) | None => {}
        }
        self.near = near;
        let of_model = |pid: &u32| owners.get(pid).is_some_and(|lease| lease == MODEL_LEASE);
        let models = sample.reading.processes.iter();
        self.model_mb = models
            .filter(|process| of_model(&process.pid))
            .filter_map(|process| process.used_mb)
            .sum();
        self.last = sample.reading;
    }

    fn failed(&mut self, error: &GpuError, now: Instant) {
        let failing = self.failing.get_or_insert_with(|| Failing {
            since: now,
            last: String::new(),
            said: HashSet::new(),
            warned: false,
        });
        let text = error.to_string();
        failing.last.clone_from(&text);
        if failing.said.insert(text.clone()) {
            tracing::debug!("GPU reading failed: {text}");
        }
        if !failing.warned && now - failing.since >= FAILING_WARN {
            failing.warned = true;
            tracing::warn!(
                "GPU readings have failed for {}s: {text}; no GPU work is claimed until one succeeds",
                FAILING_WARN.as_secs()
            );
        }
    }

    /// Ends a lease and gives the peak of its holder.
    pub(crate) fn release(&mut self, lease: &str) -> Option<Measured> {
        let peak = self.ledger.release(lease);
        // What it used counts as in use until a reading shows that it is not.
        self.request();
        peak
    }

    /// Why it takes no GPU work.
    pub(crate) fn ailment(&self) -> Option<Verdict> {
        let code = match &self.condition {
            Condition::Ok => return self.unread(),
            Condition::Thermal { .. } | Condition::Power { .. } if self.unread().is_some() => {
                return self.unread();
            }
            Condition::Thermal { .. } => Refusal::Thermal,
            Condition::Power { .. } => Refusal::Power,
            Condition::Lost { .. } => Refusal::GpuLost,
        };
        Some(Verdict {
            code,
            detail: self.condition.to_string(),
        })
    }

    /// It is gone for good: only another agent finds it again.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(self.condition, Condition::Lost { .. })
    }

    /// Why what was read last is no ground for a decision.
    fn unread(&self) -> Option<Verdict> {
        let detail = match (self.sampler.hangs(), &self.failing) {
            (Some(waited), _) => hung(waited),
            (None, Some(failing)) => {
                let for_s = failing.since.elapsed().as_secs();
                format!("it cannot be read for {for_s}s: {}", failing.last)
            }
            (None, None) => return None,
        };
        Some(Verdict {
            code: Refusal::GpuLost,
            detail,
        })
    }

    pub(crate) fn beat(&self) -> GpuBeat {
        GpuBeat {
            index: self.last.index,
            uuid: self.info.uuid.clone(),
            name: self.info.name.clone(),
            stand_in: self.info.stand_in,
            used_mb: self.last.used_mb,
            total_mb: self.last.total_mb,
            budget_mb: self.ledger.budget_mb(),
            available_mb: self.ledger.available_mb(),
            foreign: self.foreign.clone(),
            temperature_c: self.last.temperature_c,
            utilization: self.last.utilization,
            power_w: self.last.power_w,
        }
    }
}

fn hung(waited: Duration) -> String {
    format!(
        "NVML does not answer for {}s; see `dmesg` for `NVRM` and `Xid`, a reboot may be needed",
        waited.as_secs()
    )
}
