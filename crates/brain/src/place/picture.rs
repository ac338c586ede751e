//! What the policy is shown: demand by model, agents, loads that are under way.

use super::*;

impl Placer {
    pub(super) fn view(&mut self, brain: &mut Context, agents: &Agents, now: Instant) -> View {
        let mut models: BTreeMap<String, (usize, f64, bool)> = BTreeMap::new();
        let shapes: Vec<_> = brain.index(Class::Llm).counts().collect();
        for (shape, count) in shapes {
            let Some(info) = brain.shape(Class::Llm, shape) else {
                continue;
            };
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
                        matches!(&beat.llm, LlmBeat::Hot { model: held, .. } if *held == model)
                    })
                });
                if served {
                    self.waiting_since.insert(model.clone(), now);
                }
                let entry = brain.config.model(&model).ok();
                let file_bytes = entry
                    .and_then(|entry| entry.file())
                    .and_then(|file| std::fs::metadata(file).ok())
                    .map_or(0, |meta| meta.len());
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
        let largest = agents
            .iter()
            .filter_map(|(name, agent)| {
                let gpu = agent.heartbeat.as_ref()?.gpu.as_ref()?;
                Some((gpu.budget_mb, name.clone()))
            })
            .max();
        let mut scripts_queued = 0;
        let mut script_seconds = 0.0;
        for (shape, count) in shapes {
            let info = brain.shape(Class::Script, shape);
            let known = info
                .as_ref()
                .and_then(|info| brain.measured.get(&info.measured_as).copied());
            let need = info.as_ref().and_then(|info| info.fixed_mb);
            if let (Some(need), Some((most, agent))) = (need, &largest)
                && need > *most
            {
                // No memory is freed for what fits nowhere; and it will wait for ever.
                self.warn_unfit(shape, count, need, *most, agent);
                continue;
            }
            scripts_queued += count;
            script_seconds +=
                count as f64 * known.map_or(placement::TASK_SECONDS_PRIOR, |known| known.seconds);
        }
        View {
            models: demands,
            agents: self.agents_view(brain, agents),
            pending: self.pending(brain, agents),
            scripts_queued,
            script_seconds,
        }
    }

    fn warn_unfit(&mut self, shape: Shape, count: usize, need_mb: u64, most_mb: u64, agent: &str) {
        if self.unfit.insert(shape) {
            tracing::warn!(
                "{count} script tasks need {need_mb}MB each, the largest budget is {most_mb}MB on {agent}: no agent can ever run them. Lower vram_estimate_mb, or end the batch: rigor cancel"
            );
        }
    }

    pub(super) fn agents_view(&self, brain: &Context, agents: &Agents) -> Vec<placement::Agent> {
        let wall = Timestamp::now();
        let mut views = Vec::new();
        for gpu in &brain.config.gpus {
            let Some(agent) = agents.get(&gpu.name) else {
                continue;
            };
            let beat = agent.heartbeat.as_ref();
            let llm = beat.map_or(LlmBeat::Cold, |beat| beat.llm.clone());
            let backing_off = match &llm {
                LlmBeat::Failed { model, until, .. } if *until > wall => Some(model.clone()),
                _ => None,
            };
            let budget = beat
                .and_then(|beat| beat.gpu.as_ref())
                .map(|gpu| gpu.budget_mb);
            let cannot = brain
                .config
                .models
                .iter()
                .filter_map(|model| {
                    let need = u64::from(model.vram_mb?);
                    let have = budget?;
                    (need > have).then(|| {
                        (
                            model.id.clone(),
                            format!("vram_short (needs {need}MB, budget {have}MB)"),
                        )
                    })
                })
                .collect();
            let blocked = |beat: &rigor_queue::heartbeat::Heartbeat| {
                beat.verdicts.get(&Class::Script).is_some_and(|verdict| {
                    matches!(verdict.code, Refusal::VramShort | Refusal::HoldingModel)
                })
            };
            views.push(placement::Agent {
                name: gpu.name.clone(),
                // One that has not spoken yet cannot be counted on.
                alive: agent.alive && beat.is_some(),
                health: beat.map_or(Health::Healthy, |beat| beat.health),
                health_reason: beat.and_then(|beat| beat.health_reason.clone()),
                llm_running: beat.map_or(0, |beat| beat.llm_slots.0),
                scripts_blocked: beat.is_some_and(blocked),
                cannot,
                backing_off,
                llm,
            });
        }
        views
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
                (!shown).then_some(Pending { model })
            })
            .collect()
    }
}
