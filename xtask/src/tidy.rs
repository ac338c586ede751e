//! `cargo xtask tidy`: the rules of the house that no compiler knows. Each violation is printed
//! with its place and its remedy.

mod dependencies;
mod links;
mod purity;
mod rig_paths;
mod size;
mod tokens;
mod words;

use std::fmt;
use std::fs;

use anyhow::{Context, Result, bail};

use crate::workspace;
use dependencies::Metadata;
use tokens::Tokens;

/// A file that git tracks, or would.
#[derive(Debug)]
struct Source {
    /// Relative to the workspace.
    path: String,
    text: String,
    /// Of a Rust file that can be taken apart.
    tokens: Option<Tokens>,
}

/// A rule broken.
#[derive(Debug)]
struct Violation {
    path: String,
    /// From 1.
    line: usize,
    /// What is wrong, and what to do.
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

impl Source {
    fn new(path: &str, text: &str) -> Result<Source, Violation> {
        let tokens = match path.ends_with(".rs") {
            true => Some(Tokens::of(text).map_err(|line| Violation {
                path: path.to_owned(),
                line,
                what: "cannot be read as Rust; make it compile first".to_owned(),
            })?),
            false => None,
        };
        Ok(Source {
            path: path.to_owned(),
            text: text.to_owned(),
            tokens,
        })
    }

    fn violation(&self, line: usize, what: impl Into<String>) -> Violation {
        Violation {
            path: self.path.clone(),
            line,
            what: what.into(),
        }
    }

    /// Whether all of it is there for tests only.
    fn is_test(&self) -> bool {
        let (folders, file) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        folders.split('/').any(|folder| folder == "tests")
            || file == "tests.rs"
            || file.ends_with("_tests.rs")
    }
}

/// Checks the workspace.
pub(crate) fn run() -> Result<()> {
    let metadata = metadata()?;
    let (sources, mut violations) = sources()?;
    violations.extend(dependencies::check(&metadata));
    for source in &sources {
        violations.extend(purity::check(source));
        violations.extend(rig_paths::check(source));
        violations.extend(words::check(source));
        violations.extend(links::check(workspace::root(), source));
    }
    violations.extend(size::check(&sources));
    violations.extend(size::check_mains(&metadata, &sources));
    violations.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
    for violation in &violations {
        println!("{violation}");
    }
    match violations.len() {
        0 => Ok(()),
        1 => bail!("tidy: 1 violation"),
        count => bail!("tidy: {count} violations"),
    }
}

fn metadata() -> Result<Metadata> {
    let words = ["metadata", "--no-deps", "--format-version", "1"];
    let output = workspace::cargo(&words)
        .output()
        .context("cannot start cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata printed something unknown")
}

/// Every text file that is tracked, or new and not ignored.
fn sources() -> Result<(Vec<Source>, Vec<Violation>)> {
    let root = workspace::root();
    // A checkout that belongs to another user (a container's mount) is still only read here.
    let output = std::process::Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "-z"])
        .args([
            "--cached",
            "--others",
            "--exclude-standard",
            "--deduplicate",
        ])
        .current_dir(root)
        .output()
        .context("cannot start git, which says what belongs to the workspace")?;
    if !output.status.success() {
        bail!(
            "git ls-files: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    let (mut sources, mut violations) = (Vec::new(), Vec::new());
    for path in String::from_utf8(output.stdout)
        .context("a path in the workspace is not UTF-8")?
        .split_terminator('\0')
    {
        let Ok(bytes) = fs::read(root.join(path)) else {
            // Removed and not yet committed, or a link to a folder.
            continue;
        };
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        match Source::new(path, &text) {
            Ok(source) => sources.push(source),
            Err(violation) => violations.push(violation),
        }
    }
    Ok((sources, violations))
}

#[cfg(test)]
fn source(path: &str, text: &str) -> Source {
    Source::new(path, text).expect("a sample that can be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_rust_is_a_violation_with_its_line() {
        let violation = Source::new("crates/a/src/lib.rs", "fn a() {}\nfn b( {\n").unwrap_err();
        assert!(
            violation.to_string().starts_with("crates/a/src/lib.rs:"),
            "{violation}"
        );
    }

    #[test]
    fn test_files_are_known_by_their_paths() {
        for (path, is_test) in [
            ("crates/queue/tests/protocol.rs", true),
            ("tests/src/lib.rs", true),
            ("crates/gpu/src/ledger_tests.rs", true),
            ("crates/policy/src/admission/tests.rs", true),
            ("crates/policy/src/admission.rs", false),
            ("xtask/src/test.rs", false),
        ] {
            assert_eq!(source(path, "").is_test(), is_test, "{path}");
        }
    }
}
