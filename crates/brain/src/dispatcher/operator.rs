//! Signals: what an operator asks of the brain.

use super::*;
use crate::expand;

impl Dispatcher {
    pub(super) fn cancel_late(&mut self) {
        for late in std::mem::take(&mut self.brain.late) {
            if let Some(batch) = self.batches.get_mut(&late.batch)
                && let Some((task, instance)) = batch.graph.find(late.id)
            {
                batch.graph.cancel(task, instance, &late.reason);
            }
        }
    }

    pub(super) fn take_signals(&mut self) -> Result<()> {
        let signals = presence::signals(&self.brain.rig, BRAIN)?;
        let level = signals
            .iter()
            .find(|(signal, _)| signal == log_level::SIGNAL);
        if !self
            .level
            .follow(level.map(|(_, content)| content.as_str()))
        {
            presence::unsend(&self.brain.rig, BRAIN, log_level::SIGNAL)?;
        }
        let mut waits = Ok(());
        for (signal, content) in signals {
            if signal == log_level::SIGNAL {
                continue;
            }
            if self.is_too_early(&signal) {
                self.signalled = true;
                continue;
            }
            match self.awaits_archive_for(&signal, &content) {
                Ok(false) => {}
                Ok(true) => continue,
                Err(error) => {
                    self.or_say(&signal, Err(error));
                    presence::unsend(&self.brain.rig, BRAIN, &signal)?;
                    continue;
                }
            }
            match self.obey(&signal) {
                // What an operator has asked for stays asked for.
                Err(error) if expand::is_for_want_of_room(&error) => {
                    waits = Err(error.context(signal));
                    continue;
                }
                result => self.or_say(&signal, result),
            }
            presence::unsend(&self.brain.rig, BRAIN, &signal)?;
        }
        waits
    }

    /// Whether a signal may be about a batch that was submitted and that the brain has not opened
    /// yet: its submission has just come, or something stands in the way.
    fn is_too_early(&mut self, signal: &str) -> bool {
        let Some((target, verb)) = signal.rsplit_once('.') else {
            return false;
        };
        if matches!(verb, "abort" | "kill") {
            return false;
        }
        match target.parse::<TaskId>() {
            Ok(id) => {
                let known = |batch: &Batch| batch.graph.find(id).is_some();
                !self.unopened.is_empty()
                    && !self.batches.values().any(known)
                    && self.brain.index(Class::Meta).find(id).is_none()
            }
            Err(_) => {
                let root = TaskId::derive(target, "_plan", None);
                !self.batches.contains_key(target)
                    && (self.unopened.iter().any(|name| name.id == root)
                        || self.brain.index(Class::Brain).find(root).is_some())
            }
        }
    }

    pub(super) fn obey(&mut self, signal: &str) -> Result<()> {
        let Some((target, verb)) = signal.rsplit_once('.') else {
            anyhow::bail!("it is no signal that the brain knows");
        };
        let id: Option<TaskId> = target.parse().ok();
        tracing::info!("Signal: {verb} {target}");
        match (verb, id) {
            ("abort" | "kill", _) => {
                self.attempts.abort(target, "ended by request");
                Ok(())
            }
            ("cancel", None) if !self.batches.contains_key(target) => {
                tracing::info!(batch = %target, "Batch {target} is not active: there is nothing to cancel");
                Ok(())
            }
            ("cancel", None) if self.brain.is_cancelled(target) => {
                tracing::info!(batch = %target, "Batch {target} is being cancelled already");
                self.batch(target)?.cancel_all();
                Ok(())
            }
            ("cancel", None) => {
                self.brain.set_cancel(target)?;
                self.batch(target)?.cancel_all();
                Ok(())
            }
            ("hold", None) => {
                self.batch(target)?;
                self.brain.set_hold(target)?;
                match self.batches.get_mut(target) {
                    Some(batch) => batch.hold(&mut self.brain),
                    None => anyhow::bail!("batch {target} is not active"),
                }
            }
            ("release", None) => {
                self.brain.clear_hold(target);
                self.batch(target)?.release_hold();
                Ok(())
            }
            ("retry", None) => self.revive(target, None),
            ("cancel", Some(id)) => {
                let owner = self
                    .batches
                    .values_mut()
                    .find(|batch| batch.graph.find(id).is_some());
                match owner {
                    Some(batch) => batch.cancel_one(id),
                    None if self.placer.cancel(&mut self.brain, id)? => self.place_wanted = true,
                    None => anyhow::bail!("no active batch has task {target}"),
                }
                Ok(())
            }
            ("retry", Some(id)) => {
                let batch = self.batch_of(id)?;
                self.revive(&batch, Some(id))
            }
            _ => anyhow::bail!("it is no signal that the brain knows"),
        }
    }

    pub(super) fn batch(&mut self, id: &str) -> Result<&mut Batch> {
        self.batches
            .get_mut(id)
            .ok_or_else(|| anyhow::anyhow!("batch {id} is not active"))
    }

    /// The batch of a task that failed or was cancelled, active or not.
    pub(super) fn batch_of(&self, id: TaskId) -> Result<String> {
        if let Some(batch) = self
            .batches
            .values()
            .find(|batch| batch.graph.find(id).is_some())
        {
            return Ok(batch.id.clone());
        }
        for lane in [Lane::Failed, Lane::Cancelled] {
            for batch in self.brain.rig.subdirs(lane)? {
                let place = if lane == Lane::Failed {
                    Place::Failed(&batch)
                } else {
                    Place::Cancelled(&batch)
                };
                if self
                    .brain
                    .rig
                    .list(place)?
                    .names
                    .iter()
                    .any(|name| name.id == id)
                {
                    return Ok(batch);
                }
            }
        }
        anyhow::bail!("no task {id} has failed or was cancelled")
    }

    /// Opens a batch again if it is closed, and revives what failed.
    pub(super) fn revive(&mut self, id: &str, only: Option<TaskId>) -> Result<()> {
        if !self.batches.contains_key(id) {
            self.reopen(id)?;
        }
        let Some(batch) = self.batches.get_mut(id) else {
            anyhow::bail!("batch {id} could not be opened again");
        };
        let tasks = batch.revive(&mut self.brain, only)?;
        tracing::info!(batch = %id, "Batch {id}: tried again: {}", count(tasks, "task"));
        Ok(())
    }

    pub(super) fn reopen(&mut self, id: &str) -> Result<()> {
        let root = TaskId::derive(id, "_plan", None);
        let rig = self.brain.rig.clone();
        for place in [Place::Failed(id), Place::Cancelled(id), Place::Complete(id)] {
            let found = rig
                .list(place)?
                .names
                .into_iter()
                .find(|name| name.id == root);
            let Some(name) = found else { continue };
            if let Opened::Held(held) = claim::open_in(&rig, place, &name)?
                && let Some(held) = held.reopen(&rig)?
            {
                return self.open_batch(held);
            }
        }
        anyhow::bail!("there is no batch {id}")
    }
}
