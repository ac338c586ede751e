//! Damage to valid inputs: by bytes, by lines and by the structure of JSON. Deterministic: a case is
//! its number. The same cases in each run, and others for as long as `RIGOR_FUZZ_SECONDS` says.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One input may take so long; the slowest real ones take milliseconds.
const CASE_MOST: Duration = Duration::from_secs(5);
/// What a run may ever have in memory, KiB: the inputs are below 1 MiB each.
const MEMORY_MOST_KIB: u64 = 1 << 20;

/// A small generator of numbers (xorshift64*, Vigna 2016): the standard library has none, and a
/// failure must be had again from its number alone.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(case: u64) -> Dice {
        Dice(case.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `end`, which must not be 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.roll() >> 11) as usize % end
    }

    pub(crate) fn pick<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

/// Runs `cases` inputs that `make` gives for their number through `read`, and names the input that
/// panics or takes too long. With `RIGOR_FUZZ_SECONDS` it goes on for so long with cases that no run
/// had before; `RIGOR_FUZZ_CASE` runs the one of that number alone.
pub(crate) fn fuzz(cases: u64, make: impl Fn(&mut Dice) -> Vec<u8>, read: impl Fn(&[u8])) {
    let number = |variable| -> Option<u64> { std::env::var(variable).ok()?.parse().ok() };
    let until = number("RIGOR_FUZZ_SECONDS").map(|s| Instant::now() + Duration::from_secs(s));
    let clock = SystemTime::now().duration_since(UNIX_EPOCH);
    let new = clock.map_or(1, |now| now.as_nanos() as u64);
    let more = (new..).take_while(|_| until.is_some_and(|until| Instant::now() < until));
    let cases: Box<dyn Iterator<Item = u64>> = match number("RIGOR_FUZZ_CASE") {
        Some(case) => Box::new([case].into_iter()),
        None => Box::new((1..=cases).chain(more)),
    };
    for case in cases {
        let input = make(&mut Dice::new(case));
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| read(&input)));
        let took = began.elapsed();
        let shown = || {
            let head = &input[..input.len().min(4000)];
            format!(
                "case {case} ({} bytes): {}",
                input.len(),
                head.escape_ascii()
            )
        };
        assert!(outcome.is_ok(), "it panicked: {}", shown());
        assert!(took < CASE_MOST, "it took {took:?}: {}", shown());
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| {
        line.strip_prefix("VmHWM:")?
            .trim()
            .strip_suffix(" kB")?
            .parse()
            .ok()
    });
    let peak: u64 = peak.expect("Linux says what a process had in memory");
    assert!(peak < MEMORY_MOST_KIB, "it took {peak} KiB of memory");
}

/// Pieces that parsers stumble over.
const PIECES: [&[u8]; 26] = [
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xc3\x28",
    b"\r\n",
    b"\n",
    b"\t",
    b"\"",
    b"'",
    b"`",
    b"{",
    b"}",
    b"[",
    b"]",
    b"$()",
    b"{ITEM.id}",
    b"{",
    b"\\u0000",
    b"\\ud800",
    b"99999999999999999999999999",
    b"-1",
    b"1e999",
    b"0.1",
    b"9223372036854775807",
    b"\xf0\x9f\x92\xa9",
    b"../../../etc/passwd",
];

/// Changes bytes: flips, cuts, doubles, inserts.
pub(crate) fn bytes(dice: &mut Dice, seed: &[u8]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=dice.below(6) {
        let at = dice.below(bytes.len() + 1);
        let to = (at + dice.below(40)).min(bytes.len());
        match dice.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            1 => drop(bytes.drain(at..to)),
            2 => {
                let again = bytes[at..to].to_vec();
                bytes.splice(at..at, again);
            }
            3 => bytes.truncate(at),
            _ => drop(bytes.splice(at..at, dice.pick(&PIECES).iter().copied())),
        }
    }
    // Now and then something long or deep.
    if dice.below(50) == 0 {
        let at = dice.below(bytes.len() + 1);
        let piece = dice.pick(&[
            b"[" as &[u8],
            b"{\"a\":",
            b"a",
            b"{",
            b"(",
            b"- ",
            b" ",
            b"\n",
        ]);
        let many = piece.repeat(dice.below(100_000));
        bytes.splice(at..at, many);
    }
    bytes
}

#[allow(
    dead_code,
    reason = "shared with the tests of crates/plan and crates/config"
)]
/// Changes lines: drops, doubles, swaps, and puts words of `dictionary` in.
pub(crate) fn lines(dice: &mut Dice, seed: &str, dictionary: &[&str]) -> Vec<u8> {
    let mut lines: Vec<String> = seed.lines().map(str::to_owned).collect();
    for _ in 0..=dice.below(5) {
        let at = dice.below(lines.len().max(1));
        let other = dice.below(lines.len().max(1));
        match dice.below(6) {
            0 if lines.len() > 1 => drop(lines.remove(at)),
            1 if !lines.is_empty() => lines.insert(other, lines[at].clone()),
            2 if !lines.is_empty() => lines.swap(at, other),
            3 => lines.insert(at.min(lines.len()), dice.pick(dictionary).to_owned()),
            _ if !lines.is_empty() => {
                let line = &mut lines[at];
                let mut places: Vec<usize> = line.char_indices().map(|(at, _)| at).collect();
                places.push(line.len());
                let place = places[dice.below(places.len())];
                line.insert_str(place, dice.pick(dictionary));
            }
            _ => {}
        }
    }
    let text = lines.join("\n").into_bytes();
    if dice.below(4) == 0 {
        bytes(dice, &text)
    } else {
        text
    }
}
