//! What keeps an agent from claiming although its GPU is well: a rig that cannot be read or written,
//! or workers that do not start.

use std::time::{Duration, Instant};

use crate::agent::Agent;

/// After a failure of the rig's file system, and doubling.
const TROUBLE_FIRST: Duration = Duration::from_secs(1);
/// The longest wait after a failure of the rig's file system.
const TROUBLE_MOST: Duration = Duration::from_secs(60);

/// The rig's directory cannot be used, or no worker started: nothing is claimed until `until`.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// No worker could be started, so only a start shows that it is over.
    starting: bool,
    /// A directory is a link: only a look at all of them shows that it is over.
    linked: bool,
    pub(crate) reason: String,
    pub(crate) until: Instant,
    wait: Duration,
}

impl Agent {
    /// The trouble that keeps the agent from claiming anything now: for a while after a failure,
    /// while a directory is a link, and until results that could not be written are. There would
    /// only be more of them.
    pub(crate) fn refusing(&self) -> Option<&Trouble> {
        self.trouble.as_ref().filter(|trouble| {
            trouble.linked || trouble.until > Instant::now() || self.has_unfinished()
        })
    }

    /// Claims nothing for a while: the rig's directory cannot be read or written.
    pub(crate) fn in_trouble(&mut self, reason: &str) {
        self.pause_claims(reason, false);
    }

    /// Claims nothing for a while: workers cannot be started.
    pub(crate) fn cannot_start(&mut self, reason: &str) {
        self.pause_claims(reason, true);
    }

    fn pause_claims(&mut self, reason: &str, starting: bool) {
        let now = Instant::now();
        let before = self.trouble.take();
        let wait = match &before {
            // Several failures of one try count once.
            Some(trouble) if trouble.until > now => trouble.wait,
            Some(trouble) => (trouble.wait * 2).min(TROUBLE_MOST),
            None => TROUBLE_FIRST,
        };
        if before
            .as_ref()
            .is_none_or(|trouble| trouble.reason != reason)
        {
            tracing::error!(
                "Claiming nothing: {reason}; tried again in {}s, and ever more rarely",
                wait.as_secs()
            );
        }
        let (was_starting, linked) =
            before.map_or((false, false), |before| (before.starting, before.linked));
        self.trouble = Some(Trouble {
            starting: starting || was_starting,
            linked,
            reason: reason.to_owned(),
            until: now + wait,
            wait,
        });
    }

    /// What failed works again, and nothing waits for it any more.
    pub(crate) fn trouble_over(&mut self) {
        let stays = self
            .trouble
            .as_ref()
            .is_some_and(|it| it.starting || it.linked);
        if !stays && !self.has_unfinished() && self.trouble.take().is_some() {
            tracing::info!("Claiming again: what failed works");
        }
    }

    /// A worker was started.
    pub(crate) fn worker_started(&mut self) {
        if let Some(trouble) = &mut self.trouble {
            trouble.starting = false;
            self.trouble_over();
        }
    }

    /// Claims nothing while a directory of the rig is a link: what lies behind it is nobody's
    /// business here.
    pub(crate) fn look_at_dirs(&mut self) {
        match self.rig.check_dirs(Some(&self.name)) {
            Err(error) => {
                self.in_trouble(&error.to_string());
                if let Some(trouble) = &mut self.trouble {
                    trouble.linked = true;
                }
            }
            Ok(()) if self.trouble.as_ref().is_some_and(|it| it.linked) => {
                // A directory that was put there is another one than was watched.
                if let Some(watcher) = &mut self.watcher
                    && let Err(error) = watcher.watch_again()
                {
                    tracing::warn!("{error}; directories are read every second instead");
                    self.polling = true;
                }
                self.rescan_soon(Duration::ZERO);
                if let Some(trouble) = &mut self.trouble {
                    trouble.linked = false;
                    trouble.until = Instant::now();
                }
                self.trouble_over();
            }
            Ok(()) => {}
        }
    }
}
