//! What a model is loaded from, as far as it can be told without reading it.

use std::path::PathBuf;
use std::time::SystemTime;

/// Size and time of change of each of some files; none where a file cannot be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(Vec<(PathBuf, Option<(u64, SystemTime)>)>);

impl Fingerprint {
    /// Of these files, now.
    pub fn of(paths: impl IntoIterator<Item = PathBuf>) -> Fingerprint {
        let look = |path: PathBuf| {
            let seen = std::fs::metadata(&path)
                .ok()
                .and_then(|meta| Some((meta.len(), meta.modified().ok()?)));
            (path, seen)
        };
        Fingerprint(paths.into_iter().map(look).collect())
    }

    /// Whether the files are not what they were.
    pub fn has_changed(&self) -> bool {
        let paths = self.0.iter().map(|(path, _)| path.clone());
        Fingerprint::of(paths) != *self
    }

    /// For a digest: equal where the fingerprints are.
    pub(crate) fn text(&self) -> String {
        format!("{:?}", self.0)
    }
}
