//! The worker's own lines, which go to its agent's log (its standard error).

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rigor_exec::WorkerArgs;

/// Writes lines in the form of the agent's log.
pub(crate) struct Log {
    agent: String,
    warnings: bool,
}

impl Log {
    /// `WORKER_LOG_LEVEL=ERROR` silences warnings.
    pub(crate) fn new(args: &WorkerArgs) -> Log {
        let level = std::env::var("WORKER_LOG_LEVEL").unwrap_or_default();
        Log {
            agent: args.agent.clone(),
            warnings: !level.eq_ignore_ascii_case("error"),
        }
    }

    /// Something is not as it should be, and the attempt goes on.
    pub(crate) fn warning(&self, message: &str) {
        if self.warnings {
            let now = Timestamp::now().to_zoned_datetime(TimeZone::system());
            let now = now.strftime("%Y-%m-%dT%H:%M:%S%.3f%:z");
            // One write, so that the lines of several processes do not mix.
            eprint!(
                "{}",
                format_args!("[{now}] [{}] WARNING {message}\n", self.agent)
            );
        }
    }
}
