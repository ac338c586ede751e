//! What an attempt starts cannot outlive it.
//!
//! Two tiers. With a writable cgroup v2 each attempt gets a cgroup of its own, which the kernel
//! kills whole. Without one the processes are found by the environment cookie that all of them
//! inherit, by their parents and by their sessions; a process that clears its environment *and*
//! loses its parents *and* starts a session of its own after its worker was killed escapes that
//! tier. (While the worker lives nothing escapes: orphans become its children.)

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rigor_queue::name::TaskId;

use crate::cgroup;
use crate::error::ExecError;
use crate::process_tree;

/// How attempts are contained on this machine.
#[derive(Clone, Debug)]
pub struct Containment {
    rig_id: String,
    tier: Tier,
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
        let tier = match cgroup::prepare(rig_id) {
            Some(path) => Tier::Cgroup { path },
            None => Tier::Cookie,
        };
        Containment {
            rig_id: rig_id.to_owned(),
            tier,
        }
    }

    /// The tier that needs nothing from the machine.
    pub fn cookie_only(rig_id: &str) -> Containment {
        Containment {
            rig_id: rig_id.to_owned(),
            tier: Tier::Cookie,
        }
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
        let mut killed = 0;
        let (mut failed, mut survivors) = (false, Vec::new());
        if let Some(path) = self.cgroup_of(id, attempt) {
            let end = cgroup::kill(&path, deadline)?;
            killed += end.killed;
            (failed, survivors) = (end.failed, end.survivors);
        }
        // Also with cgroups: the worker may not have joined its cgroup yet, and an agent that died
        // may have lived in another cgroup than this process.
        let end = process_tree::kill(&self.cookie(id, attempt), deadline)?;
        killed += end.killed;
        survivors.extend(end.survivors);
        if !failed && !end.failed {
            return Ok(killed);
        }
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
        cgroup::cpu_time(&self.cgroup_of(id, attempt)?)
    }

    /// Makes the cgroup of an attempt; `None` in the tier without.
    pub(crate) fn enter(&self, id: TaskId, attempt: u32) -> Result<Option<PathBuf>, ExecError> {
        match self.cgroup_of(id, attempt) {
            Some(path) => {
                cgroup::create(&path)?;
                Ok(Some(path))
            }
            None => Ok(None),
        }
    }

    /// After a worker that ended in order, and so killed all its descendants: a cheap check that
    /// nothing is left. The kill only where something is.
    pub(crate) fn leave(
        &self,
        id: TaskId,
        attempt: u32,
        grace: Duration,
    ) -> Result<usize, ExecError> {
        match self.cgroup_of(id, attempt) {
            Some(path) if !cgroup::remove_if_empty(&path)? => self.kill_attempt(id, attempt, grace),
            Some(_) | None => Ok(0),
        }
    }

    /// The value of the environment cookie of an attempt's processes.
    pub(crate) fn cookie(&self, id: TaskId, attempt: u32) -> String {
        format!("{}:{id}.a{attempt}", self.rig_id)
    }

    fn cgroup_of(&self, id: TaskId, attempt: u32) -> Option<PathBuf> {
        match &self.tier {
            Tier::Cgroup { path } => Some(path.join(format!("{id}.a{attempt}"))),
            Tier::Cookie => None,
        }
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

    /// A directory of files stands in for a cgroup whose process hangs in the kernel.
    #[test]
    fn a_tree_that_does_not_die_is_an_error_with_its_pids() {
        let dir = tempfile::tempdir().expect("a directory");
        let containment = Containment {
            rig_id: "no-such-rig".to_owned(),
            tier: Tier::Cgroup {
                path: dir.path().to_owned(),
            },
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
