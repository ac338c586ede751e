//! Decisions are pure: the crates that make them read no file, no clock and no dice.

use super::tokens::Tokens;
use super::{Source, Violation};

const PURE: [&str; 2] = ["crates/plan/src/", "crates/policy/src/"];

const STD_MODULES: [&str; 3] = ["fs", "net", "process"];

const REMEDY: &str = "plan and policy are pure; let the caller do it and pass in what came of it";

/// Checks a file of a pure crate; tests in it may do what they like.
pub(super) fn check(source: &Source) -> Vec<Violation> {
    let Some(tokens) = &source.tokens else {
        return Vec::new();
    };
    if source.is_test() || !PURE.iter().any(|folder| source.path.starts_with(folder)) {
        return Vec::new();
    }
    let mut found: Vec<(usize, String)> = Vec::new();
    for module in STD_MODULES {
        let path = format!("std :: {module}");
        found.extend(
            tokens
                .find(&path)
                .map(|line| (line, format!("std::{module}"))),
        );
    }
    found.extend(grouped_imports(tokens));
    let clocks = [(":: now", "a clock's `now`"), ("SystemTime", "SystemTime")];
    let dice = [
        ("rand ::", "rand"),
        ("getrandom ::", "getrandom"),
        ("uuid ::", "uuid"),
    ];
    for (pattern, what) in clocks.into_iter().chain(dice) {
        found.extend(tokens.find(pattern).map(|line| (line, what.to_owned())));
    }
    found
        .into_iter()
        .map(|(line, what)| source.violation(line, format!("{what} in a pure crate: {REMEDY}")))
        .collect()
}

/// `use std::{fs, io}`.
fn grouped_imports(tokens: &Tokens) -> Vec<(usize, String)> {
    let list = &tokens.list;
    let mut found = Vec::new();
    for start in 0..list.len().saturating_sub(2) {
        let opens = ["std", "::", "{"]
            .iter()
            .zip(&list[start..])
            .all(|(word, token)| token.text == *word);
        if !opens || list[start].in_test {
            continue;
        }
        let mut depth = 0;
        for (previous, token) in list[start + 1..].iter().zip(&list[start + 2..]) {
            match token.text.as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                name if depth == 1
                    && matches!(previous.text.as_str(), "{" | ",")
                    && STD_MODULES.contains(&name) =>
                {
                    found.push((token.line, format!("std::{name}")));
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        check(&source(path, text))
            .iter()
            .map(|violation| violation.line)
            .collect()
    }

    #[test]
    fn files_clocks_and_dice_are_found() {
        for impure in [
            "use std::fs;",
            "use std::fs::File;",
            "use std::{collections::BTreeMap, fs};",
            "use std::{io::{self, Read}, process::Command};",
            "fn a() { std::net::TcpStream::connect(x); }",
            "fn a() { let t = Instant::now(); }",
            "fn a() { let t = jiff::Timestamp::now(); }",
            "fn a() { let t = Zoned::now(); }",
            "fn a(now: SystemTime) {}",
            "fn a() { rand::random() }",
            "fn a() { let x = getrandom::fill(&mut b); }",
            "fn a() { uuid::Uuid::new_v4() }",
        ] {
            assert_eq!(
                lines("crates/policy/src/a.rs", &format!("\n{impure}\n")),
                [2],
                "{impure}"
            );
        }
    }

    #[test]
    fn what_is_passed_in_is_pure() {
        let pure = "use std::{collections::BTreeMap, fmt};\nfn a(now: Timestamp, s: &S) -> T { s.now.max(now) }\n";
        assert!(lines("crates/plan/src/a.rs", pure).is_empty());
        let in_a_test = "#[cfg(test)]\nmod tests { use std::fs; }\n";
        assert!(lines("crates/plan/src/a.rs", in_a_test).is_empty());
    }

    #[test]
    fn other_crates_and_tests_may() {
        assert!(lines("crates/brain/src/a.rs", "use std::fs;").is_empty());
        assert!(lines("crates/policy/src/admission/tests.rs", "use std::fs;").is_empty());
    }
}
