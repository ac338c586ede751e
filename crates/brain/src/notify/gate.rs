//! How much is told. A function of what came and when; no clock, no files.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use rigor_config::NotifyEvent;

/// Of all events together at most so many in an hour.
const HOUR_MOST: usize = 30;
const HOUR: Duration = Duration::from_secs(3600);

/// What was told lately, and what was not.
#[derive(Debug)]
pub(super) struct Gate {
    every: Duration,
    last: BTreeMap<(NotifyEvent, String), Instant>,
    hour: VecDeque<Instant>,
    suppressed: BTreeMap<NotifyEvent, u64>,
}

impl Gate {
    /// Of each event and subject one passes in that time.
    pub(super) fn new(every: Duration) -> Gate {
        Gate {
            every,
            last: BTreeMap::new(),
            hour: VecDeque::new(),
            suppressed: BTreeMap::new(),
        }
    }

    /// Whether it is told. If so: with what was suppressed since the last that was.
    pub(super) fn pass(
        &mut self,
        event: NotifyEvent,
        subject: &str,
        now: Instant,
    ) -> Option<BTreeMap<NotifyEvent, u64>> {
        let every = self.every;
        self.last
            .retain(|_, at| now.saturating_duration_since(*at) < every);
        while self
            .hour
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) >= HOUR)
        {
            self.hour.pop_front();
        }
        let key = (event, subject.to_owned());
        if self.last.contains_key(&key) || self.hour.len() >= HOUR_MOST {
            *self.suppressed.entry(event).or_default() += 1;
            return None;
        }
        self.last.insert(key, now);
        self.hour.push_back(now);
        Some(std::mem::take(&mut self.suppressed))
    }

    /// One that passed could not be told after all, and what it would have told of with it.
    pub(super) fn lost(&mut self, event: NotifyEvent, suppressed: BTreeMap<NotifyEvent, u64>) {
        for (event, count) in suppressed {
            *self.suppressed.entry(event).or_default() += count;
        }
        *self.suppressed.entry(event).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_kind_in_its_time_and_the_rest_is_counted() {
        let mut gate = Gate::new(Duration::from_secs(60));
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut pass = |event, subject, second| {
            gate.pass(event, subject, at(second))
                .map(|lost| lost.into_iter().collect::<Vec<_>>())
        };
        use NotifyEvent::{AgentDead, GpuIdle};
        assert_eq!(pass(AgentDead, "gpu-1", 0), Some(vec![]));
        assert_eq!(pass(AgentDead, "gpu-1", 10), None);
        assert_eq!(pass(AgentDead, "gpu-1", 59), None);
        assert_eq!(
            pass(AgentDead, "gpu-2", 59),
            Some(vec![(AgentDead, 2)]),
            "another subject, and it tells of what was not told"
        );
        assert_eq!(pass(GpuIdle, "gpu-1", 59), Some(vec![]), "another event");
        assert_eq!(pass(AgentDead, "gpu-1", 60), Some(vec![]));
        assert_eq!(pass(AgentDead, "gpu-1", 61), None);
    }

    #[test]
    fn at_most_thirty_an_hour() {
        let mut gate = Gate::new(Duration::from_secs(1));
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let passed = (0..100)
            .filter(|n| {
                let subject = format!("batch-{n}");
                gate.pass(NotifyEvent::BatchFailed, &subject, at(10 * n))
                    .is_some()
            })
            .count();
        assert_eq!(passed, 30);
        assert_eq!(gate.pass(NotifyEvent::GpuIdle, "gpu-1", at(3599)), None);
        let later = gate.pass(NotifyEvent::GpuIdle, "gpu-1", at(3600)).unwrap();
        assert_eq!(later[&NotifyEvent::BatchFailed], 70);
        assert_eq!(later[&NotifyEvent::GpuIdle], 1);
        gate.lost(NotifyEvent::GpuIdle, later);
        let next = gate.pass(NotifyEvent::AgentDead, "x", at(3700)).unwrap();
        assert_eq!(next[&NotifyEvent::GpuIdle], 2);
        assert_eq!(next[&NotifyEvent::BatchFailed], 70);
    }
}
