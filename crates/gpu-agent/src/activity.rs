//! Signs of life of the attempts that run here, read in a thread of their own at heartbeat
//! intervals: a slow disk or a long /proc delays no claim.

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rigor_exec::Containment;
use rigor_exec::activity::{Activity, Sampler, Watched};
use rigor_queue::heartbeat::RunningBeat;
use rigor_queue::name::TaskId;
use rigor_queue::task::Class;

use crate::agent::Agent;
use crate::event::{Event, Farewell};

/// What is younger was just started: that is its sign of life.
const YOUNG: Duration = Duration::from_secs(2);

/// The thread's handle, and what it told last.
#[derive(Debug)]
pub(crate) struct Signs {
    requests: Sender<Vec<Watched>>,
    /// An answer is on its way.
    asked: bool,
    asked_at: Option<Instant>,
    told: HashMap<(TaskId, u32), Activity>,
}

impl Signs {
    pub(crate) fn start(containment: Containment, events: Sender<Event>) -> std::io::Result<Signs> {
        let (requests, inbox) = mpsc::channel();
        thread::Builder::new()
            .name("activity".to_owned())
            .spawn(move || {
                let _farewell = Farewell {
                    thread: "activity",
                    events: events.clone(),
                };
                sample_on_request(Sampler::new(containment), &inbox, &events);
            })?;
        Ok(Signs {
            requests,
            asked: false,
            asked_at: None,
            told: HashMap::new(),
        })
    }
}

fn sample_on_request(mut sampler: Sampler, inbox: &Receiver<Vec<Watched>>, events: &Sender<Event>) {
    while let Ok(watched) = inbox.recv() {
        let signs = sampler.sample(&watched);
        if events.send(Event::Activity(signs)).is_err() {
            return;
        }
    }
}

impl Agent {
    /// Asks for signs of life, at most once in a heartbeat interval.
    pub(crate) fn sample_activity(&mut self, now: Instant) {
        let every = self.config.timing.heartbeat_every;
        if self.signs.asked || self.signs.asked_at.is_some_and(|at| now - at < every) {
            return;
        }
        let used = self.device.as_ref().and_then(|it| it.last.utilization);
        let server_pid = self.server_pid();
        let watched: Vec<Watched> = self
            .attempts
            .workers()
            .filter(|running| now - running.started >= YOUNG)
            .map(|running| {
                let on_gpu = matches!(running.spec.class, Class::Script | Class::Llm);
                Watched {
                    // What a GPU does tells better, where it tells.
                    server_pid: server_pid
                        .filter(|_| running.spec.class == Class::Llm && used.is_none()),
                    ..running.watched(&self.rig, used.filter(|_| on_gpu))
                }
            })
            .collect();
        if watched.is_empty() {
            return;
        }
        self.signs.asked = true;
        self.signs.asked_at = Some(now);
        // The thread ends with this sender only, or by a panic that was reported.
        let _ = self.signs.requests.send(watched);
    }

    /// The first process of the model's runtime, while a model is served.
    fn server_pid(&self) -> Option<u32> {
        self.llm.served()?;
        // The host replaces it with each runtime and removes it with the last.
        let path = self.rig.agent_dir(&self.name).join("runtime.json");
        let manifest = rigor_runtime::Manifest::read(&path).ok()??;
        manifest.pid?.try_into().ok()
    }

    /// The thread has answered.
    pub(crate) fn signs_read(&mut self, signs: Vec<Activity>) {
        self.signs.asked = false;
        let told = signs.into_iter().map(|one| ((one.id, one.attempt), one));
        self.signs.told.extend(told);
        // One whose worker has exited keeps what was told last until it is settled.
        let attempts = &self.attempts;
        self.signs.told.retain(|key, _| {
            attempts.iter().any(|attempt| {
                let name = attempt.name();
                (name.id, name.attempt) == *key
            })
        });
    }

    /// What runs, the longest first, with its last signs of life.
    pub(crate) fn running_beats(&self) -> Vec<RunningBeat> {
        let mut beats: Vec<RunningBeat> = self
            .attempts
            .iter()
            .map(|attempt| {
                let running = attempt.running();
                let key = (running.spec.id, running.name.attempt);
                running.beat(self.signs.told.get(&key))
            })
            .collect();
        beats.sort_by_key(|beat| beat.since);
        beats
    }
}
