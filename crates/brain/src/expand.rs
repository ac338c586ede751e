//! From a plan's text to task files: parsing a submission, reading the items of a foreach.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use globset::GlobBuilder;
use rigor_plan::{BatchVars, ForeachSource, ItemContent, Plan, PlanTask, RigFacts, Sources};
use rigor_queue::lane::Lane;
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit;
use rigor_queue::task::{Class, Item, Submission, TaskSpec, Vram};

use crate::batch::Batch;
use crate::context::Context;

/// The largest foreach source that is read, bytes: a million items of 200 bytes.
const SOURCE_MAX_BYTES: u64 = 256 << 20;

/// Between a task and the id of the group that was split, in the name of an expansion's folder.
const SPLIT: &str = ".split-";

/// A task file to be.
#[derive(Debug)]
pub(crate) struct NewTask {
    /// Its name.
    pub name: FileName,
    /// Its content.
    pub spec: TaskSpec,
}

/// Why there are no task files.
#[derive(Debug)]
pub(crate) enum NotMade {
    /// There never will be; for the user.
    Never(String),
    /// Something is in the way that has nothing to do with the plan, a full disk say.
    NotNow(anyhow::Error),
}

impl NotMade {
    fn never(error: impl std::fmt::Display) -> NotMade {
        NotMade::Never(format!("{error:#}"))
    }

    /// What writing into the batch's folder came to: a full disk is waited for.
    fn writing(error: anyhow::Error) -> NotMade {
        if is_for_want_of_room(&error) {
            NotMade::NotNow(error)
        } else {
            NotMade::never(error)
        }
    }
}

/// Whether the disk was full.
pub(crate) fn is_for_want_of_room(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};

    let kind = |cause: &(dyn std::error::Error + 'static)| {
        let queue = cause.downcast_ref::<rigor_queue::QueueError>();
        let own = cause
            .downcast_ref::<std::io::Error>()
            .map(std::io::Error::kind);
        queue.and_then(rigor_queue::QueueError::io_kind).or(own)
    };
    error
        .chain()
        .any(|cause| matches!(kind(cause), Some(StorageFull | QuotaExceeded)))
}

/// The plan of a submission, checked again: the rig may have changed since. The error shows every
/// problem as a compiler does.
pub(crate) fn parse(
    brain: &Context,
    spec: &TaskSpec,
    submission: &Submission,
) -> Result<Plan, String> {
    // A batch that has begun is not given up because the rig has changed since: what can no
    // longer be run says so when it is its turn.
    let begun = expansions(&brain.rig, &spec.batch).is_ok_and(|found| !found.is_empty());
    let facts: RigFacts = rigor_snapshot::facts::read(&brain.rig, &brain.config);
    let sources = Sources {
        plan_file: "plan.md",
        text: &submission.source,
        inputs: &submission.inputs,
        files: &|path| submission.files.get(path).cloned(),
        // What was there at submission may be gone now; then the expansion says so.
        exists: &|_| true,
        rig: (!begun).then_some(&facts),
        infer: submission.infer,
    };
    rigor_plan::check(&sources).map_err(|problems| {
        format!(
            "the plan of {} has problems:\n{}",
            spec.batch,
            problems.render(false)
        )
    })
}

/// The task files of a task: one, or one for each item.
pub(crate) fn make(
    brain: &mut Context,
    batch: &Batch,
    task: usize,
) -> Result<Vec<NewTask>, NotMade> {
    let plan_task = &batch.plan.tasks[task];
    let vars = vars(batch);
    let source = rigor_plan::foreach_source(plan_task, &vars).map_err(NotMade::never)?;
    let items: Vec<Option<Item>> = match source {
        None => vec![None],
        Some(source) => {
            let items =
                read_items(&source, &batch.plan_dir, batch.limit()).map_err(NotMade::never)?;
            let groups = rigor_plan::group(items, plan_task.batch_size);
            groups.into_iter().map(Some).collect()
        }
    };
    instances(brain, batch, plan_task, items)
}

/// The task files of a group that is split: one for each of its items.
pub(crate) fn make_split(
    brain: &mut Context,
    batch: &Batch,
    task: usize,
    group: &TaskSpec,
) -> Result<Vec<NewTask>, NotMade> {
    let item = group.item.as_ref();
    let item = item.ok_or_else(|| NotMade::never("it has no items"))?;
    let values = item.value.as_array();
    let values = values.ok_or_else(|| NotMade::never("its items are no list"))?;
    // Groups of one: the command sees a list still, as it expects.
    let items = item
        .members
        .iter()
        .zip(values)
        .map(|(id, value)| {
            Some(Item {
                id: id.clone(),
                value: serde_json::Value::Array(vec![value.clone()]),
                members: vec![id.clone()],
            })
        })
        .collect();
    instances(brain, batch, &batch.plan.tasks[task], items)
}

fn instances(
    brain: &mut Context,
    batch: &Batch,
    task: &PlanTask,
    items: Vec<Option<Item>>,
) -> Result<Vec<NewTask>, NotMade> {
    let vars = vars(batch);
    let first = brain
        .sequence
        .take(items.len() as u64)
        .map_err(|error| NotMade::NotNow(error.into()))?;
    let model = brain.model_for(task).map_err(NotMade::Never)?;
    let mut made = Vec::with_capacity(items.len());
    for (sequence, item) in (first..).zip(&items) {
        let mut spec = rigor_plan::instantiate(&batch.plan, task, item.as_ref(), &vars)
            .map_err(NotMade::never)?;
        spec.model.clone_from(&model);
        spec.plan.clone_from(&batch.spec().plan);
        if let Some(group) = item.as_ref().filter(|item| !item.members.is_empty()) {
            let path = rigor_plan::items_file(&batch.batch_dir, &spec.name);
            write_file(&path, group.value.to_string().as_bytes()).map_err(NotMade::writing)?;
        }
        let name = FileName::first(spec.priority, sequence, spec.shape(), spec.id);
        brain.learn_shape(name.shape, &spec);
        made.push(NewTask { name, spec });
    }
    Ok(made)
}

fn vars(batch: &Batch) -> BatchVars<'_> {
    BatchVars {
        batch_id: &batch.id,
        batch_path: &batch.batch_dir,
        plan_path: &batch.plan_dir,
        created: jiff::Timestamp::now(),
    }
}

fn read_items(source: &ForeachSource, plan_dir: &Path, limit: Option<usize>) -> Result<Vec<Item>> {
    let items = if let ForeachSource::Glob(pattern) = source {
        let paths = matching(plan_dir, pattern, source.base())?;
        rigor_plan::parse_items(source, ItemContent::Paths(&paths), limit)?
    } else {
        let path = plan_dir.join(source.path());
        let length = fs::metadata(&path)
            .with_context(|| format!("foreach source {}", path.display()))?
            .len();
        anyhow::ensure!(
            length <= SOURCE_MAX_BYTES,
            "foreach source {} has {length} bytes, the limit is {SOURCE_MAX_BYTES}",
            path.display()
        );
        let text = fs::read_to_string(&path)
            .with_context(|| format!("foreach source {}", path.display()))?;
        rigor_plan::parse_items(source, ItemContent::Text(&text), limit)?
    };
    Ok(items)
}

/// Files that match a pattern, relative to the plan's folder (absolute where the pattern is),
/// sorted.
fn matching(plan_dir: &Path, pattern: &str, base: &str) -> Result<Vec<String>> {
    let glob = GlobBuilder::new(pattern)
        .literal_separator(true)
        .build()
        .with_context(|| format!("pattern {pattern:?}"))?
        .compile_matcher();
    let root = plan_dir.join(base);
    let mut paths = Vec::new();
    for entry in walkdir::WalkDir::new(&root).follow_links(true) {
        let entry = entry.with_context(|| format!("foreach source glob:{pattern}"))?;
        if !entry.file_type().is_file() {
            continue;
        }
        let path = entry.path();
        let relative = if Path::new(pattern).is_absolute() {
            path
        } else {
            path.strip_prefix(plan_dir)?
        };
        if glob.is_match(relative) {
            let text = relative
                .to_str()
                .with_context(|| format!("{} is not UTF-8", path.display()))?;
            paths.push(text.to_owned());
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

/// Keeps the file that `{FAILED_FILE:task}` names: a JSON string for each failed item, a line.
pub(crate) fn write_failed_file(batch: &Batch, task: usize, items: &[&str]) -> Result<()> {
    let path = rigor_plan::failed_file(&batch.batch_dir, &batch.plan.tasks[task].id);
    let mut text = String::new();
    for item in items {
        text.push_str(&serde_json::json!({ "id": item }).to_string());
        text.push('\n');
    }
    write_file(&path, text.as_bytes())
}

fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    submit::replace_file(path, content, false)?;
    Ok(())
}

/// The expansions of a batch that are on disk: the plan's task and the folder's name.
pub(crate) fn expansions(rig: &Rig, batch: &str) -> Result<Vec<(String, String)>> {
    let folder: PathBuf = rig.lane_dir(Lane::Waiting).join(batch);
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let task = name
            .split_once(SPLIT)
            .map_or(name.as_str(), |(task, _)| task)
            .to_owned();
        found.push((task, name));
    }
    // A task's own expansion before those of its groups that were split.
    found.sort_unstable();
    Ok(found)
}

/// The folder of the items of a group that was split.
pub(crate) fn split_directory(task: &str, group: TaskId) -> String {
    format!("{task}{SPLIT}{group}")
}

/// The id of the group whose items an expansion's folder holds.
pub(crate) fn split_of(directory: &str) -> Option<String> {
    directory
        .split_once(SPLIT)
        .map(|(_, group)| group.to_owned())
}

/// What the brain remembers of a shape: what placement and its log lines need.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ShapeInfo {
    /// The class.
    pub class: Class,
    /// The model.
    pub model: Option<String>,
    /// The key of its measurements.
    pub measured_as: String,
    /// What it needs of GPU memory.
    pub vram: Vram,
    /// CPU slots.
    pub cpus: u32,
    /// Agents it may run on; empty: any.
    pub on: Vec<String>,
}

impl ShapeInfo {
    /// Of a task.
    pub(crate) fn of(spec: &TaskSpec) -> ShapeInfo {
        ShapeInfo {
            class: spec.class,
            model: spec.model.clone(),
            measured_as: spec.measured_as(),
            vram: spec.vram,
            cpus: spec.cpus,
            on: spec.on.clone(),
        }
    }
}

/// Shapes by their hash.
pub(crate) type Shapes = BTreeMap<rigor_queue::name::Shape, ShapeInfo>;

/// The specification of a queued task of a shape that this brain has not seen, after a restart.
pub(crate) fn peek_shape(rig: &Rig, class: Class, name: &FileName) -> Option<ShapeInfo> {
    match rigor_queue::claim::peek(rig, Place::Queue(class), name) {
        Ok(spec) => spec.map(|spec| ShapeInfo::of(&spec)),
        Err(_) => None,
    }
}
