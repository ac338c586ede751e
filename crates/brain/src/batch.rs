//! One active batch: carries out what its graph decides, in files.

mod copies;
mod ends;
mod operator;
mod steps;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use jiff::Timestamp;
use rigor_plan::Plan;
use rigor_policy::retry::{self, AfterFailure, FailedAttempt};
use rigor_policy::span::count;
use rigor_queue::claim::{self, Held, Moved, Opened};
use rigor_queue::lane::{Lane, Move};
use rigor_queue::name::{FileName, Shape, TaskId};
use rigor_queue::record::{AttemptRecord, FailureKind, GpuMemory, Outcome};
use rigor_queue::rig::{BRAIN, Place};
use rigor_queue::task::{Class, TaskSpec, Work};
use rigor_queue::{presence, records, submit};
use serde_json::json;

use crate::context::Context as Brain;
use crate::events::EventLog;
use crate::expand::{self, NewTask, NotMade};
use crate::graph::{Ending, Graph, NewInstance, Phase, State, Step};
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
    /// Tasks that were in no lane at the last look.
    missing: BTreeSet<TaskId>,
    /// Failed attempts whose files their agents still lock.
    undecided: Vec<FileName>,
    /// Folders in `waiting/` of tasks that do not lie in their plan task's own: items of groups
    /// that were split.
    folders: BTreeMap<TaskId, String>,
    /// Tasks whose list of failed items is written.
    listed: BTreeSet<usize>,
    cancelled: bool,
    announced: BTreeSet<usize>,
    viewed: Option<Instant>,
    changed: bool,
}

/// Why a batch is not open.
#[derive(Debug)]
pub(crate) enum NotOpened {
    /// Its plan cannot be run: what the user is told.
    Rejected(Held, String),
    /// The disk, or the kernel, does not let it be opened now. Nothing of it is lost.
    NotNow(anyhow::Error),
}

impl Batch {
    /// Takes up a submitted plan that the brain has claimed. The error is for the user: the plan
    /// cannot be run.
    pub(crate) fn open(brain: &mut Brain, root: Held) -> Result<Batch, NotOpened> {
        let spec = root.spec.clone();
        let Work::Plan(submission) = &spec.work else {
            return Err(NotOpened::Rejected(
                root,
                format!("{} is no submitted plan", spec.name),
            ));
        };
        let plan = match expand::parse(brain, &spec, submission) {
            Ok(plan) => plan,
            Err(problems) => return Err(NotOpened::Rejected(root, problems)),
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
                brain.watch_batch(&spec.batch);
                Ok(())
            });
        if let Err(error) = prepared {
            return Err(NotOpened::NotNow(error));
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
            missing: BTreeSet::new(),
            undecided: Vec::new(),
            folders: BTreeMap::new(),
            listed: BTreeSet::new(),
            cancelled: brain.is_cancelled(&spec.batch),
            announced: BTreeSet::new(),
            viewed: None,
            changed: true,
        };
        if brain.is_held(&batch.id) {
            batch.graph.hold();
        }
        batch.restore(brain).map_err(NotOpened::NotNow)?;
        if batch.cancelled {
            batch.cancel_all();
        }
        batch.graph.stop_if_failed();
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
        // First what any other lane outweighs: a stray copy must not make a task fail.
        let stray = rig.list(Place::Quarantine)?.names.into_iter();
        let mut standing: BTreeMap<TaskId, (FileName, State)> =
            stray.map(|name| (name.id, (name, State::Failed))).collect();
        let expansions = expand::expansions(&rig, &self.id)?;
        let agents = rig.subdirs(Lane::Processing)?;
        let waiting = expansions.iter().map(|(_, task)| {
            let batch = self.id.as_str();
            (Place::Waiting { batch, task }, State::Waiting)
        });
        let claimed = agents.iter().map(|agent| Place::Processing(agent));
        let released = Class::ALL.map(Place::Queue).into_iter().chain(claimed);
        let places = waiting
            .chain(released.map(|place| (place, State::Released)))
            .chain([
                (Place::Retry(&self.id), State::Retry),
                (Place::Complete(&self.id), State::Done),
                (Place::Failed(&self.id), State::Failed),
                (Place::Cancelled(&self.id), State::Cancelled),
            ]);
        let mut met: BTreeMap<TaskId, (FileName, State, Place<'_>)> = BTreeMap::new();
        let mut copies: BTreeMap<TaskId, Vec<(FileName, State, Place<'_>)>> = BTreeMap::new();
        for (place, state) in places {
            for name in rig.list(place)?.names {
                standing.insert(name.id, (name, state));
                if let Some(before) = met.insert(name.id, (name, state, place)) {
                    copies.entry(name.id).or_default().push(before);
                }
            }
        }
        for (id, mut files) in copies {
            files.extend(met.remove(&id));
            if let Some(counts) = copies::take_out(brain, &self.id, files)? {
                standing.insert(id, counts);
            }
        }
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
                    if *directory != plan_task.id {
                        self.folders.insert(entry.id, directory.clone());
                    }
                    instances.push((name, entry.item, entry.members.len().max(1) as u32, state));
                }
            }
            if expanded {
                self.graph.expanded(task, instances);
            }
        }
        if restored > 0 {
            tracing::info!(
                "Batch {} taken up again: {}",
                self.id,
                count(restored, "task")
            );
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
            let result = match &step {
                Step::Expand { task } => self
                    .list_failures(*task)
                    .and_then(|()| self.expand(brain, *task)),
                Step::Release { task, instance } => self
                    .list_failures(*task)
                    .and_then(|()| self.release(brain, *task, *instance))
                    .map(|id| released.entry(*task).or_default().extend(id)),
                Step::Cancel {
                    task,
                    instance,
                    reason,
                } => self.cancel(brain, *task, *instance, reason),
            };
            // Nothing of it is done, or doing it again finds it done.
            if let Err(error) = result {
                self.graph.put_back(step);
                return Err(error);
            }
        }
        released.retain(|_, ids| !ids.is_empty());
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
            // It is closed when there is room; whatever else is wrong there is the user's.
            if expand::is_for_want_of_room(&error) {
                return Err(error);
            }
            tracing::warn!(batch = %self.id, "the summary of {} could not be written: {error:#}", self.id);
        }
        let reason = format!(
            "{} of {} tasks complete, {} failed, {} cancelled",
            totals.done, totals.total, totals.failed, totals.cancelled
        );
        let broken = self
            .plan
            .tasks
            .iter()
            .zip(self.graph.nodes())
            .find_map(|(task, node)| match &node.phase {
                Phase::Broken(why) => Some(format!("; task {} cannot be made: {why}", task.id)),
                Phase::Unexpanded | Phase::Expanded | Phase::Cancelled(_) => None,
            });
        let reason = format!("{reason}{}", broken.unwrap_or_default());
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
        rigor_queue::crash_point!("closing");
        self.root.close(&brain.rig, step)?;
        brain.notify.tell(summary.notice(&message), Instant::now());
        brain.unwatch_batch(&self.id);
        brain.clear_marks(&self.id);
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
        self.find_unreleased(brain)?;
        self.warn_of_lost(brain);
        for name in brain.rig.list(Place::Quarantine)?.names {
            self.quarantined(brain, name)?;
        }
        Ok(())
    }

    /// Releases that were never carried out, whatever went wrong: the file still waits.
    fn find_unreleased(&mut self, brain: &Brain) -> Result<()> {
        for (_, directory) in expand::expansions(&brain.rig, &self.id)? {
            let place = Place::Waiting {
                batch: &self.id,
                task: &directory,
            };
            for name in brain.rig.list(place)?.names {
                if let Some((task, instance)) = self.graph.find(name.id)
                    && !self.graph.has_steps()
                {
                    self.graph.unreleased(task, instance);
                }
            }
        }
        Ok(())
    }

    /// The waiting tasks of an expansion, as its folder and its manifest have them.
    fn on_disk(&self, brain: &Brain, folder: &str) -> Result<Vec<NewInstance>> {
        let place = Place::Waiting {
            batch: &self.id,
            task: folder,
        };
        let names: BTreeMap<TaskId, FileName> = brain
            .rig
            .list(place)?
            .names
            .into_iter()
            .map(|name| (name.id, name))
            .collect();
        let manifest = submit::manifest(&brain.rig, &self.id, folder)?.unwrap_or_default();
        let waiting = manifest.into_iter().filter_map(|entry| {
            let name = *names.get(&entry.id)?;
            Some((
                name,
                entry.item,
                entry.members.len().max(1) as u32,
                State::Waiting,
            ))
        });
        Ok(waiting.collect())
    }

    /// Tasks that should be queued or running and are in no lane: somebody moved or removed their
    /// files. Nothing would ever end them, so it must be said. `brain` was rescanned just now.
    fn warn_of_lost(&mut self, brain: &Brain) {
        let mut lost = BTreeSet::new();
        for (task, node) in self.plan.tasks.iter().zip(self.graph.nodes()) {
            for instance in &node.instances {
                let name = &instance.name;
                if instance.state == State::Released
                    && brain.queued_name(task.class, name).is_none()
                    && brain.processing_name(name.id).is_none()
                {
                    lost.insert(name.id);
                }
            }
        }
        // Seen once it may be on its way between two lanes.
        let twice: Vec<&TaskId> = lost.intersection(&self.missing).collect();
        if let Some(first) = twice.first() {
            tracing::warn!(task = %first, batch = %self.id,
                "No lane has {} of {}, the first is {}: moved or removed by hand. Put them back into tasks/queue/, or end the batch: rigor cancel {}",
                count(twice.len(), "task"), self.id, first.short(), self.id);
        }
        self.missing = lost;
    }

    /// The folder in `waiting/` that a task belongs to.
    fn folder(&self, task: usize, id: TaskId) -> String {
        self.folders
            .get(&id)
            .unwrap_or(&self.plan.tasks[task].id)
            .clone()
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
}

/// A record of the brain's own making.
pub(crate) fn record_of(spec: &TaskSpec, name: &FileName, outcome: Outcome) -> AttemptRecord {
    AttemptRecord::without_worker(BRAIN, name, spec, outcome)
}

fn instances_of(made: &[NewTask]) -> Vec<NewInstance> {
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
