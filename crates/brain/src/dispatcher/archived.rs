//! What the archive's thread does, seen from the loop.

use std::time::Instant;

use anyhow::Result;
use rigor_queue::name::TaskId;
use rigor_queue::rig::{PLAN_TASK, is_safe_name};

use super::Dispatcher;
use crate::retention::{Closed, Done};

impl Dispatcher {
    /// Lets the thread archive what is due. Returns when to look again.
    pub(super) fn archive(&mut self, now: Instant) -> Instant {
        let (batches, unopened) = (&self.batches, &self.unopened);
        self.retention.step(now, |batch| {
            let root = TaskId::derive(batch, PLAN_TASK, None);
            batches.contains_key(batch) || unopened.iter().any(|name| name.id == root)
        })
    }

    /// The thread has done something.
    pub(super) fn retained(&mut self, done: Done) {
        if let Some((batch, why)) = self.retention.take_in(done, Instant::now()) {
            tracing::warn!(batch = %batch,
                "Batch {batch} is over and cannot be archived: {why}; it stays as it is, and is tried again in an hour");
        }
        // A signal may wait for that batch.
        self.signalled = true;
    }

    /// Whether a signal has to wait for a batch that is archived or is being archived. That of a task
    /// has its batch as content: to search all archives for it would take the loop too long.
    pub(super) fn awaits_archive_for(&mut self, signal: &str, content: &str) -> Result<bool> {
        let Some((target, "retry")) = signal.rsplit_once('.') else {
            return Ok(false);
        };
        let batch = match target.parse::<TaskId>() {
            Ok(_) => content.trim(),
            Err(_) => target,
        };
        if !is_safe_name(batch) {
            return Ok(false);
        }
        self.awaits_archive(batch)
    }

    /// Whether a batch that is to be opened again has to be waited for.
    ///
    /// # Errors
    ///
    /// It cannot be taken out of the archive.
    fn awaits_archive(&mut self, batch: &str) -> Result<bool> {
        if self.batches.contains_key(batch) {
            return Ok(false);
        }
        match self.retention.keeps_closed(&self.brain.rig, batch) {
            Closed::No => Ok(false),
            Closed::ForNow => Ok(true),
            Closed::Stuck(why) => {
                anyhow::bail!("batch {batch} cannot be taken out of the archive: {why}")
            }
        }
    }

    pub(super) fn or_say(&self, what: &str, result: Result<()>) {
        if let Err(error) = result {
            tracing::error!("{what}: {error:#}");
        }
    }
}
