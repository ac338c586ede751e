//! Agents that do not run while work waits that they could take.

use rigor_queue::heartbeat::Health;
use rigor_queue::task::Class;

use super::*;
use crate::fit;

/// For how long something is missing, and at which length that was last said.
#[derive(Debug, Default)]
pub(super) struct Missing {
    since: Option<Instant>,
    said: Option<Duration>,
}

impl Missing {
    /// Whether it is to be said now: after `first`, and again on doubling.
    fn is_due(&mut self, missing: bool, first: Duration, now: Instant) -> bool {
        if !missing {
            *self = Missing::default();
            return false;
        }
        let lasts = now.saturating_duration_since(*self.since.get_or_insert(now));
        let due = lasts >= self.said.map_or(first, |said| said * 2);
        if due {
            self.said = Some(lasts.max(Duration::from_secs(1)));
        }
        due
    }
}

impl Agents {
    /// Warns of agents of rig.toml that do not run while tasks are queued that they could take.
    pub(crate) fn warn_missing(&mut self, brain: &mut Context, now: Instant) {
        let down: Vec<String> = brain
            .config
            .agent_names()
            .filter(|name| self.get(name).is_none_or(|agent| !agent.alive))
            .map(str::to_owned)
            .collect();
        let first = brain.config.timing.idle_warn;
        let none = self.agents.values().all(|agent| !agent.alive);
        let known = fit::agents(brain, self);
        let mut of_any: BTreeMap<Class, usize> = BTreeMap::new();
        let mut due: Vec<(String, BTreeMap<Class, usize>)> = Vec::new();
        for name in &down {
            let waits = known
                .iter()
                .find(|agent| agent.name == *name)
                .map_or_else(BTreeMap::new, |agent| fit::could_take(brain, agent));
            for (class, count) in &waits {
                let most = of_any.entry(*class).or_default();
                *most = (*most).max(*count);
            }
            if let Some(agent) = self.agents.get_mut(name)
                && agent.missing.is_due(!waits.is_empty(), first, now)
            {
                due.push((name.clone(), waits));
            }
        }
        if self.none.is_due(none && !of_any.is_empty(), first, now) {
            tracing::warn!(
                "No agent is running while {}: start them with rigor up",
                queued(&of_any)
            );
        }
        for name in brain.config.agent_names() {
            if !down.iter().any(|of| of == name)
                && let Some(agent) = self.agents.get_mut(name)
            {
                agent.missing = Missing::default();
            }
        }
        if none {
            return;
        }
        for (name, waits) in due {
            let since = match self.get(&name).and_then(|agent| agent.heartbeat.as_ref()) {
                Some(beat) if beat.health == Health::Draining => {
                    format!("stopped at {}", clock(beat.at))
                }
                Some(beat) => format!("dead since {}", clock(beat.at)),
                None => "not started".to_owned(),
            };
            tracing::warn!(agent = %name,
                "Agent {name} is not running ({since}) while {}: start it with rigor up",
                queued(&waits));
        }
    }
}

/// `125 tasks are queued (llm:125)`
fn queued(waits: &BTreeMap<Class, usize>) -> String {
    let total: usize = waits.values().sum();
    let classes: Vec<String> = waits
        .iter()
        .map(|(class, count)| format!("{class}:{count}"))
        .collect();
    format!(
        "{total} {} queued ({})",
        if total == 1 { "task is" } else { "tasks are" },
        classes.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_after_a_while_and_on_doubling_until_it_is_back() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let first = Duration::from_secs(60);
        let mut missing = Missing::default();
        assert!(!missing.is_due(true, first, at(0)));
        assert!(!missing.is_due(true, first, at(59)));
        assert!(missing.is_due(true, first, at(60)));
        assert!(!missing.is_due(true, first, at(119)));
        assert!(missing.is_due(true, first, at(120)));
        assert!(!missing.is_due(false, first, at(121)));
        assert!(!missing.is_due(true, first, at(240)), "it began anew");
    }
}
