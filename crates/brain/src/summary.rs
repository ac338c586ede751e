//! `RUN_SUMMARY.json` and `RUN_SUMMARY.md`, and the copies of results that people look for in a
//! batch's folder. Everything is computed from the records, so a restart of the brain loses none.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use rigor_config::NotifyEvent;
use rigor_queue::lane::Lane;
use rigor_queue::record::{AttemptRecord, Outcome};
use rigor_queue::task::Class;
use rigor_queue::{records, submit};
use rigor_snapshot::BatchGpuTime;
use serde::Serialize;
use serde_json::json;

use crate::batch::Batch;
use crate::context::Context;
use crate::graph::{Phase, State};
use crate::notify::Notice;

/// Failures shown in full; more of the same cause are counted.
const EXAMPLES_PER_CAUSE: usize = 5;

/// `RUN_SUMMARY.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    schema: u32,
    batch: String,
    plan: String,
    state: Lane,
    submitted: Timestamp,
    ended: Timestamp,
    /// From submission to end, seconds.
    wall_seconds: f64,
    total: usize,
    done: usize,
    failed: usize,
    cancelled: usize,
    /// Attempts beyond the first of each task.
    retries: usize,
    simulated_gpus: bool,
    tasks: Vec<TaskSummary>,
    agents: Vec<AgentSummary>,
    /// None where the rig has no GPU, or where no journal could be read.
    gpu_time: Option<BatchGpuTime>,
    failures: Vec<FailureSummary>,
    #[serde(skip)]
    records: Vec<AttemptRecord>,
}

#[derive(Debug, Serialize)]
struct TaskSummary {
    id: String,
    class: Class,
    total: usize,
    done: usize,
    failed: usize,
    cancelled: usize,
    mean_seconds: Option<f64>,
    longest_seconds: Option<f64>,
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct AgentSummary {
    name: String,
    attempts: usize,
    succeeded: usize,
    /// Attempts by class.
    by_class: BTreeMap<Class, usize>,
    /// Sum of the durations of its attempts, seconds; several at once count each.
    task_seconds: f64,
}

#[derive(Debug, Serialize)]
struct FailureSummary {
    reason: String,
    count: usize,
    examples: Vec<String>,
}

/// Computes the summary of a batch that is over.
pub(crate) fn make(brain: &Context, batch: &Batch, state: Lane) -> Result<Summary> {
    let mut records = Vec::new();
    let mut failures: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut tasks = Vec::new();
    for (task, node) in batch.plan.tasks.iter().zip(batch.graph.nodes()) {
        let mut seconds = Vec::new();
        for instance in &node.instances {
            let name = instance.name;
            // A cancelled one has the reason in the record after its last attempt.
            let history = records::history(&brain.rig, &batch.id, name.id, name.attempt + 1)?;
            let succeeded = |record: &&AttemptRecord| record.outcome == Outcome::Succeeded;
            seconds.extend(
                history
                    .iter()
                    .filter(succeeded)
                    .map(|record| record.duration_ms as f64 / 1000.0),
            );
            if matches!(instance.state, State::Failed | State::Cancelled) {
                let reason = history
                    .last()
                    .and_then(|record| record.outcome.reason())
                    .unwrap_or("its file is in quarantine");
                let title = task.instance(instance.item.as_deref());
                failures.entry(reason.to_owned()).or_default().push(title);
            }
            records.extend(history);
        }
        let problem = match &node.phase {
            Phase::Broken(reason) | Phase::Cancelled(reason) => Some(reason.clone()),
            Phase::Unexpanded | Phase::Expanded => None,
        };
        if let Some(problem) = &problem {
            failures
                .entry(problem.clone())
                .or_default()
                .push(task.id.clone());
        }
        let sum: f64 = seconds.iter().sum();
        tasks.push(TaskSummary {
            id: task.id.clone(),
            class: task.class,
            total: node.counts.total,
            done: node.counts.done,
            failed: node.counts.failed,
            cancelled: node.counts.cancelled,
            mean_seconds: (!seconds.is_empty()).then(|| sum / seconds.len() as f64),
            longest_seconds: seconds.iter().copied().max_by(f64::total_cmp),
            problem,
        });
    }
    let mut agents: BTreeMap<&str, AgentSummary> = BTreeMap::new();
    for record in records.iter().filter(|record| record.started.is_some()) {
        let agent = agents.entry(&record.agent).or_insert_with(|| AgentSummary {
            name: record.agent.clone(),
            attempts: 0,
            succeeded: 0,
            by_class: BTreeMap::new(),
            task_seconds: 0.0,
        });
        agent.attempts += 1;
        agent.succeeded += usize::from(record.outcome == Outcome::Succeeded);
        *agent.by_class.entry(record.class).or_default() += 1;
        agent.task_seconds += record.duration_ms as f64 / 1000.0;
    }
    let agents = agents.into_values().collect();
    let mut failures: Vec<FailureSummary> = failures
        .into_iter()
        .map(|(reason, titles)| FailureSummary {
            reason,
            count: titles.len(),
            examples: titles.into_iter().take(EXAMPLES_PER_CAUSE).collect(),
        })
        .collect();
    failures.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.reason.cmp(&b.reason)));
    let ended = Timestamp::now();
    let gpu_time = BatchGpuTime::read(&brain.rig, &brain.config, &batch.id, batch.submitted, ended)
        .unwrap_or_else(|error| {
            tracing::warn!(batch = %batch.id,
                    "What the GPUs' time went into is not in the summary of {}: {error}", batch.id);
            None
        });
    // Cut as the GPU time is, so that both are the same.
    let wall_ms = ended.as_millisecond() - batch.submitted.as_millisecond();
    let totals = batch.graph.totals();
    let retries = records
        .iter()
        .filter(|record| record.attempt > 1 && record.started.is_some())
        .count();
    Ok(Summary {
        schema: 1,
        batch: batch.id.clone(),
        plan: batch.spec().plan.clone(),
        state,
        submitted: batch.submitted,
        ended,
        wall_seconds: wall_ms as f64 / 1000.0,
        total: totals.total,
        done: totals.done,
        failed: totals.failed,
        cancelled: totals.cancelled,
        retries,
        simulated_gpus: brain.config.nvml.simulated,
        tasks,
        agents,
        gpu_time,
        failures,
        records,
    })
}

impl Summary {
    /// What is told of the batch's end; `message` is the log's.
    pub(crate) fn notice(&self, message: &str) -> Notice {
        let event = match self.state {
            Lane::Failed => NotifyEvent::BatchFailed,
            _ => NotifyEvent::BatchFinished,
        };
        let loss = self
            .gpu_time
            .as_ref()
            .and_then(|time| time.largest_loss.as_deref());
        Notice {
            event,
            subject: self.batch.clone(),
            message: match loss {
                Some(loss) => format!("{message}. {loss}"),
                None => message.to_owned(),
            },
            details: json!({
                "batch": self.batch,
                "plan": self.plan,
                "state": self.state,
                "done": self.done,
                "failed": self.failed,
                "cancelled": self.cancelled,
                "total": self.total,
                "wall_seconds": self.wall_seconds,
                "largest_loss": loss,
            }),
        }
    }
}

/// Writes the summary, every record to `results/attempts.jsonl`, and the output of failed
/// attempts to `logs/`.
pub(crate) fn write(batch: &Batch, summary: &Summary) -> Result<()> {
    let dir = &batch.batch_dir;
    submit::replace_file(
        &dir.join("RUN_SUMMARY.json"),
        &serde_json::to_vec_pretty(summary)?,
        false,
    )?;
    submit::replace_file(
        &dir.join("RUN_SUMMARY.md"),
        markdown(summary).as_bytes(),
        false,
    )?;
    let path = dir.join("results/attempts.jsonl");
    let mut file = std::io::BufWriter::new(
        fs::File::create(&path).with_context(|| format!("create {}", path.display()))?,
    );
    for record in &summary.records {
        serde_json::to_writer(&mut file, record)?;
        file.write_all(b"\n")?;
    }
    file.flush()
        .with_context(|| format!("write {}", path.display()))
}

/// Copies the output of failed attempts to the batch's `logs/`.
pub(crate) fn copy_failed_logs(brain: &Context, batch: &Batch, summary: &Summary) -> Result<()> {
    for record in &summary.records {
        if !matches!(record.outcome, Outcome::Failed { .. }) {
            continue;
        }
        let from = brain.rig.output_path(&batch.id, record.id, record.attempt);
        if from.exists() {
            let to = batch
                .batch_dir
                .join("logs")
                .join(format!("{}.a{}.log", record.name, record.attempt));
            fs::copy(&from, &to)
                .with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
        }
    }
    Ok(())
}

fn markdown(summary: &Summary) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = render(summary, &mut text);
    text
}

fn render(summary: &Summary, out: &mut String) -> std::fmt::Result {
    writeln!(out, "# {}: {}\n", summary.batch, summary.state)?;
    writeln!(
        out,
        "{} of {} tasks complete, {} failed, {} cancelled, {} further attempts, in {}.\n",
        summary.done,
        summary.total,
        summary.failed,
        summary.cancelled,
        summary.retries,
        duration(summary.wall_seconds)
    )?;
    if summary.simulated_gpus {
        writeln!(
            out,
            "The GPUs of this rig are **stand-ins**: no figure here is a GPU's.\n"
        )?;
    }
    writeln!(
        out,
        "| task | class | done | failed | cancelled | mean | longest |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    for task in &summary.tasks {
        let time = |seconds: Option<f64>| seconds.map_or("-".to_owned(), duration);
        writeln!(
            out,
            "| {} | {} | {} of {} | {} | {} | {} | {} |",
            task.id,
            task.class,
            task.done,
            task.total,
            task.failed,
            task.cancelled,
            time(task.mean_seconds),
            time(task.longest_seconds)
        )?;
    }
    writeln!(
        out,
        "\n| agent | attempts | succeeded | by class | task time |\n|---|---|---|---|---|"
    )?;
    for agent in &summary.agents {
        let classes: Vec<String> = agent
            .by_class
            .iter()
            .map(|(class, count)| format!("{class} {count}"))
            .collect();
        writeln!(
            out,
            "| {} | {} | {} | {} | {} |",
            agent.name,
            agent.attempts,
            agent.succeeded,
            classes.join(", "),
            duration(agent.task_seconds)
        )?;
    }
    if let Some(time) = &summary.gpu_time {
        writeln!(out, "\n## What the GPUs' time went into\n")?;
        for line in time.lines() {
            writeln!(out, "{line}")?;
        }
    }
    if !summary.failures.is_empty() {
        writeln!(out, "\n## What did not work\n")?;
        for failure in &summary.failures {
            writeln!(
                out,
                "- {} x {} ({}{})",
                failure.count,
                failure.reason.replace('\n', " "),
                failure.examples.join(", "),
                if failure.count > failure.examples.len() {
                    ", ..."
                } else {
                    ""
                }
            )?;
        }
    }
    Ok(())
}

/// `1h 30m`, `2m 5s`, `3.2s`.
fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1}s"),
        60..3600 => format!("{}m {}s", whole / 60, whole % 60),
        _ => format!("{}h {}m", whole / 3600, whole % 3600 / 60),
    }
}
