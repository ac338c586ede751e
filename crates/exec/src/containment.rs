//! What an attempt starts cannot outlive it.
//!
//! Two tiers. With a writable cgroup v2 each attempt gets a cgroup of its own, which the kernel
//! kills whole. Without one the processes are found by the environment cookie that all of them
//! inherit, by their parents and by their sessions; a process that clears its environment *and*
//! loses its parents *and* starts a session of its own after its worker was killed escapes that
//! tier. (While the worker lives nothing escapes: orphans become its children.)
//!
//! Limits on processes and memory are held by cgroups alone: of version 2 where its controllers are
//! to be had, else of version 1. RLIMIT_NPROC counts all processes of a user and does not bind root,
//! RLIMIT_AS counts addresses and not memory, so neither stands in for them. The size of files is
//! limited by RLIMIT_FSIZE everywhere.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rigor_queue::name::TaskId;

use crate::cgroup;
use crate::error::ExecError;
use crate::groups::Groups;
use crate::hierarchy::{self, Controller, Found, MEMORY, PIDS};
use crate::limits::{self, Limits};
use crate::process_tree;

/// How attempts are contained on this machine.
#[derive(Clone, Debug)]
pub struct Containment {
    rig_id: String,
    tier: Tier,
    processes: Option<Controller>,
    memory: Option<Controller>,
}

/// The means of containment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tier {
    /// A cgroup for each attempt.
    Cgroup {
        /// The directory that holds them.
        path: PathBuf,
    },
    /// Session, subreaper and environment cookie.
    Cookie,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tier::Cgroup { path } => write!(f, "a cgroup for each attempt ({})", path.display()),
            Tier::Cookie => f.write_str(
                "session, subreaper and environment cookie (no writable cgroup v2 here)",
            ),
        }
    }
}

impl Containment {
    /// Finds the best tier on this machine. `rig_id` names the cgroups and the cookie; it must be
    /// the same in all programs of a rig.
    pub fn detect(rig_id: &str) -> Containment {
        Containment::found(rig_id, "self").unwrap_or_else(|| Containment::cookie_only(rig_id))
    }

    /// The tier of a program of the rig that runs as `pid`; none where it cannot be looked at.
    pub fn of_process(rig_id: &str, pid: u32) -> Option<Containment> {
        Containment::found(rig_id, &pid.to_string())
    }

    fn found(rig_id: &str, process: &str) -> Option<Containment> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let own = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
        let Found {
            tree,
            processes,
            memory,
        } = hierarchy::find(rig_id, &mountinfo, &own);
        Some(Containment {
            rig_id: rig_id.to_owned(),
            tier: tree.map_or(Tier::Cookie, |path| Tier::Cgroup { path }),
            processes,
            memory,
        })
    }

    /// The tier that needs nothing from the machine.
    pub fn cookie_only(rig_id: &str) -> Containment {
        Containment {
            rig_id: rig_id.to_owned(),
            tier: Tier::Cookie,
            processes: None,
            memory: None,
        }
    }

    /// What limits the number of processes; none: nothing does.
    pub fn limits_processes(&self) -> Option<&Controller> {
        self.processes.as_ref()
    }

    /// What limits memory; none: nothing does.
    pub fn limits_memory(&self) -> Option<&Controller> {
        self.memory.as_ref()
    }

    /// The tier.
    pub fn tier(&self) -> &Tier {
        &self.tier
    }

    /// Kills the attempt's whole tree, its worker included, and waits until it is empty. Zombies
    /// count as dead. Returns how many processes were killed.
    pub fn kill_attempt(
        &self,
        id: TaskId,
        attempt: u32,
        grace: Duration,
    ) -> Result<usize, ExecError> {
        let deadline = Instant::now() + grace;
        let groups = self.groups(id, attempt);
        let mut ends = Vec::new();
        if let Some(path) = &groups.tree {
            ends.push(cgroup::kill(path, deadline)?);
        }
        // Also with cgroups: the worker may not have joined its cgroup yet, and an agent that died
        // may have lived in another cgroup than this process.
        ends.push(process_tree::kill(&self.cookie(id, attempt), deadline)?);
        for path in groups.legacy() {
            ends.push(cgroup::clear(path, deadline)?);
        }
        let killed = ends.iter().map(|end| end.killed).sum();
        if !ends.iter().any(|end| end.failed) {
            return Ok(killed);
        }
        let mut survivors: Vec<u32> = ends.into_iter().flat_map(|end| end.survivors).collect();
        survivors.sort_unstable();
        survivors.dedup();
        Err(ExecError::Unkillable {
            attempt: format!("{id}.a{attempt}"),
            pids: survivors,
            grace_ms: grace.as_millis() as u64,
        })
    }

    /// CPU time that the attempt's cgroup has used; `None` in the tier without, and where the
    /// worker could not join it.
    pub(crate) fn cpu_time(&self, id: TaskId, attempt: u32) -> Option<Duration> {
        cgroup::cpu_time(&self.groups(id, attempt).tree?)
    }

    /// Makes the groups of an attempt; those that limit for a command alone.
    pub(crate) fn enter(
        &self,
        id: TaskId,
        attempt: u32,
        limits: Option<&Limits>,
    ) -> Result<Groups, ExecError> {
        let mut groups = self.groups(id, attempt);
        let Some(limits) = limits else {
            (groups.processes, groups.memory) = (None, None);
            if let Some(tree) = &groups.tree {
                cgroup::create_tree(tree, &[])?;
            }
            return Ok(groups);
        };
        if let Some(tree) = &groups.tree {
            let unified = |of: &Option<Controller>| *of == Some(Controller::Unified);
            let memory = unified(&self.memory).then_some(MEMORY);
            let processes = unified(&self.processes).then_some(PIDS);
            let controllers: Vec<&str> = memory.into_iter().chain(processes).collect();
            cgroup::create_tree(tree, &controllers)?;
        }
        for path in groups.legacy() {
            cgroup::create(path)?;
        }
        if let (Some(group), Some(most)) = (&groups.processes, limits.processes) {
            limits::limit_processes(group, most)?;
        }
        if let (Some(group), Some(most)) = (&groups.memory, limits.memory_max_bytes()) {
            limits::limit_memory(group, most, limits.memory_bytes.is_none())?;
        }
        Ok(groups)
    }

    /// After a worker that ended in order, and so killed all its descendants: a cheap check that
    /// nothing is left. The kill only where something is.
    pub(crate) fn leave(
        &self,
        id: TaskId,
        attempt: u32,
        grace: Duration,
    ) -> Result<usize, ExecError> {
        let groups = self.groups(id, attempt);
        let mut empty = true;
        for path in groups.tree.as_deref().into_iter().chain(groups.legacy()) {
            empty &= cgroup::remove_if_empty(path)?;
        }
        if empty {
            return Ok(0);
        }
        self.kill_attempt(id, attempt, grace)
    }

    /// The attempts that have groups.
    pub fn attempts(&self) -> Vec<(TaskId, u32)> {
        let mut found = BTreeMap::new();
        for dir in self.rig_groups() {
            // What cannot be read holds none that could be ended.
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let parts = name.to_str().and_then(|name| name.split_once(".a"));
                let Some((Ok(id), Ok(attempt))) =
                    parts.map(|(id, attempt)| (id.parse::<TaskId>(), attempt.parse::<u32>()))
                else {
                    continue;
                };
                found.insert((id.as_u64(), attempt), id);
            }
        }
        found
            .into_iter()
            .map(|((_, attempt), id)| (id, attempt))
            .collect()
    }

    /// The value of the environment cookie of an attempt's processes.
    pub(crate) fn cookie(&self, id: TaskId, attempt: u32) -> String {
        format!("{}:{id}.a{attempt}", self.rig_id)
    }

    /// Where an attempt's groups are or would be.
    pub(crate) fn groups(&self, id: TaskId, attempt: u32) -> Groups {
        let name = format!("{id}.a{attempt}");
        let tree = match &self.tier {
            Tier::Cgroup { path } => Some(path.join(&name)),
            Tier::Cookie => None,
        };
        let group = |controller: &Option<Controller>| match controller {
            Some(Controller::Unified) => Some(tree.as_ref()?.join(cgroup::COMMAND)),
            Some(Controller::Legacy { path }) => Some(path.join(&name)),
            None => None,
        };
        Groups {
            processes: group(&self.processes),
            memory: group(&self.memory),
            tree,
        }
    }

    /// The rig's own groups, in which those of its attempts are.
    fn rig_groups(&self) -> impl Iterator<Item = &Path> {
        let tree = match &self.tier {
            Tier::Cgroup { path } => Some(path.as_path()),
            Tier::Cookie => None,
        };
        let legacy = [&self.processes, &self.memory].into_iter().flatten();
        let legacy = legacy.filter_map(|controller| match controller {
            Controller::Legacy { path } => Some(path.as_path()),
            Controller::Unified => None,
        });
        tree.into_iter().chain(legacy)
    }
}

/// What came of killing a tree.
#[derive(Debug, Default)]
pub(crate) struct End {
    /// Processes that were there and are gone.
    pub(crate) killed: usize,
    /// Whether something lives after the deadline.
    pub(crate) failed: bool,
    /// What lives, as far as it can be seen.
    pub(crate) survivors: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Each looks by making the rig's group and removing it again.
    #[test]
    fn programs_that_start_at_once_find_the_same() {
        let id = format!("at-once-{}", std::process::id());
        let first = Containment::detect(&id);
        let look = || (0..100).all(|_| Containment::detect(&id).tier() == first.tier());
        let all_same = std::thread::scope(|scope| {
            let others: Vec<_> = (0..4).map(|_| scope.spawn(look)).collect();
            others
                .into_iter()
                .all(|other| other.join().expect("it ends"))
        });
        assert!(all_same, "not all found {}", first.tier());
    }

    /// A directory of files stands in for a cgroup whose process hangs in the kernel.
    #[test]
    fn a_tree_that_does_not_die_is_an_error_with_its_pids() {
        let dir = tempfile::tempdir().expect("a directory");
        let containment = Containment {
            rig_id: "no-such-rig".to_owned(),
            tier: Tier::Cgroup {
                path: dir.path().to_owned(),
            },
            processes: None,
            memory: None,
        };
        let id = TaskId::derive("b", "t", None);
        let cgroup = dir.path().join(format!("{id}.a1"));
        fs::create_dir(&cgroup).expect("mkdir");
        for (file, text) in [
            ("cgroup.kill", ""),
            ("cgroup.events", "populated 1\nfrozen 0\n"),
            ("cgroup.procs", "4242\n4243\n"),
        ] {
            fs::write(cgroup.join(file), text).expect("write");
        }
        let killed = containment.kill_attempt(id, 1, Duration::from_millis(50));
        let error = killed.expect_err("it lives");
        assert!(matches!(&error, ExecError::Unkillable { pids, .. } if *pids == [4242, 4243]));
        assert!(error.to_string().contains("survive SIGKILL"));
        assert_eq!(fs::read(cgroup.join("cgroup.kill")).expect("read"), b"1");
        // Not even its pids can be seen, and still it is not taken for dead.
        fs::write(cgroup.join("cgroup.procs"), "").expect("write");
        assert!(
            containment
                .kill_attempt(id, 1, Duration::from_millis(50))
                .is_err()
        );
    }
}
