//! Placement: what the policy is shown, and what becomes of its decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Result;
use jiff::Timestamp;
use rigor_policy::placement::{self, Decision, Demand, Pending, View};
use rigor_queue::claim::{self, Candidate};
use rigor_queue::heartbeat::{Health, LlmBeat, Refusal};
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::record::Outcome;
use rigor_queue::rig::{Place, RIG_BATCH};
use rigor_queue::task::{Backoff, Class, TaskSpec, Vram, Work};
use rigor_queue::{records, submit};
use serde_json::json;

use crate::agents::Agents;
use crate::batch::record_of;
use crate::context::Context;
use crate::journal::Entry;

/// A load that nobody took for so long is withdrawn and decided anew, seconds.
const LOAD_EXPIRES_S: i64 = 600;

/// A load or unload task that is not over.
#[derive(Debug)]
struct Open {
    name: FileName,
    model: Option<String>,
    agents: Vec<String>,
    since: Instant,
    warned: bool,
    ours: bool,
}

/// What placement remembers between two decisions.
#[derive(Debug, Default)]
pub(crate) struct Placer {
    open: BTreeMap<TaskId, Open>,
    waiting_since: BTreeMap<String, Instant>,
    stranded: BTreeMap<String, String>,
    count: u64,
}

impl Placer {
    /// Takes from disk what an earlier brain had asked for.
    pub(crate) fn restore(&mut self, brain: &mut Context) -> Result<()> {
        brain.rig.prepare_batch(RIG_BATCH)?;
        brain.watch_batch(RIG_BATCH)?;
        let mut places: Vec<(Place<'_>, Vec<FileName>)> = Vec::new();
        let queue = Place::Queue(Class::Meta);
        places.push((queue, brain.rig.list(queue)?.names));
        let agents = brain.rig.subdirs(rigor_queue::lane::Lane::Processing)?;
        for agent in &agents {
            let place = Place::Processing(agent);
            places.push((place, brain.rig.list(place)?.names));
        }
        for (place, names) in places {
            for name in names {
                if let Ok(Some(spec)) = claim::peek(&brain.rig, place, &name) {
                    self.note(&name, &spec, false);
                }
            }
        }
        for name in brain.rig.list(Place::Retry(RIG_BATCH))?.names {
            self.failed(brain, name)?;
        }
        Ok(())
    }

    /// A meta task that appeared in the queue: an operator's, if it is not ours.
    pub(crate) fn appeared(&mut self, brain: &Context, name: &FileName) {
        if !self.open.contains_key(&name.id)
            && let Ok(Some(spec)) = claim::peek(&brain.rig, Place::Queue(Class::Meta), name)
        {
            self.note(name, &spec, false);
        }
    }

    fn note(&mut self, name: &FileName, spec: &TaskSpec, ours: bool) {
        let (model, agents) = match &spec.work {
            Work::LoadLlm {
                model, eligible, ..
            } => (Some(model.clone()), eligible.clone()),
            Work::UnloadLlm { agent } => (None, vec![agent.clone()]),
            Work::Command { .. } | Work::Prompt(_) | Work::Plan(_) => return,
        };
        let open = Open {
            name: *name,
            model,
            agents,
            since: Instant::now(),
            warned: false,
            ours,
        };
        self.open.insert(name.id, open);
    }

    /// A meta task completed.
    pub(crate) fn completed(&mut self, brain: &mut Context, name: &FileName) -> Result<()> {
        let open = self.open.remove(&name.id);
        if let Some(model) = open.and_then(|open| open.model)
            && let Some(record) = records::read(&brain.rig, RIG_BATCH, name.id, name.attempt)?
        {
            brain
                .measured
                .learn_load(&model, record.duration_ms as f64 / 1000.0);
        }
        Ok(())
    }

    /// A meta task failed: it is not tried again as it is, placement decides anew.
    pub(crate) fn failed(&mut self, brain: &mut Context, name: FileName) -> Result<()> {
        let open = self.open.remove(&name.id);
        let record = records::read(&brain.rig, RIG_BATCH, name.id, name.attempt)?;
        let (agent, reason) = match &record {
            Some(record) => (
                record.agent.as_str(),
                record.outcome.reason().unwrap_or("no reason"),
            ),
            None => ("an agent", "it left no record"),
        };
        let what = open
            .and_then(|open| open.model)
            .map_or("unload".to_owned(), |model| format!("load of {model}"));
        tracing::warn!(task = %name.id, "The {what} on {agent} failed: {reason}");
        claim::give_up(&brain.rig, RIG_BATCH, &name)?;
        Ok(())
    }

    /// Decides and acts.
    pub(crate) fn decide(
        &mut self,
        brain: &mut Context,
        agents: &Agents,
        now: Instant,
    ) -> Result<()> {
        let view = self.view(brain, agents, now);
        let mut stranded = BTreeSet::new();
        for decision in placement::decide(&view) {
            match decision {
                Decision::Load {
                    model,
                    count,
                    eligible,
                    reason,
                } => {
                    self.load(brain, &view, &model, count, eligible, &reason)?;
                }
                Decision::Unload { agent, reason } => self.unload(brain, &agent, &reason)?,
                Decision::Stranded { model, reason } => {
                    stranded.insert(model.clone());
                    if self.stranded.get(&model) != Some(&reason) {
                        let queued = view
                            .models
                            .iter()
                            .find(|demand| demand.model == model)
                            .map_or(0, |demand| demand.queued);
                        let message = format!(
                            "LLM tasks waiting ({queued}) for {model} but no agent can load it now: {reason}"
                        );
                        tracing::warn!("{message}");
                        brain.journal.write(
                            Entry::ResourceDecision,
                            &message,
                            json!({"model": model, "queued": queued, "reason": reason}),
                        );
                        self.stranded.insert(model, reason);
                    }
                }
            }
        }
        self.stranded.retain(|model, _| stranded.contains(model));
        self.withdraw(brain, &view)?;
        self.warn_untaken(brain, agents, now);
        Ok(())
    }

    /// When the age of an open load wants a look.
    pub(crate) fn due(&self, brain: &Context) -> Option<Instant> {
        let warn = brain.config.timing.load_warn;
        self.open
            .values()
            .filter(|open| !open.warned && open.model.is_some())
            .map(|open| open.since + warn)
            .min()
    }

    fn view(&mut self, brain: &mut Context, agents: &Agents, now: Instant) -> View {
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
        let mut scripts_queued = 0;
        let mut script_seconds = 0.0;
        for (shape, count) in shapes {
            let known = brain
                .shape(Class::Script, shape)
                .and_then(|info| brain.measured.get(&info.measured_as).copied());
            scripts_queued += count;
            script_seconds +=
                count as f64 * known.map_or(placement::TASK_SECONDS_PRIOR, |known| known.seconds);
        }
        View {
            models: demands,
            agents: self.agents_view(brain, agents, now),
            pending: self.pending(brain, agents),
            scripts_queued,
            script_seconds,
        }
    }

    fn agents_view(&self, brain: &Context, agents: &Agents, now: Instant) -> Vec<placement::Agent> {
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
                model_idle_seconds: agent
                    .model_idle_since
                    .map_or(0.0, |since| now.duration_since(since).as_secs_f64()),
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
    fn pending(&self, brain: &Context, agents: &Agents) -> Vec<Pending> {
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

    fn load(
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

    fn unload(&mut self, brain: &mut Context, agent: &str, reason: &str) -> Result<()> {
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

    fn submit(
        &mut self,
        brain: &mut Context,
        task: &str,
        work: Work,
        model: Option<String>,
        agents: Vec<String>,
    ) -> Result<()> {
        self.count += 1;
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
        self.note(&name, &spec, true);
        Ok(())
    }

    /// Takes back loads that nobody has taken and that nothing needs any more, or that expired.
    fn withdraw(&mut self, brain: &mut Context, view: &View) -> Result<()> {
        let mut over = Vec::new();
        for (id, open) in &self.open {
            let Some(model) = &open.model else { continue };
            let unneeded = open.ours && !view.models.iter().any(|demand| demand.model == *model);
            let expired =
                open.ours && open.since.elapsed() > Duration::from_secs(LOAD_EXPIRES_S as u64);
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
                held.cancel(&brain.rig)?;
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

    fn warn_untaken(&mut self, brain: &mut Context, agents: &Agents, now: Instant) {
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
