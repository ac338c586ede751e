//! Who gets which task file.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use rigor_queue::claim::{self, Candidate};
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::{Durability, expand};
use rigor_queue::task::{Class, TaskSpec, Vram, Work};
use rigor_tests::wait_until;

const TASKS: u64 = 10_000;
const CLAIMANTS: usize = 3;
const BATCH: &str = "race";
/// Tells the test below that it is a claimant, and of which rig.
const CLAIMANT: &str = "RIGOR_TEST_CLAIMANT";
/// Where a claimant waits for the others.
const GO: &str = "go";

/// Fault table 2 and 17: a claim is one process's, however many want it.
#[test]
fn three_processes_claim_ten_thousand_files_each_once() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("rig");
    let rig = Rig::create(&root).unwrap();
    rig.prepare_batch(BATCH).unwrap();
    let tasks = (0..TASKS).map(|n| {
        let spec = spec(n, dir.path());
        (FileName::first(5, n, spec.shape(), spec.id), spec)
    });
    assert!(expand(&rig, BATCH, "t", tasks, Durability::Process).unwrap());
    let waiting = Place::Waiting {
        batch: BATCH,
        task: "t",
    };
    for name in rig.list(waiting).unwrap().names {
        claim::release(&rig, BATCH, "t", Class::Cpu, &name).unwrap();
    }

    let started = Instant::now();
    let mut claimants: Vec<_> = (0..CLAIMANTS)
        .map(|n| {
            rig.prepare_agent(&format!("a{n}")).unwrap();
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "claims::claimant", "--ignored", "--nocapture"])
                .env(CLAIMANT, format!("a{n}:{}", root.display()))
                .spawn()
                .unwrap()
        })
        .collect();
    std::fs::write(root.join(GO), "").unwrap();
    for claimant in &mut claimants {
        assert!(claimant.wait().unwrap().success());
    }
    let took = started.elapsed().as_secs_f64();

    let mut owners: BTreeMap<TaskId, Vec<String>> = BTreeMap::new();
    let mut shares = Vec::new();
    for n in 0..CLAIMANTS {
        let agent = format!("a{n}");
        // What it says that it claimed, against what lies in its lane.
        let told = std::fs::read_to_string(root.join(&agent)).unwrap();
        let told: Vec<TaskId> = told.lines().map(|line| line.parse().unwrap()).collect();
        let mut lies: Vec<TaskId> = rig
            .list(Place::Processing(&agent))
            .unwrap()
            .names
            .iter()
            .map(|name| name.id)
            .collect();
        shares.push(told.len());
        for id in &told {
            owners.entry(*id).or_default().push(agent.clone());
        }
        let mut told = told;
        told.sort();
        lies.sort();
        assert_eq!(told, lies, "{agent}");
    }
    println!("{TASKS} claims by {CLAIMANTS} processes in {took:.2}s: {shares:?}");
    assert_eq!(owners.len() as u64, TASKS);
    let twice: Vec<_> = owners.iter().filter(|(_, by)| by.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert_eq!(rig.count(Place::Queue(Class::Cpu)).unwrap(), 0);
    let busy = shares.iter().filter(|share| **share > 0).count();
    assert!(busy > 1, "no race took place: {shares:?}");
}

/// One of the processes of the test above; by itself it does nothing.
#[test]
#[ignore = "started by three_processes_claim_ten_thousand_files_each_once"]
fn claimant() {
    let Ok(order) = std::env::var(CLAIMANT) else {
        return;
    };
    let (agent, root) = order.split_once(':').unwrap();
    let root = Path::new(root);
    let rig = Rig::open(root).unwrap();
    wait_until(rigor_tests::PATIENCE, "the start", || {
        root.join(GO).exists()
    });
    let mut told = String::new();
    loop {
        let names = rig.list(Place::Queue(Class::Cpu)).unwrap().names;
        if names.is_empty() {
            break;
        }
        for name in names {
            match claim::candidate(&rig, Class::Cpu, &name).unwrap() {
                Candidate::Ready(held) => {
                    if let Some(held) = held.claim(&rig, agent, false).unwrap() {
                        told.push_str(&format!("{}\n", held.name.id));
                    }
                }
                Candidate::LostRace | Candidate::LockBusy => {}
                Candidate::Quarantined { reason } => panic!("{name}: {reason}"),
            }
        }
    }
    std::fs::write(root.join(agent), told).unwrap();
}

fn spec(n: u64, dir: &Path) -> TaskSpec {
    TaskSpec {
        plan: "plan".into(),
        name: format!("t_{n}"),
        vram: Vram::Infer,
        plan_dir: dir.to_owned(),
        batch_dir: dir.to_owned(),
        ..TaskSpec::new(
            TaskId::derive(BATCH, "t", Some(&n.to_string())),
            BATCH,
            "t",
            Class::Cpu,
            Work::Command {
                command: "true".into(),
            },
        )
    }
}
