//! The end of everything that the task started. As a subreaper this process is the parent of
//! every descendant that lost its own, however it daemonised.

use std::fs;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};

use crate::signals::Signals;

/// Between two looks at children that were killed, should SIGCHLD not come.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The command's process, and what became of it.
#[derive(Debug)]
pub(crate) struct Main {
    pid: Pid,
    status: Option<WaitStatus>,
}

impl Main {
    pub(crate) fn new(pid: u32) -> Main {
        let pid = Pid::from_raw(pid as i32).expect("a child's pid is positive");
        Main { pid, status: None }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Its status, once it was reaped.
    pub(crate) fn status(&self) -> Option<WaitStatus> {
        self.status
    }

    /// Reaps what has ended. `true`: there are no children left.
    pub(crate) fn reap(&mut self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.pid => self.status = Some(status),
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    /// Kills all descendants and reaps them; how many lived. `Err`: who lives after the deadline.
    ///
    /// Only direct children are signalled, which nobody else can reap, so a reused pid is never
    /// hit; their children become ours when they die.
    pub(crate) fn kill_descendants(
        &mut self,
        signals: &mut Signals,
        deadline: Instant,
    ) -> Result<usize, Vec<u32>> {
        let mut killed = Vec::new();
        loop {
            if self.reap() {
                return Ok(killed.len());
            }
            let children = children();
            for child in &children {
                let _ = kill_process(*child, Signal::KILL);
                if !killed.contains(child) {
                    killed.push(*child);
                }
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(children
                    .iter()
                    .map(|child| child.as_raw_nonzero().get() as u32)
                    .collect());
            }
            signals.wait(None, Some((now + LOOK_AGAIN).min(deadline)));
        }
    }
}

/// Whether a process of that group lives, or is a zombie that was not reaped.
pub(crate) fn group_lives(group: Pid) -> bool {
    rustix::process::test_kill_process_group(group).is_ok()
}

/// This process's children.
fn children() -> Vec<Pid> {
    let mut pids = Vec::new();
    let Ok(threads) = fs::read_dir("/proc/self/task") else {
        return pids;
    };
    let mut listed = false;
    for thread in threads.flatten() {
        if let Ok(text) = fs::read_to_string(thread.path().join("children")) {
            listed = true;
            pids.extend(
                text.split_whitespace()
                    .filter_map(|pid| Pid::from_raw(pid.parse().ok()?)),
            );
        }
    }
    if !listed {
        pids = children_by_parent();
    }
    pids
}

/// For kernels that were built without lists of children.
fn children_by_parent() -> Vec<Pid> {
    let me = rustix::process::getpid().as_raw_nonzero().get();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let child = |entry: fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name in parentheses may hold anything; state and parent follow its end.
        let parent: i32 = stat
            .rsplit_once(')')?
            .1
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()?;
        (parent == me).then(|| Pid::from_raw(pid)).flatten()
    };
    entries.flatten().filter_map(child).collect()
}
