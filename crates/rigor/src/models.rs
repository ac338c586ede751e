//! `rigor models`: the catalogue.

use std::cell::OnceCell;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use rigor_config::{Config, Gpu};
use rigor_gpu::Limits;
use rigor_models::By;
use rigor_snapshot::models::{self, Fits, Model, OnGpu};

use crate::args::Models;
use crate::exit::Exit;
use crate::target;
use crate::terminal::{Tone, duration, json, print, printable, table, toned};

/// Prints each model with what it needs and where it fits.
pub(crate) fn run(at: &Path, args: &Models) -> Result<Exit> {
    let opened = target::open_running(at)?;
    let config = &opened.config;
    let models = models::models(&opened.rig, config, budgets(config));
    if args.json {
        json(&serde_json::json!({ "schema": rigor_snapshot::SCHEMA, "models": models }))?;
    } else {
        print(&text(&models))?;
    }
    Ok(Exit::Ok)
}

/// Asks NVML, once it is needed, what tasks may use of a GPU, MB; none: it does not tell.
pub(crate) fn budgets(config: &Config) -> impl Fn(&Gpu) -> Option<u64> {
    let nvml = OnceCell::new();
    move |gpu| {
        let gpus = nvml.get_or_init(|| crate::nvml::open(config).ok()?.ok());
        let reading = gpus.as_ref()?.reading(&gpu.uuid).ok()?;
        Some(budget_mb(config, gpu, reading.total_mb))
    }
}

/// What tasks may use of a GPU with so much memory, MB.
pub(crate) fn budget_mb(config: &Config, gpu: &Gpu, total_mb: u64) -> u64 {
    let limits = Limits {
        temperature_c: config.limits.temperature_c,
        power_w: config.limits.power_w,
        vram_share: config.vram_share(gpu),
    };
    limits.budget_mb(total_mb)
}

fn text(models: &[Model]) -> String {
    if models.is_empty() {
        return "No models: rig.toml has no [[model]].\n".to_owned();
    }
    let mut text = table(
        &[
            "MODEL",
            "KIND",
            "RUNTIME",
            "WEIGHTS MB",
            "VRAM MB",
            "MEASURED",
            "LOAD",
            "SLOTS",
            "CONTEXT",
            "TIER",
            "ON",
        ],
        models.iter().map(row),
    );
    for model in models {
        if let Some(problem) = &model.problem {
            let words = format!("{}: {}", model.id, printable(problem));
            text.push_str(&format!("{}\n", toned(&words, Tone::Bad)));
        }
        if let (Some(By::Gguf | By::Files), Some(estimate)) = (model.need_by, &model.estimate) {
            text.push_str(&format!("{}: ~{}\n", model.id, estimate.words()));
        }
    }
    if models.iter().any(|model| !model.on.is_empty()) {
        text.push('\n');
        let rows = models
            .iter()
            .flat_map(|model| model.on.iter().map(|on| gpu_row(model, on)));
        text.push_str(&table(&["MODEL", "GPU", "FITS", "LOAD", "TOKENS/S"], rows));
    }
    text
}

fn row(model: &Model) -> Vec<String> {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    vec![
        model.id.clone(),
        model.kind.to_owned(),
        model.runtime.to_owned(),
        or_dash(model.weights_mb.map(|mb| mb.to_string())),
        match (model.need_mb, model.need_by) {
            (Some(_), Some(By::Measured)) => or_dash(
                model
                    .estimate
                    .map(|estimate| format!("~{}", estimate.total_mb())),
            ),
            (Some(mb), Some(By::Configured)) => format!("{mb} (rig.toml)"),
            (Some(mb), _) => format!("~{mb}"),
            (None, _) if model.problem.is_some() => "?".to_owned(),
            (None, _) => "a GPU".to_owned(),
        },
        or_dash(model.measured_mb.map(|mb| mb.to_string())),
        or_dash(model.load_seconds.map(|s| seconds(s, model.load_measured))),
        model.slots.to_string(),
        or_dash(model.context.map(|tokens| tokens.to_string())),
        model.tier.to_string(),
        match model.gpus {
            0 | 1 => "1 GPU".to_owned(),
            gpus => format!("split over {gpus}"),
        },
    ]
}

fn gpu_row(model: &Model, on: &OnGpu) -> Vec<String> {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let budget = on.budget_mb.unwrap_or_default();
    let gpus = model.gpus.max(1) as usize;
    let share = model
        .need_mb
        .map_or(0, |mb| mb.div_ceil(u64::from(model.gpus.max(1))));
    let fits = match on.fits {
        Fits::Fits if model.on.len() < gpus => {
            let words = format!("needs {gpus} GPUs, the rig has {}", model.on.len());
            toned(&words, Tone::Bad)
        }
        Fits::Held => toned("held now", Tone::Good),
        Fits::Fits => format!("fits: {share} of {budget} MB"),
        Fits::Short { by_mb } => toned(&format!("short by {by_mb} MB of {budget} MB"), Tone::Bad),
        Fits::NotKnown if model.problem.is_some() => "its file cannot be used".to_owned(),
        Fits::NotKnown if on.budget_mb.is_none() => {
            "not known: the agent has never run, and NVML does not tell".to_owned()
        }
        Fits::NotKnown => "takes the whole GPU".to_owned(),
    };
    vec![
        model.id.clone(),
        on.agent.clone(),
        fits,
        or_dash(on.load_seconds.map(|s| seconds(s, true))),
        or_dash(on.tokens_per_second.map(|rate| format!("{rate:.1}"))),
    ]
}

fn seconds(seconds: f64, measured: bool) -> String {
    let words = duration(Duration::try_from_secs_f64(seconds).unwrap_or_default());
    if measured { words } else { format!("~{words}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_gpu_has_room_for_is_its_share_of_the_model() {
        let on = |agent: &str| OnGpu {
            agent: agent.to_owned(),
            fits: Fits::Fits,
            budget_mb: Some(4915),
            load_seconds: None,
            tokens_per_second: None,
        };
        let fits = |gpus: u32| {
            let model = Model {
                id: "m".to_owned(),
                kind: "chat",
                runtime: "llama-server",
                from: None,
                problem: None,
                slots: 1,
                context: None,
                tier: 0,
                gpus,
                weights_mb: None,
                estimate: None,
                measured_mb: None,
                need_mb: Some(523),
                need_by: Some(By::Configured),
                load_seconds: None,
                load_measured: false,
                on: vec![on("gpu-1"), on("gpu-2")],
            };
            gpu_row(&model, &model.on[0])[2].clone()
        };
        assert_eq!(fits(1), "fits: 523 of 4915 MB");
        assert_eq!(fits(2), "fits: 262 of 4915 MB");
        assert!(fits(3).contains("needs 3 GPUs, the rig has 2"));
    }
}
