//! What a model of the catalogue needs of GPU memory, before and after it was measured.
//!
//! [`need`] decides, purely: what a load was seen to take, else `vram_mb` of rig.toml, else an
//! [`Estimate`] from the model's files. [`Catalogue`] reads those files, each once for as long as
//! it stays the same. Every decision about a model's memory goes through here, so that admission,
//! placement, `rigor check` and `rigor models` cannot disagree.

mod catalogue;
mod estimate;
mod files;
mod gguf;
mod measured;
mod need;
mod settings;

pub use catalogue::{Catalogue, Found};
pub use estimate::{Estimate, GPU_CONTEXT_MB, Origin, of_files, of_gguf};
pub use files::{FileProblem, Source, source};
pub use gguf::{Header, KvHeads, Recurrent};
pub use measured::{Measurement, Measurements, fingerprint, load_key, speed_key};
pub use need::{By, Need, need};
pub use settings::{CacheType, Settings};
