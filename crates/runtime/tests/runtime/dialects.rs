//! ollama and vLLM as the stand-in speaks them (neither is on a machine without a GPU), and what
//! goes wrong with any runtime that serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rigor_runtime::state::State;
use rigor_runtime::{
    COOKIE_VARIABLE, Health, LoadCause, LoadClass, RuntimeEvent, RuntimeProgram, UnloadError,
};
use serde_json::{Value, json};

use crate::bed::{Bed, PATIENCE, fresh_uuid, processes_with, stand_in_program, until};

/// A bed with a GPU on which each process that claims memory takes what it claims.
fn on_gpu() -> Bed {
    Bed::with(|options| {
        let uuid = fresh_uuid();
        options.gpu_uuid = Some(uuid.clone());
        options.vram = Some(Arc::new(move |uuids: &[String]| {
            assert_eq!(uuids, std::slice::from_ref(&uuid));
            Some(500 + claimed_mb(&uuid))
        }));
    })
}

fn claimed_mb(uuid: &str) -> u64 {
    let processes = processes_with("CUDA_VISIBLE_DEVICES", uuid);
    let claims = processes.into_iter().map(|pid| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let claim = environ
            .split(|byte| *byte == 0)
            .find_map(|entry| entry.strip_prefix(b"RIGOR_SIM_VRAM_MB="));
        claim.map_or(0, |mb| String::from_utf8_lossy(mb).parse().unwrap_or(0))
    });
    claims.sum()
}

#[tokio::test]
async fn ollama_is_served_under_its_tag_and_loaded_by_the_proof() {
    let bed = on_gpu();
    let spec = bed.ollama(json!({"vram_mb": 900, "pulled": ["qwen2.5:7b"]}));
    let loaded = bed.host.load(spec).await.unwrap();
    assert_eq!(
        (loaded.model.as_str(), loaded.served_as.as_str()),
        ("stand-in", "qwen2.5:7b")
    );
    assert_eq!((loaded.vram_delta_mb, &loaded.note), (Some(900), &None));
    assert_eq!(bed.host.health().await, Health::Serving);
    let nonce = bed.nonce();
    let environ = |name: &str| {
        let environ = std::fs::read(format!("/proc/{}/environ", loaded.pid)).unwrap();
        let text = String::from_utf8_lossy(&environ).into_owned();
        let entry = text
            .split('\0')
            .find_map(|entry| entry.strip_prefix(&format!("{name}=")).map(str::to_owned));
        entry.unwrap_or_default()
    };
    assert_eq!(
        [
            "OLLAMA_NUM_PARALLEL",
            "OLLAMA_CONTEXT_LENGTH",
            "OLLAMA_KEEP_ALIVE",
            "OLLAMA_MAX_LOADED_MODELS",
            "OLLAMA_HOST"
        ]
        .map(environ),
        [
            "2".to_owned(),
            "1024".to_owned(),
            "-1".to_owned(),
            "1".to_owned(),
            format!("127.0.0.1:{}", bed.options.port)
        ]
    );
    // Its runner goes with the server: no unload by `keep_alive` that answers too early.
    assert!(processes_with(COOKIE_VARIABLE, &nonce).len() > 1);
    bed.host.unload().await.unwrap();
    bed.assert_nothing_left(Some(&nonce));
}

#[tokio::test]
async fn a_model_that_ollama_keeps_partly_on_the_cpu_is_told_with_numbers() {
    let bed = on_gpu();
    let spec = bed.ollama(json!({"vram_mb": 900, "size_vram_mb": 600}));
    let note = bed.host.load(spec).await.unwrap().note.unwrap();
    assert!(
        note.starts_with("300 of its 900 MB are not in VRAM"),
        "{note}"
    );
}

#[tokio::test]
async fn a_model_that_was_not_pulled_fails_for_good_and_says_how_to_pull_it() {
    let bed = on_gpu();
    let spec = bed.ollama(json!({"pulled": ["llama3.2:1b"]}));
    let error = bed.host.load(spec).await.unwrap_err();
    assert_eq!(
        (error.cause.code(), error.cause.class()),
        ("not_pulled", LoadClass::Permanent)
    );
    assert!(
        error.to_string().contains("run `ollama pull qwen2.5:7b`"),
        "{error}"
    );
    bed.assert_nothing_left(None);
}

#[tokio::test]
async fn memory_that_is_too_small_is_a_class_of_its_own_in_each_dialect() {
    let bed = on_gpu();
    let behaviour = || json!({"out_of_memory": true});
    let llama = RuntimeProgram::LlamaServer {
        program: stand_in_program(),
        file: "none.gguf".into(),
        args: vec![],
    };
    for spec in [
        bed.ollama(behaviour()),
        bed.vllm(behaviour()),
        bed.stand_in_as(llama, behaviour()),
    ] {
        let program = format!("{:?}", spec.program);
        let error = bed.host.load(spec).await.unwrap_err();
        assert_eq!(
            error.cause.class(),
            LoadClass::OutOfMemory,
            "{program}: {error}"
        );
        bed.assert_nothing_left(None);
    }
}

#[tokio::test]
async fn vllms_engine_that_survives_its_server_is_removed_by_its_cookie() {
    let mut bed = on_gpu();
    let spec = bed.vllm(json!({"vram_mb": 700, "leak_child": true}));
    let loaded = bed.host.load(spec).await.unwrap();
    assert_eq!(loaded.served_as, "stand-in");
    assert!(matches!(bed.event().await, RuntimeEvent::Ready(_)));
    let nonce = bed.nonce();
    until("the engine", || {
        processes_with(COOKIE_VARIABLE, &nonce).len() == 2
    })
    .await;
    let line = std::fs::read(format!("/proc/{}/cmdline", loaded.pid)).unwrap();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    for words in [
        "serve Qwen/Qwen2.5-7B-Instruct --served-model-name stand-in",
        "--max-num-seqs 2 --max-model-len 1024 --gpu-memory-utilization 0.800 --tensor-parallel-size 1",
    ] {
        assert!(line.contains(words), "{line}");
    }
    let pid = rustix::process::Pid::from_raw(loaded.pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert!(matches!(bed.event().await, RuntimeEvent::Exited { .. }));
    assert!(matches!(bed.event().await, RuntimeEvent::Removed { .. }));
    bed.assert_nothing_left(Some(&nonce));
}

/// Releases of vLLM before 0.24 end at once when they find a UUID there.
#[tokio::test]
async fn vllm_is_shown_its_gpus_by_index_in_nvmls_order_and_others_by_uuid() {
    for is_vllm in [true, false] {
        let (own, other) = (fresh_uuid(), fresh_uuid());
        let bed = Bed::with(|options| options.gpu_uuid = Some(own.clone()));
        let mut spec = match is_vllm {
            true => bed.vllm(json!({})),
            false => bed.stand_in(json!({})),
        };
        spec.more_gpus = vec![other.clone()];
        spec.gpu_indices = vec![2, 0];
        let loaded = bed.host.load(spec).await.unwrap();
        let environ = std::fs::read(format!("/proc/{}/environ", loaded.pid)).unwrap();
        let environ = String::from_utf8_lossy(&environ).into_owned();
        let has = |entry: &str| environ.split('\0').any(|it| it == entry);
        let by_uuid = format!("CUDA_VISIBLE_DEVICES={own},{other}");
        assert_eq!(has(&by_uuid), !is_vllm, "{environ}");
        assert_eq!(has("CUDA_VISIBLE_DEVICES=2,0"), is_vllm, "{environ}");
        assert_eq!(has("CUDA_DEVICE_ORDER=PCI_BUS_ID"), is_vllm, "{environ}");
        bed.host.unload().await.unwrap();
    }
}

/// Both GPUs are named to it, and what either of them still holds blocks both.
#[tokio::test]
async fn a_model_over_two_gpus_is_proven_and_returned_on_both() {
    let (own, other) = (fresh_uuid(), fresh_uuid());
    let held_mb = Arc::new(AtomicU64::new(0));
    let held = held_mb.clone();
    let both = [own.clone(), other.clone()];
    let bed = Bed::with(|options| {
        options.gpu_uuid = Some(own.clone());
        options.vram = Some(Arc::new(move |uuids: &[String]| {
            assert_eq!(uuids, both);
            match claimed_mb(&both.join(",")) {
                0 => Some(1_000 + held.load(Ordering::Relaxed)),
                claimed => Some(1_000 + claimed),
            }
        }));
        options.vram_patience = Duration::from_millis(500);
    });
    let mut spec = bed.vllm(json!({"vram_mb": 700}));
    spec.more_gpus = vec![other];
    let loaded = bed.host.load(spec).await.unwrap();
    assert_eq!(loaded.vram_delta_mb, Some(700));
    let line = std::fs::read(format!("/proc/{}/cmdline", loaded.pid)).unwrap();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    assert!(line.contains("--tensor-parallel-size 2"), "{line}");
    held_mb.store(300, Ordering::Relaxed);
    let error = bed.host.unload().await.unwrap_err();
    assert!(matches!(error, UnloadError::Vram { .. }), "{error:?}");
    held_mb.store(0, Ordering::Relaxed);
    bed.host.unload().await.unwrap();
}

/// The runtime is ended all the same; only its memory is not known to be back.
#[tokio::test]
async fn a_driver_that_hangs_does_not_hold_up_an_unload() {
    let uuid = fresh_uuid();
    let hangs = Arc::new(AtomicBool::new(false));
    let (hanging, of) = (hangs.clone(), uuid.clone());
    let mut bed = Bed::with(|options| {
        options.gpu_uuid = Some(uuid);
        options.vram = Some(Arc::new(move |_: &[String]| {
            while hanging.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
            }
            Some(1_000 + claimed_mb(&of))
        }));
        options.vram_hung = Duration::from_millis(300);
        options.vram_patience = Duration::from_millis(500);
        options.again_every = Duration::from_millis(100);
    });
    bed.host
        .load(bed.vllm(json!({"vram_mb": 700})))
        .await
        .unwrap();
    let nonce = bed.nonce();
    hangs.store(true, Ordering::Relaxed);
    let unloaded = tokio::time::timeout(PATIENCE, bed.host.unload()).await;
    let error = unloaded.expect("an answer").unwrap_err();
    assert!(
        matches!(error, UnloadError::Vram { used_mb: None, .. }),
        "{error:?}"
    );
    assert_eq!(processes_with(COOKIE_VARIABLE, &nonce), Vec::<i32>::new());
    assert!(matches!(bed.event().await, RuntimeEvent::Ready(_)));
    assert!(matches!(bed.event().await, RuntimeEvent::Stuck { .. }));
    assert!(matches!(
        bed.state(),
        State::Failed { stuck: true, .. } | State::Unloading { .. }
    ));
    // Nobody has to ask: the GPU is of use again when the driver is.
    hangs.store(false, Ordering::Relaxed);
    assert!(matches!(bed.event().await, RuntimeEvent::Removed { .. }));
    assert_eq!(bed.state(), State::Cold);
    bed.assert_nothing_left(Some(&nonce));
}

async fn wedged(bed: &mut Bed, behaviour: Value, why: &str, words: &str) {
    assert!(matches!(bed.event().await, RuntimeEvent::Ready(_)));
    bed.tell(behaviour);
    bed.host
        .suspect(why.to_owned(), Duration::from_millis(500))
        .await;
    let RuntimeEvent::Wedged { cause, .. } = bed.event().await else {
        panic!()
    };
    assert!(cause.starts_with(why) && cause.contains(words), "{cause}");
    assert!(matches!(bed.event().await, RuntimeEvent::Removed { .. }));
    assert!(matches!(bed.state(), State::Failed { stuck: false, .. }));
}

#[tokio::test]
async fn one_whose_generations_hang_is_wedged_although_its_health_is_good() {
    let mut bed = Bed::new();
    let spec = bed.stand_in(json!({}));
    bed.host.load(spec.clone()).await.unwrap();
    let nonce = bed.nonce();
    let hang = json!({"hang_generation": 1});
    wedged(&mut bed, hang, "nothing ends", "no answer within").await;
    bed.assert_nothing_left(Some(&nonce));
    bed.tell(json!({}));
    bed.host.load(spec).await.unwrap();
}

#[tokio::test]
async fn one_whose_generations_fail_is_wedged_and_one_that_generates_is_not() {
    let mut bed = Bed::new();
    bed.host.load(bed.stand_in(json!({}))).await.unwrap();
    bed.host
        .suspect("a doubt".into(), Duration::from_secs(20))
        .await;
    // Answered after the proof, as the host asks one thing after the other.
    assert_eq!(bed.host.health().await, Health::Serving);
    // Patience enough for the refusals, which end it sooner.
    assert!(matches!(bed.event().await, RuntimeEvent::Ready(_)));
    bed.tell(json!({"fail_requests": 500}));
    let doubted = async {
        loop {
            // A first doubt may still be under way, and is then the only one.
            bed.host
                .suspect("tasks fail".into(), Duration::from_secs(20))
                .await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            if matches!(bed.state(), State::Failed { .. }) {
                return;
            }
        }
    };
    tokio::time::timeout(crate::bed::PATIENCE, doubted)
        .await
        .unwrap();
    let RuntimeEvent::Wedged { cause, .. } = bed.event().await else {
        panic!()
    };
    assert!(cause.contains("500"), "{cause}");
}

/// Nobody doubts it; the watch finds out by itself.
#[tokio::test]
async fn one_that_names_another_model_and_does_not_generate_is_found_by_the_watch() {
    let mut bed = Bed::with(|options| options.watch_every = Duration::from_millis(50));
    bed.host.load(bed.stand_in(json!({}))).await.unwrap();
    assert!(matches!(bed.event().await, RuntimeEvent::Ready(_)));
    bed.tell(json!({"wrong_model": "somebody-elses", "fail_requests": 500}));
    let RuntimeEvent::Wedged { cause, .. } = bed.event().await else {
        panic!()
    };
    assert!(
        cause.starts_with("asked for its models: it serves [\"somebody-elses\"]"),
        "{cause}"
    );
}

#[tokio::test]
async fn a_program_that_is_not_there_fails_for_good() {
    let bed = Bed::new();
    let mut spec = bed.stand_in(json!({}));
    spec.program = RuntimeProgram::Ollama {
        program: "/no/such/ollama".into(),
        reference: "m".into(),
    };
    let error = bed.host.load(spec).await.unwrap_err();
    assert!(matches!(error.cause, LoadCause::Spawn { .. }), "{error:?}");
    assert_eq!(error.cause.class(), LoadClass::Permanent);
    bed.assert_nothing_left(None);
}
