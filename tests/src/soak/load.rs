//! What the rig works on meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rigor_queue::claim;
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::rig::Place;
use rigor_queue::task::Class;
use serde_json::Value;

use super::draw::{Draws, Stream, around, milliseconds, one};
use super::faults::Fault;
use super::plans::{self, Kind, Plan, Promise};
use super::{Options, draw};
use crate::{Output, Rig};

/// Batches that are open at a time.
const OPEN_MOST: usize = 12;
/// So many of them are named where it is told how far it is.
const SHOWN_MOST: usize = 3;
/// Between two submissions.
const EVERY: Duration = Duration::from_millis(700);
/// Between two looks at which batches are over.
const LOOK: Duration = Duration::from_secs(1);
/// A submission that was refused (the disk is full) is tried again after this.
const AGAIN: Duration = Duration::from_millis(500);
/// From a submission to what an operator then asks for, milliseconds.
const ASKED_MS: std::ops::Range<u64> = 200..4_000;
/// A submission that is killed has so long, milliseconds.
const SUBMIT_MS: std::ops::Range<u64> = 0..120;

/// How a plan is submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Plain,
    /// Under a key, twice at the same moment.
    Twice,
    /// Under a key; the first time it is killed, then it is submitted again.
    Killed,
}

const WAYS: [Way; 8] = [
    Way::Plain,
    Way::Plain,
    Way::Plain,
    Way::Plain,
    Way::Twice,
    Way::Killed,
    Way::Killed,
    Way::Killed,
];

/// A batch whose submission was acknowledged.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) plan: Plan,
    pub(super) id: String,
    /// Tasks whose files were damaged: these and what depends on them cannot be complete.
    pub(super) damaged: BTreeSet<TaskId>,
    /// What an operator asks for, and when.
    asks: Option<(&'static str, Instant)>,
    /// An operator asked for failed tasks again.
    mended: bool,
}

impl Batch {
    /// A file that the brain writes when the batch is over.
    pub(super) fn summary(&self) -> Option<Value> {
        let dir = self.plan.dir.join("history").join(&self.id);
        let text = std::fs::read(dir.join("RUN_SUMMARY.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Every record of its attempts, as the brain wrote them down beside the summary.
    pub(super) fn records(&self) -> Vec<Value> {
        let dir = self.plan.dir.join("history").join(&self.id);
        let text = std::fs::read_to_string(dir.join("results/attempts.jsonl")).unwrap_or_default();
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        lines.collect()
    }
}

/// What is submitted next, until it is acknowledged.
struct Next {
    number: u64,
    kind: Kind,
    way: Way,
    plan: Option<Plan>,
    due: Instant,
}

/// The batches so far.
pub(super) struct Load {
    draws: Draws,
    keep: PathBuf,
    next: Next,
    open: Vec<Batch>,
    over: Vec<Batch>,
    looked: Instant,
    /// Commands of an operator that were refused, by their words.
    pub(super) refused: BTreeMap<String, usize>,
    /// Submissions that were killed before they had ended.
    pub(super) killed: usize,
    pub(super) wrong: Vec<String>,
}

impl Load {
    pub(super) fn new(options: &Options, draws: Draws) -> Load {
        Load {
            draws,
            keep: options.keep.clone(),
            next: Next::draw(draws, 0, Duration::ZERO),
            open: Vec::new(),
            over: Vec::new(),
            looked: Instant::now(),
            refused: BTreeMap::new(),
            killed: 0,
            wrong: Vec::new(),
        }
    }

    /// Sees which batches are over, asks for what an operator asks for, and submits.
    pub(super) fn step(&mut self, rig: &mut Rig, disk_is_full: bool) {
        self.finish(rig);
        if self.open.len() < OPEN_MOST && self.next.due <= Instant::now() {
            self.submit(rig, disk_is_full);
        }
    }

    /// The same without a new batch.
    pub(super) fn finish(&mut self, rig: &mut Rig) {
        self.ask(rig);
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        let said = rig.rigor(&["status", "--json"]);
        let Ok(status) = serde_json::from_str::<Value>(&said.stdout) else {
            return self.refuse("status", &said);
        };
        let batches = status["batches"].as_array().into_iter().flatten();
        let states: BTreeMap<&str, &str> = batches
            .filter_map(|one| Some((one["id"].as_str()?, one["state"].as_str()?)))
            .collect();
        let over = |batch: &mut Batch| {
            // All that are not over are listed.
            let state = states.get(batch.id.as_str()).copied();
            let over = !matches!(state, Some("submitted" | "running" | "held"));
            let asked = batch.asks.is_none()
                && (batch.plan.kind.promise() != Promise::Mended || batch.mended);
            over && asked && batch.summary().is_some_and(|it| is_last(batch, &it))
        };
        self.over.extend(self.open.extract_if(.., over));
    }

    /// What an operator does about the batches: holds, cancels, asks again.
    fn ask(&mut self, rig: &mut Rig) {
        let now = Instant::now();
        let mut refused = Vec::new();
        for batch in &mut self.open {
            if let Some((word, due)) = batch.asks
                && due <= now
            {
                let said = rig.rigor(&[word, &batch.id]);
                if said.code == 0 {
                    batch.asks = None;
                } else {
                    batch.asks = Some((word, now + AGAIN));
                    refused.push((word, said));
                }
            }
            let failed = |batch: &Batch| batch.summary().is_some_and(|it| it["state"] == "failed");
            if batch.plan.kind.promise() == Promise::Mended && !batch.mended && failed(batch) {
                // A full disk refuses both for a while.
                if batch.plan.mend().is_err() {
                    continue;
                }
                let said = rig.rigor(&["retry", &batch.id, "--failed"]);
                batch.mended = said.code == 0;
                if !batch.mended {
                    refused.push(("retry", said));
                }
            }
        }
        for (word, said) in refused {
            self.refuse(word, &said);
        }
    }

    fn submit(&mut self, rig: &mut Rig, disk_is_full: bool) {
        let mut rng = self.draws.of(Stream::Load, self.next.number);
        if self.next.plan.is_none() {
            let plan = plans::write(
                &rig.plans(),
                &self.keep,
                self.next.number,
                self.next.kind,
                &mut rng,
            );
            match plan {
                Ok(plan) => self.next.plan = Some(plan),
                Err(error) => {
                    if !disk_is_full {
                        self.wrong.push(format!("cannot write a plan: {error}"));
                    }
                    self.next.due = Instant::now() + AGAIN;
                    return;
                }
            }
        }
        let plan = self.next.plan.clone().expect("it was written");
        let path = plan.dir.display().to_string();
        let key = format!("soak-{}", self.next.number);
        let mut words = vec!["submit", path.as_str()];
        if plan.kind == Kind::Held {
            words.push("--hold");
        }
        if self.next.way != Way::Plain {
            words.extend(["--key", key.as_str()]);
        }
        let mut rng = self.draws.of(Stream::Load, self.next.number | 1 << 40);
        let mut second = None;
        match self.next.way {
            Way::Plain => {}
            Way::Twice => second = quiet(&mut rig.rigor_command(&words)).ok(),
            Way::Killed => {
                self.kill_one(rig, &words, milliseconds(&mut rng, SUBMIT_MS));
                // Once: what follows is the one that tries again.
                self.next.way = Way::Twice;
            }
        }
        let said = rig.rigor(&words);
        if let Some(second) = second {
            let said = second.wait_with_output().expect("wait for a program");
            let also = String::from_utf8_lossy(&said.stdout).trim_end().to_owned();
            if said.status.success() {
                self.acknowledged(rig, &plan, also, &mut rng);
            }
        }
        if said.code == 0 {
            self.acknowledged(rig, &plan, said.stdout.trim_end().to_owned(), &mut rng);
        } else {
            self.refuse("submit", &said);
            // An acknowledgement is only given when it is durable; without a key another try is
            // another batch.
        }
        let known = self
            .open
            .last()
            .is_some_and(|batch| batch.plan.dir == plan.dir);
        if known {
            let after = around(&mut rng, EVERY);
            self.next = Next::draw(self.draws, self.next.number + 1, after);
        } else {
            self.next.due = Instant::now() + AGAIN;
        }
    }

    fn kill_one(&mut self, rig: &mut Rig, words: &[&str], after: Duration) {
        let mut child = quiet(&mut rig.rigor_command(words)).expect("start a program");
        std::thread::sleep(after);
        // It may have ended before.
        if child.try_wait().expect("wait for a program").is_none() {
            child.kill().expect("kill a program");
            rig.was_hit();
            self.killed += 1;
        }
        child.wait().expect("reap a program");
    }

    fn acknowledged(&mut self, rig: &Rig, plan: &Plan, id: String, rng: &mut fastrand::Rng) {
        let known = self.open.iter().find(|batch| batch.plan.dir == plan.dir);
        if let Some(known) = known {
            if known.id != id {
                let what = format!(
                    "one key, two batches: {} and {id} of {}",
                    known.id,
                    plan.dir.display()
                );
                self.wrong.push(what);
            }
            return;
        }
        rig.acknowledged(&id);
        let due = Instant::now() + milliseconds(rng, ASKED_MS);
        let asks = match plan.kind {
            Kind::Cancelled => Some(("cancel", due)),
            Kind::Held => Some(("release", due)),
            _ => None,
        };
        self.open.push(Batch {
            plan: plan.clone(),
            id,
            damaged: BTreeSet::new(),
            asks,
            mended: false,
        });
    }

    fn refuse(&mut self, word: &str, said: &Output) {
        let line = said.stderr.lines().find(|line| !line.trim().is_empty());
        let why = format!(
            "{word}: {}",
            super::report::without_numbers(line.unwrap_or("it said nothing"))
        );
        *self.refused.entry(why).or_insert(0) += 1;
    }

    /// Which batch a queued task belongs to, if it is one of these.
    pub(super) fn batch_of(&self, rig: &Rig, class: Class, name: &FileName) -> Option<String> {
        let spec = claim::peek(&rig.rig, Place::Queue(class), name).ok()??;
        let known = self.open.iter().any(|batch| batch.id == spec.batch);
        known.then_some(spec.batch)
    }

    /// A task's file was damaged while it was queued.
    pub(super) fn is_damaged(&mut self, batch: &str, id: TaskId) {
        let known = self.open.iter_mut().find(|one| one.id == batch);
        known.expect("it is open").damaged.insert(id);
    }

    pub(super) fn is_finished(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// Batches that are over.
    pub(super) fn batches(&self) -> &[Batch] {
        &self.over
    }

    /// Batches that are not.
    pub(super) fn left(&self) -> &[Batch] {
        &self.open
    }

    pub(super) fn progress(&self) -> String {
        let mut text = format!("{} batches over, {} open", self.over.len(), self.open.len());
        for batch in self.open.iter().take(SHOWN_MOST) {
            text.push_str(&format!(" {}:{:?}", batch.id, batch.plan.kind));
        }
        text
    }

    pub(super) fn kills(&self) -> (Fault, usize) {
        (Fault::SubmitKilled, self.killed)
    }
}

impl Next {
    fn draw(draws: Draws, number: u64, after: Duration) -> Next {
        let mut rng = draws.of(Stream::Load, number | 1 << 41);
        // Each kind comes up early, also in a short soak.
        let kinds = Kind::ALL.len() as u64;
        let kind = match number {
            n if n < kinds => Kind::ALL[n as usize],
            _ => *one(&mut rng, &Kind::ALL).expect("there are kinds"),
        };
        Next {
            number,
            kind,
            way: *draw::one(&mut rng, &WAYS).expect("there are ways"),
            plan: None,
            due: Instant::now() + after,
        }
    }
}

/// Whether the summary is that of the batch's end: tasks that were asked for again are over later.
fn is_last(batch: &Batch, summary: &Value) -> bool {
    let failed = summary["failed"].as_u64().unwrap_or(0) as usize;
    batch.plan.kind.promise() != Promise::Mended || failed <= batch.damaged.len()
}

/// Starts a program of which only stdout is wanted, if anything.
fn quiet(command: &mut Command) -> std::io::Result<Child> {
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
}
