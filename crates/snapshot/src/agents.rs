//! Who is there, as the locks and heartbeats say.

use std::fs;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rigor_config::Config;
use rigor_queue::heartbeat::{GpuBeat, Heartbeat, Verdict};
use rigor_queue::name::TaskId;
use rigor_queue::presence::{self, Holder, Role};
use rigor_queue::rig::{BRAIN, Place, Rig};
use rigor_queue::task::Class;
use serde::Serialize;

use crate::Result;

/// The brain.
#[derive(Clone, Debug, Serialize)]
pub struct Brain {
    /// Its lock is held by a process that is it.
    pub alive: bool,
    /// Its process, as its lock says.
    pub pid: Option<u32>,
    /// Seconds since its last heartbeat, by the wall clock; none: there never was one.
    pub heartbeat_age_s: Option<u64>,
    /// When the process of the last heartbeat started.
    pub started: Option<Timestamp>,
}

/// One agent, whether it runs or not.
#[derive(Clone, Debug, Serialize)]
pub struct Agent {
    /// Its name.
    pub name: String,
    /// Its GPU as of its last heartbeat; none for a CPU-only agent.
    pub gpu: Option<GpuBeat>,
    /// What it is.
    pub state: AgentState,
    /// The model concerned, where the state has one.
    pub model: Option<String>,
    /// Its lock is held by a process that is it.
    pub alive: bool,
    /// Its process, as its lock says.
    pub pid: Option<u32>,
    /// `healthy`, `constrained`, `paused`, `draining` or `quarantined`; none where it is not alive.
    pub health: Option<&'static str>,
    /// Why it is not healthy, in words.
    pub health_reason: Option<String>,
    /// The code of why it claims nothing now; none while it works and where it is not alive.
    pub idle_reason: Option<&'static str>,
    /// The numbers behind the code, in words.
    pub idle_detail: Option<String>,
    /// The last verdict on each class that has anything queued.
    pub verdicts: std::collections::BTreeMap<Class, Verdict>,
    /// Seconds since its last heartbeat, by the wall clock; none: there never was one.
    pub heartbeat_age_s: Option<u64>,
    /// Tasks that it has, by id.
    pub processing: Vec<TaskId>,
    /// Tasks finished since the process started.
    pub completed: u64,
    /// Attempts that failed since the process started.
    pub failed: u64,
    /// CPU slots: in use and in all.
    pub cpu_slots: (u32, u32),
    /// LLM slots: in use and in all.
    pub llm_slots: (u32, u32),
    /// It is in rig.toml (else it only ran here once).
    pub configured: bool,
}

/// What an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    /// Nobody holds its lock.
    Down,
    /// The brain holds its lock and takes back what it left.
    Recovering,
    /// It runs and has not beaten yet.
    Starting,
    /// No model in VRAM.
    Cold,
    /// A model is on its way in.
    Loading,
    /// A model is in VRAM and answers.
    Hot,
    /// Its model's last requests end.
    Draining,
    /// Its model is on its way out.
    Unloading,
    /// The last load failed.
    Failed,
}

impl AgentState {
    /// As it is written in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            AgentState::Down => "down",
            AgentState::Recovering => "recovering",
            AgentState::Starting => "starting",
            AgentState::Cold => "cold",
            AgentState::Loading => "loading",
            AgentState::Hot => "hot",
            AgentState::Draining => "draining",
            AgentState::Unloading => "unloading",
            AgentState::Failed => "failed",
        }
    }
}

/// Reads the brain's presence.
pub(crate) fn brain(rig: &Rig, now: SystemTime) -> Result<Brain> {
    let presence = presence_of(rig, BRAIN)?;
    let heartbeat = last_heartbeat(rig, BRAIN);
    Ok(Brain {
        alive: presence == Presence::Alive,
        pid: holder(rig, BRAIN)
            .filter(|_| presence == Presence::Alive)
            .map(|holder| holder.pid),
        heartbeat_age_s: heartbeat_age(rig, BRAIN, now).map(|age| age.as_secs()),
        started: heartbeat.map(|heartbeat| heartbeat.started),
    })
}

/// Reads every agent: those of rig.toml in its order, then those that ran here once.
pub(crate) fn agents(rig: &Rig, config: &Config, now: SystemTime) -> Result<Vec<Agent>> {
    let configured: Vec<String> = config.agent_names().map(str::to_owned).collect();
    let ran = rig.agents()?;
    let others = ran
        .iter()
        .filter(|name| !configured.contains(name))
        .cloned();
    let names: Vec<String> = configured.iter().cloned().chain(others).collect();
    names
        .into_iter()
        .map(|name| agent(rig, name, &configured, now))
        .collect()
}

fn agent(rig: &Rig, name: String, configured: &[String], now: SystemTime) -> Result<Agent> {
    let presence = presence_of(rig, &name)?;
    let alive = presence == Presence::Alive;
    let heartbeat = last_heartbeat(rig, &name);
    let pid = holder(rig, &name)
        .filter(|_| alive)
        .map(|holder| holder.pid);
    // A heartbeat of an earlier process says nothing about the one that runs.
    let current = heartbeat
        .as_ref()
        .filter(|beat| alive && pid.is_none_or(|pid| pid == beat.pid));
    let state = match (presence, current) {
        (Presence::Gone, _) => AgentState::Down,
        (Presence::Recovering, _) => AgentState::Recovering,
        (Presence::Alive, None) => AgentState::Starting,
        (Presence::Alive, Some(beat)) => state_of(beat),
    };
    let processing = rig
        .list(Place::Processing(&name))?
        .names
        .into_iter()
        .map(|file| file.id)
        .collect();
    let idle = current.and_then(|beat| beat.idle.as_ref());
    Ok(Agent {
        gpu: heartbeat.as_ref().and_then(|beat| beat.gpu.clone()),
        state,
        model: current.and_then(|beat| beat.llm.model()).map(str::to_owned),
        alive,
        pid,
        health: current.map(|beat| beat.health.as_str()),
        health_reason: current.and_then(|beat| beat.health_reason.clone()),
        idle_reason: idle.map(|verdict| verdict.code.as_str()),
        idle_detail: idle.map(|verdict| verdict.detail.clone()),
        verdicts: current
            .map(|beat| beat.verdicts.clone())
            .unwrap_or_default(),
        heartbeat_age_s: heartbeat_age(rig, &name, now).map(|age| age.as_secs()),
        processing,
        completed: current.map_or(0, |beat| beat.completed),
        failed: current.map_or(0, |beat| beat.failed),
        cpu_slots: current.map_or((0, 0), |beat| beat.cpu_slots),
        llm_slots: current.map_or((0, 0), |beat| beat.llm_slots),
        configured: configured.contains(&name),
        name,
    })
}

fn state_of(beat: &Heartbeat) -> AgentState {
    use rigor_queue::heartbeat::LlmBeat;
    match beat.llm {
        LlmBeat::Cold => AgentState::Cold,
        LlmBeat::Loading { .. } => AgentState::Loading,
        LlmBeat::Hot { .. } => AgentState::Hot,
        LlmBeat::Draining { .. } => AgentState::Draining,
        LlmBeat::Unloading { .. } => AgentState::Unloading,
        LlmBeat::Failed { .. } => AgentState::Failed,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Gone,
    Recovering,
    Alive,
}

fn presence_of(rig: &Rig, name: &str) -> Result<Presence> {
    if presence::is_held(rig, name)? != Some(true) {
        return Ok(Presence::Gone);
    }
    // A lock that was just taken has no text yet; then its holder is the component itself.
    Ok(match holder(rig, name).map(|holder| holder.role) {
        Some(Role::Recovering) => Presence::Recovering,
        Some(Role::Running) | None => Presence::Alive,
    })
}

fn holder(rig: &Rig, name: &str) -> Option<Holder> {
    let text = fs::read(rig.agent_dir(name).join("lock")).ok()?;
    serde_json::from_slice(&text).ok()
}

/// A heartbeat that cannot be read shows as one that never was: the display goes on.
fn last_heartbeat(rig: &Rig, name: &str) -> Option<Heartbeat> {
    presence::heartbeat(rig, name).ok().flatten()
}

fn heartbeat_age(rig: &Rig, name: &str, now: SystemTime) -> Option<Duration> {
    let modified = fs::metadata(rig.agent_dir(name).join("heartbeat.json"))
        .ok()?
        .modified()
        .ok()?;
    Some(now.duration_since(modified).unwrap_or_default())
}
