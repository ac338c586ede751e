//! `cargo xtask simulate`: builds the simulator, optimised, and runs it; with `--live` a real rig too.

mod live;

use anyhow::Result;
use clap::Parser;

use crate::workspace::{cargo, checked};

/// Runs the simulator with the arguments, in the workspace's root; with `--live` among them, also
/// what it predicts.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if arguments.iter().any(|argument| argument == "--live") {
        let name = std::iter::once("cargo xtask simulate").map(str::to_owned);
        return live::run(&live::Live::parse_from(
            name.chain(arguments.iter().cloned()),
        ));
    }
    let mut command = cargo(&["run", "--quiet", "--release", "-p", "simulator", "--"]);
    checked(command.args(arguments))
}
