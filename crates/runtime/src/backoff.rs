//! When a model that could not be loaded may be tried again. Pure: time is an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::error::LoadClass;
use crate::fingerprint::Fingerprint;

/// The wait after a first failure; it doubles with each further one in a row.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(30);
/// The longest wait between two attempts to load one model. A permanent failure has it at once.
pub const BACKOFF_MOST: Duration = Duration::from_secs(600);

/// The last failure of one model.
#[derive(Clone, Debug)]
pub struct Failure {
    /// For people.
    pub cause: String,
    /// What kind of failure it is.
    pub class: LoadClass,
    /// How many there were in a row.
    pub in_a_row: u32,
    /// When the model may be tried again.
    pub until: Instant,
    /// The files that a permanent failure is about, as they were: another one may do.
    files: Option<Fingerprint>,
}

/// The failures of an agent's models.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: HashMap<String, Failure>,
}

impl Backoff {
    /// Notes a failure of `model` and says how long it is not to be tried. `files`: what was loaded;
    /// a permanent failure is over when they have changed.
    pub fn failed(
        &mut self,
        model: &str,
        class: LoadClass,
        cause: &str,
        files: Option<Fingerprint>,
        now: Instant,
    ) -> Duration {
        let in_a_row = self
            .failures
            .get(model)
            .map_or(1, |failure| failure.in_a_row.saturating_add(1));
        let wait = wait(class, in_a_row);
        let failure = Failure {
            cause: cause.to_owned(),
            class,
            in_a_row,
            until: now + wait,
            files: files.filter(|_| class == LoadClass::Permanent),
        };
        self.failures.insert(model.to_owned(), failure);
        wait
    }

    /// `model` was loaded.
    pub fn succeeded(&mut self, model: &str) {
        self.failures.remove(model);
    }

    /// Each model's last failure, also one whose wait is over.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Failure)> {
        self.failures
            .iter()
            .map(|(model, failure)| (model.as_str(), failure))
    }

    /// When the next wait is over.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        let waits = self.failures.values().map(|failure| failure.until);
        waits.filter(|until| *until > now).min()
    }

    /// Ends the waits of permanent failures whose files are not what they were, and names the
    /// models. Looks at files: not more often than every few seconds.
    pub fn forget_changed(&mut self, now: Instant) -> Vec<String> {
        let changed = self.failures.iter().filter(|(_, failure)| {
            let files = failure.files.as_ref().filter(|_| failure.until > now);
            files.is_some_and(|files| files.has_changed())
        });
        let models: Vec<String> = changed.map(|(model, _)| model.clone()).collect();
        for model in &models {
            self.failures.remove(model);
        }
        models
    }

    /// Whether [`Backoff::forget_changed`] has anything to look at.
    pub fn watches_files(&self, now: Instant) -> bool {
        self.failures
            .values()
            .any(|failure| failure.files.is_some() && failure.until > now)
    }
}

/// How long to wait after so many failures in a row.
pub(crate) fn wait(class: LoadClass, in_a_row: u32) -> Duration {
    match class {
        LoadClass::Permanent => BACKOFF_MOST,
        LoadClass::Transient | LoadClass::OutOfMemory => BACKOFF_FIRST
            .saturating_mul(1 << in_a_row.saturating_sub(1).min(16))
            .min(BACKOFF_MOST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_to_ten_minutes_and_is_the_models_own() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        let mut fail =
            |model: &str, class| backoff.failed(model, class, "no file", None, now).as_secs();
        let waits: Vec<u64> = (0..7).map(|_| fail("a", LoadClass::Transient)).collect();
        assert_eq!(waits, [30, 60, 120, 240, 480, 600, 600]);
        assert_eq!(fail("b", LoadClass::OutOfMemory), 30);
        assert_eq!(fail("c", LoadClass::Permanent), 600);
        assert_eq!(backoff.next_due(now), Some(now + BACKOFF_FIRST));
        backoff.succeeded("b");
        assert_eq!(backoff.next_due(now), Some(now + BACKOFF_MOST));
        assert_eq!(backoff.next_due(now + BACKOFF_MOST), None);
    }

    #[test]
    fn a_permanent_failure_is_over_when_its_file_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.gguf");
        let mut backoff = Backoff::default();
        let now = Instant::now();
        let files = || Some(Fingerprint::of([file.clone()]));
        backoff.failed("a", LoadClass::Permanent, "missing", files(), now);
        backoff.failed("b", LoadClass::Transient, "slow", files(), now);
        assert!(backoff.watches_files(now));
        assert_eq!(backoff.forget_changed(now), Vec::<String>::new());
        std::fs::write(&file, "weights").unwrap();
        assert_eq!(backoff.forget_changed(now), ["a"]);
        assert_eq!(backoff.iter().count(), 1, "the transient one waits");
        assert!(!backoff.watches_files(now));
    }
}
