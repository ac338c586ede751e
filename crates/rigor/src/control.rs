//! What an operator tells the brain and the agents to do: each is a signal file.

use std::path::Path;

use anyhow::{Result, bail};
use rigor_queue::claim;
use rigor_queue::name::FileName;
use rigor_queue::presence::{self, send, unsend};
use rigor_queue::rig::{BRAIN, Place};
use rigor_queue::task::{Class, Work};
use rigor_snapshot::{BatchState, Target};

use crate::args::{Agent, Batch, Retry, Targets};
use crate::exit::Exit;
use crate::target::{self, Opened};
use crate::terminal::note;

/// Cancels batches and tasks.
pub(crate) fn cancel(at: &Path, args: &Targets) -> Result<Exit> {
    let opened = target::open_running(at)?;
    // All are looked up before anything is asked: a typing error cancels nothing.
    let mut signals = Vec::new();
    for text in &args.targets {
        match opened.find(text)? {
            Target::Batch(id) => {
                let state = state_of(&opened, &id)?;
                if state.is_over() {
                    bail!("{id} is over already: {}", state.as_str());
                }
                signals.push((format!("{id}.cancel"), id));
            }
            Target::Task { name, spot, .. } => {
                let lane = spot.place().lane();
                if lane.is_terminal() {
                    bail!("{} is over already: it lies in {lane}", name.id);
                }
                refuse_meta(&opened, &name, spot.place())?;
                signals.push((format!("{}.cancel", name.id), name.id.to_string()));
            }
            Target::Agent(name) => {
                bail!(
                    "{name} is an agent; `rigor drain {name}` lets it finish, `rigor down` stops all"
                )
            }
        }
    }
    tell_brain(&opened, &signals, "", "cancelling")
}

/// Fails for a load, unload or lend that an agent is at already, or that the brain would ask for
/// again.
fn refuse_meta(opened: &Opened, name: &FileName, place: Place<'_>) -> Result<()> {
    let Some(spec) = claim::peek(&opened.rig, place, name)? else {
        return Ok(());
    };
    if spec.class != Class::Meta {
        return Ok(());
    }
    if let Place::Processing(agent) = place {
        bail!(
            "{} ({}) is under way on {agent} and cannot be stopped. `rigor unload {agent}` frees the GPU when it is done",
            name.id,
            spec.task
        );
    }
    // An operator names the agent.
    if spec.on.is_empty() {
        let remedy = match &spec.work {
            Work::LoadLlm { model, .. } | Work::LendGpu { model, .. } => {
                format!("cancel the tasks that need {model}, or `rigor hold` their batch")
            }
            _ => "`rigor pause` the agent to keep its model".to_owned(),
        };
        bail!(
            "{} ({}) was asked for by the brain, which would ask again: {remedy}",
            name.id,
            spec.task
        );
    }
    Ok(())
}

/// Runs failed tasks again.
pub(crate) fn retry(at: &Path, args: &Retry) -> Result<Exit> {
    let opened = target::open_running(at)?;
    let mut batches = Vec::new();
    let mut tasks = Vec::new();
    for text in &args.targets {
        match opened.find(text)? {
            Target::Batch(id) => {
                nothing_to_retry(&opened, &id)?;
                if args.failed {
                    batches.push((format!("{id}.retry"), id));
                    continue;
                }
                bail!("{id} is a batch: `rigor retry {id} --failed` runs its failed tasks again")
            }
            Target::Task { name, spot, .. } => {
                let lane = spot.place().lane();
                use rigor_queue::lane::Lane;
                if !matches!(lane, Lane::Failed | Lane::Cancelled) {
                    bail!(
                        "{} lies in {lane}; only failed and cancelled tasks are run again",
                        name.id
                    );
                }
                // Its batch may be archived, and the brain is not to search for it.
                let batch = spot.batch().unwrap_or_default().to_owned();
                tasks.push((format!("{}.retry", name.id), name.id.to_string(), batch));
            }
            Target::Agent(name) => bail!("{name} is an agent; name a batch or a task"),
        }
    }
    if !batches.is_empty() {
        tell_brain(
            &opened,
            &batches,
            r#"{"failed":true}"#,
            "retrying the failed tasks of",
        )?;
    }
    for (signal, id, batch) in tasks {
        tell_brain(&opened, &[(signal, id)], &batch, "retrying")?;
    }
    Ok(Exit::Ok)
}

/// Refuses a batch of which everything is done.
fn nothing_to_retry(opened: &Opened, id: &str) -> Result<()> {
    if let Some(batch) = rigor_snapshot::batch(&opened.rig, id)?
        && batch.state.is_over()
        && batch.done > 0
        && batch.failed + batch.cancelled == 0
    {
        bail!(
            "{id} is {}: all of its {} are done, there is nothing to retry",
            batch.state.as_str(),
            crate::terminal::plural(batch.done as usize, "task")
        );
    }
    Ok(())
}

/// Holds a batch.
pub(crate) fn hold(at: &Path, args: &Batch) -> Result<Exit> {
    batch_signal(at, args, "hold", "holding")
}

/// Releases a batch.
pub(crate) fn release(at: &Path, args: &Batch) -> Result<Exit> {
    batch_signal(at, args, "release", "releasing")
}

fn batch_signal(at: &Path, args: &Batch, signal: &str, words: &str) -> Result<Exit> {
    let opened = target::open_running(at)?;
    let id = opened.batch(&args.batch)?;
    let state = state_of(&opened, &id)?;
    if state.is_over() {
        bail!("{id} is over already: {}", state.as_str());
    }
    tell_brain(&opened, &[(format!("{id}.{signal}"), id)], "", words)
}

/// Lets an agent start nothing new.
pub(crate) fn pause(at: &Path, args: &Agent) -> Result<Exit> {
    agent_signal(at, args, "pause", "starts nothing new until `rigor resume`")
}

/// Lets an agent finish what it has.
pub(crate) fn drain(at: &Path, args: &Agent) -> Result<Exit> {
    agent_signal(
        at,
        args,
        "drain",
        "finishes what it has and takes nothing more until `rigor resume`",
    )
}

fn agent_signal(at: &Path, args: &Agent, signal: &str, words: &str) -> Result<Exit> {
    let opened = target::open_running(at)?;
    let agent = opened.agent(&args.agent)?;
    // One that never ran gets its signal when it starts.
    opened.rig.prepare_agent(agent)?;
    send(&opened.rig, agent, signal, "")?;
    note(format!("{agent} {words}"));
    warn_if_down(&opened, agent)?;
    Ok(Exit::Ok)
}

/// Undoes pause and drain.
pub(crate) fn resume(at: &Path, args: &Agent) -> Result<Exit> {
    let opened = target::open_running(at)?;
    let agent = opened.agent(&args.agent)?;
    let paused = unsend(&opened.rig, agent, "pause")?;
    let drained = unsend(&opened.rig, agent, "drain")?;
    if paused || drained {
        note(format!("{agent} takes work again"));
    } else {
        note(format!("{agent} was neither paused nor draining"));
    }
    warn_if_down(&opened, agent)?;
    Ok(Exit::Ok)
}

fn warn_if_down(opened: &Opened, agent: &str) -> Result<()> {
    if presence::is_held(&opened.rig, agent)? != Some(true) {
        note(format!("{agent} is not running. Start it: rigor up"));
    }
    Ok(())
}

fn state_of(opened: &Opened, id: &str) -> Result<BatchState> {
    match rigor_snapshot::batch(&opened.rig, id)? {
        Some(batch) => Ok(batch.state),
        None => bail!("the batch {id} has no plan in the lanes; its submission did not finish"),
    }
}

fn tell_brain(
    opened: &Opened,
    signals: &[(String, String)],
    content: &str,
    words: &str,
) -> Result<Exit> {
    for (signal, whom) in signals {
        send(&opened.rig, BRAIN, signal, content)?;
        note(format!("{words} {whom}"));
    }
    opened.warn_without_brain()?;
    Ok(Exit::Ok)
}
