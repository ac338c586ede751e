//! `rigor clean`: removing archived batches that ended long ago.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use bytesize::ByteSize;
use jiff::Timestamp;
use rigor_policy::retention::is_over_for;
use rigor_queue::archive::{self, Header, Lock};
use rigor_queue::lane::Lane;
use rigor_queue::rig::Rig;
use serde::Serialize;

use crate::args::Clean;
use crate::exit::Exit;
use crate::target;
use crate::terminal::{ago, json, line, note, plural};

/// The brain has the lock while it archives one batch.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct Report {
    schema: u32,
    dry_run: bool,
    /// The oldest first.
    batches: Vec<Removed>,
    /// Of all of them.
    tasks: u64,
    bytes: u64,
    /// Keys of submissions that went with them; none in a dry run.
    keys: usize,
    /// Archives that are damaged and were left alone.
    damaged: Vec<String>,
    /// Batches that ended as long ago and are not archived.
    not_archived: usize,
}

#[derive(Serialize)]
struct Removed {
    batch: String,
    state: Lane,
    ended: Timestamp,
    tasks: u64,
    bytes: u64,
}

/// Removes what is old enough; with `--dry-run` says what that is.
pub(crate) fn run(at: &Path, args: &Clean) -> Result<Exit> {
    let opened = target::open_running(at)?;
    let rig = &opened.rig;
    // A dry run takes no lock and writes nothing.
    let lock = match args.dry_run {
        true => None,
        false => Some(Lock::take(rig, PATIENCE)?),
    };
    let now = Timestamp::now();
    let (mut old, damaged) = archives(rig)?;
    old.retain(|header| is_over_for(header.ended, now, args.older_than));
    old.sort_by_key(|header| header.ended);
    let mut keys = 0;
    if let Some(lock) = &lock {
        let durability = crate::submit::durability(&opened.config);
        archive::sweep(rig, lock)?;
        for header in &old {
            archive::remove(rig, lock, &header.batch, durability)
                .with_context(|| format!("{} is not removed, nor those after it", header.batch))?;
        }
        let batches: Vec<String> = old.iter().map(|header| header.batch.clone()).collect();
        keys = rigor_queue::keys::forget(rig, &batches)?;
    }
    let mut over = archive::over(rig)?;
    over.retain(|one| is_over_for(one.ended, now, args.older_than));
    let report = Report {
        schema: 1,
        dry_run: args.dry_run,
        tasks: old.iter().map(|header| header.tasks).sum(),
        bytes: old.iter().map(|header| header.bytes).sum(),
        batches: old.into_iter().map(removed).collect(),
        keys,
        damaged,
        not_archived: over.len(),
    };
    if args.json {
        json(&report)?;
    } else {
        show(&report)?;
    }
    Ok(if report.damaged.is_empty() {
        Exit::Ok
    } else {
        Exit::Failed
    })
}

/// Every archive, and in words those that cannot be read.
fn archives(rig: &Rig) -> Result<(Vec<Header>, Vec<String>)> {
    let (mut whole, mut damaged) = (Vec::new(), Vec::new());
    for batch in rig.archived_batches()? {
        match rig.archive_header(&batch) {
            Ok(Some(header)) => whole.push(header),
            // It was taken out meanwhile.
            Ok(None) if !rig.is_archived(&batch) => {}
            Ok(None) => damaged.push(format!("archive/{batch} has no batch.json")),
            Err(error) => damaged.push(error.to_string()),
        }
    }
    Ok((whole, damaged))
}

fn removed(header: Header) -> Removed {
    Removed {
        batch: header.batch,
        state: header.lane,
        ended: header.ended,
        tasks: header.tasks,
        bytes: header.bytes,
    }
}

fn show(report: &Report) -> Result<()> {
    for one in &report.batches {
        line(format!(
            "{}  {}, ended {} ago, {}, {}",
            one.batch,
            one.state,
            ago(one.ended),
            plural(one.tasks as usize, "task"),
            ByteSize::b(one.bytes)
        ))?;
    }
    line(format!(
        "{}: {}, {}, {}",
        if report.dry_run {
            "would be removed"
        } else {
            "removed"
        },
        batches(report.batches.len()),
        plural(report.tasks as usize, "task"),
        ByteSize::b(report.bytes)
    ))?;
    for damaged in &report.damaged {
        note(damaged);
    }
    if report.not_archived > 0 {
        note(format!(
            "{} as old are not archived and stay: the brain archives what has been over for retention.compact_after; start it, and look at its log",
            batches(report.not_archived)
        ));
    }
    Ok(())
}

fn batches(count: usize) -> String {
    match count {
        1 => "1 batch".to_owned(),
        count => format!("{count} batches"),
    }
}
