//! A rig in simulated time: agents that admit by the real admission, a brain that places by the
//! rules under test, and work whose durations only the world knows.

mod claims;
mod seen;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use jiff::{SignedDuration, Timestamp};
use rigor_policy::admission::{
    self, AgentState, Candidate, LlmState, Needs, Running, Slots, VramNeed,
};
use rigor_policy::gpu_time;
use rigor_policy::placement::{self, Decision, Demand, ModelSeconds, Pending, View};
use rigor_queue::heartbeat::{Health, LlmBeat, Refusal};
use rigor_queue::reasons::Cause;
use rigor_queue::task::Class;

use crate::rules::Rules;
use crate::trace::{Gpu, Trace, Work};

/// The brain decides on placement at most so often, seconds: as the real one does.
const PLACE_EVERY_S: f64 = 0.2;
/// The weight of the newest duration in an average: as the brain's measurements have it.
const NEWEST_WEIGHT: f64 = 0.1;
/// A trace that needs more steps than this does not end.
const STEPS_MOST: usize = 20_000_000;

/// What came of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// From the start to the end of the last task, seconds.
    pub makespan_s: f64,
    /// From the first llm task that could start to the end of the last one, seconds.
    pub llm_s: f64,
    /// Models loaded.
    pub loads: usize,
    /// The longest time that a task was ready and did not run, seconds.
    pub worst_wait_s: f64,
    /// GPU seconds by cause, over all GPUs and the whole makespan.
    pub gpu_seconds: BTreeMap<Cause, f64>,
    /// Tasks that never ran.
    pub left: usize,
}

/// Runs a trace to its end.
pub fn run(trace: &Trace, durations: &[Vec<f64>], rules: Rules) -> Outcome {
    World::new(trace, durations, rules).run()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Arrive { work: usize, task: usize },
    End { agent: usize, run: u64 },
    Loaded { agent: usize, epoch: u64 },
    Unloaded { agent: usize, epoch: u64 },
    Lost { agent: usize },
    Back { agent: usize },
    Place,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Event {
    at: f64,
    /// Events of one instant come in the order in which they were made.
    number: u64,
    what: What,
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Event) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Event) -> Ordering {
        // The heap gives its largest: the earliest is to be that.
        other
            .at
            .total_cmp(&self.at)
            .then_with(|| other.number.cmp(&self.number))
    }
}

#[derive(Clone, Debug)]
struct Run {
    number: u64,
    work: usize,
    task: usize,
    since: f64,
}

struct Agent<'t> {
    name: String,
    gpu: &'t Gpu,
    alive: bool,
    llm: LlmState,
    llm_since: f64,
    /// Rises with every change of the model: events of an earlier one count no more.
    epoch: u64,
    running: Vec<Run>,
    leased_mb: u64,
    decision: Option<(admission::Decision, Vec<Candidate>)>,
    /// Since when it refuses a kind of work for want of room.
    passed_over: BTreeMap<Key, f64>,
    /// The same, for want of memory, the model's included.
    short_of_memory: BTreeMap<Key, f64>,
    cause: Cause,
    cause_since: f64,
    gpu_seconds: BTreeMap<Cause, f64>,
}

struct Load {
    model: String,
    eligible: Vec<String>,
}

/// A queued task: its number in the queue, which task of its work, since when.
struct Queued {
    sequence: u64,
    task: usize,
    ready: f64,
    /// It ran before, on a GPU that was lost.
    again: bool,
}

struct World<'t> {
    trace: &'t Trace,
    durations: &'t [Vec<f64>],
    rules: Rules,
    now: f64,
    events: BinaryHeap<Event>,
    numbers: u64,
    agents: Vec<Agent<'t>>,
    queues: Vec<VecDeque<Queued>>,
    sequence: u64,
    /// Tasks that have ended, by work.
    done: Vec<Vec<bool>>,
    ended: Vec<usize>,
    loads: Vec<Load>,
    unloads: Vec<String>,
    task_seconds: Vec<Option<f64>>,
    load_seconds: BTreeMap<String, f64>,
    waiting_since: BTreeMap<String, f64>,
    place_at: f64,
    place_wanted: bool,
    loaded: usize,
    worst_wait_s: f64,
    llm_from: Option<f64>,
    llm_to: f64,
    last_end: f64,
    turn: usize,
}

impl<'t> World<'t> {
    fn new(trace: &'t Trace, durations: &'t [Vec<f64>], rules: Rules) -> World<'t> {
        let agents = trace
            .each_gpu()
            .into_iter()
            .enumerate()
            .map(|(at, gpu)| Agent {
                name: format!("gpu-{}", at + 1),
                gpu,
                alive: true,
                llm: LlmState::Cold,
                llm_since: 0.0,
                epoch: 0,
                running: Vec::new(),
                leased_mb: 0,
                decision: None,
                passed_over: BTreeMap::new(),
                short_of_memory: BTreeMap::new(),
                cause: Cause::NoWork,
                cause_since: 0.0,
                gpu_seconds: BTreeMap::new(),
            })
            .collect();
        let mut world = World {
            trace,
            durations,
            rules,
            now: 0.0,
            events: BinaryHeap::new(),
            numbers: 0,
            agents,
            queues: trace.work.iter().map(|_| VecDeque::new()).collect(),
            sequence: 0,
            done: trace.work.iter().map(|it| vec![false; it.count]).collect(),
            ended: vec![0; trace.work.len()],
            loads: Vec::new(),
            unloads: Vec::new(),
            task_seconds: vec![None; trace.work.len()],
            load_seconds: BTreeMap::new(),
            waiting_since: BTreeMap::new(),
            place_at: 0.0,
            place_wanted: true,
            loaded: 0,
            worst_wait_s: 0.0,
            llm_from: None,
            llm_to: 0.0,
            last_end: 0.0,
            turn: 0,
        };
        for (work, of) in trace.work.iter().enumerate() {
            for task in 0..of.count {
                if of.after.is_none() && of.each.is_none() {
                    let at = trace.costs.submit_s + of.at + task as f64 * of.every;
                    world.push(at, What::Arrive { work, task });
                }
            }
        }
        for outage in &trace.outages {
            let agent = outage.gpu;
            world.push(outage.at, What::Lost { agent });
            if let Some(seconds) = outage.seconds {
                world.push(outage.at + seconds, What::Back { agent });
            }
        }
        world
    }

    fn push(&mut self, at: f64, what: What) {
        self.numbers += 1;
        let number = self.numbers;
        self.events.push(Event { at, number, what });
    }

    fn run(mut self) -> Outcome {
        for _ in 0..STEPS_MOST {
            let Some(event) = self.events.pop() else {
                break;
            };
            self.now = event.at;
            self.take(event.what);
            while self.events.peek().is_some_and(|next| next.at <= self.now) {
                let Some(event) = self.events.pop() else {
                    break;
                };
                self.take(event.what);
            }
            self.claim();
            self.place();
            self.account();
            if self.left() == 0 {
                break;
            }
        }
        let mut gpu_seconds = BTreeMap::new();
        for agent in &mut self.agents {
            // What came after the last task's end is nobody's.
            let rest = (self.last_end - agent.cause_since).max(0.0);
            *agent.gpu_seconds.entry(agent.cause).or_default() += rest;
            for (cause, seconds) in &agent.gpu_seconds {
                *gpu_seconds.entry(*cause).or_default() += seconds;
            }
        }
        Outcome {
            makespan_s: self.last_end,
            llm_s: self.llm_from.map_or(0.0, |from| self.llm_to - from),
            loads: self.loaded,
            worst_wait_s: self.worst_wait_s,
            gpu_seconds,
            left: self.left(),
        }
    }

    fn left(&self) -> usize {
        let all: usize = self.trace.work.iter().map(|work| work.count).sum();
        all - self.ended.iter().sum::<usize>()
    }

    fn take(&mut self, what: What) {
        self.place_wanted = true;
        match what {
            What::Arrive { work, task } => self.enqueue(work, task),
            What::End { agent, run } => self.end(agent, run),
            What::Loaded { agent, epoch } if self.agents[agent].epoch == epoch => {
                self.model_is_hot(agent);
            }
            What::Unloaded { agent, epoch } if self.agents[agent].epoch == epoch => {
                let mb = self.held_mb(agent);
                let agent = &mut self.agents[agent];
                agent.leased_mb -= mb;
                agent.llm = LlmState::Cold;
                agent.epoch += 1;
            }
            What::Loaded { .. } | What::Unloaded { .. } => {}
            What::Lost { agent } => self.lose(agent),
            What::Back { agent } => self.agents[agent].alive = true,
            What::Place => {}
        }
    }

    fn enqueue(&mut self, work: usize, task: usize) {
        self.sequence += 1;
        if self.trace.work[work].model.is_some() {
            self.llm_from.get_or_insert(self.now);
        }
        self.queues[work].push_back(Queued {
            sequence: self.sequence,
            task,
            ready: self.now,
            again: false,
        });
    }

    fn end(&mut self, agent: usize, number: u64) {
        let at = self.agents[agent]
            .running
            .iter()
            .position(|run| run.number == number);
        // A lost GPU's tasks do not end.
        let Some(at) = at else { return };
        let run = self.agents[agent].running.remove(at);
        let work = &self.trace.work[run.work];
        if work.model.is_none() {
            self.agents[agent].leased_mb -= work.vram_mb;
        } else {
            self.llm_to = self.now;
        }
        self.last_end = self.now;
        let took = self.now - run.since;
        let known = self.task_seconds[run.work].get_or_insert(took);
        *known += (took - *known) * NEWEST_WEIGHT;
        self.done[run.work][run.task] = true;
        self.ended[run.work] += 1;
        self.release(run.work, run.task);
        self.unload_when_drained(agent);
    }

    fn release(&mut self, ended: usize, task: usize) {
        let name = &self.trace.work[ended].name;
        let all = self.ended[ended] == self.trace.work[ended].count;
        for (at, work) in self.trace.work.iter().enumerate() {
            if work.each.as_ref() == Some(name) && task < work.count {
                self.enqueue(at, task);
            }
            if work.after.as_ref() == Some(name) && all {
                for task in 0..work.count {
                    self.enqueue(at, task);
                }
            }
        }
    }

    fn model_is_hot(&mut self, agent: usize) {
        let LlmState::Loading { model, .. } = &self.agents[agent].llm else {
            return;
        };
        let model = model.clone();
        let took = self.now - self.agents[agent].llm_since;
        let known = self.load_seconds.entry(model.clone()).or_insert(took);
        *known += (took - *known) * NEWEST_WEIGHT;
        let total = self.trace.model(&model).map_or(1, |model| model.slots);
        self.agents[agent].llm = LlmState::Hot {
            model,
            tier: 0,
            slots: Slots { used: 0, total },
        };
        self.agents[agent].llm_since = self.now;
    }

    fn unload_when_drained(&mut self, at: usize) {
        let agent = &mut self.agents[at];
        let LlmState::Draining { model } = &agent.llm else {
            return;
        };
        let is_llm = |run: &Run| self.trace.work[run.work].model.is_some();
        if agent.running.iter().any(is_llm) {
            return;
        }
        let model = model.clone();
        let takes = self.trace.model(&model).map_or(0.0, |model| model.unload_s);
        agent.llm = LlmState::Unloading { model };
        agent.epoch += 1;
        let (agent, epoch) = (at, agent.epoch);
        self.push(self.now + takes, What::Unloaded { agent, epoch });
    }

    fn lose(&mut self, agent: usize) {
        let lost = &mut self.agents[agent];
        lost.alive = false;
        lost.llm = LlmState::Cold;
        lost.epoch += 1;
        lost.leased_mb = 0;
        lost.passed_over.clear();
        lost.short_of_memory.clear();
        lost.decision = None;
        let name = lost.name.clone();
        for run in std::mem::take(&mut lost.running) {
            self.sequence += 1;
            // Its place in the queue is kept by its number, which is an old one.
            self.queues[run.work].push_front(Queued {
                sequence: 0,
                task: run.task,
                ready: self.now,
                again: true,
            });
        }
        self.unloads.retain(|of| *of != name);
    }

    fn held_mb(&self, agent: usize) -> u64 {
        let model = match &self.agents[agent].llm {
            LlmState::Cold => None,
            LlmState::Loading { model, .. }
            | LlmState::Hot { model, .. }
            | LlmState::Lent { model, .. }
            | LlmState::Draining { model }
            | LlmState::Unloading { model } => self.trace.model(model),
        };
        model.map_or(0, |model| model.vram_mb)
    }

    fn place(&mut self) {
        if !self.place_wanted {
            return;
        }
        if self.now < self.place_at {
            self.push(self.place_at, What::Place);
            return;
        }
        self.place_wanted = false;
        self.place_at = self.now + PLACE_EVERY_S;
        let view = self.view();
        for decision in self.rules.decide(&view) {
            match decision {
                Decision::Load {
                    model,
                    count,
                    eligible,
                    ..
                } => {
                    for _ in 0..count {
                        self.loads.push(Load {
                            model: model.clone(),
                            eligible: eligible.clone(),
                        });
                    }
                }
                Decision::Unload { agent, .. } if !self.unloads.contains(&agent) => {
                    self.unloads.push(agent);
                }
                _ => {}
            }
        }
        let needed = |model: &String| view.models.iter().any(|demand| demand.model == *model);
        // As the real brain does: what another one could take is asked for anew.
        let misplaced = |load: &Load| placement::is_misplaced(&view, &load.model, &load.eligible);
        let before = self.loads.len();
        self.loads
            .retain(|load| needed(&load.model) && !misplaced(load));
        self.place_wanted |= self.loads.len() < before;
        self.claim();
        if self.place_wanted {
            self.push(self.place_at, What::Place);
        }
    }

    /// Each agent's time since the last look goes to the cause that it had.
    fn account(&mut self) {
        let waits = self
            .trace
            .work
            .iter()
            .enumerate()
            .any(|(at, work)| self.waits(at, work));
        for at in 0..self.agents.len() {
            let cause = self.cause(at, waits);
            let agent = &mut self.agents[at];
            if cause != agent.cause {
                let seconds = self.now - agent.cause_since;
                *agent.gpu_seconds.entry(agent.cause).or_default() += seconds;
                agent.cause = cause;
                agent.cause_since = self.now;
            }
        }
    }

    /// Tasks of that work wait for others.
    fn waits(&self, at: usize, work: &Work) -> bool {
        let follows = work.after.is_some() || work.each.is_some();
        let running: usize = self
            .agents
            .iter()
            .flat_map(|agent| &agent.running)
            .filter(|run| run.work == at)
            .count();
        follows && self.ended[at] + running + self.queues[at].len() < work.count
    }

    fn cause(&self, at: usize, waits: bool) -> Cause {
        let agent = &self.agents[at];
        if !agent.alive {
            return Cause::AgentDown;
        }
        let idle = agent
            .decision
            .as_ref()
            .and_then(|(decision, candidates)| decision.idle_gpu(&self.state(at), candidates));
        let cause = gpu_time::cause(
            Health::Healthy,
            &agent.llm,
            agent.running.len(),
            idle.as_ref(),
        );
        if cause == Cause::NoWork && waits {
            Cause::WaitingDeps
        } else {
            cause
        }
    }
}

/// What an agent refuses: tasks of a work, or loads of a model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Work(usize),
    Load(String),
}

#[derive(Clone, Copy)]
enum Listed {
    Work(usize),
    Load(usize),
    Unload,
}

fn class(work: &Work) -> Class {
    if work.model.is_some() {
        Class::Llm
    } else {
        Class::Script
    }
}
