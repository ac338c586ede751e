//! Placement: what the policy is shown, and what becomes of its decisions.

mod failures;
mod gains;
mod orders;
mod picture;
mod seen;
mod split;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Result;
use jiff::Timestamp;
use rigor_policy::placement::{self, Decision, Demand, Pending, Predicted, View};
use rigor_queue::claim::{self, Candidate};
use rigor_queue::heartbeat::{Health, LlmBeat, Refusal};
use rigor_queue::name::{FileName, Shape, TaskId};
use rigor_queue::outlook::{AskedLoad, ModelOutlook};
use rigor_queue::record::{FailureKind, Outcome};
use rigor_queue::rig::{Place, RIG_BATCH};
use rigor_queue::task::{Class, TaskSpec, Work};
use rigor_queue::{records, submit};
use serde_json::json;

use crate::agents::Agents;
use crate::batch::record_of;
use crate::context::Context;
use crate::journal::Entry;

use failures::Failures;
use gains::Gains;
use seen::Seen;
use split::Lends;

/// A load that nobody took for so long is withdrawn and decided anew, seconds.
const LOAD_EXPIRES_S: i64 = 600;

/// A load or unload task that is not over.
#[derive(Debug)]
struct Open {
    name: FileName,
    model: Option<String>,
    agents: Vec<String>,
    since: Instant,
    since_wall: Timestamp,
    /// That it is not there yet was said, at this age; again at twice that.
    warned: Option<Duration>,
    ours: bool,
    expires: Option<Timestamp>,
}

/// What placement remembers between two decisions.
#[derive(Debug, Default)]
pub(crate) struct Placer {
    open: BTreeMap<TaskId, Open>,
    waiting_since: BTreeMap<String, Instant>,
    /// Since when every agent refuses script tasks of a shape for want of memory.
    short_since: BTreeMap<Shape, Instant>,
    /// Models that nobody can load: the gist of what was said of each.
    stranded: BTreeMap<String, String>,
    /// What was decided last about each model that tasks wait for.
    verdicts: Vec<Verdict>,
    failures: Failures,
    gains: Gains,
    seen: Seen,
    lends: Lends,
}

/// What was decided about a model.
#[derive(Debug)]
struct Verdict {
    model: String,
    queued: usize,
    reason: String,
}

impl Placer {
    /// Takes from disk what an earlier brain had asked for.
    pub(crate) fn restore(&mut self, brain: &mut Context) -> Result<()> {
        brain.rig.prepare_batch(RIG_BATCH)?;
        brain.watch_batch(RIG_BATCH);
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
        self.lends.retain(|id| {
            queued
                .iter()
                .chain(&held)
                .find(|name| name.id == id)
                .copied()
        });
        Ok(())
    }

    fn note(&mut self, name: &FileName, spec: &TaskSpec) {
        let (model, agents, expires) = match &spec.work {
            Work::LoadLlm {
                model,
                eligible,
                expires,
                ..
            } => (Some(model.clone()), eligible.clone(), Some(*expires)),
            Work::UnloadLlm { agent, .. } => (None, vec![agent.clone()], None),
            work @ Work::LendGpu { .. } => return self.lends.note(name, work),
            Work::Command { .. } | Work::Prompt(_) | Work::Plan(_) => return,
        };
        let open = Open {
            name: *name,
            model,
            agents,
            since: Instant::now(),
            since_wall: Timestamp::now(),
            warned: None,
            // An operator names the agent.
            ours: spec.on.is_empty(),
            expires,
        };
        self.open.insert(name.id, open);
    }

    /// A meta task completed.
    pub(crate) fn completed(&mut self, brain: &mut Context, name: &FileName) -> Result<()> {
        let open = self.open.remove(&name.id);
        self.lends.over(name.id);
        if let Some(model) = open.and_then(|open| open.model)
            && let Some(record) = records::read(&brain.rig, RIG_BATCH, name.id, name.attempt)?
        {
            self.failures.succeeded(&record.agent, &model);
            if record.started.is_none() {
                let why = format!("{} had it already", record.agent);
                self.gains.came_to_nothing(name.id, &why);
                return Ok(());
            }
            let seconds = record.duration_ms as f64 / 1000.0;
            let served = brain.config.model(&model).ok();
            let served = served.map(rigor_models::fingerprint);
            brain.measured.learn_load(&model, &record, served);
            self.gains.loaded(name.id, &record.agent, seconds);
        }
        Ok(())
    }

    /// A meta task failed: it is not tried again as it is, placement decides anew.
    pub(crate) fn failed(&mut self, brain: &mut Context, name: FileName) -> Result<()> {
        let open = self.open.remove(&name.id);
        self.lends.over(name.id);
        let record = records::read(&brain.rig, RIG_BATCH, name.id, name.attempt)?;
        let (agent, reason) = match &record {
            Some(record) => (
                record.agent.as_str(),
                record.outcome.reason().unwrap_or("no reason"),
            ),
            None => ("an agent", "it left no record"),
        };
        let model = open.and_then(|open| open.model);
        if let (Some(model), Some(record)) = (&model, &record)
            && matches!(&record.outcome, Outcome::Failed { kind, .. } if *kind == FailureKind::LoadFailed)
        {
            let start = format!("load {model}: ");
            let cause = reason.strip_prefix(start.as_str()).unwrap_or(reason);
            self.failures.failed(agent, model, cause, Instant::now());
        }
        self.gains.came_to_nothing(name.id, reason);
        // The reason names the model itself.
        let (what, cause) = match (model, reason.strip_prefix("unload ")) {
            (Some(model), _) => {
                let start = format!("load {model}: ");
                let cause = reason.strip_prefix(start.as_str()).unwrap_or(reason);
                (format!("load of {model}"), cause)
            }
            (None, Some(of)) => match of.split_once(": ") {
                Some((model, cause)) => (format!("unload of {model}"), cause),
                None => ("unload".to_owned(), reason),
            },
            (None, None) => ("unload".to_owned(), reason),
        };
        tracing::warn!(task = %name.id, "The {what} on {agent} failed: {cause}");
        claim::give_up(&brain.rig, RIG_BATCH, &name)?;
        Ok(())
    }

    /// Decides and acts. `upcoming` are the models of tasks that wait for others.
    pub(crate) fn decide(
        &mut self,
        brain: &mut Context,
        agents: &Agents,
        upcoming: BTreeSet<String>,
        now: Instant,
    ) -> Result<()> {
        let view = self.view(brain, agents, upcoming, now);
        let mut stranded = BTreeSet::new();
        let mut reasons: BTreeMap<String, String> = BTreeMap::new();
        let mut room = None;
        let decisions = placement::decide(&view);
        brain.journal.decided(&view, &decisions);
        for decision in decisions {
            match decision {
                Decision::Keep { model, reason } => {
                    reasons.insert(model, reason);
                }
                Decision::Load {
                    model,
                    eligible,
                    predicted,
                    reason,
                    ..
                } => {
                    let words = format!("loads were asked of {}: {reason}", eligible.join(", "));
                    self.load(brain, &view, &model, eligible, predicted, &reason)?;
                    reasons.insert(model, words);
                }
                Decision::Unload {
                    agent,
                    next,
                    reason,
                } => {
                    self.unload(brain, &view, &agent, next.as_deref(), &reason)?;
                    room.get_or_insert_with(|| format!("{agent} is to free its model: {reason}"));
                }
                Decision::Split { step } => self.split(brain, step)?,
                Decision::Stranded { model, reason } => {
                    stranded.insert(model.clone());
                    reasons.insert(model.clone(), format!("no agent can load it now: {reason}"));
                    let gist = gist(&reason);
                    if self.stranded.get(&model) != Some(&gist) {
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
                        self.stranded.insert(model, gist);
                    }
                }
            }
        }
        self.stranded.retain(|model, _| stranded.contains(model));
        self.verdicts = view
            .models
            .iter()
            .filter(|demand| demand.queued > 0)
            .map(|demand| Verdict {
                model: demand.model.clone(),
                queued: demand.queued,
                // A demand that nothing was decided on is one that room is made for.
                reason: reasons
                    .remove(&demand.model)
                    .or_else(|| room.clone())
                    .unwrap_or_default(),
            })
            .collect();
        self.withdraw(brain, &view)?;
        self.say_splits(brain, &view);
        self.gains.look(brain, &view, now);
        self.warn_untaken(brain, agents, now);
        Ok(())
    }

    /// When the age of an open load wants a look.
    pub(crate) fn due(&self, brain: &Context) -> Option<Instant> {
        let warn = brain.config.timing.load_warn;
        self.open
            .values()
            .filter(|open| open.model.is_some())
            .map(|open| open.since + open.warned.map_or(warn, |said| said * 2))
            .chain(self.failures.due())
            .chain(self.gains.due())
            .chain(self.split_due(Instant::now()))
            .min()
    }

    /// What displays are told about models.
    pub(crate) fn outlook(&self, brain: &Context, agents: &Agents) -> Vec<ModelOutlook> {
        let holders = |model: &str| {
            let of = agents.iter().filter(|(_, agent)| {
                agent.alive
                    && agent.heartbeat.as_ref().is_some_and(|beat| {
                        matches!(&beat.llm, LlmBeat::Hot { model: held, .. } | LlmBeat::Loading { model: held, .. } if held == model)
                    })
            });
            of.map(|(name, _)| name.clone()).collect()
        };
        let queued = brain.queue.get(&Class::Meta);
        let asked = |model: &str| {
            let of = self.open.values().filter(|open| {
                open.model.as_deref() == Some(model)
                    && queued.is_some_and(|index| index.contains(&open.name))
            });
            of.map(|open| AskedLoad {
                id: open.name.id,
                since: open.since_wall,
                eligible: open.agents.clone(),
            })
            .collect()
        };
        self.verdicts
            .iter()
            .map(|verdict| ModelOutlook {
                model: verdict.model.clone(),
                queued: verdict.queued,
                holders: holders(&verdict.model),
                asked: asked(&verdict.model),
                reason: verdict.reason.clone(),
                stranded: self.stranded.contains_key(&verdict.model),
            })
            .collect()
    }
}

/// A reason without its numbers: it is said again when it is another one, not when a queue got
/// shorter or a GPU warmer.
pub(crate) fn gist(reason: &str) -> String {
    reason
        .split(' ')
        .filter(|word| !word.starts_with(|first: char| first.is_ascii_digit() || first == '('))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::gist;

    #[test]
    fn numbers_make_no_other_reason_but_agents_do() {
        let said = gist("gpu-1 kept for 12 queued script tasks, gpu-2 thermal (84C >= 80C)");
        assert_eq!(
            said,
            gist("gpu-1 kept for 3 queued script tasks, gpu-2 thermal (91C >= 80C)")
        );
        assert_ne!(
            said,
            gist("gpu-2 kept for 12 queued script tasks, gpu-1 thermal (84C >= 80C)")
        );
    }
}
