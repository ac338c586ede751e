//! What is known of the kernel's out-of-memory killer where no cgroup counts whom it killed. GPU
//! memory that is short kills nobody; see [`gpu_memory`](crate::gpu_memory).

use std::fs;

/// How many processes the kernel's out-of-memory killer has killed since the machine started.
/// `None` where the kernel does not count them.
pub fn kills() -> Option<u64> {
    let text = fs::read_to_string("/proc/vmstat").ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// What to add to the reason of an attempt that SIGKILL ended and nobody of ours sent, where no
/// cgroup counts for it: `before` is the count at its start. It may have been any process of the
/// machine, so nothing is claimed.
pub fn suspicion(before: Option<u64>) -> &'static str {
    suspicion_of(before, kills())
}

fn suspicion_of(before: Option<u64>, now: Option<u64>) -> &'static str {
    match (before, now) {
        (Some(before), Some(now)) if now > before => {
            "; the kernel's out-of-memory killer was active meanwhile, whether on this task is not known here (see `dmesg`)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kill_meanwhile_is_a_reason_to_suspect() {
        assert!(suspicion_of(Some(3), Some(4)).contains("is not known here"));
        for (before, now) in [(Some(3), Some(3)), (None, Some(4)), (Some(3), None)] {
            assert_eq!(suspicion_of(before, now), "");
        }
    }
}
