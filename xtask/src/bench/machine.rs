//! Where a figure comes from.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::workspace;

/// A figure means nothing without these.
#[derive(Serialize)]
pub(super) struct Machine {
    cpu: String,
    cores: usize,
    file_system: String,
    date: String,
    /// With `-dirty` where files differ from it.
    commit: String,
    /// Over the last minute, before the benchmark: what else the machine had to do.
    load: f64,
}

impl Machine {
    /// This one, now.
    pub(super) fn look(file_system: &str) -> Result<Machine> {
        let cpus = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let model = cpus.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == "model name").then(|| value.trim().to_owned())
        });
        let load = fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
        let load = load.split_whitespace().next().unwrap_or_default();
        let commit = git(&["rev-parse", "--short", "HEAD"])?;
        let dirty = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
        Ok(Machine {
            cpu: model.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism()
                .context("cannot tell how many cores there are")?
                .get(),
            file_system: file_system.to_owned(),
            date: jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%SZ")
                .to_string(),
            commit: if dirty { commit + "-dirty" } else { commit },
            load: load.parse().context("/proc/loadavg is not understood")?,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({} cores, load {}), {}, {}, {}",
            self.cpu, self.cores, self.load, self.file_system, self.date, self.commit
        )
    }
}

/// The type of the file system that holds an absolute path.
pub(super) fn file_system(path: &Path) -> Result<String> {
    let mounts = "/proc/self/mounts";
    let mounts = fs::read_to_string(mounts).with_context(|| format!("cannot read {mounts}"))?;
    Ok(innermost(&mounts, path))
}

/// The type of the innermost mount that holds `path`.
fn innermost(mounts: &str, path: &Path) -> String {
    let held = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (point, kind) = (words.next()?, words.next()?);
        path.starts_with(point).then_some((point.len(), kind))
    });
    held.max_by_key(|(length, _)| *length)
        .map_or_else(|| "unknown".to_owned(), |(_, kind)| kind.to_owned())
}

/// What git prints in the workspace; nothing where it fails.
pub(super) fn git(words: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .args(words)
        .current_dir(workspace::root())
        .output()
        .context("cannot start git")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_counts() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /run tmpfs rw 0 0\n/dev/b /run/data xfs rw 0 0\n";
        let kind = |path: &str| innermost(mounts, Path::new(path));
        assert_eq!(kind("/run/data/rig"), "xfs");
        assert_eq!(kind("/run/database"), "tmpfs");
        assert_eq!(kind("/home"), "ext4");
    }
}
