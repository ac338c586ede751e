//! Placement: what the policy is shown, and what becomes of its decisions.

mod orders;
mod picture;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::Result;
use jiff::Timestamp;
use rigor_policy::placement::{self, Decision, Demand, Pending, View};
use rigor_queue::claim::{self, Candidate};
use rigor_queue::heartbeat::{Health, LlmBeat, Refusal};
use rigor_queue::name::{FileName, Shape, TaskId};
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
    expires: Option<Timestamp>,
}

/// What placement remembers between two decisions.
#[derive(Debug, Default)]
pub(crate) struct Placer {
    open: BTreeMap<TaskId, Open>,
    waiting_since: BTreeMap<String, Instant>,
    stranded: BTreeMap<String, String>,
    /// Shapes of script tasks that fit no GPU; said once.
    unfit: BTreeSet<Shape>,
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
                    self.note(&name, &spec);
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
        if let Some(open) = self.open.get_mut(&name.id) {
            // Queued again after its agent died.
            open.name = *name;
        } else if let Ok(Some(spec)) = claim::peek(&brain.rig, Place::Queue(Class::Meta), name) {
            self.note(name, &spec);
        }
    }

    /// Compares with what the lanes hold, in case a wake-up was lost.
    pub(crate) fn reconcile(&mut self, brain: &mut Context) -> Result<()> {
        for name in brain.rig.list(Place::Retry(RIG_BATCH))?.names {
            self.failed(brain, name)?;
        }
        let queued = brain.rig.list(Place::Queue(Class::Meta))?.names;
        let mut held = Vec::new();
        for agent in brain.rig.subdirs(rigor_queue::lane::Lane::Processing)? {
            held.extend(brain.rig.list(Place::Processing(&agent))?.names);
        }
        self.open.retain(|id, open| {
            let found = queued.iter().chain(&held).find(|name| name.id == *id);
            open.name = found.copied().unwrap_or(open.name);
            found.is_some()
        });
        Ok(())
    }

    fn note(&mut self, name: &FileName, spec: &TaskSpec) {
        let (model, agents, expires) = match &spec.work {
            Work::LoadLlm {
                model,
                eligible,
                expires,
            } => (Some(model.clone()), eligible.clone(), Some(*expires)),
            Work::UnloadLlm { agent } => (None, vec![agent.clone()], None),
            Work::Command { .. } | Work::Prompt(_) | Work::Plan(_) => return,
        };
        let open = Open {
            name: *name,
            model,
            agents,
            since: Instant::now(),
            warned: false,
            // An operator names the agent.
            ours: spec.on.is_empty(),
            expires,
        };
        self.open.insert(name.id, open);
    }

    /// A meta task completed.
    pub(crate) fn completed(&mut self, brain: &mut Context, name: &FileName) -> Result<()> {
        let open = self.open.remove(&name.id);
        if let Some(model) = open.and_then(|open| open.model)
            && let Some(record) = records::read(&brain.rig, RIG_BATCH, name.id, name.attempt)?
            && record.started.is_some()
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
            .filter(|open| {
                let index = brain.queue.get(&Class::Meta);
                index.is_some_and(|index| index.contains(&open.name))
            })
            .map(|open| open.since + warn)
            .min()
    }
}
