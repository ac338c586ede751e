//! What attempts printed: a file of its own while the batch is in the lanes, a part of one in an
//! archive.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use crate::error::{QueueError, Result};
use crate::name::TaskId;
use crate::rig::Rig;

/// What an attempt printed, open for reading.
#[derive(Debug)]
pub struct Output {
    file: File,
    start: u64,
    /// Of a part; a whole file may grow.
    length: Option<u64>,
}

/// Opens what an attempt printed. `None`: it printed nothing, or it has not begun.
///
/// # Errors
///
/// It is there and cannot be read, or lies in a damaged archive.
pub fn open(rig: &Rig, batch: &str, id: TaskId, attempt: u32) -> Result<Option<Output>> {
    let path = rig.output_path(batch, id, attempt);
    match File::open(&path) {
        Ok(file) => {
            return Ok(Some(Output {
                file,
                start: 0,
                length: None,
            }));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(QueueError::io("open", &path)(error)),
    }
    let Some(archive) = rig.archived(batch)? else {
        return Ok(None);
    };
    let part = archive.open_attempt(&format!("{id}.a{attempt}.log"))?;
    Ok(part.map(|(file, start, length)| Output {
        file,
        start,
        length: Some(length),
    }))
}

impl Output {
    /// How many bytes there are by now.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn bytes(&self) -> io::Result<u64> {
        match self.length {
            Some(length) => Ok(length),
            None => Ok(self.file.metadata()?.len()),
        }
    }

    /// What there is from byte `at` on.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn read_from(&mut self, at: u64) -> io::Result<impl Read> {
        self.file.seek(SeekFrom::Start(self.start + at))?;
        let rest = self
            .length
            .map_or(u64::MAX, |length| length.saturating_sub(at));
        Ok((&mut self.file).take(rest))
    }
}
