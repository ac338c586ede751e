//! `rigor log-level`.

use std::path::Path;

use anyhow::{Context, Result, bail};
use jiff::{SignedDuration, Timestamp};
use rigor_queue::presence::{self, send, unsend};
use rigor_queue::rig::BRAIN;
use serde::{Deserialize, Serialize};

use crate::args::LogLevel;
use crate::exit::Exit;
use crate::target::{self, Opened};
use crate::terminal::{duration, line, note};

/// The signal's name.
const SIGNAL: &str = "log-level";

/// What the signal says.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    level: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

/// Changes, shows or takes back the level of a component's log.
pub(crate) fn run(at: &Path, args: &LogLevel) -> Result<Exit> {
    let opened = target::open_running(at)?;
    let name = if args.component == BRAIN {
        BRAIN
    } else {
        opened.agent(&args.component)?
    };
    if args.reset {
        if unsend(&opened.rig, name, SIGNAL)? {
            note(format!("{name} logs at its own level again"));
        } else {
            note(format!("{name} had no level set"));
        }
    } else if let Some(level) = args.level {
        let until = args
            .duration
            .map(SignedDuration::try_from)
            .transpose()
            .context("--for is too long")?
            .map(|length| Timestamp::now() + length);
        let content = Content {
            level: level.to_string(),
            until,
        };
        // One that never ran gets its signal when it starts.
        opened.rig.prepare_agent(name)?;
        let text = serde_json::to_string(&content)?;
        send(&opened.rig, name, SIGNAL, &text)?;
        let length = args.duration.map_or_else(
            || format!("until `rigor log-level {name} --reset`"),
            |length| format!("for {}", duration(length)),
        );
        note(format!("{name} logs at {level} {length}"));
    } else {
        return show(&opened, name);
    }
    if presence::is_held(&opened.rig, name)? != Some(true) {
        note(format!("{name} is not running. Start it: rigor up"));
    }
    Ok(Exit::Ok)
}

fn show(opened: &Opened, name: &str) -> Result<Exit> {
    let signals = presence::signals(&opened.rig, name)?;
    let Some((_, text)) = signals.iter().find(|(signal, _)| signal == SIGNAL) else {
        line("as it was started")?;
        return Ok(Exit::Ok);
    };
    let Ok(content) = serde_json::from_str::<Content>(text) else {
        bail!(
            "what is set for {name} cannot be read; take it back: rigor log-level {name} --reset"
        );
    };
    let left = content
        .until
        .map(|until| until.duration_since(Timestamp::now()));
    match left {
        None => line(content.level)?,
        Some(left) if left.is_positive() => {
            let left = std::time::Duration::from_secs(left.as_secs().unsigned_abs().max(1));
            line(format!("{} for {}", content.level, duration(left)))?;
        }
        Some(_) => line("as it was started")?,
    }
    Ok(Exit::Ok)
}
