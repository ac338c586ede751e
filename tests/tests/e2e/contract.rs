//! The three runs at the end of the log contract, line by line: an agent that dies, hangs or
//! panics; LLM tasks and no model; more tasks than slots. The words are what is compared.

use std::fs;
use std::path::{Path, PathBuf};

use rigor_queue::rig::{BRAIN, Place};
use rigor_queue::task::Class;
use rigor_tests::journal::{self, command, noted};
use rigor_tests::{Rig, Setup, lines, parts, processes};
use rustix::process::Signal;

const AGENTS: [&str; 3] = ["gpu-1", "gpu-2", "gpu-3"];
const TASK: &str = "[0-9a-f]{8}";
const DEBUG: [(&str, &str); 1] = [("GPU_LOG_LEVEL", "debug")];

/// A plan of one cpu task whose first attempt takes until the file `done` is there.
fn long_plan(rig: &Rig) -> PathBuf {
    let work = "if [ \"$RIGOR_ATTEMPT\" = 1 ]; then until [ -e \"$RIGOR_PLAN_DIR/done\" ]; do sleep 0.1; note tick; done; fi";
    let task = format!(
        "### long\n\n- **task_class**: cpu\n{}",
        command(&noted(work))
    );
    rig.plan("long", &task)
}

/// Waits until the task runs and says who has it.
fn who_runs(rig: &Rig, plan: &Path) -> (String, String) {
    rig.wait("it runs", |_| !journal::read(plan).is_empty());
    let first = journal::read(plan).remove(0).agent;
    let other = if first == "gpu-1" { "gpu-2" } else { "gpu-1" };
    (first, other.to_owned())
}

#[track_caller]
fn ends_elsewhere(rig: &Rig, batch: &str, plan: &Path, other: &str) {
    assert_eq!(rig.wait_batch(batch), 0);
    let attempts = journal::read(plan);
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    assert_eq!(
        (attempts[1].attempt, attempts[1].agent.as_str()),
        (2, other)
    );
    assert!(!attempts[0].ended && attempts[1].ended, "{attempts:?}");
}

fn seconds(line: &str) -> f64 {
    lines::seconds(line).unwrap_or_else(|| panic!("no time in {line}"))
}

fn now() -> f64 {
    jiff::Timestamp::now().as_microsecond() as f64 / 1e6
}

#[test]
fn an_agent_dies_in_the_middle_of_a_task() {
    let mut rig = Rig::new(2);
    let plan = long_plan(&rig);
    rig.start_all();
    let batch = rig.submit(&plan);
    let (first, other) = who_runs(&rig, &plan);
    rig.kill(&first);
    let killed = now();
    let line = rig.wait_for_match(
        BRAIN,
        &format!(
            r"\[brain\] WARNING Agent {first} is dead \(its lock is free\): requeued 1 task, killed \d+ process(es)?$"
        ),
    );
    assert!(seconds(&line) - killed < 5.0, "{line}");
    let log = rig.log(&first);
    let last = log.lines().last().unwrap();
    assert!(
        lines::find(last, r"INFO  Spawned worker .*for cpu task").is_some(),
        "its log simply ends: {last}"
    );
    assert!(!log.contains("shutting down") && !log.contains("crashed"));
    ends_elsewhere(&rig, &batch, &plan, &other);
}

#[test]
fn an_agent_hangs_and_is_ended_line_by_line() {
    let mut rig = Setup {
        gpus: 2,
        timing: "heartbeat_warn = \"2s\"\nheartbeat_hung = \"5s\"\n",
        ..Setup::default()
    }
    .make();
    let plan = long_plan(&rig);
    rig.start_all();
    let batch = rig.submit(&plan);
    let (first, other) = who_runs(&rig, &plan);
    processes::send(rig.pid(&first), Signal::STOP);
    let warned = rig.wait_for_match(
        BRAIN,
        &format!(r"\[brain\] WARNING Agent {first} last heartbeat \d+s ago \(threshold: 2s\)$"),
    );
    let hung = rig.wait_for_match(
        BRAIN,
        &format!(
            r"\[brain\] WARNING Agent {first} hung: no heartbeat for [5-9]s while its lock is held: killing its process \(pid \d+\)$"
        ),
    );
    let dead = rig.wait_for_match(
        BRAIN,
        &format!(
            r"\[brain\] WARNING Agent {first} is (dead|hung).*requeued 1 task, killed \d+ process(es)?"
        ),
    );
    assert!(
        seconds(&warned) <= seconds(&hung) && seconds(&hung) <= seconds(&dead),
        "{warned}\n{hung}\n{dead}"
    );
    rig.killed(&first);
    ends_elsewhere(&rig, &batch, &plan, &other);
    println!("{warned}\n{hung}\n{dead}");
}

#[test]
fn an_agent_that_wakes_up_in_time_goes_on() {
    let mut rig = Setup {
        gpus: 2,
        timing: "heartbeat_warn = \"1s\"\nheartbeat_hung = \"60s\"\n",
        ..Setup::default()
    }
    .make();
    let plan = long_plan(&rig);
    rig.start_all();
    let batch = rig.submit(&plan);
    let (first, _) = who_runs(&rig, &plan);
    processes::send(rig.pid(&first), Signal::STOP);
    rig.wait_for_match(BRAIN, &format!(r"WARNING Agent {first} last heartbeat"));
    let beat = |rig: &Rig| rig.heartbeat(&first).expect("it had one").sequence;
    let before = beat(&rig);
    processes::send(rig.pid(&first), Signal::CONT);
    rig.wait("it is heard of again", |rig| beat(rig) > before);
    fs::write(plan.join("done"), "").unwrap();
    assert_eq!(rig.wait_batch(&batch), 0);
    let attempts = journal::read(&plan);
    assert_eq!(attempts.len(), 1, "nobody took it away: {attempts:?}");
}

#[test]
fn an_agent_panics() {
    let mut rig = Rig::new(2);
    let plan = long_plan(&rig);
    rig.start_brain();
    let crash = [("RIGOR_CRASH_POINT", "panic:claimed")];
    rig.spawn_with("gpu-1", &crash);
    rig.wait_for_match("gpu-1", "GPU agent gpu-1 starting");
    let batch = rig.submit(&plan);
    let status = rig.killed("gpu-1");
    assert_eq!(status.code(), Some(1));
    let log = rig.log("gpu-1");
    let crashed = lines::find(
        &log,
        r"\[gpu-1\] ERROR GPU agent crashed: RIGOR_CRASH_POINT asks for a panic at",
    );
    assert!(crashed.is_some(), "{log}");
    assert!(log.contains("rigor_queue::crash::point"), "a backtrace");
    let last = log.lines().last().unwrap();
    assert!(
        last.ends_with("[gpu-1] INFO  GPU gpu-1 shutting down - completed 0, failed 0"),
        "{last}"
    );
    rig.wait_for_match(
        BRAIN,
        r"\[brain\] WARNING Agent gpu-1 is dead \(its lock is free\): requeued 1 task, killed \d+ process(es)?$",
    );
    rig.start_agent("gpu-2");
    assert_eq!(rig.wait_batch(&batch), 0);
    let attempts = journal::read(&plan);
    // The first attempt had no worker yet.
    assert_eq!(attempts.len(), 1, "{attempts:?}");
    assert_eq!(
        (attempts[0].attempt, attempts[0].agent.as_str()),
        (2, "gpu-2")
    );
}

/// LLM tasks that wait for the file `go`.
fn gated(rig: &Rig, count: usize) -> PathBuf {
    let plan = rig.plan(
        "gated",
        "### each\n\n- **task_class**: llm\n- **foreach**: `items.txt`\n\
         - **command**: `until [ -e go ]; do sleep 0.2; done`\n",
    );
    let items: String = (1..=count).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
    plan
}

#[test]
fn llm_tasks_wait_and_no_model_is_loaded() {
    const TASKS: usize = 40;
    let mut rig = Setup {
        gpus: 3,
        slots: 1,
        ..Setup::default()
    }
    .make();
    let plan = gated(&rig, TASKS);
    // The tasks are there before the agents, and the agents before the brain's decision, so that
    // each line has its cause alone.
    rig.start_brain();
    let batch = rig.submit(&plan);
    rig.wait("all are queued", |rig| {
        rig.list(Place::Queue(Class::Llm)).len() == TASKS
    });
    rig.kill(BRAIN);
    for agent in AGENTS {
        rig.spawn_with(agent, &DEBUG);
    }
    for agent in AGENTS {
        rig.wait_for_match(
            agent,
            &format!(
                r"\[{agent}\] DEBUG No suitable tasks - Queue: \[llm:{TASKS}\], Preferred: \[meta, script, cpu\], Model loaded: false$"
            ),
        );
    }
    rig.start_brain();
    let inserting = rig.wait_for_match(
        BRAIN,
        &format!(
            r"\[brain\] INFO  LLM tasks waiting \({TASKS}\) but no models loaded - inserting 3 load_llm tasks \(gpu-1, gpu-2, gpu-3\): .* on one GPU, .* on three$"
        ),
    );
    for agent in AGENTS {
        let claimed = rig.wait_for_match(
            agent,
            &format!(r"\[{agent}\] INFO  Claimed meta task: {TASK} \(load_llm\)$"),
        );
        let hot = rig.wait_for_match(
            agent,
            &format!(r"\[{agent}\] INFO  .*model ready in \d+(\.\d+)?s - {agent} is now HOT$"),
        );
        // Each takes one load of the three.
        let loads = lines::all(&rig.log(agent), r"Claimed meta task: .*\(load_llm\)");
        assert_eq!(loads.len(), 1, "{loads:?}");
        assert!(
            seconds(&inserting) <= seconds(&claimed) && seconds(&claimed) <= seconds(&hot),
            "{inserting}\n{claimed}\n{hot}"
        );
    }
    rig.wait("all three work", |rig| {
        AGENTS
            .iter()
            .all(|agent| !rig.list(Place::Processing(agent)).is_empty())
    });
    fs::write(plan.join("go"), "").unwrap();
    assert_eq!(rig.wait_batch(&batch), 0);
}

#[test]
fn an_agent_that_cannot_load_is_named_with_its_reason() {
    let mut rig = Setup {
        gpus: 3,
        slots: 1,
        timing: "load_warn = \"2s\"\nidle_warn = \"2s\"\n",
        ..Setup::default()
    }
    .make();
    let plan = gated(&rig, 20);
    rig.stand_in(|state| state.gpus[0].temperature_c = 84);
    rig.start_all();
    let batch = rig.submit(&plan);
    let model = parts::fixture("model");
    let model = model.file_stem().unwrap().to_str().unwrap();
    let said = rig.rigor(&["load", "gpu-1", model]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let line = rig.wait_for_match(
        BRAIN,
        r"\[brain\] WARNING load_llm task available for \d+s but agents \[gpu-1\] still have no model: gpu-1 thermal \(84C >= 80C\)$",
    );
    let age = lines::number(&line, r"available for (\d+)s");
    assert!(age >= Some(2) && age <= Some(10), "{line}");
    let idle = rig.wait_for_match(
        "gpu-1",
        r"\[gpu-1\] INFO  Idle \d+s with \d+ queued: thermal - 84C >= 80C",
    );
    let age = lines::number(&idle, r"Idle (\d+)s");
    assert!(age >= Some(2) && age <= Some(10), "{idle}");
    fs::write(plan.join("go"), "").unwrap();
    assert_eq!(rig.wait_batch(&batch), 0, "the others do it");
}

#[test]
fn two_hundred_tasks_and_three_slots() {
    const TASKS: usize = 200;
    let mut rig = Setup {
        gpus: 3,
        slots: 1,
        ..Setup::default()
    }
    .make();
    let plan = gated(&rig, TASKS);
    rig.start_brain();
    for agent in AGENTS {
        rig.spawn_with(agent, &DEBUG);
    }
    let batch = rig.submit(&plan);
    rig.wait_for_match(
        BRAIN,
        r"\[brain\] INFO  MONITOR: GPUs: 3/3 busy \(hot: 3\), Agents: 3/3 alive, Queue: 197 \(llm:197\), Processing: 3, Stuck: 0$",
    );
    for agent in AGENTS {
        rig.wait_for_match(
            agent,
            &format!(
                r"\[{agent}\] DEBUG Not claiming: slots_full 1/1 \({TASK} for \d+\w+\) - Queue: \[llm:19[789]\]"
            ),
        );
        // The same nothing again and again is one line in half a minute.
        let said = lines::all(&rig.log(agent), "Not claiming: slots_full");
        assert!(said.len() <= 3, "{said:?}");
    }
    let status = rig.status();
    assert_eq!(status["queue"]["total_pending"], 197, "{status}");
    assert_eq!(status["queue"]["stuck"], 0, "{status}");
    fs::write(plan.join("go"), "").unwrap();
    assert_eq!(rig.wait_batch(&batch), 0);
}
