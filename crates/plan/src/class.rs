//! Which class a task has, and who runs it.

use std::ops::Range;

use rigor_queue::task::Class;

use crate::draft::{Drafting, Given};
use crate::fields::Field;
use crate::infer::infer_class;
use crate::plan::{Executor, WorkTemplate};

impl<'a> Drafting<'a> {
    /// The executor and the class of a task; the likeliest class where a problem was found.
    pub(crate) fn class(
        &mut self,
        given: &Given<'a>,
        work: Option<&WorkTemplate>,
        command: &str,
    ) -> (Executor, Class) {
        let executor = self
            .scalar(given, Field::Executor, |text| match text {
                "worker" => Ok(Executor::Worker),
                "brain" => Ok(Executor::Brain),
                _ => Err("`worker` or `brain`".to_owned()),
            })
            .unwrap_or_default();
        let raw = given.fields.get(&Field::TaskClass).copied();
        let written = raw.map(|raw| {
            let text = self.variables.fixed(&raw.value).trim().to_owned();
            Written {
                class: Class::parse(&text),
                text,
                span: raw.value.span(),
                own: given.own.contains(&Field::TaskClass),
            }
        });
        let prompt = matches!(work, Some(WorkTemplate::Prompt(_)));
        let class = match executor {
            Executor::Brain => {
                self.brain_class(given, prompt, written);
                Class::Brain
            }
            Executor::Worker if prompt => {
                self.prompt_class(written);
                Class::Llm
            }
            Executor::Worker => self.command_class(given, work.is_some(), command, written),
        };
        (executor, class)
    }

    fn brain_class(&mut self, given: &Given<'a>, prompt: bool, written: Option<Written>) {
        if prompt {
            let raw = given.fields.get(&Field::Executor);
            let span = raw.map_or(given.task.span.clone(), |raw| raw.value.span());
            let help = "leave `executor` out: a prompt goes to an agent that holds a model";
            self.problem(span, "the brain answers no prompts", help.to_owned());
            return;
        }
        // A class that the plan gives to all its tasks is meant for the workers'.
        if let Some(Written {
            class,
            text,
            span,
            own: true,
        }) = written
            && class != Some(Class::Brain)
        {
            let message = format!("`executor: brain` with `task_class: {text}`");
            let help = "leave `task_class` out, or let a worker run it";
            self.problem(span, message, help.to_owned());
        }
    }

    fn prompt_class(&mut self, written: Option<Written>) {
        if let Some(Written {
            class,
            text,
            span,
            own: true,
        }) = written
            && class != Some(Class::Llm)
        {
            let help = "a prompt needs the model: leave `task_class` out";
            self.problem(
                span,
                format!("a prompt in a task of class `{text}`"),
                help.to_owned(),
            );
        }
    }

    fn command_class(
        &mut self,
        given: &Given<'a>,
        works: bool,
        command: &str,
        written: Option<Written>,
    ) -> Class {
        let likely = infer_class(command);
        match written {
            Some(Written {
                class: Some(Class::Brain),
                span,
                ..
            }) => {
                let help = "write `- **executor**: brain` if the brain is to run it";
                let message = "`task_class: brain` without `executor: brain`";
                self.problem(span, message, help.to_owned());
            }
            Some(Written {
                class: Some(Class::Meta),
                span,
                ..
            }) => {
                let help = "models are placed by need, or by `rigor load AGENT MODEL`";
                let message = "a plan's task cannot be of class `meta`: the brain makes those";
                self.problem(span, message, help.to_owned());
            }
            Some(Written {
                class: Some(class), ..
            }) => return class,
            // A task that does nothing looks like nothing; it was reported.
            written if works && !self.sources.infer => {
                let (message, span) = match written {
                    Some(Written { text, span, .. }) => {
                        (format!("invalid `task_class`: `{text}`"), span)
                    }
                    None => {
                        let message = format!("task `{}` has no `task_class`", given.task.id);
                        (message, given.task.span.clone())
                    }
                };
                let help = format!(
                    "the command looks like `{likely}`: write `- **task_class**: {likely}`, or accept it with --infer"
                );
                self.problem(span, message, help);
            }
            _ => {}
        }
        likely
    }
}

/// A class as a plan gives it.
struct Written {
    /// None for a text that is no class.
    class: Option<Class>,
    text: String,
    span: Range<usize>,
    /// Whether the task itself says so, or the plan for all tasks.
    own: bool,
}
