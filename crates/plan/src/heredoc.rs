//! Here-documents in a command: where they begin and end, and what stands in them.

use crate::scanner::{Frame, Scanner};
use crate::shell::{Context, heredoc_line};

/// A here-document that was announced by `<<`.
pub(crate) struct Heredoc {
    delimiter: String,
    quoted: bool,
    strip_tabs: bool,
}

impl Scanner<'_> {
    /// Reads the delimiter after `<<`.
    pub(crate) fn heredoc_operator(&mut self, mut at: usize) -> usize {
        let strip_tabs = self.byte(at) == b'-';
        at += usize::from(strip_tabs);
        while matches!(self.byte(at), b' ' | b'\t') {
            at += 1;
        }
        let mut delimiter = String::new();
        let mut quoted = false;
        let mut quote = None;
        while let Some(c) = self.text[at..].chars().next() {
            if self.at_variable(at) {
                return self.take(Err("it stands in the delimiter of a here-document"));
            }
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (None, '\'' | '"') => {
                    quoted = true;
                    quote = Some(c);
                }
                (None, ' ' | '\t' | '\n' | ';' | '&' | '|' | '<' | '>' | '(' | ')') => break,
                (_, '\\' | '$' | '`' | '\n') => {
                    self.lose("the delimiter of a here-document before it is not a plain word");
                    return at;
                }
                _ => delimiter.push(c),
            }
            at += c.len_utf8();
        }
        if quote.is_some() || (delimiter.is_empty() && !quoted) {
            self.lose("the delimiter of a here-document before it is not a plain word");
        }
        if let Some(Frame::Command { heredocs, .. }) = self.stack.last_mut() {
            heredocs.push(Heredoc {
                delimiter,
                quoted,
                strip_tabs,
            });
        }
        at
    }

    /// Reads the here-documents that begin with the line at `at`.
    pub(crate) fn newline(&mut self, mut at: usize) -> usize {
        let outer = self.stack.len() - 1;
        let waits = |frame: &Frame| matches!(frame, Frame::Command { heredocs, .. } if !heredocs.is_empty());
        if self.stack[..outer].iter().any(waits) {
            self.lose("a $(...) of several lines stands on the line of a here-document before it");
        }
        let Some(Frame::Command { heredocs, .. }) = self.stack.last_mut() else {
            return at;
        };
        let mut heredocs = std::mem::take(heredocs).into_iter();
        while let Some(heredoc) = heredocs.next() {
            let Some((body_end, next)) = self.heredoc_end(at, &heredoc) else {
                if let Some(Frame::Command { heredocs: left, .. }) = self.stack.last_mut() {
                    left.push(heredoc);
                    left.extend(heredocs);
                }
                return at;
            };
            self.heredoc_body(at, body_end, &heredoc);
            at = next;
        }
        at
    }

    /// The ends of the body and of the delimiter's line.
    fn heredoc_end(&self, from: usize, heredoc: &Heredoc) -> Option<(usize, usize)> {
        let mut at = from;
        let mut continued = false;
        while at < self.text.len() {
            let end = self.text[at..]
                .find('\n')
                .map_or(self.text.len(), |n| at + n);
            let line = &self.text[at..end];
            if !continued && heredoc_line(line, heredoc.strip_tabs) == heredoc.delimiter {
                return Some((at, end));
            }
            let backslashes = line.bytes().rev().take_while(|b| *b == b'\\').count();
            continued = !heredoc.quoted && backslashes % 2 == 1;
            at = end + 1;
        }
        None
    }

    fn heredoc_body(&mut self, mut at: usize, end: usize, heredoc: &Heredoc) {
        let context = if heredoc.quoted {
            Context::RawHeredoc {
                delimiter: heredoc.delimiter.clone(),
                strip_tabs: heredoc.strip_tabs,
            }
        } else {
            Context::Heredoc
        };
        // A newline of a value within an expansion could hold the delimiter; and where an
        // expansion ends is not followed here, so all of the body after one is refused.
        let mut expansion = false;
        while at < end {
            if self.at_variable(at) {
                let context = if expansion {
                    Err("it stands after or within ${...}, $(...) or backticks in a here-document")
                } else {
                    Ok(context.clone())
                };
                at = self.take(context);
                continue;
            }
            at = match (self.byte(at), self.byte(at + 1)) {
                (b'\\', _) if !heredoc.quoted => self.escape(at),
                (b'$', b'\\') if !heredoc.quoted => {
                    expansion = true;
                    at + 1
                }
                (b'$', b'{') if !heredoc.quoted && simple_parameter(&self.text[at..end]) > 0 => {
                    at + simple_parameter(&self.text[at..end])
                }
                (b'`', _) | (b'$', b'{' | b'(' | b'[') if !heredoc.quoted => {
                    expansion = true;
                    at + 1
                }
                _ => at + 1,
            };
        }
    }
}

/// The length of the `${NAME}` that `text` begins with, or 0.
fn simple_parameter(text: &str) -> usize {
    let name = text[2..]
        .bytes()
        .take_while(|b| b.is_ascii_alphanumeric() || *b == b'_')
        .count();
    if name > 0 && text[2 + name..].starts_with('}') {
        name + 3
    } else {
        0
    }
}
