//! Development tasks: `cargo xtask help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    xtask_bin::run()
}
