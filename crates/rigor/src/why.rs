//! `rigor why`.

mod past;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Result, bail};
use rigor_policy::why::{Explanation, Gate, GateState};
use rigor_queue::rig::BRAIN;
use rigor_snapshot::{Target, why};
use serde::Serialize;

use crate::args::Why;
use crate::exit::Exit;
use crate::target::{self, Opened};
use crate::terminal::{Tone, json, print, printable, toned};

/// Says why.
pub(crate) fn run(at: &Path, args: &Why) -> Result<Exit> {
    let opened = target::open_running(at)?;
    let (rig, config) = (&opened.rig, &opened.config);
    if args.at.is_some() || args.since.is_some() {
        return past::run(&opened, args);
    }
    // A task that moves while it is looked at has few moves left to make.
    for _ in 0..8 {
        match opened.find(&args.what)? {
            Target::Agent(name) if name == BRAIN => return say(&why::brain(rig, config)?, args),
            Target::Agent(name) => {
                let manifest = rig.agent_dir(&name).join(rigor_runtime::MANIFEST_NAME);
                let orphan = rigor_runtime::orphan(&manifest);
                return say(&why::agent(rig, config, &name, orphan)?, args);
            }
            Target::Batch(id) => match why::batch(rig, config, &id)? {
                Some(answer) => return say(&answer, args),
                None => {
                    bail!("the batch {id} has no plan in the lanes; its submission did not finish")
                }
            },
            Target::Task { name, spot, ahead } => {
                if let Some(answer) = why::task(rig, config, &name, &spot, ahead)? {
                    return say(&answer, args);
                }
            }
        }
    }
    bail!(
        "{} moves from lane to lane too fast to be read; try again",
        args.what
    )
}

fn say<V: Serialize>(answer: &why::Answer<V>, args: &Why) -> Result<Exit> {
    if args.json {
        json(answer)?;
    } else {
        print(&text(&answer.explanation))?;
    }
    Ok(Exit::Ok)
}

fn text<V>(explanation: &Explanation<V>) -> String {
    let mut text = format!(
        "{}\n",
        toned(&printable(&explanation.summary), Tone::Heading)
    );
    if !explanation.gates.is_empty() {
        text.push('\n');
    }
    let width = explanation
        .gates
        .iter()
        .map(|gate| head(gate).chars().count())
        .max()
        .unwrap_or(0);
    for gate in &explanation.gates {
        let (mark, tone) = match gate.state {
            GateState::Open => ("ok  ", Tone::Good),
            GateState::Closed => ("no  ", Tone::Bad),
            GateState::Unknown => ("?   ", Tone::Warning),
            GateState::Info => ("    ", Tone::Plain),
        };
        let code = gate
            .code
            .map(|code| format!("{code} - "))
            .unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{}{:<width$}  {code}{}",
            toned(mark, tone),
            head(gate),
            printable(&gate.words)
        );
    }
    if !explanation.help.is_empty() {
        text.push('\n');
    }
    let width = explanation
        .help
        .iter()
        .map(|help| help.command.chars().count())
        .max()
        .unwrap_or(0);
    for help in &explanation.help {
        let _ = writeln!(text, "  {:<width$}  {}", help.command, help.does);
    }
    text
}

fn head(gate: &Gate) -> String {
    if gate.subject.is_empty() {
        gate.gate.to_owned()
    } else {
        format!("{} {}", gate.gate, printable(&gate.subject))
    }
}

impl Opened {
    /// Whether `name` is of an agent, the brain not among them.
    fn is_agent(&self, name: &str) -> Result<bool> {
        Ok(name != BRAIN
            && (self.config.agent_names().any(|agent| agent == name)
                || self.rig.agents()?.iter().any(|agent| agent == name)))
    }
}
