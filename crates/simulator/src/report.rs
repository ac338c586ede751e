//! What is printed of a trace.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::Result;
use comfy_table::{Table, presets};
use rigor_queue::reasons::Cause;
use serde::Serialize;

use crate::bound::{Bound, bound};
use crate::rules::Rules;
use crate::trace::Trace;
use crate::world::{Outcome, run};

/// The makespan may be so many times the lower bound.
const MAKESPAN_MOST: f64 = 1.15;

/// One trace under every policy.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The file, without its ending.
    pub trace: String,
    about: String,
    bound_s: f64,
    work_s: f64,
    path_s: f64,
    load_s: f64,
    unreachable: Option<String>,
    policies: Vec<Row>,
    /// Targets that Rigor's policy misses on this trace.
    pub missed: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    policy: &'static str,
    makespan_s: f64,
    of_bound: f64,
    llm_s: f64,
    loads: usize,
    worst_wait_s: f64,
    gpu_seconds: BTreeMap<Cause, f64>,
    left: usize,
}

impl Report {
    /// Runs the trace under every policy.
    pub fn of(path: &Path) -> Result<Report> {
        let trace = Trace::read(path)?;
        let durations = trace.durations();
        let bound = bound(&trace, &durations)?;
        let policies: Vec<Row> = Rules::ALL
            .into_iter()
            .map(|rules| row(rules, run(&trace, &durations, rules), &bound))
            .collect();
        let missed = missed(&trace, &policies, &bound);
        Ok(Report {
            trace: path
                .file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
                .unwrap_or_default(),
            about: trace.about,
            bound_s: bound.seconds(),
            work_s: bound.work_s,
            path_s: bound.path_s,
            load_s: bound.load_s,
            unreachable: trace.target.unreachable,
            policies,
            missed,
        })
    }
}

fn row(rules: Rules, outcome: Outcome, bound: &Bound) -> Row {
    Row {
        policy: rules.name(),
        makespan_s: outcome.makespan_s,
        of_bound: outcome.makespan_s / bound.seconds(),
        llm_s: outcome.llm_s,
        loads: outcome.loads,
        worst_wait_s: outcome.worst_wait_s,
        gpu_seconds: outcome.gpu_seconds,
        left: outcome.left,
    }
}

fn missed(trace: &Trace, rows: &[Row], bound: &Bound) -> Vec<String> {
    let ours = &rows[0];
    let target = &trace.target;
    let mut missed = Vec::new();
    if ours.left > 0 {
        missed.push(format!("{} tasks never ran", ours.left));
    }
    if target.unreachable.is_none() && ours.of_bound > MAKESPAN_MOST {
        missed.push(format!(
            "makespan {:.0}s is {:.2} x the lower bound {:.0}s, the target is {MAKESPAN_MOST} x",
            ours.makespan_s,
            ours.of_bound,
            bound.seconds()
        ));
    }
    let one_hot = rows.iter().find(|row| row.policy == Rules::OneHot.name());
    if let (Some(times), Some(one_hot)) = (target.llm_speedup, one_hot)
        && one_hot.llm_s < times * ours.llm_s
    {
        missed.push(format!(
            "the LLM phase of {:.0}s is {:.2} x as fast as with one hot GPU, the target is {times} x",
            ours.llm_s,
            one_hot.llm_s / ours.llm_s
        ));
    }
    if let Some(most) = target.loads_most.filter(|most| ours.loads > *most) {
        missed.push(format!("{} loads, the most is {most}", ours.loads));
    }
    missed
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.trace, self.about)?;
        writeln!(
            f,
            "lower bound {:.0}s = max(work {:.0}s, path {:.0}s) + load {:.0}s",
            self.bound_s, self.work_s, self.path_s, self.load_s
        )?;
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header([
            "POLICY",
            "MAKESPAN",
            "x BOUND",
            "LLM PHASE",
            "LOADS",
            "WORST WAIT",
            "GPU TIME",
        ]);
        for row in &self.policies {
            let all: f64 = row.gpu_seconds.values().sum();
            let shares: Vec<String> = Cause::ALL
                .iter()
                .filter_map(|cause| Some((cause, row.gpu_seconds.get(cause)?)))
                .map(|(cause, seconds)| (cause, 100.0 * seconds / all.max(1e-9)))
                .filter(|(_, share)| *share >= 0.5)
                .map(|(cause, share)| format!("{share:.0}% {}", cause.words()))
                .collect();
            table.add_row([
                row.policy.to_owned(),
                format!("{:.0}s", row.makespan_s),
                format!("{:.2}", row.of_bound),
                format!("{:.0}s", row.llm_s),
                row.loads.to_string(),
                format!("{:.0}s", row.worst_wait_s),
                shares.join(", "),
            ]);
        }
        writeln!(f, "{table}")?;
        for missed in &self.missed {
            writeln!(f, "MISSED: {missed}")?;
        }
        if let Some(why) = &self.unreachable {
            writeln!(f, "The bound cannot be reached here: {why}")?;
        }
        Ok(())
    }
}
