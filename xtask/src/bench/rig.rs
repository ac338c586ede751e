//! A rig of release builds that is stopped when the benchmark lets go of it.

use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::fixtures::Fixtures;
use crate::workspace;

/// How long its programs may take to be there.
const START_MOST: Duration = Duration::from_secs(30);

pub(super) struct Rig {
    pub(super) root: PathBuf,
    level: &'static str,
}

impl Rig {
    /// Makes a fresh rig in `scratch` and starts it; every component logs at `level`.
    pub(super) fn start(
        scratch: &Path,
        fixtures: Option<&Fixtures>,
        level: &'static str,
    ) -> Result<Rig> {
        let rig = Rig {
            root: scratch.join("rig"),
            level,
        };
        if rig.root.join("rig.toml").exists() {
            // An earlier benchmark was killed.
            rig.rigor(&["down", "--grace", "1s"])?;
        }
        if rig.root.exists() {
            fs::remove_dir_all(&rig.root)
                .with_context(|| format!("cannot remove {}", rig.root.display()))?;
        }
        let root = rig.root.to_string_lossy();
        match fixtures {
            None => rig.rigor(&["init", &root, "--cpu-only"])?,
            Some(fixtures) => rig.rigor(&[
                "init",
                &root,
                "--sim-gpus",
                "3",
                "--model",
                &fixtures.model.to_string_lossy(),
                "--llama-server",
                &fixtures.llama_server.to_string_lossy(),
                "--port",
                &free_ports(3)?.to_string(),
            ])?,
        };
        rig.rigor(&["up", "--no-tmux"])?;
        let deadline = Instant::now() + START_MOST;
        while !rig.is_up()? {
            if Instant::now() > deadline {
                bail!("the rig was not up after {}s", START_MOST.as_secs());
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(rig)
    }

    /// Runs `rigor` on it to its end and returns what it printed.
    pub(super) fn rigor(&self, words: &[impl AsRef<OsStr>]) -> Result<String> {
        let program = release("rigor");
        let mut command = Command::new(&program);
        command
            .args(words)
            .env("RIGOR_DIR", &self.root)
            .stdin(Stdio::null());
        for name in ["BRAIN", "GPU", "WORKER", "EXECUTOR"] {
            command.env(format!("{name}_LOG_LEVEL"), self.level);
        }
        let output = command
            .output()
            .with_context(|| format!("cannot start {}", program.display()))?;
        if !output.status.success() {
            bail!(
                "{}: {}\n{}",
                workspace::shown(&command),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The files below `logs/`, with their sizes.
    pub(super) fn logs(&self) -> Result<Vec<(String, u64)>> {
        let dir = self.root.join("logs");
        let mut logs = Vec::new();
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Standard error, where it is no terminal, has each line of the log again.
            if name.ends_with(".log") {
                logs.push((name, entry.metadata()?.len()));
            }
        }
        logs.sort();
        Ok(logs)
    }

    fn is_up(&self) -> Result<bool> {
        let status: Value = serde_json::from_str(&self.rigor(&["status", "--json"])?)
            .context("`rigor status --json` printed something unknown")?;
        let alive = |component: &Value| component["alive"] == true;
        let agents = status["agents"].as_array().map_or(&[][..], Vec::as_slice);
        Ok(alive(&status["brain"]) && !agents.is_empty() && agents.iter().all(alive))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Err(error) = self.rigor(&["down", "--grace", "1s"]) {
            eprintln!("xtask: {} may still run: {error:#}", self.root.display());
        }
    }
}

/// A program of the release build.
pub(super) fn release(name: &str) -> PathBuf {
    workspace::root().join("target/release").join(name)
}

/// The first of `count` ports in a row that nobody listens on.
fn free_ports(count: u16) -> Result<u16> {
    let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (21_435..30_000)
        .step_by(usize::from(count))
        .find(|first| (*first..first + count).all(is_free))
        .context("no free ports on 127.0.0.1")
}
