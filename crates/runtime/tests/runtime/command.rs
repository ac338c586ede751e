//! The `command` runtime, against a stand-in that lies, crashes and will not stop.

use std::time::Duration;

use rigor_runtime::state::State;
use rigor_runtime::{LoadCause, RuntimeProgram};

use serde_json::json;

use crate::bed::{Bed, processes_with, until};

#[tokio::test]
async fn one_that_serves_is_hot_and_ends_by_sigterm() {
    let bed = Bed::new();
    bed.host.load(bed.stand_in(json!({}))).await.unwrap();
    assert!(!bed.host.unload().await.unwrap().forced);
    bed.assert_nothing_left(None);
}

#[tokio::test]
async fn one_that_is_still_loading_is_waited_for_and_named_by_a_time_out() {
    let bed = Bed::new();
    let mut hasty = bed.stand_in(json!({"load_ms": 500}));
    hasty.id = "hasty".into();
    hasty.load_timeout = Duration::from_millis(450);
    let error = bed.host.load(hasty).await.unwrap_err();
    let LoadCause::TimedOut { last, .. } = &error.cause else {
        panic!("{error:?}")
    };
    // A slow interpreter may not have come as far as listening.
    assert!(
        last.contains("Loading model") || last.contains("refused"),
        "{last}"
    );
    let loaded = bed
        .host
        .load(bed.stand_in(json!({"load_ms": 500})))
        .await
        .unwrap();
    assert!(loaded.load_ms >= 500, "{loaded:?}");
}

#[tokio::test]
async fn health_is_no_proof() {
    let bed = Bed::new();
    let liar = bed.stand_in(json!({"health_lies": true}));
    let error = bed.host.load(liar).await.unwrap_err();
    let LoadCause::Unproven(detail) = &error.cause else {
        panic!("{error:?}")
    };
    assert!(detail.contains("500"), "{detail}");
    bed.assert_nothing_left(None);
}

#[tokio::test]
async fn another_model_is_not_ours() {
    let bed = Bed::new();
    let error = bed
        .host
        .load(bed.stand_in(json!({"wrong_model": "somebody-elses"})))
        .await
        .unwrap_err();
    let LoadCause::WrongModel { expected, served } = error.cause else {
        panic!("{error:?}")
    };
    assert_eq!(
        (expected.as_str(), served),
        ("stand-in", vec!["somebody-elses".to_owned()])
    );
    bed.assert_nothing_left(None);
}

#[tokio::test]
async fn a_crash_is_told_in_its_own_words() {
    let bed = Bed::new();
    let error = bed.host.load(bed.stand_in(json!({"exit_code": 1, "stderr": "loading weights\nRuntimeError: the weights are for another architecture"}))).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "load stand-in: RuntimeError: the weights are for another architecture (exit status: 1)"
    );
    bed.assert_nothing_left(None);

    let mut missing = bed.stand_in(json!({}));
    missing.id = "missing".into();
    missing.program = RuntimeProgram::Command {
        command: vec!["/no/such/program".into()],
        file: None,
    };
    let error = bed.host.load(missing).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("start \"/no/such/program\": No such file"),
        "{error}"
    );
    assert!(matches!(bed.state(), State::Failed { stuck: false, .. }));
    bed.assert_nothing_left(None);
}

#[tokio::test]
async fn one_that_never_answers_is_timed_out() {
    let bed = Bed::new();
    let mut spec = bed.stand_in(json!({"never_ready": true}));
    spec.load_timeout = Duration::from_millis(400);
    let error = bed.host.load(spec).await.unwrap_err();
    let LoadCause::TimedOut { last, .. } = &error.cause else {
        panic!("{error:?}")
    };
    assert!(last.contains("503") || last.contains("refused"), "{last}");
    bed.assert_nothing_left(None);
}

#[tokio::test]
async fn one_that_ignores_sigterm_is_killed() {
    let bed = Bed::with(|options| options.grace = Duration::from_millis(300));
    bed.host
        .load(bed.stand_in(json!({"ignore_sigterm": true})))
        .await
        .unwrap();
    let nonce = bed.nonce();
    assert!(bed.host.unload().await.unwrap().forced);
    bed.assert_nothing_left(Some(&nonce));
}

#[tokio::test]
async fn a_process_that_left_the_session_is_found_by_its_cookie() {
    let bed = Bed::new();
    bed.host
        .load(bed.stand_in(json!({"leak_child": true})))
        .await
        .unwrap();
    let nonce = bed.nonce();
    until("two processes", || {
        processes_with(rigor_runtime::COOKIE_VARIABLE, &nonce).len() == 2
    })
    .await;
    bed.host.unload().await.unwrap();
    bed.assert_nothing_left(Some(&nonce));
}

#[tokio::test]
async fn an_unload_gives_up_a_load() {
    let bed = Bed::new();
    let load = bed.host.load(bed.stand_in(json!({"never_ready": true})));
    let state = bed.host.state();
    let unload = async {
        until("loading", || {
            matches!(*state.borrow(), State::Loading { .. })
        })
        .await;
        bed.host.unload().await
    };
    let (loaded, unloaded) = tokio::join!(load, unload);
    assert!(matches!(loaded.unwrap_err().cause, LoadCause::Cancelled));
    assert_eq!(unloaded.unwrap().model, "stand-in");
    assert_eq!(bed.state(), State::Cold);
    bed.assert_nothing_left(None);
}
