//! Programs that are killed: the work is done all the same, and never twice at the same time.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rigor_queue::name::FileName;
use rigor_queue::record::{AttemptRecord, FailureKind, Outcome};
use rigor_queue::records;
use rigor_queue::rig::{BRAIN, Place};
use rigor_queue::task::Class;
use rigor_tests::journal::{self, Attempt, command, noted, ticking};
use rigor_tests::{Rig, Setup, processes, wait_until};
use rustix::process::Signal;

const RETRY_AT_ONCE: &str = "- **backoff**: 1s..1s\n";

/// The one task that an agent has in hand.
fn in_hand(rig: &Rig, agent: &str) -> Option<FileName> {
    rig.list(Place::Processing(agent)).first().copied()
}

/// Attempts that have noted their start.
fn started(plan: &Path) -> Vec<Attempt> {
    journal::read(plan)
}

fn record(rig: &Rig, batch: &str, name: &FileName, attempt: u32) -> AttemptRecord {
    let record = records::read(&rig.rig, batch, name.id, attempt).unwrap();
    record.unwrap_or_else(|| panic!("no record of attempt {attempt} of {name}"))
}

/// Fault table 28: tasks go on while there is no brain; nothing is released twice.
#[test]
fn the_brain_is_killed_in_the_middle_of_a_batch() {
    let mut rig = Rig::new(3);
    let plan = rig.plan(
        "steps",
        &format!(
            "### first\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n{}\n\
             ### second\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n- **depends_on**: first_{{ITEM.id}}\n{}",
            command(&ticking(2)),
            command(&noted("true")),
        ),
    );
    let items: String = (0..40).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
    rig.start_all();
    let batch = rig.submit(&plan);
    for most in [10, 40] {
        rig.wait("some are done", |_| started(&plan).len() >= most);
        rig.kill(BRAIN);
        let before = started(&plan).len();
        rig.wait("agents go on without a brain", |rig| {
            started(&plan).len() > before || rig.list(Place::Queue(Class::Cpu)).is_empty()
        });
        rig.start_brain();
    }
    assert_eq!(rig.wait_short_batch(&batch), 0);
    let attempts = started(&plan);
    assert_eq!(attempts.len(), 80, "each of 2 x 40 tasks once");
    assert!(
        attempts
            .iter()
            .all(|attempt| attempt.attempt == 1 && attempt.ended)
    );
    assert_eq!(rig.summary(&plan, &batch)["done"], 80);
}

/// Fault table 16: an expansion is there whole or not at all, whenever the brain dies.
#[test]
fn the_brain_is_killed_while_it_expands_ten_thousand_items() {
    const ITEMS: usize = 10_000;
    const ROUNDS: usize = 3;
    // No agents: what is released stays in the queue, where it can be counted.
    let mut rig = Setup {
        gpus: 1,
        rig: "durability = \"process\"",
        ..Setup::default()
    }
    .make();
    let plan = rig.plan(
        "many",
        "### each\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n- **command**: `true {ITEM}`\n",
    );
    let items: String = (0..ITEMS).map(|n| format!("item-{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
    let seed = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .subsec_nanos();
    let mut delays = Vec::new();
    let mut random = seed;
    for round in 1..=ROUNDS {
        rig.submit(&plan);
        let enough = round * ITEMS;
        for _ in 0..4 {
            rig.spawn(BRAIN);
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let delay = Duration::from_millis(u64::from(random >> 16) % 600);
            delays.push(delay.as_millis());
            // The moment is what the case is about, so this sleep waits for nothing.
            std::thread::sleep(delay);
            rig.kill(BRAIN);
        }
        rig.start_brain();
        rig.wait("all are released", |rig| {
            rig.list(Place::Queue(Class::Cpu)).len() >= enough
        });
        rig.kill(BRAIN);
    }
    println!("seed {seed}, killed after {delays:?} ms");
    let mut names = rig.list(Place::Queue(Class::Cpu));
    assert_eq!(names.len(), ROUNDS * ITEMS);
    assert!(names.iter().all(|name| name.attempt == 1));
    names.sort_by_key(|name| name.id);
    names.dedup_by_key(|name| name.id);
    assert_eq!(names.len(), ROUNDS * ITEMS, "an item is there twice");
    let mut sequences: Vec<u64> = names.iter().map(|name| name.sequence).collect();
    sequences.sort_unstable();
    sequences.dedup();
    assert_eq!(sequences.len(), ROUNDS * ITEMS, "a number was given twice");
    rig.start_brain();
    // A moment for a brain that would release something twice: it has read every lane when it
    // has looked at its agents.
    rig.wait_for_line(BRAIN, "MONITOR");
    assert_eq!(rig.list(Place::Queue(Class::Cpu)).len(), ROUNDS * ITEMS);
}

/// Fault table 4, and the first of the three runs that the logs must tell.
#[test]
fn an_agent_is_killed_in_the_middle_of_a_task() {
    let mut rig = Rig::new(2);
    // The first attempt would take a minute, the second ends at once.
    let work = "if [ \"$RIGOR_ATTEMPT\" = 1 ]; then for n in $(seq 600); do sleep 0.1; note tick; done; fi";
    let plan = rig.plan(
        "long",
        &format!(
            "### long\n\n- **task_class**: cpu\n{}",
            command(&noted(work))
        ),
    );
    rig.start_all();
    let batch = rig.submit(&plan);
    rig.wait("it runs", |_| !started(&plan).is_empty());
    let first = started(&plan).remove(0);
    let other = if first.agent == "gpu-1" {
        "gpu-2"
    } else {
        "gpu-1"
    };
    let name = in_hand(&rig, &first.agent).expect("the agent has it in hand");
    assert!(!rig.processes_of(name.id, 1).is_empty());

    rig.kill(&first.agent);
    let died = Instant::now();
    let line = format!(
        "Agent {} is dead (its lock is free): requeued 1 task, killed ",
        first.agent
    );
    wait_until(Duration::from_secs(5), &line, || {
        rig.log(BRAIN).contains(&line)
    });
    println!("dead and requeued after {:?}", died.elapsed());
    assert_eq!(
        rig.processes_of(name.id, 1),
        [],
        "processes of the first attempt"
    );
    assert_eq!(rig.wait_short_batch(&batch), 0);

    let attempts = started(&plan);
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    assert_eq!(
        (attempts[1].attempt, attempts[1].agent.as_str()),
        (2, other)
    );
    assert!(!attempts[0].ended && attempts[1].ended);
    assert!(matches!(
        record(&rig, &batch, &name, 1).outcome,
        Outcome::Lost { .. }
    ));
    let complete = rig.list(Place::Complete(&batch));
    let last = complete.iter().find(|done| done.id == name.id).unwrap();
    assert_eq!(
        (last.attempt, last.charged),
        (2, 0),
        "a death is not charged to the task"
    );

    // The agent comes back and works.
    let again = rig.plan(
        "again",
        &format!(
            "### pinned\n\n- **task_class**: cpu\n- **on**: {}\n{}",
            first.agent,
            command(&noted("true"))
        ),
    );
    rig.start_agent(&first.agent);
    let batch = rig.submit(&again);
    assert_eq!(rig.wait_short_batch(&batch), 0);
    assert_eq!(started(&again)[0].agent, first.agent);
}

/// Fault table 5.
#[test]
fn a_worker_is_killed() {
    let mut rig = Rig::new(1);
    let work = "if [ \"$RIGOR_ATTEMPT\" = 1 ]; then for n in $(seq 600); do sleep 0.1; note tick; done; fi";
    let plan = rig.plan(
        "long",
        &format!(
            "### long\n\n- **task_class**: script\n{RETRY_AT_ONCE}{}",
            command(&noted(work))
        ),
    );
    rig.start_all();
    let batch = rig.submit(&plan);
    rig.wait("it runs", |_| !started(&plan).is_empty());
    let name = in_hand(&rig, "gpu-1").unwrap();
    let worker = rig.processes_of(name.id, 1);
    let worker = worker
        .iter()
        .find(|process| process.command.contains("/worker "));
    processes::send(worker.expect("the attempt has a worker").pid, Signal::KILL);
    assert_eq!(rig.wait_short_batch(&batch), 0);

    let first = record(&rig, &batch, &name, 1);
    let Outcome::Failed {
        kind: FailureKind::WorkerLost,
        reason,
    } = &first.outcome
    else {
        panic!("{:?}", first.outcome);
    };
    assert!(reason.contains("worker lost"), "{reason}");
    assert_eq!(record(&rig, &batch, &name, 2).outcome, Outcome::Succeeded);
    let attempts = started(&plan);
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    assert_eq!(rig.summary(&plan, &batch)["retries"], 1);
    let status = rig.status();
    assert_eq!(
        status["agents"][0]["processing"].as_array().unwrap().len(),
        0
    );
}

/// Fault table 6, in small: agents and workers die at random moments.
#[test]
fn agents_and_workers_are_killed_at_random_moments() {
    const ITEMS: usize = 60;
    let mut rig = Setup {
        gpus: 3,
        limits: "uncharged_attempts = 100",
        ..Setup::default()
    }
    .make();
    let plan = rig.plan(
        "storm",
        &format!(
            "### each\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n- **retries**: 50\n{RETRY_AT_ONCE}{}",
            command(&ticking(3)),
        ),
    );
    let items: String = (0..ITEMS).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
    rig.start_all();
    let batch = rig.submit(&plan);
    let seed = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .subsec_nanos();
    let mut random = seed;
    for round in 0..12 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(Duration::from_millis(u64::from(random >> 16) % 300));
        let agent = format!("gpu-{}", round % 3 + 1);
        if round % 4 == 3 {
            let workers: Vec<_> = rig
                .processes()
                .into_iter()
                .filter(|one| one.command.contains("/worker "))
                .collect();
            if let Some(worker) = workers.get(round % workers.len().max(1)) {
                processes::send(worker.pid, Signal::KILL);
            }
        } else {
            rig.kill(&agent);
            rig.start_agent(&agent);
        }
    }
    println!("seed {seed}");
    assert_eq!(rig.wait_short_batch(&batch), 0);
    let mut tasks: Vec<String> = started(&plan)
        .into_iter()
        .filter(|one| one.ended)
        .map(|one| one.task)
        .collect();
    tasks.sort();
    tasks.dedup();
    assert_eq!(tasks.len(), ITEMS);
    assert_eq!(rig.summary(&plan, &batch)["done"], ITEMS);
}

/// SIGTERM drains: what runs ends, what is queued stays, and a restart goes on.
#[test]
fn everything_is_terminated_in_the_middle_of_a_batch() {
    const ITEMS: usize = 40;
    let mut rig = Rig::new(3);
    let plan = rig.plan(
        "drain",
        &format!(
            "### each\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n{}",
            command(&ticking(3))
        ),
    );
    let items: String = (0..ITEMS).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
    rig.start_all();
    let batch = rig.submit(&plan);
    rig.wait("it runs", |_| started(&plan).len() >= 8);
    let names = [BRAIN, "gpu-1", "gpu-2", "gpu-3"];
    names.iter().for_each(|name| rig.terminate(name));
    for name in names {
        let status = rig.ended(name);
        assert!(status.success(), "{name}: {status}");
    }
    assert_eq!(rig.processes(), []);
    let drained = started(&plan);
    assert!(
        drained.iter().all(|attempt| attempt.ended),
        "all that ran came to its end: {drained:?}"
    );
    assert!(
        drained.len() < ITEMS,
        "the batch was too short for this case"
    );
    for agent in &names[1..] {
        assert!(rig.list(Place::Processing(agent)).is_empty());
        assert!(rig.log(agent).contains("shutting down - completed "));
    }
    rig.start_all();
    assert_eq!(rig.wait_short_batch(&batch), 0);
    let attempts = started(&plan);
    assert_eq!(attempts.len(), ITEMS);
    assert!(
        attempts.iter().all(|attempt| attempt.attempt == 1),
        "nothing was done twice"
    );
}

/// Fault table 17.
#[test]
fn a_second_brain_and_a_second_agent_of_the_same_name_exit_at_once() {
    let mut rig = Rig::new(1);
    rig.start_all();
    for name in [BRAIN, "gpu-1"] {
        let started = Instant::now();
        let said = rig.output(rig.component(name));
        assert_eq!(said.code, 1, "{name}: {}", said.stderr);
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "{name} took {:?}",
            started.elapsed()
        );
        let pid = format!("pid {}", rig.pid(name));
        assert!(
            said.stderr.contains(&pid),
            "{name} does not name {pid}: {}",
            said.stderr
        );
    }
    // The first ones are not disturbed.
    let plan = rig.plan(
        "still",
        "### works\n\n- **task_class**: cpu\n- **command**: `true`\n",
    );
    let batch = rig.submit(&plan);
    assert_eq!(rig.wait_short_batch(&batch), 0);
}
