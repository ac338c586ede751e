//! The thread with the async runtime: the system's signals, and the LLM runtime's host.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc as std_mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use rigor_runtime::{Found, HostOptions, ModelSpec, ReapError, RuntimeEvent, RuntimeHost};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::event::{Event, Farewell};

/// What the dispatcher asks of the runtime's host, one at a time.
#[derive(Debug)]
pub(crate) enum Ask {
    Load(Box<ModelSpec>),
    Unload,
    /// Has the runtime prove that it still generates, within this time.
    Suspect {
        why: String,
        patience: Duration,
    },
}

/// What became of the runtime that an earlier agent may have left.
pub(crate) type Leftover = Result<Found, ReapError>;

/// The thread's handle.
#[derive(Debug)]
pub(crate) struct Side {
    asks: Option<mpsc::UnboundedSender<Ask>>,
    thread: Option<JoinHandle<()>>,
}

impl Side {
    /// Starts the thread; with `options` it also hosts a runtime, and first takes over or ends what
    /// an earlier agent left of one. `catalogue`: what could be taken over.
    pub(crate) fn start(
        options: Option<HostOptions>,
        catalogue: Vec<ModelSpec>,
        events: std_mpsc::Sender<Event>,
    ) -> anyhow::Result<(Side, Leftover)> {
        let (asks, inbox) = mpsc::unbounded_channel();
        let (ready, started) = std_mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the async runtime")?;
        let thread = thread::Builder::new()
            .name("side".to_owned())
            .spawn(move || {
                let _farewell = Farewell {
                    thread: "side",
                    events: events.clone(),
                };
                if let Err(error) =
                    runtime.block_on(serve(options, catalogue, events, inbox, &ready))
                {
                    let _ = ready.send(Err(error));
                }
            })?;
        let gone = || anyhow!("the thread for signals and the LLM runtime ended at its start");
        let leftover = started.recv().map_err(|_| gone())??;
        Ok((
            Side {
                asks: Some(asks),
                thread: Some(thread),
            },
            leftover,
        ))
    }

    pub(crate) fn ask(&self, ask: Ask) {
        if let Some(asks) = &self.asks {
            // Gone only by a panic, which was reported where it happened.
            let _ = asks.send(ask);
        }
    }

    /// Stops the runtime and ends the thread.
    pub(crate) fn shutdown(&mut self) {
        self.asks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.shutdown();
    }
}

async fn serve(
    options: Option<HostOptions>,
    catalogue: Vec<ModelSpec>,
    events: std_mpsc::Sender<Event>,
    mut asks: mpsc::UnboundedReceiver<Ask>,
    ready: &std_mpsc::Sender<anyhow::Result<Leftover>>,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let mut child = signal(SignalKind::child()).context("watch for SIGCHLD")?;
    let (host, mut runtime_events) = match options {
        Some(options) => {
            let (host, events) = RuntimeHost::new(options).context("set up the LLM runtime")?;
            (Some(host), Some(events))
        }
        None => (None, None),
    };
    let leftover = match &host {
        Some(host) => host.adopt_or_reap(catalogue).await,
        None => Ok(Found::Nothing),
    };
    let _ = ready.send(Ok(leftover));
    // The dispatcher is gone only when the agent ends.
    let tell = |event| drop(events.send(event));
    let mut busy: Option<Pin<Box<dyn Future<Output = Event> + '_>>> = None;
    loop {
        tokio::select! {
            _ = terminate.recv() => tell(Event::Terminate("SIGTERM")),
            _ = interrupt.recv() => tell(Event::Terminate("SIGINT")),
            _ = child.recv() => tell(Event::Child),
            event = next(runtime_events.as_mut()) => match event {
                Some(event) => tell(Event::Runtime(event)),
                None => runtime_events = None,
            },
            event = async { busy.as_mut().expect("guarded").await }, if busy.is_some() => {
                busy = None;
                tell(event);
            }
            ask = asks.recv() => match (ask, &host) {
                (None, _) => break,
                (Some(Ask::Load(spec)), Some(host)) => {
                    busy = Some(Box::pin(async { Event::Loaded(host.load(*spec).await) }));
                }
                (Some(Ask::Unload), Some(host)) => {
                    busy = Some(Box::pin(async { Event::Unloaded(host.unload().await) }));
                }
                (Some(Ask::Suspect { why, patience }), Some(host)) => {
                    host.suspect(why, patience).await;
                }
                // An agent without a GPU asks for nothing.
                (Some(_), None) => {}
            },
        }
    }
    // Giving up a load takes its runtime down.
    drop(busy);
    if let Some(host) = host {
        host.shutdown().await;
    }
    Ok(())
}

async fn next(events: Option<&mut mpsc::UnboundedReceiver<RuntimeEvent>>) -> Option<RuntimeEvent> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}
