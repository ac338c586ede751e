//! Claims of one queue by processes that race, through the code of the agents and through nothing
//! but the system calls.

use std::env;
use std::ffi::CString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rigor_queue::claim::{self, Candidate};
use rigor_queue::index::Index;
use rigor_queue::name::FileName;
use rigor_queue::rig::{Place, Rig};
use rigor_queue::task::Class;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::clock::now_ns;
use crate::tasks::{QUEUE, fresh_rig, queue_one};

/// More than a task of a benchmark has.
pub(crate) const BUFFER_BYTES: usize = 64 * 1024;

/// Which code claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// The crate that the agents use.
    Ours,
    /// open, flock, fstat, stat, read, rename, close, with paths that were built before.
    Bare,
}

impl FromStr for How {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<How> {
        match text {
            "ours" => Ok(How::Ours),
            "bare" => Ok(How::Bare),
            _ => bail!("{text:?} is neither \"ours\" nor \"bare\""),
        }
    }
}

impl How {
    fn as_str(self) -> &'static str {
        match self {
            How::Ours => "ours",
            How::Bare => "bare",
        }
    }
}

/// What one process did, by the clock that all share.
#[derive(Serialize, Deserialize)]
struct Claimant {
    claims: u64,
    began_ns: u64,
    ended_ns: u64,
}

/// Queues `count` tasks and lets so many processes claim them; from the first one's beginning to
/// the last one's end.
pub(crate) fn run(how: How, dir: &Path, count: u64, processes: u64) -> Result<serde_json::Value> {
    let (_scratch, rig) = fresh_rig(dir)?;
    for sequence in 0..count {
        queue_one(&rig, sequence)?;
    }
    let own = env::current_exe().context("cannot tell where this program lies")?;
    let mut started = Vec::new();
    for process in 0..processes {
        let agent = format!("gpu-{process}");
        rig.prepare_agent(&agent)?;
        let child = Command::new(&own)
            .args(["claimant", how.as_str()])
            .arg(rig.root())
            .arg(&agent)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        started.push(child.context("cannot start a claimant")?);
    }
    let mut outputs = Vec::new();
    for child in &mut started {
        let mut output = BufReader::new(child.stdout.take().context("a pipe was asked for")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("a claimant said {line:?}");
        }
        outputs.push(output);
    }
    // All of them wait for the end of their input.
    for child in &mut started {
        drop(child.stdin.take());
    }
    let mut done = Vec::new();
    for (mut child, mut output) in started.into_iter().zip(outputs) {
        let mut line = String::new();
        output.read_line(&mut line)?;
        let status = child.wait()?;
        if !status.success() {
            bail!("a claimant ended: {status}");
        }
        done.push(serde_json::from_str::<Claimant>(&line).context("a claimant's figures")?);
    }
    let left = rig.count(QUEUE)?;
    if left > 0 {
        bail!("{left} tasks are still queued");
    }
    let began = done
        .iter()
        .map(|one| one.began_ns)
        .min()
        .unwrap_or_default();
    let ended = done
        .iter()
        .map(|one| one.ended_ns)
        .max()
        .unwrap_or_default();
    Ok(serde_json::json!({
        "claims": done.iter().map(|one| one.claims).sum::<u64>(),
        "seconds": (ended - began) as f64 / 1e9,
    }))
}

/// One of the processes: lists the queue, says "ready", waits for the end of its input, claims what
/// it can get.
pub(crate) fn claimant(how: How, root: &Path, agent: &str) -> Result<serde_json::Value> {
    let rig = Rig::open(root)?;
    let names = rig.list(QUEUE)?.names;
    let claimant = match how {
        How::Ours => {
            let mut index = Index::default();
            index.replace(names);
            timed(|| claim_all(&rig, &mut index, agent))?
        }
        How::Bare => {
            let pairs = paths(&rig, &names, agent)?;
            timed(|| claim_bare(&pairs))?
        }
    };
    Ok(serde_json::to_value(claimant)?)
}

fn timed(claim: impl FnOnce() -> Result<u64>) -> Result<Claimant> {
    println!("ready");
    std::io::stdout().flush()?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    let began_ns = now_ns();
    let claims = claim()?;
    Ok(Claimant {
        claims,
        began_ns,
        ended_ns: now_ns(),
    })
}

/// As an agent does, which takes the first of its index.
fn claim_all(rig: &Rig, index: &mut Index, agent: &str) -> Result<u64> {
    let mut claims = 0;
    while !index.is_empty() {
        let now = Instant::now();
        let Some((_, _, name)) = index.shapes(now).first().copied() else {
            // Another process looks at each of those that are left.
            std::thread::yield_now();
            continue;
        };
        match claim::candidate(rig, Class::Cpu, &name)? {
            Candidate::Ready(held) => {
                claims += u64::from(held.claim(rig, agent, false)?.is_some());
                index.remove(&name);
            }
            Candidate::LostRace => index.remove(&name),
            Candidate::LockBusy => index.defer(&name, now),
            Candidate::Quarantined { reason } => bail!("{name} was not trusted: {reason}"),
        }
    }
    Ok(claims)
}

/// Each task's path and where a claim moves it.
fn paths(rig: &Rig, names: &[FileName], agent: &str) -> Result<Vec<[CString; 2]>> {
    names.iter().map(|name| pair(rig, name, agent)).collect()
}

/// A task's path and where a claim moves it.
pub(crate) fn pair(rig: &Rig, name: &FileName, agent: &str) -> Result<[CString; 2]> {
    let to_c = |place| {
        CString::new(rig.path(place, name).into_os_string().into_vec())
            .context("a path has no NUL in it")
    };
    Ok([to_c(QUEUE)?, to_c(Place::Processing(agent))?])
}

fn claim_bare(pairs: &[[CString; 2]]) -> Result<u64> {
    let mut claims = 0;
    let mut buffer = vec![0; BUFFER_BYTES];
    for pair in pairs {
        claims += u64::from(bare(pair, &mut buffer)?);
    }
    Ok(claims)
}

/// The lower bound: what a claim has to ask of the kernel, and nothing else. Whether it was got.
pub(crate) fn bare([from, to]: &[CString; 2], buffer: &mut [u8]) -> Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(from, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(errno).context("open"),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        // Whoever has it claims it.
        Err(Errno::WOULDBLOCK) => return Ok(false),
        Err(errno) => return Err(errno).context("flock"),
    }
    let locked = rustix::fs::fstat(&file).context("fstat")?;
    match rustix::fs::lstat(from) {
        Ok(now) if (now.st_dev, now.st_ino) == (locked.st_dev, locked.st_ino) => {}
        Ok(_) | Err(Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(errno).context("stat"),
    }
    let read = rustix::io::read(&file, buffer).context("read")?;
    if read as i64 != locked.st_size {
        bail!("{read} bytes of {} were read", locked.st_size);
    }
    match rustix::fs::rename(from, to) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno).context("rename"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(how: How) {
        let dir = tempfile::tempdir().expect("a directory");
        let (_scratch, rig) = fresh_rig(dir.path()).expect("a rig");
        rig.prepare_agent("gpu-1").expect("an agent's folders");
        for sequence in 0..20 {
            queue_one(&rig, sequence).expect("a task is queued");
        }
        let names = rig.list(QUEUE).expect("it is listed").names;
        // One that another process has claimed meanwhile.
        std::fs::remove_file(rig.path(QUEUE, &names[3])).expect("it is there");
        let claims = match how {
            How::Ours => {
                let mut index = Index::default();
                index.replace(names);
                claim_all(&rig, &mut index, "gpu-1")
            }
            How::Bare => claim_bare(&paths(&rig, &names, "gpu-1").expect("paths")),
        };
        assert_eq!(claims.expect("claims"), 19);
        assert_eq!(rig.count(QUEUE).expect("a count"), 0);
        assert_eq!(rig.count(Place::Processing("gpu-1")).expect("a count"), 19);
    }

    #[test]
    fn ours_claims_what_is_there() {
        claimed(How::Ours);
    }

    #[test]
    fn the_bare_calls_claim_what_is_there() {
        claimed(How::Bare);
    }
}
