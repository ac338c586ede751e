//! How soon a task is claimed after the one that it waits for is complete, seen from outside: by the
//! kernel's word that a file came into a directory.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rigor_queue::rig::{Place, Rig};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

use crate::batch;
use crate::clock::now_ns;

/// From the release of the batch to its last move.
const MOST: Duration = Duration::from_secs(300);

/// Submits a plan that is a chain, held; watches where its files arrive; releases it. Milliseconds
/// from each completion to the next claim.
pub(crate) fn chain(
    root: &Path,
    plan: &Path,
    rigor: &Path,
    agent: &str,
) -> Result<serde_json::Value> {
    let rig = Rig::open(root)?;
    let batch = batch::submit(&rig, plan, rigor, &["--hold"])?;
    let complete = rig.dir(Place::Complete(&batch));
    let opened = Instant::now();
    while !complete.is_dir() {
        if opened.elapsed() > MOST {
            bail!("the brain has not opened {batch} after {}s", MOST.as_secs());
        }
        thread::sleep(Duration::from_millis(5));
    }
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context("inotify")?;
    let add = |dir: &Path| {
        inotify::add_watch(&watch, dir, WatchFlags::MOVED_TO)
            .with_context(|| format!("watch {}", dir.display()))
    };
    let ended = add(&complete)?;
    add(&rig.dir(Place::Processing(agent)))?;
    let released = Command::new(rigor)
        .arg("--rig")
        .arg(rig.root())
        .args(["release", &batch])
        .output()
        .context("start rigor release")?;
    if !released.status.success() {
        bail!(
            "rigor release: {}",
            String::from_utf8_lossy(&released.stderr)
        );
    }
    let began = Instant::now();
    let mut pairs = Pairs::default();
    while !batch::is_over(&rig)? {
        if began.elapsed() > MOST {
            bail!("{batch} was not over after {}s", MOST.as_secs());
        }
        arrivals(&watch, |directory, at_ns| {
            pairs.arrived(directory == ended, at_ns)
        })?;
    }
    Ok(serde_json::json!({ "ms": pairs.ms }))
}

/// Waits a little for files that arrive, and says in which directory and when each was seen.
fn arrivals(watch: &OwnedFd, mut seen: impl FnMut(i32, u64)) -> Result<()> {
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: 50_000_000,
    };
    poll(
        &mut [PollFd::new(&watch.as_fd(), PollFlags::IN)],
        Some(&timeout),
    )
    .context("poll")?;
    let at_ns = now_ns();
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(watch, &mut buffer);
    loop {
        match reader.next() {
            Ok(event) => seen(event.wd(), at_ns),
            Err(rustix::io::Errno::AGAIN) => return Ok(()),
            Err(errno) => return Err(errno).context("read what inotify says"),
        }
    }
}

/// Completions, each with the claim that follows it.
#[derive(Default)]
struct Pairs {
    completed_ns: Option<u64>,
    ms: Vec<f64>,
}

impl Pairs {
    fn arrived(&mut self, is_complete: bool, at_ns: u64) {
        if is_complete {
            self.completed_ns = Some(at_ns);
        } else if let Some(completed_ns) = self.completed_ns.take() {
            self.ms.push((at_ns - completed_ns) as f64 / 1e6);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_claim_follows_a_completion() {
        let mut pairs = Pairs::default();
        for (is_complete, at_ms) in [(false, 1), (true, 5), (false, 7), (true, 20), (false, 21)] {
            pairs.arrived(is_complete, at_ms * 1_000_000);
        }
        assert_eq!(pairs.ms, [2.0, 1.0]);
    }

    #[test]
    fn what_comes_into_a_directory_is_seen() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("to")).expect("a directory");
        let watch = inotify::init(CreateFlags::NONBLOCK).expect("inotify");
        let wanted = inotify::add_watch(&watch, dir.path().join("to"), WatchFlags::MOVED_TO);
        let wanted = wanted.expect("it is there");
        std::fs::write(dir.path().join("a"), "").expect("a file");
        std::fs::rename(dir.path().join("a"), dir.path().join("to/a")).expect("a move");
        let mut found = Vec::new();
        arrivals(&watch, |directory, _| found.push(directory)).expect("it is read");
        assert_eq!(found, [wanted]);
        arrivals(&watch, |_, _| panic!("nothing more came")).expect("it is read");
    }
}
