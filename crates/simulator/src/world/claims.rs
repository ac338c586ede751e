//! What agents take, and what starts with it.

use super::*;

impl World<'_> {
    /// Every agent claims what it can; who comes first turns with each round.
    pub(super) fn claim(&mut self) {
        loop {
            let mut claimed = false;
            self.turn += 1;
            for step in 0..self.agents.len() {
                let agent = (self.turn + step) % self.agents.len();
                claimed |= self.agents[agent].alive && self.claim_one(agent);
            }
            if !claimed {
                return;
            }
            // The brain hears of it and looks again.
            self.place_wanted = true;
        }
    }

    fn claim_one(&mut self, at: usize) -> bool {
        let (state, listed) = (self.state(at), self.candidates(at));
        let candidates: Vec<Candidate> = listed.iter().map(|(_, it)| it.clone()).collect();
        let decision = admission::decide(&state, &candidates);
        let admitted = decision.admit.map(|at| listed[at].0);
        let (mut passed_over, mut short) = (BTreeMap::new(), BTreeMap::new());
        for ((what, _), refusal) in listed.iter().zip(&decision.refusals) {
            let (Some(key), Some(refusal)) = (self.key(what), refusal) else {
                continue;
            };
            let agent = &self.agents[at];
            let since = |before: &BTreeMap<Key, f64>| before.get(&key).copied().unwrap_or(self.now);
            if matches!(refusal.code, Refusal::VramShort | Refusal::CpuSlotsFull) {
                passed_over.insert(key.clone(), since(&agent.passed_over));
            }
            if matches!(refusal.code, Refusal::VramShort | Refusal::HoldingModel) {
                short.insert(key.clone(), since(&agent.short_of_memory));
            }
        }
        self.agents[at].passed_over = passed_over;
        self.agents[at].short_of_memory = short;
        self.agents[at].decision = Some((decision, candidates));
        match admitted {
            None => false,
            Some(Listed::Work(work)) => {
                self.start(at, work);
                true
            }
            Some(Listed::Load(load)) => {
                let load = self.loads.remove(load);
                self.start_load(at, load.model);
                true
            }
            Some(Listed::Unload) => {
                let name = self.agents[at].name.clone();
                self.unloads.retain(|of| *of != name);
                if let LlmState::Hot { model, .. } = &self.agents[at].llm {
                    self.agents[at].llm = LlmState::Draining {
                        model: model.clone(),
                    };
                    self.unload_when_drained(at);
                }
                true
            }
        }
    }

    fn start(&mut self, agent: usize, work: usize) {
        let Some(queued) = self.queues[work].pop_front() else {
            return;
        };
        if !queued.again {
            self.worst_wait_s = self.worst_wait_s.max(self.now - queued.ready);
        }
        if self.trace.work[work].model.is_none() {
            self.agents[agent].leased_mb += self.trace.work[work].vram_mb;
        }
        self.numbers += 1;
        let number = self.numbers;
        self.agents[agent].running.push(Run {
            number,
            work,
            task: queued.task,
            since: self.now,
        });
        let ends = self.now + self.trace.costs.task_s + self.durations[work][queued.task];
        self.push(ends, What::End { agent, run: number });
    }

    fn start_load(&mut self, at: usize, model: String) {
        let Some(known) = self.trace.model(&model) else {
            return;
        };
        let (mb, takes) = (known.vram_mb, known.load_s + self.trace.costs.load_s);
        let agent = &mut self.agents[at];
        if agent.llm != LlmState::Cold {
            // It holds that model already: there is nothing to do but to say so.
            return;
        }
        agent.leased_mb += mb;
        agent.llm = LlmState::Loading { model, for_s: 0 };
        agent.llm_since = self.now;
        agent.epoch += 1;
        self.loaded += 1;
        let (agent, epoch) = (at, agent.epoch);
        self.push(self.now + takes, What::Loaded { agent, epoch });
    }

    pub(super) fn of_class(&self, agent: usize, llm: bool) -> u32 {
        let of = |run: &&Run| self.trace.work[run.work].model.is_some() == llm;
        self.agents[agent].running.iter().filter(of).count() as u32
    }
}
