//! What each process can do next, and what can befall it.

use rigor_queue::lane::{Holding, Lane, Move};
use rigor_queue::record::{FailureKind, Outcome};

use crate::world::*;

/// What keeps the promise; each can be left out to see what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// The attempt in the name rises with every claim that ends.
    Fence,
    /// A move is one rename, not copy and unlink.
    AtomicMove,
    /// A claim is made under the file's lock.
    ClaimLock,
    /// After the lock, the path is seen to name the locked file still.
    Recheck,
    /// A claim of a task with `retries: 0` is on disk before its worker starts.
    ClaimSync,
    /// What a worker left running is killed before its attempt is over.
    SettleKill,
    /// The record is written before the file moves.
    RecordFirst,
    /// The record is durable before the file moves.
    DurableFirst,
    /// The brain recovers only whose lock it holds.
    AgentLock,
    /// A recovery kills the attempt's tree first.
    KillFirst,
    /// A recovery takes the file's lock.
    RecoveryLock,
    /// A recovery reads the record again after the kill, under the lock.
    ReadAgain,
    /// A restarted agent takes back what lies in its `processing/`.
    OwnRecovery,
    /// Attempts that are lost again and again are charged.
    ChargeLost,
    /// A repeated expansion finds the directory and makes nothing.
    ExpansionGuard,
    /// A submission is acknowledged after it is on disk.
    AcknowledgeSynced,
    /// A cancellation is made under the file's lock.
    CancelLock,
}

/// The limits of a world, and what is left out of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) retries: u8,
    /// Lost attempts that are not charged.
    pub(crate) uncharged: u8,
    /// Power cuts that a world begins with.
    pub(crate) power_cuts: u8,
    pub(crate) without: Option<Protection>,
}

impl Rules {
    fn has(&self, protection: Protection) -> bool {
        self.without != Some(protection)
    }
}

/// What a step was, for the trace of a violation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label {
    pub(crate) who: &'static str,
    pub(crate) what: &'static str,
    pub(crate) task: Option<u8>,
    /// A crash, a power cut, an operator's wish: nothing that progress may count on.
    pub(crate) fault: bool,
}

pub(crate) const WHO: [&str; 3] = ["agent A", "agent B", "brain"];

/// Collects the successors of one world.
pub(crate) struct Steps<'a, const N: usize> {
    pub(crate) rules: &'a Rules,
    pub(crate) world: &'a World<N>,
    pub(crate) next: Vec<(Label, World<N>)>,
}

impl<const N: usize> Steps<'_, N> {
    fn to(&mut self, who: &'static str, what: &'static str, task: u8, world: World<N>) {
        let task = Some(task);
        self.next.push((
            Label {
                who,
                what,
                task,
                fault: false,
            },
            world,
        ));
    }

    fn fault(&mut self, who: &'static str, what: &'static str, task: Option<u8>, world: World<N>) {
        self.next.push((
            Label {
                who,
                what,
                task,
                fault: true,
            },
            world,
        ));
    }

    /// Everything that can happen next.
    pub(crate) fn all(&mut self) {
        for actor in 0..2 {
            self.agent(actor);
        }
        self.brain();
        for task in 0..N as u8 {
            self.workers(task);
        }
        self.zombie();
        self.faults();
        for (_, next) in &mut self.next {
            next.judge(self.world, self.rules.power_cuts == next.power_cuts);
            next.forget();
        }
    }

    fn agent(&mut self, me: u8) {
        let world = *self.world;
        let who = WHO[me as usize];
        match world.actors[me as usize] {
            At::Dead => {
                if world.locks[me as usize].is_none() {
                    let mut next = world;
                    next.locks[me as usize] = Some(me);
                    next.actors[me as usize] = if self.rules.has(Protection::OwnRecovery) {
                        At::Recovering { dir: me }
                    } else {
                        At::Idle
                    };
                    self.to(who, "starts and takes its lock", 0, next);
                }
            }
            At::Idle => {
                for task in 0..N as u8 {
                    let Some(file) = world.tasks[task as usize].file else {
                        continue;
                    };
                    if file.lane == Lane::Queue {
                        let mut next = world;
                        next.actors[me as usize] = At::Attempt {
                            stage: Stage::Opened,
                            task,
                            attempt: file.attempt,
                        };
                        self.to(who, "opens a queued file", task, next);
                    }
                }
            }
            At::Attempt {
                stage,
                task,
                attempt,
            } => self.attempt(me, stage, task, attempt),
            At::Recovering { dir } => self.recover(me, dir),
            At::TakingBack {
                stage,
                dir,
                task,
                attempt,
            } => {
                self.take_back(me, stage, dir, task, attempt);
            }
            At::Brain { .. } => unreachable!("an agent is not the brain"),
        }
    }

    fn attempt(&mut self, me: u8, stage: Stage, task: u8, attempt: u8) {
        let world = *self.world;
        let who = WHO[me as usize];
        let old = world.tasks[task as usize];
        let mine = old
            .in_processing(me)
            .is_some_and(|file| file.attempt == attempt);
        let locked = old.lock == Some(Holder::Actor(me));
        let on = |stage| At::Attempt {
            stage,
            task,
            attempt,
        };
        let mut next = world;
        let at = &mut next.actors[me as usize];
        let it = &mut next.tasks[task as usize];
        match stage {
            Stage::Opened => {
                let free = old.lock.is_none();
                if free && self.rules.has(Protection::ClaimLock) {
                    it.lock = Some(Holder::Actor(me));
                }
                *at = if free || !self.rules.has(Protection::ClaimLock) {
                    on(Stage::Locked)
                } else {
                    At::Idle
                };
                self.to(who, "locks it, or finds it busy", task, next);
            }
            Stage::Locked => {
                let there = old
                    .file
                    .is_some_and(|file| file.lane == Lane::Queue && file.attempt == attempt);
                if there || !self.rules.has(Protection::Recheck) {
                    *at = on(Stage::Checked);
                } else {
                    *at = At::Idle;
                    it.unlock(me);
                }
                self.to(who, "looks whether it is still there", task, next);
            }
            Stage::Checked => {
                match old.file {
                    Some(file) if file.lane == Lane::Queue && file.attempt == attempt => {
                        if self.rules.has(Protection::AtomicMove) {
                            *at = on(Stage::Claimed);
                            next.carry(
                                task,
                                Move::Claim,
                                file,
                                me,
                                self.believed(&world, me, me, task),
                            );
                        } else {
                            *at = on(Stage::Copied);
                            it.twin = Some(Lane::Processing);
                        }
                    }
                    _ => {
                        *at = At::Idle;
                        it.unlock(me);
                    }
                }
                self.to(who, "claims it", task, next);
            }
            Stage::Copied => {
                *at = on(Stage::Claimed);
                it.twin = None;
                if let Some(file) = old.file {
                    next.carry(
                        task,
                        Move::Claim,
                        file,
                        me,
                        self.believed(&world, me, me, task),
                    );
                }
                self.to(who, "unlinks the original", task, next);
            }
            Stage::Claimed if self.rules.retries == 0 && self.rules.has(Protection::ClaimSync) => {
                *at = on(Stage::Synced);
                it.disk = old.file;
                self.to(who, "syncs the claim", task, next);
            }
            Stage::Claimed | Stage::Synced => {
                *at = on(Stage::Running);
                it.trees[attempt as usize] = Tree::Working;
                if locked || old.lock.is_none() {
                    it.lock = Some(Holder::Worker(attempt));
                }
                if self.rules.retries == 0 {
                    it.runs = (it.runs + 1).min(2);
                }
                self.to(who, "starts the worker and hands the lock over", task, next);
                let mut unstarted = world;
                unstarted.tasks[task as usize].unlock(me);
                unstarted.actors[me as usize] = on(Stage::Exited);
                self.to(who, "cannot start the worker", task, unstarted);
            }
            Stage::Running => {
                if matches!(old.tree(attempt), Tree::None | Tree::Orphans) {
                    *at = on(Stage::Exited);
                    self.to(who, "sees that the worker ended", task, next);
                }
            }
            Stage::Exited => {
                *at = on(Stage::Quiet);
                if self.rules.has(Protection::SettleKill) {
                    it.kill(attempt);
                }
                self.to(who, "kills what is left of the attempt", task, next);
            }
            Stage::Quiet => {
                // A record of another claim (it has another nonce) counts as absent.
                let ours = |record: &Record| !record.stale && record.says != Verdict::Cancelled;
                if old.record(attempt).filter(ours).is_none() {
                    if self.rules.has(Protection::RecordFirst) {
                        it.write(attempt, Verdict::Failed);
                        *at = on(Stage::Settled);
                    } else {
                        *at = on(Stage::Committed);
                    }
                } else {
                    *at = on(Stage::Settled);
                }
                self.to(who, "sees to the record", task, next);
            }
            Stage::Settled => {
                *at = on(Stage::Committed);
                if self.rules.has(Protection::DurableFirst) {
                    it.sync_record(attempt);
                }
                self.to(who, "makes the record durable", task, next);
            }
            Stage::Committed => {
                if !mine {
                    *at = At::Idle;
                    self.to(who, "finds the file gone", task, next);
                } else if old.lock.is_none() {
                    it.lock = Some(Holder::Actor(me));
                    *at = on(Stage::Finishing);
                    self.to(who, "locks the file again", task, next);
                }
            }
            Stage::Finishing => {
                it.unlock(me);
                *at = At::Idle;
                let record = old.record(attempt);
                if let Some(file) = old.file.filter(|_| mine) {
                    let step = record.map_or(Move::Fail, |record| after(record.says));
                    next.carry(task, step, file, me, self.believed(&world, me, me, task));
                    next.fence(task, me, attempt);
                    if record.is_none() {
                        next.actors[me as usize] = on(Stage::Owing);
                    }
                }
                self.to(who, "moves the file on as the record says", task, next);
            }
            Stage::Owing => {
                it.write(attempt, Verdict::Failed);
                *at = At::Idle;
                self.to(who, "writes the record", task, next);
            }
        }
    }

    /// Any file of `processing/<dir>/`, which is `me`'s or a dead agent's.
    fn recover(&mut self, me: u8, dir: u8) {
        let world = *self.world;
        let who = WHO[me as usize];
        let mut any = false;
        for task in 0..N as u8 {
            let old = world.tasks[task as usize];
            let Some(file) = old.in_processing(dir) else {
                continue;
            };
            any = true;
            let mut next = world;
            let attempt = file.attempt;
            let seen = old.record(attempt).is_some();
            let stage = if self.rules.has(Protection::ReadAgain) {
                if self.rules.has(Protection::KillFirst) {
                    next.tasks[task as usize].kill(attempt);
                }
                Back::Killed { seen }
            } else {
                Back::Read { seen }
            };
            next.actors[me as usize] = At::TakingBack {
                stage,
                dir,
                task,
                attempt,
            };
            self.to(who, "kills what runs of a claim", task, next);
        }
        if !any {
            let mut next = world;
            next.actors[me as usize] = At::Idle;
            if me == BRAIN && next.locks[dir as usize] == Some(BRAIN) {
                next.locks[dir as usize] = None;
            }
            self.to(who, "has taken back all", 0, next);
        }
    }

    fn take_back(&mut self, me: u8, stage: Back, dir: u8, task: u8, attempt: u8) {
        let world = *self.world;
        let who = WHO[me as usize];
        let old = world.tasks[task as usize];
        let file = old
            .in_processing(dir)
            .filter(|file| file.attempt == attempt);
        let on = |stage| At::TakingBack {
            stage,
            dir,
            task,
            attempt,
        };
        let mut next = world;
        let it = &mut next.tasks[task as usize];
        let at = &mut next.actors[me as usize];
        let Some(file) = file else {
            it.unlock(me);
            *at = At::Recovering { dir };
            return self.to(who, "finds the file gone", task, next);
        };
        match stage {
            Back::Read { seen } => {
                it.kill(attempt);
                *at = on(Back::Killed { seen });
                self.to(who, "kills what runs of it", task, next);
            }
            Back::Killed { seen } => {
                let lock = self.rules.has(Protection::RecoveryLock);
                *at = if old.lock.is_none() || !lock {
                    on(Back::Locked { seen })
                } else {
                    At::Recovering { dir }
                };
                if old.lock.is_none() && lock {
                    it.lock = Some(Holder::Actor(me));
                }
                self.to(who, "locks the claimed file, or finds it busy", task, next);
            }
            Back::Locked { seen } => {
                let there = old.record(attempt).is_some();
                let there = there && (seen || self.rules.has(Protection::ReadAgain));
                if !there {
                    let lost = attempt - file.charged;
                    let charge = self.rules.retries == 0
                        || (lost > self.rules.uncharged && self.rules.has(Protection::ChargeLost));
                    it.write(
                        attempt,
                        if charge {
                            Verdict::Failed
                        } else {
                            Verdict::Lost
                        },
                    );
                }
                *at = on(Back::Told);
                self.to(
                    who,
                    "reads the record, or writes that it is lost",
                    task,
                    next,
                );
            }
            Back::Told => {
                if self.rules.has(Protection::DurableFirst) {
                    it.sync_record(attempt);
                }
                *at = on(Back::Safe);
                self.to(who, "makes the record durable", task, next);
            }
            Back::Safe => {
                it.unlock(me);
                *at = At::Recovering { dir };
                let says = old
                    .record(attempt)
                    .map_or(Verdict::Lost, |record| record.says);
                next.carry(
                    task,
                    after(says),
                    file,
                    0,
                    self.believed(&world, me, dir, task),
                );
                if after(says) == Move::Requeue && !self.rules.has(Protection::Fence) {
                    next.unfence(task, attempt);
                }
                next.fence(task, dir, attempt);
                self.to(who, "moves the file on as the record says", task, next);
            }
        }
    }

    fn brain(&mut self) {
        let world = *self.world;
        let who = WHO[BRAIN as usize];
        match world.actors[BRAIN as usize] {
            At::Dead => {
                let mut next = world;
                next.locks[BRAIN as usize] = Some(BRAIN);
                next.actors[BRAIN as usize] = At::Idle;
                self.to(who, "starts and takes its lock", 0, next);
            }
            At::Idle => {
                for task in 0..N as u8 {
                    self.think(task);
                }
                for dir in 0..2 {
                    self.look_after(dir);
                }
            }
            At::Brain { stage, task } => self.go_on(stage, task),
            At::Recovering { dir } => self.recover(BRAIN, dir),
            At::TakingBack {
                stage,
                dir,
                task,
                attempt,
            } => {
                self.take_back(BRAIN, stage, dir, task, attempt);
            }
            At::Attempt { .. } => unreachable!("the brain runs none of these"),
        }
    }

    fn look_after(&mut self, dir: u8) {
        let world = *self.world;
        let dead = world.locks[dir as usize].is_none();
        let any = world
            .tasks
            .iter()
            .any(|task| task.in_processing(dir).is_some());
        if any && (dead || !self.rules.has(Protection::AgentLock)) {
            let mut next = world;
            if dead {
                next.locks[dir as usize] = Some(BRAIN);
            }
            next.actors[BRAIN as usize] = At::Recovering { dir };
            self.to(
                WHO[BRAIN as usize],
                "begins to recover an agent's claims",
                0,
                next,
            );
        }
    }

    fn think(&mut self, task: u8) {
        let world = *self.world;
        let who = WHO[BRAIN as usize];
        let old = world.tasks[task as usize];
        let mut next = world;
        let on = |stage| At::Brain { stage, task };
        let unguarded = !old.acknowledged && !self.rules.has(Protection::ExpansionGuard);
        let file = match old.file {
            Some(file) if !unguarded => file,
            _ => {
                next.actors[BRAIN as usize] = on(Mind::Built);
                return self.to(who, "builds the task's directory", task, next);
            }
        };
        if !old.acknowledged {
            next.actors[BRAIN as usize] = on(Mind::Made);
            return self.to(who, "finds the directory there", task, next);
        }
        let holding = Holding::BRAIN;
        let it = &mut next.tasks[task as usize];
        let free = old.lock.is_none();
        match file.lane {
            Lane::Waiting | Lane::Queue | Lane::Retry if old.cancel_asked => {
                let lock = self.rules.has(Protection::CancelLock);
                if free || !lock {
                    if lock {
                        it.lock = Some(Holder::Actor(BRAIN));
                    }
                    next.actors[BRAIN as usize] = on(Mind::Ending);
                    self.to(who, "locks what is to be cancelled", task, next);
                }
            }
            Lane::Waiting => {
                next.carry(task, Move::Release, file, 0, holding);
                self.to(who, "releases it", task, next);
            }
            Lane::Queue if world.withdrawals > 0 && free => {
                it.lock = Some(Holder::Actor(BRAIN));
                next.withdrawals -= 1;
                next.actors[BRAIN as usize] = on(Mind::Withdrawing);
                self.to(who, "locks what is to be withdrawn", task, next);
            }
            Lane::Retry => {
                let step = match old.record(file.attempt).map(|record| record.says) {
                    Some(Verdict::Failed) if file.charged + 1 > self.rules.retries => Move::GiveUp,
                    Some(Verdict::Failed) => Move::Retry,
                    // What is given back as lost or cancelled comes here after a power cut only.
                    Some(_) => Move::GiveUp,
                    None => return,
                };
                next.carry(task, step, file, 0, holding);
                if step == Move::Retry && !self.rules.has(Protection::Fence) {
                    next.unfence(task, file.attempt);
                }
                self.to(who, "decides what follows the failure", task, next);
            }
            _ => {}
        }
    }

    fn go_on(&mut self, stage: Mind, task: u8) {
        let world = *self.world;
        let who = WHO[BRAIN as usize];
        let old = world.tasks[task as usize];
        let mut next = world;
        next.actors[BRAIN as usize] = At::Idle;
        let it = &mut next.tasks[task as usize];
        let holding = Holding {
            file: old.lock == Some(Holder::Actor(BRAIN)) || !self.rules.has(Protection::CancelLock),
            ..Holding::BRAIN
        };
        match stage {
            Mind::Built => {
                if it.file.is_some() {
                    it.twin = Some(Lane::Waiting);
                } else {
                    it.file = Some(File {
                        lane: Lane::Waiting,
                        dir: 0,
                        attempt: 1,
                        charged: 0,
                    });
                }
                if !self.rules.has(Protection::AcknowledgeSynced) {
                    it.acknowledged = true;
                }
                next.actors[BRAIN as usize] = At::Brain {
                    stage: Mind::Made,
                    task,
                };
                self.to(who, "renames the directory into place", task, next);
            }
            Mind::Made => {
                it.disk = it.file;
                it.acknowledged = true;
                self.to(who, "syncs it and acknowledges", task, next);
            }
            Mind::Ending => {
                if let Some(file) = old.file {
                    let under = file.attempt + u8::from(file.lane == Lane::Retry);
                    it.write(under, Verdict::Cancelled);
                }
                next.actors[BRAIN as usize] = At::Brain {
                    stage: Mind::EndTold,
                    task,
                };
                self.to(who, "writes why it is cancelled", task, next);
            }
            Mind::EndTold => {
                it.unlock(BRAIN);
                if let Some(file) = old.file
                    && matches!(file.lane, Lane::Waiting | Lane::Queue | Lane::Retry)
                {
                    next.carry(task, Move::Cancel, file, 0, holding);
                }
                self.to(who, "cancels it", task, next);
            }
            Mind::Withdrawing => {
                it.unlock(BRAIN);
                if let Some(file) = old.file {
                    next.carry(task, Move::Withdraw, file, 0, holding);
                }
                self.to(who, "withdraws it", task, next);
            }
        }
    }

    fn workers(&mut self, task: u8) {
        let world = *self.world;
        for attempt in 1..ATTEMPTS as u8 {
            let mut next = world;
            let it = &mut next.tasks[task as usize];
            match it.tree(attempt) {
                Tree::Working => {
                    it.trees[attempt as usize] = Tree::Recorded;
                    it.write(attempt, Verdict::Succeeded);
                    self.to("worker", "ends its tree and records success", task, next);
                    let mut failed = next;
                    failed.tasks[task as usize].write(attempt, Verdict::Failed);
                    self.to("worker", "ends its tree and records failure", task, failed);
                    if world.crashes > 0 {
                        let mut dead = world;
                        dead.crashed();
                        let it = &mut dead.tasks[task as usize];
                        it.kill(attempt);
                        it.trees[attempt as usize] = Tree::Orphans;
                        self.fault(
                            "worker",
                            "is killed; what it started is not",
                            Some(task),
                            dead,
                        );
                    }
                }
                Tree::Recorded => {
                    it.kill(attempt);
                    self.to("worker", "exits", task, next);
                }
                Tree::None | Tree::Orphans => {}
            }
        }
    }

    fn zombie(&mut self) {
        let world = *self.world;
        let Some(zombie) = world.zombie else { return };
        let old = world.tasks[zombie.task as usize];
        if old.lock.is_some() {
            return;
        }
        let mut next = world;
        next.zombie = None;
        let file = old
            .in_processing(zombie.dir)
            .filter(|file| file.attempt == zombie.attempt);
        if let Some(file) = file {
            let step = match zombie.step {
                ZombieStep::Complete => Move::Complete,
                ZombieStep::Fail => Move::Fail,
            };
            next.carry(zombie.task, step, file, 0, Holding::OWNER);
            if zombie.fenced {
                next.bad = Some("a fenced zombie moved a task");
            }
        }
        self.fault(
            "zombie",
            "makes the rename that it still had to make",
            Some(zombie.task),
            next,
        );
    }

    fn faults(&mut self) {
        let world = *self.world;
        for (actor, who) in WHO.iter().enumerate() {
            if world.crashes == 0 || world.actors[actor] == At::Dead {
                continue;
            }
            let mut next = world;
            next.crashed();
            next.actors[actor] = At::Dead;
            next.release_all(actor as u8);
            self.fault(who, "is killed", None, next);
            if let At::Attempt {
                stage: Stage::Committed,
                task,
                attempt,
            } = world.actors[actor]
                && world.zombies > 0
                && world.zombie.is_none()
            {
                let record = world.tasks[task as usize].record(attempt);
                let worked = record.is_some_and(|record| record.says == Verdict::Succeeded);
                let step = if worked {
                    ZombieStep::Complete
                } else {
                    ZombieStep::Fail
                };
                next.zombies -= 1;
                let dir = actor as u8;
                next.zombie = Some(Zombie {
                    task,
                    dir,
                    attempt,
                    step,
                    fenced: false,
                });
                self.fault(who, "loses its lock and lives on as a zombie", None, next);
            }
        }
        for task in 0..N {
            let old = world.tasks[task];
            if world.power_cuts > 0 && old.acknowledged && old.disk != old.file {
                let mut next = world;
                next.tasks[task].disk = old.file;
                self.fault(
                    "kernel",
                    "writes the directory back",
                    Some(task as u8),
                    next,
                );
            }
            // One task is enough to see what a cancellation meets.
            let live = old.file.is_some_and(|file| !file.lane.is_terminal());
            if task == 0 && live && old.acknowledged && !old.cancel_asked {
                let mut next = world;
                next.tasks[task].cancel_asked = true;
                self.fault("operator", "wants it cancelled", Some(0), next);
            }
        }
        if world.power_cuts > 0 {
            self.power_cuts();
        }
    }

    /// Every mixture of what was synced and what was not.
    fn power_cuts(&mut self) {
        let mut worlds = vec![self.world.dark()];
        for task in 0..N {
            let choices: Vec<World<N>> = worlds
                .iter()
                .flat_map(|world| {
                    let mut forgotten = *world;
                    forgotten.tasks[task].file = world.tasks[task].disk;
                    [*world, forgotten]
                })
                .flat_map(|world| {
                    let mut torn = world;
                    for record in &mut torn.tasks[task].records {
                        *record = record.filter(|record| record.durable);
                    }
                    [world, torn]
                })
                .collect();
            worlds = choices;
        }
        for mut world in worlds {
            world.age_records();
            self.fault("power", "is cut", None, world);
        }
    }

    /// What a process may do that holds this, or believes to.
    fn believed(&self, world: &World<N>, me: u8, dir: u8, task: u8) -> Holding {
        let lenient = matches!(
            self.rules.without,
            Some(Protection::ClaimLock | Protection::RecoveryLock | Protection::AgentLock)
        );
        Holding {
            brain: me == BRAIN,
            owner: world.locks[dir as usize] == Some(me) || lenient,
            file: world.tasks[task as usize].lock == Some(Holder::Actor(me)) || lenient,
        }
    }
}

/// The move that a record asks for: the code's own choice.
fn after(says: Verdict) -> Move {
    let reason = String::new();
    Move::after(&match says {
        Verdict::Succeeded => Outcome::Succeeded,
        Verdict::Failed => Outcome::Failed {
            kind: FailureKind::ExitCode,
            reason,
        },
        Verdict::Lost => Outcome::Lost { reason },
        Verdict::Cancelled => Outcome::Cancelled { reason },
    })
}
