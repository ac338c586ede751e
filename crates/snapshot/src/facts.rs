//! What a plan is checked against of a rig: the same for `rigor check`, `rigor submit` and the
//! brain, so that what was accepted at submission is accepted when it is taken up.

use rigor_config::{Config, Gpu, ModelKind};
use rigor_models::Found;
use rigor_plan::{AgentFacts, ModelFacts, RigFacts};
use rigor_queue::presence;
use rigor_queue::rig::Rig;

/// As [`read`], and what each model needs of GPU memory: this reads the models' files. `budget_mb`
/// tells what tasks may use of the GPU of an agent that has never run.
pub fn read_with_needs(
    rig: &Rig,
    config: &Config,
    budget_mb: impl Fn(&Gpu) -> Option<u64>,
) -> RigFacts {
    let mut facts = read(rig, config);
    // The GPUs come first, in rig.toml's order.
    for (agent, gpu) in facts.agents.iter_mut().zip(&config.gpus) {
        agent.vram_budget_mb = agent.vram_budget_mb.or_else(|| budget_mb(gpu));
    }
    let needs = crate::models::needs(rig, config);
    for (model, (need, found)) in facts.models.iter_mut().zip(needs) {
        model.vram = need.map(|need| (need.on_each_mb(), need.words()));
        model.problem = match found {
            Found::Problem(problem) => Some(problem.to_string()),
            Found::Estimate(_) | Found::Nothing => None,
        };
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
                problem: None,
            })
            .collect(),
        secrets: config.secrets.keys().cloned().collect(),
    }
}
