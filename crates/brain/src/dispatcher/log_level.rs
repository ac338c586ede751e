//! The `log-level` signal: log at another level while its file is there.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use rigor_telemetry::{Level, LevelHandle};
use serde::Deserialize;

/// The signal's name.
pub(super) const SIGNAL: &str = "log-level";

/// Its content.
#[derive(Debug, Deserialize)]
struct Content {
    level: String,
    #[serde(default)]
    until: Option<Timestamp>,
}

/// The level of this process's log.
pub(super) struct LogLevel {
    handle: LevelHandle,
    /// The one that it started with.
    own: Level,
    /// When what was asked for is over.
    pub(super) until: Option<Instant>,
}

impl std::fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogLevel")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl LogLevel {
    pub(super) fn new(handle: LevelHandle) -> LogLevel {
        LogLevel {
            own: handle.get(),
            handle,
            until: None,
        }
    }

    /// Follows the signal, or the lack of one. `false`: it is over or not understood, and its file
    /// is to go.
    pub(super) fn follow(&mut self, content: Option<&str>) -> bool {
        let wanted = content.map(read);
        let (level, until) = match &wanted {
            Some(Ok((level, until))) if until.is_none_or(|until| until > Timestamp::now()) => {
                (*level, *until)
            }
            Some(Err(error)) => {
                tracing::warn!("Signal {SIGNAL} is not understood: {error}");
                (self.own, None)
            }
            Some(Ok(_)) | None => (self.own, None),
        };
        self.until = until.map(|until| {
            let left = until.duration_since(Timestamp::now());
            Instant::now() + Duration::try_from(left).unwrap_or_default()
        });
        if self.handle.get() != level {
            self.handle.set(level);
            tracing::info!("Log level is now {level}");
        }
        match wanted {
            Some(Ok((_, Some(until)))) => until > Timestamp::now(),
            Some(Ok((_, None))) | None => true,
            Some(Err(_)) => false,
        }
    }
}

fn read(content: &str) -> Result<(Level, Option<Timestamp>), String> {
    let content: Content = serde_json::from_str(content).map_err(|error| error.to_string())?;
    let level = content
        .level
        .parse()
        .map_err(|error: rigor_telemetry::UnknownLevel| error.to_string())?;
    Ok((level, content.until))
}
