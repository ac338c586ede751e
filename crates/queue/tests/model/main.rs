//! The queue protocol, checked exhaustively at small scope: two agents, the brain, one or two
//! tasks, their workers, a cancellation, and any process killed after any step.
//!
//! The moves, and who may make them holding what, are [`rigor_queue::lane::transition`], which the
//! code itself uses. The order of the steps in each procedure is written down here once more
//! (`steps.rs`), a system call a step, since the code's own stands between its I/O.
//!
//! In every state: a task lies in one lane, an acknowledged one is there, two attempts of one never
//! run at once, what ended stays where it ended and nothing of it runs, a lane says what its record
//! says, no success is overwritten or done again, a fenced zombie moves nothing; and from every
//! state, without further faults, all tasks can still end. Each protection can be left out, and a
//! test says what goes wrong then.

mod explore;
mod steps;
mod world;

use explore::{Violation, explore};
use steps::{Protection, Rules};
use world::World;

/// Crashes without end.
const ANY: u8 = u8::MAX;
/// More states than any world here has: a mistake in the model would not end.
const STATES_MOST: usize = 5_000_000;

/// What may befall a world.
#[derive(Clone, Copy)]
struct Faults {
    crashes: u8,
    power_cuts: u8,
    zombies: u8,
    withdrawals: u8,
}

const CRASHES: Faults = Faults {
    crashes: ANY,
    power_cuts: 0,
    zombies: 0,
    withdrawals: 0,
};

fn check<const N: usize>(
    faults: Faults,
    retries: u8,
    without: Option<Protection>,
) -> Option<Violation> {
    let Faults {
        crashes,
        power_cuts,
        zombies,
        withdrawals,
    } = faults;
    let rules = Rules {
        retries,
        uncharged: 1,
        power_cuts,
        without,
    };
    let first = World::<N>::new(crashes, power_cuts, zombies, withdrawals);
    let began = std::time::Instant::now();
    let found = explore(first, &rules, STATES_MOST);
    println!(
        "{} states, {} steps, {:.1}s",
        found.states,
        found.steps,
        began.elapsed().as_secs_f64()
    );
    found.violation
}

fn holds<const N: usize>(faults: Faults, retries: u8) {
    if let Some(found) = check::<N>(faults, retries, None) {
        panic!(
            "{} after {} steps:\n{}",
            found.what, found.steps, found.trace
        );
    }
}

#[test]
fn one_task_and_any_number_of_crashes() {
    holds::<1>(
        Faults {
            zombies: 1,
            withdrawals: 1,
            ..CRASHES
        },
        1,
    );
}

#[test]
fn one_task_any_number_of_crashes_and_a_power_cut() {
    holds::<1>(
        Faults {
            power_cuts: 1,
            ..CRASHES
        },
        1,
    );
}

#[test]
fn a_task_that_may_run_once_runs_once_over_a_power_cut() {
    holds::<1>(
        Faults {
            power_cuts: 1,
            zombies: 1,
            ..CRASHES
        },
        0,
    );
}

#[test]
fn two_tasks_and_a_crash() {
    holds::<2>(
        Faults {
            crashes: 1,
            ..CRASHES
        },
        1,
    );
}

/// For a change of the protocol: some minutes, in a release build.
#[test]
#[ignore = "takes minutes; run it in a release build after a change of the protocol"]
fn two_tasks_and_everything() {
    holds::<2>(
        Faults {
            crashes: 2,
            power_cuts: 0,
            zombies: 1,
            withdrawals: 1,
        },
        1,
    );
}

#[test]
fn each_protection_is_missed() {
    use Protection::*;
    let zombie = Faults {
        zombies: 1,
        ..CRASHES
    };
    let dark = Faults {
        power_cuts: 1,
        ..CRASHES
    };
    let runs = "a task has ended and something of it runs";
    let overwritten = "the record of a success was overwritten";
    let unsaid = "a lane says what no record says";
    let table = [
        (Fence, zombie, 1, "a fenced zombie moved a task"),
        (AtomicMove, CRASHES, 1, "one task lies in two lanes"),
        (ClaimLock, CRASHES, 1, overwritten),
        (ClaimSync, dark, 0, "a task of retries 0 ran twice"),
        (SettleKill, CRASHES, 1, runs),
        (RecordFirst, CRASHES, 1, unsaid),
        (DurableFirst, dark, 1, unsaid),
        (AgentLock, CRASHES, 1, runs),
        (KillFirst, CRASHES, 1, runs),
        (ReadAgain, CRASHES, 1, overwritten),
        (OwnRecovery, CRASHES, 1, "from here the tasks never end"),
        (ChargeLost, CRASHES, 1, "a task is tried without end"),
        (ExpansionGuard, CRASHES, 1, "one task lies in two lanes"),
        (AcknowledgeSynced, dark, 1, "an acknowledged task is lost"),
        (CancelLock, CRASHES, 1, overwritten),
    ];
    for (protection, faults, retries, expected) in table {
        let found = check::<1>(faults, retries, Some(protection));
        let Some(found) = found else {
            panic!("nothing goes wrong without {protection:?}")
        };
        assert_eq!(
            found.what, expected,
            "without {protection:?}:\n{}",
            found.trace
        );
        println!(
            "without {protection:?}: {} ({} steps)",
            found.what, found.steps
        );
    }
}

/// A rename names the attempt, so it finds no file where another was first: these two spare work
/// and keep foreign files out. The model says so, and this test says when that changes.
#[test]
fn the_rename_is_the_arbiter() {
    let zombie = Faults {
        zombies: 1,
        ..CRASHES
    };
    for protection in [Protection::Recheck, Protection::RecoveryLock] {
        assert!(
            check::<1>(zombie, 1, Some(protection)).is_none(),
            "{protection:?}"
        );
    }
}
