//! Whole batches through the brain and the agents.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
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
