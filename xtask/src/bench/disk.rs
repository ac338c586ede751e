//! Where a benchmark's files lie: an ext4 of its own with a journal, in a loop image, where that is
//! possible.
//!
//! A file system without a journal creates files several times more slowly for minutes after many
//! were deleted, and a fresh image has nothing deleted yet.

use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::machine;
use crate::workspace;

/// Set once this program runs in a mount namespace of its own.
const INSIDE: &str = "RIGOR_BENCH_NAMESPACE";
/// What an ext4 with the usual settings takes for an inode and a small file, bytes.
const FILE_BYTES: u64 = 256 + 4096;

/// A fresh directory on a file system that is known.
pub(super) struct Disk {
    pub(super) dir: PathBuf,
    /// As a result names it.
    pub(super) file_system: String,
    image: Option<PathBuf>,
}

/// Runs this program again in a mount namespace of its own, where that is possible: whatever is
/// mounted there goes when its last process ends, however it ends. Returns if it cannot be done or
/// has been done.
pub(super) fn enter_namespace() -> Result<()> {
    if env::var_os(INSIDE).is_some() || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let flags = ["--mount", "--propagation", "private"];
    let probe = Command::new("unshare").args(flags).arg("true").output();
    if !probe.is_ok_and(|said| said.status.success()) {
        return Ok(());
    }
    let error = Command::new("unshare")
        .args(flags)
        .arg(env::current_exe().context("cannot tell where this program lies")?)
        .args(env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(error).context("cannot start unshare")
}

impl Disk {
    /// A directory below `scratch` for so many small files.
    pub(super) fn new(scratch: &Path, files: u64) -> Result<Disk> {
        let dir = scratch.join("disk");
        // What a benchmark that was killed has left.
        remove(&dir)?;
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let needed = files * FILE_BYTES;
        let room = rustix::fs::statvfs(scratch)
            .with_context(|| format!("cannot tell the room in {}", scratch.display()))?;
        let free = room.f_bavail * room.f_frsize;
        if free < needed + needed / 4 {
            bail!(
                "{} MB are free in {}, and {files} small files need {} MB",
                free >> 20,
                scratch.display(),
                (needed + needed / 4) >> 20
            );
        }
        let below = machine::file_system(scratch)?;
        let image = scratch.join("journalled.img");
        match mount(&image, &dir, files) {
            Ok(()) => Ok(Disk {
                dir,
                file_system: format!("ext4 with a journal, in a loop image on {below}"),
                image: Some(image),
            }),
            Err(why) => {
                let _ = fs::remove_file(&image);
                eprintln!("xtask: no journalled image ({why:#}): a directory on {below} instead");
                Ok(Disk {
                    dir,
                    file_system: below,
                    image: None,
                })
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(image) = &self.image {
            if let Err(error) = workspace::checked(Command::new("umount").arg(&self.dir)) {
                // The end of the namespace unmounts it.
                eprintln!("xtask: {error:#}");
            }
            let _ = fs::remove_file(image);
        } else if let Err(error) = remove(&self.dir) {
            eprintln!("xtask: {error:#}");
        }
    }
}

fn mount(image: &Path, dir: &Path, files: u64) -> Result<()> {
    if env::var_os(INSIDE).is_none() {
        bail!("it needs root and a mount namespace");
    }
    // Twice the files, directories and a journal beside.
    let bytes = 2 * files * FILE_BYTES + (512 << 20);
    File::create(image)
        .and_then(|file| file.set_len(bytes))
        .with_context(|| format!("cannot make {}", image.display()))?;
    quiet(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-N", &(files * 2 + 10_000).to_string()])
            // Else the kernel goes on writing tables while the benchmark runs.
            .args(["-E", "lazy_itable_init=0,lazy_journal_init=0"])
            .arg(image),
    )?;
    quiet(
        Command::new("mount")
            .args(["-o", "loop"])
            .arg(image)
            .arg(dir),
    )
}

/// Runs to the end; what it says is in the error.
fn quiet(command: &mut Command) -> Result<()> {
    let shown = workspace::shown(command);
    let said = command.stdin(Stdio::null()).output();
    let said = said.with_context(|| format!("cannot start {shown}"))?;
    if !said.status.success() {
        bail!("{shown}: {}", String::from_utf8_lossy(&said.stderr).trim());
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_image_it_is_a_fresh_directory_that_goes_again() {
        let scratch = tempfile::tempdir().expect("a directory");
        let left = scratch.path().join("disk/left");
        fs::create_dir_all(&left).expect("what an earlier one left");
        let disk = Disk::new(scratch.path(), 100).expect("a directory can be made");
        assert!(disk.dir.is_dir() && !left.exists());
        assert!(!disk.file_system.is_empty());
        let dir = disk.dir.clone();
        drop(disk);
        assert!(!dir.exists());
    }

    #[test]
    fn too_little_room_is_said() {
        let scratch = tempfile::tempdir().expect("a directory");
        let error = Disk::new(scratch.path(), 1 << 40)
            .err()
            .expect("no disk is so large");
        assert!(error.to_string().contains("MB are free"), "{error}");
    }
}
