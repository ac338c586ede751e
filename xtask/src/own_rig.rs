//! A rig of our own, for `demo` and `gpu-smoke`: its folder, its programs as children of this
//! process, and their end.

mod remains;
pub(crate) mod state;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use crate::{launch, workspace};
use state::Status;

/// How long a program may take to finish what it does, and then again to stop at once.
const STOP_MOST: Duration = Duration::from_secs(15);
/// After SIGKILL.
const KILL_MOST: Duration = Duration::from_secs(5);
/// Lines of each log that are shown when something failed.
const TAIL_LINES: usize = 12;

/// A rig whose programs end with it.
pub(crate) struct OwnRig {
    rig: PathBuf,
    rigor: PathBuf,
    running: Vec<Program>,
}

struct Program {
    name: String,
    child: Child,
}

impl OwnRig {
    pub(crate) fn new(rig: &Path) -> Result<OwnRig> {
        Ok(OwnRig {
            rig: rig.to_owned(),
            rigor: workspace::program("rigor")?,
            running: Vec::new(),
        })
    }

    /// Stops what runs of an earlier run and removes its rig.
    pub(crate) fn clear(&self) -> Result<()> {
        let meta = match fs::symlink_metadata(&self.rig) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            meta => meta.with_context(|| format!("cannot look at {}", self.rig.display()))?,
        };
        if !meta.is_dir() {
            bail!("{} is no folder; remove it by hand", self.rig.display());
        }
        if self.rig.join("rig.toml").exists() {
            // Somebody may have started it by hand.
            let down = self.rigor(&["down".as_ref(), "--grace".as_ref(), "5s".as_ref()]);
            if let Err(error) = down {
                eprintln!("xtask: the rig of the last run: {error:#}");
            }
        }
        if let (left, false) = remains::kill(&self.rig) {
            bail!(
                "processes of the last run cannot be killed: {}",
                listed(&left)
            );
        }
        fs::remove_dir_all(&self.rig)
            .with_context(|| format!("cannot remove the last run's rig {}", self.rig.display()))
    }

    /// Runs `rigor` on the rig to its end and returns what it printed.
    pub(crate) fn rigor(&self, words: &[&OsStr]) -> Result<String> {
        let output = Command::new(&self.rigor)
            .arg("--rig")
            .arg(&self.rig)
            .args(words)
            .current_dir(self.rig.parent().unwrap_or(&self.rig))
            .env(remains::MARK, &self.rig)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {}", self.rigor.display()))?;
        if !output.status.success() {
            bail!(
                "rigor {}: {}\n{}{}",
                words
                    .first()
                    .map(|word| word.to_string_lossy())
                    .unwrap_or_default(),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub(crate) fn status(&self) -> Result<Status> {
        let text = self.rigor(&["status".as_ref(), "--json".as_ref()])?;
        serde_json::from_str(&text).context("`rigor status --json` printed something unknown")
    }

    /// Starts a program of the rig: its name and its words before `--rig`.
    pub(crate) fn start(&mut self, name: &str, words: &[&str]) -> Result<()> {
        let (program, words) = words.split_first().context("no program is named")?;
        let mut line: Vec<OsString> = vec![workspace::program(program)?.into()];
        line.extend(words.iter().map(Into::into));
        line.extend(["--rig".into(), self.rig.clone().into()]);
        let path = self.output_path(name);
        if let Some(logs) = path.parent() {
            fs::create_dir_all(logs).with_context(|| format!("cannot make {}", logs.display()))?;
        }
        let output =
            File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let child = launch::tied(line)
            .current_dir(&self.rig)
            .env(remains::MARK, &self.rig)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot share the output file")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        self.running.push(Program {
            name: name.to_owned(),
            child,
        });
        Ok(())
    }

    /// Kills a program as a crash would, and waits for its end; what it started lives on.
    pub(crate) fn crash(&mut self, name: &str) -> Result<()> {
        let at = self
            .running
            .iter()
            .position(|program| program.name == name)
            .with_context(|| format!("{name} does not run"))?;
        let mut program = self.running.remove(at);
        program
            .child
            .kill()
            .with_context(|| format!("cannot kill {name}"))?;
        program
            .child
            .wait()
            .with_context(|| format!("cannot wait for {name}"))?;
        Ok(())
    }

    /// Asks one program to end, and waits.
    pub(crate) fn stop_one(&mut self, name: &str) -> Result<()> {
        let (mut one, others) = self
            .running
            .drain(..)
            .partition(|program| program.name == name);
        self.running = others;
        match stop_all(&mut one).is_empty() {
            true => Ok(()),
            false => bail!("{name} did not stop and was killed"),
        }
    }

    /// Fails where a program has ended by itself.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        for program in &mut self.running {
            let status = program
                .child
                .try_wait()
                .context("cannot look at a child process")?;
            if let Some(status) = status {
                bail!("{} has ended by itself: {status}", program.name);
            }
        }
        Ok(())
    }

    /// Stops the agents, then the brain, and makes sure that nothing is left. What had to be
    /// killed is an error.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let (mut brain, mut agents): (Vec<Program>, Vec<Program>) = self
            .running
            .drain(..)
            .partition(|program| program.name == "brain");
        let mut killed = stop_all(&mut agents);
        killed.extend(stop_all(&mut brain));
        let (left, all_gone) = remains::kill(&self.rig);
        if !all_gone {
            bail!("these run and cannot be killed: {}", listed(&left));
        }
        if !left.is_empty() {
            bail!("these were left running and were killed: {}", listed(&left));
        }
        if !killed.is_empty() {
            bail!("these did not stop and were killed: {}", killed.join(", "));
        }
        Ok(())
    }

    /// The ends of what the programs wrote.
    pub(crate) fn print_log_tails(&self) {
        let Ok(entries) = fs::read_dir(self.rig.join("logs")) else {
            return;
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        // What a program said to its standard error has its log lines too.
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "out"));
        paths.sort();
        for path in paths {
            let text = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            if !lines.is_empty() {
                println!("--- the end of {}", path.display());
                for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
                    println!("{line}");
                }
            }
        }
    }

    fn output_path(&self, name: &str) -> PathBuf {
        self.rig.join("logs").join(format!("{name}.out"))
    }
}

/// A panic must leave nothing running either.
impl Drop for OwnRig {
    fn drop(&mut self) {
        for program in &mut self.running {
            // What has ended already is as it should be.
            let _ = program.child.kill();
            let _ = program.child.wait();
        }
        if !self.running.is_empty() {
            remains::kill(&self.rig);
        }
    }
}

/// The first of `count` ports in a row that nobody listens on.
pub(crate) fn free_ports(count: u16) -> Result<u16> {
    let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (11_435..30_000)
        .step_by(usize::from(count))
        .find(|first| (*first..first + count).all(is_free))
        .context("no free ports on 127.0.0.1")
}

/// Asks, insists, kills. Returns the names of those that were killed.
fn stop_all(programs: &mut Vec<Program>) -> Vec<String> {
    // The first lets them finish what they do, the second does not.
    for _ in 0..2 {
        forget_ended(programs);
        for program in programs.iter() {
            // It was not waited for, so its number is still its own.
            let _ = rustix::process::kill_process(Pid::from_child(&program.child), Signal::TERM);
        }
        wait(programs, STOP_MOST);
    }
    let killed: Vec<String> = programs
        .iter()
        .map(|program| program.name.clone())
        .collect();
    for program in programs.iter_mut() {
        let _ = program.child.kill();
    }
    wait(programs, KILL_MOST);
    killed
}

/// Waits for the ends of children; those that have ended leave the list.
fn wait(programs: &mut Vec<Program>, most: Duration) {
    let deadline = Instant::now() + most;
    forget_ended(programs);
    while !programs.is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
        forget_ended(programs);
    }
}

fn forget_ended(programs: &mut Vec<Program>) {
    programs.retain_mut(|program| matches!(program.child.try_wait(), Ok(None)));
}

fn listed(remains: &[remains::Remain]) -> String {
    let lines: Vec<String> = remains.iter().map(ToString::to_string).collect();
    lines.join(", ")
}
