//! Many task files at once: a plan's, through the rig's programs, and the same files written in the
//! fastest way that is as durable.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rigor_queue::rig::{Place, Rig};

use crate::batch;
use crate::tasks::{QUEUE, fresh_rig, queue_one};

const LOOK_EVERY: Duration = Duration::from_millis(1);
const MOST: Duration = Duration::from_secs(600);

/// Submits a plan, held, and waits until the expansion of `task` is there, whole and durable.
pub(crate) fn run(root: &Path, plan: &Path, rigor: &Path, task: &str) -> Result<serde_json::Value> {
    let rig = Rig::open(root)?;
    let started = Instant::now();
    let batch = batch::submit(&rig, plan, rigor, &["--hold"])?;
    let submitted = started.elapsed();
    let expanded = rig.dir(Place::Waiting {
        batch: &batch,
        task,
    });
    while !expanded.is_dir() {
        if started.elapsed() > MOST {
            bail!("{batch} was not expanded after {}s", MOST.as_secs());
        }
        thread::sleep(LOOK_EVERY);
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(serde_json::json!({
        "batch": batch,
        "submit_seconds": submitted.as_secs_f64(),
        "seconds": seconds,
        "tasks": rig.count(Place::Waiting { batch: &batch, task })?,
    }))
}

/// Writes so many files of a task's content into a new directory, makes all durable by one `syncfs`,
/// and renames the directory.
pub(crate) fn files(dir: &Path, count: u64) -> Result<serde_json::Value> {
    let (_scratch, rig) = fresh_rig(dir)?;
    let name = queue_one(&rig, 0)?;
    let content = fs::read(rig.path(QUEUE, &name)).context("read a task back")?;
    let root = tempfile::Builder::new().prefix("files-").tempdir_in(dir)?;
    let (building, built) = (root.path().join(".new"), root.path().join("all"));
    let started = Instant::now();
    fs::create_dir(&building).context("make a directory")?;
    for number in 0..count {
        let path = building.join(format!(
            "05-{number:012}-9c0ffee1-a1b2c3d4e5f60718.a1c0.json"
        ));
        let mut file = File::create_new(&path)?;
        file.write_all(&content)?;
    }
    rustix::fs::syncfs(File::open(&building)?).context("syncfs")?;
    fs::rename(&building, &built).context("rename the directory")?;
    File::open(root.path())?
        .sync_all()
        .context("fsync the parent")?;
    Ok(serde_json::json!({ "seconds": started.elapsed().as_secs_f64() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_and_timed() {
        let dir = tempfile::tempdir().expect("a directory");
        let found = files(dir.path(), 20).expect("they are written");
        assert!(
            found["seconds"]
                .as_f64()
                .is_some_and(|seconds| seconds > 0.0)
        );
    }
}
