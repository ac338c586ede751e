//! The worker's own lines, which go to its agent's log (its standard error).

use std::io::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rigor_exec::WorkerArgs;

/// The variable of the executor's level.
const EXECUTOR_LEVEL: &str = "EXECUTOR_LOG_LEVEL";

/// Writes lines in the form of the agent's log.
pub(crate) struct Log {
    agent: String,
    warnings: bool,
    executor: Executor,
}

/// What the executor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Executor {
    /// What it lets a task do, and what not.
    All,
    /// What it does not let a task do.
    Blocked,
    Nothing,
}

impl Log {
    /// `WORKER_LOG_LEVEL=ERROR` silences warnings; `EXECUTOR_LOG_LEVEL` is the executor's own. A
    /// level that is none is named by the agent, once, and not by each worker.
    pub(crate) fn new(args: &WorkerArgs) -> Log {
        let level = |name: &str| std::env::var(name).unwrap_or_default();
        Log {
            agent: args.agent.clone(),
            warnings: !level("WORKER_LOG_LEVEL").eq_ignore_ascii_case("error"),
            executor: executor(&level(EXECUTOR_LEVEL)),
        }
    }

    /// Something is not as it should be, and the attempt goes on.
    pub(crate) fn warning(&self, message: &str) {
        if self.warnings {
            self.line("WARNING", message);
        }
    }

    /// The executor lets a task do something. `false`: nobody wants to know.
    pub(crate) fn allowed(&self, message: &str) -> bool {
        let said = self.executor == Executor::All;
        if said {
            self.line("DEBUG", message);
        }
        said
    }

    /// The executor does not let a task do something. `false`: nobody wants to know.
    pub(crate) fn blocked(&self, message: &str) -> bool {
        let said = self.executor != Executor::Nothing;
        if said {
            self.line("INFO ", message);
        }
        said
    }

    fn line(&self, level: &str, message: &str) {
        let now = Timestamp::now().to_zoned_datetime(TimeZone::system());
        let now = now.strftime("%Y-%m-%dT%H:%M:%S%.3f%:z");
        // Standard error has no buffer: only a finished line goes out in one write, and does not
        // mix with the lines of other processes.
        let line = format!("[{now}] [{}] {level} {message}\n", self.agent);
        // There is nobody left to tell if the agent's log cannot be written.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }
}

/// INFO unless it says otherwise.
fn executor(level: &str) -> Executor {
    let is = |name: &str| level.trim().eq_ignore_ascii_case(name);
    if is("debug") {
        Executor::All
    } else if is("warning") || is("warn") || is("error") {
        Executor::Nothing
    } else {
        Executor::Blocked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executor_says_what_it_blocks_unless_told_otherwise() {
        for (level, says) in [
            ("", Executor::Blocked),
            ("Info", Executor::Blocked),
            ("loud", Executor::Blocked),
            ("Debug", Executor::All),
            ("WARNING", Executor::Nothing),
            ("error", Executor::Nothing),
        ] {
            assert_eq!(executor(level), says, "{level:?}");
        }
    }
}
