//! ollama's own routes, and the models that it has loaded: each is a child process that holds its memory.

use std::collections::BTreeMap;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use crate::behaviour::Behaviour;
use crate::call::Dialect;
use crate::generate::{Refused, Turn, prompt_tokens};
use crate::holder;
use crate::server::{ErrorAnswer, OWNER, Server, Shared, load_failure, parsed};

const MIB: u64 = 1024 * 1024;
/// Of the ollama whose answers these are modelled on.
const VERSION: &str = "0.12.0-rigor-stand-in";

type Answer = Result<Response, ErrorAnswer>;

/// What is loaded.
#[derive(Default)]
pub(crate) struct Models {
    loaded: Mutex<BTreeMap<String, Child>>,
    /// One load after the other, as ollama does it on one GPU.
    loading: tokio::sync::Mutex<()>,
}

impl Models {
    fn loaded(&self) -> MutexGuard<'_, BTreeMap<String, Child>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The models that it says it has.
    pub(crate) fn names(&self, behaviour: &Behaviour) -> Vec<String> {
        match &behaviour.pulled {
            Some(pulled) => pulled.iter().map(|name| tag(name)).collect(),
            None => self.loaded().keys().cloned().collect(),
        }
    }

    /// Loads a model unless it is there; its tag.
    pub(crate) async fn load(&self, shared: &Shared, model: &str) -> Result<String, Refused> {
        let name = tag(model);
        let told = |error: &dyn std::fmt::Display| Refused {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            message: format!("{error:#}"),
        };
        let now = || Behaviour::of(model, shared.call.port).map_err(|error| told(&error));
        let pulled = now()?.pulled;
        if model.is_empty() || pulled.is_some_and(|pulled| !pulled.iter().any(|it| tag(it) == name))
        {
            return Err(Refused {
                status: StatusCode::NOT_FOUND,
                message: format!("model {model:?} not found, try pulling it first"),
            });
        }
        let _one = self.loading.lock().await;
        if self.loaded().contains_key(&name) {
            return Ok(name);
        }
        tokio::time::sleep(Duration::from_millis(now()?.load_ms)).await;
        while now()?.never_ready {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let behaviour = now()?;
        if let Some(failure) = load_failure(&behaviour, Dialect::Ollama, model) {
            eprintln!("{}", failure.words);
            return Err(told(&failure.words));
        }
        let child =
            holder::start(behaviour.vram_mb, behaviour.leak_child).map_err(|error| told(&error))?;
        println!("runtime-stand-in: loaded {name} in process {}", child.id());
        self.loaded().insert(name.clone(), child);
        Ok(name)
    }

    /// Says at once that it is unloaded; the memory goes later.
    fn unload(&self, model: &str, behaviour: &Behaviour) {
        let Some(child) = self.loaded().remove(&tag(model)) else {
            return;
        };
        let (after, leaks) = (
            Duration::from_millis(behaviour.unload_ms),
            behaviour.leak_child,
        );
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            if !leaks {
                end(child);
            }
        });
    }

    /// Ends all children but those that are leaked: they are the fault.
    pub(crate) fn end(&self, port: u16) {
        let leaks = |behaviour: Behaviour| behaviour.leak_child;
        for (name, child) in std::mem::take(&mut *self.loaded()) {
            if !Behaviour::of(&name, port).is_ok_and(leaks) {
                end(child);
            }
        }
    }
}

fn end(mut child: Child) {
    // Both fail only for one that has ended.
    let _ = child.kill();
    let _ = child.wait();
}

/// A name without a tag means `latest`.
fn tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') {
        name.to_owned()
    } else {
        format!("{name}:latest")
    }
}

pub(crate) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route(
            "/",
            get(async || "Ollama is running (rigor runtime-stand-in)"),
        )
        .route(
            "/api/version",
            get(async || Json(json!({"version": VERSION}))),
        )
        .route("/api/tags", get(tags))
        .route("/api/ps", get(ps))
        .route("/api/show", post(show))
        .route("/api/generate", post(generate))
        .route("/api/chat", post(chat))
}

async fn tags(State(shared): Server) -> Answer {
    let names = shared.ollama.names(&shared.behaviour("")?);
    let mut models = Vec::new();
    for name in names {
        let size = holder::claim_mb(shared.behaviour(&name)?.vram_mb) * MIB;
        models.push(json!({"name": name, "model": name, "size": size, "digest": OWNER, "details": details()}));
    }
    Ok(Json(json!({"models": models})).into_response())
}

async fn ps(State(shared): Server) -> Answer {
    let names: Vec<String> = shared.ollama.loaded().keys().cloned().collect();
    let mut models = Vec::new();
    for name in names {
        let behaviour = shared.behaviour(&name)?;
        let size_mb = holder::claim_mb(behaviour.vram_mb);
        let name = behaviour.wrong_model.unwrap_or(name);
        models.push(json!({
            "name": name, "model": name, "digest": OWNER, "details": details(), "size": size_mb * MIB,
            "size_vram": behaviour.size_vram_mb.unwrap_or(size_mb) * MIB,
            "expires_at": "2318-01-01T00:00:00Z", "context_length": 4096,
        }));
    }
    Ok(Json(json!({"models": models})).into_response())
}

async fn show(State(shared): Server, body: Bytes) -> Answer {
    let request = parsed(&body)?;
    let name = tag(request["model"].as_str().unwrap_or_default());
    let pulled = shared.behaviour(&name)?.pulled;
    if pulled.is_some_and(|pulled| !pulled.iter().any(|it| tag(it) == name)) {
        let message = format!("model '{name}' not found");
        return Err(ErrorAnswer::from(
            (StatusCode::NOT_FOUND, Json(json!({"error": message}))).into_response(),
        ));
    }
    let body = json!({"details": details(), "model_info": {}, "capabilities": ["completion"], "license": OWNER});
    Ok(Json(body).into_response())
}

/// Without a prompt it loads, or with `keep_alive` 0 unloads.
async fn generate(State(shared): Server, body: Bytes) -> Answer {
    let request = parsed(&body)?;
    let model = request["model"].as_str().unwrap_or_default();
    let behaviour = shared.behaviour(model)?;
    let prompted = request["prompt"]
        .as_str()
        .is_some_and(|prompt| !prompt.is_empty());
    if !prompted && gone_at_once(&request) {
        shared.ollama.unload(model, &behaviour);
        return Ok(done(&request, "unload", json!({"response": ""}), None));
    }
    let name = shared.ollama.load(&shared, model).await.map_err(refused)?;
    if !prompted {
        return Ok(done(&request, "load", json!({"response": ""}), None));
    }
    let turn = shared
        .generations
        .turn(&shared.behaviour(&name)?, &request)
        .await
        .map_err(refused)?;
    turn.whole().await;
    if gone_at_once(&request) {
        shared.ollama.unload(&name, &behaviour);
    }
    Ok(done(
        &request,
        "stop",
        json!({"response": turn.text()}),
        Some(&turn),
    ))
}

async fn chat(State(shared): Server, body: Bytes) -> Answer {
    let request = parsed(&body)?;
    let model = request["model"].as_str().unwrap_or_default();
    let behaviour = shared.behaviour(model)?;
    let message = |text: String| json!({"message": {"role": "assistant", "content": text}});
    let asked = request["messages"]
        .as_array()
        .is_some_and(|messages| !messages.is_empty());
    if !asked && gone_at_once(&request) {
        shared.ollama.unload(model, &behaviour);
        return Ok(done(&request, "unload", message(String::new()), None));
    }
    let name = shared.ollama.load(&shared, model).await.map_err(refused)?;
    if !asked {
        return Ok(done(&request, "load", message(String::new()), None));
    }
    let turn = shared
        .generations
        .turn(&shared.behaviour(&name)?, &request)
        .await
        .map_err(refused)?;
    turn.whole().await;
    if gone_at_once(&request) {
        shared.ollama.unload(&name, &behaviour);
    }
    Ok(done(&request, "stop", message(turn.text()), Some(&turn)))
}

/// `keep_alive` of no time, as a number or `"0"`, `"0s"`.
fn gone_at_once(request: &Value) -> bool {
    match &request["keep_alive"] {
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.trim_end_matches(|c: char| c.is_ascii_alphabetic()) == "0",
        _ => false,
    }
}

/// One object with a line end, which is one complete answer with `stream` as without.
fn done(request: &Value, reason: &str, mut body: Value, turn: Option<&Turn>) -> Response {
    body["model"] = request["model"].clone();
    body["created_at"] = jiff::Timestamp::now().to_string().into();
    body["done"] = true.into();
    body["done_reason"] = reason.into();
    body["server"] = OWNER.into();
    if let Some(turn) = turn {
        body["eval_count"] = turn.tokens.into();
        body["prompt_eval_count"] = prompt_tokens(request).into();
    }
    (
        [("content-type", "application/x-ndjson")],
        format!("{body}\n"),
    )
        .into_response()
}

fn refused(refused: Refused) -> ErrorAnswer {
    ErrorAnswer::from((refused.status, Json(json!({"error": refused.message}))).into_response())
}

fn details() -> Value {
    json!({"format": "none", "family": "rigor runtime-stand-in", "parameter_size": "0", "quantization_level": "none"})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_tag_is_the_latest() {
        assert_eq!(tag("q"), "q:latest");
        assert_eq!(tag("q:7b"), "q:7b");
        assert_eq!(tag("host:80/q"), "host:80/q:latest");
    }

    #[test]
    fn keep_alive_of_no_time() {
        for (value, gone) in [
            (json!(0), true),
            (json!("0s"), true),
            (json!("0"), true),
            (json!("10m"), false),
            (json!(-1), false),
            (Value::Null, false),
        ] {
            assert_eq!(gone_at_once(&json!({"keep_alive": value})), gone, "{value}");
        }
    }
}
