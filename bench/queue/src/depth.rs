//! A claim from queues of different depths, in turn, by the code of the agents, by the bare system
//! calls, and by a claimer that reads the whole queue at each visit.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rigor_queue::claim::{self, Candidate};
use rigor_queue::index::Index;
use rigor_queue::rig::{Place, Rig};
use rigor_queue::task::Class;
use rustix::fs::FlockOperation;
use serde::Serialize;
use tempfile::TempDir;

use crate::claim::{BUFFER_BYTES, bare, pair};
use crate::tasks::{QUEUE, fresh_rig, queue_one};

const AGENT: &str = "gpu-1";

/// A rig in which so many tasks are queued, whatever is claimed.
struct Queue {
    _scratch: TempDir,
    rig: Rig,
    index: Index,
    next: u64,
    also_read_all: bool,
    found: Found,
}

#[derive(Serialize)]
struct Found {
    depth: u64,
    list_seconds: f64,
    claim_us: Vec<f64>,
    bare_us: Vec<f64>,
    read_all_us: Vec<f64>,
}

/// `runs` times at each depth in turn: so many claims, and where asked for one visit of the
/// claimer that reads everything.
pub(crate) fn run(
    dir: &Path,
    runs: u64,
    claims: u64,
    depths: &[&str],
) -> Result<serde_json::Value> {
    let mut queues = Vec::new();
    for words in depths {
        let (depth, how) = words.split_once(':').context("a depth is DEPTH:HOW")?;
        let also_read_all = match how {
            "ours" => false,
            "both" => true,
            _ => bail!("{how:?} is neither \"ours\" nor \"both\""),
        };
        queues.push(Queue::make(dir, crate::number(depth)?, also_read_all)?);
    }
    // Else the kernel writes a million files to the disk while claims are timed.
    let disk = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    rustix::fs::syncfs(&disk).context("syncfs")?;
    for _ in 0..runs {
        for queue in &mut queues {
            let us = queue.claims(claims)?;
            queue.found.claim_us.push(us);
            let us = queue.bare_claims(claims)?;
            queue.found.bare_us.push(us);
            if queue.also_read_all {
                let us = queue.read_all()?;
                queue.found.read_all_us.push(us);
            }
        }
    }
    let found: Vec<&Found> = queues.iter().map(|queue| &queue.found).collect();
    Ok(serde_json::to_value(found)?)
}

impl Queue {
    fn make(dir: &Path, depth: u64, also_read_all: bool) -> Result<Queue> {
        let (scratch, rig) = fresh_rig(dir)?;
        rig.prepare_agent(AGENT)?;
        for sequence in 0..depth {
            queue_one(&rig, sequence)?;
        }
        let started = Instant::now();
        let mut index = Index::default();
        index.replace(rig.list(QUEUE)?.names);
        let list_seconds = started.elapsed().as_secs_f64();
        Ok(Queue {
            _scratch: scratch,
            rig,
            index,
            next: depth,
            also_read_all,
            found: Found {
                depth,
                list_seconds,
                claim_us: Vec::new(),
                bare_us: Vec::new(),
                read_all_us: Vec::new(),
            },
        })
    }

    /// Microseconds a claim. After each a new task is queued, which is not counted.
    fn claims(&mut self, count: u64) -> Result<f64> {
        let mut ns = 0;
        for _ in 0..count {
            let started = Instant::now();
            let shapes = self.index.shapes(started);
            let (_, _, name) = shapes.first().copied().context("nothing is queued")?;
            let Candidate::Ready(held) = claim::candidate(&self.rig, Class::Cpu, &name)? else {
                bail!("{name} could not be claimed");
            };
            let held = held.claim(&self.rig, AGENT, false)?;
            self.index.remove(&name);
            ns += started.elapsed().as_nanos();
            held.with_context(|| format!("{name} was moved by another"))?;
            self.refill()?;
        }
        Ok(ns as f64 / 1e3 / count as f64)
    }

    /// The same by the bare system calls, whose paths are built before.
    fn bare_claims(&mut self, count: u64) -> Result<f64> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut ns = 0;
        for _ in 0..count {
            let shapes = self.index.shapes(Instant::now());
            let (_, _, name) = shapes.first().copied().context("nothing is queued")?;
            let pair = pair(&self.rig, &name, AGENT)?;
            let started = Instant::now();
            let is_ours = bare(&pair, &mut buffer)?;
            ns += started.elapsed().as_nanos();
            if !is_ours {
                bail!("{name} could not be claimed");
            }
            self.index.remove(&name);
            self.refill()?;
        }
        Ok(ns as f64 / 1e3 / count as f64)
    }

    /// Microseconds of a claim that keeps no index: it lists the queue, and opens and locks a lock
    /// file beside every task, reads and parses it, to take the first that it may have.
    fn read_all(&mut self) -> Result<f64> {
        let started = Instant::now();
        let dir = self.rig.dir(QUEUE);
        let mut best: Option<(serde_json::Value, PathBuf)> = None;
        for path in json_files(&dir)? {
            let lock_path = path.with_extension("json.lock");
            let lock = File::create(&lock_path).context("make a lock file")?;
            rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
                .context("lock a lock file")?;
            let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            let task: serde_json::Value = serde_json::from_slice(&text)?;
            fs::remove_file(&lock_path).context("remove a lock file")?;
            let rank = |task: &serde_json::Value| task["body"]["priority"].as_u64();
            if best
                .as_ref()
                .is_none_or(|(first, _)| rank(first) < rank(&task))
            {
                best = Some((task, path));
            }
        }
        let (_, path) = best.context("the queue is empty")?;
        let file = path.file_name().context("it has a name")?;
        let to = self.rig.dir(Place::Processing(AGENT)).join(file);
        fs::rename(&path, to).with_context(|| format!("claim {}", path.display()))?;
        let us = started.elapsed().as_secs_f64() * 1e6;
        let name = file.to_string_lossy().parse().context("its name")?;
        self.index.remove(&name);
        self.refill()?;
        Ok(us)
    }

    fn refill(&mut self) -> Result<()> {
        self.index.insert(queue_one(&self.rig, self.next)?);
        self.next += 1;
        Ok(())
    }
}

/// In the order of their names.
fn json_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "json") {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_claimers_take_the_first_and_the_depth_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut queue = Queue::make(dir.path(), 10, true).expect("a queue");
        assert!(queue.claims(2).expect("claims") > 0.0);
        assert!(queue.bare_claims(2).expect("claims") > 0.0);
        assert!(queue.read_all().expect("a claim") > 0.0);
        assert_eq!(queue.index.len(), 10);
        assert_eq!(queue.rig.count(QUEUE).expect("a count"), 10);
        let claimed = queue
            .rig
            .list(Place::Processing(AGENT))
            .expect("it is listed");
        let sequences: Vec<u64> = claimed.names.iter().map(|name| name.sequence).collect();
        assert_eq!(sequences, [0, 1, 2, 3, 4]);
        let all = serde_json::to_value(&queue.found).expect("JSON");
        assert_eq!(all["depth"], 10);
    }
}
