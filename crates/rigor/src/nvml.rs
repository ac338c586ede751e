//! NVML, for commands that only look: a driver that hangs must not hang them too.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rigor_config::Config;
use rigor_gpu::{GpuError, Gpus};

/// The GPUs, where NVML answers for each of rig.toml within `gpu_hung`, be it with an error; else
/// how long it did not.
pub(crate) fn open(config: &Config) -> Result<Result<Gpus, GpuError>, Duration> {
    let (tell, told) = mpsc::channel();
    let library = config.nvml.library.clone();
    let uuids: Vec<String> = config.gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
    // One that hangs ends with the command.
    thread::spawn(move || {
        let opened = Gpus::open(library.as_deref());
        if let Ok(gpus) = &opened {
            for uuid in &uuids {
                // Only that it answers counts here; what it says is asked for again.
                let _ = gpus.reading(uuid);
            }
        }
        let _ = tell.send(opened);
    });
    match told.recv_timeout(config.timing.gpu_hung) {
        Ok(opened) => Ok(opened),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            Err(config.timing.gpu_hung)
        }
    }
}
