//! Log lines: their form, their files, their levels.
//!
//! A program calls [`init`] once and keeps the [`Guard`] until it ends. From then on `tracing`'s
//! macros write one line an event: to the component's file in the text form, and to stderr in
//! the short form, the text form or as JSON. Users read `docs/logging.md`.
//!
//! What holds whatever happens to the disk or the terminal:
//! - logging never waits for either; lines are written by threads of their own;
//! - a WARNING or an ERROR is never dropped from the record (the file; stderr where there is no
//!   file) while the process lives; a DEBUG or INFO line is, when 8,192 lines wait, and the
//!   record says how many;
//! - lines of the record stand in the order in which they were said. SIGKILL loses those that
//!   still wait, usually none.

mod crash;
mod json_log;
mod layer;
mod level;
mod line;
mod queue;
mod rotate;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt as _;

pub use crash::{install_panic_hook, log_crash};
pub use json_log::JsonLog;
pub use level::{Level, LevelHandle, UnknownLevel};
pub use rotate::RotatingFile;

use layer::{Form, Lines, Outputs, Terminal};
use queue::Queue;

/// Rotate a log at this many bytes, where nothing else is said.
pub const DEFAULT_MAX_SIZE_BYTES: u64 = 100_000_000;
/// Keep this many rotated files, where nothing else is said.
pub const DEFAULT_KEEP: u32 = 5;
/// How long the end of a program waits for its last lines. A disk that hangs must not keep it.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// What [`init`] sets up.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// Who speaks: `brain`, `gpu-1`, ...
    pub component: &'a str,
    /// The component's file; its directory is made. None: stderr alone.
    pub log_file: Option<PathBuf>,
    /// Environment variables that hold the level; the first that is set counts.
    pub level_variables: &'a [&'a str],
    /// Parts of the program with a level of their own.
    pub scopes: &'a [Scope<'a>],
    /// The form on stderr; none: short in a terminal, else text.
    pub format: Option<Format>,
    /// Rotate the file at this many bytes.
    pub max_size_bytes: u64,
    /// Keep this many rotated files.
    pub keep: u32,
}

/// A part of a program with a level of its own, such as the executor in a worker.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The beginning of its events' targets: `rigor_exec`.
    pub target: &'a str,
    /// Environment variables that hold its level; the first that is set counts.
    pub level_variables: &'a [&'a str],
}

/// The form of lines on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `[21:45:30.123] [gpu-1] message`
    Short,
    /// `[2026-02-07T21:45:30.123+01:00] [gpu-1] INFO  message`
    Text,
    /// One JSON object a line, with the event's fields.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The file could not be opened for writing.
    #[error("cannot open the log {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// [`init`] was called before in this process.
    #[error("logging is set up already: init is called once in a process")]
    Already,
}

/// A word that is not a [`Format`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no log format: use short, text or json")]
pub struct UnknownFormat(String);

/// Keeps logging alive; dropping it writes what still waits, for at most two seconds.
#[must_use = "dropping the guard ends logging"]
pub struct Guard {
    outputs: Arc<Outputs>,
    levels: LevelHandle,
    /// Dropped after `Guard::drop`: writes what waits for the terminal.
    _terminal: Option<WorkerGuard>,
}

impl<'a> Options<'a> {
    /// A component that logs to stderr alone at INFO, until the fields say otherwise.
    pub fn new(component: &'a str) -> Options<'a> {
        Options {
            component,
            log_file: None,
            level_variables: &[],
            scopes: &[],
            format: None,
            max_size_bytes: DEFAULT_MAX_SIZE_BYTES,
            keep: DEFAULT_KEEP,
        }
    }
}

/// Sets up logging for the whole process.
///
/// # Errors
/// The file cannot be opened, or `init` was called before.
pub fn init(options: &Options<'_>) -> Result<Guard, InitError> {
    let lookup =
        |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let own = level::choose(options.level_variables, lookup);
    let scopes: Vec<_> = options
        .scopes
        .iter()
        .map(|scope| (scope.target, level::choose(scope.level_variables, lookup)))
        .collect();
    let levels: Vec<_> = scopes
        .iter()
        .map(|(target, choice)| ((*target).to_owned(), choice.level))
        .collect();
    let (filter, handle) = level::filter(own.level, levels);

    let (outputs, terminal) = outputs(options)?;
    let outputs = Arc::new(outputs);
    let lines = Lines::new(options.component, Arc::clone(&outputs));
    let subscriber = tracing_subscriber::registry().with(filter.and_then(lines));
    tracing::subscriber::set_global_default(subscriber).map_err(|_| InitError::Already)?;
    crash::remember(&outputs);
    for complaint in std::iter::once(&own).chain(scopes.iter().map(|(_, choice)| choice)) {
        if let Some(complaint) = &complaint.complaint {
            tracing::warn!("{complaint}");
        }
    }
    Ok(Guard {
        outputs,
        levels: handle,
        _terminal: terminal,
    })
}

impl Guard {
    /// Changes the level of the component from the next event on.
    pub fn set_level(&self, level: Level) {
        self.levels.set(level);
    }

    /// To read and change levels from another thread.
    pub fn levels(&self) -> LevelHandle {
        self.levels.clone()
    }

    /// Waits until every line said so far is in the record, at most `limit`; whether it is.
    pub fn flush(&self, limit: Duration) -> bool {
        self.outputs.flush(limit)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.outputs.flush(FLUSH_LIMIT);
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Format, UnknownFormat> {
        match text.to_ascii_lowercase().as_str() {
            "short" => Ok(Format::Short),
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            _ => Err(UnknownFormat(text.to_owned())),
        }
    }
}

/// The record, and where that is a file the terminal's copy beside it.
fn outputs(options: &Options<'_>) -> Result<(Outputs, Option<WorkerGuard>), InitError> {
    let form = stderr_form(options.format);
    let Some(path) = &options.log_file else {
        let stderr = |line: &str| io::stderr().lock().write_all(line.as_bytes());
        let record = Queue::start("log", form.notice(options.component), stderr);
        return Ok((
            Outputs {
                record,
                record_form: form,
                terminal: None,
            },
            None,
        ));
    };
    let record = open_record(options, path)?;
    // The file has every line, so its copy may lose some when the terminal is stopped.
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .thread_name("log-terminal")
        .finish(io::stderr());
    let terminal = Terminal::new(writer, form);
    Ok((
        Outputs {
            record,
            record_form: Form::Text,
            terminal: Some(terminal),
        },
        Some(guard),
    ))
}

fn open_record(options: &Options<'_>, path: &Path) -> Result<Queue, InitError> {
    let mut file =
        RotatingFile::open(path, options.max_size_bytes, options.keep).map_err(|source| {
            InitError::Open {
                path: path.to_owned(),
                source,
            }
        })?;
    let notice = Form::Text.notice(options.component);
    Ok(Queue::start("log-file", notice, move |line| {
        file.write_line(line)
    }))
}

fn stderr_form(format: Option<Format>) -> Form {
    let terminal = io::stderr().is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    match format {
        Some(Format::Short) => Form::Short { colour },
        Some(Format::Text) => Form::Text,
        Some(Format::Json) => Form::Json,
        None if terminal => Form::Short { colour },
        None => Form::Text,
    }
}
