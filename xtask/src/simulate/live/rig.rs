//! The rig of a live run.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::expanded::{Expanded, Model, Work};
use super::{Measured, Runtime, patience};
use crate::own_rig::{self, OwnRig};
use crate::workspace;

/// Between two looks at the rig: each is a process that competes with the rig's own.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Programs are there by then.
const START_MOST: Duration = Duration::from_secs(30);
/// The simulator's brain sees the agents as they are: here it hears of them in a fraction of the shortest load.
const TIMING: &str =
    "heartbeat_every = \"200ms\"\nlock_poll = \"200ms\"\nmonitor_every = \"1s\"\ngrace = \"2s\"\n";
/// The policy assumes that a load takes longer for a larger file, and the simulator takes a model's
/// memory for that size: a file of holes has it, and the stand-in runtime reads none.
const FILE_BYTES_PER_MB: u64 = 1_000_000;

/// Of an answer: about a second of a real model's time. The stand-in runtime's answers have as many.
const TOKENS_MOST: u32 = 16;

/// Runs the work on a rig made for it.
pub(super) fn run(
    trace: &Expanded,
    folder: &Path,
    runtime: &Runtime,
    interrupted: &AtomicBool,
) -> Result<Measured> {
    trace.check()?;
    let root = folder.join("rig");
    let mut rig = OwnRig::new(&root)?;
    rig.clear()?;
    for part in ["plan", "models"].map(|part| folder.join(part)) {
        if part.exists() {
            fs::remove_dir_all(&part).with_context(|| format!("remove {}", part.display()))?;
        }
        fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
    }
    let gpus: u16 = trace.trace.gpus.iter().map(|gpu| gpu.count).sum();
    let (gpus, port) = (gpus.to_string(), own_rig::free_ports(gpus)?.to_string());
    let mut words: Vec<&OsStr> = vec!["init".as_ref(), root.as_os_str()];
    words.extend(["--sim-gpus", &gpus, "--port", &port].map(OsStr::new));
    if let Runtime::Llama { server, .. } = runtime {
        words.extend(["--llama-server".as_ref(), server.as_os_str()]);
    }
    rig.rigor(&words)?;
    configure(trace, folder, &root, runtime)?;
    let plan = plan(trace, folder)?;
    let played = play(&mut rig, &plan, trace, interrupted);
    let stopped = rig.stop();
    if played.is_err() {
        rig.print_log_tails();
    }
    let measured = played?;
    stopped?;
    Ok(measured)
}

/// The models, the settings, and what the stand-in runtime is told.
fn configure(trace: &Expanded, folder: &Path, root: &Path, runtime: &Runtime) -> Result<()> {
    let path = root.join("rig.toml");
    let mut text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let behaviour = folder.join("runtime-stand-in.json");
    let mut models = serde_json::Map::new();
    for (number, model) in trace.trace.models.iter().enumerate() {
        let slots = model.slots;
        let serving = match runtime {
            Runtime::StandIn => {
                let file = holes(model, &folder.join(format!("models/{number}.bin")))?;
                let program = workspace::program("runtime-stand-in")?;
                // Of no runtime whose files are looked into: it has a size and nothing in it.
                let command = format!(
                    "'{}' --model {{FILE}} --alias {{MODEL}} --port {{PORT}} --parallel {slots}",
                    program.display()
                );
                format!("runtime = \"command\"\ncommand = {command:?}\nfile = {file:?}")
            }
            Runtime::Llama { model, .. } => {
                format!("runtime = \"llama-server\"\nfile = {model:?}\ncontext = 2048")
            }
        };
        let _ = write!(
            text,
            "\n[[model]]\nid = {:?}\nkind = \"chat\"\n{serving}\nslots = {slots}\n\
             vram_mb = {mb}\nargs = [\"-t\", \"1\"]\n\
             env = {{ RIGOR_RUNTIME_STAND_IN = {behaviour:?}, RIGOR_SIM_VRAM_MB = \"{mb}\" }}\n",
            model.id,
            mb = model.vram_mb
        );
        let of_model = |work: &&Work| work.model.as_ref() == Some(&model.id);
        let mut latencies = trace.trace.work.iter().filter(of_model);
        let seconds = latencies.next().map_or(0.0, |work| work.seconds);
        ensure!(
            latencies.all(|work| work.seconds == seconds),
            "{}: the stand-in runtime's latency is one for all tasks of a model",
            model.id
        );
        let told = json!({
            "load_ms": millis(model.load_s), "latency_ms": millis(seconds), "vram_mb": model.vram_mb
        });
        models.insert(model.id.clone(), told);
    }
    fs::write(&behaviour, json!({"models": models}).to_string())
        .with_context(|| format!("write {}", behaviour.display()))?;
    let slots = trace.trace.gpus.iter().map(|gpu| gpu.cpu_slots).max();
    let slots = format!("cpu_slots = {}\n", slots.unwrap_or(1));
    for (table, more) in [("[timing]\n", TIMING), ("[limits]\n", &slots)] {
        ensure!(
            text.contains(table),
            "{} has no {}",
            path.display(),
            table.trim_end()
        );
        text = text.replacen(table, &format!("{table}{more}"), 1);
    }
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

fn holes(model: &Model, path: &Path) -> Result<PathBuf> {
    let make = || fs::File::create(path)?.set_len(model.vram_mb * FILE_BYTES_PER_MB);
    make().with_context(|| format!("make {}", path.display()))?;
    Ok(path.to_owned())
}

fn millis(seconds: f64) -> u64 {
    (seconds * 1000.0).round() as u64
}

/// A plan of the work: one task with items for each, whose item says how long it takes.
fn plan(trace: &Expanded, folder: &Path) -> Result<PathBuf> {
    let dir = folder.join("plan");
    let mut text = String::from("# Plan: live\n\n## Goal\n\nThe work of a trace.\n\n## Tasks\n\n");
    for (work, durations) in trace.trace.work.iter().zip(&trace.durations) {
        let items: Vec<Value> = durations
            .iter()
            .enumerate()
            .map(
                |(at, seconds)| json!({"id": format!("t{at}"), "seconds": format!("{seconds:.3}")}),
            )
            .collect();
        let file = format!("{}.json", work.name);
        fs::write(dir.join(&file), json!({"tasks": items}).to_string())
            .with_context(|| format!("write {file}"))?;
        text.push_str(&task(work, &file));
    }
    fs::write(dir.join("plan.md"), text).context("write the plan")?;
    Ok(dir)
}

fn task(work: &Work, items: &str) -> String {
    let mut text = format!("### {}\n\n- **foreach**: `{items}:tasks`\n", work.name);
    if let Some(after) = &work.after {
        let _ = writeln!(text, "- **depends_on**: {after}");
    }
    match &work.model {
        Some(model) => {
            let _ = writeln!(
                text,
                "- **llm_model**: {model}\n- **prompt**: Task {{ITEM.id}}\n- **max_tokens**: {TOKENS_MOST}\n"
            );
        }
        None => {
            let mb = work.vram_mb;
            let _ = writeln!(
                text,
                "- **task_class**: script\n- **vram_estimate_mb**: {mb}\n- **vram_policy**: fixed\n\
                 - **env**: RIGOR_SIM_VRAM_MB={mb}\n- **command**: `sleep {{ITEM.seconds}}`\n"
            );
        }
    }
    text
}

fn play(
    rig: &mut OwnRig,
    plan: &Path,
    trace: &Expanded,
    interrupted: &AtomicBool,
) -> Result<Measured> {
    let agents = rig.status()?.agents;
    rig.start("brain", &["brain"])?;
    for agent in &agents {
        rig.start(&agent.name, &["gpu-agent", &agent.name])?;
    }
    let ready = |rig: &OwnRig| {
        let status = rig.status()?;
        Ok(status.brain.alive && status.agents.iter().all(|agent| agent.alive))
    };
    until(
        rig,
        START_MOST,
        interrupted,
        "the programs are there",
        ready,
    )?;
    let id = rig.rigor(&["submit".as_ref(), plan.as_os_str()])?;
    let id = id.trim();
    let work: f64 = trace.durations.iter().flatten().sum();
    let over = |rig: &OwnRig| {
        let batches = rig.status()?.batches;
        let batch = batches
            .into_iter()
            .find(|batch| batch.id == id)
            .context("the batch is gone")?;
        if batch.failed + batch.cancelled > 0 {
            let failed = rig.rigor(&["tasks", "--batch", id, "--lane", "failed"].map(OsStr::new));
            bail!("tasks of {id} failed:\n{}", failed.unwrap_or_default());
        }
        let folder = batch.batch_dir.context("the batch has no folder")?;
        Ok(folder.join("RUN_SUMMARY.json").exists())
    };
    until(rig, patience(work), interrupted, "the batch is over", over)?;
    let summary = rig.rigor(&["report", id, "--json"].map(OsStr::new))?;
    let summary: Value = serde_json::from_str(&summary).context("the summary is no JSON")?;
    measured(&summary, rig)
}

fn measured(summary: &Value, rig: &OwnRig) -> Result<Measured> {
    let time = &summary["gpu_time"];
    let causes = time["total_ms"]
        .as_object()
        .context("the summary has no gpu_time")?;
    let wall_ms = time["wall_ms"]
        .as_f64()
        .context("the summary has no wall time")?;
    let gpu_seconds: BTreeMap<String, f64> = causes
        .iter()
        .map(|(cause, ms)| (cause.clone(), ms.as_f64().unwrap_or(0.0) / 1000.0))
        .collect();
    let words = ["tasks", "--class", "meta", "--lane", "complete", "--json"];
    let tasks: Value = serde_json::from_str(&rig.rigor(&words.map(OsStr::new))?)
        .context("rigor tasks printed something unknown")?;
    let tasks = tasks["tasks"]
        .as_array()
        .context("rigor tasks printed something unknown")?;
    let is_load = |task: &&Value| {
        task["name"]
            .as_str()
            .is_some_and(|name| name.starts_with("load"))
    };
    Ok(Measured {
        makespan_s: wall_ms / 1000.0,
        loads: tasks.iter().filter(is_load).count(),
        gpu_seconds,
    })
}

fn until(
    rig: &mut OwnRig,
    patience: Duration,
    interrupted: &AtomicBool,
    what: &str,
    condition: impl Fn(&OwnRig) -> Result<bool>,
) -> Result<()> {
    let since = Instant::now();
    while !condition(rig)? {
        rig.check_alive()?;
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        if since.elapsed() > patience {
            bail!("waited {}s in vain: {what}", patience.as_secs());
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_work_becomes_a_task_whose_items_say_how_long_they_take() {
        let work = |more: &str| {
            let text = format!(
                r#"{{"name": "w", "seconds": 1, "spread": 0, "long_share": 0, "vram_mb": 7, "at": 0, "every": 0, "each": null, {more}}}"#
            );
            serde_json::from_str::<Work>(&text).expect("a work")
        };
        let script = task(&work(r#""model": null, "after": null"#), "w.json");
        assert!(
            script.starts_with("### w\n\n- **foreach**: `w.json:tasks`\n- **task_class**: script"),
            "{script}"
        );
        assert!(
            script.contains("RIGOR_SIM_VRAM_MB=7\n- **command**: `sleep {ITEM.seconds}`"),
            "{script}"
        );
        let prompt = task(&work(r#""model": "m", "after": "v""#), "w.json");
        assert!(
            prompt
                .contains("- **depends_on**: v\n- **llm_model**: m\n- **prompt**: Task {ITEM.id}"),
            "{prompt}"
        );
    }
}
