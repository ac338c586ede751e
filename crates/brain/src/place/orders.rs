//! What becomes of a decision: load and unload tasks, and what is said about them.

use super::*;

impl Placer {
    pub(super) fn load(
        &mut self,
        brain: &mut Context,
        view: &View,
        model: &str,
        eligible: Vec<String>,
        predicted: Predicted,
        reason: &str,
    ) -> Result<()> {
        let count = predicted.gpus - predicted.before;
        let demand = view.models.iter().find(|demand| demand.model == model);
        let queued = demand.map_or(0, |demand| demand.queued);
        let hot = view
            .agents
            .iter()
            .filter(|agent| matches!(&agent.llm, LlmBeat::Hot { model: held, .. } if held == model))
            .count();
        let others = view
            .agents
            .iter()
            .any(|agent| matches!(agent.llm, LlmBeat::Hot { .. }));
        let state = match hot {
            0 if others => format!("{model} not loaded"),
            0 => "no models loaded".to_owned(),
            hot => format!("{model} hot on {hot} only"),
        };
        let message = format!(
            "LLM tasks waiting ({queued}) but {state} - inserting {count} load_llm {} ({}): for {model}, {reason}",
            if count == 1 { "task" } else { "tasks" },
            eligible.join(", ")
        );
        tracing::info!("{message}");
        brain.journal.write(
            Entry::ResourceDecision,
            &message,
            json!({"model": model, "count": count, "eligible": eligible, "queued": queued, "reason": reason,
                   "task_seconds": demand.map(|demand| demand.task_seconds),
                   "measured": demand.is_some_and(|demand| demand.measured),
                   "slots": demand.map(|demand| demand.slots),
                   "load_seconds": demand.map(|demand| demand.load_seconds),
                   "predicted": predicted}),
        );
        let mut tasks = BTreeSet::new();
        let expires = Timestamp::now() + jiff::SignedDuration::from_secs(LOAD_EXPIRES_S);
        for _ in 0..count {
            let work = Work::LoadLlm {
                model: model.to_owned(),
                eligible: eligible.clone(),
                lenders: Vec::new(),
                expires,
            };
            tasks.insert(self.submit(
                brain,
                "load_llm",
                work,
                Some(model.to_owned()),
                eligible.clone(),
            )?);
        }
        let slots = demand.map_or(1, |demand| demand.slots);
        self.gains.asked(brain, model, slots, predicted, tasks);
        Ok(())
    }

    /// `next` is the model that it makes room for.
    pub(super) fn unload(
        &mut self,
        brain: &mut Context,
        view: &View,
        agent: &str,
        next: Option<&str>,
        reason: &str,
    ) -> Result<()> {
        let lent = view
            .agents
            .iter()
            .any(|of| of.name == agent && matches!(of.llm, LlmBeat::Lent { .. }));
        let asked = self
            .open
            .values()
            .any(|open| open.model.is_none() && open.agents == [agent]);
        if asked {
            return Ok(());
        }
        let message = match lent {
            true => format!("Giving back the GPU of {agent}: {reason}"),
            false => format!("Unloading the model of {agent}: {reason}"),
        };
        tracing::info!("{message}");
        brain.journal.write(
            Entry::ResourceDecision,
            &message,
            json!({"agent": agent, "next": next, "reason": reason}),
        );
        let work = Work::UnloadLlm {
            agent: agent.to_owned(),
            next: next.map(str::to_owned),
        };
        self.submit(brain, "unload_llm", work, None, vec![agent.to_owned()])?;
        Ok(())
    }

    pub(super) fn submit(
        &mut self,
        brain: &mut Context,
        task: &str,
        work: Work,
        model: Option<String>,
        agents: Vec<String>,
    ) -> Result<TaskId> {
        let sequence = brain.sequence.take(1)?;
        let item = format!("brain-{sequence}");
        let spec = TaskSpec {
            model,
            retries: 0,
            plan_dir: brain.rig.root().to_owned(),
            batch_dir: brain.rig.runs_dir(),
            ..TaskSpec::new(
                TaskId::derive(RIG_BATCH, task, Some(&item)),
                RIG_BATCH,
                task,
                Class::Meta,
                work,
            )
        };
        let name = FileName::first(spec.priority, sequence, spec.shape(), spec.id);
        submit::submit(
            &brain.rig,
            Place::Queue(Class::Meta),
            &name,
            &spec,
            brain.durability,
        )?;
        brain.journal.write(
            Entry::ResourceTask,
            &format!("Wrote {task} {}", name.id.short()),
            json!({"task_id": name.id, "task": task, "agents": agents}),
        );
        self.note(&name, &spec);
        Ok(name.id)
    }

    /// Takes back loads that nobody has taken and that nothing needs any more, or that expired.
    pub(super) fn withdraw(&mut self, brain: &mut Context, view: &View) -> Result<()> {
        let mut over = Vec::new();
        for (id, open) in &self.open {
            let Some(model) = &open.model else { continue };
            let unneeded = open.ours && !view.models.iter().any(|demand| demand.model == *model);
            let expired = open
                .expires
                .is_some_and(|expires| expires <= Timestamp::now());
            let why = if expired {
                "nobody took it".to_owned()
            } else if unneeded {
                "nothing needs it any more".to_owned()
            } else if open.ours && placement::is_misplaced(view, model, &open.agents) {
                format!(
                    "{} cannot take it now, another agent could",
                    open.agents.join(", ")
                )
            } else {
                continue;
            };
            if brain.index(Class::Meta).contains(&open.name) {
                over.push((*id, open.name, why));
            }
        }
        for (id, name, why) in over {
            if let Candidate::Ready(held) = claim::candidate(&brain.rig, Class::Meta, &name)? {
                let record = record_of(
                    &held.spec,
                    &name,
                    Outcome::Cancelled {
                        reason: why.clone(),
                    },
                );
                records::replace(&brain.rig, &record)?;
                held.cancel(&brain.rig, &name)?;
                let message = format!("Withdrew load_llm {}: {why}", name.id.short());
                tracing::info!("{message}");
                brain.journal.write(
                    Entry::ResourceTask,
                    &message,
                    json!({"task_id": id, "reason": why}),
                );
                self.open.remove(&id);
                self.gains.came_to_nothing(id, &why);
            }
        }
        Ok(())
    }

    /// Says of loads that nobody has taken, or that do not get ready, what is in their way, agent
    /// by agent.
    pub(super) fn warn_untaken(&mut self, brain: &mut Context, agents: &Agents, now: Instant) {
        let warn_after = brain.config.timing.load_warn;
        let stale_after = brain.config.timing.heartbeat_warn;
        for (id, open) in &mut self.open {
            let Some(model) = &open.model else { continue };
            let age = now.saturating_duration_since(open.since);
            if age < open.warned.map_or(warn_after, |said| said * 2) {
                continue;
            }
            open.warned = Some(age);
            let taken_by = brain
                .processing
                .iter()
                .find(|(_, names)| names.iter().any(|name| name.id == *id))
                .map(|(agent, _)| agent.clone());
            let named = taken_by.map_or_else(|| open.agents.clone(), |agent| vec![agent]);
            let reasons: Vec<String> = named
                .iter()
                .map(|name| {
                    let why = match agents.get(name) {
                        Some(agent) => no_model(agent, model, age, stale_after, now),
                        None => "is not in rig.toml".to_owned(),
                    };
                    format!("{name} {why}")
                })
                .collect();
            let message = format!(
                "load_llm task available for {}s but agents [{}] still have no model: {}",
                age.as_secs(),
                named.join(", "),
                reasons.join(", ")
            );
            tracing::warn!(task = %id, "{message}");
            brain.journal.write(
                Entry::LoadStale,
                &message,
                json!({"task_id": id, "model": open.model, "agents": named, "reasons": reasons}),
            );
        }
    }
}

/// Why an agent has not got a model that was asked for.
fn no_model(
    agent: &crate::agents::Agent,
    model: &str,
    asked: Duration,
    stale_after: Duration,
    now: Instant,
) -> String {
    if !agent.alive {
        return "is not running".to_owned();
    }
    let age = agent.age(now);
    if age >= stale_after {
        return format!("heartbeat {}s old", age.as_secs());
    }
    if let Some(why) = agent.unwritten() {
        return why;
    }
    let Some(beat) = &agent.heartbeat else {
        return "has had no heartbeat".to_owned();
    };
    match &beat.llm {
        LlmBeat::Loading {
            model: held, since, ..
        } if held == model => {
            let loading = Timestamp::now().duration_since(*since).as_secs().max(0);
            // The two clocks need not agree: it cannot load for longer than it was asked to.
            return format!("loading for {}s", loading.min(asked.as_secs() as i64));
        }
        _ => {}
    }
    if let Some(failed) = beat.failed_load(model) {
        return format!("failed to load it: {}", failed.cause);
    }
    if let Some(verdict) = beat.verdicts.get(&Class::Meta) {
        return format!("{} ({})", verdict.code.as_str(), verdict.detail);
    }
    match (&beat.health_reason, beat.llm.model()) {
        (Some(reason), _) => reason.clone(),
        (None, Some(held)) => format!("{} with {held}", beat.llm.as_str()),
        (None, None) => beat.health.as_str().to_owned(),
    }
}
