//! A decision as it is journaled, and what is different when it is made again.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Decision, View, decide};

/// The version of the form of a [`Record`].
pub const SCHEMA: u32 = 1;
/// The version of the rules: it rises with every change after which [`decide`] may answer otherwise.
pub const POLICY: u32 = 3;

/// One decision with all that it was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// [`POLICY`] of who decided.
    pub policy: u32,
    /// When (for people).
    pub at: Timestamp,
    /// What it was made from.
    pub view: View,
    /// What was decided.
    pub decisions: Vec<Decision>,
}

impl Record {
    /// Decides again and says what is different, in words; empty: nothing.
    pub fn differences(&self) -> Vec<String> {
        let again = decide(&self.view);
        let mut words = Vec::new();
        let most = self.decisions.len().max(again.len());
        for at in 0..most {
            let (was, is) = (self.decisions.get(at), again.get(at));
            if was == is {
                continue;
            }
            let said = |decision: Option<&Decision>| {
                decision.map_or_else(|| "nothing".to_owned(), Decision::words)
            };
            words.push(match (was, is) {
                // They read the same: the numbers behind the words are others.
                (Some(was), Some(is)) if was.words() == is.words() => {
                    format!("recorded {was:?}; recomputed {is:?}")
                }
                _ => format!("recorded: {}; recomputed: {}", said(was), said(is)),
            });
        }
        words
    }
}

impl Decision {
    /// In one line.
    pub fn words(&self) -> String {
        match self {
            Decision::Load {
                model,
                count,
                eligible,
                reason,
                ..
            } => format!(
                "load {model} on {count} of {}: {reason}",
                eligible.join(", ")
            ),
            Decision::Unload {
                agent,
                next,
                reason,
            } => {
                let next = next
                    .as_ref()
                    .map_or_else(String::new, |next| format!(" for {next}"));
                format!("unload {agent}{next}: {reason}")
            }
            Decision::Keep { model, reason } => format!("keep {model}: {reason}"),
            Decision::Split { step } => step.words(),
            Decision::Stranded { model, reason } => format!("{model} is stranded: {reason}"),
        }
    }
}
