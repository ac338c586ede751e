//! One active batch: carries out what its graph decides, in files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use jiff::Timestamp;
use rigor_plan::Plan;
use rigor_policy::retry::{self, AfterFailure, FailedAttempt};
use rigor_queue::claim::{self, Held, Moved, Opened};
use rigor_queue::lane::{Lane, Move};
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::record::{AttemptRecord, FailureKind, Outcome, Peaks};
use rigor_queue::rig::{BRAIN, Place};
use rigor_queue::task::{Class, TaskSpec, Work};
use rigor_queue::{presence, records, submit};
use serde_json::json;

use crate::context::Context as Brain;
use crate::events::EventLog;
use crate::expand::{self, NewTask};
use crate::graph::{Ending, Graph, State, Step};
use crate::journal::Entry;
use crate::{summary, view};

/// Between two writings of a batch's view while it changes.
const VIEW_EVERY: Duration = Duration::from_secs(1);

/// So many tasks released at once are worth a line at INFO.
const WAVE: usize = 10;

/// One active batch.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Its id.
    pub id: String,
    /// Its plan.
    pub plan: Plan,
    /// What stands where.
    pub graph: Graph,
    /// The folder of the plan.
    pub plan_dir: PathBuf,
    /// `{BATCH_PATH}`.
    pub batch_dir: PathBuf,
    /// When it was submitted.
    pub submitted: Timestamp,
    root: Held,
    limit: Option<usize>,
    events: EventLog,
    retries: BTreeMap<TaskId, (Instant, FileName)>,
    cancelled: bool,
    announced: BTreeSet<usize>,
    viewed: Option<Instant>,
    changed: bool,
}

impl Batch {
    /// Takes up a submitted plan that the brain has claimed. The error is for the user: the plan
    /// cannot be run.
    pub(crate) fn open(brain: &mut Brain, root: Held) -> Result<Batch, (Held, String)> {
        let spec = root.spec.clone();
        let Work::Plan(submission) = &spec.work else {
            return Err((root, format!("{} is no submitted plan", spec.name)));
        };
        let plan = match expand::parse(brain, &spec, submission) {
            Ok(plan) => plan,
            Err(problems) => return Err((root, problems)),
        };
        let prepared = brain
            .rig
            .prepare_batch(&spec.batch)
            .map_err(anyhow::Error::from)
            .and_then(|()| {
                for folder in ["results", "output", "logs"] {
                    let path = spec.batch_dir.join(folder);
                    std::fs::create_dir_all(&path)
                        .with_context(|| format!("make {}", path.display()))?;
                }
                brain.watch_batch(&spec.batch)?;
                Ok(())
            });
        if let Err(error) = prepared {
            return Err((root, format!("{error:#}")));
        }
        let mut batch = Batch {
            id: spec.batch.clone(),
            graph: Graph::new(&plan),
            plan,
            plan_dir: spec.plan_dir.clone(),
            batch_dir: spec.batch_dir.clone(),
            submitted: spec.created,
            limit: submission.limit,
            events: EventLog::open(&spec.batch_dir),
            root,
            retries: BTreeMap::new(),
            cancelled: false,
            announced: BTreeSet::new(),
            viewed: None,
            changed: true,
        };
        if brain.is_held(&batch.id) {
            batch.graph.hold();
        }
        if let Err(error) = batch.restore(brain) {
            return Err((batch.root, format!("{error:#}")));
        }
        batch.graph.start();
        Ok(batch)
    }

    /// Items of each foreach are cut to so many.
    pub(crate) fn limit(&self) -> Option<usize> {
        self.limit
    }

    /// The specification of the plan task.
    pub(crate) fn spec(&self) -> &TaskSpec {
        &self.root.spec
    }

    /// Takes from disk what an earlier brain had done. Lanes are listed in the order of a task's
    /// life, so that a task that moves on meanwhile is met again, not missed.
    fn restore(&mut self, brain: &mut Brain) -> Result<()> {
        let rig = brain.rig.clone();
        let mut standing: BTreeMap<TaskId, (FileName, State)> = BTreeMap::new();
        let mut note = |names: Vec<FileName>, state: State| {
            for name in names {
                standing.insert(name.id, (name, state));
            }
        };
        let expansions = expand::expansions(&rig, &self.id)?;
        for (_, directory) in &expansions {
            let place = Place::Waiting {
                batch: &self.id,
                task: directory,
            };
            note(rig.list(place)?.names, State::Waiting);
        }
        for class in Class::ALL {
            note(rig.list(Place::Queue(class))?.names, State::Released);
        }
        for agent in rig.subdirs(Lane::Processing)? {
            note(rig.list(Place::Processing(&agent))?.names, State::Released);
        }
        note(rig.list(Place::Retry(&self.id))?.names, State::Retry);
        note(rig.list(Place::Complete(&self.id))?.names, State::Done);
        note(rig.list(Place::Failed(&self.id))?.names, State::Failed);
        note(
            rig.list(Place::Cancelled(&self.id))?.names,
            State::Cancelled,
        );
        note(rig.list(Place::Quarantine)?.names, State::Failed);
        let split: Vec<String> = expansions
            .iter()
            .filter_map(|(_, dir)| expand::split_of(dir))
            .collect();
        let mut restored = 0;
        for (task, plan_task) in self.plan.tasks.iter().enumerate() {
            let mut instances = Vec::new();
            let mut expanded = false;
            for (of, directory) in &expansions {
                if *of != plan_task.id {
                    continue;
                }
                expanded = true;
                for entry in submit::manifest(&rig, &self.id, directory)?.unwrap_or_default() {
                    let (name, mut state) = match standing.get(&entry.id) {
                        Some(found) => *found,
                        // On its way between two lists: agents have it.
                        None => (
                            FileName::first(
                                plan_task.priority,
                                0,
                                rigor_queue::name::Shape(0),
                                entry.id,
                            ),
                            State::Released,
                        ),
                    };
                    if state == State::Cancelled && split.contains(&entry.id.to_string()) {
                        state = State::Split;
                    }
                    restored += 1;
                    instances.push((name, entry.item, entry.members.len().max(1) as u32, state));
                }
            }
            if expanded {
                self.graph.expanded(task, instances);
            }
        }
        if restored > 0 {
            tracing::info!("Batch {} taken up again: {restored} tasks", self.id);
        }
        for name in rig.list(Place::Retry(&self.id))?.names {
            self.failed_attempt(brain, name)?;
        }
        Ok(())
    }

    /// Does all that can be done now. `Some`: the batch is over and closed.
    pub(crate) fn advance(&mut self, brain: &mut Brain) -> Result<Option<Ending>> {
        let mut released: BTreeMap<usize, Vec<TaskId>> = BTreeMap::new();
        while let Some(step) = self.graph.next_step() {
            self.changed = true;
            match step {
                Step::Expand { task } => self.expand(brain, task)?,
                Step::Release { task, instance } => {
                    let name = self.graph.instance(task, instance).name;
                    if self.release(brain, task, &name)? {
                        released.entry(task).or_default().push(name.id);
                    }
                }
                Step::Cancel {
                    task,
                    instance,
                    reason,
                } => {
                    self.cancel(brain, task, instance, &reason)?;
                }
            }
        }
        for (task, ids) in released {
            let first = self.announced.insert(task);
            let task = &self.plan.tasks[task];
            let message = format!(
                "Released {} {} of {}",
                ids.len(),
                plural(&task.id, ids.len()),
                self.id
            );
            // With dependencies item by item most releases are of one task: a line for the first
            // of a task and for waves, the rest for who looks closely.
            if first || ids.len() >= WAVE {
                tracing::info!(batch = %self.id, "{message}");
            } else {
                tracing::debug!(batch = %self.id, "{message}");
            }
            self.events
                .write("released", json!({"task": task.id, "count": ids.len()}));
            let shown: Vec<String> = ids.iter().take(20).map(|id| id.to_string()).collect();
            brain.journal.write(
                Entry::TaskReleased,
                &message,
                json!({"batch": self.id, "task": task.id, "class": task.class, "count": ids.len(), "first_ids": shown}),
            );
        }
        Ok(self.graph.ending())
    }

    /// A task file arrived in `complete/<batch>/`.
    pub(crate) fn completed(&mut self, brain: &mut Brain, name: FileName) -> Result<()> {
        let Some((task, instance)) = self.graph.find(name.id) else {
            return Ok(());
        };
        if self.graph.instance(task, instance).state == State::Done {
            return Ok(());
        }
        let record = records::read(&brain.rig, &self.id, name.id, name.attempt)?;
        let key = format!("{}/{}", self.spec().plan, self.plan.tasks[task].id);
        if let Some(record) = &record {
            brain.measured.learn(&key, record);
            brain.note_completed(Instant::now());
            self.events.write(
                "completed",
                json!({"name": record.name, "id": record.id, "attempt": record.attempt,
                       "agent": record.agent, "seconds": record.duration_ms as f64 / 1000.0}),
            );
        }
        self.changed = true;
        self.graph.moved(task, instance, name, State::Done);
        self.list_failures(task)
    }

    /// A task file arrived in `retry/<batch>/`, or lay there: what follows?
    pub(crate) fn failed_attempt(&mut self, brain: &mut Brain, name: FileName) -> Result<()> {
        let Some((task, instance)) = self.graph.find(name.id) else {
            return Ok(());
        };
        if self.retries.contains_key(&name.id) {
            return Ok(());
        }
        let record = records::read(&brain.rig, &self.id, name.id, name.attempt)?;
        let plan_task = &self.plan.tasks[task];
        let item_count = self.graph.instance(task, instance).items;
        let title = self.title(task, instance);
        let (kind, reason, agent) = match &record {
            Some(AttemptRecord {
                outcome: Outcome::Failed { kind, reason },
                agent,
                ..
            }) => (*kind, reason.clone(), agent.clone()),
            Some(record) => {
                let why = record
                    .outcome
                    .reason()
                    .unwrap_or("it says it succeeded")
                    .to_owned();
                (FailureKind::WorkerLost, why, record.agent.clone())
            }
            None => (
                FailureKind::WorkerLost,
                "it left no record".to_owned(),
                "?".to_owned(),
            ),
        };
        let since_end = record.map_or(Duration::ZERO, |record| {
            Duration::try_from(Timestamp::now().duration_since(record.ended)).unwrap_or_default()
        });
        self.changed = true;
        self.events.write(
            "failed",
            json!({"name": title, "id": name.id, "attempt": name.attempt, "agent": agent,
                   "kind": kind, "reason": reason}),
        );
        let after = match self.graph.stopping() {
            Some(why) => AfterFailure::Cancel {
                reason: why.to_owned(),
            },
            None => retry::decide(&FailedAttempt {
                kind,
                charged: name.charged,
                retries: plan_task.retries,
                backoff: plan_task.backoff,
                items: item_count as usize,
                since_end,
            }),
        };
        let details = |decision: &str| {
            json!({"batch": self.id, "task_id": name.id, "name": title, "attempt": name.attempt,
                   "agent": agent, "kind": kind, "reason": reason, "decision": decision})
        };
        match after {
            AfterFailure::Retry { wait, reason: plan } => {
                let message = format!(
                    "{title} ({}) failed on {agent}: {reason}; {plan}",
                    name.id.short()
                );
                tracing::info!(task = %name.id, batch = %self.id, "{message}");
                brain.journal.write(Entry::Retry, &message, details(&plan));
                self.graph.moved(task, instance, name, State::Retry);
                self.retries.insert(name.id, (Instant::now() + wait, name));
            }
            AfterFailure::Split { reason: plan } => {
                let message = format!(
                    "{title} ({}) failed on {agent}: {reason}; {plan}",
                    name.id.short()
                );
                tracing::info!(task = %name.id, batch = %self.id, "{message}");
                brain.journal.write(Entry::Retry, &message, details(&plan));
                self.split(brain, task, instance, name)?;
            }
            AfterFailure::GiveUp { reason: plan } => {
                let message = format!(
                    "{title} ({}) failed on {agent}: {reason}; {plan}. See: rigor logs {}",
                    name.id.short(),
                    name.id.short()
                );
                tracing::warn!(task = %name.id, batch = %self.id, "{message}");
                brain
                    .journal
                    .write(Entry::Abandon, &message, details(&plan));
                claim::give_up(&brain.rig, &self.id, &name)?;
                self.graph.moved(task, instance, name, State::Failed);
                self.list_failures(task)?;
            }
            AfterFailure::Cancel { reason: why } => {
                let message = format!("{title} ({}) is cancelled: {why}", name.id.short());
                tracing::info!(task = %name.id, batch = %self.id, "{message}");
                brain.journal.write(Entry::Abandon, &message, details(&why));
                self.graph.moved(task, instance, name, State::Retry);
                self.cancel(brain, task, instance, &why)?;
            }
        }
        Ok(())
    }

    /// A task file arrived in quarantine.
    pub(crate) fn quarantined(&mut self, name: FileName) {
        if let Some((task, instance)) = self.graph.find(name.id) {
            tracing::warn!(task = %name.id, batch = %self.id,
                "{} ({}) counts as failed: its file is in quarantine, the reason beside it",
                self.title(task, instance), name.id.short());
            self.changed = true;
            self.graph.moved(task, instance, name, State::Failed);
        }
    }

    /// Queues retries that are due. Returns when the next one is.
    pub(crate) fn retry_due(&mut self, brain: &mut Brain, now: Instant) -> Result<Option<Instant>> {
        if !self.graph.is_held() {
            let due: Vec<FileName> = self
                .retries
                .values()
                .filter(|(at, _)| *at <= now)
                .map(|(_, name)| *name)
                .collect();
            for name in due {
                self.retries.remove(&name.id);
                let Some((task, instance)) = self.graph.find(name.id) else {
                    continue;
                };
                let class = self.plan.tasks[task].class;
                if let Some(next) = claim::retry(&brain.rig, &self.id, class, &name)? {
                    self.changed = true;
                    self.graph.moved(task, instance, next, State::Released);
                }
            }
        }
        Ok(self
            .retries
            .values()
            .map(|(at, _)| *at)
            .min()
            .filter(|_| !self.graph.is_held()))
    }

    /// An operator holds the batch: what nobody has claimed goes back to waiting.
    pub(crate) fn hold(&mut self, brain: &mut Brain) -> Result<()> {
        self.graph.hold();
        self.changed = true;
        for task in 0..self.plan.tasks.len() {
            let class = self.plan.tasks[task].class;
            for instance in 0..self.graph.nodes()[task].instances.len() {
                let standing = self.graph.instance(task, instance);
                let name = standing.name;
                if standing.state != State::Released {
                    continue;
                }
                // Busy: an agent is about to take it. Gone: it has.
                if let Opened::Held(held) = claim::open_in(&brain.rig, Place::Queue(class), &name)?
                {
                    let folder = expand::directory_of(
                        &brain.rig,
                        &self.id,
                        &self.plan.tasks[task].id,
                        name.id,
                    )?;
                    held.withdraw(&brain.rig, &folder)?;
                    self.graph.moved(task, instance, name, State::Waiting);
                }
            }
        }
        Ok(())
    }

    /// An operator cancels the whole batch.
    pub(crate) fn cancel_all(&mut self) {
        self.cancelled = true;
        self.changed = true;
        self.graph.stop("cancelled by the operator".to_owned());
    }

    /// An operator cancels one task.
    pub(crate) fn cancel_one(&mut self, id: TaskId) {
        if let Some((task, instance)) = self.graph.find(id) {
            self.graph
                .cancel(task, instance, "cancelled by the operator");
        }
    }

    /// An operator wants failed tasks again, and with them what was cancelled because of them:
    /// all of them, or one.
    pub(crate) fn revive(&mut self, brain: &mut Brain, only: Option<TaskId>) -> Result<usize> {
        self.cancelled = false;
        self.graph.reopen();
        let wanted = |task: usize, instance: usize, batch: &Batch| match only {
            None => true,
            Some(id) => {
                let Some((root, of)) = batch.graph.find(id) else {
                    return false;
                };
                let same_item = match &batch.graph.instance(root, of).item {
                    Some(item) => batch
                        .graph
                        .instance(task, instance)
                        .item
                        .as_ref()
                        .is_none_or(|other| other == item),
                    None => true,
                };
                batch.graph.instance(task, instance).name.id == id
                    || (task != root && batch.graph.downstream(root).contains(&task) && same_item)
            }
        };
        let mut revived = 0;
        // The plan's order: a predecessor is waiting again before its successors ask.
        for task in 0..self.plan.tasks.len() {
            for instance in 0..self.graph.nodes()[task].instances.len() {
                let standing = self.graph.instance(task, instance);
                let (name, state) = (standing.name, standing.state);
                let from = match state {
                    State::Failed => Place::Failed(&self.id),
                    State::Cancelled => Place::Cancelled(&self.id),
                    State::Waiting
                    | State::Released
                    | State::Retry
                    | State::Done
                    | State::Split => continue,
                };
                if !wanted(task, instance, self) {
                    continue;
                }
                let folder =
                    expand::directory_of(&brain.rig, &self.id, &self.plan.tasks[task].id, name.id)?;
                if let Some(next) = claim::revive(&brain.rig, from, &self.id, &folder, &name)? {
                    self.graph.moved(task, instance, next, State::Waiting);
                    revived += 1;
                }
            }
        }
        self.changed = true;
        self.graph.start();
        self.events.write("revived", json!({"count": revived}));
        Ok(revived)
    }

    /// The batch is over: writes its summary, closes its root task.
    pub(crate) fn close(&mut self, brain: &mut Brain, ending: Ending) -> Result<()> {
        let step = match (self.cancelled, &ending) {
            (true, _) => Move::CloseCancelled,
            (false, Ending::Complete) => Move::Complete,
            (false, Ending::Failed) => Move::CloseFailed,
        };
        let state = step.rule().to;
        let totals = self.graph.totals();
        let summary = summary::make(brain, self, state)?;
        let written = summary::write(self, &summary)
            .and_then(|()| summary::copy_failed_logs(brain, self, &summary));
        if let Err(error) = written {
            tracing::warn!(batch = %self.id, "the summary of {} could not be written: {error:#}", self.id);
        }
        let reason = format!(
            "{} of {} tasks complete, {} failed, {} cancelled",
            totals.done, totals.total, totals.failed, totals.cancelled
        );
        let outcome = match step {
            Move::Complete => Outcome::Succeeded,
            Move::CloseCancelled => Outcome::Cancelled {
                reason: format!("cancelled by the operator: {reason}"),
            },
            _ => Outcome::Failed {
                kind: FailureKind::Plan,
                reason: reason.clone(),
            },
        };
        let record = record_of(&self.root.spec, &self.root.name, outcome);
        records::replace(&brain.rig, &record)?;
        records::commit(
            &brain.rig,
            &[(self.id.clone(), record.id, record.attempt)],
            brain.durability,
        )?;
        self.events.write(state.as_str(), json!({"totals": reason}));
        self.write_view(brain, state.as_str())?;
        let (entry, message) = match step {
            Move::Complete => (
                Entry::BatchComplete,
                format!("Batch {} complete: {reason}", self.id),
            ),
            _ => (
                Entry::BatchFailed,
                format!(
                    "Batch {} {state}: {reason}. See: rigor report {}",
                    self.id, self.id
                ),
            ),
        };
        if step == Move::Complete {
            tracing::info!(batch = %self.id, "{message}");
        } else {
            tracing::warn!(batch = %self.id, "{message}");
        }
        brain.journal.write(entry, &message, json!({"batch": self.id, "done": totals.done, "failed": totals.failed, "cancelled": totals.cancelled}));
        self.root.close(&brain.rig, step)?;
        brain.unwatch_batch(&self.id);
        brain.clear_hold(&self.id);
        Ok(())
    }

    /// Writes the view for displays if it changed and the last one is old enough. Returns when
    /// it wants to be called again.
    pub(crate) fn refresh_view(&mut self, brain: &Brain, now: Instant) -> Result<Option<Instant>> {
        if !self.changed {
            return Ok(None);
        }
        if let Some(due) = self
            .viewed
            .map(|at| at + VIEW_EVERY)
            .filter(|due| *due > now)
        {
            return Ok(Some(due));
        }
        self.viewed = Some(now);
        self.write_view(
            brain,
            if self.graph.is_held() {
                "held"
            } else {
                "running"
            },
        )?;
        self.changed = false;
        Ok(None)
    }

    /// Compares with what the lanes hold, in case a wake-up was lost.
    pub(crate) fn reconcile(&mut self, brain: &mut Brain) -> Result<()> {
        for name in brain.rig.list(Place::Complete(&self.id))?.names {
            self.completed(brain, name)?;
        }
        for name in brain.rig.list(Place::Retry(&self.id))?.names {
            self.failed_attempt(brain, name)?;
        }
        self.graph.stop_rest();
        for name in brain.rig.list(Place::Quarantine)?.names {
            if self
                .graph
                .find(name.id)
                .is_some_and(|(task, n)| self.graph.instance(task, n).state != State::Failed)
            {
                self.quarantined(name);
            }
        }
        Ok(())
    }

    fn title(&self, task: usize, instance: usize) -> String {
        self.plan.tasks[task].instance(self.graph.instance(task, instance).item.as_deref())
    }

    fn write_view(&self, brain: &Brain, state: &str) -> Result<()> {
        let path = view::path(&brain.rig, &self.id);
        let text = serde_json::to_vec(&view::make(self, state))?;
        submit::replace_file(&path, &text, false)?;
        Ok(())
    }

    fn expand(&mut self, brain: &mut Brain, task: usize) -> Result<()> {
        let began = Instant::now();
        let plan_task = &self.plan.tasks[task];
        let made = match expand::make(brain, self, task) {
            Ok(made) => made,
            Err(reason) => {
                let message = format!(
                    "Task {} of {} cannot be made: {reason}",
                    plan_task.id, self.id
                );
                tracing::warn!(batch = %self.id, "{message}");
                brain.journal.write(
                    Entry::Abandon,
                    &message,
                    json!({"batch": self.id, "task": plan_task.id, "reason": reason}),
                );
                self.events
                    .write("broken", json!({"task": plan_task.id, "reason": reason}));
                self.graph.broken(task, reason);
                return Ok(());
            }
        };
        let instances = instances_of(&made);
        let count = instances.len();
        let tasks = made.into_iter().map(|new| (new.name, new.spec));
        submit::expand(&brain.rig, &self.id, &plan_task.id, tasks, brain.durability)?;
        self.graph.expanded(task, instances);
        let (entry, message) = match &plan_task.foreach {
            Some(foreach) => (
                Entry::ForeachExpand,
                format!(
                    "Expanded {} of {}: {count} tasks from {} in {:.2}s",
                    plan_task.id,
                    self.id,
                    foreach.source,
                    began.elapsed().as_secs_f64()
                ),
            ),
            None => (
                Entry::TaskCreated,
                format!("Created {} of {}", plan_task.id, self.id),
            ),
        };
        tracing::info!(batch = %self.id, "{message}");
        self.events
            .write("created", json!({"task": plan_task.id, "count": count}));
        brain.journal.write(entry, &message, json!({"batch": self.id, "task": plan_task.id, "class": plan_task.class, "count": count}));
        Ok(())
    }

    fn release(&mut self, brain: &mut Brain, task: usize, name: &FileName) -> Result<bool> {
        let plan_task = &self.plan.tasks[task];
        let moved = claim::release(&brain.rig, &self.id, &plan_task.id, plan_task.class, name)?;
        if moved == Moved::Gone {
            // A split or revived task lies in a folder of its own.
            let folder = expand::directory_of(&brain.rig, &self.id, &plan_task.id, name.id)?;
            let moved = claim::release(&brain.rig, &self.id, &folder, plan_task.class, name)?;
            return Ok(moved == Moved::Done);
        }
        Ok(true)
    }

    /// Cancels an instance wherever it lies; one that runs is told to end and is cancelled when
    /// it has.
    fn cancel(
        &mut self,
        brain: &mut Brain,
        task: usize,
        instance: usize,
        reason: &str,
    ) -> Result<()> {
        let standing = self.graph.instance(task, instance);
        let name = standing.name;
        let class = self.plan.tasks[task].class;
        let folder;
        let places: &[Place<'_>] = match standing.state {
            State::Waiting => {
                folder =
                    expand::directory_of(&brain.rig, &self.id, &self.plan.tasks[task].id, name.id)?;
                &[Place::Waiting {
                    batch: &self.id,
                    task: &folder,
                }]
            }
            State::Released => &[Place::Queue(class)],
            State::Retry => &[Place::Retry(&self.id)],
            State::Done | State::Failed | State::Cancelled | State::Split => return Ok(()),
        };
        self.retries.remove(&name.id);
        for place in places {
            // Its attempt may have risen since: look for the id, not the name.
            let current = match place.lane() {
                Lane::Queue => brain.queued_name(class, name.id).unwrap_or(name),
                _ => name,
            };
            match claim::open_in(&brain.rig, *place, &current)? {
                Opened::Held(held) => {
                    let record = record_of(
                        &held.spec,
                        &current,
                        Outcome::Cancelled {
                            reason: reason.to_owned(),
                        },
                    );
                    // What happened to the last attempt stays on record; the reason for the end
                    // is the next one's.
                    let record = match place.lane() {
                        Lane::Retry => AttemptRecord {
                            attempt: current.attempt + 1,
                            ..record
                        },
                        _ => record,
                    };
                    records::replace(&brain.rig, &record)?;
                    held.cancel(&brain.rig)?;
                    self.events.write("cancelled", json!({"name": self.title(task, instance), "id": name.id, "reason": reason}));
                    tracing::info!(task = %name.id, batch = %self.id, "Cancelled {} ({}): {reason}", self.title(task, instance), name.id.short());
                    self.changed = true;
                    self.graph.moved(task, instance, current, State::Cancelled);
                    return Ok(());
                }
                Opened::Untrusted { .. } => {
                    self.graph.moved(task, instance, current, State::Failed);
                    return Ok(());
                }
                Opened::Gone | Opened::Busy => {}
            }
        }
        if let Some((agent, running)) = brain.processing_name(name.id) {
            let message = format!(
                "Asked {agent} to end {} ({}): {reason}",
                self.title(task, instance),
                name.id.short()
            );
            tracing::info!(task = %name.id, batch = %self.id, "{message}");
            brain.journal.write(
                Entry::AbortSignal,
                &message,
                json!({"batch": self.id, "task_id": name.id, "agent": agent}),
            );
            presence::send(
                &brain.rig,
                &agent,
                &format!("{}.abort", running.attempt_stem()),
                reason,
            )?;
            self.graph.moved(task, instance, running, State::Released);
        } else {
            // Between two lanes at this moment: look again soon.
            brain.cancel_later(&self.id, name.id, reason);
        }
        Ok(())
    }

    /// Each item of a failed group becomes a task of its own.
    fn split(
        &mut self,
        brain: &mut Brain,
        task: usize,
        instance: usize,
        name: FileName,
    ) -> Result<()> {
        let held = match claim::open_in(&brain.rig, Place::Retry(&self.id), &name)? {
            Opened::Held(held) => held,
            other => return Err(anyhow!("{} in retry cannot be opened: {other:?}", name)),
        };
        let folder = expand::split_directory(&self.plan.tasks[task].id, name.id);
        let made = match expand::make_split(brain, self, task, &held.spec) {
            Ok(made) => made,
            Err(reason) => {
                tracing::warn!(batch = %self.id, "{name} cannot be split: {reason}");
                drop(held);
                claim::give_up(&brain.rig, &self.id, &name)?;
                self.graph.moved(task, instance, name, State::Failed);
                return Ok(());
            }
        };
        let instances = instances_of(&made);
        let tasks = made.into_iter().map(|new| (new.name, new.spec));
        submit::expand(&brain.rig, &self.id, &folder, tasks, brain.durability)?;
        let next = AttemptRecord {
            attempt: name.attempt + 1,
            ..record_of(
                &held.spec,
                &name,
                Outcome::Cancelled {
                    reason: format!("split into its {} items", instances.len()),
                },
            )
        };
        records::replace(&brain.rig, &next)?;
        held.cancel(&brain.rig)?;
        // First the new ones, so that the task is not over in between.
        self.graph.expanded(task, instances);
        self.graph.moved(task, instance, name, State::Split);
        Ok(())
    }

    /// Keeps `{FAILED_FILE:task}` true once a foreach is over.
    fn list_failures(&mut self, task: usize) -> Result<()> {
        let node = &self.graph.nodes()[task];
        if self.plan.tasks[task].foreach.is_none() || !self.graph.is_good(task) {
            return Ok(());
        }
        let failed: Vec<&str> = node
            .instances
            .iter()
            .filter(|instance| matches!(instance.state, State::Failed | State::Cancelled))
            .filter_map(|instance| instance.item.as_deref())
            .collect();
        expand::write_failed_file(self, task, &failed)
    }
}

/// A record of the brain's own making.
pub(crate) fn record_of(spec: &TaskSpec, name: &FileName, outcome: Outcome) -> AttemptRecord {
    AttemptRecord {
        id: spec.id,
        batch: spec.batch.clone(),
        task: spec.task.clone(),
        name: spec.name.clone(),
        class: spec.class,
        attempt: name.attempt,
        agent: BRAIN.to_owned(),
        nonce: None,
        started: None,
        ended: Timestamp::now(),
        duration_ms: 0,
        outcome,
        exit_code: None,
        signal: None,
        peaks: Peaks::default(),
        output_bytes: 0,
        output_dropped: 0,
        llm: None,
    }
}

fn instances_of(made: &[NewTask]) -> Vec<(FileName, Option<String>, u32, State)> {
    made.iter()
        .map(|new| {
            let item = new.spec.item.as_ref();
            let items = item.map_or(1, |item| item.members.len().max(1)) as u32;
            (
                new.name,
                item.map(|item| item.id.clone()),
                items,
                State::Waiting,
            )
        })
        .collect()
}

fn plural(task: &str, count: usize) -> String {
    if count == 1 {
        format!("{task} task")
    } else {
        format!("{task} tasks")
    }
}
