//! A program in a session of its own, so that the end of a terminal does not end it.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::args::Detached;
use crate::exit::Exit;

/// Leaves the terminal's session and becomes the program. Returns only on an error.
pub(crate) fn become_it(args: &Detached) -> Result<Exit> {
    rustix::process::setsid().context("cannot start a session")?;
    let (program, words) = args.command.split_first().context("no program is named")?;
    let error = Command::new(program).args(words).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}
