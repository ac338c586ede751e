//! The command line against hand-made rigs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod control;
mod fsck;
mod gpu_time;
mod hand_made;
mod init;
mod submit;
mod up_down;
mod views;
mod waits;
mod why;
