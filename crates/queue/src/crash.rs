//! Places where a test can make a program die. Builds without debug assertions have none of it.
//!
//! `RIGOR_CRASH_POINT=<name>` kills the process there as SIGKILL does, `<name>:<n>` at its n-th
//! pass, `panic:<name>` makes it panic. With `RIGOR_CRASH_MARK=<file>` the one that dies leaves its
//! process id in that file, and whoever finds the file there lives on: so one of many dies, once.

/// A place of that name, in a build with debug assertions.
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        $crate::crash::point($name);
    };
}

/// What [`crash_point!`] does.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::io::Write;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    const VARIABLE: &str = "RIGOR_CRASH_POINT";
    const MARK: &str = "RIGOR_CRASH_MARK";
    static WANTED: OnceLock<Option<String>> = OnceLock::new();
    static PASSES: AtomicU32 = AtomicU32::new(0);

    let wanted = WANTED.get_or_init(|| std::env::var(VARIABLE).ok());
    let Some(wanted) = wanted.as_deref() else {
        return;
    };
    assert!(
        wanted.strip_prefix("panic:") != Some(name),
        "{VARIABLE} asks for a panic at {name}"
    );
    let (wanted, pass) = match wanted.rsplit_once(':') {
        Some((wanted, pass)) => (wanted, pass.parse().unwrap_or(1)),
        None => (wanted, 1),
    };
    if wanted != name || PASSES.fetch_add(1, Ordering::Relaxed) + 1 != pass {
        return;
    }
    if let Some(mark) = std::env::var_os(MARK) {
        let made = std::fs::File::create_new(mark);
        let Ok(mut mark) = made else { return };
        let _ = writeln!(mark, "{}", std::process::id());
    }
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}
