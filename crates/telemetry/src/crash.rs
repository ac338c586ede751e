//! The line that a crash leaves.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::error::Error;
use std::panic::PanicHookInfo;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::layer::Outputs;

/// How long a crash waits for its line to be written.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// The outputs of the process, for a crash that gives nobody the time to drop the guard.
static OUTPUTS: OnceLock<Arc<Outputs>> = OnceLock::new();

pub(crate) fn remember(outputs: &Arc<Outputs>) {
    // Set once, as `init` succeeds once.
    let _ = OUTPUTS.set(Arc::clone(outputs));
}

/// From now on a panic in any thread is logged: `{label} crashed: {error}`, the backtrace below.
/// Before [`crate::init`] it goes to stderr.
pub fn install_panic_hook(label: &str) {
    let label = label.to_owned();
    std::panic::set_hook(Box::new(move |info| {
        let backtrace = Backtrace::force_capture();
        say(&format!("{label} crashed: {}\n{backtrace}", describe(info)));
    }));
}

/// Logs a fatal error that is no panic: `{label} crashed: {error}: {cause}: {cause}`, and below it
/// its backtrace. Where none was captured, which is so unless `RUST_BACKTRACE` is set, it is that of the caller.
pub fn log_crash(label: &str, error: &(dyn Error + 'static), backtrace: &Backtrace) {
    let mut message = format!("{label} crashed: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(&format!(": {error}"));
        cause = error.source();
    }
    if backtrace.status() == BacktraceStatus::Captured {
        message.push_str(&format!("\n{backtrace}"));
    } else {
        let here = Backtrace::force_capture();
        message.push_str(&format!(
            "\nWhere it was noticed (RUST_BACKTRACE=1 shows where it arose):\n{here}"
        ));
    }
    say(&message);
}

fn say(message: &str) {
    match OUTPUTS.get() {
        Some(outputs) => {
            tracing::error!("{message}");
            // What follows may be an abort.
            outputs.flush(FLUSH_LIMIT);
        }
        None => eprintln!("{message}"),
    }
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload_as_str().unwrap_or("a panic without a message");
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    match info.location() {
        Some(place) => format!("{payload} (thread {thread}, {place})"),
        None => format!("{payload} (thread {thread})"),
    }
}
