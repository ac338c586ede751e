//! Everything that can make the agent do something.

use std::sync::mpsc::Sender;

use rigor_exec::activity::Activity;
use rigor_gpu::GpuError;
use rigor_queue::QueueError;
use rigor_queue::watch::Wake;
use rigor_runtime::{LoadError, Loaded, RuntimeEvent, UnloadError, Unloaded};

use crate::committer::{Finished, Job};
use crate::sampler::{Opened, Sample};

/// Tells the dispatcher when the thread that holds it panics.
pub(crate) struct Farewell {
    pub(crate) thread: &'static str,
    pub(crate) events: Sender<Event>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.events.send(Event::Gone(self.thread));
        }
    }
}

/// What the dispatcher waits for. Closed: whatever is not here cannot wake the agent, but time.
#[derive(Debug)]
pub(crate) enum Event {
    /// A watched directory changed.
    Wake(Wake),
    /// A child ended.
    Child,
    /// SIGTERM or SIGINT.
    Terminate(&'static str),
    /// The GPU was opened and read for the first time, or not.
    Opened(Result<Box<Opened>, GpuError>),
    /// The GPU was read.
    Reading(Result<Sample, GpuError>),
    /// Signs of life of what runs.
    Activity(Vec<Activity>),
    /// A load is over.
    Loaded(Result<Loaded, LoadError>),
    /// An unload is over.
    Unloaded(Result<Unloaded, UnloadError>),
    /// A thread of the agent's panicked: it cannot go on without.
    Gone(&'static str),
    /// The runtime did something that nobody asked for.
    Runtime(RuntimeEvent),
    /// Attempts whose records are durable, and where each task went.
    Finished(Vec<Finished>),
    /// Records that could not be made durable; their tasks wait in `processing/`.
    CommitFailed {
        /// The attempts.
        jobs: Vec<Job>,
        /// Why not.
        error: QueueError,
    },
}
