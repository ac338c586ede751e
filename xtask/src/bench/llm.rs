//! Prompts through agents that hold a model, beside clients that do nothing but ask the same servers.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use super::dispatch::{Done, complete};
use super::figure::{Figure, Target, percentile};
use super::programs::{bench_queue, release};
use super::rig::{PLAIN, Rig, Setup};
use super::{Bench, plans};
use crate::fixtures;

const PROMPTS: u64 = 200;
const AGENTS: u16 = 3;
/// Requests at once, of each server.
const SLOTS: u64 = 2;
/// A prompt takes at least so long with all servers busy, milliseconds.
const PROMPT_MS: f64 = 200.0;
const SHARE: f64 = 0.95;
/// What the prompts say: to read it takes the server its time.
const WORDS: &str = "alpha beta gamma delta ";
/// How often a prompt says it: the first number with which it takes long enough. The last one nearly
/// fills the context of a slot (4,096 tokens, of which a letter is one at the most with the model of
/// the fixtures).
const REPEATED: [usize; 4] = [15, 30, 60, 120];
/// A little more than it has to take.
const MARGIN: f64 = 1.25;
/// An answer is short, whatever a model with random weights would go on to say.
const MAX_TOKENS: u64 = 4;
const HOT_MOST: Duration = Duration::from_secs(120);

#[derive(Deserialize)]
struct Asked {
    seconds: f64,
    ms: Vec<f64>,
}

pub(super) fn run(options: &Bench, scratch: &Path) -> Result<Vec<Figure>> {
    let prompts = options.size(PROMPTS);
    let fixtures = fixtures::ensure()?;
    let setup = Setup {
        gpus: Some((&fixtures, AGENTS)),
        model_slots: Some(SLOTS),
        ..PLAIN
    };
    let rig = Rig::start(scratch, setup)?;
    let model = fixtures
        .model
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy();
    heat(&rig, &model)?;
    let urls = urls(&rig)?;
    let text = text(&urls, &model)?;
    let (mut ours, mut bare, mut each) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..options.runs {
        // No two runs say the same: a server remembers what it has read.
        let section = format!(
            "### ask\n\n- **foreach**: items.json:items\n- **llm_model**: {model}\n\
             - **max_tokens**: {MAX_TOKENS}\n- **seed**: 1\n\
             - **prompt**:\n  ```\n  Ours {run}, {{ITEM.id}}. {text}\n  ```\n"
        );
        let plan = plans::write(scratch, &format!("ask-{run}"), &section, prompts)?;
        let done: Done = bench_queue(&[&"batch", &rig.root, &plan, &release("rigor")])?;
        complete(&rig, &done.batch, prompts)?;
        ours.push(prompts as f64 / done.seconds);
        let asked = ask(&urls, &model, (&format!("Bare {run},"), &text), prompts)?;
        bare.push(prompts as f64 / asked.seconds);
        each.push(percentile(asked.ms, 0.5));
    }
    let name = format!("{prompts} prompts, {AGENTS} agents of {SLOTS} slots");
    Ok(vec![
        Figure::of(name, "1/s", ours).against(
            "clients that do nothing else, same servers",
            bare,
            Target::AtLeast(SHARE),
        ),
        Figure::of("a prompt, by those clients", "ms", each).limit(PROMPT_MS, Target::AtLeast(1.0)),
    ])
}

/// Loads the model on every GPU.
fn heat(rig: &Rig, model: &str) -> Result<()> {
    for gpu in 1..=AGENTS {
        rig.rigor(&["load", &format!("gpu-{gpu}"), model])?;
    }
    let started = Instant::now();
    loop {
        let status: Value = serde_json::from_str(&rig.rigor(&["status", "--json"])?)?;
        let agents = status["agents"].as_array().map_or(&[][..], Vec::as_slice);
        if !agents.is_empty() && agents.iter().all(|agent| agent["state"] == "hot") {
            return Ok(());
        }
        if started.elapsed() > HOT_MOST {
            bail!("not every agent was hot after {}s", HOT_MOST.as_secs());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Where the agents' servers listen, as rig.toml says.
fn urls(rig: &Rig) -> Result<Vec<String>> {
    let path = rig.root.join("rig.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let urls: Vec<String> = ports(&text)
        .map(|port| format!("http://127.0.0.1:{port}"))
        .collect();
    if urls.len() != usize::from(AGENTS) {
        bail!("{} names {} ports", path.display(), urls.len());
    }
    Ok(urls)
}

fn ports(text: &str) -> impl Iterator<Item = u16> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "port").then(|| value.trim().parse().ok())?
    })
}

/// What a prompt says to take long enough while all servers are busy.
fn text(urls: &[String], model: &str) -> Result<String> {
    let prompts = 2 * urls.len() as u64 * SLOTS;
    let mut text = String::new();
    for repeated in REPEATED {
        text = WORDS.repeat(repeated).trim_end().to_owned();
        let tried = ask(urls, model, (&format!("Try {repeated},"), &text), prompts)?;
        if percentile(tried.ms, 0.5) >= PROMPT_MS * MARGIN {
            break;
        }
    }
    Ok(text)
}

fn ask(urls: &[String], model: &str, (prefix, text): (&str, &str), count: u64) -> Result<Asked> {
    let numbers = [count, SLOTS].map(|number| number.to_string());
    let mut words: Vec<&dyn AsRef<OsStr>> = vec![&"prompts", &model, &prefix, &text];
    words.extend(numbers.iter().map(|number| number as &dyn AsRef<OsStr>));
    words.extend(urls.iter().map(|url| url as &dyn AsRef<OsStr>));
    bench_queue(&words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_those_of_the_gpus() {
        let text = "[[gpu]]\nname = \"gpu-1\"\nport = 21435\n# port = 1\n[[gpu]]\nport=21436\nreport = 5\n";
        assert_eq!(ports(text).collect::<Vec<_>>(), [21435, 21436]);
    }
}
