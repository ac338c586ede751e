//! A task that is released and that nobody has taken.

use super::*;
use crate::span::span_s;
use rigor_queue::heartbeat::{LlmBeat, Refusal, Verdict};

/// What an agent says of the task.
enum Says<'f> {
    /// It would take it.
    Takes,
    /// It would not.
    Refuses(&'f Verdict),
    /// It cannot be asked.
    Absent(String),
    /// It is none that may.
    NotMeant(String),
}

fn says<'f>(facts: &'f Facts, task: &TaskFacts, agent: &'f AgentFacts) -> Says<'f> {
    let name = &agent.component.name;
    if !task.on.is_empty() && !task.on.contains(name) {
        return Says::NotMeant(format!("only for {}", task.on.join(", ")));
    }
    if matches!(task.class, Class::Script | Class::Llm) && !agent.gpu {
        return Says::NotMeant("it has no GPU".to_owned());
    }
    if let Some(trouble) = agent.component.trouble(facts) {
        return Says::Absent(trouble);
    }
    let Some(beat) = agent.component.current() else {
        return Says::Absent(format!("{name} has not beaten yet"));
    };
    // The class's verdict is there only where nothing of the class is taken.
    match beat
        .shapes
        .get(&task.shape)
        .or_else(|| beat.verdicts.get(&task.class))
    {
        Some(verdict) => Says::Refuses(verdict),
        None if beat.shapes_cut => Says::Absent(format!(
            "{name} has more kinds of tasks queued than it tells of"
        )),
        None => Says::Takes,
    }
}

/// Why nobody has taken it yet.
pub(super) fn explain(
    facts: &Facts,
    task: &TaskFacts,
    out: &mut Explanation<TaskVerdict>,
) -> Decisive {
    let held = brain_and_batch(facts, task, out);
    let never = never_fits(facts, task, out);
    let ahead = Gate::new(
        "queue",
        GateState::Info,
        format!(
            "{} ahead of it in queue/{}",
            count(task.ahead as u64, "task"),
            task.class
        ),
    );
    out.gates.push(ahead);
    if let Some(never) = never {
        return never;
    }
    if task.class == Class::Brain {
        return held.unwrap_or_else(|| not_yet("brain_busy", "the brain takes it when it is free"));
    }
    let mut refusals: Vec<(&AgentFacts, &Verdict)> = Vec::new();
    let mut absent = Vec::new();
    let mut takers = Vec::new();
    for agent in &facts.agents {
        let name = &agent.component.name;
        let gate = match says(facts, task, agent) {
            Says::Takes => {
                takers.push(agent);
                Gate::new("agent", GateState::Open, "would take it")
            }
            Says::Refuses(verdict) => {
                refusals.push((agent, verdict));
                Gate::new("agent", GateState::Closed, verdict.detail.clone())
                    .code(verdict.code.as_str())
            }
            Says::Absent(why) => {
                absent.push(why.clone());
                Gate::new("agent", GateState::Unknown, why)
            }
            Says::NotMeant(why) => Gate::new("agent", GateState::Closed, why),
        };
        out.gates.push(gate.of(name));
    }
    let model = models(facts, task, out);
    if let Some(decisive) = taken(facts, task, &takers, out) {
        return decisive;
    }
    let best = refusals
        .iter()
        .min_by_key(|(_, verdict)| (distance(verdict.code), verdict.code));
    match best {
        Some((agent, verdict)) => {
            let name = &agent.component.name;
            let others = refusals
                .iter()
                .filter(|(_, other)| other.code == verdict.code)
                .count();
            let others = match others {
                0 | 1 => String::new(),
                2 => " (and 1 more says the same)".to_owned(),
                more => format!(" (and {} more say the same)", more - 1),
            };
            let mut words = format!(
                "{} on {name}: {}{others}; {} ahead of it",
                verdict.code.as_str(),
                verdict.detail,
                task.ahead
            );
            let needs_model = matches!(verdict.code, Refusal::ModelNotLoaded | Refusal::WrongModel);
            if let (true, Some(model)) = (needs_model, model) {
                words.push_str(&format!("; {model}"));
            }
            if needs_model && facts.brain.presence != Presence::Alive {
                words.push_str("; the brain is not running, so nobody loads it (rigor up)");
            }
            remedies(facts, task, name, verdict.code, out);
            not_yet(verdict.code.as_str(), words)
        }
        None => {
            add_help(&mut out.help, help("rigor up", "starts what does not run"));
            let who = if absent.is_empty() {
                "rig.toml has none that could".to_owned()
            } else {
                absent.join("; ")
            };
            not_yet(
                "no_agent",
                format!("no agent that may run it is there: {who}"),
            )
        }
    }
}

/// An agent would take it: it does so in a moment, or something is wrong.
fn taken(
    facts: &Facts,
    task: &TaskFacts,
    takers: &[&AgentFacts],
    out: &mut Explanation<TaskVerdict>,
) -> Option<Decisive> {
    let queued = task.since?;
    let mut soon = None;
    for agent in takers {
        let name = &agent.component.name;
        let Some(beat) = agent.component.current() else {
            continue;
        };
        // What it says must be about this task, and it must have had the time to act.
        let known = beat.at.duration_since(queued).as_secs();
        let idle = beat
            .idle_since
            .map(|since| beat.at.duration_since(since).as_secs());
        let next = task.ahead == 0 && idle.is_none() && beat.running.is_empty();
        if known >= MOMENT_S && (idle.is_some_and(|idle| idle >= MOMENT_S) || next) {
            add_help(
                &mut out.help,
                help(
                    format!("rigor log-level {name} debug --for 10m"),
                    "makes it say what it tries to claim",
                ),
            );
            add_help(
                &mut out.help,
                help(format!("rigor why {name}"), "says what it does instead"),
            );
            let words = format!(
                "{name} has no reason against it and has claimed nothing for {}; it was queued {} ago",
                span_s(idle.unwrap_or(known).max(0) as u64),
                ago(facts, queued)
            );
            return Some(decisive(TaskVerdict::ShouldBeRunning, "bug", words));
        }
        soon.get_or_insert_with(|| {
            let words = format!(
                "{name} takes it when its turn comes: {} ahead of it",
                task.ahead
            );
            not_yet("queued_behind", words)
        });
    }
    soon
}

/// Where the model is and who gets it; the brain's reason in words.
fn models(facts: &Facts, task: &TaskFacts, out: &mut Explanation<TaskVerdict>) -> Option<String> {
    if task.class != Class::Llm {
        return None;
    }
    let wanted = |agent: &AgentFacts| task.model.clone().or_else(|| agent.default_model.clone());
    for agent in &facts.agents {
        let Some(beat) = agent.component.current() else {
            continue;
        };
        let name = &agent.component.name;
        let (state, words) = match &beat.llm {
            LlmBeat::Hot { model, slots, .. } if Some(model) == wanted(agent).as_ref() => {
                (GateState::Open, format!("{model} is hot, {slots} slots"))
            }
            LlmBeat::Loading { model, since, .. } => (
                GateState::Info,
                format!("loads {model} since {}", ago(facts, *since)),
            ),
            LlmBeat::Failed {
                model,
                cause,
                until,
            } => (
                GateState::Closed,
                format!(
                    "{model} failed to load ({cause}); tried again at {}",
                    clock(facts, *until)
                ),
            ),
            _ => continue,
        };
        out.gates.push(Gate::new("model", state, words).of(name));
    }
    let names: Vec<String> = facts.agents.iter().filter_map(wanted).collect();
    let outlook = facts.outlook.as_ref()?;
    let mut said = Vec::new();
    for model in outlook
        .models
        .iter()
        .filter(|model| names.contains(&model.model))
    {
        for load in &model.asked {
            let words = format!(
                "a load of {} was asked for {} ago; {} may take it",
                model.model,
                ago(facts, load.since),
                load.eligible.join(", ")
            );
            out.gates
                .push(Gate::new("load", GateState::Info, words).of(&load.id.short()));
        }
        if model.reason.is_empty() {
            continue;
        }
        let gate = Gate::new("placement", GateState::Info, model.reason.clone());
        out.gates.push(gate.of(&model.model));
        said.push(model.reason.clone());
    }
    (!said.is_empty()).then(|| said.join("; "))
}

/// How far a refusal is from a claim: the nearest is what the task waits for.
pub(in crate::why) fn distance(code: Refusal) -> u8 {
    match code {
        Refusal::LostRace => 0,
        Refusal::SlotsFull | Refusal::CpuSlotsFull => 1,
        Refusal::VramShort | Refusal::HoldingModel => 2,
        Refusal::ModelNotLoaded => 3,
        Refusal::WrongModel => 4,
        Refusal::Backoff | Refusal::RuntimeFailing => 5,
        Refusal::Thermal | Refusal::Power => 6,
        Refusal::Paused | Refusal::Draining => 7,
        Refusal::GpuLost => 8,
        Refusal::NoSuitableClass | Refusal::QueueEmpty => 9,
    }
}

fn remedies(
    facts: &Facts,
    task: &TaskFacts,
    agent: &str,
    code: Refusal,
    out: &mut Explanation<TaskVerdict>,
) {
    let one = match code {
        Refusal::Paused | Refusal::Draining => {
            help(format!("rigor resume {agent}"), "lets it take work again")
        }
        Refusal::ModelNotLoaded | Refusal::WrongModel => match &task.model {
            // An operator's load goes to one agent, which cannot have it alone.
            Some(model) if facts.split_models.contains(model) => {
                help("rigor models", "says where it fits")
            }
            Some(model) => help(
                format!("rigor load {agent} {model}"),
                "loads the model there",
            ),
            None => help(format!("rigor why {agent}"), "says what it does instead"),
        },
        Refusal::HoldingModel => help(format!("rigor unload {agent}"), "frees its GPU"),
        Refusal::GpuLost | Refusal::RuntimeFailing | Refusal::Backoff => {
            help("rigor doctor", "looks at the GPU and the runtime")
        }
        _ => help(format!("rigor why {agent}"), "says what it does instead"),
    };
    add_help(&mut out.help, one);
}
