//! Models, the programs that serve them, and the ports that they are served at.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rigor_config::{Config, Model, Serving};
use rigor_queue::presence;
use rigor_queue::rig::Rig;
use rigor_snapshot::models;

use super::Findings;
use crate::components::on_path;

/// How long a program may take to tell its version; vLLM's loads Python first.
const VERSION_MOST: Duration = Duration::from_secs(10);
/// How much is read of what it tells, bytes.
const VERSION_BYTES: u64 = 4096;

/// The programs that the models of rig.toml are served by.
pub(super) fn runtimes(config: &Config, findings: &mut Findings) {
    let uses = |name: &str| {
        config
            .models
            .iter()
            .any(|model| model.runtime_name() == name)
    };
    let known = [
        (
            "llama-server",
            "llama_server",
            &config.runtime.llama_server,
            "llama.cpp",
        ),
        ("ollama", "ollama", &config.runtime.ollama, "ollama"),
        ("vllm", "vllm", &config.runtime.vllm, "vLLM"),
    ];
    for (name, key, program, what) in known {
        if !uses(name) {
            continue;
        }
        match found(program) {
            Some(path) => {
                let version =
                    version(&path).unwrap_or_else(|| "it does not tell its version".to_owned());
                findings.ok(name, format!("{}: {version}", path.display()));
            }
            None => findings.fail(
                name,
                format!("{} is not there", program.display()),
                format!(
                    "install {what}, or name the program in rig.toml: [runtime] {key} = \"/path\""
                ),
            ),
        }
    }
}

fn found(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        program.is_file().then(|| program.to_owned())
    } else {
        on_path(&program.to_string_lossy())
    }
}

/// The line with its version, of a program that ends well when asked for it.
fn version(program: &Path) -> Option<String> {
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    // In threads: what the program may leave behind can hold the pipes open for ever.
    let (tell, told) = mpsc::channel();
    let pipes: [Option<Box<dyn std::io::Read + Send>>; 2] = [
        child.stdout.take().map(|pipe| Box::new(pipe) as _),
        child.stderr.take().map(|pipe| Box::new(pipe) as _),
    ];
    for pipe in pipes.into_iter().flatten() {
        let tell = tell.clone();
        std::thread::spawn(move || {
            let mut said = Vec::new();
            let _ = pipe.take(VERSION_BYTES).read_to_end(&mut said);
            let _ = tell.send(said);
        });
    }
    drop(tell);
    let deadline = Instant::now() + VERSION_MOST;
    let left = || deadline.saturating_duration_since(Instant::now());
    let mut said = Vec::new();
    // llama.cpp tells it on stderr.
    while let Ok(more) = told.recv_timeout(left()) {
        said.extend(more);
    }
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if !left().is_zero() => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) | Err(_) => break None,
        }
    };
    if ended.is_none() {
        // Its own end is all that is wanted of it.
        let _ = child.kill();
        let _ = child.wait();
    }
    ended.filter(std::process::ExitStatus::success)?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    let named = lines().find(|line| line.to_lowercase().contains("version"));
    named
        .or_else(|| lines().next())
        .map(crate::terminal::printable)
}

/// Each model: its files, and where it fits. `budgets` are what tasks may use of each GPU, MB.
pub(super) fn models(
    rig: &Rig,
    config: &Config,
    budgets: &BTreeMap<String, u64>,
    findings: &mut Findings,
) {
    let known = models::models(rig, config, |gpu| budgets.get(&gpu.name).copied());
    for (model, seen) in config.models.iter().zip(known) {
        let check = format!("model {}", model.id);
        if let Some(problem) = &seen.problem {
            findings.fail(
                check,
                problem,
                "correct `file` or `reference` in rig.toml, or fetch the model again",
            );
            continue;
        }
        if let Some(missing) = missing_program(model) {
            findings.fail(
                check,
                format!("{missing} is not there"),
                "correct `command` in rig.toml",
            );
            continue;
        }
        let what = seen.from.clone().unwrap_or_default();
        let Some(need_mb) = seen.need_mb else {
            findings.ok(
                check,
                format!(
                    "{what}: what it needs is not known; it gets {} of its own",
                    crate::terminal::plural(model.split_gpu.max(1) as usize, "GPU")
                ),
            );
            continue;
        };
        let gpus = u64::from(model.split_gpu.max(1));
        let on_each = need_mb.div_ceil(gpus);
        let (fits, short): (Vec<_>, Vec<_>) =
            budgets.iter().partition(|(_, budget)| **budget >= on_each);
        let how = match (seen.estimate, seen.measured_mb) {
            (_, Some(_)) => " (measured)".to_owned(),
            (Some(estimate), None) if model.vram_mb.is_none() => format!(" ({})", estimate.words()),
            _ => " (`vram_mb` in rig.toml)".to_owned(),
        };
        let each = if gpus > 1 {
            format!(" on each of {gpus} GPUs")
        } else {
            String::new()
        };
        let mut words = format!("{what}: needs {on_each} MB{each}{how}");
        for (agent, budget) in &short {
            words.push_str(&format!(", {agent} is short by {} MB", on_each - **budget));
        }
        let there = config.gpus.len();
        if (there as u64) < gpus {
            findings.fail(
                check,
                format!("it lies on {gpus} GPUs, and the rig has {there}: {words}"),
                "set a smaller `split_gpu` in rig.toml",
            );
        } else if budgets.is_empty() {
            findings.ok(check, words);
        } else if (fits.len() as u64) < gpus {
            let (fault, split) = match gpus {
                1 => ("it fits no GPU".to_owned(), "or `split_gpu` it"),
                _ => (
                    format!("it does not fit {gpus} GPUs"),
                    "or a larger `split_gpu`",
                ),
            };
            findings.fail(
                check,
                format!("{fault}: {words}"),
                format!("give it less `context` or fewer `slots`, take a smaller quantisation, raise `vram_share`, {split}, in rig.toml"),
            );
        } else {
            let names: Vec<&str> = fits.iter().map(|(agent, _)| agent.as_str()).collect();
            findings.ok(check, format!("{words}; fits {}", names.join(", ")));
        }
    }
}

/// The program of a `command` runtime, if it is not there.
fn missing_program(model: &Model) -> Option<String> {
    let Serving::Command { words, .. } = &model.serving else {
        return None;
    };
    let program = words.first().cloned().unwrap_or_default();
    let there =
        program.contains('/') && Path::new(&program).is_file() || on_path(&program).is_some();
    (!there).then_some(program)
}

/// Each GPU's port: free, or who has it.
pub(super) fn ports(rig: &Rig, config: &Config, findings: &mut Findings) {
    for gpu in &config.gpus {
        let check = format!("{} port", gpu.name);
        let port = gpu.port;
        let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) else {
            findings.ok(check, format!("{port} is free"));
            continue;
        };
        let manifest = rig.agent_dir(&gpu.name).join(rigor_runtime::MANIFEST_NAME);
        let ours = rigor_runtime::orphan(&manifest);
        let holder = holder(port);
        let name = match &holder {
            Some((pid, name)) => format!("{name} (pid {pid})"),
            None => "a process that is not visible from here".to_owned(),
        };
        let alive = presence::is_held(rig, &gpu.name).ok().flatten() == Some(true);
        match (&ours, &holder) {
            (Some((model, pids)), Some((pid, _))) if pids.contains(pid) => {
                findings.ok(check, format!("{port} is held by the runtime of {model}: {name}"));
            }
            // Whose processes cannot be seen, as another user's.
            (_, None) if alive => findings.ok(check, format!("{port} is in use, and the agent runs")),
            _ => findings.fail(
                check,
                format!("{port}: {error}; held by {name}, which is none of this rig's"),
                format!("stop it (`ss -ltnp sport = :{port}` shows it), or choose another port in rig.toml"),
            ),
        }
    }
}

/// The process that listens at a port of this machine, where /proc shows it.
fn holder(port: u16) -> Option<(i32, String)> {
    let v4 = procfs::net::tcp().into_iter().flatten();
    let sockets: Vec<u64> = v4
        .chain(procfs::net::tcp6().into_iter().flatten())
        .filter(|entry| {
            entry.state == procfs::net::TcpState::Listen && entry.local_address.port() == port
        })
        .map(|entry| entry.inode)
        .collect();
    for process in procfs::process::all_processes().ok()?.flatten() {
        let Ok(files) = process.fd() else { continue };
        let listens = files.flatten().any(|file| {
            matches!(file.target, procfs::process::FDTarget::Socket(inode) if sockets.contains(&inode))
        });
        if listens {
            let name = process
                .stat()
                .map_or_else(|_| "?".to_owned(), |stat| stat.comm);
            return Some((process.pid, name));
        }
    }
    None
}
