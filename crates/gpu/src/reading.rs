//! What NVML says of a GPU, as plain values.

use serde::{Deserialize, Serialize};

/// A GPU of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuInfo {
    /// NVML's index now; another after a reboot with other cards. Never a GPU's name.
    pub index: u32,
    /// `GPU-...`: what a GPU is called in rig.toml and `CUDA_VISIBLE_DEVICES`.
    pub uuid: String,
    /// The product's name.
    pub name: String,
    /// Memory in all, MiB.
    pub total_mb: u64,
    /// A stand-in, not a real GPU.
    pub stand_in: bool,
}

/// A reading of one GPU. What the GPU does not support is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// NVML's index now.
    pub index: u32,
    /// Memory in use by anybody, MiB.
    pub used_mb: u64,
    /// Memory that can be had, MiB; with what the driver reserves less than `total_mb - used_mb`.
    pub free_mb: u64,
    /// Memory in all, MiB.
    pub total_mb: u64,
    /// Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<u32>,
    /// Watt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_w: Option<u32>,
    /// The limit in force, watt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_limit_w: Option<u32>,
    /// Percent of the last sample period (a second or less) in which a kernel ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilization: Option<u32>,
    /// Of the multiprocessors, MHz.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_mhz: Option<u32>,
    /// What holds the clocks back; empty: nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<Vec<Throttle>>,
    /// Who has a context on the GPU, compute and graphics, by pid; empty too where NVML does not
    /// tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<GpuProcess>,
}

/// A process with a context on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProcess {
    /// As the driver sees it: in a container without the host's pid namespace not a pid of here.
    pub pid: u32,
    /// MiB; none where the driver does not tell (WSL, MIG).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_mb: Option<u64>,
}

/// Something that holds a GPU's clocks back. Idleness and clock settings are not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Throttle {
    /// Over the power limit.
    PowerCap,
    /// The driver lowers the clocks: over its temperature.
    Thermal,
    /// The GPU itself halves the clocks or worse: far over its temperature.
    HwThermal,
    /// The power supply asks for less.
    PowerBrake,
    /// The GPU itself lowers the clocks, by heat or power.
    HwSlowdown,
    /// Another GPU of its sync boost group is held back.
    SyncBoost,
}
