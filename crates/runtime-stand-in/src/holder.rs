//! Memory of a stand-in GPU, and processes that hold it.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

/// The NVML stand-in's name for what a process claims of its GPU, MiB.
pub const CLAIM_VARIABLE: &str = "RIGOR_SIM_VRAM_MB";

/// What a model holds where nothing says how much, MiB.
const DEFAULT_CLAIM_MB: u64 = 512;

/// The first word of a holder's command line.
pub(crate) const WORD: &str = "__hold";

/// No holder outlives whoever forgot it by more than this.
const HELD_AT_MOST: Duration = Duration::from_secs(600);

/// What this process is to claim.
pub(crate) fn claim_mb(vram_mb: Option<u64>) -> u64 {
    let said = || std::env::var(CLAIM_VARIABLE).ok()?.trim().parse().ok();
    vram_mb.or_else(said).unwrap_or(DEFAULT_CLAIM_MB)
}

/// Makes this process hold that much: NVML's stand-in reads the environment that a process was started with, so it
/// starts itself anew, as the same process. Returns when nothing has to be changed.
pub(crate) fn claim(vram_mb: Option<u64>) -> Result<()> {
    let wanted = claim_mb(vram_mb).to_string();
    if std::env::var(CLAIM_VARIABLE).is_ok_and(|claim| claim == wanted) {
        return Ok(());
    }
    let program = std::env::current_exe().context("find the own program")?;
    let error = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(CLAIM_VARIABLE, wanted)
        .exec();
    Err(error).context("start anew with the claim of memory")
}

/// Starts a process that holds as much until it is killed. One that `leaks` has a session of its own and does not
/// hear SIGTERM.
pub(crate) fn start(vram_mb: Option<u64>, leaks: bool) -> Result<Child> {
    let program = std::env::current_exe().context("find the own program")?;
    let mut command = Command::new(program);
    command
        .arg(WORD)
        .env(CLAIM_VARIABLE, claim_mb(vram_mb).to_string())
        .stdin(Stdio::null());
    if leaks {
        // SAFETY: between fork and exec only the system calls setsid and signal are made; nothing is allocated and no
        // lock is taken. An ignored signal stays ignored over exec.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                if libc::signal(libc::SIGTERM, libc::SIG_IGN) == libc::SIG_ERR {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
    }
    command.spawn().context("start a process that holds memory")
}

/// Such a process.
pub(crate) fn hold() {
    std::thread::sleep(HELD_AT_MOST);
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_claim_is_the_one_that_the_nvml_stand_in_counts() {
        assert_eq!(super::CLAIM_VARIABLE, nvml_stand_in::CLAIM_VARIABLE);
    }
}
