//! Asking NVML.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{Device, Nvml};

use crate::error::GpuError;
use crate::reading::{GpuInfo, GpuProcess, Reading, Throttle};

/// What the dynamic loader is asked for where no library is named.
const NVML_LIBRARY: &str = "libnvidia-ml.so.1";

/// In NVML's own version where it is the stand-in.
const STAND_IN_MARK: &str = "stand-in";

const MIB: u64 = 1024 * 1024;

const MILLI: u32 = 1000;

/// The GPUs of this machine, by NVML. Opened once for the life of the process: opening loads the
/// library and takes up to seconds on a machine whose driver is not kept loaded. Calls block (in
/// the driver, for milliseconds; on a sick GPU for seconds): not for an async runtime's threads.
#[derive(Debug)]
pub struct Gpus {
    nvml: Nvml,
    stand_in: bool,
}

impl Gpus {
    /// Loads NVML from `library` (none: the system's) and initialises it.
    ///
    /// # Errors
    ///
    /// [`GpuError::NoLibrary`] and [`GpuError::NoDriver`] on a machine without a working GPU.
    pub fn open(library: Option<&Path>) -> Result<Gpus, GpuError> {
        // The loader searches its own folders for a name without a slash, so a path has one.
        let library = match library {
            Some(path) => std::path::absolute(path)
                .unwrap_or_else(|_| path.to_owned())
                .into_os_string(),
            None => NVML_LIBRARY.into(),
        };
        let no_library = |cause: String| GpuError::NoLibrary {
            library: library.display().to_string(),
            cause,
        };

        let nvml = Nvml::builder()
            .lib_path(OsStr::new(&library))
            .init()
            .map_err(|error| match error {
                NvmlError::LibloadingError(error) => no_library(error.to_string()),
                NvmlError::FailedToLoadSymbol(cause) => {
                    no_library(format!("it is not NVML: {cause}"))
                }
                error => GpuError::answered("initialise", "NVML", error),
            })?;
        if let Err(error) = &nvml.lib().nvmlShutdown {
            let error = no_library(format!("it is not NVML: {error}"));
            // Dropping it would call the missing function, and panic.
            std::mem::forget(nvml);
            return Err(error);
        }
        let stand_in = nvml
            .sys_nvml_version()
            .is_ok_and(|version| version.contains(STAND_IN_MARK));
        Ok(Gpus { nvml, stand_in })
    }

    /// Whether these are stand-ins, not real GPUs.
    pub fn stand_in(&self) -> bool {
        self.stand_in
    }

    /// The driver's version, where it says.
    pub fn driver_version(&self) -> Option<String> {
        self.nvml.sys_driver_version().ok()
    }

    /// The GPUs that answer, by index. Those that do not are in [`Gpus::unreadable`].
    ///
    /// # Errors
    ///
    /// Only where NVML cannot even say how many there are.
    pub fn list(&self) -> Result<Vec<GpuInfo>, GpuError> {
        Ok((0..self.count()?)
            .filter_map(|index| self.info(index).ok())
            .collect())
    }

    /// The GPUs that do not answer, by index, and why. A lost GPU is known by its index alone.
    ///
    /// # Errors
    ///
    /// Only where NVML cannot even say how many there are.
    pub fn unreadable(&self) -> Result<Vec<(u32, GpuError)>, GpuError> {
        Ok((0..self.count()?)
            .filter_map(|index| Some((index, self.info(index).err()?)))
            .collect())
    }

    /// What the GPU `uuid` says now.
    ///
    /// # Errors
    ///
    /// [`GpuError::Lost`] for a GPU that fell off the bus, [`GpuError::NotFound`] for a UUID that
    /// no GPU has, and [`GpuError::NoDriver`] where the driver went away. A value that is not
    /// supported or cannot be read is `None`, but for the memory, without which there is no reading.
    pub fn reading(&self, uuid: &str) -> Result<Reading, GpuError> {
        let failed = |operation| move |error| GpuError::answered(operation, uuid, error);

        let device = self.device(uuid)?;
        let memory = || device.memory_info().map_err(failed("read the memory of"));
        let before = memory()?;
        let optional = Optional { uuid };
        let processes = processes(
            optional.ask(
                "list the compute processes of",
                device.running_compute_processes(),
            )?,
            optional.ask(
                "list the graphics processes of",
                device.running_graphics_processes(),
            )?,
        );
        // What is taken or given back while the processes are listed would be in one of the two
        // only: the more crowded of the readings on both sides holds for the list between them.
        let after = memory()?;
        Ok(Reading {
            index: device.index().map_err(failed("read the index of"))?,
            used_mb: before.used.max(after.used).div_ceil(MIB),
            free_mb: before.free.min(after.free) / MIB,
            total_mb: after.total / MIB,
            temperature_c: optional.ask(
                "read the temperature of",
                device.temperature(TemperatureSensor::Gpu),
            )?,
            power_w: optional
                .ask("read the power of", device.power_usage())?
                .map(watt),
            power_limit_w: optional
                .ask("read the power limit of", device.enforced_power_limit())?
                .map(watt),
            utilization: optional
                .ask("read the utilisation of", device.utilization_rates())?
                .map(|rates| rates.gpu),
            clock_mhz: optional.ask("read the clock of", device.clock_info(Clock::SM))?,
            throttle: optional
                .ask("read what throttles", device.current_throttle_reasons())?
                .map(throttle),
            processes,
        })
    }

    fn count(&self) -> Result<u32, GpuError> {
        self.nvml
            .device_count()
            .map_err(|error| GpuError::answered("count the GPUs by", "NVML", error))
    }

    fn info(&self, index: u32) -> Result<GpuInfo, GpuError> {
        let failed = |operation| {
            move |error| GpuError::answered(operation, &format!("GPU number {index}"), error)
        };

        let device = self
            .nvml
            .device_by_index(index)
            .map_err(failed("get a handle on"))?;
        Ok(GpuInfo {
            index,
            uuid: device.uuid().map_err(failed("read the UUID of"))?,
            name: device.name().map_err(failed("read the name of"))?,
            total_mb: device
                .memory_info()
                .map_err(failed("read the memory of"))?
                .total
                / MIB,
            stand_in: self.stand_in,
        })
    }

    fn device(&self, uuid: &str) -> Result<Device<'_>, GpuError> {
        self.nvml.device_by_uuid(uuid).map_err(|error| match error {
            NvmlError::NotFound | NvmlError::InvalidArg | NvmlError::NulError(_) => {
                GpuError::NotFound {
                    uuid: uuid.to_owned(),
                    known: self
                        .list()
                        .unwrap_or_default()
                        .into_iter()
                        .map(|gpu| gpu.uuid)
                        .collect(),
                }
            }
            error => GpuError::answered("get a handle on", uuid, error),
        })
    }
}

/// Values that a reading can do without.
struct Optional<'a> {
    uuid: &'a str,
}

impl Optional<'_> {
    /// An answer, or none; but a GPU that is lost is lost whatever was asked.
    fn ask<T>(
        &self,
        operation: &'static str,
        answer: Result<T, NvmlError>,
    ) -> Result<Option<T>, GpuError> {
        match answer {
            Ok(value) => Ok(Some(value)),
            Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired)) => {
                Err(GpuError::answered(operation, self.uuid, error))
            }
            Err(_) => Ok(None),
        }
    }
}

fn watt(milliwatt: u32) -> u32 {
    milliwatt.saturating_add(MILLI / 2) / MILLI
}

fn throttle(reasons: ThrottleReasons) -> Vec<Throttle> {
    [
        (ThrottleReasons::SW_POWER_CAP, Throttle::PowerCap),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, Throttle::Thermal),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, Throttle::HwThermal),
        (
            ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN,
            Throttle::PowerBrake,
        ),
        (ThrottleReasons::HW_SLOWDOWN, Throttle::HwSlowdown),
        (ThrottleReasons::SYNC_BOOST, Throttle::SyncBoost),
    ]
    .into_iter()
    .filter(|(bit, _)| reasons.contains(*bit))
    .map(|(_, reason)| reason)
    .collect()
}

/// One list by pid: a process that computes and draws is in both of NVML's, with the same memory.
fn processes(
    compute: Option<Vec<ProcessInfo>>,
    graphics: Option<Vec<ProcessInfo>>,
) -> Vec<GpuProcess> {
    let mut by_pid: BTreeMap<u32, Option<u64>> = BTreeMap::new();
    for process in compute.into_iter().chain(graphics).flatten() {
        let used_mb = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes.div_ceil(MIB)),
            UsedGpuMemory::Unavailable => None,
        };
        let entry = by_pid.entry(process.pid).or_default();
        *entry = (*entry).max(used_mb);
    }
    by_pid
        .into_iter()
        .map(|(pid, used_mb)| GpuProcess { pid, used_mb })
        .collect()
}
