//! `rigor why --at` and `--since`: what a GPU's time went into.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::civil;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rigor_queue::reasons::Cause;
use rigor_snapshot::why::{self, Past, PastGpu, PastSpan};

use crate::args::Why;
use crate::exit::Exit;
use crate::target::Opened;
use crate::terminal::{Tone, duration, json, print, printable, toned};

/// With `--at` alone, so much before and after is told.
const AROUND: SignedDuration = SignedDuration::from_mins(15);

pub(super) fn run(opened: &Opened, args: &Why) -> Result<Exit> {
    let now = Timestamp::now();
    let moment = args
        .at
        .as_deref()
        .map(|text| moment(text, now))
        .transpose()?;
    if moment.is_some_and(|moment| moment > now) {
        bail!("--at {} is still to come", args.at.as_deref().unwrap_or(""));
    }
    let since = args
        .since
        .map(SignedDuration::try_from)
        .transpose()
        .context("--since is too long")?;
    let (from, to) = match (moment, since) {
        // So long before that moment.
        (Some(moment), Some(since)) => (moment - since, moment),
        (Some(moment), None) => (moment - AROUND, (moment + AROUND).min(now)),
        (None, Some(since)) => (now - since, now),
        (None, None) => (now - AROUND, now),
    };
    let (rig, config) = (&opened.rig, &opened.config);
    let past = if opened.is_agent(&args.what)? {
        why::past_of_agent(rig, config, &args.what, from, to)?
    } else {
        match opened.find(&args.what)? {
            rigor_snapshot::Target::Batch(id) => why::past_of_batch(rig, config, &id, from, to)?,
            rigor_snapshot::Target::Agent(name) => {
                bail!("{name} has no GPU; name an agent that has one, or a batch")
            }
            rigor_snapshot::Target::Task { name, .. } => bail!(
                "{} is a task: `rigor show {}` has its attempts; name an agent or a batch",
                name.id,
                name.id.short()
            ),
        }
    };
    if past.gpus.is_empty() {
        bail!(
            "{} has no GPU in rig.toml; name an agent that has one, or a batch",
            past.id
        );
    }
    if args.json {
        json(&past)?;
    } else {
        print(&text(&past, moment))?;
    }
    Ok(Exit::Ok)
}

/// `21:45`, `21:45:30` (today, or yesterday where that is still to come), a local date and time,
/// or one with an offset.
fn moment(text: &str, now: Timestamp) -> Result<Timestamp> {
    if let Ok(whole) = text.parse::<Timestamp>() {
        return Ok(whole);
    }
    let zone = TimeZone::system();
    if let Ok(local) = text.parse::<civil::DateTime>()
        && text.contains(['T', ' '])
    {
        return Ok(local.to_zoned_datetime(zone)?.timestamp());
    }
    let time: civil::Time = text
        .parse()
        .with_context(|| format!("{text:?} is no time: write 21:45, or 2026-02-07T21:45:00"))?;
    let today = now.to_zoned_datetime(zone.clone()).date();
    let at = today
        .to_datetime(time)
        .to_zoned_datetime(zone.clone())?
        .timestamp();
    if at <= now {
        return Ok(at);
    }
    let yesterday = today.yesterday()?;
    Ok(yesterday
        .to_datetime(time)
        .to_zoned_datetime(zone)?
        .timestamp())
}

fn text(past: &Past, moment: Option<Timestamp>) -> String {
    let mut text = String::new();
    for (at, gpu) in past.gpus.iter().enumerate() {
        if at > 0 {
            text.push('\n');
        }
        one(past, gpu, moment, &mut text);
    }
    text
}

fn one(past: &Past, gpu: &PastGpu, moment: Option<Timestamp>, text: &mut String) {
    let zone = TimeZone::system();
    let days = |at: Timestamp| at.to_zoned_datetime(zone.clone()).date();
    let one_day = days(past.from) == days(past.to);
    let clock = |at: Timestamp| {
        let form = if one_day {
            "%H:%M:%S"
        } else {
            "%Y-%m-%d %H:%M:%S"
        };
        at.to_zoned_datetime(zone.clone())
            .strftime(form)
            .to_string()
    };
    // At a moment between two spans the later one holds; at the end the last one does.
    let holds = moment.and_then(|moment| {
        gpu.spans
            .iter()
            .rev()
            .find(|span| span.from <= moment)
            .map(|span| (moment, span))
    });
    let first = match holds {
        Some((moment, span)) => format!("{} at {}: {}", gpu.agent, clock(moment), words(span)),
        None => {
            let wall = length(past.to.duration_since(past.from).as_secs_f64());
            let most = gpu
                .totals
                .iter()
                .max_by(|a, b| a.1.total_cmp(b.1))
                .map_or_else(String::new, |(cause, seconds)| {
                    format!(": most of it {} ({})", said(cause), length(*seconds))
                });
            format!("{} over the last {wall}{most}", gpu.agent)
        }
    };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}\n", toned(&first, Tone::Heading));
    for span in &gpu.spans {
        let is_it = holds.is_some_and(|(_, held)| std::ptr::eq(held, span));
        let _ = writeln!(
            text,
            "{} {}  {:>8}  {}",
            if is_it { ">" } else { " " },
            clock(span.from),
            length(span.seconds),
            words(span)
        );
    }
    let mut totals: Vec<(&str, f64)> = gpu
        .totals
        .iter()
        .map(|(cause, seconds)| (*cause, *seconds))
        .collect();
    totals.sort_by(|a, b| b.1.total_cmp(&a.1));
    let totals: Vec<String> = totals
        .iter()
        .map(|(cause, seconds)| format!("{} {}", said(cause), length(*seconds)))
        .collect();
    let _ = writeln!(text, "\nIn all: {}", totals.join(", "));
    if let Some(seconds) = gpu.running_for_batch_s {
        let _ = writeln!(text, "For {}: {}", past.id, length(seconds));
    }
}

fn words(span: &PastSpan) -> String {
    let mut words = said(span.cause).to_owned();
    if let Some(code) = span.code.filter(|code| *code != span.cause) {
        let _ = write!(words, " ({code})");
    }
    if !span.detail.is_empty() {
        let _ = write!(words, " - {}", printable(&span.detail));
    }
    if !span.batches.is_empty() {
        let _ = write!(words, " [{}]", span.batches.join(", "));
    }
    words
}

/// A cause as it is said to people.
fn said(cause: &str) -> &str {
    Cause::ALL
        .into_iter()
        .find(|known| known.as_str() == cause)
        .map_or(cause, |known| known.words())
}

fn length(seconds: f64) -> String {
    let whole = Duration::from_secs_f64(seconds.max(0.0));
    if whole.as_secs() > 0 {
        duration(Duration::from_secs(whole.as_secs()))
    } else {
        duration(Duration::from_millis(whole.as_millis() as u64))
    }
}
