//! `PLAN_DIR/history/<batch>/batch_events.jsonl`: the course of a batch, for people.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Appends events; a folder that cannot be written is said once and changes nothing else, since
/// nothing is decided from this file.
#[derive(Debug)]
pub(crate) struct EventLog {
    path: PathBuf,
    file: Option<File>,
    complained: bool,
}

impl EventLog {
    /// Opens the log of the batch with that folder.
    pub(crate) fn open(batch_dir: &Path) -> EventLog {
        let path = batch_dir.join("batch_events.jsonl");
        let mut log = EventLog {
            file: None,
            path,
            complained: false,
        };
        match File::options().append(true).create(true).open(&log.path) {
            Ok(file) => log.file = Some(file),
            Err(error) => log.complain(&error),
        }
        log
    }

    /// One event: its fields are those of `details`.
    pub(crate) fn write(&mut self, event: &str, details: Value) {
        let mut line = json!({"at": jiff::Timestamp::now().to_string(), "event": event});
        if let (Value::Object(line), Value::Object(details)) = (&mut line, details) {
            line.extend(details);
        }
        let text = format!("{line}\n");
        if let Some(file) = &mut self.file
            && let Err(error) = file.write_all(text.as_bytes())
        {
            self.complain(&error);
        }
    }

    fn complain(&mut self, error: &std::io::Error) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(
                "{} cannot be written: {error}; the batch goes on",
                self.path.display()
            );
        }
    }
}
