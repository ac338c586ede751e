//! Rows 21, 24 and 26: a task that takes too much, and one that does not die.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rigor_queue::heartbeat::Health;
use rigor_queue::rig::Place;
use rigor_tests::journal::{self, command, noted};
use rigor_tests::{Rig, Setup};
use serde_json::Value;

/// Bounded, so that a machine on which the limit does not hold survives the case.
const TAKES_A_GIGABYTE: &str = "tail -c 1G < <(head -c 1G /dev/zero) > /dev/null";
/// A thousand processes, each of which starts two more; bounded likewise.
const FORK_BOMB: &str = "bomb() { if [ \"$1\" -gt 0 ]; then bomb $(($1 - 1)) | bomb $(($1 - 1)) & fi; sleep 600; }; bomb 9";

/// Whether `rigor doctor` says that the limits bind here, else what it says.
fn limits_bind(rig: &Rig) -> Result<(), String> {
    let said: Value = serde_json::from_str(&rig.rigor(&["doctor", "--json"]).stdout).unwrap();
    let checks = said["checks"].as_array().unwrap();
    let limits = checks.iter().find(|check| check["check"] == "limits");
    let limits = limits.expect("doctor looks at the limits");
    match limits["result"].as_str() {
        Some("ok") => Ok(()),
        _ => Err(limits["detail"].to_string()),
    }
}

fn task(name: &str, more: &str, work: &str) -> String {
    format!(
        "### {name}\n\n- **task_class**: cpu\n{more}{}\n",
        command(work)
    )
}

/// Work that ends when its plan's folder has a file `go`.
fn until_go() -> String {
    noted("until [ -e \"$RIGOR_PLAN_DIR/go\" ]; do sleep 0.05; done")
}

fn attempts(rig: &Rig, batch: &str, task: &str) -> Vec<Value> {
    let shown = rig.json(&["show", &format!("{batch}/{task}"), "--json"]);
    shown["attempts"].as_array().expect("attempts").clone()
}

/// A task with a sibling in the same agent: how each attempt of it ended. The sibling, the agent
/// and the brain must not have noticed.
fn beside_a_sibling(limits: &'static str, tasks: &str) -> Option<Vec<Value>> {
    let mut rig = Setup {
        cpu_agents: 1,
        limits,
        ..Setup::default()
    }
    .make();
    if let Err(why) = limits_bind(&rig) {
        println!("skipped: {why}");
        return None;
    }
    let sibling = task("sibling", "", &until_go());
    let plan = rig.plan("limits", &format!("{sibling}{tasks}"));
    rig.start_all();
    let batch = rig.submit(&plan);
    rig.wait("the greedy task has failed for good", |rig| {
        rig.tasks(&batch, "failed") == ["greedy"]
    });
    let agent = rig.pid("cpu-1");
    assert_eq!(rig.heartbeat("cpu-1").unwrap().pid, agent);
    assert!(Path::new(&format!("/proc/{agent}/exe")).exists());
    fs::write(plan.join("go"), "").unwrap();
    assert_ne!(rig.wait_batch(&batch), 0, "one task of it has failed");
    let siblings = journal::read(&plan);
    assert!(matches!(&siblings[..], [one] if one.ended), "{siblings:?}");
    Some(attempts(&rig, &batch, "greedy"))
}

/// Row 21.
#[test]
fn who_takes_too_much_memory_is_killed_alone_and_the_failure_says_so() {
    let greedy = task(
        "greedy",
        "- **retries**: 5\n- **backoff**: 1s..1s\n",
        TAKES_A_GIGABYTE,
    );
    let Some(attempts) = beside_a_sibling("cpu_slots = 2\nmemory = \"64MB\"", &greedy) else {
        return;
    };
    assert_eq!(attempts.len(), 2, "once more, and no more: {attempts:#?}");
    for attempt in attempts {
        assert_eq!(attempt["kind"], "oom_killed", "{attempt:#}");
        let reason = attempt["reason"].as_str().unwrap();
        assert!(reason.contains("limit of 64MB"), "{reason}");
        assert!(reason.contains("raise `memory` in [limits]"), "{reason}");
    }
}

/// Row 26.
#[test]
fn a_fork_bomb_hits_its_limit_and_nobody_else_notices() {
    let greedy = task("greedy", "- **retries**: 0\n- **timeout**: 2s\n", FORK_BOMB);
    let Some(attempts) = beside_a_sibling("cpu_slots = 2\nprocesses = 60", &greedy) else {
        return;
    };
    let reason = attempts[0]["reason"].as_str().unwrap();
    assert!(reason.contains("hit its limit of 60 processes"), "{reason}");
}

/// A group of the version 1 freezer: what is frozen in it does not die of SIGKILL before it is
/// thawed, as a process does not that hangs in a driver.
struct Freezer(PathBuf);

impl Freezer {
    fn new() -> Result<Freezer, String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = mounts.lines().find_map(|line| {
            let (mount, system) = line.split_once(" - ")?;
            let ours = system.starts_with("cgroup ")
                && system
                    .rsplit(' ')
                    .next()?
                    .split(',')
                    .any(|it| it == "freezer");
            let root = mount.split(' ').nth(3)?;
            (ours && root == "/").then(|| PathBuf::from(mount.split(' ').nth(4).unwrap()))
        });
        let point = point.ok_or("no freezer of cgroup version 1, so everything can be killed")?;
        let path = point.join(format!("rigor-test-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("make {}: {error}", path.display()))?;
        Ok(Freezer(path))
    }

    fn freeze(&self, pid: &str) {
        fs::write(self.0.join("cgroup.procs"), pid).unwrap();
        fs::write(self.0.join("freezer.state"), "FROZEN").unwrap();
        rigor_tests::wait_until(Duration::from_secs(10), "it is frozen", || {
            fs::read_to_string(self.0.join("freezer.state")).unwrap() == "FROZEN\n"
        });
    }

    fn thaw(&self) {
        fs::write(self.0.join("freezer.state"), "THAWED").unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.thaw();
        // A killed process takes a moment to leave it.
        for _ in 0..500 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Row 24.
#[test]
fn who_cannot_be_killed_keeps_its_task_and_its_gpu_and_everybody_is_told() {
    let freezer = match Freezer::new() {
        Ok(freezer) => freezer,
        Err(why) => return println!("skipped: {why}"),
    };
    let mut rig = Setup {
        gpus: 2,
        timing: "abort_grace = \"2s\"",
        ..Setup::default()
    }
    .make();
    let work = noted(
        "[ \"$RIGOR_ATTEMPT\" != 1 ] || { echo $BASHPID > \"$RIGOR_PLAN_DIR/pid.new\"; mv \"$RIGOR_PLAN_DIR/pid.new\" \"$RIGOR_PLAN_DIR/pid\"; exec sleep 600; }",
    );
    let stuck = rig.plan(
        "stuck",
        &format!(
            "### stuck\n\n- **task_class**: script\n- **vram_policy**: fixed\n- **vram_estimate_mb**: 100\n- **on**: gpu-1, gpu-2\n- **timeout**: 1s\n- **backoff**: 1s..1s\n{}",
            command(&work)
        ),
    );
    rig.start_all();
    let batch = rig.submit(&stuck);
    let pid = stuck.join("pid");
    rig.wait("the task tells its pid", |_| pid.exists());
    freezer.freeze(fs::read_to_string(&pid).unwrap().trim());
    let first = journal::read(&stuck)[0].agent.clone();
    let other = if first == "gpu-1" { "gpu-2" } else { "gpu-1" };
    rig.wait("the GPU is quarantined", |rig| {
        rig.heartbeat(&first).is_some_and(|beat| {
            let said = beat.health_reason.unwrap_or_default();
            beat.health == Health::Quarantined && said.contains("survive SIGKILL")
        })
    });
    // Everybody is told, and the task is where it was.
    let log = rig.log(&first);
    assert!(
        log.contains("ERROR") && log.contains("survive SIGKILL"),
        "{log}"
    );
    let status = rig.rigor(&["status"]).stdout;
    assert!(status.contains("survive SIGKILL"), "{status}");
    assert_eq!(rig.list(Place::Processing(&first)).len(), 1);
    assert_eq!(journal::read(&stuck).len(), 1, "it runs once");

    // The other GPU goes on, and does not take it meanwhile.
    let more = rig.plan(
        "more",
        &format!(
            "### more\n\n- **task_class**: script\n- **vram_policy**: fixed\n- **vram_estimate_mb**: 100\n{}",
            command(&noted("true"))
        ),
    );
    let second = rig.submit(&more);
    assert_eq!(rig.wait_batch(&second), 0);
    assert_eq!(journal::read(&more)[0].agent, other);
    assert_eq!(rig.list(Place::Processing(&first)).len(), 1);
    assert_eq!(journal::read(&stuck).len(), 1, "it runs once");

    // When it is dead after all the attempt is over, and the next one runs elsewhere.
    freezer.thaw();
    assert_eq!(rig.wait_batch(&batch), 0);
    let ran = journal::read(&stuck);
    assert_eq!(ran.len(), 2, "{ran:?}");
    assert_eq!(ran[1].agent, other, "a quarantined GPU takes nothing");
    assert_eq!(attempts(&rig, &batch, "stuck")[0]["kind"], "timeout");
    // What such a process did to the device nobody knows: a restart of the agent looks anew.
    let now = Timestamp::now();
    rig.wait("one more heartbeat", |rig| {
        rig.heartbeat(&first).is_some_and(|beat| beat.at > now)
    });
    let health = rig.heartbeat(&first).unwrap().health;
    assert_eq!(health, Health::Quarantined);
}
