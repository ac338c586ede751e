//! After a while in which this process did not run: what was taken back meanwhile is not its own
//! any more.

use std::collections::HashSet;
use std::time::Duration;

use rigor_exec::ExecError;
use rigor_queue::name::FileName;
use rigor_queue::rig::Place;

use crate::agent::Agent;

/// Time that also passes while the machine sleeps.
pub(crate) fn clock() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

impl Agent {
    /// Looks whether a wait of `wait` that began at `since` took far longer, and if so, at what
    /// became of the agent's tasks.
    pub(crate) fn after_wait(&mut self, since: Duration, wait: Duration) {
        let gap = clock().saturating_sub(since).saturating_sub(wait);
        if gap >= self.config.timing.heartbeat_warn {
            tracing::warn!(
                "This process did not run for {}s (stopped, or the machine was asleep)",
                gap.as_secs()
            );
            self.drop_fenced();
        }
    }

    /// The same of a look at the rig that began at `since`.
    pub(crate) fn after_look(&mut self, since: Duration) {
        let gap = clock().saturating_sub(since);
        if gap >= self.config.timing.heartbeat_warn {
            tracing::warn!(
                "One look at the rig took {}s (this process was stopped, or the disk did not answer)",
                gap.as_secs()
            );
            self.drop_fenced();
        }
    }

    /// Ends the attempts whose task is not in `processing/` any more. They are not settled: a
    /// record of theirs would replace that of whoever took the task back.
    fn drop_fenced(&mut self) {
        // Events of that time may be lost.
        self.rescan();
        let listing = match self.rig.list(Place::Processing(&self.name)) {
            Ok(listing) => listing,
            Err(error) => return self.in_trouble(&error.to_string()),
        };
        let ours: HashSet<FileName> = listing.names.into_iter().collect();
        for mut attempt in self.attempts.take_others(&ours) {
            let name = *attempt.name();
            let short = name.id.short();
            tracing::warn!(
                task = %name.id,
                attempt = name.attempt,
                "Fenced: {short} was taken back while this process did not run; its result is dropped"
            );
            let why = "it was taken back from its agent";
            let grace = self.config.timing.grace;
            match attempt.running().kill(&self.containment, grace, why) {
                Ok(_) => {}
                Err(error @ ExecError::Unkillable { .. }) => {
                    self.quarantine_gpu(&error.to_string());
                }
                Err(error) => tracing::error!("Cannot end {short}: {error}"),
            }
            attempt.reap();
            self.give_back_memory(attempt.lease());
        }
    }
}
