//! `cargo xtask bench`: figures beside their limits, from this machine, now.

mod logging;
mod machine;
mod rig;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::workspace;
use machine::Machine;

/// Where the figures are kept.
const RESULTS: &str = "bench/results";

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub(crate) struct Bench {
    /// Only this one: logging.
    name: Option<String>,
    /// How often each side of a comparison runs; they alternate.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// How long an idle rig is watched, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    idle: u64,
}

/// One row of the table.
#[derive(Serialize)]
struct Figure {
    name: String,
    unit: &'static str,
    /// The median of the runs.
    ours: f64,
    min: f64,
    max: f64,
    /// What it is compared with: a peer's figure, or a limit.
    against: Option<f64>,
    /// How `ours / against` has to be.
    target: Option<Target>,
}

#[derive(Serialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum Target {
    /// Smaller than that.
    Under(f64),
    /// At least that.
    AtLeast(f64),
}

type Benchmark = fn(&Bench, &Path) -> Result<Vec<Figure>>;

const BENCHMARKS: [(&str, Benchmark); 1] = [("logging", logging::run)];

impl Figure {
    /// Of the runs; there is at least one.
    fn of(name: impl Into<String>, unit: &'static str, mut runs: Vec<f64>) -> Figure {
        runs.sort_by(f64::total_cmp);
        Figure {
            name: name.into(),
            unit,
            ours: median(&runs),
            min: runs.first().copied().unwrap_or(f64::NAN),
            max: runs.last().copied().unwrap_or(f64::NAN),
            against: None,
            target: None,
        }
    }

    fn against(mut self, against: f64, target: Target) -> Figure {
        self.against = Some(against);
        self.target = Some(target);
        self
    }

    fn ratio(&self) -> Option<f64> {
        self.against.map(|against| self.ours / against)
    }

    fn is_met(&self) -> Option<bool> {
        Some(match (self.ratio()?, self.target?) {
            (ratio, Target::Under(limit)) => ratio < limit,
            (ratio, Target::AtLeast(limit)) => ratio >= limit,
        })
    }

    fn row(&self) -> String {
        let number =
            |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"));
        let target = match (self.target, self.is_met()) {
            (Some(Target::Under(limit)), Some(met)) => format!("< {limit} {}", word(met)),
            (Some(Target::AtLeast(limit)), Some(met)) => format!(">= {limit} {}", word(met)),
            _ => "-".to_owned(),
        };
        format!(
            "{:<58} {:>7} {:>10.2} {:>10} {:>7} {:<13} {:>10.2} {:>10.2}",
            self.name,
            self.unit,
            self.ours,
            number(self.against),
            number(self.ratio()),
            target,
            self.min,
            self.max
        )
    }
}

/// Runs all, or the one that is named. A target that is missed is shown, not an error: other work on
/// the machine may be why.
pub(crate) fn run(options: &Bench) -> Result<()> {
    if options.runs == 0 || options.idle == 0 {
        bail!("--runs and --idle are at least 1");
    }
    let chosen: Vec<_> = BENCHMARKS
        .iter()
        .filter(|(name, _)| options.name.as_deref().is_none_or(|wanted| wanted == *name))
        .collect();
    if chosen.is_empty() {
        let names = BENCHMARKS.map(|(name, _)| name).join(", ");
        bail!(
            "there is no benchmark {}: there are {names}",
            options.name.as_deref().unwrap_or_default()
        );
    }
    let scratch = workspace::root().join("target/bench");
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    for (name, benchmark) in chosen {
        let machine = Machine::look(&scratch)?;
        let figures = benchmark(options, &scratch)?;
        println!("\n{name}, on {machine}\n");
        println!(
            "{:<58} {:>7} {:>10} {:>10} {:>7} {:<13} {:>10} {:>10}",
            "", "unit", "ours", "against", "ratio", "target", "min", "max"
        );
        for figure in &figures {
            println!("{}", figure.row());
        }
        let path = write(name, options, &machine, &figures)?;
        println!("\nWritten to {}", path.display());
    }
    Ok(())
}

fn write(name: &str, options: &Bench, machine: &Machine, figures: &[Figure]) -> Result<PathBuf> {
    let dir = workspace::root().join(RESULTS);
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let path = dir.join(format!("{name}.json"));
    let figures: Vec<_> = figures
        .iter()
        .map(|figure| serde_json::json!({"figure": figure, "ratio": figure.ratio(), "met": figure.is_met()}))
        .collect();
    let text = serde_json::to_string_pretty(&serde_json::json!({
        "bench": name,
        "runs": options.runs,
        "idle_seconds": options.idle,
        "machine": machine,
        "figures": figures,
    }))?;
    fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Of sorted numbers.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted {
        [] => f64::NAN,
        _ if sorted.len().is_multiple_of(2) => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

fn word(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_a_median_with_its_spread_and_its_verdict() {
        let figure = Figure::of("x", "us", vec![9.0, 1.0, 2.0]);
        assert_eq!((figure.ours, figure.min, figure.max), (2.0, 1.0, 9.0));
        assert_eq!(figure.is_met(), None);
        let figure = figure.against(50.0, Target::Under(1.0));
        assert_eq!((figure.ratio(), figure.is_met()), (Some(0.04), Some(true)));
        let slow = Figure::of("x", "1/s", vec![90.0, 94.0]).against(100.0, Target::AtLeast(0.95));
        assert_eq!((slow.ours, slow.is_met()), (92.0, Some(false)));
        assert!(slow.row().contains("MISSED"));
    }
}
