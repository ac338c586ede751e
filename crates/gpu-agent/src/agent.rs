//! The dispatcher: one loop, events in, claims and starts out.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::bail;
use jiff::Timestamp;
use rigor_config::Config;
use rigor_exec::Containment;
use rigor_gpu::Condition;
use rigor_queue::heartbeat::{Health, Refusal, Verdict};
use rigor_queue::presence::ComponentLock;
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::Durability;
use rigor_queue::task::Class;
use rigor_queue::watch::{Wake, Watcher};
use rigor_telemetry::{Level, LevelHandle};

use crate::activity::Signs;
use crate::attempts::Attempts;
use crate::beat::Beat;
use crate::committer::Committer;
use crate::device::{Device, Opening, SAMPLE_EVERY, SAMPLE_FIRST};
use crate::event::Event;
use crate::judged::Judged;
use crate::lines::Lines;
use crate::llm::Llm;
use crate::measured::Measured;
use crate::queues::{CLASSES, Queues};
use crate::reasons::Journal;
use crate::sampler::{Opened, Sample};
use crate::side::Side;
use crate::stall;
use crate::trouble::Trouble;

/// Events that are taken in before anything is decided from them: a burst of files is one look.
const EVENTS_AT_ONCE: usize = 10_000;
/// The directories are read again this often, should an event have been lost.
const RESCAN_EVERY: Duration = Duration::from_secs(60);
/// The shortest time between two readings of the directories.
const RESCAN_APART: Duration = Duration::from_millis(200);
/// A reading of a long queue takes long: at most one part in so many of the time goes into it.
const RESCAN_SHARE: u32 = 20;
/// While watching fails the directories are read this often.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// With nothing else to do the loop looks around this often.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// How the agent is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It goes on.
    No,
    /// When nothing runs any more.
    Drained,
    /// Now; what runs is killed and goes back to the queue.
    AtOnce,
}

/// Tasks done, kept where a crash can still say them.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    completed: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    pub(crate) fn add_completed(&self) {
        self.completed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn completed(&self) -> u64 {
        self.completed.load(Ordering::Relaxed)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// Everything an agent knows and holds.
pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) rig: Rig,
    pub(crate) config: Config,
    pub(crate) durability: Durability,
    pub(crate) containment: Containment,
    pub(crate) worker: PathBuf,
    pub(crate) default_model: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) cpu_slots: u32,
    pub(crate) counts: Arc<Counts>,
    pub(crate) levels: LevelHandle,
    pub(crate) own_level: Level,
    pub(crate) level_until: Option<Timestamp>,

    pub(crate) events: Receiver<Event>,
    /// Reports while it lives.
    pub(crate) watcher: Option<Watcher>,
    pub(crate) committer: Committer,
    pub(crate) side: Side,

    pub(crate) queues: Queues,
    pub(crate) attempts: Attempts,
    pub(crate) device: Option<Device>,
    /// In place of `device` until that can be opened.
    pub(crate) opening: Option<Opening>,
    pub(crate) llm: Llm,
    pub(crate) measured: Measured,
    pub(crate) beat: Beat,
    pub(crate) lines: Lines,

    /// Why what is queued is refused; none before the first look at it.
    pub(crate) judged: Option<Judged>,
    pub(crate) journal: Journal,
    pub(crate) signs: Signs,
    pub(crate) draining: Option<String>,
    /// An operator wants it empty; unlike `draining` it does not end, and can be undone.
    pub(crate) drained: Option<String>,
    pub(crate) paused: Option<String>,
    pub(crate) quarantine: Option<String>,
    pub(crate) trouble: Option<Trouble>,
    pub(crate) stop: Stop,
    /// The last claim or end of an attempt, of the GPU's classes where there is a GPU: idleness
    /// counts from here.
    pub(crate) last_work: Instant,
    pub(crate) last_work_at: Timestamp,
    /// Since when tasks are queued and nothing is done.
    pub(crate) waiting_since: Option<Instant>,
    pub(crate) claims_sync_at: Option<Instant>,
    pub(crate) signals_changed: bool,
    pub(crate) rescan_at: Option<Instant>,
    pub(crate) rescanned: Instant,
    pub(crate) rescan_took: Duration,
    /// Watching failed, so directories are read now and then.
    pub(crate) polling: bool,
    /// Free only when everything above has ended.
    pub(crate) lock: ComponentLock,
}

impl Agent {
    /// Runs until it is told to stop and nothing runs any more.
    pub(crate) fn run(&mut self) -> anyhow::Result<()> {
        self.rescan();
        self.take_signals();
        loop {
            let since = stall::clock();
            self.act();
            self.after_look(since);
            match self.stop {
                Stop::AtOnce => return Ok(()),
                Stop::Drained if self.is_drained() => return Ok(()),
                Stop::Drained | Stop::No => {}
            }
            let wait = self.deadline().saturating_duration_since(Instant::now());
            let since = stall::clock();
            let event = self.events.recv_timeout(wait);
            self.after_wait(since, wait);
            match event {
                Ok(event) => {
                    self.take(event)?;
                    for _ in 1..EVENTS_AT_ONCE {
                        let Ok(event) = self.events.try_recv() else {
                            break;
                        };
                        self.take(event)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("every source of events has ended")
                }
            }
        }
    }

    /// Everything that follows from what is known now.
    fn act(&mut self) {
        let now = Instant::now();
        self.reap();
        if self.beat_due(now) <= now {
            self.look_at_dirs();
        }
        if self.rescan_at.is_some_and(|at| at <= now) {
            self.rescan();
        }
        if self.signals_changed
            || self
                .level_until
                .is_some_and(|until| until <= Timestamp::now())
        {
            self.take_signals();
        }
        if self.attempts.has_postponed()
            && self
                .trouble
                .as_ref()
                .is_none_or(|trouble| trouble.until <= now)
        {
            self.retry_postponed();
        }
        self.unload_when_drained();
        self.watch_runtime(Instant::now());
        if self.stop != Stop::AtOnce {
            self.refresh_needs();
            self.claim_all();
        }
        let now = Instant::now();
        if self.claims_sync_at.is_some_and(|at| at <= now) {
            self.claims_sync_at = None;
            self.committer.sync_claims();
        }
        self.sample_if_due(now);
        self.say_idle(now);
        self.note_reason();
        self.beat_if_due(now);
    }

    fn take(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Wake(wake) => self.woken(wake),
            // Found by the next look at all of them.
            Event::Child => {}
            Event::Terminate(signal) => {
                if self.stop == Stop::No {
                    self.begin_drain(&format!("{signal} received"));
                } else {
                    tracing::info!("{signal} received again: stopping at once");
                    self.stop = Stop::AtOnce;
                }
            }
            Event::Opened(result) => self.opened(result),
            Event::Reading(result) => self.read(result),
            Event::Activity(signs) => self.signs_read(signs),
            Event::Loaded(result) => self.loaded(result),
            Event::Unloaded(result) => self.unloaded(result),
            Event::Runtime(event) => self.runtime_event(event),
            Event::Finished(finished) => self.finished(finished),
            Event::CommitFailed { jobs, error } => self.commit_failed(jobs, &error),
            Event::Gone(thread) => bail!("the thread {thread} panicked"),
        }
        Ok(())
    }

    fn woken(&mut self, wake: Wake) {
        let (path, added) = match wake {
            Wake::Added(path) => (path, true),
            Wake::Removed(path) => (path, false),
            Wake::Rescan => return self.rescan_soon(Duration::ZERO),
            Wake::Failed(why) => {
                if !self.polling {
                    tracing::warn!(
                        "Watching failed: {why}; directories are read every second instead"
                    );
                }
                self.polling = true;
                return self.rescan_soon(POLL_EVERY);
            }
        };
        let Some(dir) = path.parent() else { return };
        if dir == self.rig.signals_dir(&self.name) {
            self.signals_changed = true;
            return;
        }
        let class = CLASSES
            .into_iter()
            .find(|class| dir == self.rig.dir(Place::Queue(*class)));
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.parse().ok());
        if let (Some(class), Some(name)) = (class, name) {
            let index = self.queues.index(class);
            if added {
                index.insert(name)
            } else {
                index.remove(&name)
            }
        }
    }

    pub(crate) fn rescan_soon(&mut self, after: Duration) {
        let apart = RESCAN_APART.max(self.rescan_took * RESCAN_SHARE);
        let at = (Instant::now() + after).max(self.rescanned + apart);
        self.rescan_at = Some(self.rescan_at.map_or(at, |before| before.min(at)));
    }

    /// Reads the directories anew: the truth, whatever events said.
    pub(crate) fn rescan(&mut self) {
        let began = Instant::now();
        self.signals_changed = true;
        if let Err(error) = self.queues.rescan(&self.rig) {
            self.in_trouble(&error.to_string());
        }
        self.rescanned = Instant::now();
        self.rescan_took = self.rescanned - began;
        let every = if self.polling {
            POLL_EVERY
        } else {
            RESCAN_EVERY
        };
        self.rescan_at = Some(self.rescanned + every.max(self.rescan_took * RESCAN_SHARE));
    }

    fn opened(&mut self, result: Result<Box<Opened>, rigor_gpu::GpuError>) {
        match (self.opening.take(), result) {
            (Some(mut opening), Err(error)) => {
                opening.failed(&self.name, &error, Instant::now());
                self.opening = Some(opening);
            }
            (Some(opening), Ok(opened)) => {
                let device = opening.opened(&self.name, *opened);
                self.device = Some(device);
                self.bound_needs();
            }
            // Asked by an opening alone.
            (None, _) => {}
        }
    }

    fn read(&mut self, result: Result<Sample, rigor_gpu::GpuError>) {
        if let Ok(sample) = &result {
            self.note_sample(sample);
        }
        let Some(device) = &mut self.device else {
            return;
        };
        let changed = device.taken(result, Instant::now());
        self.note_overdrafts();
        self.bound_needs();
        let Some(device) = &self.device else { return };
        if !changed {
            return;
        }
        match device.condition.clone() {
            Condition::Ok => tracing::info!("GPU is within its limits again"),
            condition @ (Condition::Thermal { .. } | Condition::Power { .. }) => {
                tracing::warn!(
                    "GPU is over a limit: {condition}; only meta and cpu tasks are claimed"
                );
            }
            Condition::Lost { cause } => {
                tracing::error!("GPU of {} is lost and quarantined: {cause}", self.name);
                self.abandon_gpu_attempts(&format!("the GPU of {} is lost: {cause}", self.name));
                self.abandon_model();
            }
        }
    }

    fn sample_if_due(&mut self, now: Instant) {
        if let Some(opening) = &mut self.opening {
            opening.retry(now);
        }
        let running = self.attempts.of_class(Class::Script) > 0 || self.llm.served().is_some();
        // Memory of a task that has ended may take the driver a while to give back.
        let judged = self.judged.as_ref();
        let short = judged.is_some_and(|judged| judged.refuses(Refusal::VramShort));
        let every = if running || short || self.llm.is_busy() {
            SAMPLE_EVERY
        } else {
            // A heartbeat should not tell of a reading from long ago.
            self.config.timing.heartbeat_every
        };
        let Some(device) = &mut self.device else {
            return;
        };
        if device.sample_at.is_some_and(|at| at <= now) {
            device.request();
        }
        device.sampler.hung_for("reading the GPU");
        let every = match device.ledger.settling() {
            Some(_) => SAMPLE_FIRST,
            None => every,
        };
        device.request_at(now + every);
    }

    /// When something is due although nothing happens.
    fn deadline(&self) -> Instant {
        let now = Instant::now();
        let idle_at = self
            .waiting_since
            .map(|since| since + self.config.timing.idle_warn);
        let due = [
            Some(now + LOOK_EVERY),
            Some(self.beat_due(now)),
            self.device.as_ref().and_then(|device| device.sample_at),
            self.device
                .as_ref()
                .and_then(|device| device.sampler.overdue_at())
                .filter(|at| *at > now),
            self.opening.as_ref().and_then(Opening::due),
            // What is due already was looked at just now, and waits for something else.
            // In trouble nothing is looked at until it is over.
            self.queues.due(now).filter(|_| self.trouble.is_none()),
            self.queues.reserve_due().filter(|at| *at > now),
            self.trouble
                .as_ref()
                .map(|trouble| trouble.until)
                .filter(|at| *at > now),
            self.llm.retry_due(now),
            self.rescan_at,
            self.claims_sync_at,
            idle_at.filter(|at| *at > now),
        ];
        due.into_iter().flatten().min().unwrap_or(now)
    }

    /// The agent's health and, unless it is healthy, the verdict that follows from it.
    pub(crate) fn health(&self) -> (Health, Option<Verdict>) {
        let because = |code, detail: &str| {
            Some(Verdict {
                code,
                detail: detail.to_owned(),
            })
        };
        if let Some(reason) = self.draining.as_ref().or(self.drained.as_ref()) {
            return (Health::Draining, because(Refusal::Draining, reason));
        }
        if let Some(reason) = &self.quarantine {
            return (Health::Quarantined, because(Refusal::GpuLost, reason));
        }
        if let Some(trouble) = self.refusing() {
            return (
                Health::Quarantined,
                because(Refusal::Backoff, &trouble.reason),
            );
        }
        if let Some(opening) = &self.opening {
            return (Health::Quarantined, Some(opening.ailment()));
        }
        let ailment = self.device.as_ref().and_then(Device::ailment);
        let lost = self.device.as_ref().is_some_and(Device::is_lost);
        match (ailment, &self.paused) {
            (Some(ailment), _) if lost => (Health::Quarantined, Some(ailment)),
            (_, Some(reason)) => (Health::Paused, because(Refusal::Paused, reason)),
            (Some(ailment), None) => (Health::Constrained, Some(ailment)),
            (None, None) => (Health::Healthy, None),
        }
    }

    /// Results wait to be written or moved.
    pub(crate) fn has_unfinished(&self) -> bool {
        self.attempts.has_postponed() || self.committer.pending > 0
    }

    /// The GPU cannot be trusted until somebody has looked at it.
    pub(crate) fn quarantine_gpu(&mut self, reason: &str) {
        if self.quarantine.is_none() {
            tracing::error!("{} is quarantined: {reason}", self.name);
            self.quarantine = Some(reason.to_owned());
        }
    }

    pub(crate) fn begin_drain(&mut self, reason: &str) {
        if self.stop != Stop::No {
            return;
        }
        self.stop = Stop::Drained;
        self.draining = Some(reason.to_owned());
        let running = self.attempts.len();
        tracing::info!("Draining: {reason}; {running} running tasks are finished first");
    }

    fn is_drained(&self) -> bool {
        self.attempts.len() == 0 && !self.has_unfinished()
    }
}
