//! What each GPU's time went into, from the journals of the agents and of the brain.

use std::collections::BTreeMap;
use std::time::SystemTime;

use jiff::{SignedDuration, Timestamp};
use rigor_config::Config;
use rigor_policy::gpu_time::{self as policy, Span};
use rigor_queue::reasons::{self, Cause, Reason};
use rigor_queue::rig::{BRAIN, Rig};
use serde::Serialize;

use crate::Result;
use crate::agents::{Presence, last_sign, presence_of};

/// Running time of other batches, as a cause of a batch's own account.
const OTHER_BATCHES: &str = "running_other_batches";

/// What one GPU's time went into: spans that cover `from..to` without gap or overlap.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuTime {
    /// The agent of the GPU.
    pub agent: String,
    /// The first instant.
    pub from: Timestamp,
    /// The instant after the last.
    pub to: Timestamp,
    /// In order.
    pub spans: Vec<Span>,
}

impl GpuTime {
    /// How long each cause held; the sum is `to - from`, to the nanosecond.
    pub fn totals(&self) -> BTreeMap<Cause, SignedDuration> {
        policy::totals(&self.spans)
    }

    /// How long it is.
    pub fn wall(&self) -> SignedDuration {
        self.to.duration_since(self.from)
    }
}

/// What the time of every GPU of rig.toml went into from `from` to `to`, in the file's order.
///
/// An agent that is gone, or that has not beaten for `timing.heartbeat_warn`, counts as down from
/// when it was last seen.
pub fn gpu_time(
    rig: &Rig,
    config: &Config,
    from: Timestamp,
    to: Timestamp,
) -> Result<Vec<GpuTime>> {
    let brain = reasons::read(rig, BRAIN, from)?;
    let agents = config.gpus.iter().map(|gpu| {
        let agent = reasons::read(rig, &gpu.name, from)?;
        of_agent(rig, config, &gpu.name, &agent, &brain, from, to)
    });
    agents.collect()
}

/// The same for each GPU since `from` or, where that is later, since its journal began. GPUs
/// without a journal are left out.
pub(crate) fn recent(
    rig: &Rig,
    config: &Config,
    from: Timestamp,
    to: Timestamp,
) -> Result<Vec<GpuTime>> {
    let brain = reasons::read(rig, BRAIN, from)?;
    let mut times = Vec::new();
    for gpu in &config.gpus {
        let agent = reasons::read(rig, &gpu.name, from)?;
        // What comes later in the file may be about an earlier time.
        let Some(first) = agent.iter().map(|reason| reason.since).min() else {
            continue;
        };
        let from = from.max(first);
        if from < to {
            times.push(of_agent(rig, config, &gpu.name, &agent, &brain, from, to)?);
        }
    }
    Ok(times)
}

fn of_agent(
    rig: &Rig,
    config: &Config,
    name: &str,
    agent: &[Reason],
    brain: &[Reason],
    from: Timestamp,
    to: Timestamp,
) -> Result<GpuTime> {
    let gone = gone(rig, config, name)?;
    Ok(GpuTime {
        agent: name.to_owned(),
        from,
        to,
        spans: policy::spans(agent, brain, from, to, gone),
    })
}

/// When an agent that is dead or does not answer was last seen; none: it is there.
fn gone(rig: &Rig, config: &Config, name: &str) -> Result<Option<Timestamp>> {
    let there = presence_of(rig, name)? == Presence::Alive;
    let Some(beaten) = last_sign(rig, name) else {
        // It runs and has not beaten yet, or it never did: then its journal is empty, or all
        // that is known of it.
        return Ok((!there).then_some(Timestamp::UNIX_EPOCH));
    };
    let age = SystemTime::now().duration_since(beaten).unwrap_or_default();
    let stale = age > config.timing.heartbeat_warn;
    let seen = Timestamp::try_from(beaten).unwrap_or(Timestamp::UNIX_EPOCH);
    Ok((!there || stale).then_some(seen))
}

/// Milliseconds by cause: the names of [`Cause`], and `running_other_batches`.
pub type CauseMs = BTreeMap<&'static str, i64>;

/// What all GPUs' time went into while a batch was there. All times are whole milliseconds: each
/// end of a span is cut to one, so that the parts of a GPU sum up to the wall time exactly.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BatchGpuTime {
    /// From submission to end.
    pub wall_ms: i64,
    /// Each GPU of rig.toml.
    pub gpus: Vec<GpuTimeOfBatch>,
    /// All of them together: its sum is `wall_ms` times the number of GPUs.
    pub total_ms: CauseMs,
    /// The largest loss in a sentence; none where no time was lost.
    pub largest_loss: Option<String>,
}

/// One GPU in [`BatchGpuTime`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GpuTimeOfBatch {
    /// The agent of the GPU.
    pub agent: String,
    /// By cause. `running` is time in which a task of this batch ran. The sum is `wall_ms`.
    pub ms: CauseMs,
}

impl BatchGpuTime {
    /// Computes it for a batch that was there from `from` to `to`; none where there are no GPUs or
    /// no time.
    pub fn read(
        rig: &Rig,
        config: &Config,
        batch: &str,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Option<BatchGpuTime>> {
        if config.gpus.is_empty() || to <= from {
            return Ok(None);
        }
        let times = gpu_time(rig, config, from, to)?;
        Ok(Some(BatchGpuTime::of(batch, &times, from, to)))
    }

    /// The same for people, in markdown: the largest loss, then a line for each GPU.
    pub fn lines(&self) -> Vec<String> {
        let loss = match &self.largest_loss {
            Some(loss) => format!("Largest loss: {loss}."),
            None => "No time was lost.".to_owned(),
        };
        let mut lines = vec![loss, String::new()];
        let shares = |ms: &CauseMs| gpu_shares(ms.iter().map(|(cause, ms)| (*cause, *ms as f64)));
        lines.extend(
            self.gpus
                .iter()
                .map(|gpu| format!("- {}: {}", gpu.agent, shares(&gpu.ms))),
        );
        if self.gpus.len() > 1 {
            lines.push(format!("- all: {}", shares(&self.total_ms)));
        }
        lines
    }

    fn of(batch: &str, times: &[GpuTime], from: Timestamp, to: Timestamp) -> BatchGpuTime {
        let mut total_ms = CauseMs::new();
        let mut gpus = Vec::new();
        for time in times {
            let mut ms = CauseMs::new();
            for span in &time.spans {
                let other =
                    span.cause == Cause::Running && !span.batches.iter().any(|of| of == batch);
                let cause = if other {
                    OTHER_BATCHES
                } else {
                    span.cause.as_str()
                };
                let length = span.to.as_millisecond() - span.from.as_millisecond();
                *ms.entry(cause).or_default() += length;
                *total_ms.entry(cause).or_default() += length;
            }
            gpus.push(GpuTimeOfBatch {
                agent: time.agent.clone(),
                ms,
            });
        }
        let wall_ms = to.as_millisecond() - from.as_millisecond();
        BatchGpuTime {
            largest_loss: largest_loss(wall_ms, &gpus, &total_ms),
            wall_ms,
            gpus,
            total_ms,
        }
    }
}

/// `gpu-1 and gpu-3 were idle 62% of the time: model not loaded`: the cause that cost the rig
/// most, and the GPUs that it cost at least half as much as the one that it cost most.
fn largest_loss(wall_ms: i64, gpus: &[GpuTimeOfBatch], total: &CauseMs) -> Option<String> {
    let (cause, _) = Cause::ALL
        .into_iter()
        .filter(|cause| *cause != Cause::Running)
        .filter_map(|cause| Some((cause, *total.get(cause.as_str())?)))
        // Of equals the first in the order of displays.
        .rev()
        .max_by_key(|(_, ms)| *ms)
        .filter(|(_, ms)| *ms > 0)?;
    let of = |gpu: &GpuTimeOfBatch| gpu.ms.get(cause.as_str()).copied().unwrap_or(0);
    let most = gpus.iter().map(of).max()?;
    let hit: Vec<&GpuTimeOfBatch> = gpus.iter().filter(|gpu| 2 * of(gpu) >= most).collect();
    let lost: i64 = hit.iter().map(|gpu| of(gpu)).sum();
    let share = percent(lost, wall_ms * hit.len() as i64);
    let names: Vec<&str> = hit.iter().map(|gpu| gpu.agent.as_str()).collect();
    let verb = match (names.len(), cause) {
        (1, Cause::Lent) => "was lent",
        (_, Cause::Lent) => "were lent",
        (_, Cause::Loading | Cause::Unloading) => "lost",
        (1, _) => "was idle",
        _ => "were idle",
    };
    Some(format!(
        "{} {verb} {share} of the time: {}",
        listed(&names),
        cause.words()
    ))
}

/// `62% running, 20% model not loaded, 18% no work`: shares of what `parts` sum up to, by cause, the
/// largest first. What held for no time is left out.
pub fn gpu_shares<'a>(parts: impl IntoIterator<Item = (&'a str, f64)>) -> String {
    let mut parts: Vec<(&str, f64)> = parts.into_iter().filter(|part| part.1 > 0.0).collect();
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    let whole: f64 = parts.iter().map(|part| part.1).sum();
    let shares: Vec<String> = parts
        .into_iter()
        .map(|(cause, part)| format!("{} {}", percent_of(part / whole), words(cause)))
        .collect();
    shares.join(", ")
}

/// A cause's name in files to its name for people.
fn words(cause: &str) -> &str {
    if cause == OTHER_BATCHES {
        return "running other batches";
    }
    let known = Cause::ALL.into_iter().find(|one| one.as_str() == cause);
    known.map_or(cause, |known| known.words())
}

fn percent(part: i64, whole: i64) -> String {
    percent_of(part as f64 / whole.max(1) as f64)
}

fn percent_of(share: f64) -> String {
    let rounded = (share * 100.0).round();
    if rounded < 1.0 {
        "<1%".to_owned()
    } else {
        format!("{rounded:.0}%")
    }
}

/// `a`, `a and b`, `a, b and c`.
fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanosecond: i128) -> Timestamp {
        Timestamp::from_nanosecond(1_770_000_000_000_000_000 + nanosecond).unwrap()
    }

    fn time(agent: &str, ends: &[(i128, Cause, &[&str])]) -> GpuTime {
        let mut from = at(0);
        let mut spans = Vec::new();
        for (end, cause, batches) in ends {
            spans.push(Span {
                from,
                to: at(*end),
                cause: *cause,
                code: None,
                detail: String::new(),
                batches: batches.iter().map(|batch| (*batch).to_owned()).collect(),
            });
            from = at(*end);
        }
        GpuTime {
            agent: agent.to_owned(),
            from: at(0),
            to: from,
            spans,
        }
    }

    const S: i128 = 1_000_000_000;

    #[test]
    fn the_parts_are_whole_milliseconds_and_sum_up_to_the_wall_time() {
        // Ends that are no whole milliseconds, many of them shorter than one.
        let mut ends: Vec<(i128, Cause, &[&str])> = (1..5000)
            .map(|n| {
                let cause = Cause::ALL[n as usize % Cause::ALL.len()];
                (n * 777_777, cause, &["b"][..])
            })
            .collect();
        ends.push((5 * S + 1, Cause::NoWork, &[]));
        let time = time("gpu-1", &ends);
        let of = BatchGpuTime::of("b", std::slice::from_ref(&time), time.from, time.to);
        assert_eq!(of.gpus[0].ms.values().sum::<i64>(), of.wall_ms);
        assert_eq!(of.wall_ms, 5000);
        let sum: SignedDuration = time.totals().into_values().sum();
        assert_eq!(sum, time.wall());
    }

    #[test]
    fn the_largest_loss_names_its_gpus_and_its_cause() {
        let idle = |until| {
            [
                (38 * S, Cause::Running, &["b"][..]),
                (until, Cause::ModelNotLoaded, &[][..]),
                (100 * S, Cause::Running, &["other", "b"][..]),
            ]
        };
        let times = [
            time("gpu-1", &idle(100 * S - 1)),
            time(
                "gpu-2",
                &[
                    (90 * S, Cause::Running, &["other"]),
                    (100 * S, Cause::ModelNotLoaded, &[]),
                ],
            ),
            time("gpu-3", &idle(100 * S - 2)),
        ];
        let of = BatchGpuTime::of("b", &times, at(0), at(100 * S));
        assert_eq!(
            of.largest_loss.as_deref(),
            Some("gpu-1 and gpu-3 were idle 62% of the time: model not loaded")
        );
        assert_eq!(of.gpus[1].ms["running_other_batches"], 90_000);
        assert_eq!(of.gpus[1].ms.get("running"), None);
        assert_eq!(of.total_ms.values().sum::<i64>(), 3 * of.wall_ms);

        let loading = [time("gpu-1", &[(S, Cause::Loading, &[])])];
        assert_eq!(
            BatchGpuTime::of("b", &loading, at(0), at(S))
                .largest_loss
                .unwrap(),
            "gpu-1 lost 100% of the time: loading"
        );
        let busy = [time("gpu-1", &[(S, Cause::Running, &["other"])])];
        let busy = BatchGpuTime::of("b", &busy, at(0), at(S));
        assert_eq!(busy.largest_loss, None, "other batches are no loss");
    }

    #[test]
    fn shares_are_said_the_largest_first() {
        let said = gpu_shares([
            ("no_work", 18.0),
            ("running", 62.0),
            ("paused", 0.0),
            ("loading", 0.1),
            ("running_other_batches", 20.0),
        ]);
        assert_eq!(
            said,
            "62% running, 20% running other batches, 18% no work, <1% loading"
        );
        assert_eq!(gpu_shares([("running", 0.0)]), "");
    }
}
