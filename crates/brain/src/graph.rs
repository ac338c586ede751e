//! The state of a batch: which of its tasks wait, run, are over, and what follows from that.
//!
//! No files and no clock: what happened goes in, [`Step`]s come out, and the caller carries them
//! out in order. Work is proportional to what changed, not to the size of the batch.

mod flow;

use std::collections::{HashMap, VecDeque};

use rigor_plan::{OnFailure, Plan};
use rigor_queue::name::{FileName, TaskId};

/// What the caller must do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read the items of a task and write its task files, then call [`Graph::expanded`].
    Expand {
        /// Index of the task in the plan.
        task: usize,
    },
    /// Move an instance from waiting to the queue.
    Release {
        /// Index of the task.
        task: usize,
        /// Index of the instance.
        instance: usize,
    },
    /// Move an instance that waits (or is queued, or was to be retried) to the cancelled ones.
    Cancel {
        /// Index of the task.
        task: usize,
        /// Index of the instance.
        instance: usize,
        /// Why.
        reason: String,
    },
}

/// Where an instance stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// In `waiting`.
    Waiting,
    /// Queued or processing: agents move it.
    Released,
    /// In `retry`.
    Retry,
    /// In `complete`.
    Done,
    /// In `failed`, or in quarantine.
    Failed,
    /// In `cancelled`.
    Cancelled,
    /// In `cancelled`, and its items are tasks of their own.
    Split,
}

impl State {
    /// Nothing but an operator changes it any more.
    pub(crate) fn is_over(self) -> bool {
        match self {
            State::Waiting | State::Released | State::Retry => false,
            State::Done | State::Failed | State::Cancelled | State::Split => true,
        }
    }
}

/// One task file of the batch.
#[derive(Debug)]
pub(crate) struct Instance {
    /// Its name, as of the last move that the brain knows.
    pub name: FileName,
    /// The item's id.
    pub item: Option<Box<str>>,
    /// Where it stands.
    pub state: State,
    /// Items in it, with `batch_size`.
    pub items: u32,
    /// Predecessors for the same item that are not done.
    blocked_on: u32,
}

/// An instance to be: its name, its item, how many items are in it, where it stands.
pub(crate) type NewInstance = (FileName, Option<String>, u32, State);

/// What has become of a whole task of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its instances are not known yet.
    Unexpanded,
    /// Its instances are known.
    Expanded,
    /// It could not be expanded.
    Broken(String),
    /// It was cancelled before it was expanded.
    Cancelled(String),
}

/// How many instances stand where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// All of them, without those that were split.
    pub total: usize,
    /// In `waiting`.
    pub waiting: usize,
    /// Queued or processing.
    pub released: usize,
    /// In `retry`.
    pub retry: usize,
    /// In `complete`.
    pub done: usize,
    /// In `failed` or quarantine.
    pub failed: usize,
    /// In `cancelled`.
    pub cancelled: usize,
}

/// A task of the plan within its batch.
#[derive(Debug)]
pub(crate) struct Node {
    /// What has become of it.
    pub phase: Phase,
    /// Its instances; indices are stable.
    pub instances: Vec<Instance>,
    /// Of its instances.
    pub counts: Counts,
    by_item: HashMap<Box<str>, usize>,
    whole_deps: Vec<usize>,
    item_deps: Vec<usize>,
    whole_dependants: Vec<usize>,
    item_dependants: Vec<usize>,
    keyed: bool,
    gate_open: bool,
    expanding: bool,
    over: bool,
    ready: VecDeque<usize>,
    max_parallel: usize,
    foreach: bool,
    cancel_when_expanded: Option<String>,
    /// Why the first of its instances did not get done.
    cause: Option<String>,
}

/// How a batch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// All that had to be done is.
    Complete,
    /// Something failed.
    Failed,
}

/// The state of one batch.
#[derive(Debug)]
pub(crate) struct Graph {
    nodes: Vec<Node>,
    names: Vec<String>,
    max_failed: Vec<rigor_plan::MaxFailed>,
    on_failure: Vec<OnFailure>,
    by_id: HashMap<TaskId, (u32, u32)>,
    steps: VecDeque<Step>,
    held: bool,
    stopping: Option<String>,
}

impl Graph {
    /// The state before anything was expanded.
    pub(crate) fn new(plan: &Plan) -> Graph {
        let index: HashMap<&str, usize> = plan
            .tasks
            .iter()
            .enumerate()
            .map(|(n, task)| (task.id.as_str(), n))
            .collect();
        let mut nodes: Vec<Node> = plan
            .tasks
            .iter()
            .map(|task| {
                let deps = |per_item: bool| {
                    task.deps
                        .iter()
                        .filter(|dep| dep.per_item == per_item)
                        .filter_map(|dep| index.get(dep.task.as_str()).copied())
                        .collect::<Vec<usize>>()
                };
                Node {
                    phase: Phase::Unexpanded,
                    instances: Vec::new(),
                    counts: Counts::default(),
                    by_item: HashMap::new(),
                    whole_deps: deps(false),
                    item_deps: deps(true),
                    whole_dependants: Vec::new(),
                    item_dependants: Vec::new(),
                    keyed: false,
                    gate_open: false,
                    expanding: false,
                    over: false,
                    ready: VecDeque::new(),
                    max_parallel: task.max_parallel.map_or(usize::MAX, |most| most as usize),
                    foreach: task.foreach.is_some(),
                    cancel_when_expanded: None,
                    cause: None,
                }
            })
            .collect();
        for n in 0..nodes.len() {
            for dep in nodes[n].whole_deps.clone() {
                nodes[dep].whole_dependants.push(n);
            }
            for dep in nodes[n].item_deps.clone() {
                nodes[dep].item_dependants.push(n);
                nodes[dep].keyed = true;
                nodes[n].keyed = true;
            }
        }
        Graph {
            nodes,
            names: plan.tasks.iter().map(|task| task.id.clone()).collect(),
            max_failed: plan.tasks.iter().map(|task| task.max_failed).collect(),
            on_failure: plan.tasks.iter().map(|task| task.on_failure).collect(),
            by_id: HashMap::new(),
            steps: VecDeque::new(),
            held: false,
            stopping: None,
        }
    }

    /// The nodes, in the plan's order.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The tasks whose end a task waits for, as wholes.
    pub(crate) fn whole_deps(&self, task: usize) -> Vec<usize> {
        self.nodes[task].whole_deps.clone()
    }

    /// The instance of that id.
    pub(crate) fn find(&self, id: TaskId) -> Option<(usize, usize)> {
        self.by_id
            .get(&id)
            .map(|(task, instance)| (*task as usize, *instance as usize))
    }

    /// One instance.
    pub(crate) fn instance(&self, task: usize, instance: usize) -> &Instance {
        &self.nodes[task].instances[instance]
    }

    /// The next thing to do.
    pub(crate) fn next_step(&mut self) -> Option<Step> {
        loop {
            let step = self.steps.pop_front()?;
            // After a restart a task's gate may have opened before its own instances were read.
            let stale = match step {
                Step::Expand { task } => self.nodes[task].phase != Phase::Unexpanded,
                Step::Release { .. } | Step::Cancel { .. } => false,
            };
            if !stale {
                return Some(step);
            }
        }
    }

    /// Whether anything is to be done.
    pub(crate) fn has_steps(&self) -> bool {
        !self.steps.is_empty()
    }

    /// A step could not be carried out: it comes again.
    pub(crate) fn put_back(&mut self, step: Step) {
        self.steps.push_front(step);
    }

    /// A release found no file: the instance waits again, if it still does.
    pub(crate) fn unreleased(&mut self, task: usize, instance: usize) {
        let node = &mut self.nodes[task];
        if node.instances[instance].state == State::Released {
            count(&mut node.counts, State::Released, -1);
            count(&mut node.counts, State::Waiting, 1);
            node.instances[instance].state = State::Waiting;
            node.ready.push_back(instance);
            self.pump(task);
        }
    }

    /// Looks at every task once: at the start, and after a restart when the states were set.
    pub(crate) fn start(&mut self) {
        for task in 0..self.nodes.len() {
            // A task without foreach has its file from the start, so that `waiting/` shows it.
            let node = &mut self.nodes[task];
            if !node.foreach && node.phase == Phase::Unexpanded && !node.expanding {
                node.expanding = true;
                self.steps.push_back(Step::Expand { task });
            }
            self.settle(task);
        }
        for task in 0..self.nodes.len() {
            self.check_gate(task);
        }
    }

    /// The instances of a task are known. In `state` each instance's state may differ from
    /// waiting after a restart.
    pub(crate) fn expanded(&mut self, task: usize, instances: Vec<NewInstance>) {
        let node = &mut self.nodes[task];
        node.phase = Phase::Expanded;
        node.expanding = false;
        let first = node.instances.len();
        for (name, item, items, state) in instances {
            let instance = node.instances.len();
            let item: Option<Box<str>> = item.map(String::into_boxed_str);
            if let (true, Some(item)) = (node.keyed, &item) {
                node.by_item.insert(item.clone(), instance);
            }
            self.by_id.insert(name.id, (task as u32, instance as u32));
            node.instances.push(Instance {
                name,
                item,
                state,
                items,
                blocked_on: 0,
            });
            count(&mut node.counts, state, 1);
        }
        self.wire(task, first);
        if let Some(reason) = self.nodes[task].cancel_when_expanded.take() {
            self.cancel_task(task, &reason, false);
        }
        self.settle(task);
        for dependant in self.nodes[task].item_dependants.clone() {
            self.check_gate(dependant);
        }
        self.check_gate(task);
    }

    /// The items of a task cannot be had.
    pub(crate) fn broken(&mut self, task: usize, reason: String) {
        self.nodes[task].expanding = false;
        self.nodes[task].phase = Phase::Broken(reason);
        if self.on_failure[task] == OnFailure::Stop {
            self.stop(format!(
                "task {} failed and the plan says on_failure: stop",
                self.names[task]
            ));
        }
        self.settle(task);
    }

    /// An instance moved. Moves that are known already change nothing.
    pub(crate) fn moved(&mut self, task: usize, instance: usize, name: FileName, state: State) {
        let node = &mut self.nodes[task];
        let before = node.instances[instance].state;
        node.instances[instance].name = name;
        if before == state {
            return;
        }
        count(&mut node.counts, before, -1);
        count(&mut node.counts, state, 1);
        node.instances[instance].state = state;
        match state {
            State::Waiting => self.revived(task, instance),
            State::Released | State::Retry => {}
            State::Done | State::Failed | State::Cancelled | State::Split => {
                self.ended(task, instance, state);
            }
        }
        self.pump(task);
        if self.nodes[task].instances[instance].state.is_over() {
            self.settle(task);
        }
    }

    /// Nothing more is released until [`Graph::release`]; what was about to be is not.
    pub(crate) fn hold(&mut self) {
        self.held = true;
        for step in std::mem::take(&mut self.steps) {
            match step {
                Step::Release { task, instance } => self.unreleased(task, instance),
                Step::Expand { .. } | Step::Cancel { .. } => self.steps.push_back(step),
            }
        }
    }

    /// Ends a hold.
    pub(crate) fn release(&mut self) {
        self.held = false;
        for task in 0..self.nodes.len() {
            self.pump(task);
        }
    }

    /// Whether it is held.
    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    /// After a restart: a failure that stops the batch had happened before.
    pub(crate) fn stop_if_failed(&mut self) {
        let failed = (0..self.nodes.len()).find(|task| {
            self.on_failure[*task] == OnFailure::Stop && self.nodes[*task].counts.failed > 0
        });
        if let Some(task) = failed {
            self.stop(format!(
                "task {} failed and the plan says on_failure: stop",
                self.names[task]
            ));
        }
    }

    /// Cancels all that has not started.
    pub(crate) fn stop(&mut self, reason: String) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(reason.clone());
        for task in 0..self.nodes.len() {
            self.cancel_task(task, &reason, true);
        }
    }

    /// Cancels again what a batch that is stopping still has open: an attempt that was told to end
    /// may have been lost with its agent and queued anew.
    pub(crate) fn stop_rest(&mut self) {
        if let Some(reason) = self.stopping.clone() {
            for task in 0..self.nodes.len() {
                self.cancel_task(task, &reason, true);
            }
        }
    }

    /// Why nothing more is started, if so.
    pub(crate) fn stopping(&self) -> Option<&str> {
        self.stopping.as_deref()
    }

    /// Cancels one instance and, in time, what depends on it.
    pub(crate) fn cancel(&mut self, task: usize, instance: usize, reason: &str) {
        if !self.nodes[task].instances[instance].state.is_over() {
            self.give_up(task, instance, reason.to_owned());
        }
    }

    /// Whether a task's failures are few enough to be borne.
    pub(crate) fn is_good(&self, task: usize) -> bool {
        matches!(self.outcome(task), Outcome::Good)
    }

    /// How the batch ended; `None` while anything can still happen.
    pub(crate) fn ending(&self) -> Option<Ending> {
        if !self.steps.is_empty() || self.nodes.iter().any(|node| !node.over) {
            return None;
        }
        let good = (0..self.nodes.len()).all(|task| self.is_good(task));
        Some(if good {
            Ending::Complete
        } else {
            Ending::Failed
        })
    }

    /// Counts over all tasks.
    pub(crate) fn totals(&self) -> Counts {
        self.nodes.iter().fold(Counts::default(), |mut sum, node| {
            sum.total += node.counts.total;
            sum.waiting += node.counts.waiting;
            sum.released += node.counts.released;
            sum.retry += node.counts.retry;
            sum.done += node.counts.done;
            sum.failed += node.counts.failed;
            sum.cancelled += node.counts.cancelled;
            sum
        })
    }

    /// An operator wants failed tasks again: forgets that this task and all after it were over,
    /// so that cancelled dependants can return. The caller revives the files.
    pub(crate) fn reopen(&mut self) {
        self.stopping = None;
        for node in &mut self.nodes {
            node.over = false;
            node.gate_open = false;
            node.cause = None;
            if matches!(node.phase, Phase::Broken(_) | Phase::Cancelled(_)) {
                node.phase = Phase::Unexpanded;
            }
        }
    }

    /// Dependants of a task, directly or not, with the task itself.
    pub(crate) fn downstream(&self, task: usize) -> Vec<usize> {
        let mut found = vec![task];
        let mut next = 0;
        while let Some(of) = found.get(next).copied() {
            next += 1;
            let node = &self.nodes[of];
            for dependant in node.whole_dependants.iter().chain(&node.item_dependants) {
                if !found.contains(dependant) {
                    found.push(*dependant);
                }
            }
        }
        found
    }
}

enum Outcome {
    Open,
    Good,
    Bad(&'static str),
}

fn count(counts: &mut Counts, state: State, by: isize) {
    let slot = match state {
        State::Waiting => &mut counts.waiting,
        State::Released => &mut counts.released,
        State::Retry => &mut counts.retry,
        State::Done => &mut counts.done,
        State::Failed => &mut counts.failed,
        State::Cancelled => &mut counts.cancelled,
        State::Split => return,
    };
    *slot = slot
        .checked_add_signed(by)
        .expect("an instance is counted where it stands");
    counts.total = counts
        .total
        .checked_add_signed(by)
        .expect("an instance is counted once");
}

#[cfg(test)]
mod tests;
