//! The C interface, with the types of NVML's own header.
//!
//! Every function is called by C (or `nvml-wrapper`) under NVML's contract: a pointer is null or
//! valid for what the header says is written there. A null one answers INVALID_ARGUMENT.

#![expect(non_upper_case_globals, reason = "the names are NVML's")]

use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_ulonglong};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use nvml_wrapper_sys::bindings::*;

use crate::holding::holders;
use crate::state::{Fault, Query, SimGpu, State, StateError, Throttle};
use crate::{NVML_VERSION, STATE_NAME, STATE_VARIABLE};

const MIB: u64 = 1024 * 1024;

/// NVML_STRUCT_VERSION(Memory, 2): the size of the structure and its version.
const MEMORY_V2: c_uint = size_of::<nvmlMemory_v2_t>() as c_uint | (2 << 24);

/// A call that hangs looks this often whether it still is to.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Initialisations less shutdowns; NVML counts them too.
static INITIALISED: AtomicU32 = AtomicU32::new(0);

type Answer<T> = Result<T, nvmlReturn_t>;

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    code(state_when(|state| !state.init_hangs).and_then(|state| {
        state.init_fault.map_or(Ok(()), |fault| Err(fault.code()))?;
        INITIALISED.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> nvmlReturn_t {
    nvmlInit_v2()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    code(
        INITIALISED
            .try_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
                count.checked_sub(1)
            })
            .map(drop)
            .map_err(|_| nvmlReturn_enum_NVML_ERROR_UNINITIALIZED),
    )
}

#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char {
    let text: &'static CStr = match result {
        nvmlReturn_enum_NVML_SUCCESS => c"The operation was successful",
        nvmlReturn_enum_NVML_ERROR_UNINITIALIZED => c"Uninitialized",
        nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT => c"Invalid Argument",
        nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED => c"Not Supported",
        nvmlReturn_enum_NVML_ERROR_NO_PERMISSION => c"Insufficient Permissions",
        nvmlReturn_enum_NVML_ERROR_NOT_FOUND => c"Not Found",
        nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE => c"Insufficient Size",
        nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED => c"Driver Not Loaded",
        nvmlReturn_enum_NVML_ERROR_TIMEOUT => c"Timeout",
        nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST => c"GPU is lost",
        nvmlReturn_enum_NVML_ERROR_RESET_REQUIRED => c"GPU requires restart",
        nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH => {
            c"RM has detected an NVML/RM version mismatch."
        }
        nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH => c"Version mismatch",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetDriverVersion(
    version: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    // SAFETY: the caller's buffer, of the caller's length.
    code(ready().and_then(|state| unsafe { put_text(version, length, &state.driver_version) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetNVMLVersion(
    version: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    // SAFETY: the caller's buffer, of the caller's length.
    code(unsafe { put_text(version, length, NVML_VERSION) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> nvmlReturn_t {
    // SAFETY: null or the caller's integer.
    code(unsafe { put(version, 0) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> nvmlReturn_t {
    // SAFETY: null or the caller's integer.
    code(ready().and_then(|state| unsafe { put(count, state.gpus.len() as c_uint) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    code(ready().and_then(|state| {
        let gpu = state
            .gpus
            .get(index as usize)
            .ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?;
        gpu.fault.map_or(Ok(()), |fault| Err(fault.code()))?;
        // SAFETY: null or the caller's handle.
        unsafe { put(device, handle(index as usize)) }
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    code(ready().and_then(|state| {
        if uuid.is_null() {
            return Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
        }
        // SAFETY: not null, and NVML's contract asks for a C string.
        let uuid = unsafe { CStr::from_ptr(uuid) }.to_bytes();
        let index = state
            .gpus
            .iter()
            .position(|gpu| gpu.uuid.as_bytes() == uuid)
            .ok_or(nvmlReturn_enum_NVML_ERROR_NOT_FOUND)?;
        state.gpus[index]
            .fault
            .map_or(Ok(()), |fault| Err(fault.code()))?;
        // SAFETY: null or the caller's handle.
        unsafe { put(device, handle(index)) }
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetIndex(device: nvmlDevice_t, index: *mut c_uint) -> nvmlReturn_t {
    // SAFETY: null or the caller's integer.
    code(gpu(device, None).and_then(|_| unsafe { put(index, (device.addr() - 1) as c_uint) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMinorNumber(
    device: nvmlDevice_t,
    minor: *mut c_uint,
) -> nvmlReturn_t {
    // SAFETY: null or the caller's integer.
    unsafe { nvmlDeviceGetIndex(device, minor) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUUID(
    device: nvmlDevice_t,
    uuid: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    // SAFETY: the caller's buffer, of the caller's length.
    code(gpu(device, None).and_then(|gpu| unsafe { put_text(uuid, length, &gpu.uuid) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetName(
    device: nvmlDevice_t,
    name: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    // SAFETY: the caller's buffer, of the caller's length.
    code(
        gpu(device, Some(Query::Name)).and_then(|gpu| unsafe { put_text(name, length, &gpu.name) }),
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: nvmlDevice_t,
    memory: *mut nvmlMemory_v2_t,
) -> nvmlReturn_t {
    code(gpu(device, Some(Query::Memory)).and_then(|gpu| {
        // SAFETY: null or the caller's structure, whose version the caller has set.
        let memory =
            unsafe { memory.as_mut() }.ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?;
        if memory.version != MEMORY_V2 {
            return Err(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
        }
        let held: u64 = holders(&gpu.uuid).iter().map(|(_, bytes)| bytes).sum();
        memory.total = gpu.total_mb.saturating_mul(MIB);
        memory.reserved = 0;
        memory.used = gpu
            .base_used_mb
            .saturating_mul(MIB)
            .saturating_add(held)
            .min(memory.total);
        memory.free = memory.total - memory.used;
        Ok(())
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: nvmlDevice_t,
    _sensor: nvmlTemperatureSensors_t,
    celsius: *mut c_uint,
) -> nvmlReturn_t {
    // SAFETY: null or the caller's integer.
    code(
        gpu(device, Some(Query::Temperature))
            .and_then(|gpu| unsafe { put(celsius, gpu.temperature_c) }),
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPowerUsage(
    device: nvmlDevice_t,
    milliwatt: *mut c_uint,
) -> nvmlReturn_t {
    // SAFETY: null or the caller's integer.
    code(
        gpu(device, Some(Query::PowerUsage))
            .and_then(|gpu| unsafe { put(milliwatt, gpu.power_w.saturating_mul(1000)) }),
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetEnforcedPowerLimit(
    device: nvmlDevice_t,
    milliwatt: *mut c_uint,
) -> nvmlReturn_t {
    // SAFETY: null or the caller's integer.
    code(
        gpu(device, Some(Query::PowerLimit))
            .and_then(|gpu| unsafe { put(milliwatt, gpu.power_limit_w.saturating_mul(1000)) }),
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUtilizationRates(
    device: nvmlDevice_t,
    rates: *mut nvmlUtilization_t,
) -> nvmlReturn_t {
    code(gpu(device, Some(Query::Utilization)).and_then(|gpu| {
        let answer = nvmlUtilization_t {
            gpu: gpu.utilization,
            memory: gpu.utilization,
        };
        // SAFETY: null or the caller's structure.
        unsafe { put(rates, answer) }
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetClockInfo(
    device: nvmlDevice_t,
    _domain: nvmlClockType_t,
    mhz: *mut c_uint,
) -> nvmlReturn_t {
    // SAFETY: null or the caller's integer.
    code(gpu(device, Some(Query::Clocks)).and_then(|gpu| unsafe { put(mhz, gpu.clock_mhz) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMaxClockInfo(
    device: nvmlDevice_t,
    domain: nvmlClockType_t,
    mhz: *mut c_uint,
) -> nvmlReturn_t {
    // SAFETY: null or the caller's integer.
    unsafe { nvmlDeviceGetClockInfo(device, domain, mhz) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device: nvmlDevice_t,
    reasons: *mut c_ulonglong,
) -> nvmlReturn_t {
    code(gpu(device, Some(Query::Throttle)).and_then(|gpu| {
        let bits = gpu
            .throttle
            .iter()
            .fold(0, |bits, reason| bits | reason.bit());
        // SAFETY: null or the caller's integer.
        unsafe { put(reasons, bits) }
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    code(gpu(device, Some(Query::Processes)).and_then(|gpu| {
        let found: Vec<_> = holders(&gpu.uuid)
            .into_iter()
            .map(|(pid, bytes)| nvmlProcessInfo_t {
                pid,
                usedGpuMemory: if gpu.process_memory {
                    bytes
                } else {
                    NVML_VALUE_NOT_AVAILABLE as c_ulonglong
                },
                gpuInstanceId: c_uint::MAX,
                computeInstanceId: c_uint::MAX,
            })
            .collect();
        // SAFETY: NVML's contract: `infos` is null or has room for `count` entries.
        unsafe { put_list(count, infos, &found) }
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    // SAFETY: NVML's contract: `infos` is null or has room for `count` entries.
    code(gpu(device, Some(Query::Processes)).and_then(|_| unsafe { put_list(count, infos, &[]) }))
}

impl Fault {
    fn code(self) -> nvmlReturn_t {
        match self {
            Fault::NotSupported => nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED,
            Fault::NoPermission => nvmlReturn_enum_NVML_ERROR_NO_PERMISSION,
            Fault::DriverNotLoaded => nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED,
            Fault::LibRmVersionMismatch => nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH,
            Fault::GpuIsLost => nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST,
            Fault::ResetRequired => nvmlReturn_enum_NVML_ERROR_RESET_REQUIRED,
            Fault::Timeout => nvmlReturn_enum_NVML_ERROR_TIMEOUT,
            Fault::Unknown => nvmlReturn_enum_NVML_ERROR_UNKNOWN,
        }
    }
}

impl Throttle {
    fn bit(self) -> c_ulonglong {
        c_ulonglong::from(match self {
            Throttle::GpuIdle => nvmlClocksThrottleReasonGpuIdle,
            Throttle::SwPowerCap => nvmlClocksThrottleReasonSwPowerCap,
            Throttle::HwSlowdown => nvmlClocksThrottleReasonHwSlowdown,
            Throttle::SyncBoost => nvmlClocksThrottleReasonSyncBoost,
            Throttle::SwThermalSlowdown => nvmlClocksThrottleReasonSwThermalSlowdown,
            Throttle::HwThermalSlowdown => nvmlClocksThrottleReasonHwThermalSlowdown,
            Throttle::HwPowerBrakeSlowdown => nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
        })
    }
}

fn code(answer: Answer<()>) -> nvmlReturn_t {
    answer.err().unwrap_or(nvmlReturn_enum_NVML_SUCCESS)
}

/// The state, for a caller that has initialised.
/// The state once it is `free` of what makes a call hang.
fn state_when(free: impl Fn(&State) -> bool) -> Answer<State> {
    loop {
        let state = state()?;
        if free(&state) {
            return Ok(state);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn ready() -> Answer<State> {
    if INITIALISED.load(Ordering::SeqCst) == 0 {
        return Err(nvmlReturn_enum_NVML_ERROR_UNINITIALIZED);
    }
    state()
}

fn state() -> Answer<State> {
    static COMPLAINED: AtomicBool = AtomicBool::new(false);

    let path = state_path().ok_or(nvmlReturn_enum_NVML_ERROR_UNKNOWN)?;
    State::read(&path).map_err(|error| match error {
        StateError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED
        }
        error => {
            // A C interface has no other way to say what is wrong.
            if !COMPLAINED.swap(true, Ordering::Relaxed) {
                eprintln!("NVML stand-in: {error}");
            }
            nvmlReturn_enum_NVML_ERROR_UNKNOWN
        }
    })
}

/// Where the state is. Settled at the first call: a relative path means the folder the process
/// was in then.
fn state_path() -> Option<PathBuf> {
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    PATH.get_or_init(|| match std::env::var_os(STATE_VARIABLE) {
        Some(path) => std::path::absolute(path).ok(),
        None => Some(
            std::path::absolute(library_path()?)
                .ok()?
                .with_file_name(STATE_NAME),
        ),
    })
    .clone()
}

/// The file that this library was loaded from.
fn library_path() -> Option<PathBuf> {
    let mut found = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the address is one of this library's own, and `found` has room for the answer.
    let done = unsafe { libc::dladdr((&raw const INITIALISED).cast(), found.as_mut_ptr()) };
    if done == 0 {
        return None;
    }
    // SAFETY: dladdr succeeded, so it filled the structure in, and zero is a valid start for it.
    let name = unsafe { found.assume_init() }.dli_fname;
    if name.is_null() {
        return None;
    }
    // SAFETY: not null; the loader keeps the name as long as the library is loaded.
    let name = unsafe { CStr::from_ptr(name) };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

/// A handle is the GPU's index and 1, never a real address: null is no handle.
fn handle(index: usize) -> nvmlDevice_t {
    std::ptr::without_provenance_mut(index + 1)
}

/// The GPU of a handle, unless it (or this question to it) is made to fail. A GPU that is no
/// longer in the state has fallen off the bus.
fn gpu(device: nvmlDevice_t, query: Option<Query>) -> Answer<SimGpu> {
    ready()?;
    let index = device
        .addr()
        .checked_sub(1)
        .ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?;
    let mut state = state_when(|state| state.gpus.get(index).is_none_or(|gpu| !gpu.hangs))?;
    if index >= state.gpus.len() {
        return Err(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST);
    }
    let gpu = state.gpus.swap_remove(index);
    let fault = gpu.fault.or_else(|| gpu.fails.get(&query?).copied());
    fault.map_or(Ok(gpu), |fault| Err(fault.code()))
}

/// # Safety
///
/// `place` is null or valid for a write.
unsafe fn put<T>(place: *mut T, value: T) -> Answer<()> {
    if place.is_null() {
        return Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
    }
    // SAFETY: not null, and so valid by this function's contract.
    unsafe { place.write(value) };
    Ok(())
}

/// # Safety
///
/// `place` is null or valid for a write of `length` bytes.
unsafe fn put_text(place: *mut c_char, length: c_uint, text: &str) -> Answer<()> {
    if place.is_null() {
        return Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE);
    }
    // SAFETY: `text` and its closing zero fit into the `length` bytes; the caller's buffer cannot
    // overlap a string of ours.
    unsafe {
        place.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        place.add(text.len()).write(0);
    }
    Ok(())
}

/// Says how many there are where the caller's list is too short (or null), as NVML does.
///
/// # Safety
///
/// `count` is null or valid for reads and writes; `list` is null or valid for `count` entries.
unsafe fn put_list<T: Copy>(count: *mut c_uint, list: *mut T, found: &[T]) -> Answer<()> {
    // SAFETY: null or valid by this function's contract.
    let count = unsafe { count.as_mut() }.ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?;
    let room = if list.is_null() { 0 } else { *count as usize };
    *count = found.len() as c_uint;
    if found.len() > room {
        return Err(nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE);
    }
    if !found.is_empty() {
        // SAFETY: `list` is not null (there is room) and valid for `room` entries.
        unsafe { list.copy_from_nonoverlapping(found.as_ptr(), found.len()) };
    }
    Ok(())
}
