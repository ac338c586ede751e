//! Follows bash's quoting through a command, to tell where its variables stand.

use std::ops::Range;

use crate::heredoc::Heredoc;
use crate::shell::{Context, Refusal};

/// The context of each of `variables`, which are ascending ranges of `text`.
pub(crate) fn contexts(text: &str, variables: &[Range<usize>]) -> Vec<Result<Context, Refusal>> {
    Scanner {
        text,
        variables,
        next: 0,
        found: Vec::new(),
        stack: vec![Frame::command(false)],
        lost: None,
    }
    .run()
}

pub(crate) enum Frame {
    /// Where words stand bare: the command itself, or a `$(...)` in it.
    Command {
        /// Whether a `)` ends it.
        nested: bool,
        /// Open parentheses within it.
        depth: usize,
        /// Where the word that is being read began.
        word: Option<usize>,
        /// Within `[[ ]]`: the first variable in it, and whether it compares numbers.
        test: Option<(usize, bool)>,
        heredocs: Vec<Heredoc>,
    },
    Double,
    Single,
    AnsiC,
    /// How many single and double quotes it held so far.
    Backtick {
        single: usize,
        double: usize,
    },
    /// `${...}`
    Parameter,
    /// `((...))`, `$((...))` with the number of open parentheses, `$[...]` with brackets.
    Arithmetic {
        depth: usize,
        bracket: bool,
    },
}

impl Frame {
    fn command(nested: bool) -> Frame {
        Frame::Command {
            nested,
            depth: 0,
            word: None,
            test: None,
            heredocs: Vec::new(),
        }
    }
}

pub(crate) struct Scanner<'a> {
    pub(crate) text: &'a str,
    variables: &'a [Range<usize>],
    /// The first variable that was not reached yet.
    next: usize,
    found: Vec<Result<Context, Refusal>>,
    pub(crate) stack: Vec<Frame>,
    /// Why nothing after this point is certain.
    lost: Option<Refusal>,
}

const BACKSLASH: Refusal = "a backslash stands directly before it";
const CONTINUED: Refusal = "a line before it ends in a backslash within a word or an operator";
const UNCLOSED: Refusal =
    "the command has a quote, parenthesis or here-document that is not closed";

impl Scanner<'_> {
    fn run(mut self) -> Vec<Result<Context, Refusal>> {
        let mut at = 0;
        while at < self.text.len() {
            if self.at_variable(at) {
                let context = self.context(at);
                at = self.take(context);
                continue;
            }
            at = match self.stack.last() {
                Some(Frame::Command { .. }) | None => self.command(at),
                Some(Frame::Double) => self.double(at),
                Some(Frame::Single) => {
                    self.pop_if(self.byte(at) == b'\'');
                    at + 1
                }
                Some(Frame::AnsiC) => match self.byte(at) {
                    b'\\' => self.escape(at),
                    byte => {
                        self.pop_if(byte == b'\'');
                        at + 1
                    }
                },
                Some(Frame::Backtick { .. }) => self.backtick(at),
                Some(Frame::Parameter) => self.parameter(at),
                Some(Frame::Arithmetic { .. }) => self.arithmetic(at),
            };
        }
        if self.stack.len() == 1 {
            self.end_word(self.text.len());
        }
        let closed = match self.stack.as_slice() {
            [Frame::Command { heredocs, .. }] => heredocs.is_empty(),
            _ => false,
        };
        if !closed {
            // Bash would not run it; and if this scanner is what erred, nothing it found holds.
            self.found
                .iter_mut()
                .for_each(|found| *found = Err(UNCLOSED));
        }
        self.found
    }

    pub(crate) fn byte(&self, at: usize) -> u8 {
        self.text.as_bytes().get(at).copied().unwrap_or(0)
    }

    pub(crate) fn at_variable(&self, at: usize) -> bool {
        self.variables
            .get(self.next)
            .is_some_and(|range| range.start == at)
    }

    pub(crate) fn take(&mut self, context: Result<Context, Refusal>) -> usize {
        self.found.push(match self.lost {
            Some(lost) => Err(lost),
            None => context,
        });
        self.next += 1;
        self.variables[self.next - 1].end
    }

    fn pop_if(&mut self, closes: bool) {
        if closes {
            self.stack.pop();
        }
    }

    pub(crate) fn lose(&mut self, why: Refusal) {
        self.lost.get_or_insert(why);
    }

    fn context(&mut self, at: usize) -> Result<Context, Refusal> {
        let mut arithmetic = false;
        for frame in &self.stack {
            match frame {
                Frame::Backtick { .. } => return Err("it stands within backticks; use $(...)"),
                Frame::Parameter => {
                    return Err("it stands within ${...}; assign it to a shell variable first");
                }
                Frame::Arithmetic { .. } => arithmetic = true,
                _ => {}
            }
        }
        if arithmetic {
            return Ok(Context::Arithmetic);
        }
        match self.stack.last_mut() {
            Some(Frame::Double) => Ok(Context::Double),
            Some(Frame::Single) => Ok(Context::Single),
            Some(Frame::AnsiC) => Ok(Context::AnsiC),
            Some(Frame::Command { word, .. }) => {
                let word = *word.get_or_insert(at);
                if is_subscript(&self.text[word..at]) {
                    return Err("it stands in an array's index, which bash evaluates");
                }
                Ok(Context::Bare)
            }
            _ => Err(UNCLOSED),
        }
    }

    /// Passes a backslash and what it escapes.
    pub(crate) fn escape(&mut self, at: usize) -> usize {
        if self.at_variable(at + 1) {
            return self.take(Err(BACKSLASH));
        }
        let escaped = self.text[at + 1..].chars().next();
        if escaped == Some('\n') && self.text[..at].ends_with(['$', '<', '(']) {
            self.lose(CONTINUED);
        }
        at + 1 + escaped.map_or(0, char::len_utf8)
    }

    /// Enters what a `$` or a backtick at `at` begins, where it begins something.
    fn expansion(&mut self, at: usize, bare: bool) -> Option<usize> {
        let (frame, length) = match (self.byte(at), self.byte(at + 1), self.byte(at + 2)) {
            (b'`', ..) => (
                Frame::Backtick {
                    single: 0,
                    double: 0,
                },
                1,
            ),
            (b'$', b'(', b'(') => (
                Frame::Arithmetic {
                    depth: 2,
                    bracket: false,
                },
                3,
            ),
            (b'$', b'(', _) => (Frame::command(true), 2),
            (b'$', b'{', _) => (Frame::Parameter, 2),
            (b'$', b'[', _) => (
                Frame::Arithmetic {
                    depth: 1,
                    bracket: true,
                },
                2,
            ),
            (b'$', b'\'', _) if bare => (Frame::AnsiC, 2),
            (b'$', b'"', _) if bare => (Frame::Double, 2),
            (b'$', b'$' | b'#' | b'?' | b'!' | b'@' | b'*' | b'-' | b'0'..=b'9', _) => {
                return Some(at + 2);
            }
            _ => return None,
        };
        self.stack.push(frame);
        Some(at + length)
    }

    fn double(&mut self, at: usize) -> usize {
        match self.byte(at) {
            b'\\' => self.escape(at),
            b'"' => {
                self.stack.pop();
                at + 1
            }
            _ => self.expansion(at, false).unwrap_or(at + 1),
        }
    }

    fn backtick(&mut self, at: usize) -> usize {
        match (self.byte(at), self.stack.last_mut()) {
            (b'\\', _) => self.escape(at),
            (b'`', Some(Frame::Backtick { single, double })) => {
                if *single % 2 == 1 || *double % 2 == 1 {
                    self.lose("a quote is not closed within backticks before it; use $(...)");
                }
                self.stack.pop();
                at + 1
            }
            (b'\'', Some(Frame::Backtick { single, .. })) => {
                *single += 1;
                at + 1
            }
            (b'"', Some(Frame::Backtick { double, .. })) => {
                *double += 1;
                at + 1
            }
            _ => at + 1,
        }
    }

    fn parameter(&mut self, at: usize) -> usize {
        match self.byte(at) {
            b'\\' => self.escape(at),
            b'}' => {
                self.stack.pop();
                at + 1
            }
            b'$' if self.byte(at + 1) == b'\'' => {
                self.lose("a $'...' stands within ${...} before it");
                at + 1
            }
            b'\'' => {
                let quoted = self.stack.iter().rev().find_map(|frame| match frame {
                    Frame::Double | Frame::Arithmetic { .. } => Some(true),
                    Frame::Command { .. } => Some(false),
                    _ => None,
                });
                if quoted == Some(true) {
                    self.lose("a single quote stands within \"${...}\" before it");
                } else {
                    self.stack.push(Frame::Single);
                }
                at + 1
            }
            b'"' => {
                self.stack.push(Frame::Double);
                at + 1
            }
            _ => self.expansion(at, false).unwrap_or(at + 1),
        }
    }

    fn arithmetic(&mut self, at: usize) -> usize {
        let byte = self.byte(at);
        if byte == b'\\' {
            return self.escape(at);
        }
        if matches!(byte, b'\'' | b'"' | b'#') {
            self.lose("a quote or comment stands within ((...)) before it");
        }
        if let Some(next) = self.expansion(at, false) {
            return next;
        }
        if let Some(Frame::Arithmetic { depth, bracket }) = self.stack.last_mut() {
            let (open, close) = if *bracket { (b'[', b']') } else { (b'(', b')') };
            if byte == open {
                *depth += 1;
            } else if byte == close {
                *depth -= 1;
                if *depth == 0 {
                    self.stack.pop();
                }
            }
        }
        at + 1
    }

    fn command(&mut self, at: usize) -> usize {
        let byte = self.byte(at);
        let begins_word = !matches!(
            self.stack.last(),
            Some(Frame::Command { word: Some(_), .. })
        );
        if byte == b'#' && begins_word {
            return self.comment(at);
        }
        if matches!(
            byte,
            b' ' | b'\t' | b'\n' | b';' | b'&' | b'|' | b'<' | b'>' | b'(' | b')'
        ) {
            return self.operator(at, byte);
        }
        if byte == b'\\' && self.byte(at + 1) == b'\n' {
            // Bash removes it before it looks for words; here it would be a part of one.
            if !begins_word {
                self.lose(CONTINUED);
            }
            return self.escape(at);
        }
        if let Some(Frame::Command { word, .. }) = self.stack.last_mut() {
            word.get_or_insert(at);
        }
        match byte {
            b'\\' => self.escape(at),
            b'\'' => {
                self.stack.push(Frame::Single);
                at + 1
            }
            b'"' => {
                self.stack.push(Frame::Double);
                at + 1
            }
            _ => self.expansion(at, true).unwrap_or(at + 1),
        }
    }

    fn comment(&mut self, at: usize) -> usize {
        let end = self.text[at..]
            .find('\n')
            .map_or(self.text.len(), |n| at + n);
        while self
            .variables
            .get(self.next)
            .is_some_and(|range| range.start < end)
        {
            self.take(Ok(Context::Comment));
        }
        end
    }

    fn operator(&mut self, at: usize, byte: u8) -> usize {
        let text = self.text;
        if self.end_word(at) {
            return at;
        }
        let second = self.byte(at + 1);
        let Some(Frame::Command { nested, depth, .. }) = self.stack.last_mut() else {
            return at + 1;
        };
        let nested = *nested;
        match byte {
            b'(' if second == b'(' => {
                self.stack.push(Frame::Arithmetic {
                    depth: 2,
                    bracket: false,
                });
                return at + 2;
            }
            b'(' => *depth += 1,
            b')' if nested && *depth == 0 => {
                let Some(Frame::Command { heredocs, .. }) = self.stack.pop() else {
                    return at + 1;
                };
                if !heredocs.is_empty() {
                    self.lose("a here-document begins on the line that ends its $(...)");
                }
            }
            b')' => *depth = depth.saturating_sub(1),
            b'<' if text[at..].starts_with("<<<") => return at + 3,
            b'<' if text[at..].starts_with("<<") => return self.heredoc_operator(at + 2),
            b'\n' => return self.newline(at + 1),
            _ => {}
        }
        at + 1
    }

    /// Ends the word before an operator or a blank; whether certainty ended with it.
    fn end_word(&mut self, at: usize) -> bool {
        let (next, text) = (self.next, self.text);
        let Some(Frame::Command {
            nested, word, test, ..
        }) = self.stack.last_mut()
        else {
            return false;
        };
        let Some(word) = word.take().map(|start| &text[start..at]) else {
            return false;
        };
        match (word, &test) {
            ("[[", None) => *test = Some((next, false)),
            ("-eq" | "-ne" | "-lt" | "-le" | "-gt" | "-ge", Some((first, _))) => {
                *test = Some((*first, true));
            }
            ("]]", Some((first, true))) => {
                for context in self.found[*first..].iter_mut().flatten() {
                    *context = Context::Compared(Box::new(context.clone()));
                }
                *test = None;
            }
            ("]]", Some(_)) => *test = None,
            // Its patterns end in a `)` of their own, which only the grammar tells apart.
            ("case", _) if *nested => {
                self.lose("a `case` stands within $(...) before it; move it into a script");
                return true;
            }
            _ if is_subscript(word) && !word.starts_with('[') => {
                self.lose("an array's index with blanks in it stands before it");
                return true;
            }
            _ => {}
        }
        false
    }
}

/// Whether `word` ends within the index of an array: `name[...` or, in a list, `[...`.
fn is_subscript(word: &str) -> bool {
    let Some((name, _)) = word.split_once('[') else {
        return false;
    };
    let open = word.matches('[').count() > word.matches(']').count();
    open && word != "["
        && word != "[["
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
