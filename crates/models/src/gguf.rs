//! The header of a GGUF file, as far as memory depends on it.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Read here and not by a
//! library because those that there are refuse what real files hold (keys of `gpt-oss`, version 2,
//! quantisations that are newer than the library) or keep whole vocabularies in memory. A tensor's
//! bytes follow from the distance to the next one, so its type need not be known. A header is not
//! trusted: every count is bounded by the bytes that are there, and nothing is allocated by a count.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;

/// The longest header that is read, bytes. Vocabularies of 260,000 tokens take about 15 MB.
const HEADER_MAX: u64 = 128 << 20;
/// The longest key or tensor name, bytes; the format allows 65,535.
const NAME_MAX: u64 = 65_535;
/// The longest text that is kept, bytes.
const TEXT_MAX: u64 = 4096;
/// The longest list of numbers that is kept: one for each layer.
const LIST_MAX: u64 = 4096;
/// The most tensors of a file.
const TENSORS_MAX: u64 = 1 << 20;
/// The deepest that lists may lie in lists.
const NESTING_MAX: u32 = 8;

/// What the memory that a model takes depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// `general.architecture`.
    pub architecture: String,
    /// Tokens of context that it was trained for.
    pub trained_context: Option<u64>,
    /// Layers.
    pub layers: u64,
    /// Width of the residual stream.
    pub width: u64,
    /// Attention heads, the most of any layer.
    pub heads: u64,
    /// Heads of the key-value cache.
    pub kv_heads: KvHeads,
    /// Values of a key, for each head.
    pub key_length: u64,
    /// Values of a value, for each head.
    pub value_length: u64,
    /// Width of the feed-forward part that one token uses: of all its experts, where it has some.
    pub feed_forward: u64,
    /// State that does not grow with the context, where it has some (Mamba and its kind).
    pub recurrent: Option<Recurrent>,
    /// Bytes of all tensors, of all parts of the file.
    pub tensor_bytes: u64,
    /// Those of them that stay in main memory: the input embedding, unless it is the output matrix
    /// too.
    pub input_bytes: u64,
    /// Files that the model is split into, 1 for one that is not.
    pub parts: u64,
}

/// Heads of the key-value cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvHeads {
    /// The same in each layer.
    All(u64),
    /// Layer by layer; 0 for a layer without attention.
    EachLayer(Vec<u64>),
}

impl Default for KvHeads {
    fn default() -> Self {
        KvHeads::All(0)
    }
}

/// The sizes of a recurrent state, as the `ssm.*` keys name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recurrent {
    /// `conv_kernel`.
    pub kernel: u64,
    /// `inner_size`.
    pub inner: u64,
    /// `state_size`.
    pub state: u64,
    /// `group_count`.
    pub groups: u64,
}

/// One file of a model, which may be the whole.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) header: Header,
    /// It holds the output matrix.
    pub(crate) has_output: bool,
}

/// Reads the header of one file. The text says what is wrong with its content: no GGUF, of an
/// unknown version, cut off, or with counts that it has no room for.
pub(crate) fn read(path: &Path) -> io::Result<Result<Part, String>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    Ok(parse(BufReader::new(file), length))
}

/// One file's header from its bytes; `length` is that of the whole file.
pub(crate) fn parse(reader: impl BufRead, length: u64) -> Result<Part, String> {
    let mut bytes = Bytes {
        reader,
        read: 0,
        most: length.min(HEADER_MAX),
    };
    if bytes.array::<4>()? != *b"GGUF" {
        return Err("it is not a GGUF file".to_owned());
    }
    let version = bytes.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!(
            "it is GGUF of version {version} (or of another byte order); 2 and 3 can be read"
        ));
    }
    let tensors = bytes.u64()?;
    let keys = bytes.u64()?;
    // A tensor takes 24 bytes at least, a key 13.
    if tensors > TENSORS_MAX
        || tensors.saturating_mul(24) > length
        || keys.saturating_mul(13) > length
    {
        return Err(format!(
            "its header counts {tensors} tensors and {keys} keys, for which it has no room"
        ));
    }
    let mut values = BTreeMap::new();
    for _ in 0..keys {
        let key = bytes.text(NAME_MAX)?;
        let kind = bytes.u32()?;
        if let Some(value) = bytes.value(kind, 0)? {
            values.insert(key, value);
        }
    }
    let mut offsets = Vec::new();
    let mut input = None;
    let mut has_output = false;
    for _ in 0..tensors {
        let name = bytes.text(NAME_MAX)?;
        let dimensions = bytes.u32()?;
        if dimensions > 8 {
            return Err(format!("a tensor of it has {dimensions} dimensions"));
        }
        bytes.skip(u64::from(dimensions) * 8)?;
        let _type = bytes.u32()?;
        let offset = bytes.u64()?;
        match name.as_str() {
            "token_embd.weight" => input = Some(offset),
            "output.weight" => has_output = true,
            _ => {}
        }
        offsets.push(offset);
    }
    let alignment = number(&values, "general.alignment").unwrap_or(32).max(1);
    let begin = bytes.read.div_ceil(alignment).saturating_mul(alignment);
    let data = length.saturating_sub(begin);
    offsets.sort_unstable();
    if let Some(last) = offsets.last().filter(|last| **last >= data) {
        return Err(format!(
            "it is cut off: a tensor begins at byte {}, and it has {length}",
            begin.saturating_add(*last)
        ));
    }
    let size_at = |offset: u64| {
        let next = offsets.iter().find(|other| **other > offset);
        next.copied().unwrap_or(data) - offset
    };
    let mut header = shape(&values);
    header.tensor_bytes = if offsets.is_empty() { 0 } else { data };
    // In a split model the output matrix may lie in another part: the caller puts them together.
    header.input_bytes = input.map_or(0, size_at);
    Ok(Part { header, has_output })
}

/// Puts the parts of a model together: the first one's shape, the bytes of all.
pub(crate) fn join(parts: impl IntoIterator<Item = Part>) -> Option<Header> {
    let mut parts = parts.into_iter();
    let Part {
        header: mut whole,
        mut has_output,
    } = parts.next()?;
    for part in parts {
        whole.tensor_bytes = whole.tensor_bytes.saturating_add(part.header.tensor_bytes);
        whole.input_bytes = whole.input_bytes.saturating_add(part.header.input_bytes);
        has_output |= part.has_output;
    }
    if !has_output {
        whole.input_bytes = 0;
    }
    Some(whole)
}

/// A value that is kept.
#[derive(Debug)]
enum Value {
    Number(u64),
    Numbers(Vec<u64>),
    Text(String),
}

fn number(values: &BTreeMap<String, Value>, key: &str) -> Option<u64> {
    match values.get(key)? {
        Value::Number(number) => Some(*number),
        Value::Numbers(numbers) => numbers.iter().max().copied(),
        Value::Text(_) => None,
    }
}

fn shape(values: &BTreeMap<String, Value>) -> Header {
    let architecture = match values.get("general.architecture") {
        Some(Value::Text(text)) => text.clone(),
        _ => String::new(),
    };
    let of = |key: &str| number(values, &format!("{architecture}.{key}"));
    let width = of("embedding_length").unwrap_or(0);
    let heads = of("attention.head_count").unwrap_or(0);
    let per_head = width.checked_div(heads).unwrap_or(0);
    let kv_heads = match values.get(&format!("{architecture}.attention.head_count_kv")) {
        Some(Value::Numbers(numbers)) => KvHeads::EachLayer(numbers.clone()),
        Some(Value::Number(number)) => KvHeads::All(*number),
        Some(Value::Text(_)) | None => KvHeads::All(heads),
    };
    let experts = of("expert_feed_forward_length")
        .unwrap_or(0)
        .saturating_mul(of("expert_used_count").unwrap_or(0));
    Header {
        trained_context: of("context_length"),
        layers: of("block_count").unwrap_or(0),
        width,
        heads,
        kv_heads,
        key_length: of("attention.key_length").unwrap_or(per_head),
        value_length: of("attention.value_length").unwrap_or(per_head),
        feed_forward: of("feed_forward_length").unwrap_or(0).max(experts),
        recurrent: of("ssm.state_size").map(|state| Recurrent {
            kernel: of("ssm.conv_kernel").unwrap_or(0),
            inner: of("ssm.inner_size").unwrap_or(0),
            state,
            groups: of("ssm.group_count").unwrap_or(0),
        }),
        tensor_bytes: 0,
        input_bytes: 0,
        parts: number(values, "split.count").map_or(1, |count| count.clamp(1, 99_999)),
        architecture,
    }
}

/// A reader that never goes beyond the file's end, and says so.
struct Bytes<R> {
    reader: R,
    read: u64,
    most: u64,
}

impl<R: BufRead> Bytes<R> {
    fn take(&mut self, count: u64) -> Result<(), String> {
        let read = self
            .read
            .checked_add(count)
            .filter(|read| *read <= self.most);
        self.read = read.ok_or_else(|| {
            format!(
                "its header asks for {count} bytes at byte {} and may have {}: it is cut off or damaged",
                self.read, self.most
            )
        })?;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N as u64)?;
        let mut array = [0; N];
        self.reader.read_exact(&mut array).map_err(unread)?;
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn skip(&mut self, count: u64) -> Result<(), String> {
        self.take(count)?;
        let mut left = count;
        while left > 0 {
            let there = self.reader.fill_buf().map_err(unread)?.len() as u64;
            if there == 0 {
                return Err("it is cut off".to_owned());
            }
            let step = there.min(left);
            self.reader.consume(step as usize);
            left -= step;
        }
        Ok(())
    }

    fn text(&mut self, most: u64) -> Result<String, String> {
        let length = self.u64()?;
        if length > most {
            return Err(format!("a name in it has {length} bytes"));
        }
        self.take(length)?;
        let mut bytes = Vec::new();
        let got = (&mut self.reader).take(length).read_to_end(&mut bytes);
        if got.map_err(unread)? as u64 != length {
            return Err("it is cut off".to_owned());
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A value, if it is one that could matter.
    fn value(&mut self, kind: u32, depth: u32) -> Result<Option<Value>, String> {
        let value = match kind {
            0 | 7 => Value::Number(u64::from(self.array::<1>()?[0])),
            1 => signed(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Number(u64::from(u16::from_le_bytes(self.array()?))),
            3 => signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Number(u64::from(self.u32()?)),
            5 => signed(i64::from(i32::from_le_bytes(self.array()?))),
            10 => Value::Number(self.u64()?),
            11 => signed(i64::from_le_bytes(self.array()?)),
            6 | 12 => {
                self.skip(if kind == 6 { 4 } else { 8 })?;
                return Ok(None);
            }
            8 => {
                let length = self.u64()?;
                if length > TEXT_MAX {
                    self.skip(length)?;
                    return Ok(None);
                }
                self.take(length)?;
                let mut bytes = vec![0; length as usize];
                self.reader.read_exact(&mut bytes).map_err(unread)?;
                Value::Text(String::from_utf8_lossy(&bytes).into_owned())
            }
            9 => return self.list(depth),
            _ => return Err(format!("a value in it is of the unknown type {kind}")),
        };
        Ok(Some(value))
    }

    fn list(&mut self, depth: u32) -> Result<Option<Value>, String> {
        if depth >= NESTING_MAX {
            return Err("lists lie too deep in lists in it".to_owned());
        }
        let kind = self.u32()?;
        let count = self.u64()?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 | 9 => 0,
            _ => return Err(format!("a list in it is of the unknown type {kind}")),
        };
        if kind == 8 {
            for _ in 0..count {
                let length = self.u64()?;
                self.skip(length)?;
            }
            return Ok(None);
        }
        if size > 0 && (count > LIST_MAX || matches!(kind, 6 | 12)) {
            self.skip(count.checked_mul(size).ok_or("a list in it is endless")?)?;
            return Ok(None);
        }
        let mut numbers = Vec::new();
        for _ in 0..count {
            if let Some(Value::Number(number)) = self.value(kind, depth + 1)?
                && kind != 9
            {
                numbers.push(number);
            }
        }
        Ok((kind != 9).then_some(Value::Numbers(numbers)))
    }
}

/// No size is negative.
fn signed(number: i64) -> Value {
    Value::Number(u64::try_from(number).unwrap_or(0))
}

fn unread(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it is cut off".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
pub(crate) mod tests;
