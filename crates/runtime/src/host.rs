//! The agent's handle on its one runtime.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::api::Api;
use crate::error::{LoadCause, LoadClass, LoadError, ReapError, UnloadError};
use crate::manifest::Manifest;
use crate::spec::ModelSpec;
use crate::state::{IllegalTransition, State};
use crate::supervisor::{Command, Supervisor};
use crate::vram;

/// VRAM in use on the GPUs of these UUIDs together, in MB, `None` where it cannot be told of each.
/// May block.
pub type VramProbe = Arc<dyn Fn(&[String]) -> Option<u64> + Send + Sync>;

/// What a host is made for.
#[derive(Clone)]
pub struct HostOptions {
    /// The rig's id: the value of [`crate::COOKIE_VARIABLE`] begins with it and a colon.
    pub rig_id: String,
    /// The agent's name.
    pub agent: String,
    /// The address that runtimes listen on, without a port: `127.0.0.1`.
    pub host: String,
    /// The agent's own port.
    pub port: u16,
    /// The GPU's UUID; `None` runs on the CPU and hides all GPUs.
    pub gpu_uuid: Option<String>,
    /// A folder for this agent's runtime logs alone; the oldest are removed.
    pub log_dir: PathBuf,
    /// Where it is written what runs.
    pub manifest_path: PathBuf,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// How to read VRAM; without it loads and unloads are not checked against it.
    pub vram: Option<VramProbe>,
    /// A reading that takes longer tells nothing: the driver hangs, and nothing may wait for it.
    pub vram_hung: Duration,
    /// How long VRAM may take to come back after the last process is gone.
    pub vram_patience: Duration,
    /// Between two looks at a runtime that serves.
    pub watch_every: Duration,
    /// Between two tries to remove what could not be removed.
    pub again_every: Duration,
}

/// A proven runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The model's id.
    pub model: String,
    /// What requests must name as their model: for ollama its tag, else the id.
    pub served_as: String,
    /// From the start to the proof.
    pub load_ms: u64,
    /// Requests served at once.
    pub slots: u32,
    /// Where it serves, without `/v1`.
    pub base_url: String,
    /// How much VRAM use grew, MB; `None` without a probe.
    pub vram_delta_mb: Option<i64>,
    /// Its first process.
    pub pid: i32,
    /// Its output.
    pub log: PathBuf,
    /// What is not as it should be, although it serves.
    pub note: Option<String>,
}

/// A removed runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unloaded {
    /// The model's id.
    pub model: String,
    /// From SIGTERM to free VRAM.
    pub unload_ms: u64,
    /// It did not end within the grace and was killed.
    pub forced: bool,
}

/// What an earlier agent had left and is gone now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reaped {
    /// What it was.
    pub manifest: Manifest,
    /// How many processes were found alive.
    pub killed: usize,
    /// Why it was not taken over.
    pub why: String,
}

/// What an earlier agent had left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A runtime that serves; it is this host's now.
    Adopted {
        /// As if this host had loaded it.
        loaded: Loaded,
        /// When the load began.
        started_at: jiff::Timestamp,
    },
    /// What could not be taken over.
    Reaped(Reaped),
}

/// What an agent must know when it did not ask.
#[derive(Clone, Debug)]
pub enum RuntimeEvent {
    /// A load has led to a proven runtime.
    Ready(Loaded),
    /// A load has failed, or was given up.
    Failed {
        /// The model's id.
        model: String,
        /// [`LoadCause::code`].
        code: &'static str,
        /// What follows from it.
        class: LoadClass,
        /// For people.
        cause: String,
    },
    /// The runtime ended by itself while it was to serve. What it left is being removed:
    /// [`RuntimeEvent::Removed`] or [`RuntimeEvent::Stuck`] follows.
    Exited {
        /// The model's id.
        model: String,
        /// Exit code or signal.
        status: String,
        /// Its own words.
        cause: String,
    },
    /// The runtime's process lives, but does not generate any more. It is being removed, as after
    /// [`RuntimeEvent::Exited`].
    Wedged {
        /// The model's id.
        model: String,
        /// What was noticed, and what it answered instead.
        cause: String,
    },
    /// Nothing is left of a runtime that ended by itself or was removed as wedged, in VRAM neither;
    /// or, after [`RuntimeEvent::Stuck`], of what could not be removed at first.
    Removed {
        /// The model's id.
        model: String,
    },
    /// An unload is complete.
    Unloaded(Unloaded),
    /// Processes or VRAM remain: the GPU is to be quarantined. The host tries again, until
    /// [`RuntimeEvent::Removed`].
    Stuck {
        /// The model's id.
        model: String,
        /// For people.
        cause: String,
    },
}

/// How a runtime is, asked from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It names its model.
    Serving,
    /// It is up, but does not say what it should.
    Failing(String),
    /// Nothing is to be asked: the runtime is not hot.
    NotHot,
}

/// Owns at most one runtime. The work is done by one task that ends with [`RuntimeHost::shutdown`]
/// or when the host is dropped; either way the runtime is stopped.
///
/// Every call is cancellation-safe: a dropped [`RuntimeHost::load`] takes its runtime down, the
/// others run to their end unobserved.
#[derive(Debug)]
pub struct RuntimeHost {
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<State>,
    task: JoinHandle<()>,
}

impl RuntimeHost {
    /// Starts the host's task on the current tokio runtime. Nothing is loaded, and nothing that an
    /// earlier agent left is touched before [`RuntimeHost::adopt_or_reap`] or a load, which ends it.
    ///
    /// The events are few, at most two for a load or unload that the agent asked for, so their
    /// channel has no bound.
    pub fn new(
        mut options: HostOptions,
    ) -> Result<(RuntimeHost, mpsc::UnboundedReceiver<RuntimeEvent>), reqwest::Error> {
        let api = Api::new(&options.host, options.port)?;
        let (commands, inbox) = mpsc::channel(8);
        let (events, outbox) = mpsc::unbounded_channel();
        let (announce, state) = watch::channel(State::Cold);
        options.vram = options
            .vram
            .map(|probe| vram::bounded(probe, options.vram_hung));
        let supervisor = Supervisor::new(options, api, announce, events);
        let task = tokio::spawn(supervisor.run(inbox));
        Ok((
            RuntimeHost {
                commands,
                state,
                task,
            },
            outbox,
        ))
    }

    /// The state now; the receiver tells of changes.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Starts the model's runtime and waits until it is proven: our process lives, it names the
    /// model, it has generated a token (or embedded), and VRAM has grown where that can be told.
    pub async fn load(&self, spec: ModelSpec) -> Result<Loaded, LoadError> {
        let model = spec.id.clone();
        let (reply, answer) = oneshot::channel();
        let gone = || LoadError {
            model,
            cause: LoadCause::Cancelled,
            log: None,
            left_behind: None,
        };
        if self
            .commands
            .send(Command::Load(Box::new(spec), reply))
            .await
            .is_err()
        {
            return Err(gone());
        }
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Marks the runtime as taking no new work; the agent waits for its workers, then unloads.
    /// `false` where the host has been shut down.
    pub async fn drain(&self) -> Result<bool, IllegalTransition> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Drain(reply)).await.is_err() {
            return Ok(false);
        }
        answer
            .await
            .map_or(Ok(false), |drained| drained.map(|()| true))
    }

    /// Stops the runtime: SIGTERM, the grace, SIGKILL to all of its processes, then waits until
    /// VRAM is back. During a load it gives the load up. After a failure it removes what is left
    /// and forgets the backoff.
    pub async fn unload(&self) -> Result<Unloaded, UnloadError> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(Command::Unload(reply))
            .await
            .map_err(|_| UnloadError::HostGone)?;
        answer.await.map_err(|_| UnloadError::HostGone)?
    }

    /// Takes over what the manifest of an earlier agent leads to, or ends it. It is taken over where
    /// its first process lives and is the manifest's (number, start time, boot, nonce), it was
    /// started as one of `catalogue` would be now, from the same files, it is on this agent's GPU
    /// alone, and it generates. Otherwise its processes are killed, exactly those that bear the
    /// nonce or are in the named session.
    pub async fn adopt_or_reap(&self, catalogue: Vec<ModelSpec>) -> Result<Found, ReapError> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(Command::Adopt(catalogue, reply))
            .await
            .map_err(|_| ReapError::HostGone)?;
        answer.await.map_err(|_| ReapError::HostGone)?
    }

    /// Asks a runtime that serves for its models. It says little about one whose generation hangs.
    pub async fn health(&self) -> Health {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Health(reply)).await.is_err() {
            return Health::NotHot;
        }
        answer.await.unwrap_or(Health::NotHot)
    }

    /// Has a runtime that serves prove that it still generates, within `patience`: it may be busy
    /// with the requests of others. Where it does not, [`RuntimeEvent::Wedged`] follows; where it
    /// does, nothing. `why` is what gave rise to it, for people. Returns at once.
    pub async fn suspect(&self, why: String, patience: Duration) {
        // A host that is gone has no runtime.
        let _ = self.commands.send(Command::Suspect { why, patience }).await;
    }

    /// Stops the runtime, if any, and the host's task.
    pub async fn shutdown(self) {
        drop(self.commands);
        // It can only have ended otherwise by a panic, which has been reported where it happened.
        let _ = self.task.await;
    }
}
