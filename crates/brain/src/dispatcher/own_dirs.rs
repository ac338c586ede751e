//! Nothing is done in a rig of which a directory was replaced by a link, until it is one again.

use std::time::Instant;

use rigor_queue::rig::BRAIN;

use super::Dispatcher;

/// What fails, for the log.
const WHAT: &str = "use the rig's directories";

impl Dispatcher {
    /// Whether every directory of the rig is the rig's own; looked at now and then. Where one is a
    /// link, that is said until it is mended.
    pub(super) fn owns_dirs(&mut self, now: Instant) -> bool {
        if now < self.next.dirs {
            return self.linked.is_none();
        }
        self.next.dirs = now + self.brain.config.timing.lock_poll;
        match self.brain.rig.check_dirs(Some(BRAIN)) {
            Ok(()) if self.linked.take().is_some() => {
                self.content(WHAT);
                // A directory that was put there is another one than was watched.
                self.brain.watch_again();
                self.rescan = true;
                self.next.agents = now;
            }
            Ok(()) => {}
            Err(error) => {
                self.complain(WHAT, &error.to_string());
                self.linked = Some(error.to_string());
            }
        }
        self.linked.is_none()
    }

    /// All that is done meanwhile: the heartbeat says why nothing is. Returns when to look again.
    pub(super) fn beat_alone(&mut self, now: Instant) -> Instant {
        if now >= self.next.beat {
            self.next.beat = now + self.brain.config.timing.heartbeat_every;
            self.part("write the heartbeat", |this| this.beat());
        }
        self.next.dirs.min(self.next.beat)
    }
}
