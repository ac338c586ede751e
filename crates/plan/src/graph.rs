//! What tasks say about each other: dependencies, their order, and who makes whose items.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::check::Sources;
use crate::draft::Draft;
use crate::fields::Field;
use crate::plan::{Foreach, ForeachSource, Template, WorkTemplate};
use crate::problem::{Problems, did_you_mean};

/// Checks the tasks against each other. Returns their indices in an order in which they can
/// run; tasks of a cycle, which is reported, are left out.
pub(crate) fn check(
    sources: &Sources<'_>,
    drafts: &[Draft],
    problems: &mut Problems,
) -> Vec<usize> {
    let file = sources.plan_file;
    let mut index: BTreeMap<&str, usize> = BTreeMap::new();
    for (n, draft) in drafts.iter().enumerate() {
        if let Some(first) = index.get(draft.task.id.as_str()) {
            let id = &draft.task.id;
            let message = format!("a second task `{id}`");
            let help = format!("the first is in line {}", drafts[*first].task.line);
            problems.push(file, draft.span.clone(), message, help);
        } else {
            index.insert(&draft.task.id, n);
        }
    }
    let edges: Vec<Vec<usize>> = drafts
        .iter()
        .map(|draft| dependencies(file, draft, drafts, &index, problems))
        .collect();
    let order = order(&edges);
    if order.len() < drafts.len() {
        cycles(file, drafts, &edges, &order, problems);
    }
    for (n, draft) in drafts.iter().enumerate() {
        // Walked only where something asks, and only once for it.
        let mut before = None;
        let mut before = || before.get_or_insert_with(|| ancestors(n, &edges)).clone();
        if let Some(foreach) = &draft.task.foreach {
            source_is_made(sources, draft, foreach, drafts, &mut before, problems);
        }
        for (task, failed_in, span) in &draft.failed_files {
            let known = index.get(task.as_str());
            let message = match known {
                None => format!("{{FAILED_FILE:{task}}} names no task"),
                Some(at) if drafts[*at].task.foreach.is_none() => {
                    format!("{{FAILED_FILE:{task}}}: `{task}` has no `foreach`")
                }
                Some(at) if !before().contains(at) => {
                    format!("{{FAILED_FILE:{task}}} in a task that does not depend on `{task}`")
                }
                Some(_) => continue,
            };
            let help = match known {
                None => did_you_mean(task, index.keys().copied()),
                Some(_) => None,
            };
            problems.push(failed_in, span.clone(), message, help);
        }
    }
    order
}

/// The indices of the tasks that `draft` names as its dependencies, as far as they are sound.
fn dependencies(
    file: &str,
    draft: &Draft,
    drafts: &[Draft],
    index: &BTreeMap<&str, usize>,
    problems: &mut Problems,
) -> Vec<usize> {
    let mut found = Vec::new();
    for (dep, span) in draft.task.deps.iter().zip(&draft.dep_spans) {
        let Some(at) = index.get(dep.task.as_str()) else {
            let help = did_you_mean(
                &dep.task,
                index.keys().copied().filter(|id| *id != draft.task.id),
            );
            problems.push(file, span.clone(), format!("no task `{}`", dep.task), help);
            continue;
        };
        if dep.task == draft.task.id {
            problems.push(
                file,
                span.clone(),
                format!("task `{}` depends on itself", dep.task),
                None,
            );
            continue;
        }
        if dep.per_item {
            per_item(file, draft, &drafts[*at], span.clone(), problems);
        }
        if !found.contains(at) {
            found.push(*at);
        }
    }
    found
}

/// `other_{ITEM.id}` needs an instance of the other task for each item of this one.
fn per_item(
    file: &str,
    draft: &Draft,
    other: &Draft,
    span: std::ops::Range<usize>,
    problems: &mut Problems,
) {
    let id = &other.task.id;
    let whole = format!("to wait for all of it, write `{id}`");
    let (message, help) = match (&draft.task.foreach, &other.task.foreach) {
        (None, _) if draft.spans.contains_key(&Field::Foreach) => return,
        (_, None) if other.spans.contains_key(&Field::Foreach) => return,
        (None, _) => (
            format!("`{id}_{{ITEM.id}}` in a task without `foreach`"),
            whole,
        ),
        (_, None) => (
            format!("`{id}` has no `foreach`, so no instance for an item"),
            whole,
        ),
        (Some(mine), Some(theirs)) if mine.source != theirs.source => (
            format!(
                "`{id}` takes its items from `{}`, this task from `{}`",
                theirs.source, mine.source
            ),
            whole,
        ),
        _ if draft.task.batch_size != other.task.batch_size => (
            format!(
                "`{id}` takes {} items at a time, this task {}",
                other.task.batch_size, draft.task.batch_size
            ),
            whole,
        ),
        _ => return,
    };
    problems.push(file, span, message, help);
}

/// Kahn's algorithm; of the tasks that are free the first of the file comes first.
fn order(edges: &[Vec<usize>]) -> Vec<usize> {
    let mut waits: Vec<usize> = edges.iter().map(Vec::len).collect();
    let mut dependants: Vec<Vec<usize>> = vec![Vec::new(); edges.len()];
    for (n, deps) in edges.iter().enumerate() {
        deps.iter().for_each(|dep| dependants[*dep].push(n));
    }
    let mut free: BTreeSet<usize> = (0..edges.len()).filter(|n| waits[*n] == 0).collect();
    let mut order = Vec::new();
    while let Some(n) = free.pop_first() {
        order.push(n);
        for dependant in &dependants[n] {
            waits[*dependant] -= 1;
            if waits[*dependant] == 0 {
                free.insert(*dependant);
            }
        }
    }
    order
}

/// Reports the cycles among the tasks that found no place in `order`.
fn cycles(
    file: &str,
    drafts: &[Draft],
    edges: &[Vec<usize>],
    order: &[usize],
    problems: &mut Problems,
) {
    let placed: BTreeSet<usize> = order.iter().copied().collect();
    let mut seen = BTreeSet::new();
    for start in (0..drafts.len()).filter(|n| !placed.contains(n)) {
        let mut path: Vec<usize> = Vec::new();
        let mut next = Some(start);
        while let Some(n) = next
            && seen.insert(n)
        {
            path.push(n);
            next = edges[n].iter().copied().find(|dep| !placed.contains(dep));
        }
        let Some(from) = next.and_then(|n| path.iter().position(|on| *on == n)) else {
            continue;
        };
        let mut names: Vec<&str> = path[from..]
            .iter()
            .map(|n| drafts[*n].task.id.as_str())
            .collect();
        names.push(names[0]);
        let first = &drafts[path[from]];
        let span = first.spans.get(&Field::DependsOn).unwrap_or(&first.span);
        let message = format!("tasks wait for each other: {}", names.join(" -> "));
        problems.push(
            file,
            span.clone(),
            message,
            "each depends on the one after the arrow".to_owned(),
        );
    }
}

/// Every task that `start` waits for, directly or not.
fn ancestors(start: usize, edges: &[Vec<usize>]) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut waiting: VecDeque<usize> = edges[start].iter().copied().collect();
    while let Some(n) = waiting.pop_front() {
        if found.insert(n) {
            waiting.extend(&edges[n]);
        }
    }
    found
}

fn source_is_made(
    sources: &Sources<'_>,
    draft: &Draft,
    foreach: &Foreach,
    drafts: &[Draft],
    before: &mut impl FnMut() -> BTreeSet<usize>,
    problems: &mut Problems,
) {
    let source = &foreach.source;
    if foreach.path.is_known() {
        if (sources.exists)(source) {
            return;
        }
    } else if !draft.task.deps.is_empty() {
        // The batch's folder is new: whatever is in it, a task of this batch has written.
        return;
    }
    let before = before();
    if before.iter().any(|n| makes(&drafts[*n], source)) {
        return;
    }
    let id = &draft.task.id;
    let likely = drafts
        .iter()
        .enumerate()
        .find(|(n, other)| other.task.id != *id && !before.contains(n) && makes(other, source));
    let help = match (likely, draft.task.deps.first()) {
        (Some((_, other)), _) => {
            format!(
                "`{}` names it: add `- **depends_on**: {}`",
                other.task.id, other.task.id
            )
        }
        (None, Some(dep)) if drafts.iter().any(|other| other.task.id == dep.task) => {
            format!(
                "if `{}` writes it, say so there: `- **produces**: {}`",
                dep.task,
                source.path()
            )
        }
        _ if !foreach.path.is_known() => {
            "the batch's folder is new: depend on the task that writes the file".to_owned()
        }
        _ => "paths are relative to the plan's folder".to_owned(),
    };
    let span = draft.spans.get(&Field::Foreach).unwrap_or(&draft.span);
    let message = format!(
        "`{}` is not there, and no task that `{id}` waits for produces it",
        source.path()
    );
    problems.push(sources.plan_file, span.clone(), message, help);
}

/// Whether a task says that it writes the source, or names it in its command.
fn makes(draft: &Draft, source: &ForeachSource) -> bool {
    let plain = |path: &str| {
        path.trim_start_matches("./")
            .trim_end_matches('/')
            .to_owned()
    };
    let wanted = plain(source.base());
    if wanted.is_empty() {
        return false;
    }
    let output = match &draft.task.work {
        WorkTemplate::Prompt(prompt) => prompt.output.as_ref(),
        WorkTemplate::Command(_) => None,
    };
    let named = draft
        .task
        .produces
        .iter()
        .chain(output)
        .map(Template::shown)
        .any(|path| {
            let path = plain(&path);
            let matches = globset::Glob::new(&path)
                .is_ok_and(|glob| glob.compile_matcher().is_match(&wanted));
            let within =
                matches!(source, ForeachSource::Glob(_)) && path.starts_with(&format!("{wanted}/"));
            path == wanted || matches || within
        });
    named || draft.command.contains(&wanted)
}
