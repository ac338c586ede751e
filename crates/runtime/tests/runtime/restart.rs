//! What an agent that was killed leaves, its next start finds.

use std::process::Command;

use rigor_runtime::state::State;
use rigor_runtime::{COOKIE_VARIABLE, RuntimeHost};

use crate::bed::{Bed, processes_with, session_of, stand_in, tiny, until};

#[tokio::test]
async fn the_runtime_of_a_killed_agent_is_reaped() {
    let killed = Bed::new();
    assert_eq!(killed.host.adopt_or_reap().await.unwrap(), None);
    let loaded = killed.host.load(tiny()).await.unwrap();
    let nonce = killed.nonce();

    let (host, _events) = RuntimeHost::new(killed.options.clone()).unwrap();
    let reaped = host.adopt_or_reap().await.unwrap().unwrap();
    assert_eq!(
        (
            reaped.killed,
            reaped.manifest.pid,
            reaped.manifest.model.as_str()
        ),
        (1, Some(loaded.pid), "tiny-random")
    );
    killed.assert_nothing_left(Some(&nonce));
    host.load(tiny()).await.unwrap();
    host.shutdown().await;
}

/// Killed between the start of the process and the completion of the manifest.
#[tokio::test]
async fn the_nonce_alone_is_enough_and_a_load_reaps_too() {
    let killed = Bed::new();
    killed.host.load(stand_in("deaf")).await.unwrap();
    let nonce = killed.nonce();
    let mut manifest = killed.manifest();
    manifest["pid"] = serde_json::Value::Null;
    manifest["start_ticks"] = serde_json::Value::Null;
    std::fs::write(&killed.options.manifest_path, manifest.to_string()).unwrap();

    let (host, _events) = RuntimeHost::new(killed.options.clone()).unwrap();
    host.load(stand_in("well")).await.unwrap();
    assert_eq!(processes_with(COOKIE_VARIABLE, &nonce), Vec::<i32>::new());
    host.shutdown().await;
}

/// The number in the manifest has passed to somebody else.
#[tokio::test]
async fn a_bystander_with_the_same_number_is_left_alone() {
    let bed = Bed::new();
    // Leader of a session, as a runtime is.
    let mut bystander = Command::new("setsid")
        .args(["sleep", "600"])
        .spawn()
        .unwrap();
    let pid = bystander.id().to_string();
    until("its session", || session_of(&pid) == pid).await;
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let manifest = serde_json::json!({
        "schema": 1, "agent": "gpu-1", "model": "m", "port": bed.options.port, "nonce": "0f".repeat(16),
        "boot_id": boot_id.trim(), "pid": bystander.id(), "start_ticks": 1, "log": "/dev/null",
        "started_at": "2026-01-01T00:00:00Z",
    });
    std::fs::write(&bed.options.manifest_path, manifest.to_string()).unwrap();
    let reaped = bed.host.adopt_or_reap().await.unwrap().unwrap();
    assert_eq!(reaped.killed, 0);
    assert!(bystander.try_wait().unwrap().is_none(), "it lives");
    assert!(!bed.options.manifest_path.exists());
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[tokio::test]
async fn an_unreadable_manifest_stops_a_load_and_says_what_to_do() {
    let bed = Bed::new();
    for text in ["{", r#"{"schema": 99}"#] {
        std::fs::write(&bed.options.manifest_path, text).unwrap();
        let error = bed.host.adopt_or_reap().await.unwrap_err().to_string();
        assert!(error.contains("remove the file"), "{error}");
    }
    let error = bed.host.load(tiny()).await.unwrap_err();
    assert_eq!(error.cause.code(), "leftover");
    assert!(matches!(bed.state(), State::Failed { stuck: false, .. }));
    assert!(
        bed.options.manifest_path.exists(),
        "nothing was thrown away"
    );
}
