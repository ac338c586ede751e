//! Rows 1, 2, 3, 7 and 11: every system call of every operation on the queue, killed at and
//! failed.

use std::path::Path;
use std::time::Instant;

use rigor_tests::driver::Operation;
use rigor_tests::sweep;

/// Cases that run at once.
const THREADS: usize = 2;

#[track_caller]
fn swept(operation: Operation) {
    if let Err(why) = sweep::available() {
        return println!("skipped: {why}");
    }
    let began = Instant::now();
    let driver = Path::new(env!("CARGO_BIN_EXE_fault-driver"));
    let swept = sweep::sweep(driver, operation, THREADS);
    let (calls, faults) = swept
        .calls
        .values()
        .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    println!(
        "{operation}: {calls} calls, {faults} faults in {:.1}s: {:?}",
        began.elapsed().as_secs_f64(),
        swept.calls
    );
    assert!(faults > 0, "nothing was failed");
    assert!(swept.wrong.is_empty(), "{}", swept.wrong.join("\n"));
}

#[test]
fn submit() {
    swept(Operation::Submit);
}

#[test]
fn expand() {
    swept(Operation::ExpandFew);
}

#[test]
fn expand_many() {
    swept(Operation::ExpandMany);
}

#[test]
fn release() {
    swept(Operation::Release);
}

#[test]
fn claim() {
    swept(Operation::Claim);
}

#[test]
fn complete() {
    swept(Operation::Complete);
}

#[test]
fn fail() {
    swept(Operation::Fail);
}

#[test]
fn retry() {
    swept(Operation::Retry);
}

#[test]
fn give_up() {
    swept(Operation::GiveUp);
}

#[test]
fn requeue() {
    swept(Operation::Requeue);
}

#[test]
fn recover() {
    // It looks through /proc: with other processes coming and going its calls cannot be counted.
    if sweep::available().is_ok() && sweep::alone().is_none() {
        return println!("skipped: no process namespace of its own here");
    }
    swept(Operation::Recover);
}

#[test]
fn adopt() {
    // As `recover`.
    if sweep::available().is_ok() && sweep::alone().is_none() {
        return println!("skipped: no process namespace of its own here");
    }
    swept(Operation::Adopt);
}

#[test]
fn cancel() {
    swept(Operation::Cancel);
}
