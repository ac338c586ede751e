//! `bench-claims DIR COUNT` claims COUNT tasks one after another from a fresh rig below DIR and
//! logs what an agent logs on a claim, at the level in `GPU_LOG_LEVEL`. It prints one JSON object.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rigor_queue::claim::{self, Candidate};
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::{self, Durability};
use rigor_queue::task::{Class, TaskSpec, Work};
use rigor_telemetry::Options;

const AGENT: &str = "gpu-1";
const BATCH: &str = "bench";
/// How long the last lines may take after the last claim.
const FLUSH_MOST: Duration = Duration::from_secs(30);

/// Claims `count` tasks from a rig below `dir`; the figures.
pub fn run(dir: &Path, count: u64) -> Result<serde_json::Value> {
    let dir = tempfile::Builder::new()
        .prefix("claims-")
        .tempdir_in(dir)
        .with_context(|| format!("cannot make a rig below {}", dir.display()))?;
    let rig = Rig::create(dir.path())?;
    rig.prepare_agent(AGENT)?;
    rig.prepare_batch(BATCH)?;
    let names = queue(&rig, count)?;
    let log = rig.logs_dir().join("gpu-1.log");
    let guard = rigor_telemetry::init(&Options {
        log_file: Some(log.clone()),
        level_variables: &["GPU_LOG_LEVEL"],
        ..Options::new(AGENT)
    })?;

    let cpu_before = cpu_seconds()?;
    let started = Instant::now();
    let mut logging = Duration::ZERO;
    for name in &names {
        claim_one(&rig, name, &mut logging)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    if !guard.flush(FLUSH_MOST) {
        bail!("the log was not written within {}s", FLUSH_MOST.as_secs());
    }
    // Of all threads: what the thread that writes the lines costs counts too.
    let cpu = cpu_seconds()? - cpu_before;
    let text = fs::read_to_string(&log).context("cannot read the log back")?;
    Ok(serde_json::json!({
        "claims": count,
        "seconds": seconds,
        "logging_seconds": logging.as_secs_f64(),
        "cpu_seconds": cpu,
        "lines": text.lines().count(),
        "bytes": text.len(),
    }))
}

fn queue(rig: &Rig, count: u64) -> Result<Vec<FileName>> {
    let mut names = Vec::new();
    for sequence in 0..count {
        let spec = spec(&format!("t{sequence}"));
        let name = FileName::first(spec.priority, sequence, spec.shape(), spec.id);
        // What is measured is claiming, so how the tasks came to lie there is of no account.
        let place = Place::Queue(Class::Cpu);
        submit::submit(rig, place, &name, &spec, Durability::Process)?;
        names.push(name);
    }
    Ok(names)
}

/// Without a sync, as `durability = "default"` claims what may be retried.
fn claim_one(rig: &Rig, name: &FileName, logging: &mut Duration) -> Result<()> {
    let short = name.id.short();
    timed(logging, || {
        tracing::debug!(target: "gpu_agent_bin::claiming", task = %name.id, "Attempting claim: {short}");
    });
    let Candidate::Ready(held) = claim::candidate(rig, Class::Cpu, name)? else {
        bail!("{name} was not there to be claimed");
    };
    let held = held
        .claim(rig, AGENT, false)?
        .with_context(|| format!("{name} went to somebody else"))?;
    timed(logging, || {
        tracing::info!(target: "gpu_agent_bin::claiming", task = %held.name.id,
            attempt = held.name.attempt, batch = %held.spec.batch, agent = AGENT,
            "Claimed cpu task: {short} ({})", held.spec.name);
    });
    timed(logging, || {
        tracing::info!(target: "gpu_agent_bin::attempts", task = %held.name.id,
            attempt = held.name.attempt, batch = %held.spec.batch, agent = AGENT,
            "Spawned worker {AGENT}-12345 (PID 12345) for cpu task {short}");
    });
    Ok(())
}

fn timed(total: &mut Duration, say: impl FnOnce()) {
    let started = Instant::now();
    say();
    *total += started.elapsed();
}

fn cpu_seconds() -> Result<f64> {
    let mut nanoseconds = 0.0;
    let tasks = Path::new("/proc/self/task");
    for entry in fs::read_dir(tasks).context("cannot list this program's threads")? {
        let path = entry?.path().join("schedstat");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let on_cpu = text.split_whitespace().next().unwrap_or_default();
        nanoseconds += on_cpu
            .parse::<f64>()
            .with_context(|| format!("{} is not understood", path.display()))?;
    }
    Ok(nanoseconds / 1e9)
}

fn spec(task: &str) -> TaskSpec {
    TaskSpec {
        plan: "bench".to_owned(),
        plan_dir: "/p".into(),
        batch_dir: "/p/history/b".into(),
        created: jiff::Timestamp::UNIX_EPOCH,
        ..TaskSpec::new(
            TaskId::derive(BATCH, task, None),
            BATCH,
            task,
            Class::Cpu,
            Work::Command {
                command: "true".to_owned(),
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_claimed_and_every_line_is_counted() {
        let dir = std::env::temp_dir();
        let figures = run(&dir, 20).expect("twenty tasks are claimed");
        assert_eq!(figures["claims"], 20);
        assert_eq!(figures["lines"], 40);
        let seconds = |name: &str| figures[name].as_f64().expect("a number");
        assert!(seconds("logging_seconds") > 0.0);
        assert!(seconds("logging_seconds") < seconds("seconds"));
    }
}
