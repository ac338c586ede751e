//! What tasks were seen to take of GPU memory.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use rigor_policy::admission::VramNeed;
use rigor_policy::fit::PEAK_MARGIN_PERCENT;
use rigor_queue::task::Vram;
use serde::Deserialize;

/// Peaks by `plan/task`: this agent's own, and what the brain has gathered from all.
#[derive(Debug)]
pub(crate) struct Measured {
    path: PathBuf,
    modified: Option<SystemTime>,
    gathered: HashMap<String, Entry>,
    own: HashMap<String, u64>,
}

/// An entry of `brain/measured.json`, which the brain writes.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(default)]
    vram_mb: Option<u64>,
}

impl Measured {
    pub(crate) fn new(path: PathBuf) -> Measured {
        Measured {
            path,
            modified: None,
            gathered: HashMap::new(),
            own: HashMap::new(),
        }
    }

    /// Reads the brain's file again if it has changed. `false`: it has not.
    pub(crate) fn refresh(&mut self) -> bool {
        let modified = fs::metadata(&self.path)
            .and_then(|meta| meta.modified())
            .ok();
        if modified == self.modified {
            return false;
        }
        self.modified = modified;
        // Absent until the brain has measured something. One that cannot be read costs only
        // parallelism: unmeasured scripts run alone.
        let Ok(bytes) = fs::read(&self.path) else {
            return true;
        };
        match serde_json::from_slice(&bytes) {
            Ok(gathered) => self.gathered = gathered,
            Err(error) => tracing::warn!(
                "{}: {error}; scripts run alone on their GPU until they are measured again",
                self.path.display()
            ),
        }
        true
    }

    /// An attempt of `key` was seen to use `mb` at most.
    pub(crate) fn note(&mut self, key: &str, mb: u64) {
        let peak = self.own.entry(key.to_owned()).or_insert(mb);
        *peak = (*peak).max(mb);
    }

    /// Whether anything is known of `key`.
    pub(crate) fn knows(&self, key: &str) -> bool {
        self.peak(key).is_some()
    }

    /// What a task of `key` with that policy needs.
    pub(crate) fn need(&self, vram: Vram, key: &str) -> VramNeed {
        let measured = || self.peak(key).map(|mb| mb + mb * PEAK_MARGIN_PERCENT / 100);
        let known = match vram {
            Vram::Fixed { mb } => Some(mb),
            Vram::Infer => measured(),
            Vram::Default { estimate_mb } => measured().or(estimate_mb),
        };
        known.map_or(VramNeed::Alone, VramNeed::Mb)
    }

    fn peak(&self, key: &str) -> Option<u64> {
        let gathered = self.gathered.get(key).and_then(|entry| entry.vram_mb);
        gathered.max(self.own.get(key).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_decides_between_estimate_and_measurement() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("measured.json");
        let mut measured = Measured::new(path.clone());
        let default = Vram::Default {
            estimate_mb: Some(900),
        };
        assert_eq!(measured.need(default, "p/t"), VramNeed::Mb(900));
        assert_eq!(measured.need(Vram::Infer, "p/t"), VramNeed::Alone);
        assert_eq!(
            measured.need(Vram::Default { estimate_mb: None }, "p/t"),
            VramNeed::Alone
        );

        measured.note("p/t", 1000);
        measured.note("p/t", 700);
        assert_eq!(measured.need(default, "p/t"), VramNeed::Mb(1100));
        assert_eq!(measured.need(Vram::Fixed { mb: 5 }, "p/t"), VramNeed::Mb(5));

        fs::write(
            &path,
            r#"{"p/t":{"vram_mb":2000,"seconds":3.5,"runs":4},"p/u":{"seconds":1}}"#,
        )
        .unwrap();
        assert!(measured.refresh() && !measured.refresh());
        assert_eq!(measured.need(Vram::Infer, "p/t"), VramNeed::Mb(2200));
        assert_eq!(measured.need(Vram::Infer, "p/u"), VramNeed::Alone);
    }
}
