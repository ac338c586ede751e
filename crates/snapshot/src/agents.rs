//! Who is there, as the locks and heartbeats say.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Timestamp};
use rigor_config::Config;
use rigor_queue::heartbeat::{GpuBeat, Heartbeat, Verdict};
use rigor_queue::name::TaskId;
use rigor_queue::presence::{self, Holder, Role};
use rigor_queue::reasons::Cause;
use rigor_queue::rig::{BRAIN, Place, Rig};
use rigor_queue::task::Class;
use serde::Serialize;

use crate::Result;
use crate::gpu_time::{self, GpuTime};

/// GPU time is told of the last hour.
const GPU_TIME_OF: SignedDuration = SignedDuration::from_hours(1);

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
    /// Its heartbeats cannot be written, a full disk mostly: what the last one says is so many
    /// seconds older than the last sign of life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_unwritten_s: Option<u64>,
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
    pub verdicts: BTreeMap<Class, Verdict>,
    /// Seconds since its last heartbeat, by the wall clock; none: there never was one.
    pub heartbeat_age_s: Option<u64>,
    /// Its heartbeats cannot be written, a full disk mostly: what the last one says is so many
    /// seconds older than the last sign of life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_unwritten_s: Option<u64>,
    /// What its GPU's time went into over the last hour, or since its journal began; none where
    /// there is no GPU or no journal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_time: Option<Seconds>,
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

/// What a GPU's time went into.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seconds {
    /// The first instant.
    pub from: Timestamp,
    /// The instant after the last.
    pub to: Timestamp,
    /// By cause; the sum is `to - from`.
    pub seconds: BTreeMap<Cause, f64>,
}

impl From<&GpuTime> for Seconds {
    fn from(time: &GpuTime) -> Seconds {
        let seconds = |(cause, length): (Cause, SignedDuration)| (cause, length.as_secs_f64());
        Seconds {
            from: time.from,
            to: time.to,
            seconds: time.totals().into_iter().map(seconds).collect(),
        }
    }
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
    /// Its GPU is kept for the runtime of another agent.
    Lent,
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
            AgentState::Lent => "lent",
            AgentState::Draining => "draining",
            AgentState::Unloading => "unloading",
            AgentState::Failed => "failed",
        }
    }
}

/// Reads the brain's presence.
pub(crate) fn brain(rig: &Rig, config: &Config, now: SystemTime) -> Result<Brain> {
    let presence = presence_of(rig, BRAIN)?;
    let heartbeat = last_heartbeat(rig, BRAIN);
    Ok(Brain {
        alive: presence == Presence::Alive,
        pid: holder(rig, BRAIN)
            .filter(|_| presence == Presence::Alive)
            .map(|holder| holder.pid),
        heartbeat_age_s: heartbeat_age(rig, BRAIN, now).map(|age| age.as_secs()),
        started: heartbeat.as_ref().map(|heartbeat| heartbeat.started),
        heartbeat_unwritten_s: heartbeat
            .filter(|_| presence == Presence::Alive)
            .and_then(|beat| unwritten(rig, config, BRAIN, &beat)),
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
    let to = Timestamp::try_from(now).unwrap_or_else(|_| Timestamp::now());
    let times = gpu_time::recent(rig, config, to - GPU_TIME_OF, to)?;
    names
        .into_iter()
        .map(|name| {
            let time = times.iter().find(|time| time.agent == name);
            let mut agent = agent(rig, config, name, now)?;
            agent.gpu_time = time.map(Seconds::from);
            Ok(agent)
        })
        .collect()
}

fn agent(rig: &Rig, config: &Config, name: String, now: SystemTime) -> Result<Agent> {
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
        heartbeat_unwritten_s: current.and_then(|beat| unwritten(rig, config, &name, beat)),
        gpu_time: None,
        processing,
        completed: current.map_or(0, |beat| beat.completed),
        failed: current.map_or(0, |beat| beat.failed),
        cpu_slots: current.map_or((0, 0), |beat| beat.cpu_slots),
        llm_slots: current.map_or((0, 0), |beat| beat.llm_slots),
        configured: config.agent_names().any(|agent| agent == name),
        name,
    })
}

fn state_of(beat: &Heartbeat) -> AgentState {
    use rigor_queue::heartbeat::LlmBeat;
    match beat.llm {
        LlmBeat::Cold => AgentState::Cold,
        LlmBeat::Loading { .. } => AgentState::Loading,
        LlmBeat::Hot { .. } => AgentState::Hot,
        LlmBeat::Lent { .. } => AgentState::Lent,
        LlmBeat::Draining { .. } => AgentState::Draining,
        LlmBeat::Unloading { .. } => AgentState::Unloading,
        LlmBeat::Failed { .. } => AgentState::Failed,
    }
}

/// Who holds a component's lock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// Nobody.
    Gone,
    /// The brain, for one that is dead.
    Recovering,
    /// Itself.
    Alive,
}

/// Reads who holds a component's lock.
pub(crate) fn presence_of(rig: &Rig, name: &str) -> Result<Presence> {
    if presence::is_held(rig, name)? != Some(true) {
        return Ok(Presence::Gone);
    }
    // A lock that was just taken has no text yet; then its holder is the component itself.
    Ok(match holder(rig, name).map(|holder| holder.role) {
        Some(Role::Recovering) => Presence::Recovering,
        Some(Role::Running) | None => Presence::Alive,
    })
}

pub(crate) fn holder(rig: &Rig, name: &str) -> Option<Holder> {
    let text = fs::read(rig.agent_dir(name).join("lock")).ok()?;
    serde_json::from_slice(&text).ok()
}

/// A heartbeat that cannot be read shows as one that never was: the display goes on.
fn last_heartbeat(rig: &Rig, name: &str) -> Option<Heartbeat> {
    presence::heartbeat(rig, name).ok().flatten()
}

fn heartbeat_age(rig: &Rig, name: &str, now: SystemTime) -> Option<Duration> {
    Some(
        now.duration_since(last_sign(rig, name)?)
            .unwrap_or_default(),
    )
}

/// How much older than the last sign of life the last heartbeat is, seconds, where that is long: an
/// agent that cannot write its heartbeat touches the file.
fn unwritten(rig: &Rig, config: &Config, name: &str, beat: &Heartbeat) -> Option<u64> {
    let sign = Timestamp::try_from(last_sign(rig, name)?).ok()?;
    let age = Duration::try_from(sign.duration_since(beat.at)).ok()?;
    (age > config.timing.heartbeat_warn).then_some(age.as_secs())
}

/// When a component's heartbeat was last written or touched.
pub(crate) fn last_sign(rig: &Rig, name: &str) -> Option<SystemTime> {
    fs::metadata(rig.agent_dir(name).join("heartbeat.json"))
        .ok()?
        .modified()
        .ok()
}
