//! What logging costs, and what an idle rig writes. docs/performance.md says what each figure means.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Bench;
use super::figure::{Figure, Target};
use super::plans;
use super::programs::release;
use super::rig::{PLAIN, Rig, Setup};
use crate::fixtures;

/// Claims of a run. Fewer lines than may wait, so that none is dropped however fast they come.
const CLAIMS: u64 = 2500;
/// At 1,000 claims a second there is a millisecond for each: microseconds.
const CLAIM_US: f64 = 1000.0;
/// The share of that which DEBUG may cost.
const SHARE: f64 = 0.05;
/// Tasks that the real agent runs: seconds, beside which the steps in which `--wait` looks are short.
const TASKS: usize = 1500;
/// Between the start of a rig and the first look at its logs, at the least: what is said once at the
/// start is no part of an hour.
const SETTLE: Duration = Duration::from_secs(20);
/// What a component may write in an idle hour, bytes.
const IDLE_BYTES: f64 = 10_000.0;

/// What `bench-claims` prints.
#[derive(Deserialize)]
struct Claims {
    claims: f64,
    seconds: f64,
    logging_seconds: f64,
    cpu_seconds: f64,
    lines: f64,
}

pub(super) fn run(options: &Bench, scratch: &Path) -> Result<Vec<Figure>> {
    let fixtures = fixtures::ensure()?;

    let mut figures = claims(options, scratch)?;
    figures.extend(agent(options, scratch)?);
    for (level, limited) in [("info", true), ("debug", false)] {
        eprintln!("xtask: an idle rig at {level}, for {}s", options.idle);
        let setup = Setup {
            gpus: Some((&fixtures, 3)),
            level,
            ..PLAIN
        };
        let rig = Rig::start(scratch, setup)?;
        figures.extend(idle(&rig, options, level, limited)?);
    }
    Ok(figures)
}

/// Claims at both levels in turn, as fast as they go.
fn claims(options: &Bench, scratch: &Path) -> Result<Vec<Figure>> {
    eprintln!(
        "xtask: {CLAIMS} claims at INFO and DEBUG, {} times",
        options.runs
    );
    let (mut info, mut debug) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        info.push(claims_at(scratch, "info")?);
        debug.push(claims_at(scratch, "debug")?);
    }
    let of = |runs: &[Claims], figure: fn(&Claims) -> f64| -> Vec<f64> {
        runs.iter().map(figure).collect()
    };
    let rate = |run: &Claims| run.claims / run.seconds;
    // Neighbours in time are compared: what else the machine does is about the same for both.
    let extra_cpu = info.iter().zip(&debug).map(|(info, debug)| {
        (debug.cpu_seconds / debug.claims - info.cpu_seconds / info.claims) * 1e6
    });
    Ok(vec![
        Figure::of("claims, INFO", "1/s", of(&info, rate)),
        Figure::of("claims, DEBUG", "1/s", of(&debug, rate)),
        Figure::of(
            "lines of a claim, DEBUG",
            "lines",
            of(&debug, |run| run.lines / run.claims),
        ),
        Figure::of(
            "all logging in the claim loop, of 1 ms a claim, DEBUG",
            "us",
            of(&debug, |run| run.logging_seconds / run.claims * 1e6),
        )
        .limit(CLAIM_US, Target::Under(SHARE)),
        Figure::of(
            "CPU that DEBUG adds, all threads, of 1 ms a claim",
            "us",
            extra_cpu.collect(),
        )
        .limit(CLAIM_US, Target::Under(SHARE)),
    ])
}

fn claims_at(scratch: &Path, level: &str) -> Result<Claims> {
    let output = Command::new(release("bench-claims"))
        .arg(scratch)
        .arg(CLAIMS.to_string())
        .env("GPU_LOG_LEVEL", level)
        .stdin(Stdio::null())
        .output()
        .context("cannot start bench-claims")?;
    if !output.status.success() {
        bail!(
            "bench-claims: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let run: Claims =
        serde_json::from_slice(&output.stdout).context("bench-claims printed something unknown")?;
    let expected = run.claims * if level == "debug" { 3.0 } else { 2.0 };
    if run.lines != expected {
        bail!(
            "{} lines at {level}, not {expected}: lines were dropped",
            run.lines
        );
    }
    Ok(run)
}

/// The real agent runs trivial tasks, at both levels in turn. Starting a worker for each is most of it.
fn agent(options: &Bench, scratch: &Path) -> Result<Vec<Figure>> {
    eprintln!(
        "xtask: a rig runs {TASKS} tasks at INFO and DEBUG, {} times",
        options.runs
    );
    let plan = plans::nothing(scratch, TASKS as u64)?;
    let (mut info, mut debug) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        info.push(tasks_per_second(scratch, &plan, "info")?);
        debug.push(tasks_per_second(scratch, &plan, "debug")?);
    }
    Ok(vec![
        Figure::of("tasks of a rig from submission to end, DEBUG", "1/s", debug).against(
            "at INFO",
            info,
            Target::AtLeast(1.0 - SHARE),
        ),
    ])
}

fn tasks_per_second(scratch: &Path, plan: &Path, level: &'static str) -> Result<f64> {
    let rig = Rig::start(scratch, Setup { level, ..PLAIN })?;
    let started = Instant::now();
    rig.rigor(&["submit".as_ref(), plan.as_os_str(), "--wait".as_ref()])?;
    Ok(TASKS as f64 / started.elapsed().as_secs_f64())
}

/// Bytes that each component writes in an hour in which nothing happens.
fn idle(rig: &Rig, options: &Bench, level: &str, limited: bool) -> Result<Vec<Figure>> {
    thread::sleep(SETTLE);
    let before = rig.logs()?;
    let started = Instant::now();
    thread::sleep(Duration::from_secs(options.idle));
    let hours = started.elapsed().as_secs_f64() / 3600.0;
    let grown = rig.logs()?.into_iter().map(|(name, size)| {
        let earlier = before.iter().find(|(other, _)| *other == name);
        let bytes = size.saturating_sub(earlier.map_or(0, |(_, size)| *size));
        let figure = Figure::of(
            format!("{name} of an idle rig, {}", level.to_uppercase()),
            "bytes/h",
            vec![bytes as f64 / hours],
        );
        if limited {
            figure.limit(IDLE_BYTES, Target::Under(1.0))
        } else {
            figure
        }
    });
    Ok(grown.collect())
}
