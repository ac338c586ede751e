//! Ties the variables of a text to what the plan knows.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::markdown::Value;
use crate::plan::{CommandTemplate, ForeachSource, Part, Template};
use crate::problem::{Problems, did_you_mean};
use crate::scanner;
use crate::template::{Token, Variable, tokens};

/// Names that an input cannot have.
pub(crate) const RESERVED: &[&str] = &[
    "BATCH_ID",
    "BATCH_PATH",
    "PLAN_PATH",
    "ITEM",
    "ITEMS",
    "ITEMS_FILE",
    "FILE",
    "FAILED_FILE",
];

/// What every item of a glob or of lines has.
const PATH_FIELDS: &[&str] = &["id", "path", "name", "stem"];

/// What variables stand for, and the problems found with them.
pub(crate) struct Variables<'a> {
    /// Inputs that have a value.
    pub(crate) inputs: BTreeMap<String, String>,
    /// Inputs that are declared and have none, with the place of their declaration.
    pub(crate) unset: BTreeMap<String, Range<usize>>,
    pub(crate) used: BTreeSet<String>,
    /// Each `{FAILED_FILE:task}` since the last task was read, with its file and place.
    pub(crate) failed_files: Vec<(String, String, Range<usize>)>,
    pub(crate) plan_file: &'a str,
    pub(crate) problems: Problems,
}

/// What may stand in a text.
#[derive(Clone, Copy, Default)]
pub(crate) struct Scope<'a> {
    /// Only inputs: the text has to be known when the plan is checked.
    pub(crate) fixed: bool,
    pub(crate) foreach: Option<&'a ForeachSource>,
    /// One task for several items.
    pub(crate) batched: bool,
    /// `{FILE:path}` is allowed.
    pub(crate) prompt: bool,
}

impl Variables<'_> {
    /// `value` with its variables resolved. What could not be resolved is left out, and reported.
    pub(crate) fn template(&mut self, file: &str, value: &Value, scope: Scope<'_>) -> Template {
        self.range(file, value, 0..value.text.len(), scope)
    }

    /// A text that has to be known when the plan is checked.
    pub(crate) fn fixed(&mut self, value: &Value) -> String {
        let scope = Scope {
            fixed: true,
            ..Scope::default()
        };
        self.template(self.plan_file, value, scope).shown()
    }

    /// A command, each of its variables with its place in bash's quoting.
    pub(crate) fn command(&mut self, value: &Value, scope: Scope<'_>) -> CommandTemplate {
        let text = &value.text;
        let tokens = tokens(text);
        let quoted: Vec<Range<usize>> = tokens
            .iter()
            .filter_map(|token| match token {
                Token::Variable(variable) if !is_raw(text, variable) => {
                    Some(variable.range.clone())
                }
                _ => None,
            })
            .collect();
        let mut contexts = scanner::contexts(text, &quoted).into_iter();
        let mut parts = Vec::new();
        for token in tokens {
            let variable = match token {
                Token::Text(range) | Token::Literal(range) => {
                    parts.push((Part::Text(text[range].to_owned()), None));
                    continue;
                }
                Token::Variable(variable) => variable,
            };
            let context = if is_raw(text, &variable) {
                Ok(None)
            } else {
                contexts.next().transpose()
            };
            let part = self.part(self.plan_file, value, &variable, scope);
            match (context, part) {
                (Ok(context), Some(part)) => parts.push((part, context)),
                (Err(refusal), _) => self.problems.push(
                    self.plan_file,
                    value.source(variable.range.clone()),
                    format!("{} cannot be quoted here", &text[variable.range]),
                    refusal.to_owned(),
                ),
                (Ok(_), None) => {}
            }
        }
        CommandTemplate { parts }
    }

    fn range(
        &mut self,
        file: &str,
        value: &Value,
        range: Range<usize>,
        scope: Scope<'_>,
    ) -> Template {
        let text = &value.text[range.clone()];
        let mut template = Template { parts: Vec::new() };
        for token in tokens(text) {
            match token {
                Token::Text(range) | Token::Literal(range) => {
                    template.parts.push(Part::Text(text[range].to_owned()));
                }
                Token::Variable(mut variable) => {
                    let shift = |r: Range<usize>| r.start + range.start..r.end + range.start;
                    variable.argument = variable.argument.map(shift);
                    variable.range = shift(variable.range);
                    template
                        .parts
                        .extend(self.part(file, value, &variable, scope));
                }
            }
        }
        template
    }

    fn part(
        &mut self,
        file: &str,
        value: &Value,
        variable: &Variable,
        scope: Scope<'_>,
    ) -> Option<Part> {
        let span = value.source(variable.range.clone());
        let written = &value.text[variable.range.clone()];
        let argument = variable
            .argument
            .clone()
            .filter(|_| !is_raw(&value.text, variable));
        let name = variable.name.as_str();
        let mut refuse = |message: String, help: Option<String>| {
            self.problems.push(file, span.clone(), message, help);
            None
        };
        if scope.fixed && RESERVED.contains(&name) {
            return refuse(
                format!("{written} cannot stand here"),
                Some(
                    "this value is needed when the plan is checked: only inputs are known then"
                        .into(),
                ),
            );
        }
        let takes_argument = matches!(name, "FILE" | "FAILED_FILE");
        if argument.is_some() != takes_argument
            && (takes_argument || RESERVED.contains(&name) || self.inputs.contains_key(name))
        {
            let help = if takes_argument {
                format!(
                    "write {{{name}:{}}}",
                    if name == "FILE" { "path" } else { "task" }
                )
            } else {
                "after the colon only `raw` can stand".to_owned()
            };
            return refuse(format!("{written} is not a variable"), Some(help));
        }
        if name != "ITEM"
            && !variable.path.is_empty()
            && (RESERVED.contains(&name) || self.inputs.contains_key(name))
        {
            return refuse(format!("{written}: `{name}` has no fields"), None);
        }
        let no_item = || {
            (
                format!("{written} in a task without `foreach`"),
                Some("items are known only to a task with `- **foreach**: source`".to_owned()),
            )
        };
        match (name, argument) {
            ("BATCH_ID", _) => Some(Part::BatchId),
            ("BATCH_PATH", _) => Some(Part::BatchPath),
            ("PLAN_PATH", _) => Some(Part::PlanPath),
            ("ITEM" | "ITEMS" | "ITEMS_FILE", _) if scope.foreach.is_none() => {
                let (message, help) = no_item();
                refuse(message, help)
            }
            ("ITEM", _) if scope.batched && variable.path != ["id"] => refuse(
                format!("{written} in a task for several items"),
                Some("with `batch_size` use {ITEMS} (JSON), {ITEMS_FILE} or {ITEM.id}".to_owned()),
            ),
            ("ITEM", _) => {
                let of_path = matches!(
                    scope.foreach,
                    Some(ForeachSource::Glob(_) | ForeachSource::Lines(_))
                );
                if of_path
                    && let Some(field) = variable.path.first()
                    && (variable.path.len() > 1 || !PATH_FIELDS.contains(&field.as_str()))
                {
                    let help =
                        did_you_mean(field, PATH_FIELDS.iter().copied()).unwrap_or_else(|| {
                            "these items have `id`, `path`, `name` and `stem`".into()
                        });
                    return refuse(
                        format!("items of this source have no `{}`", variable.path.join(".")),
                        Some(help),
                    );
                }
                Some(Part::Item(variable.path.clone()))
            }
            ("ITEMS", _) => Some(Part::Items),
            ("ITEMS_FILE", _) => Some(Part::ItemsFile),
            ("FAILED_FILE", Some(range)) => {
                let task = value.text[range].to_owned();
                self.failed_files
                    .push((task.clone(), file.to_owned(), span));
                Some(Part::FailedFile(task))
            }
            ("FILE", Some(range)) if scope.prompt => {
                let path = self.range(
                    file,
                    value,
                    range,
                    Scope {
                        prompt: false,
                        ..scope
                    },
                );
                Some(Part::File(path))
            }
            ("FILE", _) => refuse(
                format!("{written} outside a prompt"),
                Some(
                    "a command reads a file itself: `$(cat path)`, or the path as an argument"
                        .into(),
                ),
            ),
            _ => self.input(file, span, written, variable),
        }
    }

    fn input(
        &mut self,
        file: &str,
        span: Range<usize>,
        written: &str,
        variable: &Variable,
    ) -> Option<Part> {
        let name = variable.name.as_str();
        self.used.insert(name.to_owned());
        if let Some(value) = self.inputs.get(name) {
            return Some(Part::Input(value.clone()));
        }
        if self.unset.contains_key(name) {
            self.problems.push(
                file,
                span,
                format!("input `{name}` has no value"),
                format!("give one with `--set {name}=VALUE`, or write `(default: VALUE)` under `## Inputs`"),
            );
            return None;
        }
        let known = RESERVED
            .iter()
            .copied()
            .chain(self.inputs.keys().map(String::as_str));
        let known = known.chain(self.unset.keys().map(String::as_str));
        let help = did_you_mean(name, known).unwrap_or_else(|| {
            format!(
                "give it with `--set {name}=VALUE`, or write {{{written}}} for the text {written}"
            )
        });
        self.problems
            .push(file, span, format!("unresolved variable {written}"), help);
        None
    }
}

impl Template {
    /// The text with inputs filled in and other variables as they are written.
    pub(crate) fn shown(&self) -> String {
        self.parts.iter().map(Part::shown).collect()
    }

    /// Whether the text is known before a batch is.
    pub(crate) fn is_known(&self) -> bool {
        self.parts
            .iter()
            .all(|part| matches!(part, Part::Text(_) | Part::Input(_)))
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().flat_map(|part| match part {
            Part::File(path) => path.parts.iter().collect(),
            other => vec![other],
        })
    }
}

impl Part {
    pub(crate) fn shown(&self) -> String {
        match self {
            Part::Text(text) | Part::Input(text) => text.clone(),
            Part::BatchId => "{BATCH_ID}".to_owned(),
            Part::BatchPath => "{BATCH_PATH}".to_owned(),
            Part::PlanPath => "{PLAN_PATH}".to_owned(),
            Part::Item(path) => {
                let fields: String = path.iter().map(|field| format!(".{field}")).collect();
                format!("{{ITEM{fields}}}")
            }
            Part::Items => "{ITEMS}".to_owned(),
            Part::ItemsFile => "{ITEMS_FILE}".to_owned(),
            Part::FailedFile(task) => format!("{{FAILED_FILE:{task}}}"),
            Part::File(path) => format!("{{FILE:{}}}", path.shown()),
        }
    }
}

fn is_raw(text: &str, variable: &Variable) -> bool {
    variable
        .argument
        .clone()
        .is_some_and(|argument| &text[argument] == "raw")
        && !matches!(variable.name.as_str(), "FILE" | "FAILED_FILE")
}
