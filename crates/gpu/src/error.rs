//! What can be wrong with NVML or a GPU, and what to do about it.

use nvml_wrapper::error::NvmlError;

/// Why a GPU cannot be read. The text of each ends in a remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// NVML is not installed, or what was loaded is not NVML.
    #[error(
        "cannot load NVML ({library}): {cause}; install the NVIDIA driver, or run without a GPU (`gpu-agent --cpu-only`, `rigor init --sim-gpus N`)"
    )]
    NoLibrary {
        /// The file or name that was tried.
        library: String,
        /// The loader's own words.
        cause: String,
    },
    /// NVML is there, the driver is not.
    #[error("NVML is installed, but the driver does not answer: {cause}; {remedy}")]
    NoDriver {
        /// NVML's own words.
        cause: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The GPU fell off the bus or needs a reset. Only a reset or a reboot brings it back.
    #[error(
        "{uuid} is lost: {cause}; look for `Xid` in `dmesg`, then try `sudo nvidia-smi --gpu-reset`, or reboot; if it happens again check power cables, riser and cooling"
    )]
    Lost {
        /// The GPU.
        uuid: String,
        /// NVML's own words.
        cause: String,
    },
    /// No GPU of that UUID.
    #[error(
        "there is no GPU {uuid} here (found: {found}); correct its `uuid` in rig.toml, or put the card back",
        found = if known.is_empty() { "none".to_owned() } else { known.join(", ") }
    )]
    NotFound {
        /// The GPU asked for.
        uuid: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// Anything else that NVML answers.
    #[error("cannot {operation} {of}: {source}; {remedy}")]
    Other {
        /// What was asked.
        operation: &'static str,
        /// Of which GPU, or `NVML`.
        of: String,
        /// NVML's answer.
        source: NvmlError,
        /// What to do.
        remedy: &'static str,
    },
}

impl GpuError {
    /// The error for `source`, the answer to `operation` on the GPU (or NVML itself) `of`.
    pub(crate) fn answered(operation: &'static str, of: &str, source: NvmlError) -> GpuError {
        let of = of.to_owned();
        match source {
            NvmlError::GpuLost | NvmlError::ResetRequired => GpuError::Lost {
                uuid: of,
                cause: source.to_string(),
            },
            NvmlError::DriverNotLoaded => GpuError::NoDriver {
                cause: source.to_string(),
                remedy: "try `sudo modprobe nvidia`; if that fails reinstall the driver for this kernel",
            },
            NvmlError::LibRmVersionMismatch => GpuError::NoDriver {
                cause: source.to_string(),
                remedy: "the driver was updated while loaded: reboot",
            },
            NvmlError::NoPermission => GpuError::Other {
                operation,
                of,
                source,
                remedy: "this user needs read and write access to /dev/nvidia* (often the group `video`); with MIG enabled, disable it",
            },
            NvmlError::NotSupported => GpuError::Other {
                operation,
                of,
                source,
                remedy: "Rigor needs this from a GPU, and this one (or its driver) does not tell; leave it out of rig.toml",
            },
            NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound => GpuError::Other {
                operation,
                of,
                source,
                remedy: "the driver is too old: update it to 510 or newer",
            },
            source => GpuError::Other {
                operation,
                of,
                source,
                remedy: "see whether `nvidia-smi` works; if it does not, reload the driver or reboot",
            },
        }
    }
}
