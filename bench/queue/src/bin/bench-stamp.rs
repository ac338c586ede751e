//! `bench-stamp FILE`: the first thing it does is to look at the clock (the monotonic one, which all
//! processes share); then it writes that into FILE, in nanoseconds, by a rename.

use rustix::time::{ClockId, clock_gettime};

fn main() -> std::io::Result<()> {
    let now = clock_gettime(ClockId::Monotonic);
    let ns = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    let Some(path) = std::env::args().nth(1) else {
        return Err(std::io::Error::other("usage: bench-stamp FILE"));
    };
    let partial = format!("{path}.partial");
    std::fs::write(&partial, ns.to_string())?;
    std::fs::rename(partial, path)
}
