//! A file of lines that is set aside when it is large: `gpu-1.log`, `gpu-1.log.1`, ... the newest first.
//!
//! Several processes may append to one file: an agent and its workers do. A line is one write
//! to a file opened for appending, so lines do not mix. Before each write the path is compared with the
//! open file, so nobody goes on writing to a file that another has set aside; whoever rotates holds the lock
//! of the file that it sets aside and looks again first, so one overflow rotates once.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Space kept beyond a log's end, so that a disk that fills up still takes the lines that say so.
const RESERVE_BYTES: u64 = 256 * 1024;

/// An append-only file of lines with a bounded size.
///
/// Lines survive the death of the process once [`RotatingFile::write_line`] has returned; nothing
/// is forced to the disk, so a power cut may lose the last ones.
#[derive(Debug)]
pub struct RotatingFile {
    path: PathBuf,
    max_size_bytes: u64,
    keep: u32,
    open: Option<Opened>,
}

#[derive(Debug)]
struct Opened {
    file: File,
    /// The file ends within a line that could not be written whole.
    torn: bool,
    reserved_until: u64,
}

impl RotatingFile {
    /// Opens or makes the file, and its directory. It is rotated before a line would take it beyond
    /// `max_size_bytes`; `keep` rotated files are kept beside it.
    pub fn open(path: &Path, max_size_bytes: u64, keep: u32) -> io::Result<RotatingFile> {
        // The process may change its directory later.
        let path = std::path::absolute(path)?;
        let open = Some(Opened::open(&path)?);
        Ok(RotatingFile {
            path,
            max_size_bytes,
            keep,
            open,
        })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line, which ends in a line end. After an error a part of it may be in the file;
    /// what is written next begins on a line of its own.
    pub fn write_line(&mut self, line: &str) -> io::Result<()> {
        let mut opened = match self.open.take() {
            Some(opened) if opened.is_at(&self.path)? => opened,
            _ => Opened::open(&self.path)?,
        };
        let size = opened.file.metadata()?.len();
        if size > 0 && size + line.len() as u64 > self.max_size_bytes {
            opened = self.rotate(opened)?;
        }
        let opened = self.open.insert(opened);
        opened.append(line)
    }

    /// Sets the file aside, unless another process just did, and opens the new one.
    fn rotate(&self, opened: Opened) -> io::Result<Opened> {
        // Held for the renames below only.
        opened.file.lock()?;
        if opened.is_at(&self.path)? {
            for number in (1..self.keep).rev() {
                rename_if_there(&self.numbered(number), &self.numbered(number + 1))?;
            }
            if self.keep == 0 {
                fs::remove_file(&self.path)?;
            } else {
                rename_if_there(&self.path, &self.numbered(1))?;
            }
        }
        Opened::open(&self.path)
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }
}

impl Opened {
    fn open(path: &Path) -> io::Result<Opened> {
        let open = || {
            OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .open(path)
        };
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent)?;
                }
                open()?
            }
            other => other?,
        };
        let size = file.metadata()?.len();
        let mut last = [b'\n'];
        if size > 0 {
            file.read_exact_at(&mut last, size - 1)?;
        }
        Ok(Opened {
            file,
            torn: last != [b'\n'],
            reserved_until: 0,
        })
    }

    /// Whether the path still names this file.
    fn is_at(&self, path: &Path) -> io::Result<bool> {
        let mine = self.file.metadata()?;
        match fs::metadata(path) {
            Ok(there) => Ok((there.dev(), there.ino()) == (mine.dev(), mine.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn append(&mut self, line: &str) -> io::Result<()> {
        self.reserve();
        let result = if self.torn {
            self.file.write_all(format!("\n{line}").as_bytes())
        } else {
            self.file.write_all(line.as_bytes())
        };
        self.torn = result.is_err();
        result
    }

    /// Renews the reserve when half of it is used. A file system that cannot do it has none.
    fn reserve(&mut self) {
        let Ok(metadata) = self.file.metadata() else {
            return;
        };
        if metadata.len() + RESERVE_BYTES / 2 < self.reserved_until {
            return;
        }
        self.reserved_until = metadata.len() + RESERVE_BYTES;
        let _ = rustix::fs::fallocate(
            &self.file,
            rustix::fs::FallocateFlags::KEEP_SIZE,
            metadata.len(),
            RESERVE_BYTES,
        );
    }
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    fn names(dir: &Path) -> Vec<String> {
        let entry =
            |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(entry).collect();
        names.sort();
        names
    }

    #[test]
    fn the_last_files_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/a.log");
        let mut log = RotatingFile::open(&path, 10, 2).unwrap();
        for index in 0..9 {
            log.write_line(&format!("line{index}\n")).unwrap();
        }
        assert_eq!(
            names(path.parent().unwrap()),
            ["a.log", "a.log.1", "a.log.2"]
        );
        assert_eq!(read(&path), "line8\n");
        assert_eq!(read(&path.with_extension("log.1")), "line7\n");
        assert_eq!(read(&path.with_extension("log.2")), "line6\n");
    }

    #[test]
    fn keep_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let mut log = RotatingFile::open(&path, 10, 0).unwrap();
        log.write_line("first\n").unwrap();
        log.write_line("second\n").unwrap();
        assert_eq!(names(dir.path()), ["a.log"]);
        assert_eq!(read(&path), "second\n");
    }

    #[test]
    fn a_line_larger_than_the_limit_is_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let mut log = RotatingFile::open(&path, 4, 3).unwrap();
        log.write_line("longer than four\n").unwrap();
        assert_eq!(read(&path), "longer than four\n");
    }

    #[test]
    fn several_writers_lose_nothing_and_rotate_once_an_overflow() {
        const WRITERS: usize = 4;
        const LINES: usize = 300;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let path = &path;
                scope.spawn(move || {
                    // As in another process: its own descriptor, its own lock.
                    let mut log = RotatingFile::open(path, 600, 10_000).unwrap();
                    for index in 0..LINES {
                        log.write_line(&format!("{writer:03} {index:05}\n"))
                            .unwrap();
                    }
                });
            }
        });
        let names = names(dir.path());
        let mut lines: Vec<String> = Vec::new();
        for name in &names {
            let text = read(&dir.path().join(name));
            // The current file holds what has come since the last rotation.
            let full = text.len() >= 600 || name == "a.log";
            assert!(full, "{name} was rotated with {} bytes", text.len());
            lines.extend(text.lines().map(str::to_owned));
        }
        lines.sort();
        let expected = (0..WRITERS).flat_map(|w| (0..LINES).map(move |i| format!("{w:03} {i:05}")));
        assert_eq!(lines, expected.collect::<Vec<_>>());
    }

    #[test]
    fn a_removed_file_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/a.log");
        let mut log = RotatingFile::open(&path, 1000, 3).unwrap();
        log.write_line("one\n").unwrap();
        fs::remove_dir_all(dir.path().join("logs")).unwrap();
        log.write_line("two\n").unwrap();
        assert_eq!(read(&path), "two\n");
    }

    #[test]
    fn a_torn_line_of_a_crash_stays_on_its_own_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        fs::write(&path, "whole\nhal").unwrap();
        let mut log = RotatingFile::open(&path, 1000, 3).unwrap();
        log.write_line("next\n").unwrap();
        assert_eq!(read(&path), "whole\nhal\nnext\n");
    }

    #[test]
    fn an_error_passes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let mut log = RotatingFile::open(&path, 1000, 3).unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(log.write_line("lost\n").is_err());
        fs::remove_dir(&path).unwrap();
        log.write_line("back\n").unwrap();
        assert_eq!(read(&path), "back\n");
    }
}
