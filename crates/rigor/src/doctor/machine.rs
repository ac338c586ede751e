//! The machine under the rig: disk, permissions, clock, what the kernel offers.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime};

use rigor_config::{Config, FILE_NAME};
use rigor_exec::{Containment, Controller, Limits};
use rigor_queue::lane::Lane;
use rigor_queue::presence;
use rigor_queue::rig::{BRAIN, Place, Rig};

use super::Findings;
use crate::terminal::{duration, plural};

/// Less free space than this is worth a warning, MiB: logs and results need room.
const DISK_LOW_MB: u64 = 1024;
/// Fewer free files than this are: a batch has some for each task.
const FILES_LOW: u64 = 100_000;
/// An attempt's groups are gone so long after it has left its lane.
const LEFT_AFTER: Duration = Duration::from_millis(200);
/// A time so far in the future was written by another clock.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// Room on the disk.
pub(super) fn disk(rig: &Rig, findings: &mut Findings) {
    let stat = match rustix::fs::statvfs(rig.root()) {
        Ok(stat) => stat,
        Err(errno) => return findings.fail("disk", format!("statvfs: {errno}"), "see `dmesg`"),
    };
    let free_mb = stat.f_bavail.saturating_mul(stat.f_frsize) / (1024 * 1024);
    let mut words = format!("{free_mb} MB free");
    // File systems without a table of files (btrfs) say 0 of 0.
    let files = (stat.f_files > 0).then_some(stat.f_favail);
    if let Some(files) = files {
        words.push_str(&format!(", room for {files} files"));
    }
    let remedy = "free some: without room no result can be recorded and claims stop";
    if free_mb == 0 || files == Some(0) {
        findings.fail("disk", words, remedy);
    } else if free_mb < DISK_LOW_MB || files.is_some_and(|files| files < FILES_LOW) {
        findings.warn("disk", words, remedy);
    } else {
        findings.ok("disk", words);
    }
}

/// Who may read and write the rig.
pub(super) fn permissions(rig: &Rig, findings: &mut Findings) {
    const WRITABLE_BY_OTHERS: u32 = 0o002;
    const CHECK: &str = "permissions";
    let root = rig.root();
    let shown = root.display();
    let me = rustix::process::geteuid().as_raw();
    let paths = [
        root.to_owned(),
        root.join(FILE_NAME),
        rig.logs_dir(),
        rig.brain_dir(),
    ];
    for path in paths {
        let meta = match fs::metadata(&path) {
            Ok(meta) => meta,
            // What is not there yet is made by whoever needs it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                let remedy = format!("sudo chown -R {me} {shown}");
                return findings.fail(CHECK, format!("{}: {error}", path.display()), remedy);
            }
        };
        if meta.mode() & WRITABLE_BY_OTHERS != 0 {
            return findings.fail(
                CHECK,
                format!(
                    "every user may write {}, and so run commands as you",
                    path.display()
                ),
                format!("chmod o-w {}", path.display()),
            );
        }
        if meta.uid() != me && me != 0 {
            return findings.fail(
                CHECK,
                format!(
                    "{} belongs to user {}, you are {me}",
                    path.display(),
                    meta.uid()
                ),
                format!("run Rigor as its owner, or: sudo chown -R {me} {shown}"),
            );
        }
        if rustix::fs::access(&path, rustix::fs::Access::WRITE_OK).is_err() {
            return findings.fail(
                CHECK,
                format!("{} cannot be written", path.display()),
                format!("chmod -R u+w {shown}; is the disk mounted read-only?"),
            );
        }
    }
    findings.ok(CHECK, "the rig is yours, and nobody else's to write");
}

/// Whether times can be believed.
pub(super) fn clock(rig: &Rig, config: &Config, findings: &mut Findings) {
    const CHECK: &str = "clock";
    let now = SystemTime::now();
    let ahead = |then: SystemTime| then.duration_since(now).ok().filter(|by| *by > CLOCK_SLACK);
    let mut written = vec![(FILE_NAME.to_owned(), rig.root().join(FILE_NAME))];
    for name in std::iter::once(BRAIN).chain(config.agent_names()) {
        written.push((
            format!("heartbeat of {name}"),
            rig.agent_dir(name).join("heartbeat.json"),
        ));
    }
    for (what, path) in written {
        let modified = fs::metadata(path).and_then(|meta| meta.modified()).ok();
        if let Some(by) = modified.and_then(ahead) {
            return findings.warn(
                CHECK,
                format!("the {what} was written {} in the future: the clock was set back", duration(by)),
                "let the clock be kept: sudo timedatectl set-ntp true. Intervals do not suffer, the order of times in logs does",
            );
        }
    }
    match synchronised() {
        Some(false) => findings.warn(
            CHECK,
            "no time service keeps it, or it has not yet found its source",
            "sudo timedatectl set-ntp true. Intervals do not suffer, times in logs do",
        ),
        Some(true) => findings.ok(CHECK, "kept by a time service"),
        None => findings.ok(
            CHECK,
            "nothing is wrong with it; whether it is kept cannot be told here",
        ),
    }
}

/// What the kernel says of the clock (adjtimex(2)); none where it may not be asked.
fn synchronised() -> Option<bool> {
    // SAFETY: all zeroes is a valid `timex`, whose fields are numbers; `modes` 0 changes nothing.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a `timex` of this frame.
    let answer = unsafe { libc::adjtimex(&raw mut state) };
    (answer >= 0).then_some(answer != libc::TIME_ERROR)
}

/// What holds attempts together, what limits them, and what could fence them in.
pub(super) fn tiers(rig: &Rig, config: &Config, findings: &mut Findings) {
    // What binds is where the programs run, not where this one does.
    let running = std::iter::once(BRAIN).chain(config.agent_names());
    let running = running
        .filter(|name| presence::is_held(rig, name).ok().flatten() == Some(true))
        .find_map(|name| {
            let pid = presence::heartbeat(rig, name).ok().flatten()?.pid;
            let containment = Containment::of_process(&config.rig.id, pid)?;
            Some((name, containment))
        });
    let (whose, containment) = match running {
        Some((name, containment)) => (format!(" (as {name} runs)"), containment),
        None => (
            " (as this command runs)".to_owned(),
            Containment::detect(&config.rig.id),
        ),
    };
    findings.ok("containment", format!("{}{whose}", containment.tier()));
    limits(config, &containment, &whose, findings);
    left_groups(rig, &containment, findings);
    sandbox(findings);
}

/// Which limits bind an attempt.
fn limits(config: &Config, containment: &Containment, whose: &str, findings: &mut Findings) {
    const CHECK: &str = "limits";
    const MB: u64 = 1_000_000;
    let by = |controller: &Controller| match controller {
        Controller::Unified => "cgroup v2".to_owned(),
        Controller::Legacy { path } => format!("cgroup v1, {}", path.display()),
    };
    let limits = Limits {
        memory_bytes: config.limits.memory_bytes,
        ..Limits::default()
    };
    let memory = limits.memory_max_bytes().unwrap_or(u64::MAX) / MB;
    let asked = [
        (
            format!("{} processes", config.limits.processes),
            "processes",
            containment.limits_processes(),
        ),
        (
            format!("{memory}MB of memory"),
            "memory",
            containment.limits_memory(),
        ),
    ];
    let (mut held, mut missing) = (Vec::new(), Vec::new());
    for (words, what, controller) in asked {
        match controller {
            Some(controller) => held.push(format!("{words} ({})", by(controller))),
            None => missing.push(what),
        }
    }
    held.push(match config.limits.file_size_bytes {
        Some(bytes) => format!("files of {}MB (setrlimit)", bytes / MB),
        None => "files of any size".to_owned(),
    });
    let held = format!("each attempt: {}{whose}", held.join(", "));
    if missing.is_empty() {
        return findings.ok(CHECK, held);
    }
    findings.warn(
        CHECK,
        format!(
            "no limit on {} can be held here: no cgroup with that controller may be written; a task can take all that the machine has. {held}",
            missing.join(" and on ")
        ),
        "rigor up --boot: systemd (254 or later) hands its services the controllers. In a container: mount /sys/fs/cgroup writable. See docs/troubleshooting.md, \"No limit can be held\"",
    );
}

/// Groups of attempts that nobody runs any more.
fn left_groups(rig: &Rig, containment: &Containment, findings: &mut Findings) {
    let mut left = groups_without_attempt(rig, containment);
    if left.is_empty() {
        return;
    }
    // One that ended between two looks at a directory is gone by now.
    std::thread::sleep(LEFT_AFTER);
    let still = groups_without_attempt(rig, containment);
    left.retain(|stem| still.contains(stem));
    if let Some(first) = left.first() {
        findings.warn(
            "cgroups",
            format!(
                "{} left of attempts that are over, {first} for example",
                plural(left.len(), "cgroup")
            ),
            "rigor down, rigor up: whoever starts removes them, with what runs in them",
        );
    }
}

fn groups_without_attempt(rig: &Rig, containment: &Containment) -> Vec<String> {
    // Groups first: an attempt is in `processing` before it gets one.
    let groups = containment.attempts();
    let running: HashSet<String> = rig
        .subdirs(Lane::Processing)
        .unwrap_or_default()
        .iter()
        .flat_map(|agent| {
            let listing = rig.list(Place::Processing(agent));
            listing.unwrap_or_default().names
        })
        .map(|name| name.attempt_stem())
        .collect();
    let stems = groups
        .into_iter()
        .map(|(id, attempt)| format!("{id}.a{attempt}"));
    stems.filter(|stem| !running.contains(stem)).collect()
}

/// What the kernel offers to fence attempts in with. Information.
fn sandbox(findings: &mut Findings) {
    let words = match landlock_abi() {
        // landlock(7), "Compatibility".
        Some(abi) => {
            let offers = [
                "files",
                "moves between folders",
                "truncation",
                "TCP ports",
                "device control",
                "signals and abstract sockets",
            ];
            let offers = &offers[..(abi.max(1) as usize).min(offers.len())];
            format!(
                "the kernel offers Landlock ABI {abi}: {}",
                offers.join(", ")
            )
        }
        None => {
            "the kernel offers no Landlock (not built in, or not in the list of `lsm=`)".to_owned()
        }
    };
    findings.ok("sandbox", words);
}

/// The version of Landlock that the kernel speaks, where it does.
fn landlock_abi() -> Option<i64> {
    const CREATE_RULESET_VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the kernel takes no attributes and only answers with its version
    // (landlock_create_ruleset(2)).
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    (abi > 0).then_some(abi)
}

/// What a dead agent's runtime still holds.
pub(super) fn leftovers(rig: &Rig, config: &Config, findings: &mut Findings) {
    for gpu in &config.gpus {
        if presence::is_held(rig, &gpu.name).ok().flatten() == Some(true) {
            continue;
        }
        let manifest = rig.agent_dir(&gpu.name).join(rigor_runtime::MANIFEST_NAME);
        let Some((model, pids)) = rigor_runtime::orphan(&manifest) else {
            continue;
        };
        let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
        findings.warn(
            format!("{} runtime", gpu.name),
            format!(
                "the runtime of {model} (pid {}) has outlived its agent and holds VRAM",
                pids.join(", ")
            ),
            "rigor up: the agent takes it over or ends it",
        );
    }
}
