//! Errors name the operation, the path and what can be done.

use std::io;
use std::path::{Path, PathBuf};

use rigor_queue::QueueError;
use rigor_queue::name::FileName;
use rigor_queue::task::TaskSpec;

/// What can go wrong with an attempt.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The rig directory.
    #[error(transparent)]
    Queue(#[from] QueueError),
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
    /// The worker could not be started. The lease is free, the file still lies in `processing/`:
    /// [`settle_unstarted`](crate::settle_unstarted) moves it on.
    #[error("start the worker {} for task {}: {source}", worker.display(), spec.name)]
    NotStarted {
        /// The task file.
        name: FileName,
        /// What it says.
        spec: Box<TaskSpec>,
        /// The worker's program.
        worker: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No program named `worker`.
    #[error("no `worker` beside {} or on PATH; install Rigor's programs into one directory", beside.display())]
    NoWorker {
        /// Where it should lie: the directory of the running program.
        beside: PathBuf,
    },
    /// Processes of the attempt survive SIGKILL: what they hold (GPU memory, files) is not free
    /// and the task must not run again.
    #[error(
        "processes {pids:?} of attempt {attempt} survive SIGKILL after {grace_ms} ms (a driver that hangs, most often); the task stays where it is: see `dmesg`, and reset the device or restart the machine"
    )]
    Unkillable {
        /// `<id>.aN`.
        attempt: String,
        /// Who lives, as far as it can be seen.
        pids: Vec<u32>,
        /// How long was waited.
        grace_ms: u64,
    },
    /// The task file is not in `processing/` any more, or its lock does not come free.
    #[error("{} cannot be moved on: {why}", path.display())]
    NotOurs {
        /// The task file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

impl ExecError {
    pub(crate) fn io(
        operation: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(io::Error) -> ExecError {
        let path = path.as_ref().to_owned();
        move |source| ExecError::Io {
            operation,
            path,
            source,
        }
    }

    /// Whether the disk is full: the attempt waits and is settled again when there is room.
    pub fn is_storage_full(&self) -> bool {
        let kind = match self {
            ExecError::Queue(error) => error.io_kind(),
            ExecError::Io { source, .. } | ExecError::NotStarted { source, .. } => {
                Some(source.kind())
            }
            ExecError::NoWorker { .. }
            | ExecError::Unkillable { .. }
            | ExecError::NotOurs { .. } => None,
        };
        matches!(
            kind,
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        )
    }
}
