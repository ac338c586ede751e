//! The name of a task file: claim order, needs, identity, fence and charge.
//!
//! `05-000000000042-9c0ffee1-a1b2c3d4e5f60718.a1c0.json`
//!
//! | part | meaning |
//! |---|---|
//! | `05` | 10 minus the task's priority, so that names sort in claim order |
//! | `000000000042` | the brain's monotone sequence |
//! | `9c0ffee1` | the *shape*: a hash of what the task needs; two tasks of one shape are admitted or refused alike, so a reader that knows one knows all |
//! | `a1b2c3d4e5f60718` | the task id |
//! | `a1` | the attempt (fence): rises with every claim that is taken back or ends |
//! | `c0` | attempts charged to the task's `retries` |

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// The lowest and highest `priority` a task may have; higher is claimed first.
pub const PRIORITY_MAX: u8 = 10;
/// The priority of a task that names none.
pub const PRIORITY_DEFAULT: u8 = 5;

/// Where the id begins in a file's name: behind rank, sequence and shape.
const ID_AT: usize = 2 + 1 + 12 + 1 + 8 + 1;

/// Identifies a task within a rig. Written as 16 hexadecimal digits, of which the first 8 are
/// random enough to be unique in a rig.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(u64);

impl TaskId {
    /// The id of `task` (with `item`, for one made by foreach) in `batch`. The same three always
    /// give the same id, so an expansion that is repeated after a crash makes no second task.
    pub fn derive(batch: &str, task: &str, item: Option<&str>) -> TaskId {
        TaskId(hash64(&[
            batch.as_bytes(),
            task.as_bytes(),
            item.unwrap_or("").as_bytes(),
        ]))
    }

    /// The first 8 digits, for people.
    pub fn short(self) -> String {
        format!("{:08x}", self.0 >> 32)
    }

    /// The raw 64 bits.
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TaskId {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        fixed_hex(text, 16)
            .map(TaskId)
            .ok_or(BadName::part("id", text))
    }
}

impl Serialize for TaskId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TaskId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a task needs, hashed; see the module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape(pub u32);

impl Shape {
    /// Hashes the parts that decide where a task may run.
    pub fn of(parts: &[&[u8]]) -> Shape {
        Shape((hash64(parts) >> 32) as u32)
    }
}

/// Eight hexadecimal digits, as in a file's name.
impl Serialize for Shape {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:08x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Shape, D::Error> {
        let text = String::deserialize(deserializer)?;
        u32::from_str_radix(&text, 16)
            .map(Shape)
            .map_err(serde::de::Error::custom)
    }
}

/// A parsed task file name.
///
/// Ordered as the names sort: claim order first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName {
    /// 10 minus the priority.
    rank: u8,
    /// The brain's monotone sequence.
    pub sequence: u64,
    /// What the task needs, hashed.
    pub shape: Shape,
    /// The task.
    pub id: TaskId,
    /// The attempt that a claim of this file starts, from 1.
    pub attempt: u32,
    /// Attempts so far that were charged to the task's `retries`.
    pub charged: u32,
}

impl FileName {
    /// A task that was never claimed.
    pub fn first(priority: u8, sequence: u64, shape: Shape, id: TaskId) -> FileName {
        FileName {
            rank: PRIORITY_MAX - priority.min(PRIORITY_MAX),
            sequence,
            shape,
            id,
            attempt: 1,
            charged: 0,
        }
    }

    /// The task's priority, 0 to 10.
    pub fn priority(&self) -> u8 {
        PRIORITY_MAX - self.rank
    }

    /// The name of the next attempt, this one being over; `charge` says whether it counts
    /// against the task's `retries`.
    pub fn next_attempt(self, charge: bool) -> FileName {
        FileName {
            attempt: self.attempt + 1,
            charged: self.charged + u32::from(charge),
            ..self
        }
    }

    /// `<id>.aN`, the stem of an attempt's record, output and signals.
    pub fn attempt_stem(&self) -> String {
        format!("{}.a{}", self.id, self.attempt)
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02}-{:012}-{:08x}-{}.a{}c{}.json",
            self.rank, self.sequence, self.shape.0, self.id, self.attempt, self.charged
        )
    }
}

impl FromStr for FileName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let whole = || BadName::whole(text);
        let stem = text.strip_suffix(".json").ok_or_else(whole)?;
        let (order, counts) = stem.split_once('.').ok_or_else(whole)?;
        let mut parts = order.splitn(4, '-');
        let mut part = || parts.next().ok_or_else(whole);
        let (rank, sequence, shape, id) = (part()?, part()?, part()?, part()?);
        let (attempt, charged) = counts
            .strip_prefix('a')
            .and_then(|rest| rest.split_once('c'))
            .ok_or_else(whole)?;
        let name = FileName {
            rank: fixed_decimal(rank, 2)
                .filter(|rank| *rank <= u64::from(PRIORITY_MAX))
                .ok_or(BadName::part("priority", rank))? as u8,
            sequence: fixed_decimal(sequence, 12).ok_or(BadName::part("sequence", sequence))?,
            shape: Shape(fixed_hex(shape, 8).ok_or(BadName::part("shape", shape))? as u32),
            id: id.parse()?,
            attempt: count(attempt)
                .filter(|n| *n > 0)
                .ok_or(BadName::part("attempt", attempt))?,
            charged: count(charged).ok_or(BadName::part("charge", charged))?,
        };
        Ok(name)
    }
}

/// The digits of the id in a text that has the form of a task file's name as far as that can be
/// seen without parsing it.
pub(crate) fn id_digits(text: &str) -> Option<&str> {
    let id = text.strip_suffix(".json")?.get(ID_AT..ID_AT + 16)?;
    (text.as_bytes().get(ID_AT - 1) == Some(&b'-')
        && text.as_bytes().get(ID_AT + 16) == Some(&b'.'))
    .then_some(id)
}

/// The shape in such a text.
pub(crate) fn shape_digits(text: &str) -> Option<Shape> {
    id_digits(text)?;
    let digits = text.get(ID_AT - 9..ID_AT - 1)?;
    u32::from_str_radix(digits, 16).ok().map(Shape)
}

/// The place in claim order that such a text has: its rank and sequence as one number.
pub(crate) fn order(text: &str) -> Option<u64> {
    let mut order: u64 = 0;
    for byte in text.get(..2)?.bytes().chain(text.get(3..15)?.bytes()) {
        if !byte.is_ascii_digit() {
            return None;
        }
        order = order * 10 + u64::from(byte - b'0');
    }
    Some(order)
}

/// A name that is not a task file's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct BadName {
    what: String,
}

impl BadName {
    fn whole(text: &str) -> BadName {
        BadName {
            what: format!(
                "{text:?} is not a task file name (PP-SSSSSSSSSSSS-HHHHHHHH-<id>.aNcM.json)"
            ),
        }
    }

    fn part(part: &str, text: &str) -> BadName {
        BadName {
            what: format!("{text:?} is not a task file's {part}"),
        }
    }
}

/// The first 64 bits of SHA-256 over length-prefixed parts (so that no two lists collide by
/// concatenation).
fn hash64(parts: &[&[u8]]) -> u64 {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let digest = hasher.finalize();
    let mut head = [0; 8];
    head.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(head)
}

fn fixed_hex(text: &str, digits: usize) -> Option<u64> {
    let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (text.len() == digits && lower)
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
}

fn fixed_decimal(text: &str, digits: usize) -> Option<u64> {
    let decimal = text.bytes().all(|b| b.is_ascii_digit());
    (text.len() == digits && decimal)
        .then(|| text.parse().ok())
        .flatten()
}

/// A canonical (no leading zero, no sign) count of at most 9 digits.
fn count(text: &str) -> Option<u32> {
    let canonical = text == "0" || (!text.starts_with('0') && !text.is_empty());
    (canonical && text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_sort_in_claim_order() {
        let id = TaskId::derive("b", "t", None);
        let name = |priority, sequence| FileName::first(priority, sequence, Shape(7), id);
        let mut texts: Vec<String> = [name(5, 2), name(10, 9), name(5, 10), name(0, 1)]
            .iter()
            .map(|n| n.to_string())
            .collect();
        texts.sort();
        let order: Vec<(u8, u64)> = texts
            .iter()
            .map(|text| text.parse::<FileName>().unwrap())
            .map(|n| (n.priority(), n.sequence))
            .collect();
        assert_eq!(order, [(10, 9), (5, 2), (5, 10), (0, 1)]);
    }

    #[test]
    fn the_id_is_seen_without_parsing() {
        let name = FileName::first(5, 42, Shape(7), TaskId::derive("b", "t", None));
        assert_eq!(shape_digits(&name.to_string()), Some(Shape(7)));
        assert_eq!(order(&name.to_string()), Some(5_000_000_000_042));
        assert_eq!(
            id_digits(&name.to_string()),
            Some(name.id.to_string().as_str())
        );
        for foreign in ["", "x.json", "05-000000000042-9c0ffee1-a1b2.json", "é.json"] {
            assert_eq!(id_digits(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn refuses_what_is_not_canonical() {
        for bad in [
            "",
            ".",
            "../../x",
            "05-000000000042-9c0ffee1-a1b2c3d4e5f60718.a0c0.json",
            "05-000000000042-9c0ffee1-a1b2c3d4e5f60718.a01c0.json",
            "05-000000000042-9c0ffee1-a1b2c3d4e5f60718.a1c+1.json",
            "11-000000000042-9c0ffee1-a1b2c3d4e5f60718.a1c0.json",
            "05-000000000042-9C0FFEE1-a1b2c3d4e5f60718.a1c0.json",
            "05-42-9c0ffee1-a1b2c3d4e5f60718.a1c0.json",
            "05-000000000042-9c0ffee1-a1b2c3d4e5f60718.a1c0.json.tmp",
        ] {
            assert!(bad.parse::<FileName>().is_err(), "{bad:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            priority in 0u8..=10, sequence in 0u64..1_000_000_000_000, shape: u32, id: u64,
            attempt in 1u32..1_000_000, charged in 0u32..1_000_000,
        ) {
            let name = FileName {
                attempt, charged, ..FileName::first(priority, sequence, Shape(shape), TaskId(id))
            };
            prop_assert_eq!(name.to_string().parse::<FileName>(), Ok(name));
        }

        #[test]
        fn garbage_never_panics_and_never_round_trips_to_another_name(text in ".{0,80}") {
            if let Ok(name) = text.parse::<FileName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
