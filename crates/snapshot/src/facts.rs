//! What a plan is checked against of a rig: the same for `rigor check`, `rigor submit` and the
//! brain, so that what was accepted at submission is accepted when it is taken up.

use rigor_config::{Config, ModelKind};
use rigor_plan::{AgentFacts, ModelFacts, RigFacts};
use rigor_queue::presence;
use rigor_queue::rig::Rig;

/// As [`read`], and what each model needs of GPU memory: this reads the models' files.
pub fn read_with_needs(rig: &Rig, config: &Config) -> RigFacts {
    let mut facts = read(rig, config);
    let needs = crate::models::needs(rig, config);
    for (model, need) in facts.models.iter_mut().zip(needs) {
        model.vram = need.map(|need| (need.on_each_mb(), need.words()));
    }
    facts
}

/// The rig's agents, models and secrets. A GPU's memory is known once its agent has had a
/// heartbeat.
pub fn read(rig: &Rig, config: &Config) -> RigFacts {
    let budget = |agent: &str| {
        let heartbeat = presence::heartbeat(rig, agent).ok().flatten()?;
        heartbeat.gpu.map(|gpu| gpu.budget_mb)
    };
    let gpus = config.gpus.iter().map(|gpu| AgentFacts {
        name: gpu.name.clone(),
        gpu: true,
        vram_budget_mb: budget(&gpu.name),
    });
    let cpus = config.cpu_agents.iter().map(|agent| AgentFacts {
        name: agent.name.clone(),
        gpu: false,
        vram_budget_mb: None,
    });
    RigFacts {
        agents: gpus.chain(cpus).collect(),
        models: config
            .models
            .iter()
            .map(|model| ModelFacts {
                id: model.id.clone(),
                chat: model.kind == ModelKind::Chat,
                tier: Some(model.tier),
                gpus: model.split_gpu,
                vram: None,
            })
            .collect(),
        secrets: config.secrets.keys().cloned().collect(),
    }
}
