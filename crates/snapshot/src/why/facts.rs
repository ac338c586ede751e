//! What every explanation looks at.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use jiff::Timestamp;
use rigor_config::Config;
use rigor_policy::why::{AgentFacts, Component, Facts, Presence};
use rigor_queue::output::Output;
use rigor_queue::rig::{BRAIN, Rig};
use rigor_queue::{outlook, presence};

use crate::Result;
use crate::agents::{self, last_sign, presence_of};

/// So much of a file's end is read for its last lines, bytes.
const TAIL_BYTES: u64 = 16 * 1024;

pub(super) fn read(rig: &Rig, config: &Config) -> Result<Facts> {
    let mut names: Vec<String> = config.agent_names().map(str::to_owned).collect();
    let configured = names.len();
    for name in rig.agents()? {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let agents = names
        .iter()
        .enumerate()
        .map(|(at, name)| {
            let component = component(rig, name)?;
            let gpu = config.gpus.iter().find(|gpu| gpu.name == *name);
            let has_gpu = gpu.is_some()
                || component
                    .beat
                    .as_ref()
                    .is_some_and(|beat| beat.gpu.is_some());
            Ok(AgentFacts {
                configured: at < configured,
                gpu: has_gpu,
                default_model: gpu.and_then(|gpu| gpu.model.clone()),
                component,
            })
        })
        .collect::<Result<Vec<AgentFacts>>>()?;
    Ok(Facts {
        now: Timestamp::now(),
        zone: super::zone(),
        brain: component(rig, BRAIN)?,
        // One that cannot be read is as good as none: what the agents say still stands.
        outlook: outlook::read(rig).ok().flatten(),
        agents,
        split_models: config
            .models
            .iter()
            .filter(|model| model.split_gpu > 1)
            .map(|model| model.id.clone())
            .collect(),
        heartbeat_warn: config.timing.heartbeat_warn,
        heartbeat_hung: config.timing.heartbeat_hung,
        brain_signals: presence::signals(rig, BRAIN)?
            .into_iter()
            .map(|(signal, _)| signal)
            .collect(),
    })
}

fn component(rig: &Rig, name: &str) -> Result<Component> {
    let presence = match presence_of(rig, name)? {
        agents::Presence::Gone => Presence::Gone,
        agents::Presence::Recovering => Presence::Recovering,
        agents::Presence::Alive => Presence::Alive,
    };
    let pid = agents::holder(rig, name)
        .map(|holder| holder.pid)
        .filter(|_| presence == Presence::Alive);
    Ok(Component {
        name: name.to_owned(),
        presence,
        pid,
        process: pid.and_then(process_state),
        beat: presence::heartbeat(rig, name).ok().flatten(),
        seen: last_sign(rig, name).and_then(|seen| Timestamp::try_from(seen).ok()),
    })
}

/// The letter in `/proc/<pid>/stat`, behind the name, which may hold anything.
fn process_state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Free and total MB of what an agent writes to.
pub(super) fn disks(rig: &Rig, name: &str) -> Vec<(String, u64, u64)> {
    let agent = rig.agent_dir(name);
    let logs = rig.logs_dir();
    let mut disks = Vec::new();
    for dir in [rig.root(), agent.as_path(), logs.as_path()] {
        let Ok(stat) = rustix::fs::statvfs(dir) else {
            continue;
        };
        let mb = |blocks: u64| blocks.saturating_mul(stat.f_frsize) / 1_000_000;
        let shown = match dir.strip_prefix(rig.root()) {
            Ok(inside) if inside.as_os_str().is_empty() => dir.display().to_string(),
            Ok(inside) => inside.display().to_string(),
            Err(_) => dir.display().to_string(),
        };
        disks.push((shown, mb(stat.f_bavail), mb(stat.f_blocks)));
    }
    disks
}

/// The last line of a component's log.
pub(super) fn last_words(rig: &Rig, name: &str) -> Option<String> {
    let path = rig.logs_dir().join(format!("{name}.log"));
    last_lines(&path, 1).pop()
}

/// The last lines of a file that are not empty.
pub(super) fn last_lines(path: &Path, most: usize) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut tail = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut tail)?;
        Ok(tail)
    };
    read().map_or(Vec::new(), |tail| last_of(&tail, most))
}

/// The last lines that an attempt printed that are not empty.
pub(super) fn last_printed(mut output: Output, most: usize) -> Vec<String> {
    let mut read = || -> std::io::Result<Vec<u8>> {
        let at = output.bytes()?.saturating_sub(TAIL_BYTES);
        let mut tail = Vec::new();
        output
            .read_from(at)?
            .take(TAIL_BYTES)
            .read_to_end(&mut tail)?;
        Ok(tail)
    };
    read().map_or(Vec::new(), |tail| last_of(&tail, most))
}

fn last_of(tail: &[u8], most: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(tail);
    let mut lines: Vec<String> = text
        .lines()
        .rev()
        .filter(|line| !line.trim().is_empty())
        .take(most)
        .map(str::to_owned)
        .collect();
    lines.reverse();
    lines
}
