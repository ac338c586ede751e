//! `cargo xtask cluster-up` and `cluster-down`: a rig from a fresh build.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::{fixtures, workspace};

/// Builds, makes the rig where there is none, and starts it.
pub(crate) fn up(rig: &Path, sim_gpus: Option<u16>) -> Result<()> {
    workspace::build()?;
    if rig.join("rig.toml").exists() {
        if sim_gpus.is_some() {
            eprintln!(
                "xtask: {} is there already; --sim-gpus is not looked at",
                rig.display()
            );
        }
    } else {
        workspace::checked(&mut init(rig, sim_gpus)?)?;
    }
    workspace::checked(rigor()?.arg("--rig").arg(rig).arg("up"))
}

/// Stops the rig.
pub(crate) fn down(rig: &Path) -> Result<()> {
    // Not a fresh build: what runs is stopped by signals, whichever version it is.
    if workspace::program("rigor").is_err() {
        workspace::build()?;
    }
    workspace::checked(rigor()?.arg("--rig").arg(rig).arg("down"))
}

fn init(rig: &Path, sim_gpus: Option<u16>) -> Result<Command> {
    let mut init = rigor()?;
    init.arg("init").arg(rig);
    if let Some(count) = sim_gpus {
        let fixtures = fixtures::ensure()?;
        eprintln!(
            "xtask: the model of this rig is tiny, with random weights: its answers are noise"
        );
        init.args(["--sim-gpus", &count.to_string()])
            .arg("--model")
            .arg(&fixtures.model)
            .arg("--llama-server")
            .arg(&fixtures.llama_server);
    }
    Ok(init)
}

fn rigor() -> Result<Command> {
    let mut command = Command::new(workspace::program("rigor")?);
    command.stdin(Stdio::null());
    Ok(command)
}
