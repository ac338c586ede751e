//! Loads that failed: which models are not asked of which agents, and for how long.
//!
//! An agent forgets a failed load when its own wait is over; the brain remembers it until a load of
//! that model succeeds there, or the agent starts anew, so that a model whose load fails for good
//! is tried ever more rarely and `rigor why` can name the cause.

use rigor_policy::placement::{FailedLoad, failed_load_wait};
use rigor_queue::heartbeat::FailedLoadBeat;

use super::*;

#[derive(Debug)]
struct Failure {
    cause: String,
    times: u32,
    until: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Failures {
    by_load: BTreeMap<(String, String), Failure>,
    /// When each agent's process started.
    started: BTreeMap<String, Timestamp>,
    /// The failed loads that each agent's heartbeat showed last, and until when each waits.
    shown: BTreeMap<String, BTreeMap<String, Timestamp>>,
    looked: Option<Instant>,
}

impl Failures {
    /// A load failed on an agent.
    pub(super) fn failed(&mut self, agent: &str, model: &str, cause: &str, now: Instant) {
        let key = (agent.to_owned(), model.to_owned());
        let times = self.by_load.get(&key).map_or(1, |before| before.times + 1);
        let failure = Failure {
            cause: cause.to_owned(),
            times,
            until: now + Duration::from_secs_f64(failed_load_wait(times)),
        };
        self.by_load.insert(key, failure);
    }

    /// A load succeeded on an agent.
    pub(super) fn succeeded(&mut self, agent: &str, model: &str) {
        self.by_load.remove(&(agent.to_owned(), model.to_owned()));
    }

    /// An agent that was started anew begins anew: who restarts it has mended something. One that
    /// ends its wait early has seen that the file changed.
    pub(super) fn look(&mut self, agents: &Agents, now: Instant, wall: Timestamp) {
        self.looked = Some(now);
        for (name, agent) in agents.iter() {
            let Some(beat) = &agent.heartbeat else {
                continue;
            };
            let before = self.started.insert(name.clone(), beat.started);
            if before.is_some_and(|before| before != beat.started) {
                self.by_load.retain(|(of, _), _| of != name);
                self.shown.remove(name);
            }
            self.note_shown(name, &beat.failed_loads(), now, wall);
        }
    }

    fn note_shown(&mut self, agent: &str, told: &[FailedLoadBeat], now: Instant, wall: Timestamp) {
        let told = told.iter().map(|one| (one.model.clone(), one.until));
        let told: BTreeMap<String, Timestamp> = told.collect();
        let before = self.shown.remove(agent).unwrap_or_default();
        for (model, until) in before {
            // A heartbeat may be a little late.
            if !told.contains_key(&model)
                && until.duration_since(wall).as_secs() > 1
                && let Some(failure) = self.by_load.get_mut(&(agent.to_owned(), model))
            {
                failure.until = now;
            }
        }
        if !told.is_empty() {
            self.shown.insert(agent.to_owned(), told);
        }
    }

    /// When the next wait is over.
    pub(super) fn due(&self) -> Option<Instant> {
        let looked = self.looked?;
        let waits = self.by_load.values().map(|failure| failure.until);
        waits.filter(|until| *until > looked).min()
    }

    /// What failed on an agent, with what its own heartbeat says of that: it may have failed
    /// before this brain started, or without a task.
    pub(super) fn of(
        &self,
        agent: &str,
        told: &[FailedLoadBeat],
        now: Instant,
        wall: Timestamp,
    ) -> Vec<FailedLoad> {
        let known = self.by_load.iter().filter(|((of, _), _)| of == agent);
        let mut failed: Vec<FailedLoad> = known
            .map(|((_, model), failure)| FailedLoad {
                model: model.clone(),
                cause: failure.cause.clone(),
                times: failure.times,
                retry_in_seconds: failure.until.saturating_duration_since(now).as_secs_f64(),
            })
            .collect();
        for FailedLoadBeat {
            model,
            cause,
            until,
        } in told
        {
            let own = until.duration_since(wall).as_secs_f64().max(0.0);
            match failed.iter_mut().find(|failed| failed.model == *model) {
                Some(known) => known.retry_in_seconds = known.retry_in_seconds.max(own),
                None => failed.push(FailedLoad {
                    model: model.clone(),
                    cause: cause.clone(),
                    times: 1,
                    retry_in_seconds: own,
                }),
            }
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(model: &str, seconds: i64) -> FailedLoadBeat {
        FailedLoadBeat {
            model: model.to_owned(),
            cause: "no such file".to_owned(),
            until: Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(seconds),
        }
    }

    #[test]
    fn each_model_waits_as_long_as_its_agent_says() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        let wall = Timestamp::UNIX_EPOCH;
        failures.failed("gpu-1", "a", "no such file", now);
        failures.failed("gpu-1", "b", "no such file", now);
        let both = [told("a", 570), told("b", 600)];
        failures.note_shown("gpu-1", &both, now, wall);
        let waits = |failures: &Failures, told: &[FailedLoadBeat]| -> Vec<f64> {
            let failed = failures.of("gpu-1", told, now, wall);
            failed.iter().map(|one| one.retry_in_seconds).collect()
        };
        assert_eq!(waits(&failures, &both), [570.0, 600.0]);
        // The file of one was mended: the other waits on.
        failures.note_shown("gpu-1", &both[1..], now, wall);
        assert_eq!(waits(&failures, &both[1..]), [0.0, 600.0]);
    }

    #[test]
    fn a_load_that_fails_for_good_is_asked_for_ever_more_rarely() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..8 {
            failures.failed("gpu-1", "m", "no such file", now);
            let failed = failures.of("gpu-1", &[], now, Timestamp::UNIX_EPOCH);
            waits.push(failed[0].retry_in_seconds.round() as u64);
            now += Duration::from_secs_f64(failed[0].retry_in_seconds);
        }
        assert_eq!(waits, [30, 60, 120, 240, 480, 3600, 3600, 3600]);
        assert_eq!(failures.of("gpu-2", &[], now, Timestamp::UNIX_EPOCH), []);
        failures.succeeded("gpu-1", "m");
        assert_eq!(failures.of("gpu-1", &[], now, Timestamp::UNIX_EPOCH), []);
    }

    #[test]
    fn an_agent_that_ends_its_wait_early_is_asked_again() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        let wall = Timestamp::UNIX_EPOCH;
        let waits = |failures: &Failures| {
            let failed = failures.of("gpu-1", &[], now, wall);
            failed[0].retry_in_seconds
        };
        let shown = |seconds| [told("m", seconds)];
        failures.failed("gpu-1", "m", "no such file", now);
        // Its own wait was over: the brain's goes on.
        failures.note_shown("gpu-1", &shown(0), now, wall);
        failures.note_shown("gpu-1", &[], now, wall);
        assert_eq!(waits(&failures), 30.0);
        failures.note_shown("gpu-1", &shown(600), now, wall);
        failures.note_shown("gpu-1", &[], now, wall);
        assert_eq!(waits(&failures), 0.0);
    }

    #[test]
    fn what_an_agent_says_of_itself_counts_without_a_failed_task() {
        let failures = Failures::default();
        let told = [told("m", 20)];
        let failed = failures.of("gpu-1", &told, Instant::now(), Timestamp::UNIX_EPOCH);
        assert_eq!(failed[0].retry_in_seconds, 20.0);
        assert_eq!(failed[0].cause, "no such file");
    }
}
