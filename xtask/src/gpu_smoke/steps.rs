//! The steps. Each is one thing that only a GPU can show.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::report::Outcome;
use super::setup::{MODEL, Runtime};
use super::shared_rig::{BATCH_MOST, HEARD_MOST, LOOK_EVERY, Smoke};
use crate::own_rig::state::Gpu;

/// Memory that a script holds, MiB.
const SCRIPT_MB: u64 = 1024;
/// What a CUDA context and its libraries take beside that, at most, MiB.
const CONTEXT_MB: u64 = 1500;
/// Prompts of the first batch and of the second.
const PROMPTS: usize = 40;
const PROMPTS_AFTER: usize = 10;
/// How much the memory in use may differ from what it was before, MiB: other programs' ups and downs.
const SAME_MB: u64 = 200;

type Step = fn(&mut Smoke<'_>) -> Result<Outcome>;

/// All steps, in the order that they are done in.
pub(super) const ALL: [(&str, Step); 12] = [
    ("doctor finds nothing wrong", doctor),
    ("every GPU is read", start),
    ("a script's memory is measured", measure),
    ("foreign memory is named and left alone", foreign),
    ("a model is loaded, proven, and answers", prompts),
    ("an agent that was killed takes its runtime over", adopt),
    ("a script that needs the model's memory gets it", displace),
    ("all memory comes back", unload),
    ("out of memory is told from other failures", out_of_memory),
    ("a GPU over its limit takes no GPU work", too_hot),
    ("a model over two GPUs", split),
    ("every GPU second has its cause", accounts),
];

fn doctor(smoke: &mut Smoke<'_>) -> Result<Outcome> {
    // It exits 1 where something failed; what it printed says what.
    let found = smoke.json(&["doctor", "--json"])?;
    let checks = found["checks"].as_array().context("no checks are shown")?;
    let text = |check: &Value, key: &str| check[key].as_str().unwrap_or("-").to_owned();
    let gpus: Vec<String> = checks
        .iter()
        .filter(|check| {
            ["nvml", "gpu", "driver"]
                .iter()
                .any(|word| text(check, "check").to_lowercase().contains(word))
        })
        .map(|check| format!("{}: {}", text(check, "check"), text(check, "detail")))
        .collect();
    Ok(Outcome::Passed(format!(
        "{} checks; {}",
        checks.len(),
        gpus.join("; ")
    )))
}

fn start(smoke: &mut Smoke<'_>) -> Result<Outcome> {
    let names: Vec<String> = smoke
        .own
        .status()?
        .agents
        .into_iter()
        .map(|agent| agent.name)
        .collect();
    smoke.own.start("brain", &["brain"])?;
    for name in &names {
        smoke.own.start(name, &["gpu-agent", name])?;
    }
    let deadline = Instant::now() + HEARD_MOST;
    let agents = loop {
        let agents = smoke.own.status()?.agents;
        if agents
            .iter()
            .all(|agent| agent.alive && agent.gpu.is_some())
        {
            break agents;
        }
        smoke.own.check_alive()?;
        if Instant::now() > deadline {
            bail!("not every agent shows its GPU: {agents:?}");
        }
        thread::sleep(LOOK_EVERY);
    };
    smoke.gpus = agents.into_iter().filter_map(|agent| agent.gpu).collect();
    smoke.before = smoke.gpus.first().cloned();
    if let Some(wrong) = smoke
        .gpus
        .iter()
        .find(|gpu| gpu.stand_in != smoke.simulated)
    {
        bail!(
            "{} is {} stand-in",
            wrong.name,
            if wrong.stand_in { "a" } else { "no" }
        );
    }
    let words = |gpu: &Gpu| {
        let unknown = || "?".to_owned();
        format!(
            "{}: {} of {} MB in use, {} C, {} W",
            gpu.name,
            gpu.used_mb,
            gpu.total_mb,
            gpu.temperature_c.map_or_else(unknown, |it| it.to_string()),
            gpu.power_w.map_or_else(unknown, |it| it.to_string())
        )
    };
    let words: Vec<String> = smoke.gpus.iter().map(words).collect();
    Ok(Outcome::Passed(words.join("; ")))
}

fn measure(smoke: &mut Smoke<'_>) -> Result<Outcome> {
    let command = smoke.hold(SCRIPT_MB, 6);
    let id = smoke.script("measured", &command, "- **vram_policy**: infer\n")?;
    let batch = smoke.over(&id)?;
    let attempt = smoke.attempt(&id)?;
    if batch.state != "complete" {
        return Ok(Outcome::Failed(format!(
            "the script failed: {}",
            attempt["reason"]
        )));
    }
    let peak = attempt["peaks"]["vram_mb"].as_u64();
    Ok(match peak {
        Some(mb) if (SCRIPT_MB..=SCRIPT_MB + CONTEXT_MB).contains(&mb) => {
            Outcome::Passed(format!("held {SCRIPT_MB} MB, measured {mb} MB"))
        }
        other => Outcome::Failed(format!("held {SCRIPT_MB} MB, measured {other:?}")),
    })
}

/// A child that must not outlive the step.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn foreign(smoke: &mut Smoke<'_>) -> Result<Outcome> {
    let uuid = smoke.gpu()?.uuid;
    let before = smoke.before.as_ref().map_or(0, |gpu| gpu.used_mb);
    let holder = Command::new("bash")
        .args(["-c", &format!("exec env {}", smoke.hold(SCRIPT_MB, 300))])
        .env("CUDA_VISIBLE_DEVICES", &uuid)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start a program that holds memory")?;
    let mut holder = Held(holder);
    let seen = smoke.until(HEARD_MOST, "the foreign program's memory", |agent| {
        agent
            .gpu
            .as_ref()
            .is_some_and(|gpu| gpu.foreign.is_some() && gpu.used_mb >= before + SCRIPT_MB)
    })?;
    let named = seen.gpu.and_then(|gpu| gpu.foreign).unwrap_or_default();
    if let Some(status) = holder
        .0
        .try_wait()
        .context("cannot look at the foreign program")?
    {
        return Ok(Outcome::Failed(format!(
            "the foreign program ended: {status}"
        )));
    }
    Ok(Outcome::Passed(named))
}

fn prompts(smoke: &mut Smoke<'_>) -> Result<Outcome> {
    let began = Instant::now();
    let id = smoke.ask("prompts", PROMPTS)?;
    let batch = smoke.over(&id)?;
    if batch.state != "complete" {
        return Ok(Outcome::Failed(format!(
            "{}: {} of {} done, {} failed",
            batch.state, batch.done, batch.total, batch.failed
        )));
    }
    let agent = smoke.until(HEARD_MOST, "a hot model", |agent| {
        agent.model.as_deref() == Some(MODEL)
    })?;
    let used = agent.gpu.as_ref().map_or(0, |gpu| gpu.used_mb);
    let before = smoke.before.as_ref().map_or(0, |gpu| gpu.used_mb);
    Ok(Outcome::Passed(format!(
        "{PROMPTS} prompts in {:.1}s, the load in it; {} holds {MODEL}, {} MB more than before",
        began.elapsed().as_secs_f64(),
        agent.name,
        used.saturating_sub(before)
    )))
}

fn adopt(smoke: &mut Smoke<'_>) -> Result<Outcome> {
    let hot = smoke.until(HEARD_MOST, "a hot model", |agent| agent.state == "hot")?;
    let loads = smoke.said(&hot.name, "model ready in")?;
    smoke.own.crash(&hot.name)?;
    let began = Instant::now();
    smoke.own.start(&hot.name, &["gpu-agent", &hot.name])?;
    smoke.until(HEARD_MOST, "the agent, hot again", |agent| {
        agent.alive && agent.state == "hot"
    })?;
    let took = began.elapsed();
    let id = smoke.ask("prompts-after", PROMPTS_AFTER)?;
    let batch = smoke.over(&id)?;
    let again = smoke.said(&hot.name, "model ready in")? - loads;
    let adopted = smoke.said(&hot.name, "Adopted the runtime")?;
    Ok(if batch.state == "complete" && again == 0 && adopted == 1 {
        Outcome::Passed(format!(
            "hot again {:.1}s after the kill, without a load; {PROMPTS_AFTER} prompts answered",
            took.as_secs_f64()
        ))
    } else {
        Outcome::Failed(format!(
            "batch {}, adopted {adopted} times, loaded again {again} times",
            batch.state
        ))
    })
}

fn displace(smoke: &mut Smoke<'_>) -> Result<Outcome> {
    let gpu = smoke.gpu()?;
    let before = smoke.before.as_ref().map_or(0, |gpu| gpu.used_mb);
    let model = gpu.used_mb.saturating_sub(before);
    // More than is left beside the model, less than there is without it.
    let need = gpu.budget_mb.saturating_sub(before + model / 2);
    let command = smoke.hold(SCRIPT_MB, 4);
    let fields = format!("- **vram_policy**: fixed\n- **vram_estimate_mb**: {need}\n");
    let id = smoke.script("displacing", &command, &fields)?;
    let batch = smoke.over(&id)?;
    let agent = smoke.agent()?;
    Ok(if batch.state == "complete" && agent.model.is_none() {
        Outcome::Passed(format!(
            "{need} MB of {} MB; the model was unloaded for it",
            gpu.budget_mb
        ))
    } else {
        Outcome::Failed(format!(
            "batch {}, the agent holds {:?}",
            batch.state, agent.model
        ))
    })
}

fn unload(smoke: &mut Smoke<'_>) -> Result<Outcome> {
    let name = smoke.agent()?.name;
    smoke.rigor(&["load", &name, MODEL])?;
    let hot = smoke.until(BATCH_MOST, "a hot model", |agent| agent.state == "hot")?;
    let held = hot.gpu.map_or(0, |gpu| gpu.used_mb);
    let before = smoke.before.as_ref().map_or(0, |gpu| gpu.used_mb);
    // Of a tiny model less than other programs' ups and downs must be back, too.
    let near_mb = SAME_MB.min(held.saturating_sub(before) / 2);
    smoke.rigor(&["unload", &name])?;
    smoke.until(BATCH_MOST, "a cold agent", |agent| agent.state == "cold")?;
    let after = smoke.until(HEARD_MOST, "the memory that was in use before", |agent| {
        agent
            .gpu
            .as_ref()
            .is_some_and(|gpu| gpu.used_mb.abs_diff(before) <= near_mb)
    })?;
    let after = after.gpu.map_or(0, |gpu| gpu.used_mb);
    Ok(Outcome::Passed(format!(
        "{held} MB in use with the model, {after} MB after it, {before} MB at first"
    )))
}

fn out_of_memory(smoke: &mut Smoke<'_>) -> Result<Outcome> {
    if smoke.simulated {
        return Ok(Outcome::Skipped(
            "a stand-in GPU cannot run out of memory".to_owned(),
        ));
    }
    let total = smoke.gpu()?.total_mb;
    let command = smoke.hold(total + 1024, 1);
    let id = smoke.script(
        "too-much",
        &command,
        "- **vram_policy**: fixed\n- **vram_estimate_mb**: 1024\n",
    )?;
    let batch = smoke.over(&id)?;
    let attempt = smoke.attempt(&id)?;
    let kind = attempt["kind"].as_str().unwrap_or("-").to_owned();
    let reason = attempt["reason"].as_str().unwrap_or("-");
    Ok(if batch.state == "failed" && kind == "out_of_memory" {
        Outcome::Passed(format!("{} MB asked of {total} MB: {reason}", total + 1024))
    } else {
        Outcome::Failed(format!("batch {}, kind {kind}: {reason}", batch.state))
    })
}

fn too_hot(smoke: &mut Smoke<'_>) -> Result<Outcome> {
    let agent = smoke.agent()?;
    let Some(temperature) = agent.gpu.as_ref().and_then(|gpu| gpu.temperature_c) else {
        return Ok(Outcome::Skipped("the GPU tells no temperature".to_owned()));
    };
    let path = smoke.rig.join("rig.toml");
    let plain =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    // Far enough below that no moment of rest brings it under the limit.
    let limit = temperature.saturating_sub(8).max(1);
    let limited = plain.replacen("[limits]", &format!("[limits]\ntemperature_c = {limit}"), 1);
    let restart = |smoke: &mut Smoke<'_>, text: &str| -> Result<()> {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        smoke.own.stop_one(&agent.name)?;
        smoke.own.start(&agent.name, &["gpu-agent", &agent.name])
    };
    restart(smoke, &limited)?;
    let constrained = smoke.until(HEARD_MOST, "a GPU over its limit", |agent| {
        agent.health.as_deref() == Some("constrained")
    });
    restart(smoke, &plain)?;
    smoke.until(HEARD_MOST, "the agent without that limit", |agent| {
        agent.health.as_deref() == Some("healthy")
    })?;
    let reason = constrained?.health_reason.unwrap_or_default();
    Ok(Outcome::Passed(format!(
        "with a limit of {limit} C: {reason}"
    )))
}

fn split(smoke: &mut Smoke<'_>) -> Result<Outcome> {
    let able = match smoke.runtime {
        Runtime::LlamaServer { .. } | Runtime::Vllm { .. } => true,
        Runtime::Ollama { .. } | Runtime::Torch { .. } => false,
    };
    match (smoke.gpus.len(), able) {
        (0 | 1, _) => return Ok(Outcome::Skipped("this machine has one GPU".to_owned())),
        (_, false) => return Ok(Outcome::Skipped("needs llama-server or vLLM".to_owned())),
        _ => {}
    }
    let path = smoke.rig.join("rig.toml");
    let plain =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let names: Vec<String> = smoke
        .own
        .status()?
        .agents
        .into_iter()
        .map(|agent| agent.name)
        .collect();
    let id = format!("id = \"{MODEL}\"");
    let restart = |smoke: &mut Smoke<'_>, text: &str| -> Result<()> {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        for (name, program) in names
            .iter()
            .map(|name| (name.as_str(), "gpu-agent"))
            .chain([("brain", "brain")])
        {
            smoke.own.stop_one(name)?;
            let words: Vec<&str> = if program == "brain" {
                vec![program]
            } else {
                vec![program, name]
            };
            smoke.own.start(name, &words)?;
        }
        Ok(())
    };
    restart(
        smoke,
        &plain.replacen(&id, &format!("{id}\nsplit_gpu = 2"), 1),
    )?;
    let asked = smoke.ask("split", PROMPTS_AFTER)?;
    let batch = smoke.over(&asked);
    let lent = smoke
        .own
        .status()?
        .agents
        .iter()
        .filter(|agent| agent.state == "lent")
        .count();
    restart(smoke, &plain)?;
    let batch = batch?;
    Ok(if batch.state == "complete" && lent == 1 {
        Outcome::Passed(format!("{PROMPTS_AFTER} prompts answered over two GPUs"))
    } else {
        Outcome::Failed(format!("batch {}, {lent} GPUs lent", batch.state))
    })
}

fn accounts(smoke: &mut Smoke<'_>) -> Result<Outcome> {
    let mut told = Vec::new();
    for id in &smoke.batches {
        let report = smoke.json(&["report", id, "--json"])?;
        let time = &report["gpu_time"];
        let wall = time["wall_ms"]
            .as_i64()
            .with_context(|| format!("{id} tells no GPU time"))?;
        for gpu in time["gpus"].as_array().into_iter().flatten() {
            let causes = gpu["ms"].as_object().context("no causes are told")?;
            let sum: i64 = causes.values().filter_map(Value::as_i64).sum();
            if sum != wall {
                return Ok(Outcome::Failed(format!(
                    "{id}, {}: causes are {sum} ms of {wall} ms",
                    gpu["agent"]
                )));
            }
        }
        told.push(format!("{id} {wall} ms"));
    }
    Ok(Outcome::Passed(format!(
        "the causes sum up to the wall time: {}",
        told.join(", ")
    )))
}
