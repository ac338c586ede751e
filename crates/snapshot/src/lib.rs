//! The state of a rig for display: one reading that every display shares.
//!
//! Takes no locks, moves nothing and decides nothing. What is counted is counted from names in
//! the lanes; `brain/batches/*.json` adds what only the brain knows (how many tasks a batch will
//! have). What moves while it is read may be seen in the lane that it left.

mod agents;
mod batches;
mod detail;
pub mod facts;
mod find;
mod gpu_time;
pub mod models;
mod names;
mod read;
mod tasks;
pub mod why;

use std::path::PathBuf;

use rigor_queue::QueueError;

pub use agents::{Agent, AgentState, Brain, Seconds};
pub use batches::{Batch, BatchState, PLAN_TASK, PlanTask, batch, plan_task_id};
pub use detail::{Attempt, Detail, detail};
pub use find::{Found, Target, find, find_batch};
pub use gpu_time::{BatchGpuTime, CauseMs, GpuTime, GpuTimeOfBatch, gpu_shares, gpu_time};
pub use read::{Disk, Queue, Snapshot};
pub use tasks::{Filter, Spot, Task, tasks};

/// The version of everything that this crate serialises.
pub const SCHEMA: u32 = 1;

/// Why the state could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The queue refused.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A file of the brain's could not be read.
    #[error("cannot read {}: {why}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, SnapshotError>;
