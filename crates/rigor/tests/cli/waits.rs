use std::process::Stdio;
use std::time::{Duration, Instant};

use rigor_queue::lane::Move;
use rigor_queue::presence::{ComponentLock, Role};
use rigor_queue::rig::BRAIN;
use rigor_queue::task::Class;

use crate::hand_made::{HandMade, until};

#[test]
fn a_wait_ends_with_what_became_of_the_batch() {
    for (step, code, word) in [
        (Move::Complete, 0, "complete"),
        (Move::CloseFailed, 1, "failed"),
        (Move::CloseCancelled, 3, "cancelled"),
    ] {
        let made = HandMade::new();
        let _brain = ComponentLock::acquire(&made.rig, BRAIN, Role::Running).unwrap();
        let (batch, plan) = made.running_batch();
        let mut waiting = made
            .command(&["wait", &batch])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        assert!(waiting.try_wait().unwrap().is_none());
        plan.close(&made.rig, step).unwrap();
        let mut status = None;
        until("the wait ends", || {
            status = waiting.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(status.unwrap().code(), Some(code), "{word}");
        // A batch that is over needs neither a brain nor patience.
        made.rigor(&["wait", &batch]).exits(code).says(word);
        let json = made.rigor(&["wait", &batch, "--json"]).exits(code).json();
        assert_eq!(json["batch"]["state"], word);
    }
}

#[test]
fn without_a_brain_a_wait_ends_at_once_and_says_so() {
    let made = HandMade::new();
    made.plan();
    let done = made
        .rigor(&["submit", "plan", "--wait"])
        .exits(4)
        .says("rigor up");
    assert!(done.line().starts_with("video-tags-"));
    made.rigor(&["wait", "video"])
        .exits(4)
        .says("The brain is not running");
    made.rigor(&["wait", "vidoe"])
        .exits(1)
        .says("did you mean video-tags-");
}

#[test]
fn the_end_names_what_failed() {
    let made = HandMade::new();
    let (batch, plan) = made.running_batch();
    let names = made.queued(&batch, "tag", &["v1"]);
    let held = made.claim(Class::Cpu, &names[0], "gpu-1");
    made.fail(held, "exit code 3: no such file");
    plan.close(&made.rig, Move::CloseFailed).unwrap();
    made.rigor(&["wait", &batch])
        .exits(1)
        .says("tag_v1: exit code 3: no such file")
        .says("0 of 1 done, 1 failed");
}

#[test]
fn a_run_that_waits_prints_what_the_command_prints() {
    let made = HandMade::new();
    let _brain = ComponentLock::acquire(&made.rig, BRAIN, Role::Running).unwrap();
    let command = made.command(&["run", "--wait", "--name", "greet", "--", "echo", "hi"]);
    let running = std::thread::spawn(move || crate::hand_made::ran(command));
    let mut batch = String::new();
    until("the batch is submitted", || {
        let json = made.rigor(&["status", "--json"]).ok().json();
        batch = json["batches"][0]["id"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        !batch.is_empty()
    });
    let plan = made.take_up(&batch);
    let names = made.queued(&batch, "greet", &["only"]);
    let counts = serde_json::json!({"id": batch, "plan": "greet", "state": "running", "total": 1});
    let held = made.claim(Class::Cpu, &names[0], "gpu-1");
    std::fs::write(made.rig.output_path(&batch, names[0].id, 1), "hi\n").unwrap();
    std::fs::create_dir_all(made.rig.brain_dir().join("batches")).unwrap();
    std::fs::write(
        made.rig.brain_dir().join(format!("batches/{batch}.json")),
        counts.to_string(),
    )
    .unwrap();
    // Long enough to tell that following a task does not delay seeing the end of its batch.
    std::thread::sleep(Duration::from_millis(600));
    made.complete(held);
    plan.close(&made.rig, Move::Complete).unwrap();
    let closed = Instant::now();
    let done = running.join().unwrap().ok();
    assert!(
        closed.elapsed() < Duration::from_secs(5),
        "{:?}",
        closed.elapsed()
    );
    assert_eq!(done.stdout, "hi\n");
    assert!(done.stderr.contains(&batch));
}
