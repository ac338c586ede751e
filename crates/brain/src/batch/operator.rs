//! What an operator asks of a batch: hold it, cancel it, try again.

use super::*;

impl Batch {
    /// An operator holds the batch: what nobody has claimed goes back to waiting.
    pub(crate) fn hold(&mut self, brain: &mut Brain) -> Result<()> {
        self.graph.hold();
        self.changed = true;
        brain.rescan()?;
        for task in 0..self.plan.tasks.len() {
            let class = self.plan.tasks[task].class;
            for instance in 0..self.graph.nodes()[task].instances.len() {
                let standing = self.graph.instance(task, instance);
                if standing.state != State::Released {
                    continue;
                }
                // Its attempt may have risen since.
                let known = standing.name;
                let Some(name) = brain.queued_name(class, &known) else {
                    continue;
                };
                // Busy: an agent is about to take it. Gone: it has.
                if let Opened::Held(held) = claim::open_in(&brain.rig, Place::Queue(class), &name)?
                {
                    let folder = self.folder(task, name.id);
                    held.withdraw(&brain.rig, &folder)?;
                    self.graph.moved(task, instance, name, State::Waiting);
                }
            }
        }
        Ok(())
    }

    /// Ends a hold.
    pub(crate) fn release_hold(&mut self) {
        self.changed = true;
        self.graph.release();
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
        brain.clear_cancel(&self.id);
        self.listed.clear();
        self.changed = true;
        self.graph.reopen();
        let revived = self.revive_files(brain, only);
        // Whatever became of the files: the gates were closed and must be looked at.
        self.graph.start();
        let count = revived?;
        self.events.write("revived", json!({"count": count}));
        Ok(count)
    }

    fn revive_files(&mut self, brain: &mut Brain, only: Option<TaskId>) -> Result<usize> {
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
                let folder = self.folder(task, name.id);
                if let Some(next) = claim::revive(&brain.rig, from, &self.id, &folder, &name)? {
                    self.graph.moved(task, instance, next, State::Waiting);
                    revived += 1;
                }
            }
        }
        Ok(revived)
    }
}
