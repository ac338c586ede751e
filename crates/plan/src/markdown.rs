//! Reads the parts of plan.md that drive work, line by line, with the place of each.
//!
//! A full markdown reader would lose the places and would join lines; a plan needs headings,
//! `- **field**: value` lines, fenced blocks and comments, and nothing else of markdown.

use std::ops::Range;

use crate::problem::Problems;

/// The parts of a plan's text.
#[derive(Debug, Default)]
pub(crate) struct Document {
    pub(crate) title: Option<(String, Range<usize>)>,
    /// The prose of `## Goal` or `## Objective`.
    pub(crate) goal: String,
    pub(crate) goal_fields: Vec<RawField>,
    pub(crate) inputs: Vec<RawField>,
    pub(crate) tasks_heading: Option<Range<usize>>,
    /// Fields under `## Tasks`, before the first task.
    pub(crate) defaults: Vec<RawField>,
    pub(crate) tasks: Vec<RawTask>,
}

#[derive(Debug)]
pub(crate) struct RawTask {
    pub(crate) id: String,
    pub(crate) span: Range<usize>,
    pub(crate) fields: Vec<RawField>,
}

#[derive(Debug)]
pub(crate) struct RawField {
    pub(crate) name: String,
    pub(crate) name_span: Range<usize>,
    pub(crate) value: Value,
}

/// A value and where each of its lines stands in the source.
#[derive(Clone, Debug, Default)]
pub(crate) struct Value {
    pub(crate) text: String,
    /// (offset in `text`, offset in the source) of the start of each line.
    lines: Vec<(usize, usize)>,
}

impl Value {
    pub(crate) fn line(text: &str, at: usize) -> Value {
        Value {
            text: text.to_owned(),
            lines: vec![(0, at)],
        }
    }

    /// The text of a whole file.
    pub(crate) fn file(text: &str) -> Value {
        Value::line(text, 0)
    }

    /// The place in the source of a range of `text`, cut at the end of its first line.
    pub(crate) fn source(&self, range: Range<usize>) -> Range<usize> {
        let index = self
            .lines
            .partition_point(|(offset, _)| *offset <= range.start);
        let (offset, at) = self.lines[..index].last().copied().unwrap_or((0, 0));
        let start = at + (range.start - offset);
        start..start + (range.end - range.start)
    }

    /// The place of the first line.
    pub(crate) fn span(&self) -> Range<usize> {
        let first = self.text.find('\n').unwrap_or(self.text.len());
        self.source(0..first)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Section {
    Goal,
    Inputs,
    Tasks,
    Other,
}

/// Reads `text`; `known` tells the names of fields, so that a line that was meant as one and is
/// not written as one is reported instead of taken for prose.
pub(crate) fn read(
    file: &str,
    text: &str,
    known: impl Fn(&str) -> bool,
    problems: &mut Problems,
) -> Document {
    let lines = lines(text);
    let mut document = Document::default();
    let mut section = Section::Other;
    let mut at = 0;
    while at < lines.len() {
        let Line { start, text: line } = lines[at];
        at += 1;
        if let Some(fence) = Fence::open(line) {
            at = match fence.close(&lines, at) {
                Some(end) => end + 1,
                None => {
                    let span = start..start + line.len();
                    problems.push(file, span, "this fenced block is not closed", None);
                    lines.len()
                }
            };
            continue;
        }
        if line.trim_start().starts_with("<!--") {
            at = match (at - 1..lines.len()).find(|n| lines[*n].text.contains("-->")) {
                Some(end) => end + 1,
                None => {
                    let span = start..start + line.len();
                    problems.push(file, span, "this comment is not closed", None);
                    lines.len()
                }
            };
            continue;
        }
        if let Some((level, title, offset)) = heading(line) {
            let span = start + offset..start + offset + title.len();
            match level {
                1 => {
                    section = Section::Other;
                    if let Some(name) = title.strip_prefix("Plan:")
                        && document.title.is_none()
                    {
                        let name_at = span.end - name.trim_start().len();
                        document.title = Some((name.trim().to_owned(), name_at..span.end));
                    }
                }
                2 => {
                    section = match title.to_lowercase().as_str() {
                        "goal" | "objective" => Section::Goal,
                        "inputs" => Section::Inputs,
                        "tasks" => Section::Tasks,
                        _ => Section::Other,
                    };
                    if section == Section::Tasks && document.tasks_heading.is_some() {
                        problems.push(
                            file,
                            span,
                            "a second `## Tasks`",
                            "put all tasks under one heading".to_owned(),
                        );
                    } else if section == Section::Tasks {
                        document.tasks_heading = Some(span);
                    }
                }
                3 if section == Section::Tasks => {
                    let (id, shift) = unquoted(title);
                    let span = span.start + shift..span.start + shift + id.len();
                    document.tasks.push(RawTask {
                        id: id.to_owned(),
                        span,
                        fields: Vec::new(),
                    });
                }
                _ => {}
            }
            continue;
        }
        if section == Section::Other {
            continue;
        }
        match field_line(line, &known) {
            FieldLine::Prose => {
                if section == Section::Goal && !line.trim().is_empty() {
                    if !document.goal.is_empty() {
                        document.goal.push('\n');
                    }
                    document.goal.push_str(line.trim());
                }
            }
            FieldLine::Malformed(range) => {
                if section == Section::Tasks {
                    problems.push(
                        file,
                        start + range.start..start + range.end,
                        "this looks like a field, but is not written as one",
                        "a field is written `- **name**: value`".to_owned(),
                    );
                }
            }
            FieldLine::Field { name, value } => {
                let mut field = RawField {
                    name: line[name.clone()].trim().to_owned(),
                    name_span: start + name.start..start + name.end,
                    value: line_value(&line[value.clone()], start + value.start),
                };
                if section == Section::Tasks {
                    at = take_block(file, &lines, at, &mut field, problems);
                }
                match section {
                    Section::Goal => document.goal_fields.push(field),
                    Section::Inputs => document.inputs.push(field),
                    Section::Tasks => match document.tasks.last_mut() {
                        Some(task) => task.fields.push(field),
                        None => document.defaults.push(field),
                    },
                    Section::Other => {}
                }
            }
        }
    }
    document
}

#[derive(Clone, Copy)]
struct Line<'a> {
    start: usize,
    text: &'a str,
}

fn lines(text: &str) -> Vec<Line<'_>> {
    let mut start = 0;
    let mut lines = Vec::new();
    for line in text.split('\n') {
        let shown = line.strip_suffix('\r').unwrap_or(line);
        // A byte order mark belongs to the file, not to its first heading.
        let mark = if start == 0 && shown.starts_with('\u{feff}') {
            '\u{feff}'.len_utf8()
        } else {
            0
        };
        lines.push(Line {
            start: start + mark,
            text: &shown[mark..],
        });
        start += line.len() + 1;
    }
    lines
}

/// Takes the fenced block under a field without a value. Returns the next line to read.
fn take_block(
    file: &str,
    lines: &[Line<'_>],
    at: usize,
    field: &mut RawField,
    problems: &mut Problems,
) -> usize {
    if !field.value.text.is_empty() {
        if field.value.text.ends_with('\\') {
            let end = field.value.text.len();
            problems.push(
                file,
                field.value.source(end - 1..end),
                "a value ends with its line",
                "put what has several lines into a fenced block under the field".to_owned(),
            );
        }
        if lines
            .get(at)
            .is_some_and(|line| Fence::open(line.text).is_some())
        {
            problems.push(
                file,
                field.name_span.clone(),
                format!(
                    "`{}` has a value on its line and a fenced block",
                    field.name
                ),
                "keep one of the two".to_owned(),
            );
        }
        return at;
    }
    let opening = (at..lines.len()).find(|n| !lines[*n].text.trim().is_empty());
    let Some((opening, fence)) = opening.and_then(|n| Some((n, Fence::open(lines[n].text)?)))
    else {
        problems.push(
            file,
            field.name_span.clone(),
            format!("`{}` has no value", field.name),
            "the value stands on the same line or in a fenced block under it".to_owned(),
        );
        return at;
    };
    let Some(closing) = fence.close(lines, opening + 1) else {
        problems.push(
            file,
            lines[opening].start..lines[opening].start + lines[opening].text.len(),
            "this fenced block is not closed",
            None,
        );
        return lines.len();
    };
    let mut value = Value::default();
    for line in &lines[opening + 1..closing] {
        let indent = line.text.len() - line.text.trim_start_matches([' ', '\t']).len();
        let cut = indent.min(fence.indent);
        if !value.lines.is_empty() {
            value.text.push('\n');
        }
        value.lines.push((value.text.len(), line.start + cut));
        value.text.push_str(&line.text[cut..]);
    }
    if value.text.trim().is_empty() {
        problems.push(
            file,
            field.name_span.clone(),
            format!("`{}` is empty", field.name),
            None,
        );
    }
    field.value = value;
    closing + 1
}

struct Fence {
    indent: usize,
    mark: u8,
    length: usize,
}

impl Fence {
    fn open(line: &str) -> Option<Fence> {
        let body = line.trim_start_matches([' ', '\t']);
        let mark = *body
            .as_bytes()
            .first()
            .filter(|b| matches!(b, b'`' | b'~'))?;
        let length = body.bytes().take_while(|b| *b == mark).count();
        // An inline span such as ```x``` is no fence.
        let info_holds_mark = mark == b'`' && body[length..].contains('`');
        (length >= 3 && !info_holds_mark).then(|| Fence {
            indent: line.len() - body.len(),
            mark,
            length,
        })
    }

    fn close(&self, lines: &[Line<'_>], from: usize) -> Option<usize> {
        (from..lines.len()).find(|n| {
            let body = lines[*n].text.trim();
            body.len() >= self.length && body.bytes().all(|b| b == self.mark)
        })
    }
}

/// Level, title and the title's offset in the line of an ATX heading.
fn heading(line: &str) -> Option<(usize, &str, usize)> {
    let body = line.trim_start_matches(' ');
    let indent = line.len() - body.len();
    let level = body.bytes().take_while(|b| *b == b'#').count();
    let rest = &body[level..];
    if indent > 3 || level == 0 || level > 6 || !(rest.is_empty() || rest.starts_with([' ', '\t']))
    {
        return None;
    }
    let title = rest.trim();
    let closed = title.trim_end_matches('#');
    let title = if closed.is_empty() || closed.ends_with([' ', '\t']) {
        closed.trim_end()
    } else {
        title
    };
    Some((level, title, line.len() - rest.trim_start().len()))
}

enum FieldLine {
    Field {
        name: Range<usize>,
        value: Range<usize>,
    },
    Malformed(Range<usize>),
    Prose,
}

fn field_line(line: &str, known: &impl Fn(&str) -> bool) -> FieldLine {
    let body = line.trim_start();
    let indent = line.len() - body.len();
    let bullet = body
        .strip_prefix(['-', '*', '+'])
        .filter(|rest| rest.starts_with([' ', '\t']))
        .map(str::trim_start);
    let content = bullet.unwrap_or(body);
    let start = line.len() - content.len();
    let bold = content
        .strip_prefix("**")
        .and_then(|rest| Some(&rest[..rest.find("**")?]));
    let plain = content
        .split(':')
        .next()
        .filter(|name| name.len() < content.len());
    let named = |name: &str| known(name.trim().trim_end_matches(':').trim_matches('`').trim());
    let whole = indent..line.trim_end().len();
    match (bullet, bold) {
        (Some(_), Some(name)) => {
            let after_name = start + 2 + name.len() + 2;
            let rest = &line[after_name..];
            match rest.trim_start().strip_prefix(':') {
                Some(value) => {
                    let blank = value.len() - value.trim_start().len();
                    let at = line.len() - value.len() + blank;
                    FieldLine::Field {
                        name: start + 2..start + 2 + name.len(),
                        value: at..at.max(line.trim_end().len()),
                    }
                }
                None if named(name) => FieldLine::Malformed(whole),
                None => FieldLine::Prose,
            }
        }
        (None, Some(name)) if named(name) => FieldLine::Malformed(whole),
        (Some(_), None) if plain.is_some_and(named) => FieldLine::Malformed(whole),
        _ => FieldLine::Prose,
    }
}

fn line_value(text: &str, at: usize) -> Value {
    let (inner, shift) = unquoted(text);
    Value::line(inner, at + shift)
}

/// What stands in one pair of backticks around the whole text, and its offset; the text itself
/// where there is no such pair.
pub(crate) fn unquoted(text: &str) -> (&str, usize) {
    let run = text.bytes().take_while(|b| *b == b'`').count();
    let closes = text.bytes().rev().take_while(|b| *b == b'`').count();
    if run == 0 || run != closes || text.len() <= 2 * run {
        return (text, 0);
    }
    let inner = &text[run..text.len() - run];
    // "`a` and `b`" is two pairs, not one.
    let mut rest = inner;
    while let Some(at) = rest.find('`') {
        let length = rest[at..].bytes().take_while(|b| *b == b'`').count();
        if length == run {
            return (text, 0);
        }
        rest = &rest[at + length..];
    }
    let trimmed = inner.trim();
    (trimmed, run + (inner.len() - inner.trim_start().len()))
}
