//! Row 6: agents and workers are killed at random moments, round after round. `RIGOR_KILL_ROUNDS`
//! asks for another number of rounds than the few that every run of the tests has time for; the
//! hundred of the table are `RIGOR_KILL_ROUNDS=100`.

use std::fs;
use std::time::{Duration, SystemTime};

use rigor_tests::journal::{self, command, ticking};
use rigor_tests::{Setup, processes};
use rustix::process::Signal;

const ROUNDS: usize = 20;
const VARIABLE: &str = "RIGOR_KILL_ROUNDS";
const AGENTS: usize = 3;
/// An attempt takes longer than from a death to the next attempt's start, the wait of a retry
/// included: what is left of one would be seen beside the next.
const TENTHS: u32 = 16;

#[test]
fn nothing_is_lost_and_nothing_overlaps_while_agents_and_workers_are_killed() {
    let rounds = std::env::var(VARIABLE).map_or(ROUNDS, |number| {
        number.parse().expect("RIGOR_KILL_ROUNDS is a number")
    });
    // The work lasts longer than the killing.
    let items = rounds;
    let mut rig = Setup {
        gpus: AGENTS,
        limits: "uncharged_attempts = 1000",
        ..Setup::default()
    }
    .make();
    let plan = rig.plan(
        "storm",
        &format!(
            "### each\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n- **retries**: 100\n- **backoff**: 1s..1s\n{}",
            command(&ticking(TENTHS)),
        ),
    );
    let text: String = (0..items).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), text).unwrap();
    rig.start_all();
    let batch = rig.submit(&plan);
    rig.wait("it runs", |_| !journal::read(&plan).is_empty());
    let seed = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .subsec_nanos();
    println!("seed {seed}, {rounds} rounds");
    let mut random = seed;
    let mut next = |most: usize| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) as usize % most
    };
    let (mut agents, mut workers) = (0, 0);
    for _ in 0..rounds {
        // The moment is what the case is about, so this sleep waits for nothing.
        std::thread::sleep(Duration::from_millis(next(250) as u64));
        let running: Vec<_> = rig
            .processes()
            .into_iter()
            .filter(|one| one.command.contains("/worker "))
            .collect();
        if !running.is_empty() && next(3) == 0 {
            processes::send(running[next(running.len())].pid, Signal::KILL);
            workers += 1;
        } else {
            let agent = format!("gpu-{}", next(AGENTS) + 1);
            rig.kill(&agent);
            rig.start_agent(&agent);
            agents += 1;
        }
    }
    println!("killed {agents} agents and {workers} workers");
    assert_eq!(rig.wait_batch(&batch), 0);
    let attempts = journal::read(&plan);
    let mut ended: Vec<&str> = attempts
        .iter()
        .filter(|one| one.ended)
        .map(|one| one.task.as_str())
        .collect();
    ended.sort_unstable();
    ended.dedup();
    assert_eq!(ended.len(), items, "0 lost");
    assert_eq!(rig.summary(&plan, &batch)["done"], items);
    println!("{} attempts of {items} tasks", attempts.len());
    // The checker finds overlaps when the rig is dropped.
}
