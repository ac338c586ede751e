//! What can be wrong with a rig.toml, and how it is said.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// One mistake in a rig.toml, with the place and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is wrong and what to write instead; without the place.
    pub message: String,
}

/// Why a rig.toml could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no such file.
    #[error(
        "there is no {path}: run `rigor init DIR`, or name the rig with --rig DIR or RIGOR_DIR"
    )]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file is there but could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The file holds literal secrets and every user of the machine may read it.
    #[error(
        "{path} holds secrets and every user can read it (mode {mode:04o}): run `chmod 600 {path}`, \
         or write the secrets as {{ file = \"...\" }} or {{ env = \"...\" }}"
    )]
    SecretsExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// All mistakes that were found, in the order of the file.
    #[error("{}", Listed { path, problems })]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The mistakes; never empty.
        problems: Vec<Problem>,
    },
}

/// A name that is not in the rig.toml.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no {kind} is named {name:?} in rig.toml{}", hint(.nearest.as_deref()))]
pub struct UnknownName {
    /// `GPU`, `model`, ...
    pub kind: &'static str,
    /// The name that was asked for.
    pub name: String,
    /// The name most like it, if there are any.
    pub nearest: Option<String>,
}

/// Names less alike (Jaro-Winkler, 0 to 1) are no slip of the pen: naming one would mislead.
const NEAR: f64 = 0.7;

/// The candidate most like `word`: the fewest edits, then the most alike from the start.
/// None where no candidate is like it.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |candidate: &str| {
        (
            strsim::damerau_levenshtein(word, candidate),
            // Jaro-Winkler is 0 to 1; as a whole number it can be compared.
            ((1.0 - strsim::jaro_winkler(word, candidate)) * 1e6) as u64,
        )
    };
    candidates
        .into_iter()
        .filter(|candidate| {
            // A long name may have been begun and not finished.
            let begun: String = candidate.chars().take(word.chars().count()).collect();
            [candidate, begun.as_str()]
                .iter()
                .any(|like| strsim::jaro_winkler(word, like) >= NEAR)
        })
        .min_by_key(|candidate| likeness(candidate))
}

fn hint(nearest: Option<&str>) -> String {
    nearest
        .map(|name| format!("; the nearest is {name:?}"))
        .unwrap_or_default()
}

struct Listed<'a> {
    path: &'a PathBuf,
    problems: &'a [Problem],
}

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(
                f,
                "{end}{}:{}:{}: {}",
                self.path.display(),
                problem.line,
                problem.column,
                problem.message
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_prefers_fewest_edits() {
        assert_eq!(nearest("prot", ["name", "port", "uuid"]), Some("port"));
        assert_eq!(
            nearest("heartbeat", ["heartbeat_every", "heartbeat_warn"]),
            Some("heartbeat_warn")
        );
        assert_eq!(nearest("x", []), None);
        let batch = "video-tags-20260207-214530-ab2c";
        assert_eq!(nearest("vidoe", [batch]), Some(batch));
        assert_eq!(nearest("nosuch", ["huge", "tiny", "embed"]), None);
    }

    #[test]
    fn an_unknown_name_says_the_nearest() {
        let error = UnknownName {
            kind: "GPU",
            name: "gpu1".into(),
            nearest: Some("gpu-1".into()),
        };
        assert_eq!(
            error.to_string(),
            "no GPU is named \"gpu1\" in rig.toml; the nearest is \"gpu-1\""
        );
    }
}
