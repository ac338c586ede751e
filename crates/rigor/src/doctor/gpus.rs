//! GPUs, driver, and whether rig.toml and NVML speak of the same devices.

use std::collections::BTreeMap;

use rigor_config::Config;
use rigor_gpu::{GpuError, Gpus, Reading, holders};
use rigor_queue::presence;
use rigor_queue::rig::Rig;

use super::Findings;

/// Looks at each GPU; returns what tasks may use of those that can be read, MB, by agent.
pub(super) fn gpus(rig: &Rig, config: &Config, findings: &mut Findings) -> BTreeMap<String, u64> {
    let mut budgets = BTreeMap::new();
    let opened = match crate::nvml::open(config) {
        Ok(opened) => opened,
        Err(waited) => {
            findings.fail(
                "NVML",
                format!("it does not answer for {}s: the driver hangs", waited.as_secs()),
                "see `dmesg` for `NVRM` and `Xid`; a reboot may be needed. Until it answers agents take no GPU work",
            );
            return budgets;
        }
    };
    if config.gpus.is_empty() && opened.is_err() {
        findings.ok("NVML", "no [[gpu]] in rig.toml");
        return budgets;
    }
    let gpus = match opened {
        Ok(gpus) => gpus,
        Err(error) => {
            findings.fail(
                "NVML",
                error.to_string(),
                "agents with a GPU do nothing until it works, and then go on by themselves",
            );
            return budgets;
        }
    };
    if gpus.stand_in() {
        findings.warn(
            "NVML",
            "SIMULATED: these GPUs are stand-ins",
            "for real work: rigor init without --sim-gpus",
        );
    } else {
        let driver = gpus.driver_version();
        let driver = driver.unwrap_or_else(|| "unknown".to_owned());
        findings.ok("NVML", format!("driver {driver}"));
    }
    // A split model's runtime has memory of several GPUs.
    let left: Vec<u32> = config
        .gpus
        .iter()
        .filter_map(|gpu| {
            let manifest = rig.agent_dir(&gpu.name).join(rigor_runtime::MANIFEST_NAME);
            Some(rigor_runtime::orphan(&manifest)?.1)
        })
        .flatten()
        .filter_map(|pid| u32::try_from(pid).ok())
        .collect();
    for gpu in &config.gpus {
        let check = format!("{} GPU", gpu.name);
        let reading = match gpus.reading(&gpu.uuid) {
            Ok(reading) => reading,
            Err(error) => {
                let remedy = remedy(&error);
                findings.fail(check, error.to_string(), remedy);
                continue;
            }
        };
        let budget_mb = crate::models::budget_mb(config, gpu, reading.total_mb);
        budgets.insert(gpu.name.clone(), budget_mb);
        let words = words(&reading, budget_mb);
        // What sits there while our agent runs is mostly ours.
        let ours = presence::is_held(rig, &gpu.name).ok().flatten() == Some(true);
        let hot = reading
            .temperature_c
            .is_some_and(|temperature| temperature >= config.limits.temperature_c);
        // What a dead agent left has a finding of its own, with its own remedy.
        match holders(&reading, |pid| ours || left.contains(&pid)).first() {
            Some(holder) => {
                findings.warn(check, format!("{words}; {holder}"), holder.remedy.clone());
            }
            None if hot => findings.warn(
                check,
                format!(
                    "{words}; at {}C it claims no GPU work",
                    config.limits.temperature_c
                ),
                "look after fans and airflow, or raise `temperature_c` in rig.toml",
            ),
            None => findings.ok(check, words),
        }
    }
    unlisted(&gpus, config, findings);
    budgets
}

fn words(reading: &Reading, budget_mb: u64) -> String {
    let mut words = format!(
        "NVML index {}, {} of {} MB free, tasks may use {budget_mb} MB",
        reading.index, reading.free_mb, reading.total_mb
    );
    if let Some(temperature) = reading.temperature_c {
        words.push_str(&format!(", {temperature}C"));
    }
    if let Some(power) = reading.power_w {
        words.push_str(&format!(", {power} W"));
    }
    words
}

/// Some errors hold their remedy, which must not be said twice.
fn remedy(error: &GpuError) -> &'static str {
    match error {
        GpuError::NotFound { .. } => "rigor doctor lists below what rig.toml does not name",
        GpuError::Lost { .. } => "then start its agent again: rigor up",
        _ => "see the cause; `nvidia-smi -L` lists what is there",
    }
}

/// The other direction: GPUs of this machine that rig.toml does not name.
fn unlisted(gpus: &Gpus, config: &Config, findings: &mut Findings) {
    let named = |uuid: &str| config.gpus.iter().any(|gpu| gpu.uuid == uuid);
    for gpu in gpus.list().unwrap_or_default() {
        if !named(&gpu.uuid) {
            findings.warn(
                "UUID map",
                format!(
                    "{} ({}, {} MB) is in this machine and not in rig.toml",
                    gpu.uuid, gpu.name, gpu.total_mb
                ),
                format!(
                    "to use it, add: [[gpu]] name = \"...\" uuid = \"{}\" port = ...",
                    gpu.uuid
                ),
            );
        }
    }
    for (index, error) in gpus.unreadable().unwrap_or_default() {
        findings.warn(
            "UUID map",
            format!("the GPU of NVML index {index} does not tell its UUID: {error}"),
            "look for `Xid` in `dmesg`; a reboot may bring it back",
        );
    }
    let mut seen = BTreeMap::new();
    for gpu in &config.gpus {
        if let Some(other) = seen.insert(&gpu.uuid, &gpu.name) {
            findings.fail(
                "UUID map",
                format!("{other} and {} are the same GPU, {}", gpu.name, gpu.uuid),
                "one GPU, one agent: correct a `uuid` in rig.toml",
            );
        }
    }
}
