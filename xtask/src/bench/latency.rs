//! From a command line to the first instruction of what it submits, with nothing else to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;

use super::Bench;
use super::figure::{Figure, Target, percentile};
use super::peers::Peers;
use super::programs::{bench_queue, output, release};
use super::rig::{PLAIN, Rig, Setup};
use super::throughput::{Pueue, Spooler};

/// Starts in a run, of each side.
const STARTS: u64 = 200;
/// From one start to the next: everything that the last one left to do is done by then.
const PAUSE: Duration = Duration::from_millis(100);
/// A task that has not begun by then will not.
const MOST: Duration = Duration::from_secs(30);
/// What may be taken of task-spooler's time, which keeps nothing on the disk; the fsyncs come on top.
const SPOOLERS: f64 = 3.0;
/// HyperQueue, which is in no registry: its milliseconds on another machine, p50 and p95, beside
/// task-spooler's there.
const HYPERQUEUE_MS: [f64; 2] = [7.1, 9.0];
const SPOOLER_MS: [f64; 2] = [1.9, 2.3];
/// The shares of the starts that were faster.
const SHARES: [(&str, f64); 2] = [("p50", 0.5), ("p95", 0.95)];

/// Milliseconds of a run of starts: p50 and p95.
type Starts = [f64; 2];

#[derive(Deserialize)]
struct Durable {
    with_ms: Vec<f64>,
    without_ms: Vec<f64>,
}

#[derive(Default)]
struct Side {
    runs: [Vec<f64>; 2],
}

impl Side {
    fn push(&mut self, starts: Starts) {
        for (runs, ms) in self.runs.iter_mut().zip(starts) {
            runs.push(ms);
        }
    }
}

pub(super) fn run(options: &Bench, scratch: &Path) -> Result<Vec<Figure>> {
    let starts = options.size(STARTS);
    let peers = Peers::ensure()?;
    let stamp = release("bench-stamp");
    let to = scratch.join("stamp");
    let mut sides: [Side; 6] = Default::default();
    let [process, default, fsyncs, alone, spooler, pueue] = &mut sides;
    for _ in 0..options.runs {
        alone.push(measure(starts, &to, || {
            let mut command = Command::new(&stamp);
            command.arg(&to);
            command
        })?);
        for (durability, side) in [("process", &mut *process), ("default", &mut *default)] {
            let rig = Rig::start(
                scratch,
                Setup {
                    durability,
                    ..PLAIN
                },
            )?;
            side.push(measure(starts, &to, || {
                let mut command = Command::new(release("rigor"));
                command.arg("--rig").arg(&rig.root).args(["run", "--"]);
                command.arg(&stamp).arg(&to);
                command
            })?);
        }
        let found: Durable = bench_queue(&[&"durable", &scratch, &starts.to_string()])?;
        fsyncs.push(SHARES.map(|(_, share)| {
            let took = |ms: &[f64]| percentile(ms.to_vec(), share);
            (took(&found.with_ms) - took(&found.without_ms)).max(0.0)
        }));
        if let Some(tsp) = &peers.task_spooler {
            let server = Spooler::start(tsp, scratch)?;
            spooler.push(measure(starts, &to, || {
                let mut command = server.command();
                command.arg("-n").arg(&stamp).arg(&to);
                command
            })?);
        }
        if let Some(bin) = &peers.pueue {
            let server = Pueue::start(bin, scratch)?;
            pueue.push(measure(starts, &to, || {
                let mut command = server.command();
                command
                    .args(["add", "--immediate", "--"])
                    .arg(&stamp)
                    .arg(&to);
                command
            })?);
        }
    }
    Ok(figures(&sides, starts))
}

fn figures(sides: &[Side; 6], starts: u64) -> Vec<Figure> {
    let [process, default, fsyncs, alone, spooler, pueue] = sides;
    let mut figures = Vec::new();
    for (at, (share, _)) in SHARES.iter().enumerate() {
        let of = |side: &Side| side.runs[at].clone();
        for (durability, side) in [("process", process), ("default", default)] {
            let figure = || {
                let name = format!("rigor run, {share} of {starts}, durability {durability}");
                Figure::of(name, "ms", of(side))
            };
            let spooled = of(spooler);
            if !spooled.is_empty() {
                let waits = of(fsyncs);
                let synced = |at: usize| {
                    if durability == "default" {
                        waits[at]
                    } else {
                        0.0
                    }
                };
                let bound = spooled.iter().enumerate();
                let bound = bound.map(|(at, ms)| SPOOLERS * ms + synced(at)).collect();
                let words = match durability {
                    "default" => "3 x task-spooler + the fsyncs",
                    _ => "3 x task-spooler",
                };
                figures.push(figure().against(words, bound, Target::Under(1.0)));
                let scale = HYPERQUEUE_MS[at] / SPOOLER_MS[at];
                let bound = spooled.iter().map(|ms| ms * scale).collect();
                let words = "HyperQueue (from task-spooler's here)";
                figures.push(figure().against(words, bound, Target::Under(1.0)));
            }
            let immediate = of(pueue);
            if !immediate.is_empty() {
                let words = "pueue add --immediate";
                figures.push(figure().against(words, immediate, Target::Under(1.0)));
            }
        }
        for (name, side) in [
            ("the program alone", alone),
            ("task-spooler", spooler),
            ("the fsyncs of one task", fsyncs),
        ] {
            if !of(side).is_empty() {
                figures.push(Figure::of(format!("{name}, {share}"), "ms", of(side)));
            }
        }
    }
    figures
}

/// Starts commands that end up starting `bench-stamp`, one after another.
fn measure(starts: u64, to: &PathBuf, command: impl Fn() -> Command) -> Result<Starts> {
    let mut took = Vec::new();
    for _ in 0..starts {
        if to.exists() {
            fs::remove_file(to).with_context(|| format!("cannot remove {}", to.display()))?;
        }
        let mut command = command();
        let started = now_ns();
        output(&mut command)?;
        let deadline = Instant::now() + MOST;
        while !to.exists() {
            if Instant::now() > deadline {
                bail!("a task had not begun after {}s", MOST.as_secs());
            }
            thread::sleep(Duration::from_millis(1));
        }
        let text = fs::read_to_string(to).context("cannot read the stamp")?;
        let stamped: u64 = text.parse().context("the stamp is no number")?;
        took.push(stamped.saturating_sub(started) as f64 / 1e6);
        thread::sleep(PAUSE);
    }
    Ok(SHARES.map(|(_, share)| percentile(took.clone(), share)))
}

/// The clock that `bench-stamp` looks at.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_three_spoolers_and_the_fsyncs() {
        let mut sides: [Side; 6] = Default::default();
        for (side, ms) in sides.iter_mut().zip([5.0, 9.0, 4.0, 0.5, 2.0, 8.0]) {
            side.push([ms, ms * 2.0]);
        }
        let figures = figures(&sides, 200);
        let bound = |wanted: &str| {
            let found = figures.iter().find_map(|figure| {
                let against = figure.against.as_ref()?;
                let name = format!("{}, against {}", figure.name, against.what);
                name.contains(wanted).then_some(against.runs.median)
            });
            found.unwrap_or_else(|| panic!("no figure {wanted}"))
        };
        assert_eq!(bound("p50 of 200, durability process, against 3 x"), 6.0);
        assert_eq!(bound("p50 of 200, durability default, against 3 x"), 10.0);
        assert_eq!(bound("p95 of 200, durability default, against 3 x"), 20.0);
        assert_eq!(bound("p95 of 200, durability default, against pueue"), 16.0);
        let hyperqueue = bound("p50 of 200, durability default, against HyperQueue");
        assert!((hyperqueue - 2.0 * 7.1 / 1.9).abs() < 1e-9);
        sides[4] = Side::default();
        assert!(
            !super::figures(&sides, 200)
                .iter()
                .any(|figure| figure.rows().contains("spooler"))
        );
    }
}
