//! What is put into the rig's directories that nobody of the rig wrote.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rigor_queue::name::{FileName, TaskId};
use rigor_queue::rig::{BRAIN, Place};
use rigor_queue::task::Class;
use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, mknodat};

use super::draw::one;
use super::faults::Fault;
use super::load::Load;
use crate::{Rig, tasks};

/// More than a task file may have.
const HUGE_BYTES: u64 = 9 << 20;

/// Does it, and says what and where; `None` if there is nothing to do it to, or it fails.
pub(super) fn strike(
    rig: &Rig,
    load: &mut Load,
    fault: Fault,
    agents: &[String],
    rng: &mut fastrand::Rng,
) -> Option<String> {
    match fault {
        Fault::BadFile => bad_file(rig, rng),
        Fault::FileCopied => {
            let (class, name) = queued(rig, rng)?;
            let mut other = name;
            other.id = stranger(rng);
            let to = rig.rig.path(Place::Queue(class), &other);
            fs::copy(rig.rig.path(Place::Queue(class), &name), &to).ok()?;
            Some(format!("{name} to {}", to.display()))
        }
        Fault::FileDamaged => {
            let (class, name) = queued(rig, rng)?;
            let batch = load.batch_of(rig, class, &name)?;
            let path = rig.rig.path(Place::Queue(class), &name);
            damage(&path, rng)?;
            load.is_damaged(&batch, name.id);
            Some(format!("{} of {batch}", path.display()))
        }
        Fault::BadRecord => {
            let (class, name) = queued(rig, rng)?;
            let batch = load.batch_of(rig, class, &name)?;
            let path = rig.rig.record_path(&batch, name.id, name.attempt);
            let mut file = File::create_new(&path).ok()?;
            file.write_all(b"{\"schema\":1,\"sum\":\"0123").ok()?;
            Some(path.display().to_string())
        }
        Fault::BadHeartbeat => {
            let path = rig.rig.agent_dir(one(rng, agents)?).join("heartbeat.json");
            fs::write(&path, [0xff, b'{', 0]).ok()?;
            Some(path.display().to_string())
        }
        Fault::BadSignal => {
            let mut names = agents.to_vec();
            names.push(BRAIN.to_owned());
            let path = rig.rig.signals_dir(one(rng, &names)?).join("nonsense");
            fs::write(&path, [0, 0xff]).ok()?;
            Some(path.display().to_string())
        }
        _ => None,
    }
}

/// A task that this rig does not have.
fn stranger(rng: &mut fastrand::Rng) -> TaskId {
    TaskId::derive("nobody", "nothing", Some(&rng.u64(..).to_string()))
}

/// One of the tasks that are queued for agents.
fn queued(rig: &Rig, rng: &mut fastrand::Rng) -> Option<(Class, FileName)> {
    let all: Vec<(Class, FileName)> = [Class::Cpu, Class::Script, Class::Llm]
        .into_iter()
        .flat_map(|class| {
            let names = rig.list(Place::Queue(class));
            names.into_iter().map(move |name| (class, name))
        })
        .collect();
    one(rng, &all).copied()
}

fn bad_file(rig: &Rig, rng: &mut fastrand::Rng) -> Option<String> {
    let id = stranger(rng);
    let spec = tasks::spec("nobody", "nothing", None, "true");
    let name = FileName::first(spec.priority, rng.u64(1..1_000_000), spec.shape(), id);
    // Not into the lane of claimed tasks: a running agent reads it when it starts, and never again.
    let places = [
        Place::Queue(Class::Cpu),
        Place::Queue(Class::Script),
        Place::Queue(Class::Llm),
        Place::Queue(Class::Meta),
        Place::Queue(Class::Brain),
    ];
    let place = *one(rng, &places)?;
    let path = rig.rig.path(place, &name);
    let odd = |file: &str| path.with_file_name(file);
    let n = rng.u32(..);
    let (what, path) = match rng.usize(0..13) {
        0 => (
            "bytes that are no JSON",
            written(&path, b"{\"not\": a task")?,
        ),
        1 => ("no bytes", written(&path, b"")?),
        2 => ("NUL bytes", written(&path, &[0; 5000])?),
        3 => ("JSON of another kind", written(&path, b"[1, 2, 3]\n")?),
        4 => (
            "a wrong sum",
            written(
                &path,
                b"{\"schema\":1,\"sum\":\"0123456789abcdef\",\"body\":{}}",
            )?,
        ),
        5 => (
            "a newer schema",
            written(
                &path,
                b"{\"schema\":99,\"sum\":\"0123456789abcdef\",\"body\":{}}",
            )?,
        ),
        6 => {
            let file = File::create_new(&path).ok()?;
            file.set_len(HUGE_BYTES).ok()?;
            ("9 MiB", path)
        }
        7 => {
            symlink("/etc/passwd", &path).ok()?;
            ("a symbolic link", path)
        }
        8 => {
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).ok()?;
            ("a FIFO", path)
        }
        9 => {
            fs::create_dir(&path).ok()?;
            written(&path.join("inside"), b"x")?;
            ("a directory", path)
        }
        10 => {
            let first = written(&odd(&format!("one-of-two-{n}")), b"x")?;
            fs::hard_link(first, &path).ok()?;
            ("a second link", path)
        }
        11 => (
            "a name of no task",
            written(&odd(&format!("what is this {n}; rm -rf")), b"x")?,
        ),
        _ => (
            "unfinished writing",
            written(&odd(&format!(".new-{n}")), b"{\"schema\":1,")?,
        ),
    };
    Some(format!("{what}: {}", path.display()))
}

fn written(path: &Path, bytes: &[u8]) -> Option<PathBuf> {
    File::create_new(path).ok()?.write_all(bytes).ok()?;
    Some(path.to_owned())
}

/// Changes bytes in the middle of a task's file, while nobody can claim it.
fn damage(path: &Path, rng: &mut fastrand::Rng) -> Option<()> {
    let mut file = File::options().read(true).write(true).open(path).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    // Whoever claimed it before the lock has renamed it.
    let bytes = fs::metadata(path).ok()?.len();
    if rng.bool() {
        file.set_len(bytes / 2).ok()?;
    } else {
        file.seek(SeekFrom::Start(bytes / 2)).ok()?;
        file.write_all(&[0xff, 0, 0xff]).ok()?;
    }
    Some(())
}
