//! One task of a plan: its fields typed, with the places that later checks point at.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use rigor_queue::name::{PRIORITY_DEFAULT, PRIORITY_MAX};
use rigor_queue::task::{RETRIES_DEFAULT, Vram};

use crate::check::Sources;
use crate::fields::{self, Field};
use crate::markdown::{RawField, RawTask, Value, unquoted};
use crate::plan::{
    Dependency, Foreach, ForeachSource, LlmPlacement, MaxFailed, OnFailure, Part, PlanTask,
    Template, WorkTemplate,
};
use crate::problem::nearest;
use crate::variables::{Scope, Variables};

/// The longest task id, bytes.
const ID_MAX_BYTES: usize = 64;

/// A task whose own fields were read; what it says about others is not checked yet.
pub(crate) struct Draft {
    pub(crate) task: PlanTask,
    pub(crate) span: Range<usize>,
    /// The place of each of the task's `deps`, and of those that were left out as repeated.
    pub(crate) dep_spans: Vec<Range<usize>>,
    /// The values of fields that were given.
    pub(crate) spans: BTreeMap<Field, Range<usize>>,
    /// The command as it is written.
    pub(crate) command: String,
    /// Each `{FAILED_FILE:task}`: the task, and the file and the place it stands in.
    pub(crate) failed_files: Vec<(String, String, Range<usize>)>,
}

/// Reads tasks one after the other.
pub(crate) struct Drafting<'a> {
    pub(crate) sources: &'a Sources<'a>,
    pub(crate) variables: Variables<'a>,
    defaults: &'a [RawField],
    /// The texts of prompt files that were read.
    pub(crate) prompt_files: BTreeMap<String, String>,
    /// Where each line of the plan ends, bytes.
    line_ends: Vec<usize>,
}

/// The fields of one task, its own before the plan's defaults.
pub(crate) struct Given<'a> {
    pub(crate) task: &'a RawTask,
    pub(crate) fields: BTreeMap<Field, &'a RawField>,
    /// Those that the task itself has.
    pub(crate) own: BTreeSet<Field>,
    env: Vec<&'a RawField>,
}

impl<'a> Given<'a> {
    pub(crate) fn own(&self, field: Field) -> Option<&'a RawField> {
        self.fields
            .get(&field)
            .filter(|_| self.own.contains(&field))
            .copied()
    }
}

impl<'a> Drafting<'a> {
    pub(crate) fn new(
        sources: &'a Sources<'a>,
        variables: Variables<'a>,
        defaults: &'a [RawField],
    ) -> Drafting<'a> {
        Drafting {
            sources,
            variables,
            defaults,
            prompt_files: BTreeMap::new(),
            line_ends: sources.text.match_indices('\n').map(|(at, _)| at).collect(),
        }
    }

    pub(crate) fn finish(self) -> (Variables<'a>, BTreeMap<String, String>) {
        (self.variables, self.prompt_files)
    }

    /// What the plan's defaults say about a failure.
    pub(crate) fn on_failure_default(&mut self) -> OnFailure {
        let value = self
            .defaults
            .iter()
            .find(|field| field.name == Field::OnFailure.name());
        value
            .and_then(|field| OnFailure::parse(&field.value.text).ok())
            .unwrap_or_default()
    }

    pub(crate) fn problem(
        &mut self,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) {
        self.variables
            .problems
            .push(self.sources.plan_file, span, message, help);
    }

    pub(crate) fn task(&mut self, raw: &'a RawTask) -> Draft {
        self.check_id(raw);
        let given = self.given(raw);
        self.refuse_later(&given);
        let foreach = self.foreach(&given);
        let batch_size = self
            .number(&given, Field::BatchSize, 1..=1_000_000)
            .unwrap_or(1);
        let scope = Scope {
            foreach: foreach.as_ref().map(|foreach| &foreach.source),
            batched: batch_size > 1,
            ..Scope::default()
        };
        let (work, command) = self.work(&given, scope);
        let (executor, class) = self.class(&given, work.as_ref(), &command);
        let (deps, dep_spans) = self.depends_on(&given);
        if foreach.is_none() {
            for field in [Field::BatchSize, Field::MaxFailed] {
                if let Some(raw) = given.own(field) {
                    let message = format!("`{}` in a task without `foreach`", field.name());
                    self.problem(raw.name_span.clone(), message, None);
                }
            }
        }
        if class != rigor_queue::task::Class::Llm {
            for field in [Field::LlmModel, Field::LlmMinTier, Field::LlmPlacement] {
                if let Some(raw) = given.own(field) {
                    let message = format!(
                        "`{}` on a task of class {class}: it gets no model",
                        field.name()
                    );
                    let help = "leave it out, or add `- **task_class**: llm`".to_owned();
                    self.problem(raw.name_span.clone(), message, help);
                }
            }
        }
        let path = |drafting: &mut Self, field| drafting.template(&given, field, scope);
        let task = PlanTask {
            id: raw.id.clone(),
            line: 1 + self.line_ends.partition_point(|end| *end < raw.span.start),
            class,
            executor,
            deps,
            batch_size,
            max_parallel: self.optional(&given, Field::MaxParallel, |t| {
                fields::number(t, 1..=1_000_000)
            }),
            max_failed: self
                .scalar(&given, Field::MaxFailed, fields::max_failed)
                .unwrap_or(MaxFailed::Count(0)),
            on_failure: self
                .scalar(&given, Field::OnFailure, OnFailure::parse)
                .unwrap_or_default(),
            cpus: self.number(&given, Field::Cpus, 1..=4096).unwrap_or(1),
            on: self.names(&given, Field::On),
            model: self.scalar(&given, Field::LlmModel, |t| Ok(t.to_owned())),
            min_tier: self.number(&given, Field::LlmMinTier, 0..=1000),
            placement: self.scalar(&given, Field::LlmPlacement, LlmPlacement::parse),
            vram: self.vram(&given),
            timeout_s: self.optional(&given, Field::Timeout, fields::duration),
            kill_if_silent_s: self.optional(&given, Field::KillIfSilent, fields::duration),
            retries: self
                .number(&given, Field::Retries, 0..=1000)
                .unwrap_or(RETRIES_DEFAULT),
            backoff: self
                .scalar(&given, Field::Backoff, fields::backoff)
                .unwrap_or_default(),
            priority: self
                .number(&given, Field::Priority, 0..=PRIORITY_MAX)
                .unwrap_or(PRIORITY_DEFAULT),
            env: self.env(&given, scope),
            env_file: path(self, Field::EnvFile),
            venv: path(self, Field::Venv),
            conda: path(self, Field::Conda),
            secrets: self.names(&given, Field::Secrets),
            workdir: path(self, Field::Workdir),
            requires: self.templates(&given, Field::Requires, scope),
            produces: self.templates(&given, Field::Produces, scope),
            work: work.unwrap_or(WorkTemplate::Command(crate::plan::CommandTemplate {
                parts: Vec::new(),
            })),
            foreach,
        };
        let spans = given
            .fields
            .iter()
            .map(|(field, raw)| (*field, raw.value.span()))
            .collect();
        let failed_files = std::mem::take(&mut self.variables.failed_files);
        Draft {
            task,
            span: raw.span.clone(),
            dep_spans,
            spans,
            command,
            failed_files,
        }
    }

    fn check_id(&mut self, raw: &RawTask) {
        let id = &raw.id;
        let safe = id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        if id.is_empty() || id.len() > ID_MAX_BYTES || id.starts_with('-') || !safe {
            let help = format!(
                "an id has letters, digits, `_` and `-`, does not begin with `-`, and has at most {ID_MAX_BYTES} bytes"
            );
            self.problem(
                raw.span.clone(),
                format!("`{id}` cannot be a task's id"),
                help,
            );
        }
    }

    fn given(&mut self, task: &'a RawTask) -> Given<'a> {
        let mut given = Given {
            task,
            fields: BTreeMap::new(),
            own: BTreeSet::new(),
            env: Vec::new(),
        };
        let defaults = self.defaults;
        self.collect(&task.fields, &mut given);
        given.own.extend(given.fields.keys());
        let mut inherited = Given {
            task,
            fields: BTreeMap::new(),
            own: BTreeSet::new(),
            env: Vec::new(),
        };
        self.collect(defaults, &mut inherited);
        let says_work = given.own.iter().any(|field| field.is_work());
        for (field, raw) in inherited.fields {
            if !(says_work && field.is_work()) {
                given.fields.entry(field).or_insert(raw);
            }
        }
        // The task's own come last, so that they win.
        given.env.splice(0..0, inherited.env);
        given
    }

    fn collect(&mut self, fields: &'a [RawField], given: &mut Given<'a>) {
        for raw in fields {
            let (name, _) = unquoted(&raw.name);
            let Some(field) = Field::parse(name) else {
                let names = Field::ALL.iter().map(|field| field.name());
                let near = nearest(name, names);
                let help = near.map(|name| format!("did you mean `{name}`?"));
                self.problem(
                    raw.name_span.clone(),
                    format!("unknown field `{name}`"),
                    help,
                );
                // So that a misspelt command is not also a missing one.
                given.own.extend(near.and_then(Field::parse));
                continue;
            };
            if raw.value.text.trim().is_empty() {
                // Reported where it was read.
                given.own.insert(field);
                continue;
            }
            if field == Field::Env {
                given.env.push(raw);
            } else if given.fields.insert(field, raw).is_some() {
                let message = format!("`{name}` stands twice in this task");
                self.problem(raw.name_span.clone(), message, None);
            }
        }
    }

    /// Features that plans may name and that do not exist yet are refused by name: a plan that
    /// relies on one must not run without it.
    fn refuse_later(&mut self, given: &Given<'a>) {
        for (field, value, instead) in [
            (
                Field::Schema,
                None,
                "check the answer in a task that depends on this one",
            ),
            (
                Field::Resume,
                Some("on"),
                "leave it out: every submission runs all tasks",
            ),
        ] {
            let Some(raw) = given.fields.get(&field) else {
                continue;
            };
            let text = raw.value.text.trim();
            if value.is_none_or(|value| value == text) {
                let what = value.map_or(String::new(), |value| format!(": {value}"));
                let message = format!("`{}{what}` is not supported yet", field.name());
                self.problem(raw.name_span.clone(), message, instead.to_owned());
            } else if text != "off" {
                let message = format!("invalid `{}`: `{text}`", field.name());
                self.problem(raw.value.span(), message, "`on` or `off`".to_owned());
            }
        }
    }

    fn depends_on(&mut self, given: &Given<'a>) -> (Vec<Dependency>, Vec<Range<usize>>) {
        let Some(raw) = given.fields.get(&Field::DependsOn) else {
            return Default::default();
        };
        let (mut deps, mut spans) = (Vec::new(), Vec::new());
        for (text, at) in fields::list(&raw.value.text) {
            if text == "none" {
                continue;
            }
            let (task, per_item) = match text.strip_suffix("_{ITEM.id}") {
                Some(task) => (task, true),
                None => (text, false),
            };
            let dep = Dependency {
                task: task.to_owned(),
                per_item,
            };
            if !deps.contains(&dep) {
                deps.push(dep);
                spans.push(raw.value.source(at..at + text.len()));
            }
        }
        (deps, spans)
    }

    fn foreach(&mut self, given: &Given<'a>) -> Option<Foreach> {
        let raw = given.fields.get(&Field::Foreach)?;
        let scope = Scope::default();
        let written = raw.value.text.trim();
        // A source is looked for in the plan's folder anyway.
        let written = written.strip_prefix("{PLAN_PATH}/").unwrap_or(written);
        let source = match ForeachSource::parse(written) {
            Ok(source) => source,
            Err(help) => {
                let message = format!("`{written}` is not a source of items");
                self.problem(raw.value.span(), message, help);
                return None;
            }
        };
        if written.contains("{ITEM") {
            let message = format!("`{written}` names an item before there is one");
            self.problem(raw.value.span(), message, None);
            return None;
        }
        let before = self.variables.problems.problems.len();
        // The path keeps its place in the source, so that a caret under it is right.
        let at = raw.value.text.find(source.path()).unwrap_or(0);
        let place = raw.value.source(at..at + source.path().len());
        let path = self.variables.template(
            self.sources.plan_file,
            &Value::line(source.path(), place.start),
            scope,
        );
        let fits = |part: &Part| {
            matches!(
                part,
                Part::Text(_)
                    | Part::Input(_)
                    | Part::BatchPath
                    | Part::BatchId
                    | Part::PlanPath
                    | Part::FailedFile(_)
            )
        };
        if self.variables.problems.problems.len() > before || !path.parts().all(fits) {
            return None;
        }
        Some(Foreach {
            source: source.with_path(path.shown()),
            path,
        })
    }

    fn vram(&mut self, given: &Given<'a>) -> Vram {
        let estimate_mb = self.number(given, Field::VramEstimateMb, 0..=100_000_000);
        let Some(policy) = self.scalar(given, Field::VramPolicy, |text| match text {
            "default" | "infer" | "fixed" => Ok(text.to_owned()),
            _ => Err("`default`, `infer` or `fixed`".to_owned()),
        }) else {
            return Vram::Default { estimate_mb };
        };
        match (policy.as_str(), estimate_mb) {
            ("infer", _) => Vram::Infer,
            ("fixed", Some(mb)) => Vram::Fixed { mb },
            ("fixed", None) => {
                if !given.fields.contains_key(&Field::VramEstimateMb)
                    && let Some(raw) = given.fields.get(&Field::VramPolicy)
                {
                    let help = "add `- **vram_estimate_mb**: 6000`".to_owned();
                    self.problem(raw.value.span(), "`fixed` without `vram_estimate_mb`", help);
                }
                Vram::Default { estimate_mb: None }
            }
            _ => Vram::Default { estimate_mb },
        }
    }

    fn env(&mut self, given: &Given<'a>, scope: Scope<'_>) -> BTreeMap<String, Template> {
        let mut env = BTreeMap::new();
        for raw in &given.env {
            let mut at = 0;
            for line in raw.value.text.split('\n') {
                let start = at + (line.len() - line.trim_start().len());
                at += line.len() + 1;
                let line = line.trim();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                let span = raw.value.source(start..start + line.len());
                let named = line
                    .split_once('=')
                    .map(|(name, value)| (name.trim(), value));
                let Some((name, value)) = named.filter(|(name, _)| is_env_name(name)) else {
                    let help = "a variable is written `NAME=value`".to_owned();
                    self.problem(span, format!("`{line}` sets no variable"), help);
                    continue;
                };
                let value = Value::line(value, span.end - value.len());
                let template = self
                    .variables
                    .template(self.sources.plan_file, &value, scope);
                env.insert(name.to_owned(), template);
            }
        }
        env
    }

    pub(crate) fn template(
        &mut self,
        given: &Given<'a>,
        field: Field,
        scope: Scope<'_>,
    ) -> Option<Template> {
        let raw = given.fields.get(&field)?;
        Some(
            self.variables
                .template(self.sources.plan_file, &raw.value, scope),
        )
    }

    fn templates(&mut self, given: &Given<'a>, field: Field, scope: Scope<'_>) -> Vec<Template> {
        let Some(raw) = given.fields.get(&field) else {
            return Vec::new();
        };
        fields::list(&raw.value.text)
            .into_iter()
            .filter(|(text, _)| *text != "none")
            .map(|(text, at)| {
                let value = Value::line(text, raw.value.source(at..at).start);
                self.variables
                    .template(self.sources.plan_file, &value, scope)
            })
            .collect()
    }

    fn names(&mut self, given: &Given<'a>, field: Field) -> Vec<String> {
        let Some(raw) = given.fields.get(&field) else {
            return Vec::new();
        };
        let text = self.variables.fixed(&raw.value);
        let mut names: Vec<String> = Vec::new();
        for (name, _) in fields::list(&text) {
            if !matches!(name, "any" | "none") && !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        names
    }

    pub(crate) fn scalar<T>(
        &mut self,
        given: &Given<'a>,
        field: Field,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let raw = given.fields.get(&field)?;
        let before = self.variables.problems.problems.len();
        let text = self.variables.fixed(&raw.value);
        let text = text.trim();
        match parse(text) {
            Ok(value) => Some(value),
            Err(help) => {
                // A variable that could not be resolved is problem enough.
                if self.variables.problems.problems.len() == before {
                    let message = format!("invalid `{}`: `{text}`", field.name());
                    self.problem(raw.value.span(), message, help);
                }
                None
            }
        }
    }

    /// A scalar for which `none` says that there is none.
    fn optional<T>(
        &mut self,
        given: &Given<'a>,
        field: Field,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.scalar(given, field, |text| match text {
            "none" => Ok(None),
            text => parse(text).map(Some),
        })
        .flatten()
    }

    pub(crate) fn number<T>(
        &mut self,
        given: &Given<'a>,
        field: Field,
        range: std::ops::RangeInclusive<T>,
    ) -> Option<T>
    where
        T: std::str::FromStr + PartialOrd + std::fmt::Display + Clone,
    {
        self.scalar(given, field, |text| fields::number(text, range.clone()))
    }
}

fn is_env_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
