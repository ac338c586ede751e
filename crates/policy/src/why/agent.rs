//! Why an agent does nothing, or what it does; and the brain.

mod model;

use model::{lent, model};

use super::liveness::{Liveness, ago, clock, process_words, seconds_between};
use super::task::running::signs;
use super::*;
use crate::span::span_s;
use rigor_queue::heartbeat::{GpuBeat, Health, LlmBeat, Refusal, Verdict};
use rigor_queue::reasons::Cause;

/// The answer about an agent or the brain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentVerdict {
    /// Tasks run.
    Working,
    /// A model moves.
    Loading,
    /// It lives and does nothing.
    Idle,
    /// It is not there.
    Down,
    /// The brain takes back what it left.
    Recovering,
    /// It has not said anything yet.
    Starting,
    /// It holds its lock and does not answer.
    NotAnswering,
    /// It lives and cannot write.
    CannotWrite,
}

/// Explains an agent.
pub fn agent(facts: &Facts, one: &OneAgent) -> Explanation<AgentVerdict> {
    let mut out = Explanation {
        verdict: AgentVerdict::Idle,
        reason: String::new(),
        summary: String::new(),
        gates: Vec::new(),
        help: Vec::new(),
    };
    let name = &one.name;
    let known = facts
        .agents
        .iter()
        .find(|agent| agent.component.name == *name);
    let Some(known) = known else {
        out.verdict = AgentVerdict::Down;
        out.reason = "agent_down".to_owned();
        out.summary = format!("{name} is down: it was never started");
        return out;
    };
    let component = &known.component;
    let liveness = component.liveness(facts);
    state(facts, known, &mut out);
    disks(one, &mut out);
    if let Some(beat) = component.current() {
        details(facts, known, beat, &mut out);
    }
    if one.processing > 0 {
        let words = format!(
            "{} in its processing",
            count(one.processing as u64, "task file")
        );
        out.gates.push(Gate::new("tasks", GateState::Info, words));
    }
    if !one.signals.is_empty() {
        let words = one.signals.join(", ");
        out.gates.push(Gate::new("signals", GateState::Info, words));
    }
    let orphan = one.orphan.as_ref().map(|(model, pids)| {
        let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
        let words = format!(
            "its runtime of {model} (pid {}) still runs and holds VRAM until an agent takes it over or ends it",
            pids.join(", ")
        );
        out.gates
            .push(Gate::new("runtime", GateState::Closed, words));
        format!("its runtime of {model} still runs (pid {})", pids.join(", "))
    });
    if let Some(words) = &one.last_words {
        out.gates
            .push(Gate::new("last words", GateState::Info, words.clone()));
    }
    for change in &one.changes {
        let code = change
            .code
            .filter(|code| code.as_str() != change.cause.as_str())
            .map(|code| format!(" ({})", code.as_str()))
            .unwrap_or_default();
        let detail = if change.detail.is_empty() {
            String::new()
        } else {
            format!(" - {}", change.detail)
        };
        let words = format!("{}{code}{detail}", change.cause.words());
        let at = clock(facts, change.since);
        out.gates
            .push(Gate::new("changed", GateState::Info, words).of(&at));
    }
    let (verdict, reason, summary) = match (liveness, component.current()) {
        (Liveness::Fresh, Some(beat)) => answering(facts, known, beat, &mut out),
        _ => troubled(facts, one, known, liveness, orphan, &mut out),
    };
    out.verdict = verdict;
    out.reason = reason;
    out.summary = summary;
    add_help(
        &mut out.help,
        help(
            format!("rigor why {name} --since 2h"),
            "says what its time went into",
        ),
    );
    out
}

/// Alive, pid, process state.
fn state(facts: &Facts, agent: &AgentFacts, out: &mut Explanation<AgentVerdict>) {
    let component = &agent.component;
    let mut words = Vec::new();
    if component.presence == Presence::Alive {
        words.push("alive".to_owned());
        words.extend(component.pid.map(|pid| format!("pid {pid}")));
        words.extend(
            component
                .process
                // Every writer is in that state for an instant; it tells only of one that is silent.
                .filter(|state| *state != 'D')
                .and_then(process_words)
                .map(|words| format!("its process {words}")),
        );
        if let Some(beat) = component.current() {
            words.push(format!("up {}", ago(facts, beat.started)));
        }
    } else {
        words.push("its lock is free".to_owned());
    }
    if component.seen.is_some() {
        words.push(format!(
            "last heartbeat {} ago",
            span_s(component.silent_s(facts))
        ));
    }
    if !agent.configured {
        words.push("not in rig.toml any more".to_owned());
    }
    let state = if component.trouble(facts).is_none() {
        GateState::Open
    } else {
        GateState::Closed
    };
    out.gates.push(Gate::new("alive", state, words.join(", ")));
}

fn disks(one: &OneAgent, out: &mut Explanation<AgentVerdict>) {
    for (path, free, total) in &one.disks {
        if *free < DISK_FULL_MB {
            let words = format!("full: {free} MB free of {total} MB");
            out.gates
                .push(Gate::new("disk", GateState::Closed, words).of(path));
        }
    }
}

fn full_disk(one: &OneAgent) -> Option<String> {
    one.disks
        .iter()
        .find(|(_, free, _)| *free < DISK_FULL_MB)
        .map(|(path, free, _)| format!("its disk is full ({free} MB free on {path})"))
}

fn troubled(
    facts: &Facts,
    one: &OneAgent,
    agent: &AgentFacts,
    liveness: Liveness,
    orphan: Option<String>,
    out: &mut Explanation<AgentVerdict>,
) -> (AgentVerdict, String, String) {
    let name = &one.name;
    let trouble = agent
        .component
        .trouble(facts)
        .unwrap_or_else(|| format!("{name} has not beaten yet"));
    let logs = help(
        format!("tail logs/{name}.log"),
        "shows its log, in the rig's directory",
    );
    let (verdict, reason) = match liveness {
        Liveness::Never | Liveness::Down => {
            let does = match orphan {
                Some(_) => "starts it: it takes its runtime over or ends it",
                None => "starts it",
            };
            out.help.push(help("rigor up", does));
            out.help.push(logs);
            let orphan = orphan.map_or_else(String::new, |words| format!("; {words}"));
            let summary = format!("{}{orphan}. Start it: rigor up", end(facts, one, trouble));
            return (AgentVerdict::Down, "agent_down".to_owned(), summary);
        }
        Liveness::Recovering => (AgentVerdict::Recovering, "agent_down"),
        Liveness::Starting => (AgentVerdict::Starting, "starting"),
        Liveness::Mute => {
            out.help.push(logs);
            (AgentVerdict::NotAnswering, "agent_down")
        }
        Liveness::CannotWrite | Liveness::Fresh => {
            out.help.push(help("rigor doctor", "looks at the disk"));
            if let Some(full) = full_disk(one) {
                let summary = format!("{name} cannot write: {full}");
                return (AgentVerdict::CannotWrite, "disk_full".to_owned(), summary);
            }
            (AgentVerdict::CannotWrite, "cannot_write")
        }
    };
    (verdict, reason.to_owned(), trouble)
}

/// How an agent that is down came to its end, where its journal says it.
fn end(facts: &Facts, one: &OneAgent, trouble: String) -> String {
    let last = one.changes.last();
    let Some(last) = last.filter(|it| it.cause == Cause::AgentDown && !it.detail.is_empty()) else {
        return trouble;
    };
    match last.detail.strip_prefix("stopped: ") {
        Some(why) => format!(
            "{} is down: it was stopped at {} ({why})",
            one.name,
            clock(facts, last.since)
        ),
        None => format!("{trouble}; {}", last.detail),
    }
}

fn answering(
    facts: &Facts,
    agent: &AgentFacts,
    beat: &Heartbeat,
    out: &mut Explanation<AgentVerdict>,
) -> (AgentVerdict, String, String) {
    let name = &agent.component.name;
    if !beat.running.is_empty() {
        let first = &beat.running[0];
        let more = match beat.running.len() {
            1 => String::new(),
            many => format!(" and {} more", many - 1),
        };
        let also = match &beat.idle {
            Some(idle) => format!("; takes no more: {} - {}", idle.code.as_str(), idle.detail),
            None => String::new(),
        };
        let summary = format!(
            "{name} runs {} ({}) for {}{more}{also}",
            first.name,
            first.id.short(),
            ago(facts, first.since)
        );
        if let Some(idle) = &beat.idle {
            remedies(facts, agent, idle.code, out);
        }
        return (AgentVerdict::Working, "running".to_owned(), summary);
    }
    match &beat.llm {
        LlmBeat::Loading { model, since, .. } => {
            let summary = format!("{name} loads {model} since {}", ago(facts, *since));
            return (AgentVerdict::Loading, "loading".to_owned(), summary);
        }
        LlmBeat::Draining { model } | LlmBeat::Unloading { model } => {
            let summary = format!("{name} unloads {model}");
            return (AgentVerdict::Loading, "unloading".to_owned(), summary);
        }
        LlmBeat::Lent { model, to, .. } => {
            let summary = lent(facts, name, model, to);
            return (AgentVerdict::Idle, "lent".to_owned(), summary);
        }
        LlmBeat::Cold | LlmBeat::Hot { .. } | LlmBeat::Failed { .. } => {}
    }
    let idle = beat.idle_since.map_or_else(
        || format!("{name} idle"),
        |since| format!("{name} idle for {}", ago(facts, since)),
    );
    let Some(verdict) = &beat.idle else {
        let summary = format!("{idle}: it claims something this very moment");
        return (AgentVerdict::Working, "claiming".to_owned(), summary);
    };
    remedies(facts, agent, verdict.code, out);
    let mut summary = format!("{idle}: {} - {}", verdict.code.as_str(), verdict.detail);
    summary.push_str(&beyond(facts, verdict, out));
    (
        AgentVerdict::Idle,
        verdict.code.as_str().to_owned(),
        summary,
    )
}

/// What the agent cannot know and the brain does.
fn beyond(facts: &Facts, verdict: &Verdict, out: &mut Explanation<AgentVerdict>) -> String {
    let brain = facts.brain.trouble(facts);
    match verdict.code {
        Refusal::ModelNotLoaded | Refusal::WrongModel => {
            if facts.brain.presence != Presence::Alive {
                add_help(&mut out.help, help("rigor up", "starts the brain"));
                return "; the brain is not running, so nobody places models (rigor up)".to_owned();
            }
            let models = facts.outlook.iter().flat_map(|outlook| &outlook.models);
            let said: Vec<&str> = models
                .filter(|model| verdict.detail.contains(&model.model))
                .map(|model| model.reason.as_str())
                .filter(|reason| !verdict.detail.contains(reason))
                .collect();
            if said.is_empty() {
                String::new()
            } else {
                format!("; {}", said.join("; "))
            }
        }
        Refusal::QueueEmpty | Refusal::NoSuitableClass => {
            if let Some(trouble) = brain {
                add_help(&mut out.help, help("rigor up", "starts the brain"));
                return format!("; {trouble}: nothing is released");
            }
            let Some(outlook) = &facts.outlook else {
                return String::new();
            };
            let waits: usize = outlook.waiting.values().sum();
            let mut words = Vec::new();
            if waits > 0 {
                let classes: Vec<String> = outlook
                    .waiting
                    .iter()
                    .filter(|(_, count)| **count > 0)
                    .map(|(class, count)| format!("{class}:{count}"))
                    .collect();
                let waiting = if waits == 1 { "waits" } else { "wait" };
                words.push(format!(
                    "{} {waiting} for dependencies ({})",
                    count(waits as u64, "task"),
                    classes.join(", ")
                ));
            }
            if outlook.retry > 0 {
                words.push(format!("{} in backoff", outlook.retry));
            }
            if !outlook.held.is_empty() {
                words.push(format!("held: {}", outlook.held.join(", ")));
                add_help(
                    &mut out.help,
                    help(
                        format!("rigor release {}", outlook.held[0]),
                        "lets it go on",
                    ),
                );
            }
            if words.is_empty() {
                String::new()
            } else {
                format!("; {}", words.join("; "))
            }
        }
        _ => String::new(),
    }
}

fn remedies(facts: &Facts, agent: &AgentFacts, code: Refusal, out: &mut Explanation<AgentVerdict>) {
    let name = &agent.component.name;
    let one = match code {
        Refusal::Paused | Refusal::Draining => {
            help(format!("rigor resume {name}"), "lets it take work again")
        }
        Refusal::ModelNotLoaded
            if agent
                .default_model
                .as_ref()
                .is_some_and(|model| facts.split_models.contains(model)) =>
        {
            help("rigor models", "says where it fits")
        }
        Refusal::ModelNotLoaded => {
            let model = agent.default_model.as_deref().unwrap_or("MODEL");
            help(
                format!("rigor load {name} {model}"),
                "loads the model there",
            )
        }
        Refusal::WrongModel | Refusal::HoldingModel => {
            help(format!("rigor unload {name}"), "frees its GPU")
        }
        Refusal::GpuLost
        | Refusal::RuntimeFailing
        | Refusal::Backoff
        | Refusal::Thermal
        | Refusal::Power
        | Refusal::VramShort => help("rigor doctor", "looks at the GPU and the runtime"),
        Refusal::QueueEmpty
        | Refusal::NoSuitableClass
        | Refusal::SlotsFull
        | Refusal::CpuSlotsFull
        | Refusal::LostRace => return,
    };
    add_help(&mut out.help, one);
}

fn details(
    facts: &Facts,
    agent: &AgentFacts,
    beat: &Heartbeat,
    out: &mut Explanation<AgentVerdict>,
) {
    let health = match &beat.health_reason {
        Some(reason) => format!("{}: {reason}", beat.health.as_str()),
        None => beat.health.as_str().to_owned(),
    };
    let state = if beat.health == Health::Healthy {
        GateState::Open
    } else {
        GateState::Closed
    };
    out.gates.push(Gate::new("health", state, health));
    if let Some(gpu) = &beat.gpu {
        out.gates
            .push(Gate::new("gpu", GateState::Info, gpu_words(gpu)));
    }
    if agent.gpu {
        out.gates.push(model(facts, &beat.llm));
    }
    for (class, verdict) in &beat.verdicts {
        let gate = Gate::new("sees", GateState::Closed, verdict.detail.clone())
            .of(class.as_str())
            .code(verdict.code.as_str());
        out.gates.push(gate);
    }
    for running in &beat.running {
        let words = format!(
            "{} of {} for {}; last sign of life {} ago ({})",
            running.name,
            running.batch,
            ago(facts, running.since),
            span_s(seconds_between(running.active_at, facts.now)),
            signs(facts, running)
        );
        out.gates
            .push(Gate::new("runs", GateState::Info, words).of(&running.id.short()));
    }
}

fn gpu_words(gpu: &GpuBeat) -> String {
    let mut words = vec![gpu.name.clone()];
    words.extend(gpu.temperature_c.map(|degrees| format!("{degrees}C")));
    words.extend(gpu.utilization.map(|percent| format!("{percent}%")));
    words.extend(gpu.power_w.map(|watts| format!("{watts}W")));
    words.push(format!(
        "{}/{} MB used, budget {} MB, {} MB available",
        gpu.used_mb, gpu.total_mb, gpu.budget_mb, gpu.available_mb
    ));
    words.extend(gpu.foreign.clone());
    words.join(", ")
}

/// Explains the brain. `waits` are the batches that are not over, with what each waits for.
pub fn brain(facts: &Facts, waits: &[(String, String)]) -> Explanation<AgentVerdict> {
    let mut out = Explanation {
        verdict: AgentVerdict::Idle,
        reason: "no_work".to_owned(),
        summary: String::new(),
        gates: Vec::new(),
        help: Vec::new(),
    };
    let component = &facts.brain;
    let as_agent = AgentFacts {
        component: component.clone(),
        configured: true,
        gpu: false,
        default_model: None,
    };
    state(facts, &as_agent, &mut out);
    for signal in &facts.brain_signals {
        out.gates
            .push(Gate::new("signal", GateState::Info, "not taken yet").of(signal));
    }
    for (batch, words) in waits {
        out.gates
            .push(Gate::new("batch", GateState::Info, words.clone()).of(batch));
    }
    if let Some(outlook) = &facts.outlook {
        for model in &outlook.models {
            let words = format!("{} queued; {}", model.queued, model.reason);
            out.gates
                .push(Gate::new("placement", GateState::Info, words).of(&model.model));
        }
        for (shape, why) in &outlook.never {
            let shape = format!("{:08x}", shape.0);
            out.gates
                .push(Gate::new("never", GateState::Closed, why.clone()).of(&shape));
        }
    }
    if let Some(trouble) = component.trouble(facts) {
        let liveness = component.liveness(facts);
        out.verdict = match liveness {
            Liveness::Never | Liveness::Down => AgentVerdict::Down,
            Liveness::Recovering => AgentVerdict::Recovering,
            Liveness::Starting => AgentVerdict::Starting,
            Liveness::Mute => AgentVerdict::NotAnswering,
            Liveness::CannotWrite | Liveness::Fresh => AgentVerdict::CannotWrite,
        };
        out.reason = "brain_down".to_owned();
        let start = if out.verdict == AgentVerdict::Down {
            out.help.push(help("rigor up", "starts it"));
            ": nothing is released. Start it: rigor up"
        } else {
            ""
        };
        out.summary = format!("{trouble}{start}");
        return out;
    }
    let since = component.current().map_or_else(String::new, |beat| {
        format!(" for {}", ago(facts, beat.started))
    });
    if waits.is_empty() {
        out.summary = format!("brain runs{since} and waits for a plan: no batch is active");
        out.help
            .push(help("rigor submit PLAN_DIR", "gives it something to do"));
    } else {
        out.verdict = AgentVerdict::Working;
        out.reason = "waiting".to_owned();
        out.summary = format!(
            "brain runs{since}: {}; {}",
            match waits.len() {
                1 => "1 active batch".to_owned(),
                many => format!("{many} active batches"),
            },
            waits[0].1
        );
    }
    out
}
