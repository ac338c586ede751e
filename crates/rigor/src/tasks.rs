//! `rigor tasks`.

use std::path::Path;

use anyhow::Result;
use rigor_snapshot::{Filter, Task};

use crate::args::Tasks;
use crate::exit::Exit;
use crate::target;
use crate::terminal::{ago, json, note, print, printable, table};

/// Lists the tasks that are asked for.
pub(crate) fn run(at: &Path, args: &Tasks) -> Result<Exit> {
    let opened = target::open_running(at)?;
    let filter = Filter {
        batch: args
            .batch
            .as_deref()
            .map(|batch| opened.batch(batch))
            .transpose()?,
        lane: args.lane,
        class: args.class,
        agent: args.agent.clone(),
        limit: args.limit,
    };
    if let Some(agent) = &filter.agent
        && agent != rigor_queue::rig::BRAIN
    {
        opened.agent(agent)?;
    }
    let tasks = rigor_snapshot::tasks(&opened.rig, &filter)?;
    if args.json {
        json(&serde_json::json!({ "schema": 1, "tasks": tasks }))?;
    } else if tasks.is_empty() {
        note("No such tasks.");
    } else {
        print(&table(
            &[
                "ID", "NAME", "CLASS", "LANE", "ATTEMPT", "AGENT", "SINCE", "BATCH", "",
            ],
            tasks.iter().map(row),
        ))?;
    }
    Ok(Exit::Ok)
}

fn row(task: &Task) -> Vec<String> {
    vec![
        task.id.short(),
        printable(&task.name),
        task.class.map_or("-", |class| class.as_str()).to_owned(),
        task.lane.as_str().to_owned(),
        task.attempt.to_string(),
        task.agent.clone().unwrap_or_else(|| "-".to_owned()),
        task.since.map_or_else(|| "-".to_owned(), ago),
        task.batch.clone(),
        task.reason.as_deref().map(printable).unwrap_or_default(),
    ]
}
