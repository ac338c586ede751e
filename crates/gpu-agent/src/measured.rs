//! What tasks were seen to take of GPU memory.
//!
//! A task name's need is its highest measured peak and a margin ([`PEAK_MARGIN_PERCENT`]): readings
//! are a second apart, so a peak may be missed. Peaks are kept in `brain/measured.json`, by plan and
//! task. A peak counts as measured once an attempt has succeeded; but that more was taken than the
//! need was, or that it did not suffice, counts at once, for what is queued too.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use rigor_models::Measurements;
use rigor_policy::admission::VramNeed;
use rigor_policy::fit::PEAK_MARGIN_PERCENT;
use rigor_policy::retry;
use rigor_queue::record::RaisedNeed;
use rigor_queue::task::Vram;

/// Peaks by `plan/task`: this agent's own, and what the brain has gathered from all.
#[derive(Debug)]
pub(crate) struct Measured {
    path: PathBuf,
    modified: Option<SystemTime>,
    gathered: Measurements,
    own: HashMap<String, u64>,
    /// So much is surely needed, by attempts that are not over or have failed; MiB.
    least: HashMap<String, u64>,
    /// What this agent's GPU has for tasks, MiB.
    budget_mb: u64,
    /// What a task can have of that while others use what they use, MiB.
    most_mb: u64,
}

impl Measured {
    pub(crate) fn new(path: PathBuf) -> Measured {
        Measured {
            path,
            modified: None,
            gathered: Measurements::default(),
            own: HashMap::new(),
            least: HashMap::new(),
            budget_mb: u64::MAX,
            most_mb: u64::MAX,
        }
    }

    /// What the GPU has for tasks, and what one task can have of it at most: who needs more than
    /// that gets the GPU alone.
    pub(crate) fn bound(&mut self, budget_mb: u64, most_mb: u64) {
        (self.budget_mb, self.most_mb) = (budget_mb, most_mb);
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

    /// What the brain has gathered from all agents.
    pub(crate) fn gathered(&self) -> &Measurements {
        &self.gathered
    }

    /// An attempt of `key` was seen to use `mb` at most.
    pub(crate) fn note(&mut self, key: &str, mb: u64) {
        let peak = self.own.entry(key.to_owned()).or_insert(mb);
        *peak = (*peak).max(mb);
        // Its own peak is better known than that what it had did not suffice.
        self.least.remove(key);
    }

    /// An attempt of `key` that runs takes `mb`: the peak is that at least.
    pub(crate) fn takes(&mut self, key: &str, mb: u64) {
        let least = self.least.entry(key.to_owned()).or_insert(mb);
        *least = (*least).max(mb);
    }

    /// `leased_mb` did not suffice for an attempt of `key`.
    pub(crate) fn ran_out(&mut self, key: &str, leased_mb: u64) {
        // The margin is for what was not seen of a peak; this was not seen at all.
        let raised = retry::raised_mb(leased_mb, self.budget_mb);
        self.takes(key, raised * 100 / (100 + PEAK_MARGIN_PERCENT));
    }

    /// What a task of `key` with that policy needs.
    pub(crate) fn need(&self, vram: Vram, key: &str) -> VramNeed {
        self.known(vram, key).unwrap_or(VramNeed::Alone)
    }

    /// The same; none where nothing is known of it.
    fn known(&self, vram: Vram, key: &str) -> Option<VramNeed> {
        let (estimate_mb, peak_mb) = match vram {
            Vram::Fixed { mb } => return Some(VramNeed::Mb(mb)),
            Vram::Infer => (None, self.peak(key)),
            Vram::Default { estimate_mb } => (estimate_mb, self.peak(key)),
        };
        let known_mb = peak_mb.map(with_margin).or(estimate_mb)?;
        match self.least.get(key) {
            // More than there is in all cannot be had; alone it has all there is.
            Some(least_mb) if with_margin(*least_mb) > known_mb => {
                Some(self.or_alone(with_margin(*least_mb), (*least_mb).min(self.budget_mb)))
            }
            Some(_) | None => Some(match peak_mb {
                Some(peak_mb) => self.or_alone(known_mb, peak_mb),
                None => VramNeed::Mb(known_mb),
            }),
        }
    }

    /// `mb`, or the GPU alone where it has not so much to give, but what is surely needed may do.
    fn or_alone(&self, mb: u64, surely_mb: u64) -> VramNeed {
        if mb > self.most_mb && surely_mb <= self.budget_mb {
            VramNeed::Alone
        } else {
            VramNeed::Mb(mb)
        }
    }

    /// What a task of `key` needs that has run out of GPU memory.
    pub(crate) fn raised(&self, need: RaisedNeed, vram: Vram, key: &str) -> VramNeed {
        match (need, self.known(vram, key)) {
            // Other attempts may have shown meanwhile that it takes more.
            (RaisedNeed::Mb { mb }, Some(VramNeed::Mb(known))) => {
                self.or_alone(mb.max(known), mb.max(known))
            }
            (RaisedNeed::Mb { .. }, Some(VramNeed::Alone)) => VramNeed::Alone,
            (RaisedNeed::Mb { mb }, None) => self.or_alone(mb, mb),
            (RaisedNeed::Alone { budget_mb }, _) if budget_mb > self.budget_mb => {
                VramNeed::Mb(budget_mb)
            }
            (RaisedNeed::Alone { .. }, _) => VramNeed::Alone,
        }
    }

    fn peak(&self, key: &str) -> Option<u64> {
        let gathered = self.gathered.get(key).and_then(|entry| entry.vram_mb);
        gathered.max(self.own.get(key).copied())
    }
}

fn with_margin(peak_mb: u64) -> u64 {
    peak_mb + peak_mb * PEAK_MARGIN_PERCENT / 100
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

    #[test]
    fn more_than_the_need_counts_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut measured = Measured::new(dir.path().join("measured.json"));
        measured.bound(4000, 4000);
        let default = Vram::Default {
            estimate_mb: Some(900),
        };
        measured.takes("p/t", 500);
        assert_eq!(
            measured.need(default, "p/t"),
            VramNeed::Mb(900),
            "it is not over"
        );
        assert_eq!(measured.need(Vram::Infer, "p/t"), VramNeed::Alone);
        measured.takes("p/t", 2000);
        assert_eq!(measured.need(default, "p/t"), VramNeed::Mb(2200));
        assert_eq!(measured.need(Vram::Fixed { mb: 5 }, "p/t"), VramNeed::Mb(5));
        measured.takes("p/t", 3900);
        assert_eq!(
            measured.need(default, "p/t"),
            VramNeed::Alone,
            "all there is"
        );
        measured.note("p/t", 1000);
        assert_eq!(
            measured.need(default, "p/t"),
            VramNeed::Mb(1100),
            "it succeeded with that"
        );

        measured.ran_out("p/t", 1100);
        let VramNeed::Mb(after) = measured.need(default, "p/t") else {
            panic!("known");
        };
        assert!((1640..=1650).contains(&after), "{after}");
    }

    #[test]
    fn who_fits_but_for_the_margin_runs_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut measured = Measured::new(dir.path().join("measured.json"));
        measured.bound(4000, 3900);
        let infer = |measured: &Measured| measured.need(Vram::Infer, "p/t");
        measured.note("p/t", 3500);
        assert_eq!(infer(&measured), VramNeed::Mb(3850));
        measured.note("p/t", 3800);
        assert_eq!(infer(&measured), VramNeed::Alone);
        measured.note("p/t", 4001);
        assert_eq!(infer(&measured), VramNeed::Mb(4401), "never here");
    }

    #[test]
    fn a_raised_need_stands_in_for_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut measured = Measured::new(dir.path().join("measured.json"));
        measured.bound(4000, 3900);
        let fixed = Vram::Fixed { mb: 1000 };
        let mb = |mb| RaisedNeed::Mb { mb };
        let alone = |budget_mb| RaisedNeed::Alone { budget_mb };
        assert_eq!(measured.raised(mb(1500), fixed, "p/t"), VramNeed::Mb(1500));
        assert_eq!(
            measured.raised(mb(1500), Vram::Infer, "p/t"),
            VramNeed::Mb(1500)
        );
        assert_eq!(
            measured.raised(mb(3950), fixed, "p/t"),
            VramNeed::Alone,
            "others have 100 of the 4000: it would never fit"
        );
        assert_eq!(measured.raised(mb(4001), fixed, "p/t"), VramNeed::Mb(4001));
        assert_eq!(measured.raised(alone(4000), fixed, "p/t"), VramNeed::Alone);
        assert_eq!(
            measured.raised(alone(4001), fixed, "p/t"),
            VramNeed::Mb(4001),
            "never here"
        );
        measured.note("p/t", 2000);
        assert_eq!(
            measured.raised(mb(1500), Vram::Infer, "p/t"),
            VramNeed::Mb(2200)
        );
    }
}
