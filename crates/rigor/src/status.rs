//! `rigor status`.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use rigor_queue::task::Class;
use rigor_snapshot::{Agent, AgentState, Batch, BatchState, Brain, Snapshot, gpu_shares};

use crate::args::Status;
use crate::exit::Exit;
use crate::target;
use crate::terminal::{Tone, ago, duration, json, print, printable, table, toned};

/// Batches that are over and shown in the table; JSON has more.
const ENDED_SHOWN: usize = 5;

/// Prints the state of the rig.
pub(crate) fn run(at: &Path, args: &Status) -> Result<Exit> {
    let opened = target::open_running(at)?;
    let snapshot = Snapshot::read(&opened.rig, &opened.config)?;
    if args.json {
        json(&snapshot)?;
    } else {
        let warn = opened.config.timing.heartbeat_warn;
        print(&text(&snapshot, warn))?;
    }
    Ok(Exit::Ok)
}

fn text(snapshot: &Snapshot, warn: Duration) -> String {
    let mut text = format!("{} {}", toned("Rig", Tone::Heading), snapshot.name);
    if snapshot.simulated {
        text.push_str(&toned(" SIMULATED GPUs", Tone::Warning));
    }
    text.push_str(&format!("  {}\n", snapshot.rig.display()));
    text.push_str(&disk(snapshot));
    text.push_str(&brain(&snapshot.brain, warn));
    text.push('\n');
    text.push_str(&agents(&snapshot.agents, warn));
    text.push('\n');
    let gpu_time = gpu_time(&snapshot.agents);
    if !gpu_time.is_empty() {
        text.push_str(&gpu_time);
        text.push('\n');
    }
    text.push_str(&queue(snapshot));
    let batches = batches(&snapshot.batches);
    if !batches.is_empty() {
        text.push('\n');
        text.push_str(&batches);
    }
    text
}

/// Nothing, unless there is little room left.
fn disk(snapshot: &Snapshot) -> String {
    let Some(disk) = snapshot.disk.as_ref().filter(|disk| disk.nearly_full) else {
        return String::new();
    };
    let files = disk
        .free_files
        .map(|files| format!(", room for {files} files"))
        .unwrap_or_default();
    let state = if disk.free_mb == 0 || disk.free_files == Some(0) {
        "DISK FULL"
    } else {
        "DISK NEARLY FULL"
    };
    let words = format!(
        "{state}: {} MB free of {} MB{files}: results, logs and heartbeats are lost without room; free some",
        disk.free_mb, disk.total_mb
    );
    format!("{}\n", toned(&words, Tone::Bad))
}

/// A heartbeat that only its file's time speaks for.
fn unwritten(seconds: u64) -> String {
    format!(
        "cannot write its heartbeat: what it says is {} old",
        duration(Duration::from_secs(seconds))
    )
}

/// What each GPU's time went into.
fn gpu_time(agents: &[Agent]) -> String {
    let times: Vec<_> = agents
        .iter()
        .filter_map(|agent| Some((agent, agent.gpu_time.as_ref()?)))
        .collect();
    if times.is_empty() {
        return String::new();
    }
    let name_width = times
        .iter()
        .map(|(agent, _)| agent.name.len())
        .max()
        .unwrap_or(0);
    let mut text = format!("{}\n", toned("GPU time", Tone::Heading));
    for (agent, time) in times {
        let parts = time.seconds.iter();
        let shares = gpu_shares(parts.map(|(cause, seconds)| (cause.as_str(), *seconds)));
        let length = Duration::try_from(time.to.duration_since(time.from)).unwrap_or_default();
        text.push_str(&format!(
            "  {:name_width$}  last {}: {shares}\n",
            agent.name,
            duration(Duration::from_secs(length.as_secs().max(1)))
        ));
    }
    text
}

fn brain(brain: &Brain, warn: Duration) -> String {
    let heading = toned("Brain", Tone::Heading);
    if !brain.alive {
        return format!(
            "{heading} {}. Start it: rigor up\n",
            toned("not running", Tone::Bad)
        );
    }
    let since = brain
        .started
        .map(|started| format!(", up {}", ago(started)))
        .unwrap_or_default();
    let pid = brain
        .pid
        .map(|pid| format!(" (pid {pid}{since})"))
        .unwrap_or_default();
    let stale = brain
        .heartbeat_age_s
        .filter(|age| *age > warn.as_secs())
        .map(|age| {
            let age = duration(Duration::from_secs(age));
            format!(
                ", {}",
                toned(&format!("last heartbeat {age} ago"), Tone::Warning)
            )
        });
    let unwritten = brain
        .heartbeat_unwritten_s
        .map(|seconds| format!(", {}", toned(&unwritten(seconds), Tone::Warning)));
    format!(
        "{heading} {}{pid}{}{}\n",
        toned("running", Tone::Good),
        stale.unwrap_or_default(),
        unwritten.unwrap_or_default()
    )
}

fn agents(agents: &[Agent], warn: Duration) -> String {
    if agents.is_empty() {
        return "No agents: rig.toml has neither a [[gpu]] nor a [[cpu_agent]].\n".to_owned();
    }
    let rows = agents.iter().map(|agent| {
        let gpu = agent.gpu.as_ref().filter(|_| agent.alive);
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        vec![
            agent.name.clone(),
            state(agent),
            or_dash(agent.model.clone()),
            or_dash(gpu.map(|gpu| format!("{}/{}", gpu.used_mb, gpu.total_mb))),
            or_dash(
                gpu.and_then(|gpu| gpu.temperature_c)
                    .map(|c| format!("{c}C")),
            ),
            or_dash(
                gpu.and_then(|gpu| gpu.utilization)
                    .map(|percent| format!("{percent}%")),
            ),
            agent.processing.len().to_string(),
            format!("{}/{}", agent.completed, agent.failed),
            doing(agent, warn),
        ]
    });
    table(
        &[
            "AGENT",
            "STATE",
            "MODEL",
            "VRAM MB",
            "TEMP",
            "GPU",
            "TASKS",
            "DONE/FAILED",
            "",
        ],
        rows,
    )
}

fn state(agent: &Agent) -> String {
    let mut words = agent.state.as_str().to_owned();
    if let Some(health) = agent.health
        && health != "healthy"
    {
        words.push_str(&format!(", {health}"));
    }
    words
}

/// What it works on, or why it does not.
fn doing(agent: &Agent, warn: Duration) -> String {
    let mut words = Vec::new();
    if !agent.processing.is_empty() {
        let ids: Vec<String> = agent
            .processing
            .iter()
            .take(3)
            .map(|id| id.short())
            .collect();
        let more = agent.processing.len() - ids.len();
        let more = if more > 0 {
            format!(" +{more}")
        } else {
            String::new()
        };
        words.push(format!("{}{more}", ids.join(" ")));
    }
    if let Some(code) = agent.idle_reason {
        let detail = agent
            .idle_detail
            .as_deref()
            .map(printable)
            .filter(|text| !text.is_empty());
        words.push(match detail {
            // `paused: paused by the operator` says it twice.
            Some(detail) if detail.starts_with(code) => detail,
            Some(detail) => format!("{code}: {detail}"),
            None => code.to_owned(),
        });
    }
    let said = words.last().cloned().unwrap_or_default();
    let health = agent.health_reason.as_deref().map(printable);
    words.extend(health.filter(|reason| !said.contains(reason.as_str())));
    let stale = agent
        .heartbeat_age_s
        .filter(|age| agent.alive && *age > warn.as_secs());
    words.extend(
        stale.map(|age| format!("last heartbeat {} ago", duration(Duration::from_secs(age)))),
    );
    words.extend(agent.heartbeat_unwritten_s.map(unwritten));
    if agent.state == AgentState::Down {
        words.push(match (agent.heartbeat_age_s, agent.configured) {
            (_, false) => "not in rig.toml any more".to_owned(),
            (None, true) => "never started".to_owned(),
            (Some(age), true) => format!("gone {}", duration(Duration::from_secs(age))),
        });
    }
    words.join("; ")
}

fn queue(snapshot: &Snapshot) -> String {
    let queue = &snapshot.queue;
    let classes: Vec<String> = Class::ALL
        .iter()
        .filter_map(|class| {
            Some((
                class,
                queue.by_class.get(class).filter(|count| **count > 0)?,
            ))
        })
        .map(|(class, count)| format!("{class}:{count}"))
        .collect();
    let classes = if classes.is_empty() {
        String::new()
    } else {
        format!(" ({})", classes.join(", "))
    };
    let stuck_tone = if queue.stuck > 0 {
        Tone::Bad
    } else {
        Tone::Plain
    };
    let mut text = format!(
        "{} {}{classes}, processing {}, {}, waiting {}, retrying {}, completed in the last 5 min {}",
        toned("Queue", Tone::Heading),
        queue.total_pending,
        queue.processing,
        toned(&format!("stuck {}", queue.stuck), stuck_tone),
        queue.waiting,
        queue.retry,
        queue.completed_last_5min
    );
    if queue.quarantined > 0 {
        let words = format!(", quarantined {}", queue.quarantined);
        text.push_str(&toned(&words, Tone::Bad));
        text.push_str(" (rigor tasks --lane quarantine)");
    }
    text.push('\n');
    for task in &queue.stuck_details {
        let id = task.id.short();
        text.push_str(&format!(
            "  stuck: {} ({id}) on {}, processing {}, quiet {}; {}. See: rigor logs {id}\n",
            printable(&task.name),
            task.agent,
            ago(task.since),
            ago(task.quiet_since),
            printable(&task.end)
        ));
    }
    text
}

fn batches(batches: &[Batch]) -> String {
    let ended = batches.iter().filter(|batch| batch.state.is_over()).count();
    let mut skip = ended.saturating_sub(ENDED_SHOWN);
    let mut rows = Vec::new();
    for batch in batches {
        if batch.state.is_over() && skip > 0 {
            skip -= 1;
            continue;
        }
        let total = match batch.state {
            BatchState::Submitted => "-".to_owned(),
            _ => format!("{}/{}", batch.done, batch.total),
        };
        let when = batch
            .submitted
            .map_or_else(|| "-".to_owned(), |at| format!("{} ago", ago(at)));
        rows.push(vec![
            batch.id.clone(),
            batch.state.as_str().to_owned(),
            total,
            batch.running.to_string(),
            batch.queued.to_string(),
            batch.failed.to_string(),
            batch.cancelled.to_string(),
            when,
        ]);
    }
    if rows.is_empty() {
        return String::new();
    }
    table(
        &[
            "BATCH",
            "STATE",
            "DONE",
            "RUNNING",
            "QUEUED",
            "FAILED",
            "CANCELLED",
            "SUBMITTED",
        ],
        rows,
    )
}
