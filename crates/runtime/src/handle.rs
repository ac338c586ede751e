//! The first process of a runtime: a child, or one that an earlier agent started.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process whose end can be waited for.
pub(crate) enum Handle {
    /// Started by this agent, which is told its exit status.
    Child(tokio::process::Child),
    /// Taken over: a pidfd becomes readable when it ends, its exit status goes to its parent.
    Adopted(AsyncFd<OwnedFd>),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Status(ExitStatus),
    /// Only its parent is told.
    Unknown,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Status(status) => status.fmt(f),
            End::Unknown => f.write_str("its exit status went to another process"),
        }
    }
}

impl Handle {
    /// `pidfd`: of a process that is not a child. Inside a tokio runtime.
    pub(crate) fn adopted(pidfd: OwnedFd) -> io::Result<Handle> {
        // SAFETY: an owned descriptor is the same one until it is dropped, and is dropped with this.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        Ok(Handle::Adopted(pidfd))
    }

    /// Waits for its end. May be dropped at any point.
    pub(crate) async fn wait(&mut self) -> io::Result<End> {
        match self {
            Handle::Child(child) => child.wait().await.map(End::Status),
            Handle::Adopted(pidfd) => {
                // Readiness is never cleared: it has ended for good.
                pidfd.readable().await?.retain_ready();
                Ok(End::Unknown)
            }
        }
    }

    /// Its end, if it has ended.
    pub(crate) fn try_wait(&mut self) -> io::Result<Option<End>> {
        match self {
            Handle::Child(child) => Ok(child.try_wait()?.map(End::Status)),
            Handle::Adopted(pidfd) => {
                let mut wanted = [PollFd::new(pidfd.get_ref(), PollFlags::IN)];
                let now = Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                };
                let ended = poll(&mut wanted, Some(&now))? > 0;
                Ok(ended.then_some(End::Unknown))
            }
        }
    }
}
