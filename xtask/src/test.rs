//! `cargo xtask test`: from a fresh machine to the test runner's summary.

use std::process::Stdio;

use anyhow::{Context, Result};

use crate::workspace::{cargo, checked};
use crate::{fixtures, tools};

/// How long each parser is fuzzed with inputs that no run had before, besides those that each run has.
const FUZZ: &str = "RIGOR_FUZZ_SECONDS";
/// There are about fifteen: a minute or more in all.
const FUZZ_SECONDS_IN_CI: &str = "5";

/// Sets up what tests need, builds everything, and runs the tests. The runner's own summary is
/// the end of the output.
pub(crate) fn run(filters: &[String]) -> Result<()> {
    fixtures::ensure().context("set up the parts that tests use (target/fixtures)")?;
    tools::ensure();
    // Before any test: those over the real programs start them from where cargo puts them. All
    // targets in one go, so that the programs are built as the tests are and nothing is built twice.
    eprintln!("xtask: building the programs and the tests");
    checked(&mut cargo(&["build", "--workspace", "--all-targets"]))?;
    if has_nextest() {
        if filters.is_empty() {
            // The runner leaves these out.
            checked(&mut cargo(&["test", "--workspace", "--doc", "--quiet"]))?;
        }
        let ci = std::env::var_os("CI").is_some();
        let profile = if ci { "ci" } else { "default" };
        let words = ["nextest", "run", "--workspace", "--profile", profile];
        let mut runner = cargo(&words);
        if ci && std::env::var_os(FUZZ).is_none() {
            runner.env(FUZZ, FUZZ_SECONDS_IN_CI);
        }
        checked(runner.args(filters))
    } else {
        eprintln!("xtask: no cargo-nextest; `cargo test` does as well, one program at a time");
        checked(cargo(&["test", "--workspace", "--no-fail-fast", "--"]).args(filters))
    }
}

fn has_nextest() -> bool {
    cargo(&["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
