//! A Rust file as a row of tokens: comments are gone, and what is there for tests is marked.

use std::str::FromStr;

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

/// The tokens of a file, groups laid open.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    pub(super) list: Vec<Token>,
    /// Lines taken up by items under `#[cfg(test)]`.
    pub(super) test_lines: usize,
}

/// One token. `::` is one.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) text: String,
    /// From 1.
    pub(super) line: usize,
    /// Within an item under `#[cfg(test)]`.
    pub(super) in_test: bool,
}

impl Tokens {
    /// Takes a file apart; the error is the line that cannot be read.
    pub(super) fn of(text: &str) -> Result<Tokens, usize> {
        let stream = TokenStream::from_str(text).map_err(|error| error.span().start().line)?;
        let mut tokens = Tokens::default();
        tokens.add(stream, false);
        Ok(tokens)
    }

    /// Where the file's code, that of tests left out, reads `pattern`: tokens between blanks.
    pub(super) fn find(&self, pattern: &str) -> impl Iterator<Item = usize> {
        let pattern: Vec<&str> = pattern.split(' ').collect();
        self.list
            .windows(pattern.len())
            .filter(move |window| {
                !window[0].in_test
                    && window
                        .iter()
                        .zip(&pattern)
                        .all(|(token, wanted)| token.text == *wanted)
            })
            .map(|window| window[0].line)
    }

    fn add(&mut self, stream: TokenStream, in_test: bool) {
        // The line on which an item under `#[cfg(test)]` began.
        let mut test_item: Option<usize> = None;
        let mut trees = stream.into_iter().peekable();
        while let Some(tree) = trees.next() {
            let line = tree.span().start().line;
            if let TokenTree::Punct(punct) = &tree
                && punct.as_char() == '#'
                && let Some(TokenTree::Group(group)) = trees.peek()
                && group.delimiter() == Delimiter::Bracket
            {
                let attribute = group.stream().to_string().replace(' ', "");
                // Documentation is an attribute too.
                if attribute.starts_with("doc=") {
                    trees.next();
                    continue;
                }
                if attribute == "cfg(test)" || attribute.starts_with("cfg(all(test,") {
                    test_item.get_or_insert(line);
                }
            }
            let in_test = in_test || test_item.is_some();
            let ends_item = match &tree {
                TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                TokenTree::Punct(punct) => punct.as_char() == ';',
                _ => false,
            };
            let last_line = tree.span().end().line;
            self.add_tree(tree, &mut trees, in_test);
            if ends_item && let Some(first_line) = test_item.take() {
                self.test_lines += last_line + 1 - first_line;
            }
        }
    }

    fn add_tree(
        &mut self,
        tree: TokenTree,
        following: &mut std::iter::Peekable<proc_macro2::token_stream::IntoIter>,
        in_test: bool,
    ) {
        let line = tree.span().start().line;
        let mut push = |text: String, line| {
            self.list.push(Token {
                text,
                line,
                in_test,
            })
        };
        match tree {
            TokenTree::Punct(first)
                if first.as_char() == ':' && first.spacing() == Spacing::Joint =>
            {
                match following.peek() {
                    Some(TokenTree::Punct(second)) if second.as_char() == ':' => {
                        following.next();
                        push("::".to_owned(), line);
                    }
                    _ => push(":".to_owned(), line),
                }
            }
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                push(open.to_owned(), line);
                let last_line = group.span_close().start().line;
                self.add(group.stream(), in_test);
                self.list.push(Token {
                    text: close.to_owned(),
                    line: last_line,
                    in_test,
                });
            }
            other => push(other.to_string(), line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
/// Not std::fs in words.
use std::fs; // std::fs
fn a() { let s = \"std::fs\"; }

#[cfg(test)]
mod tests {
    use std::fs;
    fn b() {}
}

fn c() { std::fs::read(x); }
";

    #[test]
    fn comments_texts_and_tests_are_not_code() {
        let tokens = Tokens::of(FILE).unwrap();
        assert_eq!(tokens.find("std :: fs").collect::<Vec<_>>(), [2, 11]);
    }

    #[test]
    fn the_lines_of_tests_are_counted() {
        assert_eq!(Tokens::of(FILE).unwrap().test_lines, 5);
        let declared = "#[cfg(test)]\nmod tests;\nfn a() {}\n";
        assert_eq!(Tokens::of(declared).unwrap().test_lines, 2);
    }
}
