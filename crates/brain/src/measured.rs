//! What was measured: seconds and memory by `plan/task`, load times by model.
//!
//! `brain/measured.json` is replaced when it changed; agents read it for memory peaks. It can be
//! deleted at any time: everything in it is measured again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use rigor_queue::record::{AttemptRecord, Outcome};
use rigor_queue::rig::Rig;
use rigor_queue::submit;
use serde::{Deserialize, Serialize};

/// The weight of the newest measurement in an average: the last ten or so count.
const NEWEST_WEIGHT: f64 = 0.1;

/// What is remembered of a task name or a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measurement {
    /// Average wall-clock seconds of a successful attempt, the newest counting most.
    pub seconds: f64,
    /// The highest GPU memory, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_mb: Option<u64>,
    /// Attempts measured.
    pub runs: u64,
}

/// The store.
#[derive(Debug)]
pub(crate) struct Measured {
    path: PathBuf,
    entries: BTreeMap<String, Measurement>,
    changed: bool,
}

impl Measured {
    /// Reads what was stored; a file that cannot be read is said and begun anew.
    pub(crate) fn open(rig: &Rig) -> Measured {
        let path = rig.brain_dir().join("measured.json");
        let entries = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(
                    "{} cannot be read ({error}); measuring anew",
                    path.display()
                );
                BTreeMap::new()
            }),
            Err(_) => BTreeMap::new(),
        };
        Measured {
            path,
            entries,
            changed: false,
        }
    }

    /// Learns from an attempt that succeeded.
    pub(crate) fn learn(&mut self, key: &str, record: &AttemptRecord) {
        if record.outcome == Outcome::Succeeded {
            self.add(
                key,
                record.duration_ms as f64 / 1000.0,
                record.peaks.vram_mb,
            );
        }
    }

    /// Learns how long a model took to load.
    pub(crate) fn learn_load(&mut self, model: &str, seconds: f64) {
        self.add(&load_key(model), seconds, None);
    }

    /// What is known under a key (`plan/task`).
    pub(crate) fn get(&self, key: &str) -> Option<&Measurement> {
        self.entries.get(key)
    }

    /// What is known of loading a model.
    pub(crate) fn load(&self, model: &str) -> Option<&Measurement> {
        self.entries.get(&load_key(model))
    }

    /// Stores it if it changed.
    pub(crate) fn store(&mut self) -> Result<()> {
        if std::mem::take(&mut self.changed) {
            let text = serde_json::to_vec_pretty(&self.entries)?;
            submit::replace_file(&self.path, &text, false)?;
        }
        Ok(())
    }

    fn add(&mut self, key: &str, seconds: f64, vram_mb: Option<u64>) {
        let entry = self.entries.entry(key.to_owned()).or_default();
        let weight = if entry.runs == 0 {
            1.0
        } else {
            NEWEST_WEIGHT.max(1.0 / (entry.runs + 1) as f64)
        };
        entry.seconds += (seconds - entry.seconds) * weight;
        entry.vram_mb = entry.vram_mb.max(vram_mb);
        entry.runs += 1;
        self.changed = true;
    }
}

fn load_key(model: &str) -> String {
    format!("load:{model}")
}
