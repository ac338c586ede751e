//! The control groups of one attempt, as its agent makes them and its worker uses them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::cgroup;
use crate::error::ExecError;
use crate::limits::{self, OomKill, ProcessLimitHit};

/// Where the processes of an attempt are put. The worker is in none of those that limit: it has to
/// live to tell what came of its command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// The cgroup of version 2, which holds one for the worker and one for the command; none: there
    /// is no writable hierarchy.
    pub tree: Option<PathBuf>,
    /// The group that limits how many processes the command is; none: nothing can hold that limit.
    pub processes: Option<PathBuf>,
    /// The group that limits their memory, likewise.
    pub memory: Option<PathBuf>,
}

impl Groups {
    /// Puts this process, the worker, where it belongs.
    pub fn join_as_worker(&self) -> Result<(), ExecError> {
        let Some(tree) = &self.tree else {
            return Ok(());
        };
        let procs = tree.join(cgroup::WORKER).join("cgroup.procs");
        // 0 is the writing process itself.
        fs::write(&procs, "0").map_err(ExecError::io("join", &procs))
    }

    /// What a process has to write `0` to, in order to be a process of the command.
    pub fn entrances(&self) -> Result<Vec<File>, ExecError> {
        let mut dirs: Vec<PathBuf> = Vec::new();
        let limits = [&self.processes, &self.memory];
        for dir in limits.into_iter().flatten().cloned().chain(self.command()) {
            if !dirs.contains(&dir) {
                dirs.push(dir);
            }
        }
        let open = |dir: &PathBuf| {
            let procs = dir.join("cgroup.procs");
            let file = File::options().write(true).open(&procs);
            file.map_err(ExecError::io("open", &procs))
        };
        dirs.iter().map(open).collect()
    }

    /// Kills all of the command at once, where the kernel can; whoever waits for its end looks
    /// himself whether it has come.
    pub fn kill_command(&self) {
        if let Some(command) = self.command() {
            let _ = cgroup::kill_all(&command);
        }
    }

    /// Whether the command wanted more processes than it may have.
    pub fn process_limit_hit(&self) -> Option<ProcessLimitHit> {
        limits::process_limit_hit(self.processes.as_deref()?)
    }

    /// Whom of the command the kernel killed for want of memory. `Err`: nobody counts that.
    pub fn oom_kill(&self) -> Result<Option<OomKill>, NotCounted> {
        match self.memory.as_deref() {
            Some(group) if limits::counts_oom_kills(group) => Ok(limits::oom_kill(group)),
            Some(_) | None => Err(NotCounted),
        }
    }

    /// The same for the whole attempt with its worker, which is not in a group of version 1.
    pub(crate) fn oom_kill_with_worker(&self) -> Result<Option<OomKill>, NotCounted> {
        match self.tree.as_deref() {
            Some(group) if limits::counts_oom_kills(group) => Ok(limits::oom_kill(group)),
            Some(_) | None => Err(NotCounted),
        }
    }

    /// Those besides `tree` and what is below it: of version 1.
    pub(crate) fn legacy(&self) -> impl Iterator<Item = &Path> {
        let below = |path: &Path| {
            let tree = self.tree.as_deref();
            tree.is_some_and(|tree| path.starts_with(tree))
        };
        let both = [self.processes.as_deref(), self.memory.as_deref()];
        both.into_iter().flatten().filter(move |path| !below(path))
    }

    fn command(&self) -> Option<PathBuf> {
        Some(self.tree.as_ref()?.join(cgroup::COMMAND))
    }
}

/// The kernel does not count, for this attempt alone, whom it kills for want of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotCounted;
