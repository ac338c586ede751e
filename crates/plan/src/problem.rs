//! What is wrong with a plan: every problem with its place, shown as a compiler shows errors.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::Serialize;

/// Problems that are kept; a file that is no plan at all has more than anybody reads.
const PROBLEMS_MAX: usize = 1_000;

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file, as messages name it.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// Characters that the caret underlines; at least 1.
    pub length: usize,
    /// What is wrong.
    pub message: String,
    /// What would be right, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}:{}: {}",
            self.file, self.line, self.column, self.message
        )
    }
}

/// Everything that is wrong with a plan, in the order of the source. Never empty as an error of
/// [`check`](crate::check).
#[derive(Clone, Debug, Default, Serialize)]
pub struct Problems {
    /// The problems.
    pub problems: Vec<Problem>,
    /// Problems beyond the most that are kept.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: usize,
    #[serde(skip)]
    files: BTreeMap<String, File>,
}

/// A file that messages show lines of.
#[derive(Clone, Debug, Default)]
struct File {
    text: String,
    /// Where each line starts.
    lines: Vec<usize>,
}

impl File {
    fn line(&self, index: usize) -> &str {
        let start = self.lines.get(index).copied().unwrap_or(self.text.len());
        let end = self
            .lines
            .get(index + 1)
            .map_or(self.text.len(), |next| next - 1);
        self.text[start..end].trim_end_matches('\r')
    }
}

impl Problems {
    /// The problems as text for a terminal, each with its source line and a caret.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let mut text = String::new();
        for problem in &self.problems {
            text.push_str(&self.render_one(&renderer, problem));
            text.push_str("\n\n");
        }
        if self.left_out > 0 {
            text.push_str(&format!("and {} more problems\n\n", self.left_out));
        }
        text
    }

    fn render_one(&self, renderer: &Renderer, problem: &Problem) -> String {
        let line = self
            .files
            .get(&problem.file)
            .map_or("", |file| file.line(problem.line - 1));
        let start = nth_char(line, problem.column - 1);
        let end = nth_char(line, problem.column - 1 + problem.length);
        let snippet = Snippet::source(line)
            .line_start(problem.line)
            .path(problem.file.as_str())
            .annotation(AnnotationKind::Primary.span(start..end));
        let mut group = Level::ERROR
            .primary_title(printable(&problem.message))
            .element(snippet);
        if let Some(help) = &problem.help {
            group = group.element(Level::HELP.message(printable(help)));
        }
        renderer.render(&[group])
    }

    pub(crate) fn add_file(&mut self, name: &str, text: &str) {
        let starts = text
            .bytes()
            .enumerate()
            .filter(|(_, b)| *b == b'\n')
            .map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(starts).collect();
        self.files.insert(
            name.to_owned(),
            File {
                text: text.to_owned(),
                lines,
            },
        );
    }

    /// Adds a problem at a byte range of a file that was added.
    pub(crate) fn push(
        &mut self,
        file: &str,
        range: Range<usize>,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) {
        if self.problems.len() >= PROBLEMS_MAX {
            self.left_out += 1;
            return;
        }
        let nowhere = File {
            text: String::new(),
            lines: vec![0],
        };
        let source = self.files.get(file).unwrap_or(&nowhere);
        let start = floor_char(&source.text, range.start);
        let index = source.lines.partition_point(|line| *line <= start) - 1;
        let line = source.line(index);
        let from = floor_char(line, start - source.lines[index]);
        let to = floor_char(line, range.end.saturating_sub(source.lines[index])).max(from);
        let problem = Problem {
            file: file.to_owned(),
            line: index + 1,
            column: line[..from].chars().count() + 1,
            length: line[from..to].chars().count().max(1),
            message: message.into(),
            help: help.into(),
        };
        // A default that is wrong is wrong once, not in every task that has it.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// The order of the source, the plan's own file before others.
    pub(crate) fn sort(&mut self, plan_file: &str) {
        self.problems.sort_by(|a, b| {
            let key = |p: &Problem| (p.file != plan_file, p.file.clone(), p.line, p.column);
            key(a).cmp(&key(b))
        });
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for Problems {}

/// The name among `names` that `text` was most likely meant to be.
pub(crate) fn nearest<'a>(text: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let text = text.to_lowercase();
    names
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&text, &name.to_lowercase()), name))
        .filter(|(score, _)| *score >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// "did you mean `x`?", where something is near.
pub(crate) fn did_you_mean<'a>(
    text: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    nearest(text, names).map(|name| format!("did you mean `{name}`?"))
}

/// Control characters of a plan do not reach a terminal through a message.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

fn nth_char(text: &str, n: usize) -> usize {
    text.char_indices().nth(n).map_or(text.len(), |(at, _)| at)
}

fn floor_char(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}
