//! The claim lock, which is the lease: it lives on the inode, survives the rename, and is handed
//! to the worker as its standard input.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::error::{QueueError, Result};

/// Between two tries to take a lock.
const POLL: Duration = Duration::from_millis(20);

/// An exclusive flock on an open task file.
///
/// Dropping it closes this process's descriptor. The lock is free once *every* process that got
/// the descriptor has closed it, so after [`Lease::into_stdio`] and the spawn only the worker
/// holds it, and the kernel frees it when the worker dies.
#[derive(Debug)]
pub struct Lease {
    file: File,
}

impl Lease {
    /// Locks without waiting. Returns the file if somebody else holds the lock.
    pub(crate) fn try_acquire(file: File) -> io::Result<std::result::Result<Lease, File>> {
        let mut lock = fd_lock::RwLock::new(file);
        let locked = match lock.try_write() {
            // The guard's drop calls LOCK_UN on the open file description, which the worker will
            // share; the lock has to end with the last descriptor instead.
            Ok(guard) => {
                mem::forget(guard);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => return Err(error),
        };
        let file = lock.into_inner();
        Ok(if locked {
            Ok(Lease { file })
        } else {
            Err(file)
        })
    }

    /// Locks the lock file at `path`, which is made where it is missing. The inner error is the file,
    /// locked by somebody else.
    pub(crate) fn of_path(path: &Path) -> Result<std::result::Result<Lease, File>> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(QueueError::io("open", path))?;
        Lease::try_acquire(file).map_err(QueueError::io("lock", path))
    }

    /// As [`of_path`](Lease::of_path), waiting for whoever has it for as long as `patience`; then
    /// [`QueueError::Held`] says that it is `holder`.
    pub(crate) fn wait_for_path(path: &Path, patience: Duration, holder: &str) -> Result<Lease> {
        let deadline = Instant::now() + patience;
        loop {
            match Lease::of_path(path)? {
                Ok(lease) => return Ok(lease),
                Err(_) if Instant::now() < deadline => std::thread::sleep(POLL),
                Err(_) => {
                    return Err(QueueError::Held {
                        name: path.display().to_string(),
                        holder: holder.to_owned(),
                    });
                }
            }
        }
    }

    /// Hands the lease to a child as its standard input. The parent's copy closes when the
    /// `Command` that took it is dropped.
    pub fn into_stdio(self) -> Stdio {
        Stdio::from(OwnedFd::from(self.file))
    }

    /// Takes over the lease that the parent handed to this process: moves it to a descriptor that
    /// no child inherits and puts /dev/null in its place. To be called before anything is started.
    pub fn from_stdin() -> io::Result<Lease> {
        let lease = rustix::io::fcntl_dupfd_cloexec(io::stdin().as_fd(), 3)?;
        let null = File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        Ok(Lease {
            file: File::from(lease),
        })
    }

    /// The locked file.
    pub fn file(&self) -> &File {
        &self.file
    }
}
