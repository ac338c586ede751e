//! The one task that owns the runtime's process: commands and exits in, transitions out.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use crate::adopt::{self, Left};
use crate::api::Api;
use crate::error::{LoadCause, LoadError, ReapError, UnloadError};
use crate::handle::End;
use crate::host::{Found, Health, HostOptions, Loaded, RuntimeEvent, Unloaded};
use crate::process::{self, Running};
use crate::prove::{Before, Proved, prove};
use crate::spec::{ModelSpec, RuntimeProgram};
use crate::state::{Event, IllegalTransition, State, next};
use crate::vram;
use crate::watch::Watch;

pub(crate) enum Command {
    Load(Box<ModelSpec>, oneshot::Sender<Result<Loaded, LoadError>>),
    Drain(oneshot::Sender<Result<(), IllegalTransition>>),
    Unload(oneshot::Sender<Result<Unloaded, UnloadError>>),
    Adopt(Vec<ModelSpec>, oneshot::Sender<Result<Found, ReapError>>),
    Health(oneshot::Sender<Health>),
    Suspect { why: String, patience: Duration },
}

type Inbox = mpsc::Receiver<Command>;
type UnloadReply = oneshot::Sender<Result<Unloaded, UnloadError>>;

pub(crate) struct Supervisor {
    options: HostOptions,
    api: Api,
    state: watch::Sender<State>,
    events: mpsc::UnboundedSender<RuntimeEvent>,
    /// Set from the start of a process until it, its tree and its VRAM are gone.
    running: Option<Running>,
    /// Over what serves.
    watch: Option<Watch>,
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
            running: None,
            watch: None,
        }
    }

    /// Ends when the last handle is gone, with the runtime stopped.
    pub(crate) async fn run(mut self, mut inbox: Inbox) {
        loop {
            let is_stuck = matches!(*self.state.borrow(), State::Failed { stuck: true, .. });
            let command = match self.serving() {
                None if is_stuck => tokio::select! {
                    biased;
                    command = inbox.recv() => command,
                    () = tokio::time::sleep(self.options.again_every) => {
                        self.remove_again().await;
                        continue;
                    }
                },
                None => inbox.recv().await,
                Some((running, watch)) => tokio::select! {
                    biased;
                    end = running.process.wait() => {
                        self.exited(end).await;
                        continue;
                    }
                    command = inbox.recv() => command,
                    cause = watch.wedged() => {
                        self.wedged(cause).await;
                        continue;
                    }
                },
            };
            match command {
                Some(Command::Load(spec, reply)) => self.load(*spec, reply, &mut inbox).await,
                // A receiver that is gone needs no answer, here and below.
                Some(Command::Drain(reply)) => drop(reply.send(self.apply(Event::Drain))),
                Some(Command::Unload(reply)) => drop(reply.send(self.unload().await)),
                Some(Command::Adopt(catalogue, reply)) => {
                    drop(reply.send(self.adopt(&catalogue).await));
                }
                Some(Command::Health(reply)) => drop(reply.send(self.health().await)),
                Some(Command::Suspect { why, patience }) => {
                    if let Some((_, watch)) = self.serving() {
                        watch.suspect(why, patience);
                    }
                }
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
                self.record_proof(loaded.load_ms).await;
                match reply.send(Ok(loaded.clone())) {
                    Ok(()) => self.tell(RuntimeEvent::Ready(loaded)),
                    // The caller went away at the last moment; nobody knows that it is hot.
                    Err(_) => drop(self.unload().await),
                }
            }
            Ok(Err(cause)) => {
                let left_behind = self.stop().await.err().map(Box::new);
                self.expect(if left_behind.is_none() {
                    Event::LoadFailed
                } else {
                    Event::Stuck
                });
                self.tell(RuntimeEvent::Failed {
                    model: model.clone(),
                    code: cause.code(),
                    class: cause.class(),
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
                    class: cause.class(),
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
        let gpus = spec.gpus(self.options.gpu_uuid.as_deref());
        let prepared = process::prepare(&self.options, spec).await?;
        if prepared.has_reaped && !gpus.is_empty() {
            vram::settle(&self.options.vram, &gpus, self.options.vram_patience).await;
        }
        let vram_before = vram::read(&self.options.vram, &gpus).await;
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
        let before = Before {
            tree: running.tree.clone(),
            vram_mb: running.vram_before_mb,
        };
        let deadline = tokio::time::Instant::from_std(began + spec.load_timeout);
        let mut last = "it has not answered".to_owned();
        let proof = async {
            tokio::select! {
                biased;
                end = running.process.wait() => Err(Ended(end)),
                proven = prove(&self.options, &self.api, spec, before, &mut last) => Ok(proven),
            }
        };
        let Proved {
            vram_delta_mb,
            note,
        } = match tokio::time::timeout_at(deadline, proof).await {
            Err(_) => {
                return Err(LoadCause::TimedOut {
                    after: spec.load_timeout,
                    last,
                });
            }
            Ok(Err(Ended(end))) => return Err(self.ended_while_loading(spec, end).await),
            // An end that was not noticed yet: then somebody else has answered.
            Ok(Ok(proven)) => match running.process.try_wait() {
                Ok(None) => proven?,
                Ok(Some(end)) => return Err(self.ended_while_loading(spec, Ok(end)).await),
                Err(error) => return Err(self.ended_while_loading(spec, Err(error)).await),
            },
        };
        running.vram_delta_mb = vram_delta_mb;
        Ok(Loaded {
            model: spec.id.clone(),
            served_as: spec.served_as().to_owned(),
            load_ms: millis(began.elapsed()),
            slots: spec.slots,
            base_url: self.api.base_url().to_owned(),
            vram_delta_mb,
            pid: running.pid(),
            log: running.manifest.log.clone(),
            note,
        })
    }

    /// A runtime whose proof cannot be written serves all the same; it is reaped by a successor.
    async fn record_proof(&mut self, load_ms: u64) {
        if let Some(running) = &mut self.running {
            let _ = process::record_proof(&self.options, running, load_ms).await;
            self.watch = Some(Watch::new(
                self.api.clone(),
                running.asked.clone(),
                self.options.watch_every,
            ));
        }
    }

    async fn ended_while_loading(
        &mut self,
        spec: &ModelSpec,
        end: std::io::Result<End>,
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
            RuntimeProgram::LlamaServer { .. }
            | RuntimeProgram::Ollama { .. }
            | RuntimeProgram::Vllm { .. }
            | RuntimeProgram::Command { .. } => LoadCause::Exited {
                status: shown(end),
                cause,
            },
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
                self.expect(Event::Stuck);
                self.tell(RuntimeEvent::Stuck {
                    model,
                    cause: error.to_string(),
                });
                Err(error)
            }
        }
    }

    /// Tries once more to be rid of what could not be removed: the driver may have been slow, or what
    /// is in use may be somebody else's by now.
    async fn remove_again(&mut self) {
        let model = self.state.borrow().model().unwrap_or_default().to_owned();
        self.expect(Event::Unload);
        match self.stop().await {
            Ok(_) => {
                self.expect(Event::Unloaded);
                self.tell(RuntimeEvent::Removed { model });
            }
            // As was told.
            Err(_) => self.expect(Event::Stuck),
        }
    }

    /// The runtime ended by itself; its leftovers are removed before anything else may start.
    async fn exited(&mut self, end: std::io::Result<End>) {
        let cause = self.cause_in_log().await;
        let model = self.state.borrow().model().unwrap_or_default().to_owned();
        // Told first: removing its leftovers may take long, and nothing serves meanwhile.
        self.tell(RuntimeEvent::Exited {
            model: model.clone(),
            status: shown(end),
            cause,
        });
        self.remove(model).await;
    }

    /// It serves no more, but lives: it is stopped like one that is unloaded.
    async fn wedged(&mut self, cause: String) {
        let model = self.state.borrow().model().unwrap_or_default().to_owned();
        self.tell(RuntimeEvent::Wedged {
            model: model.clone(),
            cause,
        });
        self.remove(model).await;
    }

    async fn remove(&mut self, model: String) {
        let stopped = self.stop().await;
        self.expect(if stopped.is_ok() {
            Event::Exited
        } else {
            Event::Stuck
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
        self.watch = None;
        let Some(running) = &mut self.running else {
            return Ok(false);
        };
        let forced = process::stop(&self.options, running).await?;
        self.running = None;
        Ok(forced)
    }

    async fn adopt(&mut self, catalogue: &[ModelSpec]) -> Result<Found, ReapError> {
        if self.running.is_some() {
            return Err(ReapError::Busy);
        }
        match adopt::adopt_or_reap(&self.options, &self.api, catalogue).await? {
            Left::Nothing => Ok(Found::Nothing),
            Left::Reaped(reaped) => Ok(Found::Reaped(*reaped)),
            Left::Adopted(adopted) => {
                let (running, loaded, started_at) = *adopted;
                let model = loaded.model.clone();
                // A host that has failed before has nothing to adopt any more.
                if self.apply(Event::Adopted { model }).is_err() {
                    return Err(ReapError::Busy);
                }
                self.watch = Some(Watch::new(
                    self.api.clone(),
                    running.asked.clone(),
                    self.options.watch_every,
                ));
                self.running = Some(running);
                Ok(Found::Adopted { loaded, started_at })
            }
        }
    }

    async fn health(&mut self) -> Health {
        let Some((running, _)) = self.serving() else {
            return Health::NotHot;
        };
        let asked = running.asked.clone();
        match self.api.lists(&asked).await {
            Ok(()) => Health::Serving,
            Err(detail) => Health::Failing(detail),
        }
    }

    async fn cause_in_log(&mut self) -> String {
        match &self.running {
            Some(running) => process::cause_of(running.manifest.log.clone()).await,
            None => String::new(),
        }
    }

    /// The process whose end would be news, and the watch over it.
    fn serving(&mut self) -> Option<(&mut Running, &mut Watch)> {
        match *self.state.borrow() {
            State::Hot { .. } | State::Draining { .. } => {
                self.running.as_mut().zip(self.watch.as_mut())
            }
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
}

struct Ended(std::io::Result<End>);

/// Answers what cannot be done during a load, and returns with what ends it.
async fn interruption(
    inbox: &mut Inbox,
    caller: &mut oneshot::Sender<Result<Loaded, LoadError>>,
    loading: &str,
) -> Interruption {
    let busy = |event| IllegalTransition {
        state: State::Loading {
            model: loading.to_owned(),
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
            Some(Command::Adopt(_, reply)) => drop(reply.send(Err(ReapError::Busy))),
            Some(Command::Health(reply)) => drop(reply.send(Health::NotHot)),
            Some(Command::Suspect { .. }) => {}
            Some(Command::Load(spec, reply)) => {
                let cause = busy(Event::Load {
                    model: spec.id.clone(),
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

fn shown(end: std::io::Result<End>) -> String {
    end.map_or_else(
        |error| format!("its exit is unknown: {error}"),
        |end| end.to_string(),
    )
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
