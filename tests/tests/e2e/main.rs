//! End-to-end cases over the real programs. Each ends with the checker of `rigor_tests`.

#![expect(clippy::unwrap_used, reason = "a failed case panics")]

mod batches;
mod claims;
mod contract;
mod control;
mod deaths;
mod examples;
mod incident;
mod live;
mod memory;
mod models;
mod notify;
mod placement;
mod refusals;
mod replay;
mod retention;
mod split;
mod stuck;
mod up;
