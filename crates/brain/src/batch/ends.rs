//! Attempts that ended: what they leave, and what follows a failed one.

use super::*;

/// A failed attempt whose file is still locked by its agent is looked at again so soon.
const UNDECIDED_AGAIN: Duration = Duration::from_millis(20);

impl Batch {
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
            let seconds = record.duration_ms as f64 / 1000.0;
            brain.note_completed(&record.agent, name.shape, seconds, Instant::now());
            self.events.write(
                "completed",
                json!({"name": record.name, "id": record.id, "attempt": record.attempt,
                       "agent": record.agent, "seconds": record.duration_ms as f64 / 1000.0,
                       "model": record.llm.as_ref().map(|llm| &llm.model)}),
            );
        }
        self.changed = true;
        self.graph.moved(task, instance, name, State::Done);
        Ok(())
    }

    /// A task file arrived in `retry/<batch>/`, or lay there: what follows?
    pub(crate) fn failed_attempt(&mut self, brain: &mut Brain, name: FileName) -> Result<()> {
        let Some((task, instance)) = self.graph.find(name.id) else {
            return Ok(());
        };
        // A late wake-up for what has been decided already.
        let known = self.graph.instance(task, instance);
        if self.retries.contains_key(&name.id)
            || known.state.is_over()
            || name.attempt < known.name.attempt
        {
            return Ok(());
        }
        // Its agent lets go of the lock a moment after the move, and what follows may need it.
        match claim::open_in(&brain.rig, Place::Retry(&self.id), &name)? {
            Opened::Held(held) => drop(held),
            Opened::Busy => {
                self.undecided.push(name);
                return Ok(());
            }
            Opened::Gone => return Ok(()),
            Opened::Untrusted { .. } => {
                return self.quarantined(brain, name);
            }
        }
        let record = records::read(&brain.rig, &self.id, name.id, name.attempt)?;
        let plan_task = &self.plan.tasks[task];
        if let Some(record) = &record {
            let key = format!("{}/{}", self.spec().plan, plan_task.id);
            brain.measured.learn_failed(&key, record);
        }
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
        let since_end = record.as_ref().map_or(Duration::ZERO, |record| {
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
                gpu_memory: record.as_ref().and_then(|record| record.gpu_memory),
                budgets_mb: budgets_mb(brain, kind, &plan_task.on),
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
            AfterFailure::MoreMemory { need, reason: plan } => {
                if let Some(record) = record {
                    let gpu_memory = record.gpu_memory.map(|had| GpuMemory {
                        next: Some(need),
                        ..had
                    });
                    // Before the move, whose name is explained by it. The same again after a crash.
                    records::replace(
                        &brain.rig,
                        &AttemptRecord {
                            gpu_memory,
                            ..record
                        },
                    )?;
                }
                let message = format!(
                    "{title} ({}) failed on {agent}: {reason}; {plan}",
                    name.id.short()
                );
                tracing::info!(task = %name.id, batch = %self.id, "{message}");
                brain.journal.write(Entry::Retry, &message, details(&plan));
                self.graph.moved(task, instance, name, State::Retry);
                self.retries.insert(name.id, (Instant::now(), name));
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
    pub(crate) fn quarantined(&mut self, brain: &Brain, name: FileName) -> Result<()> {
        let Some((task, instance)) = self.graph.find(name.id) else {
            return Ok(());
        };
        let known = self.graph.instance(task, instance);
        // A stray copy of what is over, or of an attempt before this one, changes nothing.
        if known.state.is_over() || name.attempt < known.name.attempt {
            return Ok(());
        }
        let aside = brain.rig.path(Place::Quarantine, &name);
        if let Some(other) = rigor_queue::copies::other_file(&brain.rig, &self.id, &name, &aside)? {
            tracing::info!(task = %name.id, batch = %self.id,
                "A copy of {} is in quarantine; the task itself is in {}", name.id.short(), other.lane);
            return Ok(());
        }
        tracing::warn!(task = %name.id, batch = %self.id,
            "{} ({}) counts as failed: its file is in quarantine, the reason beside it",
            self.title(task, instance), name.id.short());
        self.changed = true;
        self.graph.moved(task, instance, name, State::Failed);
        Ok(())
    }

    /// Queues retries that are due. Returns when the next one is.
    pub(crate) fn retry_due(&mut self, brain: &mut Brain, now: Instant) -> Result<Option<Instant>> {
        for name in std::mem::take(&mut self.undecided) {
            self.failed_attempt(brain, name)?;
        }
        if !self.graph.is_held() {
            let due: Vec<FileName> = self
                .retries
                .values()
                .filter(|(at, _)| *at <= now)
                .map(|(_, name)| *name)
                .collect();
            for name in due {
                let Some((task, instance)) = self.graph.find(name.id) else {
                    continue;
                };
                let class = self.plan.tasks[task].class;
                let next = match self.raised_shape(brain, &name)? {
                    // None, here and below: an earlier try moved it.
                    Some(shape) => claim::retry_raised(&brain.rig, &self.id, class, &name, shape)?
                        .unwrap_or_else(|| {
                            let mut next = name.next_attempt(false);
                            next.shape = shape;
                            next
                        }),
                    None => claim::retry(&brain.rig, &self.id, class, &name)?
                        .unwrap_or(name.next_attempt(true)),
                };
                rigor_queue::crash_point!("retried");
                self.retries.remove(&name.id);
                self.changed = true;
                self.graph.moved(task, instance, next, State::Released);
            }
        }
        if !self.undecided.is_empty() {
            return Ok(Some(now + UNDECIDED_AGAIN));
        }
        Ok(self
            .retries
            .values()
            .map(|(at, _)| *at)
            .min()
            .filter(|_| !self.graph.is_held()))
    }

    /// The shape of the next attempt of a task whose last one ran out of GPU memory and is to get
    /// more.
    fn raised_shape(&self, brain: &Brain, name: &FileName) -> Result<Option<Shape>> {
        let record = records::read(&brain.rig, &self.id, name.id, name.attempt)?;
        let next = record
            .and_then(|record| record.gpu_memory)
            .and_then(|memory| memory.next);
        let Some(need) = next else { return Ok(None) };
        let spec = claim::peek(&brain.rig, Place::Retry(&self.id), name)?;
        Ok(spec.map(|spec| spec.raised_shape(need)))
    }

    /// Each item of a failed group becomes a task of its own.
    pub(super) fn split(
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
        if submit::manifest(&brain.rig, &self.id, &folder)?.is_some() {
            return self.finish_split(brain, task, instance, held, &folder);
        }
        let made = match expand::make_split(brain, self, task, &held.spec) {
            Ok(made) => made,
            Err(NotMade::NotNow(error)) => return Err(error),
            Err(NotMade::Never(reason)) => {
                tracing::warn!(batch = %self.id, "{name} cannot be split: {reason}");
                drop(held);
                claim::give_up(&brain.rig, &self.id, &name)?;
                self.graph.moved(task, instance, name, State::Failed);
                return Ok(());
            }
        };
        let tasks = made.into_iter().map(|new| (new.name, new.spec));
        submit::expand(&brain.rig, &self.id, &folder, tasks, brain.durability)?;
        self.finish_split(brain, task, instance, held, &folder)
    }

    /// The items of a group have their task files: takes them up, and the group goes. Done again
    /// after an error or a crash, it finds what is there.
    fn finish_split(
        &mut self,
        brain: &mut Brain,
        task: usize,
        instance: usize,
        held: Held,
        folder: &str,
    ) -> Result<()> {
        let mut new = self.on_disk(brain, folder)?;
        let count = new.len();
        for (name, ..) in &new {
            self.folders.insert(name.id, folder.to_owned());
        }
        // After a restart the graph has them already.
        new.retain(|(name, ..)| self.graph.find(name.id).is_none());
        let name = held.name;
        let under = name.next_attempt(false);
        let reason = format!("split into its {count} items");
        let record = record_of(&held.spec, &under, Outcome::Cancelled { reason });
        records::replace(&brain.rig, &record)?;
        held.cancel(&brain.rig, &under)?;
        // First the new ones, so that the task is not over in between.
        self.graph.expanded(task, new);
        self.graph.moved(task, instance, under, State::Split);
        Ok(())
    }

    /// Writes the lists of failed items (`{FAILED_FILE:task}`) of what a task depends on, before
    /// the task can start.
    pub(super) fn list_failures(&mut self, dependant: usize) -> Result<()> {
        for dep in self.graph.whole_deps(dependant) {
            if self.plan.tasks[dep].foreach.is_none()
                || !self.graph.is_good(dep)
                || self.listed.contains(&dep)
            {
                continue;
            }
            let failed: Vec<&str> = self.graph.nodes()[dep]
                .instances
                .iter()
                .filter(|instance| matches!(instance.state, State::Failed | State::Cancelled))
                .filter_map(|instance| instance.item.as_deref())
                .collect();
            expand::write_failed_file(self, dep, &failed)?;
            self.listed.insert(dep);
        }
        Ok(())
    }
}

/// What tasks may use of each GPU that a task may run on, as its agent told last.
fn budgets_mb(brain: &Brain, kind: FailureKind, on: &[String]) -> Vec<u64> {
    if kind != FailureKind::OutOfMemory {
        return Vec::new();
    }
    let gpus = brain.config.gpus.iter();
    gpus.filter(|gpu| on.is_empty() || on.contains(&gpu.name))
        .filter_map(|gpu| {
            let beat = presence::heartbeat(&brain.rig, &gpu.name).ok().flatten()?;
            Some(beat.gpu?.budget_mb)
        })
        .collect()
}
