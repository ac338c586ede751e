//! The two programs of a task, started with nothing around them: the floor under any dispatcher
//! that starts a worker for each task.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Starts the worker (which ends at once, for want of a task) and then `bash -c true`, `count`
/// times, so many at once.
pub(crate) fn run(worker: &Path, count: u64, at_once: u64) -> Result<serde_json::Value> {
    let left = AtomicU64::new(count);
    let take = || {
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        })
        .is_ok()
    };
    let started = Instant::now();
    thread::scope(|scope| {
        let loops: Vec<_> = (0..at_once)
            .map(|_| {
                scope.spawn(|| {
                    while take() {
                        pair(worker)?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        loops
            .into_iter()
            .try_for_each(|one| one.join().expect("a loop does not panic"))
    })?;
    Ok(serde_json::json!({ "seconds": started.elapsed().as_secs_f64() }))
}

fn pair(worker: &Path) -> Result<()> {
    // Whatever it says of the task that it does not get, it has started.
    let status = wait(&mut Command::new(worker))?;
    if status.code().is_none() {
        bail!("{}: {status}", worker.display());
    }
    let status = wait(Command::new("bash").args(["-c", "true"]))?;
    if !status.success() {
        bail!("bash: {status}");
    }
    Ok(())
}

fn wait(command: &mut Command) -> Result<ExitStatus> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {:?}", command.get_program()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_is_started_and_what_cannot_be_is_said() {
        let found = run("/bin/false".as_ref(), 3, 2).expect("any program will do");
        assert!(
            found["seconds"]
                .as_f64()
                .is_some_and(|seconds| seconds > 0.0)
        );
        assert!(run("/no/worker".as_ref(), 1, 1).is_err());
    }
}
