//! `up` and `down` with programs that hold the locks of components as the real ones do.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rigor_queue::presence::{self, ComponentLock, Role};

use crate::hand_made::{HandMade, Ran, ran, rigor_command, until};

/// A component: takes `agents/<name>/lock` for life, says who it is, ends on SIGTERM.
/// `gpu-2` cannot start where the file `broken` lies beside it; `stubborn` makes it deaf.
const COMPONENT: &str = r#"#!/bin/bash
me=$(basename "$0")
[ "$me" = brain ] && name=brain || { name=$1; shift; }
[ "$1" = --cpu-only ] && shift
[ "$1" = --rig ] || exit 2
rig=$2
here=$(dirname "$0")
if [ "$name" = gpu-2 ] && [ -e "$here/broken" ]; then echo "cannot load NVML"; exit 1; fi
exec 9<>"$rig/agents/$name/lock"
flock -n 9 || { echo "$name is already running"; exit 1; }
printf '{"pid":%d,"role":"running"}' $$ >&9
if [ -e "$here/stubborn" ]; then trap '' TERM; else trap 'exit 0' TERM; fi
echo "$name is up"
while :; do sleep 0.05 9>&-; done
"#;

struct Installed {
    made: HandMade,
    bin: PathBuf,
}

impl Installed {
    fn new() -> Installed {
        // On the file system of the program, which is linked and not copied: another test's fork
        // may hold a file that was just written open, and then it cannot be executed.
        let made = HandMade::in_folder(Path::new(env!("CARGO_TARGET_TMPDIR")));
        let bin = made.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        // Beside the components, as an installation has it.
        std::fs::hard_link(env!("CARGO_BIN_EXE_rigor"), bin.join("rigor")).unwrap();
        for name in ["brain", "gpu-agent"] {
            executable(&bin.join(name), COMPONENT);
        }
        Installed { made, bin }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = rigor_command(&self.bin.join("rigor"), self.made.path(), words);
        command.env("TMUX_TMPDIR", self.made.path());
        command
    }

    fn rigor(&self, words: &[&str]) -> Ran {
        ran(self.command(words))
    }

    fn alive(&self) -> Vec<&'static str> {
        let held = |name: &&&str| presence::is_held(&self.made.rig, name).unwrap() == Some(true);
        ["brain", "gpu-1", "gpu-2"]
            .iter()
            .filter(held)
            .copied()
            .collect()
    }

    fn pid(&self, name: &str) -> i64 {
        let text = std::fs::read(self.made.rig.agent_dir(name).join("lock")).unwrap();
        let holder: serde_json::Value = serde_json::from_slice(&text).unwrap();
        holder["pid"].as_i64().unwrap()
    }
}

impl Drop for Installed {
    /// Nothing of a test that failed stays: what `down` would not find is ended by its server.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.bin.join("stubborn"));
        let _ = self.command(&["down", "--grace", "1s"]).output();
        let _ = Command::new("tmux")
            .arg("kill-server")
            .env("TMUX_TMPDIR", self.made.path())
            .env_remove("TMUX")
            .output();
    }
}

/// Written by another process, for the same reason.
fn executable(path: &Path, text: &str) {
    let mut install = Command::new("install")
        .args(["-m", "755", "/dev/stdin"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    install
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    assert!(install.wait().unwrap().success());
}

#[test]
fn a_rig_in_the_background_starts_once_and_stops() {
    let rig = Installed::new();
    rig.rigor(&["up", "--no-tmux"])
        .ok()
        .says("brain started")
        .says("gpu-2 started");
    assert_eq!(rig.alive(), ["brain", "gpu-1", "gpu-2"]);
    let pid = rig.pid("brain");
    let session = rustix::process::getsid(rustix::process::Pid::from_raw(pid as i32)).unwrap();
    assert_eq!(
        i64::from(session.as_raw_nonzero().get()),
        pid,
        "a session of its own"
    );
    let file = std::fs::read_to_string(rig.made.rig.root().join("run/brain.pid")).unwrap();
    assert_eq!(file.trim(), pid.to_string());

    rig.rigor(&["up", "--no-tmux"])
        .ok()
        .says("brain runs already")
        .says("Everything runs");
    assert_eq!(rig.pid("brain"), pid);
    rig.rigor(&["down"])
        .ok()
        .says("gpu-1")
        .says("has stopped")
        .says("Nothing of this rig runs");
    assert_eq!(rig.alive(), [""; 0]);
    assert!(!rig.made.rig.root().join("run/up.json").exists());
    assert!(!rig.made.rig.root().join("run/brain.pid").exists());
    rig.rigor(&["down"]).ok();
    let output = std::fs::read_to_string(rig.made.rig.logs_dir().join("brain.out")).unwrap();
    assert_eq!(output, "brain is up\n");
}

#[test]
fn what_does_not_start_is_shown_with_its_words() {
    let rig = Installed::new();
    std::fs::write(rig.bin.join("broken"), "").unwrap();
    rig.rigor(&["up", "--no-tmux"])
        .exits(1)
        .says("gpu-2 did not start")
        .says("cannot load NVML");
    assert_eq!(rig.alive(), ["brain", "gpu-1"]);
    std::fs::remove_file(rig.bin.join("broken")).unwrap();
    rig.rigor(&["up", "--no-tmux"])
        .ok()
        .says("brain runs already")
        .says("gpu-2 started");
    rig.rigor(&["down"]).ok();
}

#[test]
fn what_does_not_stop_is_killed_and_said() {
    let rig = Installed::new();
    std::fs::write(rig.bin.join("stubborn"), "").unwrap();
    rig.rigor(&["up", "--no-tmux"]).ok();
    let start = Instant::now();
    rig.rigor(&["down", "--grace", "300ms"])
        .ok()
        .says("still runs after 300ms")
        .says("told to stop at once")
        .says("killed");
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(rig.alive(), [""; 0]);
}

#[test]
fn a_process_that_only_has_the_pid_is_left_alone() {
    let rig = Installed::new();
    let mut innocent = Command::new("sleep")
        .arg("60")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    // A lock that is held, and names a process which does not hold it.
    let _lock = ComponentLock::acquire(&rig.made.rig, "gpu-1", Role::Running).unwrap();
    let text = format!("{{\"pid\":{},\"role\":\"running\"}}", innocent.id());
    std::fs::write(rig.made.rig.agent_dir("gpu-1").join("lock"), text).unwrap();
    rig.rigor(&["down", "--grace", "300ms"]);
    assert!(
        innocent.try_wait().unwrap().is_none(),
        "an innocent process was ended"
    );
    innocent.kill().unwrap();
    innocent.wait().unwrap();
}

#[test]
fn two_ups_at_once_start_everything_once() {
    let rig = Installed::new();
    let spawn = || {
        let mut command = rig.command(&["up", "--no-tmux"]);
        command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let both = [spawn(), spawn()].map(|child| child.wait_with_output().unwrap());
    let words: String = both
        .iter()
        .map(|done| String::from_utf8_lossy(&done.stderr).into_owned())
        .collect();
    assert!(both.iter().any(|done| done.status.success()), "{words}");
    assert_eq!(words.matches("brain started").count(), 1, "{words}");
    rig.rigor(&["down"]).ok();
}

#[test]
fn tmux_gives_each_a_window_in_a_session_of_the_rigs_own() {
    let rig = Installed::new();
    let tmux = |words: &[&str]| {
        Command::new("tmux")
            .args(words)
            .env("TMUX_TMPDIR", rig.made.path())
            .env_remove("TMUX")
            .output()
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // Somebody else's session has the name.
    if tmux(&["new-session", "-d", "-s", "rigor", "sleep 100"]).is_err() {
        eprintln!("skipped: no tmux here");
        return;
    }
    std::fs::write(rig.bin.join("broken"), "").unwrap();
    rig.rigor(&["up"])
        .exits(1)
        .says("tmux attach -t rigor-garage")
        .says("gpu-2 did not start")
        .says("cannot load NVML");
    let windows = || {
        tmux(&[
            "list-windows",
            "-t",
            "=rigor-garage:",
            "-F",
            "#{window_name} #{pane_dead}",
        ])
        .unwrap()
    };
    assert_eq!(
        windows(),
        "brain 0\ngpu-1 0\ngpu-2 1\n",
        "the window of what ended stays"
    );
    assert!(
        tmux(&["capture-pane", "-p", "-t", "=rigor-garage:=brain"])
            .unwrap()
            .contains("brain is up")
    );

    std::fs::remove_file(rig.bin.join("broken")).unwrap();
    rig.rigor(&["up"]).ok().says("gpu-2 started");
    assert_eq!(windows(), "brain 0\ngpu-1 0\ngpu-2 0\n");
    rig.rigor(&["down"]).ok();
    assert_eq!(rig.alive(), [""; 0]);
    until("the session is gone with its last window", || {
        tmux(&["list-sessions", "-F", "#{session_name}"]).unwrap() == "rigor\n"
    });
}

/// Stands in for systemd: notes what it is asked.
const SYSTEMCTL: &str = r#"#!/bin/bash
here=$(dirname "$0")
[ -e "$here/no-manager" ] && { echo "Failed to connect to bus: No medium found" >&2; exit 1; }
echo "$*" >> "$here/asked"
shift
verb=$1; shift
if [ "$verb" = start ]; then
  for unit in "$@"; do
    line=$(grep ^ExecStart= "$XDG_CONFIG_HOME/systemd/user/$unit")
    eval "setsid ${line#ExecStart=} </dev/null >/dev/null 2>&1 &"
  done
fi
"#;

#[test]
fn boot_writes_units_that_start_what_up_starts() {
    let rig = Installed::new();
    let tools = rig.made.path().join("tools");
    std::fs::create_dir(&tools).unwrap();
    executable(&tools.join("systemctl"), SYSTEMCTL);
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    let boot = |words: &[&str]| {
        let mut command = rig.command(words);
        command
            .env("PATH", &path)
            .env("XDG_CONFIG_HOME", rig.made.path().join("config"));
        ran(command)
    };
    std::fs::write(tools.join("no-manager"), "").unwrap();
    boot(&["up", "--boot"])
        .exits(1)
        .says("systemd has no manager for this user")
        .says("without --boot");
    std::fs::remove_file(tools.join("no-manager")).unwrap();

    boot(&["up", "--boot"])
        .ok()
        .says("brain started")
        .says("loginctl enable-linger");
    let units = rig.made.path().join("config/systemd/user");
    let unit = std::fs::read_to_string(units.join("rigor-handmade-gpu-1.service")).unwrap();
    assert!(unit.contains("gpu-agent\" \"gpu-1\" \"--rig\""), "{unit}");
    assert!(
        unit.contains("KillMode=process") && unit.contains("WantedBy=default.target"),
        "{unit}"
    );
    let asked = || std::fs::read_to_string(tools.join("asked")).unwrap();
    assert!(
        asked().contains("--user enable rigor-handmade-brain.service rigor-handmade-gpu-1.service")
    );

    boot(&["down", "--boot"]).ok().says("removed");
    assert!(asked().contains("--user stop rigor-handmade-brain.service"));
    assert!(asked().contains("--user disable"));
    assert_eq!(std::fs::read_dir(&units).unwrap().count(), 0);
    assert_eq!(rig.alive(), [""; 0]);

    let mut command = rig.command(&["up", "--boot"]);
    command.env("PATH", rig.made.path().join("empty"));
    ran(command).exits(1).says("no systemctl here");
}
