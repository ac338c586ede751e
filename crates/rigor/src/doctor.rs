//! `rigor doctor`: what can be wrong with a rig and its machine, each with a remedy.

mod gpus;
mod machine;
mod serving;

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Result;
use rigor_config::Config;
use rigor_queue::presence;
use rigor_queue::rig::{BRAIN, Rig};
use rigor_queue::watch::{Wake, Watcher};
use serde::Serialize;

use crate::args::Doctor;
use crate::components::{on_path, program};
use crate::exit::Exit;
use crate::terminal::{Tone, json, plural, print, toned};

/// How long inotify may take to report.
const NOTIFY_MOST: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

#[derive(Serialize)]
struct Finding {
    check: String,
    result: Verdict,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, check: impl Into<String>, detail: impl Into<String>) {
        self.add(check, Verdict::Ok, detail, None);
    }

    fn warn(
        &mut self,
        check: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(check, Verdict::Warning, detail, Some(remedy.into()));
    }

    fn fail(
        &mut self,
        check: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(check, Verdict::Failed, detail, Some(remedy.into()));
    }

    fn add(
        &mut self,
        check: impl Into<String>,
        result: Verdict,
        detail: impl Into<String>,
        remedy: Option<String>,
    ) {
        self.0.push(Finding {
            check: check.into(),
            result,
            detail: detail.into(),
            remedy,
        });
    }
}

/// Looks at everything that can be looked at; what stands on something broken is left out.
pub(crate) fn run(at: &Path, args: &Doctor) -> Result<Exit> {
    let mut findings = Findings::default();
    programs(&mut findings);
    match Rig::open(at) {
        // The error's own words hold the remedy.
        Err(error) => findings.fail(
            "rig directory",
            error.to_string(),
            "rigor init DIR, or --rig DIR",
        ),
        Ok(rig) => {
            findings.ok("rig directory", rig.root().display().to_string());
            machine::permissions(&rig, &mut findings);
            machine::disk(&rig, &mut findings);
            file_system(&rig, &mut findings);
            match Config::load(rig.root()) {
                Err(error) => {
                    findings.fail("rig.toml", error.to_string(), "correct the lines above")
                }
                Ok(config) => {
                    findings.ok(
                        "rig.toml",
                        format!(
                            "{}, {}",
                            plural(config.gpus.len(), "GPU"),
                            plural(config.models.len(), "model")
                        ),
                    );
                    components(&rig, &config, &mut findings);
                    let budgets = gpus::gpus(&rig, &config, &mut findings);
                    serving::runtimes(&config, &mut findings);
                    serving::models(&rig, &config, &budgets, &mut findings);
                    serving::ports(&rig, &config, &mut findings);
                    machine::leftovers(&rig, &config, &mut findings);
                    machine::clock(&rig, &config, &mut findings);
                    machine::tiers(&rig, &config, &mut findings);
                }
            }
        }
    }
    let failed = findings
        .0
        .iter()
        .any(|finding| finding.result == Verdict::Failed);
    if args.json {
        json(&serde_json::json!({ "schema": 1, "ok": !failed, "checks": findings.0 }))?;
    } else {
        print(&text(&findings))?;
    }
    Ok(if failed { Exit::Failed } else { Exit::Ok })
}

fn text(findings: &Findings) -> String {
    let widths = findings.0.iter().map(|finding| finding.check.len());
    let width = widths.max().unwrap_or_default();
    let mut text = String::new();
    for finding in &findings.0 {
        let mark = match finding.result {
            Verdict::Ok => toned("ok     ", Tone::Good),
            Verdict::Warning => toned("warning", Tone::Warning),
            Verdict::Failed => toned("FAILED ", Tone::Bad),
        };
        text.push_str(&format!(
            "{mark} {:<width$} {}\n",
            finding.check, finding.detail
        ));
        if let Some(remedy) = &finding.remedy {
            let indent = "FAILED  ".len() + width + 1;
            text.push_str(&format!("{:indent$}-> {remedy}\n", ""));
        }
    }
    text
}

fn programs(findings: &mut Findings) {
    for name in ["brain", "gpu-agent", "worker"] {
        match program(name) {
            Ok(path) => findings.ok(name, path.display().to_string()),
            Err(error) => findings.fail(
                name,
                error.to_string(),
                "install all of Rigor's programs into one folder",
            ),
        }
    }
    match on_path("tmux") {
        Some(path) => findings.ok("tmux", path.display().to_string()),
        None => findings.warn(
            "tmux",
            "not on PATH",
            "install tmux to see each program in a window; `rigor up` works without it",
        ),
    }
}

fn file_system(rig: &Rig, findings: &mut Findings) {
    let remedy = "put the rig on a local file system (ext4, xfs, btrfs, tmpfs)";
    match try_file_system(rig) {
        Ok(()) => findings.ok("file system", "locks, renames and notifications work"),
        Err(error) => findings.fail("file system", error.to_string(), remedy),
    }
    match presence::is_held(rig, BRAIN) {
        Ok(_) => findings.ok("lock table", "/proc/locks can be read"),
        Err(error) => findings.fail(
            "lock table",
            error.to_string(),
            "mount /proc: without it nobody can tell who lives",
        ),
    }
}

/// Does in `RIG/run/` what the queue does: writes, locks, renames without replacing, is notified.
fn try_file_system(rig: &Rig) -> Result<()> {
    let dir = crate::components::run_dir(rig);
    fs::create_dir_all(&dir)?;
    let own = format!("doctor-{}", std::process::id());
    let (one, other) = (dir.join(format!(".{own}-a")), dir.join(format!(".{own}-b")));
    let tried = try_in(&dir, &one, &other);
    for path in [one, other] {
        let _ = fs::remove_file(path);
    }
    tried
}

fn try_in(dir: &Path, one: &Path, other: &Path) -> Result<()> {
    let (tell, told) = mpsc::channel();
    let mut watcher = Watcher::new(move |wake| {
        let _ = tell.send(wake);
    })?;
    watcher.watch(dir)?;
    let file = fs::File::create(one)?;
    if file.try_lock().is_err() {
        anyhow::bail!("a fresh file cannot be locked");
    }
    if fs::File::open(one)?.try_lock().is_ok() {
        anyhow::bail!("a second process would get the same lock");
    }
    let rename = || {
        let cwd = rustix::fs::CWD;
        rustix::fs::renameat_with(cwd, one, cwd, other, rustix::fs::RenameFlags::NOREPLACE)
    };
    rename()?;
    fs::File::create(one)?;
    if rename() != Err(rustix::io::Errno::EXIST) {
        anyhow::bail!("a rename replaces what must not be replaced");
    }
    let deadline = std::time::Instant::now() + NOTIFY_MOST;
    while let Ok(wake) =
        told.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now()))
    {
        if wake == Wake::Added(other.to_owned()) {
            return Ok(());
        }
    }
    anyhow::bail!("inotify reports nothing of a rename")
}

fn components(rig: &Rig, config: &Config, findings: &mut Findings) {
    for name in std::iter::once(BRAIN).chain(config.agent_names()) {
        match presence::is_held(rig, name) {
            Ok(Some(true)) => findings.ok(name, "running"),
            Ok(_) => findings.warn(name, "not running", "rigor up"),
            Err(_) => {}
        }
    }
}
