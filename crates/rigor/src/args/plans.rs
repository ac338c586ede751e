//! Arguments of the commands that bring work.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use rigor_queue::task::Class;

use super::one_of;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor check plans/tags
  rigor check plans/tags --set LANGUAGE=de

Works without a rig; with one the plan is also checked against its GPUs and models.")]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) plan: PlanArgs,
    /// Print the problems (or what the plan comes to) as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The folder that holds plan.md.
    #[arg(value_name = "PLAN_DIR")]
    pub(crate) plan_dir: PathBuf,
    /// A value for an input of the plan.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) set: Vec<(String, String)>,
    /// Values for inputs as a JSON object: text, or @FILE. --set comes over it.
    #[arg(long, value_name = "JSON", value_parser = inputs_json)]
    pub(crate) config: Option<Inputs>,
    /// Accept the class inferred from a command where a task names none.
    #[arg(long)]
    pub(crate) infer: bool,
}

/// Values of inputs.
#[derive(Clone, Debug)]
pub(crate) struct Inputs(pub(crate) BTreeMap<String, String>);

impl PlanArgs {
    /// `--config` with `--set` over it.
    pub(crate) fn inputs(&self) -> BTreeMap<String, String> {
        let mut inputs = self
            .config
            .clone()
            .map(|inputs| inputs.0)
            .unwrap_or_default();
        inputs.extend(self.set.iter().cloned());
        inputs
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor submit plans/tags
  rigor submit plans/tags --set LANGUAGE=de --limit 3 --wait
  batch=$(rigor submit plans/tags) && rigor wait \"$batch\"

Prints the batch's id alone. With --wait exits 0 complete, 1 failed, 3 cancelled, 4 brain not running.")]
pub(crate) struct Submit {
    #[command(flatten)]
    pub(crate) plan: PlanArgs,
    /// Only the first N items of each foreach source.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// Submit it once: whoever submits the same under this key again gets the same batch.
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Submit it held: nothing starts before `rigor release`.
    #[arg(long, conflicts_with = "wait")]
    pub(crate) hold: bool,
    /// Wait until the batch is over.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Print an object with `batch_id`.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor run -- nvidia-smi
  rigor run --class script --vram 2000 --wait -- python train.py --epochs 3
  rigor run --wait -- 'grep -c ERROR *.log | sort'     one word: a line for bash

The command runs in the present directory. Prints the batch's id; with --wait what the command
prints, and ends with its exit code's meaning: 0, or 1.")]
pub(crate) struct Run {
    /// What it needs: cpu, script (a GPU) or llm (a model).
    #[arg(long, value_name = "CLASS", default_value = "cpu", value_parser = run_class)]
    pub(crate) class: Class,
    /// GPU memory it takes, MiB (class script).
    #[arg(long, value_name = "MB")]
    pub(crate) vram: Option<u64>,
    /// The model it talks to (class llm) [default: the agent's].
    #[arg(long, value_name = "ID")]
    pub(crate) model: Option<String>,
    /// The task's name [default: the program's].
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Attempts after the first.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) retries: u32,
    /// Wait, and print what the command prints.
    #[arg(long)]
    pub(crate) wait: bool,
    /// The command and its arguments; a single word with blanks is a line for bash.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

fn inputs_json(text: &str) -> Result<Inputs, String> {
    let text = match text.strip_prefix('@') {
        Some(path) => {
            std::fs::read_to_string(path).map_err(|error| format!("read {path}: {error}"))?
        }
        None => text.to_owned(),
    };
    let values: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text)
        .map_err(|error| format!("{error}; write an object such as {{\"LANGUAGE\":\"de\"}}"))?;
    let plain = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    Ok(Inputs(
        values
            .into_iter()
            .map(|(key, value)| (key, plain(value)))
            .collect(),
    ))
}

fn run_class(text: &str) -> Result<Class, String> {
    match Class::parse(text) {
        Some(class @ (Class::Cpu | Class::Script | Class::Llm)) => Ok(class),
        Some(Class::Meta | Class::Brain) | None => Err(one_of(text, ["cpu", "script", "llm"])),
    }
}
