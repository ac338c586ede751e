//! Levels: what they are called, where they come from, how they change at run time.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::Registry;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::reload;

/// The beginnings of the targets of this project's crates. Everybody else is heard from WARNING on.
const OWN_TARGETS: [&str; 4] = ["rigor", "brain", "gpu_agent", "worker"];

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What is seen and tried, too.
    Debug,
    /// What happens.
    Info,
    /// What needs an eye.
    Warning,
    /// What went wrong.
    Error,
}

/// A word that is not a [`Level`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no level: use DEBUG, INFO, WARNING or ERROR")]
pub struct UnknownLevel(String);

/// Reads and changes the levels of a running program.
#[derive(Clone)]
pub struct LevelHandle {
    levels: Arc<Mutex<Levels>>,
    filter: reload::Handle<Targets, Registry>,
}

impl LevelHandle {
    /// The component's level.
    pub fn get(&self) -> Level {
        self.levels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .own
    }

    /// Changes the component's level from the next event on; scopes keep theirs.
    pub fn set(&self, level: Level) {
        self.change(|levels| levels.own = level);
    }

    /// Changes the level of a scope from the next event on. Whether there is such a scope.
    pub fn set_scope(&self, target: &str, level: Level) -> bool {
        let mut found = false;
        self.change(|levels| {
            for scope in levels.scopes.iter_mut().filter(|scope| scope.0 == target) {
                scope.1 = level;
                found = true;
            }
        });
        found
    }

    fn change(&self, change: impl FnOnce(&mut Levels)) {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut levels);
        // Fails only when logging has ended, and then there is nothing to change.
        let _ = self.filter.reload(levels.targets());
    }
}

struct Levels {
    own: Level,
    scopes: Vec<(String, Level)>,
}

impl Levels {
    fn targets(&self) -> Targets {
        let own = OWN_TARGETS
            .iter()
            .map(|target| ((*target).to_owned(), self.own.filter()));
        let scopes = self
            .scopes
            .iter()
            .map(|(target, level)| (target.clone(), level.filter()));
        Targets::new()
            .with_default(LevelFilter::WARN)
            .with_targets(own.chain(scopes))
    }
}

/// The filter for these levels, and the handle that changes it.
pub(crate) fn filter(
    own: Level,
    scopes: Vec<(String, Level)>,
) -> (reload::Layer<Targets, Registry>, LevelHandle) {
    let levels = Levels { own, scopes };
    let (layer, filter) = reload::Layer::new(levels.targets());
    (
        layer,
        LevelHandle {
            levels: Arc::new(Mutex::new(levels)),
            filter,
        },
    )
}

/// A level and, where a variable held no level, what to say about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) level: Level,
    pub(crate) complaint: Option<String>,
}

/// The level in the first of `variables` that is set.
pub(crate) fn choose(variables: &[&str], lookup: impl Fn(&str) -> Option<String>) -> Choice {
    let set = variables.iter().find_map(|name| {
        lookup(name)
            .filter(|value| !value.trim().is_empty())
            .map(|value| (*name, value))
    });
    let parsed = set.map(|(name, value)| value.parse::<Level>().map_err(|error| (name, error)));
    match parsed {
        None => Choice {
            level: Level::Info,
            complaint: None,
        },
        Some(Ok(level)) => Choice {
            level,
            complaint: None,
        },
        Some(Err((name, error))) => Choice {
            level: Level::Info,
            complaint: Some(format!("{name}: {error}; INFO is used")),
        },
    }
}

impl Level {
    /// The word in a log line.
    pub fn word(self) -> &'static str {
        match self {
            Level::Debug => "DEBUG",
            Level::Info => "INFO",
            Level::Warning => "WARNING",
            Level::Error => "ERROR",
        }
    }

    fn filter(self) -> LevelFilter {
        match self {
            Level::Debug => LevelFilter::DEBUG,
            Level::Info => LevelFilter::INFO,
            Level::Warning => LevelFilter::WARN,
            Level::Error => LevelFilter::ERROR,
        }
    }
}

impl From<tracing::Level> for Level {
    fn from(level: tracing::Level) -> Level {
        match level {
            tracing::Level::TRACE | tracing::Level::DEBUG => Level::Debug,
            tracing::Level::INFO => Level::Info,
            tracing::Level::WARN => Level::Warning,
            tracing::Level::ERROR => Level::Error,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Level, UnknownLevel> {
        match text.trim().to_ascii_uppercase().as_str() {
            "DEBUG" => Ok(Level::Debug),
            "INFO" => Ok(Level::Info),
            "WARNING" | "WARN" => Ok(Level::Warning),
            "ERROR" => Ok(Level::Error),
            _ => Err(UnknownLevel(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_in_any_case() {
        for (text, level) in [
            ("debug", Level::Debug),
            ("Info", Level::Info),
            ("WARNING", Level::Warning),
            ("warn", Level::Warning),
            (" eRRor ", Level::Error),
        ] {
            assert_eq!(text.parse(), Ok(level));
        }
        assert!("trace".parse::<Level>().is_err());
    }

    #[test]
    fn the_first_variable_that_is_set_counts() {
        let set = |pairs: &'static [(&str, &str)]| {
            move |name: &str| {
                pairs
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).to_owned())
            }
        };
        let variables = ["GPU_LOG_LEVEL", "WORKER_LOG_LEVEL"];
        let level = |pairs| choose(&variables, set(pairs));
        assert_eq!(
            level(&[]),
            Choice {
                level: Level::Info,
                complaint: None
            }
        );
        assert_eq!(level(&[("WORKER_LOG_LEVEL", "debug")]).level, Level::Debug);
        assert_eq!(
            level(&[("GPU_LOG_LEVEL", ""), ("WORKER_LOG_LEVEL", "debug")]).level,
            Level::Debug
        );
        assert_eq!(
            level(&[("GPU_LOG_LEVEL", "error"), ("WORKER_LOG_LEVEL", "debug")]).level,
            Level::Error
        );
        let bad = level(&[("GPU_LOG_LEVEL", "loud"), ("WORKER_LOG_LEVEL", "debug")]);
        assert_eq!(bad.level, Level::Info);
        assert_eq!(
            bad.complaint.as_deref(),
            Some(
                "GPU_LOG_LEVEL: \"loud\" is no level: use DEBUG, INFO, WARNING or ERROR; INFO is used"
            )
        );
    }
}
