//! What an operator asks of a batch: hold it, cancel it, try again.

use super::*;

impl Batch {
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
}
