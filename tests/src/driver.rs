//! What the programs do to the queue, one operation at a time and in one thread: the same
//! functions in the same order as `rigor`, `brain` and `gpu-agent` call them. The program
//! `fault-driver` runs one; a sweep stops it at each of its system calls.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rigor_exec::recovery::{self, RecoveryLimits};
use rigor_exec::{Containment, finish, settle_unstarted};
use rigor_queue::claim::{self, Candidate, Held, Moved, Opened};
use rigor_queue::lane::Lane;
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::presence::{ComponentLock, Role};
use rigor_queue::record::{AttemptRecord, FailureKind, Outcome};
use rigor_queue::records;
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::{self, Durability};
use rigor_queue::task::{Class, Submission, TaskSpec, Work};

use crate::tasks;

/// The batch of the operations.
pub const BATCH: &str = "faults";
/// The agent that has tasks in hand.
pub const AGENT: &str = "cpu-1";
/// The id of the rig: no attempt of it has a process.
pub const RIG_ID: &str = "faultsrig";

/// The task of the plan.
const TASK: &str = "t";
/// A dead agent's attempts are taken back so often without being charged.
const UNCHARGED: u32 = 3;
/// A component that comes back waits so long for a lock.
const PATIENCE: Duration = Duration::from_secs(5);
/// The tasks of one expansion: more than are made durable one by one.
const MANY: u64 = 12;

/// What is done to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `rigor submit`: a plan.
    Submit,
    /// The brain: two tasks, each made durable by itself.
    ExpandFew,
    /// The brain: more tasks, made durable by one `syncfs`.
    ExpandMany,
    /// The brain: waiting -> queue.
    Release,
    /// The agent, from its start: lock, processing. Durable, as with `retries: 0`.
    Claim,
    /// The worker's record and the agent's move to complete.
    Complete,
    /// The worker's record and the agent's move to retry.
    Fail,
    /// The brain: retry -> queue.
    Retry,
    /// The brain: retry -> failed.
    GiveUp,
    /// The agent gives a task back that it could not start.
    Requeue,
    /// The brain takes back what a dead agent had in hand.
    Recover,
    /// The brain adopts a result that a dead agent's worker has just left.
    Adopt,
    /// The brain: queue -> cancelled.
    Cancel,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 13] = [
        Operation::Submit,
        Operation::ExpandFew,
        Operation::ExpandMany,
        Operation::Release,
        Operation::Claim,
        Operation::Complete,
        Operation::Fail,
        Operation::Retry,
        Operation::GiveUp,
        Operation::Requeue,
        Operation::Recover,
        Operation::Adopt,
        Operation::Cancel,
    ];

    /// Its word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Submit => "submit",
            Operation::ExpandFew => "expand-few",
            Operation::ExpandMany => "expand-many",
            Operation::Release => "release",
            Operation::Claim => "claim",
            Operation::Complete => "complete",
            Operation::Fail => "fail",
            Operation::Retry => "retry",
            Operation::GiveUp => "give-up",
            Operation::Requeue => "requeue",
            Operation::Recover => "recover",
            Operation::Adopt => "adopt",
            Operation::Cancel => "cancel",
        }
    }

    /// The operation of that word.
    pub fn parse(text: &str) -> Option<Operation> {
        Operation::ALL.into_iter().find(|one| one.as_str() == text)
    }

    /// The lane in which its tasks end.
    pub fn ends_in(self) -> Lane {
        match self {
            Operation::Submit
            | Operation::Release
            | Operation::Retry
            | Operation::Requeue
            | Operation::Recover => Lane::Queue,
            Operation::ExpandFew | Operation::ExpandMany => Lane::Waiting,
            Operation::Claim => Lane::Processing,
            Operation::Complete | Operation::Adopt => Lane::Complete,
            Operation::Fail => Lane::Retry,
            Operation::GiveUp => Lane::Failed,
            Operation::Cancel => Lane::Cancelled,
        }
    }

    /// Whether its acknowledgement says that a power cut does not undo it. The other moves may be
    /// forgotten: they are made again.
    pub fn is_durable(self) -> bool {
        matches!(
            self,
            Operation::Submit
                | Operation::ExpandFew
                | Operation::ExpandMany
                | Operation::Complete
                | Operation::Fail
                | Operation::Adopt
        )
    }

    /// How many tasks an expansion makes.
    pub fn expands_to(self) -> usize {
        match self {
            Operation::ExpandFew => 2,
            Operation::ExpandMany => MANY as usize,
            _ => 0,
        }
    }

    /// Whether its tasks are there only after it.
    fn brings_tasks(self) -> bool {
        matches!(
            self,
            Operation::Submit | Operation::ExpandFew | Operation::ExpandMany
        )
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The program: `act`, or what comes before and after it (`prepare`, `restart`, `again`), then the
/// operation and the rig. Prints a line when that is acknowledged.
pub fn main(words: &[String]) -> ExitCode {
    let done = match words {
        [what, operation, rig] => carry_out(what, operation, Path::new(rig)),
        _ => Err(anyhow!(
            "usage: fault-driver prepare|act|restart|again OPERATION RIG"
        )),
    };
    match done {
        Ok(ids) => {
            println!("{}", acknowledgement(&ids));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("fault-driver: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(what: &str, operation: &str, rig: &Path) -> Result<Vec<TaskId>> {
    let operation =
        Operation::parse(operation).with_context(|| format!("no operation {operation:?}"))?;
    match what {
        "prepare" => prepare(operation, rig),
        "act" => act(operation, rig),
        "restart" => restart(rig).map(|()| Vec::new()),
        "again" => again(operation, rig),
        _ => bail!("no {what:?}"),
    }
}

/// What the driver prints when the operation is acknowledged.
pub fn acknowledgement(ids: &[TaskId]) -> String {
    let ids: Vec<String> = ids.iter().map(TaskId::to_string).collect();
    format!("acknowledged {}", ids.join(" "))
}

/// The tasks that a driver's output acknowledges; `None`: it acknowledges nothing.
pub fn acknowledged(stdout: &str) -> Option<Vec<TaskId>> {
    let words = stdout.strip_suffix('\n')?.strip_prefix("acknowledged")?;
    Some(
        words
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect(),
    )
}

/// Makes a rig in which the operation can take place. Returns the tasks that are there already,
/// and were acknowledged to somebody.
pub fn prepare(operation: Operation, root: &Path) -> Result<Vec<TaskId>> {
    let rig = Rig::create(root)?;
    // A component that runs has made these.
    rig.prepare_agent(AGENT)?;
    if operation.brings_tasks() {
        if operation != Operation::Submit {
            rig.prepare_batch(BATCH)?;
        }
        return Ok(Vec::new());
    }
    rig.prepare_batch(BATCH)?;
    let (name, spec) = new_task(1);
    let id = spec.id;
    submit::expand(&rig, BATCH, TASK, [(name, spec)], Durability::Process)?;
    if operation == Operation::Release {
        return Ok(vec![id]);
    }
    claim::release(&rig, BATCH, TASK, Class::Cpu, &name)?;
    if matches!(operation, Operation::Claim | Operation::Cancel) {
        return Ok(vec![id]);
    }
    let held = take(&rig, false)?;
    if matches!(operation, Operation::Retry | Operation::GiveUp) {
        records::write_new(&rig, &record(&held, failure()))?;
        held.fail(&rig)?;
    }
    Ok(vec![id])
}

/// Does it once more or for the first time, as a component does that starts now. Returns the tasks
/// that are acknowledged by that.
pub fn act(operation: Operation, root: &Path) -> Result<Vec<TaskId>> {
    let rig = Rig::open(root)?;
    match operation {
        Operation::Submit => submit_plan(&rig),
        Operation::ExpandFew | Operation::ExpandMany => expand(&rig, operation.expands_to() as u64),
        Operation::Release => {
            let place = Place::Waiting {
                batch: BATCH,
                task: TASK,
            };
            each(&rig, place, |name| {
                let moved = claim::release(&rig, BATCH, TASK, Class::Cpu, name)?;
                ensure!(moved == Moved::Done, "{name} is gone");
                Ok(())
            })
        }
        Operation::Claim => {
            let _lock = ComponentLock::take(&rig, AGENT, PATIENCE)?;
            Ok(vec![take(&rig, true)?.spec.id])
        }
        Operation::Complete => end(&rig, Outcome::Succeeded),
        Operation::Fail => end(&rig, failure()),
        Operation::Retry => each(&rig, Place::Retry(BATCH), |name| {
            let next = claim::retry(&rig, BATCH, Class::Cpu, name)?;
            next.context("it is gone").map(drop)
        }),
        Operation::GiveUp => each(&rig, Place::Retry(BATCH), |name| {
            let moved = claim::give_up(&rig, BATCH, name)?;
            ensure!(moved == Moved::Done, "{name} is gone");
            Ok(())
        }),
        Operation::Requeue => each(&rig, Place::Processing(AGENT), |name| {
            let outcome = Outcome::Lost {
                reason: "the worker could not be started".to_owned(),
            };
            settle_unstarted(&rig, AGENT, name, outcome, Durability::Default)?;
            Ok(())
        }),
        Operation::Recover => {
            let before = ids(&rig, Place::Processing(AGENT))?;
            take_back(&rig)?;
            Ok(before)
        }
        Operation::Adopt => {
            let left = each(&rig, Place::Processing(AGENT), |name| {
                leave_record(&rig, name, Outcome::Succeeded).map(drop)
            })?;
            take_back(&rig)?;
            Ok(left)
        }
        Operation::Cancel => each(&rig, Place::Queue(Class::Cpu), |name| {
            let held = opened(&rig, Place::Queue(Class::Cpu), name)?;
            let outcome = Outcome::Cancelled {
                reason: "the batch was cancelled".to_owned(),
            };
            let record = record(&held, outcome);
            records::replace(&rig, &record)?;
            held.cancel(&rig, name)?;
            Ok(())
        }),
    }
}

/// What components do when they start again: the dead agent's tasks are taken back, and unfinished
/// files are removed as if they were old enough.
pub fn restart(root: &Path) -> Result<()> {
    let rig = Rig::open(root)?;
    take_back(&rig)?;
    rig.sweep(Duration::ZERO, [BATCH])?;
    Ok(())
}

/// Brings the operation to its end after a restart, from wherever its tasks are now. Returns them.
pub fn again(operation: Operation, root: &Path) -> Result<Vec<TaskId>> {
    let rig = Rig::open(root)?;
    let end = operation.ends_in();
    if !operation.brings_tasks() {
        let ended = match end {
            Lane::Queue => ids(&rig, Place::Queue(Class::Cpu))?,
            Lane::Processing => ids(&rig, Place::Processing(AGENT))?,
            Lane::Complete => ids(&rig, Place::Complete(BATCH))?,
            Lane::Retry => ids(&rig, Place::Retry(BATCH))?,
            Lane::Failed => ids(&rig, Place::Failed(BATCH))?,
            _ => ids(&rig, Place::Cancelled(BATCH))?,
        };
        if !ended.is_empty() {
            return Ok(ended);
        }
        use Operation::{Adopt, Complete, Fail};
        if matches!(operation, Complete | Fail | Adopt)
            && ids(&rig, Place::Processing(AGENT))?.is_empty()
        {
            // It was given back; the next attempt ends as this one should have.
            take(&rig, false)?;
        }
    }
    act(operation, root)
}

fn submit_plan(rig: &Rig) -> Result<Vec<TaskId>> {
    rig.prepare_batch(BATCH)?;
    let spec = TaskSpec {
        class: Class::Brain,
        work: Work::Plan(Box::new(Submission {
            source: "# Plan: faults\n".to_owned(),
            files: Default::default(),
            inputs: Default::default(),
            limit: None,
            infer: false,
        })),
        ..tasks::spec(BATCH, "_plan", None, "")
    };
    let name = FileName::first(spec.priority, 1, spec.shape(), spec.id);
    let place = Place::Queue(Class::Brain);
    submit::submit(rig, place, &name, &spec, Durability::Default)?;
    Ok(vec![spec.id])
}

fn expand(rig: &Rig, count: u64) -> Result<Vec<TaskId>> {
    let all: Vec<_> = (1..=count).map(new_task).collect();
    let ids = all.iter().map(|(_, spec)| spec.id).collect();
    submit::expand(rig, BATCH, TASK, all, Durability::Default)?;
    Ok(ids)
}

fn end(rig: &Rig, outcome: Outcome) -> Result<Vec<TaskId>> {
    each(rig, Place::Processing(AGENT), |name| {
        // The worker's part, then the agent's.
        let record = leave_record(rig, name, outcome.clone())?;
        let attempt = (BATCH.to_owned(), name.id, name.attempt);
        records::commit(rig, &[attempt], Durability::Default)?;
        finish(rig, AGENT, name, &record)?;
        Ok(())
    })
}

/// What a worker cannot write, or has not written whole, the agent writes.
fn leave_record(rig: &Rig, name: &FileName, outcome: Outcome) -> Result<AttemptRecord> {
    let spec = claim::peek(rig, Place::Processing(AGENT), name)?.context("it is gone")?;
    let record = AttemptRecord::without_worker(AGENT, name, &spec, outcome);
    let written = records::write_new(rig, &record);
    if written.is_err() || records::read(rig, BATCH, name.id, name.attempt)?.is_none() {
        records::replace(rig, &record)?;
    }
    Ok(record)
}

fn take_back(rig: &Rig) -> Result<()> {
    let owner = ComponentLock::acquire(rig, AGENT, Role::Recovering)?;
    let limits = RecoveryLimits {
        grace: PATIENCE,
        uncharged_attempts: UNCHARGED,
        durability: Durability::Default,
    };
    let containment = Containment::cookie_only(RIG_ID);
    let recovered = recovery::recover(rig, AGENT, &owner, &containment, limits, "it died")?;
    ensure!(recovered.unkillable.is_empty(), "{recovered:?}");
    ensure!(recovered.quarantined.is_empty(), "{recovered:?}");
    Ok(())
}

/// Claims the one task that is queued.
fn take(rig: &Rig, durable: bool) -> Result<Held> {
    let names = rig.list(Place::Queue(Class::Cpu))?.names;
    let name = names.first().context("nothing is queued")?;
    match claim::candidate(rig, Class::Cpu, name)? {
        Candidate::Ready(held) => held.claim(rig, AGENT, durable)?.context("a lost race"),
        other => bail!("{name}: {other:?}"),
    }
}

fn opened(rig: &Rig, place: Place<'_>, name: &FileName) -> Result<Held> {
    match claim::open_in(rig, place, name)? {
        Opened::Held(held) => Ok(held),
        other => bail!("{name}: {other:?}"),
    }
}

/// Acts on every task in a place, of which there has to be one.
fn each(rig: &Rig, place: Place<'_>, act: impl Fn(&FileName) -> Result<()>) -> Result<Vec<TaskId>> {
    let names = rig.list(place)?.names;
    ensure!(!names.is_empty(), "nothing is there");
    names.iter().try_for_each(act)?;
    Ok(names.iter().map(|name| name.id).collect())
}

fn ids(rig: &Rig, place: Place<'_>) -> Result<Vec<TaskId>> {
    Ok(rig.list(place)?.names.iter().map(|name| name.id).collect())
}

fn new_task(number: u64) -> (FileName, TaskSpec) {
    let item = format!("i{number}");
    let spec = tasks::spec(BATCH, TASK, Some(&item), "true");
    let name = FileName::first(spec.priority, number, spec.shape(), spec.id);
    (name, spec)
}

fn record(held: &Held, outcome: Outcome) -> AttemptRecord {
    AttemptRecord::without_worker(AGENT, &held.name, &held.spec, outcome)
}

fn failure() -> Outcome {
    Outcome::Failed {
        kind: FailureKind::ExitCode,
        reason: "exit code 1".to_owned(),
    }
}
