//! A batch of a running rig, from the start of `rigor submit` to its end.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rigor_queue::rig::{BRAIN, Place, Rig};
use rigor_queue::task::Class;

/// Between two looks at what the brain has: two small directories.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// A batch that takes longer is not waited for.
const MOST: Duration = Duration::from_secs(1800);

/// Submits the plan and waits until the brain has closed the batch.
pub(crate) fn run(root: &Path, plan: &Path, rigor: &Path) -> Result<serde_json::Value> {
    let rig = Rig::open(root)?;
    let started = Instant::now();
    let batch = submit(&rig, plan, rigor, &[])?;
    let submitted = started.elapsed();
    while !is_over(&rig)? {
        if started.elapsed() > MOST {
            bail!("{batch} was not over after {}s", MOST.as_secs());
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(serde_json::json!({
        "batch": batch,
        "submit_seconds": submitted.as_secs_f64(),
        "seconds": started.elapsed().as_secs_f64(),
    }))
}

/// Submits; the id of the batch.
pub(crate) fn submit(rig: &Rig, plan: &Path, rigor: &Path, options: &[&str]) -> Result<String> {
    let output = Command::new(rigor)
        .arg("--rig")
        .arg(rig.root())
        .arg("submit")
        .args(options)
        .arg(plan)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", rigor.display()))?;
    if !output.status.success() {
        bail!(
            "rigor submit: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether the brain has closed every batch: a plan goes from its queue to what it is at, and leaves
/// that at the end, so looking in this order misses none.
pub(crate) fn is_over(rig: &Rig) -> Result<bool> {
    let queued = rig.count(Place::Queue(Class::Brain))?;
    Ok(queued == 0 && rig.count(Place::Processing(BRAIN))? == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::fresh_rig;

    #[test]
    fn a_batch_is_over_when_the_brain_has_no_plan_any_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let (_scratch, rig) = fresh_rig(dir.path()).expect("a rig");
        assert!(is_over(&rig).expect("it is looked at"));
        for place in [Place::Queue(Class::Brain), Place::Processing(BRAIN)] {
            let plan = rig
                .dir(place)
                .join("05-000000000001-9c0ffee1-a1b2c3d4e5f60718.a1c0.json");
            std::fs::create_dir_all(rig.dir(place)).expect("a lane");
            std::fs::write(&plan, "").expect("a plan");
            assert!(!is_over(&rig).expect("it is looked at"));
            std::fs::remove_file(&plan).expect("it is there");
        }
    }
}
