//! The programs of a rig: which there are, who they are, and how they are told to stop.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rigor_config::Config;
use rigor_queue::presence::{self, Holder, Role};
use rigor_queue::rig::{BRAIN, Rig};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

/// How long a component may take to take its lock.
const START_MOST: Duration = Duration::from_secs(20);
/// Between two looks at a lock.
const POLL: Duration = Duration::from_millis(50);

/// One program of the rig.
#[derive(Clone, Debug)]
pub(crate) struct Component {
    /// `brain`, or the agent's name.
    pub(crate) name: String,
    /// The program and its arguments.
    pub(crate) command: Vec<String>,
}

/// How `rigor up` started them: what `rigor down` has to tidy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct UpRecord {
    /// 1.
    pub(crate) schema: u32,
    /// Where they run.
    pub(crate) how: How,
    /// The components that were started.
    pub(crate) components: Vec<String>,
    /// When.
    pub(crate) at: jiff::Timestamp,
}

/// Where components run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub(crate) enum How {
    /// Each in a window of a tmux session.
    Tmux {
        /// The session.
        session: String,
    },
    /// Each in a session of its own, without a terminal.
    Background,
    /// As systemd user units.
    Systemd,
}

impl UpRecord {
    fn path(rig: &Rig) -> PathBuf {
        run_dir(rig).join("up.json")
    }

    /// The last `up`; none where there was none, or `down` has undone it.
    pub(crate) fn read(rig: &Rig) -> Result<Option<UpRecord>> {
        let path = UpRecord::path(rig);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).with_context(|| {
                format!("{} cannot be understood; remove it", path.display())
            })?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    pub(crate) fn write(&self, rig: &Rig) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        Ok(rigor_queue::submit::replace_file(
            &UpRecord::path(rig),
            &text,
            true,
        )?)
    }

    pub(crate) fn forget(rig: &Rig) -> Result<()> {
        match fs::remove_file(UpRecord::path(rig)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("cannot remove RIG/run/up.json")
            }
            _ => Ok(()),
        }
    }
}

/// `RIG/run/`, where `up` keeps what it must remember.
pub(crate) fn run_dir(rig: &Rig) -> PathBuf {
    rig.root().join("run")
}

/// Held while `up` or `down` works, so that two of them do not start everything twice.
pub(crate) fn exclusive(rig: &Rig) -> Result<fs::File> {
    let dir = run_dir(rig);
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let path = dir.join("lock");
    let file =
        fs::File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(_) => bail!("another `rigor up` or `rigor down` of this rig is at work; wait for it"),
    }
}

/// Every component that rig.toml asks for, the brain first.
pub(crate) fn wanted(rig: &Rig, config: &Config) -> Result<Vec<Component>> {
    let at = rig.root().display().to_string();
    let brain = program("brain")?.display().to_string();
    let agent = program("gpu-agent")?.display().to_string();
    let mut components = vec![Component {
        name: BRAIN.to_owned(),
        command: vec![brain, "--rig".into(), at.clone()],
    }];
    components.extend(config.gpus.iter().map(|gpu| Component {
        name: gpu.name.clone(),
        command: vec![agent.clone(), gpu.name.clone(), "--rig".into(), at.clone()],
    }));
    components.extend(config.cpu_agents.iter().map(|one| Component {
        name: one.name.clone(),
        command: vec![
            agent.clone(),
            one.name.clone(),
            "--cpu-only".into(),
            "--rig".into(),
            at.clone(),
        ],
    }));
    Ok(components)
}

/// A program of Rigor's: beside this one, else on PATH.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where rigor itself lies")?;
    let beside = own.with_file_name(name);
    if beside.is_file() {
        return Ok(beside);
    }
    on_path(name).with_context(|| {
        format!(
            "{name} is neither beside {} nor on PATH; install all of Rigor's programs together",
            own.display()
        )
    })
}

/// A program on PATH.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runs = |path: &Path| {
        path.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|path| runs(path))
}

/// A living component that was identified: signals through this reach it and nobody else.
#[derive(Debug)]
pub(crate) struct Living {
    pub(crate) name: String,
    pub(crate) pid: u32,
    pidfd: OwnedFd,
}

/// The living component of that name; none where it does not run. The process is believed to be
/// it only if it has the component's lock file open: a pid in a file can be anybody's by now.
pub(crate) fn living(rig: &Rig, name: &str) -> Result<Option<Living>> {
    if presence::is_held(rig, name)? != Some(true) {
        return Ok(None);
    }
    let lock = rig.agent_dir(name).join("lock");
    let text = fs::read(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let Ok(Holder {
        pid,
        role: Role::Running,
    }) = serde_json::from_slice(&text)
    else {
        // The brain has it, or its holder has not written its name yet.
        return Ok(None);
    };
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    // First the handle, then the check: from here on the pid cannot come to mean another.
    let Ok(pidfd) = rustix::process::pidfd_open(raw, PidfdFlags::empty()) else {
        return Ok(None);
    };
    let has_lock = fs::read_dir(format!("/proc/{pid}/fd"))
        .map(|entries| {
            entries
                .flatten()
                .any(|entry| fs::read_link(entry.path()).is_ok_and(|to| to == lock))
        })
        .unwrap_or(false);
    Ok(has_lock.then(|| Living {
        name: name.to_owned(),
        pid,
        pidfd,
    }))
}

impl Living {
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno)
                .with_context(|| format!("cannot signal {} (pid {})", self.name, self.pid)),
        }
    }

    /// Waits until it has ended. `false`: not by then.
    pub(crate) fn wait_until(&self, deadline: Instant) -> Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno).context("cannot wait for a process"),
            }
        }
    }
}

/// Waits until a component that was just started holds its lock. `false`: it does not.
/// `has_ended` says whether its process is known to be gone.
pub(crate) fn wait_for_start(
    rig: &Rig,
    name: &str,
    mut has_ended: impl FnMut() -> bool,
) -> Result<bool> {
    let deadline = Instant::now() + START_MOST;
    loop {
        if living(rig, name)?.is_some() {
            return Ok(true);
        }
        if has_ended() || Instant::now() >= deadline {
            // It may have come and gone, or come just now.
            return Ok(living(rig, name)?.is_some());
        }
        std::thread::sleep(POLL);
    }
}
