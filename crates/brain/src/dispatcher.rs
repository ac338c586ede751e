//! The loop: one closed set of events in, everything that follows from them done, then sleep
//! until the next event or the next thing that is due.

mod archived;
mod complaint;
mod log_level;
mod operator;
mod own_dirs;
mod wakes;

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Result;
use jiff::Timestamp;
use rigor_policy::span::count;
use rigor_queue::claim::{self, Held, Opened};
use rigor_queue::heartbeat::{Health, Heartbeat};
use rigor_queue::lane::{Lane, Move};
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::presence::{self, ComponentLock};
use rigor_queue::record::{FailureKind, Outcome};
use rigor_queue::records;
use rigor_queue::rig::{BRAIN, Place, RIG_BATCH};
use rigor_queue::task::{Class, Work};
use rigor_queue::watch::Wake;
use serde_json::json;

use crate::agents::Agents;
use crate::attempts::{Attempts, Taken};
use crate::batch::{Batch, NotOpened, record_of};
use crate::context::Context;
use crate::fit::Unfit;
use crate::graph::Ending;
use crate::journal::Entry;
use crate::monitor;
use crate::notify;
use crate::outlook::Teller;
use crate::place::Placer;
use crate::retention::{self, Retention};
use crate::stuck;

use complaint::Complaint;
use wakes::next_poll;

/// Placement is decided at most so often, however many events come.
const PLACE_EVERY: Duration = Duration::from_millis(200);
/// Lanes are compared with memory so often while batches are active, in case a wake-up was lost.
const RECONCILE_EVERY: Duration = Duration::from_secs(30);
/// Cancellations of tasks that were between two lanes are tried again so often.
const LATE_EVERY: Duration = Duration::from_millis(200);
/// What failed is tried again so often.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Files that a dead writer left unfinished are removed when they are this old.
const LITTER_AGE: Duration = Duration::from_secs(60);
/// Measurements are stored so often while they change.
const STORE_EVERY: Duration = Duration::from_secs(1);

/// All that can wake the brain.
#[derive(Debug)]
pub(crate) enum Event {
    /// A directory changed.
    Wake(Wake),
    /// The archive's thread has done something.
    Retention(retention::Done),
    /// A worker exited.
    ChildExited,
    /// Somebody wants the brain to end.
    Stop(&'static str),
}

/// The loop's state.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    brain: Context,
    batches: BTreeMap<String, Batch>,
    attempts: Attempts,
    retention: Retention,
    agents: Agents,
    placer: Placer,
    stuck: stuck::Watch,
    unfit: Unfit,
    teller: Teller,
    events: Receiver<Event>,
    started: Timestamp,
    beats: u64,
    stopping: bool,
    place_wanted: bool,
    signalled: bool,
    level: log_level::LogLevel,
    rescan: bool,
    complaints: BTreeMap<&'static str, Complaint>,
    unopened: Vec<FileName>,
    /// A directory of the rig is a link, and nothing is done: which one.
    linked: Option<String>,
    at_once: bool,
    next: Due,
}

/// When things are due.
#[derive(Debug)]
struct Due {
    agents: Instant,
    beat: Instant,
    monitor: Instant,
    place: Instant,
    reconcile: Instant,
    poll: Instant,
    late: Instant,
    store: Instant,
    sweep: Instant,
    dirs: Instant,
}

impl Dispatcher {
    /// Ready to run.
    pub(crate) fn new(
        brain: Context,
        attempts: Attempts,
        retention: Retention,
        events: Receiver<Event>,
        levels: rigor_telemetry::LevelHandle,
    ) -> Dispatcher {
        let now = Instant::now();
        Dispatcher {
            brain,
            batches: BTreeMap::new(),
            attempts,
            retention,
            agents: Agents::default(),
            placer: Placer::default(),
            stuck: stuck::Watch::default(),
            unfit: Unfit::default(),
            teller: Teller::default(),
            events,
            started: Timestamp::now(),
            beats: 0,
            stopping: false,
            place_wanted: true,
            signalled: true,
            level: log_level::LogLevel::new(levels),
            rescan: false,
            complaints: BTreeMap::new(),
            unopened: Vec::new(),
            linked: None,
            at_once: false,
            next: Due {
                agents: now,
                beat: now,
                monitor: now,
                place: now,
                reconcile: now,
                poll: now,
                late: now,
                store: now,
                sweep: now,
                dirs: now,
            },
        }
    }

    /// Runs until told to stop.
    pub(crate) fn run(mut self, lock: &ComponentLock) -> Result<()> {
        self.restore(lock)?;
        tracing::info!("Brain ready: {} active batches", self.batches.len());
        loop {
            let now = Instant::now();
            let due = self.step(now);
            if self.at_once || (self.stopping && self.attempts.running() == 0) {
                break;
            }
            let wait = due.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(wait) {
                Ok(event) => self.take_in(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    anyhow::bail!("the watcher and the signal thread have both ended");
                }
            }
            // Everything that is there already belongs to the same step.
            while let Ok(event) = self.events.try_recv() {
                self.take_in(event);
            }
        }
        if self.at_once {
            // As if the brain had died: what it runs is killed and queued again, uncharged.
            self.attempts.recover_own(&self.brain, lock)?;
        } else {
            self.retention.end();
            self.attempts.reap(&mut self.brain)?;
        }
        let (done, failed) = self.attempts.counts;
        tracing::info!(
            "Brain shutting down - completed {done}, failed {failed}; batches that stay active: {}",
            self.batches.len()
        );
        self.stopping = true;
        self.beat()
    }

    /// Takes everything from disk.
    fn restore(&mut self, lock: &ComponentLock) -> Result<()> {
        let rig = self.brain.rig.clone();
        for class in Class::ALL {
            self.brain.watch(&rig.dir(Place::Queue(class)));
        }
        self.brain.watch(&rig.dir(Place::Quarantine));
        self.brain.watch(&rig.signals_dir(BRAIN));
        self.brain.watch(&rig.dir(Place::Processing(BRAIN)));
        self.attempts.recover_own(&self.brain, lock)?;
        self.brain.rescan()?;
        self.placer.restore(&mut self.brain)?;
        self.unopened = rig.list(Place::Processing(BRAIN))?.names;
        self.open_unopened();
        Ok(())
    }

    /// Opens batches that the brain holds and that are not open: after a restart, or because
    /// something stood in the way before.
    fn open_unopened(&mut self) {
        for name in std::mem::take(&mut self.unopened) {
            let opened = claim::open_in(&self.brain.rig, Place::Processing(BRAIN), &name);
            let result = match opened {
                Ok(Opened::Held(held)) => self.open_batch(held),
                Ok(Opened::Gone | Opened::Untrusted { .. }) => Ok(()),
                Ok(Opened::Busy) => Err(anyhow::anyhow!("{name} is locked by another process")),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = result {
                self.unopened.push(name);
                self.complain("open a batch", &format!("{error:#}"));
            }
        }
        if self.unopened.is_empty() {
            self.content("open a batch");
        }
    }

    /// Does all that is due, and returns when the next thing is. Each part stands alone: a full
    /// disk or a lane that cannot be written is said, and the other parts go on.
    fn step(&mut self, now: Instant) -> Instant {
        if !self.owns_dirs(now) {
            return self.beat_alone(now);
        }
        self.rescan |= self.brain.polling && now >= self.next.poll;
        if self.rescan {
            let done = self.part("read the lanes again", |this| this.brain.rescan());
            self.rescan = !done;
            self.next.reconcile = now;
            self.signalled = true;
            self.place_wanted = true;
        }
        self.part("end the brain's own tasks", |this| {
            this.attempts.reap(&mut this.brain)
        });
        self.signalled |= self.level.until.is_some_and(|until| until <= now);
        // First what was submitted: a signal may be about it.
        if !self.stopping {
            self.part("claim", |this| this.claim(now));
        }
        if std::mem::take(&mut self.signalled) {
            let done = self.part("obey signals", Self::take_signals);
            self.signalled |= !done;
        }
        if now >= self.next.late {
            self.next.late = now + LATE_EVERY;
            self.cancel_late();
        }
        if now >= self.next.reconcile {
            self.next.reconcile = now + RECONCILE_EVERY;
            self.part("compare with the lanes", Self::reconcile);
            self.next.poll = next_poll(now);
        }
        let mut due = self.advance(now).min(self.archive(now));
        if now >= self.next.agents {
            self.next.agents = now + self.brain.config.timing.lock_poll;
            let containment = self.attempts.containment().clone();
            self.part("look at the agents", |this| {
                this.place_wanted |= this.agents.look(&mut this.brain, &containment, now)?;
                Ok(())
            });
            self.part("look for stuck tasks", |this| {
                let (brain, attempts) = (&mut this.brain, &mut this.attempts);
                if this.stuck.look(brain, &this.agents, attempts, now)? {
                    this.next.monitor = now;
                }
                Ok(())
            });
            notify::look_at_gpus(&mut self.brain, &self.agents, now);
            self.agents.warn_missing(&mut self.brain, now);
            self.unfit
                .look(&mut self.brain, &self.batches, &self.agents);
        }
        if now >= self.next.beat {
            self.next.beat = now + self.brain.config.timing.heartbeat_every;
            self.part("write the heartbeat", |this| this.beat());
        }
        if now >= self.next.monitor {
            self.next.monitor = now + self.brain.config.timing.monitor_every;
            let held = self.batches.values().filter(|batch| batch.graph.is_held());
            let batches = monitor::Batches {
                open: self.batches.len(),
                held: held.count(),
            };
            let stuck = self.stuck.current();
            monitor::say(&mut self.brain, &self.agents, stuck, batches, now);
        }
        if now >= self.next.store {
            self.next.store = now + STORE_EVERY;
            self.open_unopened();
            self.part("store measurements", |this| this.brain.measured.store());
            self.brain.refresh_catalogue(now);
        }
        if now >= self.next.sweep {
            self.next.sweep = now + LITTER_AGE;
            self.part("remove litter", |this| {
                let batches = this.batches.keys().map(String::as_str);
                let swept = this.brain.rig.sweep(LITTER_AGE, batches)?;
                if swept > 0 {
                    tracing::info!("Removed {swept} unfinished files of writers that died");
                }
                Ok(())
            });
        }
        let load_due = self.placer.due(&self.brain);
        self.place_wanted |= load_due.is_some_and(|at| at <= now);
        if self.place_wanted && now >= self.next.place && !self.stopping {
            self.next.place = now + PLACE_EVERY;
            self.place_wanted = !self.part("place models", |this| {
                let batches = this.batches.values();
                let upcoming = batches
                    .flat_map(|batch| batch.upcoming(&this.brain))
                    .collect();
                this.placer
                    .decide(&mut this.brain, &this.agents, upcoming, now)
            });
        }
        let mut told = None;
        self.part("tell what waits", |this| {
            let (brain, batches) = (&this.brain, &this.batches);
            let stuck = this.stuck.current();
            told = this
                .teller
                .tell(brain, batches, &this.agents, &this.placer, stuck, now)?;
            Ok(())
        });
        due = told
            .map_or(due, |at| due.min(at))
            .min(self.next.agents)
            .min(self.next.beat)
            .min(self.next.monitor);
        if self.place_wanted && !self.stopping {
            due = due.min(self.next.place);
        }
        if !self.brain.late.is_empty() {
            due = due.min(self.next.late);
        }
        due = self.level.until.map_or(due, |until| due.min(until));
        if self.brain.polling {
            due = due.min(self.next.poll);
        }
        if self.complaints.values().any(Complaint::is_failing) {
            due = due.min(now + TRY_AGAIN);
        }
        load_due
            .filter(|at| *at > now)
            .map_or(due, |at| due.min(at))
    }

    /// One part of a step. `false`: it failed, which is said once until it works again.
    fn part(&mut self, what: &'static str, act: impl FnOnce(&mut Self) -> Result<()>) -> bool {
        match act(self) {
            Ok(()) => {
                self.content(what);
                true
            }
            Err(error) => {
                self.complain(what, &format!("{error:#}"));
                false
            }
        }
    }

    /// Says what went wrong once, not at every try.
    fn complain(&mut self, what: &'static str, message: &str) {
        let now = Instant::now();
        if self.complaints.entry(what).or_default().fails(message, now) {
            tracing::error!("The brain cannot {what}: {message}; trying again");
        }
    }

    /// What fails now, for the heartbeat.
    fn failing(&self) -> Option<String> {
        let mut failing = self.complaints.iter().filter(|(_, it)| it.is_failing());
        let (what, complaint) = failing.next()?;
        Some(format!("cannot {what}: {}", complaint.message()))
    }

    /// It worked.
    fn content(&mut self, what: &'static str) {
        let complaint = self.complaints.get_mut(what);
        if complaint.is_some_and(|it| it.works(Instant::now())) {
            tracing::info!("The brain can {what} again");
        }
    }

    /// Lanes against memory, in case a wake-up was lost.
    fn reconcile(&mut self) -> Result<()> {
        self.brain.rescan()?;
        self.placer.reconcile(&mut self.brain)?;
        for batch in self.batches.values_mut() {
            batch.reconcile(&mut self.brain)?;
        }
        Ok(())
    }

    /// Claims submissions and tasks of the brain's own.
    fn claim(&mut self, now: Instant) -> Result<()> {
        loop {
            match self.attempts.take(&mut self.brain, now)? {
                Taken::Plan(held) => {
                    let name = held.name;
                    if let Err(error) = self.open_batch(held) {
                        self.unopened.push(name);
                        self.complain("open a batch", &format!("{error:#}"));
                    }
                }
                Taken::Started => {}
                Taken::Nothing => return Ok(()),
            }
        }
    }

    fn open_batch(&mut self, held: Held) -> Result<()> {
        let Work::Plan(submission) = &held.spec.work else {
            return Ok(());
        };
        let (id, plan) = (held.spec.batch.clone(), held.spec.plan.clone());
        let bytes = submission.source.len();
        self.brain.journal.write(
            Entry::PlanRead,
            &format!("Read the plan of {id}: {bytes} bytes"),
            json!({"batch": id, "plan": plan, "bytes": bytes}),
        );
        match Batch::open(&mut self.brain, held) {
            Ok(batch) => {
                let tasks = batch.plan.tasks.len();
                let message = format!(
                    "Batch {id} started: plan {plan}, {} in its plan",
                    count(tasks, "task")
                );
                tracing::info!(batch = %id, "{message}");
                self.brain.journal.write(
                    Entry::PlanParsed,
                    &message,
                    json!({"batch": id, "plan": plan, "tasks": tasks}),
                );
                self.batches.insert(id, batch);
                // What can never run is said at once.
                self.next.agents = Instant::now();
            }
            Err(NotOpened::NotNow(error)) => {
                return Err(error.context(format!("batch {id} cannot be opened now")));
            }
            Err(NotOpened::Rejected(held, problems)) => {
                tracing::warn!(batch = %id, "Batch {id} is rejected: {problems}");
                self.brain.journal.write(
                    Entry::PlanRejected,
                    &format!("Batch {id} is rejected"),
                    json!({"batch": id, "problems": problems}),
                );
                self.brain.notify.rejected(&id, &problems, Instant::now());
                self.brain.rig.prepare_batch(&id)?;
                let outcome = Outcome::Failed {
                    kind: FailureKind::Plan,
                    reason: problems,
                };
                records::replace(&self.brain.rig, &record_of(&held.spec, &held.name, outcome))?;
                held.close(&self.brain.rig, Move::CloseFailed)?;
            }
        }
        Ok(())
    }

    /// Lets every batch do what it can, closes those that are over.
    fn advance(&mut self, now: Instant) -> Instant {
        let mut due = now + RECONCILE_EVERY;
        let mut over: Vec<(String, Ending)> = Vec::new();
        let mut complaints = Vec::new();
        for (id, batch) in &mut self.batches {
            let next = batch.retry_due(&mut self.brain, now);
            match next.and_then(|next| Ok((next, batch.advance(&mut self.brain)?))) {
                Ok((next, ending)) => {
                    due = next.map_or(due, |at| due.min(at));
                    over.extend(ending.map(|ending| (id.clone(), ending)));
                }
                // The rest of the rig goes on; this batch is looked at again soon.
                Err(error) => complaints.push(format!("{id}: {error:#}")),
            }
            match batch.refresh_view(&self.brain, now) {
                Ok(next) => due = next.map_or(due, |at| due.min(at)),
                Err(error) => complaints.push(format!("{id}: its view: {error:#}")),
            }
        }
        for (id, ending) in over {
            let Some(batch) = self.batches.get_mut(&id) else {
                continue;
            };
            match batch.close(&mut self.brain, ending) {
                Ok(()) => drop(self.batches.remove(&id)),
                Err(error) => {
                    complaints.push(format!("{id} is over and cannot be closed: {error:#}"))
                }
            }
        }
        match complaints.first() {
            Some(first) => self.complain("go on with a batch", first),
            None => self.content("go on with a batch"),
        }
        due
    }

    fn beat(&mut self) -> Result<()> {
        self.beats += 1;
        let health = match &self.linked {
            Some(_) => Health::Quarantined,
            None if self.stopping => Health::Draining,
            None => Health::Healthy,
        };
        let (completed, failed) = self.attempts.counts;
        let heartbeat = Heartbeat {
            health_reason: self.linked.clone().or_else(|| self.failing()),
            completed,
            failed,
            running: self.attempts.activity(&self.brain.rig),
            cpu_slots: (
                self.attempts.running() as u32,
                self.brain.config.limits.cpu_slots,
            ),
            ..Heartbeat::alive(self.beats, self.started, health)
        };
        presence::beat(&self.brain.rig, BRAIN, &heartbeat)?;
        Ok(())
    }
}
