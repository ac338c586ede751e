//! The one task that owns the runtime's process: commands and exits in, transitions out.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use crate::api::{Api, Models, Proof};
use crate::error::{LoadCause, LoadError, ReapError, UnloadError};
use crate::host::{HostOptions, Loaded, Reaped, RuntimeEvent, Unloaded};
use crate::process::{self, Running};
use crate::spec::{ModelSpec, RuntimeProgram};
use crate::state::{Event, IllegalTransition, State, next};
use crate::vram;

/// Between two looks at a loading runtime: short at first, as small models load in milliseconds.
const POLL_FIRST: Duration = Duration::from_millis(10);
const POLL_LONGEST: Duration = Duration::from_millis(250);

pub(crate) enum Command {
    Load(Box<ModelSpec>, oneshot::Sender<Result<Loaded, LoadError>>),
    Drain(oneshot::Sender<Result<(), IllegalTransition>>),
    Unload(oneshot::Sender<Result<Unloaded, UnloadError>>),
    Reap(oneshot::Sender<Result<Option<Reaped>, ReapError>>),
}

type Inbox = mpsc::Receiver<Command>;
type UnloadReply = oneshot::Sender<Result<Unloaded, UnloadError>>;

pub(crate) struct Supervisor {
    options: HostOptions,
    api: Api,
    state: watch::Sender<State>,
    events: mpsc::UnboundedSender<RuntimeEvent>,
    /// The zero of the state's times.
    born: Instant,
    /// Set from the start of a process until it, its tree and its VRAM are gone.
    running: Option<Running>,
}

/// What ends the wait for a load.
enum Interruption {
    Unload(UnloadReply),
    Shutdown,
    CallerGone,
}

impl Supervisor {
    pub(crate) fn new(
        options: HostOptions,
        api: Api,
        state: watch::Sender<State>,
        events: mpsc::UnboundedSender<RuntimeEvent>,
    ) -> Supervisor {
        Supervisor {
            options,
            api,
            state,
            events,
            born: Instant::now(),
            running: None,
        }
    }

    /// Ends when the last handle is gone, with the runtime stopped.
    pub(crate) async fn run(mut self, mut inbox: Inbox) {
        loop {
            let command = match self.serving() {
                None => inbox.recv().await,
                Some(running) => tokio::select! {
                    biased;
                    status = running.child.wait() => {
                        self.exited(status).await;
                        continue;
                    }
                    command = inbox.recv() => command,
                },
            };
            match command {
                Some(Command::Load(spec, reply)) => self.load(*spec, reply, &mut inbox).await,
                // A receiver that is gone needs no answer, here and below.
                Some(Command::Drain(reply)) => drop(reply.send(self.apply(Event::Drain))),
                Some(Command::Unload(reply)) => drop(reply.send(self.unload().await)),
                Some(Command::Reap(reply)) => drop(reply.send(self.reap().await)),
                None => {
                    if self.running.is_some() {
                        // What is stuck has been announced; there is nobody left to tell.
                        let _ = self.unload().await;
                    }
                    return;
                }
            }
        }
    }

    async fn load(
        &mut self,
        spec: ModelSpec,
        mut reply: oneshot::Sender<Result<Loaded, LoadError>>,
        inbox: &mut Inbox,
    ) {
        let model = spec.id.clone();
        let error = |cause, log, left_behind| LoadError {
            model: model.clone(),
            cause,
            log,
            left_behind,
        };
        if let Err(refused) = self.apply(Event::Load {
            model: model.clone(),
            at_ms: self.now_ms(),
        }) {
            drop(reply.send(Err(error(refused.into(), None, None))));
            return;
        }
        // Not given up halfway: what it writes would otherwise come after a next load's.
        let outcome = match self.begin(&spec).await {
            Err(cause) => Ok(Err(cause)),
            Ok(()) => tokio::select! {
                biased;
                interruption = interruption(inbox, &mut reply, &model) => Err(interruption),
                result = self.proof(&spec) => Ok(result),
            },
        };
        let log = self
            .running
            .as_ref()
            .map(|running| running.manifest.log.clone());
        match outcome {
            Ok(Ok(loaded)) => {
                self.expect(Event::Proven);
                match reply.send(Ok(loaded.clone())) {
                    Ok(()) => self.tell(RuntimeEvent::Ready(loaded)),
                    // The caller went away at the last moment; nobody knows that it is hot.
                    Err(_) => drop(self.unload().await),
                }
            }
            Ok(Err(cause)) => {
                let left_behind = self.stop().await.err().map(Box::new);
                let at_ms = self.now_ms();
                self.expect(if left_behind.is_none() {
                    Event::LoadFailed { at_ms }
                } else {
                    Event::Stuck { at_ms }
                });
                self.tell(RuntimeEvent::Failed {
                    model: model.clone(),
                    code: cause.code(),
                    cause: cause.to_string(),
                });
                if let Some(left) = &left_behind {
                    self.tell(RuntimeEvent::Stuck {
                        model: model.clone(),
                        cause: left.to_string(),
                    });
                }
                drop(reply.send(Err(error(cause, log, left_behind))));
            }
            Err(interruption) => {
                let cause = LoadCause::Cancelled;
                self.tell(RuntimeEvent::Failed {
                    model: model.clone(),
                    code: cause.code(),
                    cause: cause.to_string(),
                });
                let unloaded = self.unload().await;
                drop(reply.send(Err(error(cause, log, None))));
                if let Interruption::Unload(unload_reply) = interruption {
                    drop(unload_reply.send(unloaded));
                }
            }
        }
    }

    /// Starts the process and puts it into `self.running`.
    async fn begin(&mut self, spec: &ModelSpec) -> Result<(), LoadCause> {
        let vram_before = vram::read(&self.options.vram).await;
        let prepared = process::prepare(&self.options, spec).await?;
        let started = match process::start(&self.options, spec, prepared, vram_before) {
            Ok(started) => started,
            Err(cause) => {
                process::forget(&self.options).await;
                return Err(cause);
            }
        };
        let running = self.running.insert(started);
        process::record(&self.options, running).await?;
        Ok(())
    }

    /// Waits for the proof, the end of the process or the time-out. May be dropped at any point.
    async fn proof(&mut self, spec: &ModelSpec) -> Result<Loaded, LoadCause> {
        let running = self.running.as_mut().expect("the load has begun");
        let began = running.began;
        let vram_before = running.vram_before_mb;
        let deadline = tokio::time::Instant::from_std(began + spec.load_timeout);
        let mut last = "it has not answered".to_owned();
        let proof = async {
            tokio::select! {
                biased;
                status = running.child.wait() => Err(Ended(status)),
                proven = prove(&self.options, &self.api, spec, &running.tree, vram_before, &mut last) => Ok(proven),
            }
        };
        let vram_delta_mb = match tokio::time::timeout_at(deadline, proof).await {
            Err(_) => {
                return Err(LoadCause::TimedOut {
                    after: spec.load_timeout,
                    last,
                });
            }
            Ok(Err(Ended(status))) => return Err(self.ended_while_loading(spec, status).await),
            // An end that was not noticed yet: then somebody else has answered.
            Ok(Ok(proven)) => match running.child.try_wait() {
                Ok(None) => proven?,
                Ok(Some(status)) => return Err(self.ended_while_loading(spec, Ok(status)).await),
                Err(error) => return Err(self.ended_while_loading(spec, Err(error)).await),
            },
        };
        running.vram_delta_mb = vram_delta_mb;
        Ok(Loaded {
            model: spec.id.clone(),
            load_ms: millis(began.elapsed()),
            slots: spec.slots,
            base_url: self.api.base_url().to_owned(),
            vram_delta_mb,
            pid: running.pid(),
            log: running.manifest.log.clone(),
        })
    }

    async fn ended_while_loading(
        &self,
        spec: &ModelSpec,
        status: std::io::Result<ExitStatus>,
    ) -> LoadCause {
        let cause = self.cause_in_log().await;
        let port = self.options.port;
        match &spec.program {
            // Taken between our own look at the port and llama-server's.
            RuntimeProgram::LlamaServer { .. } if cause.contains("couldn't bind") => {
                LoadCause::PortTaken {
                    port,
                    holder: process::listener(port).await,
                }
            }
            RuntimeProgram::LlamaServer { .. } | RuntimeProgram::Command { .. } => {
                LoadCause::Exited {
                    status: shown(status),
                    cause,
                }
            }
        }
    }

    async fn unload(&mut self) -> Result<Unloaded, UnloadError> {
        let began = Instant::now();
        let model = self.state.borrow().model().unwrap_or_default().to_owned();
        self.apply(Event::Unload)?;
        match self.stop().await {
            Ok(forced) => {
                self.expect(Event::Unloaded);
                let unloaded = Unloaded {
                    model,
                    unload_ms: millis(began.elapsed()),
                    forced,
                };
                self.tell(RuntimeEvent::Unloaded(unloaded.clone()));
                Ok(unloaded)
            }
            Err(error) => {
                self.expect(Event::Stuck {
                    at_ms: self.now_ms(),
                });
                self.tell(RuntimeEvent::Stuck {
                    model,
                    cause: error.to_string(),
                });
                Err(error)
            }
        }
    }

    /// The runtime ended by itself; its leftovers are removed before anything else may start.
    async fn exited(&mut self, status: std::io::Result<ExitStatus>) {
        let cause = self.cause_in_log().await;
        let model = self.state.borrow().model().unwrap_or_default().to_owned();
        // Told first: removing its leftovers may take long, and nothing serves meanwhile.
        self.tell(RuntimeEvent::Exited {
            model: model.clone(),
            status: shown(status),
            cause,
        });
        let stopped = self.stop().await;
        let at_ms = self.now_ms();
        self.expect(if stopped.is_ok() {
            Event::Exited { at_ms }
        } else {
            Event::Stuck { at_ms }
        });
        self.tell(match stopped {
            Ok(_) => RuntimeEvent::Removed { model },
            Err(error) => RuntimeEvent::Stuck {
                model,
                cause: error.to_string(),
            },
        });
    }

    /// `Ok(true)` when it had to be killed. On an error `self.running` stays, for another try.
    async fn stop(&mut self) -> Result<bool, UnloadError> {
        let Some(running) = &mut self.running else {
            return Ok(false);
        };
        let forced = process::stop(&self.options, running).await?;
        self.running = None;
        Ok(forced)
    }

    async fn reap(&self) -> Result<Option<Reaped>, ReapError> {
        if self.running.is_some() {
            return Err(ReapError::Busy);
        }
        process::reap(&self.options.manifest_path).await
    }

    async fn cause_in_log(&self) -> String {
        match &self.running {
            Some(running) => process::cause_of(running.manifest.log.clone()).await,
            None => String::new(),
        }
    }

    /// The process whose end would be news.
    fn serving(&mut self) -> Option<&mut Running> {
        match *self.state.borrow() {
            State::Hot { .. } | State::Draining { .. } => self.running.as_mut(),
            State::Cold
            | State::Loading { .. }
            | State::Unloading { .. }
            | State::Failed { .. } => None,
        }
    }

    fn apply(&self, event: Event) -> Result<(), IllegalTransition> {
        let after = next(self.state.borrow().clone(), event)?;
        self.state.send_replace(after);
        Ok(())
    }

    /// For events that this task itself brings about.
    fn expect(&self, event: Event) {
        self.apply(event)
            .expect("the supervisor's own events fit the state it has set");
    }

    fn tell(&self, event: RuntimeEvent) {
        // An agent that has dropped the receiver does not want to know.
        let _ = self.events.send(event);
    }

    fn now_ms(&self) -> u64 {
        millis(self.born.elapsed())
    }
}

struct Ended(std::io::Result<ExitStatus>);

/// Answers what cannot be done during a load, and returns with what ends it.
async fn interruption(
    inbox: &mut Inbox,
    caller: &mut oneshot::Sender<Result<Loaded, LoadError>>,
    loading: &str,
) -> Interruption {
    let busy = |event| IllegalTransition {
        state: State::Loading {
            model: loading.to_owned(),
            failures: 0,
        },
        event,
    };
    loop {
        let command = tokio::select! {
            () = caller.closed() => return Interruption::CallerGone,
            command = inbox.recv() => command,
        };
        match command {
            None => return Interruption::Shutdown,
            Some(Command::Unload(reply)) => return Interruption::Unload(reply),
            Some(Command::Drain(reply)) => drop(reply.send(Err(busy(Event::Drain)))),
            Some(Command::Reap(reply)) => drop(reply.send(Err(ReapError::Busy))),
            Some(Command::Load(spec, reply)) => {
                let cause = busy(Event::Load {
                    model: spec.id.clone(),
                    at_ms: 0,
                })
                .into();
                drop(reply.send(Err(LoadError {
                    model: spec.id,
                    cause,
                    log: None,
                    left_behind: None,
                })));
            }
        }
    }
}

/// Runs until the runtime is proven or cannot be; `last` tells a time-out what was last seen.
/// Returns how much VRAM use grew.
async fn prove(
    options: &HostOptions,
    api: &Api,
    spec: &ModelSpec,
    tree: &crate::tree::Tree,
    vram_before: Option<u64>,
    last: &mut String,
) -> Result<Option<i64>, LoadCause> {
    let mut pause = POLL_FIRST;
    loop {
        match api.models().await {
            Models::Served(names) if names.contains(&spec.id) => {
                // A command may serve through something else, such as a container's proxy, so
                // there the name has to do.
                let must_listen = matches!(spec.program, RuntimeProgram::LlamaServer { .. });
                if must_listen && !process::listens(tree.clone(), options.port).await {
                    let holder = process::listener(options.port).await;
                    return Err(LoadCause::NotOurs {
                        port: options.port,
                        holder,
                    });
                }
                "it lists its model and has not generated yet".clone_into(last);
                match api.prove(spec.kind, &spec.id).await {
                    Proof::Given => break,
                    Proof::NotYet(detail) => *last = detail,
                    Proof::Failed(detail) => return Err(LoadCause::Unproven(detail)),
                }
            }
            Models::Served(served) => {
                return Err(LoadCause::WrongModel {
                    expected: spec.id.clone(),
                    served,
                });
            }
            Models::NotYet(detail) => *last = detail,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL_LONGEST);
    }
    let (Some(_), Some(before), true) = (&options.gpu_uuid, vram_before, spec.prove_vram) else {
        return Ok(None);
    };
    "it generates, but VRAM has not grown".clone_into(last);
    vram::grown(&options.vram, before, spec.vram_mb).await
}

fn shown(status: std::io::Result<ExitStatus>) -> String {
    status.map_or_else(
        |error| format!("its exit is unknown: {error}"),
        |status| status.to_string(),
    )
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
