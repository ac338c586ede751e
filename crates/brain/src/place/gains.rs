//! What each decision to load came to, said when its work is over.

use rigor_policy::placement::Came;

use super::*;

/// A decision whose work goes on is looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A decision to load, until its work is over.
#[derive(Debug)]
struct Asked {
    model: String,
    slots: u32,
    predicted: Predicted,
    began: Instant,
    /// Load tasks that are not over.
    open: BTreeSet<TaskId>,
    /// Tasks that had ended by then and their seconds, by agent.
    before: BTreeMap<String, (usize, f64)>,
    /// Agents that loaded it, with the seconds that it took.
    loaded: BTreeMap<String, f64>,
    /// Of those, the ones that have shown it in a heartbeat.
    shown: BTreeSet<String>,
    /// Why loads came to nothing.
    nothing: Vec<String>,
}

/// All of them. A brain that starts anew knows none: what was asked for before is not said.
#[derive(Debug, Default)]
pub(super) struct Gains {
    asked: Vec<Asked>,
    looked: Option<Instant>,
}

impl Gains {
    /// Loads were asked for.
    pub(super) fn asked(
        &mut self,
        brain: &Context,
        model: &str,
        slots: u32,
        predicted: Predicted,
        open: BTreeSet<TaskId>,
    ) {
        let now = Instant::now();
        self.looked.get_or_insert(now);
        self.asked.push(Asked {
            model: model.to_owned(),
            slots,
            predicted,
            began: now,
            open,
            before: brain.ended_of(model),
            loaded: BTreeMap::new(),
            shown: BTreeSet::new(),
            nothing: Vec::new(),
        });
    }

    /// One of the loads succeeded.
    pub(super) fn loaded(&mut self, id: TaskId, agent: &str, seconds: f64) {
        if let Some(asked) = self.take(id) {
            asked.loaded.insert(agent.to_owned(), seconds);
        }
    }

    /// One of the loads failed or was withdrawn.
    pub(super) fn came_to_nothing(&mut self, id: TaskId, why: &str) {
        if let Some(asked) = self.take(id) {
            asked.nothing.push(why.to_owned());
        }
    }

    fn take(&mut self, id: TaskId) -> Option<&mut Asked> {
        self.asked
            .iter_mut()
            .find_map(|asked| asked.open.remove(&id).then_some(asked))
    }

    /// When they want a look.
    pub(super) fn due(&self) -> Option<Instant> {
        let looked = self.looked?;
        (!self.asked.is_empty()).then(|| looked + LOOK_EVERY)
    }

    /// Says what came of those that are over.
    pub(super) fn look(&mut self, brain: &mut Context, view: &View, now: Instant) {
        self.looked = Some(now);
        let (over, on): (Vec<Asked>, Vec<Asked>) = std::mem::take(&mut self.asked)
            .into_iter()
            .map(|mut asked| {
                asked.note_shown(view);
                asked
            })
            .partition(|asked| asked.is_over(brain, view));
        self.asked = on;
        for asked in over {
            asked.say(brain, now);
        }
    }
}

impl Asked {
    fn note_shown(&mut self, view: &View) {
        for agent in &view.agents {
            if self.loaded.contains_key(&agent.name) && self.has_it(agent) {
                self.shown.insert(agent.name.clone());
            }
        }
    }

    fn has_it(&self, agent: &placement::Agent) -> bool {
        agent.alive
            && matches!(&agent.llm, LlmBeat::Hot { model, .. } | LlmBeat::Loading { model, .. } if *model == self.model)
    }

    /// No load is under way, and nothing is left to serve or nobody to serve it.
    fn is_over(&self, brain: &Context, view: &View) -> bool {
        if !self.open.is_empty() {
            return false;
        }
        let is_queued = |demand: &Demand| demand.model == self.model && demand.queued > 0;
        let worked_off = !view.models.iter().any(is_queued) && !brain.is_running(&self.model);
        // A heartbeat may be older than the end of the load.
        let holds = |agent: &placement::Agent| {
            self.loaded.contains_key(&agent.name)
                && (self.has_it(agent) || (agent.alive && !self.shown.contains(&agent.name)))
        };
        worked_off || !view.agents.iter().any(holds)
    }

    fn say(&self, brain: &mut Context, now: Instant) {
        let model = &self.model;
        if self.loaded.is_empty() {
            let message = format!(
                "Loading {model} came to nothing: {}",
                self.nothing.join("; ")
            );
            tracing::info!("{message}");
            brain.journal.write(
                Entry::ResourceOutcome,
                &message,
                json!({"model": model, "predicted": self.predicted, "reasons": self.nothing}),
            );
            return;
        }
        let (mut ended, mut served, mut seconds) = (0, 0, 0.0);
        for (agent, (count, sum)) in brain.ended_of(model) {
            let (count_before, sum_before) = self.before.get(&agent).copied().unwrap_or_default();
            ended += count - count_before;
            seconds += sum - sum_before;
            if self.loaded.contains_key(&agent) {
                served += count - count_before;
            }
        }
        let came = Came {
            load_seconds: self.loaded.values().copied().fold(0.0, f64::max),
            served,
            ended,
            each_seconds: seconds / (ended.max(1) as f64) / f64::from(self.slots.max(1)),
            took_seconds: now.saturating_duration_since(self.began).as_secs_f64(),
        };
        let agents: Vec<&str> = self.loaded.keys().map(String::as_str).collect();
        let message = format!(
            "What loading {model} on {} came to: {}",
            agents.join(", "),
            came.words(&self.predicted)
        );
        tracing::info!("{message}");
        brain.journal.write(
            Entry::ResourceOutcome,
            &message,
            json!({"model": model, "agents": agents, "predicted": self.predicted, "came": came,
                   "saved_seconds": came.saved_seconds(&self.predicted), "reasons": self.nothing}),
        );
    }
}
