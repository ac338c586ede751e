//! The state of a small rig: what is in the directories, who holds which lock, who is where in
//! which procedure.

use rigor_queue::lane::{Holding, Lane, Move, transition};
use rigor_queue::name::{FileName, Shape, TaskId};

/// Attempts are counted from 1; more than these are a violation of their own.
pub(crate) const ATTEMPTS: usize = 6;
/// The brain's index among the actors; the agents come before it.
pub(crate) const BRAIN: u8 = 2;

/// A task file: where it lies and what its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct File {
    pub(crate) lane: Lane,
    /// Whose directory, in `processing/`.
    pub(crate) dir: u8,
    pub(crate) attempt: u8,
    pub(crate) charged: u8,
}

/// Who holds the flock on a task file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    Actor(u8),
    /// The worker of that attempt.
    Worker(u8),
}

/// What the record of an attempt says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verdict {
    Succeeded,
    Failed,
    Lost,
    Cancelled,
}

/// The record of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub(crate) says: Verdict,
    /// It survives a power cut.
    pub(crate) durable: bool,
    /// It is of a claim that a power cut made the rig forget.
    pub(crate) stale: bool,
}

/// The processes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tree {
    None,
    /// The worker with what the task started.
    Working,
    /// The worker has ended its tree and written its record, and lives.
    Recorded,
    /// The worker is gone, what the task started is not.
    Orphans,
}

/// Where an actor is. One step is one system call, or what has no other's step in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum At {
    Dead,
    Idle,
    /// An attempt in an agent's hands.
    Attempt {
        stage: Stage,
        task: u8,
        attempt: u8,
    },
    /// Takes back what lies in `processing/<dir>/`.
    Recovering {
        dir: u8,
    },
    /// One task of that.
    TakingBack {
        stage: Back,
        dir: u8,
        task: u8,
        attempt: u8,
    },
    /// The brain with a task.
    Brain {
        stage: Mind,
        task: u8,
    },
}

/// How far an agent is with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// Has opened the file in the queue.
    Opened,
    /// Holds its lock.
    Locked,
    /// Has seen that the path still names the locked file.
    Checked,
    /// Has copied it to `processing/` (only without atomic renames).
    Copied,
    /// Has renamed it to `processing/`; the lock is still its own.
    Claimed,
    /// The claim is on disk.
    Synced,
    /// The worker has the lock.
    Running,
    /// The worker is seen to have ended.
    Exited,
    /// Nothing of the attempt is left.
    Quiet,
    /// The record is there.
    Settled,
    /// And durable.
    Committed,
    /// And the file is locked again.
    Finishing,
    /// The file is moved, the record is not there (only without that protection).
    Owing,
}

/// How far a recovery is with a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Back {
    /// Has looked for the record, and nothing else yet (only where it does not read again).
    Read { seen: bool },
    /// Has killed the attempt's tree. `seen`: the record was there before.
    Killed { seen: bool },
    /// Holds the file's lock.
    Locked { seen: bool },
    /// The record is there.
    Told,
    /// And durable.
    Safe,
}

/// How far the brain is with a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mind {
    /// Has built `.new-<task>/` and synced what is in it.
    Built,
    /// The directory is renamed.
    Made,
    /// Holds the lock of what is to be cancelled.
    Ending,
    /// The record of that is there.
    EndTold,
    /// Holds the lock of what is to be withdrawn.
    Withdrawing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Task {
    pub(crate) file: Option<File>,
    /// What a power cut leaves.
    pub(crate) disk: Option<File>,
    /// A second file of the same task: never, unless a protection is missing.
    pub(crate) twin: Option<Lane>,
    pub(crate) lock: Option<Holder>,
    pub(crate) records: [Option<Record>; ATTEMPTS],
    pub(crate) trees: [Tree; ATTEMPTS],
    /// Its submission was acknowledged.
    pub(crate) acknowledged: bool,
    pub(crate) cancel_asked: bool,
    /// Workers that were started, up to 2.
    pub(crate) runs: u8,
}

/// A process that lost its component's lock and still has one rename to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Zombie {
    pub(crate) task: u8,
    pub(crate) dir: u8,
    pub(crate) attempt: u8,
    pub(crate) step: ZombieStep,
    /// Somebody has moved the task on since.
    pub(crate) fenced: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ZombieStep {
    Complete,
    Fail,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World<const TASKS: usize> {
    pub(crate) tasks: [Task; TASKS],
    pub(crate) actors: [At; 3],
    /// `agents/<agent>/lock`: which actor holds it.
    pub(crate) locks: [Option<u8>; 3],
    pub(crate) zombie: Option<Zombie>,
    /// Crashes that may still come.
    pub(crate) crashes: u8,
    pub(crate) power_cuts: u8,
    pub(crate) zombies: u8,
    pub(crate) withdrawals: u8,
    /// What went wrong in the step that led here.
    pub(crate) bad: Option<&'static str>,
}

impl Task {
    pub(crate) fn record(&self, attempt: u8) -> Option<Record> {
        self.records[attempt as usize]
    }

    pub(crate) fn write(&mut self, attempt: u8, says: Verdict) {
        self.records[attempt as usize] = Some(Record {
            says,
            durable: false,
            stale: false,
        });
    }

    pub(crate) fn sync_record(&mut self, attempt: u8) {
        if let Some(record) = &mut self.records[attempt as usize] {
            record.durable = true;
        }
    }

    pub(crate) fn tree(&self, attempt: u8) -> Tree {
        self.trees[attempt as usize]
    }

    /// The file, if it lies in `processing/<dir>/`.
    pub(crate) fn in_processing(&self, dir: u8) -> Option<File> {
        self.file
            .filter(|file| file.lane == Lane::Processing && file.dir == dir)
    }

    /// Ends the processes of an attempt, and with them the worker's lock.
    pub(crate) fn kill(&mut self, attempt: u8) {
        self.trees[attempt as usize] = Tree::None;
        if self.lock == Some(Holder::Worker(attempt)) {
            self.lock = None;
        }
    }
}

/// Asks the protocol's own transition function.
pub(crate) fn moved(step: Move, file: File, dir: u8, holding: Holding) -> Result<File, String> {
    let id = TaskId::derive("b", "t", None);
    let mut name = FileName::first(5, 1, Shape(7), id);
    name.attempt = u32::from(file.attempt);
    name.charged = u32::from(file.charged);
    let (lane, next) =
        transition(step, file.lane, &name, holding).map_err(|error| error.to_string())?;
    Ok(File {
        lane,
        dir: if lane == Lane::Processing { dir } else { 0 },
        attempt: next.attempt as u8,
        charged: next.charged as u8,
    })
}

impl Task {
    pub(crate) fn unlock(&mut self, actor: u8) {
        if self.lock == Some(Holder::Actor(actor)) {
            self.lock = None;
        }
    }
}

impl<const N: usize> World<N> {
    /// Nothing was submitted, nobody was started.
    pub(crate) fn new(crashes: u8, power_cuts: u8, zombies: u8, withdrawals: u8) -> World<N> {
        let task = Task {
            file: None,
            disk: None,
            twin: None,
            lock: None,
            records: [None; ATTEMPTS],
            trees: [Tree::None; ATTEMPTS],
            acknowledged: false,
            cancel_asked: false,
            runs: 0,
        };
        World {
            tasks: [task; N],
            actors: [At::Dead; 3],
            locks: [None; 3],
            zombie: None,
            crashes,
            power_cuts,
            zombies,
            withdrawals,
            bad: None,
        }
    }

    /// Moves a task's file as the protocol's transition function says.
    pub(crate) fn carry(&mut self, task: u8, step: Move, file: File, dir: u8, holding: Holding) {
        match moved(step, file, dir, holding) {
            Ok(next) if (next.attempt as usize) < ATTEMPTS => {
                self.tasks[task as usize].file = Some(next);
            }
            Ok(_) => self.bad = Some("a task is tried without end"),
            Err(_) => self.bad = Some("a move that the table does not have"),
        }
    }

    /// Takes the fence of a move back.
    pub(crate) fn unfence(&mut self, task: u8, attempt: u8) {
        if let Some(file) = &mut self.tasks[task as usize].file {
            file.attempt = attempt;
        }
        self.tasks[task as usize].records[attempt as usize] = None;
    }

    /// The claim of `attempt` by `dir` is over: its zombie must not move the task any more.
    pub(crate) fn fence(&mut self, task: u8, dir: u8, attempt: u8) {
        if let Some(zombie) = &mut self.zombie
            && (zombie.task, zombie.dir, zombie.attempt) == (task, dir, attempt)
        {
            zombie.fenced = true;
        }
    }

    pub(crate) fn crashed(&mut self) {
        // 255: without end.
        if self.crashes != u8::MAX {
            self.crashes -= 1;
        }
    }

    /// The kernel frees what a process held.
    pub(crate) fn release_all(&mut self, actor: u8) {
        for lock in &mut self.locks {
            *lock = lock.filter(|holder| *holder != actor);
        }
        for task in &mut self.tasks {
            task.unlock(actor);
        }
    }

    /// After a power cut: nothing runs, nobody holds anything.
    pub(crate) fn dark(&self) -> World<N> {
        let mut next = *self;
        next.power_cuts -= 1;
        next.actors = [At::Dead; 3];
        next.locks = [None; 3];
        next.zombie = None;
        for task in &mut next.tasks {
            task.lock = None;
            task.trees = [Tree::None; ATTEMPTS];
        }
        next
    }

    /// Records of claims that the directory knows nothing of any more.
    pub(crate) fn age_records(&mut self) {
        for task in &mut self.tasks {
            task.disk = task.file;
            let file = task.file;
            for (attempt, record) in task.records.iter_mut().enumerate() {
                let Some(record) = record else { continue };
                record.durable = true;
                let unclaimed = file.is_none_or(|file| {
                    attempt > file.attempt as usize
                        || (attempt == file.attempt as usize
                            && matches!(file.lane, Lane::Waiting | Lane::Queue))
                });
                record.stale |= unclaimed;
            }
        }
    }

    /// Everything that must hold in every state, and from one to the next.
    pub(crate) fn judge(&mut self, before: &World<N>, uncut: bool) {
        if self.bad.is_some() {
            return;
        }
        for (task, was) in self.tasks.iter().zip(&before.tasks) {
            if let Some(what) = task.fault(was, uncut, before.power_cuts > self.power_cuts) {
                self.bad = Some(what);
                return;
            }
        }
    }

    /// Leaves out what nothing depends on any more, so that equal futures are equal states.
    pub(crate) fn forget(&mut self) {
        for task in &mut self.tasks {
            let attempt = |file: Option<File>| file.map_or(1, |file| usize::from(file.attempt));
            let disk = (self.power_cuts > 0).then(|| attempt(task.disk));
            let current = attempt(task.file).min(disk.unwrap_or(usize::MAX));
            for attempt in 0..current {
                if task.trees[attempt] == Tree::None {
                    task.records[attempt] = None;
                }
            }
            if self.power_cuts == 0 {
                task.disk = None;
                for record in task.records.iter_mut().flatten() {
                    record.durable = true;
                }
            }
        }
    }

    /// Every task has ended and every process is up and idle.
    pub(crate) fn is_over(&self) -> bool {
        let ended = self
            .tasks
            .iter()
            .all(|task| task.file.is_some_and(|file| file.lane.is_terminal()));
        ended && self.actors.iter().all(|at| *at == At::Idle)
    }
}

impl Task {
    fn fault(&self, was: &Task, uncut: bool, cut: bool) -> Option<&'static str> {
        if self.twin.is_some() {
            return Some("one task lies in two lanes");
        }
        let Some(file) = self.file else {
            return self.acknowledged.then_some("an acknowledged task is lost");
        };
        let alive = self
            .trees
            .iter()
            .filter(|tree| **tree != Tree::None)
            .count();
        if alive > 1 {
            return Some("two attempts of one task run at the same time");
        }
        if self.runs > 1 {
            return Some("a task of retries 0 ran twice");
        }
        let ended = was.file.filter(|file| file.lane.is_terminal());
        if ended.is_some_and(|ended| ended != file) && !cut {
            return Some("a task left a terminal lane");
        }
        if file.lane.is_terminal() && alive > 0 {
            return Some("a task has ended and something of it runs");
        }
        let says = self.record(file.attempt).map(|record| record.says);
        let expected = match file.lane {
            Lane::Complete => Some(Verdict::Succeeded),
            Lane::Failed | Lane::Retry => Some(Verdict::Failed),
            _ => None,
        };
        // What was aborted goes through retry with a record that says so.
        if expected.is_some() && says != expected && !(file.lane == Lane::Retry && says.is_some()) {
            return Some("a lane says what no record says");
        }
        let done = |attempt: &usize| {
            self.records[*attempt]
                .is_some_and(|record| record.says == Verdict::Succeeded && !record.stale)
        };
        if uncut && (1..file.attempt as usize).any(|attempt| done(&attempt)) {
            return Some("what was done is done again");
        }
        for (attempt, tree) in self.trees.iter().enumerate() {
            // A brain that died between the record of a cancellation and its rename leaves the
            // record of what may still be claimed: the claim's own record replaces it.
            let told = self.records[attempt]
                .is_some_and(|record| !record.stale && record.says != Verdict::Cancelled);
            if matches!(tree, Tree::Working) && told {
                return Some("an attempt runs that is on record as over");
            }
        }
        let overwritten = was.record(file.attempt).is_some_and(|old| {
            old.says == Verdict::Succeeded && !old.stale && says != Some(Verdict::Succeeded)
        });
        (overwritten && uncut).then_some("the record of a success was overwritten")
    }
}
