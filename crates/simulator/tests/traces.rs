//! Every trace that is shipped meets its targets, and the simulation itself can be trusted.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it should be"
)]

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rigor_simulator::report::Report;
use rigor_simulator::rules::Rules;
use rigor_simulator::trace::Trace;
use rigor_simulator::{bound, world};

fn traces() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        // Those in live/ are scaled down for a real rig.
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    paths
}

#[test]
fn every_trace_meets_its_targets() {
    let paths = traces();
    assert!(paths.len() >= 8, "{} traces", paths.len());
    let mut missed = Vec::new();
    for path in paths {
        let report = Report::of(&path).unwrap();
        missed.extend(
            report
                .missed
                .iter()
                .map(|missed| format!("{}: {missed}", report.trace)),
        );
    }
    assert_eq!(missed, Vec::<String>::new());
}

#[test]
fn the_same_trace_gives_the_same_outcome() {
    let trace = Trace::read(&traces()[0]).unwrap();
    let durations = trace.durations();
    for rules in Rules::ALL {
        let first = world::run(&trace, &durations, rules);
        assert_eq!(first, world::run(&trace, &durations, rules));
        assert_eq!(first.left, 0);
    }
}

#[test]
fn what_a_rig_takes_besides_the_work_is_counted() {
    let trace = Trace::parse(
        "about = \"\"\nseed = 1\n[costs]\nsubmit_s = 0.5\ntask_s = 0.25\nload_s = 0.125\n\
         [[gpu]]\nbudget_mb = 10\n[[model]]\nid = \"m\"\nvram_mb = 10\nload_s = 4\n\
         [[work]]\nname = \"ask\"\nmodel = \"m\"\ncount = 3\nseconds = 2",
    );
    let trace = trace.unwrap();
    let outcome = world::run(&trace, &trace.durations(), Rules::Rigor);
    assert_eq!(outcome.makespan_s, 0.5 + 4.125 + 3.0 * 2.25);
}

/// Both get their GPUs at the first look, so that none is unloaded for the other: three loads, where
/// giving all three to the first took six.
#[test]
fn two_models_share_the_gpus_from_the_start() {
    let live = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/live/two-models.toml");
    let trace = Trace::read(&live).unwrap();
    let outcome = world::run(&trace, &trace.durations(), Rules::Rigor);
    assert_eq!((outcome.loads, outcome.left), (3, 0), "{outcome:?}");
    let greedy = world::run(&trace, &trace.durations(), Rules::Greedy);
    assert!(
        outcome.makespan_s <= greedy.makespan_s,
        "{outcome:?} {greedy:?}"
    );
}

/// What one takes of another's loads is asked for anew, as the real brain does: else the work of the
/// other would wait for ever for an agent that is taken.
#[test]
fn a_model_with_little_work_is_not_left_behind() {
    let trace = Trace::parse(
        "about = \"\"\nseed = 1\n[[gpu]]\ncount = 5\nbudget_mb = 5000\n\
         [[model]]\nid = \"a\"\nvram_mb = 4000\nload_s = 20\n\
         [[model]]\nid = \"b\"\nvram_mb = 4000\nload_s = 20\n\
         [[work]]\nname = \"much\"\nmodel = \"a\"\ncount = 200\nseconds = 40\n\
         [[work]]\nname = \"little\"\nmodel = \"b\"\ncount = 2\nseconds = 1\nevery = 2",
    );
    let trace = trace.unwrap();
    let outcome = world::run(&trace, &trace.durations(), Rules::Rigor);
    assert_eq!(outcome.left, 0);
    // Four for the one, one for the other, and that one for the first again when it is free.
    assert!(outcome.loads <= 6, "{outcome:?}");
}

#[test]
fn a_trace_that_cannot_be_is_refused_by_name() {
    let cases = [
        (
            "[[work]]\nname = \"a\"\nmodel = \"m\"\ncount = 1\nseconds = 1",
            "no [[model]] m",
        ),
        (
            "[[work]]\nname = \"a\"\ncount = 1\nseconds = 1\nafter = \"b\"",
            "must stand above",
        ),
        (
            "[[work]]\nname = \"a\"\ncount = 1\nseconds = 1\nvram_mb = 99",
            "fits no GPU",
        ),
        (
            "[[work]]\nname = \"a\"\ncount = 1\nseconds = 1\ncolour = 2",
            "colour",
        ),
    ];
    for (text, expected) in cases {
        let text = format!("about = \"\"\nseed = 1\n[[gpu]]\nbudget_mb = 10\n{text}");
        let error = format!("{:#}", Trace::parse(&text).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}

prop_compose! {
    fn some_trace()(
        gpus in prop::collection::vec(3000u64..20_000, 1..5),
        models in prop::collection::vec((1000u64..3000, 1u32..60, 1u32..5), 1..4),
        work in prop::collection::vec((prop::option::of(0usize..4), 1usize..30, 1u32..60, 0u32..30, any::<bool>()), 1..6),
        seed in any::<u64>(),
        outage in prop::option::of((0u32..500, 1u32..500)),
    ) -> Trace {
        let mut text = format!("about = \"\"\nseed = {seed}\n", seed = seed % (1 << 60));
        for mb in gpus {
            text.push_str(&format!("[[gpu]]\nbudget_mb = {mb}\n"));
        }
        for (at, (mb, load, slots)) in models.iter().enumerate() {
            text.push_str(&format!("[[model]]\nid = \"m{at}\"\nvram_mb = {mb}\nload_s = {load}\nslots = {slots}\n"));
        }
        for (at, (model, count, seconds, every, follows)) in work.iter().enumerate() {
            text.push_str(&format!("[[work]]\nname = \"w{at}\"\ncount = {count}\nseconds = {seconds}\nspread = 0.5\n"));
            match model.filter(|model| *model < models.len()) {
                Some(model) => text.push_str(&format!("model = \"m{model}\"\n")),
                None => text.push_str("vram_mb = 2500\n"),
            }
            if *follows && at > 0 {
                text.push_str(&format!("after = \"w{}\"\n", at - 1));
            } else {
                text.push_str(&format!("every = {every}\n"));
            }
        }
        if let Some((from, seconds)) = outage {
            text.push_str(&format!("[[outage]]\ngpu = 0\nat = {from}\nseconds = {seconds}\n"));
        }
        Trace::parse(&text).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever comes, all of it is done, and every second of every GPU has one cause.
    #[test]
    fn everything_is_done_and_every_second_has_its_cause(trace in some_trace()) {
        let durations = trace.durations();
        let outcome = world::run(&trace, &durations, Rules::Rigor);
        prop_assert_eq!(outcome.left, 0);
        let all: f64 = outcome.gpu_seconds.values().sum();
        let wall = outcome.makespan_s * trace.each_gpu().len() as f64;
        prop_assert!((all - wall).abs() < 1e-6 * wall.max(1.0), "{all} of {wall}");
        let bound = bound::bound(&trace, &durations).unwrap();
        prop_assert!(bound.path_s <= outcome.makespan_s + 1e-6);
    }
}
