//! What became of every task.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::Options;
use super::load::{Batch, Load};
use super::plans::Promise;
use super::report::{Report, without_numbers};
use crate::Rig;

/// Of a batch that does not end so many tasks are asked about.
const ASKED_MOST: usize = 4;

/// What the attempts of one task noted.
#[derive(Debug, Default)]
struct Noted {
    /// By number: when it began, its last sign of life, and the exit code it came to its end with.
    attempts: BTreeMap<u32, (f64, f64, Option<i32>)>,
    starts: usize,
    overlaps: usize,
}

/// Counts all batches, and writes down what must not be.
pub(super) fn tell(rig: &Rig, load: &Load, options: &Options, report: &mut Report) {
    report.wrong.extend(load.wrong.iter().cloned());
    report.refused = load.refused.clone();
    let (fault, count) = load.kills();
    report.faults.insert(fault, count);
    for batch in load.batches() {
        over(rig, batch, options, report);
    }
    for batch in load.left() {
        report.batches += 1;
        report.submitted += batch.plan.tasks;
        hangs(rig, batch, report);
    }
}

/// A batch that did not come to its end although nothing was in its way.
fn hangs(rig: &Rig, batch: &Batch, report: &mut Report) {
    let first = |said: String| said.lines().take(3).collect::<Vec<_>>().join(" / ");
    let why = first(rig.rigor(&["why", &batch.id]).stdout);
    report.wrong.push(format!(
        "{} ({:?}) does not end: {why}",
        batch.id, batch.plan.kind
    ));
    let lanes = lanes(rig, batch);
    let open = lanes.iter().filter(|(_, lane)| !is_terminal(lane));
    report.lost += open.clone().count();
    for (id, lane) in open.take(ASKED_MOST) {
        let why = first(rig.rigor(&["why", id]).stdout);
        report
            .wrong
            .push(format!("{id} of {} in {lane}: {why}", batch.id));
    }
}

fn over(rig: &Rig, batch: &Batch, options: &Options, report: &mut Report) {
    let promise = batch.plan.kind.promise();
    let mut wrong = Vec::new();
    report.batches += 1;
    report.submitted += batch.plan.tasks;
    let lanes = lanes(rig, batch);
    let count = |wanted: &str| lanes.values().filter(|lane| *lane == wanted).count();
    let (complete, failed, cancelled) = (count("complete"), count("failed"), count("cancelled"));
    report.completed += complete;
    report.failed += failed;
    report.cancelled += cancelled;
    report.damaged += batch.damaged.len();
    // A batch that was cancelled, or had no chance, may never have been expanded.
    let may_be_fewer = promise == Promise::Cancelled || !batch.damaged.is_empty();
    let there = complete + failed + cancelled + batch.damaged.len();
    let missing = batch.plan.tasks.saturating_sub(there);
    if may_be_fewer {
        report.never_made += missing;
    } else if there != batch.plan.tasks {
        report.lost += missing;
        wrong.push(format!(
            "{there} of {} tasks came to an end: {lanes:?}",
            batch.plan.tasks
        ));
    }
    for (id, lane) in lanes.iter().filter(|(_, lane)| !is_terminal(lane)) {
        report.lost += 1;
        wrong.push(format!("{id} is in {lane}, and the batch is over"));
    }
    let kept = match promise {
        Promise::Complete | Promise::Mended => failed == 0 && cancelled == 0,
        Promise::Once => cancelled == 0,
        Promise::Fail => complete == 0 && cancelled == 0,
        Promise::Cancelled => true,
    };
    if !kept && batch.damaged.is_empty() {
        let summary = batch.summary().unwrap_or_default();
        wrong.push(format!("{promise:?} was promised: {complete} complete, {failed} failed, {cancelled} cancelled: {}", summary["failures"]));
    }
    let summary = batch.summary().unwrap_or_default();
    for failure in summary["failures"].as_array().into_iter().flatten() {
        let reason = without_numbers(failure["reason"].as_str().unwrap_or_default());
        let count = failure["count"].as_u64().unwrap_or(0) as usize;
        *report.failures.entry(reason).or_insert(0) += count;
    }
    let recorded = summary["done"].as_u64().unwrap_or(0) as usize;
    if recorded != complete {
        wrong.push(format!(
            "its summary says {recorded} done, and {complete} are in complete"
        ));
    }
    for record in batch.records() {
        let text = |key: &str| record["outcome"][key].as_str().unwrap_or_default();
        let outcome = text("outcome");
        if outcome != "succeeded" {
            let (reason, kind) = (text("reason"), text("kind"));
            let what = format!("{outcome} {kind} {}", without_numbers(reason));
            *report.attempts.entry(what).or_insert(0) += 1;
        }
    }
    if batch.plan.kind.notes() {
        attempts(&options.keep, batch, &lanes, report, &mut wrong);
    }
    let named = |what| format!("{} ({:?}): {what}", batch.id, batch.plan.kind);
    report.wrong.extend(wrong.into_iter().map(named));
}

/// What the tasks themselves say.
fn attempts(
    keep: &Path,
    batch: &Batch,
    lanes: &BTreeMap<String, String>,
    report: &mut Report,
    wrong: &mut Vec<String>,
) {
    let noted = noted(&keep.join("journal").join(&batch.id), wrong);
    let no_attempt = Noted::default();
    for (id, lane) in lanes {
        let task = noted.get(id).unwrap_or(&no_attempt);
        let succeeded = task.attempts.values().filter(|it| it.2 == Some(0)).count();
        if lane == "complete" && succeeded == 0 {
            report.lost += 1;
            wrong.push(format!(
                "{id} is complete, and none of its attempts came to its end: {task:?}"
            ));
        }
        report.repeated += succeeded.saturating_sub(1);
    }
    for (id, task) in &noted {
        report.reruns += task.starts.saturating_sub(1);
        report.overlaps += task.overlaps;
        if task.overlaps > 0 {
            wrong.push(format!(
                "two attempts of {id} ran at the same time (its lock was held): {task:?}"
            ));
        }
        if task.starts > task.attempts.len() {
            report.overlaps += 1;
            wrong.push(format!("an attempt of {id} began twice: {task:?}"));
        }
        if batch.plan.kind.promise() == Promise::Once && task.starts > 1 {
            report.overlaps += 1;
            wrong.push(format!(
                "{id} has retries: 0 and began {} times: {task:?}",
                task.starts
            ));
        }
        let spans: Vec<_> = task.attempts.values().collect();
        for pair in spans.windows(2) {
            if pair[1].0 < pair[0].1 {
                report.overlaps += 1;
                wrong.push(format!(
                    "two attempts of {id} ran at the same time (by their times): {task:?}"
                ));
            }
        }
    }
    let strangers: BTreeSet<&String> = noted.keys().filter(|id| !lanes.contains_key(*id)).collect();
    // The file of a damaged task is in quarantine, where it has no batch.
    let strangers = strangers.len().saturating_sub(batch.damaged.len());
    if strangers > 0 && batch.plan.kind.promise() != Promise::Cancelled {
        wrong.push(format!("{strangers} tasks ran that are in no lane"));
    }
}

/// Where each of its tasks is, by id; the plan itself left out.
fn lanes(rig: &Rig, batch: &Batch) -> BTreeMap<String, String> {
    let said = rig.rigor(&["tasks", "--batch", &batch.id, "--json"]);
    let printed: Value = serde_json::from_str(&said.stdout).unwrap_or_default();
    let text = |task: &Value, key: &str| task[key].as_str().unwrap_or_default().to_owned();
    let tasks = printed["tasks"].as_array().into_iter().flatten();
    tasks
        .filter(|task| task["task"] != "_plan")
        .map(|task| (text(task, "id"), text(task, "lane")))
        .collect()
}

fn is_terminal(lane: &str) -> bool {
    matches!(lane, "complete" | "failed" | "cancelled" | "quarantine")
}

fn noted(path: &Path, wrong: &mut Vec<String>) -> BTreeMap<String, Noted> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut tasks: BTreeMap<String, Noted> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let parsed = match words[..] {
            [id, attempt, what, at, _] => attempt
                .parse()
                .ok()
                .zip(at.parse().ok())
                .map(|it| (id, it, what)),
            _ => None,
        };
        let Some((id, (attempt, at), what)): Option<(&str, (u32, f64), &str)> = parsed else {
            wrong.push(format!("a line of {} is torn: {line:?}", path.display()));
            continue;
        };
        let task = tasks.entry(id.to_owned()).or_default();
        let span = task.attempts.entry(attempt).or_insert((at, at, None));
        span.1 = span.1.max(at);
        match what.split_once(':') {
            Some(("stop", code)) => span.2 = code.parse().ok(),
            _ if what == "start" => task.starts += 1,
            _ if what == "overlap" => task.overlaps += 1,
            _ => {}
        }
    }
    tasks
}
