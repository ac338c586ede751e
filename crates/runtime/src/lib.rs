//! LLM runtimes: start, prove, serve, drain, stop.
//!
//! A [`RuntimeHost`] owns at most one runtime, the process that serves one model on one agent's
//! GPU and port. It calls a runtime hot only when it has generated, and gone only when its
//! processes are dead and its VRAM is back. [`state`] says what may follow what.

mod api;
mod cause;
mod error;
mod host;
mod manifest;
mod process;
mod spec;
pub mod state;
mod supervisor;
mod tree;
mod vram;

pub use error::{LoadCause, LoadError, ReapError, UnloadError};
pub use host::{
    Health, HostOptions, Loaded, Reaped, RuntimeEvent, RuntimeHost, Unloaded, VramProbe,
};
pub use manifest::{Manifest, ManifestError};
pub use spec::{ModelKind, ModelSpec, RuntimeProgram};
pub use tree::COOKIE_VARIABLE;
pub use vram::VRAM_PATIENCE;
