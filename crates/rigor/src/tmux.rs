//! A tmux session with a window for each component.

use std::process::{Command, Output};

use anyhow::{Context, Result, bail};
use rigor_queue::rig::Rig;

use crate::components::{Component, on_path};

/// The session's option that says whose it is.
const OWNER_OPTION: &str = "@rigor_rig";
/// Variables that a component has to get from here: a server that runs already has its own.
const PASSED_ON: [&str; 9] = [
    "PATH",
    "LD_LIBRARY_PATH",
    "RUST_BACKTRACE",
    "BRAIN_LOG_LEVEL",
    "GPU_LOG_LEVEL",
    "WORKER_LOG_LEVEL",
    "EXECUTOR_LOG_LEVEL",
    "TZ",
    "NO_COLOR",
];

/// Whether there is a tmux at all.
pub(crate) fn is_there() -> bool {
    on_path("tmux").is_some()
}

/// The session of a rig.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) name: String,
}

impl Session {
    /// The session that is this rig's already, else the first name that is free: `rigor`, then
    /// `rigor-<name of the rig>`, then with the rig's id.
    pub(crate) fn of(rig: &Rig, rig_name: &str, rig_id: &str) -> Result<Session> {
        // tmux reads `.` and `:` in a target as separators.
        let plain = rig_name.replace(['.', ':'], "_");
        let choices = [
            "rigor".to_owned(),
            format!("rigor-{plain}"),
            format!("rigor-{plain}-{rig_id}"),
        ];
        let sessions: Vec<Session> = choices.map(|name| Session { name }).into();
        for session in &sessions {
            if session.belongs_to(rig)? {
                return Ok(Session {
                    name: session.name.clone(),
                });
            }
        }
        for session in sessions {
            if !session.exists()? {
                return Ok(session);
            }
        }
        bail!(
            "the tmux sessions rigor, rigor-{plain} and rigor-{plain}-{rig_id} belong to others; use --no-tmux"
        )
    }

    fn target(&self) -> String {
        format!("={}:", self.name)
    }

    fn window(&self, component: &str) -> String {
        format!("={}:={component}", self.name)
    }

    pub(crate) fn exists(&self) -> Result<bool> {
        Ok(tmux(["has-session", "-t", &format!("={}", self.name)])?
            .status
            .success())
    }

    /// Whether it is the session of this rig: others' windows are never touched.
    pub(crate) fn belongs_to(&self, rig: &Rig) -> Result<bool> {
        let shown = tmux(["show-options", "-v", "-t", &self.target(), OWNER_OPTION])?;
        let owner = String::from_utf8_lossy(&shown.stdout);
        Ok(shown.status.success() && owner.trim_end() == rig.root().display().to_string())
    }

    /// Starts a component in a window of its own that stays when it ends. One call of tmux, so
    /// that a component which ends at once still leaves its window.
    pub(crate) fn start(&self, rig: &Rig, component: &Component) -> Result<()> {
        let owner = rig.root().display().to_string();
        let mut words: Vec<String> = Vec::new();
        let mut add = |more: &[&str]| words.extend(more.iter().map(|word| (*word).to_owned()));
        let variables: Vec<String> = PASSED_ON
            .iter()
            .filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)))
            .collect();
        if self.exists()? && self.has_window(&component.name)? {
            // Only a dead one is left: who calls has looked for the living.
            ok(
                tmux(["kill-window", "-t", &self.window(&component.name)])?,
                "close a window",
            )?;
        }
        // Killing the last window ends the session, so this is asked again.
        if self.exists()? {
            add(&[
                "new-window",
                "-d",
                "-t",
                &self.target(),
                "-n",
                &component.name,
            ]);
        } else {
            add(&["new-session", "-d", "-s", &self.name, "-n", &component.name]);
            add(&["-x", "200", "-y", "50"]);
        }
        for variable in &variables {
            add(&["-e", variable]);
        }
        add(&["-c", &owner]);
        for word in &component.command {
            add(&[word]);
        }
        let window = self.window(&component.name);
        add(&[
            ";",
            "set-option",
            "-w",
            "-t",
            &window,
            "remain-on-exit",
            "on",
        ]);
        add(&[
            ";",
            "set-option",
            "-w",
            "-t",
            &window,
            "automatic-rename",
            "off",
        ]);
        add(&[
            ";",
            "set-option",
            "-w",
            "-t",
            &window,
            "allow-rename",
            "off",
        ]);
        add(&[
            ";",
            "set-option",
            "-t",
            &self.target(),
            OWNER_OPTION,
            &owner,
        ]);
        ok(tmux(&words)?, "start a window")
    }

    fn has_window(&self, component: &str) -> Result<bool> {
        let listed = tmux(["list-windows", "-t", &self.target(), "-F", "#{window_name}"])?;
        Ok(String::from_utf8_lossy(&listed.stdout)
            .lines()
            .any(|name| name == component))
    }

    /// Whether the component of a window has ended.
    pub(crate) fn has_ended(&self, component: &str) -> bool {
        let window = self.window(component);
        tmux(["list-panes", "-t", &window, "-F", "#{pane_dead}"])
            .is_ok_and(|shown| !shown.status.success() || shown.stdout.starts_with(b"1"))
    }

    /// The last lines that a component showed.
    pub(crate) fn last_lines(&self, component: &str) -> String {
        let window = self.window(component);
        // With the history: "Pane is dead" scrolls a line out of sight.
        tmux(["capture-pane", "-p", "-J", "-S", "-", "-t", &window])
            .map(|shown| String::from_utf8_lossy(&shown.stdout).into_owned())
            .unwrap_or_default()
    }

    /// Closes the windows of components. Other windows of the session stay, and it with them.
    pub(crate) fn close(&self, components: &[String]) -> Result<()> {
        for component in components {
            if self.exists()? && self.has_window(component)? {
                ok(
                    tmux(["kill-window", "-t", &self.window(component)])?,
                    "close a window",
                )?;
            }
        }
        Ok(())
    }
}

fn tmux(words: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>) -> Result<Output> {
    Command::new("tmux")
        .args(words)
        .output()
        .context("cannot run tmux; use --no-tmux")
}

fn ok(output: Output, what: &str) -> Result<()> {
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("tmux cannot {what}: {}; use --no-tmux", why.trim());
    }
    Ok(())
}
