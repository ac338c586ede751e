//! OpenAI's routes, which all dialects have, and llama-server's own.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use futures_util::stream;
use serde_json::{Value, json};

use crate::call::Dialect;
use crate::generate::{Refused, Turn, openai_error, prompt_tokens};
use crate::server::{ErrorAnswer, OWNER, Server, Shared, parsed};

type Answer = Result<Response, ErrorAnswer>;

pub(crate) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(embeddings))
}

pub(crate) fn llama_routes() -> Router<Arc<Shared>> {
    Router::new().route("/completion", post(llama_completion))
}

async fn models(State(shared): Server) -> Answer {
    let names = match shared.call.dialect {
        Dialect::Ollama => shared.ollama.names(&shared.behaviour("")?),
        Dialect::Llama | Dialect::Vllm => {
            let own = shared.call.model.clone();
            vec![shared.behaviour(&own)?.wrong_model.unwrap_or(own)]
        }
    };
    let entry = |id: &String| json!({"id": id, "object": "model", "created": 0, "owned_by": OWNER});
    let data: Vec<Value> = names.iter().map(entry).collect();
    Ok(Json(json!({"object": "list", "data": data})).into_response())
}

async fn chat(State(shared): Server, body: Bytes) -> Answer {
    let request = parsed(&body)?;
    let (model, turn) = turn(&shared, &request).await?;
    if request["stream"].as_bool() == Some(true) {
        return Ok(events(model, turn));
    }
    turn.whole().await;
    let message = json!({"role": "assistant", "content": turn.text()});
    let choice = json!({"index": 0, "message": message, "finish_reason": finish(&turn, &request)});
    Ok(answer("chat.completion", &model, &turn, &request, choice))
}

async fn completions(State(shared): Server, body: Bytes) -> Answer {
    let request = parsed(&body)?;
    let (model, turn) = turn(&shared, &request).await?;
    turn.whole().await;
    let choice = json!({"index": 0, "text": turn.text(), "finish_reason": finish(&turn, &request)});
    Ok(answer("text_completion", &model, &turn, &request, choice))
}

async fn embeddings(State(shared): Server, body: Bytes) -> Answer {
    let request = parsed(&body)?;
    let (model, turn) = turn(&shared, &request).await?;
    turn.whole().await;
    let dimensions = shared.behaviour(&model)?.dimensions.max(1);
    let inputs = match &request["input"] {
        Value::Array(inputs) => inputs.len(),
        _ => 1,
    };
    // Of length 1, as servers normalise them; and it depends on its input's place alone.
    let vector =
        |at: usize| (0..dimensions).map(move |axis| f64::from(u8::from(axis == at % dimensions)));
    let data: Vec<Value> = (0..inputs)
        .map(|at| json!({"object": "embedding", "index": at, "embedding": vector(at).collect::<Vec<_>>()}))
        .collect();
    let tokens = prompt_tokens(&request);
    let body = json!({"object": "list", "model": model, "data": data, "system_fingerprint": OWNER,
                      "usage": {"prompt_tokens": tokens, "total_tokens": tokens}});
    Ok(Json(body).into_response())
}

async fn llama_completion(State(shared): Server, body: Bytes) -> Answer {
    let request = parsed(&body)?;
    let (model, turn) = turn(&shared, &request).await?;
    turn.whole().await;
    let body = json!({"content": turn.text(), "stop": true, "model": model, "tokens_predicted": turn.tokens,
                      "tokens_evaluated": prompt_tokens(&request), "generation_settings": {"server": OWNER}});
    Ok(Json(body).into_response())
}

/// The model that a request is for, and the turn.
async fn turn(shared: &Shared, request: &Value) -> Result<(String, Turn), ErrorAnswer> {
    let asked = request["model"].as_str().unwrap_or_default();
    let own = &shared.call.model;
    let model = match shared.call.dialect {
        // llama-server does not look at it.
        Dialect::Llama => own.clone(),
        Dialect::Vllm if asked == own => own.clone(),
        Dialect::Vllm => {
            let message = format!("The model `{asked}` does not exist.");
            let body = openai_error(StatusCode::NOT_FOUND, "NotFoundError", &message);
            return Err(ErrorAnswer::from(
                (StatusCode::NOT_FOUND, Json(body)).into_response(),
            ));
        }
        Dialect::Ollama => {
            let loaded = shared.ollama.load(shared, asked).await;
            loaded.map_err(|refused| ErrorAnswer::from(openai(refused)))?
        }
    };
    let behaviour = shared.behaviour(&model)?;
    let turn = shared.generations.turn(&behaviour, request).await;
    Ok((
        model,
        turn.map_err(|refused| ErrorAnswer::from(openai(refused)))?,
    ))
}

fn openai(refused: Refused) -> Response {
    let body = openai_error(refused.status, "server_error", &refused.message);
    (refused.status, Json(body)).into_response()
}

fn finish(turn: &Turn, request: &Value) -> &'static str {
    let limited = request["max_tokens"]
        .as_u64()
        .is_some_and(|most| most <= turn.tokens);
    if limited { "length" } else { "stop" }
}

fn answer(object: &str, model: &str, turn: &Turn, request: &Value, choice: Value) -> Response {
    let prompt = prompt_tokens(request);
    let body = json!({
        "id": format!("stand-in-{}", turn.number),
        "object": object,
        "created": jiff::Timestamp::now().as_second(),
        "model": model,
        "system_fingerprint": OWNER,
        "choices": [choice],
        "usage": {"prompt_tokens": prompt, "completion_tokens": turn.tokens, "total_tokens": prompt + turn.tokens},
    });
    Json(body).into_response()
}

/// An answer token by token, as server-sent events.
fn events(model: String, turn: Turn) -> Response {
    let steps = stream::unfold((model, turn, 1), |(model, turn, token)| async move {
        let chunk = |delta: Value, finish: Value| {
            let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
            let id = format!("stand-in-{}", turn.number);
            format!(
                "data: {}\n\n",
                json!({"id": id, "object": "chat.completion.chunk", "model": model, "system_fingerprint": OWNER,
                       "choices": [choice]})
            )
        };
        let text = if token <= turn.tokens {
            turn.one().await;
            chunk(json!({"content": turn.token(token)}), Value::Null)
        } else if token == turn.tokens + 1 {
            chunk(json!({}), "stop".into()) + "data: [DONE]\n\n"
        } else {
            return None;
        };
        Some((Ok::<_, Infallible>(text), (model, turn, token + 1)))
    });
    (
        [(header::CONTENT_TYPE, "text/event-stream")],
        Body::from_stream(steps),
    )
        .into_response()
}
