//! What a claim costs as the queue grows, and what it costs a claimer without an index.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Bench;
use super::figure::{Figure, Target};
use super::programs::bench_queue;

/// The first is what the others are compared with.
const DEPTHS: [u64; 4] = [100, 10_000, 100_000, 1_000_000];
/// The depths at which the claimer that reads everything is tried: a visit of it takes as long as
/// the queue is.
const READ_ALL: [u64; 2] = [100, 10_000];
/// Claims in a run, at a depth that is kept.
const CLAIMS: u64 = 1_000;
/// What a claim at a million may cost of one at a hundred.
const FLAT: f64 = 1.5;
/// What a claim at ten thousand may cost of one that reads everything: a thousand times faster.
const FASTER: f64 = 0.001;

#[derive(Deserialize)]
struct Depth {
    depth: u64,
    /// To list and index all of it, once.
    list_seconds: f64,
    /// Microseconds a claim, each run.
    claim_us: Vec<f64>,
    /// The same by the bare system calls.
    bare_us: Vec<f64>,
    /// Microseconds a claim of the claimer that reads everything; empty where it was not tried.
    read_all_us: Vec<f64>,
}

pub(super) fn run(options: &Bench, scratch: &Path) -> Result<Vec<Figure>> {
    let mut words = vec![options.runs.to_string(), CLAIMS.to_string()];
    // The depths are what this is about, so `--quick` leaves out the last instead.
    let depths = if options.quick { &DEPTHS[..3] } else { &DEPTHS };
    for depth in depths {
        let how = if READ_ALL.contains(depth) {
            "both"
        } else {
            "ours"
        };
        words.push(format!("{depth}:{how}"));
    }
    let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"depth", &scratch];
    all.extend(words.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
    let found: Vec<Depth> = bench_queue(&all)?;
    if !found.iter().map(|at| &at.depth).eq(depths) {
        bail!("bench-queue measured other depths");
    }
    let shallow = found.first().context("no depth was measured")?;
    let mut figures = Vec::new();
    for at in &found {
        let queued = at.depth;
        if queued == shallow.depth {
            continue;
        }
        let name = format!("a claim, {queued} queued");
        let figure = Figure::of(name, "us", at.claim_us.clone());
        figures.push(match queued {
            1_000_000 => figure.against(
                "with 100 queued",
                shallow.claim_us.clone(),
                Target::Under(FLAT),
            ),
            _ => figure.beside("with 100 queued", shallow.claim_us.clone()),
        });
    }
    for at in &found {
        let name = format!("a claim, {} queued", at.depth);
        let figure = Figure::of(name, "us", at.claim_us.clone());
        figures.push(figure.beside("the bare system calls, at that depth", at.bare_us.clone()));
    }
    for at in found.iter().filter(|at| !at.read_all_us.is_empty()) {
        let what = "a claimer that reads everything";
        let name = format!("a claim, {} queued", at.depth);
        let (figure, peer) = (
            Figure::of(name, "us", at.claim_us.clone()),
            at.read_all_us.clone(),
        );
        figures.push(match at.depth {
            10_000 => figure.against(what, peer, Target::Under(FASTER)),
            _ => figure.beside(what, peer),
        });
    }
    for at in &found {
        let name = format!("listing and indexing all, once, {} queued", at.depth);
        figures.push(Figure::of(name, "ms", vec![at.list_seconds * 1e3]));
    }
    Ok(figures)
}
