//! The programs that a benchmark runs: release builds of the rig's, and its own.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use crate::workspace;

const PACKAGES: [&str; 7] = [
    "brain",
    "gpu-agent",
    "worker",
    "rigor",
    "nvml-stand-in",
    "bench-claims",
    "bench-queue",
];

/// Builds all of them, optimised.
pub(super) fn build() -> Result<()> {
    eprintln!("xtask: building the programs, optimised");
    let mut build = workspace::cargo(&["build", "--release"]);
    for package in PACKAGES {
        build.args(["-p", package]);
    }
    workspace::checked(&mut build)
}

/// A program of the release build.
pub(super) fn release(name: &str) -> PathBuf {
    workspace::root().join("target/release").join(name)
}

/// Runs `bench-queue` with these words; what it prints is JSON.
pub(super) fn bench_queue<T: DeserializeOwned>(words: &[&dyn AsRef<OsStr>]) -> Result<T> {
    let mut command = Command::new(release("bench-queue"));
    command.args(words.iter().map(|word| word.as_ref()));
    let printed = output(&mut command)?;
    serde_json::from_str(&printed).with_context(|| {
        format!(
            "{} printed something else: {printed}",
            workspace::shown(&command)
        )
    })
}

/// What a command prints; its failure is an error with what it said.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let shown = workspace::shown(command);
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {shown}"))?;
    if !output.status.success() {
        bail!(
            "{shown}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
