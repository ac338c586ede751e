//! `rigor check`, and the check that `rigor submit` makes.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rigor_plan::{ForeachSource, Plan, Problems, RigFacts, Sources};
use rigor_queue::task::Class;
use rigor_snapshot::facts;
use serde::Serialize;

use crate::args::{Check, PlanArgs};
use crate::exit::Exit;
use crate::target::{self, resolved};
use crate::terminal::{colour_on_stderr, json, line, note, plural};

/// The file that a plan's folder holds.
pub(crate) const PLAN_FILE: &str = "plan.md";

/// A plan that was read and checked.
pub(crate) struct Checked {
    pub(crate) plan: Plan,
    pub(crate) source: String,
    pub(crate) plan_dir: PathBuf,
    pub(crate) inputs: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    ok: bool,
    plan: Option<&'a str>,
    tasks: Vec<TaskReport<'a>>,
    problems: &'a [rigor_plan::Problem],
    /// What could not be checked.
    notes: &'a [String],
}

#[derive(Serialize)]
struct TaskReport<'a> {
    id: &'a str,
    class: Class,
    foreach: Option<String>,
    depends_on: Vec<&'a str>,
}

/// Checks a plan and says what it comes to.
pub(crate) fn run(at: &Path, args: &Check) -> Result<Exit> {
    let facts = if at.join(rigor_config::FILE_NAME).exists() {
        let opened = target::open(at)?;
        let budgets = crate::models::budgets(&opened.config);
        Some(facts::read_with_needs(&opened.rig, &opened.config, budgets))
    } else {
        note(format!(
            "No rig at {}: what depends on GPUs and models is not checked.",
            at.display()
        ));
        None
    };
    match check(&args.plan, facts.as_ref())? {
        Ok(checked) => {
            let unchecked = facts
                .as_ref()
                .and_then(|facts| unchecked(facts, &checked.plan));
            if let Some(words) = &unchecked {
                note(words);
            }
            if args.json {
                let notes = unchecked.as_slice();
                json(&report(&checked.plan, notes))?;
            } else {
                let plan = &checked.plan;
                line(format!(
                    "{}: {}, no problems",
                    plan.name,
                    plural(plan.tasks.len(), "task")
                ))?;
            }
            Ok(Exit::Ok)
        }
        Err(problems) => {
            if args.json {
                let report = Report {
                    schema: 1,
                    ok: false,
                    plan: None,
                    tasks: Vec::new(),
                    problems: &problems.problems,
                    notes: &[],
                };
                json(&report)?;
            } else {
                say(&problems, "");
            }
            Ok(Exit::Failed)
        }
    }
}

/// What of a plan's need of GPU memory nobody could hold against the rig.
fn unchecked(facts: &RigFacts, plan: &Plan) -> Option<String> {
    let on_gpu = |class| matches!(class, Class::Llm | Class::Script);
    if !plan.tasks.iter().any(|task| on_gpu(task.class)) {
        return None;
    }
    let silent = |agent: &&rigor_plan::AgentFacts| agent.gpu && agent.vram_budget_mb.is_none();
    let names: Vec<&str> = facts
        .agents
        .iter()
        .filter(silent)
        .map(|agent| agent.name.as_str())
        .collect();
    (!names.is_empty()).then(|| {
        format!(
            "GPU memory of {} is not checked: no agent has run there yet, and NVML does not tell it.",
            names.join(", ")
        )
    })
}

fn report<'a>(plan: &'a Plan, notes: &'a [String]) -> Report<'a> {
    let tasks = plan.tasks.iter().map(|task| TaskReport {
        id: &task.id,
        class: task.class,
        foreach: task
            .foreach
            .as_ref()
            .map(|foreach| foreach.source.to_string()),
        depends_on: task.deps.iter().map(|dep| dep.task.as_str()).collect(),
    });
    Report {
        schema: 1,
        ok: true,
        plan: Some(&plan.name),
        tasks: tasks.collect(),
        problems: &[],
        notes,
    }
}

/// Shows every problem on stderr, with its line, their number, and what that means.
pub(crate) fn say(problems: &Problems, then: &str) {
    note(problems.render(colour_on_stderr()).trim_end());
    let count = problems.problems.len() + problems.left_out;
    note(format!("\n{}{then}", plural(count, "problem")));
}

/// The bytes of a plan; of one that is too long only so many that the check says so.
fn plan_bytes(path: &Path) -> Result<Vec<u8>> {
    let cannot = || format!("cannot read the plan {}", path.display());
    let meta = fs::metadata(path).with_context(cannot)?;
    // A pipe or a device would keep the reader waiting, or never end.
    ensure!(meta.is_file(), "{} is not a file", path.display());
    let mut bytes = Vec::new();
    let most = rigor_plan::TEXT_MAX_BYTES as u64 + 1;
    let file = fs::File::open(path).with_context(cannot)?;
    file.take(most)
        .read_to_end(&mut bytes)
        .with_context(cannot)?;
    Ok(bytes)
}

/// Reads a plan and checks it whole: the outer error is one of reading.
pub(crate) fn check(
    args: &PlanArgs,
    facts: Option<&RigFacts>,
) -> Result<std::result::Result<Checked, Problems>> {
    let shown = args.plan_dir.join(PLAN_FILE);
    let plan_dir = resolved(&args.plan_dir)?;
    let source = String::from_utf8(plan_bytes(&shown)?)
        .with_context(|| format!("{} is not UTF-8 text", shown.display()))?;
    let inputs = args.inputs();
    let files = |path: &str| fs::read_to_string(plan_dir.join(path)).ok();
    let exists = |source: &ForeachSource| plan_dir.join(source.base()).exists();
    let plan = rigor_plan::check(&Sources {
        plan_file: &shown.display().to_string(),
        text: &source,
        inputs: &inputs,
        files: &files,
        exists: &exists,
        rig: facts,
        infer: args.infer,
    });
    Ok(plan.map(|plan| Checked {
        plan,
        source,
        plan_dir,
        inputs,
    }))
}
