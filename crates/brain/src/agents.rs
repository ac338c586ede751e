//! Who is there: heartbeats as they change, and what becomes of agents that are dead, hung or were
//! never started.

mod dead;
mod missing;

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use rigor_exec::Containment;
use rigor_queue::heartbeat::Heartbeat;
use rigor_queue::presence;
use rigor_queue::rig::Place;

use crate::context::Context;
use missing::Missing;

/// A loop that was not back for this much longer than it should be did not run: nothing that went
/// unheard meanwhile counts against anybody.
const ASLEEP: Duration = Duration::from_secs(5);
/// A process that was killed is gone long before this, unless it hangs in the kernel.
const KILLED_GONE: Duration = Duration::from_secs(10);

/// One agent as the brain sees it.
#[derive(Debug)]
pub(crate) struct Agent {
    /// Its lock is held.
    pub alive: bool,
    /// Its last heartbeat.
    pub heartbeat: Option<Heartbeat>,
    /// When the heartbeat's number last moved, or its file's time, by this process's clock.
    pub moved: Instant,
    /// The time of the heartbeat's file.
    file_time: Option<SystemTime>,
    /// The heartbeat's time moves and its content does not: said.
    touched_said: bool,
    /// Staleness was warned about, at this age; again at twice that.
    warned: Option<Duration>,
    /// What could not be taken back was said.
    unkillable_said: bool,
    /// It hung, and was killed: when, at which age of its heartbeat.
    killed: Option<(Instant, Duration)>,
    /// That the kill did not work was said.
    kill_failed_said: bool,
    /// That it is down is in its journal.
    down_noted: bool,
    missing: Missing,
}

impl Agent {
    /// How old its heartbeat is.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.moved)
    }

    /// Why nothing new should be asked of it although it lives: what its heartbeat says is old.
    pub(crate) fn unwritten(&self) -> Option<String> {
        let beat = self.heartbeat.as_ref().filter(|_| self.touched_said)?;
        Some(format!(
            "cannot write its heartbeat since {} (disk full?)",
            clock(beat.at)
        ))
    }
}

/// All agents.
#[derive(Debug, Default)]
pub(crate) struct Agents {
    agents: BTreeMap<String, Agent>,
    /// When they were last looked at.
    looked: Option<Instant>,
    /// No agent runs at all.
    none: Missing,
}

impl Agents {
    /// The agents by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Agent)> {
        self.agents.iter()
    }

    /// One of them.
    pub(crate) fn get(&self, name: &str) -> Option<&Agent> {
        self.agents.get(name)
    }

    /// How many are alive, of how many.
    pub(crate) fn alive(&self) -> (usize, usize) {
        (
            self.agents.values().filter(|agent| agent.alive).count(),
            self.agents.len(),
        )
    }

    /// Looks at every lock and heartbeat, recovers the dead. `true`: something changed that
    /// placement looks at.
    pub(crate) fn look(
        &mut self,
        brain: &mut Context,
        containment: &Containment,
        now: Instant,
    ) -> Result<bool> {
        self.leave_out_sleep(now, brain.config.timing.lock_poll);
        let mut changed = false;
        let mut failure = Ok(());
        let mut names = brain.rig.agents()?;
        names.extend(brain.config.agent_names().map(str::to_owned));
        names.sort_unstable();
        names.dedup();
        for name in names {
            let dir = brain.rig.agent_dir(&name);
            if !self.agents.contains_key(&name) {
                let configured = brain.config.agent_names().any(|agent| agent == name);
                if !configured && !dir.is_dir() {
                    continue;
                }
                brain.rig.prepare_agent(&name)?;
                // Its heartbeats and claims wake the brain from now on.
                brain.watch(&dir);
                let processing = brain.rig.dir(Place::Processing(&name));
                brain.watch(&processing);
                // Listed after it is watched: a claim in between is not missed.
                let names = brain.rig.list(Place::Processing(&name))?.names;
                brain
                    .processing
                    .insert(name.clone(), names.into_iter().collect());
                changed = true;
                let agent = Agent {
                    alive: false,
                    heartbeat: None,
                    moved: now,
                    file_time: None,
                    touched_said: false,
                    warned: None,
                    unkillable_said: false,
                    killed: None,
                    kill_failed_said: false,
                    down_noted: false,
                    missing: Missing::default(),
                };
                self.agents.insert(name.clone(), agent);
            }
            changed |= self.read_heartbeat(brain, &name, now);
            match self.check_lock(brain, containment, &name, now) {
                Ok(differs) => changed |= differs,
                // The others are looked at all the same.
                Err(error) => failure = Err(error.context(format!("recover agent {name}"))),
            }
            self.warn_if_stale(brain, &name, now);
            self.kill_if_hung(brain, &name, now);
        }
        failure.map(|()| changed)
    }

    /// Time in which this process did not run (the machine slept, somebody stopped it) says
    /// nothing of anybody's heartbeat.
    fn leave_out_sleep(&mut self, now: Instant, every: Duration) {
        let gap = self
            .looked
            .replace(now)
            .map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        if gap > every + ASLEEP {
            for agent in self.agents.values_mut() {
                agent.moved += gap;
            }
        }
    }

    /// Takes the newest heartbeat. `true`: something besides its number changed.
    pub(crate) fn read_heartbeat(&mut self, brain: &Context, name: &str, now: Instant) -> bool {
        let Some(agent) = self.agents.get_mut(name) else {
            return false;
        };
        // One that cannot be read is as good as none: its age will be warned about.
        let Ok(Some((heartbeat, file_time))) = presence::heartbeat_with_time(&brain.rig, name)
        else {
            return false;
        };
        let touched = agent.file_time.replace(file_time) != Some(file_time);
        let known = agent.heartbeat.as_ref();
        let same_beat =
            known.is_some_and(|old| (old.pid, old.sequence) == (heartbeat.pid, heartbeat.sequence));
        if same_beat {
            if touched {
                agent.moved = now;
                agent.warned = None;
                if !std::mem::replace(&mut agent.touched_said, true) {
                    tracing::warn!(
                        agent = name,
                        "Agent {name} cannot write its heartbeat (its time moves, its content does not since {}): is its disk full?",
                        clock(heartbeat.at)
                    );
                }
            }
            return false;
        }
        let matters = known.is_none_or(|old| {
            old.llm != heartbeat.llm
                || old.health != heartbeat.health
                || old.llm_slots != heartbeat.llm_slots
                || old.verdicts != heartbeat.verdicts
                || budget(old) != budget(&heartbeat)
        });
        if known.is_some_and(|old| old.pid != heartbeat.pid) {
            // What was done to the process before this one says nothing of this one.
            agent.killed = None;
        }
        agent.moved = now;
        agent.touched_said = false;
        agent.warned = None;
        agent.heartbeat = Some(heartbeat);
        matters
    }

    fn warn_if_stale(&mut self, brain: &Context, name: &str, now: Instant) {
        let Some(agent) = self.agents.get_mut(name) else {
            return;
        };
        if !agent.alive || agent.heartbeat.is_none() {
            return;
        }
        let threshold = brain.config.timing.heartbeat_warn;
        let age = agent.age(now);
        let due = agent.warned.map_or(threshold, |warned| warned * 2);
        if age >= due {
            agent.warned = Some(age);
            tracing::warn!(
                agent = name,
                "Agent {name} last heartbeat {}s ago (threshold: {}s)",
                age.as_secs(),
                threshold.as_secs()
            );
        }
    }

    /// An agent that holds its lock and has not been heard for long is killed: its work goes on
    /// elsewhere, and should it wake up it finds itself fenced.
    fn kill_if_hung(&mut self, brain: &Context, name: &str, now: Instant) {
        let Some(agent) = self.agents.get_mut(name) else {
            return;
        };
        let age = agent.age(now);
        if !agent.alive || age < brain.config.timing.heartbeat_hung {
            return;
        }
        let failed = match agent.killed {
            None => match presence::kill_holder(&brain.rig, name) {
                Ok(Some(pid)) => {
                    tracing::warn!(
                        agent = name,
                        "Agent {name} hung: no heartbeat for {}s while its lock is held: killing its process (pid {pid})",
                        age.as_secs()
                    );
                    agent.killed = Some((now, age));
                    return;
                }
                Ok(None) => "the lock file does not name the process that holds it".to_owned(),
                Err(error) => error.to_string(),
            },
            Some((at, _)) if now.saturating_duration_since(at) < KILLED_GONE => return,
            Some(_) => "it was killed and is still there; it hangs in the kernel".to_owned(),
        };
        if !std::mem::replace(&mut agent.kill_failed_said, true) {
            tracing::error!(
                agent = name,
                "Agent {name} hung: no heartbeat for {}s, and its process cannot be ended: {failed}. Its tasks stay with it until it is gone",
                age.as_secs()
            );
        }
    }
}

fn budget(beat: &Heartbeat) -> Option<u64> {
    beat.gpu.as_ref().map(|gpu| gpu.budget_mb)
}

/// A time of the day as people here read it: `21:44:02`.
pub(crate) fn clock(at: jiff::Timestamp) -> String {
    at.to_zoned_datetime(jiff::tz::TimeZone::system())
        .strftime("%H:%M:%S")
        .to_string()
}
