//! `brain/outlook.json`: what the brain alone knows of why agents are idle, for agents' idle lines
//! and for displays. Replaced whole, on change, at most once a second; nothing is decided from it.

use std::collections::BTreeMap;
use std::io;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{QueueError, Result};
use crate::name::{Shape, TaskId};
use crate::rig::Rig;
use crate::submit::replace_file;
use crate::task::Class;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outlook {
    /// 1; a reader refuses a newer one by name.
    pub schema: u32,
    /// When it last changed.
    pub at: Timestamp,
    /// Tasks that wait for dependencies, by class. A foreach that is not expanded counts as one.
    #[serde(default)]
    pub waiting: BTreeMap<Class, usize>,
    /// Failed attempts whose next step is not due.
    #[serde(default)]
    pub retry: usize,
    /// Batches that an operator holds.
    #[serde(default)]
    pub held: Vec<String>,
    /// Models that queued tasks need, and what was decided about each.
    #[serde(default)]
    pub models: Vec<ModelOutlook>,
    /// Queued shapes that no agent can ever run, with the numbers.
    #[serde(default)]
    pub never: BTreeMap<Shape, String>,
    /// Tasks that are stuck.
    #[serde(default)]
    pub stuck: Vec<StuckTask>,
}

/// What was decided about a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelOutlook {
    /// Catalogue id.
    pub model: String,
    /// Tasks queued for it.
    pub queued: usize,
    /// Agents that have it in VRAM or on its way there.
    pub holders: Vec<String>,
    /// Loads that were asked for and that nobody has taken yet, with the agents that may.
    pub asked: Vec<AskedLoad>,
    /// Why it is where it is and nowhere else, from the decision itself: `the brain keeps it on
    /// gpu-2 only: 40s of work < 1.5 x 40s load`.
    pub reason: String,
    /// No agent can load it as things are.
    #[serde(default)]
    pub stranded: bool,
}

/// A load that nobody has taken yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AskedLoad {
    /// Its task.
    pub id: TaskId,
    /// Since when.
    pub since: Timestamp,
    /// Who may take it.
    pub eligible: Vec<String>,
}

/// A task that is processing and quiet for too long.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StuckTask {
    /// The task.
    pub id: TaskId,
    /// The instance's name.
    pub name: String,
    /// Who runs it.
    pub agent: String,
    /// Since when it runs.
    pub since: Timestamp,
    /// Since when it is quiet.
    pub quiet_since: Timestamp,
    /// What will end it, in words: `nothing will stop it (no timeout)`.
    pub end: String,
}

/// Replaces the outlook.
pub fn write(rig: &Rig, outlook: &Outlook) -> Result<()> {
    let text = serde_json::to_vec(outlook).expect("our own types serialise");
    replace_file(&path(rig), &text, false)
}

/// The outlook; `None` where no brain has written one.
pub fn read(rig: &Rig) -> Result<Option<Outlook>> {
    let path = path(rig);
    match crate::small::read(&path) {
        Ok((bytes, _)) => {
            serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| QueueError::Untrusted {
                    path,
                    why: format!("{error}{}", crate::format::newer(&bytes)),
                })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(QueueError::io("read", &path)(error)),
    }
}

fn path(rig: &Rig) -> std::path::PathBuf {
    rig.brain_dir().join("outlook.json")
}
