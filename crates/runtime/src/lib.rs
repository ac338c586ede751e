//! LLM runtimes: start, prove, serve, drain, stop.
//!
//! A [`RuntimeHost`] owns at most one runtime, the process that serves one model on one agent's
//! GPU and port. It calls a runtime hot only when it has generated, and gone only when its
//! processes are dead and its VRAM is back. [`state`] says what may follow what.

mod adopt;
mod api;
mod backoff;
mod cause;
mod error;
mod fingerprint;
mod handle;
mod host;
mod manifest;
mod ollama;
mod process;
mod prove;
mod spec;
pub mod state;
mod supervisor;
mod tree;
mod vram;
mod watch;

pub use adopt::orphan;
pub use backoff::{BACKOFF_FIRST, BACKOFF_MOST, Backoff, Failure};
pub use error::{LoadCause, LoadClass, LoadError, ReapError, UnloadError};
pub use fingerprint::Fingerprint;
pub use host::{
    Found, Health, HostOptions, Loaded, Reaped, RuntimeEvent, RuntimeHost, Unloaded, VramProbe,
};
pub use manifest::{MANIFEST_NAME, Manifest, ManifestError, Proven};
pub use spec::{ModelKind, ModelSpec, RuntimeProgram};
pub use tree::COOKIE_VARIABLE;
pub use vram::VRAM_PATIENCE;
pub use watch::{AGAIN_EVERY, WATCH_EVERY};
