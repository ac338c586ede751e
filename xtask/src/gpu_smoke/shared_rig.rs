//! What the steps share: the rig, plans for it, and waiting for what it shows.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::GpuSmoke;
use super::setup::{MODEL, Runtime, word};
use crate::own_rig::OwnRig;
use crate::own_rig::state::{Agent, Batch, Gpu};

/// Between two looks at the rig.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);
/// For a heartbeat to tell what changed.
pub(super) const HEARD_MOST: Duration = Duration::from_secs(40);
/// For a batch, the load of its model in it.
pub(super) const BATCH_MOST: Duration = Duration::from_secs(900);

/// What the steps share.
pub(super) struct Smoke<'a> {
    pub(super) own: &'a mut OwnRig,
    pub(super) rig: &'a Path,
    pub(super) out: &'a Path,
    pub(super) simulated: bool,
    pub(super) python: String,
    pub(super) runtime: &'a Runtime,
    /// The first GPU before anything ran on it.
    pub(super) before: Option<Gpu>,
    pub(super) gpus: Vec<Gpu>,
    pub(super) batches: Vec<String>,
}

impl<'a> Smoke<'a> {
    pub(super) fn new(
        own: &'a mut OwnRig,
        rig: &'a Path,
        out: &'a Path,
        options: &GpuSmoke,
        runtime: &'a Runtime,
    ) -> Result<Smoke<'a>> {
        Ok(Smoke {
            own,
            rig,
            out,
            simulated: options.simulated,
            python: word(&options.python),
            runtime,
            before: None,
            gpus: Vec::new(),
            batches: Vec::new(),
        })
    }

    /// The GPUs in words.
    pub(super) fn machine(&self) -> Vec<String> {
        let words = |gpu: &Gpu| format!("{} ({}), {} MB", gpu.name, gpu.uuid, gpu.total_mb);
        self.gpus.iter().map(words).collect()
    }

    pub(super) fn rigor(&self, words: &[&str]) -> Result<String> {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        self.own.rigor(&words)
    }

    pub(super) fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.rigor(words)?;
        serde_json::from_str(&text)
            .with_context(|| format!("rigor {} printed no JSON", words.join(" ")))
    }

    /// The first agent with a GPU.
    pub(super) fn agent(&self) -> Result<Agent> {
        let agents = self.own.status()?.agents;
        agents
            .into_iter()
            .find(|agent| agent.gpu.is_some())
            .context("no agent shows a GPU")
    }

    pub(super) fn gpu(&self) -> Result<Gpu> {
        self.agent()?.gpu.context("the agent shows no GPU")
    }

    /// Waits until the first agent is as `wanted` says; the error says how it was last.
    pub(super) fn until(
        &self,
        most: Duration,
        what: &str,
        wanted: impl Fn(&Agent) -> bool,
    ) -> Result<Agent> {
        let deadline = Instant::now() + most;
        loop {
            let last = self.agent();
            if let Ok(agent) = &last
                && wanted(agent)
            {
                return last;
            }
            if Instant::now() > deadline {
                bail!(
                    "{what} was not seen within {}s; last: {last:?}",
                    most.as_secs()
                );
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// The shell command that holds so much memory of the GPU for a while.
    pub(super) fn hold(&self, mb: u64, seconds: u64) -> String {
        let hold = word(&self.out.join("hold.py"));
        let program = format!("{} {hold} --mb {mb} --seconds {seconds}", self.python);
        match self.simulated {
            true => format!("RIGOR_SIM_VRAM_MB={mb} {program} --simulated"),
            false => program,
        }
    }

    pub(super) fn submit(&mut self, name: &str, tasks: &str) -> Result<String> {
        let folder = self.out.join("plans").join(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let plan = format!(
            "# Plan: {name}\n\n## Goal\n\nA step of the GPU smoke test.\n\n## Tasks\n\n{tasks}"
        );
        let path = folder.join("plan.md");
        fs::write(&path, plan).with_context(|| format!("cannot write {}", path.display()))?;
        let id = self
            .rigor(&["submit", &folder.to_string_lossy()])?
            .trim()
            .to_owned();
        self.batches.push(id.clone());
        Ok(id)
    }

    pub(super) fn script(&mut self, name: &str, command: &str, fields: &str) -> Result<String> {
        let task = format!(
            "### hold\n\n- **task_class**: script\n- **command**: `{command}`\n- **retries**: 0\n{fields}"
        );
        self.submit(name, &task)
    }

    pub(super) fn ask(&mut self, name: &str, prompts: usize) -> Result<String> {
        let items = self.out.join("plans").join(name);
        fs::create_dir_all(&items).with_context(|| format!("cannot make {}", items.display()))?;
        let path = items.join("items.txt");
        let lines: String = (1..=prompts).map(|at| format!("question {at}\n")).collect();
        fs::write(&path, lines).with_context(|| format!("cannot write {}", path.display()))?;
        self.submit(
            name,
            &format!(
                "### ask\n\n- **foreach**: `items.txt`\n- **prompt**: Answer {{ITEM}}.\n- **llm_model**: {MODEL}\n- **max_tokens**: 32\n"
            ),
        )
    }

    pub(super) fn over(&self, id: &str) -> Result<Batch> {
        let deadline = Instant::now() + BATCH_MOST;
        loop {
            let batches = self.own.status()?.batches;
            let batch = batches.into_iter().find(|batch| batch.id == id);
            let batch = batch.with_context(|| format!("{id} is not among the batches"))?;
            if batch.is_over() {
                return Ok(batch);
            }
            if Instant::now() > deadline {
                let why = self.rigor(&["why", id]).unwrap_or_default();
                bail!(
                    "{id} was not over after {}s: {}",
                    BATCH_MOST.as_secs(),
                    why.lines().next().unwrap_or("-")
                );
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// The last attempt of the only task of a batch.
    pub(super) fn attempt(&self, batch: &str) -> Result<Value> {
        let shown = self.json(&["show", &format!("{batch}/hold"), "--json"])?;
        let attempts = shown["attempts"]
            .as_array()
            .context("no attempts are shown")?;
        attempts.last().cloned().context("it was never tried")
    }

    /// How often the agent's log has `words`.
    pub(super) fn said(&self, agent: &str, words: &str) -> Result<usize> {
        let path: PathBuf = self.rig.join("logs").join(format!("{agent}.log"));
        let log =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(log.matches(words).count())
    }
}
