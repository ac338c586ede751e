//! Agents as placement sees them: their heartbeats, and what the brain remembers of each.
//!
//! Ages are by this process's own clock, from when it first saw a thing: clocks need not agree, and
//! after a restart of the brain every age begins anew.

use rigor_policy::placement::ModelSeconds;
use rigor_queue::heartbeat::Heartbeat;

use super::*;

/// What was seen of agents, and since when.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The model that each agent holds, and since when it says so.
    held: BTreeMap<String, (String, Timestamp, Instant)>,
    /// Tasks that were claimed.
    claimed: BTreeMap<TaskId, Instant>,
}

impl Seen {
    /// Takes in what is there now, and forgets what is not.
    fn look(&mut self, brain: &Context, agents: &Agents, now: Instant) {
        let running: BTreeSet<TaskId> = brain
            .processing
            .values()
            .flatten()
            .map(|name| name.id)
            .collect();
        self.claimed.retain(|id, _| running.contains(id));
        for id in running {
            self.claimed.entry(id).or_insert(now);
        }
        let mut held = BTreeMap::new();
        for (name, agent) in agents.iter() {
            let Some(LlmBeat::Hot { model, since, .. }) =
                agent.heartbeat.as_ref().map(|beat| &beat.llm)
            else {
                continue;
            };
            let known = self.held.remove(name);
            let known = known.filter(|(of, from, _)| of == model && from == since);
            let at = known.map_or(now, |(_, _, at)| at);
            held.insert(name.clone(), (model.clone(), *since, at));
        }
        self.held = held;
    }

    fn held_seconds(&self, agent: &str, now: Instant) -> f64 {
        let known = self.held.get(agent);
        known.map_or(0.0, |(_, _, at)| {
            now.saturating_duration_since(*at).as_secs_f64()
        })
    }

    /// Seconds until the scripts that an agent runs are expected to have ended; 0: it runs none.
    fn scripts_end_in(&self, brain: &Context, agent: &str, now: Instant) -> f64 {
        let claimed = brain.processing.get(agent).into_iter().flatten();
        let left = claimed.filter_map(|name| {
            let info = brain.known_shape(name.shape)?;
            let since = self.claimed.get(&name.id)?;
            let measured = brain.measured.get(&info.measured_as);
            let takes = measured.map_or(placement::TASK_SECONDS_PRIOR, |known| known.seconds);
            let ran = now.saturating_duration_since(*since).as_secs_f64();
            (info.class == Class::Script).then(|| placement::seconds_left(takes, ran))
        });
        left.fold(0.0, f64::max)
    }
}

impl Placer {
    pub(super) fn agents_view(
        &mut self,
        brain: &Context,
        agents: &Agents,
        now: Instant,
    ) -> Vec<placement::Agent> {
        let wall = Timestamp::now();
        self.seen.look(brain, agents, now);
        self.failures.look(agents, now, wall);
        let mut views = Vec::new();
        for gpu in &brain.config.gpus {
            let Some(agent) = agents.get(&gpu.name) else {
                continue;
            };
            let beat = agent.heartbeat.as_ref();
            let unwritten = agent.unwritten();
            let llm = beat.map_or(LlmBeat::Cold, |beat| beat.llm.clone());
            let told = beat.map_or_else(Vec::new, Heartbeat::failed_loads);
            let reading = beat.and_then(|beat| beat.gpu.as_ref());
            let cannot = brain
                .config
                .models
                .iter()
                .filter_map(|model| {
                    let needed = brain.model_need(model)?;
                    let need = needed.on_each_mb();
                    let have = reading?.budget_mb;
                    (need > have).then(|| {
                        (
                            model.id.clone(),
                            format!(
                                "vram_short (needs {need}MB{}, budget {have}MB)",
                                needed.aside()
                            ),
                        )
                    })
                })
                .collect();
            let blocked = |beat: &Heartbeat| {
                beat.verdicts.get(&Class::Script).is_some_and(|verdict| {
                    matches!(verdict.code, Refusal::VramShort | Refusal::HoldingModel)
                })
            };
            let measured = brain.config.models.iter().filter_map(|model| {
                let known = brain.measured.load_on(&model.id, &gpu.name)?;
                Some(ModelSeconds {
                    model: model.id.clone(),
                    seconds: known.seconds,
                })
            });
            let scripts_end_in = self.seen.scripts_end_in(brain, &gpu.name, now);
            let room_in_seconds = brain
                .config
                .models
                .iter()
                .filter(|model| {
                    let have = reading.map(|gpu| gpu.available_mb);
                    let need = brain.model_need(model).map(|need| need.on_each_mb());
                    scripts_end_in > 0.0 && llm == LlmBeat::Cold && need > have && have.is_some()
                })
                .map(|model| ModelSeconds {
                    model: model.id.clone(),
                    seconds: scripts_end_in,
                })
                .collect();
            views.push(placement::Agent {
                name: gpu.name.clone(),
                // One that has not spoken yet cannot be counted on.
                alive: agent.alive && beat.is_some(),
                health: match beat {
                    _ if unwritten.is_some() => Health::Quarantined,
                    Some(beat) => beat.health,
                    None => Health::Healthy,
                },
                health_reason: unwritten.or_else(|| beat.and_then(ailment)),
                held_seconds: self.seen.held_seconds(&gpu.name, now),
                llm_running: beat.map_or(0, |beat| beat.llm_slots.0),
                scripts_blocked: beat.is_some_and(blocked),
                cannot,
                failed: self.failures.of(&gpu.name, &told, now, wall),
                load_seconds: measured.collect(),
                room_in_seconds,
                llm,
            });
        }
        views
    }
}

/// Why an agent is not healthy, with the code: `thermal (84C >= 80C)`.
fn ailment(beat: &Heartbeat) -> Option<String> {
    let reason = beat.health_reason.clone()?;
    let code = beat
        .verdicts
        .values()
        .chain(&beat.idle)
        .map(|verdict| verdict.code)
        .find(|code| matches!(code, Refusal::Thermal | Refusal::Power));
    Some(match (beat.health, code) {
        (Health::Constrained, Some(code)) => format!("{} ({reason})", code.as_str()),
        (Health::Constrained | Health::Quarantined, _) => {
            format!("{} ({reason})", beat.health.as_str())
        }
        (Health::Healthy | Health::Paused | Health::Draining, _) => reason,
    })
}
