//! The agent as a process, on a rig with stand-in GPUs.

mod devices;
mod lifecycle;
mod models;
mod reasons;
mod rig;
mod tasks;
