//! Decisions as pure functions of a snapshot, each with its reason.
//!
//! No clock, no files, no randomness: `now` is an argument, and the function that decides is the
//! one that says why.

pub mod admission;
pub mod fit;
pub mod gpu_time;
pub mod placement;
pub mod retention;
pub mod retry;
pub mod span;
pub mod stuck;
pub mod why;
