//! Whole batches through the brain and the agents.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use rigor_tests::Setup;

const ITEMS: usize = 10_000;
/// A foreach whose work costs next to nothing: a builtin of the shell.
const NO_OPS: &str = "\
### each

- **task_class**: cpu
- **foreach**: `items.txt`
- **command**: `echo {ITEM.id} $RIGOR_AGENT >> \"$RIGOR_PLAN_DIR/done\"`
";

fn write_items(plan: &Path, count: usize) {
    let items: String = (0..count).map(|n| format!("item-{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
}

/// How often each item was done, and how many by whom.
fn done(plan: &Path) -> (BTreeMap<String, usize>, BTreeMap<String, usize>) {
    let text = fs::read_to_string(plan.join("done")).unwrap();
    let (mut items, mut agents) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines() {
        let (item, agent) = line.split_once(' ').unwrap();
        *items.entry(item.to_owned()).or_default() += 1;
        *agents.entry(agent.to_owned()).or_default() += 1;
    }
    (items, agents)
}

fn ten_thousand(durability: &'static str) {
    let mut rig = Setup {
        gpus: 3,
        rig: durability,
        ..Setup::default()
    }
    .make();
    let plan = rig.plan("many", NO_OPS);
    write_items(&plan, ITEMS);
    rig.start_all();
    let started = Instant::now();
    let batch = rig.submit(&plan);
    assert_eq!(rig.wait_batch(&batch), 0);
    let took = started.elapsed().as_secs_f64();
    let (items, agents) = done(&plan);
    println!(
        "{durability}: {:.0} tasks/s ({took:.1}s), {agents:?}",
        ITEMS as f64 / took
    );
    assert_eq!(items.len(), ITEMS);
    let twice: Vec<_> = items.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert_eq!(agents.len(), 3, "{agents:?}");
    assert_eq!(rig.summary(&plan, &batch)["done"], ITEMS);
}

#[test]
fn ten_thousand_items_without_fsync() {
    ten_thousand("durability = \"process\"");
}

#[test]
fn ten_thousand_items() {
    ten_thousand("durability = \"default\"");
}

/// Row 35: whoever submits the same again under its key, at the same moment or later, gets the batch
/// that is there.
#[test]
fn one_key_is_one_batch() {
    let mut rig = Setup {
        gpus: 1,
        ..Setup::default()
    }
    .make();
    let plan = rig.plan(
        "keyed",
        "### once\n\n- **task_class**: cpu\n- **command**: `echo once >> \"$RIGOR_PLAN_DIR/ran\"`\n",
    );
    rig.start_all();
    let folder = plan.to_str().unwrap();
    let submit = |rig: &rigor_tests::Rig| rig.rigor(&["submit", folder, "--key", "nightly 7"]);
    let racing: Vec<_> = (0..6)
        .map(|_| {
            let mut command = rig.rigor_command(&["submit", folder, "--key", "nightly 7"]);
            command.stdout(Stdio::piped()).stderr(Stdio::null());
            command.spawn().unwrap()
        })
        .collect();
    let ids: Vec<String> = racing
        .into_iter()
        .map(|one| {
            let output = one.wait_with_output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        })
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(rig.wait_short_batch(&ids[0]), 0);
    // The batch is over by now.
    let again = submit(&rig);
    assert_eq!((again.code, again.stdout.trim()), (0, ids[0].as_str()));
    assert!(again.stderr.contains("was submitted already"), "{again:?}");
    let ran = |plan: &Path| fs::read_to_string(plan.join("ran")).unwrap();
    assert_eq!(ran(&plan), "once\n");

    let other = rig.rigor(&["submit", folder, "--key", "nightly 7", "--limit", "3"]);
    assert_eq!(other.code, 1, "{other:?}");
    assert!(other.stderr.contains(&ids[0]), "{other:?}");
    let without = rig.rigor(&["submit", folder]);
    assert_ne!(without.stdout.trim(), ids[0]);
    assert_eq!(rig.wait_short_batch(without.stdout.trim()), 0);
    assert_eq!(ran(&plan), "once\nonce\n");
}
