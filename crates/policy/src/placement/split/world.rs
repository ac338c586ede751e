//! A small world of agents that claim, die and start anew, under the real decisions: two split
//! models that want two of three GPUs each, and two that need one.

use super::*;
use crate::placement::{Demand, FailedLoad, Pending, decide, is_misplaced};
use jiff::Timestamp;

pub(super) const LOAD_S: u64 = 10;
const UNLOAD_S: u64 = 3;
pub(super) const TASK_S: u64 = 5;
const LEND_EXPIRES_S: u64 = 60;
const REST_S: u64 = 60;
const SPLIT: [&str; 2] = ["big", "huge"];
pub(super) const MODELS: [&str; 4] = ["a", "b", "big", "huge"];

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Phase {
    Cold,
    Lent {
        model: String,
        to: String,
    },
    Loading {
        model: String,
        lenders: Vec<String>,
        until: u64,
    },
    Hot {
        model: String,
        lenders: Vec<String>,
        since: u64,
    },
    Unloading {
        model: String,
        until: u64,
    },
}

#[derive(Clone, Debug)]
pub(super) enum Task {
    Load {
        model: String,
        eligible: Vec<String>,
        lenders: Vec<String>,
    },
    Lend {
        agent: String,
        to: String,
        model: String,
        expires: u64,
    },
    Unload {
        agent: String,
    },
}

#[derive(Debug)]
pub(super) struct Gpu {
    pub(super) name: String,
    pub(super) alive: bool,
    pub(super) phase: Phase,
    /// A script holds its memory until then.
    pub(super) script_until: u64,
    pub(super) fails: Option<(String, u64)>,
}

pub(super) struct World {
    pub(super) now: u64,
    pub(super) gpus: Vec<Gpu>,
    pub(super) tasks: Vec<Task>,
    pub(super) queued: BTreeMap<&'static str, usize>,
    unserved_since: BTreeMap<&'static str, u64>,
    resting: BTreeMap<String, u64>,
    pub(super) longest_wait: BTreeMap<&'static str, u64>,
}

impl World {
    pub(super) fn new() -> World {
        World {
            now: 0,
            gpus: (1..=3)
                .map(|n| Gpu {
                    name: format!("gpu-{n}"),
                    alive: true,
                    phase: Phase::Cold,
                    script_until: 0,
                    fails: None,
                })
                .collect(),
            tasks: Vec::new(),
            queued: MODELS.iter().map(|model| (*model, 0)).collect(),
            unserved_since: BTreeMap::new(),
            resting: BTreeMap::new(),
            longest_wait: BTreeMap::new(),
        }
    }

    fn view(&self) -> View {
        let agent = |gpu: &Gpu| Agent {
            name: gpu.name.clone(),
            alive: gpu.alive,
            health: Health::Healthy,
            health_reason: None,
            llm: beat(&gpu.phase),
            held_seconds: match gpu.phase {
                Phase::Hot { since, .. } => (self.now - since) as f64,
                _ => 0.0,
            },
            llm_running: 0,
            scripts_blocked: false,
            cannot: Vec::new(),
            failed: gpu
                .fails
                .iter()
                .map(|(model, until)| FailedLoad {
                    model: model.clone(),
                    cause: "it would not".to_owned(),
                    times: 1,
                    retry_in_seconds: until.saturating_sub(self.now) as f64,
                })
                .collect(),
            load_seconds: Vec::new(),
            room_in_seconds: Vec::new(),
        };
        let demand = |(model, queued): (&&'static str, &usize)| Demand {
            model: (*model).to_owned(),
            queued: *queued,
            task_seconds: TASK_S as f64,
            measured: true,
            slots: 1,
            load_seconds: LOAD_S as f64,
            waiting_seconds: self
                .unserved_since
                .get(model)
                .map_or(0.0, |since| (self.now - since) as f64),
        };
        let mut view = View {
            models: self
                .queued
                .iter()
                .filter(|(_, queued)| **queued > 0)
                .map(demand)
                .collect(),
            agents: self.gpus.iter().map(agent).collect(),
            ..View::default()
        };
        view.splits.gpus = SPLIT.iter().map(|model| ((*model).to_owned(), 2)).collect();
        view.splits.resting = self
            .resting
            .iter()
            .filter(|(_, until)| **until > self.now)
            .map(|(model, until)| ModelSeconds {
                model: model.clone(),
                seconds: (until - self.now) as f64,
            })
            .collect();
        for task in &self.tasks {
            match task {
                Task::Load {
                    model, eligible, ..
                } => {
                    if SPLIT.contains(&model.as_str()) {
                        view.splits.loads.push((eligible[0].clone(), model.clone()));
                    } else {
                        view.pending.push(Pending {
                            model: model.clone(),
                            eligible: eligible.clone(),
                        });
                    }
                }
                Task::Lend {
                    agent,
                    to,
                    model,
                    expires,
                } => view.splits.lends.push(Lend {
                    agent: agent.clone(),
                    to: to.clone(),
                    model: model.clone(),
                    overdue: *expires <= self.now,
                }),
                Task::Unload { .. } => {}
            }
        }
        view
    }

    /// The brain looks.
    pub(super) fn place(&mut self) {
        for decision in decide(&self.view()) {
            match decision {
                Decision::Load {
                    model,
                    count,
                    eligible,
                    ..
                } => {
                    for _ in 0..count {
                        self.tasks.push(Task::Load {
                            model: model.clone(),
                            eligible: eligible.clone(),
                            lenders: Vec::new(),
                        });
                    }
                }
                Decision::Unload { agent, .. } => {
                    let asked =
                        |task: &Task| matches!(task, Task::Unload { agent: of } if *of == agent);
                    if !self.tasks.iter().any(asked) {
                        self.tasks.push(Task::Unload { agent });
                    }
                }
                Decision::Split { step } => self.step(step),
                Decision::Keep { .. } | Decision::Stranded { .. } => {}
            }
        }
        // The shell withdraws loads that nothing needs any more, or that others could take.
        let (queued, view) = (self.queued.clone(), self.view());
        self.tasks.retain(|task| match task {
            Task::Load {
                model, eligible, ..
            } => {
                let needed = queued.get(model.as_str()).is_some_and(|left| *left > 0);
                needed && !is_misplaced(&view, model, eligible)
            }
            Task::Lend { .. } | Task::Unload { .. } => true,
        });
        let mut gathered: BTreeSet<(&str, &str)> = BTreeSet::new();
        for task in &self.tasks {
            if let Task::Lend { to, model, .. } = task {
                gathered.insert((model, to));
            }
        }
        let running = |(model, to): &(&str, &str)| {
            self.gpus.iter().any(|gpu| {
                gpu.name == *to
                    && matches!(&gpu.phase, Phase::Hot { model: held, .. } | Phase::Loading { model: held, .. } if held == model)
            })
        };
        gathered.retain(|group| !running(group));
        assert!(gathered.len() <= 1, "two groups are gathered: {gathered:?}");
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Lend {
                model, to, agents, ..
            } => {
                for agent in agents {
                    let expires = self.now + LEND_EXPIRES_S;
                    let (to, model) = (to.clone(), model.clone());
                    self.tasks.push(Task::Lend {
                        agent,
                        to,
                        model,
                        expires,
                    });
                }
            }
            Step::Load { model, on, lenders } => {
                assert_eq!(lenders.len(), 1, "a part of {model} is to be run");
                for name in lenders.iter().chain([&on]) {
                    let kept = Phase::Lent {
                        model: model.clone(),
                        to: on.clone(),
                    };
                    let gpu = self.gpus.iter().find(|gpu| gpu.name == *name).unwrap();
                    assert_eq!(gpu.phase, kept, "{name} is not reserved for {model}");
                }
                self.tasks.push(Task::Load {
                    model,
                    eligible: vec![on],
                    lenders,
                });
            }
            Step::Withdraw {
                model, to, late, ..
            } => {
                if late {
                    self.resting.insert(model.clone(), self.now + REST_S);
                }
                self.tasks.retain(|task| match task {
                    Task::Lend {
                        to: whom,
                        model: of,
                        ..
                    } => (of, whom) != (&model, &to),
                    Task::Load {
                        model: of,
                        eligible,
                        ..
                    } => *of != model || eligible[0] != to,
                    Task::Unload { .. } => true,
                });
            }
        }
    }

    /// Whose runtime has memory of a GPU.
    fn users(&self, name: &str) -> Vec<&str> {
        let uses = |gpu: &&Gpu| match &gpu.phase {
            Phase::Loading { lenders, .. } | Phase::Hot { lenders, .. } => {
                gpu.name == name || lenders.iter().any(|of| of == name)
            }
            Phase::Unloading { .. } => gpu.name == name,
            Phase::Cold | Phase::Lent { .. } => false,
        };
        self.gpus
            .iter()
            .filter(uses)
            .map(|gpu| gpu.name.as_str())
            .collect()
    }

    /// One agent takes the first task that it may.
    pub(super) fn claim(&mut self, at: usize) {
        let gpu = &self.gpus[at];
        if !gpu.alive {
            return;
        }
        let name = gpu.name.clone();
        let free = gpu.script_until <= self.now;
        let users = self.users(&name);
        let unused = users.is_empty();
        let only_by = |to: &str| users.iter().all(|user| *user == to);
        let failed = |model: &String| matches!(&gpu.fails, Some((of, until)) if of == model && *until > self.now);
        let may = |task: &Task| match (task, &gpu.phase) {
            (Task::Unload { agent }, Phase::Hot { .. } | Phase::Lent { .. } | Phase::Cold) => {
                *agent == name
            }
            (
                Task::Lend {
                    agent, to, expires, ..
                },
                Phase::Cold,
            ) => *agent == name && *expires > self.now && free && only_by(to),
            (
                Task::Lend {
                    agent,
                    to,
                    model,
                    expires,
                },
                Phase::Lent {
                    model: of,
                    to: whom,
                },
            ) => *agent == name && *expires > self.now && of == model && whom == to,
            (
                Task::Load {
                    model, eligible, ..
                },
                Phase::Cold,
            ) => eligible.contains(&name) && free && unused && !failed(model),
            (
                Task::Load {
                    model, eligible, ..
                },
                Phase::Lent { model: of, to },
            ) => eligible.contains(&name) && of == model && *to == name && !failed(model),
            _ => false,
        };
        let Some(found) = self.tasks.iter().position(may) else {
            return;
        };
        let task = self.tasks.remove(found);
        if let Task::Load { model, lenders, .. } = &task {
            // As the agent does: one that lends no more since the load was asked for fails it.
            let lends = |gpu: &Gpu| {
                gpu.alive
                    && matches!(&gpu.phase, Phase::Lent { model: of, to } if of == model && *to == name)
            };
            let all = lenders.iter().all(|lender| {
                self.gpus
                    .iter()
                    .any(|gpu| gpu.name == *lender && lends(gpu))
            });
            if !all {
                self.gpus[at].fails = Some((model.clone(), self.now + 30));
                self.gpus[at].phase = Phase::Cold;
                return;
            }
        }
        let now = self.now;
        let gpu = &mut self.gpus[at];
        match task {
            Task::Unload { .. } => {
                gpu.phase = match &gpu.phase {
                    Phase::Hot { model, .. } => Phase::Unloading {
                        model: model.clone(),
                        until: now + UNLOAD_S,
                    },
                    _ => Phase::Cold,
                };
            }
            Task::Lend { to, model, .. } => gpu.phase = Phase::Lent { model, to },
            Task::Load { model, lenders, .. } => {
                gpu.phase = Phase::Loading {
                    model,
                    lenders,
                    until: now + LOAD_S,
                };
            }
        }
        for gpu in &self.gpus {
            assert!(self.users(&gpu.name).len() <= 1, "{} serves two", gpu.name);
        }
    }

    /// A second passes.
    pub(super) fn tick(&mut self) {
        self.now += 1;
        let now = self.now;
        let mut served = BTreeSet::new();
        for gpu in self.gpus.iter_mut().filter(|gpu| gpu.alive) {
            match &gpu.phase {
                Phase::Loading {
                    model,
                    lenders,
                    until,
                } if *until <= now => {
                    gpu.phase = Phase::Hot {
                        model: model.clone(),
                        lenders: lenders.clone(),
                        since: now,
                    };
                }
                Phase::Unloading { until, .. } if *until <= now => gpu.phase = Phase::Cold,
                _ => {}
            }
            if let Phase::Hot { model, since, .. } = &gpu.phase {
                served.insert(model.clone());
                if (now - since).is_multiple_of(TASK_S)
                    && let Some(left) = self.queued.get_mut(model.as_str())
                {
                    *left = left.saturating_sub(1);
                }
            }
        }
        for model in MODELS {
            if self.queued[model] == 0 || served.contains(model) {
                self.unserved_since.remove(model);
            } else {
                let since = *self.unserved_since.entry(model).or_insert(now);
                let longest = self.longest_wait.entry(model).or_default();
                *longest = (*longest).max(now - since);
            }
        }
    }

    pub(super) fn die(&mut self, at: usize) {
        self.gpus[at].alive = false;
        self.gpus[at].phase = Phase::Cold;
    }

    pub(super) fn fail(&mut self, at: usize) {
        let gpu = &mut self.gpus[at];
        if let Phase::Loading { model, .. } = &gpu.phase {
            gpu.fails = Some((model.clone(), self.now + 30));
            gpu.phase = Phase::Cold;
        }
    }
}

fn beat(phase: &Phase) -> LlmBeat {
    let since = Timestamp::UNIX_EPOCH;
    match phase.clone() {
        Phase::Cold => LlmBeat::Cold,
        Phase::Lent { model, to } => LlmBeat::Lent { model, to, since },
        Phase::Loading { model, lenders, .. } => LlmBeat::Loading {
            model,
            since,
            lenders,
        },
        Phase::Hot { model, lenders, .. } => LlmBeat::Hot {
            model,
            slots: 1,
            load_ms: LOAD_S * 1000,
            since,
            lenders,
        },
        Phase::Unloading { model, .. } => LlmBeat::Unloading { model },
    }
}
