//! Row 8: the power is cut after each step.

use std::fs;
use std::path::Path;

use rigor_tests::driver::Operation;
use rigor_tests::mounts::{self, Image, Namespace};
use rigor_tests::sweep;

/// Holds a rig and the journal of an ext4.
const IMAGE_MB: u64 = 64;

#[track_caller]
fn cut(test: &str, operations: &[Operation]) {
    if let Err(why) = sweep::available() {
        return println!("skipped: {why}");
    }
    match mounts::enter(&format!("power::{test}"), None) {
        Namespace::Done => return,
        Namespace::Unable(why) => return println!("skipped: {why}"),
        Namespace::Inside => {}
    }
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("disk");
    fs::create_dir(&dir).unwrap();
    let image = match Image::mount(&scratch.path().join("image"), &dir, IMAGE_MB) {
        Ok(image) => image,
        Err(why) => return println!("skipped: no file system whose power can be cut: {why}"),
    };
    let driver = Path::new(env!("CARGO_BIN_EXE_fault-driver"));
    let mut wrong = Vec::new();
    for operation in operations {
        let place = dir.join(operation.as_str());
        fs::create_dir(&place).unwrap();
        let swept = sweep::sweep_power(driver, *operation, &image, &place);
        let cuts: usize = swept.calls.values().map(|(_, faults)| faults + 1).sum();
        println!("{operation}: {cuts} power cuts");
        assert!(cuts > 1, "no power was cut");
        wrong.extend(swept.wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_submission_survives_or_was_never_there() {
    cut(
        "a_submission_survives_or_was_never_there",
        &[Operation::Submit],
    );
}

#[test]
fn an_expansion_survives_or_was_never_there() {
    cut(
        "an_expansion_survives_or_was_never_there",
        &[Operation::ExpandFew, Operation::ExpandMany],
    );
}

#[test]
fn a_result_survives_or_the_task_runs_again() {
    cut(
        "a_result_survives_or_the_task_runs_again",
        &[Operation::Complete, Operation::Fail, Operation::Adopt],
    );
}

#[test]
fn no_move_loses_its_task() {
    use Operation::{Cancel, Claim, GiveUp, Recover, Release, Requeue, Retry};
    cut(
        "no_move_loses_its_task",
        &[Release, Claim, Retry, GiveUp, Requeue, Recover, Cancel],
    );
}
