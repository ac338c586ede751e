//! Files that a task requires or produces: paths or globs, relative to the plan.

use std::path::{Component, Path, PathBuf};

use globset::GlobBuilder;
use walkdir::WalkDir;

use crate::outcome::Failure;

/// Those of the paths and globs that name nothing that exists.
pub(crate) fn missing(plan_dir: &Path, wanted: &[String]) -> Result<Vec<String>, Failure> {
    let mut missing = Vec::new();
    for pattern in wanted {
        // A file may have a name that looks like a pattern.
        if !plan_dir.join(pattern).exists() && !matches_any(plan_dir, pattern)? {
            missing.push(pattern.clone());
        }
    }
    Ok(missing)
}

fn matches_any(plan_dir: &Path, pattern: &str) -> Result<bool, Failure> {
    let Some((literal, rest)) = split(pattern) else {
        return Ok(false);
    };
    let glob = GlobBuilder::new(&rest)
        .literal_separator(true)
        .build()
        .map_err(|error| Failure::setup(format!("{pattern:?} is no valid glob: {error}")))?
        .compile_matcher();
    let root = plan_dir.join(literal);
    // What cannot be read (a directory that is not there, above all) matches nothing.
    let found = WalkDir::new(&root)
        .min_depth(1)
        .follow_links(true)
        .into_iter()
        .flatten()
        .any(|entry| {
            entry
                .path()
                .strip_prefix(&root)
                .is_ok_and(|below| glob.is_match(below))
        });
    Ok(found)
}

/// A pattern as the directory that it names outright and the rest; `None`: it is no pattern.
fn split(pattern: &str) -> Option<(PathBuf, String)> {
    let magic = |part: &Component<'_>| {
        part.as_os_str()
            .to_string_lossy()
            .contains(['*', '?', '[', '{'])
    };
    let parts: Vec<Component<'_>> = Path::new(pattern).components().collect();
    let first = parts.iter().position(magic)?;
    let rest: PathBuf = parts[first..].iter().collect();
    Some((
        parts[..first].iter().collect(),
        rest.to_string_lossy().into_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_is_not_there_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join("out/deep")).expect("mkdir");
        for file in ["a.txt", "out/one.json", "out/deep/two.json", "out/x[1].txt"] {
            fs::write(dir.path().join(file), "").expect("write");
        }
        let absolute = dir.path().join("out/*.json").to_string_lossy().into_owned();
        let there = [
            "a.txt",
            "out",
            "out/*.json",
            "out/**/two.json",
            "out/x[1].txt",
            "*.{md,txt}",
            &absolute,
        ];
        let gone = ["b.txt", "out/*.txt.gz", "*.json", "nowhere/*", "out/?.json"];
        let wanted: Vec<String> = there
            .iter()
            .chain(&gone)
            .map(|text| (*text).to_owned())
            .collect();
        assert_eq!(missing(dir.path(), &wanted).expect("valid globs"), gone);
        assert!(
            missing(dir.path(), &["out/[".to_owned()])
                .expect_err("refused")
                .reason
                .contains("out/[")
        );
    }
}
