//! The thread that runs the command: one at a time, killed when it takes too long.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};
use std::{io, thread};

use rigor_config::{Notify, NotifyEvent};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Signal, kill_process_group};

/// Notices that may wait for the one that is being told.
const WAITING_MOST: usize = 32;
/// How often a running command is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// When the brain ends: what still waits may take this long, then the command is killed.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// For the thread to kill it and end.
const KILLED: Duration = Duration::from_millis(500);
/// Failures are warned about at most so often.
const WARN_EVERY: Duration = Duration::from_secs(600);
/// Of what a failed command said on stderr, bytes.
const QUOTED_MOST: u64 = 400;
/// How long its first line on stderr is waited for after its end.
const QUOTE_WAIT: Duration = Duration::from_millis(200);

/// One run of the command.
#[derive(Debug)]
pub(super) struct Job {
    /// What it is about.
    pub event: NotifyEvent,
    /// To what it happened.
    pub subject: String,
    /// In one line, without control characters.
    pub message: String,
    /// All of it, for its standard input.
    pub input: String,
}

/// The thread and its queue.
#[derive(Debug)]
pub(super) struct Runner {
    jobs: Option<SyncSender<Job>>,
    stop: Arc<AtomicBool>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
}

impl Runner {
    /// Starts the thread. The variables in `hidden` are kept from the command.
    pub(super) fn start(settings: &Notify, root: &Path, hidden: Vec<String>) -> io::Result<Runner> {
        let (jobs, queue) = mpsc::sync_channel(WAITING_MOST);
        let (alive, ended) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let mut worker = Worker {
            command: settings.command.clone(),
            timeout: settings.timeout,
            root: root.to_owned(),
            hidden,
            stop: Arc::clone(&stop),
            warned: None,
            unsaid: 0,
        };
        thread::Builder::new()
            .name("notify".to_owned())
            .spawn(move || {
                let _alive: mpsc::Sender<()> = alive;
                for job in queue {
                    worker.run(&job);
                }
            })?;
        Ok(Runner {
            jobs: Some(jobs),
            stop,
            ended,
        })
    }

    /// Runs the command for it soon. `false`: too many wait already.
    pub(super) fn run(&self, job: Job) -> bool {
        self.jobs
            .as_ref()
            .is_some_and(|jobs| jobs.try_send(job).is_ok())
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if self.ended.recv_timeout(LAST_WORDS) == Err(RecvTimeoutError::Timeout) {
            self.stop.store(true, Ordering::Relaxed);
            // One that cannot even be killed (a disk that does not answer) is left behind.
            let _ = self.ended.recv_timeout(KILLED);
        }
    }
}

struct Worker {
    command: Vec<String>,
    timeout: Duration,
    root: PathBuf,
    hidden: Vec<String>,
    stop: Arc<AtomicBool>,
    warned: Option<Instant>,
    unsaid: u64,
}

impl Worker {
    fn run(&mut self, job: &Job) {
        if self.stop.load(Ordering::Relaxed) {
            return;
        }
        if let Err(why) = self.attempt(job) {
            self.complain(job, &why);
        }
    }

    fn attempt(&self, job: &Job) -> Result<(), String> {
        let mut child = self
            .spawn(job)
            .map_err(|error| format!("{} cannot be started: {error}", self.command[0]))?;
        let over = Over::default();
        let quote = child
            .stderr
            .take()
            .map(|stderr| first_line(stderr, Arc::clone(&over.0)));
        let deadline = Instant::now() + self.timeout;
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    let line = quote.and_then(|quote| quote.recv_timeout(QUOTE_WAIT).ok());
                    let line = line.filter(|line| !line.is_empty());
                    return Err(match line {
                        Some(line) => format!("{status}: {line}"),
                        None => status.to_string(),
                    });
                }
                Ok(None) => {}
                Err(error) => return Err(format!("it cannot be waited for: {error}")),
            }
            let stopped = self.stop.load(Ordering::Relaxed);
            if stopped || Instant::now() >= deadline {
                kill(&mut child);
                return Err(if stopped {
                    "killed: the brain ends".to_owned()
                } else {
                    format!("killed after {:?}", self.timeout)
                });
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    fn spawn(&self, job: &Job) -> io::Result<Child> {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        for name in &self.hidden {
            command.env_remove(name);
        }
        command
            .env("RIGOR_DIR", &self.root)
            .env("RIGOR_EVENT", job.event.as_str())
            .env("RIGOR_SUBJECT", &job.subject)
            .env("RIGOR_MESSAGE", &job.message)
            .current_dir(&self.root)
            .stdin(input(&job.input)?)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Its own, so that Ctrl-C in the brain's terminal is not its, and all of it can be killed.
            .process_group(0)
            .spawn()
    }

    fn complain(&mut self, job: &Job, why: &str) {
        let now = Instant::now();
        if self
            .warned
            .is_some_and(|at| now.duration_since(at) < WARN_EVERY)
        {
            self.unsaid += 1;
            tracing::debug!("The command of [notify] failed again: {why}");
            return;
        }
        self.warned = Some(now);
        let more = match std::mem::take(&mut self.unsaid) {
            0 => String::new(),
            count => format!(" ({count} more failures since the last warning)"),
        };
        tracing::warn!(
            "The command of [notify] failed for {} ({}): {why}{more}",
            job.event.as_str(),
            job.subject
        );
    }
}

/// A file that is nowhere: unlike a pipe it is written at once, whether anybody reads it or not.
fn input(text: &str) -> io::Result<Stdio> {
    let mut file = File::from(rustix::fs::memfd_create("notice", MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(Stdio::from(file))
}

/// Set when it is dropped: the command is over.
#[derive(Default)]
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The first line that it writes, as soon as it is there. The rest is read and thrown away until
/// the command is over: what it leaves behind may hold on to the other end.
fn first_line(stderr: ChildStderr, over: Arc<AtomicBool>) -> Receiver<String> {
    let (sender, line) = mpsc::channel();
    let read = move || {
        let mut stderr = BufReader::new(stderr);
        let mut bytes = Vec::new();
        // What was read before an error is said all the same.
        let _ = (&mut stderr)
            .take(QUOTED_MOST)
            .read_until(b'\n', &mut bytes);
        let text: String = String::from_utf8_lossy(&bytes)
            .trim()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let _ = sender.send(text);
        let mut rest = [0; 4096];
        while !over.load(Ordering::Relaxed) && stderr.read(&mut rest).is_ok_and(|read| read > 0) {}
    };
    // Without the thread there is no quote, and a command that writes much gets a SIGPIPE.
    let _ = thread::Builder::new()
        .name("notify-stderr".to_owned())
        .spawn(read);
    line
}

/// Kills the command and what it started in its process group.
fn kill(child: &mut Child) {
    // Not waited for yet, so its number is still its own.
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

/// What becomes of a command that is told something.
#[cfg(test)]
pub(super) fn attempt_once(command: &[&str], root: &Path) -> Result<(), String> {
    let worker = Worker {
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        timeout: Duration::from_secs(10),
        root: root.to_owned(),
        hidden: Vec::new(),
        stop: Arc::new(AtomicBool::new(false)),
        warned: None,
        unsaid: 0,
    };
    worker.attempt(&Job {
        event: NotifyEvent::AgentDead,
        subject: "gpu-1".to_owned(),
        message: "m".to_owned(),
        input: "{}\n".to_owned(),
    })
}
