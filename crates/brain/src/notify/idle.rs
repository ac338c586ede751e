//! Which GPU has been idle for long while work waits. A function of what is seen and when.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rigor_queue::heartbeat::{Refusal, Verdict};

/// A GPU that is to be told of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct IdleGpu {
    /// Its agent.
    pub name: String,
    /// Why.
    pub verdict: Verdict,
    /// For how long.
    pub idle: Duration,
}

/// The stretches of idleness that go on.
#[derive(Debug, Default)]
pub(super) struct IdleWatch {
    stretches: BTreeMap<String, Stretch>,
}

#[derive(Debug)]
struct Stretch {
    since: Instant,
    told: bool,
}

impl IdleWatch {
    /// What is to be told now: each stretch once. `gpus` come with why they do nothing, none where
    /// they work; `queued` is what is queued for GPUs.
    pub(super) fn look(
        &mut self,
        gpus: &[(String, Option<Verdict>)],
        queued: usize,
        after: Duration,
        now: Instant,
    ) -> Vec<IdleGpu> {
        let mut tell = Vec::new();
        for (name, verdict) in gpus {
            let verdict = verdict
                .as_ref()
                .filter(|verdict| queued > 0 && !is_wanted(verdict.code));
            let Some(verdict) = verdict else {
                self.stretches.remove(name);
                continue;
            };
            let stretch = self.stretches.entry(name.clone()).or_insert(Stretch {
                since: now,
                told: false,
            });
            let idle = now.saturating_duration_since(stretch.since);
            if idle >= after && !std::mem::replace(&mut stretch.told, true) {
                tell.push(IdleGpu {
                    name: name.clone(),
                    verdict: verdict.clone(),
                    idle,
                });
            }
        }
        tell
    }
}

/// The operator's own doing, or nothing is queued that the GPU could take.
fn is_wanted(code: Refusal) -> bool {
    matches!(
        code,
        Refusal::Paused | Refusal::Draining | Refusal::QueueEmpty | Refusal::NoSuitableClass
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stretch_is_told_of_once() {
        let mut watch = IdleWatch::default();
        let start = Instant::now();
        let mut at = |second, code: Option<Refusal>, queued| {
            let verdict = code.map(|code| Verdict {
                code,
                detail: "d".to_owned(),
            });
            let gpus = [("gpu-1".to_owned(), verdict)];
            let now = start + Duration::from_secs(second);
            let told = watch.look(&gpus, queued, Duration::from_secs(600), now);
            told.first().map(|idle| idle.idle.as_secs())
        };
        let cold = Some(Refusal::ModelNotLoaded);
        assert_eq!(at(0, cold, 5), None);
        assert_eq!(at(599, cold, 5), None);
        assert_eq!(at(601, Some(Refusal::WrongModel), 4), Some(601));
        assert_eq!(at(602, cold, 5), None, "once");
        assert_eq!(at(5000, cold, 5), None, "still once");
        assert_eq!(at(5001, None, 5), None, "it works");
        assert_eq!(at(5002, cold, 5), None);
        assert_eq!(at(5602, cold, 5), Some(600), "another stretch");
        assert_eq!(at(5700, cold, 0), None, "nothing is queued");
        assert_eq!(at(5701, cold, 1), None);
        assert_eq!(at(6000, Some(Refusal::Paused), 1), None, "as wanted");
        let others = Some(Refusal::NoSuitableClass);
        assert_eq!(at(6301, others, 1), None, "the queue is not for it");
        assert_eq!(at(6302, cold, 1), None, "from anew");
        assert_eq!(at(6902, cold, 1), Some(600));
    }
}
