//! What becomes of a decision: load and unload tasks, and what is said about them.

use super::*;

impl Placer {
    pub(super) fn load(
        &mut self,
        brain: &mut Context,
        view: &View,
        model: &str,
        count: usize,
        eligible: Vec<String>,
        reason: &str,
    ) -> Result<()> {
        let queued = view
            .models
            .iter()
            .find(|demand| demand.model == model)
            .map_or(0, |demand| demand.queued);
        let hot = view
            .agents
            .iter()
            .filter(|agent| matches!(&agent.llm, LlmBeat::Hot { model: held, .. } if held == model))
            .count();
        let state = if hot == 0 {
            "no models loaded".to_owned()
        } else {
            format!("{model} is hot on {hot} only")
        };
        let message = format!(
            "LLM tasks waiting ({queued}) but {state} - inserting {count} load_llm {} ({}): {reason}",
            if count == 1 { "task" } else { "tasks" },
            eligible.join(", ")
        );
        tracing::info!("{message}");
        brain.journal.write(
            Entry::ResourceDecision,
            &message,
            json!({"model": model, "count": count, "eligible": eligible, "queued": queued, "reason": reason}),
        );
        let expires = Timestamp::now() + jiff::SignedDuration::from_secs(LOAD_EXPIRES_S);
        for _ in 0..count {
            let work = Work::LoadLlm {
                model: model.to_owned(),
                eligible: eligible.clone(),
                expires,
            };
            self.submit(
                brain,
                "load_llm",
                work,
                Some(model.to_owned()),
                eligible.clone(),
            )?;
        }
        Ok(())
    }

    pub(super) fn unload(&mut self, brain: &mut Context, agent: &str, reason: &str) -> Result<()> {
        let asked = self
            .open
            .values()
            .any(|open| open.model.is_none() && open.agents == [agent]);
        if asked {
            return Ok(());
        }
        let message = format!("Unloading the model of {agent}: {reason}");
        tracing::info!("{message}");
        brain.journal.write(
            Entry::ResourceDecision,
            &message,
            json!({"agent": agent, "reason": reason}),
        );
        let work = Work::UnloadLlm {
            agent: agent.to_owned(),
        };
        self.submit(brain, "unload_llm", work, None, vec![agent.to_owned()])
    }

    pub(super) fn submit(
        &mut self,
        brain: &mut Context,
        task: &str,
        work: Work,
        model: Option<String>,
        agents: Vec<String>,
    ) -> Result<()> {
        let sequence = brain.sequence.take(1)?;
        let item = format!("brain-{sequence}");
        let spec = TaskSpec {
            id: TaskId::derive(RIG_BATCH, task, Some(&item)),
            batch: RIG_BATCH.to_owned(),
            plan: RIG_BATCH.to_owned(),
            task: task.to_owned(),
            name: task.to_owned(),
            class: Class::Meta,
            work,
            item: None,
            priority: 5,
            cpus: 1,
            on: Vec::new(),
            model,
            min_tier: None,
            vram: Vram::default(),
            timeout_s: None,
            kill_if_silent_s: None,
            retries: 0,
            backoff: Backoff::default(),
            env: BTreeMap::new(),
            env_file: None,
            venv: None,
            conda: None,
            secrets: Vec::new(),
            workdir: None,
            requires: Vec::new(),
            produces: Vec::new(),
            plan_dir: brain.rig.root().to_owned(),
            batch_dir: brain.rig.runs_dir(),
            created: Timestamp::now(),
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
        Ok(())
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
            if (unneeded || expired) && brain.index(Class::Meta).contains(&open.name) {
                over.push((
                    *id,
                    open.name,
                    if expired {
                        "nobody took it"
                    } else {
                        "nothing needs it any more"
                    },
                ));
            }
        }
        for (id, name, why) in over {
            if let Candidate::Ready(held) = claim::candidate(&brain.rig, Class::Meta, &name)? {
                let record = record_of(
                    &held.spec,
                    &name,
                    Outcome::Cancelled {
                        reason: why.to_owned(),
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
            }
        }
        Ok(())
    }

    pub(super) fn warn_untaken(&mut self, brain: &mut Context, agents: &Agents, now: Instant) {
        let warn_after = brain.config.timing.load_warn;
        for (id, open) in &mut self.open {
            let age = now.duration_since(open.since);
            let queued = brain
                .queue
                .get(&Class::Meta)
                .is_some_and(|index| index.contains(&open.name));
            if open.warned || !queued || age < warn_after || open.model.is_none() {
                continue;
            }
            open.warned = true;
            let reasons: Vec<String> = open
                .agents
                .iter()
                .map(|name| match agents.get(name) {
                    Some(agent) if agent.alive => {
                        let beat = agent.heartbeat.as_ref();
                        let verdict = beat.and_then(|beat| beat.verdicts.get(&Class::Meta));
                        match (verdict, beat) {
                            (Some(verdict), _) => {
                                format!("{name} {} ({})", verdict.code.as_str(), verdict.detail)
                            }
                            (None, Some(beat)) => format!(
                                "{name} {}",
                                beat.health_reason
                                    .clone()
                                    .unwrap_or_else(|| beat.health.as_str().to_owned())
                            ),
                            (None, None) => format!("{name} has had no heartbeat"),
                        }
                    }
                    Some(_) => format!("{name} is not running"),
                    None => format!("{name} is not in rig.toml"),
                })
                .collect();
            let message = format!(
                "load_llm task available for {}s but agents [{}] still have no model: {}",
                age.as_secs(),
                open.agents.join(", "),
                reasons.join(", ")
            );
            tracing::warn!(task = %id, "{message}");
            brain.journal.write(
                Entry::LoadStale,
                &message,
                json!({"task_id": id, "model": open.model, "agents": open.agents}),
            );
        }
    }
}
