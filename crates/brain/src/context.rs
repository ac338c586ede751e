//! What every part of the brain shares: the rig, what is known of it, and what is remembered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use rigor_config::{Config, Model};
use rigor_models::{Catalogue, Need};
use rigor_plan::{PlanTask, WorkTemplate};
use rigor_queue::index::Index;
use rigor_queue::lane::Lane;
use rigor_queue::name::{FileName, Shape, TaskId};
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::{Durability, Sequence};
use rigor_queue::task::{Class, TaskSpec};
use rigor_queue::watch::Watcher;
use serde_json::{Value, json};

use crate::expand::{self, ShapeInfo, Shapes};
use crate::journal::{Entry, Journal};
use crate::measured::Measured;
use crate::notify::Notifier;

/// Completions are counted over this long.
const RECENT: Duration = Duration::from_secs(300);

/// A task that is to be cancelled and was between two lanes.
#[derive(Debug)]
pub(crate) struct LateCancel {
    /// Its batch.
    pub batch: String,
    /// The task.
    pub id: TaskId,
    /// Why.
    pub reason: String,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Context {
    /// The rig directory.
    pub rig: Rig,
    /// rig.toml.
    pub config: Config,
    /// What must survive a power cut.
    pub durability: Durability,
    /// Numbers for task files.
    pub sequence: Sequence,
    /// Durations and peaks.
    pub measured: Measured,
    /// What models' files say of their memory.
    pub catalogue: Catalogue,
    /// brain_decisions.log.
    pub journal: Journal,
    /// Wake-ups; none where the kernel allows no more.
    watcher: Option<Watcher>,
    /// Not all that should be is watched: directories are read now and then instead.
    pub polling: bool,
    /// Who is told of what.
    pub notify: Notifier,
    /// What is queued, by class.
    pub queue: BTreeMap<Class, Index>,
    /// What is claimed, by agent.
    pub processing: BTreeMap<String, BTreeSet<FileName>>,
    /// Cancellations to be tried again.
    pub late: Vec<LateCancel>,
    /// Queued shapes that no agent can ever run, and why.
    pub never: BTreeMap<Shape, String>,
    shapes: Shapes,
    /// When a task completed, and where.
    completed: VecDeque<(Instant, String)>,
    /// llm tasks that completed and their seconds, by model and agent, since this brain started.
    ended: BTreeMap<String, BTreeMap<String, (usize, f64)>>,
}

impl Context {
    /// Puts it together; nothing is read yet but what is given.
    pub(crate) fn new(
        rig: Rig,
        config: Config,
        durability: Durability,
        sequence: Sequence,
        journal: Journal,
        watcher: Option<Watcher>,
    ) -> Context {
        let measured = Measured::open(&rig);
        let catalogue = Catalogue::of(&config.models);
        let notify = Notifier::new(&config);
        Context {
            rig,
            config,
            durability,
            sequence,
            measured,
            catalogue,
            journal,
            polling: watcher.is_none(),
            watcher,
            notify,
            queue: Class::ALL
                .into_iter()
                .map(|class| (class, Index::default()))
                .collect(),
            processing: BTreeMap::new(),
            late: Vec::new(),
            never: BTreeMap::new(),
            shapes: Shapes::new(),
            completed: VecDeque::new(),
            ended: BTreeMap::new(),
        }
    }

    /// Looks, now and then, whether models' files have changed.
    pub(crate) fn refresh_catalogue(&mut self, now: Instant) {
        self.catalogue.refresh(&self.config.models, now);
    }

    /// What a model needs of GPU memory, as far as it is known.
    pub(crate) fn model_need(&self, model: &Model) -> Option<Need> {
        let measured_mb = self.measured.all().vram_mb(model);
        self.catalogue.need(model, measured_mb)
    }

    /// The index of a class.
    pub(crate) fn index(&mut self, class: Class) -> &mut Index {
        self.queue.entry(class).or_default()
    }

    /// How many tasks of a class are queued.
    pub(crate) fn queued(&self, class: Class) -> usize {
        self.queue.get(&class).map_or(0, Index::len)
    }

    /// Reads all queues and all claimed tasks anew.
    pub(crate) fn rescan(&mut self) -> Result<()> {
        for class in Class::ALL {
            let listing = self.rig.list(Place::Queue(class))?;
            for path in listing.foreign {
                self.quarantine_foreign(&path);
            }
            self.index(class).replace(listing.names);
        }
        self.processing.clear();
        for agent in self.rig.subdirs(Lane::Processing)? {
            let names = self.rig.list(Place::Processing(&agent))?.names;
            self.processing.insert(agent, names.into_iter().collect());
        }
        Ok(())
    }

    /// Moves something that is no task file out of a lane.
    pub(crate) fn quarantine_foreign(&mut self, path: &Path) {
        let reason = "its name is not a task file's";
        match rigor_queue::claim::quarantine(&self.rig, path, reason) {
            Ok(()) => tracing::warn!("Moved {} to quarantine: {reason}", path.display()),
            Err(error) => tracing::warn!(
                "{} is no task file and cannot be moved: {error}",
                path.display()
            ),
        }
    }

    /// Watches the lanes in which tasks of a batch arrive.
    pub(crate) fn watch_batch(&mut self, batch: &str) {
        self.watch(&self.rig.dir(Place::Complete(batch)));
        self.watch(&self.rig.dir(Place::Retry(batch)));
    }

    /// Watches a directory from now on. Where the kernel lets no more be watched, everything is
    /// read now and then instead.
    pub(crate) fn watch(&mut self, dir: &Path) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        if let Err(error) = watcher.watch(dir)
            && !std::mem::replace(&mut self.polling, true)
        {
            tracing::warn!("{error}; directories are read every second instead");
        }
    }

    /// Watches what lies now where the watched directories were.
    pub(crate) fn watch_again(&mut self) {
        if let Some(watcher) = &mut self.watcher
            && let Err(error) = watcher.watch_again()
            && !std::mem::replace(&mut self.polling, true)
        {
            tracing::warn!("{error}; directories are read every second instead");
        }
    }

    /// Ends [`Context::watch_batch`].
    pub(crate) fn unwatch_batch(&mut self, batch: &str) {
        if let Some(watcher) = &mut self.watcher {
            watcher.unwatch(&self.rig.dir(Place::Complete(batch)));
            watcher.unwatch(&self.rig.dir(Place::Retry(batch)));
        }
    }

    /// Whether an operator holds a batch.
    pub(crate) fn is_held(&self, batch: &str) -> bool {
        self.mark("held", batch).exists()
    }

    /// Forgets that a batch is held.
    pub(crate) fn clear_hold(&self, batch: &str) {
        // Not there is what is wanted.
        let _ = std::fs::remove_file(self.mark("held", batch));
    }

    /// Whether an operator has cancelled a batch.
    pub(crate) fn is_cancelled(&self, batch: &str) -> bool {
        self.mark("cancelled", batch).exists()
    }

    /// Remembers that a batch is cancelled, over restarts.
    pub(crate) fn set_cancel(&self, batch: &str) -> Result<()> {
        self.set_mark("cancelled", batch)
    }

    /// Forgets that a batch is cancelled.
    pub(crate) fn clear_cancel(&self, batch: &str) {
        let _ = std::fs::remove_file(self.mark("cancelled", batch));
    }

    /// Forgets what was asked of a batch that is over.
    pub(crate) fn clear_marks(&self, batch: &str) {
        self.clear_hold(batch);
        self.clear_cancel(batch);
    }

    /// Remembers that a batch is held, over restarts.
    pub(crate) fn set_hold(&self, batch: &str) -> Result<()> {
        self.set_mark("held", batch)
    }

    fn set_mark(&self, kind: &str, batch: &str) -> Result<()> {
        let path = self.mark(kind, batch);
        rigor_queue::submit::replace_file(&path, b"", self.durability.syncs())?;
        Ok(())
    }

    fn mark(&self, kind: &str, batch: &str) -> std::path::PathBuf {
        self.rig.brain_dir().join(kind).join(batch)
    }

    /// Remembers what a shape stands for.
    pub(crate) fn learn_shape(&mut self, shape: Shape, spec: &TaskSpec) {
        self.shapes
            .entry(shape)
            .or_insert_with(|| ShapeInfo::of(spec));
    }

    /// What a queued shape stands for; one that this brain has not seen is read from one of its
    /// files.
    pub(crate) fn shape(&mut self, class: Class, shape: Shape) -> Option<ShapeInfo> {
        if !self.shapes.contains_key(&shape) {
            let name = self.queue.get(&class)?.any(shape)?;
            let info = expand::peek_shape(&self.rig, class, &name)?;
            self.shapes.insert(shape, info);
        }
        self.shapes.get(&shape).cloned()
    }

    /// The name under which a task is queued now.
    ///
    /// `known` is its name as it was last heard of; only if it has another one is it searched for.
    pub(crate) fn queued_name(&self, class: Class, known: &FileName) -> Option<FileName> {
        let index = self.queue.get(&class)?;
        if index.contains(known) {
            Some(*known)
        } else {
            index.find(known.id)
        }
    }

    /// The agent that has claimed a task, and its name there.
    pub(crate) fn processing_name(&self, id: TaskId) -> Option<(String, FileName)> {
        self.processing.iter().find_map(|(agent, names)| {
            names
                .iter()
                .find(|name| name.id == id)
                .map(|name| (agent.clone(), *name))
        })
    }

    /// A task that could not be found for its cancellation is looked for again.
    pub(crate) fn cancel_later(&mut self, batch: &str, id: TaskId, reason: &str) {
        self.late.push(LateCancel {
            batch: batch.to_owned(),
            id,
            reason: reason.to_owned(),
        });
    }

    /// What a shape stands for, as far as it was seen.
    pub(crate) fn known_shape(&self, shape: Shape) -> Option<&ShapeInfo> {
        self.shapes.get(&shape)
    }

    /// A task of that shape completed on an agent, after so many seconds.
    pub(crate) fn note_completed(&mut self, agent: &str, shape: Shape, seconds: f64, now: Instant) {
        self.completed.push_back((now, agent.to_owned()));
        let info = self.shapes.get(&shape);
        if let Some(model) = info.and_then(|info| info.model.clone()) {
            let ended = self.ended.entry(model).or_default();
            let (count, sum) = ended.entry(agent.to_owned()).or_default();
            *count += 1;
            *sum += seconds;
        }
    }

    /// llm tasks of a model that completed, and their seconds, by agent, since this brain started.
    pub(crate) fn ended_of(&self, model: &str) -> BTreeMap<String, (usize, f64)> {
        self.ended.get(model).cloned().unwrap_or_default()
    }

    /// Whether an agent runs an llm task of a model.
    pub(crate) fn is_running(&self, model: &str) -> bool {
        let of_model = |name: &FileName| {
            let info = self.shapes.get(&name.shape);
            info.is_some_and(|info| {
                info.class == Class::Llm && info.model.as_deref() == Some(model)
            })
        };
        self.processing.values().flatten().any(of_model)
    }

    /// Tasks completed in the last five minutes, by agent.
    pub(crate) fn completed_recently(&mut self, now: Instant) -> BTreeMap<String, usize> {
        while self
            .completed
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) > RECENT)
        {
            self.completed.pop_front();
        }
        let mut by_agent = BTreeMap::new();
        for (_, agent) in &self.completed {
            *by_agent.entry(agent.clone()).or_default() += 1;
        }
        by_agent
    }

    /// Asks a person for help: an entry of the decision log, and a file that stays until somebody
    /// removes it.
    pub(crate) fn escalate(&mut self, name: &str, message: &str, details: Value) {
        self.journal
            .write(Entry::Escalation, message, details.clone());
        let path = self.rig.escalations_dir().join(format!("{name}.json"));
        let text = json!({
            "at": jiff::Timestamp::now().to_string(),
            "message": message,
            "details": details,
        });
        let written = std::fs::create_dir_all(self.rig.escalations_dir())
            .map_err(anyhow::Error::from)
            .and_then(|()| {
                let text = serde_json::to_vec_pretty(&text)?;
                Ok(rigor_queue::submit::replace_file(&path, &text, false)?)
            });
        if let Err(error) = written {
            tracing::warn!("{} cannot be written: {error:#}", path.display());
        }
    }

    /// The model that a task's instances need, by name: its own, or the smallest of its tier, or
    /// the rig's default. None for tasks that need none.
    pub(crate) fn model_for(&self, task: &PlanTask) -> Result<Option<String>, String> {
        let needs = task.class == Class::Llm || matches!(task.work, WorkTemplate::Prompt(_));
        if !needs || task.model.is_some() {
            return Ok(task.model.clone());
        }
        let models = &self.config.models;
        let chosen = match task.min_tier {
            Some(tier) => models
                .iter()
                .filter(|model| model.tier >= tier && model.kind == rigor_config::ModelKind::Chat)
                .min_by_key(|model| model.tier)
                .map(|model| model.id.clone())
                .ok_or_else(|| format!("no model of rig.toml has tier {tier} or more"))?,
            None => self
                .config
                .gpus
                .iter()
                .find_map(|gpu| gpu.model.clone())
                .or_else(|| {
                    models
                        .iter()
                        .find(|model| model.kind == rigor_config::ModelKind::Chat)
                        .map(|model| model.id.clone())
                })
                .ok_or("it needs a model and rig.toml has none; add a [[model]]")?,
        };
        Ok(Some(chosen))
    }
}
