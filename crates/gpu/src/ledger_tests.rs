use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::reading::GpuProcess;

const TOTAL: u64 = 6144;
const BUDGET: u64 = 4915;

fn mb(mb: u64) -> Need {
    Need { mb: Some(mb) }
}

const UNMEASURED: Need = Need { mb: None };

/// A GPU with `foreign` MiB of a stranger's and what each of ours holds. The pid of lease `n` is n.
fn reading(foreign: u64, ours: &[(u32, u64)], by_process: bool) -> Reading {
    let used_mb = foreign + ours.iter().map(|(_, mb)| mb).sum::<u64>();
    let process = |pid, mb| GpuProcess {
        pid,
        used_mb: by_process.then_some(mb),
    };
    let strangers = (foreign > 0).then(|| process(9999, foreign));
    Reading {
        used_mb,
        free_mb: TOTAL.saturating_sub(used_mb),
        total_mb: TOTAL,
        processes: strangers
            .into_iter()
            .chain(ours.iter().map(|&(pid, mb)| process(pid, mb)))
            .collect(),
        ..Reading::default()
    }
}

/// Leases are called `1`, `2`, `3`.
fn owner(pid: u32) -> Option<&'static str> {
    ["1", "2", "3"].get((pid as usize).checked_sub(1)?).copied()
}

fn observed(foreign: u64) -> Ledger {
    let mut ledger = Ledger::new(BUDGET);
    ledger.observe(&reading(foreign, &[], true), owner);
    ledger
}

#[test]
fn nothing_is_admitted_before_the_first_reading() {
    let short = Ledger::new(BUDGET).admit(mb(1)).unwrap_err();
    assert_eq!(
        short.to_string(),
        "need 1 MB, have 0 MB, short by 1 MB: the GPU has not been read yet"
    );
}

#[test]
fn a_promise_counts_before_and_after_it_is_taken() {
    let mut ledger = observed(0);
    ledger.lease("1", mb(3000)).unwrap();
    assert_eq!(ledger.available_mb(), 1915);
    ledger.observe(&reading(0, &[(1, 1000)], true), owner);
    assert_eq!(ledger.available_mb(), 1915, "half taken");
    ledger.observe(&reading(0, &[(1, 3000)], true), owner);
    assert_eq!(ledger.available_mb(), 1915, "taken");
    ledger.observe(&reading(0, &[(1, 3500)], true), owner);
    assert_eq!(ledger.available_mb(), 1415, "overdrawn");
}

#[test]
fn what_others_hold_is_theirs() {
    let mut ledger = observed(1500);
    ledger.lease("1", mb(2000)).unwrap();
    ledger.observe(&reading(1500, &[(1, 500)], true), owner);
    assert_eq!((ledger.foreign_mb(), ledger.available_mb()), (1500, 1415));
    assert_eq!(
        ledger.admit(mb(2000)).unwrap_err(),
        Short {
            need_mb: Some(2000),
            have_mb: 1415,
            short_by_mb: 585,
            why: "budget 4915 MB of 6144 MB, 1500 MB in use by others, 2000 MB leased to 1".into(),
        }
    );
    // A stranger grows under a lease that is not taken yet.
    ledger.observe(&reading(4000, &[(1, 500)], true), owner);
    assert_eq!(ledger.available_mb(), 0);
}

#[test]
fn free_memory_bounds_what_a_generous_budget_promises() {
    let mut ledger = Ledger::new(TOTAL);
    let reserved_by_driver = Reading {
        free_mb: 5000,
        ..reading(0, &[], true)
    };
    ledger.observe(&reserved_by_driver, owner);
    assert_eq!(ledger.available_mb(), 5000);
}

#[test]
fn an_unmeasured_task_runs_alone() {
    let mut ledger = observed(0);
    ledger.lease("1", UNMEASURED).unwrap();
    assert_eq!(
        ledger.admit(mb(10)).unwrap_err().to_string(),
        "need 10 MB, have 0 MB, short by 10 MB: 1 has the GPU to itself until its memory is measured"
    );
    ledger.admit(UNMEASURED).unwrap_err();
    ledger.release("1");

    ledger.lease("2", mb(10)).unwrap();
    assert_eq!(
        ledger.admit(UNMEASURED).unwrap_err().to_string(),
        "need unmeasured, have 4905 MB, it runs alone until its memory is measured, and waits for 2"
    );
    ledger.release("2");
    ledger.admit(UNMEASURED).unwrap();

    observed(5000).admit(UNMEASURED).unwrap_err();
}

#[test]
fn a_need_over_the_budget_says_so() {
    let short = observed(0).admit(mb(5000)).unwrap_err();
    assert_eq!(
        short.why,
        "more than the whole budget of 4915 MB of 6144 MB"
    );
}

#[test]
fn a_model_is_settled_at_what_it_took() {
    let mut ledger = observed(0);
    ledger.lease("1", UNMEASURED).unwrap();
    ledger.observe(&reading(0, &[(1, 2500)], true), owner);
    let peak = ledger.measured("1").unwrap();
    ledger.settle("1", peak.peak_mb);
    assert_eq!(ledger.available_mb(), 2415);
}

#[test]
fn a_peak_is_told_by_process() {
    let mut ledger = observed(700);
    ledger.lease("1", mb(2000)).unwrap();
    ledger.lease("2", mb(2000)).unwrap();
    for (one, two) in [(100, 5), (1800, 10), (900, 7)] {
        ledger.observe(&reading(700, &[(1, one), (2, two)], true), owner);
    }
    ledger.observe(&reading(700, &[], true), owner);
    assert_eq!(
        ledger.release("1"),
        Some(Measured {
            peak_mb: 1800,
            by: MeasuredBy::Process
        })
    );
    assert_eq!(
        ledger.release("2"),
        Some(Measured {
            peak_mb: 10,
            by: MeasuredBy::Process
        })
    );
    assert_eq!(ledger.release("2"), None);
}

#[test]
fn without_memory_by_process_the_devices_delta_tells_while_alone() {
    let mut ledger = Ledger::new(BUDGET);
    ledger.observe(&reading(700, &[], false), owner);
    ledger.lease("1", UNMEASURED).unwrap();
    for one in [100, 1800, 900] {
        ledger.observe(&reading(700, &[(1, one)], false), owner);
    }
    assert_eq!(
        ledger.release("1"),
        Some(Measured {
            peak_mb: 1800,
            by: MeasuredBy::DeviceDelta
        })
    );

    // What was in use while the last one ended is no base for the next.
    ledger.lease("1", mb(1000)).unwrap();
    ledger.observe(&reading(700, &[(1, 900)], false), owner);
    assert_eq!(ledger.release("1"), None);

    // With company, whose memory grew is not known.
    ledger.observe(&reading(700, &[], false), owner);
    ledger.lease("1", mb(1000)).unwrap();
    ledger.observe(&reading(700, &[(1, 900)], false), owner);
    ledger.lease("2", mb(1000)).unwrap();
    ledger.observe(&reading(700, &[(1, 900), (2, 900)], false), owner);
    assert_eq!((ledger.release("1"), ledger.release("2")), (None, None));
}

#[test]
fn without_memory_by_process_a_lease_is_not_counted_twice() {
    let mut ledger = Ledger::new(BUDGET);
    ledger.observe(&reading(700, &[], false), owner);
    ledger.lease("1", mb(2000)).unwrap();
    ledger.observe(&reading(700, &[(1, 1900)], false), owner);
    assert_eq!(ledger.available_mb(), BUDGET - 700 - 2000);
}

#[derive(Clone, Debug)]
enum Step {
    Lease(u32, Option<u64>),
    Release(u32),
    /// The lease takes this share of what it reserved, percent.
    Take(u32, u64),
    Foreign(u64),
    Observe,
}

fn step() -> impl Strategy<Value = Step> {
    let id = 1..=3_u32;
    prop_oneof![
        3 => (id.clone(), prop_oneof![9 => (0..3000_u64).prop_map(Some), 1 => Just(None)])
            .prop_map(|(id, mb)| Step::Lease(id, mb)),
        1 => id.clone().prop_map(Step::Release),
        2 => (id, 0..=100_u64).prop_map(|(id, share)| Step::Take(id, share)),
        1 => (0..2000_u64).prop_map(Step::Foreign),
        3 => Just(Step::Observe),
    ]
}

proptest! {
    /// Whatever comes in whatever order: what is admitted, with what others were last seen to
    /// hold, never exceeds the budget, and an unmeasured lease is the only one.
    #[test]
    fn admitted_leases_never_exceed_the_budget(
        steps in prop::collection::vec(step(), 1..60),
        by_process: bool,
    ) {
        let mut ledger = Ledger::new(BUDGET);
        let mut held: BTreeMap<u32, u64> = BTreeMap::new();
        let (mut foreign, mut foreign_seen) = (0, 0);
        for step in steps {
            match step {
                Step::Lease(id, mb) => {
                    let known: Vec<_> = ledger.leases().map(|(id, _)| id.to_owned()).collect();
                    if known.contains(&id.to_string()) || ledger.lease(&id.to_string(), Need { mb }).is_err() {
                        continue;
                    }
                    held.insert(id, 0);
                    let leases: Vec<_> = ledger.leases().map(|(_, mb)| mb).collect();
                    match leases.iter().copied().sum::<Option<u64>>() {
                        Some(sum) => {
                            let others = if by_process { foreign_seen } else { 0 };
                            prop_assert!(sum + others <= BUDGET, "{sum} + {others}");
                        }
                        None => prop_assert_eq!(leases.len(), 1),
                    }
                }
                Step::Release(id) => {
                    ledger.release(&id.to_string());
                    held.remove(&id);
                }
                Step::Take(id, share) => {
                    let reserved = ledger.leases().find(|(name, _)| *name == id.to_string());
                    if let Some((_, reserved)) = reserved {
                        held.insert(id, reserved.unwrap_or(BUDGET) * share / 100);
                    }
                }
                Step::Foreign(mb) => foreign = mb,
                Step::Observe => {
                    let ours: Vec<_> = held.iter().map(|(&id, &mb)| (id, mb)).collect();
                    ledger.observe(&reading(foreign, &ours, by_process), owner);
                    foreign_seen = foreign;
                }
            }
        }
    }
}
