//! A stand-in for `libnvidia-ml.so.1` on machines without a GPU; it answers from a JSON file.
//!
//! Loaded through the real NVML interface (`nvml-wrapper`, or any C caller), so that the code
//! that runs in tests and in the demo is the code that runs on a rig. Nothing here computes: it
//! is a device only as far as NVML can tell.
//!
//! # The state
//!
//! The library reads `nvml.json` in the folder that it was itself loaded from (the rig's `sim/`),
//! or the file that `RIGOR_NVML_STATE` names, at every call: to change what a GPU says, replace
//! that file by rename, as [`State::write`] does. [`install()`] makes such a folder.
//!
//! ```json
//! {"schema": 1,
//!  "gpus": [{"uuid": "GPU-9c0ffee1-...", "total_mb": 6144, "base_used_mb": 120, "temperature_c": 84,
//!            "fails": {"power_usage": "not_supported"}}]}
//! ```
//!
//! `init_fault` fails `nvmlInit` (a missing driver), `fault` every call on one GPU (a lost GPU),
//! `fails` single questions. While `init_hangs` and a GPU's `hangs` are true, calls do not return, as
//! with a driver that is stuck. A file that is not there reads as a missing driver; one that cannot be
//! understood makes every call answer `NVML_ERROR_UNKNOWN` and is complained about on stderr.
//!
//! # Memory in use
//!
//! `used` is `base_used_mb` and what live processes hold. A process holds memory of a GPU if the
//! environment it was started with names the GPU's UUID (or a unique start of it, as CUDA allows)
//! in `CUDA_VISIBLE_DEVICES`; an index there is ignored, as Rigor never sets one.
//!
//! - Without a claim it holds as much as its resident memory (RSS), children each for themselves.
//! - With `RIGOR_SIM_VRAM_MB=N` in its environment it holds N MiB instead. Children inherit the
//!   variable, so a claim counts once, for the topmost live process of a tree that has it; its
//!   descendants with the same claim hold nothing of their own.
//! - A process that names several GPUs is spread over them evenly.
//! - Rigor's own programs (process names `worker`, `gpu-agent`, `brain`, `rigor`) hold nothing.
//!
//! Processes are looked up at most every [`SCAN_EVERY`]. The variables of a process of another
//! user cannot be read, so it is not counted.
//!
//! # What it answers
//!
//! Initialisation and shutdown, driver and NVML version, and for each GPU: index, UUID, name,
//! memory, temperature, power and its limit, utilisation, clocks, throttle reasons and
//! compute processes. Any other symbol is absent, as with an old driver.

mod ffi;
mod holding;
mod install;
mod state;

pub use holding::SCAN_EVERY;
pub use install::{LIBRARY_NAME, STATE_NAME, built_library, install};
pub use state::{Fault, Query, SimGpu, State, StateError, Throttle};

/// What `nvmlSystemGetNVMLVersion` answers, whatever the state says: how a reader tells a
/// stand-in from a real library.
pub const NVML_VERSION: &str = "0.0-stand-in";

/// The name of a stand-in GPU.
pub const GPU_NAME: &str = "Stand-in GPU (no real device)";

/// Names the state file, over the one beside the library.
pub const STATE_VARIABLE: &str = "RIGOR_NVML_STATE";

/// The memory that a process claims of each stand-in GPU, MiB, in place of its RSS.
pub const CLAIM_VARIABLE: &str = "RIGOR_SIM_VRAM_MB";
