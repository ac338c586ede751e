//! A file of JSON lines, such as brain_decisions.log.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use serde::Serialize;

use crate::rotate::RotatingFile;

/// Appends one JSON object a line. Writes at once, in the caller's thread: not for an async runtime.
#[derive(Debug)]
pub struct JsonLog {
    file: RotatingFile,
    /// Kinds of failure that were said since the last success.
    said: HashSet<Failure>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Failure {
    NotJson,
    Write(io::ErrorKind),
}

impl JsonLog {
    /// Opens or makes the file, and its directory; rotation as for [`RotatingFile::open`].
    pub fn open(path: &Path, max_size_bytes: u64, keep: u32) -> io::Result<JsonLog> {
        Ok(JsonLog {
            file: RotatingFile::open(path, max_size_bytes, keep)?,
            said: HashSet::new(),
        })
    }

    /// Appends `entry`; whether it is in the file. Failures are logged, each kind once until a
    /// line is written again. What is written survives the death of the process, not a power cut.
    pub fn append(&mut self, entry: &impl Serialize) -> bool {
        let line = match serde_json::to_string(entry) {
            Ok(line) => line + "\n",
            Err(error) => {
                let path = self.file.path().display();
                if self.said.insert(Failure::NotJson) {
                    tracing::warn!("cannot write an entry of {path} as JSON: {error}");
                }
                return false;
            }
        };
        match self.file.write_line(&line) {
            Ok(()) => {
                self.said.retain(|failure| *failure == Failure::NotJson);
                true
            }
            Err(error) => {
                let path = self.file.path().display();
                if self.said.insert(Failure::Write(error.kind())) {
                    tracing::warn!(
                        "cannot append to {path}: {error}; its entries are lost until that is mended"
                    );
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("decisions.log");
        let mut log = JsonLog::open(&path, 1000, 2).unwrap();
        assert!(log.append(&serde_json::json!({"type": "MONITOR", "message": "a\nb"})));
        assert!(log.append(&serde_json::json!({"type": "STUCK"})));
        let text = std::fs::read_to_string(&path).unwrap();
        let types: Vec<_> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["type"].clone())
            .collect();
        assert_eq!(types, ["MONITOR", "STUCK"]);
    }

    #[test]
    fn failures_do_not_panic_and_pass() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("decisions.log");
        let mut log = JsonLog::open(&path, 1000, 2).unwrap();
        // A map whose keys are no strings is no JSON.
        assert!(!log.append(&std::collections::BTreeMap::from([(vec![1], 2)])));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(!log.append(&1));
        assert!(!log.append(&2));
        assert_eq!(log.said.len(), 2);
        std::fs::remove_dir(&path).unwrap();
        assert!(log.append(&3));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "3\n");
        assert!(
            !log.said
                .contains(&Failure::Write(io::ErrorKind::IsADirectory))
        );
    }
}
