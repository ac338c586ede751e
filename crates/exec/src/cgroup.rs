//! The cgroups of an attempt: made, emptied, removed.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::containment::End;
use crate::error::ExecError;
use crate::hierarchy;

/// Below the version 2 cgroup of an attempt: where its worker is, and where its command is, which
/// alone is limited. (No cgroup whose children are limited may have processes itself.)
pub(crate) const WORKER: &str = "worker";
pub(crate) const COMMAND: &str = "command";

/// Makes the version 2 cgroup of an attempt and those below it, with those controllers.
pub(crate) fn create_tree(path: &Path, controllers: &[&'static str]) -> Result<(), ExecError> {
    create(path)?;
    for dir in [path.parent(), Some(path)].into_iter().flatten() {
        if hierarchy::enable(dir, controllers).len() < controllers.len() {
            let source = io::Error::other(format!("not all of {controllers:?} can be enabled"));
            return Err(ExecError::io("enable controllers in", dir)(source));
        }
    }
    create(&path.join(WORKER))?;
    create(&path.join(COMMAND))
}

/// Makes the cgroup of an attempt, and that of the rig around it; one that exists will do.
pub(crate) fn create(path: &Path) -> Result<(), ExecError> {
    /// Another attempt that ends may remove the rig's cgroup just before ours is made in it.
    const TRIES: usize = 20;
    let mut last = io::ErrorKind::NotFound.into();
    for _ in 0..TRIES {
        match fs::create_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                last = error;
                // Why not is told by the next try.
                let _ = path.parent().map(fs::create_dir);
            }
            Err(error) => return Err(ExecError::io("create cgroup", path)(error)),
        }
    }
    Err(ExecError::io("create cgroup", path)(last))
}

/// The rig's cgroup goes with its last attempt; the kernel refuses while there is another.
fn remove_parent(path: &Path) {
    let _ = path.parent().map(fs::remove_dir);
}

/// CPU time of all that ever ran in the cgroup; none where nothing did: the attempt is elsewhere.
pub(crate) fn cpu_time(path: &Path) -> Option<Duration> {
    let text = fs::read_to_string(path.join("cpu.stat")).ok()?;
    let usage = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))?;
    let usec = usage.trim().parse().ok().filter(|usec| *usec > 0)?;
    Some(Duration::from_micros(usec))
}

/// Removes the cgroup of an attempt if nothing lives in it. `false`: something does.
pub(crate) fn remove_if_empty(path: &Path) -> Result<bool, ExecError> {
    // The kernel refuses with EBUSY while a process lives in it or a cgroup below it is left;
    // zombies do not count.
    for dir in [&path.join(COMMAND), &path.join(WORKER), path] {
        match fs::remove_dir(dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Ok(false),
            Err(error) => return Err(ExecError::io("remove cgroup", dir)(error)),
        }
    }
    remove_parent(path);
    Ok(true)
}

/// Kills all in a cgroup of version 1, one by one, and removes it.
pub(crate) fn clear(path: &Path, deadline: Instant) -> Result<End, ExecError> {
    /// Between two looks.
    const PAUSE: Duration = Duration::from_millis(2);
    let mut hit = HashSet::new();
    loop {
        let busy = match remove_tree(path) {
            Ok(()) => false,
            Err(ExecError::Io { source, .. }) if source.kind() == io::ErrorKind::ResourceBusy => {
                true
            }
            Err(error) => return Err(error),
        };
        if !busy {
            remove_parent(path);
            return Ok(End {
                killed: hit.len(),
                ..End::default()
            });
        }
        hit.extend(kill_members(path)?);
        if Instant::now() >= deadline {
            return Ok(End {
                killed: 0,
                failed: true,
                survivors: members(path)?,
            });
        }
        thread::sleep(PAUSE);
    }
}

/// Kills all in the cgroup and below, waits until it is empty and removes it. A cgroup that does
/// not exist is empty.
pub(crate) fn kill(path: &Path, deadline: Instant) -> Result<End, ExecError> {
    let before = members(path)?;
    if !path.exists() {
        return Ok(End::default());
    }
    loop {
        kill_all(path)?;
        if wait_until_empty(path, deadline)? {
            break;
        }
        if Instant::now() >= deadline {
            return Ok(End {
                killed: 0,
                failed: true,
                survivors: members(path)?,
            });
        }
    }
    remove_tree(path)?;
    remove_parent(path);
    Ok(End {
        killed: before.len(),
        ..End::default()
    })
}

pub(crate) fn kill_all(path: &Path) -> Result<(), ExecError> {
    let kill = path.join("cgroup.kill");
    match fs::write(&kill, "1") {
        Ok(()) => Ok(()),
        // Kernels before 5.14 have no `cgroup.kill`: one by one, and again by the caller's loop.
        Err(error) if error.kind() == io::ErrorKind::NotFound => kill_members(path).map(drop),
        Err(error) => Err(ExecError::io("write", &kill)(error)),
    }
}

/// Kills the members of a cgroup one by one; who they were.
fn kill_members(path: &Path) -> Result<Vec<u32>, ExecError> {
    let all = members(path)?;
    for one in &all {
        let Some(pid) = rustix::process::Pid::from_raw(*one as i32) else {
            continue;
        };
        let Ok(handle) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        else {
            continue;
        };
        // The handle is opened, then membership is read again: a reused pid is not hit.
        if members(path)?.contains(one) {
            let _ = rustix::process::pidfd_send_signal(&handle, rustix::process::Signal::KILL);
        }
    }
    Ok(all)
}

/// Waits a while for the cgroup to be empty; the kernel reports a change of `cgroup.events` as an
/// exceptional condition.
fn wait_until_empty(path: &Path, deadline: Instant) -> Result<bool, ExecError> {
    /// Upper bound of one wait, so that a lost wake-up costs no more, nanoseconds.
    const SLICE_NS: i64 = 20_000_000;
    let events = path.join("cgroup.events");
    loop {
        let file = fs::File::open(&events).map_err(ExecError::io("open", &events))?;
        let text = io::read_to_string(&file).map_err(ExecError::io("read", &events))?;
        if text.lines().any(|line| line == "populated 0") {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        let slice = Timespec {
            tv_sec: 0,
            tv_nsec: SLICE_NS,
        };
        // An interrupted wait only means looking earlier.
        let _ = poll(
            &mut [PollFd::new(&file.as_fd(), PollFlags::PRI)],
            Some(&slice),
        );
        // Processes that were being forked while the others died.
        if !path.join("cgroup.kill").exists() {
            kill_all(path)?;
        }
    }
}

/// Living processes in the cgroup and below.
fn members(path: &Path) -> Result<Vec<u32>, ExecError> {
    let mut pids = Vec::new();
    let mut dirs = vec![path.to_owned()];
    while let Some(dir) = dirs.pop() {
        let procs = dir.join("cgroup.procs");
        match fs::read_to_string(&procs) {
            Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(ExecError::io("read", &procs)(error)),
        }
        dirs.extend(subdirs(&dir)?);
    }
    Ok(pids)
}

/// A command may have made cgroups of its own.
fn remove_tree(path: &Path) -> Result<(), ExecError> {
    for dir in subdirs(path)? {
        remove_tree(&dir)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ExecError::io("remove cgroup", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn subdirs(path: &Path) -> Result<Vec<PathBuf>, ExecError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ExecError::io("read", path)(error)),
    };
    let mut dirs = Vec::new();
    for entry in entries {
        let entry = entry.map_err(ExecError::io("read", path))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            dirs.push(entry.path());
        }
    }
    Ok(dirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_told_where_anything_ran() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(cpu_time(dir.path()), None);
        let stat = |usage: u64| {
            let text = format!("usage_usec {usage}\nuser_usec 1\nsystem_usec 1\n");
            fs::write(dir.path().join("cpu.stat"), text).expect("write");
            cpu_time(dir.path())
        };
        assert_eq!(stat(0), None);
        assert_eq!(stat(1500), Some(Duration::from_micros(1500)));
    }
}
