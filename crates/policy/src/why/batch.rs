//! What a batch waits for.

use super::eta::{Eta, longest_chain, sum};
use super::liveness::ago;
use super::task::distance;
use super::*;
use crate::span::estimate;
use rigor_queue::heartbeat::{Refusal, Verdict};
use rigor_queue::outlook::ModelOutlook;

/// The answer about a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchVerdict {
    /// Some of it runs.
    Running,
    /// Nothing of it runs yet.
    NotYet,
    /// Some of it can never run, so it never ends by itself.
    Never,
    /// It is over.
    Over,
}

/// Explains a batch.
pub fn batch(facts: &Facts, batch: &BatchFacts) -> Explanation<BatchVerdict> {
    let mut out = Explanation {
        verdict: BatchVerdict::NotYet,
        reason: String::new(),
        summary: String::new(),
        gates: Vec::new(),
        help: Vec::new(),
    };
    let over = match batch.state {
        BatchState::Complete => Some("complete"),
        BatchState::Failed => Some("failed"),
        BatchState::Cancelled => Some("cancelled"),
        BatchState::Submitted | BatchState::Running | BatchState::Held => None,
    };
    let trouble = facts.brain.trouble(facts);
    if over.is_none() {
        out.gates.push(match &trouble {
            None => Gate::new("brain", GateState::Open, "it runs"),
            Some(trouble) => Gate::new("brain", GateState::Closed, trouble.clone()),
        });
        let cancel = format!("{}.cancel", batch.id);
        if facts.brain_signals.contains(&cancel) {
            let words = "cancelling was asked for and the brain has not done it yet";
            out.gates.push(Gate::new("cancel", GateState::Info, words));
        }
    }
    let mut path = steps(facts, batch, over.is_none(), &mut out);
    for failure in &batch.failures {
        let examples: Vec<String> = failure
            .examples
            .iter()
            .map(|(name, id)| format!("{name} ({id})"))
            .collect();
        let words = format!(
            "{} failed: {}; {}",
            failure.count,
            failure.cause,
            examples.join(", ")
        );
        out.gates
            .push(Gate::new("failures", GateState::Closed, words));
    }
    for (name, reason) in &batch.retries {
        out.gates
            .push(Gate::new("retry", GateState::Info, reason.clone()).of(name));
    }
    if !batch.failures.is_empty() {
        if let Some((_, id)) = batch.failures.iter().flat_map(|one| &one.examples).next() {
            out.help
                .push(help(format!("rigor logs {id}"), "prints what it printed"));
        }
        out.help.push(help(
            format!("rigor retry {} --failed", batch.id),
            "runs what failed again",
        ));
    }
    if let Some(word) = over {
        out.verdict = BatchVerdict::Over;
        word.clone_into(&mut out.reason);
        out.summary = ended(batch, word);
        add_help(
            &mut out.help,
            help(format!("rigor report {}", batch.id), "prints its summary"),
        );
        return out;
    }
    let never = never(facts, batch, &mut out);
    let counts = format!("{}/{} done", batch.done, batch.total);
    if let Some(trouble) = trouble {
        out.help.push(help("rigor up", "starts the brain"));
        "brain_down".clone_into(&mut out.reason);
        let running: u64 = batch.steps.iter().map(|step| step.running).sum();
        if running > 0 {
            out.verdict = BatchVerdict::Running;
        }
        out.summary = if facts.brain.presence == Presence::Gone {
            format!("not yet: the brain is not running: nothing is released (rigor up); {counts}")
        } else {
            format!("not yet: {trouble}; {counts}")
        };
        return out;
    }
    match batch.state {
        BatchState::Submitted => {
            "submitted".clone_into(&mut out.reason);
            "not yet: submitted, the brain has not taken it up".clone_into(&mut out.summary);
            return out;
        }
        BatchState::Held => {
            "held".clone_into(&mut out.reason);
            let release = format!("rigor release {}", batch.id);
            out.summary = format!("not yet: held by an operator ({release}); {counts}");
            out.help.push(help(release, "lets it go on"));
            return out;
        }
        _ => {}
    }
    if let Some(why) = never {
        no_estimate(&mut out, "some of it can never run".to_owned());
        out.verdict = BatchVerdict::Never;
        "never_fits".clone_into(&mut out.reason);
        out.summary = format!("never ends by itself: {why}; {counts}");
        add_help(
            &mut out.help,
            help(format!("rigor cancel {}", batch.id), "ends it"),
        );
        return out;
    }
    let running: u64 = batch.steps.iter().map(|step| step.running).sum();
    let stranded = models(facts, batch)
        .into_iter()
        .find(|model| model.stranded);
    if let Some(model) = stranded {
        path = no_estimate(&mut out, format!("{} cannot be loaded now", model.model));
    }
    if running > 0 {
        let eta = path.words();
        out.verdict = BatchVerdict::Running;
        "running".clone_into(&mut out.reason);
        out.summary = format!("running: {counts}, {running} running; {eta}");
        return out;
    }
    let stands = nothing_runs(facts, batch);
    if stands.stopped && stranded.is_none() {
        path = no_estimate(&mut out, "nothing of it can run now".to_owned());
    }
    out.reason = stands.reason;
    out.summary = format!("not yet: {}; {counts}; {}", stands.words, path.words());
    out
}

/// Takes back an estimate that cannot hold as things are.
fn no_estimate(out: &mut Explanation<BatchVerdict>, why: String) -> Eta {
    let eta = Eta {
        seconds: None,
        how: format!("unknown: {why}"),
    };
    out.gates
        .retain(|gate| !matches!(gate.gate, "critical path" | "eta"));
    out.gates
        .push(Gate::new("eta", GateState::Unknown, eta.words()));
    eta
}

/// What the brain decided about the models that queued tasks of the batch need.
fn models<'f>(facts: &'f Facts, batch: &BatchFacts) -> Vec<&'f ModelOutlook> {
    let needed = |model: &ModelOutlook| {
        let by_default = || {
            facts
                .agents
                .iter()
                .any(|agent| agent.default_model.as_ref() == Some(&model.model))
        };
        let llm = |queued: &&Queued| queued.class == Class::Llm;
        batch
            .queued
            .values()
            .filter(llm)
            .any(|queued| match &queued.model {
                Some(named) => *named == model.model,
                None => by_default(),
            })
    };
    let models = facts.outlook.iter().flat_map(|outlook| &outlook.models);
    models.filter(|model| needed(model)).collect()
}

/// The steps, the critical path and the estimate.
fn steps(
    facts: &Facts,
    batch: &BatchFacts,
    goes_on: bool,
    out: &mut Explanation<BatchVerdict>,
) -> Eta {
    for step in &batch.steps {
        let state = if step.problem.is_some() {
            GateState::Closed
        } else if step.is_over() {
            GateState::Open
        } else {
            GateState::Info
        };
        let mut words = step.standing();
        if !step.depends_on.is_empty() && !step.is_over() {
            words.push_str(&format!(" (after {})", step.depends_on.join(", ")));
        }
        out.gates.push(Gate::new("step", state, words).of(&step.id));
    }
    let longest = batch
        .steps
        .iter()
        .filter(|step| !step.is_over())
        .map(|last| longest_chain(facts, &batch.steps, last, true))
        .max_by(|a, b| {
            let total = |chain| sum(chain).seconds.unwrap_or(f64::INFINITY);
            total(a).total_cmp(&total(b))
        });
    let Some(chain) = longest.filter(|_| goes_on) else {
        return Eta {
            seconds: None,
            how: "unknown: its steps are not known yet".to_owned(),
        };
    };
    let names: Vec<String> = chain
        .iter()
        .map(|(step, eta)| match eta.seconds {
            Some(seconds) => format!("{} {}", step.id, estimate(seconds)),
            None => format!("{} ?", step.id),
        })
        .collect();
    let eta = sum(&chain);
    let mut gate = Gate::new("critical path", GateState::Info, names.join(" -> "));
    gate.eta_s = eta.whole();
    out.gates.push(gate);
    let mut gate = Gate::new("eta", GateState::Info, eta.words());
    gate.eta_s = eta.whole();
    out.gates.push(gate);
    eta
}

fn ended(batch: &BatchFacts, word: &str) -> String {
    let mut words = format!("over: {word}: {}/{} done", batch.done, batch.total);
    for (number, what) in [(batch.failed, "failed"), (batch.cancelled, "cancelled")] {
        if number > 0 {
            words.push_str(&format!(", {number} {what}"));
        }
    }
    if let Some(reason) = &batch.reason {
        words.push_str(&format!("; {reason}"));
    } else if let Some(most) = batch.failures.iter().max_by_key(|failure| failure.count) {
        words.push_str(&format!("; most: {} x {}", most.count, most.cause));
    }
    words
}

/// A task of it that can never run.
fn never(facts: &Facts, batch: &BatchFacts, out: &mut Explanation<BatchVerdict>) -> Option<String> {
    let outlook = facts.outlook.as_ref()?;
    let (mut all, mut first) = (0, None);
    for (shape, queued) in &batch.queued {
        let Some(why) = outlook.never.get(shape) else {
            continue;
        };
        let words = |number| {
            format!(
                "{} can never run, {} for one: {why}",
                count(number, "task"),
                queued.one.short()
            )
        };
        let number = queued.count as u64;
        out.gates
            .push(Gate::new("never", GateState::Closed, words(number)));
        all += number;
        first.get_or_insert((queued.one, why));
    }
    let (one, why) = first?;
    Some(format!(
        "{} can never run, {} for one: {why}",
        count(all, "task"),
        one.short()
    ))
}

/// Why nothing of a batch runs.
struct Stands {
    /// The code.
    reason: String,
    /// In words.
    words: String,
    /// Nothing of it will run before something else changes, which nobody can foretell.
    stopped: bool,
}

/// Why nothing of it runs: what its queued tasks are refused for, or what it waits for.
fn nothing_runs(facts: &Facts, batch: &BatchFacts) -> Stands {
    let goes_on = |reason: &str, words: String| Stands {
        reason: reason.to_owned(),
        words,
        stopped: false,
    };
    let in_shapes: usize = batch.queued.values().map(|queued| queued.count).sum();
    if in_shapes > 0 {
        // A shape may hold other batches' tasks too; what the brain counted may be a moment old.
        let counted = batch
            .steps
            .iter()
            .map(|step| step.released.saturating_sub(step.running))
            .sum::<u64>();
        let queued = usize::try_from(counted.max(1)).unwrap_or(usize::MAX);
        return refused(facts, batch, queued.min(in_shapes));
    }
    let retry: u64 = batch.steps.iter().map(|step| step.retry).sum();
    if retry > 0 {
        let words = format!("{} after a failure", count(retry, "attempt"));
        return goes_on("backoff", words);
    }
    let since = batch
        .submitted
        .map(|at| format!(" (submitted {} ago)", ago(facts, at)))
        .unwrap_or_default();
    goes_on(
        "waiting_deps",
        format!("the brain releases its next tasks in a moment{since}"),
    )
}

/// What its queued tasks, so many, wait for: the brain's word on a model that nobody can load,
/// else the refusal that is nearest to a claim.
fn refused(facts: &Facts, batch: &BatchFacts, queued: usize) -> Stands {
    let models = models(facts, batch);
    let stands = |reason: &str, why: String, stopped| Stands {
        reason: reason.to_owned(),
        words: format!("{queued} queued, {reason} - {why}"),
        stopped,
    };
    let absent = |agent: &AgentFacts| agent.component.trouble(facts).is_some();
    if facts.agents.iter().all(absent) {
        return Stands {
            reason: "no_agent".to_owned(),
            words: format!("{queued} queued, and no agent is there (rigor up)"),
            stopped: true,
        };
    }
    if let Some(model) = models.iter().find(|model| model.stranded) {
        let why = format!("{}: {}", model.model, model.reason);
        return stands(Refusal::ModelNotLoaded.as_str(), why, true);
    }
    let mut nearest: Option<(&str, &Verdict)> = None;
    for (shape, agent) in batch
        .queued
        .keys()
        .flat_map(|shape| facts.agents.iter().map(move |agent| (shape, agent)))
    {
        let Some(verdict) = agent
            .component
            .current()
            .filter(|_| agent.component.trouble(facts).is_none())
            .and_then(|beat| beat.shapes.get(shape))
        else {
            continue;
        };
        let nearer = |(_, known): &(&str, &Verdict)| {
            (distance(verdict.code), verdict.code) < (distance(known.code), known.code)
        };
        if nearest.as_ref().is_none_or(nearer) {
            nearest = Some((&agent.component.name, verdict));
        }
    }
    match nearest {
        Some((agent, verdict)) => {
            let mut why = format!("{agent}: {}", verdict.detail);
            if matches!(verdict.code, Refusal::ModelNotLoaded | Refusal::WrongModel) {
                let said = models.iter().map(|model| &model.reason);
                for reason in said.filter(|reason| !reason.is_empty()) {
                    why.push_str(&format!("; {reason}"));
                }
            }
            // All the others are farther still.
            let stopped = distance(verdict.code) >= distance(Refusal::Paused);
            stands(verdict.code.as_str(), why, stopped)
        }
        None => Stands {
            reason: "queued".to_owned(),
            words: format!("{queued} queued behind other work"),
            stopped: false,
        },
    }
}
