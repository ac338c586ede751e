//! Task files for cases that write them without a brain.

use rigor_queue::name::TaskId;
use rigor_queue::task::{Class, TaskSpec, Work};

/// A CPU task with nothing but what every task has.
pub fn spec(batch: &str, task: &str, item: Option<&str>, command: &str) -> TaskSpec {
    TaskSpec {
        plan: "plan".to_owned(),
        name: item.map_or(task.to_owned(), |item| format!("{task}_{item}")),
        plan_dir: "/nowhere".into(),
        batch_dir: "/nowhere".into(),
        created: jiff::Timestamp::UNIX_EPOCH,
        ..TaskSpec::new(
            TaskId::derive(batch, task, item),
            batch,
            task,
            Class::Cpu,
            Work::Command {
                command: command.to_owned(),
            },
        )
    }
}
