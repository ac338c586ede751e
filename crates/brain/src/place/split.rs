//! Models that are split over several agents' GPUs: lends, the load, and what is said of them.

use super::*;

use rigor_policy::placement::{Lend, ModelSeconds, Splits, Step};

/// A lend that is not taken for so long is withdrawn with all of its group, seconds. It doubles
/// with each try for a model in vain, so that tasks which run long do not keep it away for ever.
const GATHER_S: u64 = 300;
/// The longest try, seconds.
const GATHER_MOST_S: u64 = 3600;

/// A lend task that is not over.
#[derive(Debug)]
struct OpenLend {
    name: FileName,
    agent: String,
    to: String,
    model: String,
    expires: Timestamp,
}

/// Tries in vain to gather for a model.
#[derive(Debug)]
struct Vain {
    times: u32,
    /// Not tried again before: what was kept free in vain is free for others as long.
    until: Instant,
}

/// What the brain remembers of splits beyond what the queue and heartbeats say. Lost, it tries
/// again sooner.
#[derive(Debug, Default)]
pub(super) struct Lends {
    open: BTreeMap<TaskId, OpenLend>,
    vain: BTreeMap<String, Vain>,
    /// Where split models run, as said last: leader and lenders by model.
    said: BTreeMap<String, (String, Vec<String>)>,
}

impl Lends {
    /// A lend task was seen in the queue or with an agent; what is none is left out.
    pub(super) fn note(&mut self, name: &FileName, work: &Work) {
        let Work::LendGpu {
            agent,
            to,
            model,
            expires,
            ..
        } = work
        else {
            return;
        };
        let lend = OpenLend {
            name: *name,
            agent: agent.clone(),
            to: to.clone(),
            model: model.clone(),
            expires: *expires,
        };
        self.open.insert(name.id, lend);
    }

    /// Forgets a lend that is over, if it is one.
    pub(super) fn over(&mut self, id: TaskId) {
        self.open.remove(&id);
    }

    /// Keeps those that are still somewhere.
    pub(super) fn retain(&mut self, found: impl Fn(TaskId) -> Option<FileName>) {
        self.open.retain(|id, lend| {
            let name = found(*id);
            lend.name = name.unwrap_or(lend.name);
            name.is_some()
        });
    }

    fn tries(&self, model: &str) -> u32 {
        self.vain.get(model).map_or(0, |vain| vain.times)
    }
}

/// How long a try may take after so many in vain, seconds.
fn gather_seconds(vain: u32) -> u64 {
    (GATHER_S << vain.min(16)).min(GATHER_MOST_S)
}

impl Placer {
    /// What the policy is shown of splits.
    pub(super) fn splits(&self, brain: &Context, now: Instant) -> Splits {
        let wall = Timestamp::now();
        let gpus: BTreeMap<String, u32> = brain
            .config
            .models
            .iter()
            .filter(|model| model.split_gpu > 1)
            .map(|model| (model.id.clone(), model.split_gpu))
            .collect();
        let lends = self.lends.open.values();
        let loads = self.open.values().filter_map(|open| {
            let model = open
                .model
                .as_ref()
                .filter(|model| gpus.contains_key(*model))?;
            Some((open.agents.first()?.clone(), model.clone()))
        });
        Splits {
            lends: lends
                .map(|lend| Lend {
                    agent: lend.agent.clone(),
                    to: lend.to.clone(),
                    model: lend.model.clone(),
                    overdue: lend.expires <= wall,
                })
                .collect(),
            loads: loads.collect(),
            resting: self
                .lends
                .vain
                .iter()
                .filter(|(_, vain)| vain.until > now)
                .map(|(model, vain)| ModelSeconds {
                    model: model.clone(),
                    seconds: (vain.until - now).as_secs_f64(),
                })
                .collect(),
            gpus,
        }
    }

    /// When a rest or a lend's time is over.
    pub(super) fn split_due(&self, now: Instant) -> Option<Instant> {
        let rests = self.lends.vain.values().map(|vain| vain.until);
        let wall = Timestamp::now();
        let ends = self.lends.open.values().map(|lend| {
            let left = lend.expires.duration_since(wall);
            now + Duration::try_from(left).unwrap_or(Duration::ZERO)
        });
        rests.chain(ends).filter(|at| *at > now).min()
    }

    pub(super) fn split(&mut self, brain: &mut Context, step: Step) -> Result<()> {
        match step {
            Step::Lend {
                model,
                to,
                agents,
                gpus,
                reason,
            } => self.gather(brain, &model, &to, &agents, gpus, &reason),
            Step::Load { model, on, lenders } => self.load_over(brain, &model, &on, lenders),
            Step::Withdraw {
                model,
                to,
                late,
                reason,
            } => self.give_up(brain, &model, &to, late, &reason),
        }
    }

    fn gather(
        &mut self,
        brain: &mut Context,
        model: &str,
        to: &str,
        agents: &[String],
        gpus: u32,
        reason: &str,
    ) -> Result<()> {
        let lenders: Vec<&str> = agents
            .iter()
            .map(String::as_str)
            .filter(|name| *name != to)
            .collect();
        let message = format!(
            "Gathering {} for {model} on {to}: {reason}",
            if lenders.is_empty() {
                to.to_owned()
            } else {
                lenders.join(", ")
            }
        );
        tracing::info!("{message}");
        brain.journal.write(
            Entry::ResourceDecision,
            &message,
            json!({"model": model, "leader": to, "agents": agents, "gpus": gpus, "reason": reason}),
        );
        let seconds = gather_seconds(self.lends.tries(model));
        let expires = Timestamp::now() + jiff::SignedDuration::from_secs(seconds as i64);
        for agent in agents {
            let work = Work::LendGpu {
                agent: agent.clone(),
                to: to.to_owned(),
                model: model.to_owned(),
                gpus,
                expires,
            };
            self.submit(brain, "lend_gpu", work, None, vec![agent.clone()])?;
        }
        Ok(())
    }

    fn load_over(
        &mut self,
        brain: &mut Context,
        model: &str,
        on: &str,
        lenders: Vec<String>,
    ) -> Result<()> {
        let message = format!(
            "All GPUs for {model} are reserved - inserting 1 load_llm task for {on}, over its GPU and {}",
            lenders.join(", ")
        );
        tracing::info!("{message}");
        brain.journal.write(
            Entry::ResourceDecision,
            &message,
            json!({"model": model, "leader": on, "lenders": lenders}),
        );
        let work = Work::LoadLlm {
            model: model.to_owned(),
            eligible: vec![on.to_owned()],
            lenders,
            expires: Timestamp::now() + jiff::SignedDuration::from_secs(LOAD_EXPIRES_S),
        };
        let model = Some(model.to_owned());
        self.submit(brain, "load_llm", work, model, vec![on.to_owned()])?;
        Ok(())
    }

    /// Takes back what a group was asked for and nobody has taken. What is taken this very moment
    /// shows in a heartbeat, and is given back then.
    fn give_up(
        &mut self,
        brain: &mut Context,
        model: &str,
        to: &str,
        late: bool,
        reason: &str,
    ) -> Result<()> {
        if late {
            let times = self.lends.tries(model) + 1;
            let rest = Duration::from_secs(gather_seconds(times - 1));
            let until = Instant::now() + rest;
            self.lends
                .vain
                .insert(model.to_owned(), Vain { times, until });
            let message = format!(
                "The GPUs for {model} on {to} could not be gathered: {reason}; all are given back, and tried again in {}s",
                rest.as_secs()
            );
            tracing::warn!("{message}");
            brain.journal.write(
                Entry::ResourceDecision,
                &message,
                json!({"model": model, "leader": to, "reason": reason}),
            );
        }
        let lends = self.lends.open.values();
        let lends = lends.filter(|lend| lend.model == model && lend.to == to);
        let loads = self.open.values().filter(|open| {
            open.model.as_deref() == Some(model) && open.agents.first().is_some_and(|on| on == to)
        });
        let names: Vec<FileName> = lends
            .map(|lend| lend.name)
            .chain(loads.map(|open| open.name))
            .collect();
        for name in names {
            if brain.index(Class::Meta).contains(&name) {
                self.take_back(brain, &name, reason)?;
            }
        }
        Ok(())
    }

    /// Takes a task out of the queue. `false`: an agent has it, or is about to.
    pub(super) fn take_back(
        &mut self,
        brain: &mut Context,
        name: &FileName,
        why: &str,
    ) -> Result<bool> {
        let Candidate::Ready(held) = claim::candidate(&brain.rig, Class::Meta, name)? else {
            return Ok(false);
        };
        let outcome = Outcome::Cancelled {
            reason: why.to_owned(),
        };
        let record = record_of(&held.spec, name, outcome);
        let task = held.spec.task.clone();
        records::replace(&brain.rig, &record)?;
        held.cancel(&brain.rig, name)?;
        let message = format!("Withdrew {task} {}: {why}", name.id.short());
        tracing::info!("{message}");
        brain.journal.write(
            Entry::ResourceTask,
            &message,
            json!({"task_id": name.id, "reason": why}),
        );
        self.lends.over(name.id);
        self.open.remove(&name.id);
        self.gains.came_to_nothing(name.id, why);
        Ok(true)
    }

    /// An operator cancels a load, an unload or a lend. `false`: no such task is open.
    pub(crate) fn cancel(&mut self, brain: &mut Context, id: TaskId) -> Result<bool> {
        let lend = self.lends.open.get(&id).map(|lend| lend.name);
        let Some(name) = self.open.get(&id).map(|open| open.name).or(lend) else {
            return Ok(false);
        };
        if !self.take_back(brain, &name, "cancelled by the operator")? {
            anyhow::bail!("{} is with an agent already", name.id.short());
        }
        Ok(true)
    }

    /// Says where split models run, when that has changed.
    pub(super) fn say_splits(&mut self, brain: &mut Context, view: &View) {
        let mut running = BTreeMap::new();
        for agent in &view.agents {
            if let LlmBeat::Hot { model, lenders, .. } = &agent.llm
                && !lenders.is_empty()
            {
                let on = (agent.name.clone(), lenders.clone());
                // What the heartbeat of a dead leader says was said, and is so until the next one:
                // it holds no longer, but one that is started anew shows it for a moment.
                if agent.alive || self.lends.said.get(model) == Some(&on) {
                    running.insert(model.clone(), on);
                }
            }
        }
        for (model, on) in &running {
            // It was gathered: the next try has as little time as the first.
            self.lends.vain.remove(model);
            if self.lends.said.get(model) == Some(on) {
                continue;
            }
            let (leader, lenders) = on;
            let mut all: Vec<&str> = lenders.iter().chain([leader]).map(String::as_str).collect();
            all.sort_unstable();
            let message = format!("{model} runs on {leader} over {}", all.join(", "));
            tracing::info!("{message}");
            brain.journal.write(
                Entry::ResourceDecision,
                &message,
                json!({"model": model, "leader": leader, "lenders": lenders}),
            );
        }
        self.lends.said = running;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_try_takes_longer_each_time_up_to_an_hour() {
        let tries: Vec<u64> = [0, 1, 2, 3, 4, 40].map(gather_seconds).to_vec();
        assert_eq!(tries, [300, 600, 1200, 2400, 3600, 3600]);
    }
}
