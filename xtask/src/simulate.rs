//! `cargo xtask simulate`: builds the simulator, optimised, and runs it.

use anyhow::Result;

use crate::workspace::{cargo, checked};

/// Runs the simulator with the arguments, in the workspace's root.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let mut command = cargo(&["run", "--quiet", "--release", "-p", "simulator", "--"]);
    checked(command.args(arguments))
}
