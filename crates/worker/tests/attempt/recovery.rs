//! What a dead agent left is taken back.

use std::fs;

use rigor_exec::recovery::{Recovered, RecoveryLimits, clear_leftovers, recover};
use rigor_queue::name::FileName;
use rigor_queue::presence::{ComponentLock, Role};
use rigor_queue::record::{AttemptRecord, FailureKind, Outcome};
use rigor_queue::records;
use rigor_queue::rig::Place;
use rigor_queue::submit::Durability;
use rigor_queue::task::Class;

use crate::stage::{AGENT, BATCH, PATIENCE, Stage, failure, lives, until};

const WHY: &str = "agent gpu-1 died (its lock is free)";

fn recovered(stage: &Stage, uncharged_attempts: u32) -> Recovered {
    let owner =
        ComponentLock::acquire(&stage.rig, AGENT, Role::Recovering).expect("the agent is dead");
    let limits = RecoveryLimits {
        grace: PATIENCE,
        uncharged_attempts,
        durability: Durability::Default,
    };
    recover(&stage.rig, AGENT, &owner, &stage.containment, limits, WHY).expect("recovered")
}

fn record(stage: &Stage, name: &FileName) -> AttemptRecord {
    records::read(&stage.rig, BATCH, name.id, name.attempt)
        .expect("read")
        .expect("there is one")
}

#[test]
fn a_running_attempt_is_ended_and_requeued_uncharged() {
    let stage = Stage::new();
    let running =
        stage.start(&stage.command("trap '' TERM; echo $$ > pid; while :; do sleep 1; done"));
    let command = stage.pid_in("pid");
    let done = recovered(&stage, 3);
    assert!(!lives(command) && !lives(running.pid()));
    assert!(done.killed >= 2, "{done:?}");
    let next = running.name.next_attempt(false);
    assert_eq!(done.requeued, [(next, "t".to_owned())]);
    assert!(stage.rig.path(Place::Queue(Class::Cpu), &next).exists());
    assert_eq!(stage.rig.count(Place::Processing(AGENT)).expect("count"), 0);
    assert_eq!(
        record(&stage, &running.name).outcome,
        Outcome::Lost {
            reason: WHY.to_owned()
        }
    );

    // It runs as the next attempt.
    let again = stage.launch(stage.claim_queued(&next, Class::Cpu));
    again.terminate("enough").expect("sent");
    assert_eq!(stage.settle(again).attempt, 2);
}

#[test]
fn a_claim_whose_worker_never_started_is_requeued() {
    let stage = Stage::new();
    let held = stage.claim(&stage.command("true"));
    let name = held.name;
    drop(held);
    let done = recovered(&stage, 3);
    assert_eq!((done.killed, done.requeued.len()), (0, 1));
    assert!(
        stage
            .rig
            .path(Place::Queue(Class::Cpu), &name.next_attempt(false))
            .exists()
    );
}

#[test]
fn a_valid_record_is_adopted_and_nothing_runs_twice() {
    let stage = Stage::new();
    let mut running = stage.start(&stage.command("echo once >> count"));
    until("the worker exits", || {
        running.try_wait().expect("wait").is_some()
    });
    // The agent died here, before it moved the task on.
    let done = recovered(&stage, 3);
    assert_eq!(done.adopted, [(running.name, "t".to_owned())]);
    assert!(
        stage
            .rig
            .path(Place::Complete(BATCH), &running.name)
            .exists()
    );
    assert_eq!(record(&stage, &running.name).outcome, Outcome::Succeeded);

    let stage = Stage::new();
    let mut running = stage.start(&stage.command("exit 4"));
    until("the worker exits", || {
        running.try_wait().expect("wait").is_some()
    });
    assert_eq!(recovered(&stage, 3).adopted.len(), 1);
    assert!(stage.rig.path(Place::Retry(BATCH), &running.name).exists());
    assert_eq!(
        failure(&record(&stage, &running.name)).0,
        FailureKind::ExitCode
    );
    // Again finds nothing.
    let done = recovered(&stage, 3);
    assert!(done.adopted.is_empty() && done.requeued.is_empty());
}

#[test]
fn a_torn_record_is_none() {
    let stage = Stage::new();
    let mut running = stage.start(&stage.command("true"));
    until("the worker exits", || {
        running.try_wait().expect("wait").is_some()
    });
    let path = stage.rig.record_path(BATCH, running.spec.id, 1);
    let whole = fs::read(&path).expect("read");
    fs::write(&path, &whole[..whole.len() / 2]).expect("write");
    let done = recovered(&stage, 3);
    assert_eq!((done.adopted.len(), done.requeued.len()), (0, 1));
    assert!(matches!(
        record(&stage, &running.name).outcome,
        Outcome::Lost { .. }
    ));
}

#[test]
fn a_torn_record_is_replaced_by_the_worker_and_by_settling() {
    let stage = Stage::new();
    let held = stage.claim(&stage.command("true"));
    let path = stage.rig.record_path(BATCH, held.spec.id, 1);
    fs::write(&path, "{\"schema\":1,\"sum\":\"").expect("write");
    let settled = stage.settle(stage.launch(held));
    assert_eq!(settled.outcome, Outcome::Succeeded);

    let stage = Stage::new();
    let mut running = stage.start(&stage.command("true"));
    until("the worker exits", || {
        running.try_wait().expect("wait").is_some()
    });
    fs::write(stage.rig.record_path(BATCH, running.spec.id, 1), "").expect("write");
    let name = running.name;
    let settled = stage.settle(running);
    assert_eq!(failure(&settled).0, FailureKind::WorkerLost);
    assert_eq!(record(&stage, &name), settled);
}

/// A power cut may leave the record of a claim that it forgot.
#[test]
fn a_record_of_another_claim_is_none() {
    let stage = Stage::new();
    let running = stage.start(&stage.command("echo $$ > pid; sleep 600"));
    stage.pid_in("pid");
    let other = AttemptRecord {
        nonce: Some("of the claim that was forgotten".to_owned()),
        ..AttemptRecord::without_worker(AGENT, &running.name, &running.spec, Outcome::Succeeded)
    };
    records::replace(&stage.rig, &other).expect("write");
    let why = "its worker has no time for a record";
    running
        .kill(&stage.containment, PATIENCE, why)
        .expect("killed");
    let name = running.name;
    let settled = stage.settle(running);
    assert_eq!(failure(&settled), (FailureKind::Aborted, why));
    assert_eq!(record(&stage, &name), settled);
}

#[test]
fn a_task_that_kills_its_agents_is_charged_in_the_end() {
    let stage = Stage::new();
    let mut name = {
        let held = stage.claim(&stage.command("sleep 600"));
        held.name
    };
    for _ in 0..2 {
        let done = recovered(&stage, 2);
        assert_eq!(done.requeued.len(), 1);
        name = done.requeued[0].0;
        drop(stage.claim_queued(&name, Class::Cpu));
    }
    let done = recovered(&stage, 2);
    assert_eq!(done.charged, [(name, "t".to_owned())]);
    assert!(stage.rig.path(Place::Retry(BATCH), &name).exists());
    let record = record(&stage, &name);
    let (kind, reason) = failure(&record);
    assert_eq!(kind, FailureKind::WorkerLost);
    assert!(
        reason.contains("3 attempts of this task ended with their agent or its device (limit 2)"),
        "{reason}"
    );
}

#[test]
fn without_retries_nothing_runs_twice() {
    let stage = Stage::new();
    let mut spec = stage.command("echo $$ > pid; sleep 600");
    spec.retries = 0;
    let running = stage.start(&spec);
    stage.pid_in("pid");
    let done = recovered(&stage, 3);
    assert_eq!((done.requeued.len(), done.charged.len()), (0, 1));
    assert!(stage.rig.path(Place::Retry(BATCH), &running.name).exists());
}

#[test]
fn what_is_no_task_goes_to_quarantine() {
    let stage = Stage::new();
    let held = stage.claim(&stage.command("true"));
    let path = held.path().to_owned();
    drop(held);
    fs::write(&path, "garbage").expect("write");
    fs::write(path.with_file_name("notes.txt"), "mine").expect("write");
    let done = recovered(&stage, 3);
    assert_eq!(done.quarantined.len(), 2);
    assert_eq!(stage.rig.count(Place::Processing(AGENT)).expect("count"), 0);
    assert!(stage.rig.dir(Place::Quarantine).join("notes.txt").exists());
}

/// An attempt that is in nobody's hands is ended and its groups are removed; one that runs is left.
#[test]
fn groups_of_attempts_that_nobody_runs_are_cleared() {
    let stage = Stage::new();
    let running = stage.start(&stage.command("echo $$ > left; exec sleep 600"));
    let mut spec = stage.command("echo $$ > stays; until [ -e go ]; do sleep 0.01; done");
    spec.id = rigor_queue::name::TaskId::derive(BATCH, "u", None);
    let stays = stage.start(&spec);
    let (gone, lives_on) = (stage.pid_in("left"), stage.pid_in("stays"));
    if stage.containment.attempts().is_empty() {
        println!("skipped: no cgroups here, so nothing is left of them");
    } else {
        assert_eq!(stage.containment.attempts().len(), 2);
        // What a recovery by a program in other cgroups leaves: the file has moved on.
        let file = stage.rig.path(Place::Processing(AGENT), &running.name);
        fs::remove_file(file).expect("remove the file");
        let cleared = clear_leftovers(&stage.rig, &stage.containment, PATIENCE).expect("cleared");
        assert!(
            matches!(&cleared[..], [(stem, killed)] if *stem == running.name.attempt_stem() && *killed >= 2),
            "{cleared:?}"
        );
        assert!(!lives(gone) && lives(lives_on));
        let again = clear_leftovers(&stage.rig, &stage.containment, PATIENCE).expect("cleared");
        assert_eq!(again, []);
    }
    running
        .kill(&stage.containment, PATIENCE, "the end")
        .expect("killed");
    fs::write(stage.file("go"), "").expect("write");
    assert_eq!(stage.settle(stays).outcome, Outcome::Succeeded);
}
