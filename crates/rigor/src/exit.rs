//! Exit codes.

use std::process::ExitCode;

/// How `rigor` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: done.
    Ok,
    /// 1: failed.
    Failed,
    /// 3: what was waited for was cancelled.
    Cancelled,
    /// 4: the brain is not running, so nothing happens.
    NoBrain,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Cancelled => 3,
            Exit::NoBrain => 4,
        })
    }
}
