//! Paths in a rig are built in crates/queue alone: whoever else builds one goes around the claim
//! protocol.

use super::{Source, Violation};

/// Folders of a rig that hold task files, records, locks and signals.
const FOLDERS: [&str; 5] = ["tasks", "processing", "attempts", "agents", "signals"];

/// What begins a path below `tasks/`.
const LANES: [&str; 8] = [
    "waiting",
    "queue",
    "processing",
    "retry",
    "complete",
    "failed",
    "cancelled",
    "quarantine",
];

const REMEDY: &str = "paths in a rig are built in crates/queue alone; use rigor_queue::rig::Rig, or add what it lacks there";

/// Checks the code of a crate, its tests left out.
pub(super) fn check(source: &Source) -> Vec<Violation> {
    let Some(tokens) = &source.tokens else {
        return Vec::new();
    };
    if source.is_test()
        || !source.path.starts_with("crates/")
        || source.path.starts_with("crates/queue/")
    {
        return Vec::new();
    }
    let mut violations = Vec::new();
    for (index, token) in tokens.list.iter().enumerate() {
        let Some(text) = content(&token.text) else {
            continue;
        };
        let joined = index >= 2
            && tokens.list[index - 1].text == "("
            && ["join", "push"].contains(&tokens.list[index - 2].text.as_str());
        if !token.in_test && is_rig_path(text, joined) {
            violations.push(source.violation(token.line, format!("\"{text}\": {REMEDY}")));
        }
    }
    violations
}

/// What is between the quotes of a string literal.
fn content(literal: &str) -> Option<&str> {
    let text = literal.trim_start_matches('r').trim_matches('#');
    text.strip_prefix('"')?.strip_suffix('"')
}

/// Words for people have blanks in them; paths do not.
fn is_rig_path(text: &str, joined: bool) -> bool {
    if text.contains(char::is_whitespace) {
        return false;
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    match parts[..] {
        [one] if !text.contains('/') => joined && FOLDERS.contains(&one),
        [] => false,
        _ => {
            FOLDERS.contains(&parts[0])
                || LANES.contains(&parts[0])
                || parts
                    .windows(2)
                    .any(|pair| pair[0] == "tasks" && LANES.contains(&pair[1]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source;

    fn found(path: &str, text: &str) -> usize {
        check(&source(path, text)).len()
    }

    #[test]
    fn paths_in_a_rig_are_found() {
        for text in [
            r#"fn a(r: &Path) { r.join("tasks"); }"#,
            r#"fn a(r: &Path) { r.join("tasks/queue/llm"); }"#,
            r#"fn a(r: &Path) { r.join("processing/").join(agent); }"#,
            r#"fn a(r: &Path) { let p = format!("{root}/tasks/queue/{class}"); }"#,
            r#"const A: &str = "agents/brain/lock";"#,
            r##"const A: &str = r#"signals/brain"#;"##,
        ] {
            assert_eq!(found("crates/brain/src/a.rs", text), 1, "{text}");
            assert_eq!(found("crates/queue/src/a.rs", text), 0, "{text}");
            assert_eq!(found("crates/brain/tests/a.rs", text), 0, "{text}");
        }
    }

    #[test]
    fn words_and_others_paths_are_not() {
        for text in [
            r#"fn a() { bail!("nothing lies in tasks/queue/ now"); }"#,
            r#"fn a() { parts.join(", "); dir.join("results/attempts.jsonl"); }"#,
            r#"#[serde(rename = "tasks")] struct A;"#,
            r#"fn a() { field("processing"); }"#,
            "/// In `tasks/queue/`.\nfn a() {}",
            "#[cfg(test)] mod tests { fn a() { r.join(\"tasks\"); } }",
        ] {
            assert_eq!(found("crates/brain/src/a.rs", text), 0, "{text}");
        }
    }
}
