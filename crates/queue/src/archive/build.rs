//! Making an archive of a batch that is over.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::gather::{Gathered, Refusable, gather};
use super::removal::clear;
use super::{HEADER, Header, INDEX, Kind, Lock, OUTPUT, Row, TASKS, Within, changed_at, sum};
use crate::claim;
use crate::error::{QueueError, Result};
use crate::format;
use crate::lane::Lane;
use crate::name::FileName;
use crate::rig::{Renamed, Rig, sync_dir};
use crate::small;
use crate::submit::Durability;

/// An output of more bytes stays a file of its own: a second name instead of a copy.
const OWN_FROM: u64 = 256 * 1024;

/// What came of archiving a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Compacted {
    /// It is archived, and nothing of it is left in the lanes.
    Done(Header),
    /// It stays as it is, untouched: why.
    Refused(String),
}
/// Archives a batch that is over and removes it from the lanes. Called again after a crash it goes
/// on: an archive that is there is whole, so what is left in the lanes goes; one that is not is made
/// anew. The caller sees to it that nobody opens the batch again meanwhile.
///
/// # Errors
///
/// The disk refuses: the batch lies as it did, or it is archived and something of it is left.
pub fn compact(rig: &Rig, lock: &Lock, batch: &str, durability: Durability) -> Result<Compacted> {
    rig.writable()?;
    if let Some(header) = rig.archive_header(batch)? {
        clear(rig, lock, batch)?;
        return Ok(Compacted::Done(header));
    }
    let gathered = match gather(rig, batch)? {
        Ok(gathered) => gathered,
        Err(why) => return Ok(Compacted::Refused(why)),
    };
    let dir = rig.archive_dir();
    let building = dir.join(format!(".new-{batch}"));
    remove_tree(&building)?;
    let written = write(rig, &building, batch, &gathered, durability);
    let header = match written {
        Ok(Ok(header)) => header,
        Ok(Err(why)) => {
            remove_tree(&building)?;
            return Ok(Compacted::Refused(why));
        }
        Err(error) => {
            // The room that it took may be what is missing.
            let _ = remove_tree(&building);
            return Err(error);
        }
    };
    crate::crash_point!("archive.full");
    match rig.rename_new(&building, &dir.join(batch))? {
        Renamed::Done => {}
        Renamed::Exists | Renamed::Gone => {
            return Err(QueueError::Untrusted {
                path: building,
                why: "another process changed archive/ meanwhile, without its lock".to_owned(),
            });
        }
    }
    if durability.syncs() {
        rig.synced(sync_dir(&dir))?;
    }
    crate::crash_point!("archive.renamed");
    clear(rig, lock, batch)?;
    Ok(Compacted::Done(header))
}

pub(super) fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(QueueError::io("remove", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
/// A file of the archive that is being written.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    file: BufWriter<File>,
    at: u64,
}

impl Part {
    fn new(path: PathBuf) -> Result<Part> {
        let file = File::create_new(&path).map_err(QueueError::io("create", &path))?;
        let file = BufWriter::new(file);
        Ok(Part { path, file, at: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(QueueError::io("write", &self.path))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn finish(self, rig: &Rig, durability: Durability) -> Result<()> {
        let failed = |error: io::Error| QueueError::io("write", &self.path)(error);
        let file = self
            .file
            .into_inner()
            .map_err(|error| failed(error.into_error()))?;
        if durability.syncs() {
            let synced = file.sync_all();
            rig.synced(synced.map_err(QueueError::io("fsync", &self.path)))?;
        }
        Ok(())
    }
}

/// The archive under its dot name.
#[derive(Debug)]
struct Building<'a> {
    dir: &'a Path,
    attempts: PathBuf,
    tasks: Part,
    output: Part,
    rows: Vec<Row>,
    /// Bytes of outputs that are files of their own.
    own: u64,
}

fn write(
    rig: &Rig,
    dir: &Path,
    batch: &str,
    gathered: &Gathered,
    durability: Durability,
) -> Refusable<Header> {
    fs::create_dir(dir).map_err(QueueError::io("make directory", dir))?;
    let mut building = Building {
        dir,
        attempts: rig.attempts_dir(batch),
        tasks: Part::new(dir.join(TASKS))?,
        output: Part::new(dir.join(OUTPUT))?,
        rows: Vec::new(),
        own: 0,
    };
    let mut known = BTreeSet::new();
    for (kind, name, path) in &gathered.tasks {
        known.insert(Some(name.id));
        let of_task = gathered.attempts.get(&Some(name.id));
        let of_task = of_task.map(Vec::as_slice).unwrap_or_default();
        if let Err(why) = building.task(*kind, name, path, of_task)? {
            return Ok(Err(format!(
                "{} cannot be trusted: {why}; see `rigor fsck`",
                path.display()
            )));
        }
    }
    let others = gathered
        .attempts
        .iter()
        .filter(|(id, _)| !known.contains(id));
    for name in others.flat_map(|(_, names)| names) {
        building.loose(name)?;
    }
    for (folder, path) in &gathered.expansions {
        building.expansion(folder, path)?;
    }
    let Building {
        tasks,
        output,
        mut rows,
        own,
        ..
    } = building;
    rows.sort_unstable_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    let mut index = Vec::new();
    for row in &rows {
        serde_json::to_writer(&mut index, row).expect("plain fields serialise");
        index.push(b'\n');
    }
    let view = fs::read(rig.view_path(batch)).ok();
    let header = Header {
        batch: batch.to_owned(),
        lane: gathered.lane,
        ended: gathered.ended,
        archived: Timestamp::now(),
        tasks: (gathered.tasks.len() - 1) as u64,
        files: rows.len() as u64 + u64::from(view.is_some()),
        bytes: tasks.at + output.at + own,
        index_sum: sum(&index),
        view: view.and_then(|bytes| serde_json::from_slice(&bytes).ok()),
    };
    // An output that was made and never written to, on a full disk say, has its place in it too.
    let is_silent = rows.iter().all(|row| row.within != Within::Output);
    let output_path = output.path.clone();
    tasks.finish(rig, durability)?;
    output.finish(rig, durability)?;
    if is_silent {
        fs::remove_file(&output_path).map_err(QueueError::io("remove", &output_path))?;
    }
    for (name, bytes) in [(INDEX, index), (HEADER, format::seal(&header))] {
        let mut part = Part::new(dir.join(name))?;
        part.write(&bytes)?;
        part.finish(rig, durability)?;
    }
    if durability.syncs() {
        rig.synced(sync_dir(dir))?;
    }
    Ok(Ok(header))
}

impl Building<'_> {
    /// A line for a task: its file, its records, where its outputs are. The inner error says why
    /// the file cannot be trusted.
    fn task(
        &mut self,
        kind: Kind,
        name: &FileName,
        path: &Path,
        attempts: &[String],
    ) -> Refusable<()> {
        let (bytes, meta) = match small::read(path) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Ok(Err(error.to_string()));
            }
            Err(error) => return Err(QueueError::io("read", path)(error)),
        };
        if let Err(why) = claim::decode(&bytes, name) {
            return Ok(Err(why));
        }
        let Some(text) = line_of_json(&bytes) else {
            return Ok(Err("it is not one line".to_owned()));
        };
        let since = changed_at(&meta);
        let lane = kind.lane().map_or("", Lane::as_str);
        let mut line = format!(r#"{{"lane":"{lane}","name":"{name}","#);
        if let Some(since) = since {
            line.push_str(&format!(r#""since":"{since}","#));
        }
        line.push_str(r#""file":"#);
        self.embed(&mut line, kind, name.to_string(), text, since);
        let mut outputs = Vec::new();
        line.push_str(r#","records":["#);
        let mut first = true;
        for attempt in attempts {
            let bytes = self.small_attempt(attempt)?;
            match bytes.as_deref().and_then(line_of_json) {
                Some(text) => {
                    if !std::mem::take(&mut first) {
                        line.push(',');
                    }
                    self.embed(&mut line, Kind::Attempt, attempt.clone(), text, None);
                }
                None => outputs.push(self.blob(attempt)?),
            }
        }
        line.push_str("],\"outputs\":");
        line.push_str(&serde_json::to_string(&outputs).expect("plain fields serialise"));
        line.push_str("}\n");
        self.tasks.write(line.as_bytes())?;
        Ok(Ok(()))
    }

    /// Puts the text into the line that is to be written next.
    fn embed(
        &mut self,
        line: &mut String,
        kind: Kind,
        name: String,
        text: &str,
        since: Option<Timestamp>,
    ) {
        self.rows.push(Row {
            kind,
            name,
            within: Within::Tasks,
            at: self.tasks.at + line.len() as u64,
            bytes: text.len() as u64,
            newline: true,
            since,
        });
        line.push_str(text);
    }

    /// The content of what is no output.
    fn small_attempt(&self, name: &str) -> Result<Option<Vec<u8>>> {
        if !name.ends_with(".json") {
            return Ok(None);
        }
        let path = self.attempts.join(name);
        match small::read(&path) {
            Ok((bytes, _)) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(QueueError::io("read", &path)(error)),
        }
    }

    /// A file of an attempt whose task is not in the lanes (it is in quarantine, say).
    fn loose(&mut self, name: &str) -> Result<()> {
        let bytes = self.small_attempt(name)?;
        let mut line = format!(r#"{{"attempt":"{name}","#);
        match bytes.as_deref().and_then(line_of_json) {
            Some(text) => {
                line.push_str(r#""record":"#);
                self.embed(&mut line, Kind::Attempt, name.to_owned(), text, None);
            }
            None => {
                let row = self.blob(name)?;
                line.push_str(r#""output":"#);
                line.push_str(&serde_json::to_string(&row).expect("plain fields serialise"));
            }
        }
        line.push_str("}\n");
        self.tasks.write(line.as_bytes())
    }

    /// An output, or whatever else is no record, as it is.
    fn blob(&mut self, name: &str) -> Result<Row> {
        let path = self.attempts.join(name);
        let mut source = File::open(&path).map_err(QueueError::io("open", &path))?;
        let meta = source.metadata().map_err(QueueError::io("stat", &path))?;
        let is_output = name.len() > ".log".len() + 16 && name.ends_with(".log");
        let mut row = Row {
            kind: Kind::Attempt,
            name: name.to_owned(),
            within: Within::Own,
            at: 0,
            bytes: meta.size(),
            newline: false,
            since: None,
        };
        let linked = is_output
            && meta.size() > OWN_FROM
            && fs::hard_link(&path, self.dir.join(name)).is_ok();
        if linked {
            self.own += meta.size();
        } else {
            row.within = Within::Output;
            row.at = self.output.at;
            row.bytes = io::copy(&mut source, &mut self.output.file)
                .map_err(QueueError::io("copy", &path))?;
            self.output.at += row.bytes;
        }
        self.rows.push(row.clone());
        Ok(row)
    }

    /// A line that announces the manifest, then its own lines.
    fn expansion(&mut self, folder: &str, path: &Path) -> Result<()> {
        let bytes = fs::read(path).map_err(QueueError::io("read", path))?;
        let line = format!("{{\"expansion\":\"{folder}\",\"bytes\":{}}}\n", bytes.len());
        self.tasks.write(line.as_bytes())?;
        self.rows.push(Row {
            kind: Kind::Expansion,
            name: folder.to_owned(),
            within: Within::Tasks,
            at: self.tasks.at,
            bytes: bytes.len() as u64,
            newline: false,
            since: None,
        });
        self.tasks.write(&bytes)
    }
}

/// The text of a file that is JSON on one line and nothing else.
fn line_of_json(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
    let raw: &RawValue = serde_json::from_str(text).ok()?;
    (!text.contains('\n') && raw.get() == text).then_some(text)
}
