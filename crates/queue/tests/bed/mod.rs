//! A rig with an agent and a batch, and tasks for it.

use rigor_queue::name::{FileName, TaskId};
use rigor_queue::record::{FailureKind, Outcome};
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::{self, Durability};
use rigor_queue::task::{Backoff, Class, TaskSpec, Vram, Work};

pub(crate) struct Bed {
    pub(crate) _dir: tempfile::TempDir,
    pub(crate) rig: Rig,
}

pub(crate) fn bed() -> Bed {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::create(dir.path()).unwrap();
    rig.prepare_agent("gpu-1").unwrap();
    rig.prepare_batch("b").unwrap();
    Bed { _dir: dir, rig }
}

pub(crate) fn failed() -> Outcome {
    Outcome::Failed {
        kind: FailureKind::ExitCode,
        reason: "exit code 1".to_owned(),
    }
}

pub(crate) fn queued(rig: &Rig, task: &str, sequence: u64) -> (FileName, TaskSpec) {
    let spec = spec(task);
    let name = FileName::first(spec.priority, sequence, spec.shape(), spec.id);
    let place = Place::Queue(Class::Cpu);
    assert!(submit::submit(rig, place, &name, &spec, Durability::Process).unwrap());
    (name, spec)
}

pub(crate) fn spec(task: &str) -> TaskSpec {
    TaskSpec {
        id: TaskId::derive("b", task, None),
        batch: "b".to_owned(),
        plan: "p".to_owned(),
        task: task.to_owned(),
        name: task.to_owned(),
        class: Class::Cpu,
        work: Work::Command {
            command: "true".to_owned(),
        },
        item: None,
        priority: 5,
        cpus: 1,
        on: Vec::new(),
        model: None,
        min_tier: None,
        vram: Vram::default(),
        timeout_s: None,
        kill_if_silent_s: None,
        retries: 2,
        backoff: Backoff::default(),
        env: Default::default(),
        env_file: None,
        venv: None,
        conda: None,
        secrets: Vec::new(),
        workdir: None,
        requires: Vec::new(),
        produces: Vec::new(),
        plan_dir: "/p".into(),
        batch_dir: "/p/history/b".into(),
        created: jiff::Timestamp::UNIX_EPOCH,
    }
}
