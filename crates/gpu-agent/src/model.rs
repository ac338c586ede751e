//! A model of the catalogue: what it needs, and how it is served.

use std::collections::HashMap;
use std::time::Instant;

use rigor_config::{Config, Model, ModelKind, Serving};
use rigor_models::{Catalogue, Found, Measurements};
use rigor_policy::admission::VramNeed;
use rigor_runtime::{ModelSpec, RuntimeProgram};

/// What is known of the memory that models take.
#[derive(Debug)]
pub(crate) struct ModelMemory {
    /// As seen here, MB.
    own: HashMap<String, u64>,
    /// What did not suffice for a load, and 1 more, MB; until one that is seen.
    raised: HashMap<String, u64>,
    /// What the GPU has for tasks and models, MB.
    budget_mb: u64,
    /// What one of them can have of that while others use what they use, MB.
    most_mb: u64,
    catalogue: Catalogue,
    gathered: Measurements,
}

impl Default for ModelMemory {
    fn default() -> ModelMemory {
        ModelMemory {
            own: HashMap::new(),
            raised: HashMap::new(),
            budget_mb: u64::MAX,
            most_mb: u64::MAX,
            catalogue: Catalogue::default(),
            gathered: Measurements::default(),
        }
    }
}

impl ModelMemory {
    /// A model was seen to take so many MB.
    pub(crate) fn insert(&mut self, model: String, mb: u64) {
        self.raised.remove(&model);
        self.own.insert(model, mb);
    }

    /// A load ran out of memory with less than so many MB.
    pub(crate) fn raise(&mut self, model: &str, mb: u64) {
        let raised = self.raised.entry(model.to_owned()).or_insert(mb);
        *raised = (*raised).max(mb);
    }

    /// What the GPU has for tasks and models, and what one of them can have of it at most.
    pub(crate) fn bound(&mut self, budget_mb: u64, most_mb: u64) {
        (self.budget_mb, self.most_mb) = (budget_mb, most_mb);
    }

    /// Takes what the brain has gathered from all agents.
    pub(crate) fn gathered(&mut self, gathered: &Measurements) {
        self.gathered = gathered.clone();
    }

    /// Looks, now and then, whether models' files have changed.
    pub(crate) fn refresh(&mut self, config: &Config, now: Instant) {
        self.catalogue.refresh(&config.models, now);
    }
}

/// What a model needs of the memory of all its GPUs together: as seen here, else by an agent that
/// served it alike, else as configured, else as its files say.
pub(crate) fn model_need(config: &Config, memory: &ModelMemory, model: &str) -> VramNeed {
    // One that is in no catalogue is claimed, so that the load fails by name.
    let Ok(model) = config.model(model) else {
        return VramNeed::Mb(0);
    };
    // It takes the share of the GPU that is chosen for it and not what its model needs, so that a
    // measurement of the last share says nothing of the next.
    if matches!(model.serving, Serving::Vllm { .. }) && model.vram_mb.is_none() {
        return VramNeed::Alone;
    }
    let own = memory.own.get(&model.id).copied();
    let measured = own.or_else(|| memory.gathered.vram_mb(model));
    match memory.catalogue.need(model, measured) {
        Some(need) => {
            // All that it can have is enough to try it again, or else it never would be.
            let raised = memory.raised.get(&model.id);
            let raised_mb = raised.map_or(0, |mb| (*mb).min(memory.most_mb));
            let mb = need.mb.max(raised_mb);
            // It was loaded with that, and what others use has grown a little since: alone it has
            // all there is.
            let was_here = own.is_some() && model.split_gpu == 1;
            if was_here && mb > memory.most_mb && mb <= memory.budget_mb {
                VramNeed::Alone
            } else {
                VramNeed::Mb(mb)
            }
        }
        // Likewise one whose file cannot be used.
        None if matches!(memory.catalogue.found(&model.id), Found::Problem(_)) => VramNeed::Mb(0),
        None => VramNeed::Alone,
    }
}

/// The models whose runtimes an agent takes over from its predecessor, as it would start them: on
/// its own GPU alone.
pub(crate) fn adoptable(config: &Config, port: u16) -> Vec<ModelSpec> {
    let models = config.models.iter().filter(|model| model.split_gpu == 1);
    models
        .map(|model| runtime_spec(config, model, port, None, true))
        .collect()
}

/// The memory of the GPU that a model is to be loaded on; of several, of the smallest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// All of it, MiB.
    pub(crate) total_mb: u64,
    /// What nobody uses now, MiB.
    pub(crate) free_mb: u64,
    /// The share that tasks may use, 0 to 1.
    pub(crate) share: f64,
}

/// The share of each GPU's memory that vLLM is told to take, which it takes at once and whole. What
/// rig.toml promises the ledger for the model, spread over its GPUs; without that the share that
/// tasks may use, as it then has the GPU alone, but not more than is free: vLLM refuses to start
/// with less free than its share. A few thousandths less, as it counts what its start itself takes.
fn memory_share(vram_mb: Option<u32>, gpus: u32, room: Room) -> f64 {
    const MARGIN: f64 = 0.01;
    let of_total = |mb: f64| mb / (room.total_mb.max(1) as f64);
    let share = match vram_mb {
        Some(mb) => of_total(f64::from(mb) / f64::from(gpus.max(1))),
        None => room.share.min(of_total(room.free_mb as f64) - MARGIN),
    };
    (share * 1000.0).floor().clamp(1.0, 1000.0) / 1000.0
}

/// What the runtime's host is to start for a model of the catalogue, on the agent's own GPU alone.
///
/// `room`: where the GPU can be read.
/// `quiet`: nothing else on the GPU can end during the load, so that its memory proves it.
pub(crate) fn runtime_spec(
    config: &Config,
    model: &Model,
    port: u16,
    room: Option<Room>,
    quiet: bool,
) -> ModelSpec {
    let program = match &model.serving {
        Serving::LlamaServer { file } => RuntimeProgram::LlamaServer {
            program: config.runtime.llama_server.clone(),
            file: file.clone(),
            args: model.args.clone(),
        },
        Serving::Ollama { reference } => RuntimeProgram::Ollama {
            program: config.runtime.ollama.clone(),
            reference: reference.clone(),
        },
        Serving::Vllm { reference } => RuntimeProgram::Vllm {
            program: config.runtime.vllm.clone(),
            reference: reference.clone(),
            memory_share: room.map(|room| memory_share(model.vram_mb, model.split_gpu, room)),
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
        more_gpus: Vec::new(),
        gpu_indices: Vec::new(),
        vram_mb: model.vram_mb.map(u64::from),
        prove_vram: quiet,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_was_loaded_here_can_be_loaded_again() {
        let text = "[rig]\nname = \"r\"\n[[model]]\nid = \"m\"\nruntime = \"command\"\ncommand = \"true {PORT}\"\n";
        let config = Config::parse(text, std::path::Path::new("/rig/rig.toml")).unwrap();
        let mut memory = ModelMemory::default();
        memory.bound(4000, 3900);
        let need = |memory: &ModelMemory| model_need(&config, memory, "m");
        assert_eq!(need(&memory), VramNeed::Alone, "not known");
        memory.insert("m".into(), 3000);
        assert_eq!(need(&memory), VramNeed::Mb(3000));
        memory.insert("m".into(), 3950);
        assert_eq!(need(&memory), VramNeed::Alone, "it had so much here");
        memory.insert("m".into(), 4001);
        assert_eq!(need(&memory), VramNeed::Mb(4001), "more than it may have");

        memory.insert("m".into(), 3000);
        memory.raise("m", 5000);
        assert_eq!(need(&memory), VramNeed::Mb(3900), "all that it can have");
        memory.bound(4000, 3800);
        assert_eq!(need(&memory), VramNeed::Mb(3800), "others use more now");
        memory.insert("m".into(), 3100);
        assert_eq!(need(&memory), VramNeed::Mb(3100), "forgotten with a load");
    }
}
