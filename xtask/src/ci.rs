//! `cargo xtask ci`: all that a change has to pass, in one go.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::workspace::{cargo, checked};
use crate::{test, tidy};

type Step = fn() -> Result<()>;

/// Runs every step, also after one has failed, and reports them all.
pub(crate) fn run() -> Result<()> {
    let steps: [(&str, Step); 5] = [
        ("fmt", || checked(&mut cargo(&["fmt", "--all", "--check"]))),
        ("clippy", clippy),
        ("doc", doc),
        ("tidy", tidy::run),
        ("test", || test::run(&[])),
    ];
    let mut outcomes = Vec::new();
    for (name, step) in steps {
        eprintln!("xtask: ci: {name}");
        let started = Instant::now();
        let result = step();
        if let Err(error) = &result {
            eprintln!("xtask: ci: {name} failed: {error:#}");
        }
        outcomes.push((name, started.elapsed(), result));
    }
    for (name, took, result) in &outcomes {
        println!("{}", line(name, *took, result));
    }
    let failed: Vec<&str> = outcomes
        .iter()
        .filter(|(_, _, result)| result.is_err())
        .map(|(name, _, _)| *name)
        .collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn clippy() -> Result<()> {
    checked(&mut cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

fn doc() -> Result<()> {
    checked(cargo(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}

fn line(name: &str, took: Duration, result: &Result<()>) -> String {
    let verdict = if result.is_ok() { "ok" } else { "FAILED" };
    format!("{name:<8} {verdict:<8} {:>7.1}s", took.as_secs_f64())
}
