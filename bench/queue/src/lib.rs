//! What `cargo xtask bench` measures in a process of its own. Each prints one JSON value:
//!
//! - `claim ours|bare DIR COUNT PROCESSES`: so many tasks claimed by processes that race.
//! - `depth DIR RUNS CLAIMS DEPTH:ours|both...`: a claim at each depth, in turn.
//! - `spawns WORKER COUNT AT_ONCE`: the worker's program and bash, started so many times.
//! - `batch RIG PLAN RIGOR`: a plan in a running rig, from its submission to its end.
//! - `durable DIR COUNT`: one task from submission to claim, with fsyncs and without.
//! - `expansion RIG PLAN RIGOR TASK`: a plan from its submission to the expansion of that task.
//! - `files DIR COUNT`: the fastest way to so many durable files.
//! - `chain RIG PLAN RIGOR AGENT`: from each completion of a plan that is a chain to the next claim.
//! - `prompts MODEL PREFIX TEXT COUNT CLIENTS URL...`: prompts by clients that do nothing else.
//! - `life DIR COUNT`: so many tasks through the queue, one after another.

mod batch;
mod claim;
mod clock;
mod depth;
mod durable;
mod expansion;
mod life;
mod prompts;
mod release;
mod spawns;
mod tasks;

use anyhow::{Context, Result, bail};

/// Does what the words say and prints what it found.
pub fn run(words: &[&str]) -> Result<()> {
    let found = match words {
        ["claim", how, dir, count, processes] => claim::run(
            how.parse()?,
            dir.as_ref(),
            number(count)?,
            number(processes)?,
        )?,
        // What `claim` starts.
        ["claimant", how, rig, agent] => claim::claimant(how.parse()?, rig.as_ref(), agent)?,
        ["depth", dir, runs, claims, depths @ ..] if !depths.is_empty() => {
            depth::run(dir.as_ref(), number(runs)?, number(claims)?, depths)?
        }
        ["spawns", worker, count, at_once] => {
            spawns::run(worker.as_ref(), number(count)?, number(at_once)?)?
        }
        ["batch", rig, plan, rigor] => batch::run(rig.as_ref(), plan.as_ref(), rigor.as_ref())?,
        ["durable", dir, count] => durable::run(dir.as_ref(), number(count)?)?,
        ["expansion", rig, plan, rigor, task] => {
            expansion::run(rig.as_ref(), plan.as_ref(), rigor.as_ref(), task)?
        }
        ["files", dir, count] => expansion::files(dir.as_ref(), number(count)?)?,
        ["chain", rig, plan, rigor, agent] => {
            release::chain(rig.as_ref(), plan.as_ref(), rigor.as_ref(), agent)?
        }
        ["prompts", model, prefix, text, count, clients, urls @ ..] if !urls.is_empty() => {
            let said = (*model, *prefix, *text);
            prompts::run(said, number(count)?, number(clients)?, urls)?
        }
        ["life", dir, count] => life::run(dir.as_ref(), number(count)?)?,
        _ => bail!("bench-queue does not know {words:?}"),
    };
    println!("{found}");
    Ok(())
}

fn number(text: &str) -> Result<u64> {
    text.parse()
        .with_context(|| format!("{text:?} is no number"))
}
