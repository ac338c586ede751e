//! `rigor submit`: a checked plan becomes a task file of the brain's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use jiff::{Timestamp, ZonedDateTime};
use rigor_config::Config;
use rigor_queue::keys::{self, Content, KEY_MAX_BYTES, Keyed};
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::{Durability, submit};
use rigor_queue::task::{Class, Submission, TaskSpec, Work};
use rigor_snapshot::{PLAN_TASK, plan_task_id};

use crate::args::Submit;
use crate::check::{self, Checked};
use crate::exit::Exit;
use crate::target::{self, Opened};
use crate::terminal::{json, line, note};
use crate::wait;

/// 2026-01-01T00:00Z: what the sequence of tasks that the brain did not number counts from.
const EPOCH_MS: i64 = 1_767_225_600_000;
/// Bytes of a plan's name that a batch's id keeps.
const SLUG_MOST: usize = 60;

/// Submits a plan, and with `--wait` follows it to its end.
pub(crate) fn run(at: &Path, args: &Submit) -> Result<Exit> {
    let opened = target::open(at)?;
    let facts = rigor_snapshot::facts::read_with_needs(
        &opened.rig,
        &opened.config,
        crate::models::budgets(&opened.config),
    );
    let checked = match check::check(&args.plan, Some(&facts))? {
        Ok(checked) => checked,
        Err(problems) => {
            check::say(&problems, "; nothing was submitted");
            return Ok(Exit::Failed);
        }
    };
    let limit = args.limit.map(usize::try_from).transpose()?;
    let mut batch = New::of(&checked.plan.name);
    let plan = Terms {
        limit,
        infer: args.plan.infer,
    }
    .over(checked);
    // Held until the batch is submitted: of two submissions under one key the second finds it.
    let mut reserved = None;
    if let Some(key) = &args.key {
        match reserve(&opened, key, &plan, &batch.id)? {
            Keyed::New(mine) => batch.id.clone_from(&reserved.insert(mine).batch),
            Keyed::Known(id) => {
                let dir = plan.plan_dir.join("history").join(&id);
                let known = Submitted { id, dir };
                note(format!("{key:?} was submitted already, and is this batch:"));
                return end(&opened, args, &known, true);
            }
            Keyed::Other(id) => bail!(
                "{key:?} was submitted already as {id}, with another plan, other inputs or another --limit: nothing was submitted; use another key"
            ),
        }
    }
    let batch = batch.submit(&opened, plan, args.hold)?;
    drop(reserved);
    end(&opened, args, &batch, false)
}

/// Says which batch it is, and waits for it where that is wanted.
fn end(opened: &Opened, args: &Submit, batch: &Submitted, known: bool) -> Result<Exit> {
    let held = args.hold && !known;
    if args.json {
        json(&serde_json::json!({
            "schema": 1,
            "batch_id": batch.id,
            "batch_dir": batch.dir,
            "held": held,
            "known": known,
        }))?;
    } else {
        line(&batch.id)?;
    }
    if held {
        note(format!("Held: start it with `rigor release {}`", batch.id));
    }
    if args.wait {
        return wait::until_over(opened, &batch.id);
    }
    opened.warn_without_brain()?;
    Ok(Exit::Ok)
}

fn reserve(opened: &Opened, key: &str, plan: &Ready, batch: &str) -> Result<Keyed> {
    if key.is_empty() || key.len() > KEY_MAX_BYTES || key.contains(char::is_control) {
        bail!(
            "the key {key:?} cannot be used: 1 to {KEY_MAX_BYTES} bytes without control characters"
        );
    }
    let content = Content {
        plan_dir: &plan.plan_dir,
        submission: &plan.submission,
    };
    let durability = durability(&opened.config);
    Ok(keys::reserve(
        &opened.rig,
        key,
        &content,
        batch,
        plan_task_id,
        durability,
    )?)
}

/// A batch that was submitted.
pub(crate) struct Submitted {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
}

/// How a plan is to be run.
#[derive(Default)]
pub(crate) struct Terms {
    pub(crate) limit: Option<usize>,
    pub(crate) infer: bool,
}

/// A plan as it goes to the brain.
pub(crate) struct Ready {
    plan_dir: PathBuf,
    submission: Submission,
}

impl Terms {
    /// A checked plan, to be run so.
    pub(crate) fn over(self, checked: Checked) -> Ready {
        Ready {
            plan_dir: checked.plan_dir,
            submission: Submission {
                source: checked.source,
                files: checked.plan.prompt_files,
                inputs: checked.inputs,
                limit: self.limit,
                infer: self.infer,
            },
        }
    }
}

/// A batch that is to be.
pub(crate) struct New {
    pub(crate) id: String,
    plan: String,
}

impl New {
    /// `<plan>-<yyyymmdd-hhmmss>-<4 random characters>`.
    pub(crate) fn of(plan_name: &str) -> New {
        let plan = slug(plan_name);
        let time = ZonedDateTime::now().strftime("%Y%m%d-%H%M%S").to_string();
        New {
            id: format!("{plan}-{time}-{}", &random_word()[..4]),
            plan,
        }
    }

    /// Writes the batch. When this returns it survives what the rig's durability says.
    pub(crate) fn submit(self, opened: &Opened, plan: Ready, held: bool) -> Result<Submitted> {
        let rig = &opened.rig;
        let dir = plan.plan_dir.join("history").join(&self.id);
        fs::create_dir_all(&dir).with_context(|| {
            format!(
                "cannot make {}: a batch leaves its results there",
                dir.display()
            )
        })?;
        rig.prepare_batch(&self.id)?;
        if held {
            let path = rig.brain_dir().join("held").join(&self.id);
            fs::write(&path, "").with_context(|| format!("cannot write {}", path.display()))?;
        }
        let id = plan_task_id(&self.id);
        let spec = TaskSpec {
            plan_dir: plan.plan_dir,
            batch_dir: dir.clone(),
            ..spec(
                id,
                &self.id,
                &self.plan,
                PLAN_TASK,
                Class::Brain,
                Work::Plan(Box::new(plan.submission)),
            )
        };
        write(rig, &opened.config, &spec)?;
        Ok(Submitted { id: self.id, dir })
    }
}

/// A task with nothing but what every task has.
pub(crate) fn spec(
    id: TaskId,
    batch: &str,
    plan: &str,
    task: &str,
    class: Class,
    work: Work,
) -> TaskSpec {
    TaskSpec {
        plan: plan.to_owned(),
        retries: 0,
        plan_dir: PathBuf::new(),
        batch_dir: PathBuf::new(),
        ..TaskSpec::new(id, batch, task, class, work)
    }
}

/// Writes a task file into the queue of its class.
pub(crate) fn write(rig: &Rig, config: &Config, spec: &TaskSpec) -> Result<()> {
    let sequence = u64::try_from(Timestamp::now().as_millisecond() - EPOCH_MS)
        .context("this machine's clock is before 2026; set it")?;
    let name = FileName::first(spec.priority, sequence, spec.shape(), spec.id);
    let place = Place::Queue(spec.class);
    if !submit(rig, place, &name, spec, durability(config))? {
        bail!("the task {} is there already", spec.id);
    }
    Ok(())
}

pub(crate) fn durability(config: &Config) -> Durability {
    match config.rig.durability {
        rigor_config::Durability::Default => Durability::Default,
        rigor_config::Durability::Strict => Durability::Strict,
        rigor_config::Durability::Process => Durability::Process,
    }
}

/// 8 random characters of Crockford's base32 in lower case, which has no look-alikes.
pub(crate) fn random_word() -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    // Bytes 0 to 5 and 10 to 15 of a version 4 UUID are all random.
    let random = uuid::Uuid::new_v4();
    let bytes = random.as_bytes();
    [0, 1, 2, 3, 10, 11, 12, 13]
        .map(|at| char::from(DIGITS[usize::from(bytes[at] % 32)]))
        .iter()
        .collect()
}

/// A plan's name as a batch's id has it: lower case, other than letters and digits become `-`.
fn slug(name: &str) -> String {
    let mut slug = String::new();
    for c in name.chars() {
        if c.is_ascii_alphanumeric() || c == '_' {
            slug.push(c.to_ascii_lowercase());
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
        if slug.len() >= SLUG_MOST {
            break;
        }
    }
    let slug = slug.trim_matches(['-', '_']);
    if slug.is_empty() {
        "plan".to_owned()
    } else {
        slug.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_of_any_name_makes_a_safe_batch_id() {
        for name in [
            "Video Tags!",
            "",
            "../../etc",
            "日本語",
            "_plan",
            &"x".repeat(100),
        ] {
            let id = New::of(name).id;
            assert!(rigor_queue::rig::is_safe_name(&id), "{name:?} gave {id:?}");
            assert!(!id.starts_with('_'), "{id}");
        }
        assert!(New::of("Video  Tags!").id.starts_with("video-tags-20"));
    }

    #[test]
    fn random_words_differ() {
        let words: std::collections::BTreeSet<String> = (0..1000).map(|_| random_word()).collect();
        assert_eq!(words.len(), 1000);
    }
}
