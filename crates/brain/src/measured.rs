//! What was measured: seconds and memory by `plan/task`; load times, memory and speed by model.
//!
//! `brain/measured.json` is replaced when it changed; agents read it for memory peaks. It can be
//! deleted at any time: everything in it is measured again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use jiff::Timestamp;
use rigor_models::{Measurement, Measurements, load_key, speed_key};
use rigor_queue::record::{AttemptRecord, FailureKind, Outcome};
use rigor_queue::rig::Rig;
use rigor_queue::submit;

/// The weight of the newest measurement in an average: the last ten or so count.
const NEWEST_WEIGHT: f64 = 0.1;
/// A model's speed is that of so many seconds of answering.
const SPEED_SECONDS: f64 = 600.0;

/// The store.
#[derive(Debug)]
pub(crate) struct Measured {
    path: PathBuf,
    entries: Measurements,
    changed: bool,
    /// Until when the answering of a model on an agent has been counted.
    answered: BTreeMap<String, Timestamp>,
}

impl Measured {
    /// Reads what was stored; a file that cannot be read is said and begun anew.
    pub(crate) fn open(rig: &Rig) -> Measured {
        let path = rig.brain_dir().join("measured.json");
        let entries = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                let kept = path.with_extension("json.unread");
                // What cannot be kept is only measured anew.
                let _ = std::fs::rename(&path, &kept);
                tracing::warn!(
                    "{} cannot be read ({error}): it is kept as {}; measuring anew",
                    path.display(),
                    kept.display()
                );
                Measurements::default()
            }),
            Err(_) => Measurements::default(),
        };
        Measured {
            path,
            entries,
            changed: false,
            answered: BTreeMap::new(),
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
            self.learn_speed(record);
        }
    }

    /// Learns from an attempt that failed: it may have ended before its peak, so it proves a peak
    /// only where one is known and that was higher. One that ran out of memory proves nothing of the
    /// others of its name: it may have filled the whole GPU, and all of them would never fit again.
    pub(crate) fn learn_failed(&mut self, key: &str, record: &AttemptRecord) {
        if let Outcome::Failed {
            kind: FailureKind::OutOfMemory,
            ..
        } = record.outcome
        {
            return;
        }
        let (Some(entry), Some(seen)) = (self.entries.0.get_mut(key), record.peaks.vram_mb) else {
            return;
        };
        if entry.vram_mb.is_some_and(|known| known < seen) {
            entry.vram_mb = Some(seen);
            self.changed = true;
        }
    }

    /// Learns how long a model took to load on an agent's GPU, and what it took of its memory.
    /// `of` is the fingerprint of the model as it is served now.
    pub(crate) fn learn_load(&mut self, model: &str, record: &AttemptRecord, of: Option<u64>) {
        let seconds = record.duration_ms as f64 / 1000.0;
        for key in [load_key(model, None), load_key(model, Some(&record.agent))] {
            self.add(&key, seconds, None);
            // What it takes follows from its settings: the last is right, not the highest.
            if let Some(mb) = record.peaks.vram_mb
                && let Some(entry) = self.entries.0.get_mut(&key)
            {
                entry.vram_mb = Some(mb);
                entry.of = of;
            }
        }
    }

    /// What is known under a key (`plan/task`).
    pub(crate) fn get(&self, key: &str) -> Option<&Measurement> {
        self.entries.0.get(key)
    }

    /// What is known of loading a model.
    pub(crate) fn load(&self, model: &str) -> Option<&Measurement> {
        self.get(&load_key(model, None))
    }

    /// What is known of loading a model on an agent's GPU.
    pub(crate) fn load_on(&self, model: &str, agent: &str) -> Option<&Measurement> {
        self.get(&load_key(model, Some(agent)))
    }

    /// All that is known.
    pub(crate) fn all(&self) -> &Measurements {
        &self.entries
    }

    /// Stores it if it changed.
    pub(crate) fn store(&mut self) -> Result<()> {
        if std::mem::take(&mut self.changed) {
            let text = serde_json::to_vec_pretty(&self.entries)?;
            submit::replace_file(&self.path, &text, false)?;
        }
        Ok(())
    }

    /// Learns how many tokens a GPU answers in a second: those of all requests by the seconds in
    /// which there was one. Attempts become known in the order of their ends, or nearly.
    fn learn_speed(&mut self, record: &AttemptRecord) {
        let Some((llm, request_ms)) = record
            .llm
            .as_ref()
            .and_then(|llm| Some((llm, llm.request_ms?)))
        else {
            return;
        };
        if llm.completion_tokens == 0 {
            return;
        }
        let key = speed_key(&llm.model, &record.agent);
        let until = self.answered.entry(key.clone()).or_insert(Timestamp::MIN);
        let begun = record
            .ended
            .checked_sub(std::time::Duration::from_millis(request_ms))
            .unwrap_or(record.ended);
        let seconds = record.ended.duration_since(begun.max(*until)).as_secs_f64();
        *until = record.ended.max(*until);
        let entry = self.entries.0.entry(key).or_default();
        let known = entry.tokens_per_second.unwrap_or(0.0) * entry.seconds;
        let all = entry.seconds + seconds.max(0.0);
        // A request that lay wholly within others adds tokens and no seconds.
        if all > 0.0 {
            entry.tokens_per_second = Some((known + llm.completion_tokens as f64) / all);
            entry.seconds = all.min(SPEED_SECONDS);
        }
        entry.runs += 1;
        self.changed = true;
    }

    fn add(&mut self, key: &str, seconds: f64, vram_mb: Option<u64>) {
        let entry = self.entries.0.entry(key.to_owned()).or_default();
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

#[cfg(test)]
mod tests {
    use rigor_queue::record::LlmUse;

    use super::*;

    fn rig() -> (tempfile::TempDir, Rig) {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::create(dir.path()).unwrap();
        (dir, rig)
    }

    /// An attempt on gpu-1 that ended at that second and asked the model for `ms` before.
    fn answered(second: i64, ms: u64, tokens: u64) -> AttemptRecord {
        let text = serde_json::json!({
            "id": "0123456789abcdef", "batch": "b", "task": "t", "name": "t", "class": "llm",
            "attempt": 1, "agent": "gpu-1", "ended": Timestamp::from_second(second).unwrap(),
            "duration_ms": ms, "outcome": {"outcome": "succeeded"}, "peaks": {"vram_mb": 700},
        });
        let mut record: AttemptRecord = serde_json::from_value(text).unwrap();
        record.llm = Some(LlmUse {
            model: "m".into(),
            prompt_tokens: 5,
            completion_tokens: tokens,
            truncated: false,
            request_ms: Some(ms),
        });
        record
    }

    #[test]
    fn a_gpus_speed_counts_requests_at_once_together_and_no_pauses() {
        let (_dir, rig) = rig();
        let mut measured = Measured::open(&rig);
        let speed = |measured: &Measured| {
            let known = measured.get(&speed_key("m", "gpu-1")).unwrap();
            known.tokens_per_second.unwrap().round()
        };
        measured.learn("p/t", &answered(100, 10_000, 200));
        assert_eq!(speed(&measured), 20.0);
        // Four at once for ten seconds, after a pause.
        for _ in 0..4 {
            measured.learn("p/t", &answered(200, 10_000, 200));
        }
        assert_eq!(speed(&measured), 50.0, "1000 tokens in 20 seconds");
        // It forgets: half an hour at another speed.
        for minute in 0..30 {
            measured.learn("p/t", &answered(1000 + 60 * minute, 60_000, 600));
        }
        assert!(
            (10.0..=13.0).contains(&speed(&measured)),
            "{}",
            speed(&measured)
        );

        measured.store().unwrap();
        let again = Measured::open(&rig);
        assert_eq!(again.all(), measured.all(), "it survives a restart");
    }

    #[test]
    fn a_loads_memory_is_the_last_and_its_time_is_kept_by_agent() {
        let (_dir, rig) = rig();
        let mut measured = Measured::open(&rig);
        let mut record = answered(100, 4000, 0);
        measured.learn_load("m", &record, Some(1));
        record.peaks.vram_mb = Some(500);
        record.agent = "gpu-2".into();
        record.duration_ms = 2000;
        measured.learn_load("m", &record, Some(2));
        let all = measured.load("m").unwrap();
        assert_eq!((all.vram_mb, all.of, all.runs), (Some(500), Some(2), 2));
        assert_eq!(measured.load_on("m", "gpu-1").unwrap().seconds, 4.0);
        assert_eq!(measured.load_on("m", "gpu-2").unwrap().seconds, 2.0);
    }

    #[test]
    fn a_file_of_before_is_read() {
        let (_dir, rig) = rig();
        let path = rig.brain_dir().join("measured.json");
        std::fs::create_dir_all(rig.brain_dir()).unwrap();
        let old = r#"{"load:m": {"seconds": 4.5, "runs": 3},
            "p/t": {"seconds": 1.5, "vram_mb": 300, "runs": 9}}"#;
        std::fs::write(path, old).unwrap();
        let measured = Measured::open(&rig);
        assert_eq!(measured.load("m").unwrap().seconds, 4.5);
        assert_eq!(measured.get("p/t").unwrap().vram_mb, Some(300));
    }

    #[test]
    fn a_failed_attempt_raises_a_known_peak_only() {
        let (_dir, rig) = rig();
        let mut measured = Measured::open(&rig);
        let peak = |measured: &Measured| measured.get("p/t").and_then(|known| known.vram_mb);
        let failed = |mb| {
            let mut record = answered(100, 10, 1);
            record.peaks.vram_mb = Some(mb);
            record
        };
        measured.learn_failed("p/t", &failed(900));
        assert_eq!(peak(&measured), None, "it may have ended before its peak");
        measured.learn("p/t", &answered(100, 10, 1));
        measured.learn_failed("p/t", &failed(600));
        assert_eq!(peak(&measured), Some(700));
        measured.learn_failed("p/t", &failed(900));
        assert_eq!(peak(&measured), Some(900));
        let filled_the_gpu = AttemptRecord {
            outcome: Outcome::Failed {
                kind: FailureKind::OutOfMemory,
                reason: "out of GPU memory".into(),
            },
            ..failed(5900)
        };
        measured.learn_failed("p/t", &filled_the_gpu);
        assert_eq!(peak(&measured), Some(900), "it was one of them");
    }
}
