//! The claim lock, which is the lease: it lives on the inode, survives the rename, and is handed
//! to the worker as its standard input.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;

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
    pub(crate) fn try_acquire(file: File) -> io::Result<Result<Lease, File>> {
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
