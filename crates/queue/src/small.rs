//! Reading the small files of a rig, whatever lies in their place.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Records, heartbeats, signals and journals are far smaller, bytes.
const BYTES_MOST: u64 = 32 * 1024 * 1024;

/// The content of a regular file and what the system says of it, both of one descriptor. A FIFO is
/// not waited for, a link is not followed, and a file of any size is not read beyond a limit: these
/// are errors of kind [`io::ErrorKind::InvalidData`].
pub(crate) fn read(path: &Path) -> io::Result<(Vec<u8>, Metadata)> {
    let odd = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
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
