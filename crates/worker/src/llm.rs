//! One request to the model's server, which speaks the OpenAI API.

use std::thread;
use std::time::{Duration, Instant};

use rigor_queue::record::FailureKind;
use serde_json::{Value, json};

use crate::outcome::{Failure, words};

/// How long a server that is busy or loading is asked again.
const BUSY_PATIENCE: Duration = Duration::from_secs(120);
/// The longest pause between two of those requests.
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(5);
/// A server on this machine answers at once or is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer that is read, bytes.
const ANSWER_MAX_BYTES: u64 = 64 * 1024 * 1024;
/// How much of an unexpected answer is quoted, bytes.
const QUOTE_BYTES: usize = 500;

/// The agent's model, as its environment names it.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Where it listens.
    pub(crate) url: String,
    /// Catalogue id.
    pub(crate) model: String,
    key: Option<String>,
    /// It turns text into vectors and does not chat.
    pub(crate) embedding: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    /// The prompt does not fit the context. Counts are 0 where the server does not tell them.
    TooLong {
        prompt_tokens: u64,
        context: u64,
        message: String,
    },
    /// Anything else.
    Failed(Failure),
}

impl Endpoint {
    /// From `RIGOR_LLM_URL`, `RIGOR_LLM_MODEL`, `RIGOR_LLM_KIND` and `OPENAI_API_KEY`.
    pub(crate) fn from_environment() -> Result<Endpoint, Failure> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let needed = |name: &str| {
            variable(name).ok_or_else(|| {
                Failure::setup(format!(
                    "{name} is not set: the agent has no model for this prompt"
                ))
            })
        };
        Ok(Endpoint {
            url: needed("RIGOR_LLM_URL")?.trim_end_matches('/').to_owned(),
            model: needed("RIGOR_LLM_MODEL")?,
            key: variable("OPENAI_API_KEY"),
            embedding: variable("RIGOR_LLM_KIND").is_some_and(|kind| kind == "embedding"),
        })
    }

    /// Sends one request and waits for its answer, as long as that takes; a busy server is asked
    /// again for a bounded time.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Value, NoAnswer> {
        let url = format!("{}{path}", self.url);
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // The server is on this machine; a proxy of the environment is for the outside.
            .proxy(None)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .build()
            .into();
        let failed = |why: String| {
            NoAnswer::Failed(Failure::new(FailureKind::LlmError, format!("{url}: {why}")))
        };
        let since = Instant::now();
        let mut pause = Duration::from_millis(100);
        loop {
            let mut request = agent.post(&url);
            if let Some(key) = &self.key {
                request = request.header("Authorization", format!("Bearer {key}"));
            }
            let mut response = request
                .send_json(body)
                .map_err(|error| failed(error.to_string()))?;
            let status = response.status().as_u16();
            let text = response
                .body_mut()
                .with_config()
                .limit(ANSWER_MAX_BYTES)
                .read_to_string()
                .map_err(|error| failed(format!("its answer broke off: {error}")))?;
            match status {
                200..300 => {
                    return serde_json::from_str(&text).map_err(|error| {
                        failed(format!("its answer is no JSON ({error}): {}", quote(&text)))
                    });
                }
                429 | 503 if since.elapsed() + pause < BUSY_PATIENCE => {
                    thread::sleep(pause);
                    pause = (pause * 2).min(BUSY_PAUSE_MAX);
                }
                429 | 503 => {
                    let waited = words(since.elapsed());
                    return Err(failed(format!(
                        "busy for {waited} (HTTP {status}): {}",
                        quote(&text)
                    )));
                }
                _ => {
                    return Err(refusal(status, &text)
                        .unwrap_or_else(|| failed(format!("HTTP {status}: {}", said(&text)))));
                }
            }
        }
    }
}

/// The body of a chat request.
pub(crate) fn chat(
    model: &str,
    system: &str,
    user: &str,
    prompt: &rigor_queue::task::Prompt,
) -> Value {
    let mut messages = Vec::new();
    if !system.is_empty() {
        messages.push(json!({"role": "system", "content": system}));
    }
    messages.push(json!({"role": "user", "content": user}));
    let mut body = json!({"model": model, "messages": messages, "stream": false});
    let optional = [
        ("temperature", prompt.temperature.map(Value::from)),
        ("max_tokens", prompt.max_tokens.map(Value::from)),
        ("seed", prompt.seed.map(Value::from)),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            body[name] = value;
        }
    }
    body
}

/// The words that the server said of an error, else the beginning of its answer.
fn said(text: &str) -> String {
    let message = serde_json::from_str::<Value>(text).ok().and_then(|answer| {
        let error = answer.get("error")?;
        Some(error.get("message").unwrap_or(error).as_str()?.to_owned())
    });
    message.unwrap_or_else(|| quote(text))
}

/// Whether the server says that the prompt is too long: llama.cpp by the error's type with both
/// counts, OpenAI and vLLM by its code.
fn refusal(status: u16, text: &str) -> Option<NoAnswer> {
    if status != 400 {
        return None;
    }
    let answer: Value = serde_json::from_str(text).ok()?;
    let error = answer.get("error")?;
    let is = |key: &str, value: &str| error.get(key).and_then(Value::as_str) == Some(value);
    if !is("type", "exceed_context_size_error") && !is("code", "context_length_exceeded") {
        return None;
    }
    let count = |key: &str| error.get(key).and_then(Value::as_u64).unwrap_or(0);
    Some(NoAnswer::TooLong {
        prompt_tokens: count("n_prompt_tokens"),
        context: count("n_ctx"),
        message: said(text),
    })
}

/// The beginning of a text, for an error message.
pub(crate) fn quote(text: &str) -> String {
    let text = text.trim();
    let end = text.floor_char_boundary(QUOTE_BYTES);
    let dots = if end < text.len() { "..." } else { "" };
    format!("{}{dots}", &text[..end])
}
