//! What runs on an agent's GPU, on disk: so that a restarted agent finds what a killed one left.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::tree::{Leader, Tree};

/// The manifest's name in an agent's directory.
pub const MANIFEST_NAME: &str = "runtime.json";

/// The only layout there is so far; a file with a higher number is of a newer agent.
const SCHEMA: u32 = 1;

/// One runtime. It is written before the process starts and completed after, so that there is no
/// instant at which a process runs that no manifest leads to: its `nonce` alone finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The layout of this file.
    pub schema: u32,
    /// The agent.
    pub agent: String,
    /// The model's id.
    pub model: String,
    /// Where it serves.
    pub port: u16,
    /// In the environment of each of its processes.
    pub nonce: String,
    /// The kernel's id of this boot: a process number means nothing in another.
    pub boot_id: String,
    /// Its first process, leader of its session; `None` until it is started.
    pub pid: Option<i32>,
    /// When that process started, in clock ticks since boot.
    pub start_ticks: Option<u64>,
    /// Its output.
    pub log: PathBuf,
    /// When the load began.
    pub started_at: jiff::Timestamp,
    /// Of what was started and of what it loads; equal for the same.
    #[serde(default)]
    pub digest: Option<String>,
    /// What a successor must know to take it over; absent until it has generated.
    #[serde(default)]
    pub proven: Option<Proven>,
}

/// A runtime that serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proven {
    /// Since when.
    pub at: jiff::Timestamp,
    /// From the start to the proof.
    pub load_ms: u64,
    /// UUIDs of its GPUs, the agent's own first.
    pub gpus: Vec<String>,
    /// In use on those GPUs before the load, MB.
    pub vram_before_mb: Option<u64>,
    /// What the load added, MB.
    pub vram_delta_mb: Option<i64>,
}

/// Why a manifest could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file system refused.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not a manifest.
    #[error(
        "{}: {detail}; a runtime of this agent may still run: look for {variable} in /proc/*/environ, end it, remove the file",
        path.display(),
        variable = crate::tree::COOKIE_VARIABLE
    )]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
}

impl Manifest {
    pub(crate) fn new(
        rig_id: &str,
        agent: &str,
        model: &str,
        port: u16,
        log: PathBuf,
        digest: String,
    ) -> std::io::Result<Manifest> {
        let nonce = format!("{rig_id}:{}", fresh_nonce()?);
        Ok(Manifest {
            schema: SCHEMA,
            agent: agent.to_owned(),
            model: model.to_owned(),
            port,
            nonce,
            boot_id: boot_id()?,
            pid: None,
            start_ticks: None,
            log,
            started_at: jiff::Timestamp::now(),
            digest: Some(digest),
            proven: None,
        })
    }

    /// Reads the manifest at `path`; `None` where there is none.
    pub fn read(path: &Path) -> Result<Option<Manifest>, ManifestError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(ManifestError::Io {
                    operation: "read",
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let unreadable = |detail: String| ManifestError::Unreadable {
            path: path.to_owned(),
            detail,
        };
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
        if manifest.schema > SCHEMA {
            return Err(unreadable(format!(
                "schema {} is newer than this agent's {SCHEMA}",
                manifest.schema
            )));
        }
        Ok(Some(manifest))
    }

    /// Replaces the file by rename: a reader sees the old or the new one. Not synced: after a power
    /// cut the process that it names is gone too.
    pub(crate) fn write(&self, path: &Path) -> Result<(), ManifestError> {
        let error = |operation| {
            move |source| ManifestError::Io {
                operation,
                path: path.to_owned(),
                source,
            }
        };
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new()
            .prefix(".runtime-")
            .tempfile_in(folder)
            .map_err(error("create"))?;
        let text =
            serde_json::to_vec_pretty(self).map_err(|source| error("encode")(source.into()))?;
        file.write_all(&text).map_err(error("write"))?;
        file.persist(path)
            .map_err(|failed| error("rename")(failed.error))?;
        Ok(())
    }

    /// Removes the file; that it is not there is no error.
    pub(crate) fn remove(path: &Path) -> Result<(), ManifestError> {
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != ErrorKind::NotFound => Err(ManifestError::Io {
                operation: "remove",
                path: path.to_owned(),
                source,
            }),
            _ => Ok(()),
        }
    }

    /// The processes it leads to. The process number counts only in the boot it was given in.
    pub(crate) fn tree(&self) -> Tree {
        let same_boot = boot_id().is_ok_and(|boot| boot == self.boot_id);
        let leader = match (self.pid, self.start_ticks) {
            (Some(pid), Some(start_ticks)) if same_boot => Some(Leader { pid, start_ticks }),
            _ => None,
        };
        Tree {
            cookie: self.nonce.clone(),
            leader,
        }
    }
}

fn fresh_nonce() -> std::io::Result<String> {
    let mut bytes = [0_u8; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}
