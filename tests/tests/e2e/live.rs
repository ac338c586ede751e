//! The simulator against a real rig.

use std::fs::{self, File};
use std::process::Command;
use std::time::{Duration, Instant};

use rigor_tests::parts;

/// A run takes less than half a minute.
const PATIENCE: Duration = Duration::from_secs(150);

/// Three agents, real workers, stand-in runtimes of a fixed latency: the simulator predicts the
/// makespan within 15%. It is the command that a person runs.
#[test]
fn the_simulator_predicts_a_live_run() {
    for name in [
        "simulator",
        "runtime-stand-in",
        "brain",
        "gpu-agent",
        "worker",
        "rigor",
    ] {
        parts::program(name);
    }
    let dir = tempfile::tempdir().unwrap();
    let (said, complained) = (dir.path().join("stdout"), dir.path().join("stderr"));
    let mut child = Command::new(parts::program("xtask"))
        .args(["simulate", "--live", "--no-build", "--check"])
        .args(["traces/live/founding.toml", "--dir"])
        .arg(dir.path().join("live"))
        .current_dir(parts::workspace())
        .stdout(File::create(&said).unwrap())
        .stderr(File::create(&complained).unwrap())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            // Its programs end with it.
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the live run does not end");
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let text = fs::read_to_string(&said).unwrap();
    let complaint = fs::read_to_string(&complained).unwrap();
    assert!(status.success(), "{text}{complaint}");
    assert!(text.contains("loads: 3 predicted, 3 measured"), "{text}");
    println!("{text}");
}
