//! Task files for cases that write them without a brain.

use rigor_queue::name::{PRIORITY_DEFAULT, TaskId};
use rigor_queue::task::{Backoff, Class, RETRIES_DEFAULT, TaskSpec, Vram, Work};

/// A CPU task with nothing but what every task has.
pub fn spec(batch: &str, task: &str, item: Option<&str>, command: &str) -> TaskSpec {
    TaskSpec {
        id: TaskId::derive(batch, task, item),
        batch: batch.to_owned(),
        plan: "plan".to_owned(),
        task: task.to_owned(),
        name: item.map_or(task.to_owned(), |item| format!("{task}_{item}")),
        class: Class::Cpu,
        work: Work::Command {
            command: command.to_owned(),
        },
        item: None,
        priority: PRIORITY_DEFAULT,
        cpus: 1,
        on: Vec::new(),
        model: None,
        min_tier: None,
        vram: Vram::default(),
        timeout_s: None,
        kill_if_silent_s: None,
        retries: RETRIES_DEFAULT,
        backoff: Backoff::default(),
        env: Default::default(),
        env_file: None,
        venv: None,
        conda: None,
        secrets: Vec::new(),
        workdir: None,
        requires: Vec::new(),
        produces: Vec::new(),
        plan_dir: "/nowhere".into(),
        batch_dir: "/nowhere".into(),
        created: jiff::Timestamp::UNIX_EPOCH,
    }
}
