//! Who is there: the lock that a component holds for life, its heartbeat, and the signals that it
//! is sent.

use std::fs;
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

use crate::error::{QueueError, Result};
use crate::heartbeat::Heartbeat;
use crate::lease::Lease;
use crate::rig::Rig;
use crate::small;
use crate::submit::replace_file;

/// Between two tries to take a lock that will be free in a moment.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// What the holder of a component's lock is doing with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It is the component.
    Running,
    /// It is the brain, taking back what a dead agent left.
    Recovering,
}

/// What a lock file says of its holder. For people: only the lock itself is believed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// What it does.
    pub role: Role,
}

/// `agents/<name>/lock`, held until this is dropped. The file is never unlinked.
#[derive(Debug)]
pub struct ComponentLock {
    _lease: Lease,
}

impl ComponentLock {
    /// Takes the lock of `name` for life. One that is held only for a moment (a brain that recovers
    /// the agent's tasks, what is left of a holder that was killed) is waited for, at most
    /// `patience`; one whose holder lives is not.
    pub fn take(rig: &Rig, name: &str, patience: Duration) -> Result<ComponentLock> {
        let deadline = Instant::now() + patience;
        loop {
            match ComponentLock::acquire(rig, name, Role::Running) {
                Err(QueueError::Held { .. })
                    if is_passing(rig, name) && Instant::now() < deadline =>
                {
                    std::thread::sleep(LOCK_POLL);
                }
                other => return other,
            }
        }
    }

    /// Takes the lock of `name`, or says who holds it ([`QueueError::Held`]).
    pub fn acquire(rig: &Rig, name: &str, role: Role) -> Result<ComponentLock> {
        rig.prepare_agent(name)?;
        let path = rig.agent_dir(name).join("lock");
        let lease = match Lease::of_path(&path)? {
            Ok(lease) => lease,
            Err(mut file) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                let holder = match serde_json::from_str::<Holder>(&text) {
                    Ok(Holder {
                        pid,
                        role: Role::Running,
                    }) => format!("pid {pid}"),
                    Ok(Holder {
                        pid,
                        role: Role::Recovering,
                    }) => {
                        format!("pid {pid}, the brain, is recovering its tasks")
                    }
                    Err(_) => "its lock is held".to_owned(),
                };
                return Err(QueueError::Held {
                    name: name.to_owned(),
                    holder,
                });
            }
        };
        let holder = Holder {
            pid: std::process::id(),
            role,
        };
        let text = serde_json::to_vec(&holder).expect("a pid and a word serialise");
        let mut file = lease.file();
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(&text))
            .map_err(QueueError::io("write", &path))?;
        Ok(ComponentLock { _lease: lease })
    }
}

/// Whether a held lock will be free in a moment: the brain is recovering what a dead agent left, or
/// the holder is dead and a child that it was forking when it was killed has a copy of the
/// descriptor until it execs or dies.
fn is_passing(rig: &Rig, name: &str) -> bool {
    let text = fs::read(rig.agent_dir(name).join("lock")).unwrap_or_default();
    // Who has just taken it empties the file before it writes its name.
    let Ok(holder) = serde_json::from_slice::<Holder>(&text) else {
        return true;
    };
    if holder.role == Role::Recovering {
        return true;
    }
    match fs::read_to_string(format!("/proc/{}/stat", holder.pid)) {
        // The state follows the name, which may hold anything but ends with the last bracket.
        Ok(stat) => stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}

/// Whether the process that last took the lock of `name` still lives, told without touching the
/// lock: displays must not take locks. `None`: nobody ever took it.
///
/// Reads what the kernel says of locks in /proc: of the holder that the file names, else of all.
pub fn is_held(rig: &Rig, name: &str) -> Result<Option<bool>> {
    use std::os::unix::fs::MetadataExt;
    let path = rig.agent_dir(name).join("lock");
    let inode = match fs::metadata(&path) {
        Ok(meta) => meta.ino(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(QueueError::io("stat", &path)(error)),
    };
    // /proc/locks is told a page at a time, and a reader misses entries when others come and go
    // between two pages. The holder's own list does not have that gap.
    let holder = fs::read(&path)
        .ok()
        .and_then(|text| serde_json::from_slice::<Holder>(&text).ok());
    if holder.is_some_and(|holder| holds(holder.pid, inode)) {
        return Ok(Some(true));
    }
    let locks = fs::read_to_string("/proc/locks").map_err(QueueError::io("read", "/proc/locks"))?;
    Ok(Some(lists_lock(&locks, inode)))
}

/// Kills the process that holds the lock of `name`, and no other: it is looked at through a
/// descriptor that was opened before, so that a recycled pid is never hit. Returns its pid; `None`:
/// the process that the lock file names does not hold the lock as the component itself.
pub fn kill_holder(rig: &Rig, name: &str) -> Result<Option<u32>> {
    use std::os::unix::fs::MetadataExt;
    let path = rig.agent_dir(name).join("lock");
    let text = fs::read(&path).map_err(QueueError::io("read", &path))?;
    let Ok(Holder {
        pid,
        role: Role::Running,
    }) = serde_json::from_slice::<Holder>(&text)
    else {
        return Ok(None);
    };
    let me = pid == std::process::id();
    let Some(target) = Pid::from_raw(pid as i32).filter(|_| !me) else {
        return Ok(None);
    };
    let process = match rustix::process::pidfd_open(target, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(errno) => return Err(QueueError::errno("open the process behind", &path)(errno)),
    };
    let inode = fs::metadata(&path)
        .map_err(QueueError::io("stat", &path))?
        .ino();
    if !holds(pid, inode) {
        return Ok(None);
    }
    match rustix::process::pidfd_send_signal(process, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(Some(pid)),
        Err(errno) => Err(QueueError::errno("kill the holder of", &path)(errno)),
    }
}

/// Whether the kernel lists a lock of that inode among those of that process's descriptors.
fn holds(pid: u32, inode: u64) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return false;
    };
    let mut infos = entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok());
    infos.any(|info| lists_lock(&info, inode))
}

fn lists_lock(text: &str, inode: u64) -> bool {
    let suffix = format!(":{inode}");
    text.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.any(|word| word == "FLOCK") && words.any(|word| word.ends_with(&suffix))
    })
}

/// Replaces the heartbeat of `name`.
pub fn beat(rig: &Rig, name: &str, heartbeat: &Heartbeat) -> Result<()> {
    let text = serde_json::to_vec(heartbeat).expect("our own types serialise");
    rig.no_links(&rig.agent_dir(name))?;
    replace_file(&heartbeat_path(rig, name), &text, false)
}

/// The last heartbeat of `name`; `None` if there never was one.
pub fn heartbeat(rig: &Rig, name: &str) -> Result<Option<Heartbeat>> {
    Ok(heartbeat_with_time(rig, name)?.map(|(heartbeat, _)| heartbeat))
}

/// As [`heartbeat`], with the time of its file: a component that cannot write (a full disk) moves
/// the time alone.
pub fn heartbeat_with_time(rig: &Rig, name: &str) -> Result<Option<(Heartbeat, SystemTime)>> {
    let path = heartbeat_path(rig, name);
    // Of one descriptor: the path may name another file a moment later.
    let (bytes, meta) = match small::read(&path) {
        Ok(both) => both,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(QueueError::io("read", &path)(error)),
    };
    let time = meta.modified().map_err(QueueError::io("read", &path))?;
    // Of a newer version only what both versions know is read.
    match serde_json::from_slice(&bytes) {
        Ok(heartbeat) => Ok(Some((heartbeat, time))),
        Err(error) => Err(QueueError::Untrusted {
            path,
            why: format!("{error}{}", crate::format::newer(&bytes)),
        }),
    }
}

fn heartbeat_path(rig: &Rig, name: &str) -> PathBuf {
    rig.agent_dir(name).join("heartbeat.json")
}

/// A file in `signals/<agent>/`: its name is the signal. Content, where there is any, is JSON.
///
/// To an agent: `stop`, `pause` and `drain` (in force while the file is there), `<id>.aN.abort`,
/// `<id>.aN.kill`. To the brain: `<batch>.cancel`, `<batch>.hold`, `<batch>.release`,
/// `<batch>.retry`, `<id>.cancel`, `<id>.retry`.
pub fn send(rig: &Rig, to: &str, signal: &str, content: &str) -> Result<()> {
    let dir = rig.signals_dir(to);
    if !dir.is_dir() {
        return Err(QueueError::Unfit {
            path: rig.root().to_owned(),
            why: format!("nobody named {to} ever ran here; see `rigor status`"),
        });
    }
    rig.no_links(&dir)?;
    replace_file(&dir.join(signal), content.as_bytes(), false)
}

/// Takes back a signal that is held while its file is there. `false`: there was none.
pub fn unsend(rig: &Rig, to: &str, signal: &str) -> Result<bool> {
    let path = rig.signals_dir(to).join(signal);
    rig.no_links(&rig.signals_dir(to))?;
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(QueueError::io("remove", &path)(error)),
    }
}

/// The signals that wait for `name`, with their content. The consumer removes each by [`unsend`]
/// when it has acted.
pub fn signals(rig: &Rig, name: &str) -> Result<Vec<(String, String)>> {
    let dir = rig.signals_dir(name);
    rig.no_links(&dir)?;
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(QueueError::io("read", &dir)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(QueueError::io("read", &dir))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if name.starts_with('.') {
            continue;
        }
        match small::read(&entry.path()) {
            Ok((content, _)) => {
                found.push((name, String::from_utf8_lossy(&content).into_owned()));
            }
            // Taken meanwhile, or no file: nobody's signal, and it must not hide the others.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::InvalidData
                ) => {}
            Err(error) => return Err(QueueError::io("read", entry.path())(error)),
        }
    }
    found.sort();
    Ok(found)
}
