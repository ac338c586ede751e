//! The processes of one runtime: found by session and by cookie, and killed to the last.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use procfs::process::{FDTarget, ProcState, Process, all_processes};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The environment variable that marks every process of a runtime, whatever session it made for
/// itself. Its value is the load's nonce, after the rig's id and a colon.
pub const COOKIE_VARIABLE: &str = "RIGOR_RUNTIME_COOKIE";

/// How long killed processes may take to disappear: freeing much VRAM takes the driver seconds.
const KILL_PATIENCE: Duration = Duration::from_secs(20);
const KILL_POLL: Duration = Duration::from_millis(10);

/// Which processes belong to a runtime.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    /// The value of [`COOKIE_VARIABLE`].
    pub(crate) cookie: String,
    /// The runtime's first process, the leader of its session, once it is started.
    pub(crate) leader: Option<Leader>,
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leader {
    pub(crate) pid: i32,
    /// Clock ticks since boot.
    pub(crate) start_ticks: u64,
}

impl Leader {
    /// The process `pid` as it is now.
    pub(crate) fn of(pid: i32) -> Option<Leader> {
        let start_ticks = Process::new(pid)
            .and_then(|process| process.stat())
            .ok()?
            .starttime;
        Some(Leader { pid, start_ticks })
    }
}

impl Tree {
    /// The living processes; zombies are dead. Reads /proc: not for an async thread.
    pub(crate) fn members(&self) -> Vec<i32> {
        // The session counts only while its number cannot have passed to somebody else: as long as
        // the leader is there, or nobody is.
        let session = self
            .leader
            .filter(|leader| Leader::of(leader.pid).is_none_or(|now| now == *leader));
        let session = session.map(|leader| leader.pid);
        let Ok(processes) = all_processes() else {
            return Vec::new();
        };
        let belongs = |process: &Process| {
            let Ok(stat) = process.stat() else {
                return false;
            };
            let dead = matches!(stat.state(), Ok(ProcState::Zombie | ProcState::Dead));
            // The cookie is in the environment that a process was started with, which it cannot
            // leave behind by changing session or parent.
            !dead && (session == Some(stat.session) || self.has_cookie(process))
        };
        processes
            .filter_map(Result::ok)
            .filter(belongs)
            .map(|process| process.pid)
            .collect()
    }

    /// Kills until nothing is left, and returns what would not die. Blocks.
    pub(crate) fn kill(&self) -> Vec<i32> {
        let started = std::time::Instant::now();
        loop {
            let members = self.members();
            if members.is_empty() || started.elapsed() > KILL_PATIENCE {
                return members;
            }
            members.into_iter().for_each(|pid| self.kill_member(pid));
            std::thread::sleep(KILL_POLL);
        }
    }

    /// Kills what is there now and does not wait.
    pub(crate) fn kill_once(&self) {
        self.members()
            .into_iter()
            .for_each(|pid| self.kill_member(pid));
    }

    /// The descriptor is opened before the process is looked at again, so that its number cannot
    /// pass to another in between.
    fn kill_member(&self, pid: i32) {
        let Some(number) = Pid::from_raw(pid) else {
            return;
        };
        let Ok(descriptor) = pidfd_open(number, PidfdFlags::empty()) else {
            return;
        };
        let Ok(process) = Process::new(pid) else {
            return;
        };
        let in_session = match (self.leader, process.stat()) {
            (Some(leader), Ok(stat)) => stat.session == leader.pid,
            _ => false,
        };
        if in_session || self.has_cookie(&process) {
            // It may have ended meanwhile, which is as good.
            let _ = pidfd_send_signal(&descriptor, Signal::KILL);
        }
    }

    /// Asks the process group of the leader to end.
    pub(crate) fn terminate(&self) {
        if let Some(group) = self.leader.and_then(|leader| Pid::from_raw(leader.pid)) {
            // Not there any more: then there is nothing to ask.
            let _ = rustix::process::kill_process_group(group, Signal::TERM);
        }
    }

    /// Whether one of these processes listens on `port`.
    pub(crate) fn listens(&self, port: u16) -> bool {
        let sockets = listening_sockets(port);
        self.members()
            .into_iter()
            .any(|pid| holds_any(pid, &sockets))
    }

    /// Whether the process `pid` was started with the cookie.
    pub(crate) fn bears_cookie(&self, pid: i32) -> bool {
        Process::new(pid).is_ok_and(|process| self.has_cookie(&process))
    }

    fn has_cookie(&self, process: &Process) -> bool {
        let cookie = OsStr::from_bytes(self.cookie.as_bytes());
        process.environ().is_ok_and(|environ| {
            environ
                .get(OsStr::new(COOKIE_VARIABLE))
                .is_some_and(|it| it == cookie)
        })
    }
}

/// Who listens on `port`, as far as this user may see: `name (pid N)`.
pub(crate) fn listener(port: u16) -> Option<String> {
    let sockets = listening_sockets(port);
    let holder = all_processes()
        .ok()?
        .filter_map(Result::ok)
        .find(|process| holds_any(process.pid, &sockets))?;
    let name = holder.stat().map(|stat| stat.comm).ok()?;
    Some(format!("{name} (pid {})", holder.pid))
}

fn listening_sockets(port: u16) -> HashSet<u64> {
    let tables = [procfs::net::tcp(), procfs::net::tcp6()];
    let entries = tables.into_iter().filter_map(Result::ok).flatten();
    entries
        .filter(|entry| {
            entry.state == procfs::net::TcpState::Listen && entry.local_address.port() == port
        })
        .map(|entry| entry.inode)
        .collect()
}

fn holds_any(pid: i32, sockets: &HashSet<u64>) -> bool {
    let Ok(descriptors) = Process::new(pid).and_then(|process| process.fd()) else {
        return false;
    };
    descriptors
        .filter_map(Result::ok)
        .any(|fd| matches!(fd.target, FDTarget::Socket(inode) if sockets.contains(&inode)))
}
