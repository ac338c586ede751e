//! What a GPU says of itself (NVML), and the ledger of its memory.
//!
//! [`Gpus`] asks NVML, always through the real library interface: on a machine without a GPU the
//! caller names the stand-in library instead, and nothing else differs. No library, no driver and
//! a lost GPU are states that a rig lives with (`--cpu-only`, quarantine), so each is an error of
//! its own: [`GpuError`]. What a GPU does not support is `None` in its [`Reading`].
//!
//! What is decided from readings is pure: [`health`] (may this GPU take work?) and [`ledger`] (how
//! much of its memory is spoken for?).
//!
//! Memory is counted in MiB and written `MB`, as `nvidia-smi` does.

#![forbid(unsafe_code)]

mod error;
pub mod health;
mod holders;
pub mod ledger;
mod nvml;
mod reading;

pub use error::GpuError;
pub use health::{Condition, Limits, Near, condition, near};
pub use holders::{Holder, holders};
pub use ledger::{Ledger, Measured, MeasuredBy, Need, SETTLE_READINGS, Short};
pub use nvml::Gpus;
pub use reading::{GpuInfo, GpuProcess, Reading, Throttle};
