//! Sizes: files that can be read in one go, mains over a library.

use super::dependencies::Metadata;
use super::{Source, Violation};

/// Lines of a file, tests left out, that need no reason: about 500, so that none is torn apart for a few.
const FILE_LINES: usize = 550;

/// Lines of a `main.rs`.
const MAIN_LINES: usize = 40;

/// Files that are longer, how long they may be, and why. Entries only shrink.
const LONGER: [(&str, usize, &str); 0] = [];

/// Checks the lengths of all files.
pub(super) fn check(sources: &[Source]) -> Vec<Violation> {
    against(&LONGER, sources)
}

fn against(longer: &[(&str, usize, &str)], sources: &[Source]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in sources {
        let Some(tokens) = &source.tokens else {
            continue;
        };
        if source.is_test() {
            continue;
        }
        let lines = source.text.lines().count() - tokens.test_lines;
        let entry = longer.iter().find(|(path, _, _)| *path == source.path);
        let what = match entry {
            None if lines > FILE_LINES => format!(
                "{lines} lines without tests, over {FILE_LINES}: split it by what belongs together, \
                 or name a reason in LONGER (xtask/src/tidy/size.rs)"
            ),
            Some((_, most, _)) if lines > *most => format!(
                "{lines} lines without tests, grown over the {most} it was granted: split it"
            ),
            Some((_, most, _)) if lines <= FILE_LINES => format!(
                "{lines} lines without tests need no grant of {most}: remove it from LONGER \
                 (xtask/src/tidy/size.rs)"
            ),
            _ => continue,
        };
        violations.push(source.violation(1, what));
    }
    for (path, _, _) in longer {
        if !sources.iter().any(|source| source.path == *path) {
            violations.push(Violation {
                path: (*path).to_owned(),
                line: 1,
                what: "is gone: remove it from LONGER (xtask/src/tidy/size.rs)".to_owned(),
            });
        }
    }
    violations
}

/// Checks that programs are thin over their libraries.
pub(super) fn check_mains(metadata: &Metadata, sources: &[Source]) -> Vec<Violation> {
    let targets = metadata
        .packages
        .iter()
        .flat_map(|package| &package.targets);
    targets
        .filter(|target| target.kind.iter().any(|kind| kind == "bin"))
        .filter_map(|target| {
            let path = metadata.relative(&target.src_path);
            let source = sources.iter().find(|source| source.path == path)?;
            let lines = source.text.lines().count();
            (lines > MAIN_LINES).then(|| {
                source.violation(
                    MAIN_LINES + 1,
                    format!("a main of {lines} lines, over {MAIN_LINES}: move it into the library, where tests reach it"),
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::tidy::dependencies::{Package, Target};
    use crate::tidy::source;

    fn of_lines(path: &str, code: usize, tests: usize) -> Source {
        let tests = match tests {
            0 => String::new(),
            _ => format!(
                "#[cfg(test)]\nmod tests {{\n{}}}\n",
                "fn b() {}\n".repeat(tests - 3)
            ),
        };
        source(path, &("fn a() {}\n".repeat(code) + &tests))
    }

    fn shown(longer: &[(&str, usize, &str)], sources: &[Source]) -> String {
        against(longer, sources)
            .iter()
            .map(|violation| format!("{violation}\n"))
            .collect()
    }

    #[test]
    fn a_long_file_needs_a_reason() {
        assert_eq!(shown(&[], &[of_lines("a.rs", FILE_LINES, 300)]), "");
        assert!(shown(&[], &[of_lines("a.rs", FILE_LINES + 1, 0)]).contains("a.rs:1: 551 lines"));
        assert_eq!(shown(&[], &[of_lines("tests/a.rs", 900, 0)]), "");
    }

    #[test]
    fn a_grant_only_shrinks() {
        let grants = [("a.rs", 600, "a table")];
        assert_eq!(shown(&grants, &[of_lines("a.rs", 600, 0)]), "");
        assert!(shown(&grants, &[of_lines("a.rs", 601, 0)]).contains("grown"));
        assert!(shown(&grants, &[of_lines("a.rs", FILE_LINES, 0)]).contains("need no grant"));
        assert!(shown(&grants, &[]).contains("is gone"));
    }

    #[test]
    fn mains_are_thin() {
        let metadata = Metadata {
            workspace_root: PathBuf::from("/w"),
            packages: vec![Package {
                name: "brain".to_owned(),
                manifest_path: PathBuf::from("/w/Cargo.toml"),
                dependencies: Vec::new(),
                targets: vec![Target {
                    kind: vec!["bin".to_owned()],
                    src_path: PathBuf::from("/w/src/main.rs"),
                }],
            }],
        };
        assert!(check_mains(&metadata, &[of_lines("src/main.rs", 40, 0)]).is_empty());
        assert_eq!(
            check_mains(&metadata, &[of_lines("src/main.rs", 41, 0)]).len(),
            1
        );
    }
}
