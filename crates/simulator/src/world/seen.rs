//! What the policy is shown of the world: to an agent its own state and the queues, to the brain
//! demand by model and every agent as its heartbeat would have it.

use super::*;

impl World<'_> {
    pub(super) fn state(&self, at: usize) -> AgentState {
        let agent = &self.agents[at];
        let (scripts, llm_tasks) = (self.of_class(at, false), self.of_class(at, true));
        let llm = match agent.llm.clone() {
            LlmState::Hot { model, tier, slots } => LlmState::Hot {
                model,
                tier,
                slots: Slots {
                    used: llm_tasks,
                    ..slots
                },
            },
            other => other,
        };
        AgentState {
            name: agent.name.clone(),
            health: Health::Healthy,
            ailment: None,
            default_model: None,
            llm,
            failed_loads: Vec::new(),
            cpu: Slots {
                used: scripts,
                total: agent.gpu.cpu_slots,
            },
            gpu: Some(admission::GpuState {
                budget_mb: agent.gpu.budget_mb,
                available_mb: agent.gpu.budget_mb - agent.leased_mb,
                leased_mb: agent.leased_mb,
                foreign: None,
                scripts,
                script_slots: None,
                alone: None,
                settling: None,
                near_limit: None,
            }),
            running: agent
                .running
                .iter()
                .map(|run| Running {
                    class: class(&self.trace.work[run.work]),
                    label: self.trace.work[run.work].name.clone(),
                    for_s: (self.now - run.since) as u64,
                })
                .collect(),
        }
    }

    /// What is queued, in claim order, as the agents' queues list it.
    pub(super) fn candidates(&self, agent: usize) -> Vec<(Listed, Candidate)> {
        let of = |class, count, needs, passed_over_s| Candidate {
            class,
            count,
            needs,
            passed_over_s,
        };
        let passed_over = |key| {
            let since = self.agents[agent].passed_over.get(&key);
            since.map_or(0, |since| (self.now - since) as u64)
        };
        let mut listed: Vec<(Listed, Candidate)> = Vec::new();
        for (at, load) in self.loads.iter().enumerate() {
            let mb = self.trace.model(&load.model).map_or(0, |it| it.vram_mb);
            let needs = Needs::Load {
                model: load.model.clone(),
                eligible: load.eligible.clone(),
                expired: false,
                vram: VramNeed::Mb(mb),
            };
            let passed = passed_over(Key::Load(load.model.clone()));
            listed.push((Listed::Load(at), of(Class::Meta, 1, needs, passed)));
        }
        for name in &self.unloads {
            let needs = Needs::Unload {
                agent: name.clone(),
            };
            listed.push((Listed::Unload, of(Class::Meta, 1, needs, 0)));
        }
        let mut queued: Vec<(u64, usize)> = self
            .queues
            .iter()
            .enumerate()
            .filter_map(|(work, queue)| Some((queue.front()?.sequence, work)))
            .collect();
        queued.sort_unstable();
        for (_, at) in queued {
            let work = &self.trace.work[at];
            let needs = match &work.model {
                Some(model) => Needs::Llm {
                    model: Some(model.clone()),
                    min_tier: None,
                },
                None => Needs::Script {
                    cpus: 1,
                    vram: VramNeed::Mb(work.vram_mb),
                },
            };
            let passed = passed_over(Key::Work(at));
            let count = self.queues[at].len();
            listed.push((Listed::Work(at), of(class(work), count, needs, passed)));
        }
        listed
    }

    pub(super) fn view(&mut self) -> View {
        let mut demands: BTreeMap<&str, (usize, f64, bool)> = BTreeMap::new();
        let (mut scripts_queued, mut script_seconds) = (0, 0.0);
        for (at, queue) in self.queues.iter().enumerate() {
            if queue.is_empty() {
                continue;
            }
            let measured = self.task_seconds[at];
            let seconds = measured.unwrap_or(placement::TASK_SECONDS_PRIOR) * queue.len() as f64;
            match &self.trace.work[at].model {
                Some(model) => {
                    let entry = demands.entry(model).or_insert((0, 0.0, true));
                    entry.0 += queue.len();
                    entry.1 += seconds;
                    entry.2 &= measured.is_some();
                }
                None => {
                    scripts_queued += queue.len();
                    script_seconds += seconds;
                }
            }
        }
        self.waiting_since
            .retain(|model, _| demands.contains_key(model.as_str()));
        let mut models = Vec::new();
        for (model, (queued, seconds, measured)) in demands {
            let Some(known) = self.trace.model(model) else {
                continue;
            };
            let served = self.agents.iter().any(
                |agent| matches!(&agent.llm, LlmState::Hot { model: held, .. } if held == model),
            );
            let since = self
                .waiting_since
                .entry(model.to_owned())
                .or_insert(self.now);
            if served {
                *since = self.now;
            }
            let prior = placement::LOAD_SECONDS_PRIOR
                + known.vram_mb as f64 * 1e6 / placement::LOAD_BYTES_PER_SECOND_PRIOR;
            models.push(Demand {
                model: model.to_owned(),
                queued,
                task_seconds: seconds / queued as f64,
                measured,
                slots: known.slots,
                load_seconds: self.load_seconds.get(model).copied().unwrap_or(prior),
                waiting_seconds: self.now - *since,
            });
        }
        View {
            models,
            agents: (0..self.agents.len()).map(|at| self.shown(at)).collect(),
            pending: self
                .loads
                .iter()
                .map(|load| Pending {
                    model: load.model.clone(),
                    eligible: load.eligible.clone(),
                })
                .collect(),
            upcoming: self
                .trace
                .work
                .iter()
                .enumerate()
                .filter(|(at, work)| self.waits(*at, work))
                .filter_map(|(_, work)| work.model.clone())
                .collect(),
            scripts_queued,
            script_seconds,
            scripts_waiting_seconds: self.scripts_wait(),
            splits: Default::default(),
        }
    }

    pub(super) fn key(&self, what: &Listed) -> Option<Key> {
        match what {
            Listed::Work(work) => Some(Key::Work(*work)),
            Listed::Load(load) => Some(Key::Load(self.loads[*load].model.clone())),
            Listed::Unload => None,
        }
    }

    /// See [`View::scripts_waiting_seconds`].
    fn scripts_wait(&self) -> f64 {
        let mut longest = 0.0;
        for (at, work) in self.trace.work.iter().enumerate() {
            if work.model.is_some() || self.queues[at].is_empty() {
                continue;
            }
            let could = |agent: &&Agent<'_>| agent.alive && agent.gpu.budget_mb >= work.vram_mb;
            let waits = self
                .agents
                .iter()
                .filter(could)
                .map(|agent| {
                    agent
                        .short_of_memory
                        .get(&Key::Work(at))
                        .map_or(0.0, |since| self.now - since)
                })
                .fold(f64::INFINITY, f64::min);
            if waits.is_finite() {
                longest = f64::max(longest, waits);
            }
        }
        longest
    }

    /// Models for which running scripts leave no memory, and for how long, from what was measured.
    fn room_in(&self, at: usize) -> Vec<ModelSeconds> {
        let agent = &self.agents[at];
        let ends = agent.running.iter().filter_map(|run| {
            let scripts = self.trace.work[run.work].model.is_none();
            let takes = self.task_seconds[run.work].unwrap_or(placement::TASK_SECONDS_PRIOR);
            scripts.then(|| placement::seconds_left(takes, self.now - run.since))
        });
        let seconds = ends.fold(0.0, f64::max);
        if agent.llm != LlmState::Cold || seconds == 0.0 {
            return Vec::new();
        }
        let available = agent.gpu.budget_mb - agent.leased_mb;
        self.trace
            .models
            .iter()
            .filter(|model| model.vram_mb > available)
            .map(|model| ModelSeconds {
                model: model.id.clone(),
                seconds,
            })
            .collect()
    }

    fn shown(&self, at: usize) -> placement::Agent {
        let agent = &self.agents[at];
        let since = Timestamp::UNIX_EPOCH + SignedDuration::from_secs_f64(agent.llm_since);
        let llm = match agent.llm.clone() {
            LlmState::Cold => LlmBeat::Cold,
            LlmState::Loading { model, .. } => LlmBeat::Loading {
                model,
                since,
                lenders: Vec::new(),
            },
            LlmState::Hot { model, slots, .. } => LlmBeat::Hot {
                model: model.clone(),
                slots: slots.total,
                load_ms: self
                    .trace
                    .model(&model)
                    .map_or(0, |known| (known.load_s * 1000.0) as u64),
                since,
                lenders: Vec::new(),
            },
            LlmState::Lent { model, to, .. } => LlmBeat::Lent { model, to, since },
            LlmState::Draining { model } => LlmBeat::Draining { model },
            LlmState::Unloading { model } => LlmBeat::Unloading { model },
        };
        let verdict = agent
            .decision
            .as_ref()
            .and_then(|(decision, _)| decision.verdicts.get(&Class::Script));
        let cannot = self
            .trace
            .models
            .iter()
            .filter(|model| model.vram_mb > agent.gpu.budget_mb)
            .map(|model| (model.id.clone(), "vram_short".to_owned()))
            .collect();
        placement::Agent {
            name: agent.name.clone(),
            alive: agent.alive,
            health: Health::Healthy,
            health_reason: None,
            llm,
            held_seconds: self.now - agent.llm_since,
            llm_running: self.of_class(at, true),
            scripts_blocked: verdict.is_some_and(|verdict| {
                matches!(verdict.code, Refusal::VramShort | Refusal::HoldingModel)
            }),
            cannot,
            failed: Vec::new(),
            load_seconds: Vec::new(),
            room_in_seconds: self.room_in(at),
        }
    }
}
