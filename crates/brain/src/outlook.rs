//! What the brain alone knows of why agents are idle, told to agents and displays: the outlook, and
//! the brain's own journal of work that waits.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use jiff::Timestamp;
use rigor_queue::outlook::{self, Outlook, StuckTask};
use rigor_queue::reasons::{Cause, Reason, ReasonLog};
use rigor_queue::rig::BRAIN;
use rigor_queue::task::Class;

use crate::agents::Agents;
use crate::batch::Batch;
use crate::context::Context;
use crate::place::Placer;

/// It is replaced at most so often.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// What waits is looked at, at most so often.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// So many tasks that wait are named, the others counted.
const NAMED_MOST: usize = 3;

/// What was told last.
#[derive(Debug, Default)]
pub(crate) struct Teller {
    log: Option<ReasonLog>,
    told: Option<Outlook>,
    looked: Option<Instant>,
    written: Option<Instant>,
}

/// Tasks of a batch that wait for something besides an agent.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// For dependencies, their turn or a release, by class.
    pub by_class: BTreeMap<Class, usize>,
    /// Failed attempts whose next step is not due.
    pub retry: usize,
    /// What script and llm tasks wait for, in words.
    pub words: Vec<String>,
}

impl Teller {
    /// Tells what has changed. Returns when it wants to be called again, if there is more to tell.
    pub(crate) fn tell(
        &mut self,
        brain: &Context,
        batches: &BTreeMap<String, Batch>,
        agents: &Agents,
        placer: &Placer,
        stuck: &[StuckTask],
        now: Instant,
    ) -> Result<Option<Instant>> {
        if let Some(due) = self
            .looked
            .map(|at| at + LOOK_EVERY)
            .filter(|due| *due > now)
        {
            return Ok(Some(due));
        }
        self.looked = Some(now);
        let mut next = Outlook {
            schema: 1,
            models: placer.outlook(brain, agents),
            never: brain.never.clone(),
            stuck: stuck.to_vec(),
            ..Outlook::default()
        };
        let mut words = Vec::new();
        for batch in batches.values() {
            let waiting = batch.waiting();
            for (class, count) in waiting.by_class {
                *next.waiting.entry(class).or_default() += count;
            }
            next.retry += waiting.retry;
            words.extend(waiting.words);
            if batch.graph.is_held() {
                next.held.push(batch.id.clone());
            }
        }
        let noted = self.note(brain, &words);
        let due = self.write(brain, next, now)?;
        noted?;
        Ok(due)
    }

    /// Into the brain's own journal: whether work for GPUs waits that no agent can see.
    fn note(&mut self, brain: &Context, words: &[String]) -> Result<()> {
        let log = match &mut self.log {
            Some(log) => log,
            None => self.log.insert(ReasonLog::open(&brain.rig, BRAIN)?),
        };
        let cause = if words.is_empty() {
            Cause::NoWork
        } else {
            Cause::WaitingDeps
        };
        log.note(Reason {
            since: Timestamp::now(),
            cause,
            code: None,
            detail: some_of(words),
            batches: Vec::new(),
        })?;
        Ok(())
    }

    fn write(&mut self, brain: &Context, next: Outlook, now: Instant) -> Result<Option<Instant>> {
        let same = self.told.as_ref().is_some_and(|told| {
            let at = next.at;
            Outlook { at, ..told.clone() } == next
        });
        if same {
            return Ok(None);
        }
        if let Some(due) = self
            .written
            .map(|at| at + WRITE_EVERY)
            .filter(|due| *due > now)
        {
            return Ok(Some(due));
        }
        let stamped = Outlook {
            at: Timestamp::now(),
            ..next.clone()
        };
        outlook::write(&brain.rig, &stamped)?;
        self.written = Some(now);
        self.told = Some(next);
        Ok(None)
    }
}

fn some_of(words: &[String]) -> String {
    let mut named = words
        .iter()
        .take(NAMED_MOST)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if words.len() > NAMED_MOST {
        named.push_str(&format!(" and {} more", words.len() - NAMED_MOST));
    }
    named
}
