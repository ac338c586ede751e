//! What goes wrong with a runtime.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use crate::cause;
use crate::manifest::ManifestError;
use crate::state::IllegalTransition;

/// A load that did not lead to a proven runtime. Nothing of it runs any more, unless
/// `left_behind` says so.
#[derive(Debug, thiserror::Error)]
#[error("load {model}: {cause}")]
pub struct LoadError {
    /// The model's id.
    pub model: String,
    /// Why.
    pub cause: LoadCause,
    /// The runtime's output, where it got as far as having one.
    pub log: Option<PathBuf>,
    /// What could not be removed afterwards.
    pub left_behind: Option<Box<UnloadError>>,
}

/// Why a load failed.
#[derive(Debug, thiserror::Error)]
pub enum LoadCause {
    /// The state does not allow it.
    #[error(transparent)]
    Refused(Box<IllegalTransition>),
    /// The specification cannot be run.
    #[error("{0}")]
    BadSpec(String),
    /// Somebody else has the port.
    #[error("port {port} is taken by {}; stop it or give the agent another port", holder.as_deref().unwrap_or("another process"))]
    PortTaken {
        /// The port.
        port: u16,
        /// Program and pid, as far as this user may see.
        holder: Option<String>,
    },
    /// A runtime that an earlier agent left could not be removed.
    #[error("a runtime that was left from before is still there: {0}")]
    Leftover(Box<ReapError>),
    /// A file could not be made.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The manifest could not be written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The program could not be started.
    #[error("start {program:?}: {source}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The program ended before it served.
    #[error("{cause} ({status})")]
    Exited {
        /// Its exit code or signal.
        status: String,
        /// Its own words.
        cause: String,
    },
    /// What answers on the port is not the process that was started.
    #[error("port {port} is answered by {}, not by the runtime that was started", holder.as_deref().unwrap_or("another process"))]
    NotOurs {
        /// The port.
        port: u16,
        /// Program and pid, as far as this user may see.
        holder: Option<String>,
    },
    /// It serves, but another model.
    #[error("the runtime serves {served:?} and not {expected:?}")]
    WrongModel {
        /// The model's id.
        expected: String,
        /// What `/v1/models` names.
        served: Vec<String>,
    },
    /// It serves, but did not generate or embed.
    #[error("the runtime says it serves the model but cannot use it: {0}")]
    Unproven(String),
    /// The server is up, but does not have the model.
    #[error(
        "ollama has not pulled {reference:?}: run `ollama pull {reference}` as the user and with the OLLAMA_MODELS of the agent"
    )]
    NotPulled {
        /// The tag.
        reference: String,
    },
    /// It answers, but VRAM did not grow.
    #[error(
        "the model is not in VRAM: {delta_mb} MB were added, at least {expected_mb} MB were expected; does the runtime have GPU support?"
    )]
    NotInVram {
        /// How much VRAM use grew, MB.
        delta_mb: i64,
        /// How much it had to, MB.
        expected_mb: u64,
    },
    /// It took too long.
    #[error("not ready after {}s; last seen: {last}", after.as_secs_f32())]
    TimedOut {
        /// The limit.
        after: Duration,
        /// What was last seen.
        last: String,
    },
    /// The caller gave it up, or an unload or a shutdown came between.
    #[error("the load was given up")]
    Cancelled,
}

impl From<IllegalTransition> for LoadCause {
    fn from(refused: IllegalTransition) -> LoadCause {
        LoadCause::Refused(Box::new(refused))
    }
}

impl LoadCause {
    /// A word for logs, metrics and displays.
    pub fn code(&self) -> &'static str {
        match self {
            LoadCause::Refused(_) => "refused",
            LoadCause::BadSpec(_) => "bad_spec",
            LoadCause::PortTaken { .. } => "port_taken",
            LoadCause::Leftover(_) => "leftover",
            LoadCause::Io { .. } | LoadCause::Manifest(_) => "io",
            LoadCause::Spawn { .. } => "spawn",
            LoadCause::Exited { .. } => "exited",
            LoadCause::NotOurs { .. } => "not_ours",
            LoadCause::WrongModel { .. } => "wrong_model",
            LoadCause::Unproven(_) => "unproven",
            LoadCause::NotPulled { .. } => "not_pulled",
            LoadCause::NotInVram { .. } => "not_in_vram",
            LoadCause::TimedOut { .. } => "timed_out",
            LoadCause::Cancelled => "cancelled",
        }
    }
}

/// What follows from a failed load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadClass {
    /// It may go well the next time.
    Transient,
    /// The GPU's memory was too small for it, as it was then.
    OutOfMemory,
    /// It fails again until somebody changes something: a file, a program, rig.toml.
    Permanent,
}

impl LoadCause {
    /// What follows from it. Where a runtime only gave words, they decide.
    pub fn class(&self) -> LoadClass {
        match self {
            LoadCause::BadSpec(_) | LoadCause::NotPulled { .. } | LoadCause::WrongModel { .. } => {
                LoadClass::Permanent
            }
            LoadCause::Spawn { source, .. } => match source.kind() {
                ErrorKind::NotFound | ErrorKind::PermissionDenied => LoadClass::Permanent,
                _ => LoadClass::Transient,
            },
            LoadCause::Exited { cause, .. } | LoadCause::Unproven(cause) => cause::class_of(cause),
            LoadCause::TimedOut { last, .. } => match cause::class_of(last) {
                LoadClass::OutOfMemory => LoadClass::OutOfMemory,
                LoadClass::Transient | LoadClass::Permanent => LoadClass::Transient,
            },
            LoadCause::Refused(_)
            | LoadCause::PortTaken { .. }
            | LoadCause::Leftover(_)
            | LoadCause::Io { .. }
            | LoadCause::Manifest(_)
            | LoadCause::NotOurs { .. }
            | LoadCause::NotInVram { .. }
            | LoadCause::Cancelled => LoadClass::Transient,
        }
    }
}

/// An unload that did not give everything back.
#[derive(Debug, thiserror::Error)]
pub enum UnloadError {
    /// The state does not allow it.
    #[error(transparent)]
    Refused(#[from] IllegalTransition),
    /// Processes would not die.
    #[error(
        "processes {pids:?} of the runtime survived SIGKILL (in a driver call?); the GPU must not be used before they end"
    )]
    Processes {
        /// Which.
        pids: Vec<i32>,
    },
    /// The processes are gone, their memory is not.
    #[error("VRAM was not given back after {waited_s}s: {} MB used, at most {expected_mb} MB expected", used_mb.map_or("unknown".to_owned(), |mb| mb.to_string()))]
    Vram {
        /// How long it was waited for, seconds.
        waited_s: u64,
        /// In use now, MB, where NVML answers.
        used_mb: Option<u64>,
        /// What should be in use at most, MB.
        expected_mb: u64,
    },
    /// The manifest could not be removed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The host has been shut down.
    #[error("the runtime host has been shut down")]
    HostGone,
}

/// What an earlier agent left could not be found or removed.
#[derive(Debug, thiserror::Error)]
pub enum ReapError {
    /// The manifest is unreadable.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Processes would not die.
    #[error("processes {pids:?} of the runtime survived SIGKILL")]
    Processes {
        /// Which.
        pids: Vec<i32>,
    },
    /// Not now: this host has a runtime of its own.
    #[error("this agent's own runtime is up")]
    Busy,
    /// The host has been shut down.
    #[error("the runtime host has been shut down")]
    HostGone,
}
