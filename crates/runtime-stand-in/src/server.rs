//! The process: its port, its load, its end.

use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::behaviour::Behaviour;
use crate::call::{Call, Dialect};
use crate::generate::{Generations, openai_error};
use crate::{holder, ollama, openai};

/// Who owns the models, in `/v1/models`.
pub const OWNER: &str = "rigor runtime-stand-in";

/// How often a load that is told never to end looks whether that is still so.
const NEVER_READY_LOOK: Duration = Duration::from_millis(50);

/// What every handler sees.
pub(crate) struct Shared {
    pub(crate) call: Call,
    pub(crate) generations: Generations,
    pub(crate) ollama: ollama::Models,
    loaded: AtomicBool,
}

/// The server, shared.
pub(crate) type Server = State<Arc<Shared>>;

/// An answer that is an error.
pub(crate) struct ErrorAnswer(Box<Response>);

impl From<Response> for ErrorAnswer {
    fn from(answer: Response) -> ErrorAnswer {
        ErrorAnswer(Box::new(answer))
    }
}

impl IntoResponse for ErrorAnswer {
    fn into_response(self) -> Response {
        *self.0
    }
}

impl Shared {
    /// The behaviour now, for a model; an answer that says why not where the file is wrong.
    pub(crate) fn behaviour(&self, model: &str) -> Result<Behaviour, ErrorAnswer> {
        Behaviour::of(model, self.call.port).map_err(|error| {
            let body = openai_error(
                StatusCode::INTERNAL_SERVER_ERROR,
                "server_error",
                &error.to_string(),
            );
            ErrorAnswer::from((StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response())
        })
    }
}

/// Serves until it is told to stop, or its load fails; the exit code.
pub(crate) async fn serve(call: Call) -> Result<i32> {
    let name = match call.dialect {
        Dialect::Llama => "llama-server",
        Dialect::Ollama => "ollama",
        Dialect::Vllm => "vllm",
    };
    let address = format!("{}:{}", call.host, call.port);
    println!(
        "rigor runtime-stand-in: no model is here; behaves like {name} on {address}, {} at once",
        call.slots
    );
    let shared = Arc::new(Shared {
        generations: Generations::new(call.slots),
        ollama: ollama::Models::default(),
        loaded: AtomicBool::new(call.dialect == Dialect::Ollama),
        call,
    });
    let code = tokio::select! {
        code = stopped(&shared) => code?,
        code = work(&shared) => code?,
    };
    shared.ollama.end(shared.call.port);
    Ok(code)
}

async fn work(shared: &Arc<Shared>) -> Result<i32> {
    if shared.call.dialect == Dialect::Vllm
        && let Err(code) = load(shared).await?
    {
        return Ok(code);
    }
    let (host, port) = (&shared.call.host, shared.call.port);
    let Ok(listener) = TcpListener::bind((host.trim_matches(['[', ']']), port)).await else {
        eprintln!("srv start: couldn't bind HTTP server socket, hostname: {host}, port: {port}");
        eprintln!("srv  init: exiting due to HTTP server error");
        return Ok(1);
    };
    let served = async {
        axum::serve(listener, router(Arc::clone(shared)))
            .await
            .context("serve")?;
        Ok(0)
    };
    if shared.call.dialect != Dialect::Llama {
        return served.await;
    }
    tokio::select! {
        code = served => code,
        code = async {
            match load(shared).await {
                Ok(Ok(())) => std::future::pending().await,
                Ok(Err(code)) => Ok(code),
                Err(error) => Err(error),
            }
        } => code,
    }
}

/// Takes the time of a load; the exit code of one that fails.
async fn load(shared: &Shared) -> Result<Result<(), i32>> {
    let Call { model, port, .. } = &shared.call;
    tokio::time::sleep(Duration::from_millis(Behaviour::of(model, *port)?.load_ms)).await;
    while Behaviour::of(model, *port)?.never_ready {
        tokio::time::sleep(NEVER_READY_LOOK).await;
    }
    let behaviour = Behaviour::of(model, *port)?;
    if let Some(failure) = load_failure(&behaviour, shared.call.dialect, &shared.call.source) {
        eprintln!("{}", failure.words);
        return Ok(Err(failure.code));
    }
    if behaviour.leak_child {
        // It is not waited for: that is the fault.
        let child: Child = holder::start(behaviour.vram_mb, true)?;
        println!(
            "runtime-stand-in: told to leave process {} behind",
            child.id()
        );
    }
    println!("runtime-stand-in: loaded");
    shared.loaded.store(true, Ordering::SeqCst);
    Ok(Ok(()))
}

/// How a load fails.
pub(crate) struct LoadFailure {
    pub(crate) code: i32,
    pub(crate) words: String,
}

/// How a load fails, if it is told to.
pub(crate) fn load_failure(
    behaviour: &Behaviour,
    dialect: Dialect,
    source: &str,
) -> Option<LoadFailure> {
    let fails = behaviour.out_of_memory || behaviour.exit_code.is_some();
    let words = match dialect {
        _ if !behaviour.out_of_memory => format!("runtime-stand-in: told to fail its load of {source}"),
        Dialect::Llama => format!(
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4460.45 MiB on device 0: cudaMalloc failed: out of memory\n\
             alloc_tensor_range: failed to allocate CUDA0 buffer of size 4677120000\n\
             llama_model_load: error loading model: unable to allocate CUDA0 buffer\n\
             llama_model_load_from_file_impl: failed to load model\n\
             srv    load_model: failed to load model, '{source}'\n\
             main: exiting due to model loading error"
        ),
        Dialect::Ollama => "llama runner process has terminated: cudaMalloc failed: out of memory".to_owned(),
        Dialect::Vllm => "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 260.00 MiB. GPU 0 has a total \
                          capacity of 23.65 GiB of which 130.44 MiB is free.\n\
                          RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
            .to_owned(),
    };
    fails.then(|| LoadFailure {
        code: behaviour.exit_code.unwrap_or(1),
        words: behaviour.stderr.clone().unwrap_or(words),
    })
}

/// Returns when it is told to stop and obeys.
async fn stopped(shared: &Shared) -> Result<i32> {
    let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => return Ok(0),
        }
        if !Behaviour::of(&shared.call.model, shared.call.port)?.ignore_sigterm {
            return Ok(0);
        }
        println!("runtime-stand-in: told to ignore SIGTERM");
    }
}

fn router(shared: Arc<Shared>) -> Router {
    let dialect = shared.call.dialect;
    let mut router = openai::routes();
    match dialect {
        Dialect::Llama => router = router.merge(openai::llama_routes()),
        Dialect::Ollama => router = router.merge(ollama::routes()),
        Dialect::Vllm => {}
    }
    router
        .route("/health", axum::routing::get(health))
        .fallback(nothing_there)
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), gate))
        .with_state(shared)
}

async fn health(State(shared): Server) -> Response {
    match shared.call.dialect {
        // vLLM's has no body.
        Dialect::Vllm => StatusCode::OK.into_response(),
        // ollama has no such route.
        Dialect::Ollama => StatusCode::NOT_FOUND.into_response(),
        Dialect::Llama => Json(json!({"status": "ok"})).into_response(),
    }
}

/// What llama.cpp answers on every route while it loads.
async fn gate(State(shared): Server, request: Request, next: Next) -> Response {
    if shared.loaded.load(Ordering::SeqCst) {
        return next.run(request).await;
    }
    let lies = match shared.behaviour(&shared.call.model) {
        Ok(behaviour) => behaviour.health_lies && request.uri().path() == "/health",
        Err(answer) => return answer.into_response(),
    };
    if lies {
        return next.run(request).await;
    }
    let body = openai_error(
        StatusCode::SERVICE_UNAVAILABLE,
        "unavailable_error",
        "Loading model",
    );
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

async fn nothing_there(uri: Uri) -> Response {
    let body = openai_error(
        StatusCode::NOT_FOUND,
        "not_found_error",
        &format!("no route {uri}"),
    );
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

/// The JSON of a request, whatever its content type says.
pub(crate) fn parsed(body: &Bytes) -> Result<Value, ErrorAnswer> {
    serde_json::from_slice(body).map_err(|error| {
        let body = openai_error(
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            &error.to_string(),
        );
        ErrorAnswer::from((StatusCode::BAD_REQUEST, Json(body)).into_response())
    })
}
