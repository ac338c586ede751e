//! Random histories of everything that moves a task, against a model in memory: after each step the
//! directory is what the model says, and each call answered as it must.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proptest::prelude::*;
use rigor_queue::claim::{self, Candidate, Held, Moved, Opened};
use rigor_queue::lane::Move;
use rigor_queue::name::{FileName, Shape, TaskId};
use rigor_queue::record::{AttemptRecord, FailureKind, Outcome};
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::{self, Durability};
use rigor_queue::task::{Backoff, Class, TaskSpec, Vram, Work};
use rigor_queue::{Lease, records};

const TASKS: usize = 2;
const AGENTS: [&str; 2] = ["gpu-1", "gpu-2"];
const BATCH: &str = "b";
const CLASS: Class = Class::Cpu;

#[derive(Clone, Debug)]
enum Op {
    Expand(usize),
    Release(usize),
    Withdraw(usize),
    /// An agent locks a queued task.
    Look(usize, usize),
    /// It lets go of it.
    Forget(usize),
    /// It claims what it has locked, and hands the lock to a worker.
    Claim(usize),
    /// The worker ends and the agent moves the task on.
    Finish(usize, End),
    /// Agent and worker die: the lock is free, the task lies where it lay.
    Kill(usize),
    /// What a dead agent has in `processing/` is taken back.
    Recover(usize),
    Retry(usize),
    Raise(usize),
    GiveUp(usize),
    Cancel(usize),
    Revive(usize),
    Quarantine(usize),
    /// Somebody who slept tries every move under a name that the task had once.
    Zombie(usize),
}

#[derive(Clone, Copy, Debug)]
enum End {
    Good,
    Bad,
    /// The worker dies before its record.
    Lost,
    /// The agent dies between the record and the move.
    Between(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let (task, agent) = (0..TASKS, 0..AGENTS.len());
    let end = prop_oneof![
        Just(End::Good),
        Just(End::Bad),
        Just(End::Lost),
        any::<bool>().prop_map(End::Between),
    ];
    prop_oneof![
        3 => task.clone().prop_map(Op::Expand),
        4 => task.clone().prop_map(Op::Release),
        1 => task.clone().prop_map(Op::Withdraw),
        6 => (agent.clone(), task.clone()).prop_map(|(agent, task)| Op::Look(agent, task)),
        1 => agent.clone().prop_map(Op::Forget),
        6 => agent.clone().prop_map(Op::Claim),
        5 => (agent.clone(), end).prop_map(|(agent, end)| Op::Finish(agent, end)),
        2 => agent.clone().prop_map(Op::Kill),
        3 => agent.prop_map(Op::Recover),
        3 => task.clone().prop_map(Op::Retry),
        1 => task.clone().prop_map(Op::Raise),
        2 => task.clone().prop_map(Op::GiveUp),
        2 => task.clone().prop_map(Op::Cancel),
        2 => task.clone().prop_map(Op::Revive),
        1 => task.clone().prop_map(Op::Quarantine),
        2 => task.prop_map(Op::Zombie),
    ]
}

/// Where the model has a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spot {
    Nowhere,
    Waiting,
    Queue,
    Processing(usize),
    Retry,
    Complete,
    Failed,
    Cancelled,
    Quarantine,
}

#[derive(Clone, Debug)]
struct Known {
    spot: Spot,
    attempt: u32,
    charged: u32,
    shape: Shape,
    past: BTreeSet<(u32, u32, Shape)>,
    /// Attempts with a record, and whether they succeeded.
    records: BTreeMap<u32, bool>,
}

/// What an agent has in its hands.
enum Hands {
    Nothing,
    Looked(Held, usize),
    Runs(Lease, usize),
}

struct Bed {
    _dir: tempfile::TempDir,
    rig: Rig,
    specs: Vec<TaskSpec>,
    model: Vec<Known>,
    agents: [Hands; 2],
}

impl Bed {
    fn new() -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::create(dir.path()).unwrap();
        for agent in AGENTS {
            rig.prepare_agent(agent).unwrap();
        }
        rig.prepare_batch(BATCH).unwrap();
        let specs: Vec<TaskSpec> = (0..TASKS).map(|n| spec(&format!("t{n}"))).collect();
        let known = |spec: &TaskSpec| Known {
            spot: Spot::Nowhere,
            attempt: 1,
            charged: 0,
            shape: spec.shape(),
            past: BTreeSet::new(),
            records: BTreeMap::new(),
        };
        let model = specs.iter().map(known).collect();
        let agents = [Hands::Nothing, Hands::Nothing];
        Bed {
            _dir: dir,
            rig,
            specs,
            model,
            agents,
        }
    }

    fn name_of(&self, task: usize, (attempt, charged, shape): (u32, u32, Shape)) -> FileName {
        let mut name = FileName::first(5, task as u64, shape, self.specs[task].id);
        (name.attempt, name.charged) = (attempt, charged);
        name
    }

    fn name(&self, task: usize) -> FileName {
        let known = &self.model[task];
        self.name_of(task, (known.attempt, known.charged, known.shape))
    }

    fn place(&self, task: usize) -> Option<Place<'_>> {
        Some(match self.model[task].spot {
            Spot::Nowhere => return None,
            Spot::Waiting => Place::Waiting {
                batch: BATCH,
                task: &self.specs[task].task,
            },
            Spot::Queue => Place::Queue(CLASS),
            Spot::Processing(agent) => Place::Processing(AGENTS[agent]),
            Spot::Retry => Place::Retry(BATCH),
            Spot::Complete => Place::Complete(BATCH),
            Spot::Failed => Place::Failed(BATCH),
            Spot::Cancelled => Place::Cancelled(BATCH),
            Spot::Quarantine => Place::Quarantine,
        })
    }

    /// Some agent has it locked.
    fn busy(&self, task: usize) -> bool {
        self.agents.iter().any(|hands| match hands {
            Hands::Nothing => false,
            Hands::Looked(_, of) | Hands::Runs(_, of) => *of == task,
        })
    }

    fn go(&mut self, task: usize, spot: Spot) {
        self.model[task].spot = spot;
    }

    /// The next attempt, in another lane.
    fn rise(&mut self, task: usize, spot: Spot, charge: bool) {
        let known = &mut self.model[task];
        known
            .past
            .insert((known.attempt, known.charged, known.shape));
        known.attempt += 1;
        known.charged += u32::from(charge);
        known.spot = spot;
    }

    fn record(&mut self, task: usize, outcome: Outcome) {
        let name = self.name(task);
        let good = outcome == Outcome::Succeeded;
        let record = AttemptRecord::without_worker("gpu-1", &name, &self.specs[task], outcome);
        records::replace(&self.rig, &record).unwrap();
        self.model[task].records.insert(name.attempt, good);
    }

    fn take(&mut self, agent: usize) -> Hands {
        std::mem::replace(&mut self.agents[agent], Hands::Nothing)
    }

    fn step(&mut self, op: &Op) {
        let rig = self.rig.clone();
        match *op {
            Op::Expand(task) => {
                let made = vec![(
                    self.name_of(task, (1, 0, self.specs[task].shape())),
                    self.specs[task].clone(),
                )];
                let folder = self.specs[task].task.clone();
                let done = submit::expand(&rig, BATCH, &folder, made, Durability::Process).unwrap();
                assert_eq!(done, self.model[task].spot == Spot::Nowhere);
                if done {
                    self.go(task, Spot::Waiting);
                }
            }
            Op::Release(task) => {
                let (name, folder) = (self.name(task), self.specs[task].task.clone());
                let moved = claim::release(&rig, BATCH, &folder, CLASS, &name).unwrap();
                self.expect(task, Spot::Waiting, moved, Spot::Queue);
            }
            Op::Withdraw(task) => {
                let Some(held) = self.queued(task) else {
                    return;
                };
                let folder = self.specs[task].task.clone();
                assert_eq!(held.withdraw(&rig, &folder).unwrap(), Moved::Done);
                self.go(task, Spot::Waiting);
            }
            Op::Look(agent, task) => {
                if matches!(self.agents[agent], Hands::Nothing)
                    && let Some(held) = self.queued(task)
                {
                    self.agents[agent] = Hands::Looked(held, task);
                }
            }
            Op::Forget(agent) => {
                if matches!(self.agents[agent], Hands::Looked(..)) {
                    self.take(agent);
                }
            }
            Op::Claim(agent) => {
                if !matches!(self.agents[agent], Hands::Looked(..)) {
                    return;
                }
                let Hands::Looked(held, task) = self.take(agent) else {
                    return;
                };
                let held = held.claim(&rig, AGENTS[agent], false).unwrap();
                let (_, _, lease) = held.expect("nobody moves what is locked").into_parts();
                self.agents[agent] = Hands::Runs(lease, task);
                self.go(task, Spot::Processing(agent));
            }
            Op::Finish(agent, end) => self.finish(agent, end),
            Op::Kill(agent) => {
                self.take(agent);
            }
            Op::Recover(agent) => self.recover(agent),
            Op::Retry(task) => {
                let name = self.name(task);
                let next = claim::retry(&rig, BATCH, CLASS, &name).unwrap();
                assert_eq!(next.is_some(), self.model[task].spot == Spot::Retry);
                if let Some(next) = next {
                    self.rise(task, Spot::Queue, true);
                    assert_eq!(next, self.name(task));
                }
            }
            Op::Raise(task) => {
                let (name, shape) = (self.name(task), Shape(0xabc));
                let next = claim::retry_raised(&rig, BATCH, CLASS, &name, shape).unwrap();
                assert_eq!(next.is_some(), self.model[task].spot == Spot::Retry);
                if next.is_some() {
                    self.rise(task, Spot::Queue, false);
                    self.model[task].shape = shape;
                }
            }
            Op::GiveUp(task) => {
                let name = self.name(task);
                let moved = claim::give_up(&rig, BATCH, &name).unwrap();
                self.expect(task, Spot::Retry, moved, Spot::Failed);
            }
            Op::Cancel(task) => self.cancel(task),
            Op::Revive(task) => self.revive(task),
            Op::Quarantine(task) => {
                let live = matches!(
                    self.model[task].spot,
                    Spot::Waiting | Spot::Queue | Spot::Retry
                );
                if live && !self.busy(task) {
                    let path = rig.path(self.place(task).unwrap(), &self.name(task));
                    claim::quarantine(&rig, &path, "a test").unwrap();
                    self.go(task, Spot::Quarantine);
                }
            }
            Op::Zombie(task) => self.zombie(task),
        }
    }

    fn expect(&mut self, task: usize, from: Spot, moved: Moved, to: Spot) {
        assert_eq!(moved == Moved::Done, self.model[task].spot == from);
        if moved == Moved::Done {
            self.go(task, to);
        }
    }

    /// The task, locked, if it is queued and nobody has it.
    fn queued(&self, task: usize) -> Option<Held> {
        let found = claim::candidate(&self.rig, CLASS, &self.name(task)).unwrap();
        let queued = self.model[task].spot == Spot::Queue;
        match found {
            Candidate::Ready(held) => {
                assert!(queued && !self.busy(task));
                Some(held)
            }
            Candidate::LockBusy => {
                assert!(queued && self.busy(task));
                None
            }
            Candidate::LostRace => {
                assert!(!queued);
                None
            }
            Candidate::Quarantined { reason } => panic!("{reason}"),
        }
    }

    fn finish(&mut self, agent: usize, end: End) {
        if !matches!(self.agents[agent], Hands::Runs(..)) {
            return;
        }
        let Hands::Runs(lease, task) = self.take(agent) else {
            return;
        };
        let name = self.name(task);
        let place = Place::Processing(AGENTS[agent]);
        assert!(
            matches!(
                claim::open_in(&self.rig, place, &name).unwrap(),
                Opened::Busy
            ),
            "the worker has it"
        );
        match end {
            End::Good | End::Between(true) => self.record(task, Outcome::Succeeded),
            End::Bad | End::Between(false) => self.record(task, failed()),
            End::Lost => {}
        }
        drop(lease);
        if matches!(end, End::Good | End::Bad) {
            self.settle(agent, task);
        }
    }

    /// Moves a task on as its record says, or gives it back.
    fn settle(&mut self, agent: usize, task: usize) {
        let name = self.name(task);
        let place = Place::Processing(AGENTS[agent]);
        let held = match claim::open_in(&self.rig, place, &name).unwrap() {
            Opened::Held(held) => held,
            other => panic!("{other:?}"),
        };
        let record = records::read(&self.rig, BATCH, name.id, name.attempt).unwrap();
        let good = record
            .as_ref()
            .map(|record| record.outcome == Outcome::Succeeded);
        assert_eq!(good, self.model[task].records.get(&name.attempt).copied());
        let step = record.map_or(Move::Requeue, |record| Move::after(&record.outcome));
        assert_eq!(held.end(&self.rig, step).unwrap(), Moved::Done);
        match good {
            Some(true) => self.go(task, Spot::Complete),
            Some(false) => self.go(task, Spot::Retry),
            None => self.rise(task, Spot::Queue, false),
        }
    }

    fn recover(&mut self, agent: usize) {
        if !matches!(self.agents[agent], Hands::Nothing) {
            return;
        }
        for name in self
            .rig
            .list(Place::Processing(AGENTS[agent]))
            .unwrap()
            .names
        {
            let task = self
                .specs
                .iter()
                .position(|spec| spec.id == name.id)
                .unwrap();
            assert_eq!(self.model[task].spot, Spot::Processing(agent));
            self.settle(agent, task);
        }
    }

    fn cancel(&mut self, task: usize) {
        let Some(place) = self.place(task) else {
            return;
        };
        if !matches!(
            place,
            Place::Waiting { .. } | Place::Queue(_) | Place::Retry(_)
        ) {
            return;
        }
        let name = self.name(task);
        let under = match place {
            Place::Retry(_) => name.next_attempt(false),
            _ => name,
        };
        match claim::open_in(&self.rig, place, &name).unwrap() {
            Opened::Held(held) => {
                assert_eq!(held.cancel(&self.rig, &under).unwrap(), Moved::Done);
                if under == name {
                    self.go(task, Spot::Cancelled);
                } else {
                    self.rise(task, Spot::Cancelled, false);
                }
            }
            Opened::Busy => assert!(self.busy(task)),
            other => panic!("{other:?}"),
        }
    }

    fn revive(&mut self, task: usize) {
        let name = self.name(task);
        let spot = self.model[task].spot;
        for (from, at) in [
            (Place::Failed(BATCH), Spot::Failed),
            (Place::Cancelled(BATCH), Spot::Cancelled),
        ] {
            if self.model[task].spot != spot {
                return;
            }
            let folder = &self.specs[task].task;
            let next = claim::revive(&self.rig, from, BATCH, folder, &name);
            // A task that was never made has a directory after this: nobody revives such a one.
            if spot == Spot::Nowhere {
                std::fs::remove_dir(self.rig.dir(Place::Waiting {
                    batch: BATCH,
                    task: folder,
                }))
                .unwrap();
            }
            assert_eq!(next.as_ref().unwrap().is_some(), spot == at);
            if spot == at {
                self.rise(task, Spot::Waiting, false);
                self.model[task].charged = 0;
            }
        }
    }

    fn zombie(&mut self, task: usize) {
        for past in self.model[task].past.clone() {
            let old = self.name_of(task, past);
            let rig = &self.rig;
            for agent in AGENTS {
                let found = claim::open_in(rig, Place::Processing(agent), &old).unwrap();
                assert!(matches!(found, Opened::Gone), "{old} in processing/{agent}");
            }
            let found = claim::candidate(rig, CLASS, &old).unwrap();
            assert!(matches!(found, Candidate::LostRace), "{old} in the queue");
            assert_eq!(claim::retry(rig, BATCH, CLASS, &old).unwrap(), None);
            assert_eq!(claim::give_up(rig, BATCH, &old).unwrap(), Moved::Gone);
        }
    }

    /// The directory is what the model says, and nothing else lies in it.
    fn check(&self) {
        let mut expected: BTreeSet<String> = BTreeSet::new();
        for task in 0..TASKS {
            if let Some(place) = self.place(task) {
                let path = self.rig.path(place, &self.name(task));
                expected.insert(
                    path.strip_prefix(self.rig.root())
                        .unwrap()
                        .display()
                        .to_string(),
                );
                if place == Place::Quarantine {
                    expected.insert(format!("tasks/quarantine/{}.reason", self.name(task)));
                }
            }
        }
        let mut found = BTreeSet::new();
        files(&self.rig.root().join("tasks"), self.rig.root(), &mut found);
        assert_eq!(found, expected);
    }
}

fn files(dir: &Path, root: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            files(&path, root, found);
        } else if entry.file_name() != ".items.jsonl" {
            found.insert(path.strip_prefix(root).unwrap().display().to_string());
        }
    }
}

fn failed() -> Outcome {
    Outcome::Failed {
        kind: FailureKind::ExitCode,
        reason: "exit code 1".to_owned(),
    }
}

fn spec(task: &str) -> TaskSpec {
    TaskSpec {
        id: TaskId::derive(BATCH, task, None),
        batch: BATCH.to_owned(),
        plan: "p".to_owned(),
        task: task.to_owned(),
        name: task.to_owned(),
        class: CLASS,
        work: Work::Command {
            command: "true".to_owned(),
        },
        item: None,
        priority: 5,
        cpus: 1,
        on: Vec::new(),
        model: None,
        min_tier: None,
        vram: Vram::default(),
        timeout_s: None,
        kill_if_silent_s: None,
        retries: 2,
        backoff: Backoff::default(),
        env: Default::default(),
        env_file: None,
        venv: None,
        conda: None,
        secrets: Vec::new(),
        workdir: None,
        requires: Vec::new(),
        produces: Vec::new(),
        plan_dir: "/p".into(),
        batch_dir: "/p/history/b".into(),
        created: jiff::Timestamp::UNIX_EPOCH,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn the_directory_is_what_the_model_says(ops in prop::collection::vec(op(), 1..250)) {
        let mut bed = Bed::new();
        for op in &ops {
            bed.step(op);
            bed.check();
        }
    }
}
