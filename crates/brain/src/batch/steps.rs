//! Carrying out what the graph wants: task files are made, released, cancelled.

use super::*;

impl Batch {
    pub(super) fn expand(&mut self, brain: &mut Brain, task: usize) -> Result<()> {
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

    pub(super) fn release(
        &mut self,
        brain: &mut Brain,
        task: usize,
        name: &FileName,
    ) -> Result<bool> {
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
}
