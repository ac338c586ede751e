//! Starting a worker with its lease.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rigor_queue::claim::Held;
use rigor_queue::name::FileName;
use rigor_queue::record::FailureKind;
use rigor_queue::rig::Rig;
use rigor_queue::task::{TaskSpec, Work};
use rustix::process::{Pid, Signal, kill_process};

use crate::containment::Containment;
use crate::error::ExecError;
use crate::limits::Limits;
use crate::oom;
use crate::worker_args::WorkerArgs;

/// The environment variable that every process of an attempt inherits: `<rig_id>:<id>.aN`.
pub const COOKIE_VARIABLE: &str = "RIGOR_COOKIE";

/// The kernel's limit for one environment entry is 32 pages (MAX_ARG_STRLEN); an item over it
/// cannot be handed over that way, bytes.
const ITEM_MAX_BYTES: usize = 120 * 1024;

/// What a worker needs.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The rig.
    pub rig: &'a Rig,
    /// In whose `processing/` the task lies.
    pub agent: &'a str,
    /// The claimed task.
    pub held: Held,
    /// Variables of the agent: `CUDA_VISIBLE_DEVICES`, `RIGOR_LLM_URL`, secrets, ... The `RIGOR_*`
    /// that every task gets are added.
    pub env: Vec<(String, String)>,
    /// How its processes are contained.
    pub containment: &'a Containment,
    /// The worker's program; see [`find_worker`].
    pub worker: &'a Path,
    /// How much of the task's output is kept, bytes.
    pub output_cap_bytes: u64,
    /// From SIGTERM to SIGKILL, for its command.
    pub grace: Duration,
    /// What its command may use.
    pub limits: Limits,
}

/// A worker that was started. Dropping it neither ends nor reaps the worker.
#[derive(Debug)]
pub struct Running {
    /// The task file, in `processing/`.
    pub name: FileName,
    /// What it says.
    pub spec: Box<TaskSpec>,
    /// Drawn for this claim; the record must have the same.
    pub nonce: String,
    /// When the worker was started.
    pub started: Instant,
    pub(crate) started_at: jiff::Timestamp,
    pub(crate) oom_kills_before: Option<u64>,
    pub(crate) ended_because: OnceLock<String>,
    pub(crate) ended_as: OnceLock<FailureKind>,
    child: Child,
    exited: Option<ExitStatus>,
}

/// Starts a worker and hands it the lease. Without a fork in this process's image (no `pre_exec`),
/// so it is safe with threads. If it fails the lease is free and the file lies in `processing/`.
pub fn spawn(launch: Launch<'_>) -> Result<Running, ExecError> {
    let (name, spec, lease) = launch.held.into_parts();
    let nonce = draw_nonce();
    let containment = launch.containment;
    // Who runs no command runs nothing that would have to be limited.
    let command = matches!(spec.work, Work::Command { .. });
    let limits = command.then_some(&launch.limits);
    let groups = match containment.enter(spec.id, name.attempt, limits) {
        Ok(groups) => groups,
        Err(error) => {
            // Nothing runs in what was made of them; what cannot be removed is litter, not a failure.
            let _ = containment.leave(spec.id, name.attempt, launch.grace);
            let source = io::Error::other(error.to_string());
            return Err(ExecError::NotStarted {
                name,
                spec,
                worker: launch.worker.to_owned(),
                source,
            });
        }
    };
    let args = WorkerArgs {
        rig: launch.rig.root().to_owned(),
        agent: launch.agent.to_owned(),
        file: name,
        nonce: nonce.clone(),
        output_cap_bytes: launch.output_cap_bytes,
        grace: launch.grace,
        groups,
        file_size_bytes: launch.limits.file_size_bytes,
    };
    let oom_kills_before = oom::kills();
    let mut command = Command::new(launch.worker);
    command
        .args(args.to_args())
        .envs(launch.env)
        .envs(task_environment(launch.agent, &name, &spec))
        .env(COOKIE_VARIABLE, containment.cookie(spec.id, name.attempt))
        .stdin(lease.into_stdio())
        .stdout(Stdio::null())
        .stderr(log_of(launch.rig, launch.agent));
    let spawned = command.spawn();
    // The command holds this process's copy of the lease.
    drop(command);
    match spawned {
        Ok(child) => Ok(Running {
            name,
            spec,
            nonce,
            started: Instant::now(),
            started_at: jiff::Timestamp::now(),
            oom_kills_before,
            ended_because: OnceLock::new(),
            ended_as: OnceLock::new(),
            child,
            exited: None,
        }),
        Err(source) => {
            // Nothing runs in it; one that cannot be removed is litter, not a failure.
            let _ = containment.leave(spec.id, name.attempt, launch.grace);
            Err(ExecError::NotStarted {
                name,
                spec,
                worker: launch.worker.to_owned(),
                source,
            })
        }
    }
}

impl Running {
    /// The worker's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the worker has exited; reaps it.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.exited.is_none() {
            self.exited = self.child.try_wait()?;
        }
        Ok(self.exited)
    }

    /// Asks the worker to end its command (SIGTERM, grace, SIGKILL), to write the record with
    /// [`FailureKind::Aborted`] and to exit. `reason`
    /// gets into the record when it is settled; the first one counts.
    pub fn terminate(&self, reason: &str) -> io::Result<()> {
        if self.exited.is_some() {
            return Ok(());
        }
        let _ = self.ended_because.set(reason.to_owned());
        // It was not reaped, so its pid is still its own.
        let pid = Pid::from_raw(self.child.id() as i32);
        let pid = pid.expect("a child's pid is positive");
        Ok(kill_process(pid, Signal::TERM)?)
    }

    /// What an attempt that is then terminated or killed failed of, in its record. Where nothing is
    /// said it is [`FailureKind::Aborted`]; the first one counts.
    pub fn end_as(&self, kind: FailureKind) {
        let _ = self.ended_as.set(kind);
    }

    /// Kills the worker and its whole tree at once. `reason` gets into the record when it is
    /// settled, unless there was one already.
    pub fn kill(
        &self,
        containment: &Containment,
        grace: Duration,
        reason: &str,
    ) -> Result<usize, ExecError> {
        let _ = self.ended_because.set(reason.to_owned());
        containment.kill_attempt(self.spec.id, self.name.attempt, grace)
    }
}

/// The worker's program: beside the running program, else on PATH.
pub fn find_worker() -> Result<PathBuf, ExecError> {
    let me = std::env::current_exe().map_err(ExecError::io("find", "/proc/self/exe"))?;
    let beside = me.parent().unwrap_or(Path::new("/")).to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(beside.clone())
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join("worker"))
        .find(|file| {
            rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file()
        })
        .ok_or(ExecError::NoWorker { beside })
}

/// What every task finds in its environment.
fn task_environment(agent: &str, name: &FileName, spec: &TaskSpec) -> Vec<(&'static str, String)> {
    let mut env = vec![
        ("RIGOR_TASK_ID", spec.id.to_string()),
        ("RIGOR_ATTEMPT", name.attempt.to_string()),
        ("RIGOR_BATCH_ID", spec.batch.clone()),
        (
            "RIGOR_BATCH_DIR",
            spec.batch_dir.to_string_lossy().into_owned(),
        ),
        (
            "RIGOR_PLAN_DIR",
            spec.plan_dir.to_string_lossy().into_owned(),
        ),
        ("RIGOR_AGENT", agent.to_owned()),
    ];
    if let Some(item) = &spec.item {
        let json = item.value.to_string();
        // A longer one would fail the start; `{ITEMS_FILE}` is the way for those.
        if json.len() <= ITEM_MAX_BYTES {
            env.push(("RIGOR_ITEM", json));
        }
    }
    env
}

/// A worker's own lines go to its agent's log; where that cannot be opened, nowhere.
fn log_of(rig: &Rig, agent: &str) -> Stdio {
    let path = rig.logs_dir().join(format!("{agent}.log"));
    match File::options().append(true).create(true).open(path) {
        Ok(file) => file.into(),
        Err(_) => Stdio::null(),
    }
}

fn draw_nonce() -> String {
    let mut bytes = [0_u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .expect("8 bytes of randomness come at once after the machine's start");
    format!("{:016x}", u64::from_le_bytes(bytes))
}
