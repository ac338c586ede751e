//! From the text of a plan to a [`Plan`], or to everything that is wrong with it.

use std::collections::{BTreeMap, BTreeSet};

use crate::draft::{Draft, Drafting};
use crate::fields::Field;
use crate::graph;
use crate::markdown::{self, Document, RawField, unquoted};
use crate::plan::{ForeachSource, OnFailure, Plan};
use crate::problem::{Problems, did_you_mean};
use crate::rig::{self, RigFacts};
use crate::template::is_name;
use crate::variables::{RESERVED, Variables};

/// The largest plan.md or prompt file, bytes: what people write is far below, and a log given
/// by mistake is far above.
pub const TEXT_MAX_BYTES: usize = 1 << 20;

/// Most tasks of one plan; a foreach counts once, however many items it has.
pub const TASKS_MAX: usize = 10_000;

/// The longest name of a plan, bytes.
const NAME_MAX_BYTES: usize = 100;

/// A plan and what it is checked against. The crate itself reads nothing.
pub struct Sources<'a> {
    /// How messages name the plan's file.
    pub plan_file: &'a str,
    /// Its text.
    pub text: &'a str,
    /// Values of inputs, over their defaults.
    pub inputs: &'a BTreeMap<String, String>,
    /// The text of a prompt file, by its path relative to the plan; none where it cannot be read.
    pub files: &'a dyn Fn(&str) -> Option<String>,
    /// Whether a foreach source is there: its file, or for a pattern [`ForeachSource::base`].
    pub exists: &'a dyn Fn(&ForeachSource) -> bool,
    /// The rig it is for; none: what depends on the rig is not checked.
    pub rig: Option<&'a RigFacts>,
    /// Take the class that [`infer_class`](crate::infer_class) finds where a task names none.
    pub infer: bool,
}

/// Checks a plan whole.
///
/// # Errors
/// Every problem of the plan, not only the first.
pub fn check(sources: &Sources<'_>) -> Result<Plan, Problems> {
    let mut problems = Problems::default();
    problems.add_file(sources.plan_file, sources.text);
    if let Some((at, message)) = unreadable(sources.text) {
        problems.push(sources.plan_file, at..at, message, None);
        return Err(problems);
    }
    let known = |name: &str| Field::parse(name).is_some();
    let document = markdown::read(sources.plan_file, sources.text, known, &mut problems);
    let mut variables = Variables {
        inputs: BTreeMap::new(),
        unset: BTreeMap::new(),
        used: BTreeSet::new(),
        failed_files: Vec::new(),
        plan_file: sources.plan_file,
        problems,
    };
    read_inputs(sources, &document, &mut variables);
    let name = read_name(&document, &mut variables);
    refuse_goals(&document, &mut variables);

    let mut drafting = Drafting::new(sources, variables, &document.defaults);
    let on_failure = drafting.on_failure_default();
    let mut drafts: Vec<Draft> = Vec::new();
    for task in document.tasks.iter().take(TASKS_MAX) {
        drafts.push(drafting.task(task));
    }
    let (mut variables, prompt_files) = drafting.finish();
    let problems = &mut variables.problems;
    if document.tasks.is_empty() {
        let span = document.tasks_heading.clone().unwrap_or(0..0);
        problems.push(
            sources.plan_file,
            span,
            "the plan has no tasks",
            "a task is a heading `### <id>` under `## Tasks`".to_owned(),
        );
    } else if let Some(task) = document.tasks.get(TASKS_MAX) {
        problems.push(
            sources.plan_file,
            task.span.clone(),
            format!(
                "{} tasks; a plan has at most {TASKS_MAX}",
                document.tasks.len()
            ),
            "let one task with `foreach` stand for many".to_owned(),
        );
    }
    unused_inputs(sources, &document, &mut variables);

    let problems = &mut variables.problems;
    let order = graph::check(sources, &drafts, problems);
    if let Some(rig) = sources.rig {
        rig::check(rig, sources.plan_file, &drafts, problems);
    }
    if !problems.is_empty() {
        problems.sort(sources.plan_file);
        return Err(std::mem::take(problems));
    }
    let mut tasks: Vec<Option<_>> = drafts.into_iter().map(|draft| Some(draft.task)).collect();
    Ok(Plan {
        name,
        goal: document.goal,
        inputs: variables.inputs,
        tasks: order
            .into_iter()
            .filter_map(|index| tasks[index].take())
            .collect(),
        on_failure,
        prompt_files,
    })
}

/// Why a text is not read at all, and where.
pub(crate) fn unreadable(text: &str) -> Option<(usize, String)> {
    if text.len() > TEXT_MAX_BYTES {
        let message = format!("{} bytes; at most {TEXT_MAX_BYTES} are read", text.len());
        return Some((0, message));
    }
    text.find('\0')
        .map(|at| (at, "a NUL byte: this is not a text file".to_owned()))
}

fn read_inputs(sources: &Sources<'_>, document: &Document, variables: &mut Variables<'_>) {
    let file = sources.plan_file;
    for input in &document.inputs {
        let (name, _) = unquoted(&input.name);
        if !is_name(name) {
            // Prose about a file or a folder that the plan reads.
            continue;
        }
        let span = input.name_span.clone();
        if RESERVED.contains(&name) {
            let message = format!("`{name}` is a variable of Rigor's own");
            variables
                .problems
                .push(file, span, message, "name the input otherwise".to_owned());
        } else if variables.inputs.contains_key(name) || variables.unset.contains_key(name) {
            variables
                .problems
                .push(file, span, format!("a second input `{name}`"), None);
        } else if let Some(value) = sources
            .inputs
            .get(name)
            .cloned()
            .or_else(|| default_value(&input.value.text))
        {
            variables.inputs.insert(name.to_owned(), value);
        } else {
            variables.unset.insert(name.to_owned(), span);
        }
    }
    for (name, value) in sources.inputs {
        if is_name(name) && !RESERVED.contains(&name.as_str()) {
            variables
                .inputs
                .entry(name.clone())
                .or_insert_with(|| value.clone());
        }
        if value.contains('\0') {
            let message = format!("the value given for input `{name}` holds a NUL byte");
            variables.problems.push(file, 0..0, message, None);
        }
    }
}

/// The value of `words (default: value)`.
fn default_value(words: &str) -> Option<String> {
    let start = words.rfind("(default:")? + "(default:".len();
    let mut depth = 1;
    let end = words[start..].char_indices().find_map(|(at, c)| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        (depth == 0).then_some(start + at)
    })?;
    Some(unquoted(words[start..end].trim()).0.to_owned())
}

/// A value that was given for no input and that nothing uses is a typing error.
fn unused_inputs(sources: &Sources<'_>, document: &Document, variables: &mut Variables<'_>) {
    let declared: Vec<&str> = document
        .inputs
        .iter()
        .map(|input| unquoted(&input.name).0)
        .filter(|n| is_name(n))
        .collect();
    for name in sources.inputs.keys() {
        if declared.contains(&name.as_str()) || variables.used.contains(name) {
            continue;
        }
        let span = document
            .inputs
            .first()
            .map_or(0..0, |input: &RawField| input.name_span.clone());
        let help = did_you_mean(name, declared.iter().copied())
            .unwrap_or_else(|| "inputs stand under `## Inputs`: `- **NAME**: words`".to_owned());
        let message = format!("a value was given for `{name}`, which the plan does not use");
        variables
            .problems
            .push(sources.plan_file, span, message, help);
    }
}

fn read_name(document: &Document, variables: &mut Variables<'_>) -> String {
    let file = variables.plan_file;
    let Some((name, span)) = &document.title else {
        let help = "begin it with `# Plan: <name>`".to_owned();
        variables
            .problems
            .push(file, 0..0, "the plan has no name", help);
        return String::new();
    };
    if name.is_empty() || name.len() > NAME_MAX_BYTES || name.chars().any(char::is_control) {
        let message = format!("a plan's name has 1 to {NAME_MAX_BYTES} bytes");
        variables.problems.push(file, span.clone(), message, None);
    }
    name.clone()
}

/// `- **type**: target_count` makes a plan goal-driven, and such plans are not run yet.
fn refuse_goals(document: &Document, variables: &mut Variables<'_>) {
    let Some(kind) = document
        .goal_fields
        .iter()
        .find(|field| field.name == "type")
    else {
        return;
    };
    let span = kind.value.span();
    if kind.value.text == "target_count" {
        variables.problems.push(
            variables.plan_file,
            span,
            "goal-driven plans (`type: target_count`) are not supported yet",
            "state the goal in prose and list the work with `foreach`".to_owned(),
        );
    } else {
        let message = format!("unknown type of goal `{}`", kind.value.text);
        let help = "a goal is prose, or of type `target_count` (not supported yet)".to_owned();
        variables
            .problems
            .push(variables.plan_file, span, message, help);
    }
}

impl OnFailure {
    pub(crate) fn parse(text: &str) -> Result<OnFailure, String> {
        match text {
            "continue" => Ok(OnFailure::Continue),
            "stop" => Ok(OnFailure::Stop),
            _ => Err("`continue` or `stop`".to_owned()),
        }
    }
}
