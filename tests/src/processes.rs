//! The processes of a rig, whoever their parents are by now.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rigor_exec::Containment;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The variable that the harness gives to every program it starts; its value is the rig's
/// directory.
pub const MARK: &str = "RIGOR_TEST_RIG";

/// How long the kernel may take to end what was killed.
const AFTER_KILL: Duration = Duration::from_secs(10);

/// What a process is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its words.
    pub command: String,
    /// Its `RIGOR_COOKIE`: the attempt it belongs to.
    pub cookie: Option<String>,
}

/// The living processes of the rig with that directory and id: those that the harness marked,
/// their descendants that kept the mark, and whatever carries a cookie of the rig. Zombies are
/// dead.
pub fn of_rig(root: &Path, rig_id: &str) -> Vec<Process> {
    let mark = format!("{MARK}={}", root.display());
    let cookies = format!("RIGOR_COOKIE={rig_id}:");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|text| text.parse().ok())
        else {
            continue;
        };
        // It may end at any point, and a zombie has no environment.
        let Ok(environ) = fs::read(entry.path().join("environ")) else {
            continue;
        };
        let environ = String::from_utf8_lossy(&environ);
        let variables = || environ.split('\0');
        let cookie = variables().find(|one| one.starts_with(&cookies));
        if cookie.is_none() && !variables().any(|one| one == mark) {
            continue;
        }
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        found.push(Process {
            pid,
            command: String::from_utf8_lossy(&words).replace('\0', " "),
            cookie: cookie.and_then(|text| Some(text.split_once('=')?.1.to_owned())),
        });
    }
    found
}

/// Kills all of them, again and again until none is left, and removes the cgroups of attempts.
pub fn kill_all(root: &Path, rig_id: &str) {
    let deadline = Instant::now() + AFTER_KILL;
    loop {
        let left = of_rig(root, rig_id);
        if left.is_empty() {
            let containment = Containment::detect(rig_id);
            for (id, attempt) in containment.attempts() {
                if let Err(error) = containment.kill_attempt(id, attempt, AFTER_KILL) {
                    eprintln!("{error}");
                }
            }
            return;
        }
        for process in &left {
            send(process.pid, Signal::KILL);
        }
        if Instant::now() > deadline {
            eprintln!("these cannot be killed: {left:?}");
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Signals a process, if it still lives.
pub fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let handle = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    if let Some(Ok(handle)) = handle {
        // One that has ended meanwhile needs no signal.
        let _ = pidfd_send_signal(&handle, signal);
    }
}
