//! What a batch waits for.

use super::eta::{Eta, longest_chain, sum};
use super::liveness::ago;
use super::*;
use crate::span::estimate;
use rigor_queue::heartbeat::Refusal;

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
    let path = steps(facts, batch, over.is_none(), &mut out);
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
    let eta = path.words();
    if running > 0 {
        out.verdict = BatchVerdict::Running;
        "running".clone_into(&mut out.reason);
        out.summary = format!("running: {counts}, {running} running; {eta}");
        return out;
    }
    let (reason, why) = nothing_runs(facts, batch);
    out.reason = reason;
    out.summary = format!("not yet: {why}; {counts}; {eta}");
    out
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
    let mut first = None;
    for (shape, (number, id)) in &batch.queued {
        let Some(why) = outlook.never.get(shape) else {
            continue;
        };
        let words = format!(
            "{} can never run, {} for one: {why}",
            count(*number as u64, "task"),
            id.short()
        );
        out.gates
            .push(Gate::new("never", GateState::Closed, words.clone()));
        first.get_or_insert(words);
    }
    first
}

/// Why nothing of it runs: what its queued tasks are refused for, or what it waits for.
fn nothing_runs(facts: &Facts, batch: &BatchFacts) -> (String, String) {
    let mut refused: BTreeMap<Refusal, (usize, String)> = BTreeMap::new();
    let mut queued = 0;
    for (shape, (number, _)) in &batch.queued {
        queued += number;
        for agent in &facts.agents {
            let Some(verdict) = agent
                .component
                .current()
                .filter(|_| agent.component.trouble(facts).is_none())
                .and_then(|beat| beat.shapes.get(shape))
            else {
                continue;
            };
            refused.entry(verdict.code).or_insert_with(|| {
                let words = format!("{}: {}", agent.component.name, verdict.detail);
                (*number, words)
            });
        }
    }
    if queued > 0 {
        // What is not meant for an agent says nothing where another one has a reason.
        let told = refused
            .iter()
            .find(|(code, _)| **code != Refusal::NoSuitableClass)
            .or_else(|| refused.iter().next());
        return match told {
            Some((code, (_, words))) => (
                code.as_str().to_owned(),
                format!("{queued} queued, {} - {words}", code.as_str()),
            ),
            None if facts
                .agents
                .iter()
                .all(|agent| agent.component.trouble(facts).is_some()) =>
            {
                let words = format!("{queued} queued, and no agent is there (rigor up)");
                ("no_agent".to_owned(), words)
            }
            None => (
                "queued".to_owned(),
                format!("{queued} queued behind other work"),
            ),
        };
    }
    let retry: u64 = batch.steps.iter().map(|step| step.retry).sum();
    if retry > 0 {
        let words = format!("{} after a failure", count(retry, "attempt"));
        return ("backoff".to_owned(), words);
    }
    let since = batch
        .submitted
        .map(|at| format!(" (submitted {} ago)", ago(facts, at)))
        .unwrap_or_default();
    (
        "waiting_deps".to_owned(),
        format!("the brain releases its next tasks in a moment{since}"),
    )
}
