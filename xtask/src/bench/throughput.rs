//! Tasks per second of others, each running `bash -c true` (xargs: `sh -c true`), two at once, from
//! the first submission to the last end.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::peers::Peers;
use super::programs::output;
use crate::workspace;

/// Tasks of one at once.
pub(super) const AT_ONCE: &str = "2";
/// pueue starts tasks in ticks of 300 ms, so ten thousand would take half an hour.
const PUEUE_TASKS: u64 = 60;
const HUEY_TASKS: &str = include_str!("../../../bench/peers/huey_tasks.py");
/// How long a peer's server may take to be there.
const START_MOST: Duration = Duration::from_secs(20);

/// Runs the tasks with its files in a directory.
type TasksPerSecond = Box<dyn Fn(&Path) -> Result<f64>>;

/// One of the others.
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) tasks_per_second: TasksPerSecond,
}

/// Those that are there, each for so many tasks.
pub(super) fn all(peers: &Peers, tasks: u64) -> Vec<Peer> {
    let mut all = Vec::new();
    let mut add = |name: &str, run: TasksPerSecond| {
        all.push(Peer {
            name: name.to_owned(),
            tasks_per_second: run,
        });
    };
    if let Some(tsp) = peers.task_spooler.clone() {
        add(
            "task-spooler",
            Box::new(move |dir| task_spooler(&tsp, dir, tasks)),
        );
    }
    if let Some(parallel) = peers.parallel.clone() {
        let run = move |dir: &Path| {
            let mut command = Command::new(&parallel);
            command
                .args(["--will-cite", "-j", AT_ONCE, "true"])
                .env("PARALLEL_SHELL", "/bin/bash")
                .env("PARALLEL_HOME", dir);
            of_numbers(&mut command, dir, tasks)
        };
        add("GNU parallel", Box::new(run));
    }
    if let Some(venv) = peers.huey.clone() {
        for storage in ["sqlite", "file"] {
            let venv = venv.clone();
            let run = move |dir: &Path| huey(&venv, storage, dir, tasks);
            add(&format!("huey, {storage}"), Box::new(run));
        }
        if let Some(redis) = peers.redis.clone() {
            let run = move |dir: &Path| with_redis(&redis, &venv, dir, tasks);
            add("huey, redis", Box::new(run));
        }
    }
    if let Some(bin) = peers.pueue.clone() {
        let run = move |dir: &Path| pueue(&bin, dir, tasks.min(PUEUE_TASKS));
        add(
            &format!("pueue, {} tasks", tasks.min(PUEUE_TASKS)),
            Box::new(run),
        );
    }
    all
}

/// `xargs`, which has no queue at all, with `sh -c true`.
pub(super) fn xargs(dir: &Path, tasks: u64) -> Result<f64> {
    let mut command = Command::new("xargs");
    command.args(["-P", AT_ONCE, "-n", "1", "sh", "-c", "true"]);
    of_numbers(&mut command, dir, tasks)
}

/// A program that reads its tasks' arguments from its input.
fn of_numbers(command: &mut Command, dir: &Path, tasks: u64) -> Result<f64> {
    let list = dir.join("numbers");
    let mut text = Vec::new();
    for number in 0..tasks {
        writeln!(text, "{number}")?;
    }
    fs::write(&list, text).with_context(|| format!("cannot write {}", list.display()))?;
    command.stdin(File::open(&list)?).stdout(Stdio::null());
    rate(tasks, || workspace::checked(command))
}

fn task_spooler(tsp: &Path, dir: &Path, tasks: u64) -> Result<f64> {
    let spooler = Spooler::start(tsp, dir)?;
    rate(tasks, || {
        for _ in 0..tasks {
            spooler.add(&["bash", "-c", "true"])?;
        }
        // All of them, not the last alone: two run at once.
        loop {
            let waits = spooler.tell(&["-w"]);
            let counts = spooler.tell(&["-l"])?;
            if !counts.contains("queued") && !counts.contains("running") {
                return Ok(());
            }
            waits?;
        }
    })
}

/// A task-spooler of its own, which ends with the value.
pub(super) struct Spooler {
    program: PathBuf,
    dir: PathBuf,
}

impl Spooler {
    pub(super) fn start(tsp: &Path, dir: &Path) -> Result<Spooler> {
        let spooler = Spooler {
            program: tsp.to_owned(),
            dir: dir.to_owned(),
        };
        spooler.tell(&["-S", AT_ONCE])?;
        Ok(spooler)
    }

    /// Submits a command, whose output is not kept.
    fn add(&self, words: &[&str]) -> Result<()> {
        let mut command = self.command();
        workspace::checked(command.arg("-n").args(words).stdout(Stdio::null()))
    }

    fn tell(&self, words: &[&str]) -> Result<String> {
        output(self.command().args(words))
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // With few jobs that are over to list, it looks through a shorter list at each step.
        command
            .env("TS_SOCKET", self.dir.join("spooler"))
            .env("TS_MAXFINISHED", "10")
            .env("TMPDIR", &self.dir);
        command
    }
}

impl Drop for Spooler {
    fn drop(&mut self) {
        if let Err(error) = self.tell(&["-K"]) {
            eprintln!("xtask: task-spooler may still run: {error:#}");
        }
    }
}

/// What huey_tasks.py prints.
#[derive(Deserialize)]
struct HueyRun {
    seconds: f64,
}

fn huey(venv: &Path, storage: &str, dir: &Path, tasks: u64) -> Result<f64> {
    let dir = dir.join(format!("huey-{storage}"));
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    fs::write(dir.join("huey_tasks.py"), HUEY_TASKS).context("cannot write huey_tasks.py")?;
    let python = venv.join("bin/python");
    let prepared = |command: &mut Command| {
        command
            .current_dir(&dir)
            .env("HUEY_STORAGE", storage)
            .env("HUEY_REDIS_SOCKET", "../redis.socket")
            .stdin(Stdio::null());
    };
    let mut consumer = Command::new(&python);
    consumer
        .arg(venv.join("bin/huey_consumer"))
        .args(["huey_tasks.huey", "-w", AT_ONCE, "-k", "process"])
        // It looks for tasks this often at the least and the most, seconds, and runs none by the clock.
        .args(["-d", "0.001", "-m", "0.01", "-n"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    prepared(&mut consumer);
    let _consumer = Ended(consumer.spawn().context("cannot start huey's consumer")?);
    let mut client = Command::new(&python);
    client.args(["huey_tasks.py", &tasks.to_string()]);
    prepared(&mut client);
    let run: HueyRun = serde_json::from_str(&output(&mut client)?).context("huey_tasks.py")?;
    Ok(tasks as f64 / run.seconds)
}

fn with_redis(redis: &Path, venv: &Path, dir: &Path, tasks: u64) -> Result<f64> {
    let socket = dir.join("redis.socket");
    let server = Command::new(redis)
        .arg0("redis-server")
        .args(["--port", "0", "--save", "", "--appendonly", "no"])
        .arg("--unixsocket")
        .arg(&socket)
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    let _server = Ended(server.context("cannot start redis-server")?);
    wait_for(&socket)?;
    let rate = huey(venv, "redis", dir, tasks);
    let _ = fs::remove_file(&socket);
    rate
}

fn pueue(bin: &Path, dir: &Path, tasks: u64) -> Result<f64> {
    let daemon = Pueue::start(bin, dir)?;
    rate(tasks, || {
        for _ in 0..tasks {
            daemon.tell(&["add", "--", "true"])?;
        }
        daemon.tell(&["wait", "--quiet"]).map(drop)
    })
}

/// A pueue of its own, which ends with the value.
pub(super) struct Pueue {
    bin: PathBuf,
    config: PathBuf,
    _daemon: Ended,
}

impl Pueue {
    pub(super) fn start(bin: &Path, dir: &Path) -> Result<Pueue> {
        let dir = dir.join("pueue");
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let shown = dir.display();
        let config = dir.join("pueue.yml");
        let text = format!(
            "shared:\n  pueue_directory: {shown}\n  runtime_directory: {shown}\n  use_unix_socket: true\n\
             \x20 unix_socket_path: {shown}/socket\nclient: {{}}\n\
             daemon:\n  shell_command: [\"bash\", \"-c\", \"{{{{ pueue_command_string }}}}\"]\n"
        );
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let daemon = Command::new(bin.join("pueued"))
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let pueue = Pueue {
            bin: bin.to_owned(),
            config,
            _daemon: Ended(daemon.context("cannot start pueued")?),
        };
        wait_for(&dir.join("socket"))?;
        pueue.tell(&["parallel", AT_ONCE])?;
        Ok(pueue)
    }

    fn tell(&self, words: &[&str]) -> Result<String> {
        output(self.command().args(words))
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(self.bin.join("pueue"));
        command.arg("-c").arg(&self.config);
        command
    }
}

/// A server that is asked to end when the benchmark lets go of it.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        use rustix::process::{Pid, Signal, kill_process};
        // It was not reaped, so its pid is still its own.
        if let Some(pid) = Pid::from_raw(self.0.id() as i32) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + START_MOST;
        while matches!(self.0.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.0.kill();
                let _ = self.0.wait();
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn wait_for(socket: &Path) -> Result<()> {
    let deadline = Instant::now() + START_MOST;
    while !socket.exists() {
        if Instant::now() > deadline {
            bail!(
                "{} was not there after {}s",
                socket.display(),
                START_MOST.as_secs()
            );
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn rate(tasks: u64, run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    run()?;
    Ok(tasks as f64 / started.elapsed().as_secs_f64())
}
