//! What a task prints, in a file of bounded size that keeps the beginning and the end.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Copied at a time when the middle is thrown away, bytes.
const COPY_BYTES: usize = 64 * 1024;
/// How far from its place a cut is moved to fall between two lines, bytes.
const LINE_SEARCH_BYTES: u64 = 4 * 1024;

/// The output file of an attempt. It is made at the first byte; everything is written through at
/// once, so `tail -f` follows, and what a killed worker had read is there. Half of the cap is for the
/// beginning and half for the end: the end may grow to twice its half before its older part is
/// thrown away, so each byte is copied at most once more, and memory stays flat.
#[derive(Debug)]
pub(crate) struct Capture {
    path: PathBuf,
    file: Option<File>,
    /// What is kept of the beginning, and of the end, bytes.
    half: u64,
    /// Length of the file.
    len: u64,
    total: u64,
    /// Left out of the middle.
    left_out: u64,
    /// Could not be written.
    unwritten: u64,
    error: Option<io::Error>,
}

impl Capture {
    /// Nothing is made yet; output of an earlier run of the same attempt goes.
    pub(crate) fn new(path: PathBuf, cap_bytes: u64) -> Capture {
        // Absent, nearly always; any other error comes again, and is kept, at the first byte.
        let _ = fs::remove_file(&path);
        Capture {
            path,
            file: None,
            half: cap_bytes / 2,
            len: 0,
            total: 0,
            left_out: 0,
            unwritten: 0,
            error: None,
        }
    }

    /// Bytes that came.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Bytes of them that are not in the file.
    pub(crate) fn dropped(&self) -> u64 {
        self.left_out + self.unwritten
    }

    /// The last error: the output is incomplete for another reason than the cap.
    pub(crate) fn error(&self) -> Option<&io::Error> {
        self.error.as_ref()
    }

    /// Takes what the task printed. It never fails: a task is not ended because its output cannot
    /// be kept, and what cannot be written counts as dropped.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        if let Err(error) = self.append(bytes) {
            self.unwritten += bytes.len() as u64;
            self.error = Some(error);
            return;
        }
        if self.len > self.tail_at() + 2 * self.half + self.head_room()
            && let Err(error) = self.shorten()
        {
            self.error = Some(error);
        }
    }

    /// A line of the worker's own among the output.
    pub(crate) fn note(&mut self, text: &str) {
        self.write(format!("[rigor] {text}\n").as_bytes());
    }

    /// Cuts the file to the cap.
    pub(crate) fn finish(&mut self) {
        if self.len > self.tail_at() + self.half + self.head_room()
            && let Err(error) = self.shorten()
        {
            self.error = Some(error);
        }
    }

    /// The last `most` bytes that are kept.
    pub(crate) fn tail(&self, most: u64) -> Option<String> {
        let file = self.file.as_ref()?;
        let at = self.len.saturating_sub(most);
        let mut bytes = vec![0; (self.len - at) as usize];
        file.read_exact_at(&mut bytes, at).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The last line that holds anything, at most `most` bytes of it.
    pub(crate) fn last_line(&self, most: usize) -> Option<String> {
        let text = self.tail(LINE_SEARCH_BYTES)?;
        let line = text
            .lines()
            .rev()
            .map(str::trim)
            .find(|line| !line.is_empty())?;
        Some(line[..line.floor_char_boundary(most)].to_owned())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            let mut options = File::options();
            let file = options
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&self.path)?;
            self.file = Some(file);
        }
        let file = self.file.as_ref().expect("it was opened above");
        file.write_all_at(bytes, self.len)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Where the end begins in the file: at once after the beginning, or after the marker.
    fn tail_at(&self) -> u64 {
        if self.left_out == 0 {
            0
        } else {
            self.half + self.marker(0).len() as u64
        }
    }

    /// Before anything is left out, beginning and end are one.
    fn head_room(&self) -> u64 {
        if self.left_out == 0 { self.half } else { 0 }
    }

    /// Throws away all but the beginning and the last half of the cap.
    fn shorten(&mut self) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let old_tail = if self.left_out == 0 {
            self.half
        } else {
            self.tail_at()
        };
        let mut from = self.len - self.half;
        let mut line = vec![0; LINE_SEARCH_BYTES.min(self.half / 4) as usize];
        file.read_exact_at(&mut line, from)?;
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            from += end as u64 + 1;
        }
        let left_out = self.left_out + (from - old_tail);
        let marker = self.marker(left_out);
        file.write_all_at(marker.as_bytes(), self.half)?;
        let mut to = self.half + marker.len() as u64;
        let mut buffer = vec![0; COPY_BYTES];
        while from < self.len {
            let part = &mut buffer[..COPY_BYTES.min((self.len - from) as usize)];
            file.read_exact_at(part, from)?;
            file.write_all_at(part, to)?;
            from += part.len() as u64;
            to += part.len() as u64;
        }
        file.set_len(to)?;
        self.len = to;
        self.left_out = left_out;
        Ok(())
    }

    /// A line that says what is missing; always of one length, so that it can be written again.
    fn marker(&self, left_out: u64) -> String {
        format!(
            "\n[rigor] {left_out:>20} bytes of output left out here (cap {} bytes)\n",
            2 * self.half
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(cap: u64) -> (tempfile::TempDir, Capture) {
        let dir = tempfile::tempdir().expect("a directory");
        let capture = Capture::new(dir.path().join("out.log"), cap);
        (dir, capture)
    }

    #[test]
    fn nothing_printed_makes_no_file() {
        let (_dir, mut output) = capture(1000);
        output.finish();
        assert!(!output.path.exists());
    }

    #[test]
    fn what_fits_is_kept_as_it_is() {
        let (_dir, mut output) = capture(1000);
        for n in 0..100 {
            output.write(format!("line {n:04}\n").as_bytes());
        }
        output.finish();
        assert_eq!((output.total(), output.dropped()), (1000, 0));
        assert_eq!(
            fs::read_to_string(&output.path)
                .expect("read")
                .lines()
                .count(),
            100
        );
    }

    #[test]
    fn beginning_and_end_are_kept_whatever_the_sizes() {
        for (cap, step) in [
            (1000_u64, 1),
            (1000, 7),
            (1000, 5000),
            (4096, 333),
            (100_000, 70_000),
        ] {
            let (_dir, mut output) = capture(cap);
            let all: Vec<u8> = (0..40_000)
                .flat_map(|n| format!("line {n:06}\n").into_bytes())
                .collect();
            for chunk in all.chunks(step) {
                output.write(chunk);
                let most = cap + cap / 2 + 200 + step as u64;
                assert!(
                    output.len <= most,
                    "cap {cap} step {step}: {} bytes",
                    output.len
                );
            }
            output.finish();
            let kept = fs::read(&output.path).expect("read");
            assert_eq!(output.total(), all.len() as u64);
            let half = (cap / 2) as usize;
            assert_eq!(
                kept[..half],
                all[..half],
                "cap {cap} step {step}: the beginning"
            );
            let text = String::from_utf8(kept).expect("text");
            let marker = format!(
                "[rigor] {:>20} bytes of output left out here",
                output.dropped()
            );
            let (head, tail) = text.split_once(&marker).expect("a marker with the count");
            let tail = tail.split_once('\n').expect("the marker's line ends").1;
            assert!(
                all.ends_with(tail.as_bytes()),
                "cap {cap} step {step}: the end"
            );
            assert!(
                tail.starts_with("line "),
                "the end begins with a whole line: {tail:.20}"
            );
            // The marker's own line break is no output.
            let kept = head.len() - 1 + tail.len();
            assert_eq!(kept as u64 + output.dropped(), output.total());
            assert_eq!(output.last_line(100).as_deref(), Some("line 039999"));
        }
    }
}
