//! What a task may do: each action is said, with the rule by which it is allowed or blocked.
//!
//! The lines go to the agent's log and among the attempt's output, at DEBUG what is allowed, at
//! INFO what is blocked (`EXECUTOR_LOG_LEVEL`).

use crate::Attempt;
use crate::outcome::Failure;

/// The rule until there are permission files.
const EVERYTHING: &str = "no permission file: everything is allowed";
/// How much of a command is quoted, bytes.
const QUOTE_BYTES: usize = 200;

impl Attempt<'_> {
    /// The task is about to do that.
    pub(crate) fn allowed(&mut self, what: &str) {
        let message = format!("ALLOWED: {} - {what} ({EVERYTHING})", self.task_words());
        if self.log.allowed(&message) {
            self.output.note(&message);
        }
    }

    /// The task wanted something that a rule forbids, if that is why it failed.
    pub(crate) fn say_blocked(&mut self, failure: &Failure) {
        let Some(rule) = failure.blocked_by else {
            return;
        };
        let what = one_line(&failure.reason);
        let message = format!("BLOCKED: {} - {what} ({rule})", self.task_words());
        if self.log.blocked(&message) {
            self.output.note(&message);
        }
    }

    fn task_words(&self) -> String {
        format!("{} ({})", self.spec.id.short(), one_line(&self.spec.name))
    }
}

/// A beginning of the text, in one line.
pub(crate) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: String = words
        .join(" ")
        .chars()
        .filter(|one| !one.is_control())
        .collect();
    match line.floor_char_boundary(QUOTE_BYTES) {
        end if end < line.len() => format!("{}...", &line[..end]),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_quoted_in_one_bounded_line() {
        assert_eq!(one_line("a\n  b\u{1b}[31m"), "a b[31m");
        let long = one_line(&"\u{e4}".repeat(500));
        assert!(long.len() <= QUOTE_BYTES + 3 && long.ends_with("..."));
    }
}
