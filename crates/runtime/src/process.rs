//! A runtime's process: prepared, started, recorded, stopped, reaped.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{LoadCause, ReapError, UnloadError};
use crate::handle::Handle;
use crate::host::HostOptions;
use crate::manifest::{Manifest, ManifestError, Proven};
use crate::spec::{Asked, ModelSpec};
use crate::tree::{COOKIE_VARIABLE, Leader, Tree};
use crate::vram::{self, Return};
use crate::{cause, tree};

/// Logs of earlier loads that are kept for reading.
const LOGS_KEPT: usize = 20;
/// A killed process may need the driver to free its memory before it can be waited for.
const REAP_PATIENCE: Duration = Duration::from_secs(20);

/// A started process and what it takes to be rid of it.
pub(crate) struct Running {
    pub(crate) process: Handle,
    /// How to ask it for its model.
    pub(crate) asked: Asked,
    pub(crate) tree: Tree,
    pub(crate) manifest: Manifest,
    pub(crate) began: Instant,
    /// UUIDs of the GPUs that it may use; none: it runs on the CPU.
    pub(crate) gpus: Vec<String>,
    pub(crate) vram_before_mb: Option<u64>,
    pub(crate) vram_delta_mb: Option<i64>,
    /// Nothing of it is left.
    gone: bool,
}

impl Running {
    /// One that an earlier agent started.
    pub(crate) fn adopted(
        process: Handle,
        manifest: Manifest,
        asked: Asked,
        gpus: Vec<String>,
        vram_before_mb: Option<u64>,
        vram_delta_mb: Option<i64>,
    ) -> Running {
        Running {
            process,
            asked,
            tree: manifest.tree(),
            manifest,
            began: Instant::now(),
            gpus,
            vram_before_mb,
            vram_delta_mb,
            gone: false,
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.tree.leader.map_or(0, |leader| leader.pid)
    }
}

/// Whoever drops it without having stopped it (an agent whose async runtime ends) gets no second
/// chance, so this does not wait.
impl Drop for Running {
    fn drop(&mut self) {
        if !self.gone {
            self.tree.kill_once();
        }
    }
}

/// What a start needs.
pub(crate) struct Prepared {
    /// Processes were killed for it, whose memory may not be back yet.
    pub(crate) has_reaped: bool,
    manifest: Manifest,
    log: File,
}

/// Removes what an earlier agent left, tests the port, makes the log and the manifest.
pub(crate) async fn prepare(
    options: &HostOptions,
    spec: &ModelSpec,
) -> Result<Prepared, LoadCause> {
    let options = options.clone();
    let spec = spec.clone();
    blocking(move || {
        let reaped = reap_now(&options.manifest_path)
            .map_err(|error| LoadCause::Leftover(Box::new(error)))?;
        let port = options.port;
        if TcpListener::bind((options.host.as_str(), port)).is_err() {
            return Err(LoadCause::PortTaken {
                port,
                holder: tree::listener(port),
            });
        }
        let io = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| LoadCause::Io {
                operation,
                path,
                source,
            }
        };
        fs::create_dir_all(&options.log_dir).map_err(io("create", &options.log_dir))?;
        remove_oldest_logs(&options.log_dir);
        let path = options.log_dir.join(log_name(&spec.id));
        let log = File::options()
            .append(true)
            .create(true)
            .open(&path)
            .map_err(io("create", &path))?;
        let digest = spec.digest(&options.host, port, options.gpu_uuid.as_deref());
        let (rig_id, agent) = (&options.rig_id, &options.agent);
        let manifest = Manifest::new(rig_id, agent, &spec.id, port, path, digest)
            .map_err(io("read", Path::new("/proc/sys/kernel/random")))?;
        // Without a process yet: if this agent is killed right after the start, the nonce leads to it.
        manifest.write(&options.manifest_path)?;
        Ok(Prepared {
            has_reaped: reaped.is_some_and(|(_, killed)| killed > 0),
            manifest,
            log,
        })
    })
    .await
}

/// Starts the process in a session of its own, with its output in the log.
pub(crate) fn start(
    options: &HostOptions,
    spec: &ModelSpec,
    prepared: Prepared,
    vram_before_mb: Option<u64>,
) -> Result<Running, LoadCause> {
    let Prepared { manifest, log, .. } = prepared;
    let on_gpu = options.gpu_uuid.is_some();
    let line = spec
        .command_line(&options.host, options.port, on_gpu)
        .map_err(LoadCause::BadSpec)?;
    let spawn_error = |source| LoadCause::Spawn {
        program: PathBuf::from(&line[0]),
        source,
    };
    let error_log = log.try_clone().map_err(spawn_error)?;
    let mut command = Command::new(&line[0]);
    command
        .args(&line[1..])
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(error_log);
    command.envs(spec.environment(&options.host, options.port));
    command.envs(spec.env.iter().map(|(name, value)| (name, value)));
    let gpus = spec.gpus(options.gpu_uuid.as_deref());
    command.envs(spec.visible(&gpus));
    command.env(COOKIE_VARIABLE, &manifest.nonce);
    // SAFETY: between fork and exec only the system call setsid is made; nothing is allocated and
    // no lock is taken.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
    let child = tokio::process::Command::from(command)
        .spawn()
        .map_err(spawn_error)?;
    // Not waited for yet, so the number is its own even if it has ended already.
    let leader = child
        .id()
        .and_then(|pid| Leader::of(i32::try_from(pid).ok()?));
    let tree = Tree {
        cookie: manifest.nonce.clone(),
        leader,
    };
    Ok(Running {
        process: Handle::Child(child),
        asked: spec.asked(),
        tree,
        manifest,
        began: Instant::now(),
        gpus,
        vram_before_mb,
        vram_delta_mb: None,
        gone: false,
    })
}

/// Completes the manifest with the process.
pub(crate) async fn record(
    options: &HostOptions,
    running: &mut Running,
) -> Result<(), ManifestError> {
    running.manifest.pid = running.tree.leader.map(|leader| leader.pid);
    running.manifest.start_ticks = running.tree.leader.map(|leader| leader.start_ticks);
    let manifest = running.manifest.clone();
    let path = options.manifest_path.clone();
    blocking(move || manifest.write(&path)).await
}

/// Writes into the manifest that it serves, so that a successor can take it over.
pub(crate) async fn record_proof(
    options: &HostOptions,
    running: &mut Running,
    load_ms: u64,
) -> Result<(), ManifestError> {
    running.manifest.proven = Some(Proven {
        at: jiff::Timestamp::now(),
        load_ms,
        gpus: running.gpus.clone(),
        vram_before_mb: running.vram_before_mb,
        vram_delta_mb: running.vram_delta_mb,
    });
    let manifest = running.manifest.clone();
    let path = options.manifest_path.clone();
    blocking(move || manifest.write(&path)).await
}

/// Removes the manifest of a process that did not start.
pub(crate) async fn forget(options: &HostOptions) {
    let path = options.manifest_path.clone();
    // One that cannot be removed leads to nothing, and the next load finds that out.
    let _ = blocking(move || Manifest::remove(&path)).await;
}

/// Stops it all and waits until VRAM is back; `true` when SIGTERM was not enough. May be called
/// again after an error.
pub(crate) async fn stop(
    options: &HostOptions,
    running: &mut Running,
) -> Result<bool, UnloadError> {
    let mut forced = false;
    let mut wanted = None;
    if let Ok(None) = running.process.try_wait() {
        if let Some(before_load) = running.vram_before_mb {
            let before_stop = vram::read(&options.vram, &running.gpus).await;
            wanted = Some(Return::from_readings(
                before_load,
                before_stop,
                running.vram_delta_mb,
            ));
        }
        // Its number is its own as long as it has not been waited for.
        running.tree.terminate();
        forced = tokio::time::timeout(options.grace, running.process.wait())
            .await
            .is_err();
    } else if running.vram_before_mb.is_some() {
        wanted = Some(Return::Settled);
    }
    let tree = running.tree.clone();
    let survivors = blocking(move || tree.kill()).await;
    if !survivors.is_empty() {
        return Err(UnloadError::Processes { pids: survivors });
    }
    if tokio::time::timeout(REAP_PATIENCE, running.process.wait())
        .await
        .is_err()
    {
        return Err(UnloadError::Processes {
            pids: vec![running.pid()],
        });
    }
    if let (false, Some(wanted)) = (running.gpus.is_empty(), wanted) {
        vram::returned(&options.vram, &running.gpus, wanted, options.vram_patience).await?;
    }
    running.gone = true;
    let path = options.manifest_path.clone();
    blocking(move || Manifest::remove(&path)).await?;
    Ok(forced)
}

/// Ends what the manifest at `path` leads to, how many processes, and removes it.
pub(crate) async fn reap(path: &Path) -> Result<Option<(Manifest, usize)>, ReapError> {
    let path = path.to_owned();
    blocking(move || reap_now(&path)).await
}

/// Who listens on `port`.
pub(crate) async fn listener(port: u16) -> Option<String> {
    blocking(move || tree::listener(port)).await
}

/// Whether a process of `tree` listens on `port`.
pub(crate) async fn listens(tree: Tree, port: u16) -> bool {
    blocking(move || tree.listens(port)).await
}

/// What the log at `path` gives as the cause of the end.
pub(crate) async fn cause_of(path: PathBuf) -> String {
    blocking(move || cause::of_log(&path)).await
}

fn reap_now(path: &Path) -> Result<Option<(Manifest, usize)>, ReapError> {
    let Some(manifest) = Manifest::read(path)? else {
        return Ok(None);
    };
    let tree = manifest.tree();
    let killed = tree.members().len();
    let survivors = tree.kill();
    if !survivors.is_empty() {
        return Err(ReapError::Processes { pids: survivors });
    }
    Manifest::remove(path)?;
    Ok(Some((manifest, killed)))
}

/// The names sort by time.
fn log_name(model: &str) -> String {
    let time = jiff::Timestamp::now()
        .strftime("%Y%m%dT%H%M%S%.3fZ")
        .to_string();
    let model: String = model
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '-'
            }
        })
        .collect();
    format!("{time}-{}.log", model.chars().take(80).collect::<String>())
}

/// Not being able to tidy up is no reason not to load.
fn remove_oldest_logs(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut logs: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|it| it == "log"))
        .collect();
    logs.sort();
    let surplus = (logs.len() + 1).saturating_sub(LOGS_KEPT);
    for path in &logs[..surplus] {
        let _ = fs::remove_file(path);
    }
}

/// File and /proc work, off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only the end of the async runtime cancels, and then nothing polls this any more.
            Err(_) => std::future::pending().await,
        },
    }
}
