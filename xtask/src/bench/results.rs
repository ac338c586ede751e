//! Results on disk, and whether a new one is worse than the committed one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::figure::{Figure, Target, short};
use super::machine::{Machine, git};
use super::{Bench, plot};
use crate::workspace;

/// Where the figures are kept.
const RESULTS: &str = "bench/results";
/// A ratio may be this much worse than the committed one.
const WORSE: f64 = 0.20;

/// Writes `NAME.json` and `NAME.svg`; their paths.
pub(super) fn write(
    name: &str,
    options: &Bench,
    machine: &Machine,
    figures: &[Figure],
) -> Result<[PathBuf; 2]> {
    let dir = workspace::root().join(RESULTS);
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let rows: Vec<_> = figures
        .iter()
        .map(|figure| json!({"figure": figure, "ratio": figure.ratio(), "met": figure.is_met()}))
        .collect();
    let text = serde_json::to_string_pretty(&json!({
        "bench": name,
        "runs": options.runs,
        "idle_seconds": options.idle,
        "machine": machine,
        "figures": rows,
    }))?;
    let paths = ["json", "svg"].map(|ending| dir.join(format!("{name}.{ending}")));
    let drawn = plot::draw(name, &machine.to_string(), figures);
    for (path, text) in paths.iter().zip([text + "\n", drawn]) {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(paths)
}

/// The result of that benchmark in the last commit; none where there is none.
pub(super) fn committed(name: &str) -> Result<Option<Value>> {
    let path = format!("{RESULTS}/{name}.json");
    if git(&["ls-tree", "HEAD", &path])?.is_empty() {
        return Ok(None);
    }
    let text = git(&["show", &format!("HEAD:{path}")])?;
    let value = serde_json::from_str(&text);
    value
        .with_context(|| format!("{path} of the last commit is no JSON"))
        .map(Some)
}

/// What a comparison came to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Compared {
    /// How many figures were compared.
    pub(super) count: usize,
    /// Those that are worse, in words.
    pub(super) worse: Vec<String>,
    /// Those that only one side has, in words.
    pub(super) left_out: Vec<String>,
}

/// Compares figures with those of a committed result.
///
/// What was measured against a peer is worse if its ratio is more than 20 % worse. What is held
/// against a number that was set may change freely while it is met: a share of a budget that is
/// far from used up is mostly noise.
pub(super) fn compare(committed: &Value, figures: &[Figure]) -> Compared {
    let before = committed["figures"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let mut compared = Compared::default();
    for row in before {
        let old = key_of(row);
        if !row["met"].is_null() && !figures.iter().any(|figure| key(figure) == old) {
            compared
                .left_out
                .push(format!("{}: not measured now", words(&old)));
        }
    }
    for figure in figures {
        let (Some(target), Some(ratio), Some(met)) =
            (figure.target, figure.ratio(), figure.is_met())
        else {
            continue;
        };
        let new = key(figure);
        let Some(row) = before.iter().find(|row| key_of(row) == new) else {
            compared
                .left_out
                .push(format!("{}: not in the committed result", words(&new)));
            continue;
        };
        compared.count += 1;
        let measured = figure.against.as_ref().is_some_and(|it| it.measured);
        let old = row["ratio"].as_f64().unwrap_or(f64::NAN);
        if measured && is_worse(target, old, ratio) {
            compared.worse.push(format!(
                "{}: ratio {} where {} was committed ({target} wanted)",
                words(&new),
                short(ratio),
                short(old)
            ));
        } else if !measured && !met && row["met"] == true {
            compared.worse.push(format!(
                "{}: {} of the limit, {target} wanted, which the committed result met",
                words(&new),
                short(ratio)
            ));
        }
    }
    compared
}

/// What tells a figure from the others of its benchmark: its name and what it is held against.
type Key = (String, String);

fn key(figure: &Figure) -> Key {
    let against = figure.against.as_ref().map(|against| against.what.clone());
    (figure.name.clone(), against.unwrap_or_default())
}

fn key_of(row: &Value) -> Key {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let figure = &row["figure"];
    (word(&figure["name"]), word(&figure["against"]["what"]))
}

fn words((name, what): &Key) -> String {
    match what.as_str() {
        "" => name.clone(),
        _ => format!("{name}, against {what}"),
    }
}

fn is_worse(target: Target, old: f64, new: f64) -> bool {
    // What cannot be told from a number that is none is not called fine.
    if new.is_nan() {
        return true;
    }
    match target {
        Target::AtLeast(_) => new < old * (1.0 - WORSE),
        Target::Under(_) => new > old * (1.0 + WORSE),
    }
}

/// A path as it is shown.
pub(super) fn shown(path: &Path) -> String {
    let path = path.strip_prefix(workspace::root()).unwrap_or(path);
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, ours: f64, target: Target) -> Figure {
        Figure::of(name, "1/s", vec![ours]).against("a peer", vec![100.0], target)
    }

    fn committed(rows: &[(&str, f64)]) -> Value {
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, ratio)| {
                let what = if *name == "idle" {
                    "the limit"
                } else {
                    "a peer"
                };
                let figure = json!({"name": name, "against": {"what": what}});
                json!({"figure": figure, "ratio": ratio, "met": true})
            })
            .collect();
        json!({"figures": rows})
    }

    #[test]
    fn a_ratio_is_worse_by_more_than_a_fifth_in_the_direction_that_counts() {
        let before = committed(&[("rate", 1.0), ("time", 1.0)]);
        let now = |rate, time| {
            let figures = [
                figure("rate", rate, Target::AtLeast(0.5)),
                figure("time", time, Target::Under(2.0)),
            ];
            let compared = compare(&before, &figures);
            assert_eq!((compared.count, compared.left_out.len()), (2, 0));
            compared.worse
        };
        assert!(now(81.0, 119.0).is_empty());
        assert!(now(500.0, 1.0).is_empty(), "better is fine");
        assert_eq!(now(79.0, 100.0).len(), 1);
        assert_eq!(now(100.0, 121.0).len(), 1);
        assert_eq!(now(f64::NAN, f64::NAN).len(), 2);
    }

    #[test]
    fn a_budget_is_held_or_not() {
        let budget =
            |ours| vec![Figure::of("idle", "ms", vec![ours]).limit(20.0, Target::Under(1.0))];
        let before = committed(&[("idle", 0.01)]);
        assert!(compare(&before, &budget(19.0)).worse.is_empty());
        assert_eq!(compare(&before, &budget(21.0)).worse.len(), 1);
        let mut missed = before;
        missed["figures"][0]["met"] = json!(false);
        assert!(
            compare(&missed, &budget(21.0)).worse.is_empty(),
            "no worse than it was"
        );
    }

    #[test]
    fn what_one_side_lacks_is_said() {
        let compared = compare(
            &committed(&[("gone", 1.0)]),
            &[figure("new", 1.0, Target::AtLeast(0.5))],
        );
        assert_eq!(compared.count, 0);
        assert_eq!(
            compared.left_out,
            [
                "gone, against a peer: not measured now",
                "new, against a peer: not in the committed result"
            ]
        );
    }

    #[test]
    fn a_committed_result_is_read() {
        let logging = super::committed("logging").expect("git answers");
        if let Some(logging) = logging {
            assert_eq!(logging["bench"], "logging");
        }
        assert_eq!(
            super::committed("no such benchmark").expect("git answers"),
            None
        );
    }
}
