//! A file of JSON lines, such as brain_decisions.log.

use std::io;
use std::path::Path;

use serde::Serialize;

use crate::FLUSH_LIMIT;
use crate::level::Level;
use crate::queue::Queue;
use crate::rotate::RotatingFile;

/// Appends one JSON object a line, in the order in which they were said.
///
/// A thread of its own writes them, so a disk that is full or hangs holds nobody up: entries wait
/// in memory, and beyond 8,192 of them they are dropped. The component's log has a WARNING for either.
/// What is written survives the death of the process, not a power cut. Dropping it waits for its
/// last entries, for at most two seconds.
pub struct JsonLog {
    path: String,
    entries: Queue,
    /// That an entry is no JSON was said.
    said: bool,
}

impl JsonLog {
    /// Opens or makes the file, and its directory; rotation as for [`RotatingFile::open`].
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path, max_size_bytes: u64, keep: u32) -> io::Result<JsonLog> {
        let mut file = RotatingFile::open(path, max_size_bytes, keep)?;
        let path = file.path().display().to_string();
        // The file is for entries alone: what is to be said about it stands in the component's log.
        let notice_path = path.clone();
        let notice = Box::new(move |_: Level, message: String| {
            tracing::warn!("{notice_path}: {message}");
            None
        });
        let mut in_trouble = false;
        let write_path = path.clone();
        let entries = Queue::start("json-log", notice, move |line| {
            let result = file.write_line(line);
            match &result {
                Ok(()) => in_trouble = false,
                Err(error) if !in_trouble => {
                    in_trouble = true;
                    tracing::warn!(
                        "cannot append to {write_path}: {error}; its entries wait in memory until that is mended"
                    );
                }
                Err(_) => {}
            }
            result
        });
        Ok(JsonLog {
            path,
            entries,
            said: false,
        })
    }

    /// Hands `entry` over; it never waits. An entry that cannot be JSON is a fault of the caller: the
    /// first is logged.
    pub fn append(&mut self, entry: &impl Serialize) {
        match serde_json::to_string(entry) {
            Ok(line) => self.entries.push(line + "\n", Level::Info),
            Err(error) => {
                if !std::mem::replace(&mut self.said, true) {
                    let path = &self.path;
                    tracing::warn!("cannot write an entry of {path} as JSON: {error}");
                }
            }
        }
    }
}

impl Drop for JsonLog {
    fn drop(&mut self) {
        self.entries.flush(FLUSH_LIMIT);
    }
}

impl std::fmt::Debug for JsonLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("JsonLog").field(&self.path).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::{Duration, Instant};

    use super::*;

    fn numbers(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    #[test]
    fn entries_are_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("decisions.log");
        let mut log = JsonLog::open(&path, 1000, 2).unwrap();
        log.append(&serde_json::json!({"type": "MONITOR", "message": "a\nb"}));
        // A map whose keys are no strings is no JSON; those around it are not touched by that.
        log.append(&std::collections::BTreeMap::from([(vec![1], 2)]));
        log.append(&serde_json::json!({"type": "STUCK"}));
        assert!(log.said);
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        let types: Vec<_> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["type"].clone())
            .collect();
        assert_eq!(types, ["MONITOR", "STUCK"]);
    }

    #[test]
    fn a_full_disk_holds_nobody_up_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("decisions.log");
        // Takes no byte: "no space left on device".
        symlink("/dev/full", &path).unwrap();
        let mut log = JsonLog::open(&path, 1_000_000, 2).unwrap();
        let started = Instant::now();
        for number in 0..1000_u64 {
            log.append(&number);
        }
        assert!(started.elapsed() < Duration::from_secs(1));
        assert!(!log.entries.flush(Duration::from_millis(300)), "they wait");
        // Somebody makes room.
        std::fs::remove_file(&path).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while numbers(&path).len() < 1000 {
            assert!(
                Instant::now() < deadline,
                "{} entries",
                numbers(&path).len()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(numbers(&path), (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_disk_that_hangs_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("decisions.log");
        // A pipe that nobody empties takes 64 KiB, and then a write to it waits for ever.
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        let (said, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut log = JsonLog::open(&path, 1_000_000, 2).unwrap();
            let entry = "x".repeat(1000);
            for _ in 0..1000 {
                log.append(&entry);
            }
            said.send(()).unwrap();
            drop(log);
            said.send(()).unwrap();
        });
        let limit = Duration::from_secs(20);
        heard.recv_timeout(limit).expect("append must not wait");
        heard
            .recv_timeout(limit)
            .expect("nor may the end, for long");
    }
}
