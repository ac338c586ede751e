//! A cgroup v2 for each attempt.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Access;

use crate::containment::End;
use crate::error::ExecError;

/// Where `rigor-<rig_id>` can be made, below this process's own cgroup, if that is possible and
/// processes may be moved there.
pub(crate) fn prepare(rig_id: &str) -> Option<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let base = own_cgroup(&mountinfo, &own)?;
    let path = base.join(format!("rigor-{rig_id}"));
    create(&path).ok()?;
    // The kernel asks for write access to `cgroup.procs` of the target and of the common ancestor,
    // which is the cgroup that this process is in.
    let writable =
        |dir: &Path| rustix::fs::access(dir.join("cgroup.procs"), Access::WRITE_OK).is_ok();
    let usable = writable(&base) && writable(&path);
    // It is made again with the first attempt; with attempts in it, it stays.
    let _ = fs::remove_dir(&path);
    usable.then_some(path)
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
    match fs::remove_dir(path) {
        Ok(()) => {
            remove_parent(path);
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(false),
        Err(error) => Err(ExecError::io("remove cgroup", path)(error)),
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

fn kill_all(path: &Path) -> Result<(), ExecError> {
    let kill = path.join("cgroup.kill");
    match fs::write(&kill, "1") {
        Ok(()) => Ok(()),
        // Kernels before 5.14 have no `cgroup.kill`: one by one, and again by the caller's loop.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            for pid in members(path)? {
                let Some(pid) = rustix::process::Pid::from_raw(pid as i32) else {
                    continue;
                };
                let Ok(handle) =
                    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
                else {
                    continue;
                };
                // The handle is opened, then membership is read again: a reused pid is not hit.
                if members(path)?.contains(&(pid.as_raw_nonzero().get() as u32)) {
                    let _ =
                        rustix::process::pidfd_send_signal(&handle, rustix::process::Signal::KILL);
                }
            }
            Ok(())
        }
        Err(error) => Err(ExecError::io("write", &kill)(error)),
    }
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

/// Where this process's own cgroup v2 is mounted, from the texts of /proc/self/mountinfo and
/// /proc/self/cgroup (proc_pid_mountinfo(5), cgroups(7)).
fn own_cgroup(mountinfo: &str, own: &str) -> Option<PathBuf> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        if file_system.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let below = Path::new(own).strip_prefix(root).ok()?;
        Some(Path::new(&unescape(point)).join(below))
    })
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .into_iter()
    .fold(text.to_owned(), |text, (code, plain)| {
        text.replace(code, plain)
    })
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

    #[test]
    fn the_mount_is_found_where_it_is() {
        let unified =
            "24 30 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let hybrid = "37 31 0:34 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        let scope = "8:pids:/\n0::/user.slice/user-1000.slice/rigor.scope\n";
        assert_eq!(
            own_cgroup(unified, scope),
            Some("/sys/fs/cgroup/user.slice/user-1000.slice/rigor.scope".into())
        );
        assert_eq!(
            own_cgroup(hybrid, "0::/\n"),
            Some("/sys/fs/cgroup/unified/".into())
        );
        // A container sees a part of the tree: what is mounted is not the root.
        let part = "50 40 0:22 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw";
        assert_eq!(
            own_cgroup(part, "0::/docker/abc/x\n"),
            Some("/sys/fs/cgroup/x".into())
        );
        assert_eq!(own_cgroup(part, "0::/elsewhere\n"), None);
        assert_eq!(own_cgroup("", "0::/\n"), None);
        assert_eq!(own_cgroup(unified, "3:cpu:/\n"), None);
    }
}
