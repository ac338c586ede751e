//! What of a run still lives, whatever became of its parents: found by a mark in the environment
//! that each of its processes inherits.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The variable; its value is the rig's folder.
pub(crate) const MARK: &str = "RIGOR_XTASK_RIG";

/// How long the kernel may take to end what was killed.
const AFTER_KILL: Duration = Duration::from_secs(5);

/// A process that was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Remain {
    pid: i32,
    command: String,
}

impl std::fmt::Display for Remain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {})", self.command, self.pid)
    }
}

/// The living processes that bear the mark of this rig; zombies are dead.
pub(crate) fn find(rig: &Path) -> Vec<Remain> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| is_marked(*pid, rig))
        .map(|pid| {
            // A process may end at any point: then it has no command, and the next look is without it.
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            Remain {
                pid,
                command: words.trim_end().to_owned(),
            }
        })
        .collect()
}

/// Kills them, again and again until none is left. Returns who was there, and whether all are gone.
pub(crate) fn kill(rig: &Path) -> (Vec<Remain>, bool) {
    let first = find(rig);
    let deadline = Instant::now() + AFTER_KILL;
    loop {
        let now = find(rig);
        if now.is_empty() {
            return (first, true);
        }
        for one in &now {
            kill_marked(one.pid, rig);
        }
        if Instant::now() > deadline {
            return (first, false);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Through a handle that is opened before the mark is checked: a number that has passed to
/// another process meanwhile is never hit.
fn kill_marked(pid: i32, rig: &Path) {
    let Some(number) = Pid::from_raw(pid) else {
        return;
    };
    let Ok(handle) = pidfd_open(number, PidfdFlags::empty()) else {
        return;
    };
    if is_marked(pid, rig) {
        // What has ended meanwhile needs no signal.
        let _ = pidfd_send_signal(&handle, Signal::KILL);
    }
}

/// A zombie has no environment.
fn is_marked(pid: i32, rig: &Path) -> bool {
    let mark = format!("{MARK}={}", rig.display());
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
        environ
            .split(|byte| *byte == 0)
            .any(|one| one == mark.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn what_bears_the_mark_is_found_and_killed_and_nothing_else() {
        let rig = tempfile::tempdir().unwrap();
        let sleep = |mark: &Path| {
            Command::new("sleep")
                .arg("60")
                .env(MARK, mark)
                .spawn()
                .expect("sleep starts")
        };
        let mut ours = sleep(rig.path());
        let mut others = sleep(&rig.path().join("other"));
        let found = find(rig.path());
        assert!(
            found.iter().any(|one| one.pid == ours.id() as i32),
            "{found:?}"
        );
        let (killed, all_gone) = kill(rig.path());
        assert!(all_gone);
        assert_eq!(killed, found);
        assert_eq!(ours.wait().unwrap().signal(), Some(9));
        assert!(
            others.try_wait().unwrap().is_none(),
            "another rig's process was killed"
        );
        others.kill().unwrap();
        others.wait().unwrap();
    }
}
