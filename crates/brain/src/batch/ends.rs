//! Attempts that ended: what they leave, and what follows a failed one.

use super::*;

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
            brain.note_completed(Instant::now());
            self.events.write(
                "completed",
                json!({"name": record.name, "id": record.id, "attempt": record.attempt,
                       "agent": record.agent, "seconds": record.duration_ms as f64 / 1000.0,
                       "model": record.llm.as_ref().map(|llm| &llm.model)}),
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
    pub(super) fn list_failures(&mut self, task: usize) -> Result<()> {
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
