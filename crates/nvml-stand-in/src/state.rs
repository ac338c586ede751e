//! The JSON that the stand-in answers from.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::GPU_NAME;

/// The only version of the file's form so far.
const SCHEMA: u32 = 1;

/// A GPU of [`State::with_gpus`] has this much memory, MiB: a common small card.
const TOTAL_MB: u64 = 6144;

/// All that the stand-in says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// 1; a newer one is refused.
    pub schema: u32,
    /// What the driver calls itself.
    #[serde(default = "driver_version")]
    pub driver_version: String,
    /// Fails `nvmlInit`, as a machine without a driver does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_fault: Option<Fault>,
    /// `nvmlInit` does not return as long as this is so.
    #[serde(default, skip_serializing_if = "is_false")]
    pub init_hangs: bool,
    /// The GPUs, by NVML index.
    pub gpus: Vec<SimGpu>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimGpu {
    /// `GPU-...`.
    pub uuid: String,
    /// The product's name.
    #[serde(default = "gpu_name")]
    pub name: String,
    /// Memory in all, MiB.
    pub total_mb: u64,
    /// Memory in use by nobody in particular, MiB; live processes come on top.
    #[serde(default)]
    pub base_used_mb: u64,
    /// Celsius.
    #[serde(default = "temperature_c")]
    pub temperature_c: u32,
    /// Watt.
    #[serde(default = "power_w")]
    pub power_w: u32,
    /// Watt.
    #[serde(default = "power_limit_w")]
    pub power_limit_w: u32,
    /// Percent.
    #[serde(default)]
    pub utilization: u32,
    /// Of every clock domain, MHz.
    #[serde(default = "clock_mhz")]
    pub clock_mhz: u32,
    /// Why clocks are held back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub throttle: Vec<Throttle>,
    /// False: processes are listed without their memory, as under WSL and MIG.
    #[serde(default = "yes")]
    pub process_memory: bool,
    /// No question to this GPU is answered as long as this is so.
    #[serde(default, skip_serializing_if = "is_false")]
    pub hangs: bool,
    /// Fails every question to this GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Fails single questions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fails: BTreeMap<Query, Fault>,
}

/// A question to a GPU that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is the NVML call of that name")]
pub enum Query {
    Name,
    Memory,
    Temperature,
    PowerUsage,
    PowerLimit,
    Utilization,
    Clocks,
    Throttle,
    Processes,
}

/// An error that NVML can answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is the NVML_ERROR of that name")]
pub enum Fault {
    NotSupported,
    NoPermission,
    DriverNotLoaded,
    LibRmVersionMismatch,
    GpuIsLost,
    ResetRequired,
    Timeout,
    Unknown,
}

/// A reason for clocks below their best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(
    missing_docs,
    reason = "each is the nvmlClocksThrottleReason of that name"
)]
pub enum Throttle {
    GpuIdle,
    SwPowerCap,
    HwSlowdown,
    SyncBoost,
    SwThermalSlowdown,
    HwThermalSlowdown,
    HwPowerBrakeSlowdown,
}

/// The state could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A file operation failed.
    #[error("cannot {operation} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Not a state.
    #[error("{path} is no state of the NVML stand-in: {cause}; write a new one with `rigor init --sim-gpus N`", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The built library is nowhere that it should be.
    #[error(
        "the NVML stand-in ({file}) is in none of {places}; build it with `cargo build -p nvml-stand-in`"
    )]
    NotBuilt {
        /// The name looked for.
        file: &'static str,
        /// The folders looked into.
        places: String,
    },
}

impl StateError {
    pub(crate) fn io<'a>(
        operation: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> StateError + 'a {
        move |source| StateError::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    }
}

impl State {
    /// `count` idle GPUs of 6144 MiB. Their UUIDs are new each time: a process is told by the UUID
    /// that its environment names, so two rigs of one machine must not share any.
    pub fn with_gpus(count: usize) -> State {
        State {
            schema: SCHEMA,
            driver_version: driver_version(),
            init_fault: None,
            init_hangs: false,
            gpus: (0..count)
                .map(|_| SimGpu::new(format!("GPU-{}", uuid::Uuid::new_v4())))
                .collect(),
        }
    }

    /// Reads the state from `path`.
    pub fn read(path: &Path) -> Result<State, StateError> {
        let bytes = std::fs::read(path).map_err(StateError::io("read", path))?;
        let invalid = |cause: String| StateError::Invalid {
            path: path.to_owned(),
            cause,
        };
        let state: State =
            serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
        if state.schema != SCHEMA {
            return Err(invalid(format!(
                "its schema is {}, not {SCHEMA}",
                state.schema
            )));
        }
        Ok(state)
    }

    /// Replaces `path` by this state in one rename: a reader sees the old one or the new one. Not
    /// synced: after a power cut the file may be missing or empty.
    pub fn write(&self, path: &Path) -> Result<(), StateError> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| StateError::Invalid {
            path: path.to_owned(),
            cause: error.to_string(),
        })?;
        replace(path, |file| file.write_all(&text))
    }
}

impl SimGpu {
    /// An idle GPU of 6144 MiB.
    pub fn new(uuid: String) -> SimGpu {
        SimGpu {
            uuid,
            name: gpu_name(),
            total_mb: TOTAL_MB,
            base_used_mb: 0,
            temperature_c: temperature_c(),
            power_w: power_w(),
            power_limit_w: power_limit_w(),
            utilization: 0,
            clock_mhz: clock_mhz(),
            throttle: Vec::new(),
            process_memory: true,
            hangs: false,
            fault: None,
            fails: BTreeMap::new(),
        }
    }
}

/// Writes a temporary file beside `path` and renames it over `path`, readable by everyone.
pub(crate) fn replace(
    path: &Path,
    fill: impl FnOnce(&mut std::fs::File) -> io::Result<()>,
) -> Result<(), StateError> {
    use std::os::unix::fs::PermissionsExt;

    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut temporary = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(StateError::io("make a temporary file in", folder))?;
    fill(temporary.as_file_mut()).map_err(StateError::io("write", path))?;
    temporary
        .persist(path)
        .map_err(|error| StateError::io("replace", path)(error.error))?;
    Ok(())
}

fn driver_version() -> String {
    "0.0-stand-in".to_owned()
}

fn gpu_name() -> String {
    GPU_NAME.to_owned()
}

fn temperature_c() -> u32 {
    40
}

fn power_w() -> u32 {
    25
}

fn power_limit_w() -> u32 {
    170
}

fn clock_mhz() -> u32 {
    1500
}

fn is_false(value: &bool) -> bool {
    !value
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_its_file_and_replaces_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nvml.json");
        State::with_gpus(1).write(&path).unwrap();

        let mut state = State::with_gpus(3);
        state.gpus[1].fault = Some(Fault::GpuIsLost);
        state.gpus[2]
            .fails
            .insert(Query::PowerUsage, Fault::NotSupported);
        state.write(&path).unwrap();

        assert_eq!(State::read(&path).unwrap(), state);
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "no temporary file stays"
        );
    }

    #[test]
    fn uuids_differ_between_rigs() {
        let (one, other) = (State::with_gpus(8), State::with_gpus(8));
        let all: std::collections::BTreeSet<_> = one
            .gpus
            .iter()
            .chain(&other.gpus)
            .map(|gpu| &gpu.uuid)
            .collect();
        assert_eq!(all.len(), 16);
    }

    #[test]
    fn a_misspelt_key_a_newer_schema_and_half_a_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nvml.json");
        for text in [
            r#"{"schema":1,"gpus":[{"uuid":"GPU-1","total_mb":1,"temprature_c":90}]}"#,
            r#"{"schema":2,"gpus":[]}"#,
            r#"{"schema":1,"gp"#,
        ] {
            std::fs::write(&path, text).unwrap();
            let error = State::read(&path).unwrap_err();
            assert!(
                matches!(error, StateError::Invalid { .. }),
                "{text}: {error}"
            );
        }
    }
}
