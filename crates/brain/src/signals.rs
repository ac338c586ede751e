//! The process's signals, as events. A thread of its own hosts them.

use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::dispatcher::Event;

/// Sends an event for each SIGTERM, SIGINT and SIGCHLD from now on, until nobody listens.
pub(crate) fn listen(events: Sender<Event>) -> Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the signal thread")?;
    // Installed before this returns, so that none is missed.
    let (mut term, mut int, mut child) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::terminate()).context("listen to SIGTERM")?,
            signal(SignalKind::interrupt()).context("listen to SIGINT")?,
            signal(SignalKind::child()).context("listen to SIGCHLD")?,
        )
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread
        .spawn(move || {
            runtime.block_on(async move {
                loop {
                    let event = tokio::select! {
                        _ = term.recv() => Event::Stop("SIGTERM"),
                        _ = int.recv() => Event::Stop("Ctrl-C"),
                        _ = child.recv() => Event::ChildExited,
                    };
                    if events.send(event).is_err() {
                        return;
                    }
                }
            });
        })
        .context("start the signal thread")
}
