//! Stuck tasks: said with what is known of them, ended only where somebody asked for it; and
//! tasks that will never run, said at once.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rigor_queue::rig::{BRAIN, Place};
use rigor_queue::task::Class;
use rigor_tests::{Rig, Setup, lines};

// A task's CPU time is known some seconds after its start: `stuck_after` cannot be shorter here.
const TASK: &str = "[0-9a-f]{8}";

fn rig(tables: &str, timing: &'static str) -> Rig {
    Setup {
        gpus: 1,
        limits: "cpu_slots = 6\n",
        timing,
        tables: tables.to_owned(),
        ..Setup::default()
    }
    .make()
}

fn task(id: &str, more: &str, command: &str) -> String {
    format!(
        "### {id}\n\n- **task_class**: cpu\n- **retries**: 0\n{more}- **command**: `{command}`\n\n"
    )
}

/// Waits until the first line of `rigor why TASK` is of that pattern and its verdict is that one:
/// the brain tells displays what it knows at most once a second.
#[track_caller]
fn why(rig: &Rig, task: &str, verdict: &str, pattern: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let said = rig.rigor(&["why", task]);
        assert_eq!(said.code, 0, "rigor why {task}: {}", said.stderr);
        let first = said.stdout.lines().next().unwrap_or_default();
        let json = rig.json(&["why", task, "--json"]);
        if json["verdict"] == verdict && lines::find(first, pattern).is_some() {
            println!("$ rigor why {task}\n{}", said.stdout);
            return;
        }
        assert!(
            Instant::now() < deadline,
            "not {verdict}, or not {pattern}: {json}\n{}",
            said.stdout
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A task that is silent, one that computes, and one that prints, all of the same age.
fn three(rig: &Rig) -> PathBuf {
    let tasks = [
        task("silent", "", "sleep 600"),
        task("computes", "", "while :; do :; done"),
        task("prints", "", "while :; do echo x; sleep 0.2; done"),
        task("afterwards", "- **depends_on**: silent\n", "true"),
    ];
    rig.plan("three", &tasks.concat())
}

#[test]
fn the_silent_one_is_stuck_and_those_that_work_are_not() {
    let mut rig = rig("", "stuck_after = \"6s\"\n");
    let plan = three(&rig);
    rig.start_all();
    let batch = rig.submit(&plan);
    let line = rig.wait_for_match(
        BRAIN,
        &format!(
            r"\[brain\] WARNING Stuck tasks detected: silent \({TASK}\) on gpu-1, processing \d+s, quiet \d+s \(no output at all, CPU 0%.*\); nothing will stop it \(no timeout\)\. See: rigor logs {TASK}$"
        ),
    );
    println!("{line}");
    let elapsed = lines::number(&line, r"processing (\d+)s");
    assert!(elapsed >= Some(6) && elapsed < Some(20), "{line}");
    rig.wait_for_match(BRAIN, r"INFO  MONITOR: .*Processing: 3, Stuck: 1$");
    rig.wait("status counts it", |rig| {
        rig.status()["queue"]["stuck"] == 1
    });
    // Said again at twice the age, and of nobody else meanwhile.
    rig.wait("it is said again", |rig| {
        lines::all(&rig.log(BRAIN), "Stuck tasks detected: silent").len() == 2
    });
    let said = lines::all(&rig.log(BRAIN), "Stuck tasks detected");
    assert!(
        said.iter().all(|line| line.contains("detected: silent (")),
        "{said:?}"
    );
    let name = |task: &str| format!("{batch}/{task}");
    why(&rig, &name("silent"), "running", "^running.*(stuck|quiet)");
    for task in ["computes", "prints"] {
        why(&rig, &name(task), "running", "^running");
        let said = rig.rigor(&["why", &name(task)]).stdout;
        assert!(!said.contains("stuck"), "{said}");
    }
    why(&rig, &name("afterwards"), "not_yet", "^not yet.*silent");
    assert_eq!(
        rig.list(Place::Processing("gpu-1")).len(),
        3,
        "nobody was ended"
    );
    let decisions = rig.log_of("brain_decisions.log");
    let stuck = decisions
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|entry| entry["type"] == "STUCK")
        .expect("a STUCK entry in brain_decisions.log");
    let details = &stuck["details"];
    assert_eq!(
        (&details["name"], &details["assigned_to"]),
        (&"silent".into(), &"gpu-1".into()),
        "{stuck}"
    );
    assert!(
        details["quiet_min"].is_number() && details["elapsed_min"].is_number(),
        "{stuck}"
    );
    assert_eq!(rig.rigor(&["cancel", &batch]).code, 0);
    assert_eq!(rig.wait_batch(&batch), 3);
}

#[test]
fn abort_after_ends_what_is_stuck_and_nothing_else() {
    let mut rig = rig("", "stuck_after = \"5s\"\nabort_grace = \"2s\"\n");
    rig.edit_toml(|text| text.replace("[stuck]\n", "[stuck]\nabort_after = \"2s\"\n"));
    let plan = three(&rig);
    rig.start_all();
    let batch = rig.submit(&plan);
    rig.wait("the silent one has failed", |rig| {
        rig.tasks(&batch, "failed") == ["silent"]
    });
    let line = rig.wait_for_match(
        BRAIN,
        &format!(r"WARNING Stuck tasks detected: silent \({TASK}\) on gpu-1, .*stuck\.abort_after"),
    );
    println!("{line}");
    let shown = rig.json(&["show", &format!("{batch}/silent"), "--json"]);
    assert!(shown.to_string().contains("stuck"), "{shown}");
    let decisions = rig.log_of("brain_decisions.log");
    assert!(decisions.contains("ABORT_SIGNAL"), "{decisions}");
    assert_eq!(
        rig.list(Place::Processing("gpu-1")).len(),
        2,
        "the others go on"
    );
    assert_eq!(rig.rigor(&["cancel", &batch]).code, 0);
    rig.wait_batch(&batch);
}

#[test]
fn kill_if_silent_ends_the_silent_one() {
    let mut rig = rig("", "stuck_after = \"6s\"\n");
    let tasks = [
        task(
            "silent",
            "- **kill_if_silent**: 9s\n",
            "echo begun; sleep 600",
        ),
        task(
            "prints",
            "- **kill_if_silent**: 9s\n",
            "for n in $(seq 50); do echo $n; sleep 0.2; done",
        ),
    ];
    let plan = rig.plan("silence", &tasks.concat());
    rig.start_all();
    let batch = rig.submit(&plan);
    let line = rig.wait_for_match(
        BRAIN,
        &format!(
            r"WARNING Stuck tasks detected: silent \({TASK}\) on gpu-1, processing \d+s, quiet \d+s \(no output since \d\d:\d\d:\d\d, CPU 0%.*\); its kill_if_silent ends it in \d+s\. See: rigor logs {TASK}$"
        ),
    );
    println!("{line}");
    assert_eq!(rig.wait_batch(&batch), 1);
    assert_eq!(rig.tasks(&batch, "failed"), ["silent"]);
    assert_eq!(rig.tasks(&batch, "complete"), ["prints"]);
    let shown = rig.json(&["show", &format!("{batch}/silent"), "--json"]);
    assert!(
        lines::find(&shown.to_string(), "silent|no output|kill_if_silent").is_some(),
        "{shown}"
    );
}

/// The check of a submission refuses such a task; here the rig gets smaller after it.
#[test]
fn a_task_that_no_agent_can_ever_run_is_said_at_once_with_its_numbers() {
    let mut rig = rig("", "");
    rig.edit_toml(|text| text.replace("cpu_slots = 6", "cpu_slots = 64"));
    rig.stand_in(|state| state.gpus[0].total_mb = 24_000);
    let plan = rig.plan(
        "large",
        "### huge\n\n- **task_class**: script\n- **vram_policy**: fixed\n- **vram_estimate_mb**: 9000\n- **command**: `true`\n\n\
         ### crowd\n\n- **task_class**: cpu\n- **cpus**: 64\n- **command**: `true`\n\n\
         ### fits\n\n- **task_class**: cpu\n- **command**: `true`\n",
    );
    rig.start_brain();
    let batch = rig.submit(&plan);
    rig.wait("all are queued", |rig| {
        rig.list(Place::Queue(Class::Cpu)).len() == 2
            && rig.list(Place::Queue(Class::Script)).len() == 1
    });
    rig.kill(BRAIN);
    rig.edit_toml(|text| text.replace("cpu_slots = 64", "cpu_slots = 6"));
    rig.stand_in(|state| state.gpus[0].total_mb = 6144);
    rig.start_all();
    let large = rig.wait_for_match(
        BRAIN,
        r"WARNING No agent can ever run huge \(1 task\) of .*: needs 9000MB, largest budget is 4915MB on gpu-1",
    );
    let crowd = rig.wait_for_match(BRAIN, r"WARNING No agent can ever run crowd \(1 task\) of .*: needs 64 CPU slots, the most is 6 on gpu-1");
    println!("{large}\n{crowd}");
    rig.wait("what fits is done", |rig| {
        rig.tasks(&batch, "complete") == ["fits"]
    });
    assert_eq!(rig.list(Place::Queue(Class::Script)).len(), 1);
    let name = |task: &str| format!("{batch}/{task}");
    why(&rig, &name("huge"), "never", "^never.*9000.*4915");
    why(&rig, &name("crowd"), "never", "^never.*64.*6");
    let fits = rig.json(&["why", &name("fits"), "--json"]);
    assert_ne!(fits["verdict"], "never", "{fits}");
    assert_eq!(rig.rigor(&["cancel", &batch]).code, 0);
    assert_eq!(rig.wait_batch(&batch), 3);
}
