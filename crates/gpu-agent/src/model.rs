//! A model of the catalogue: what it needs, and how it is served.

use std::collections::HashMap;

use rigor_config::{Config, Model, ModelKind, Serving};
use rigor_policy::admission::VramNeed;
use rigor_runtime::{ModelSpec, RuntimeProgram};

/// A model file takes so much more memory than it has bytes, percent: the cache of its context and
/// buffers. Replaced by what the first load is seen to take.
const FILE_OVERHEAD_PERCENT: u64 = 15;
/// And so much at least, MiB.
const FILE_OVERHEAD_MB: u64 = 256;

/// What a model needs of the GPU's memory: as seen here, as configured, or by its file's size.
pub(crate) fn model_need(
    config: &Config,
    measured_mb: &HashMap<String, u64>,
    model: &str,
) -> VramNeed {
    if let Some(mb) = measured_mb.get(model) {
        return VramNeed::Mb(*mb);
    }
    // One that is in no catalogue is claimed, so that the load fails by name.
    let Ok(model) = config.model(model) else {
        return VramNeed::Mb(0);
    };
    if let Some(mb) = model.vram_mb {
        return VramNeed::Mb(u64::from(mb));
    }
    match model.file().map(std::fs::metadata) {
        Some(Ok(meta)) => {
            let mb = meta.len().div_ceil(1 << 20);
            VramNeed::Mb(mb + (mb * FILE_OVERHEAD_PERCENT / 100).max(FILE_OVERHEAD_MB))
        }
        // Likewise one whose file is missing.
        Some(Err(_)) => VramNeed::Mb(0),
        None => VramNeed::Alone,
    }
}

/// What the runtime's host is to start for a model of the catalogue.
///
/// `quiet`: nothing else on the GPU can end during the load, so that its memory proves it.
pub(crate) fn runtime_spec(config: &Config, model: &Model, port: u16, quiet: bool) -> ModelSpec {
    let program = match &model.serving {
        Serving::LlamaServer { file } => RuntimeProgram::LlamaServer {
            program: config.runtime.llama_server.clone(),
            file: file.clone(),
            args: model.args.clone(),
        },
        Serving::Command { words, file, .. } => RuntimeProgram::Command {
            command: model.command_line(port).unwrap_or_else(|| words.clone()),
            file: file.clone(),
        },
    };
    ModelSpec {
        id: model.id.clone(),
        kind: match model.kind {
            ModelKind::Chat => rigor_runtime::ModelKind::Chat,
            ModelKind::Embedding => rigor_runtime::ModelKind::Embedding,
        },
        program,
        slots: model.slots,
        // rig.toml counts the context of all slots together, the runtime of each.
        context: model
            .context
            .map(|tokens| (tokens / model.slots.max(1)).max(1)),
        env: model.env.clone().into_iter().collect(),
        load_timeout: config.load_timeout(model),
        vram_mb: model.vram_mb.map(u64::from),
        prove_vram: quiet,
    }
}
