//! Waiting for a batch, with a bar on a terminal.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use rigor_queue::lane::Lane;
use rigor_snapshot::{Batch, BatchState, Filter};

use crate::args::Wait;
use crate::exit::Exit;
use crate::target::{self, Opened};
use crate::terminal::{colour_on_stderr, json, note, printable};

/// Between two looks; a look that takes long is repeated more rarely.
const POLL: Duration = Duration::from_millis(200);
/// The longest time between two looks.
const POLL_MOST: Duration = Duration::from_secs(2);
/// A look may take one part in so many of the time.
const BUSY_SHARE: u32 = 10;
/// A brain that was there and is gone may be on its way back.
const BRAIN_AWAY_MOST: Duration = Duration::from_secs(10);
/// Nothing of a batch has run for so long: why is said, and again after twice the time.
const SILENT_MOST: Duration = Duration::from_secs(5);
/// Failed tasks that are named at the end.
const FAILURES_SHOWN: usize = 5;

/// Waits for a batch that was submitted before.
pub(crate) fn run(at: &Path, args: &Wait) -> Result<Exit> {
    let opened = target::open_running(at)?;
    let id = opened.batch(&args.batch)?;
    let exit = until_over(&opened, &id)?;
    if args.json
        && let Some(batch) = rigor_snapshot::batch(&opened.rig, &id)?
    {
        json(&serde_json::json!({ "schema": 1, "batch": batch }))?;
    }
    Ok(exit)
}

/// Waits until a batch is over and says how it ended.
pub(crate) fn until_over(opened: &Opened, id: &str) -> Result<Exit> {
    follow(opened, id, &progress_bar(), |_| Ok(true))
}

/// The same without a bar; `meanwhile` is called until it has done what it is for.
pub(crate) fn until_over_with(
    opened: &Opened,
    id: &str,
    meanwhile: impl FnMut(&Opened) -> Result<bool>,
) -> Result<Exit> {
    follow(opened, id, &ProgressBar::hidden(), meanwhile)
}

fn follow(
    opened: &Opened,
    id: &str,
    bar: &ProgressBar,
    mut meanwhile: impl FnMut(&Opened) -> Result<bool>,
) -> Result<Exit> {
    let mut is_done = false;
    let mut brain_seen: Option<Instant> = None;
    let mut idle = Idle::default();
    let exit = loop {
        let look = Instant::now();
        let batch = rigor_snapshot::batch(&opened.rig, id)?
            .with_context(|| format!("the batch {id} is gone from the lanes"))?;
        let pause = (look.elapsed() * BUSY_SHARE).clamp(POLL, POLL_MOST);
        bar.set_length(batch.total);
        let over = batch.done + batch.failed + batch.cancelled;
        bar.set_position(over);
        bar.set_message(words(&batch));
        if !is_done {
            is_done = meanwhile(opened)?;
        }
        match batch.state {
            BatchState::Complete => break Exit::Ok,
            BatchState::Failed => break Exit::Failed,
            BatchState::Cancelled => break Exit::Cancelled,
            BatchState::Submitted | BatchState::Running | BatchState::Held => {}
        }
        if opened.brain_runs()? {
            brain_seen = Some(Instant::now());
        } else if brain_seen.is_none_or(|seen| seen.elapsed() > BRAIN_AWAY_MOST) {
            bar.finish_and_clear();
            note(format!(
                "The brain is not running, so nothing happens to {id} ({}). Start it: rigor up",
                batch.state.as_str()
            ));
            return Ok(Exit::NoBrain);
        }
        if idle.is_to_be_said(batch.running, over, Instant::now())
            && let Some(why) = rigor_snapshot::why::batch(&opened.rig, &opened.config, id)?
        {
            // A bar is drawn anew below the line.
            bar.suspend(|| note(format!("{id}: {}", printable(&why.explanation.summary))));
        }
        std::thread::sleep(pause);
    };
    bar.finish_and_clear();
    say_the_end(opened, id)?;
    Ok(exit)
}

/// For how long nothing of a batch has run or ended.
#[derive(Debug, Default)]
struct Idle {
    since: Option<Instant>,
    /// What was over when it began.
    over: u64,
    /// How long it was when it was last said.
    said: Option<Duration>,
}

impl Idle {
    /// Why nothing runs is to be said now: after [`SILENT_MOST`], and each time it has taken twice as long.
    ///
    /// `running` and `over` are how many of its tasks run and have ended.
    fn is_to_be_said(&mut self, running: u64, over: u64, now: Instant) -> bool {
        if running > 0 || over != self.over {
            *self = Idle {
                over,
                ..Idle::default()
            };
            return false;
        }
        let idle = now.duration_since(*self.since.get_or_insert(now));
        let due = self.said.map_or(SILENT_MOST, |said| said * 2);
        if idle < due {
            return false;
        }
        self.said = Some(idle);
        true
    }
}

fn say_the_end(opened: &Opened, id: &str) -> Result<()> {
    let Some(batch) = rigor_snapshot::batch(&opened.rig, id)? else {
        return Ok(());
    };
    let took = batch
        .submitted
        .map(|at| format!(" after {}", crate::terminal::ago(at)));
    note(format!(
        "{id} {}{}: {}",
        batch.state.as_str(),
        took.unwrap_or_default(),
        words(&batch)
    ));
    if batch.failed == 0
        && let Some(reason) = why_the_plan_ended(opened, id)?
    {
        note(format!("  {}", printable(&reason)));
    }
    if batch.failed > 0 {
        let filter = Filter {
            batch: Some(id.to_owned()),
            lane: Some(Lane::Failed),
            limit: Some(FAILURES_SHOWN),
            ..Filter::default()
        };
        for task in rigor_snapshot::tasks(&opened.rig, &filter)? {
            let reason = task.reason.as_deref().unwrap_or("no reason is recorded");
            note(format!(
                "  {} {}: {}",
                task.id.short(),
                task.name,
                printable(reason)
            ));
        }
        note(format!("See: rigor tasks --batch {id} --lane failed"));
    }
    Ok(())
}

/// What the record of the batch's own plan says: a plan that could not be carried out at all, or
/// an operator's cancelling.
fn why_the_plan_ended(opened: &Opened, id: &str) -> Result<Option<String>> {
    // A batch that was opened again has the records of its earlier attempts too.
    const ATTEMPTS_MOST: u32 = 100;
    let plan = rigor_snapshot::plan_task_id(id);
    let records = rigor_queue::records::history(&opened.rig, id, plan, ATTEMPTS_MOST)?;
    Ok(records
        .last()
        .and_then(|record| record.outcome.reason().map(str::to_owned)))
}

fn words(batch: &Batch) -> String {
    let mut words = vec![format!("{} of {} done", batch.done, batch.total)];
    for (count, what) in [
        (batch.failed, "failed"),
        (batch.cancelled, "cancelled"),
        (
            if batch.state.is_over() {
                0
            } else {
                batch.running
            },
            "running",
        ),
    ] {
        if count > 0 {
            words.push(format!("{count} {what}"));
        }
    }
    if batch.state == BatchState::Held {
        words.push("held".to_owned());
    }
    words.join(", ")
}

fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    let template = if colour_on_stderr() {
        "{bar:30.green} {pos}/{len} {msg} {elapsed}"
    } else {
        "{bar:30} {pos}/{len} {msg} {elapsed}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_nothing_runs_is_said_more_and_more_rarely_and_anew_after_something_ran() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut idle = Idle::default();
        let mut said = Vec::new();
        for second in 0..60 {
            // Task 1 runs in second 30 and ends in second 31.
            let (running, over) = (u64::from(second == 30), u64::from(second > 30));
            if idle.is_to_be_said(running, over, at(second)) {
                said.push(second);
            }
        }
        assert_eq!(said, [5, 10, 20, 37, 42, 52]);
    }
}
