//! What came of the steps: a line for each as it ends, then a report for people and one for programs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

/// What came of a step, in words with numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", content = "detail", rename_all = "snake_case")]
pub(super) enum Outcome {
    /// It is as it should be.
    Passed(String),
    /// It is not.
    Failed(String),
    /// It could not be tried here.
    Skipped(String),
}

/// All that came of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    schema: u32,
    simulated: bool,
    at: jiff::Timestamp,
    runtime: &'static str,
    /// The GPUs, in words.
    pub(super) machine: Vec<String>,
    steps: Vec<Step>,
}

#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    #[serde(flatten)]
    outcome: Outcome,
    seconds: f64,
}

impl Report {
    pub(super) fn new(simulated: bool, runtime: &'static str) -> Report {
        if simulated {
            println!("SIMULATED: a stand-in GPU; nothing here says anything about a real one");
        }
        Report {
            schema: 1,
            simulated,
            at: jiff::Timestamp::now(),
            runtime,
            machine: Vec::new(),
            steps: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, name: &'static str, outcome: Outcome, took: Duration) {
        let (mark, detail) = marked(&outcome);
        println!("{mark:<7} {name}: {detail} ({:.1}s)", took.as_secs_f64());
        self.steps.push(Step {
            name,
            outcome,
            seconds: took.as_secs_f64(),
        });
    }

    pub(super) fn failed(&self) -> usize {
        let failed = |step: &&Step| matches!(step.outcome, Outcome::Failed(_));
        self.steps.iter().filter(failed).count()
    }

    /// Writes `report.md` and `report.json`.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self).context("a report is plain data")?;
        for (name, text) in [("report.json", json), ("report.md", self.markdown())] {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            println!("{}", path.display());
        }
        Ok(())
    }

    fn markdown(&self) -> String {
        let mut text = String::from("# GPU smoke test\n\n");
        if self.simulated {
            text += "**Simulated**: a stand-in GPU. This says nothing about a real one.\n\n";
        }
        text += &format!("- when: {}\n- runtime: {}\n", self.at, self.runtime);
        for gpu in &self.machine {
            text += &format!("- {gpu}\n");
        }
        text += "\n| step | result | what was seen | seconds |\n|---|---|---|---|\n";
        for step in &self.steps {
            let (mark, detail) = marked(&step.outcome);
            // A cell ends at a bar and a row at a line's end.
            let detail = detail.replace('|', "\\|").replace('\n', " ");
            text += &format!(
                "| {} | {mark} | {detail} | {:.1} |\n",
                step.name, step.seconds
            );
        }
        text
    }
}

fn marked(outcome: &Outcome) -> (&'static str, &str) {
    match outcome {
        Outcome::Passed(detail) => ("ok", detail),
        Outcome::Failed(detail) => ("FAILED", detail),
        Outcome::Skipped(detail) => ("skipped", detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_and_no_detail_breaks_the_table() {
        let mut report = Report::new(true, "x");
        report.add("a", Outcome::Passed("1 | 2".into()), Duration::ZERO);
        report.add(
            "b",
            Outcome::Failed("first\nsecond".into()),
            Duration::from_secs(2),
        );
        report.add("c", Outcome::Skipped("no GPU".into()), Duration::ZERO);
        assert_eq!(report.failed(), 1);
        let text = report.markdown();
        assert!(text.contains("**Simulated**"), "{text}");
        assert!(text.contains("| a | ok | 1 \\| 2 | 0.0 |"), "{text}");
        assert!(
            text.contains("| b | FAILED | first second | 2.0 |"),
            "{text}"
        );
    }
}
