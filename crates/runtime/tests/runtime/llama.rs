//! llama.cpp's own server with a model of random weights.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rigor_runtime::state::State;
use rigor_runtime::{
    COOKIE_VARIABLE, Health, LoadCause, LoadClass, ModelKind, RuntimeEvent, RuntimeProgram,
    UnloadError,
};
use serde_json::json;

use crate::bed::{
    Bed, fixture, fresh_uuid, llama, memory_as_vram, processes_with, session_of, stand_in_program,
    tiny, until,
};

#[tokio::test]
async fn a_chat_model_is_loaded_serves_and_is_gone_after_the_unload() {
    let uuid = fresh_uuid();
    let mut bed = Bed::with(|options| {
        let uuid = uuid.clone();
        options.gpu_uuid = Some(uuid.clone());
        options.vram = Some(Arc::new(move |_: &[String]| {
            Some(memory_as_vram(500, &uuid))
        }));
    });
    assert_eq!(bed.host.health().await, Health::NotHot);
    let loaded = bed.host.load(tiny()).await.unwrap();
    assert_eq!((loaded.slots, loaded.model.as_str()), (2, "tiny-random"));
    assert!(loaded.vram_delta_mb.unwrap() > 5, "{loaded:?}");
    assert_eq!(
        loaded.base_url,
        format!("http://127.0.0.1:{}", bed.options.port)
    );
    assert!(matches!(bed.event().await, RuntimeEvent::Ready(told) if told == loaded));
    assert_eq!(
        bed.state(),
        State::Hot {
            model: "tiny-random".into()
        }
    );
    assert_eq!(bed.host.health().await, Health::Serving);

    let nonce = bed.nonce();
    assert_eq!(bed.manifest()["pid"], loaded.pid);
    let pid = loaded.pid.to_string();
    assert_eq!(session_of(&pid), pid, "a session of its own");
    assert!(processes_with("CUDA_VISIBLE_DEVICES", &uuid).contains(&loaded.pid));

    let chat = json!({"max_tokens": 8, "ignore_eos": true, "messages": [{"role": "user", "content": "Name a tree."}]});
    let (status, answer) = bed.post("/v1/chat/completions", chat).await;
    assert_eq!(
        (status, &answer["usage"]["completion_tokens"]),
        (200, &json!(8)),
        "{answer}"
    );
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(
        text.chars().all(|c| c == ' ' || c.is_ascii_lowercase()) && !text.is_empty(),
        "{text:?}"
    );

    let refused = bed.host.load(tiny()).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "load tiny-random: cannot load tiny-random: the runtime is hot with tiny-random"
    );

    assert!(bed.host.drain().await.unwrap());
    assert_eq!(
        bed.state(),
        State::Draining {
            model: "tiny-random".into()
        }
    );
    let unloaded = bed.host.unload().await.unwrap();
    assert!(!unloaded.forced, "idle, it ends by SIGTERM: {unloaded:?}");
    assert!(matches!(bed.event().await, RuntimeEvent::Unloaded(told) if told == unloaded));
    assert_eq!(bed.state(), State::Cold);
    bed.assert_nothing_left(Some(&nonce));

    bed.host.load(tiny()).await.unwrap();
    assert_ne!(bed.nonce(), nonce);
    let nonce = bed.nonce();
    let Bed { host, options, .. } = bed;
    host.shutdown().await;
    assert_eq!(
        processes_with(rigor_runtime::COOKIE_VARIABLE, &nonce),
        Vec::<i32>::new()
    );
    assert!(!options.manifest_path.exists());
}

#[tokio::test]
async fn an_embedding_model_is_proven_by_a_vector() {
    let bed = Bed::new();
    let spec = llama(
        "tiny-random-embedding",
        ModelKind::Embedding,
        fixture("embedding_model"),
    );
    let loaded = bed.host.load(spec).await.unwrap();
    assert_eq!(loaded.vram_delta_mb, None);
    let (status, answer) = bed.post("/v1/embeddings", json!({"input": "oak"})).await;
    assert_eq!(
        (
            status,
            answer["data"][0]["embedding"].as_array().unwrap().len()
        ),
        (200, 64)
    );
    bed.host.unload().await.unwrap();
    bed.assert_nothing_left(None);

    // The same network without pooling is up and healthy, but gives no vector for a text.
    let unpooled = bed
        .host
        .load(llama("unpooled", ModelKind::Embedding, fixture("model")))
        .await
        .unwrap_err();
    assert_eq!(unpooled.cause.code(), "unproven", "{unpooled}");
    bed.assert_nothing_left(None);
}

#[tokio::test]
async fn a_file_that_cannot_be_loaded_fails_at_once_in_llama_cpps_words() {
    let mut bed = Bed::new();
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(fixture("model")).unwrap();
    let truncated = folder.path().join("truncated.gguf");
    std::fs::write(&truncated, &whole[..100_000]).unwrap();
    let text = folder.path().join("text.gguf");
    std::fs::write(&text, "a web page that says 404\n").unwrap();
    let cases: [(PathBuf, &str); 3] = [
        (
            folder.path().join("missing.gguf"),
            "No such file or directory",
        ),
        (
            truncated,
            "data is not within the file bounds, model is corrupted or incomplete",
        ),
        (text, "invalid magic characters"),
    ];
    for (file, words) in cases {
        let id = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let began = Instant::now();
        let error = bed
            .host
            .load(llama(&id, ModelKind::Chat, file))
            .await
            .unwrap_err();
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "at once, not by time-out: {:?}",
            began.elapsed()
        );
        let LoadCause::Exited { status, cause } = &error.cause else {
            panic!("{error:?}")
        };
        assert!(cause.contains(words), "{cause}");
        assert_eq!(status, "exit status: 1");
        let log = std::fs::read_to_string(error.log.unwrap()).unwrap();
        assert!(log.contains("exiting due to model loading error"), "{log}");
        let RuntimeEvent::Failed {
            model,
            code: "exited",
            class: LoadClass::Permanent,
            cause: told,
        } = bed.event().await
        else {
            panic!()
        };
        assert!(model == id && told.contains(words), "{told}");
        bed.assert_nothing_left(None);

        assert_eq!(error.cause.class(), LoadClass::Permanent, "{}", error.cause);
    }
    bed.host.load(tiny()).await.unwrap();
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_holder() {
    let bed = Bed::new();
    let listener = TcpListener::bind(("127.0.0.1", bed.options.port)).unwrap();
    let error = bed.host.load(tiny()).await.unwrap_err();
    let LoadCause::PortTaken { port, holder } = error.cause else {
        panic!("{error:?}")
    };
    assert_eq!(port, bed.options.port);
    assert!(
        holder
            .unwrap()
            .contains(&format!("(pid {})", std::process::id()))
    );
    drop(listener);
    bed.assert_nothing_left(None);
}

#[tokio::test]
async fn a_runtime_that_dies_while_hot_is_reported() {
    let mut bed = Bed::new();
    let loaded = bed.host.load(tiny()).await.unwrap();
    let nonce = bed.nonce();
    assert!(matches!(bed.event().await, RuntimeEvent::Ready(_)));
    kill(loaded.pid, rustix::process::Signal::KILL);
    let RuntimeEvent::Exited { model, status, .. } = bed.event().await else {
        panic!()
    };
    assert_eq!(
        (model.as_str(), status.as_str()),
        ("tiny-random", "signal: 9 (SIGKILL)")
    );
    assert!(matches!(bed.event().await, RuntimeEvent::Removed { model } if model == "tiny-random"));
    assert!(matches!(bed.state(), State::Failed { stuck: false, .. }));
    bed.assert_nothing_left(Some(&nonce));
    // The operator's unload forgets the failure.
    bed.host.unload().await.unwrap();
    bed.host.load(tiny()).await.unwrap();
}

#[tokio::test]
async fn a_generation_that_outlives_sigterm_is_killed_after_the_grace() {
    let bed = Bed::with(|options| options.grace = Duration::from_millis(500));
    let mut spec = tiny();
    spec.context = Some(32_768);
    bed.host.load(spec).await.unwrap();
    let nonce = bed.nonce();
    let body = json!({"max_tokens": 30_000, "ignore_eos": true, "messages": [{"role": "user", "content": "Go on."}]});
    let url = format!("http://127.0.0.1:{}", bed.options.port);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let slots = format!("{url}/slots");
    let generation = client
        .post(format!("{url}/v1/chat/completions"))
        .json(&body)
        .send();
    let generation = tokio::spawn(generation);
    let busy = async {
        loop {
            let slots: serde_json::Value = client
                .get(&slots)
                .send()
                .await
                .unwrap()
                .json()
                .await
                .unwrap();
            if slots
                .as_array()
                .unwrap()
                .iter()
                .any(|slot| slot["is_processing"] == true)
            {
                return;
            }
        }
    };
    tokio::time::timeout(crate::bed::PATIENCE, busy)
        .await
        .unwrap();
    let unloaded = bed.host.unload().await.unwrap();
    assert!(unloaded.forced && unloaded.unload_ms >= 500, "{unloaded:?}");
    assert!(
        generation.await.unwrap().is_err(),
        "the generation was cut off"
    );
    bed.assert_nothing_left(Some(&nonce));
}

#[tokio::test]
async fn a_model_that_is_not_in_vram_is_not_hot() {
    let bed = Bed::with(|options| {
        options.gpu_uuid = Some(fresh_uuid());
        options.vram = Some(Arc::new(|_: &[String]| Some(500)));
    });
    let error = bed.host.load(tiny()).await.unwrap_err();
    assert!(
        matches!(
            error.cause,
            LoadCause::NotInVram {
                delta_mb: 0,
                expected_mb: 1
            }
        ),
        "{error:?}"
    );
    assert!(error.left_behind.is_none());
    bed.assert_nothing_left(None);
}

#[tokio::test]
async fn vram_that_does_not_come_back_blocks_the_gpu_until_it_does() {
    let held_mb = Arc::new(AtomicU64::new(0));
    let held = held_mb.clone();
    let mut bed = Bed::with(|options| {
        let uuid = fresh_uuid();
        options.gpu_uuid = Some(uuid.clone());
        // Once the processes are gone the driver still counts what it holds.
        options.vram = Some(Arc::new(move |_: &[String]| {
            match memory_as_vram(500, &uuid) {
                500 => Some(500 + held.load(Ordering::Relaxed)),
                in_use => Some(in_use),
            }
        }));
        options.vram_patience = Duration::from_millis(500);
    });
    bed.host.load(tiny()).await.unwrap();
    assert!(matches!(bed.event().await, RuntimeEvent::Ready(_)));
    held_mb.store(5_000, Ordering::Relaxed);
    let error = bed.host.unload().await.unwrap_err();
    assert!(
        matches!(
            error,
            UnloadError::Vram {
                used_mb: Some(5_500),
                expected_mb: ..600,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(matches!(bed.event().await, RuntimeEvent::Stuck { .. }));
    let refused = bed.host.load(tiny()).await.unwrap_err().to_string();
    assert!(
        refused.contains("left processes or VRAM behind"),
        "{refused}"
    );
    held_mb.store(0, Ordering::Relaxed);
    bed.host.unload().await.unwrap();
    bed.host.load(tiny()).await.unwrap();
}

/// It names the same model on the same port, but is not in the tree of what was started.
#[tokio::test]
async fn somebody_elses_server_is_not_taken_for_ours() {
    let bed = Bed::new();
    let folder = tempfile::tempdir().unwrap();
    let (program, pid_file) = (
        folder.path().join("llama-server"),
        folder.path().join("pid"),
    );
    let script = format!(
        "#!/bin/sh\nsetsid env -u {COOKIE_VARIABLE} {} --model none --alias tiny-random --port {} & echo $! >{}\nexec sleep 600\n",
        stand_in_program().display(),
        bed.options.port,
        pid_file.display(),
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut spec = tiny();
    spec.program = RuntimeProgram::LlamaServer {
        program,
        file: fixture("model"),
        args: vec![],
    };
    let error = bed.host.load(spec).await.unwrap_err();
    let stranger: i32 = std::fs::read_to_string(pid_file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let LoadCause::NotOurs { holder, .. } = &error.cause else {
        panic!("{error:?}")
    };
    assert!(
        holder
            .as_ref()
            .unwrap()
            .contains(&format!("(pid {stranger})")),
        "{holder:?} {stranger}"
    );
    kill(stranger, rustix::process::Signal::KILL);
}

#[tokio::test]
async fn a_load_that_is_given_up_leaves_nothing() {
    let mut bed = Bed::new();
    let loading = bed.host.load(bed.stand_in(json!({"never_ready": true})));
    let given_up = tokio::time::timeout(Duration::from_millis(500), loading).await;
    assert!(given_up.is_err());
    let RuntimeEvent::Failed {
        code: "cancelled", ..
    } = bed.event().await
    else {
        panic!()
    };
    let state = bed.host.state();
    until("cold", || *state.borrow() == State::Cold).await;
    bed.assert_nothing_left(None);
    bed.host.load(tiny()).await.unwrap();
}

fn kill(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}
