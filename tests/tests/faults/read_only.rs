//! Row 12: a lane that cannot be written, for want of permission or because it is mounted
//! read-only.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use rigor_queue::heartbeat::Health;
use rigor_queue::rig::{BRAIN, Place};
use rigor_queue::task::Class;
use rigor_tests::Rig;
use rigor_tests::journal::{self, command, noted};
use rigor_tests::mounts::{self, Namespace};

use crate::links::busy;

/// A user that owns nothing else: `nobody` of most systems.
const NOBODY: u32 = 65_534;
/// Tries of a claim while nothing can be claimed: waits double from 1 s.
const TRIES_MOST: usize = 6;

fn plan(rig: &Rig, name: &str) -> PathBuf {
    let task = format!(
        "### one\n\n- **task_class**: cpu\n{}",
        command(&noted("true"))
    );
    rig.plan(name, &task)
}

/// At the level that tells each try of a claim.
fn start(rig: &mut Rig) {
    rig.start_brain();
    rig.spawn_with("gpu-1", &[("GPU_LOG_LEVEL", "debug")]);
    rig.wait_for_line("gpu-1", "GPU agent gpu-1 starting");
}

/// Submits a task while a lane cannot be written; the agent has to say which, not to spin, and to
/// go on when `mend` has been called.
#[track_caller]
fn unwritable(rig: &Rig, name: &str, lane: &Path, cause: &str, mend: impl FnOnce()) {
    let plan = plan(rig, name);
    let tries = |rig: &Rig| rig.log("gpu-1").matches("Attempting claim").count();
    let before = tries(rig);
    let batch = rig.submit(&plan);
    rig.wait("the agent says what is wrong", |rig| {
        rig.heartbeat("gpu-1").is_some_and(|beat| {
            let why = beat.health_reason.unwrap_or_default();
            beat.health == Health::Quarantined
                && why.contains(&lane.display().to_string())
                && why.contains(cause)
        })
    });
    let pid = rig.pid("gpu-1");
    let sequence = rig.heartbeat("gpu-1").unwrap().sequence;
    let busy = busy(pid, || {
        rig.wait("it tries again", |rig| {
            let beats = rig.heartbeat("gpu-1").unwrap().sequence;
            beats >= sequence + 10 && tries(rig) >= before + 2
        });
    });
    assert!(busy < 0.5, "{busy:.2} of a core: a hot loop");
    let tried = tries(rig) - before;
    assert!(tried <= TRIES_MOST, "{tried} tries: a hot loop");
    assert_eq!(journal::read(&plan).len(), 0, "nothing runs");
    assert_eq!(
        rig.list(Place::Queue(Class::Cpu)).len(),
        1,
        "it stays queued"
    );
    mend();
    assert_eq!(rig.wait_batch(&batch), 0, "it goes on by itself");
    assert_eq!(journal::read(&plan).len(), 1);
    let state = |rig: &Rig| rig.heartbeat("gpu-1").unwrap().health;
    rig.wait("it is well", |rig| state(rig) == Health::Healthy);
}

#[test]
fn a_lane_that_is_mounted_read_only_is_named_and_not_tried_again_and_again() {
    let test = "read_only::a_lane_that_is_mounted_read_only_is_named_and_not_tried_again_and_again";
    match mounts::enter(test, None) {
        Namespace::Done => return,
        Namespace::Unable(why) => return println!("skipped: {why}"),
        Namespace::Inside => {}
    }
    let mut rig = Rig::new(1);
    start(&mut rig);
    let lane = rig.rig.dir(Place::Processing("gpu-1"));
    // A rename takes a bind mount for another file system, also one of the same disk.
    let mounted = ReadOnly::over(&lane);
    unwritable(&rig, "processing", &lane, "cross-device", || drop(mounted));
    let lane = rig.rig.dir(Place::Queue(Class::Brain));
    let mounted = ReadOnly::over(&lane);
    let plan = plan(&rig, "refused");
    let said = rig.rigor(&["submit", plan.to_str().unwrap()]);
    assert_eq!((said.code, said.stdout.as_str()), (1, ""), "{said:?}");
    let named = said.stderr.contains(&lane.display().to_string());
    assert!(
        named && said.stderr.contains("Read-only file system"),
        "{said:?}"
    );
    drop(mounted);
    let batch = rig.submit(&plan);
    assert_eq!(rig.wait_short_batch(&batch), 0);
}

/// A read-only bind mount of a directory over itself, as long as this lives.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn over(dir: &Path) -> ReadOnly {
        let mount = |words: &[&OsStr]| {
            let status = Command::new("mount").args(words).arg(dir).status().unwrap();
            assert!(status.success(), "mount {words:?} {}", dir.display());
        };
        mount(&["--bind".as_ref(), dir.as_os_str()]);
        let mounted = ReadOnly(dir.to_owned());
        mount(&["-o".as_ref(), "remount,bind,ro".as_ref()]);
        mounted
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.0).status().unwrap();
        assert!(status.success(), "umount {}", self.0.display());
    }
}

/// Permissions do not bind root: there the case runs once more as somebody else.
#[test]
fn a_lane_without_permission_is_named_and_not_tried_again_and_again() {
    let test = "read_only::a_lane_without_permission_is_named_and_not_tried_again_and_again";
    if rustix::process::geteuid().is_root() {
        return match as_nobody(test) {
            Ok(()) => {}
            Err(why) => println!("skipped: {why}"),
        };
    }
    let mut rig = Rig::new(1);
    start(&mut rig);
    let chmod = |dir: &Path, mode| fs::set_permissions(dir, Permissions::from_mode(mode)).unwrap();
    let lane = rig.rig.dir(Place::Processing("gpu-1"));
    chmod(&lane, 0o555);
    unwritable(&rig, "processing", &lane, "Permission denied", || {
        chmod(&lane, 0o755)
    });
    // One into which the brain moves: it says so too.
    let lane = rig.rig.dir(Place::Queue(Class::Cpu));
    chmod(&lane, 0o555);
    let plan = plan(&rig, "released");
    let batch = rig.submit(&plan);
    let line = rig.wait_for_match(
        BRAIN,
        "ERROR The brain cannot go on with a batch: .*Permission",
    );
    println!("{line}");
    rig.wait("the brain's heartbeat says so", |rig| {
        let beat = rig.heartbeat(BRAIN).unwrap();
        let why = beat.health_reason.unwrap_or_default();
        why.contains(&lane.display().to_string()) && why.contains("Permission denied")
    });
    let busy = busy(rig.pid(BRAIN), || {
        let sequence = rig.heartbeat(BRAIN).unwrap().sequence;
        rig.wait("some more heartbeats", |rig| {
            rig.heartbeat(BRAIN).unwrap().sequence >= sequence + 10
        });
    });
    assert!(busy < 0.5, "{busy:.2} of a core: a hot loop");
    chmod(&lane, 0o755);
    assert_eq!(rig.wait_batch(&batch), 0);
    assert_eq!(journal::read(&plan).len(), 1);
    assert!(rig.heartbeat(BRAIN).unwrap().health_reason.is_none());
}

/// Runs the test of that name once more as [`NOBODY`]. The error says why that cannot be.
fn as_nobody(test: &str) -> Result<(), String> {
    let uid = NOBODY.to_string();
    let drop_to = |program: &Path| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "--"]);
        command.arg(program);
        command
    };
    let me = std::env::current_exe().unwrap();
    let works = drop_to(&me).arg("--list").output();
    if !works.is_ok_and(|said| said.status.success()) {
        return Err("setpriv is missing, or another user may not run this test".to_owned());
    }
    let scratch = tempfile::tempdir().unwrap();
    chown(scratch.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let mut again = drop_to(&me);
    again.args([test, "--exact", "--nocapture"]);
    again
        .env("TMPDIR", scratch.path())
        .env("HOME", scratch.path());
    let status = again.status().unwrap();
    assert!(status.success(), "{test} as uid {NOBODY}: {status}");
    Ok(())
}
