//! `rigor load` and `rigor unload`: the operator's overrides of the placement.

use std::path::Path;

use anyhow::{Result, bail};
use jiff::{SignedDuration, Timestamp};
use rigor_queue::heartbeat::LlmBeat;
use rigor_queue::name::TaskId;
use rigor_queue::presence;
use rigor_queue::rig::RIG_BATCH;
use rigor_queue::task::{Class, TaskSpec, Work};
use rigor_snapshot::Snapshot;
use rigor_snapshot::models::{self, Fits};

use crate::args::{Load, Unload};
use crate::exit::Exit;
use crate::submit::{random_word, spec, write};
use crate::target::{self, Opened};
use crate::terminal::{line, note};

/// How long a load may wait for its agent, hours.
const EXPIRES_H: i64 = 1;

/// Asks an agent to load a model.
pub(crate) fn load(at: &Path, args: &Load) -> Result<Exit> {
    let opened = target::open(at)?;
    opened.config.gpu(&args.agent)?;
    let model = opened.config.model(&args.model)?;
    if model.split_gpu > 1 {
        bail!(
            "{} is split over {} GPUs, which the brain gathers when tasks need it; no agent loads it by itself. Submit a task with `llm_model: {}`, and `rigor why` tells what it waits for",
            args.model,
            model.split_gpu,
            args.model
        );
    }
    // Before anything is unloaded for it.
    refuse_what_never_fits(&opened, args)?;
    let held = held_model(&opened, &args.agent)?;
    if let Some(other) = held.filter(|held| *held != args.model) {
        note(format!(
            "{} holds {other}: it is unloaded first, when what runs on it is done",
            args.agent
        ));
        let agent = who_unloads(&opened, &args.agent)?;
        let unload = Work::UnloadLlm {
            agent: agent.clone(),
            next: Some(args.model.clone()),
        };
        submit(&opened, &agent, "unload_llm", unload)?;
    }
    let work = Work::LoadLlm {
        model: args.model.clone(),
        eligible: vec![args.agent.clone()],
        lenders: Vec::new(),
        expires: Timestamp::now() + SignedDuration::from_hours(EXPIRES_H),
    };
    let id = submit(&opened, &args.agent, "load_llm", work)?;
    note(format!(
        "It is withdrawn if {} has not taken it within {EXPIRES_H}h, or by `rigor cancel {}`",
        args.agent,
        id.short()
    ));
    Ok(Exit::Ok)
}

/// Fails where the model needs more than the GPU ever has for tasks and models. What is not known
/// is tried.
fn refuse_what_never_fits(opened: &Opened, args: &Load) -> Result<()> {
    let models = models::models(&opened.rig, &opened.config, |_| None);
    let Some(model) = models.iter().find(|model| model.id == args.model) else {
        return Ok(());
    };
    let on = model.on.iter().find(|on| on.agent == args.agent);
    if let (Some(Fits::Short { by_mb }), Some(need_mb)) = (on.map(|on| on.fits), model.need_mb) {
        bail!(
            "{} never fits on {}: it needs {need_mb} MB, the GPU has {} MB for tasks and models, short by {by_mb} MB. Nothing was unloaded. `rigor models` tells where it fits; where the need is wrong, correct its vram_mb in rig.toml",
            args.model,
            args.agent,
            need_mb.saturating_sub(by_mb)
        );
    }
    Ok(())
}

/// Asks an agent to free its GPU.
pub(crate) fn unload(at: &Path, args: &Unload) -> Result<Exit> {
    let opened = target::open(at)?;
    opened.config.gpu(&args.agent)?;
    if let Some(model) = &args.model {
        let held = held_model(&opened, &args.agent)?;
        if held.as_ref() != Some(model) {
            bail!(
                "{} holds {}, not {model}",
                args.agent,
                held.as_deref().unwrap_or("no model")
            );
        }
    }
    let agent = who_unloads(&opened, &args.agent)?;
    let unload = Work::UnloadLlm {
        agent: agent.clone(),
        next: None,
    };
    submit(&opened, &agent, "unload_llm", unload)?;
    Ok(Exit::Ok)
}

/// The agent whose runtime has the GPU of `agent`: another one where that one lends it. The brain
/// gives the GPU back once the model is gone.
fn who_unloads(opened: &Opened, agent: &str) -> Result<String> {
    let beat = presence::heartbeat(&opened.rig, agent)?;
    let Some(LlmBeat::Lent { model, to, .. }) = beat.map(|beat| beat.llm) else {
        return Ok(agent.to_owned());
    };
    let runs = presence::heartbeat(&opened.rig, &to)?.is_some_and(|leader| {
        leader.llm.model() == Some(model.as_str()) && !matches!(leader.llm, LlmBeat::Lent { .. })
    });
    if !runs {
        return Ok(agent.to_owned());
    }
    note(format!(
        "{agent} lends its GPU to {to}, which runs {model}: it is unloaded there, and the GPU given back then"
    ));
    Ok(to)
}

/// The model that the agent has on its GPU, as its last heartbeat says.
fn held_model(opened: &Opened, agent: &str) -> Result<Option<String>> {
    let snapshot = Snapshot::read(&opened.rig, &opened.config)?;
    let found = snapshot
        .agents
        .into_iter()
        .find(|known| known.name == agent);
    Ok(found.and_then(|agent| agent.model))
}

fn submit(opened: &Opened, agent: &str, task: &str, work: Work) -> Result<TaskId> {
    let root = opened.rig.root();
    opened.rig.prepare_batch(RIG_BATCH)?;
    let id = TaskId::derive(RIG_BATCH, task, Some(&random_word()));
    let spec = TaskSpec {
        on: vec![agent.to_owned()],
        plan_dir: root.to_owned(),
        batch_dir: root.to_owned(),
        ..spec(id, RIG_BATCH, RIG_BATCH, task, Class::Meta, work)
    };
    write(&opened.rig, &opened.config, &spec)?;
    line(id.to_string())?;
    if rigor_queue::presence::is_held(&opened.rig, agent)? != Some(true) {
        note(format!("{agent} is not running. Start it: rigor up"));
    }
    Ok(id)
}
