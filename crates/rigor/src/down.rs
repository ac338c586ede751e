//! `rigor down`: stops what runs of a rig, whoever started it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use rigor_queue::rig::{BRAIN, Rig};
use rustix::process::Signal;

use crate::args::Down;
use crate::boot;
use crate::components::{self, How, Living, UpRecord, living, run_dir};
use crate::exit::Exit;
use crate::target;
use crate::terminal::{duration, note};
use crate::tmux::Session;

/// How long a component may take at most that was told to stop at once; a shorter grace is
/// meant for this step too.
const AT_ONCE_MOST: Duration = Duration::from_secs(15);
/// How long the kernel may take to end a process that was killed.
const AFTER_KILL: Duration = Duration::from_secs(5);

/// Stops the rig: the agents first, so that the brain still sees what they finished.
pub(crate) fn run(at: &Path, args: &Down) -> Result<Exit> {
    let opened = target::open_running(at)?;
    let (rig, config) = (&opened.rig, &opened.config);
    let _exclusive = components::exclusive(rig)?;
    let record = UpRecord::read(rig)?;
    let booted = record
        .as_ref()
        .is_some_and(|record| record.how == How::Systemd);
    if args.boot || booted {
        // systemd would start again what it did not stop itself.
        boot::stop(rig, &config.rig.id, args.boot)?;
    }
    let mut names: Vec<String> = config.agent_names().map(str::to_owned).collect();
    names.extend(
        rig.agents()?
            .into_iter()
            .filter(|name| config.agent_names().all(|one| one != name)),
    );
    let mut all_ended = stop(rig, &names, args.grace)?;
    all_ended &= stop(rig, &[BRAIN.to_owned()], args.grace)?;
    if let Some(record) = &record
        && all_ended
    {
        tidy(rig, record)?;
        UpRecord::forget(rig)?;
    }
    if !all_ended {
        return Ok(Exit::Failed);
    }
    let mut left = leftovers(&config.rig.id);
    left.extend(runtimes_left(rig, &names));
    if !left.is_empty() {
        let pids: Vec<String> = left
            .iter()
            .map(|(pid, name)| format!("{name} (pid {pid})"))
            .collect();
        note(format!(
            "Still running of agents that died: {}. `rigor up` ends them and queues their tasks again, and takes LLM runtimes over; or kill them yourself",
            pids.join(", ")
        ));
        return Ok(Exit::Failed);
    }
    note("Nothing of this rig runs.");
    Ok(Exit::Ok)
}

/// Stops components together: drain, at the end of the grace at once, then by force. `false`:
/// some still run.
fn stop(rig: &Rig, names: &[String], grace: Duration) -> Result<bool> {
    let mut running: Vec<Living> = Vec::new();
    for name in names {
        running.extend(living(rig, name)?);
    }
    let stages = [
        (Signal::TERM, grace, "asked to finish and stop"),
        (
            Signal::TERM,
            grace.min(AT_ONCE_MOST),
            "told to stop at once",
        ),
        (Signal::KILL, AFTER_KILL, "killed"),
    ];
    for (signal, wait, words) in stages {
        for one in &running {
            one.signal(signal)?;
            note(format!("{} (pid {}) {words}", one.name, one.pid));
        }
        let deadline = Instant::now() + wait;
        let mut left = Vec::new();
        for one in running {
            if one.wait_until(deadline)? {
                note(format!("{} (pid {}) has stopped", one.name, one.pid));
            } else {
                note(format!(
                    "{} (pid {}) still runs after {}",
                    one.name,
                    one.pid,
                    duration(wait)
                ));
                left.push(one);
            }
        }
        running = left;
    }
    for one in &running {
        note(format!(
            "{} (pid {}) cannot be killed: it hangs in the kernel (a disk or a GPU driver); see `dmesg`",
            one.name, one.pid
        ));
    }
    Ok(running.is_empty())
}

fn tidy(rig: &Rig, record: &UpRecord) -> Result<()> {
    match &record.how {
        How::Tmux { session } => {
            let session = Session {
                name: session.clone(),
            };
            if crate::tmux::is_there() && session.belongs_to(rig)? {
                session.close(&record.components)?;
            }
        }
        How::Background => {
            for name in &record.components {
                // Gone is as good as removed.
                let _ = fs::remove_file(run_dir(rig).join(format!("{name}.pid")));
            }
        }
        How::Systemd => {}
    }
    Ok(())
}

/// Processes of LLM runtimes that outlived their agent: pid and name. Their manifests lead to them.
fn runtimes_left(rig: &Rig, agents: &[String]) -> Vec<(u32, String)> {
    let orphans = agents.iter().filter_map(|agent| {
        rigor_runtime::orphan(&rig.agent_dir(agent).join(rigor_runtime::MANIFEST_NAME))
    });
    orphans
        .flat_map(|(model, pids)| {
            let name = format!("runtime of {model}");
            pids.into_iter()
                .filter_map(move |pid| Some((u32::try_from(pid).ok()?, name.clone())))
        })
        .collect()
}

/// Processes of attempts that outlived their agent: pid and name. They carry the rig's id in their
/// cookie.
fn leftovers(rig_id: &str) -> Vec<(u32, String)> {
    let attempt = format!("{}={rig_id}:", rigor_exec::COOKIE_VARIABLE);
    let mut found = Vec::new();
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return found;
    };
    for process in processes.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // Gone meanwhile, or somebody else's: not ours in either case.
        let Ok(environment) = std::fs::read(process.path().join("environ")) else {
            continue;
        };
        let ours = environment
            .split(|byte| *byte == 0)
            .any(|entry| entry.starts_with(attempt.as_bytes()));
        if ours {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push((pid, name.trim().to_owned()));
        }
    }
    found
}
