//! Places where a test can make the agent die: `RIGOR_CRASH_POINT=<name>` kills it there as
//! SIGKILL does, `RIGOR_CRASH_POINT=panic:<name>` makes it panic.

use std::sync::OnceLock;

const VARIABLE: &str = "RIGOR_CRASH_POINT";

/// The place of that name.
pub(crate) fn point(name: &str) {
    static WANTED: OnceLock<Option<String>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| std::env::var(VARIABLE).ok());
    match wanted.as_deref() {
        Some(wanted) if wanted == name => {
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
        }
        Some(wanted) if wanted.strip_prefix("panic:") == Some(name) => {
            panic!("{VARIABLE} asks for a panic at {name}")
        }
        Some(_) | None => {}
    }
}
