//! From what an operator types to the rig and to what is in it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use rigor_config::{Config, nearest};
use rigor_queue::name::FileName;
use rigor_queue::presence;
use rigor_queue::rig::{BRAIN, Rig};
use rigor_snapshot::{Found, Spot, Target};

use crate::terminal;

/// Names that are listed where several would do.
const CHOICES_SHOWN: usize = 10;

/// The rig with its configuration.
pub(crate) struct Opened {
    pub(crate) rig: Rig,
    pub(crate) config: Config,
}

/// Opens the rig in a directory, to give it work or to start it.
pub(crate) fn open(dir: &Path) -> Result<Opened> {
    let rig = Rig::open(dir)?;
    let config = Config::load(rig.root())?;
    Ok(Opened { rig, config })
}

/// Opens the rig to look at it or to stop what runs. A rig.toml that cannot be used is no obstacle:
/// the one that the brain started with is taken in its place, and the mistakes are said.
pub(crate) fn open_running(dir: &Path) -> Result<Opened> {
    let rig = Rig::open_to_look(dir)?;
    if let Err(error) = rig.check_dirs(None) {
        terminal::note(error.to_string());
    }
    let config = match Config::load(rig.root()) {
        Ok(config) => config,
        Err(error) => {
            let Ok(config) = Config::load_copy(rig.root(), &rig.settings_copy()) else {
                return Err(error.into());
            };
            terminal::note(format!(
                "{error}\nUntil that is mended, this goes by the rig.toml that the brain started with last."
            ));
            config
        }
    };
    Ok(Opened { rig, config })
}

impl Opened {
    /// What `text` names; an error that says the nearest.
    pub(crate) fn find(&self, text: &str) -> Result<Target> {
        one(
            text,
            "task, batch or agent",
            rigor_snapshot::find(&self.rig, &self.config, text)?,
        )
    }

    /// The batch that `text` names.
    pub(crate) fn batch(&self, text: &str) -> Result<String> {
        match one(text, "batch", rigor_snapshot::find_batch(&self.rig, text)?)? {
            Target::Batch(id) => Ok(id),
            Target::Task { .. } | Target::Agent(_) => bail!("{text} is not a batch"),
        }
    }

    /// The task that `text` names.
    pub(crate) fn task(&self, text: &str) -> Result<(FileName, Spot)> {
        match one(
            text,
            "task",
            rigor_snapshot::find(&self.rig, &self.config, text)?,
        )? {
            Target::Task { name, spot, .. } => Ok((name, spot)),
            Target::Batch(id) => {
                bail!("{id} is a batch; `rigor tasks --batch {id}` lists its tasks")
            }
            Target::Agent(name) => bail!("{name} is an agent; see `rigor status`"),
        }
    }

    /// All about the task that `text` names, however it moves meanwhile.
    pub(crate) fn detail(&self, text: &str) -> Result<rigor_snapshot::Detail> {
        // Each try that fails means that the task moved on; it has few moves left to make.
        for _ in 0..8 {
            let (name, spot) = self.task(text)?;
            if let Some(detail) = rigor_snapshot::detail(&self.rig, &name, &spot)? {
                return Ok(detail);
            }
        }
        bail!("{text} moves from lane to lane too fast to be read; try again")
    }

    /// An agent of the rig.
    pub(crate) fn agent<'a>(&self, name: &'a str) -> Result<&'a str> {
        let ran = self.rig.agents()?;
        let known: Vec<&str> = self
            .config
            .agent_names()
            .chain(ran.iter().map(String::as_str))
            .collect();
        if known.contains(&name) {
            return Ok(name);
        }
        let near = nearest(name, known.iter().copied());
        bail!("no agent is named {name}{}", did_you_mean(near))
    }

    /// Whether the brain runs.
    pub(crate) fn brain_runs(&self) -> Result<bool> {
        Ok(presence::is_held(&self.rig, BRAIN)? == Some(true))
    }

    /// Says so where nobody will act on what was asked.
    pub(crate) fn warn_without_brain(&self) -> Result<()> {
        if !self.brain_runs()? {
            terminal::note(
                "The brain is not running; this waits until it does. Start it: rigor up",
            );
        }
        Ok(())
    }
}

/// `; did you mean X?`
pub(crate) fn did_you_mean(near: Option<&str>) -> String {
    near.map(|near| format!("; did you mean {near}?"))
        .unwrap_or_default()
}

fn one(text: &str, what: &str, found: Found) -> Result<Target> {
    match found {
        Found::One(target) => Ok(target),
        Found::NotFound { nearest: None } if text.contains('/') => {
            bail!("no {what} is named {text}: its batch has no tasks yet; see `rigor status`")
        }
        Found::NotFound { nearest } => {
            bail!(
                "no {what} is named {text}{}",
                did_you_mean(nearest.as_deref())
            )
        }
        Found::Ambiguous(choices) => {
            let more = choices.len().saturating_sub(CHOICES_SHOWN);
            let mut list = choices[..choices.len() - more].join("\n  ");
            if more > 0 {
                list.push_str(&format!("\n  and {more} more"));
            }
            bail!(
                "{text} can be any of {}; write more of it:\n  {list}",
                choices.len()
            )
        }
    }
}

/// An absolute path with every link resolved.
pub(crate) fn resolved(path: &Path) -> Result<std::path::PathBuf> {
    path.canonicalize()
        .with_context(|| format!("cannot open {}", path.display()))
}
