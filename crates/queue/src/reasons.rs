//! `agents/<agent>/reasons.jsonl`: what an agent's GPU did and why it did not, written on change.
//!
//! The holder of the agent's lock appends: the agent itself, or the brain while it holds the lock
//! of a dead one. The brain's own journal says since when work waits that no agent can see. One
//! JSON object a line; a torn last line is skipped. For people and displays: nothing is decided
//! from it, and a full disk costs entries, never work.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{QueueError, Result};
use crate::heartbeat::Refusal;
use crate::rig::Rig;

/// A journal is set aside beyond this size, bytes; one older file is kept.
const MOST_BYTES: u64 = 8 * 1024 * 1024;

/// Where the words alone change (a queue grows, a wait gets longer), an entry is written at most so
/// often, seconds.
const DETAIL_EVERY_S: i64 = 300;

/// What a second of a GPU went into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A script or llm task ran.
    Running,
    /// A model was on its way in.
    Loading,
    /// Another agent's runtime had it, for a model that is split over several GPUs.
    Lent,
    /// A model was on its way out, its last requests with it.
    Unloading,
    /// Nothing was there to do.
    NoWork,
    /// Tasks waited for others to end, for their backoff, or for an operator's release.
    WaitingDeps,
    /// Tasks needed a model and none was in VRAM.
    ModelNotLoaded,
    /// Tasks needed another model.
    WrongModel,
    /// Tasks needed more memory than was free.
    VramShort,
    /// Tasks waited for CPU, script or model slots.
    SlotsFull,
    /// The GPU was over a limit of temperature or power.
    ThermalPower,
    /// An operator had paused or drained the agent.
    Paused,
    /// The model that tasks needed could not be loaded, or its runtime failed.
    RuntimeFailing,
    /// The GPU or the rig's directory could not be used: lost, quarantined, disk full.
    Quarantined,
    /// No agent ran for it, or it did not answer.
    AgentDown,
}

impl Cause {
    /// Every cause, in the order of displays.
    pub const ALL: [Cause; 15] = [
        Cause::Running,
        Cause::Loading,
        Cause::Lent,
        Cause::Unloading,
        Cause::NoWork,
        Cause::WaitingDeps,
        Cause::ModelNotLoaded,
        Cause::WrongModel,
        Cause::VramShort,
        Cause::SlotsFull,
        Cause::ThermalPower,
        Cause::Paused,
        Cause::RuntimeFailing,
        Cause::Quarantined,
        Cause::AgentDown,
    ];

    /// As it is written in files and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Running => "running",
            Cause::Loading => "loading",
            Cause::Lent => "lent",
            Cause::Unloading => "unloading",
            Cause::NoWork => "no_work",
            Cause::WaitingDeps => "waiting_deps",
            Cause::ModelNotLoaded => "model_not_loaded",
            Cause::WrongModel => "wrong_model",
            Cause::VramShort => "vram_short",
            Cause::SlotsFull => "slots_full",
            Cause::ThermalPower => "thermal_power",
            Cause::Paused => "paused",
            Cause::RuntimeFailing => "runtime_failing",
            Cause::Quarantined => "quarantined",
            Cause::AgentDown => "agent_down",
        }
    }

    /// As it is said to people.
    pub fn words(self) -> &'static str {
        match self {
            Cause::Running => "running",
            Cause::Loading => "loading",
            Cause::Lent => "lent",
            Cause::Unloading => "unloading",
            Cause::NoWork => "no work",
            Cause::WaitingDeps => "waiting for dependencies",
            Cause::ModelNotLoaded => "model not loaded",
            Cause::WrongModel => "wrong model",
            Cause::VramShort => "VRAM short",
            Cause::SlotsFull => "slots full",
            Cause::ThermalPower => "thermal/power",
            Cause::Paused => "paused",
            Cause::RuntimeFailing => "runtime failing",
            Cause::Quarantined => "quarantined",
            Cause::AgentDown => "agent down",
        }
    }
}

/// One entry: from `since` on, until the next entry's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    /// From when it holds. Before the last entry's where that was found to be wrong: an agent that
    /// hung did not write what followed.
    pub since: Timestamp,
    /// What the GPU's time goes into.
    pub cause: Cause,
    /// The code of the refusal behind it, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Refusal>,
    /// With numbers; empty where there is nothing to add.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Batches whose script and llm tasks run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub batches: Vec<String>,
}

/// Appends to a journal.
#[derive(Debug)]
pub struct ReasonLog {
    path: PathBuf,
    /// The last entry, to write changes alone.
    last: Option<Reason>,
    /// The file's end may be a torn line of a writer that died.
    torn: bool,
}

impl ReasonLog {
    /// Opens the journal of `name`. Only the holder of its lock may write.
    pub fn open(rig: &Rig, name: &str) -> Result<ReasonLog> {
        let path = path(rig, name);
        let mut torn = false;
        match File::open(&path) {
            Ok(mut file) => {
                let length = file
                    .metadata()
                    .map_err(QueueError::io("read", &path))?
                    .len();
                if length > 0 {
                    let mut end = [0];
                    file.seek(SeekFrom::Start(length - 1))
                        .and_then(|_| file.read_exact(&mut end))
                        .map_err(QueueError::io("read", &path))?;
                    torn = end != *b"\n";
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(QueueError::io("open", &path)(error)),
        }
        let last = read(rig, name, Timestamp::MAX)?.pop();
        Ok(ReasonLog { path, last, torn })
    }

    /// The entry written last, by whomever.
    pub fn last(&self) -> Option<&Reason> {
        self.last.as_ref()
    }

    /// Appends `reason` if its cause, code or batches are not the last entry's, or its words are
    /// not and that entry is some minutes old. `false`: neither.
    ///
    /// # Errors
    /// The entry is not written; it is tried again when it is given again.
    pub fn note(&mut self, reason: Reason) -> Result<bool> {
        let same = self.last.as_ref().is_some_and(|last| {
            let age = reason.since.duration_since(last.since).as_secs();
            (last.cause, last.code, &last.batches) == (reason.cause, reason.code, &reason.batches)
                && (last.detail == reason.detail || (0..DETAIL_EVERY_S).contains(&age))
        });
        if same {
            return Ok(false);
        }
        let mut line = String::new();
        if self.torn {
            line.push('\n');
        }
        line.push_str(&serde_json::to_string(&reason).expect("our own types serialise"));
        line.push('\n');
        let length = fs::metadata(&self.path).map_or(0, |meta| meta.len());
        if length + line.len() as u64 > MOST_BYTES {
            // The older half goes; what is lost is older than anybody asks for.
            fs::rename(&self.path, older(&self.path))
                .map_err(QueueError::io("set aside", &self.path))?;
        }
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        // After a part of a line nothing is known of the file's end.
        self.torn = written.is_err();
        written.map_err(QueueError::io("append to", &self.path))?;
        self.last = Some(reason);
        Ok(true)
    }
}

/// The entries that say what held from `from` on: the last one that began before it, and all
/// after, in the order of writing. Lines that cannot be read are left out.
pub fn read(rig: &Rig, name: &str, from: Timestamp) -> Result<Vec<Reason>> {
    let path = path(rig, name);
    let mut newest_first = Vec::new();
    for file in [path.clone(), older(&path)] {
        let text = match crate::small::read(&file) {
            Ok((text, _)) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(QueueError::io("read", &file)(error)),
        };
        for line in text.split(|byte| *byte == b'\n').rev() {
            let Ok(reason) = serde_json::from_slice::<Reason>(line) else {
                continue;
            };
            let before = reason.since <= from;
            newest_first.push(reason);
            if before {
                newest_first.reverse();
                return Ok(newest_first);
            }
        }
    }
    newest_first.reverse();
    Ok(newest_first)
}

fn path(rig: &Rig, name: &str) -> PathBuf {
    rig.agent_dir(name).join("reasons.jsonl")
}

fn older(path: &std::path::Path) -> PathBuf {
    path.with_extension("jsonl.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rig() -> (tempfile::TempDir, Rig) {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::create(dir.path()).unwrap();
        rig.prepare_agent("gpu-1").unwrap();
        (dir, rig)
    }

    fn reason(second: i64, cause: Cause) -> Reason {
        Reason {
            since: Timestamp::from_second(second).unwrap(),
            cause,
            code: None,
            detail: String::new(),
            batches: Vec::new(),
        }
    }

    #[test]
    fn only_changes_are_written_and_a_torn_line_costs_itself_alone() {
        let (_dir, rig) = rig();
        let mut log = ReasonLog::open(&rig, "gpu-1").unwrap();
        assert!(log.note(reason(1, Cause::NoWork)).unwrap());
        assert!(!log.note(reason(2, Cause::NoWork)).unwrap());
        assert!(log.note(reason(3, Cause::Running)).unwrap());
        let mut file = OpenOptions::new().append(true).open(&log.path).unwrap();
        file.write_all(b"{\"since\":\"2026").unwrap();
        let mut log = ReasonLog::open(&rig, "gpu-1").unwrap();
        assert_eq!(log.last(), Some(&reason(3, Cause::Running)));
        assert!(log.note(reason(4, Cause::NoWork)).unwrap());
        let all = read(&rig, "gpu-1", Timestamp::MIN).unwrap();
        let seconds: Vec<i64> = all.iter().map(|entry| entry.since.as_second()).collect();
        assert_eq!(seconds, [1, 3, 4]);
        let from = read(&rig, "gpu-1", Timestamp::from_second(3).unwrap()).unwrap();
        assert_eq!(
            from.len(),
            2,
            "the entry that holds at that moment, and later ones"
        );
    }

    #[test]
    fn a_long_journal_is_set_aside_and_still_read() {
        let (_dir, rig) = rig();
        let mut log = ReasonLog::open(&rig, "gpu-1").unwrap();
        log.note(reason(1, Cause::NoWork)).unwrap();
        let filler = vec![b'\n'; MOST_BYTES as usize];
        OpenOptions::new()
            .append(true)
            .open(&log.path)
            .unwrap()
            .write_all(&filler)
            .unwrap();
        log.note(reason(2, Cause::Running)).unwrap();
        assert!(fs::metadata(&log.path).unwrap().len() < 1000);
        let all = read(&rig, "gpu-1", Timestamp::MIN).unwrap();
        assert_eq!(all, [reason(1, Cause::NoWork), reason(2, Cause::Running)]);
    }

    #[test]
    fn what_cannot_be_written_is_an_error_and_tried_again() {
        let (_dir, rig) = rig();
        let mut log = ReasonLog::open(&rig, "gpu-1").unwrap();
        fs::create_dir(&log.path).unwrap();
        assert!(log.note(reason(1, Cause::NoWork)).is_err());
        fs::remove_dir(&log.path).unwrap();
        assert!(log.note(reason(1, Cause::NoWork)).unwrap());
    }
}
