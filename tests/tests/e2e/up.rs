//! `rigor up` and `rigor down`.

use std::process::Command;

use rigor_tests::{Rig, Setup, parts};

fn all_alive(rig: &Rig, alive: bool) -> bool {
    let status = rig.status();
    let agents = status["agents"].as_array().unwrap();
    status["brain"]["alive"] == alive
        && agents.len() == 3
        && agents.iter().all(|one| one["alive"] == alive)
}

fn up_and_down(rig: &Rig, up: Command, down: Command) {
    let said = rig.output(up);
    assert_eq!(said.code, 0, "{}", said.stderr);
    rig.wait("everything is alive", |rig| all_alive(rig, true));
    let plan = rig.plan(
        "hello",
        "### works\n\n- **task_class**: cpu\n- **command**: `true`\n",
    );
    let batch = rig.submit(&plan);
    assert_eq!(rig.wait_short_batch(&batch), 0);
    let said = rig.output(down);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(all_alive(rig, false));
    rig.wait("nothing is left running", |rig| rig.processes().is_empty());
}

fn three() -> Rig {
    Setup {
        gpus: 2,
        cpu_agents: 1,
        ..Setup::default()
    }
    .make()
}

#[test]
fn up_and_down_in_the_background() {
    let rig = three();
    up_and_down(
        &rig,
        rig.rigor_command(&["up", "--no-tmux"]),
        rig.rigor_command(&["down"]),
    );
    // And once more, on what the first time left.
    up_and_down(
        &rig,
        rig.rigor_command(&["up", "--no-tmux"]),
        rig.rigor_command(&["down"]),
    );
}

#[test]
fn up_and_down_in_tmux() {
    if !parts::on_path("tmux") {
        eprintln!("skipped: there is no tmux on PATH");
        return;
    }
    let rig = three();
    // A server of its own: the user's sessions are not touched, and it takes this environment.
    let server = tempfile::tempdir().unwrap();
    let tmux = |words: &[&str]| {
        let mut command = Command::new("tmux");
        command
            .args(words)
            .env("TMUX_TMPDIR", server.path())
            .env_remove("TMUX");
        command
    };
    let with = |words: &[&str]| {
        let mut command = rig.rigor_command(words);
        command.env("TMUX_TMPDIR", server.path()).env_remove("TMUX");
        command
    };
    let said = rig.output(with(&["up"]));
    assert_eq!(said.code, 0, "{}", said.stderr);
    rig.wait("everything is alive", |rig| all_alive(rig, true));
    let windows = rig.output(tmux(&[
        "list-windows",
        "-a",
        "-F",
        "#{session_name} #{window_name}",
    ]));
    for window in ["brain", "gpu-1", "gpu-2", "cpu-1"] {
        assert!(
            windows
                .stdout
                .lines()
                .any(|line| line.ends_with(&format!(" {window}"))),
            "{window}: {windows:?}"
        );
    }
    up_and_down(&rig, with(&["up"]), with(&["down"]));
    let sessions = rig.output(tmux(&["list-sessions"]));
    assert!(!sessions.stdout.contains("rigor"), "{sessions:?}");
}
