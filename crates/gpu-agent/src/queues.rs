//! What is queued, by class, and what each shape of it needs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rigor_policy::admission::{Candidate, Needs, RESERVE_AFTER_S, VramNeed};
use rigor_queue::claim;
use rigor_queue::heartbeat::{Refusal, Verdict};
use rigor_queue::index::Index;
use rigor_queue::name::{FileName, Shape};
use rigor_queue::record::RaisedNeed;
use rigor_queue::records;
use rigor_queue::rig::{Place, Rig};
use rigor_queue::task::{Class, TaskSpec, Vram, Work};
use rigor_queue::{QueueError, Result};

use crate::measured::Measured;

/// The classes that an agent looks at.
pub(crate) const CLASSES: [Class; 4] = [Class::Meta, Class::Llm, Class::Script, Class::Cpu];

/// Files that others hold are not looked at more often than this, however many there are.
const BUSY_APART: Duration = Duration::from_millis(20);

/// Shapes that are remembered beyond those in the queue.
const CACHE_MAX: usize = 4096;

/// The queue as this agent sees it.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    indexes: BTreeMap<Class, Index>,
    shapes: HashMap<(Class, Shape), ShapeInfo>,
    /// Since when a shape has been refused for lack of room alone.
    passed_over: HashMap<(Class, Shape), Instant>,
    /// When candidates were last listed: what has become due since is still to be looked at.
    listed: Option<Instant>,
}

/// What a task of a shape says of its needs.
#[derive(Clone, Debug)]
pub(crate) struct ShapeInfo {
    cpus: u32,
    on: Vec<String>,
    model: Option<String>,
    min_tier: Option<u32>,
    vram: Vram,
    /// In place of `vram`.
    raised: Option<RaisedNeed>,
    measured_as: String,
    meta: Option<Meta>,
}

#[derive(Clone, Debug)]
enum Meta {
    Load {
        model: String,
        eligible: Vec<String>,
        /// GPUs that it is loaded over.
        gpus: u32,
        expires: Timestamp,
    },
    Lend {
        agent: String,
        to: String,
        model: String,
        gpus: u32,
        expires: Timestamp,
    },
    Unload {
        agent: String,
    },
}

/// A candidate and the file that stands for it; none for what others hold.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) candidate: Candidate,
    pub(crate) key: Option<(Class, FileName)>,
}

/// What a need is computed from besides the task.
pub(crate) struct Knowledge<'a> {
    pub(crate) agent: &'a str,
    pub(crate) measured: &'a Measured,
    pub(crate) model_need: &'a dyn Fn(&str) -> VramNeed,
    /// What the runtime of another agent has of this one's GPU, MiB.
    pub(crate) foreign_model_mb: u64,
}

/// What a model over so many GPUs needs of each, beside what it has of this one already.
fn share(whole: VramNeed, gpus: u32, has_mb: u64) -> VramNeed {
    match whole {
        VramNeed::Mb(mb) => {
            VramNeed::Mb(mb.div_ceil(u64::from(gpus.max(1))).saturating_sub(has_mb))
        }
        VramNeed::Alone => VramNeed::Alone,
    }
}

impl ShapeInfo {
    pub(crate) fn of(spec: &TaskSpec) -> ShapeInfo {
        let meta = match &spec.work {
            Work::LoadLlm {
                model,
                eligible,
                lenders,
                expires,
            } => Some(Meta::Load {
                model: model.clone(),
                eligible: eligible.clone(),
                gpus: 1 + lenders.len() as u32,
                expires: *expires,
            }),
            Work::LendGpu {
                agent,
                to,
                model,
                gpus,
                expires,
            } => Some(Meta::Lend {
                agent: agent.clone(),
                to: to.clone(),
                model: model.clone(),
                gpus: *gpus,
                expires: *expires,
            }),
            Work::UnloadLlm { agent, .. } => Some(Meta::Unload {
                agent: agent.clone(),
            }),
            Work::Command { .. } | Work::Prompt(_) | Work::Plan(_) => None,
        };
        ShapeInfo {
            cpus: spec.cpus,
            on: spec.on.clone(),
            model: spec.model.clone(),
            min_tier: spec.min_tier,
            vram: spec.vram,
            raised: None,
            measured_as: spec.measured_as(),
            meta,
        }
    }

    pub(crate) fn needs(&self, class: Class, with: &Knowledge<'_>) -> Needs {
        if !self.on.is_empty() && !self.on.iter().any(|agent| agent == with.agent) {
            return Needs::Elsewhere {
                on: self.on.clone(),
            };
        }
        match (&self.meta, class) {
            (
                Some(Meta::Load {
                    model,
                    eligible,
                    gpus,
                    expires,
                }),
                _,
            ) => Needs::Load {
                model: model.clone(),
                eligible: eligible.clone(),
                expired: *expires <= Timestamp::now(),
                vram: share((with.model_need)(model), *gpus, 0),
            },
            (
                Some(Meta::Lend {
                    agent,
                    to,
                    model,
                    gpus,
                    expires,
                }),
                _,
            ) => Needs::Lend {
                agent: agent.clone(),
                to: to.clone(),
                model: model.clone(),
                expired: *expires <= Timestamp::now(),
                vram: share((with.model_need)(model), *gpus, with.foreign_model_mb),
            },
            (Some(Meta::Unload { agent }), _) => Needs::Unload {
                agent: agent.clone(),
            },
            (None, Class::Llm) => Needs::Llm {
                model: self.model.clone(),
                min_tier: self.min_tier,
            },
            (None, Class::Script) => Needs::Script {
                cpus: self.cpus,
                vram: match self.raised {
                    Some(raised) => with.measured.raised(raised, self.vram, &self.measured_as),
                    None => with.measured.need(self.vram, &self.measured_as),
                },
            },
            (None, Class::Cpu | Class::Meta | Class::Brain) => Needs::Cpu { cpus: self.cpus },
        }
    }
}

impl Queues {
    pub(crate) fn index(&mut self, class: Class) -> &mut Index {
        self.indexes.entry(class).or_default()
    }

    /// How many are queued, of the classes of which any are.
    pub(crate) fn counts(&self) -> Vec<(Class, usize)> {
        let counts = self
            .indexes
            .iter()
            .map(|(class, index)| (*class, index.len()));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    pub(crate) fn total(&self) -> usize {
        self.indexes.values().map(Index::len).sum()
    }

    /// Every queued shape, in claim order.
    pub(crate) fn shapes(&self, now: Instant) -> Vec<Shape> {
        let mut first: Vec<FileName> = self
            .indexes
            .values()
            .flat_map(|index| index.shapes(now))
            .map(|(_, _, first)| first)
            .collect();
        first.sort_unstable();
        first.into_iter().map(|name| name.shape).collect()
    }

    /// Reads the directories anew.
    pub(crate) fn rescan(&mut self, rig: &Rig) -> Result<()> {
        for class in CLASSES {
            let listing = rig.list(Place::Queue(class))?;
            self.index(class).replace(listing.names);
        }
        Ok(())
    }

    /// When a file that another held is to be looked at again.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let since = self.listed.unwrap_or(now);
        let due = self
            .indexes
            .values()
            .filter_map(|index| index.due(since))
            .min()?;
        Some(due.max(now + BUSY_APART))
    }

    /// The candidates in claim order. A shape that is seen for the first time is read from its
    /// first file; files that cannot be trusted are left to the claim, which quarantines them.
    pub(crate) fn candidates(
        &mut self,
        rig: &Rig,
        now: Instant,
        with: &Knowledge<'_>,
    ) -> Result<Vec<Listed>> {
        let mut listed: Vec<Listed> = Vec::new();
        let mut contended: Vec<Listed> = Vec::new();
        self.listed = Some(now);
        for class in CLASSES {
            let mut seen = 0;
            for (shape, count, first) in self.index(class).shapes(now) {
                seen += count;
                let Some(info) = self.info(rig, class, &first)? else {
                    continue;
                };
                let needs = info.needs(class, with);
                let passed = self.passed_over.get(&(class, shape));
                let passed_over_s = passed.map_or(0, |since| (now - *since).as_secs());
                let candidate = Candidate {
                    class,
                    count,
                    needs,
                    passed_over_s,
                };
                listed.push(Listed {
                    candidate,
                    key: Some((class, first)),
                });
            }
            let count = self.index(class).len().saturating_sub(seen);
            if count > 0 {
                let candidate = Candidate {
                    class,
                    count,
                    needs: Needs::Contended,
                    passed_over_s: 0,
                };
                contended.push(Listed {
                    candidate,
                    key: None,
                });
            }
        }
        listed.sort_by_key(|listed| listed.key.map(|(_, name)| name));
        listed.append(&mut contended);
        Ok(listed)
    }

    /// Remembers which shapes were refused for lack of room, for the reservation of room.
    pub(crate) fn note_refusals(
        &mut self,
        keys: &[Option<(Class, FileName)>],
        refusals: &[Option<Verdict>],
        now: Instant,
    ) {
        let mut waiting = HashSet::new();
        for (key, refusal) in keys.iter().zip(refusals) {
            if let (Some((class, name)), Some(Refusal::VramShort | Refusal::CpuSlotsFull)) =
                (key, refusal.as_ref().map(|it| it.code))
            {
                waiting.insert((*class, name.shape));
                self.passed_over.entry((*class, name.shape)).or_insert(now);
            }
        }
        self.passed_over.retain(|key, _| waiting.contains(key));
    }

    /// When a shape that waits for room begins to reserve it.
    pub(crate) fn reserve_due(&self) -> Option<Instant> {
        let after = Duration::from_secs(RESERVE_AFTER_S);
        self.passed_over.values().map(|since| *since + after).min()
    }

    fn info(&mut self, rig: &Rig, class: Class, first: &FileName) -> Result<Option<&ShapeInfo>> {
        let key = (class, first.shape);
        if !self.shapes.contains_key(&key) {
            let info = match claim::peek(rig, Place::Queue(class), first) {
                Ok(Some(spec)) => match records::raised_need(rig, &spec, first) {
                    Ok(raised) => ShapeInfo {
                        raised,
                        ..ShapeInfo::of(&spec)
                    },
                    // The claim, which looks again, quarantines it.
                    Err(QueueError::Untrusted { .. }) => ShapeInfo::of(&spec),
                    Err(error) => return Err(error),
                },
                Ok(None) => {
                    self.index(class).remove(first);
                    return Ok(None);
                }
                Err(QueueError::Untrusted { why, .. }) => {
                    self.quarantine(rig, class, first, &why)?;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            self.forget_unqueued_shapes();
            self.shapes.insert(key, info);
        }
        Ok(self.shapes.get(&key))
    }

    /// Looks at the file under its lock, which moves it to quarantine if it is as bad as it looked.
    fn quarantine(&mut self, rig: &Rig, class: Class, name: &FileName, why: &str) -> Result<()> {
        match claim::candidate(rig, class, name)? {
            claim::Candidate::Quarantined { reason } => {
                tracing::warn!(task = %name.id, "Quarantined task file {name}: {reason}");
                self.index(class).remove(name);
            }
            claim::Candidate::LostRace => self.index(class).remove(name),
            claim::Candidate::LockBusy | claim::Candidate::Ready(_) => {
                tracing::debug!(task = %name.id, "Not read yet: {name}: {why}");
                self.index(class).defer(name, Instant::now());
            }
        }
        Ok(())
    }

    fn forget_unqueued_shapes(&mut self) {
        if self.shapes.len() < CACHE_MAX {
            return;
        }
        let now = Instant::now();
        let queued: HashSet<(Class, Shape)> = self
            .indexes
            .iter()
            .flat_map(|(class, index)| {
                index
                    .shapes(now)
                    .into_iter()
                    .map(|(shape, ..)| (*class, shape))
            })
            .collect();
        self.shapes.retain(|key, _| queued.contains(key));
    }
}
