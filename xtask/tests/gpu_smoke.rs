//! The GPU smoke test itself, on a stand-in GPU: that its steps work and that its report says that
//! they are simulated. Nothing about GPUs.

use std::path::Path;
use std::process::Command;

#[test]
fn every_step_that_a_stand_in_allows_passes() {
    let out = tempfile::tempdir().unwrap();
    let xtask = Path::new(env!("CARGO_BIN_EXE_xtask"));
    let run = Command::new(xtask)
        .args(["gpu-smoke", "--simulated", "--no-build", "--out"])
        .arg(out.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}\n{errors}");
    let report = std::fs::read(out.path().join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["simulated"], true);
    let results: Vec<&str> = report["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["result"].as_str().unwrap())
        .collect();
    let count = |wanted: &str| results.iter().filter(|result| **result == wanted).count();
    assert_eq!((count("passed"), count("skipped")), (10, 2), "{said}");
    let text = std::fs::read_to_string(out.path().join("report.md")).unwrap();
    assert!(text.contains("**Simulated**"), "{text}");
}
