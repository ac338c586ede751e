//! Reading the small files of a rig, whatever lies in their place.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::Result;
use crate::rig::Rig;

/// Records, heartbeats, signals and journals are far smaller, bytes.
const BYTES_MOST: u64 = 32 * 1024 * 1024;

/// As [`read`], of a file below the rig. The outer error is a link in place of a directory.
pub(crate) fn read_own(rig: &Rig, path: &Path) -> Result<io::Result<(Vec<u8>, Metadata)>> {
    let opened = rig.open_own(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
    Ok(content(opened))
}

/// The content of a regular file and what the system says of it, both of one descriptor. A FIFO is
/// not waited for, a link is not followed, and a file of any size is not read beyond a limit: these
/// are errors of kind [`io::ErrorKind::InvalidData`].
pub(crate) fn read(path: &Path) -> io::Result<(Vec<u8>, Metadata)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    content(rustix::fs::open(path, flags, Mode::empty()))
}

fn content(opened: std::result::Result<OwnedFd, Errno>) -> io::Result<(Vec<u8>, Metadata)> {
    let odd = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let file = match opened {
        Ok(fd) => File::from(fd),
        Err(Errno::LOOP) => return Err(odd("it is a symbolic link".to_owned())),
        Err(Errno::NXIO) => return Err(odd("it is a socket or a device".to_owned())),
        Err(errno) => return Err(errno.into()),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(odd("it is not a regular file".to_owned()));
    }
    if meta.len() > BYTES_MOST {
        return Err(odd(format!(
            "it has {} bytes, the limit is {BYTES_MOST}",
            meta.len()
        )));
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    file.take(BYTES_MOST).read_to_end(&mut bytes)?;
    Ok((bytes, meta))
}
