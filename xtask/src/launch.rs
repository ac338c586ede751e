//! Programs that end when this one does, however it ends.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::process::{Pid, Signal};

/// `xtask __tied PARENT -- PROGRAM ARGS`.
#[derive(Args)]
pub(crate) struct Tied {
    /// The process whose end is this one's.
    parent: i32,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// A command that runs in a session of its own (Ctrl-C is for this process alone) and gets SIGTERM
/// when this process ends. It must be started by the main thread: the kernel watches the thread.
pub(crate) fn tied(words: impl IntoIterator<Item = OsString>) -> Command {
    // This very program, also when a build has put a newer one in its place meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("__tied")
        .arg(std::process::id().to_string())
        .arg("--")
        .args(words);
    command
}

/// The other end of [`tied`]: becomes the program. Returns only on an error.
pub(crate) fn become_it(tied: &Tied) -> Result<()> {
    rustix::process::setsid().context("cannot start a session")?;
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .context("cannot tie this process to its parent")?;
    // It may have ended before the kernel was asked to say so.
    if rustix::process::getppid() != Pid::from_raw(tied.parent) {
        bail!("the process that started this one has ended");
    }
    let (program, words) = tied.command.split_first().context("no program is named")?;
    let error = Command::new(program).args(words).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}
