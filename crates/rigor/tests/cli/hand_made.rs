//! A rig made by hand, and `rigor` run on it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rigor_queue::claim::{self, Candidate, Held};
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::record::{AttemptRecord, FailureKind, Outcome, Peaks};
use rigor_queue::records;
use rigor_queue::rig::{BRAIN, Place, Rig};
use rigor_queue::submit::{Durability, expand};
use rigor_queue::task::{Class, TaskSpec};

/// What a run of `rigor` left.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    #[track_caller]
    pub(crate) fn ok(self) -> Ran {
        self.exits(0)
    }

    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Ran {
        assert_eq!(
            self.code,
            Some(code),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    #[track_caller]
    pub(crate) fn says(self, words: &str) -> Ran {
        assert!(
            self.stderr.contains(words),
            "{words:?} is not in:\n{}",
            self.stderr
        );
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}:\n{}", self.stdout))
    }

    /// The only line of stdout.
    #[track_caller]
    pub(crate) fn line(&self) -> &str {
        let line = self.stdout.strip_suffix('\n').expect("a line");
        assert!(!line.contains('\n'), "more than a line:\n{line}");
        line
    }
}

/// A rig in a folder of its own.
pub(crate) struct HandMade {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) rig: Rig,
}

/// Two GPUs (that no NVML was asked for) and a model.
const TOML: &str = r#"
[rig]
name = "garage"
id = "handmade"
[[gpu]]
name = "gpu-1"
uuid = "GPU-1"
port = 21435
model = "tiny"
[[gpu]]
name = "gpu-2"
uuid = "GPU-2"
port = 21436
[[model]]
id = "tiny"
kind = "chat"
runtime = "command"
command = "true {PORT}"
slots = 1
[nvml]
library = "no-such-library.so"
"#;

impl HandMade {
    pub(crate) fn new() -> HandMade {
        HandMade::in_folder(&std::env::temp_dir())
    }

    pub(crate) fn in_folder(folder: &Path) -> HandMade {
        let dir = tempfile::tempdir_in(folder).expect("a temporary folder");
        let rig = Rig::create(&dir.path().join("rig")).expect("a rig");
        std::fs::write(rig.root().join("rig.toml"), TOML).expect("rig.toml");
        HandMade { dir, rig }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        rigor_command(Path::new(env!("CARGO_BIN_EXE_rigor")), self.path(), words)
    }

    pub(crate) fn rigor(&self, words: &[&str]) -> Ran {
        ran(self.command(words))
    }

    /// A plan of two cpu tasks, the second after the first.
    pub(crate) fn plan(&self) -> PathBuf {
        self.plan_of(
            "# Plan: Video Tags\n\n## Inputs\n- **LANGUAGE**: words (default: en)\n\n## Tasks\n\n\
             ### one\n- **task_class**: cpu\n- **command**: `echo {LANGUAGE}`\n\n\
             ### two\n- **task_class**: cpu\n- **depends_on**: one\n- **command**: `echo two`\n",
        )
    }

    pub(crate) fn plan_of(&self, text: &str) -> PathBuf {
        let dir = self.path().join("plan");
        std::fs::create_dir_all(&dir).expect("the plan's folder");
        std::fs::write(dir.join("plan.md"), text).expect("plan.md");
        dir
    }

    /// A batch that was submitted through the command line and taken up by the brain.
    pub(crate) fn running_batch(&self) -> (String, Held) {
        let plan = self.plan();
        let id = self
            .rigor(&["submit", plan.to_str().expect("UTF-8")])
            .ok()
            .line()
            .to_owned();
        let held = self.take_up(&id);
        (id, held)
    }

    /// What the brain does with a submitted plan.
    pub(crate) fn take_up(&self, batch: &str) -> Held {
        let names = self
            .rig
            .list(Place::Queue(Class::Brain))
            .expect("a listing")
            .names;
        let plan = TaskId::derive(batch, "_plan", None);
        let name = names
            .iter()
            .find(|name| name.id == plan)
            .expect("the plan's file");
        self.claim(Class::Brain, name, BRAIN)
    }

    pub(crate) fn claim(&self, class: Class, name: &FileName, agent: &str) -> Held {
        self.rig.prepare_agent(agent).expect("the agent's folders");
        let Candidate::Ready(held) = claim::candidate(&self.rig, class, name).expect("a candidate")
        else {
            panic!("{name} cannot be claimed")
        };
        held.claim(&self.rig, agent, false)
            .expect("a claim")
            .expect("nobody else claims here")
    }

    /// Expands `task` of a batch into one task for each item and releases them.
    pub(crate) fn queued(&self, batch: &str, task: &str, items: &[&str]) -> Vec<FileName> {
        let names = self.waiting(batch, task, items);
        for name in &names {
            claim::release(&self.rig, batch, task, Class::Cpu, name).expect("a release");
        }
        names
    }

    /// Expands `task` of a batch into one task for each item.
    pub(crate) fn waiting(&self, batch: &str, task: &str, items: &[&str]) -> Vec<FileName> {
        let tasks: Vec<(FileName, TaskSpec)> = items
            .iter()
            .enumerate()
            .map(|(n, item)| {
                let spec = self.spec(batch, task, item);
                (FileName::first(5, n as u64, spec.shape(), spec.id), spec)
            })
            .collect();
        let names: Vec<FileName> = tasks.iter().map(|(name, _)| *name).collect();
        expand(&self.rig, batch, task, tasks, Durability::Process).expect("an expansion");
        names
    }

    fn spec(&self, batch: &str, task: &str, item: &str) -> TaskSpec {
        serde_json::from_value(serde_json::json!({
            "id": TaskId::derive(batch, task, Some(item)),
            "batch": batch, "plan": "video-tags", "task": task, "name": format!("{task}_{item}"),
            "class": "cpu", "work": {"kind": "command", "command": format!("echo {item}")},
            "item": {"id": item, "value": item},
            "plan_dir": self.path().join("plan"), "batch_dir": self.path().join("plan/history").join(batch),
            "created": Timestamp::now(),
        }))
        .expect("a specification")
    }

    /// The task fails for good.
    pub(crate) fn fail(&self, held: Held, reason: &str) {
        let (batch, name) = (held.spec.batch.clone(), held.name);
        let kind = FailureKind::ExitCode;
        self.record(
            &held,
            Outcome::Failed {
                kind,
                reason: reason.to_owned(),
            },
        );
        held.fail(&self.rig).expect("a move");
        claim::give_up(&self.rig, &batch, &name).expect("a move");
    }

    pub(crate) fn complete(&self, held: Held) {
        self.record(&held, Outcome::Succeeded);
        held.complete(&self.rig).expect("a move");
    }

    fn record(&self, held: &Held, outcome: Outcome) {
        let spec = &held.spec;
        let record = AttemptRecord {
            id: spec.id,
            batch: spec.batch.clone(),
            task: spec.task.clone(),
            name: spec.name.clone(),
            class: spec.class,
            attempt: held.name.attempt,
            agent: "gpu-1".to_owned(),
            nonce: None,
            started: Some(Timestamp::now()),
            ended: Timestamp::now(),
            duration_ms: 5_400_000,
            exit_code: Some(if outcome == Outcome::Succeeded { 0 } else { 3 }),
            outcome,
            signal: None,
            peaks: Peaks::default(),
            output_bytes: 0,
            output_dropped: 0,
            llm: None,
            gpu_memory: None,
        };
        assert!(records::write_new(&self.rig, &record).expect("a record"));
    }

    pub(crate) fn signals(&self, to: &str) -> Vec<(String, String)> {
        rigor_queue::presence::signals(&self.rig, to).expect("the signals")
    }
}

pub(crate) fn rigor_command(program: &Path, at: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(words).current_dir(at).stdin(Stdio::null());
    for variable in ["RIGOR_DIR", "NO_COLOR", "TMUX"] {
        command.env_remove(variable);
    }
    command
}

pub(crate) fn ran(mut command: Command) -> Ran {
    let output = command.output().expect("rigor starts");
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Waits for a condition.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
