//! A task that somebody has.

use super::*;
use crate::span::span_s;

pub(super) fn explain(
    facts: &Facts,
    task: &TaskFacts,
    out: &mut Explanation<TaskVerdict>,
) -> Decisive {
    let agent = task.agent.as_deref().unwrap_or("?");
    let short = task.id.short();
    let component = facts
        .agents
        .iter()
        .map(|agent| &agent.component)
        .chain([&facts.brain])
        .find(|component| component.name == agent);
    if let Some(component) = component
        && let Some(trouble) = component.trouble(facts)
    {
        out.gates
            .push(Gate::new("agent", GateState::Closed, trouble.clone()).of(agent));
        match component.liveness(facts) {
            Liveness::Never | Liveness::Down | Liveness::Recovering => {
                let who = if facts.brain.presence == Presence::Alive {
                    "the brain puts it back into the queue"
                } else {
                    out.help.push(help("rigor up", "starts what does not run"));
                    "it goes back into the queue when the brain or the agent starts (rigor up)"
                };
                return not_yet("agent_down", format!("{trouble}; {who}"));
            }
            Liveness::Starting | Liveness::Mute | Liveness::CannotWrite | Liveness::Fresh => {}
        }
    }
    let since = task.beat.as_ref().map(|beat| beat.since).or(task.since);
    let lasting = since.map_or_else(String::new, |since| {
        format!(" for {} (since {})", ago(facts, since), clock(facts, since))
    });
    let worker = task
        .worker
        .map(|pid| format!(", worker {pid}"))
        .unwrap_or_default();
    let tries = format!("attempt {} of at most {}", task.attempt, task.retries + 1);
    let mut words = format!("running on {agent}{lasting}, attempt {}", task.attempt);
    out.gates.push(
        Gate::new(
            "runs",
            GateState::Info,
            format!("{lasting}, {tries}{worker}").trim_start_matches([' ', ',']),
        )
        .of(agent),
    );
    if let Some(beat) = &task.beat {
        let quiet = seconds_between(beat.active_at, facts.now);
        let signs = signs(facts, beat);
        out.gates
            .push(Gate::new("life", GateState::Info, signs.clone()));
        let limits = limits(facts, beat);
        out.gates
            .push(Gate::new("limit", GateState::Info, limits.clone()));
        words.push_str(&format!(
            "; last sign of life {} ago ({signs}); {limits}",
            span_s(quiet)
        ));
    }
    out.help.push(help(
        format!("rigor logs -f {short}"),
        "shows what it prints",
    ));
    let stuck = facts
        .outlook
        .as_ref()
        .and_then(|outlook| outlook.stuck.iter().find(|stuck| stuck.id == task.id));
    if let Some(stuck) = stuck {
        let what = format!("quiet for {}; {}", ago(facts, stuck.quiet_since), stuck.end);
        out.gates
            .push(Gate::new("stuck", GateState::Closed, what.clone()));
        out.help
            .push(help(format!("rigor cancel {short}"), "ends it"));
        return decisive(
            TaskVerdict::Running,
            "stuck",
            format!("{words}; stuck: {what}"),
        );
    }
    if let Some(trouble) = component.and_then(|component| component.trouble(facts)) {
        words.push_str(&format!("; {trouble}"));
    }
    decisive(TaskVerdict::Running, "running", words)
}

/// `no output yet, CPU 97%, GPU 40%`.
pub(in crate::why) fn signs(facts: &Facts, beat: &RunningBeat) -> String {
    let mut words = vec![match beat.output_at {
        Some(at) => format!("last output {} ago", ago(facts, at)),
        None => "no output yet".to_owned(),
    }];
    words.extend(beat.cpu_percent.map(|percent| format!("CPU {percent}%")));
    words.extend(beat.gpu_percent.map(|percent| format!("GPU {percent}%")));
    words.join(", ")
}

/// What will end it.
fn limits(facts: &Facts, beat: &RunningBeat) -> String {
    let mut words = Vec::new();
    if let Some(timeout) = beat.timeout_s {
        let at = beat.since + Duration::from_secs(timeout);
        words.push(format!(
            "its timeout of {} ends it at {}",
            span_s(timeout),
            clock(facts, at)
        ));
    }
    if let Some(silent) = beat.kill_if_silent_s {
        let at = beat.output_at.unwrap_or(beat.since) + Duration::from_secs(silent);
        words.push(format!(
            "silence of {} ends it, at {} if it prints nothing",
            span_s(silent),
            clock(facts, at)
        ));
    }
    if words.is_empty() {
        "no timeout".to_owned()
    } else {
        words.join("; ")
    }
}
