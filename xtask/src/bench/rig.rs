//! A rig of release builds that is stopped when the benchmark lets go of it.

use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::programs::{output, release};
use crate::fixtures::Fixtures;

/// How long its programs may take to be there.
const START_MOST: Duration = Duration::from_secs(30);

pub(super) struct Rig {
    pub(super) root: PathBuf,
    level: &'static str,
}

/// What a rig is made of.
#[derive(Clone, Copy)]
pub(super) struct Setup<'a> {
    /// So many stand-in GPUs with a model each; none: one agent without a GPU.
    pub(super) gpus: Option<(&'a Fixtures, u16)>,
    /// Every component logs at this level.
    pub(super) level: &'static str,
    /// Of each agent; none: the number of CPUs.
    pub(super) cpu_slots: Option<u32>,
    pub(super) durability: &'static str,
    /// Requests at once of the model's server; none: what `rigor init` sets.
    pub(super) model_slots: Option<u64>,
}

/// One agent without a GPU, and otherwise what a rig has by default.
pub(super) const PLAIN: Setup<'static> = Setup {
    gpus: None,
    level: "info",
    cpu_slots: None,
    durability: "default",
    model_slots: None,
};

impl Rig {
    /// Makes a fresh rig in `scratch` and starts it.
    pub(super) fn start(scratch: &Path, setup: Setup<'_>) -> Result<Rig> {
        let rig = Rig {
            root: scratch.join("rig"),
            level: setup.level,
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
        match setup.gpus {
            None => rig.rigor(&["init", &root, "--cpu-only"])?,
            Some((fixtures, gpus)) => {
                let (gpus, port) = (gpus.to_string(), free_ports(gpus)?.to_string());
                let model = fixtures.model.to_string_lossy();
                let server = fixtures.llama_server.to_string_lossy();
                let mut words = vec!["init", &*root, "--sim-gpus", &gpus, "--model", &*model];
                words.extend(["--llama-server", &*server, "--port", &port]);
                let slots = setup.model_slots.map(|slots| slots.to_string());
                if let Some(slots) = &slots {
                    words.extend(["--slots", slots]);
                }
                rig.rigor(&words)?
            }
        };
        rig.configure(setup)?;
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

    /// Writes into rig.toml what is not there by default.
    fn configure(&self, setup: Setup<'_>) -> Result<()> {
        let path = self.root.join("rig.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut keys = vec![("[rig]", format!("durability = \"{}\"", setup.durability))];
        if let Some(slots) = setup.cpu_slots {
            keys.push(("[limits]", format!("cpu_slots = {slots}")));
        }
        let text = with_keys(&text, &keys)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Runs `rigor` on it to its end and returns what it printed.
    pub(super) fn rigor(&self, words: &[impl AsRef<OsStr>]) -> Result<String> {
        let mut command = Command::new(release("rigor"));
        command.args(words).env("RIGOR_DIR", &self.root);
        for name in ["BRAIN", "GPU", "WORKER", "EXECUTOR"] {
            command.env(format!("{name}_LOG_LEVEL"), self.level);
        }
        output(&mut command)
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

/// The text of a rig.toml with keys added to its sections.
fn with_keys(text: &str, keys: &[(&str, String)]) -> Result<String> {
    let mut text = text.to_owned();
    for (section, key) in keys {
        let header = format!("\n{section}\n");
        if !text.contains(&header) {
            bail!("rig.toml has no section {section}");
        }
        text = text.replacen(&header, &format!("{header}{key}\n"), 1);
    }
    Ok(text)
}

/// The first of `count` ports in a row that nobody listens on.
fn free_ports(count: u16) -> Result<u16> {
    let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (21_435..30_000)
        .step_by(usize::from(count))
        .find(|first| (*first..first + count).all(is_free))
        .context("no free ports on 127.0.0.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_into_their_sections() {
        let text = "# one\n\n[rig]\nname = \"a\"\n\n[limits]\n# none\n";
        let keys = [
            ("[rig]", "x = 1".to_owned()),
            ("[limits]", "y = 2".to_owned()),
        ];
        assert_eq!(
            with_keys(text, &keys).expect("both are there"),
            "# one\n\n[rig]\nx = 1\nname = \"a\"\n\n[limits]\ny = 2\n# none\n"
        );
        assert!(with_keys(text, &[("[timing]", String::new())]).is_err());
    }
}
