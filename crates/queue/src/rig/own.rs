//! The directories of a rig are its own: a symbolic link in place of one is refused by name.
//!
//! A link would lead moves out of the rig, to files that are nobody's business here or to another
//! file system, where a rename is no move. What the rig itself lies under may be a link: that is
//! its owner's choice.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Place, Rig, is_safe_name};
use crate::error::{QueueError, Result};
use crate::lane::Lane;
use crate::task::Class;

/// The names of a directory are read so many bytes at a time: some thousand names.
const READ_DIR_BYTES: usize = 256 * 1024;

/// What a rename found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renamed {
    /// It is done.
    Done,
    /// The source is gone: somebody moved it first.
    Gone,
    /// The target exists.
    Exists,
}

impl Rig {
    /// Looks that no directory of the rig is a symbolic link; `component` (an agent, or the brain)
    /// names whose own directories are looked at with those that all share. Some 25 calls of lstat:
    /// for now and then. What is not there is none of its business, and neither are those of
    /// batches: every use of one looks for itself.
    ///
    /// # Errors
    ///
    /// [`QueueError::Linked`] names the first.
    pub fn check_dirs(&self, component: Option<&str>) -> Result<()> {
        let mut dirs: Vec<PathBuf> = ["tasks", "attempts", "archive", "agents", "signals", "brain"]
            .map(|dir| self.root().join(dir))
            .into();
        dirs.extend(Lane::ALL.map(|lane| self.lane_dir(lane)));
        dirs.extend(Class::ALL.map(|class| self.dir(Place::Queue(class))));
        dirs.extend(self.dirs_of_brain());
        if let Some(name) = component {
            dirs.push(self.agent_dir(name));
            dirs.push(self.signals_dir(name));
            dirs.push(self.dir(Place::Processing(name)));
        }
        dirs.iter().try_for_each(|dir| refuse_link(dir))
    }

    /// Refuses a path below the rig of which any part is a symbolic link, the last one included.
    pub(crate) fn no_links(&self, path: &Path) -> Result<()> {
        let below = path.strip_prefix(self.root()).unwrap_or(Path::new(""));
        let mut at = self.root().to_owned();
        for part in below {
            at.push(part);
            refuse_link(&at)?;
        }
        Ok(())
    }

    /// Opens a file below the rig, whose directories are refused where they are links. A link in
    /// the place of the file itself is the inner error [`Errno::LOOP`].
    pub(crate) fn open_own(
        &self,
        path: &Path,
        flags: OFlags,
    ) -> Result<std::result::Result<OwnedFd, Errno>> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // openat2 refuses a mode for what is not created.
        let mode = if flags.contains(OFlags::CREATE) {
            Mode::from_raw_mode(0o666)
        } else {
            Mode::empty()
        };
        match rustix::fs::openat2(CWD, path, flags, mode, ResolveFlags::NO_SYMLINKS) {
            Ok(fd) => Ok(Ok(fd)),
            // A link: in the place of the file, of a directory, or above the rig. Or a kernel or a
            // sandbox without openat2.
            Err(Errno::LOOP | Errno::NOTDIR | Errno::NOSYS | Errno::PERM) => {
                self.no_links(path.parent().unwrap_or(path))?;
                Ok(rustix::fs::open(path, flags, mode))
            }
            Err(errno) => Ok(Err(errno)),
        }
    }

    /// Opens a directory of the rig, which is refused where it is a link. `None`: it is not there.
    fn open_dir(&self, dir: &Path, flags: OFlags) -> Result<Option<OwnedFd>> {
        match self.open_own(dir, flags | OFlags::DIRECTORY)? {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => {
                refuse_link(dir)?;
                Err(QueueError::errno("open", dir)(errno))
            }
        }
    }

    /// Renames without replacing, between two directories of the rig on one file system; neither
    /// may be a link.
    ///
    /// A crash leaves the file under one of the two names, never both, never neither.
    pub(crate) fn rename_new(&self, from: &Path, to: &Path) -> Result<Renamed> {
        let (source, name) = split(from);
        match self.open_dir(source, OFlags::PATH)? {
            Some(source) => self.rename_at(source.as_fd(), name, from, to),
            None => Ok(Renamed::Gone),
        }
    }

    /// As [`Rig::rename_new`], of a file that was opened a moment ago by [`Rig::open_own`]: the
    /// directory that it lies in was looked at then. Two calls fewer.
    pub(crate) fn rename_opened(&self, from: &Path, to: &Path) -> Result<Renamed> {
        self.rename_at(CWD, from.as_os_str(), from, to)
    }

    /// Renames what is `name` in `source`, which is `from`.
    fn rename_at(
        &self,
        source: BorrowedFd<'_>,
        name: &OsStr,
        from: &Path,
        to: &Path,
    ) -> Result<Renamed> {
        let failed = |errno: Errno| QueueError::Move {
            from: from.to_owned(),
            to: to.to_owned(),
            cause: errno.into(),
        };
        let (target, next) = split(to);
        let Some(target) = self.open_dir(target, OFlags::PATH)? else {
            return Err(failed(Errno::NOENT));
        };
        match rustix::fs::renameat_with(source, name, &target, next, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Renamed::Done),
            Err(Errno::NOENT) => {
                match rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => Ok(Renamed::Gone),
                    _ => Err(failed(Errno::NOENT)),
                }
            }
            Err(Errno::EXIST) => Ok(Renamed::Exists),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Shows every name in a directory of the rig, and what it is as far as the file system says.
    /// One that does not exist is empty.
    pub(crate) fn each_entry(
        &self,
        dir: &Path,
        mut look: impl FnMut(&OsStr, FileType),
    ) -> Result<()> {
        let Some(handle) = self.open_dir(dir, OFlags::RDONLY)? else {
            return Ok(());
        };
        let mut buffer = Vec::with_capacity(READ_DIR_BYTES);
        let mut entries = RawDir::new(File::from(handle), buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(QueueError::errno("read", dir))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                look(name, entry.file_type());
            }
        }
        Ok(())
    }

    /// Names of the directories in a directory of the rig, without litter.
    pub(crate) fn subdirs_of(&self, dir: &Path) -> Result<Vec<String>> {
        let mut names = Vec::new();
        self.each_entry(dir, |name, kind| {
            let is_dir = match kind {
                FileType::Directory => true,
                // Not every file system says it in its listing.
                FileType::Unknown => {
                    fs::symlink_metadata(dir.join(name)).is_ok_and(|meta| meta.is_dir())
                }
                _ => false,
            };
            if let (true, Some(name)) = (is_dir, name.to_str())
                && is_safe_name(name)
            {
                names.push(name.to_owned());
            }
        })?;
        names.sort_unstable();
        Ok(names)
    }
}

/// The directory that something lies in, and its name there.
fn split(path: &Path) -> (&Path, &OsStr) {
    let dir = path.parent().unwrap_or(path);
    (dir, path.file_name().unwrap_or_default())
}

fn refuse_link(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => Err(QueueError::Linked {
            path: path.to_owned(),
            to: fs::read_link(path).unwrap_or_default(),
        }),
        Ok(_) => Ok(()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(QueueError::io("stat", path)(error)),
    }
}
