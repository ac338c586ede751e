//! The next model's file is read into the page cache while the one before it is on its way out, so
//! that it is loaded from memory and not from the disk.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rigor_config::Model;

/// One read.
const CHUNK: usize = 1 << 20;
/// After so many bytes it is looked again whether there is memory for the rest.
const LOOK_EVERY: u64 = 256 << 20;

/// Reads the model's files in a thread of its own. A model without files of its own, and one that
/// would take more than half of the memory that is free, is left to its load.
pub(crate) fn start(model: &Model) {
    let local = model.reference().map(Path::new).filter(|at| at.is_dir());
    let Some(path) = model.file().or(local).map(Path::to_owned) else {
        return;
    };
    let id = model.id.clone();
    let spawned = std::thread::Builder::new()
        .name("warm".to_owned())
        .spawn(move || match warm(&path, available) {
            Ok(Warmed::Read { bytes, seconds }) => tracing::info!(
                "Read {} MB of {id} into memory in {seconds:.1}s, for its load",
                bytes / 1_000_000
            ),
            Ok(Warmed::NoMemory { bytes, available }) => tracing::debug!(
                "{id} is not read into memory before its load: {} MB, and {} MB are free",
                bytes / 1_000_000,
                available / 1_000_000
            ),
            // Its load will say what is wrong with it.
            Err(error) => tracing::debug!(
                "{id} is not read into memory before its load: {}: {error}",
                path.display()
            ),
        });
    if let Err(error) = spawned {
        tracing::debug!(
            "{} is not read into memory before its load: {error}",
            model.id
        );
    }
}

#[derive(Debug, PartialEq)]
enum Warmed {
    Read { bytes: u64, seconds: f64 },
    NoMemory { bytes: u64, available: u64 },
}

/// Reads all files of the model at `path`; `available` is memory that is free, bytes.
fn warm(path: &Path, available: impl Fn() -> io::Result<u64>) -> io::Result<Warmed> {
    let began = Instant::now();
    let files = files(path)?;
    let mut bytes = 0;
    for file in &files {
        bytes += fs::metadata(file)?.len();
    }
    let mut left = bytes;
    let mut buffer = vec![0; CHUNK];
    for file in &files {
        let mut file = File::open(file)?;
        // Only a hint: what it cannot do costs time.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
        let mut since_look = LOOK_EVERY;
        loop {
            if since_look >= LOOK_EVERY {
                since_look = 0;
                let available = available()?;
                if left > available / 2 {
                    return Ok(Warmed::NoMemory { bytes, available });
                }
            }
            let read = file.read(&mut buffer)? as u64;
            if read == 0 {
                break;
            }
            since_look += read;
            left = left.saturating_sub(read);
        }
    }
    Ok(Warmed::Read {
        bytes,
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// The files of a model: of a directory all, of a GGUF in parts (`-00001-of-00003.gguf`, as
/// llama.cpp's gguf-split names them) every part.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            found.push(entry?.path());
        }
    } else if let Some((start, count)) = parts(path) {
        found.extend(
            (1..=count)
                .map(|part| path.with_file_name(format!("{start}-{part:05}-of-{count:05}.gguf"))),
        );
    } else {
        found.push(path.to_owned());
    }
    found.retain(|file| file.is_file() || path == file);
    found.sort();
    Ok(found)
}

fn parts(path: &Path) -> Option<(&str, u32)> {
    let (rest, count) = path
        .file_name()?
        .to_str()?
        .strip_suffix(".gguf")?
        .rsplit_once("-of-")?;
    let (start, _) = rest.rsplit_once('-')?;
    Some((start, count.parse().ok().filter(|_| count.len() == 5)?))
}

/// `MemAvailable` of the machine (proc(5)), bytes: what can be had without swapping.
fn available() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other("/proc/meminfo has no MemAvailable"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_model_is_read() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [
            ("m-00001-of-00002.gguf", 10),
            ("m-00002-of-00002.gguf", CHUNK + 5),
            ("other.gguf", 1000),
        ] {
            fs::write(dir.path().join(name), vec![1; bytes]).unwrap();
        }
        let read = |name: &str| match warm(&dir.path().join(name), || Ok(1 << 30)).unwrap() {
            Warmed::Read { bytes, .. } => bytes,
            Warmed::NoMemory { .. } => panic!("no memory"),
        };
        assert_eq!(read("m-00001-of-00002.gguf"), CHUNK as u64 + 15);
        assert_eq!(read("other.gguf"), 1000);
        assert_eq!(read(""), CHUNK as u64 + 1015);
        assert!(warm(&dir.path().join("missing.gguf"), available).is_err());
    }

    #[test]
    fn no_more_than_half_of_what_is_free_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        fs::write(&path, vec![1; 1000]).unwrap();
        let refused = Warmed::NoMemory {
            bytes: 1000,
            available: 1999,
        };
        assert_eq!(warm(&path, || Ok(1999)).unwrap(), refused);
        assert!(matches!(
            warm(&path, || Ok(2000)).unwrap(),
            Warmed::Read { .. }
        ));
        assert!(available().unwrap() > 0);
    }
}
