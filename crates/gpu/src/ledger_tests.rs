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
    ledger.admit(mb(10)).unwrap_err();
    ledger.observe(&reading(0, &[], true), owner);

    ledger.lease("2", mb(10)).unwrap();
    assert_eq!(
        ledger.admit(UNMEASURED).unwrap_err().to_string(),
        "need unmeasured, have 4905 MB, it runs alone until its memory is measured, and waits for 2"
    );
    ledger.release("2");
    assert_eq!(
        ledger.admit(UNMEASURED).unwrap_err().why,
        "it is to be measured, and the memory of 2, which has ended, is not seen to be back yet"
    );
    ledger.observe(&reading(0, &[], true), owner);
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

    // What was in use while the last one ended is no base for the next, nor is a reading that was
    // asked for before it ended.
    ledger.observe(&reading(700, &[(1, 900)], false), owner);
    ledger.lease("1", mb(1000)).unwrap();
    ledger.observe(&reading(700, &[(1, 900)], false), owner);
    ledger.reading_asked();
    assert_eq!(ledger.release("1"), None);
    ledger.observe(&reading(700, &[(1, 900)], false), owner);

    // With company, whose memory grew is not known.
    ledger.observe(&reading(700, &[], false), owner);
    assert_eq!(ledger.settling(), None);
    ledger.lease("1", mb(1000)).unwrap();
    ledger.observe(&reading(700, &[(1, 900)], false), owner);
    ledger.lease("2", mb(1000)).unwrap();
    ledger.observe(&reading(700, &[(1, 900), (2, 900)], false), owner);
    assert_eq!((ledger.release("1"), ledger.release("2")), (None, None));
}

#[test]
fn what_was_found_running_is_not_counted_twice() {
    for by_process in [true, false] {
        let mut ledger = Ledger::new(BUDGET);
        let now = reading(700, &[(1, 2000)], by_process);
        ledger.observe(&now, |_| None);
        ledger.adopt("1", mb(2000));
        assert_eq!(ledger.available_mb(), BUDGET - 2700, "{by_process}");
        ledger.observe(&now, owner);
        assert_eq!(ledger.available_mb(), BUDGET - 2700, "{by_process}");
        assert_eq!(ledger.most_mb(), BUDGET - 700, "{by_process}");
    }
}

#[test]
fn without_memory_by_process_a_lease_is_not_counted_twice() {
    let mut ledger = Ledger::new(BUDGET);
    ledger.observe(&reading(700, &[], false), owner);
    assert_eq!(ledger.most_mb(), BUDGET - 700);
    ledger.lease("1", mb(2000)).unwrap();
    ledger.observe(&reading(700, &[(1, 1900)], false), owner);
    assert_eq!(ledger.available_mb(), BUDGET - 700 - 2000);
}

#[test]
fn memory_that_is_not_back_is_waited_for_and_then_somebody_elses() {
    let mut ledger = observed(0);
    ledger.lease("1", UNMEASURED).unwrap();
    ledger.observe(&reading(0, &[(1, 3000)], true), owner);
    assert_eq!(ledger.release("1").unwrap().peak_mb, 3000);
    // The process is gone, the driver still clears up.
    for _ in 1..SETTLE_READINGS {
        ledger.observe(&reading(3000, &[], true), owner);
        assert_eq!(ledger.settling(), Some("1"));
        assert_eq!(ledger.available_mb(), BUDGET - 3000);
        ledger.admit(mb(BUDGET - 3000)).unwrap();
        ledger.admit(mb(BUDGET - 2999)).unwrap_err();
        ledger.admit(UNMEASURED).unwrap_err();
    }
    ledger.observe(&reading(3000, &[], true), owner);
    assert_eq!(ledger.settling(), None);
    ledger.admit(UNMEASURED).unwrap();
}

#[test]
fn two_that_end_at_once_are_waited_for_together() {
    let mut ledger = observed(500);
    ledger.lease("1", mb(1000)).unwrap();
    ledger.lease("2", mb(1000)).unwrap();
    ledger.observe(&reading(500, &[(1, 1000), (2, 1000)], true), owner);
    ledger.release("1");
    ledger.release("2");
    for _ in 0..3 {
        ledger.observe(&reading(1500, &[], true), owner);
    }
    assert_eq!(ledger.settling(), Some("2"), "only one of them is back");
    ledger.observe(&reading(500, &[], true), owner);
    assert_eq!(ledger.settling(), None);
}

#[test]
fn what_an_ended_task_took_since_the_last_reading_is_counted() {
    let mut ledger = observed(0);
    ledger.lease("1", mb(3000)).unwrap();
    ledger.observe(&reading(0, &[(1, 100)], true), owner);
    ledger.reading_asked();
    // Meanwhile it took 3000 MB, and ends.
    ledger.release("1");
    ledger.admit(mb(2500)).unwrap_err();
    ledger.observe(&reading(0, &[(1, 100)], true), owner);
    assert_eq!(
        ledger.admit(mb(2500)).unwrap_err().why,
        "budget 4915 MB of 6144 MB, 100 MB in use by others or just ended, a reading since the last end is to come",
        "that reading is from before"
    );
    ledger.observe(&reading(0, &[], true), owner);
    ledger.admit(mb(2500)).unwrap();
}

#[test]
fn nothing_is_promised_on_an_old_reading() {
    let mut ledger = observed(0);
    ledger.lost_sight();
    assert_eq!(ledger.available_mb(), 0);
    assert_eq!(
        ledger.admit(mb(1)).unwrap_err().why,
        "the last reading of the GPU failed"
    );
    ledger.observe(&reading(0, &[], true), owner);
    ledger.admit(mb(1)).unwrap();
}

#[test]
fn a_peak_over_the_promise_is_kept_free() {
    let mut ledger = observed(0);
    ledger.lease("1", mb(1000)).unwrap();
    ledger.observe(&reading(0, &[(1, 2500)], true), owner);
    ledger.observe(&reading(0, &[(1, 400)], true), owner);
    assert_eq!(ledger.available_mb(), BUDGET - 2500);
}

#[test]
fn a_lease_under_which_nothing_ran_leaves_nothing_to_wait_for() {
    let mut ledger = observed(0);
    ledger.lease("1", UNMEASURED).unwrap();
    ledger.take_back("1");
    assert_eq!(ledger.settling(), None);
    ledger.admit(UNMEASURED).unwrap();
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

/// What really happens on the GPU beside what is known of it.
#[derive(Clone, Debug)]
enum Deed {
    /// A task of so much wants in; admitted, it is in a moment.
    Start(u32, u64),
    /// It takes more of what it was promised, percent.
    Grow(u32, u64),
    /// It ends: its lease at once, its memory only with `Clear`.
    End(u32),
    /// The driver gives back what the ended ones had.
    Clear,
    /// A reading is taken, and comes in only with `Arrive`.
    Read,
    /// The reading that was taken comes in.
    Arrive,
    /// The reading that was asked for fails.
    Fail,
}

fn deed() -> impl Strategy<Value = Deed> {
    let id = 1..=3_u32;
    prop_oneof![
        4 => (id.clone(), 1..3000_u64).prop_map(|(id, mb)| Deed::Start(id, mb)),
        3 => (id.clone(), 0..=100_u64).prop_map(|(id, share)| Deed::Grow(id, share)),
        2 => id.prop_map(Deed::End),
        2 => Just(Deed::Clear),
        3 => Just(Deed::Read),
        3 => Just(Deed::Arrive),
        1 => Just(Deed::Fail),
    ]
}

proptest! {
    /// With readings that come late and memory that is given back late: what the tasks have, what
    /// they may still take and what the driver has not cleared never exceeds the budget.
    #[test]
    fn no_gpu_is_ever_over_its_budget(deeds in prop::collection::vec(deed(), 1..80)) {
        let mut ledger = observed(0);
        // What was promised and what is held, by lease; what is held by those that ended.
        let mut running: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        let mut left = 0;
        let mut on_the_way = None;
        for deed in deeds {
            match deed {
                Deed::Start(id, mb) => {
                    let need = Need { mb: Some(mb) };
                    if running.contains_key(&id) || ledger.lease(&id.to_string(), need).is_err() {
                        continue;
                    }
                    running.insert(id, (mb, 0));
                }
                Deed::Grow(id, share) => {
                    if let Some((promised, held)) = running.get_mut(&id) {
                        *held = (*held).max(*promised * share / 100);
                    }
                }
                Deed::End(id) => {
                    if let Some((_, held)) = running.remove(&id) {
                        ledger.release(&id.to_string());
                        left += held;
                    }
                }
                Deed::Clear => left = 0,
                Deed::Read => {
                    let ours: Vec<_> = running.iter().map(|(&id, &(_, held))| (id, held)).collect();
                    // One at a time, as the agent asks.
                    if on_the_way.is_none() {
                        ledger.reading_asked();
                        on_the_way = Some(reading(left, &ours, true));
                    }
                }
                Deed::Arrive => {
                    if let Some(reading) = on_the_way.take() {
                        ledger.observe(&reading, owner);
                    }
                }
                Deed::Fail => {
                    on_the_way = None;
                    ledger.lost_sight();
                }
            }
            let promised: u64 = running.values().map(|(promised, _)| promised).sum();
            prop_assert!(promised + left <= BUDGET, "{promised} + {left}");
        }
    }
}
