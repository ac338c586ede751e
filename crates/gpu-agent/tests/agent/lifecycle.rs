use std::fs;
use std::path::Path;

use rigor_queue::heartbeat::{Health, Refusal};
use rigor_queue::presence;
use rigor_queue::record::Outcome;
use rigor_queue::records;
use rigor_queue::rig::Place;
use rigor_queue::task::Class;
use rustix::process::Signal;

use crate::rig::{BATCH, TestRig};

const ONE_SLOT: &str = "[limits]\ncpu_slots = 1\n";

#[test]
fn sigterm_finishes_what_runs_and_claims_nothing_more() {
    let rig = TestRig::new(0, ONE_SLOT);
    let first = rig.run(Class::Cpu, "first", "until [ -e go ]; do sleep 0.05; done");
    rig.run(Class::Cpu, "second", "true");
    let mut agent = rig.agent("cpu-1");
    rig.wait_for_line("cpu-1", &format!("Spawned worker {}", first.id.short()));
    agent.terminate();
    rig.wait("it drains", || {
        rig.heartbeat("cpu-1")
            .is_some_and(|beat| beat.health == Health::Draining)
    });
    fs::write(rig.scratch().join("go"), "").unwrap();
    assert!(agent.ended().success());
    assert_eq!(rig.complete(), 1);
    assert_eq!(rig.count(Place::Queue(Class::Cpu)), 1);
    let log = rig.log("cpu-1");
    assert!(
        log.contains("INFO  Draining: SIGTERM received; 1 running tasks are finished first"),
        "{log}"
    );
    assert!(
        log.trim_end()
            .ends_with("INFO  GPU cpu-1 shutting down - completed 1, failed 0"),
        "{log}"
    );
    let before_last = log.lines().rev().nth(1).unwrap_or_default();
    assert!(
        before_last.ends_with("INFO  Stopped: SIGTERM received"),
        "{log}"
    );
    assert_eq!(presence::is_held(&rig.rig, "cpu-1").unwrap(), Some(false));
}

#[test]
fn a_second_sigterm_stops_at_once_and_gives_the_task_back() {
    let rig = TestRig::new(0, ONE_SLOT);
    let name = rig.run(Class::Cpu, "endless", "sleep 600");
    let mut agent = rig.agent("cpu-1");
    rig.wait_for_line("cpu-1", "Spawned worker");
    agent.terminate();
    rig.wait_for_line("cpu-1", "Draining:");
    agent.terminate();
    assert!(agent.ended().success());
    let next = name.next_attempt(false);
    assert!(
        rig.rig.path(Place::Queue(Class::Cpu), &next).exists(),
        "{}",
        rig.log("cpu-1")
    );
    assert!(matches!(rig.record(&name).outcome, Outcome::Lost { .. }));
}

#[test]
fn an_agent_that_was_killed_takes_back_its_tasks_when_it_starts_again() {
    let rig = TestRig::new(0, ONE_SLOT);
    let name = rig.run(
        Class::Cpu,
        "t",
        "echo $RIGOR_ATTEMPT >> attempts; [ $RIGOR_ATTEMPT = 2 ] || sleep 600",
    );
    let mut agent = rig.agent("cpu-1");
    rig.wait("the first attempt", || {
        rig.scratch().join("attempts").exists()
    });
    agent.signal(Signal::KILL);
    agent.ended();
    drop(agent);
    let _again = rig.agent("cpu-1");
    rig.wait("the second attempt", || rig.complete() == 1);
    assert_eq!(
        fs::read_to_string(rig.scratch().join("attempts")).unwrap(),
        "1\n2\n"
    );
    assert!(matches!(rig.record(&name).outcome, Outcome::Lost { .. }));
    let done = rig.rig.list(Place::Complete(BATCH)).unwrap().names[0];
    assert_eq!((done.attempt, done.charged), (2, 0));
}

#[test]
fn a_claim_without_a_worker_is_taken_back_and_a_durable_result_is_not_run_again() {
    for (point, attempts) in [("claimed", "2\n"), ("committed", "1\n")] {
        let rig = TestRig::new(0, ONE_SLOT);
        rig.run(Class::Cpu, "t", "echo $RIGOR_ATTEMPT >> attempts");
        let mut agent = rig.start("cpu-1", &[], &[("RIGOR_CRASH_POINT", point)]);
        assert_eq!(agent.ended().code(), None, "killed at {point}");
        assert_eq!(rig.count(Place::Processing("cpu-1")), 1, "{point}");
        drop(agent);
        let _again = rig.agent("cpu-1");
        rig.wait(point, || rig.complete() == 1);
        assert_eq!(
            fs::read_to_string(rig.scratch().join("attempts")).unwrap(),
            attempts,
            "{point}"
        );
    }
}

#[test]
fn a_panic_leaves_the_crashed_line_with_its_backtrace_and_the_counts() {
    for point in ["panic:claimed", "panic:committed"] {
        let rig = TestRig::new(0, ONE_SLOT);
        rig.run(Class::Cpu, "t", "true");
        let mut agent = rig.start("cpu-1", &[], &[("RIGOR_CRASH_POINT", point)]);
        assert_eq!(agent.ended().code(), Some(1), "{point}");
        let log = rig.log("cpu-1");
        assert!(
            log.contains("ERROR GPU agent crashed: RIGOR_CRASH_POINT asks for a panic at"),
            "{log}"
        );
        assert!(
            log.contains("rigor_queue::crash::point"),
            "no backtrace in\n{log}"
        );
        let last = log.lines().last().unwrap();
        assert!(
            last.ends_with("INFO  GPU cpu-1 shutting down - completed 0, failed 0"),
            "{log}"
        );
    }
}

#[test]
fn attempts_never_overlap_and_no_task_is_lost_while_agents_are_killed() {
    const TASKS: usize = 30;
    let rig = TestRig::new(0, "[limits]\ncpu_slots = 3\n");
    for n in 0..TASKS {
        // The kernel frees the lock with the attempt's last process.
        let command =
            "exec 9>lock_$RIGOR_TASK_ID; flock -n 9 || echo $RIGOR_TASK_ID >> overlaps; sleep 0.2";
        rig.run(Class::Cpu, &format!("t_{n}"), command);
    }
    let names = ["host-1", "host-2", "host-3"];
    let start = |name: &str| rig.agent_with(name, &["--cpu-only"]);
    let mut agents = names.map(start);
    for round in 0..9 {
        let victim = &mut agents[round % names.len()];
        let spawned = rig.log(&victim.name).matches("Spawned worker").count();
        rig.wait("it is at work, or all is done", || {
            rig.log(&victim.name).matches("Spawned worker").count() > spawned
                || rig.complete() == TASKS
        });
        victim.signal(Signal::KILL);
        victim.ended();
        *victim = start(names[round % names.len()]);
    }
    rig.wait("all complete", || rig.complete() == TASKS);
    assert!(
        !rig.scratch().join("overlaps").exists(),
        "attempts of one task ran at the same time"
    );
    assert_eq!(rig.count(Place::Queue(Class::Cpu)), 0);
    assert_eq!(rig.count(Place::Retry(BATCH)), 0);
    let logs: String = names.iter().map(|name| rig.log(name)).collect();
    assert!(
        logs.contains("WARNING Requeued t_"),
        "nothing was cut short:\n{logs}"
    );
}

#[test]
fn an_agent_with_nothing_to_claim_sleeps() {
    let rig = TestRig::new(1, "[timing]\nheartbeat_every = \"30s\"\n");
    rig.run(Class::Llm, "a", "true");
    let mut large = rig.spec(Class::Cpu, "large", "true");
    large.cpus = 4000;
    rig.queue(&large);
    let agent = rig.agent("gpu-1");
    rig.wait_for_line("gpu-1", "Not claiming: cpu_slots_full 0/");
    let wakes = || {
        let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    let before = wakes();
    std::thread::sleep(std::time::Duration::from_millis(700));
    let woken = wakes() - before;
    assert!(
        woken < 10,
        "woken {woken} times in 0.7 s with nothing to do"
    );
}

#[test]
fn a_worker_that_is_killed_frees_its_slot_and_is_a_failure() {
    let rig = TestRig::new(0, ONE_SLOT);
    let name = rig.run(Class::Cpu, "t", "kill -9 $PPID; sleep 600");
    rig.run(Class::Cpu, "next", "true");
    let _agent = rig.agent("cpu-1");
    rig.wait("the next one", || rig.complete() == 1);
    rig.wait("the killed one", || rig.count(Place::Retry(BATCH)) == 1);
    let reason = rig.record(&name).outcome.reason().unwrap().to_owned();
    assert!(
        reason.contains("worker lost") || reason.contains("SIGKILL"),
        "{reason}"
    );
}

#[test]
fn a_second_agent_of_the_same_name_exits_and_names_the_first() {
    let rig = TestRig::new(0, "");
    let first = rig.agent("cpu-1");
    rig.wait_for_line("cpu-1", "GPU agent cpu-1 starting");
    let mut second = rig.agent("cpu-1");
    assert_eq!(second.ended().code(), Some(1));
    let said = second.stderr();
    assert!(said.contains(&format!("pid {}", first.pid())), "{said}");
}

#[test]
fn a_fatal_error_leaves_the_crashed_line_and_the_counts() {
    let rig = TestRig::new(0, "");
    // A copy without a worker beside it cannot run tasks.
    let alone = rig.scratch().join("gpu-agent");
    fs::copy(env!("CARGO_BIN_EXE_gpu-agent"), &alone).unwrap();
    let mut command = std::process::Command::new(&alone);
    let output = command
        .arg("cpu-1")
        .arg("--rig")
        .arg(rig.root())
        .env("PATH", "")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = rig.log("cpu-1");
    let lines: Vec<&str> = log.lines().collect();
    assert!(
        lines[0].contains("ERROR GPU agent crashed: no `worker` beside"),
        "{log}"
    );
    assert!(
        lines
            .last()
            .unwrap()
            .ends_with("INFO  GPU cpu-1 shutting down - completed 0, failed 0"),
        "{log}"
    );
}

#[test]
fn an_unknown_name_is_answered_with_the_nearest() {
    let rig = TestRig::new(1, "");
    let mut agent = rig.agent("gpu-11");
    assert_eq!(agent.ended().code(), Some(1));
    let said = agent.stderr();
    assert!(said.contains("the nearest is \"gpu-1\""), "{said}");
    let mut cpu_only = rig.agent_with("host-9", &["--cpu-only"]);
    rig.wait_for_line("host-9", "GPU agent initialized: host-9 (no GPU)");
    // From this line on it listens to signals.
    rig.wait_for_line("host-9", "GPU agent host-9 starting");
    cpu_only.terminate();
    assert!(cpu_only.ended().success());
}

#[test]
fn a_paused_agent_claims_nothing_until_it_is_resumed() {
    let rig = TestRig::new(
        0,
        "[timing]\nheartbeat_every = \"100ms\"\nidle_warn = \"300ms\"\n",
    );
    let _agent = rig.agent("cpu-1");
    rig.wait_for_line("cpu-1", "Queue empty");
    presence::send(&rig.rig, "cpu-1", "pause", "").unwrap();
    rig.wait("it is paused", || {
        rig.heartbeat("cpu-1")
            .is_some_and(|beat| beat.health == Health::Paused)
    });
    rig.run(Class::Cpu, "t", "true");
    rig.wait("it says why", || {
        rig.heartbeat("cpu-1")
            .is_some_and(|beat| beat.idle.is_some_and(|it| it.code == Refusal::Paused))
    });
    rig.wait_for_line(
        "cpu-1",
        "Not claiming: paused paused by the operator - Queue: [cpu:1]",
    );
    rig.wait_for_line(
        "cpu-1",
        "s with 1 queued: paused - paused by the operator. Override: rigor resume cpu-1",
    );
    assert_eq!(rig.count(Place::Queue(Class::Cpu)), 1);
    presence::unsend(&rig.rig, "cpu-1", "pause").unwrap();
    rig.wait("it runs", || rig.complete() == 1);
}

#[test]
fn the_stop_signal_ends_the_agent() {
    let rig = TestRig::new(0, "");
    let mut agent = rig.agent("cpu-1");
    rig.wait_for_line("cpu-1", "Queue empty");
    presence::send(&rig.rig, "cpu-1", "stop", "").unwrap();
    assert!(agent.ended().success());
    assert!(presence::signals(&rig.rig, "cpu-1").unwrap().is_empty());
}

#[test]
fn a_drained_agent_takes_nothing_more_until_it_is_resumed_and_still_ends_in_order() {
    let rig = TestRig::new(0, "");
    let mut agent = rig.agent("cpu-1");
    rig.run(Class::Cpu, "first", "sleep 1");
    rig.wait_for_line("cpu-1", "Claimed cpu task");
    presence::send(&rig.rig, "cpu-1", "drain", "").unwrap();
    rig.wait("it is draining", || {
        rig.heartbeat("cpu-1")
            .is_some_and(|beat| beat.health == Health::Draining)
    });
    rig.run(Class::Cpu, "second", "true");
    rig.wait("what ran is done", || rig.complete() == 1);
    rig.wait("it says why", || {
        rig.heartbeat("cpu-1")
            .is_some_and(|beat| beat.idle.is_some_and(|it| it.code == Refusal::Draining))
    });
    assert_eq!(rig.count(Place::Queue(Class::Cpu)), 1);
    presence::unsend(&rig.rig, "cpu-1", "drain").unwrap();
    rig.wait("the next one runs", || rig.complete() == 2);
    // An operator's drain is not a first SIGTERM: the first one still lets what runs end.
    rig.run(Class::Cpu, "third", "sleep 1");
    rig.wait("it runs", || rig.count(Place::Processing("cpu-1")) == 1);
    presence::send(&rig.rig, "cpu-1", "drain", "").unwrap();
    rig.wait_for_line("cpu-1", "Taking nothing more");
    agent.terminate();
    assert!(agent.ended().success());
    assert_eq!(rig.complete(), 3);
}

#[test]
fn a_lane_that_cannot_be_written_is_named_and_tried_again_slowly() {
    let rig = TestRig::new(0, "");
    let _agent = rig.agent("cpu-1");
    rig.wait_for_line("cpu-1", "Queue empty");
    let lane = rig.rig.dir(Place::Processing("cpu-1"));
    fs::remove_dir(&lane).unwrap();
    fs::write(&lane, "in the way").unwrap();
    rig.run(Class::Cpu, "t", "true");
    rig.wait("it is unhealthy", || {
        rig.heartbeat("cpu-1")
            .is_some_and(|beat| beat.health == Health::Quarantined)
    });
    let reason = rig.heartbeat("cpu-1").unwrap().health_reason.unwrap();
    assert!(
        reason.contains("open ") && reason.contains("tasks/processing/cpu-1"),
        "{reason}"
    );
    fs::remove_file(&lane).unwrap();
    fs::create_dir(&lane).unwrap();
    rig.wait("it goes on", || rig.complete() == 1);
    let log = rig.log("cpu-1");
    let tries = log.matches("Attempting claim").count();
    assert!(tries <= 5, "{tries} tries: a hot loop");
    assert!(log.contains("INFO  Claiming again"), "{log}");
}

#[test]
fn without_its_worker_an_agent_gives_tasks_back_and_pauses() {
    let rig = TestRig::new(0, "");
    let agent = Path::new(env!("CARGO_BIN_EXE_gpu-agent"));
    // Only there are hard links to both sure to be possible.
    let dir = tempfile::tempdir_in(agent.parent().unwrap()).unwrap();
    let programs = ["gpu-agent", "worker"].map(|program| dir.path().join(program));
    crate::rig::build_worker();
    for program in &programs {
        fs::hard_link(agent.with_file_name(program.file_name().unwrap()), program).unwrap();
    }
    let _agent = rig.start_program(&programs[0], "cpu-1", &[], &[]);
    rig.wait_for_line("cpu-1", "Queue empty");
    fs::remove_file(&programs[1]).unwrap();
    let names: Vec<_> = (0..4)
        .map(|n| rig.run(Class::Cpu, &format!("t_{n}"), "true"))
        .collect();
    rig.wait_for_line("cpu-1", "ERROR Claiming nothing: start the worker ");
    rig.wait("it is unhealthy", || {
        rig.heartbeat("cpu-1").is_some_and(|beat| {
            beat.health == Health::Quarantined
                && beat
                    .health_reason
                    .is_some_and(|why| why.contains("start the worker "))
        })
    });
    // A second try fails too, and is followed by a longer wait.
    rig.wait("the second try", || {
        rig.log("cpu-1").matches("could not be started").count() >= 2
    });
    assert_eq!(rig.count(Place::Retry(BATCH)), 0);
    let log = rig.log("cpu-1");
    assert!(log.matches("Attempting claim").count() <= 4, "{log}");
    let given_back: Vec<_> = names
        .iter()
        .filter_map(|name| records::read(&rig.rig, BATCH, name.id, name.attempt).unwrap())
        .collect();
    assert!(!given_back.is_empty());
    for record in given_back {
        assert!(matches!(record.outcome, Outcome::Lost { .. }), "{record:?}");
    }
    fs::hard_link(agent.with_file_name("worker"), &programs[1]).unwrap();
    rig.wait("it goes on", || rig.complete() == 4);
    assert!(rig.log("cpu-1").contains("INFO  Claiming again"));
}

#[test]
fn a_result_that_cannot_be_written_waits_and_stops_claims() {
    let rig = TestRig::new(0, ONE_SLOT);
    let attempts = rig.rig.attempts_dir(BATCH);
    let aside = attempts.with_file_name("aside");
    let (there, away) = (attempts.display(), aside.display());
    let name = rig.run(
        Class::Cpu,
        "t",
        &format!("mv {there} {away} && touch {there}"),
    );
    let _agent = rig.agent("cpu-1");
    rig.wait("it is in trouble", || {
        rig.heartbeat("cpu-1")
            .is_some_and(|beat| beat.idle.is_none() && beat.health == Health::Quarantined)
    });
    let reason = rig.heartbeat("cpu-1").unwrap().health_reason.unwrap();
    assert!(reason.contains("attempts/b1"), "{reason}");
    rig.run(Class::Cpu, "next", "true");
    // Two further tries, each of which fails.
    rig.wait("it tries again", || {
        rig.heartbeat("cpu-1")
            .is_some_and(|beat| beat.sequence > 15)
    });
    assert_eq!(rig.count(Place::Processing("cpu-1")), 1);
    assert_eq!(rig.count(Place::Queue(Class::Cpu)), 1);
    fs::remove_file(&attempts).unwrap();
    fs::rename(&aside, &attempts).unwrap();
    rig.wait("the result is moved on", || {
        rig.count(Place::Processing("cpu-1")) == 0 || rig.complete() > 0
    });
    rig.wait("the next one runs", || {
        rig.complete() >= 1 && rig.count(Place::Queue(Class::Cpu)) == 0
    });
    rig.wait("nothing is left", || {
        rig.complete() + rig.count(Place::Retry(BATCH)) == 2
    });
    assert!(rig.record(&name).attempt == 1);
}

#[test]
fn the_log_level_changes_at_run_time() {
    let rig = TestRig::new(0, "");
    let _agent = rig.agent("cpu-1");
    rig.wait_for_line("cpu-1", "Queue empty");
    presence::send(&rig.rig, "cpu-1", "log-level", r#"{"level":"info"}"#).unwrap();
    rig.wait_for_line("cpu-1", "Log level is now INFO");
    presence::unsend(&rig.rig, "cpu-1", "log-level").unwrap();
    rig.wait_for_line("cpu-1", "Log level is now DEBUG");
}
