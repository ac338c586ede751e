//! The workspace: where it is, and its programs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// What a rig consists of: its programs, and the library that stands in for NVML.
const PACKAGES: [&str; 5] = ["brain", "gpu-agent", "worker", "rigor", "nvml-stand-in"];

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

/// `cargo`, in the workspace, without standard input.
pub(crate) fn cargo(words: &[&str]) -> Command {
    // Cargo names itself to what it runs.
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(words).current_dir(root()).stdin(Stdio::null());
    command
}

/// Builds the programs and the stand-in library as they are used by hand.
pub(crate) fn build() -> Result<()> {
    eprintln!("xtask: building the programs");
    let mut build = cargo(&["build"]);
    for package in PACKAGES {
        build.args(["-p", package]);
    }
    checked(&mut build)
}

/// A program of the workspace: where cargo puts it, beside this one.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where xtask itself lies")?;
    let program = own.with_file_name(name);
    if !program.is_file() {
        bail!("{} was not built", program.display());
    }
    Ok(program)
}

/// Runs a command to its end; its failure is an error.
pub(crate) fn checked(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{}: {status}", shown(command));
    }
    Ok(())
}

/// A command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut text = program
        .file_name()
        .unwrap_or(program.as_os_str())
        .to_string_lossy()
        .into_owned();
    for word in command.get_args() {
        text.push(' ');
        text.push_str(&word.to_string_lossy());
    }
    text
}
