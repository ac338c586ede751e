//! `logs/brain_decisions.log`: one JSON object a line for everything that the brain decides, and
//! `brain/placement.jsonl`: every placement decision with all that it was made from.

use rigor_policy::placement::{Decision, POLICY, Record, SCHEMA, View};
use rigor_telemetry::JsonLog;
use serde_json::{Value, json};

use crate::place::gist;

/// The types of entries, as docs/logging.md lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A submission was taken up.
    PlanRead,
    /// It is a plan.
    PlanParsed,
    /// It is none.
    PlanRejected,
    /// Task files were written.
    TaskCreated,
    /// Tasks became claimable.
    TaskReleased,
    /// A foreach was expanded.
    ForeachExpand,
    /// A model goes somewhere, or does not.
    ResourceDecision,
    /// A load or unload task was written or withdrawn.
    ResourceTask,
    /// What loads came to, when their work is over.
    ResourceOutcome,
    /// The monitor line, with all its figures.
    Monitor,
    /// An agent died.
    AgentDead,
    /// What it left was taken back.
    OrphanRequeue,
    /// A failed attempt is followed by another.
    Retry,
    /// A failed attempt was the last, or a task was cancelled.
    Abandon,
    /// A load that nobody took.
    LoadStale,
    /// A task is processing and quiet for too long.
    Stuck,
    /// An attempt was told to end.
    AbortSignal,
    /// An attempt that had been told to end was killed.
    ForceKill,
    /// Only a person can mend it.
    Escalation,
    /// A batch ended well.
    BatchComplete,
    /// A batch ended otherwise.
    BatchFailed,
}

impl Entry {
    fn as_str(self) -> &'static str {
        match self {
            Entry::PlanRead => "PLAN_READ",
            Entry::PlanParsed => "PLAN_PARSED",
            Entry::PlanRejected => "PLAN_REJECTED",
            Entry::TaskCreated => "TASK_CREATED",
            Entry::TaskReleased => "TASK_RELEASED",
            Entry::ForeachExpand => "FOREACH_EXPAND",
            Entry::ResourceDecision => "RESOURCE_DECISION",
            Entry::ResourceTask => "RESOURCE_TASK",
            Entry::ResourceOutcome => "RESOURCE_OUTCOME",
            Entry::Monitor => "MONITOR",
            Entry::AgentDead => "AGENT_DEAD",
            Entry::OrphanRequeue => "ORPHAN_REQUEUE",
            Entry::Retry => "RETRY",
            Entry::Abandon => "ABANDON",
            Entry::LoadStale => "LOAD_STALE",
            Entry::Stuck => "STUCK",
            Entry::AbortSignal => "ABORT_SIGNAL",
            Entry::ForceKill => "FORCE_KILL",
            Entry::Escalation => "ESCALATION",
            Entry::BatchComplete => "BATCH_COMPLETE",
            Entry::BatchFailed => "BATCH_FAILED",
        }
    }
}

/// The decision log and the placement journal.
#[derive(Debug)]
pub(crate) struct Journal {
    log: JsonLog,
    placement: JsonLog,
    /// What was journaled last of placement, without its numbers, and from what.
    placed: Option<(Vec<String>, View)>,
}

impl Journal {
    /// Appends to the decision log and to the placement journal.
    pub(crate) fn new(log: JsonLog, placement: JsonLog) -> Journal {
        Journal {
            log,
            placement,
            placed: None,
        }
    }

    /// A placement decision and what it was made from: journaled when it asks for a load, or is
    /// another one than before in more than its numbers.
    pub(crate) fn decided(&mut self, view: &View, decisions: &[Decision]) {
        let gists: Vec<String> = decisions.iter().map(|it| gist(&it.words())).collect();
        let loads = decisions
            .iter()
            .any(|decision| matches!(decision, Decision::Load { .. }));
        let known = self.placed.as_ref();
        if known.is_some_and(|(said, of)| of == view || (!loads && *said == gists)) {
            return;
        }
        if known.is_none() && decisions.is_empty() {
            return;
        }
        self.placement.append(&Record {
            schema: SCHEMA,
            policy: POLICY,
            at: jiff::Timestamp::now(),
            view: view.clone(),
            decisions: decisions.to_vec(),
        });
        self.placed = Some((gists, view.clone()));
    }

    /// One decision.
    pub(crate) fn write(&mut self, entry: Entry, message: &str, details: Value) {
        self.log.append(&json!({
            "timestamp": jiff::ZonedDateTime::now().strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string(),
            "type": entry.as_str(),
            "message": message,
            "details": details,
        }));
    }
}
