//! Errors name the operation and the path; what to do about them is said where it is known.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with a rig directory.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The system refused an operation.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried: a verb.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A directory that cannot be used as a rig.
    #[error("{} cannot be used as a rig: {why}", path.display())]
    Unfit {
        /// The directory.
        path: PathBuf,
        /// Why, and the remedy.
        why: String,
    },
    /// A component's lock is held by a living process.
    #[error("{name} is already running here ({holder}); stop it first, or use another name")]
    Held {
        /// The agent's name, or `brain`.
        name: String,
        /// Who holds it, as far as the lock file says.
        holder: String,
    },
    /// A file that could not be understood.
    #[error("{}: {why}", path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl QueueError {
    pub(crate) fn io(
        operation: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(io::Error) -> QueueError {
        let path = path.as_ref().to_owned();
        move |source| QueueError::Io {
            operation,
            path,
            source,
        }
    }

    pub(crate) fn errno(
        operation: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(rustix::io::Errno) -> QueueError {
        let path = path.as_ref().to_owned();
        move |errno| QueueError::Io {
            operation,
            path,
            source: errno.into(),
        }
    }

    /// The system's error, if it is one.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            QueueError::Io { source, .. } => Some(source.kind()),
            QueueError::Unfit { .. } | QueueError::Held { .. } | QueueError::Untrusted { .. } => {
                None
            }
        }
    }
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, QueueError>;
