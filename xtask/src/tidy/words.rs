//! Names and words that do not belong in the workspace.

use super::{Source, Violation};

/// Macros that mark what is not finished.
const UNFINISHED: [&str; 3] = ["todo", "unimplemented", "dbg"];

/// Names of modules that say nothing about what is in them.
const EMPTY_NAMES: [&str; 7] = [
    "utils", "util", "common", "helpers", "helper", "types", "misc",
];

/// Folders of somebody's machine.
const MACHINE_FOLDERS: [&str; 2] = [concat!("/", "work/"), concat!("/", "root/")];

/// Words about how a text came about. What is tracked says what is; the rest is for commits.
const ABOUT_ITS_WRITING: [&str; 9] = [
    concat!("this ", "session of"),
    concat!("previous ", "session"),
    concat!("earlier ", "session"),
    concat!("my ", "session"),
    concat!("other ", "helpers"),
    concat!("another ", "helper"),
    concat!("sub", "agent"),
    concat!("as ", "instructed"),
    concat!("the ", "lead "),
];

/// Checks the words of a file.
pub(super) fn check(source: &Source) -> Vec<Violation> {
    let mut violations = Vec::new();
    violations.extend(unfinished(source));
    violations.extend(empty_name(source));
    if source.path != "Cargo.lock" {
        violations.extend(lines(source));
    }
    violations
}

fn unfinished(source: &Source) -> Vec<Violation> {
    let Some(tokens) = &source.tokens else {
        return Vec::new();
    };
    let pairs = tokens.list.iter().zip(tokens.list.iter().skip(1));
    pairs
        .filter(|(name, bang)| bang.text == "!" && UNFINISHED.contains(&name.text.as_str()))
        .map(|(name, _)| {
            source.violation(
                name.line,
                format!(
                    "`{}!` marks what is not finished: finish it, or leave it out",
                    name.text
                ),
            )
        })
        .collect()
}

fn empty_name(source: &Source) -> Vec<Violation> {
    let Some(tokens) = &source.tokens else {
        return Vec::new();
    };
    let words = "says nothing about what is in it: name it by what it is about, or put each piece where it is used";
    let mut violations = Vec::new();
    if source
        .path
        .trim_end_matches(".rs")
        .split('/')
        .any(|part| EMPTY_NAMES.contains(&part))
    {
        violations.push(source.violation(1, format!("the name of this module {words}")));
    }
    for (index, token) in tokens.list.iter().enumerate().skip(1) {
        // `mod x;` is reported at its file.
        let inline = tokens
            .list
            .get(index + 1)
            .is_some_and(|next| next.text == "{");
        if inline
            && tokens.list[index - 1].text == "mod"
            && EMPTY_NAMES.contains(&token.text.as_str())
        {
            violations
                .push(source.violation(token.line, format!("the module `{}` {words}", token.text)));
        }
    }
    violations
}

fn lines(source: &Source) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        for folder in MACHINE_FOLDERS {
            if line
                .match_indices(folder)
                .any(|(at, _)| begins_a_path(&line[..at]))
            {
                violations.push(source.violation(
                    index + 1,
                    format!("{folder} is a folder of one machine: write a relative path, or take it from the environment"),
                ));
            }
        }
        let lower = line.to_lowercase();
        for words in ABOUT_ITS_WRITING {
            if lower.contains(words) {
                violations.push(source.violation(
                    index + 1,
                    format!("\"{}\" is about how this was written: say what is, and leave the rest to the commit", words.trim_end()),
                ));
            }
        }
    }
    violations
}

/// Whether a slash after this begins a path and does not go on with one.
fn begins_a_path(before: &str) -> bool {
    !before.ends_with(|c: char| c.is_alphanumeric() || "_-.}/$*~".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source;

    fn found(path: &str, text: &str) -> Vec<usize> {
        check(&source(path, text))
            .iter()
            .map(|violation| violation.line)
            .collect()
    }

    #[test]
    fn unfinished_code_is_found_and_words_about_it_are_not() {
        for name in UNFINISHED {
            assert_eq!(
                found("a.rs", &format!("fn a() {{\n    {name}!()\n}}\n")),
                [2]
            );
        }
        assert!(
            found(
                "a.rs",
                "// todo!() is refused\nfn a() { say(\"dbg!\"); let todo = 1; }"
            )
            .is_empty()
        );
    }

    #[test]
    fn empty_names_are_found() {
        assert_eq!(found("crates/a/src/utils.rs", ""), [1]);
        assert_eq!(found("crates/a/tests/common/mod.rs", ""), [1]);
        assert_eq!(found("a.rs", "\nmod helpers { }"), [2]);
        assert!(found("a.rs", "fn a() { let types = 1; }\nmod pretypes {}").is_empty());
    }

    #[test]
    fn machine_paths_are_found() {
        let path = format!("see {}x/y\n", MACHINE_FOLDERS[0]);
        assert_eq!(found("docs/a.md", &path), [1]);
        assert_eq!(
            found(
                "a.toml",
                &format!("a = 1\nb = \"{}.cargo\"\n", MACHINE_FOLDERS[1])
            ),
            [2]
        );
        assert!(found("docs/a.md", "target/work/x, {dir}/root/x\n").is_empty());
    }

    #[test]
    fn words_about_the_writing_are_found() {
        for words in ABOUT_ITS_WRITING {
            assert_eq!(
                found("docs/a.md", &format!("# A\n{}.\n", words.to_uppercase())),
                [2]
            );
        }
        assert!(found("docs/a.md", "a tmux session; leads the session\n").is_empty());
    }
}
