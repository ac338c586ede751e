//! systemd user units, for a rig that starts with its machine.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rigor_queue::rig::Rig;

use crate::components::{Component, on_path};
use crate::terminal::note;

/// The unit of a component.
pub(crate) fn unit_name(rig_id: &str, component: &str) -> String {
    format!("rigor-{rig_id}-{component}.service")
}

/// Writes the units of `all`, enables them, and starts those of `missing`.
pub(crate) fn enable(
    rig: &Rig,
    rig_id: &str,
    all: &[Component],
    missing: &[Component],
) -> Result<()> {
    need_systemd()?;
    let dir = unit_dir()?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for component in all {
        let path = dir.join(unit_name(rig_id, &component.name));
        fs::write(&path, unit(rig, component))
            .with_context(|| format!("cannot write {}", path.display()))?;
        note(format!("wrote {}", path.display()));
    }
    systemctl(&["daemon-reload"])?;
    let names = |of: &[Component]| -> Vec<String> {
        of.iter()
            .map(|component| unit_name(rig_id, &component.name))
            .collect()
    };
    systemctl(&with("enable", &names(all)))?;
    if !missing.is_empty() {
        systemctl(&with("start", &names(missing)))?;
    }
    note("They start when you log in. To start them with the machine: loginctl enable-linger");
    Ok(())
}

/// Stops the rig's units; with `remove` they are disabled and removed.
pub(crate) fn stop(rig: &Rig, rig_id: &str, remove: bool) -> Result<()> {
    need_systemd()?;
    let dir = unit_dir()?;
    let prefix = format!("rigor-{rig_id}-");
    let mut units: Vec<String> = fs::read_dir(&dir)
        .map(|entries| {
            entries
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .filter(|name| name.starts_with(&prefix) && name.ends_with(".service"))
                .collect()
        })
        .unwrap_or_default();
    units.sort_unstable();
    if units.is_empty() {
        note(format!(
            "no unit of {} in {}",
            rig.root().display(),
            dir.display()
        ));
        return Ok(());
    }
    systemctl(&with("stop", &units))?;
    note(format!("stopped {}", units.join(", ")));
    if remove {
        systemctl(&with("disable", &units))?;
        for unit in &units {
            let path = dir.join(unit);
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            note(format!("removed {}", path.display()));
        }
        systemctl(&["daemon-reload"])?;
    }
    Ok(())
}

fn with<'a>(verb: &'a str, units: &'a [String]) -> Vec<&'a str> {
    std::iter::once(verb)
        .chain(units.iter().map(String::as_str))
        .collect()
}

fn need_systemd() -> Result<()> {
    if on_path("systemctl").is_none() {
        bail!(
            "there is no systemctl here: --boot needs systemd; use `rigor up`, and start it from your own init"
        );
    }
    let answer = Command::new("systemctl")
        .args(["--user", "show-environment"])
        .output()
        .context("cannot run systemctl")?;
    if !answer.status.success() {
        let why = String::from_utf8_lossy(&answer.stderr);
        bail!(
            "systemd has no manager for this user ({}); log in through a real session (not `su`), \
             or use `rigor up` without --boot",
            why.trim()
        );
    }
    Ok(())
}

fn systemctl(words: &[&str]) -> Result<()> {
    let answer = Command::new("systemctl")
        .arg("--user")
        .args(words)
        .output()
        .context("cannot run systemctl")?;
    if !answer.status.success() {
        let why = String::from_utf8_lossy(&answer.stderr);
        bail!("systemctl --user {}: {}", words.join(" "), why.trim());
    }
    Ok(())
}

fn unit_dir() -> Result<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))
        .context("neither XDG_CONFIG_HOME nor HOME is set")?;
    Ok(config.join("systemd/user"))
}

/// Only the component itself is signalled: its workers finish under their own timeouts and are
/// adopted by the next one. `Delegate` gives it a cgroup to put attempts into, with controllers to
/// limit them since its own processes are in another one below that (`DelegateSubgroup`, since
/// systemd 254; before that the line is ignored with a warning).
fn unit(rig: &Rig, component: &Component) -> String {
    let command: Vec<String> = component.command.iter().map(|word| quoted(word)).collect();
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned());
    format!(
        "[Unit]\n\
         Description=Rigor {name} of {rig}\n\n\
         [Service]\n\
         ExecStart={command}\n\
         Environment={path}\n\
         Restart=on-failure\n\
         RestartSec=2\n\
         KillMode=process\n\
         TimeoutStopSec=60\n\
         Delegate=yes\n\
         DelegateSubgroup=main\n\n\
         [Install]\n\
         WantedBy=default.target\n",
        name = component.name,
        rig = rig.root().display().to_string().replace('%', "%%"),
        command = command.join(" "),
        // A dollar sign means nothing there.
        path = quoted(&format!("PATH={path}")).replace("$$", "$"),
    )
}

/// A word as systemd.service(5) reads it back.
fn quoted(word: &str) -> String {
    let word = word
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('%', "%%")
        .replace('$', "$$");
    format!("\"{word}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_systemd() {
        assert_eq!(quoted(r#"/a b/100%/$x"y\"#), r#""/a b/100%%/$$x\"y\\""#);
    }
}
