//! From a task of a plan, and for a foreach an item, to the task that a worker runs.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rigor_queue::name::TaskId;
use rigor_queue::task::{Item, Prompt, PromptPart, TaskSpec, Work};
use serde_json::Value;

use crate::plan::{
    CommandTemplate, ForeachSource, Part, Plan, PlanTask, PromptTemplate, Template, WorkTemplate,
};
use crate::problem::did_you_mean;
use crate::shell::{self, Context, Unquotable};

/// What a batch gives to its tasks.
#[derive(Clone, Copy, Debug)]
pub struct BatchVars<'a> {
    /// `{BATCH_ID}`
    pub batch_id: &'a str,
    /// `{BATCH_PATH}`, absolute.
    pub batch_path: &'a Path,
    /// `{PLAN_PATH}`, absolute.
    pub plan_path: &'a Path,
    /// When the task is written.
    pub created: Timestamp,
}

/// Why a task cannot be made for an item.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstantiateError {
    /// The item lacks a field that the task uses.
    #[error("task `{instance}`: {variable} names a field that the item does not have{help}")]
    NoField {
        /// The instance.
        instance: String,
        /// As it is written in the plan.
        variable: String,
        /// The nearest name, or nothing.
        help: String,
    },
    /// A value cannot be written where its variable stands.
    #[error("task `{instance}`: {variable}: {cause}")]
    Unquotable {
        /// The instance.
        instance: String,
        /// As it is written in the plan.
        variable: String,
        /// Why not.
        cause: Unquotable,
    },
    /// A foreach task without an item, or an item for a task without foreach.
    #[error("task `{task}`: {problem}")]
    WrongItem {
        /// The task.
        task: String,
        /// Which of the two.
        problem: &'static str,
    },
    /// A folder's name has no text that a command could be given.
    #[error("the folder {path:?} is not UTF-8; move the plan to one that is")]
    NotUtf8 {
        /// The folder.
        path: PathBuf,
    },
}

/// The file that a batched task's `{ITEMS_FILE}` names: the group's items as a JSON list. Whoever
/// makes the task writes it.
pub fn items_file(batch_path: &Path, instance: &str) -> PathBuf {
    batch_path.join("items").join(format!("{instance}.json"))
}

/// The file that `{FAILED_FILE:task}` names. Whoever releases the dependants writes it.
pub fn failed_file(batch_path: &Path, task: &str) -> PathBuf {
    batch_path.join("failed").join(format!("{task}.jsonl"))
}

/// The source of a task's items with its variables filled in; none without `foreach`.
///
/// # Errors
/// When a folder's path is not UTF-8.
pub fn foreach_source(
    task: &PlanTask,
    vars: &BatchVars<'_>,
) -> Result<Option<ForeachSource>, InstantiateError> {
    let Some(foreach) = &task.foreach else {
        return Ok(None);
    };
    let filling = Filling {
        task,
        instance: task.id.clone(),
        item: None,
        vars,
    };
    Ok(Some(foreach.source.with_path(filling.text(&foreach.path)?)))
}

/// The task that `task` stands for, for `item` where it has a foreach. Variables are filled in
/// once: a value is never read for variables.
///
/// # Errors
/// When the item lacks a field, or when a value cannot be written where its variable stands.
pub fn instantiate(
    plan: &Plan,
    task: &PlanTask,
    item: Option<&Item>,
    vars: &BatchVars<'_>,
) -> Result<TaskSpec, InstantiateError> {
    let wrong = |problem| InstantiateError::WrongItem {
        task: task.id.clone(),
        problem,
    };
    match (&task.foreach, item) {
        (Some(_), None) => return Err(wrong("it has a `foreach` and was given no item")),
        (None, Some(_)) => return Err(wrong("it has no `foreach` and was given an item")),
        _ => {}
    }
    let item_id = item.map(|item| item.id.as_str());
    let filling = Filling {
        task,
        instance: task.instance(item_id),
        item,
        vars,
    };
    let optional = |template: &Option<Template>| {
        template
            .as_ref()
            .map(|template| filling.text(template))
            .transpose()
    };
    let all = |templates: &[Template]| -> Result<Vec<String>, InstantiateError> {
        templates
            .iter()
            .map(|template| filling.text(template))
            .collect()
    };
    let work = match &task.work {
        WorkTemplate::Command(command) => Work::Command {
            command: filling.command(command)?,
        },
        WorkTemplate::Prompt(prompt) => Work::Prompt(filling.prompt(prompt)?),
    };
    let mut env = std::collections::BTreeMap::new();
    for (name, value) in &task.env {
        env.insert(name.clone(), filling.text(value)?);
    }
    Ok(TaskSpec {
        id: TaskId::derive(vars.batch_id, &task.id, item_id),
        batch: vars.batch_id.to_owned(),
        plan: plan.name.clone(),
        task: task.id.clone(),
        name: filling.instance.clone(),
        class: task.class,
        work,
        item: item.cloned(),
        priority: task.priority,
        cpus: task.cpus,
        on: task.on.clone(),
        model: task.model.clone(),
        min_tier: task.min_tier,
        vram: task.vram,
        timeout_s: task.timeout_s,
        kill_if_silent_s: task.kill_if_silent_s,
        retries: task.retries,
        backoff: task.backoff,
        env,
        env_file: optional(&task.env_file)?,
        venv: optional(&task.venv)?,
        conda: optional(&task.conda)?,
        secrets: task.secrets.clone(),
        workdir: optional(&task.workdir)?,
        requires: all(&task.requires)?,
        produces: all(&task.produces)?,
        plan_dir: vars.plan_path.to_owned(),
        batch_dir: vars.batch_path.to_owned(),
        created: vars.created,
    })
}

/// Fills in the variables of one instance.
struct Filling<'a> {
    task: &'a PlanTask,
    instance: String,
    item: Option<&'a Item>,
    vars: &'a BatchVars<'a>,
}

impl Filling<'_> {
    fn text(&self, template: &Template) -> Result<String, InstantiateError> {
        template.parts.iter().map(|part| self.value(part)).collect()
    }

    fn command(&self, command: &CommandTemplate) -> Result<String, InstantiateError> {
        let mut text = String::new();
        let mut raw_heredocs = Vec::new();
        for (part, context) in &command.parts {
            let value = self.value(part)?;
            let start = text.len();
            match context {
                None => text.push_str(&value),
                Some(context) => {
                    let written = shell::write(context, &value)
                        .map_err(|cause| self.unquotable(part, cause))?;
                    text.push_str(&written);
                }
            }
            if let Some(Context::RawHeredoc {
                delimiter,
                strip_tabs,
            }) = context
            {
                raw_heredocs.push((part, start..text.len(), delimiter, *strip_tabs));
            }
        }
        for (part, range, delimiter, strip_tabs) in raw_heredocs {
            if shell::ends_raw_heredoc(&text, range, delimiter, strip_tabs) {
                return Err(self.unquotable(part, Unquotable::EndsHeredoc(delimiter.clone())));
            }
        }
        Ok(text)
    }

    fn prompt(&self, prompt: &PromptTemplate) -> Result<Prompt, InstantiateError> {
        let optional = |template: &Option<Template>| {
            template
                .as_ref()
                .map(|template| self.text(template))
                .transpose()
        };
        Ok(Prompt {
            user: self.message(&prompt.user)?,
            system: prompt
                .system
                .as_ref()
                .map(|system| self.message(system))
                .transpose()?
                .unwrap_or_default(),
            temperature: prompt.temperature,
            max_tokens: prompt.max_tokens,
            seed: prompt.seed,
            too_long: prompt.too_long,
            output: optional(&prompt.output)?,
        })
    }

    fn message(&self, template: &Template) -> Result<Vec<PromptPart>, InstantiateError> {
        let mut parts: Vec<PromptPart> = Vec::new();
        for part in &template.parts {
            if let Part::File(path) = part {
                parts.push(PromptPart::File(self.text(path)?));
                continue;
            }
            let value = self.value(part)?;
            match parts.last_mut() {
                Some(PromptPart::Text(text)) => text.push_str(&value),
                _ => parts.push(PromptPart::Text(value)),
            }
        }
        Ok(parts)
    }

    fn value(&self, part: &Part) -> Result<String, InstantiateError> {
        let value = match part {
            Part::Text(text) | Part::Input(text) => text.clone(),
            Part::BatchId => self.vars.batch_id.to_owned(),
            Part::BatchPath => utf8(self.vars.batch_path)?,
            Part::PlanPath => utf8(self.vars.plan_path)?,
            Part::Item(path) => self.field(part, path)?,
            Part::Items => {
                let item = self.item()?;
                let batched = !item.members.is_empty();
                if batched {
                    item.value.to_string()
                } else {
                    Value::from(vec![item.value.clone()]).to_string()
                }
            }
            Part::ItemsFile => utf8(&items_file(self.vars.batch_path, &self.instance))?,
            Part::FailedFile(task) => utf8(&failed_file(self.vars.batch_path, task))?,
            Part::File(path) => self.text(path)?,
        };
        if value.contains('\0') {
            return Err(self.unquotable(part, Unquotable::Nul));
        }
        Ok(value)
    }

    fn item(&self) -> Result<&Item, InstantiateError> {
        self.item.ok_or(InstantiateError::WrongItem {
            task: self.task.id.clone(),
            problem: "it names an item and was given none",
        })
    }

    fn field(&self, part: &Part, path: &[String]) -> Result<String, InstantiateError> {
        let item = self.item()?;
        if path == ["id"] {
            return Ok(item.id.clone());
        }
        let of_path = matches!(
            self.task.foreach.as_ref().map(|foreach| &foreach.source),
            Some(ForeachSource::Glob(_) | ForeachSource::Lines(_))
        );
        let mut value = match (&item.value, path.is_empty() && of_path) {
            // The item of a line or of a file is that line or path; its fields are what it adds.
            (Value::Object(fields), true) => fields.get("path").unwrap_or(&item.value),
            (value, _) => value,
        };
        for field in path {
            let inner = match value {
                Value::Object(fields) => fields.get(field),
                Value::Array(values) => field.parse().ok().and_then(|n: usize| values.get(n)),
                _ => None,
            };
            value = inner.ok_or_else(|| InstantiateError::NoField {
                instance: self.instance.clone(),
                variable: part.shown(),
                help: value
                    .as_object()
                    .and_then(|fields| did_you_mean(field, fields.keys().map(String::as_str)))
                    .map_or(String::new(), |help| format!("; {help}")),
            })?;
        }
        Ok(match value {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        })
    }

    fn unquotable(&self, part: &Part, cause: Unquotable) -> InstantiateError {
        InstantiateError::Unquotable {
            instance: self.instance.clone(),
            variable: part.shown(),
            cause,
        }
    }
}

fn utf8(path: &Path) -> Result<String, InstantiateError> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| InstantiateError::NotUtf8 {
            path: path.to_owned(),
        })
}
