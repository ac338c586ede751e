//! `rigor logs`.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rigor_queue::lane::Lane;
use rigor_queue::name::TaskId;
use rigor_queue::rig::Rig;
use rigor_queue::{output, records};
use rigor_snapshot::{Detail, Found, Target};

use crate::args::Logs;
use crate::exit::Exit;
use crate::target::{self, Opened};
use crate::terminal::note;

/// Between two looks for more output.
const POLL: Duration = Duration::from_millis(200);
/// Between two looks at where the task lies, which costs more.
const LOOK: Duration = Duration::from_secs(1);

/// Prints what a task printed, as it is.
pub(crate) fn run(at: &Path, args: &Logs) -> Result<Exit> {
    let opened = target::open_running(at)?;
    if args.follow {
        let detail = awaited(&opened, &args.task)?;
        follow(&opened, detail, args.attempt)?;
        return Ok(Exit::Ok);
    }
    let detail = opened.detail(&args.task)?;
    let attempt = match args.attempt {
        Some(attempt) => attempt,
        None => last_with_output(&opened, &detail),
    };
    let mut reader = Reader::new(&opened, &detail, attempt);
    if reader.copy()? == 0 {
        let known = detail.attempts.iter().any(|one| one.attempt == attempt);
        if args.attempt.is_some() && !known {
            bail!(
                "{} has no attempt {attempt}; it has had {}",
                detail.id,
                detail.attempts.len()
            );
        }
        note(if known {
            "It printed nothing."
        } else {
            "It has not run yet."
        });
        if let Some(reason) = &detail.reason {
            note(format!(
                "Attempt {attempt}: {}",
                crate::terminal::printable(reason)
            ));
        }
    }
    Ok(Exit::Ok)
}

/// The task, once it is there: one that its batch's plan will make is waited for.
fn awaited(opened: &Opened, text: &str) -> Result<Detail> {
    let mut said = false;
    loop {
        // Looked at first: a task that is made in between is found.
        let is_to_come = is_to_come(opened, text)?;
        match opened.detail(text) {
            Err(_) if is_to_come => {}
            found => return found,
        }
        if !std::mem::replace(&mut said, true) {
            note("Its batch has not made it yet; waiting for it.");
        }
        std::thread::sleep(LOOK);
    }
}

/// Whether a batch that is not over has a task of its plan to come under that name.
fn is_to_come(opened: &Opened, text: &str) -> Result<bool> {
    let Some((batch, name)) = text.split_once('/') else {
        return Ok(false);
    };
    let found = rigor_snapshot::find_batch(&opened.rig, batch)?;
    let Found::One(Target::Batch(id)) = found else {
        return Ok(false);
    };
    let Some(batch) = rigor_snapshot::batch(&opened.rig, &id)? else {
        return Ok(false);
    };
    Ok(!batch.state.is_over()
        && batch.tasks.iter().any(|task| {
            let rest = name.strip_prefix(task.id.as_str());
            !task.expanded
                && task.problem.is_none()
                && rest.is_some_and(|rest| {
                    if task.foreach {
                        rest.starts_with('_')
                    } else {
                        rest.is_empty()
                    }
                })
        }))
}

/// Prints what a task prints until it ends.
pub(crate) fn follow_to_the_end(opened: &Opened, task: &str) -> Result<()> {
    let detail = opened.detail(task)?;
    follow(opened, detail, None)
}

/// Follows one attempt to its end, or with `None` the task through all its attempts.
fn follow(opened: &Opened, detail: Detail, only: Option<u32>) -> Result<()> {
    let id = detail.id.to_string();
    let mut attempt = only.unwrap_or_else(|| last_with_output(opened, &detail));
    let mut reader = Reader::new(opened, &detail, attempt);
    let mut lane = detail.lane;
    let mut current = detail.attempt;
    let mut looked = Instant::now();
    loop {
        reader.copy()?;
        let is_over = records::read(&opened.rig, &detail.batch, detail.id, attempt)?.is_some();
        if is_over {
            // What was written between the last read and the record.
            reader.copy()?;
            if only.is_some() {
                return Ok(());
            }
        }
        // An attempt that was taken back before it began leaves no record.
        if current > attempt && only.is_none() {
            reader.copy()?;
            attempt += 1;
            note(format!("--- attempt {attempt} ---"));
            reader = Reader::new(opened, &detail, attempt);
            continue;
        }
        // A task that ends without an attempt (cancelled, quarantined) leaves no further output.
        if lane.is_terminal() || (is_over && lane == Lane::Waiting) {
            reader.copy()?;
            return Ok(());
        }
        std::thread::sleep(POLL);
        if is_over || looked.elapsed() >= LOOK {
            let now = opened.detail(&id)?;
            (lane, current, looked) = (now.lane, now.attempt, Instant::now());
        }
    }
}

/// The attempt that runs, or the last that printed anything, or the last.
fn last_with_output(opened: &Opened, detail: &Detail) -> u32 {
    let last = detail
        .attempts
        .last()
        .map_or(detail.attempt, |attempt| attempt.attempt);
    let running = detail
        .attempts
        .last()
        .is_some_and(|attempt| attempt.outcome == "running");
    if running {
        return last;
    }
    let has_output = |attempt: &u32| {
        let output = output::open(&opened.rig, &detail.batch, detail.id, *attempt);
        let bytes = output.ok().flatten().map(|output| output.bytes());
        bytes.is_some_and(|bytes| bytes.is_ok_and(|bytes| bytes > 0))
    };
    (1..=last).rev().find(has_output).unwrap_or(last)
}

/// Copies a growing output to stdout. It may come later, or be written anew and shorter.
struct Reader<'a> {
    rig: &'a Rig,
    batch: String,
    id: TaskId,
    attempt: u32,
    at: u64,
}

impl<'a> Reader<'a> {
    fn new(opened: &'a Opened, detail: &Detail, attempt: u32) -> Reader<'a> {
        Reader {
            rig: &opened.rig,
            batch: detail.batch.clone(),
            id: detail.id,
            attempt,
            at: 0,
        }
    }

    /// Copies what has come since the last time; says how many bytes.
    fn copy(&mut self) -> Result<u64> {
        let opened = output::open(self.rig, &self.batch, self.id, self.attempt)?;
        let Some(mut output) = opened else {
            return Ok(0);
        };
        if output.bytes()? < self.at {
            // The middle was left out because of the cap: what follows is the tail.
            self.at = 0;
        }
        let mut stdout = io::stdout().lock();
        let copied = io::copy(&mut output.read_from(self.at)?, &mut stdout)?;
        stdout.flush()?;
        self.at += copied;
        Ok(copied)
    }
}
