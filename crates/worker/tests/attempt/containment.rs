//! Nothing of an attempt outlives it, and the lease is the worker's alone.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rigor_exec::{Containment, Launch, Tier, fail_unstarted, spawn};
use rigor_queue::record::{FailureKind, Outcome};
use rigor_queue::rig::Place;
use rigor_queue::submit::Durability;
use rustix::process::{Pid, Signal, kill_process};

use crate::stage::{AGENT, BATCH, PATIENCE, Stage, failure, lives, until};

/// A stage on each tier that this machine has.
fn tiers() -> Vec<Stage> {
    let mut stages = vec![Stage::on(Containment::cookie_only)];
    let best = Stage::new();
    match best.containment.tier() {
        Tier::Cgroup { .. } => stages.push(best),
        Tier::Cookie => eprintln!("no writable cgroup v2 here: only the cookie tier is tested"),
    }
    stages
}

fn kill_9(pid: u32) {
    let pid = Pid::from_raw(pid as i32).expect("a pid");
    kill_process(pid, Signal::KILL).expect("it was there");
}

#[test]
fn daemons_die_with_their_command() {
    for stage in tiers() {
        let record = stage.run(&stage.command(
            "setsid -f bash -c 'echo $$ > one; exec sleep 600'
             (env -i setsid bash -c 'trap \"\" TERM HUP; echo $$ > two; while :; do sleep 1; done' &) &
             until [ -s one ] && [ -s two ]; do sleep 0.01; done; echo done",
        ));
        assert_eq!(record.outcome, Outcome::Succeeded, "{record:?}");
        // Both held the output's pipe: the worker must not have waited for them.
        assert!(record.duration_ms < 20_000);
        assert_eq!(stage.output(&record), "done\n");
        for file in ["one", "two"] {
            assert!(
                !lives(stage.pid_in(file)),
                "{:?}: {file} lives",
                stage.containment.tier()
            );
        }
    }
}

#[test]
fn what_outlives_the_shell_by_a_moment_may_finish_its_lines() {
    let stage = Stage::new();
    let record = stage.run(&stage.command("exec > >(sleep 0.05; cat); echo through a filter"));
    assert_eq!(stage.output(&record), "through a filter\n");
}

#[test]
fn the_lease_is_the_workers_and_dies_with_it() {
    for stage in tiers() {
        let running = stage.start(&stage.command("echo $$ > pid; sleep 600"));
        let command = stage.pid_in("pid");
        assert!(stage.is_leased(&running.name));
        kill_9(running.pid());
        until("the lock is free", || !stage.is_leased(&running.name));
        // The command has no copy of it: it lives, and the lock is free.
        assert!(lives(command));
        let record = stage.settle(running);
        let (kind, reason) = failure(&record);
        assert_eq!(kind, FailureKind::WorkerLost);
        assert!(reason.contains("killed by SIGKILL after"), "{reason}");
        assert!(
            !lives(command),
            "{:?}: the command lives",
            stage.containment.tier()
        );
    }
}

#[test]
fn a_lost_worker_leaves_no_process_of_its_tree() {
    for stage in tiers() {
        let running = stage.start(&stage.command(
            "setsid -f bash -c 'echo $$ > one; exec sleep 600'
             bash -c 'echo $$ > two; env -i bash -c \"echo \\$\\$ > four; exec sleep 600\"; true' &
             echo $$ > three; trap '' TERM; wait",
        ));
        let pids = ["one", "two", "three", "four"].map(|file| stage.pid_in(file));
        kill_9(running.pid());
        assert_eq!(failure(&stage.settle(running)).0, FailureKind::WorkerLost);
        for pid in pids {
            assert!(!lives(pid), "{:?}", stage.containment.tier());
        }
    }
}

#[test]
fn killing_an_attempt_takes_worker_and_command() {
    for stage in tiers() {
        let running =
            stage.start(&stage.command("trap '' TERM; echo $$ > pid; while :; do sleep 1; done"));
        let (command, worker) = (stage.pid_in("pid"), running.pid());
        let killed = running
            .kill(&stage.containment, PATIENCE, "stuck for 30m")
            .expect("killed");
        assert!(killed >= 2, "{killed} killed");
        assert!(!lives(command) && !lives(worker));
        let record = stage.settle(running);
        assert_eq!(failure(&record), (FailureKind::Aborted, "stuck for 30m"));
        // Of another attempt nothing is there to be killed.
        let none = stage
            .containment
            .kill_attempt(record.id, 2, PATIENCE)
            .expect("nothing to do");
        assert_eq!(none, 0);
    }
}

#[test]
fn one_attempt_is_killed_and_its_neighbour_lives() {
    for stage in tiers() {
        let first = stage.start(&stage.command("echo $$ > first; sleep 600"));
        let mut spec = stage.command("echo $$ > second; until [ -e go ]; do sleep 0.01; done");
        spec.id = rigor_queue::name::TaskId::derive(BATCH, "u", None);
        let second = stage.start(&spec);
        let (gone, stays) = (stage.pid_in("first"), stage.pid_in("second"));
        first
            .kill(&stage.containment, PATIENCE, "enough")
            .expect("killed");
        assert!(!lives(gone) && lives(stays));
        stage.settle(first);
        fs::write(stage.file("go"), "").expect("write");
        assert_eq!(stage.settle(second).outcome, Outcome::Succeeded);
    }
}

/// A fork bomb that outruns one kill at a time is ended by the kernel, all at once.
#[test]
fn a_swarm_is_ended() {
    for stage in tiers() {
        let mut spec = stage.command(
            "spawn() { for i in 1 2 3 4 5 6 7 8; do (setsid sleep 600 &) & done; }; spawn; spawn; spawn; sleep 600",
        );
        spec.timeout_s = Some(1);
        let started = Instant::now();
        let record = stage.run(&spec);
        assert_eq!(failure(&record).0, FailureKind::Timeout);
        assert!(started.elapsed() < Duration::from_secs(15));
        let left = Command::new("pgrep")
            .args(["-f", "sleep 600"])
            .output()
            .expect("pgrep");
        let cookie = format!("RIGOR_COOKIE={}:{}.a1", stage.rig_id, record.id);
        for pid in String::from_utf8_lossy(&left.stdout).lines() {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&environ).contains(&cookie));
        }
    }
}

#[test]
fn a_worker_that_cannot_start_leaves_the_task_free() {
    for stage in tiers() {
        let held = stage.claim(&stage.command("true"));
        let launch = Launch {
            rig: &stage.rig,
            agent: AGENT,
            held,
            env: Vec::new(),
            containment: &stage.containment,
            worker: &stage.file("no-worker"),
            output_cap_bytes: 1000,
            grace: stage.grace,
            limits: stage.limits,
        };
        let error = spawn(launch).expect_err("there is no such program");
        let rigor_exec::ExecError::NotStarted { name, .. } = &error else {
            panic!("{error}")
        };
        assert!(!stage.is_leased(name));
        let record = fail_unstarted(
            &stage.rig,
            AGENT,
            name,
            FailureKind::Setup,
            &error.to_string(),
            Durability::Default,
        )
        .expect("failed in order");
        assert!(failure(&record).1.contains("no-worker"));
        assert!(stage.rig.path(Place::Retry(BATCH), name).exists());
    }
}
