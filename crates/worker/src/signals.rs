//! SIGTERM and SIGCHLD as a descriptor that can be polled.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGCHLD, SIGTERM};

/// What wakes the worker: a signal, or a thread of its own.
pub(crate) struct Signals {
    terminate: Arc<AtomicBool>,
    reader: UnixStream,
    writer: UnixStream,
}

impl Signals {
    /// Installs the handlers.
    pub(crate) fn new() -> io::Result<Signals> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        writer.set_nonblocking(true)?;
        let terminate = Arc::new(AtomicBool::new(false));
        // Handlers run in the order of registration: the flag is up when the pipe wakes us.
        signal_hook::flag::register(SIGTERM, Arc::clone(&terminate))?;
        signal_hook::low_level::pipe::register(SIGTERM, writer.try_clone()?)?;
        signal_hook::low_level::pipe::register(SIGCHLD, writer.try_clone()?)?;
        Ok(Signals {
            terminate,
            reader,
            writer,
        })
    }

    /// Whether SIGTERM came.
    pub(crate) fn terminate(&self) -> bool {
        self.terminate.load(Ordering::SeqCst)
    }

    /// For a thread that wants to wake the main one.
    pub(crate) fn waker(&self) -> io::Result<Waker> {
        Ok(Waker(self.writer.try_clone()?))
    }

    /// Waits until something comes or `until`, and with `also` until that is readable (or
    /// closed). Returns whether `also` is.
    pub(crate) fn wait(&mut self, also: Option<BorrowedFd<'_>>, until: Option<Instant>) -> bool {
        let timeout = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        let mut ready = false;
        {
            let own = self.reader.as_fd();
            let mut fds = vec![PollFd::from_borrowed_fd(own, PollFlags::IN)];
            fds.extend(also.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            // EINTR means that a handler ran: the caller looks at everything anyway.
            if poll(&mut fds, timeout.as_ref()).is_ok() {
                ready = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
            }
        }
        let mut sink = [0; 64];
        while matches!(self.reader.read(&mut sink), Ok(1..)) {}
        ready
    }
}

/// Wakes the main thread.
pub(crate) struct Waker(UnixStream);

impl Waker {
    pub(crate) fn wake(&self) {
        // A full pipe wakes as well.
        let _ = (&self.0).write(b"!");
    }
}

/// Rounded up to a millisecond, so that a wait never ends just before its time and spins.
fn timespec(duration: Duration) -> Timespec {
    let duration = duration + Duration::from_micros(999);
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
