//! From the content of a foreach source to its items.

use std::collections::BTreeMap;

use rigor_queue::task::Item;
use serde_json::{Map, Value};

use crate::plan::ForeachSource;
use crate::problem::did_you_mean;

/// Most items of one source: the size that the queue is built for.
pub const ITEMS_MAX: usize = 1_000_000;

/// The longest id of an item, bytes: with a task's id it has to fit a file name.
pub const ITEM_ID_MAX_BYTES: usize = 100;

/// Duplicate ids that are named before the rest is only counted.
const NAMED_MAX: usize = 10;

/// What a source holds.
#[derive(Clone, Copy, Debug)]
pub enum ItemContent<'a> {
    /// The text of a file.
    Text(&'a str),
    /// The paths that match a pattern, relative to the plan, sorted.
    Paths(&'a [String]),
}

/// Why a source gives no items.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("foreach `{source_name}`: {problem}")]
pub struct ItemError {
    /// The source as the plan names it.
    pub source_name: String,
    /// What is wrong with it, in words.
    pub problem: String,
}

/// The items of `source`, at most `limit` from its beginning. An item's id is its `id` field,
/// else a slug of its path or line, else its index.
///
/// # Errors
/// When the content is not of the source's kind, has more than [`ITEMS_MAX`] items, or when an
/// id is unfit for a file name or stands twice.
pub fn parse_items(
    source: &ForeachSource,
    content: ItemContent<'_>,
    limit: Option<usize>,
) -> Result<Vec<Item>, ItemError> {
    let most = limit.unwrap_or(usize::MAX);
    let items = match (source, content) {
        (ForeachSource::Glob(_), ItemContent::Paths(paths)) => Ok(paths
            .iter()
            .take(most)
            .enumerate()
            .map(|(n, path)| path_item(n, path))
            .collect()),
        (ForeachSource::Glob(_), ItemContent::Text(_)) | (_, ItemContent::Paths(_)) => {
            Err("a pattern has paths, any other source a text".to_owned())
        }
        (_, ItemContent::Text(text)) => {
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            match source {
                ForeachSource::Json { key, .. } => json(text, key.as_deref(), most),
                ForeachSource::JsonLines(_) => json_lines(text, most),
                ForeachSource::Csv(_) => csv(text, most),
                ForeachSource::Lines(_) | ForeachSource::Glob(_) => Ok(lines(text, most)),
            }
        }
    };
    items
        .and_then(|items| {
            if items.len() > ITEMS_MAX {
                return Err(format!("{} items; at most {ITEMS_MAX}", items.len()));
            }
            distinct(&items)?;
            Ok(items)
        })
        .map_err(|problem| ItemError {
            source_name: source.to_string(),
            problem,
        })
}

/// The items in groups of `size`, for `batch_size`: each a list of values, with the ids as
/// members and the range of indices as its id (`0-9`). With a size of 1 the items as they are.
pub fn group(items: Vec<Item>, size: usize) -> Vec<Item> {
    if size <= 1 {
        return items;
    }
    let mut groups = Vec::with_capacity(items.len().div_ceil(size));
    let mut items = items.into_iter().peekable();
    let mut first = 0;
    while items.peek().is_some() {
        let (members, values): (Vec<String>, Vec<Value>) = items
            .by_ref()
            .take(size)
            .map(|item| (item.id, item.value))
            .unzip();
        let last = first + members.len() - 1;
        groups.push(Item {
            id: format!("{first}-{last}"),
            value: Value::Array(values),
            members,
        });
        first = last + 1;
    }
    groups
}

/// Text as a part of a file name: letters, digits, `.`, `_` and `-` of any script stay, each run
/// of anything else becomes one `_`; no `.` at its beginning; at most [`ITEM_ID_MAX_BYTES`]. Empty
/// where no letter or digit stays.
pub fn slug(text: &str) -> String {
    let mut slug = String::new();
    let mut replaced = false;
    for c in text.trim().trim_start_matches('.').chars() {
        let stays = c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
        if stays {
            slug.push(c);
        } else if !replaced {
            slug.push('_');
        }
        replaced = !stays;
    }
    // Paths differ at their end: the beginning goes.
    while slug.len() > ITEM_ID_MAX_BYTES || slug.starts_with(['.', '-']) {
        slug.remove(0);
    }
    if slug.chars().any(char::is_alphanumeric) {
        slug
    } else {
        String::new()
    }
}

fn json(text: &str, key: Option<&str>, most: usize) -> Result<Vec<Item>, String> {
    let mut value: Value =
        serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let mut walked = String::new();
    for part in key.into_iter().flat_map(|key| key.split('.')) {
        let place = if walked.is_empty() {
            "the file".to_owned()
        } else {
            format!("`{walked}`")
        };
        let Value::Object(mut object) = value else {
            return Err(format!("{place} is {}, and has no `{part}`", kind(&value)));
        };
        value = match object.remove(part) {
            Some(inner) => inner,
            None => {
                let help = did_you_mean(part, object.keys().map(String::as_str));
                let help = help.unwrap_or_else(|| format!("it has {}", keys(&object)));
                return Err(format!("{place} has no `{part}`: {help}"));
            }
        };
        if !walked.is_empty() {
            walked.push('.');
        }
        walked.push_str(part);
    }
    match value {
        Value::Array(values) => values
            .into_iter()
            .take(most)
            .enumerate()
            .map(|(n, value)| value_item(n, value))
            .collect(),
        Value::Object(object) => Err(format!(
            "an object and not a list; name the list by its key, as in `file.json:key` (it has {})",
            keys(&object)
        )),
        other => Err(format!("{} and not a list", kind(&other))),
    }
}

fn json_lines(text: &str, most: usize) -> Result<Vec<Item>, String> {
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    lines
        .take(most)
        .enumerate()
        .map(|(n, (line, text))| {
            let value = serde_json::from_str(text)
                .map_err(|error| format!("line {}: not JSON: {error}", line + 1))?;
            value_item(n, value)
        })
        .collect()
}

fn csv(text: &str, most: usize) -> Result<Vec<Item>, String> {
    let mut reader = csv::ReaderBuilder::new().from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| error.to_string())?.clone();
    for (n, name) in header.iter().enumerate() {
        if header.iter().take(n).any(|before| before == name) {
            return Err(format!("two columns `{name}`"));
        }
    }
    reader
        .records()
        .take(most)
        .enumerate()
        .map(|(n, record)| {
            let record = record.map_err(|error| error.to_string())?;
            let cells = header.iter().zip(record.iter());
            let row: Map<String, Value> = cells
                .map(|(name, cell)| (name.to_owned(), Value::from(cell)))
                .collect();
            value_item(n, Value::Object(row))
        })
        .collect()
}

fn lines(text: &str, most: usize) -> Vec<Item> {
    let lines = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.trim().is_empty());
    lines
        .take(most)
        .enumerate()
        .map(|(n, line)| path_item(n, line))
        .collect()
}

/// An item of a glob or of lines.
fn path_item(index: usize, path: &str) -> Item {
    let name = path.rsplit('/').next().unwrap_or(path);
    let stem = match name.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem,
        _ => name,
    };
    let slug = slug(path.trim_start_matches("./"));
    let id = if slug.is_empty() {
        index.to_string()
    } else {
        slug
    };
    let value = serde_json::json!({ "id": id, "path": path, "name": name, "stem": stem });
    Item {
        id,
        value,
        members: Vec::new(),
    }
}

/// An item of JSON or of a table.
fn value_item(index: usize, value: Value) -> Result<Item, String> {
    let id = match value.get("id") {
        None | Some(Value::Null) => index.to_string(),
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        Some(other) => {
            return Err(format!(
                "item {index}: its `id` is {}; it has to be text or a number",
                kind(other)
            ));
        }
    };
    match unfit(&id) {
        Some(why) => Err(format!(
            "item {index}: its id {id:?} {why}, so it cannot be part of a file name"
        )),
        None => Ok(Item {
            id,
            value,
            members: Vec::new(),
        }),
    }
}

/// Why an id is not taken. It is refused and not changed, so that `{ITEM.id}` is what the data says.
fn unfit(id: &str) -> Option<String> {
    if id.is_empty() {
        Some("is empty".to_owned())
    } else if id.len() > ITEM_ID_MAX_BYTES {
        Some(format!("is longer than {ITEM_ID_MAX_BYTES} bytes"))
    } else if id.contains('/') {
        Some("holds a `/`".to_owned())
    } else if id.chars().any(char::is_control) {
        Some("holds a control character".to_owned())
    } else if id.trim() != id {
        Some("begins or ends with a blank".to_owned())
    } else {
        matches!(id, "." | "..").then(|| "names a folder".to_owned())
    }
}

fn distinct(items: &[Item]) -> Result<(), String> {
    let mut first: BTreeMap<&str, usize> = BTreeMap::new();
    let mut twice: Vec<String> = Vec::new();
    for (n, item) in items.iter().enumerate() {
        if let Some(before) = first.get(item.id.as_str()) {
            let path = |n: usize| items[n].value.get("path").and_then(Value::as_str);
            twice.push(match (path(*before), path(n)) {
                (Some(a), Some(b)) if a != b => format!("`{}` (of {a:?} and {b:?})", item.id),
                _ => format!("`{}` (items {before} and {n})", item.id),
            });
        } else {
            first.insert(&item.id, n);
        }
    }
    if twice.is_empty() {
        return Ok(());
    }
    let more = twice.len().saturating_sub(NAMED_MAX);
    twice.truncate(NAMED_MAX);
    let more = if more > 0 {
        format!(", and {more} more")
    } else {
        String::new()
    };
    Err(format!("ids that stand twice: {}{more}", twice.join(", ")))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn keys(object: &Map<String, Value>) -> String {
    let names: Vec<String> = object
        .keys()
        .take(NAMED_MAX)
        .map(|key| format!("`{key}`"))
        .collect();
    if names.is_empty() {
        "no keys".to_owned()
    } else {
        names.join(", ")
    }
}
