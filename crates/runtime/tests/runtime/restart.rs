//! What an agent that was killed leaves, its next start takes over or removes.

use std::process::Command;
use std::time::Duration;

use rigor_runtime::state::State;
use rigor_runtime::{COOKIE_VARIABLE, Found, Health, Loaded, ModelSpec, RuntimeEvent, RuntimeHost};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::bed::{Bed, PATIENCE, processes_with, session_of, tiny, until};

/// The next agent of the same name, and what it has found.
async fn successor(
    killed: &Bed,
    catalogue: Vec<ModelSpec>,
) -> (RuntimeHost, UnboundedReceiver<RuntimeEvent>, Found) {
    let (host, events) = RuntimeHost::new(killed.options.clone()).unwrap();
    let found = host.adopt_or_reap(catalogue).await.unwrap();
    (host, events, found)
}

#[track_caller]
fn reaped(found: Found, why: &str) {
    let Found::Reaped(reaped) = found else {
        panic!("{found:?}")
    };
    assert!(reaped.why.contains(why), "{}", reaped.why);
}

fn end(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

async fn told(events: &mut UnboundedReceiver<RuntimeEvent>) -> RuntimeEvent {
    tokio::time::timeout(PATIENCE, events.recv())
        .await
        .expect("an event in time")
        .expect("the host lives")
}

#[tokio::test]
async fn llama_cpps_server_of_a_killed_agent_is_adopted_without_a_load() {
    let killed = Bed::new();
    assert_eq!(
        killed.host.adopt_or_reap(vec![tiny()]).await.unwrap(),
        Found::Nothing
    );
    let loaded = killed.host.load(tiny()).await.unwrap();
    let nonce = killed.nonce();

    let (host, mut events, found) = successor(&killed, vec![tiny()]).await;
    let Found::Adopted {
        loaded: adopted, ..
    } = found
    else {
        panic!("{found:?}")
    };
    assert_eq!(
        adopted,
        Loaded {
            note: None,
            ..loaded
        }
    );
    assert!(matches!(&*host.state().borrow(), State::Hot { model } if model == "tiny-random"));
    assert_eq!(host.health().await, Health::Serving);
    assert_eq!(
        processes_with(COOKIE_VARIABLE, &nonce),
        [adopted.pid],
        "the same process"
    );
    // It is not its child, and stopped as well as one.
    assert!(!host.unload().await.unwrap().forced);
    assert!(matches!(told(&mut events).await, RuntimeEvent::Unloaded(_)));
    killed.assert_nothing_left(Some(&nonce));
    host.load(tiny()).await.unwrap();
    host.shutdown().await;
}

#[tokio::test]
async fn the_end_of_an_adopted_runtime_is_noticed() {
    let killed = Bed::new();
    let spec = killed.stand_in(json!({"leak_child": true}));
    let loaded = killed.host.load(spec.clone()).await.unwrap();
    let nonce = killed.nonce();
    until("the child", || {
        processes_with(COOKIE_VARIABLE, &nonce).len() == 2
    })
    .await;
    let (host, mut events, found) = successor(&killed, vec![spec]).await;
    assert!(matches!(found, Found::Adopted { .. }), "{found:?}");
    end(loaded.pid, Signal::KILL);
    assert!(matches!(
        told(&mut events).await,
        RuntimeEvent::Exited { .. }
    ));
    assert!(matches!(
        told(&mut events).await,
        RuntimeEvent::Removed { .. }
    ));
    assert_eq!(processes_with(COOKIE_VARIABLE, &nonce), Vec::<i32>::new());
    assert!(matches!(
        &*host.state().borrow(),
        State::Failed { stuck: false, .. }
    ));
}

#[tokio::test]
async fn what_would_be_started_otherwise_is_reaped() {
    let killed = Bed::new();
    let spec = killed.stand_in(json!({}));
    killed.host.load(spec.clone()).await.unwrap();
    let nonce = killed.nonce();
    let mut other = spec;
    other.slots += 1;
    // A command without {SLOTS} is started alike, whatever their number: the environment is not.
    other.env.push(("MORE".into(), "1".into()));
    let (_host, _events, found) = successor(&killed, vec![other]).await;
    reaped(found, "it was started with other settings");
    killed.assert_nothing_left(Some(&nonce));
}

#[tokio::test]
async fn one_over_several_gpus_is_reaped_for_that_and_not_for_rig_toml() {
    let killed = Bed::new();
    killed.host.load(killed.stand_in(json!({}))).await.unwrap();
    let nonce = killed.nonce();
    let mut manifest = killed.manifest();
    manifest["proven"]["gpus"] = json!(["GPU-1", "GPU-2"]);
    std::fs::write(&killed.options.manifest_path, manifest.to_string()).unwrap();
    // The catalogue is of models that one GPU serves.
    let (_host, _events, found) = successor(&killed, vec![tiny()]).await;
    reaped(found, "over several GPUs is not taken over, and it is on 2");
    killed.assert_nothing_left(Some(&nonce));
}

#[tokio::test]
async fn what_is_not_in_the_catalogue_is_reaped() {
    let killed = Bed::new();
    killed.host.load(killed.stand_in(json!({}))).await.unwrap();
    let nonce = killed.nonce();
    let (_host, _events, found) = successor(&killed, vec![tiny()]).await;
    reaped(found, "no such model any more");
    killed.assert_nothing_left(Some(&nonce));
}

#[tokio::test]
async fn one_whose_file_was_replaced_is_reaped() {
    let killed = Bed::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    std::fs::copy(crate::bed::fixture("model"), &file).unwrap();
    let spec = crate::bed::llama("own", rigor_runtime::ModelKind::Chat, file.clone());
    killed.host.load(spec.clone()).await.unwrap();
    let new = folder.path().join("new");
    std::fs::copy(crate::bed::fixture("model"), &new).unwrap();
    std::fs::rename(new, &file).unwrap();
    let (_host, _events, found) = successor(&killed, vec![spec]).await;
    reaped(found, "file or program has changed");
}

#[tokio::test]
async fn one_that_does_not_generate_is_reaped() {
    let killed = Bed::new();
    let spec = killed.stand_in(json!({}));
    killed.host.load(spec.clone()).await.unwrap();
    let nonce = killed.nonce();
    killed.tell(json!({"health_lies": true}));
    let (_host, _events, found) = successor(&killed, vec![spec]).await;
    reaped(found, "it does not generate: /v1/chat/completions: 500");
    killed.assert_nothing_left(Some(&nonce));
}

/// Killed during the load: it is loaded again.
#[tokio::test]
async fn one_that_was_still_loading_is_reaped() {
    let killed = Bed::new();
    let spec = killed.stand_in(json!({"never_ready": true}));
    let loading = killed.host.load(spec.clone());
    let succeeded = async {
        until("its process", || {
            std::fs::read(&killed.options.manifest_path).is_ok_and(|text| {
                serde_json::from_slice::<serde_json::Value>(&text)
                    .is_ok_and(|manifest| manifest["pid"].is_i64())
            })
        })
        .await;
        let nonce = killed.nonce();
        (successor(&killed, vec![spec.clone()]).await, nonce)
    };
    let (failed, ((host, _events, found), nonce)) = tokio::join!(loading, succeeded);
    failed.unwrap_err();
    reaped(found, "it had not finished loading");
    killed.assert_nothing_left(Some(&nonce));
    killed.tell(json!({}));
    host.load(spec).await.unwrap();
    host.shutdown().await;
}

/// Killed between the start of the process and the completion of the manifest.
#[tokio::test]
async fn the_nonce_alone_is_enough_and_a_load_reaps_too() {
    let bed = Bed::new();
    bed.host
        .load(bed.stand_in(json!({"ignore_sigterm": true})))
        .await
        .unwrap();
    let nonce = bed.nonce();
    let mut manifest = bed.manifest();
    manifest["pid"] = serde_json::Value::Null;
    manifest["start_ticks"] = serde_json::Value::Null;
    std::fs::write(&bed.options.manifest_path, manifest.to_string()).unwrap();

    let (host, _events) = RuntimeHost::new(bed.options.clone()).unwrap();
    host.load(bed.stand_in(json!({}))).await.unwrap();
    assert_eq!(processes_with(COOKIE_VARIABLE, &nonce), Vec::<i32>::new());
    host.shutdown().await;
}

/// The number in the manifest has passed to somebody else.
#[tokio::test]
async fn a_bystander_with_the_same_number_is_left_alone() {
    let bed = Bed::new();
    let spec = bed.stand_in(json!({}));
    bed.host.load(spec.clone()).await.unwrap();
    let mut manifest = bed.manifest();
    bed.host.unload().await.unwrap();
    // Leader of a session, as a runtime is.
    let mut bystander = Command::new("setsid")
        .args(["sleep", "600"])
        .spawn()
        .unwrap();
    let pid = bystander.id().to_string();
    until("its session", || session_of(&pid) == pid).await;
    manifest["pid"] = bystander.id().into();
    std::fs::write(&bed.options.manifest_path, manifest.to_string()).unwrap();
    let found = bed.host.adopt_or_reap(vec![spec]).await.unwrap();
    let Found::Reaped(reaped) = found else {
        panic!("{found:?}")
    };
    assert_eq!(
        (reaped.killed, reaped.why.as_str()),
        (0, "its process has ended")
    );
    assert!(bystander.try_wait().unwrap().is_none(), "it lives");
    assert!(!bed.options.manifest_path.exists());
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

/// The number and its start are those of the manifest, but not the nonce.
#[tokio::test]
async fn one_without_the_nonce_is_not_adopted() {
    let killed = Bed::new();
    let spec = killed.stand_in(json!({}));
    killed.host.load(spec.clone()).await.unwrap();
    let mut manifest = killed.manifest();
    manifest["nonce"] = "0f".repeat(16).into();
    std::fs::write(&killed.options.manifest_path, manifest.to_string()).unwrap();
    let (_host, _events, found) = successor(&killed, vec![spec]).await;
    reaped(found, "does not bear its nonce");
}

#[tokio::test]
async fn an_orphan_is_told_with_its_processes_until_it_ends() {
    let bed = Bed::new();
    assert_eq!(rigor_runtime::orphan(&bed.options.manifest_path), None);
    let loaded = bed.host.load(bed.stand_in(json!({}))).await.unwrap();
    assert_eq!(
        rigor_runtime::orphan(&bed.options.manifest_path),
        Some(("stand-in".to_owned(), vec![loaded.pid]))
    );
    bed.host.unload().await.unwrap();
    assert_eq!(rigor_runtime::orphan(&bed.options.manifest_path), None);
}

#[tokio::test]
async fn an_unreadable_manifest_stops_a_load_and_says_what_to_do() {
    let bed = Bed::new();
    for text in ["{", r#"{"schema": 99}"#] {
        std::fs::write(&bed.options.manifest_path, text).unwrap();
        let error = bed
            .host
            .adopt_or_reap(vec![])
            .await
            .unwrap_err()
            .to_string();
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

/// An agent that is stopped in order leaves nothing to adopt.
#[tokio::test]
async fn a_shutdown_stops_what_was_adopted() {
    let killed = Bed::new();
    let spec = killed.stand_in(json!({"ignore_sigterm": true}));
    killed.host.load(spec.clone()).await.unwrap();
    let nonce = killed.nonce();
    let mut options = killed.options.clone();
    options.grace = Duration::from_millis(200);
    let (host, _events) = RuntimeHost::new(options).unwrap();
    let found = host.adopt_or_reap(vec![spec]).await.unwrap();
    assert!(matches!(found, Found::Adopted { .. }), "{found:?}");
    host.shutdown().await;
    killed.assert_nothing_left(Some(&nonce));
}
