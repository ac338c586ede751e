//! Why something happens or does not: facts in, an explanation out.
//!
//! The first line is the answer, with the one reason that decides. The gates behind it are in the
//! order in which they are passed. Refusals are those that the agents' own decisions gave; nothing
//! is judged a second time here.

mod agent;
mod batch;
mod eta;
mod liveness;
mod task;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rigor_queue::heartbeat::{Heartbeat, RunningBeat};
use rigor_queue::lane::Lane;
use rigor_queue::name::{Shape, TaskId};
use rigor_queue::outlook::Outlook;
use rigor_queue::reasons::Reason;
use rigor_queue::record::FailureKind;
use rigor_queue::task::{Backoff, Class};
use serde::Serialize;

pub use agent::{AgentVerdict, agent, brain};
pub use batch::{BatchVerdict, batch};
pub use task::{TaskVerdict, task};

/// Something that is to happen within a moment may take so long before it is called a bug.
const MOMENT_S: i64 = 10;

/// Free space below which nothing can be relied on to be written, MB.
const DISK_FULL_MB: u64 = 16;

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation<V> {
    /// In one word.
    pub verdict: V,
    /// The code of what decides: a refusal's, a cause's, or one of this module's.
    pub reason: String,
    /// In one line.
    pub summary: String,
    /// What has to be passed, or what is so, in order.
    pub gates: Vec<Gate>,
    /// Commands that would help.
    pub help: Vec<Help>,
}

/// One condition and how it stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gate {
    /// What kind of condition: `dependency`, `agent`, `model`, ...
    pub gate: &'static str,
    /// Whose; empty where the kind says it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// Whether it is passed.
    pub state: GateState,
    /// A refusal's code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// With the numbers.
    pub words: String,
    /// In about so many seconds it is passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_s: Option<u64>,
}

/// How a condition stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GateState {
    /// Passed.
    Open,
    /// Not passed.
    Closed,
    /// Cannot be known.
    Unknown,
    /// A fact, no condition.
    Info,
}

/// A command that would help.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Help {
    /// The command.
    pub command: String,
    /// What it does.
    pub does: &'static str,
}

/// What every explanation looks at.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Now.
    pub now: Timestamp,
    /// Where times of day are told.
    pub zone: TimeZone,
    /// The brain.
    pub brain: Component,
    /// What the brain alone knows; none: it never said.
    pub outlook: Option<Outlook>,
    /// The agents, those of rig.toml first.
    pub agents: Vec<AgentFacts>,
    /// Models of rig.toml that lie on several GPUs: they are loaded by the brain alone.
    pub split_models: BTreeSet<String>,
    /// `timing.heartbeat_warn`.
    pub heartbeat_warn: Duration,
    /// `timing.heartbeat_hung`.
    pub heartbeat_hung: Duration,
    /// Signals that an operator sent to the brain and that it has not taken yet.
    pub brain_signals: Vec<String>,
}

/// Who holds a component's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nobody.
    Gone,
    /// The brain, for one that is dead.
    Recovering,
    /// Itself.
    Alive,
}

/// The brain or an agent.
#[derive(Clone, Debug)]
pub struct Component {
    /// Its name.
    pub name: String,
    /// Who holds its lock.
    pub presence: Presence,
    /// Its process, as its lock says.
    pub pid: Option<u32>,
    /// The state of that process: `S`, `T` (stopped), `D`, `Z`.
    pub process: Option<char>,
    /// The last heartbeat, of this process or an earlier one.
    pub beat: Option<Heartbeat>,
    /// When its heartbeat's file was last written or touched.
    pub seen: Option<Timestamp>,
}

/// An agent.
#[derive(Clone, Debug)]
pub struct AgentFacts {
    /// As any component.
    pub component: Component,
    /// It is in rig.toml.
    pub configured: bool,
    /// It has a GPU.
    pub gpu: bool,
    /// The model that it loads for tasks that name none.
    pub default_model: Option<String>,
}

/// A task of a plan, all its items together.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// Its id in the plan.
    pub id: String,
    /// Its class.
    pub class: Option<Class>,
    /// Its items are known.
    pub expanded: bool,
    /// It has one task for each item.
    pub foreach: bool,
    /// Items; none until they are known.
    pub total: Option<u64>,
    /// Completed.
    pub done: u64,
    /// Failed for good.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
    /// Queued or running.
    pub released: u64,
    /// Of those, how many agents say that they run.
    pub running: u64,
    /// Between two attempts.
    pub retry: u64,
    /// Why it can never run.
    pub problem: Option<String>,
    /// Steps that it waits for.
    pub depends_on: Vec<String>,
    /// Of those, where each item waits for its own alone.
    pub per_item: Vec<String>,
    /// Seconds of an attempt, and how many were measured.
    pub measured: Option<(f64, u64)>,
}

/// A batch.
#[derive(Clone, Debug, Default)]
pub struct BatchFacts {
    /// Its id.
    pub id: String,
    /// Where its plan is.
    pub state: BatchState,
    /// Completed, failed, cancelled, in all.
    pub done: u64,
    /// Failed for good.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
    /// In all, an estimate until every foreach is expanded.
    pub total: u64,
    /// When it was submitted.
    pub submitted: Option<Timestamp>,
    /// The steps of its plan.
    pub steps: Vec<Step>,
    /// Why the plan was rejected or the whole batch ended.
    pub reason: Option<String>,
    /// Failed tasks by their cause.
    pub failures: Vec<Failures>,
    /// Of its tasks in the queue, by shape.
    pub queued: BTreeMap<Shape, Queued>,
    /// Attempts to come and why the last one failed: names and reasons, the first few.
    pub retries: Vec<(String, String)>,
}

/// Queued tasks of one shape.
#[derive(Clone, Debug)]
pub struct Queued {
    /// How many.
    pub count: usize,
    /// One of them.
    pub one: TaskId,
    /// Their class.
    pub class: Class,
    /// The model that they name.
    pub model: Option<String>,
}

/// Where a batch's plan is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BatchState {
    /// The brain has not taken it up.
    #[default]
    Submitted,
    /// Its tasks go through the lanes.
    Running,
    /// An operator holds it.
    Held,
    /// Over.
    Complete,
    /// Over, with failures.
    Failed,
    /// Over, by an operator.
    Cancelled,
}

/// Failed tasks that share a cause.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failures {
    /// The cause, in words without what differs from task to task.
    pub cause: String,
    /// How many.
    pub count: usize,
    /// Some of them: name and id.
    pub examples: Vec<(String, String)>,
}

/// A task.
#[derive(Clone, Debug)]
pub struct TaskFacts {
    /// Its id.
    pub id: TaskId,
    /// `batch/name`.
    pub name: String,
    /// Its id in the plan.
    pub step: String,
    /// Its class.
    pub class: Class,
    /// Where it lies.
    pub lane: Lane,
    /// Since when.
    pub since: Option<Timestamp>,
    /// What it needs, hashed.
    pub shape: Shape,
    /// Agents it may run on; empty: any.
    pub on: Vec<String>,
    /// The model it names.
    pub model: Option<String>,
    /// Attempts so far that were charged.
    pub charged: u32,
    /// The attempt that runs, ran last, or comes next.
    pub attempt: u32,
    /// Attempts after the first that may be charged.
    pub retries: u32,
    /// Between attempts.
    pub backoff: Backoff,
    /// Items in the task.
    pub items: usize,
    /// Its batch; none for a task of no plan.
    pub batch: Option<BatchFacts>,
    /// For the steps of which each item waits for its own: where that one lies.
    pub own_items: BTreeMap<String, Option<Lane>>,
    /// Tasks of its class before it in claim order.
    pub ahead: usize,
    /// Attempts that are over, the first first.
    pub attempts: Vec<Attempt>,
    /// Who has it, in processing.
    pub agent: Option<String>,
    /// What its agent says of it.
    pub beat: Option<RunningBeat>,
    /// The process of its worker.
    pub worker: Option<u32>,
    /// Why it is in quarantine.
    pub quarantined: Option<String>,
    /// The last lines that it printed.
    pub output: Vec<String>,
}

/// An attempt that is over.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Which.
    pub attempt: u32,
    /// Who ran it.
    pub agent: String,
    /// `succeeded`, `failed`, `lost` or `cancelled`.
    pub outcome: &'static str,
    /// Which kind of failure.
    pub kind: Option<FailureKind>,
    /// In words.
    pub reason: Option<String>,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// How long it took.
    pub took: Option<Duration>,
}

/// What an explanation of one agent looks at besides [`Facts`].
#[derive(Clone, Debug, Default)]
pub struct OneAgent {
    /// Its name.
    pub name: String,
    /// Directories that it writes to: their name in the rig, free and total MB.
    pub disks: Vec<(String, u64, u64)>,
    /// The last changes of its cause, the newest last.
    pub changes: Vec<Reason>,
    /// Task files in its processing.
    pub processing: usize,
    /// Signals that wait for it.
    pub signals: Vec<String>,
    /// The runtime that it left and that still runs: its model and processes.
    pub orphan: Option<(String, Vec<i32>)>,
    /// The last line of its log, of a process that ended.
    pub last_words: Option<String>,
}

impl Gate {
    fn new(gate: &'static str, state: GateState, words: impl Into<String>) -> Gate {
        Gate {
            gate,
            subject: String::new(),
            state,
            code: None,
            words: words.into(),
            eta_s: None,
        }
    }

    fn of(mut self, subject: &str) -> Gate {
        subject.clone_into(&mut self.subject);
        self
    }

    fn code(mut self, code: &'static str) -> Gate {
        self.code = Some(code);
        self
    }
}

fn help(command: impl Into<String>, does: &'static str) -> Help {
    Help {
        command: command.into(),
        does,
    }
}

/// Adds what is not there yet.
fn add_help(all: &mut Vec<Help>, one: Help) {
    if !all.iter().any(|known| known.command == one.command) {
        all.push(one);
    }
}

fn count(number: u64, noun: &str) -> String {
    if number == 1 {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}
