//! One event as one line.

use std::fmt::{self, Write as _};

use jiff::{Timestamp, ZonedDateTime, tz::TimeZone};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};

use crate::level::Level;

/// What an event says, before it has a form.
pub(crate) struct Line<'a> {
    pub(crate) time: ZonedDateTime,
    pub(crate) component: &'a str,
    pub(crate) level: Level,
    pub(crate) message: String,
    pub(crate) fields: Map<String, Value>,
}

impl Line<'_> {
    /// `[2026-02-07T21:45:30.123+01:00] [gpu-1] INFO  message`
    pub(crate) fn text(&self) -> String {
        let mut line = format!(
            "[{}] [{}] {:<5} ",
            self.timestamp(),
            self.component,
            self.level
        );
        push_printable(&mut line, &self.message);
        line.push('\n');
        line
    }

    /// `[21:45:30.123] [gpu-1] message`; in colour a WARNING is yellow and an ERROR red, since
    /// this form has no word for them.
    pub(crate) fn short(&self, colour: bool) -> String {
        let (on, off) = match self.level {
            Level::Warning if colour => ("\x1b[33m", "\x1b[0m"),
            Level::Error if colour => ("\x1b[31m", "\x1b[0m"),
            _ => ("", ""),
        };
        let time = self.time.strftime("%H:%M:%S%.3f");
        let mut line = format!("{on}[{time}] [{}] ", self.component);
        push_printable(&mut line, &self.message);
        line.push_str(off);
        line.push('\n');
        line
    }

    /// `{"timestamp":...,"level":...,"component":...,"message":...}` and the event's fields.
    pub(crate) fn json(&self) -> String {
        let mut object = Map::new();
        object.insert("timestamp".to_owned(), self.timestamp().into());
        object.insert("level".to_owned(), self.level.word().into());
        object.insert("component".to_owned(), self.component.into());
        object.insert("message".to_owned(), self.message.as_str().into());
        for (name, value) in &self.fields {
            // A field must not pass for what the line itself says.
            let name = if object.contains_key(name) {
                format!("field.{name}")
            } else {
                name.clone()
            };
            object.insert(name, value.clone());
        }
        let mut line = Value::Object(object).to_string();
        line.push('\n');
        line
    }

    fn timestamp(&self) -> String {
        self.time.strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string()
    }
}

/// Now, by the system's time zone; by UTC where that cannot be found out.
pub(crate) fn now() -> ZonedDateTime {
    Timestamp::now().to_zoned_datetime(TimeZone::system())
}

/// Takes an event's message and fields.
#[derive(Default)]
pub(crate) struct Fields {
    pub(crate) message: String,
    pub(crate) fields: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.fields.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Writing to a String fails only where the value's own formatting does.
            let _ = write!(self.message, "{value:?}");
        } else {
            self.put(field, format!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.put(field, value);
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, value.to_string());
    }
}

/// Appends a message so that no text from outside can forge a line or steer a terminal: line ends
/// are followed by an indent, other control characters are escaped.
fn push_printable(line: &mut String, message: &str) {
    for c in message.trim_end_matches(['\n', '\r']).chars() {
        match c {
            '\n' => line.push_str("\n    "),
            '\t' => line.push('\t'),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: Level, message: &str) -> Line<'static> {
        let time: Timestamp = "2026-02-07T20:45:30.1239Z".parse().unwrap();
        let fields = [
            ("task".to_owned(), "d5de16d700000000".into()),
            ("level".to_owned(), 3.into()),
        ];
        Line {
            time: time.to_zoned_datetime(TimeZone::fixed(jiff::tz::offset(1))),
            component: "gpu-1",
            level,
            message: message.to_owned(),
            fields: fields.into_iter().collect(),
        }
    }

    #[test]
    fn the_text_form() {
        assert_eq!(
            line(Level::Info, "hello").text(),
            "[2026-02-07T21:45:30.123+01:00] [gpu-1] INFO  hello\n"
        );
        assert_eq!(
            line(Level::Warning, "hm").text(),
            "[2026-02-07T21:45:30.123+01:00] [gpu-1] WARNING hm\n"
        );
        assert_eq!(
            line(Level::Debug, "x").text(),
            "[2026-02-07T21:45:30.123+01:00] [gpu-1] DEBUG x\n"
        );
    }

    #[test]
    fn the_short_form() {
        assert_eq!(
            line(Level::Info, "hello").short(true),
            "[21:45:30.123] [gpu-1] hello\n"
        );
        assert_eq!(
            line(Level::Error, "hello").short(false),
            "[21:45:30.123] [gpu-1] hello\n"
        );
        assert_eq!(
            line(Level::Error, "no").short(true),
            "\u{1b}[31m[21:45:30.123] [gpu-1] no\u{1b}[0m\n"
        );
    }

    #[test]
    fn the_json_form() {
        assert_eq!(
            line(Level::Warning, "a\n\"b\"").json(),
            "{\"timestamp\":\"2026-02-07T21:45:30.123+01:00\",\"level\":\"WARNING\",\"component\":\"gpu-1\",\
             \"message\":\"a\\n\\\"b\\\"\",\"task\":\"d5de16d700000000\",\"field.level\":3}\n"
        );
    }

    #[test]
    fn utc_and_unknown_zones_have_an_offset() {
        let mut line = line(Level::Info, "x");
        for zone in [TimeZone::UTC, TimeZone::unknown()] {
            line.time = line.time.with_time_zone(zone);
            assert!(
                line.text().starts_with("[2026-02-07T20:45:30.123+00:00] "),
                "{}",
                line.text()
            );
        }
    }

    #[test]
    fn a_message_cannot_forge_a_line_or_steer_the_terminal() {
        let forged = line(
            Level::Info,
            "done\n[2026-02-07T21:45:30.123+01:00] [brain] INFO  \x1b[2Jlies\r\n",
        )
        .text();
        assert_eq!(
            forged,
            "[2026-02-07T21:45:30.123+01:00] [gpu-1] INFO  done\n    [2026-02-07T21:45:30.123+01:00] [brain] INFO  \\u{1b}[2Jlies\n"
        );
    }
}
