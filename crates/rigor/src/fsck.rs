//! `rigor fsck`: what is wrong with the rig directory itself, and mending what is safe.

use std::path::Path;

use anyhow::{Context, Result, bail};
use rigor_queue::fsck::{Finding, look};
use rigor_queue::presence::{self, ComponentLock, Role};
use rigor_queue::rig::{BRAIN, Rig};
use serde::Serialize;

use crate::args::Fsck;
use crate::exit::Exit;
use crate::terminal::{Tone, json, line, note, plural, printable, toned};

#[derive(Serialize)]
struct Report {
    /// Components that run: what they move meanwhile may be among the findings.
    running: Vec<String>,
    findings: Vec<Shown>,
    mended: usize,
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    finding: Finding,
    mended: bool,
}

/// Looks with `--dry-run`; without it takes every component's lock and mends.
pub(crate) fn run(at: &Path, args: &Fsck) -> Result<Exit> {
    let rig = Rig::open_to_look(at)?;
    let (locks, running) = if args.dry_run {
        (Vec::new(), running(&rig)?)
    } else {
        (lock_all(&rig)?, Vec::new())
    };
    let mut shown = Vec::new();
    for finding in look(&rig)? {
        let mended = !args.dry_run
            && finding
                .mend(&rig)
                .with_context(|| format!("cannot mend {}", finding.path.display()))?;
        shown.push(Shown { finding, mended });
    }
    drop(locks);
    let mended = shown.iter().filter(|shown| shown.mended).count();
    let left = shown.len() - mended;
    let report = Report {
        running,
        findings: shown,
        mended,
    };
    if args.json {
        json(&report)?;
    } else {
        show(&report, left, args.dry_run)?;
    }
    Ok(if left == 0 { Exit::Ok } else { Exit::Failed })
}

fn show(report: &Report, left: usize, dry_run: bool) -> Result<()> {
    if !report.running.is_empty() {
        note(format!(
            "{} running: what is in the middle of a move may be among this",
            report.running.join(", ")
        ));
    }
    for Shown { finding, mended } in &report.findings {
        let (word, tone) = match (mended, finding.safe) {
            (true, _) => ("mended", Tone::Good),
            (false, true) => ("wrong ", Tone::Warning),
            (false, false) => ("wrong ", Tone::Bad),
        };
        line(format!(
            "{} {}: {}",
            toned(word, tone),
            printable(&finding.path.display().to_string()),
            printable(&finding.what)
        ))?;
        line(format!("       {}", finding.remedy))?;
    }
    let count = plural(report.findings.len(), "violation");
    line(match (report.findings.len(), dry_run) {
        (0, _) => "every invariant holds".to_owned(),
        (_, true) => format!("{count}; nothing was changed"),
        (_, false) => format!("{count}, {} mended, {left} left", report.mended),
    })?;
    Ok(())
}

fn components(rig: &Rig) -> Result<Vec<String>> {
    let mut names = vec![BRAIN.to_owned()];
    names.extend(rig.agents()?);
    Ok(names)
}

/// Told without touching a lock.
fn running(rig: &Rig) -> Result<Vec<String>> {
    let mut running = Vec::new();
    for name in components(rig)? {
        if presence::is_held(rig, &name)? == Some(true) {
            running.push(name);
        }
    }
    Ok(running)
}

fn lock_all(rig: &Rig) -> Result<Vec<ComponentLock>> {
    let mut locks = Vec::new();
    for name in components(rig)? {
        match ComponentLock::acquire(rig, &name, Role::Recovering) {
            Ok(lock) => locks.push(lock),
            Err(error @ rigor_queue::QueueError::Held { .. }) => {
                bail!("{error}\nStop the rig with `rigor down`, or only look with `--dry-run`")
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(locks)
}
