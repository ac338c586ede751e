//! Errors name the operation and the path; what to do about them is said where it is known.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with a rig directory.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The system refused an operation.
    #[error("{operation} {}: {cause}", path.display())]
    Io {
        /// What was tried: a verb.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not. Not the error's source: it is in the message, and a chain would say it twice.
        cause: io::Error,
    },
    /// The system refused a move.
    #[error("rename {} to {}: {cause}", from.display(), to.display())]
    Move {
        /// The file.
        from: PathBuf,
        /// Where it was to go.
        to: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// A symbolic link in place of a directory of the rig.
    #[error(
        "{} is a symbolic link to {}, and nothing follows a link out of the rig: put the directory itself in its place", path.display(), to.display()
    )]
    Linked {
        /// Where the directory should be.
        path: PathBuf,
        /// Where the link leads.
        to: PathBuf,
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
    /// A move that the protocol does not have: a defect of the caller.
    #[error("{} stays where it is: {why}; please report this", path.display())]
    Illegal {
        /// The task file.
        path: PathBuf,
        /// What the table of moves says.
        why: crate::lane::Illegal,
    },
    /// The kernel reports no changes of a directory.
    #[error("{} cannot be watched: {why}", path.display())]
    Unwatched {
        /// The directory, or `inotify` where there is none at all.
        path: PathBuf,
        /// Why not, and the remedy.
        why: String,
    },
    /// An fsync has failed before: nothing is written or moved any more, since nobody knows which
    /// of the bytes written until then reached the disk, and a second fsync would not tell.
    #[error(
        "{} is read-only for this program since {failed}: what it had written may not be on the disk. Look at the disk (`dmesg`), then start this program again", root.display()
    )]
    ReadOnly {
        /// The rig.
        root: PathBuf,
        /// The fsync that failed: operation, path, cause.
        failed: String,
    },
    /// A task file that is visible, but not known to be on the disk, and that could not be taken
    /// back.
    #[error("{cause}; {} was claimed already or could not be taken back: it may run, and it may be lost in a power cut", path.display())]
    Unacknowledged {
        /// Where it was put.
        path: PathBuf,
        /// What failed.
        cause: Box<QueueError>,
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
        move |cause| QueueError::Io {
            operation,
            path,
            cause: bare(cause),
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
            cause: errno.into(),
        }
    }

    /// The system's error, if it is one.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            QueueError::Io { cause, .. } | QueueError::Move { cause, .. } => Some(cause.kind()),
            QueueError::Unacknowledged { cause, .. } => cause.io_kind(),
            QueueError::Linked { .. }
            | QueueError::Unfit { .. }
            | QueueError::Held { .. }
            | QueueError::Illegal { .. }
            | QueueError::Unwatched { .. }
            | QueueError::ReadOnly { .. }
            | QueueError::Untrusted { .. } => None,
        }
    }
}

/// An error without the name of a temporary file, which is another one at each try: the same
/// failure must read the same, or it is said again and again.
fn bare(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(_) => error,
        // tempfile's words: `No space left on device (os error 28) at path "..."`.
        None => match error.to_string().split_once(" at path ") {
            Some((what, _)) => io::Error::new(error.kind(), what.to_owned()),
            None => error,
        },
    }
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, QueueError>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_reads_the_same() {
        let dir = Path::new("/proc/self");
        let failed = || {
            let error = tempfile::Builder::new().tempfile_in(dir).unwrap_err();
            QueueError::io("create a file in", dir)(error).to_string()
        };
        assert_eq!(failed(), failed());
        assert!(
            failed().starts_with("create a file in /proc/self: "),
            "{}",
            failed()
        );
        use std::error::Error;
        let error = QueueError::io("read", dir)(io::Error::from_raw_os_error(28));
        assert!(error.source().is_none(), "a chain would say it twice");
    }
}
