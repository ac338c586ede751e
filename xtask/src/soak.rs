//! `cargo xtask soak`: builds the programs and the soak of the tests' harness, and runs it.

use std::process::Command;

use anyhow::{Result, bail};

use crate::workspace::{self, cargo, checked};
use crate::{fixtures, tools};

/// Runs the soak with the arguments.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    // Its rig's model has a file, though only a stand-in serves it.
    fixtures::ensure()?;
    tools::ensure();
    eprintln!("xtask: building the programs and the soak");
    // In one go: what is built for a part of the workspace has other features, and is built twice.
    checked(&mut cargo(&["build", "--workspace", "--lib", "--bins"]))?;
    let status = Command::new(workspace::program("soak")?)
        .args(arguments)
        .status()?;
    if !status.success() {
        bail!("the soak: {status}");
    }
    Ok(())
}
