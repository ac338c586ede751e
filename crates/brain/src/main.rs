//! The brain: releases tasks, places models, watches, retries, reports.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    brain_bin::main(brain_bin::Args::parse())
}
