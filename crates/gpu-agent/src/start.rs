//! From the arguments to a running agent, and its orderly end.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use rigor_config::{Config, Gpu};
use rigor_exec::recovery::{Recovered, RecoveryLimits, clear_leftovers, recover};
use rigor_exec::{Containment, find_worker};
use rigor_gpu::Limits;
use rigor_queue::presence::ComponentLock;
use rigor_queue::rig::{Place, Rig, is_safe_name};
use rigor_queue::submit::Durability;
use rigor_queue::watch::Watcher;
use rigor_runtime::{Found, HostOptions};
use rigor_telemetry::{Guard, Options, Scope};

use crate::Args;
use crate::activity::Signs;
use crate::agent::{Agent, Counts, Stop};
use crate::attempts::Attempts;
use crate::beat::Beat;
use crate::committer::Committer;
use crate::device::{Device, Opening};
use crate::event::Event;
use crate::lines::Lines;
use crate::llm::Llm;
use crate::measured::Measured;
use crate::queues::{CLASSES, Queues};
use crate::reasons::Journal;
use crate::sampler::{OpenGpus, Sampler, Which};
use crate::side::Side;

/// How long a restarted agent waits for a brain that takes back what it left.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(10);
/// The loopback interface: a runtime is for the tasks of this machine.
const RUNTIME_HOST: &str = "127.0.0.1";

/// What a process needs to be the agent: the rig, its configuration, and the agent's lock.
pub(crate) struct Opened {
    pub(crate) rig: Rig,
    pub(crate) config: Config,
    pub(crate) lock: ComponentLock,
    gpu: Option<Gpu>,
}

/// Opens the rig and becomes the agent of that name, or says why not. Nothing is logged yet: the
/// log belongs to whoever holds the lock.
pub(crate) fn open(args: &Args) -> anyhow::Result<Opened> {
    let rig = Rig::open(&args.rig)?;
    let config = Config::load(&args.rig)?;
    if !is_safe_name(&args.name) || rigor_config::RESERVED_AGENT_NAMES.contains(&args.name.as_str())
    {
        bail!("{:?} cannot be an agent's name", args.name);
    }
    let gpu = match (config.gpu(&args.name), config.cpu_agent(&args.name)) {
        _ if args.cpu_only => None,
        (Ok(gpu), _) => Some(gpu.clone()),
        (Err(_), Ok(_)) => None,
        (Err(_), Err(_)) => {
            let known: Vec<&str> = config.agent_names().collect();
            let near = rigor_config::nearest(&args.name, known.iter().copied());
            let near = near.map_or(String::new(), |near| format!("; the nearest is {near:?}"));
            bail!(
                "no [[gpu]] or [[cpu_agent]] in {} is named {:?}{near} (there are: {}); for an agent without a GPU add --cpu-only",
                config.path.display(),
                args.name,
                known.join(", ")
            );
        }
    };
    let lock = ComponentLock::take(&rig, &args.name, RECOVERY_PATIENCE)?;
    Ok(Opened {
        rig,
        config,
        lock,
        gpu,
    })
}

/// Sets up the agent's log.
pub(crate) fn log(args: &Args, opened: &Opened) -> anyhow::Result<Guard> {
    let options = Options {
        log_file: Some(opened.rig.logs_dir().join(format!("{}.log", args.name))),
        level_variables: &["GPU_LOG_LEVEL", "WORKER_LOG_LEVEL"],
        // Nothing here speaks as that: a level that is none is named here once, and not by each
        // worker.
        scopes: &[Scope {
            target: "rigor_executor",
            level_variables: &["EXECUTOR_LOG_LEVEL"],
        }],
        format: args.log_format,
        max_size_bytes: opened.config.log.max_size_bytes,
        keep: opened.config.log.keep,
        ..Options::new(&args.name)
    };
    Ok(rigor_telemetry::init(&options)?)
}

/// Is the agent until it is told to stop.
pub(crate) fn serve(
    name: &str,
    opened: Opened,
    counts: Arc<Counts>,
    guard: &Guard,
) -> anyhow::Result<()> {
    let mut agent = build(name, opened, counts, guard)?;
    tracing::info!("GPU agent {name} starting");
    if let Err(error) = agent.run() {
        agent.note_end(&format!("crashed: {error:#}"));
        return Err(error);
    }
    agent.end();
    Ok(())
}

fn build(name: &str, opened: Opened, counts: Arc<Counts>, guard: &Guard) -> anyhow::Result<Agent> {
    let Opened {
        rig,
        config,
        lock,
        gpu,
    } = opened;
    let durability = match config.rig.durability {
        rigor_config::Durability::Default => Durability::Default,
        rigor_config::Durability::Strict => Durability::Strict,
        rigor_config::Durability::Process => Durability::Process,
    };
    let worker = find_worker()?;
    let containment = Containment::detect(&config.rig.id);
    tracing::debug!("Attempts are contained by {}", containment.tier());
    let (sender, events) = mpsc::channel();
    let gpus = OpenGpus::default();
    let (device, opening) = match &gpu {
        None => (None, None),
        Some(gpu) => open_device(&config, gpu, &gpus, &sender, &events)?,
    };
    say_initialized(name, &config, gpu.as_ref(), device.as_ref());
    let mut quarantine = None;
    let journal = Journal::open(&rig, name);
    let why = format!("agent {name} died and was started again");
    let limits = recovery_limits(&config, durability);
    let recovered = recover(&rig, name, &lock, &containment, limits, &why)
        .with_context(|| format!("take back what an earlier {name} left"))?;
    say_recovered(&recovered);
    match clear_leftovers(&rig, &containment, limits.grace) {
        Ok(cleared) => {
            for (attempt, killed) in cleared.iter().filter(|(_, killed)| *killed > 0) {
                tracing::warn!("Killed {killed} processes that were left of attempt {attempt}");
            }
        }
        Err(error) => tracing::warn!("What is left of earlier attempts stays: {error}"),
    }
    if let Some((_, task, reason)) = recovered.unkillable.first() {
        quarantine.get_or_insert(format!("task {task}: {reason}"));
    }
    let host = gpu
        .as_ref()
        .map(|gpu| host_options(&rig, &config, gpu, gpus));
    let catalogue = gpu
        .as_ref()
        .map(|gpu| crate::model::adoptable(&config, gpu.port))
        .unwrap_or_default();
    let (side, leftover) = Side::start(host, catalogue, sender.clone())?;
    let mut adopted = None;
    match leftover {
        Ok(Found::Nothing) => {}
        Ok(Found::Adopted { loaded, started_at }) => adopted = Some((loaded, started_at)),
        Ok(Found::Reaped(reaped)) => tracing::warn!(
            "Ended the runtime of {} that an earlier {name} left ({} {}) and did not adopt it: {}",
            reaped.manifest.model,
            reaped.killed,
            if reaped.killed == 1 {
                "process"
            } else {
                "processes"
            },
            reaped.why
        ),
        Err(error) => {
            tracing::error!("{name} is quarantined: {error}");
            quarantine.get_or_insert(error.to_string());
        }
    }
    let committer = Committer::start(rig.clone(), name.to_owned(), durability, sender.clone())
        .context("start the commit thread")?;
    let signs = Signs::start(containment.clone(), sender.clone())
        .context("start the thread for signs of life")?;
    let watcher = watch(&rig, name, sender);
    let now = Instant::now();
    let mut measured = Measured::new(rig.brain_dir().join("measured.json"));
    let mut llm = Llm::new();
    if let Some(device) = &device {
        let (budget_mb, most_mb) = (device.ledger.budget_mb(), device.ledger.most_mb());
        measured.bound(budget_mb, most_mb);
        llm.measured_mb.bound(budget_mb, most_mb);
    }
    let mut agent = Agent {
        name: name.to_owned(),
        measured,
        durability,
        containment,
        worker,
        default_model: gpu.as_ref().and_then(|gpu| gpu.model.clone()),
        port: gpu.as_ref().map(|gpu| gpu.port),
        cpu_slots: config.cpu_slots(name),
        counts,
        levels: guard.levels(),
        own_level: guard.levels().get(),
        level_until: None,
        events,
        polling: watcher.is_none(),
        watcher,
        committer,
        side,
        queues: Queues::default(),
        attempts: Attempts::default(),
        device,
        opening,
        llm,
        beat: Beat::new(),
        lines: Lines::default(),
        judged: None,
        journal,
        signs,
        draining: None,
        drained: None,
        paused: None,
        quarantine,
        trouble: None,
        stop: Stop::No,
        last_work: now,
        last_work_at: Timestamp::now(),
        waiting_since: None,
        claims_sync_at: None,
        signals_changed: true,
        rescan_at: None,
        rescanned: now,
        rescan_took: Duration::ZERO,
        rig,
        config,
        lock,
    };
    agent.refresh_needs();
    if let Some((loaded, started_at)) = adopted {
        agent.adopt(loaded, started_at);
    }
    Ok(agent)
}

fn recovery_limits(config: &Config, durability: Durability) -> RecoveryLimits {
    RecoveryLimits {
        grace: config.timing.grace,
        uncharged_attempts: config.limits.uncharged_attempts,
        durability,
    }
}

/// Opens NVML and reads the GPU. An agent whose GPU cannot be read, or whose driver does not answer
/// for a while, lives and says why.
fn open_device(
    config: &Config,
    gpu: &Gpu,
    gpus: &OpenGpus,
    sender: &Sender<Event>,
    events: &Receiver<Event>,
) -> anyhow::Result<(Option<Device>, Option<Opening>)> {
    let limits = Limits {
        temperature_c: config.limits.temperature_c,
        power_w: config.limits.power_w,
        vram_share: config.vram_share(gpu),
    };
    let which = Which {
        library: config.nvml.library.clone(),
        uuid: gpu.uuid.clone(),
        rig_id: config.rig.id.clone(),
        hung_after: config.timing.gpu_hung,
    };
    let sampler = Sampler::start(which, OpenGpus::clone(gpus), sender.clone());
    let mut opening = Opening::begin(sampler, limits);
    match events.recv_timeout(config.timing.gpu_hung) {
        Ok(Event::Opened(Ok(opened))) => Ok((Some(opening.opened(&gpu.name, *opened)), None)),
        Ok(Event::Opened(Err(error))) => {
            opening.failed(&gpu.name, &error, Instant::now());
            Ok((None, Some(opening)))
        }
        Ok(event) => bail!("the thread that reads the GPU said {event:?}"),
        // Its answer comes to the agent's loop.
        Err(_) => Ok((None, Some(opening))),
    }
}

fn host_options(rig: &Rig, config: &Config, gpu: &Gpu, gpus: OpenGpus) -> HostOptions {
    HostOptions {
        rig_id: config.rig.id.clone(),
        agent: gpu.name.clone(),
        host: RUNTIME_HOST.to_owned(),
        port: gpu.port,
        gpu_uuid: Some(gpu.uuid.clone()),
        log_dir: rig.logs_dir().join(format!("{}-runtime", gpu.name)),
        manifest_path: rig.agent_dir(&gpu.name).join(rigor_runtime::MANIFEST_NAME),
        grace: config.timing.grace,
        vram_hung: config.timing.gpu_hung,
        vram_patience: rigor_runtime::VRAM_PATIENCE,
        watch_every: rigor_runtime::WATCH_EVERY,
        again_every: rigor_runtime::AGAIN_EVERY,
        vram: Some(Arc::new(move |uuids: &[String]| {
            let gpus = gpus.get()?;
            let used = uuids
                .iter()
                .map(|uuid| Some(gpus.reading(uuid).ok()?.used_mb));
            used.sum()
        })),
    }
}

/// Watches the queue and the agent's signals. Without a watcher directories are read now and then.
fn watch(rig: &Rig, name: &str, events: Sender<Event>) -> Option<Watcher> {
    let queues = CLASSES.map(|class| rig.dir(Place::Queue(class)));
    let signals = rig.signals_dir(name);
    let started = Watcher::new(move |wake| {
        // The dispatcher is gone only when the agent ends.
        let _ = events.send(Event::Wake(wake));
    })
    .and_then(|mut watcher| {
        queues
            .iter()
            .chain([&signals])
            .try_for_each(|dir| watcher.watch(dir))?;
        Ok(watcher)
    });
    match started {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!("{error}; directories are read every second instead");
            None
        }
    }
}

fn say_initialized(name: &str, config: &Config, gpu: Option<&Gpu>, device: Option<&Device>) {
    let Some(gpu) = gpu else {
        let slots = config.cpu_slots(name);
        return tracing::info!("GPU agent initialized: {name} (no GPU), {slots} CPU slots");
    };
    let which = match device {
        Some(device) if device.info.stand_in => format!("stand-in GPU {}", device.info.index),
        Some(device) => format!("GPU {}", device.info.index),
        None => "GPU unknown".to_owned(),
    };
    let model = gpu.model.as_deref().unwrap_or("none");
    tracing::info!(
        "GPU agent initialized: {name} ({which}), port {}, model {model}",
        gpu.port
    );
}

fn say_recovered(recovered: &Recovered) {
    for (name, task) in &recovered.requeued {
        tracing::warn!(task = %name.id, "Requeued {task} ({}), which an earlier agent left", name.id.short());
    }
    for (name, task) in &recovered.adopted {
        tracing::info!(task = %name.id, "Adopted the result of {task} ({})", name.id.short());
    }
    for (name, task) in &recovered.charged {
        tracing::warn!(task = %name.id, "Failed {task} ({}), which an earlier agent left", name.id.short());
    }
    for (name, task, why) in &recovered.unkillable {
        tracing::error!(task = %name.id, "Left {task} ({}) where it is: {why}", name.id.short());
    }
    for file in &recovered.quarantined {
        tracing::warn!("Quarantined {file}");
    }
    if recovered.killed > 0 {
        tracing::warn!(
            "Killed {} processes of an earlier agent's tasks",
            recovered.killed
        );
    }
}

impl Agent {
    /// The orderly end: the runtime is stopped, results are durable, what was cut short is queued.
    fn end(&mut self) {
        self.send_beat(Instant::now());
        if self.stop == Stop::AtOnce {
            self.kill_running();
        }
        self.side.shutdown();
        self.abandon_duty();
        self.committer.close();
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Finished(finished) => self.finished(finished),
                Event::CommitFailed { jobs, error } => self.commit_failed(jobs, &error),
                Event::Wake(_)
                | Event::Child
                | Event::Terminate(_)
                | Event::Opened(_)
                | Event::Reading(_)
                | Event::Activity(_)
                | Event::Loaded(_)
                | Event::Unloaded(_)
                | Event::Runtime(_)
                | Event::Gone(_) => {}
            }
        }
        if self.stop == Stop::AtOnce {
            self.give_back_running();
        }
        let why = self.draining.clone().unwrap_or_default();
        let why = match why.strip_prefix("stopped ") {
            Some(by_whom) => by_whom.to_owned(),
            None => why,
        };
        self.note_end(&format!("stopped: {why}"));
        tracing::info!("Stopped: {why}");
    }

    /// Puts what was killed back into the queue, as a recovery after this process would.
    fn give_back_running(&self) {
        let limits = recovery_limits(&self.config, self.durability);
        let why = format!("agent {} was stopped", self.name);
        match recover(
            &self.rig,
            &self.name,
            &self.lock,
            &self.containment,
            limits,
            &why,
        ) {
            Ok(recovered) => {
                for (name, task) in &recovered.requeued {
                    tracing::info!(task = %name.id, "Stopped {task} ({}) and put it back into the queue", name.id.short());
                }
                for (name, task, why) in &recovered.unkillable {
                    tracing::error!(task = %name.id, "Left {task} ({}) where it is: {why}", name.id.short());
                }
            }
            Err(error) => tracing::error!("Cannot give tasks back: {error}; the brain will"),
        }
    }
}
