//! Lanes, and the only moves between them.
//!
//! A task's directory is its state. `docs/queue-protocol.md` holds the same table in words; a
//! test compares the two.

use std::fmt;

/// The directory families under `tasks/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each is a row of docs/queue-protocol.md")]
pub enum Lane {
    Waiting,
    Queue,
    Processing,
    Retry,
    Complete,
    Failed,
    Cancelled,
    Quarantine,
}

impl Lane {
    /// Every lane, in the order of a task's life.
    pub const ALL: [Lane; 8] = [
        Lane::Waiting,
        Lane::Queue,
        Lane::Processing,
        Lane::Retry,
        Lane::Complete,
        Lane::Failed,
        Lane::Cancelled,
        Lane::Quarantine,
    ];

    /// The name of its directory.
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::Waiting => "waiting",
            Lane::Queue => "queue",
            Lane::Processing => "processing",
            Lane::Retry => "retry",
            Lane::Complete => "complete",
            Lane::Failed => "failed",
            Lane::Cancelled => "cancelled",
            Lane::Quarantine => "quarantine",
        }
    }

    /// Nothing but an operator moves a task out of it.
    pub fn is_terminal(self) -> bool {
        match self {
            Lane::Complete | Lane::Failed | Lane::Cancelled | Lane::Quarantine => true,
            Lane::Waiting | Lane::Queue | Lane::Processing | Lane::Retry => false,
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The moves between lanes. Each is one rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Move {
    /// A task whose dependencies are met becomes claimable.
    Release,
    /// A batch is held: a task that nobody has claimed goes back.
    Withdraw,
    /// An agent takes a task.
    Claim,
    /// The attempt succeeded.
    Complete,
    /// The attempt failed; the brain decides what follows.
    Fail,
    /// The attempt was lost through no fault of the task: the next one is queued.
    Requeue,
    /// A failed attempt is followed by another.
    Retry,
    /// A failed attempt was the last.
    GiveUp,
    /// The batch of a plan (a task of the brain's) ended with failures.
    CloseFailed,
    /// The batch of a plan was cancelled.
    CloseCancelled,
    /// It will not be done.
    Cancel,
    /// An operator wants it after all.
    Revive,
    /// An operator reopens the batch of a plan.
    Reopen,
    /// It cannot be read or trusted.
    Quarantine,
}

/// Who may make a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mover {
    /// The brain alone.
    Brain,
    /// The claimant (an agent, or the brain for its own class).
    Claimant,
    /// The owner of `processing/<agent>/`: the holder of that agent's lock.
    Owner,
    /// Whoever finds it.
    Anyone,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The move.
    pub step: Move,
    /// Lanes it may start from.
    pub from: &'static [Lane],
    /// The lane it ends in.
    pub to: Lane,
    /// Who may make it.
    pub by: Mover,
    /// The mover holds the task file's lock.
    pub locked: bool,
}

/// The whole protocol: every move that exists.
pub const RULES: [Rule; 14] = [
    rule(
        Move::Release,
        &[Lane::Waiting],
        Lane::Queue,
        Mover::Brain,
        false,
    ),
    rule(
        Move::Withdraw,
        &[Lane::Queue],
        Lane::Waiting,
        Mover::Brain,
        true,
    ),
    rule(
        Move::Claim,
        &[Lane::Queue],
        Lane::Processing,
        Mover::Claimant,
        true,
    ),
    rule(
        Move::Complete,
        &[Lane::Processing],
        Lane::Complete,
        Mover::Owner,
        true,
    ),
    rule(
        Move::Fail,
        &[Lane::Processing],
        Lane::Retry,
        Mover::Owner,
        true,
    ),
    rule(
        Move::Requeue,
        &[Lane::Processing],
        Lane::Queue,
        Mover::Owner,
        true,
    ),
    rule(
        Move::Retry,
        &[Lane::Retry],
        Lane::Queue,
        Mover::Brain,
        false,
    ),
    rule(
        Move::GiveUp,
        &[Lane::Retry],
        Lane::Failed,
        Mover::Brain,
        false,
    ),
    rule(
        Move::CloseFailed,
        &[Lane::Processing],
        Lane::Failed,
        Mover::Brain,
        true,
    ),
    rule(
        Move::CloseCancelled,
        &[Lane::Processing],
        Lane::Cancelled,
        Mover::Brain,
        true,
    ),
    rule(
        Move::Cancel,
        &[Lane::Waiting, Lane::Queue, Lane::Retry],
        Lane::Cancelled,
        Mover::Brain,
        true,
    ),
    rule(
        Move::Revive,
        &[Lane::Failed, Lane::Cancelled],
        Lane::Waiting,
        Mover::Brain,
        false,
    ),
    rule(
        Move::Reopen,
        &[Lane::Complete, Lane::Failed, Lane::Cancelled],
        Lane::Processing,
        Mover::Brain,
        true,
    ),
    rule(
        Move::Quarantine,
        &[Lane::Waiting, Lane::Queue, Lane::Processing, Lane::Retry],
        Lane::Quarantine,
        Mover::Anyone,
        false,
    ),
];

const fn rule(step: Move, from: &'static [Lane], to: Lane, by: Mover, locked: bool) -> Rule {
    Rule {
        step,
        from,
        to,
        by,
        locked,
    }
}

impl Move {
    /// The move's row.
    pub fn rule(self) -> &'static Rule {
        let found = RULES.iter().find(|rule| rule.step == self);
        found.expect("every move has a row: held by the test `every_move_has_one_row`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_move_has_one_row() {
        for (n, rule) in RULES.iter().enumerate() {
            assert_eq!(
                RULES.iter().position(|other| other.step == rule.step),
                Some(n)
            );
            assert!(
                !rule.from.contains(&rule.to),
                "{:?} leads nowhere",
                rule.step
            );
        }
    }

    /// docs/queue-protocol.md holds the same table: `| Claim | queue | processing | claimant | yes |`.
    #[test]
    fn the_document_says_the_same() {
        let document = include_str!("../../../docs/queue-protocol.md");
        let ours: Vec<String> = RULES
            .iter()
            .map(|rule| {
                let from: Vec<&str> = rule.from.iter().map(|lane| lane.as_str()).collect();
                format!(
                    "| {:?} | {} | {} | {} | {} |",
                    rule.step,
                    from.join(", "),
                    rule.to,
                    format!("{:?}", rule.by).to_lowercase(),
                    if rule.locked { "yes" } else { "no" }
                )
            })
            .collect();
        let theirs: Vec<&str> = document
            .lines()
            .skip_while(|line| *line != "<!-- moves -->")
            .skip(1)
            .take_while(|line| *line != "<!-- /moves -->")
            .filter(|line| line.starts_with("| ") && !line.starts_with("| move"))
            .collect();
        assert_eq!(
            ours, theirs,
            "the table between <!-- moves --> and <!-- /moves -->"
        );
    }
}
