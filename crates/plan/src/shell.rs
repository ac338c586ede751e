//! Where in a bash command a variable stands, and how a value is written there so that it stays
//! data.
//!
//! The scanner follows bash's quoting, not its grammar. Wherever following it for certain would
//! take the grammar, it says so and the variable is refused, because a wrong guess would let a
//! value run as code. Within double quotes a value is written by closing the quote, so that
//! nothing that stands before or after it can join it.

use std::ops::Range;

/// What surrounds a variable in a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    Bare,
    Double,
    Single,
    /// `$'...'`
    AnsiC,
    Comment,
    /// The body of a here-document whose delimiter is not quoted.
    Heredoc,
    /// The body of a here-document whose delimiter is quoted: nothing can be escaped in it.
    RawHeredoc {
        delimiter: String,
        strip_tabs: bool,
    },
    /// Within `((...))` or `$((...))`, where bash reads text as an expression.
    Arithmetic,
    /// Within a `[[ ]]` that compares numbers: an expression too, but one that may be quoted.
    Compared(Box<Context>),
}

/// Why a value cannot be written where its variable stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unquotable {
    /// A NUL byte ends an argument, so no command can be given one.
    #[error("the value holds a NUL byte")]
    Nul,
    /// In arithmetic bash runs `$(...)` even within quotes.
    #[error("the value {0:?} stands in an arithmetic expression and is not a whole number")]
    NotANumber(String),
    /// Nothing can be escaped in a here-document whose delimiter is quoted.
    #[error(
        "a line of the value would end the here-document at {0:?}; leave the delimiter unquoted"
    )]
    EndsHeredoc(String),
}

/// Why the scanner cannot tell where a variable stands.
pub(crate) type Refusal = &'static str;

/// `value` as it is written in `context`. A raw here-document is checked by
/// [`ends_raw_heredoc`] once all of its line is known.
pub(crate) fn write(context: &Context, value: &str) -> Result<String, Unquotable> {
    if value.contains('\0') {
        return Err(Unquotable::Nul);
    }
    let single = || value.replace('\'', r"'\''");
    Ok(match context {
        Context::Bare => format!("'{}'", single()),
        Context::Double => format!("\"'{}'\"", single()),
        Context::Single => single(),
        Context::AnsiC => format!("''{}'$'", single()),
        Context::Comment => value
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect(),
        Context::Heredoc => heredoc(value),
        Context::RawHeredoc { .. } => value.to_owned(),
        Context::Arithmetic => match value.parse::<i64>() {
            Ok(n) if n < 0 => format!("({n})"),
            Ok(n) => n.to_string(),
            Err(_) => return Err(Unquotable::NotANumber(value.to_owned())),
        },
        Context::Compared(inner) => match value.parse::<i64>() {
            Ok(n) => write(inner, &n.to_string())?,
            Err(_) => return Err(Unquotable::NotANumber(value.to_owned())),
        },
    })
}

/// Whether one of the lines of `text` that `range` touches would end a here-document.
pub(crate) fn ends_raw_heredoc(
    text: &str,
    range: Range<usize>,
    delimiter: &str,
    strip_tabs: bool,
) -> bool {
    let start = text[..range.start].rfind('\n').map_or(0, |at| at + 1);
    let end = text[range.end..]
        .find('\n')
        .map_or(text.len(), |at| range.end + at);
    text[start..end]
        .split('\n')
        .any(|line| heredoc_line(line, strip_tabs) == delimiter)
}

/// Begins each line with an expansion that is always empty: no line of the value can then be
/// the delimiter, nor join a `$NAME` that stands before it, and tabs survive `<<-`.
fn heredoc(value: &str) -> String {
    const EMPTY: &str = "${_+}";
    let mut text = String::from(EMPTY);
    for c in value.chars() {
        if matches!(c, '\\' | '$' | '`') {
            text.push('\\');
        }
        text.push(c);
        if c == '\n' {
            text.push_str(EMPTY);
        }
    }
    text
}

/// A line of a here-document as it is compared with the delimiter.
pub(crate) fn heredoc_line(line: &str, strip_tabs: bool) -> &str {
    if strip_tabs {
        line.trim_start_matches('\t')
    } else {
        line
    }
}
