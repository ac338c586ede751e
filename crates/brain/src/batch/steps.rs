//! Carrying out what the graph wants: task files are made, released, cancelled.

use super::*;

impl Batch {
    pub(super) fn expand(&mut self, brain: &mut Brain, task: usize) -> Result<()> {
        let began = Instant::now();
        let plan_task = &self.plan.tasks[task];
        let made = match expand::make(brain, self, task) {
            Ok(made) => made,
            Err(NotMade::NotNow(error)) => return Err(error),
            Err(NotMade::Never(reason)) => {
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
        let mut instances = instances_of(&made);
        let tasks = made.into_iter().map(|new| (new.name, new.spec));
        let created = submit::expand(&brain.rig, &self.id, &plan_task.id, tasks, brain.durability)?;
        if !created {
            // An earlier try got as far as the rename: what lies there counts, not these names.
            instances = self.on_disk(brain, &plan_task.id)?;
        }
        let count = instances.len();
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

    pub(super) fn release(
        &mut self,
        brain: &mut Brain,
        task: usize,
        instance: usize,
    ) -> Result<Option<TaskId>> {
        let name = self.graph.instance(task, instance).name;
        let folder = self.folder(task, name.id);
        let class = self.plan.tasks[task].class;
        // Gone: an earlier try moved it, or the next look at the lanes finds where it is.
        let moved = claim::release(&brain.rig, &self.id, &folder, class, &name)?;
        rigor_queue::crash_point!("released");
        Ok((moved == Moved::Done).then_some(name.id))
    }

    /// Cancels an instance wherever it lies; one that runs is told to end and is cancelled when
    /// it has.
    pub(super) fn cancel(
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
                folder = self.folder(task, name.id);
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
                Lane::Queue => brain.queued_name(class, &name).unwrap_or(name),
                _ => name,
            };
            match claim::open_in(&brain.rig, *place, &current)? {
                Opened::Held(held) => {
                    // What happened to the last attempt stays on record; the reason for the end
                    // is the next one's.
                    let under = match place.lane() {
                        Lane::Retry => current.next_attempt(false),
                        _ => current,
                    };
                    let record = record_of(
                        &held.spec,
                        &under,
                        Outcome::Cancelled {
                            reason: reason.to_owned(),
                        },
                    );
                    records::replace(&brain.rig, &record)?;
                    held.cancel(&brain.rig, &under)?;
                    rigor_queue::crash_point!("cancelled");
                    self.events.write("cancelled", json!({"name": self.title(task, instance), "id": name.id, "reason": reason}));
                    tracing::info!(task = %name.id, batch = %self.id, "Cancelled {} ({}): {reason}", self.title(task, instance), name.id.short());
                    self.changed = true;
                    self.graph.moved(task, instance, under, State::Cancelled);
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
                &json!({ "reason": reason }).to_string(),
            )?;
            self.graph.moved(task, instance, running, State::Released);
        } else {
            // Between two lanes at this moment: look again soon.
            brain.cancel_later(&self.id, name.id, reason);
        }
        Ok(())
    }
}
