//! Plans that benchmarks submit.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

/// The task of the plan that [`nothing`] writes.
pub(super) const NOTHING: &str = "nothing";

/// A plan of so many tasks that run `true`, in a folder below `scratch`.
pub(super) fn nothing(scratch: &Path, tasks: u64) -> Result<PathBuf> {
    let section = "### nothing\n\n- **task_class**: cpu\n- **foreach**: items.json:items\n- **command**: `true`\n";
    write(scratch, "nothing", section, tasks)
}

/// Writes a plan with these tasks and so many items for its foreach; its folder.
pub(super) fn write(scratch: &Path, name: &str, tasks: &str, items: u64) -> Result<PathBuf> {
    let dir = scratch.join(format!("plan-{name}-{items}"));
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let items: Vec<_> = (0..items).map(|id| json!({"id": id.to_string()})).collect();
    let text = format!("# Plan: {name}\n\n## Goal\n\nA benchmark.\n\n## Tasks\n\n{tasks}");
    for (file, text) in [
        ("plan.md", text),
        ("items.json", json!({"items": items}).to_string()),
    ] {
        let path = dir.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(dir)
}

/// A plan of so many tasks that run `true`, each after the one before.
pub(super) fn chain(scratch: &Path, tasks: u64) -> Result<PathBuf> {
    let mut text = String::new();
    for task in 0..tasks {
        text.push_str(&format!(
            "### link_{task}\n\n- **task_class**: cpu\n- **command**: `true`\n"
        ));
        if let Some(before) = task.checked_sub(1) {
            text.push_str(&format!("- **depends_on**: link_{before}\n"));
        }
        text.push('\n');
    }
    write(scratch, "chain", &text, 1)
}
