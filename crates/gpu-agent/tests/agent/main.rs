//! The agent as a process, on a rig with stand-in GPUs.

mod devices;
mod lend;
mod lifecycle;
mod models;
mod reasons;
mod rig;
mod runtimes;
mod tasks;
