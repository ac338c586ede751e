//! Lines on their way to the record. Saying one never waits; WARNINGs and ERRORs are never dropped.
//!
//! A thread writes the lines in order. A line leaves the queue when it is written: while the
//! disk is full or hangs, lines wait, DEBUG and INFO lines that find [`CAPACITY`] lines waiting
//! are dropped and counted, and the others are kept however many they are.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::level::Level;

/// DEBUG and INFO lines are dropped when this many wait: some seconds of a busy rig at DEBUG,
/// and about a megabyte.
pub(crate) const CAPACITY: usize = 8192;
/// Between two tries to write a line that the file system refused.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What the queue itself has to say: as a line of its own, or elsewhere (`None`).
pub(crate) type Notice = Box<dyn Fn(Level, String) -> Option<String> + Send + Sync>;

/// A queue with its writing thread, which ends when the queue is dropped and empty.
pub(crate) struct Queue {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Something changed that the writer waits for.
    wake: Condvar,
    /// A line was written, or could not be.
    progress: Condvar,
    notice: Notice,
}

#[derive(Default)]
struct State {
    lines: VecDeque<String>,
    /// The writer has taken a line and is not done with it.
    writing: bool,
    dropped: u64,
    closed: bool,
}

impl Queue {
    /// Starts the thread. `write` gets one whole line at a time, again where it failed.
    pub(crate) fn start(
        thread_name: &str,
        notice: Notice,
        write: impl FnMut(&str) -> io::Result<()> + Send + 'static,
    ) -> Queue {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: Condvar::new(),
            progress: Condvar::new(),
            notice,
        });
        let writer = Arc::clone(&shared);
        let spawned = thread::Builder::new()
            .name(thread_name.to_owned())
            .spawn(move || writer.write_all(write));
        if let Err(error) = spawned {
            // Without threads the program cannot do its work either; it says so itself.
            eprintln!("cannot start the thread {thread_name} that writes the log: {error}");
        }
        Queue { shared }
    }

    /// Hands a line over.
    pub(crate) fn push(&self, line: String, level: Level) {
        let mut state = self.shared.lock();
        if level < Level::Warning && state.lines.len() >= CAPACITY {
            state.dropped += 1;
            return;
        }
        if state.lines.len() < CAPACITY {
            self.shared.confess(&mut state);
        }
        state.lines.push_back(line);
        drop(state);
        self.shared.wake.notify_one();
    }

    /// Waits until every line is written, at most `limit`; whether that is so.
    pub(crate) fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        while !state.lines.is_empty() || state.writing || state.dropped > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.progress.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics while it holds the lock half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the line about dropped lines where they would have stood.
    fn confess(&self, state: &mut State) {
        let dropped = std::mem::take(&mut state.dropped);
        if dropped > 0 {
            let lines = if dropped == 1 {
                "1 line"
            } else {
                &format!("{dropped} lines")
            };
            let message = format!(
                "{lines} at INFO or DEBUG dropped here: the log could not be written fast enough"
            );
            state.lines.extend((self.notice)(Level::Warning, message));
        }
    }

    fn write_all(&self, mut write: impl FnMut(&str) -> io::Result<()>) {
        let mut trouble: Option<(Instant, String)> = None;
        while let Some(line) = self.take() {
            let result = write(&line);
            let mut state = self.lock();
            state.writing = false;
            match result {
                Ok(()) => {
                    if let Some((since, error)) = trouble.take() {
                        let seconds = since.elapsed().as_secs();
                        let message =
                            format!("the log could not be written for {seconds}s: {error}");
                        state.lines.extend((self.notice)(Level::Warning, message));
                    }
                }
                Err(error) => {
                    state.lines.push_front(line);
                    trouble.get_or_insert_with(|| (Instant::now(), error.to_string()));
                    self.progress.notify_all();
                    if state.closed {
                        return;
                    }
                    let pause = self
                        .wake
                        .wait_timeout_while(state, RETRY_AFTER, |state| !state.closed);
                    drop(pause);
                    continue;
                }
            }
            drop(state);
            self.progress.notify_all();
        }
    }

    /// The next line; none when the queue is closed and empty.
    fn take(&self) -> Option<String> {
        let mut state = self.lock();
        loop {
            if state.lines.is_empty() {
                self.confess(&mut state);
            }
            if let Some(line) = state.lines.pop_front() {
                state.writing = true;
                return Some(line);
            }
            if state.closed {
                return None;
            }
            state = self
                .wake
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn notice() -> Notice {
        Box::new(|level, message| Some(format!("{level} {message}")))
    }

    /// A queue whose writer waits for a word before each line, and what it wrote.
    fn gated() -> (Queue, mpsc::Sender<bool>, Arc<Mutex<Vec<String>>>) {
        let (gate, opened) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let copy = Arc::clone(&written);
        let queue = Queue::start("test", notice(), move |line| {
            // A closed gate is an open one: the test has let go of it.
            if opened.recv().unwrap_or(true) {
                copy.lock().unwrap().push(line.to_owned());
                Ok(())
            } else {
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
        });
        (queue, gate, written)
    }

    #[test]
    fn a_full_queue_drops_info_but_no_warning_and_says_how_many() {
        let (queue, gate, written) = gated();
        for index in 0..CAPACITY + 10 {
            queue.push(format!("info {index}"), Level::Info);
        }
        for index in 0..3 * CAPACITY {
            queue.push(format!("warning {index}"), Level::Warning);
        }
        queue.push("lost".into(), Level::Debug);
        assert!(!queue.flush(Duration::ZERO));
        drop(gate);
        assert!(queue.flush(LIMIT));
        let written = written.lock().unwrap();
        let infos = written
            .iter()
            .filter(|line| line.starts_with("info "))
            .count();
        let warnings: Vec<&String> = written
            .iter()
            .filter(|line| line.starts_with("warning "))
            .collect();
        assert_eq!(warnings.len(), 3 * CAPACITY);
        assert!(
            warnings
                .iter()
                .enumerate()
                .all(|(index, line)| **line == format!("warning {index}"))
        );
        // The writer holds one line besides those that wait, once it has got that far.
        assert!((CAPACITY..=CAPACITY + 1).contains(&infos), "{infos}");
        let dropped = CAPACITY + 10 - infos + 1;
        assert_eq!(
            written.last().unwrap(),
            &format!(
                "WARNING {dropped} lines at INFO or DEBUG dropped here: the log could not be written fast enough"
            )
        );
    }

    #[test]
    fn a_refused_line_is_written_later_and_in_order() {
        let (queue, gate, written) = gated();
        queue.push("first".into(), Level::Info);
        queue.push("second".into(), Level::Error);
        gate.send(false).unwrap();
        drop(gate);
        assert!(queue.flush(LIMIT));
        let written = written.lock().unwrap();
        assert_eq!(written[..2], ["first", "second"]);
        assert!(
            written[2].starts_with("WARNING the log could not be written for "),
            "{}",
            written[2]
        );
        assert_eq!(written.len(), 3);
    }

    #[test]
    fn saying_something_never_waits_for_the_writer() {
        let (queue, _gate, _) = gated();
        let (said, heard) = mpsc::channel();
        thread::spawn(move || {
            for _ in 0..CAPACITY * 2 {
                queue.push("line".into(), Level::Error);
            }
            said.send(queue).unwrap();
        });
        // The writer is stuck in its first line all along.
        heard.recv_timeout(LIMIT).expect("push must not wait");
    }

    #[test]
    fn what_waits_is_written_after_the_queue_is_gone() {
        let (queue, gate, written) = gated();
        queue.push("last words".into(), Level::Info);
        drop(queue);
        gate.send(true).unwrap();
        let deadline = Instant::now() + LIMIT;
        while written.lock().unwrap().is_empty() {
            assert!(Instant::now() < deadline, "the line was never written");
            thread::yield_now();
        }
    }
}
