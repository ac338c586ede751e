//! From the end of a task to the claim of the one that waited for it, and large expansions.

use std::path::Path;

use anyhow::{Result, bail};
use serde::Deserialize;

use super::figure::{Figure, Target, percentile};
use super::programs::{bench_queue, release};
use super::rig::{PLAIN, Rig};
use super::submit::{TASK_BYTES, brain, expand};
use super::{Bench, plans};

/// Tasks of the chain.
const LINKS: u64 = 200;
/// From a completion to the next claim, milliseconds, p50.
const CLAIMED_MS: f64 = 3.0;
/// Items of the foreach.
const ITEMS: u64 = 100_000;
/// Tasks that an expansion makes in a second.
const RATE: f64 = 20_000.0;

#[derive(Deserialize)]
struct Chain {
    ms: Vec<f64>,
}

pub(super) fn run(options: &Bench, scratch: &Path) -> Result<Vec<Figure>> {
    let (links, items) = (options.size(LINKS), options.size(ITEMS));
    let chain = plans::chain(scratch, links)?;
    let plan = plans::nothing(scratch, items)?;
    let (mut halves, mut most) = (Vec::new(), Vec::new());
    let (mut rates, mut bytes) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        let rig = Rig::start(scratch, PLAIN)?;
        let words: [&dyn AsRef<std::ffi::OsStr>; 5] =
            [&"chain", &rig.root, &chain, &release("rigor"), &"cpu-1"];
        let found: Chain = bench_queue(&words)?;
        if found.ms.len() as u64 != links - 1 {
            bail!("{} of {} claims were seen", found.ms.len(), links - 1);
        }
        halves.push(percentile(found.ms.clone(), 0.5));
        most.push(percentile(found.ms, 0.95));
        drop(rig);
        let rig = Rig::start(scratch, PLAIN)?;
        let brain = brain(&rig)?;
        let before = brain.rss_mb()?;
        let expanded = expand(&rig, &plan, items)?;
        rates.push(items as f64 / expanded.seconds);
        bytes.push((brain.rss_mb()? - before) * f64::from(1 << 20) / items as f64);
    }
    Ok(vec![
        Figure::of("a task done -> the next one claimed, p50", "ms", halves)
            .limit(CLAIMED_MS, Target::Under(1.0)),
        Figure::of("a task done -> the next one claimed, p95", "ms", most),
        Figure::of(
            format!("a foreach of {items} items, submission included"),
            "1/s",
            rates,
        )
        .limit(RATE, Target::AtLeast(1.0)),
        Figure::of(
            "the brain's memory for each task that waits",
            "bytes",
            bytes,
        )
        .limit(TASK_BYTES, Target::Under(1.0)),
    ])
}
