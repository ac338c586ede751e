//! Whether the kernel's out-of-memory killer was at work: main memory was short. GPU memory that is
//! short kills nobody; see [`gpu_memory`](crate::gpu_memory).

use std::fs;

/// How many processes the kernel's out-of-memory killer has killed since the machine started.
/// `None` where the kernel does not count them.
pub fn kills() -> Option<u64> {
    let text = fs::read_to_string("/proc/vmstat").ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// What to add to the reason of an attempt that SIGKILL ended and nobody of ours sent: `before` is
/// the count at its start.
pub fn suspicion(before: Option<u64>) -> &'static str {
    match (before, kills()) {
        (Some(before), Some(now)) if now > before => {
            "; the kernel's out-of-memory killer was at work meanwhile (see `dmesg`): it needs more main memory than there is"
        }
        _ => "",
    }
}
