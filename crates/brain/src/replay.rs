//! `brain replay FILE`: placement decisions of a journal, made again and compared.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use rigor_policy::placement::{POLICY, Record, SCHEMA};
use serde::{Deserialize, Serialize};

/// `brain replay FILE`.
#[derive(Debug, clap::Args)]
pub(crate) struct Replay {
    /// The journal: RIG/brain/placement.jsonl, or one that was set aside
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What came of a journal.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Report {
    schema: u32,
    /// The rules that decided again.
    policy: u32,
    /// Decisions that were made again.
    decisions: usize,
    /// Of those, the ones that came out the same.
    equal: usize,
    /// The others.
    differences: Vec<Difference>,
    /// Lines that could not be used, with why.
    unreadable: Vec<Unreadable>,
    /// The last line has no end: it was being written when its writer died, or is being written.
    torn: bool,
    /// Decisions by the rules that made them.
    recorded_by: BTreeMap<u32, usize>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Difference {
    line: usize,
    at: jiff::Timestamp,
    /// The rules that decided then.
    policy: u32,
    words: Vec<String>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Unreadable {
    line: usize,
    why: String,
}

/// Runs it. Exit code 0: all equal; 1: a difference; 2: something cannot be read, or nothing is
/// there.
pub(crate) fn main(args: &Replay) -> ExitCode {
    match replay(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("brain: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn replay(args: &Replay) -> Result<ExitCode> {
    let bytes = std::fs::read(&args.file).with_context(|| {
        format!(
            "cannot read {}; a rig's journal is RIG/brain/placement.jsonl",
            args.file.display()
        )
    })?;
    let report = Report::of(&bytes);
    let text = if args.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.words()
    };
    // Whoever stopped reading has seen enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::from(report.code()))
}

impl Report {
    fn of(bytes: &[u8]) -> Report {
        #[derive(Deserialize)]
        struct Head {
            schema: u32,
        }
        let mut report = Report {
            schema: 1,
            policy: POLICY,
            ..Report::default()
        };
        let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        // What follows the last line's end: nothing, or a line that was not finished.
        let rest = lines.pop().unwrap_or_default();
        report.torn = !rest.is_empty();
        for (at, line) in lines.into_iter().enumerate() {
            let number = at + 1;
            let unreadable = |why: String| Unreadable { line: number, why };
            match serde_json::from_slice::<Head>(line) {
                Err(error) => report.unreadable.push(unreadable(error.to_string())),
                Ok(head) if head.schema != SCHEMA => report.unreadable.push(unreadable(format!(
                    "it has schema {}, this brain reads {SCHEMA}{}",
                    head.schema,
                    if head.schema > SCHEMA {
                        ": a newer one wrote it"
                    } else {
                        ""
                    }
                ))),
                Ok(_) => match serde_json::from_slice::<Record>(line) {
                    Err(error) => report.unreadable.push(unreadable(error.to_string())),
                    Ok(record) => report.compare(number, &record),
                },
            }
        }
        report
    }

    fn compare(&mut self, line: usize, record: &Record) {
        self.decisions += 1;
        *self.recorded_by.entry(record.policy).or_default() += 1;
        let words = record.differences();
        if words.is_empty() {
            self.equal += 1;
        } else {
            self.differences.push(Difference {
                line,
                at: record.at,
                policy: record.policy,
                words,
            });
        }
    }

    fn code(&self) -> u8 {
        if !self.differences.is_empty() {
            1
        } else if !self.unreadable.is_empty() || self.decisions == 0 {
            2
        } else {
            0
        }
    }

    fn words(&self) -> String {
        let mut lines = Vec::new();
        for difference in &self.differences {
            let by = match difference.policy {
                POLICY => String::new(),
                other => format!(" (decided by rules {other}, these are {POLICY})"),
            };
            lines.push(format!(
                "line {}, {}: different{by}",
                difference.line, difference.at
            ));
            lines.extend(difference.words.iter().map(|words| format!("  {words}")));
        }
        for unreadable in &self.unreadable {
            lines.push(format!(
                "line {} cannot be used: {}",
                unreadable.line, unreadable.why
            ));
        }
        if self.torn {
            lines.push("the last line is not finished: left out".to_owned());
        }
        lines.push(format!(
            "{} made again: {} equal, {} different; {} cannot be used",
            plural(self.decisions, "decision"),
            self.equal,
            self.differences.len(),
            plural(self.unreadable.len(), "line")
        ));
        for (rules, number) in &self.recorded_by {
            if *rules != POLICY {
                lines.push(format!(
                    "{number} of them by rules {rules}, these are rules {POLICY}: what is different may have been changed on purpose"
                ));
            }
        }
        lines.join("\n") + "\n"
    }
}

fn plural(count: usize, noun: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{s}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_of_other_rules_are_said_to_be() {
        let report = |policy: u32| Report {
            policy: POLICY,
            decisions: 1,
            equal: 1,
            recorded_by: BTreeMap::from([(policy, 1)]),
            ..Report::default()
        };
        let summary = "1 decision made again: 1 equal, 0 different; 0 lines cannot be used\n";
        assert_eq!(report(POLICY).words(), summary);
        let other = POLICY + 1;
        assert_eq!(
            report(other).words(),
            format!(
                "{summary}1 of them by rules {other}, these are rules {POLICY}: what is different may have been changed on purpose\n"
            )
        );
    }
}
