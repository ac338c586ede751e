//! Idempotency keys: a submission that is repeated under its key is the same batch.
//!
//! `brain/keys/<hash of the key>.json` says which batch a key stands for and what was submitted
//! under it. It is written, and durable, before the plan's task file; so a key whose batch has no
//! task file anywhere belongs to a submission that died half way, and the next one under that key
//! goes on with the same batch id. `brain/keys/lock` is held meanwhile, and never replaced.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{QueueError, Result};
use crate::format;
use crate::lease::Lease;
use crate::name::TaskId;
use crate::rig::{BRAIN, Place, Rig, make_dir};
use crate::submit::{Durability, replace_file};
use crate::task::{Class, Submission};

/// A submission takes a fraction of a second; one that holds the lock for so long is stopped.
const PATIENCE: Duration = Duration::from_secs(30);
/// A key is kept in its file for people to read, so it is of a size that they read.
pub const KEY_MAX_BYTES: usize = 200;

/// What a key stands for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    key: String,
    batch: String,
    content: String,
}

/// What is submitted under a key: two submissions are the same if these are.
#[derive(Debug, Serialize)]
pub struct Content<'a> {
    /// The plan's folder.
    pub plan_dir: &'a std::path::Path,
    /// The plan and what it is run with.
    pub submission: &'a Submission,
}

/// What a key says of a submission.
#[derive(Debug)]
pub enum Keyed {
    /// Nobody has submitted under it: submit as this batch, and drop this after it.
    New(Reserved),
    /// This batch was submitted under it, with the same content.
    Known(String),
    /// This batch was, with another content.
    Other(String),
}

/// A key that this process holds until its batch is submitted.
#[derive(Debug)]
pub struct Reserved {
    /// The id that the batch has to have.
    pub batch: String,
    _lock: Lease,
}

/// Looks a key up and reserves it for a batch named `batch` where it is new. `plan_task` gives the
/// id of a batch's plan task.
///
/// Errors: the lock is held for half a minute (who holds it is stopped), the file of the key cannot be
/// read or written.
pub fn reserve(
    rig: &Rig,
    key: &str,
    content: &Content<'_>,
    batch: &str,
    plan_task: impl Fn(&str) -> TaskId,
    durability: Durability,
) -> Result<Keyed> {
    rig.writable()?;
    let dir = dir(rig);
    rig.no_links(&dir)?;
    make_dir(&dir)?;
    let lock = lock(&dir.join("lock"))?;
    let content = hex(&Sha256::digest(
        serde_json::to_vec(content).expect("paths and texts serialise"),
    ));
    let path = dir.join(format!("{}.json", &hex(&Sha256::digest(key))[..32]));
    if let Some(entry) = read(&path)? {
        if is_submitted(rig, &entry.batch, plan_task(&entry.batch))? {
            return Ok(if entry.content == content {
                Keyed::Known(entry.batch)
            } else {
                Keyed::Other(entry.batch)
            });
        }
        if entry.content == content {
            let batch = entry.batch;
            return Ok(Keyed::New(Reserved { batch, _lock: lock }));
        }
    }
    let entry = Entry {
        key: key.to_owned(),
        batch: batch.to_owned(),
        content,
    };
    let written = replace_file(&path, &format::seal(&entry), durability.syncs());
    if durability.syncs() {
        rig.synced(written)?;
    } else {
        written?;
    }
    let batch = entry.batch;
    Ok(Keyed::New(Reserved { batch, _lock: lock }))
}

/// Removes the keys of batches that were removed for good: what is submitted under one of them is
/// a new batch. Returns how many there were.
///
/// # Errors
///
/// A submission holds the lock for half a minute, or the disk refuses.
pub fn forget(rig: &Rig, batches: &[String]) -> Result<usize> {
    let dir = dir(rig);
    rig.no_links(&dir)?;
    if batches.is_empty() || !dir.is_dir() {
        return Ok(0);
    }
    let _lock = lock(&dir.join("lock"))?;
    let mut files = Vec::new();
    rig.each_entry(&dir, |name, _| {
        let path = dir.join(name);
        if path.extension().is_some_and(|end| end == "json") {
            files.push(path);
        }
    })?;
    let mut removed = 0;
    for path in files {
        // One that cannot be read is nobody's to remove: whoever submits under it is told.
        let entry = read(&path).ok().flatten();
        if entry.is_some_and(|entry| batches.contains(&entry.batch)) {
            fs::remove_file(&path).map_err(QueueError::io("remove", &path))?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn dir(rig: &Rig) -> PathBuf {
    rig.brain_dir().join("keys")
}

fn read(path: &std::path::Path) -> Result<Option<Entry>> {
    match fs::read(path) {
        Ok(bytes) => format::unseal(&bytes)
            .map(Some)
            .map_err(|why| QueueError::Untrusted {
                path: path.to_owned(),
                why: format!("{why}; which batch has this key is not known: look with `rigor status --all`, and remove the file if it is none"),
            }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(QueueError::io("read", path)(error)),
    }
}

fn lock(path: &std::path::Path) -> Result<Lease> {
    let holder = "another submission with a key that does not go on";
    Lease::wait_for_path(path, PATIENCE, holder)
}

/// Whether the plan task lies in any lane. It moves on while it is looked for: lanes are read in
/// the order in which it does, and twice because an operator's retry takes it back.
fn is_submitted(rig: &Rig, batch: &str, id: TaskId) -> Result<bool> {
    let places = [
        Place::Queue(Class::Brain),
        Place::Processing(BRAIN),
        Place::Retry(batch),
        Place::Complete(batch),
        Place::Failed(batch),
        Place::Cancelled(batch),
    ];
    for place in places.iter().chain(&places) {
        if rig.list(*place)?.names.iter().any(|name| name.id == id) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::claim::{self, Candidate};
    use crate::name::FileName;
    use crate::submit::submit;
    use crate::task::{TaskSpec, Work};

    fn plan(source: &str) -> Submission {
        Submission {
            source: source.to_owned(),
            files: BTreeMap::new(),
            inputs: BTreeMap::new(),
            limit: None,
            infer: false,
        }
    }

    fn plan_task(batch: &str) -> TaskId {
        TaskId::derive(batch, "_plan", None)
    }

    fn ask(rig: &Rig, source: &str, batch: &str) -> Result<Keyed> {
        let submission = plan(source);
        let content = Content {
            plan_dir: "/plans/p".as_ref(),
            submission: &submission,
        };
        reserve(
            rig,
            "nightly 7",
            &content,
            batch,
            plan_task,
            Durability::Process,
        )
    }

    /// Returns the batch's id.
    fn submit_new(rig: &Rig, source: &str, batch: &str) -> String {
        let reserved = match ask(rig, source, batch).unwrap() {
            Keyed::New(reserved) => reserved,
            other => panic!("{other:?}"),
        };
        rig.prepare_batch(&reserved.batch).unwrap();
        let work = Work::Plan(Box::new(plan(source)));
        let id = plan_task(&reserved.batch);
        let spec = TaskSpec::new(id, &reserved.batch, "_plan", Class::Brain, work);
        let name = FileName::first(spec.priority, 1, spec.shape(), id);
        let place = Place::Queue(Class::Brain);
        assert!(submit(rig, place, &name, &spec, Durability::Process).unwrap());
        reserved.batch
    }

    #[test]
    fn a_key_is_one_batch_wherever_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::create(&dir.path().join("rig")).unwrap();
        let known = |rig: &Rig| match ask(rig, "# a", "p-2") {
            Ok(Keyed::Known(batch)) => batch,
            other => panic!("{other:?}"),
        };
        rig.prepare_agent(BRAIN).unwrap();
        assert_eq!(submit_new(&rig, "# a", "p-1"), "p-1");
        assert_eq!(known(&rig), "p-1");
        assert!(matches!(ask(&rig, "# b", "p-2"), Ok(Keyed::Other(batch)) if batch == "p-1"));

        let names = rig.list(Place::Queue(Class::Brain)).unwrap().names;
        let held = match claim::candidate(&rig, Class::Brain, &names[0]).unwrap() {
            Candidate::Ready(held) => held.claim(&rig, BRAIN, false).unwrap().unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(known(&rig), "p-1");
        let path = rig.path(Place::Processing(BRAIN), &held.name);
        for place in [
            Place::Complete("p-1"),
            Place::Failed("p-1"),
            Place::Cancelled("p-1"),
        ] {
            let there = rig.path(place, &held.name);
            fs::rename(&path, &there).unwrap();
            assert_eq!(known(&rig), "p-1");
            fs::rename(&there, &path).unwrap();
        }
    }

    #[test]
    fn who_died_before_it_submitted_is_followed_under_the_same_id() {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::create(&dir.path().join("rig")).unwrap();
        // Dropped: the process died.
        assert!(matches!(ask(&rig, "# a", "p-1"), Ok(Keyed::New(_))));
        assert_eq!(submit_new(&rig, "# a", "p-2"), "p-1");

        let rig = Rig::create(&dir.path().join("other")).unwrap();
        assert!(matches!(ask(&rig, "# a", "p-1"), Ok(Keyed::New(_))));
        // Nothing was submitted under it, so another plan may have it.
        assert_eq!(submit_new(&rig, "# b", "p-2"), "p-2");
    }

    #[test]
    fn a_damaged_file_of_a_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::create(&dir.path().join("rig")).unwrap();
        submit_new(&rig, "# a", "p-1");
        let file = fs::read_dir(super::dir(&rig))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some())
            .unwrap();
        let mut bytes = fs::read(&file).unwrap();
        let at = bytes.len() - 9;
        bytes[at] ^= 1;
        fs::write(&file, bytes).unwrap();
        let error = ask(&rig, "# a", "p-2").unwrap_err().to_string();
        assert!(
            error.contains(file.to_str().unwrap()) && error.contains("remove"),
            "{error}"
        );
    }
}
