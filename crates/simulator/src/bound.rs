//! What no policy can beat: `max(total work / GPUs, critical path) + one load`.

use anyhow::{Context as _, Result, bail};
use microlp::{ComparisonOp, OptimizationDirection, Problem, SolveOutcome};

use crate::trace::{Gpu, Trace, Work};

/// The lower bound of the makespan, seconds, and its parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// The time in which all GPUs together could do all work, with models loaded and nothing
    /// waiting for anything.
    pub work_s: f64,
    /// The longest chain of arrivals and tasks.
    pub path_s: f64,
    /// The shortest load of a model that is needed.
    pub load_s: f64,
}

impl Bound {
    /// The whole bound.
    pub fn seconds(&self) -> f64 {
        self.work_s.max(self.path_s) + self.load_s
    }
}

/// Tasks of this work that a GPU runs at once when it does nothing else.
pub(crate) fn at_once(trace: &Trace, gpu: &Gpu, work: &Work) -> f64 {
    match work.model.as_ref().and_then(|id| trace.model(id)) {
        Some(model) if model.vram_mb <= gpu.budget_mb => f64::from(model.slots),
        Some(_) => 0.0,
        None => match gpu.budget_mb.checked_div(work.vram_mb) {
            Some(fits) => (fits as f64).min(f64::from(gpu.cpu_slots)),
            None => f64::from(gpu.cpu_slots),
        },
    }
}

/// Computes it.
pub fn bound(trace: &Trace, durations: &[Vec<f64>]) -> Result<Bound> {
    let load_s = trace
        .work
        .iter()
        .filter_map(|work| trace.model(work.model.as_ref()?))
        .map(|model| model.load_s)
        .min_by(f64::total_cmp)
        .unwrap_or(0.0);
    Ok(Bound {
        work_s: shared(trace, durations).context("the linear program of the bound")?,
        path_s: longest_chain(trace, durations),
        load_s,
    })
}

/// The least T in which all work gets done. A GPU that is gone for a while lacks that while, which
/// depends on T: it is solved again until it holds.
fn shared(trace: &Trace, durations: &[Vec<f64>]) -> Result<f64> {
    let mut most = solve(trace, durations, 0.0)?;
    loop {
        let next = solve(trace, durations, most)?;
        if next <= most + 1e-6 {
            return Ok(most);
        }
        most = next;
    }
}

/// The least T such that every GPU divides T, less its outages before `until`, among the kinds of
/// work and all work gets done.
fn solve(trace: &Trace, durations: &[Vec<f64>], until: f64) -> Result<f64> {
    let mut problem = Problem::new(OptimizationDirection::Minimize);
    let most = problem.add_var(1.0, (0.0, f64::INFINITY));
    let gpus = trace.each_gpu();
    let mut parts: Vec<Vec<_>> = Vec::new();
    for (number, gpu) in gpus.iter().enumerate() {
        let gone: f64 = trace
            .outages
            .iter()
            .filter(|outage| outage.gpu == number)
            .map(|outage| {
                outage
                    .seconds
                    .unwrap_or(f64::INFINITY)
                    .min(until - outage.at)
            })
            .map(|seconds| seconds.max(0.0))
            .sum();
        let shares: Vec<_> = trace
            .work
            .iter()
            .map(|work| {
                (
                    problem.add_var(0.0, (0.0, f64::INFINITY)),
                    at_once(trace, gpu, work),
                )
            })
            .collect();
        let mut sum: Vec<_> = shares.iter().map(|(share, _)| (*share, 1.0)).collect();
        sum.push((most, -1.0));
        problem.add_constraint(sum, ComparisonOp::Le, -gone);
        parts.push(shares);
    }
    for (at, of) in durations.iter().enumerate() {
        let done: Vec<_> = parts.iter().map(|shares| shares[at]).collect();
        problem.add_constraint(done, ComparisonOp::Ge, of.iter().sum());
    }
    match problem.solve()? {
        SolveOutcome::Solution(solution) => Ok(solution.objective()),
        SolveOutcome::Interrupted(_) => bail!("it was given up"),
    }
}

fn longest_chain(trace: &Trace, durations: &[Vec<f64>]) -> f64 {
    let mut ends: Vec<Vec<f64>> = Vec::new();
    let place = |name: &str| trace.work.iter().position(|work| work.name == name);
    for (at, work) in trace.work.iter().enumerate() {
        let all = work.after.as_deref().and_then(place);
        let all = all.map_or(0.0, |before| most(&ends[before]));
        let each = work.each.as_deref().and_then(place);
        let of_work = durations[at]
            .iter()
            .enumerate()
            .map(|(n, seconds)| {
                let arrives = work.at + n as f64 * work.every;
                let before = each.map_or(0.0, |before| ends[before][n]);
                arrives.max(all).max(before) + seconds
            })
            .collect();
        ends.push(of_work);
    }
    ends.iter().map(|ends| most(ends)).fold(0.0, f64::max)
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}
