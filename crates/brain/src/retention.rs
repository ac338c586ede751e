//! Archiving batches that are over, and removing archives that are too old: a thread of its own,
//! one thing at a time, since it writes and syncs much.
//!
//! What is archived is decided here and carried out by `rigor_queue::archive`. The loop must not open
//! a batch again that the thread has in hand, nor one that is archived: it asks
//! [`Retention::keeps_closed`] first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rigor_policy::retention;
use rigor_queue::archive::{self, Compacted, Lock};
use rigor_queue::rig::Rig;
use rigor_queue::submit::Durability;

use crate::dispatcher::Event;

/// Between two looks for batches that are due, at most and at least.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// `rigor clean` has the archive's lock for a while.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// A batch that could not be archived is tried again after so long.
const REFUSED_FOR: Duration = Duration::from_secs(3600);

/// What the thread is to do.
#[derive(Debug)]
enum Job {
    Look,
    Compact(String),
    TakeOut(String),
    Remove(String),
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Done {
    /// Batches that are due, and archived ones that are too old by the wall clock.
    Looked { due: Vec<String>, old: Vec<String> },
    /// One batch; in words what failed.
    Did {
        batch: String,
        failed: Option<String>,
    },
}

/// The thread, and what it has in hand.
#[derive(Debug)]
pub(crate) struct Retention {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// The batch, and whether it is being taken out.
    busy: Option<(String, bool)>,
    looking: bool,
    wanted: VecDeque<Job>,
    next_look: Instant,
    every: Duration,
    keep: Option<Duration>,
    /// Archives that are too old, since when that is known.
    too_old: BTreeMap<String, Instant>,
    /// Batches that could not be archived, until when they are left alone.
    refused: BTreeMap<String, Instant>,
    /// Batches that could not be taken out, and why: until who wanted that was told.
    stuck: BTreeMap<String, String>,
}

/// Whether a batch may be opened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// It may.
    No,
    /// Not yet: the loop is woken when it may.
    ForNow,
    /// It cannot be taken out of the archive: why.
    Stuck(String),
}

impl Retention {
    /// Starts the thread; `tell` reaches the loop.
    pub(crate) fn start(
        rig: &Rig,
        settings: &rigor_config::Retention,
        durability: Durability,
        tell: Sender<Event>,
    ) -> std::io::Result<Retention> {
        let (jobs, queue) = mpsc::channel();
        let worker = Worker {
            rig: rig.clone(),
            compact_after: settings.compact_after,
            keep: settings.keep,
            durability,
        };
        let thread = thread::Builder::new()
            .name("retention".to_owned())
            .spawn(move || worker.run(&queue, &tell))?;
        Ok(Retention {
            jobs: Some(jobs),
            thread: Some(thread),
            busy: None,
            looking: false,
            wanted: VecDeque::new(),
            next_look: Instant::now(),
            every: settings.compact_after.clamp(LOOK_AGAIN, LOOK_EVERY),
            keep: settings.keep,
            too_old: BTreeMap::new(),
            refused: BTreeMap::new(),
            stuck: BTreeMap::new(),
        })
    }

    /// Gives the thread what is next to be done. `is_active`: the brain has the batch open. Returns
    /// when it wants to be called again.
    pub(crate) fn step(&mut self, now: Instant, is_active: impl Fn(&str) -> bool) -> Instant {
        let ended = self.thread.as_ref().is_some_and(JoinHandle::is_finished);
        if ended && self.jobs.take().is_some() {
            tracing::error!(
                "The thread that archives has ended: nothing is archived or taken out until the brain is started again"
            );
        }
        if self.jobs.is_none() {
            self.busy = None;
            return now + LOOK_EVERY;
        }
        if self.busy.is_some() || self.looking {
            // What it tells wakes the loop.
            return now + LOOK_EVERY;
        }
        while let Some(job) = self.wanted.pop_front() {
            let (Job::Compact(batch) | Job::TakeOut(batch) | Job::Remove(batch)) = &job else {
                continue;
            };
            let takes_out = matches!(job, Job::TakeOut(_));
            let refused = self.refused.get(batch).is_some_and(|until| now < *until);
            if is_active(batch) || (refused && !takes_out) {
                continue;
            }
            self.busy = Some((batch.clone(), takes_out));
            self.send(job);
            return now + LOOK_EVERY;
        }
        if now >= self.next_look {
            self.next_look = now + self.every;
            self.looking = true;
            self.send(Job::Look);
        }
        self.next_look
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // It ends only with the brain.
            let _ = jobs.send(job);
        }
    }

    /// Whether a batch that is over may be opened again now. One that is archived is taken out
    /// first.
    pub(crate) fn keeps_closed(&mut self, rig: &Rig, batch: &str) -> Closed {
        if let Some(why) = self.stuck.remove(batch) {
            return Closed::Stuck(why);
        }
        if self.busy.as_ref().is_some_and(|(busy, _)| busy == batch) {
            return Closed::ForNow;
        }
        if !rig.is_archived(batch) {
            return Closed::No;
        }
        if self.jobs.is_none() {
            return Closed::Stuck(
                "the thread that does that has ended; start the brain again".to_owned(),
            );
        }
        let asked = |job: &Job| matches!(job, Job::TakeOut(of) if of == batch);
        if !self.wanted.iter().any(asked) {
            self.wanted.push_front(Job::TakeOut(batch.to_owned()));
        }
        Closed::ForNow
    }

    /// What the thread told. `Some`: what failed for which batch, to be said.
    pub(crate) fn take_in(&mut self, done: Done, now: Instant) -> Option<(String, String)> {
        match done {
            Done::Looked { due, old } => {
                self.looking = false;
                self.too_old.retain(|batch, _| old.contains(batch));
                self.refused.retain(|_, until| now < *until);
                self.wanted.extend(due.into_iter().map(Job::Compact));
                let sure_after = self.keep.unwrap_or_default().min(retention::SURE_AFTER);
                for batch in old {
                    let since = *self.too_old.entry(batch.clone()).or_insert(now);
                    if now.duration_since(since) >= sure_after {
                        self.wanted.push_back(Job::Remove(batch));
                    }
                }
                None
            }
            Done::Did { batch, failed } => {
                let taken_out = self.busy.take().is_some_and(|(_, taken_out)| taken_out);
                let why = failed?;
                if taken_out {
                    self.stuck.insert(batch, why);
                    return None;
                }
                self.refused.insert(batch.clone(), now + REFUSED_FOR);
                Some((batch, why))
            }
        }
    }

    /// Ends the thread when it has done what it has in hand.
    pub(crate) fn end(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// The thread's side.
struct Worker {
    rig: Rig,
    compact_after: Duration,
    keep: Option<Duration>,
    durability: Durability,
}

impl Worker {
    fn run(&self, jobs: &Receiver<Job>, tell: &Sender<Event>) {
        for job in jobs {
            let done = match job {
                Job::Look => self.look().unwrap_or_else(|error| {
                    tracing::warn!("What is to be archived cannot be looked for: {error}");
                    Done::Looked {
                        due: Vec::new(),
                        old: Vec::new(),
                    }
                }),
                Job::Compact(batch) => self.did(batch, |batch, lock| self.compact(batch, lock)),
                Job::TakeOut(batch) => self.did(batch, |batch, lock| {
                    if archive::take_out(&self.rig, lock, batch, self.durability)? {
                        tracing::info!(batch = %batch, "Batch {batch} is taken out of the archive");
                    }
                    Ok(None)
                }),
                Job::Remove(batch) => self.did(batch, |batch, lock| {
                    if archive::remove(&self.rig, lock, batch, self.durability)?.is_some() {
                        tracing::info!(batch = %batch, "Batch {batch} is removed from the archive: it ended longer ago than retention.keep");
                        rigor_queue::keys::forget(&self.rig, &[batch.to_owned()])?;
                    }
                    Ok(None)
                }),
            };
            if tell.send(Event::Retention(done)).is_err() {
                return;
            }
        }
    }

    fn did(
        &self,
        batch: String,
        act: impl FnOnce(&str, &Lock) -> rigor_queue::Result<Option<String>>,
    ) -> Done {
        let result = Lock::take(&self.rig, LOCK_PATIENCE).and_then(|lock| act(&batch, &lock));
        let failed = result.unwrap_or_else(|error| Some(error.to_string()));
        Done::Did { batch, failed }
    }

    fn compact(&self, batch: &str, lock: &Lock) -> rigor_queue::Result<Option<String>> {
        match archive::compact(&self.rig, lock, batch, self.durability)? {
            Compacted::Done(header) => {
                tracing::info!(batch = %batch,
                    "Batch {batch} is archived: {} tasks, {} files became a few of {} bytes",
                    header.tasks, header.files, header.bytes);
                Ok(None)
            }
            Compacted::Refused(why) => Ok(Some(why)),
        }
    }

    fn look(&self) -> rigor_queue::Result<Done> {
        let now = Timestamp::now();
        {
            let lock = Lock::take(&self.rig, LOCK_PATIENCE)?;
            archive::sweep(&self.rig, &lock)?;
        }
        // What a brain that died has left of an archived batch goes first.
        let mut due = archive::leftovers(&self.rig)?;
        let mut over = archive::over(&self.rig)?;
        over.retain(|one| retention::is_over_for(one.ended, now, self.compact_after));
        due.extend(over.into_iter().map(|one| one.batch));
        let mut old = Vec::new();
        if let Some(keep) = self.keep {
            for batch in self.rig.archived_batches()? {
                // One that is damaged is not removed: `rigor fsck` names it.
                if let Ok(Some(header)) = self.rig.archive_header(&batch)
                    && retention::is_over_for(header.ended, now, keep)
                {
                    old.push(batch);
                }
            }
        }
        Ok(Done::Looked { due, old })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retention(keep: Option<Duration>) -> (tempfile::TempDir, Rig, Retention, Receiver<Event>) {
        let dir = tempfile::tempdir().expect("a directory");
        let rig = Rig::create(&dir.path().join("rig")).expect("a rig");
        let settings = rigor_config::Retention {
            compact_after: Duration::from_secs(1),
            keep,
        };
        let (tell, events) = mpsc::channel();
        let retention = Retention::start(&rig, &settings, Durability::Process, tell);
        (dir, rig, retention.expect("a thread"), events)
    }

    fn looked(due: &[&str], old: &[&str]) -> Done {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Done::Looked {
            due: owned(due),
            old: owned(old),
        }
    }

    fn told(events: &Receiver<Event>) -> Done {
        match events.recv_timeout(Duration::from_secs(30)) {
            Ok(Event::Retention(done)) => done,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_open_batch_is_left_alone_and_one_in_hand_is_not_opened() {
        let (_dir, rig, mut retention, events) = retention(None);
        let now = Instant::now();
        retention.looking = true;
        retention.take_in(looked(&["open", "b"], &[]), now);
        retention.step(now, |batch| batch == "open");
        assert_eq!(retention.keeps_closed(&rig, "b"), Closed::ForNow, "in hand");
        assert_eq!(retention.keeps_closed(&rig, "open"), Closed::No);
        // There is no such batch: it is refused, said once, and not tried again at once.
        let failed = retention.take_in(told(&events), now);
        assert!(failed.is_some_and(|(batch, why)| batch == "b" && !why.is_empty()));
        assert_eq!(retention.keeps_closed(&rig, "b"), Closed::No);
        retention.take_in(looked(&["b"], &[]), now);
        retention.step(now, |_| false);
        assert_eq!(retention.busy, None);
        retention.end();
    }

    #[test]
    fn what_cannot_be_taken_out_is_told_to_who_wants_it() {
        let (_dir, rig, mut retention, events) = retention(None);
        std::fs::create_dir_all(rig.archive_dir().join("b")).expect("an archive");
        std::fs::write(rig.archive_dir().join("b/batch.json"), "{").expect("a damaged one");
        let now = Instant::now();
        assert_eq!(retention.keeps_closed(&rig, "b"), Closed::ForNow);
        retention.step(now, |_| false);
        assert_eq!(retention.take_in(told(&events), now), None);
        match retention.keeps_closed(&rig, "b") {
            Closed::Stuck(why) => assert!(why.contains("damaged"), "{why}"),
            other => panic!("{other:?}"),
        }
        retention.end();
    }

    #[test]
    fn an_archive_is_removed_when_it_was_too_old_for_long_enough() {
        let day = Duration::from_secs(24 * 3600);
        let (_dir, _rig, mut retention, _events) = retention(Some(day));
        let now = Instant::now();
        let removes = |retention: &Retention| {
            let mut wanted = retention.wanted.iter();
            wanted.any(|job| matches!(job, Job::Remove(_)))
        };
        retention.take_in(looked(&[], &["old"]), now);
        assert!(!removes(&retention), "the clock may be wrong");
        // It was, and is wrong again.
        retention.take_in(looked(&[], &[]), now + day / 48);
        let later = now + day / 24;
        retention.take_in(looked(&[], &["old"]), later);
        assert!(!removes(&retention));
        retention.take_in(looked(&[], &["old"]), later + retention::SURE_AFTER);
        assert!(removes(&retention));
        retention.end();
    }
}
