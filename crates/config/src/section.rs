//! Reads one table of a rig.toml and collects every mistake in it.
//!
//! A key is known because somebody asked for it: the list of known keys cannot disagree with
//! what is read.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use bytesize::ByteSize;
use jiff::SignedDuration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::problem::{Problem, nearest};

/// The text of a rig.toml and the mistakes found in it so far.
pub(crate) struct Source<'i> {
    text: &'i str,
    problems: RefCell<Vec<(usize, String)>>,
}

impl<'i> Source<'i> {
    pub(crate) fn new(text: &'i str) -> Source<'i> {
        Source {
            text,
            problems: RefCell::default(),
        }
    }

    /// Notes a mistake at the byte `offset`.
    pub(crate) fn problem(&self, offset: usize, message: impl Into<String>) {
        self.problems.borrow_mut().push((offset, message.into()));
    }

    /// All mistakes, in the order of the file.
    pub(crate) fn into_problems(self) -> Vec<Problem> {
        let text = self.text;
        let mut found = self.problems.into_inner();
        found.sort_by_key(|(offset, _)| *offset);
        found
            .into_iter()
            .map(|(offset, message)| {
                let (line, column) = place(text, offset);
                Problem {
                    line,
                    column,
                    message,
                }
            })
            .collect()
    }

    /// The line and the column of a byte offset, each from 1.
    fn place(&self, offset: usize) -> (usize, usize) {
        place(self.text, offset)
    }
}

/// One table, or its absence (then every key is absent).
pub(crate) struct Section<'s, 'i> {
    source: &'s Source<'i>,
    /// As a user writes it: `[[gpu]]`, `[timing]`; empty for the file itself.
    title: String,
    table: Option<&'s DeTable<'i>>,
    offset: usize,
    asked: RefCell<Vec<&'static str>>,
}

impl<'s, 'i> Section<'s, 'i> {
    /// The file itself.
    pub(crate) fn root(source: &'s Source<'i>, table: &'s DeTable<'i>) -> Section<'s, 'i> {
        Section::new(source, String::new(), Some(table), 0)
    }

    /// The table `[key]`.
    pub(crate) fn table(&self, key: &'static str) -> Section<'s, 'i> {
        let title = format!("[{key}]");
        match self.value(key) {
            Some(value) => match value.get_ref() {
                DeValue::Table(table) => {
                    Section::new(self.source, title, Some(table), value.span().start)
                }
                other => {
                    self.source.problem(
                        value.span().start,
                        format!(
                            "`{key}` must be a table written as {title}, not {}",
                            kind(other)
                        ),
                    );
                    Section::new(self.source, title, None, 0)
                }
            },
            None => Section::new(self.source, title, None, 0),
        }
    }

    /// The tables `[[key]]`.
    pub(crate) fn tables(&self, key: &'static str) -> Vec<Section<'s, 'i>> {
        let title = format!("[[{key}]]");
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let DeValue::Array(items) = value.get_ref() else {
            let message =
                format!("`{key}` must be written as {title}, once for each, not as one table");
            self.source.problem(value.span().start, message);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for item in items.iter() {
            match item.get_ref() {
                DeValue::Table(table) => sections.push(Section::new(
                    self.source,
                    title.clone(),
                    Some(table),
                    item.span().start,
                )),
                other => self.source.problem(
                    item.span().start,
                    format!(
                        "`{key}` must be tables written as {title}, not {}",
                        kind(other)
                    ),
                ),
            }
        }
        sections
    }

    pub(crate) fn text(&self, key: &'static str, example: &str) -> Option<String> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(text) if text.trim().is_empty() => {
                self.problem(
                    key,
                    format!("`{key}` is empty: write {key} = \"{example}\""),
                );
                None
            }
            DeValue::String(text) => Some(text.to_string()),
            other => {
                self.wrong_type(key, other, &format!("a string such as \"{example}\""));
                None
            }
        }
    }

    /// As `text`, where the table is of no use without it.
    pub(crate) fn required(&self, key: &'static str, example: &str) -> Option<String> {
        self.require(key, &format!("\"{example}\""));
        self.text(key, example)
    }

    /// Notes a mistake where `key` is absent; `example` is a value as TOML writes it.
    pub(crate) fn require(&self, key: &'static str, example: &str) {
        if self.value(key).is_none() {
            let message = format!("{} has no `{key}`: add {key} = {example}", self.title);
            self.source.problem(self.offset, message);
        }
    }

    /// One of a closed list of words.
    pub(crate) fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(key, choices[0].0)?;
        let found = choices
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value);
        if found.is_none() {
            let words = || choices.iter().map(|(word, _)| *word);
            let list = words()
                .map(|word| format!("\"{word}\""))
                .collect::<Vec<_>>()
                .join(", ");
            let near = nearest(&text, words()).unwrap_or_default();
            self.problem(
                key,
                format!(
                    "`{key}` must be one of {list}, not \"{text}\" (the nearest is \"{near}\")"
                ),
            );
        }
        found
    }

    pub(crate) fn flag(&self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(*flag),
            other => {
                self.wrong_type(key, other, "true or false, without quotes");
                None
            }
        }
    }

    /// A whole number within `range`.
    pub(crate) fn number(
        &self,
        key: &'static str,
        range: RangeInclusive<u32>,
        unit: &str,
    ) -> Option<u32> {
        let expected = format!(
            "a whole number from {} to {} ({unit})",
            range.start(),
            range.end()
        );
        let value = self.value(key)?;
        let DeValue::Integer(number) = value.get_ref() else {
            self.wrong_type(key, value.get_ref(), &expected);
            return None;
        };
        let parsed = u32::from_str_radix(number.as_str(), number.radix()).ok();
        let accepted = parsed.filter(|number| range.contains(number));
        if accepted.is_none() {
            let written = number.as_str();
            self.problem(key, format!("`{key}` must be {expected}, not {written}"));
        }
        accepted
    }

    /// A share: above 0, at most 1.
    pub(crate) fn share(&self, key: &'static str) -> Option<f64> {
        const EXPECTED: &str = "a share above 0 and at most 1, such as 0.8";
        let value = self.value(key)?;
        let written = match value.get_ref() {
            DeValue::Float(number) => number.as_str(),
            DeValue::Integer(number) => number.as_str(),
            other => {
                self.wrong_type(key, other, EXPECTED);
                return None;
            }
        };
        let accepted = written
            .parse()
            .ok()
            .filter(|share| *share > 0.0 && *share <= 1.0);
        if accepted.is_none() {
            self.problem(key, format!("`{key}` must be {EXPECTED}, not {written}"));
        }
        accepted
    }

    pub(crate) fn duration(&self, key: &'static str) -> Option<Duration> {
        const EXPECTED: &str = "a duration such as \"30s\", \"5m\" or \"1h 30m\"";
        let value = self.value(key)?;
        let DeValue::String(text) = value.get_ref() else {
            self.wrong_type(key, value.get_ref(), EXPECTED);
            return None;
        };
        let accepted = text
            .parse::<SignedDuration>()
            .ok()
            .and_then(|signed| Duration::try_from(signed).ok())
            .filter(|duration| !duration.is_zero());
        if accepted.is_none() {
            self.problem(
                key,
                format!("`{key}` must be {EXPECTED} and above zero, not \"{text}\""),
            );
        }
        accepted
    }

    /// As [`Section::duration`], also in days.
    pub(crate) fn age(&self, key: &'static str) -> Option<Duration> {
        const EXPECTED: &str = "a duration such as \"30d\", \"12h\" or \"1h 30m\"";
        let value = self.value(key)?;
        let DeValue::String(text) = value.get_ref() else {
            self.wrong_type(key, value.get_ref(), EXPECTED);
            return None;
        };
        let accepted = crate::parse_age(text);
        if accepted.is_none() {
            self.problem(
                key,
                format!("`{key}` must be {EXPECTED} and above zero, not \"{text}\""),
            );
        }
        accepted
    }

    /// A size in bytes: "10MB" is ten million, "10MiB" is 10 x 1024 x 1024.
    pub(crate) fn size(&self, key: &'static str) -> Option<u64> {
        const EXPECTED: &str = "a size such as \"10MB\" or \"512KiB\"";
        let value = self.value(key)?;
        let DeValue::String(text) = value.get_ref() else {
            self.wrong_type(key, value.get_ref(), EXPECTED);
            return None;
        };
        let accepted = text
            .parse::<ByteSize>()
            .ok()
            .map(|size| size.as_u64())
            .filter(|size| *size > 0);
        if accepted.is_none() {
            self.problem(
                key,
                format!("`{key}` must be {EXPECTED} and above zero, not \"{text}\""),
            );
        }
        accepted
    }

    /// A list of strings; absent is empty.
    pub(crate) fn texts(&self, key: &'static str) -> Vec<String> {
        const EXPECTED: &str = "a list of strings such as [\"--flash-attn\", \"on\"]";
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(key, value.get_ref(), EXPECTED);
            return Vec::new();
        };
        let mut texts = Vec::new();
        for item in items.iter() {
            match item.get_ref() {
                DeValue::String(text) => texts.push(text.to_string()),
                other => self.source.problem(
                    item.span().start,
                    format!("`{key}` must be {EXPECTED}; this one is {}", kind(other)),
                ),
            }
        }
        texts
    }

    /// A program with its arguments: a list of them, or a text that bash is to run. Never empty.
    pub(crate) fn command(&self, key: &'static str) -> Option<Vec<String>> {
        const EXPECTED: &str =
            "a string that bash runs, or a list such as [\"program\", \"argument\"]";
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(text) if !text.trim().is_empty() => {
                Some(vec!["bash".to_owned(), "-c".to_owned(), text.to_string()])
            }
            DeValue::Array(items) if !items.is_empty() => {
                let words = self.texts(key);
                let program = words.first().is_some_and(|program| !program.is_empty());
                if words.len() == items.len() && !program {
                    self.problem(
                        key,
                        format!("`{key}` names no program: its first word is empty"),
                    );
                }
                (words.len() == items.len() && program).then_some(words)
            }
            DeValue::String(_) | DeValue::Array(_) => {
                self.problem(key, format!("`{key}` is empty: write {EXPECTED}"));
                None
            }
            other => {
                self.wrong_type(key, other, EXPECTED);
                None
            }
        }
    }

    /// Several of a closed list of words; absent is none.
    pub(crate) fn choices<T: Copy>(
        &self,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> Option<Vec<T>> {
        let words = || choices.iter().map(|(word, _)| *word);
        let list = words()
            .map(|word| format!("\"{word}\""))
            .collect::<Vec<_>>()
            .join(", ");
        let value = self.value(key)?;
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(key, value.get_ref(), &format!("a list of {list}"));
            return None;
        };
        let mut chosen = Vec::new();
        for item in items.iter() {
            let text = item.get_ref().as_str();
            let known = choices.iter().find(|(word, _)| Some(*word) == text);
            match (known, text) {
                (Some((_, choice)), _) => chosen.push(*choice),
                (None, Some(text)) => {
                    let near = nearest(text, words()).unwrap_or_default();
                    self.source.problem(
                        item.span().start,
                        format!("`{key}` knows {list}, not \"{text}\" (the nearest is \"{near}\")"),
                    );
                }
                (None, None) => self.source.problem(
                    item.span().start,
                    format!(
                        "`{key}` must be a list of {list}; this one is {}",
                        kind(item.get_ref())
                    ),
                ),
            }
        }
        Some(chosen)
    }

    /// Every entry of a table whose keys are the user's own, with the place of its value.
    pub(crate) fn entries(&self) -> Vec<(&'s str, Range<usize>, &'s DeValue<'i>)> {
        let entry = |(key, value): (&'s Spanned<_>, &'s Spanned<DeValue<'i>>)| {
            let key: &'s std::borrow::Cow<'i, str> = key.get_ref();
            (key.as_ref(), value.span(), value.get_ref())
        };
        self.table
            .map(|table| table.iter().map(entry).collect())
            .unwrap_or_default()
    }

    /// A table of strings, its keys the user's own.
    pub(crate) fn text_entries(&self) -> BTreeMap<String, String> {
        let mut entries = BTreeMap::new();
        for (key, span, value) in self.entries() {
            match value {
                DeValue::String(text) => {
                    entries.insert(key.to_owned(), text.to_string());
                }
                other => self.source.problem(
                    span.start,
                    format!(
                        "`{key}` in {} must be a string, not {}: put it in quotes",
                        self.title,
                        kind(other)
                    ),
                ),
            }
        }
        entries
    }

    /// Notes a mistake at the value of `key`, or at the table where it has none.
    pub(crate) fn problem(&self, key: &str, message: impl Into<String>) {
        let value = self.table.and_then(|table| table.get(key));
        let offset = value.map_or(self.offset, |value| value.span().start);
        self.source.problem(offset, message);
    }

    /// The line of the value of `key`, or of the table where it has none, from 1.
    pub(crate) fn line_of(&self, key: &str) -> usize {
        let value = self.table.and_then(|table| table.get(key));
        self.source
            .place(value.map_or(self.offset, |value| value.span().start))
            .0
    }

    /// A nested section whose title reads well for a table inside `[[model]]`.
    pub(crate) fn inner_table(&self, key: &'static str) -> Section<'s, 'i> {
        let mut section = self.table(key);
        section.title = format!("`{key}` of {}", self.title);
        section
    }

    /// Notes every key that nobody asked for.
    pub(crate) fn refuse_unknown_keys(&self) {
        let asked = self.asked.borrow();
        for (key, _) in self.table.into_iter().flatten() {
            let word: &str = key.get_ref();
            if asked.contains(&word) {
                continue;
            }
            let place = match self.title.as_str() {
                "" => String::new(),
                title => format!(" in {title}"),
            };
            let near = nearest(word, asked.iter().copied())
                .map(|near| format!("; the nearest known one is `{near}`"))
                .unwrap_or_default();
            self.source.problem(
                key.span().start,
                format!("unknown key `{word}`{place}{near}"),
            );
        }
    }

    fn new(
        source: &'s Source<'i>,
        title: String,
        table: Option<&'s DeTable<'i>>,
        offset: usize,
    ) -> Section<'s, 'i> {
        Section {
            source,
            title,
            table,
            offset,
            asked: RefCell::default(),
        }
    }

    fn value(&self, key: &'static str) -> Option<&'s Spanned<DeValue<'i>>> {
        let mut asked = self.asked.borrow_mut();
        if !asked.contains(&key) {
            asked.push(key);
        }
        self.table.and_then(|table| table.get(key))
    }

    fn wrong_type(&self, key: &'static str, found: &DeValue<'_>, expected: &str) {
        self.problem(
            key,
            format!("`{key}` must be {expected}, not {}", kind(found)),
        );
    }
}

/// What a value is, for a person.
pub(crate) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}
