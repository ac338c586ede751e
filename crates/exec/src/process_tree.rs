//! The processes of an attempt, found by their environment cookie, and their end.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::containment::End;
use crate::error::ExecError;
use crate::launch::COOKIE_VARIABLE;

/// A process, as /proc told at one moment. The pid together with the start time names it for ever.
#[derive(Clone, Debug)]
struct Process {
    pid: u32,
    parent: u32,
    session: u32,
    /// Clock ticks since the machine started.
    start: u64,
    cookie: bool,
}

/// Kills every process that carries the cookie, their descendants and the sessions they lead,
/// again and again until none is left or the deadline is over.
pub(crate) fn kill(cookie: &str, deadline: Instant) -> Result<End, ExecError> {
    let wanted = format!("{COOKIE_VARIABLE}={cookie}");
    let mut hit = HashSet::new();
    let mut pause = Duration::from_micros(500);
    // Descendants of a process that is killed lose the parent by which they would be found in the
    // next round, so a victim stays one.
    let mut victims: Vec<Process> = Vec::new();
    loop {
        let now = snapshot(&wanted)?;
        victims.retain(|old| {
            now.iter()
                .any(|new| (new.pid, new.start) == (old.pid, old.start))
        });
        for found in belonging(&now, &victims) {
            if !victims
                .iter()
                .any(|old| (old.pid, old.start) == (found.pid, found.start))
            {
                victims.push(found);
            }
        }
        if victims.is_empty() {
            return Ok(End {
                killed: hit.len(),
                ..End::default()
            });
        }
        for victim in &victims {
            if send_kill(victim) {
                hit.insert((victim.pid, victim.start));
            }
        }
        if Instant::now() >= deadline {
            let survivors = victims.iter().map(|one| one.pid).collect();
            return Ok(End {
                killed: 0,
                failed: true,
                survivors,
            });
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Living processes of this user; zombies are dead.
fn snapshot(wanted: &str) -> Result<Vec<Process>, ExecError> {
    let me = rustix::process::geteuid().as_raw();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").map_err(ExecError::io("read", "/proc"))? {
        let entry = entry.map_err(ExecError::io("read", "/proc"))?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A process may end at any point of this: then it is not there.
        let Ok(meta) = entry.metadata() else { continue };
        let Some(mut process) = read_stat(pid) else {
            continue;
        };
        if meta.uid() != me {
            continue;
        }
        process.cookie = fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
            environ
                .split(|byte| *byte == 0)
                .any(|entry| entry == wanted.as_bytes())
        });
        found.push(process);
    }
    Ok(found)
}

/// Those with the cookie, what descends from them (or from earlier victims), and the members of
/// sessions that one of them leads.
fn belonging(all: &[Process], earlier: &[Process]) -> Vec<Process> {
    let mut pids: HashSet<u32> = earlier.iter().map(|one| one.pid).collect();
    pids.extend(all.iter().filter(|one| one.cookie).map(|one| one.pid));
    loop {
        let before = pids.len();
        for one in all {
            if pids.contains(&one.parent) || pids.contains(&one.session) {
                pids.insert(one.pid);
            }
        }
        if pids.len() == before {
            break;
        }
    }
    // This process may have been started by a task (a rig within a rig's task); it does not kill itself.
    pids.remove(&std::process::id());
    all.iter()
        .filter(|one| pids.contains(&one.pid))
        .cloned()
        .collect()
}

/// SIGKILL through a handle that was opened before the identity is checked: a pid that was reused
/// since the snapshot is never hit.
fn send_kill(victim: &Process) -> bool {
    let Some(pid) = Pid::from_raw(victim.pid as i32) else {
        return false;
    };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    match read_stat(victim.pid) {
        Some(now) if now.start == victim.start => {
            matches!(
                pidfd_send_signal(&handle, Signal::KILL),
                Ok(()) | Err(Errno::PERM)
            )
        }
        _ => false,
    }
}

/// proc_pid_stat(5): fields are counted after the name, which may hold blanks and parentheses.
/// `None`: it is gone, or a zombie.
fn read_stat(pid: u32) -> Option<Process> {
    let text = match fs::read(format!("/proc/{pid}/stat")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(_) => return None,
    };
    let after = text.iter().rposition(|byte| *byte == b')')?;
    let text = std::str::from_utf8(&text[after + 1..]).ok()?;
    let fields: Vec<&str> = text.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
        cookie: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, parent: u32, session: u32, cookie: bool) -> Process {
        Process {
            pid,
            parent,
            session,
            start: 1,
            cookie,
        }
    }

    #[test]
    fn a_tree_is_more_than_its_cookies() {
        let all = [
            process(10, 1, 10, false),  // the agent
            process(20, 10, 20, true),  // the worker
            process(21, 20, 20, true),  // its command
            process(22, 21, 20, false), // env -i
            process(23, 1, 20, false),  // env -i, orphan, in the worker's session
            process(30, 1, 30, true),   // daemonised
            process(31, 30, 31, false), // env -i below it
            process(40, 10, 40, false), // another worker
        ];
        let mut pids: Vec<u32> = belonging(&all, &[]).iter().map(|one| one.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [20, 21, 22, 23, 30, 31]);
    }

    #[test]
    fn a_worker_that_has_no_session_yet_does_not_take_its_agents() {
        let all = [
            process(10, 1, 10, false),
            process(20, 10, 10, true),
            process(11, 10, 10, false),
        ];
        let pids: Vec<u32> = belonging(&all, &[]).iter().map(|one| one.pid).collect();
        assert_eq!(pids, [20]);
    }

    #[test]
    fn a_reused_pid_is_not_hit() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep starts");
        let mut victim = read_stat(child.id()).expect("it lives");
        victim.start -= 1; // what the snapshot would say of an earlier process with that pid
        assert!(!send_kill(&victim));
        assert!(
            child.try_wait().expect("wait").is_none(),
            "an innocent process was killed"
        );
        victim.start += 1;
        assert!(send_kill(&victim));
        child.wait().expect("wait");
    }
}
