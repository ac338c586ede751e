//! Attempts with the real worker, started and settled as an agent does it.

mod commands;
mod containment;
mod limits;
mod prompts;
mod recovery;
mod stage;
