//! One attempt of a task: how a worker is started, contained, ended and recovered.
//!
//! The agent claims a task and calls [`spawn`]; when the worker has exited it calls [`settle`],
//! makes the record durable, and calls [`finish`]. What a dead agent left behind is taken back by
//! [`recovery::recover`]. Whether it still does anything is told by [`activity`]. The tree of an attempt never outlives the attempt: see [`Containment`].

pub mod activity;
mod cgroup;
mod containment;
mod error;
pub mod gpu_memory;
mod groups;
mod hierarchy;
mod launch;
mod limits;
pub mod oom;
mod process_tree;
pub mod recovery;
mod settle;
mod worker_args;

pub use containment::{Containment, Tier};
pub use error::ExecError;
pub use groups::{Groups, NotCounted};
pub use hierarchy::Controller;
pub use launch::{COOKIE_VARIABLE, Launch, Running, find_worker, spawn};
pub use limits::{Limits, OomKill, ProcessLimitHit};
pub use settle::{fail_unstarted, finish, settle, settle_unstarted};
pub use worker_args::{WorkerArgs, WorkerArgsError};
