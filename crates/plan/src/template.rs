//! Variables in text: `{NAME}`, `{NAME.field}`, `{NAME:argument}`, and `{{NAME}}` for the text
//! `{NAME}`.

use std::ops::Range;

/// A piece of text with variables.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    /// Text as it stands.
    Text(Range<usize>),
    /// `{{NAME}}`: the range within the outer braces, to be taken literally.
    Literal(Range<usize>),
    Variable(Variable),
}

/// One variable as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Variable {
    /// With the braces.
    pub(crate) range: Range<usize>,
    pub(crate) name: String,
    /// The fields after the name.
    pub(crate) path: Vec<String>,
    /// What stands after the colon.
    pub(crate) argument: Option<Range<usize>>,
}

/// Cuts `text` into literal text and variables. Whatever does not have a variable's form is
/// text: JSON, awk, and the shell's own `${NAME}`.
pub(crate) fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let (mut from, mut at) = (0, 0);
    while let Some(brace) = text[at..].find('{').map(|n| at + n) {
        let found = if text[..brace].ends_with('$') {
            // `${NAME}` is the shell's; so is whatever its braces hold up to the next brace.
            None
        } else if text[brace + 1..].starts_with('{') {
            variable(text, brace + 1)
                .filter(|inner| text[inner.range.end..].starts_with('}'))
                .map(|inner| (brace..inner.range.end + 1, Token::Literal(inner.range)))
        } else {
            variable(text, brace).map(|found| (found.range.clone(), Token::Variable(found)))
        };
        match found {
            Some((range, token)) => {
                if from < range.start {
                    tokens.push(Token::Text(from..range.start));
                }
                from = range.end;
                at = range.end;
                tokens.push(token);
            }
            None => at = brace + 1,
        }
    }
    if from < text.len() {
        tokens.push(Token::Text(from..text.len()));
    }
    tokens
}

/// Whether `name` can be a variable's: capitals, digits and `_`, a capital first.
pub(crate) fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

/// The variable whose opening brace stands at `brace`.
fn variable(text: &str, brace: usize) -> Option<Variable> {
    let rest = &text[brace + 1..];
    let name_len = rest
        .bytes()
        .take_while(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_')
        .count();
    let name = &rest[..name_len];
    if !is_name(name) {
        return None;
    }
    let mut at = brace + 1 + name_len;
    let mut path = Vec::new();
    while text[at..].starts_with('.') {
        let field = &text[at + 1..];
        let len = field
            .find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-')))
            .unwrap_or(field.len());
        if len == 0 {
            return None;
        }
        path.push(field[..len].to_owned());
        at += 1 + len;
    }
    let argument = match text[at..].strip_prefix(':') {
        None => None,
        Some(argument) => {
            let len = argument_len(argument)?;
            let range = at + 1..at + 1 + len;
            at = range.end;
            Some(range)
        }
    };
    text[at..].starts_with('}').then(|| Variable {
        range: brace..at + 1,
        name: name.to_owned(),
        path,
        argument,
    })
}

/// The length of an argument: up to its closing brace, on one line, not beginning with a blank
/// (which is how JSON writes `{A: 1}`). Variables may stand in it, one level deep.
fn argument_len(text: &str) -> Option<usize> {
    if text.starts_with(|c: char| c.is_whitespace() || c == '}') {
        return None;
    }
    let mut open = false;
    for (at, c) in text.char_indices() {
        match c {
            '\n' => return None,
            '{' if open => return None,
            '{' => open = true,
            '}' if open => open = false,
            '}' => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The text with each variable as `<name.path:argument>`.
    fn shown(text: &str) -> String {
        tokens(text)
            .iter()
            .map(|token| match token {
                Token::Text(range) => text[range.clone()].to_owned(),
                Token::Literal(range) => format!("[{}]", &text[range.clone()]),
                Token::Variable(v) => {
                    let path: String = v.path.iter().map(|field| format!(".{field}")).collect();
                    let argument = v
                        .argument
                        .clone()
                        .map_or(String::new(), |a| format!(":{}", &text[a]));
                    format!("<{}{path}{argument}>", v.name)
                }
            })
            .collect()
    }

    #[test]
    fn what_is_a_variable_and_what_is_not() {
        for (text, expected) in [
            ("{NAME}", "<NAME>"),
            ("a{ITEM.a.b-c}b", "a<ITEM.a.b-c>b"),
            ("{ITEM.x:raw}", "<ITEM.x:raw>"),
            ("{FILE:t/{ITEM.id}.txt}", "<FILE:t/{ITEM.id}.txt>"),
            ("{{NAME}} {{ITEM.id}}", "[{NAME}] [{ITEM.id}]"),
            ("{\"a\":{ITEM}}", "{\"a\":<ITEM>}"),
            ("{\"a\": {\"B\": 1}}", "{\"a\": {\"B\": 1}}"),
            ("{A: 1}", "{A: 1}"),
            ("${HOME} ${ITEM.id}", "${HOME} ${ITEM.id}"),
            (
                "awk '{print $1}' {} {a,b} {1..3}",
                "awk '{print $1}' {} {a,b} {1..3}",
            ),
            ("{NAME", "{NAME"),
            ("{NAME.}", "{NAME.}"),
            ("{NAME:}", "{NAME:}"),
            ("{_A}", "{_A}"),
            ("{ITEM}{ITEM}", "<ITEM><ITEM>"),
            ("{{ITEM} x}", "{<ITEM> x}"),
        ] {
            assert_eq!(shown(text), expected, "of {text:?}");
        }
    }

    proptest! {
        #[test]
        fn tokens_cover_the_text(text in "([{}$:.A-C a-c]|é|\n){0,40}") {
            let mut at = 0;
            for token in tokens(&text) {
                let range = match token {
                    Token::Text(range) => range,
                    Token::Literal(range) => range.start - 1..range.end + 1,
                    Token::Variable(variable) => variable.range,
                };
                prop_assert_eq!(range.start, at);
                at = range.end;
            }
            prop_assert_eq!(at, text.len());
        }
    }
}
