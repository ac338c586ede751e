//! `rigor up`: starts what rig.toml asks for and does not run yet.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use rigor_queue::rig::Rig;

use crate::args::Up;
use crate::boot;
use crate::components::{self, Component, How, UpRecord, living, run_dir};
use crate::exit::Exit;
use crate::target;
use crate::terminal::{note, plural};
use crate::tmux::{self, Session};

/// Lines shown of a component that did not start.
const LINES_SHOWN: usize = 15;

/// Starts the rig. Idempotent: what runs is left alone.
pub(crate) fn run(at: &Path, args: &Up) -> Result<Exit> {
    let opened = target::open(at)?;
    let (rig, config) = (&opened.rig, &opened.config);
    let _exclusive = components::exclusive(rig)?;
    if config.nvml.simulated {
        note("SIMULATED: the GPUs of this rig are stand-ins.");
    }
    let mut missing = Vec::new();
    for component in components::wanted(rig, config)? {
        rig.prepare_agent(&component.name)?;
        match living(rig, &component.name)? {
            Some(living) => note(format!(
                "{} runs already (pid {})",
                component.name, living.pid
            )),
            None => missing.push(component),
        }
    }
    if args.boot {
        // All of them, also those that run: they are to start with the machine.
        let all = components::wanted(rig, config)?;
        boot::enable(rig, &config.rig.id, &all, &missing)?;
        return started(rig, How::Systemd, &missing, &mut |_| false, &mut |name| {
            format!(
                "see: journalctl --user -u {}",
                boot::unit_name(&config.rig.id, name)
            )
        });
    }
    if missing.is_empty() {
        note("Everything runs.");
        return Ok(Exit::Ok);
    }
    if !args.no_tmux && tmux::is_there() {
        let session = Session::of(rig, &config.rig.name, &config.rig.id)?;
        for component in &missing {
            session.start(rig, component)?;
        }
        let how = How::Tmux {
            session: session.name.clone(),
        };
        let exit = started(
            rig,
            how,
            &missing,
            &mut |name| session.has_ended(name),
            &mut |name| last_lines(&session.last_lines(name)),
        )?;
        note(format!("Look at them: tmux attach -t {}", session.name));
        return Ok(exit);
    }
    let mut children = Vec::new();
    for component in &missing {
        children.push((component.name.clone(), start_in_background(rig, component)?));
    }
    let exit = started(
        rig,
        How::Background,
        &missing,
        &mut |name| {
            children
                .iter_mut()
                .find(|(of, _)| of == name)
                .is_some_and(|(_, child)| child.try_wait().is_ok_and(|status| status.is_some()))
        },
        &mut |name| {
            let text = fs::read(output_path(rig, name)).unwrap_or_default();
            last_lines(&String::from_utf8_lossy(&text))
        },
    )?;
    note(format!("Output: {}/*.out", rig.logs_dir().display()));
    Ok(exit)
}

/// Waits for each that was started and says what came of it.
fn started(
    rig: &Rig,
    how: How,
    components: &[Component],
    has_ended: &mut dyn FnMut(&str) -> bool,
    last_words: &mut dyn FnMut(&str) -> String,
) -> Result<Exit> {
    let mut names: Vec<String> = components
        .iter()
        .map(|component| component.name.clone())
        .collect();
    if let Some(earlier) = UpRecord::read(rig)?
        && earlier.how == how
    {
        names.extend(earlier.components);
        names.sort_unstable();
        names.dedup();
    }
    // Before the wait: an `up` that is interrupted still leaves what `down` needs.
    UpRecord {
        schema: 1,
        how,
        components: names,
        at: jiff::Timestamp::now(),
    }
    .write(rig)?;
    let mut failed = 0;
    for component in components {
        let name = &component.name;
        if components::wait_for_start(rig, name, || has_ended(name))? {
            let pid = living(rig, name)?.map(|living| format!(" (pid {})", living.pid));
            note(format!("{name} started{}", pid.unwrap_or_default()));
        } else {
            failed += 1;
            note(format!("{name} did not start:\n{}", last_words(name)));
        }
    }
    if failed > 0 {
        note(format!(
            "{} did not start; the cause is above. See also: rigor doctor",
            plural(failed, "program")
        ));
        return Ok(Exit::Failed);
    }
    Ok(Exit::Ok)
}

fn start_in_background(rig: &Rig, component: &Component) -> Result<Child> {
    let path = output_path(rig, &component.name);
    let output = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let own = std::env::current_exe().context("cannot tell where rigor itself lies")?;
    let child = Command::new(own)
        .arg("__detached")
        .arg("--")
        .args(&component.command)
        .current_dir(rig.root())
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("cannot share the output file")?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("cannot start {}", component.name))?;
    let pid_file = run_dir(rig).join(format!("{}.pid", component.name));
    fs::write(&pid_file, format!("{}\n", child.id()))
        .with_context(|| format!("cannot write {}", pid_file.display()))?;
    Ok(child)
}

fn output_path(rig: &Rig, component: &str) -> std::path::PathBuf {
    rig.logs_dir().join(format!("{component}.out"))
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let shown = lines[lines.len().saturating_sub(LINES_SHOWN)..].iter();
    let text: Vec<String> = shown
        .map(|line| format!("  {}", crate::terminal::printable(line)))
        .collect();
    if text.is_empty() {
        "  it printed nothing".to_owned()
    } else {
        text.join("\n")
    }
}
