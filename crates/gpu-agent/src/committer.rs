//! Makes records durable and moves tasks on, in a thread of its own: a slow disk holds no slot.

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use rigor_exec::{ExecError, finish};
use rigor_queue::claim;
use rigor_queue::lane::Lane;
use rigor_queue::name::FileName;
use rigor_queue::record::AttemptRecord;
use rigor_queue::records;
use rigor_queue::rig::Rig;
use rigor_queue::submit::Durability;

use crate::event::{Event, Farewell};

/// An attempt that is over and recorded.
#[derive(Debug)]
pub(crate) struct Job {
    /// The task file in `processing/`.
    pub(crate) name: FileName,
    /// Its record, which is written.
    pub(crate) record: AttemptRecord,
    /// The record must be written once more: its bytes may not have reached the disk.
    pub(crate) rewrite: bool,
}

/// Where a task went.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) job: Job,
    pub(crate) lane: Result<Lane, ExecError>,
}

#[derive(Debug)]
enum Order {
    Finish(Box<Job>),
    /// Claims since the last one must survive a power cut.
    SyncClaims,
}

/// The thread's handle.
#[derive(Debug)]
pub(crate) struct Committer {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
    /// Attempts handed over that are not known to be finished.
    pub(crate) pending: usize,
}

impl Committer {
    pub(crate) fn start(
        rig: Rig,
        agent: String,
        durability: Durability,
        events: Sender<Event>,
    ) -> std::io::Result<Committer> {
        let (orders, inbox) = mpsc::channel();
        let worker = Worker {
            rig,
            agent,
            durability,
            events,
        };
        let thread = thread::Builder::new()
            .name("commit".to_owned())
            .spawn(move || {
                let events = worker.events.clone();
                let _farewell = Farewell {
                    thread: "commit",
                    events,
                };
                worker.run(&inbox);
            })?;
        Ok(Committer {
            orders: Some(orders),
            thread: Some(thread),
            pending: 0,
        })
    }

    pub(crate) fn finish(&mut self, job: Job) {
        self.pending += 1;
        self.order(Order::Finish(Box::new(job)));
    }

    pub(crate) fn sync_claims(&self) {
        self.order(Order::SyncClaims);
    }

    /// Finishes what was ordered and ends the thread.
    pub(crate) fn close(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic in there was reported where it happened.
            let _ = thread.join();
        }
    }

    fn order(&self, order: Order) {
        let orders = self
            .orders
            .as_ref()
            .expect("orders are given before the end only");
        orders
            .send(order)
            .expect("the committer ends after its orders only, or by a panic");
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.close();
    }
}

struct Worker {
    rig: Rig,
    agent: String,
    durability: Durability,
    events: Sender<Event>,
}

impl Worker {
    fn run(&self, inbox: &Receiver<Order>) {
        while let Ok(first) = inbox.recv() {
            let mut jobs = Vec::new();
            let mut claims = false;
            // All that is there shares one commit.
            for order in std::iter::once(first).chain(inbox.try_iter()) {
                match order {
                    Order::Finish(job) => jobs.push(*job),
                    Order::SyncClaims => claims = true,
                }
            }
            if !jobs.is_empty() {
                self.commit(jobs);
            }
            if claims && self.durability.syncs() {
                self.sync_claims();
            }
        }
    }

    fn commit(&self, jobs: Vec<Job>) {
        let rewritten = jobs
            .iter()
            .filter(|job| job.rewrite)
            .try_for_each(|job| records::replace(&self.rig, &job.record));
        let attempts: Vec<_> = jobs
            .iter()
            .map(|job| (job.record.batch.clone(), job.record.id, job.record.attempt))
            .collect();
        let committed =
            rewritten.and_then(|()| records::commit(&self.rig, &attempts, self.durability));
        rigor_queue::crash_point!("committed");
        let event = match committed {
            Ok(()) => Event::Finished(jobs.into_iter().map(|job| self.move_on(job)).collect()),
            Err(error) => Event::CommitFailed { jobs, error },
        };
        // The dispatcher is gone only when the agent has crashed; the next one takes over then.
        let _ = self.events.send(event);
    }

    fn move_on(&self, job: Job) -> Finished {
        let lane = finish(&self.rig, &self.agent, &job.name, &job.record);
        rigor_queue::crash_point!("moved");
        Finished { job, lane }
    }

    fn sync_claims(&self) {
        if let Err(error) = claim::sync_claims(&self.rig, &self.agent) {
            // A claim that is forgotten in a power cut costs a second run, never the task.
            tracing::warn!("cannot make claims durable: {error}");
        }
    }
}
