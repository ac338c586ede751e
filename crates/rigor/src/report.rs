//! `rigor report`.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use rigor_queue::lane::Lane;
use rigor_queue::records;
use rigor_snapshot::{Batch, BatchGpuTime, Filter, PLAN_TASK, Task, plan_task_id};
use serde::Serialize;

use crate::args::Report;
use crate::exit::Exit;
use crate::target::{self, Opened};
use crate::terminal::{duration, json, line, note, print, printable};

/// Failures that are listed where the summary is gone.
const FAILURES_SHOWN: usize = 20;
/// A plan's own file is claimed a few times at most: once, and again after each death of the brain
/// before it was read.
const PLAN_ATTEMPTS: u32 = 16;

/// Prints the summary that the brain left in the batch's folder or, where that is gone, what the
/// rig itself knows.
pub(crate) fn run(at: &Path, args: &Report) -> Result<Exit> {
    let opened = target::open_running(at)?;
    let id = opened.batch(&args.batch)?;
    let Some(batch) = rigor_snapshot::batch(&opened.rig, &id)? else {
        bail!("the batch {id} has no plan in the lanes; its submission did not finish");
    };
    let file = if args.json {
        "RUN_SUMMARY.json"
    } else {
        "RUN_SUMMARY.md"
    };
    let Some(dir) = &batch.batch_dir else {
        let why = "where it lay is not known, its plan cannot be read";
        return without_summary(&opened, &batch, args, file, why);
    };
    let path = PathBuf::from(dir).join(file);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !batch.state.is_over() => {
            bail!(
                "{id} is {}; its summary is written when it is over: rigor wait {id}",
                batch.state.as_str()
            );
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let why = format!("there is no {}", path.display());
            return without_summary(&opened, &batch, args, file, &why);
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    if args.path {
        line(path.display().to_string())?;
    } else {
        print(&text)?;
    }
    Ok(Exit::Ok)
}

/// What the lanes, the records and the journals say of a batch whose summary is gone.
#[derive(Debug, Serialize)]
struct Known<'a> {
    schema: u32,
    /// `RUN_SUMMARY.json` has more.
    summary_missing: &'a str,
    #[serde(flatten)]
    batch: &'a Batch,
    ended: Option<Timestamp>,
    failures: Vec<Task>,
    gpu_time: Option<BatchGpuTime>,
}

fn without_summary(
    opened: &Opened,
    batch: &Batch,
    args: &Report,
    file: &str,
    why: &str,
) -> Result<Exit> {
    let id = &batch.id;
    if args.path {
        bail!("the {file} of {id} is gone: {why}");
    }
    note(format!(
        "The {file} of {id} is gone ({}); this is what the rig itself knows.",
        printable(why)
    ));
    let record = records::history(&opened.rig, id, plan_task_id(id), PLAN_ATTEMPTS)?.pop();
    let ended = record.map(|record| record.ended);
    let gpu_time = match (batch.submitted, ended) {
        (Some(from), Some(to)) => BatchGpuTime::read(&opened.rig, &opened.config, id, from, to)?,
        _ => None,
    };
    let filter = Filter {
        batch: Some(id.clone()),
        lane: Some(Lane::Failed),
        limit: Some(FAILURES_SHOWN + 1),
        ..Filter::default()
    };
    let mut failures = rigor_snapshot::tasks(&opened.rig, &filter)?;
    failures.retain(|task| task.task != PLAN_TASK);
    failures.truncate(FAILURES_SHOWN);
    let known = Known {
        schema: 1,
        summary_missing: why,
        batch,
        ended,
        failures,
        gpu_time,
    };
    if args.json {
        json(&known)?;
    } else {
        print(&markdown(&known))?;
    }
    Ok(Exit::Ok)
}

fn markdown(known: &Known<'_>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = render(known, &mut text);
    text
}

fn render(known: &Known<'_>, out: &mut String) -> std::fmt::Result {
    let batch = known.batch;
    writeln!(out, "# {}: {}\n", batch.id, batch.state.as_str())?;
    let took = batch
        .submitted
        .zip(known.ended)
        .and_then(|(from, to)| Duration::try_from(to.duration_since(from)).ok());
    let took = took.map_or(String::new(), |took| format!(", in {}", duration(took)));
    writeln!(
        out,
        "{} of {} tasks complete, {} failed, {} cancelled{took}.",
        batch.done, batch.total, batch.failed, batch.cancelled
    )?;
    if !batch.tasks.is_empty() {
        writeln!(out, "\n| task | class | done | failed | cancelled |")?;
        writeln!(out, "|---|---|---|---|---|")?;
    }
    for task in &batch.tasks {
        let total = task.total.map_or("?".to_owned(), |total| total.to_string());
        writeln!(
            out,
            "| {} | {} | {} of {total} | {} | {} |",
            task.id, task.class, task.done, task.failed, task.cancelled
        )?;
    }
    if let Some(time) = &known.gpu_time {
        writeln!(out, "\n## What the GPUs' time went into\n")?;
        for line in time.lines() {
            writeln!(out, "{line}")?;
        }
    }
    if !known.failures.is_empty() {
        writeln!(out, "\n## What did not work\n")?;
    }
    for task in &known.failures {
        let reason = task
            .reason
            .as_deref()
            .map_or_else(|| "its record is gone too".to_owned(), printable);
        writeln!(
            out,
            "- {} ({}): {reason}",
            printable(&task.name),
            task.id.short()
        )?;
    }
    let more = (batch.failed as usize).saturating_sub(known.failures.len());
    if more > 0 {
        writeln!(
            out,
            "- {more} more: rigor tasks --batch {} --lane failed",
            batch.id
        )?;
    }
    Ok(())
}
