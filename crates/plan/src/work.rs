//! What a task does: a command, or a prompt.

use rigor_queue::task::TooLong;

use crate::check::unreadable;
use crate::draft::{Drafting, Given};
use crate::fields::Field;
use crate::markdown::{RawField, Value};
use crate::plan::{PromptTemplate, Template, WorkTemplate};
use crate::variables::Scope;

impl<'a> Drafting<'a> {
    /// What the task does, and the text of its command where it has one.
    pub(crate) fn work(
        &mut self,
        given: &Given<'a>,
        scope: Scope<'_>,
    ) -> (Option<WorkTemplate>, String) {
        let present: Vec<&RawField> = given
            .fields
            .iter()
            .filter(|(field, _)| field.is_work())
            .map(|(_, raw)| *raw)
            .collect();
        if let [first, second, ..] = present.as_slice() {
            let message = format!("both `{}` and `{}`", first.name, second.name);
            self.problem(
                second.name_span.clone(),
                message,
                "a task does one thing: keep one".to_owned(),
            );
        }
        if present.is_empty() && !given.own.iter().any(|field| field.is_work()) {
            let message = format!("task `{}` does nothing", given.task.id);
            let help = "give it a `command`, a `prompt` or a `prompt_file`".to_owned();
            self.problem(given.task.span.clone(), message, help);
        }
        if let Some(raw) = given.fields.get(&Field::Command) {
            for field in [
                Field::System,
                Field::Temperature,
                Field::MaxTokens,
                Field::Seed,
                Field::TooLong,
                Field::Output,
            ] {
                if let Some(extra) = given.own(field) {
                    let message = format!("`{}` in a task with a command", field.name());
                    let help = match field {
                        Field::Output => {
                            "it gets a prompt's answer; name a command's files in `produces`"
                        }
                        _ => "it is for prompts",
                    };
                    self.problem(extra.name_span.clone(), message, help.to_owned());
                }
            }
            let command = self.variables.command(&raw.value, scope);
            return (Some(WorkTemplate::Command(command)), raw.value.text.clone());
        }
        let scope = Scope {
            prompt: true,
            ..scope
        };
        let user = if let Some(raw) = given.fields.get(&Field::Prompt) {
            self.variables
                .template(self.sources.plan_file, &raw.value, scope)
        } else if let Some(raw) = given.fields.get(&Field::PromptFile) {
            let Some(user) = self.prompt_file(raw, scope) else {
                return (None, String::new());
            };
            user
        } else {
            return (None, String::new());
        };
        let prompt = PromptTemplate {
            user,
            system: self.template(given, Field::System, scope),
            temperature: self.scalar(given, Field::Temperature, |text| {
                text.parse()
                    .ok()
                    .filter(|t| (0.0..=5.0).contains(t))
                    .ok_or_else(|| "a number from 0 to 5".to_owned())
            }),
            max_tokens: self.number(given, Field::MaxTokens, 1..=u32::MAX),
            seed: self.number(given, Field::Seed, i64::MIN..=i64::MAX),
            too_long: self
                .scalar(given, Field::TooLong, |text| match text {
                    "fail" => Ok(TooLong::Fail),
                    "truncate" => Ok(TooLong::Truncate),
                    _ => Err("`fail` or `truncate`".to_owned()),
                })
                .unwrap_or_default(),
            output: self.template(
                given,
                Field::Output,
                Scope {
                    prompt: false,
                    ..scope
                },
            ),
        };
        (Some(WorkTemplate::Prompt(Box::new(prompt))), String::new())
    }

    fn prompt_file(&mut self, raw: &RawField, scope: Scope<'_>) -> Option<Template> {
        let path = self.variables.fixed(&raw.value).trim().to_owned();
        let text = match self.prompt_files.get(&path) {
            Some(text) => text.clone(),
            None => {
                let Some(text) = (self.sources.files)(&path) else {
                    let message = format!("prompt file `{path}` cannot be read");
                    let help =
                        "its path is relative to the plan's folder, its text UTF-8".to_owned();
                    self.problem(raw.value.span(), message, help);
                    return None;
                };
                self.variables.problems.add_file(&path, &text);
                self.prompt_files.insert(path.clone(), text.clone());
                text
            }
        };
        if let Some((at, message)) = unreadable(&text) {
            self.variables.problems.push(&path, at..at, message, None);
            return None;
        }
        Some(self.variables.template(&path, &Value::file(&text), scope))
    }
}
