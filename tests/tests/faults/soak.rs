//! A short soak, so that the long one (`cargo xtask soak`) stays whole. `RIGOR_SOAK_SEED` draws what a
//! run drew that printed its seed.

use std::time::{Duration, SystemTime};

use rigor_tests::mounts::{self, Namespace};
use rigor_tests::parts;
use rigor_tests::soak::{self, Options};

const SEED: &str = "RIGOR_SOAK_SEED";

#[test]
fn everything_comes_to_its_end_while_everything_is_killed_frozen_and_littered() {
    let test = "soak::everything_comes_to_its_end_while_everything_is_killed_frozen_and_littered";
    let own_disk = match mounts::enter(test, Some(soak::DISK_MB)) {
        Namespace::Done => return,
        Namespace::Unable(why) => {
            println!("skipped in part: {why}");
            false
        }
        Namespace::Inside => true,
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = std::env::var(SEED).map_or(now.unwrap().subsec_nanos().into(), |number| {
        number.parse().expect("RIGOR_SOAK_SEED is a number")
    });
    println!("seed {seed}");
    let report = soak::run(&Options {
        time: Duration::from_secs(10),
        seed,
        every: Duration::from_millis(700),
        agents: 3,
        // Unfinished writing may stay for a minute: the checker knows.
        calm: Duration::ZERO,
        keep: parts::workspace().join(format!("target/soak/short-{seed}")),
        own_disk,
    });
    let report = report.expect("target/soak can be written");
    assert!(report.is_good(), "{report}");
    assert!(report.completed > 0, "{report}");
    assert!(report.faults.values().sum::<usize>() > 10, "{report}");
}
