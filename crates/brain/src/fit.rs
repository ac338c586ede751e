//! What no agent of this rig can ever run: found when a batch opens, not when its tasks have
//! waited for hours.

use std::collections::{BTreeMap, BTreeSet};

use rigor_plan::PlanTask;
use rigor_policy::fit::{self, Fit, ModelNeed, Needs};
use rigor_queue::task::{Class, Vram};
use serde_json::json;

use crate::agents::Agents;
use crate::batch::Batch;
use crate::context::Context;
use crate::expand::ShapeInfo;
use crate::graph::Phase;

/// The classes that agents run.
const CLASSES: [Class; 3] = [Class::Llm, Class::Script, Class::Cpu];

/// Tasks of plans of which it was said that no agent can run them.
#[derive(Debug, Default)]
pub(crate) struct Unfit {
    said: BTreeSet<(String, String)>,
}

impl Unfit {
    /// Looks at what the batches still have to do, and at what is queued.
    pub(crate) fn look(
        &mut self,
        brain: &mut Context,
        batches: &BTreeMap<String, Batch>,
        agents: &Agents,
    ) {
        let known = self::agents(brain, agents);
        self.said.retain(|(batch, _)| batches.contains_key(batch));
        for batch in batches.values() {
            for (task, node) in batch.plan.tasks.iter().zip(batch.graph.nodes()) {
                let counts = node.counts;
                let (open, count) = match &node.phase {
                    Phase::Unexpanded if task.foreach.is_none() => (true, "the task".to_owned()),
                    Phase::Unexpanded => (true, "all tasks".to_owned()),
                    Phase::Expanded => match counts.waiting + counts.released + counts.retry {
                        0 => (false, String::new()),
                        1 => (true, "1 task".to_owned()),
                        open => (true, format!("{open} tasks")),
                    },
                    Phase::Broken(_) | Phase::Cancelled(_) => (false, String::new()),
                };
                let key = (batch.id.clone(), task.id.clone());
                if !open || self.said.contains(&key) {
                    continue;
                }
                let reason = match of_plan(brain, &batch.spec().plan, task) {
                    Ok(needs) => match fit::fit(&needs, &known) {
                        Fit::Never(reason) => reason,
                        Fit::Fits | Fit::NotKnown => continue,
                    },
                    Err(reason) => reason,
                };
                let message = format!(
                    "No agent can ever run {} ({count}) of {}: {reason}. Change its plan or rig.toml and submit again, or end the batch: rigor cancel {}",
                    task.id, batch.id, batch.id
                );
                tracing::warn!(batch = %batch.id, "{message}");
                let name = format!("{}-{}-unfit", batch.id, task.id);
                brain.escalate(
                    &name,
                    &message,
                    json!({"batch": batch.id, "task": task.id, "class": task.class, "reason": reason}),
                );
                self.said.insert(key);
            }
        }
        brain.never = queued(brain, &known);
    }
}

/// The agents of rig.toml, as far as they have told of themselves.
pub(crate) fn agents(brain: &Context, agents: &Agents) -> Vec<fit::Agent> {
    let budget = |name: &str| {
        let beat = agents.get(name)?.heartbeat.as_ref()?;
        Some(beat.gpu.as_ref()?.budget_mb)
    };
    let gpus = brain.config.gpus.iter().map(|gpu| (&gpu.name, true));
    let others = brain
        .config
        .cpu_agents
        .iter()
        .map(|agent| (&agent.name, false));
    gpus.chain(others)
        .map(|(name, gpu)| fit::Agent {
            name: name.clone(),
            gpu,
            budget_mb: budget(name),
            cpu_slots: brain.config.cpu_slots(name),
        })
        .collect()
}

/// What queued tasks of a shape need.
pub(crate) fn of_shape(brain: &Context, info: &ShapeInfo) -> Needs {
    // Without the margin: where only that does not fit, an agent runs it alone.
    let peak = || brain.measured.get(&info.measured_as)?.vram_mb;
    let vram_mb = match info.vram {
        Vram::Fixed { mb } => Some(mb),
        Vram::Infer => peak(),
        Vram::Default { estimate_mb } => peak().or(estimate_mb),
    };
    let model = info.model.as_ref().map(|id| {
        let known = brain.config.model(id).ok();
        let need = known.and_then(|model| brain.model_need(model));
        ModelNeed {
            id: id.clone(),
            on_each_mb: need.as_ref().map(|need| need.on_each_mb()),
            gpus: known.map_or(1, |model| model.split_gpu),
            aside: need.map(|need| need.aside()).unwrap_or_default(),
        }
    });
    Needs {
        class: info.class,
        cpus: info.cpus,
        vram_mb,
        model,
        on: info.on.clone(),
    }
}

/// Queued tasks that an agent could take, if it were idle, by class.
pub(crate) fn could_take(brain: &mut Context, agent: &fit::Agent) -> BTreeMap<Class, usize> {
    let mut found = BTreeMap::new();
    for class in CLASSES {
        let shapes: Vec<_> = brain.index(class).counts().collect();
        for (shape, count) in shapes {
            let Some(info) = brain.shape(class, shape) else {
                continue;
            };
            let needs = of_shape(brain, &info);
            if !matches!(fit::fit(&needs, std::slice::from_ref(agent)), Fit::Never(_)) {
                *found.entry(class).or_default() += count;
            }
        }
    }
    found
}

/// Queued shapes that no agent can ever run.
fn queued(brain: &mut Context, known: &[fit::Agent]) -> BTreeMap<rigor_queue::name::Shape, String> {
    let mut never = BTreeMap::new();
    for class in CLASSES {
        let shapes: Vec<_> = brain.index(class).counts().collect();
        for (shape, _) in shapes {
            let Some(info) = brain.shape(class, shape) else {
                continue;
            };
            if let Fit::Never(reason) = fit::fit(&of_shape(brain, &info), known) {
                never.insert(shape, reason);
            }
        }
    }
    never
}

/// What the tasks of a plan's task will need; the error says why they cannot be made.
fn of_plan(brain: &Context, plan: &str, task: &PlanTask) -> Result<Needs, String> {
    let info = ShapeInfo {
        class: task.class,
        model: brain.model_for(task)?,
        measured_as: format!("{plan}/{}", task.id),
        vram: task.vram,
        cpus: task.cpus,
        on: task.on.clone(),
    };
    Ok(of_shape(brain, &info))
}
