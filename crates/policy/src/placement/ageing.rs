//! Bounded starvation: a small rig under random arrivals, second by second. The agents are the
//! least that placement relies on; the real admission is in the simulator.

use proptest::prelude::*;

use super::*;

/// Simulated seconds.
const TIME: u32 = 2500;
/// Seconds that an unload takes.
const UNLOAD: u32 = 2;

#[derive(Clone, Debug)]
struct Model {
    load: u32,
    task: u32,
    slots: usize,
    /// A task arrives every so many seconds.
    every: u32,
    /// GPUs that it fits: the first so many.
    fits: usize,
}

#[derive(Clone, Debug)]
struct Rig {
    gpus: usize,
    models: Vec<Model>,
    /// A script arrives every so many seconds and takes so long, with a GPU of its own.
    scripts: Option<(u32, u32)>,
}

#[derive(Clone, Debug)]
struct Gpu {
    llm: LlmBeat,
    model: usize,
    since: u32,
    /// Ends of llm tasks.
    tasks: Vec<u32>,
    script: Option<u32>,
    leaves: bool,
}

struct World {
    rig: Rig,
    now: u32,
    gpus: Vec<Gpu>,
    queued: Vec<usize>,
    waiting: Vec<u32>,
    scripts: usize,
    scripts_short: u32,
    /// Loads that nobody has taken: the model and who may.
    loads: Vec<(usize, Vec<String>)>,
    worst: Vec<u32>,
    worst_scripts: u32,
}

fn name(model: usize) -> String {
    format!("m{model}")
}

impl World {
    fn new(rig: Rig) -> World {
        let gpu = Gpu {
            llm: LlmBeat::Cold,
            model: 0,
            since: 0,
            tasks: Vec::new(),
            script: None,
            leaves: false,
        };
        let models = rig.models.len();
        World {
            gpus: vec![gpu; rig.gpus],
            queued: vec![0; models],
            waiting: vec![0; models],
            worst: vec![0; models],
            rig,
            now: 0,
            scripts: 0,
            scripts_short: 0,
            loads: Vec::new(),
            worst_scripts: 0,
        }
    }

    fn step(&mut self) {
        self.now += 1;
        let now = self.now;
        for (model, of) in self.rig.models.iter().enumerate() {
            self.queued[model] += usize::from(now.is_multiple_of(of.every));
        }
        self.scripts += usize::from(
            self.rig
                .scripts
                .is_some_and(|(every, _)| now.is_multiple_of(every)),
        );
        for gpu in &mut self.gpus {
            gpu.tasks.retain(|end| *end > now);
            gpu.script = gpu.script.filter(|end| *end > now);
            let model = &self.rig.models[gpu.model];
            let next = match &gpu.llm {
                LlmBeat::Loading { .. } if now >= gpu.since + model.load => LlmBeat::Hot {
                    model: name(gpu.model),
                    slots: model.slots as u32,
                    load_ms: u64::from(model.load) * 1000,
                    since: jiff::Timestamp::UNIX_EPOCH,
                    lenders: Vec::new(),
                },
                LlmBeat::Hot { .. } if gpu.leaves => LlmBeat::Draining {
                    model: name(gpu.model),
                },
                LlmBeat::Draining { .. } if gpu.tasks.is_empty() => LlmBeat::Unloading {
                    model: name(gpu.model),
                },
                LlmBeat::Unloading { .. } if now >= gpu.since + UNLOAD => LlmBeat::Cold,
                _ => continue,
            };
            gpu.llm = next;
            gpu.since = now;
            gpu.leaves = false;
        }
        self.claim();
        self.age();
        self.place();
    }

    fn claim(&mut self) {
        for at in 0..self.gpus.len() {
            let me = format!("gpu-{at}");
            let gpu = &mut self.gpus[at];
            match &gpu.llm {
                LlmBeat::Hot { .. } => {
                    let model = &self.rig.models[gpu.model];
                    while gpu.tasks.len() < model.slots && self.queued[gpu.model] > 0 {
                        self.queued[gpu.model] -= 1;
                        gpu.tasks.push(self.now + model.task);
                    }
                }
                LlmBeat::Cold => {
                    // A load that it was passed over for keeps room, as in admission.
                    let load = self.loads.iter().position(|(_, may)| may.contains(&me));
                    match (load, gpu.script) {
                        (Some(_), Some(_)) => {}
                        (Some(load), None) => {
                            gpu.model = self.loads.remove(load).0;
                            gpu.since = self.now;
                            gpu.llm = LlmBeat::Loading {
                                model: name(gpu.model),
                                since: jiff::Timestamp::UNIX_EPOCH,
                                lenders: Vec::new(),
                            };
                        }
                        (None, None) if self.scripts > 0 => {
                            self.scripts -= 1;
                            let (_, takes) = self.rig.scripts.unwrap_or_default();
                            gpu.script = Some(self.now + takes);
                        }
                        (None, _) => {}
                    }
                }
                _ => {}
            }
        }
    }

    fn age(&mut self) {
        for model in 0..self.rig.models.len() {
            let hot = |gpu: &Gpu| gpu.model == model && matches!(gpu.llm, LlmBeat::Hot { .. });
            let waits = self.queued[model] > 0 && !self.gpus.iter().any(hot);
            self.waiting[model] = if waits { self.waiting[model] + 1 } else { 0 };
            self.worst[model] = self.worst[model].max(self.waiting[model]);
        }
        let all_hold = self.gpus.iter().all(|gpu| gpu.llm != LlmBeat::Cold);
        let short = self.scripts > 0 && all_hold;
        self.scripts_short = if short { self.scripts_short + 1 } else { 0 };
        self.worst_scripts = self.worst_scripts.max(self.scripts_short);
    }

    fn view(&self) -> View {
        let models = self.rig.models.iter().enumerate();
        let demands = models.map(|(at, model)| Demand {
            model: name(at),
            queued: self.queued[at],
            task_seconds: f64::from(model.task),
            measured: true,
            slots: model.slots as u32,
            load_seconds: f64::from(model.load),
            waiting_seconds: f64::from(self.waiting[at]),
        });
        let gpus = self.gpus.iter().enumerate();
        let takes = self.rig.scripts.map_or(0, |(_, takes)| takes);
        View {
            models: demands.collect(),
            agents: gpus
                .map(|(at, gpu)| Agent {
                    name: format!("gpu-{at}"),
                    alive: true,
                    health: Health::Healthy,
                    health_reason: None,
                    llm: gpu.llm.clone(),
                    held_seconds: f64::from(self.now - gpu.since),
                    llm_running: gpu.tasks.len() as u32,
                    scripts_blocked: self.scripts > 0 && matches!(gpu.llm, LlmBeat::Hot { .. }),
                    cannot: (0..self.rig.models.len())
                        .filter(|model| at >= self.rig.models[*model].fits)
                        .map(|model| (name(model), "vram_short".to_owned()))
                        .collect(),
                    failed: Vec::new(),
                    load_seconds: Vec::new(),
                    room_in_seconds: gpu.script.map_or(Vec::new(), |end| {
                        (0..self.rig.models.len())
                            .map(|model| ModelSeconds {
                                model: name(model),
                                seconds: f64::from(end - self.now),
                            })
                            .collect()
                    }),
                })
                .collect(),
            pending: self
                .loads
                .iter()
                .map(|(model, may)| Pending {
                    model: name(*model),
                    eligible: may.clone(),
                })
                .collect(),
            scripts_queued: self.scripts,
            script_seconds: (self.scripts as u32 * takes).into(),
            scripts_waiting_seconds: f64::from(self.scripts_short),
            ..View::default()
        }
    }

    fn place(&mut self) {
        let view = self.view();
        // As the brain does: what another one could take is asked for anew.
        self.loads.retain(|(model, may)| {
            self.queued[*model] > 0 && !is_misplaced(&view, &name(*model), may)
        });
        let view = self.view();
        for decision in decide(&view) {
            match decision {
                Decision::Load {
                    model,
                    count,
                    eligible,
                    ..
                } => {
                    let model = (0..self.rig.models.len()).find(|at| name(*at) == model);
                    let model = model.expect("a known model");
                    self.loads.extend(vec![(model, eligible); count]);
                }
                Decision::Unload { agent, .. } => {
                    let at = (0..self.gpus.len()).find(|at| format!("gpu-{at}") == agent);
                    self.gpus[at.expect("a known agent")].leaves = true;
                }
                Decision::Keep { .. } | Decision::Stranded { .. } | Decision::Split { .. } => {}
            }
        }
    }

    /// The documented bound, seconds: the ageing bound, and then, for each model that may be
    /// before it (one GPU is freed at a time): its residence, its last tasks, its unload, and the
    /// load, with scripts that run there ending first.
    fn bound(&self, load: u32) -> u32 {
        let most = |of: fn(&Model) -> u32| self.rig.models.iter().map(of).max().unwrap_or(0);
        let script = self.rig.scripts.map_or(0, |(_, takes)| takes);
        let turn = 2 * most(|model| model.load) + most(|model| model.task) + UNLOAD + script + 5;
        STARVED_AFTER_LOADS as u32 * load + self.rig.models.len() as u32 * turn
    }
}

fn any_rig() -> impl Strategy<Value = Rig> {
    let model = (1u32..15, 1u32..12, 1usize..4, 1u32..30, 1usize..4);
    let models = prop::collection::vec(model, 1..4);
    (1usize..4, models, prop::option::of((2u32..200, 1u32..20))).prop_map(
        |(gpus, models, scripts)| Rig {
            gpus,
            models: models
                .into_iter()
                .map(|(load, task, slots, every, fits)| Model {
                    load,
                    task,
                    slots,
                    every,
                    fits: fits.min(gpus),
                })
                .collect(),
            scripts,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn nothing_waits_longer_than_its_bound(rig in any_rig()) {
        let mut world = World::new(rig);
        for _ in 0..TIME {
            world.step();
            for (model, of) in world.rig.models.iter().enumerate() {
                let bound = world.bound(of.load);
                prop_assert!(
                    world.worst[model] <= bound,
                    "{} waits for {}s, its bound is {bound}s, at {}s: {:#?}",
                    name(model), world.worst[model], world.now, decide(&world.view())
                );
            }
            let most = world.rig.models.iter().map(|model| model.load).max().unwrap_or(0);
            let bound = world.bound(most);
            prop_assert!(
                world.worst_scripts <= bound,
                "scripts wait for {}s, their bound is {bound}s, at {}s: {:#?}",
                world.worst_scripts, world.now, decide(&world.view())
            );
        }
    }
}
