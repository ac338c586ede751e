//! Where cgroups can be made: the version 2 hierarchy, and those of version 1 where the controllers
//! that limit are still there.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use crate::cgroup;

/// What limits how many processes there are, and how much memory they take.
pub(crate) const PIDS: &str = "pids";
pub(crate) const MEMORY: &str = "memory";

/// Where one kind of limit is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Controller {
    /// In the cgroup of the attempt itself (version 2).
    Unified,
    /// In a hierarchy of its own (version 1).
    Legacy {
        /// The rig's group there.
        path: PathBuf,
    },
}

/// What a process with a certain place in the hierarchies can make use of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The rig's cgroup of version 2.
    pub(crate) tree: Option<PathBuf>,
    pub(crate) processes: Option<Controller>,
    pub(crate) memory: Option<Controller>,
}

/// Looks for all of it, as a process that is where `own` (its /proc/PID/cgroup) says. Groups are
/// made and removed for it; controllers that are to be had are enabled.
pub(crate) fn find(rig_id: &str, mountinfo: &str, own: &str) -> Found {
    let group = format!("rigor-{rig_id}");
    let mut found = Found::default();
    for base in bases(mountinfo, own) {
        let enabled = enable(&base, &[MEMORY, PIDS]);
        if let Some(path) = usable(&base, &group) {
            if found.tree.is_some() && enabled.is_empty() {
                continue;
            }
            let here = |controller| enabled.contains(&controller).then_some(Controller::Unified);
            found = Found {
                tree: Some(path),
                processes: here(PIDS),
                memory: here(MEMORY),
            };
        }
    }
    let legacy = |controller| {
        let base = place(mountinfo, own, Hierarchy::Legacy(controller))?;
        let path = usable(&base, &group)?;
        Some(Controller::Legacy { path })
    };
    found.processes = found.processes.or_else(|| legacy(PIDS));
    found.memory = found.memory.or_else(|| legacy(MEMORY));
    found
}

/// Places in the version 2 hierarchy below which groups may be made, the better ones last: the own
/// cgroup, and the one above it where that was handed over whole.
///
/// Controllers cannot be enabled for the children of a cgroup that has processes itself (cgroups(7),
/// "no internal processes"). With `DelegateSubgroup=` systemd puts a service's processes one level
/// below the cgroup that it hands over, and marks that one.
fn bases(mountinfo: &str, own: &str) -> Vec<PathBuf> {
    let Some(own) = place(mountinfo, own, Hierarchy::Unified) else {
        return Vec::new();
    };
    let above = own.parent().filter(|above| is_delegated(above));
    let above = above.map(Path::to_owned);
    [Some(own), above].into_iter().flatten().collect()
}

/// systemd's mark on what it hands over; `trusted.` can be read by root alone.
fn is_delegated(path: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0_u8; 4];
        rustix::fs::getxattr(path, *name, &mut value).is_ok_and(|length| value[..length] == *b"1")
    })
}

/// Has the children of `base` limited by those of the controllers that are there; which are then.
pub(crate) fn enable(base: &Path, controllers: &[&'static str]) -> Vec<&'static str> {
    let words = |file: &str| fs::read_to_string(base.join(file)).unwrap_or_default();
    let has = |text: &str, one: &str| text.split_whitespace().any(|word| word == one);
    let offered = words("cgroup.controllers");
    for one in controllers {
        if has(&offered, one) && !has(&words("cgroup.subtree_control"), one) {
            // Each by itself, and read back below: one may be refused.
            let _ = fs::write(base.join("cgroup.subtree_control"), format!("+{one}"));
        }
    }
    let enabled = words("cgroup.subtree_control");
    let there = controllers.iter().copied();
    there.filter(|one| has(&enabled, one)).collect()
}

/// The rig's group below `base`, if it can be made and processes may be moved there.
fn usable(base: &Path, group: &str) -> Option<PathBuf> {
    /// Another program of the rig that starts at this moment removes the group after its own look.
    const TRIES: usize = 50;
    let path = base.join(group);
    // The kernel asks for write access to `cgroup.procs` of the target and (version 2) of the
    // common ancestor, which is the cgroup that this process is in or the one above it.
    let access = |dir: &Path| rustix::fs::access(dir.join("cgroup.procs"), Access::WRITE_OK);
    access(base).ok()?;
    for _ in 0..TRIES {
        cgroup::create(&path).ok()?;
        let found = access(&path);
        // It is made again with the first attempt; with attempts in it, it stays.
        let _ = fs::remove_dir(&path);
        match found {
            Ok(()) => return Some(path),
            Err(rustix::io::Errno::NOENT) => {}
            Err(_) => return None,
        }
    }
    None
}

#[derive(Clone, Copy)]
enum Hierarchy<'a> {
    Unified,
    Legacy(&'a str),
}

/// Where the cgroup of a process is mounted, from the texts of /proc/self/mountinfo and its
/// /proc/PID/cgroup (proc_pid_mountinfo(5), cgroups(7)).
fn place(mountinfo: &str, own: &str, hierarchy: Hierarchy<'_>) -> Option<PathBuf> {
    let has = |list: &str, one: &str| list.split(',').any(|word| word == one);
    let own = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let ours = match hierarchy {
            Hierarchy::Unified => line.starts_with("0::"),
            Hierarchy::Legacy(controller) => has(controllers, controller),
        };
        ours.then_some(path)
    })?;
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut kind = file_system.split(' ');
        let (kind, options) = (kind.next()?, kind.nth(1).unwrap_or_default());
        let ours = match hierarchy {
            Hierarchy::Unified => kind == "cgroup2",
            Hierarchy::Legacy(controller) => kind == "cgroup" && has(options, controller),
        };
        if !ours {
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

    fn unified(mountinfo: &str, own: &str) -> Option<PathBuf> {
        place(mountinfo, own, Hierarchy::Unified)
    }

    #[test]
    fn the_mount_is_found_where_it_is() {
        let whole =
            "24 30 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let hybrid = "37 31 0:34 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      38 31 0:35 / /sys/fs/cgroup/cpu,memory rw - cgroup cgroup rw,cpu,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        let scope = "8:pids:/\n4:cpu,memory:/box/a:b\n0::/user.slice/user-1000.slice/rigor.scope\n";
        assert_eq!(
            unified(whole, scope),
            Some("/sys/fs/cgroup/user.slice/user-1000.slice/rigor.scope".into())
        );
        assert_eq!(
            unified(hybrid, "0::/\n"),
            Some("/sys/fs/cgroup/unified/".into())
        );
        let legacy = |one| place(hybrid, scope, Hierarchy::Legacy(one));
        assert_eq!(legacy("pids"), Some("/sys/fs/cgroup/pids/".into()));
        assert_eq!(
            legacy("memory"),
            Some("/sys/fs/cgroup/cpu,memory/box/a:b".into())
        );
        assert_eq!(legacy("hugetlb"), None);
        assert_eq!(place(whole, scope, Hierarchy::Legacy("pids")), None);
        // A container sees a part of the tree: what is mounted is not the root.
        let part = "50 40 0:22 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw";
        assert_eq!(
            unified(part, "0::/docker/abc/x\n"),
            Some("/sys/fs/cgroup/x".into())
        );
        assert_eq!(unified(part, "0::/elsewhere\n"), None);
        assert_eq!(unified("", "0::/\n"), None);
        assert_eq!(unified(whole, "3:cpu:/\n"), None);
    }

    #[test]
    fn only_what_the_kernel_took_counts_as_enabled() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).expect("write");
        assert!(enable(dir.path(), &[MEMORY, PIDS]).is_empty(), "no cgroup");
        write("cgroup.controllers", "cpu memory pids\n");
        write("cgroup.subtree_control", "cpu pids\n");
        // A file takes `+memory` as it stands, which is not how the kernel reads back.
        assert!(!enable(dir.path(), &[MEMORY, PIDS]).contains(&MEMORY));
        write("cgroup.subtree_control", "memory pids\n");
        assert_eq!(enable(dir.path(), &[MEMORY, PIDS]), [MEMORY, PIDS]);
        write("cgroup.controllers", "cpu pids\n");
        write("cgroup.subtree_control", "pids\n");
        assert_eq!(enable(dir.path(), &[MEMORY, PIDS]), [PIDS]);
    }
}
