//! Links in documents lead somewhere.

use std::path::Path;

use pulldown_cmark::{Event, Parser, Tag};

use super::{Source, Violation};

/// Checks that what a document of `root` links to is there. Addresses of elsewhere are not looked at.
pub(super) fn check(root: &Path, source: &Source) -> Vec<Violation> {
    let is_document = source.path.ends_with(".md")
        && (source.path.starts_with("docs/") || !source.path.contains('/'));
    if !is_document {
        return Vec::new();
    }
    let folder = Path::new(&source.path).parent().unwrap_or(Path::new(""));
    let mut violations = Vec::new();
    for (event, range) in Parser::new(&source.text).into_offset_iter() {
        let (Event::Start(Tag::Link { dest_url, .. }) | Event::Start(Tag::Image { dest_url, .. })) =
            event
        else {
            continue;
        };
        let target = dest_url.split('#').next().unwrap_or_default();
        if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        let line = source.text[..range.start].matches('\n').count() + 1;
        if target.starts_with('/') {
            violations
                .push(source.violation(line, format!("{target}: link relative to this file")));
        } else if !root.join(folder).join(target).exists() {
            violations.push(source.violation(
                line,
                format!("{target} is not there: mend the link, or remove it"),
            ));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::tidy::source;

    #[test]
    fn a_link_to_nothing_is_found() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("docs")).unwrap();
        fs::write(root.path().join("docs/a.md"), "").unwrap();
        let lines = |path: &str, text: &str| -> Vec<usize> {
            check(root.path(), &source(path, text))
                .iter()
                .map(|violation| violation.line)
                .collect()
        };
        let text =
            "[a](docs/a.md) [part](docs/a.md#part) [web](https://example.org/x) [here](#a)\n";
        assert!(lines("README.md", text).is_empty());
        assert_eq!(lines("README.md", "x\n\n[b](docs/b.md)\n"), [3]);
        assert_eq!(
            lines(
                "docs/c.md",
                "[a](a.md) [up](../docs/a.md)\n![pic](pic.png)\n"
            ),
            [2]
        );
        assert_eq!(lines("README.md", "[a](/docs/a.md)\n"), [1]);
        assert!(lines("README.md", "`[b](docs/b.md)`\n\n    [b](docs/b.md)\n").is_empty());
    }
}
