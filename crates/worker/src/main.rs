//! One attempt of one task: a shell command or a prompt.

use std::process::ExitCode;

fn main() -> ExitCode {
    match worker_bin::run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("worker: {error:#}");
            ExitCode::from(2)
        }
    }
}
