//! The estimates of a catalogue's models, kept for as long as their files stay the same.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use rigor_config::Model;

use crate::estimate::Estimate;
use crate::files::{FileProblem, source};
use crate::need::{Need, need};
use crate::settings::Settings;

/// Files are looked at (not read) again after this long at the soonest.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What a model's files say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// An estimate.
    Estimate(Estimate),
    /// There is no file on this machine that could be looked at.
    Nothing,
    /// The file cannot be used.
    Problem(FileProblem),
}

impl Found {
    /// The estimate, where there is one.
    pub fn estimate(&self) -> Option<&Estimate> {
        match self {
            Found::Estimate(estimate) => Some(estimate),
            Found::Nothing | Found::Problem(_) => None,
        }
    }
}

/// A file as it was when it was read.
type Stamp = (PathBuf, Option<(u64, SystemTime)>);

#[derive(Debug)]
struct Entry {
    stamps: Vec<Stamp>,
    found: Found,
}

/// The estimates of all models. Looking one up touches no file.
#[derive(Debug, Default)]
pub struct Catalogue {
    entries: BTreeMap<String, Entry>,
    looked: Option<Instant>,
}

impl Catalogue {
    /// Reads the files of all models.
    pub fn of(models: &[Model]) -> Catalogue {
        let mut catalogue = Catalogue::default();
        catalogue.refresh(models, Instant::now());
        catalogue
    }

    /// Looks, at most every ten seconds, whether files have changed, and reads those that have.
    pub fn refresh(&mut self, models: &[Model], now: Instant) {
        if self
            .looked
            .is_some_and(|looked| now.saturating_duration_since(looked) < LOOK_EVERY)
        {
            return;
        }
        self.looked = Some(now);
        for model in models {
            let source = source(model);
            let files = source
                .as_ref()
                .map(|source| source.files())
                .unwrap_or_default();
            let stamps: Vec<Stamp> = files.into_iter().map(stamp).collect();
            let known = self.entries.get(&model.id);
            if known.is_some_and(|known| known.stamps == stamps) {
                continue;
            }
            let found = match source.map(|source| source.estimate(&Settings::of(model))) {
                None => Found::Nothing,
                Some(Ok(estimate)) => Found::Estimate(estimate),
                Some(Err(problem)) => Found::Problem(problem),
            };
            self.entries
                .insert(model.id.clone(), Entry { stamps, found });
        }
    }

    /// What the files of a model say.
    pub fn found(&self, id: &str) -> &Found {
        self.entries
            .get(id)
            .map_or(&Found::Nothing, |entry| &entry.found)
    }

    /// What a model needs; `measured_mb` is what a load of it was seen to take.
    pub fn need(&self, model: &Model, measured_mb: Option<u64>) -> Option<Need> {
        need(model, measured_mb, self.found(&model.id).estimate())
    }
}

fn stamp(path: PathBuf) -> Stamp {
    let meta = std::fs::metadata(&path).ok();
    let of = meta.and_then(|meta| Some((meta.len(), meta.modified().ok()?)));
    (path, of)
}
