//! Lanes, and the only moves between them.
//!
//! A task's directory is its state. [`transition`] is the whole protocol as one pure function: each
//! move of a task file in [`claim`](crate::claim) asks it where the file goes and under which name,
//! and the exhaustive model in `tests/model/` walks over the same function.
//! `docs/queue-protocol.md` holds the same table in words; a test compares the two.

use std::fmt;

use crate::name::FileName;
use crate::record::Outcome;

/// The directory families under `tasks/`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
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
    /// An attempt that ran out of GPU memory is followed by one that gets more.
    Raise,
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
pub const RULES: [Rule; 15] = [
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
        Move::Raise,
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

    /// The move that the end of an attempt asks for, once its record is there. What was cancelled
    /// goes to `retry`, from where the brain moves it on.
    pub fn after(outcome: &Outcome) -> Move {
        match outcome {
            Outcome::Succeeded => Move::Complete,
            Outcome::Failed { .. } | Outcome::Cancelled { .. } => Move::Fail,
            Outcome::Lost { .. } => Move::Requeue,
        }
    }

    /// The name that the file has after the move: the fence and the charge. Whoever knows the name
    /// before a move that ends an attempt finds no file under it afterwards.
    fn name_after(self, from: Lane, name: &FileName) -> FileName {
        match self {
            Move::Requeue | Move::Raise => name.next_attempt(false),
            Move::Retry => name.next_attempt(true),
            // The record of the attempt that failed stays; the reason for the end is the next one's.
            Move::Cancel if from == Lane::Retry => name.next_attempt(false),
            Move::Revive => {
                let mut next = name.next_attempt(false);
                next.charged = 0;
                next
            }
            Move::Release
            | Move::Withdraw
            | Move::Claim
            | Move::Complete
            | Move::Fail
            | Move::GiveUp
            | Move::CloseFailed
            | Move::CloseCancelled
            | Move::Cancel
            | Move::Reopen
            | Move::Quarantine => *name,
        }
    }
}

/// What a process holds when it makes a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// It is the brain: it holds `agents/brain/lock`.
    pub brain: bool,
    /// The lock of the agent in whose `processing/<agent>/` the file lies or comes to lie.
    pub owner: bool,
    /// The lock of the task file.
    pub file: bool,
}

impl Holding {
    /// The brain, without the file's lock.
    pub const BRAIN: Holding = Holding {
        brain: true,
        owner: false,
        file: false,
    };
    /// The owner of `processing/<agent>/`, with the file's lock.
    pub const OWNER: Holding = Holding {
        brain: false,
        owner: true,
        file: true,
    };
    /// The brain, with the file's lock.
    pub const BRAIN_LOCKED: Holding = Holding {
        brain: true,
        owner: false,
        file: true,
    };

    fn is(self, mover: Mover) -> bool {
        match mover {
            Mover::Brain => self.brain,
            // A claimant is the owner of the place that it claims into.
            Mover::Claimant | Mover::Owner => self.owner,
            Mover::Anyone => true,
        }
    }
}

/// A move that the table does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// It starts in another lane.
    #[error("{step:?} does not start in {from}")]
    From {
        /// The move.
        step: Move,
        /// Where the file lies.
        from: Lane,
    },
    /// Another has to make it.
    #[error("{step:?} is made by the {by}, and this process holds no such lock", by = format!("{by:?}").to_lowercase())]
    By {
        /// The move.
        step: Move,
        /// Who may make it.
        by: Mover,
    },
    /// It is made under the file's lock only.
    #[error("{step:?} needs the lock of the task file")]
    Unlocked {
        /// The move.
        step: Move,
    },
}

/// The protocol's transition function: where a task file that lies in `from` goes by `step`, and
/// the name that it has there. (The name after [`Move::Raise`] gets the shape of the raised need
/// besides.)
///
/// # Errors
///
/// [`Illegal`] for a move that the table does not allow from there, or not to one who holds that.
pub fn transition(
    step: Move,
    from: Lane,
    name: &FileName,
    holding: Holding,
) -> Result<(Lane, FileName), Illegal> {
    let rule = step.rule();
    if !rule.from.contains(&from) {
        return Err(Illegal::From { step, from });
    }
    if !holding.is(rule.by) {
        return Err(Illegal::By { step, by: rule.by });
    }
    if rule.locked && !holding.file {
        return Err(Illegal::Unlocked { step });
    }
    Ok((rule.to, step.name_after(from, name)))
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

    #[test]
    fn a_move_needs_its_lane_its_mover_and_its_lock() {
        let id = crate::name::TaskId::derive("b", "t", None);
        let name = FileName::first(5, 1, crate::name::Shape(7), id);
        let go = |step, from, holding| transition(step, from, &name, holding);
        assert_eq!(
            go(Move::Complete, Lane::Processing, Holding::OWNER),
            Ok((Lane::Complete, name))
        );
        let (step, from) = (Move::Complete, Lane::Queue);
        assert_eq!(
            go(step, from, Holding::OWNER),
            Err(Illegal::From { step, from })
        );
        let by = Mover::Owner;
        assert_eq!(
            go(step, Lane::Processing, Holding::BRAIN_LOCKED),
            Err(Illegal::By { step, by })
        );
        let unlocked = Holding {
            file: false,
            ..Holding::OWNER
        };
        let refused = go(step, Lane::Processing, unlocked).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "Complete needs the lock of the task file"
        );
        for step in [Move::Requeue, Move::Retry, Move::Raise, Move::Revive] {
            let holding = Holding {
                owner: true,
                ..Holding::BRAIN_LOCKED
            };
            let (_, next) = go(step, step.rule().from[0], holding).unwrap();
            assert_eq!(next.attempt, 2, "{step:?} fences");
            assert_eq!(next.charged, u32::from(step == Move::Retry), "{step:?}");
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
