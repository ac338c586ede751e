//! What the policy is shown: demand by model, agents, loads that are under way.

use rigor_policy::fit::{self as policy_fit, Fit};
use rigor_queue::heartbeat::Heartbeat;

use super::*;
use crate::expand::ShapeInfo;
use crate::fit;

impl Placer {
    pub(super) fn view(
        &mut self,
        brain: &mut Context,
        agents: &Agents,
        upcoming: BTreeSet<String>,
        now: Instant,
    ) -> View {
        let known = fit::agents(brain, agents);
        let living: Vec<policy_fit::Agent> = known
            .iter()
            .filter(|agent| agents.get(&agent.name).is_some_and(|of| of.alive))
            .cloned()
            .collect();
        let never = |brain: &Context, info: &ShapeInfo, by: &[policy_fit::Agent]| {
            matches!(
                policy_fit::fit(&fit::of_shape(brain, info), by),
                Fit::Never(_)
            )
        };
        let mut models: BTreeMap<String, (usize, f64, bool)> = BTreeMap::new();
        let shapes: Vec<_> = brain.index(Class::Llm).counts().collect();
        for (shape, count) in shapes {
            let Some(info) = brain.shape(Class::Llm, shape) else {
                continue;
            };
            // What only agents that do not run may have gives nobody else a reason to load.
            if never(brain, &info, &known) || (!info.on.is_empty() && never(brain, &info, &living))
            {
                continue;
            }
            let Some(model) = info.model else { continue };
            let measured = brain.measured.get(&info.measured_as);
            let seconds = measured.map_or(placement::TASK_SECONDS_PRIOR, |known| known.seconds);
            let entry = models.entry(model).or_insert((0, 0.0, true));
            entry.0 += count;
            entry.1 += count as f64 * seconds;
            entry.2 &= measured.is_some();
        }
        self.waiting_since
            .retain(|model, _| models.contains_key(model));
        let demands: Vec<Demand> = models
            .into_iter()
            .map(|(model, (queued, seconds, measured))| {
                let since = *self.waiting_since.entry(model.clone()).or_insert(now);
                let served = agents.iter().any(|(_, agent)| {
                    agent.alive && agent.heartbeat.as_ref().is_some_and(|beat| {
                        beat.health == Health::Healthy && matches!(&beat.llm, LlmBeat::Hot { model: held, .. } if *held == model)
                    })
                });
                if served {
                    self.waiting_since.insert(model.clone(), now);
                }
                let entry = brain.config.model(&model).ok();
                let estimate = brain.catalogue.found(&model).estimate();
                let file_bytes = estimate.map_or(0, |estimate| estimate.weights_mb << 20);
                let load_prior = placement::LOAD_SECONDS_PRIOR
                    + file_bytes as f64 / placement::LOAD_BYTES_PER_SECOND_PRIOR;
                Demand {
                    queued,
                    task_seconds: seconds / queued.max(1) as f64,
                    measured,
                    slots: entry.map_or(1, |entry| entry.slots),
                    load_seconds: brain
                        .measured
                        .load(&model)
                        .map_or(load_prior, |known| known.seconds),
                    waiting_seconds: if served {
                        0.0
                    } else {
                        now.duration_since(since).as_secs_f64()
                    },
                    model,
                }
            })
            .collect();
        let shapes: Vec<_> = brain.index(Class::Script).counts().collect();
        self.short_since
            .retain(|shape, _| shapes.iter().any(|(queued, _)| queued == shape));
        let mut scripts_queued = 0;
        let mut script_seconds = 0.0;
        let mut scripts_waiting_seconds = 0.0;
        for (shape, count) in shapes {
            let info = brain.shape(Class::Script, shape);
            let known = info
                .as_ref()
                .and_then(|info| brain.measured.get(&info.measured_as).copied());
            // No memory is freed and no GPU kept for what no agent that runs can take.
            if info.is_some_and(|info| never(brain, &info, &living)) {
                continue;
            }
            if is_short_of_memory(agents, shape) {
                let since = *self.short_since.entry(shape).or_insert(now);
                let waits = now.duration_since(since).as_secs_f64();
                scripts_waiting_seconds = f64::max(scripts_waiting_seconds, waits);
            } else {
                self.short_since.remove(&shape);
            }
            scripts_queued += count;
            script_seconds +=
                count as f64 * known.map_or(placement::TASK_SECONDS_PRIOR, |known| known.seconds);
        }
        View {
            models: demands,
            agents: self.agents_view(brain, agents, now),
            pending: self.pending(brain, agents),
            upcoming,
            scripts_queued,
            script_seconds,
            scripts_waiting_seconds,
            splits: self.splits(brain, now),
        }
    }

    /// Loads that no agent shows in its heartbeat yet.
    pub(super) fn pending(&self, brain: &Context, agents: &Agents) -> Vec<Pending> {
        self.open
            .values()
            .filter_map(|open| {
                let model = open.model.clone()?;
                let claimed_by = brain
                    .processing
                    .iter()
                    .find(|(_, names)| names.iter().any(|name| name.id == open.name.id))
                    .map(|(agent, _)| agent);
                let shown = claimed_by
                    .and_then(|agent| agents.get(agent))
                    .is_some_and(|agent| {
                        agent.heartbeat.as_ref().is_some_and(|beat| {
                            matches!(beat.llm, LlmBeat::Loading { .. } | LlmBeat::Hot { .. })
                        })
                    });
                // One that nobody can take now heats no GPU, and must keep nobody else from it.
                let taken = claimed_by.is_some()
                    || open.agents.iter().any(|name| {
                        let agent = agents
                            .get(name)
                            .filter(|agent| agent.alive && agent.unwritten().is_none());
                        let beat = agent.and_then(|agent| agent.heartbeat.as_ref());
                        beat.is_some_and(|beat| takes_load(beat, &model, &open.agents))
                    });
                (taken && !shown).then_some(Pending {
                    model,
                    eligible: open.agents.clone(),
                })
            })
            .collect()
    }
}

/// Whether an agent can take a load now that these may take.
fn takes_load(beat: &Heartbeat, model: &str, eligible: &[String]) -> bool {
    let healthy = match beat.health {
        Health::Healthy => true,
        // What an operator asks of a paused agent by its name, it does.
        Health::Paused => eligible.len() == 1,
        Health::Constrained | Health::Draining | Health::Quarantined => false,
    };
    let failed = beat.failed_load(model);
    let backs_off = failed.is_some_and(|failed| failed.until > Timestamp::now());
    healthy && !backs_off
}

/// Every living agent that has judged these script tasks refuses them for want of memory, be it
/// for the model that it holds.
fn is_short_of_memory(agents: &Agents, shape: Shape) -> bool {
    let mut verdicts = agents
        .iter()
        .filter(|(_, agent)| agent.alive)
        .filter_map(|(_, agent)| agent.heartbeat.as_ref())
        .filter(|beat| beat.gpu.is_some())
        .map(|beat| beat.shapes.get(&shape).map(|verdict| verdict.code))
        // Those who cannot have it for other reasons will not have it sooner without their model.
        .filter(|code| *code != Some(Refusal::NoSuitableClass))
        .peekable();
    verdicts.peek().is_some()
        && verdicts.all(|code| matches!(code, Some(Refusal::VramShort | Refusal::HoldingModel)))
}
