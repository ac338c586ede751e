//! `soak --minutes N`: see `rigor_tests::soak`; what `cargo xtask soak` runs.

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    rigor_tests::soak::cli::main()
}
