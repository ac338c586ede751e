//! The harness of the end-to-end tests: a rig in a temporary directory, the real programs as its
//! processes, and a checker that every case ends with.
//!
//! A case makes a [`Rig`], starts programs, submits plans and drops the rig. The drop stops every
//! program in order and runs [`checker::check`]; where the case has failed already it kills them
//! and prints the ends of the logs instead.

pub mod checker;
pub mod driver;
pub mod incident;
pub mod journal;
pub mod lines;
pub mod mounts;
pub mod parts;
pub mod processes;
mod rig;
pub mod soak;
pub mod sweep;
pub mod tasks;

pub use rig::{Output, PATIENCE, Rig, Setup, wait_until};
