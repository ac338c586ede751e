//! Generations: their turn, their time, their faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::behaviour::Behaviour;

/// As of a process that aborted: 128 and SIGABRT.
const ABORTED: i32 = 134;

/// What all generations of the server share.
pub(crate) struct Generations {
    turns: Arc<Semaphore>,
    begun: AtomicU64,
}

/// A generation that is about to answer.
pub(crate) struct Turn {
    /// The first is 1.
    pub(crate) number: u64,
    /// Tokens that it answers with.
    pub(crate) tokens: u64,
    takes: Duration,
    _permit: OwnedSemaphorePermit,
}

/// A generation that fails.
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

impl Generations {
    pub(crate) fn new(slots: usize) -> Generations {
        Generations {
            turns: Arc::new(Semaphore::new(slots.max(1))),
            begun: AtomicU64::new(0),
        }
    }

    /// Waits for the turn of a request, as told what comes of it.
    pub(crate) async fn turn(
        &self,
        behaviour: &Behaviour,
        request: &Value,
    ) -> Result<Turn, Refused> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let failed = |status, message: &str| Refused {
            status,
            message: format!("{message} (request {number} to rigor runtime-stand-in)"),
        };
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&self.turns).acquire_owned().await else {
            return Err(failed(StatusCode::SERVICE_UNAVAILABLE, "shutting down"));
        };
        if behaviour
            .exit_after_requests
            .is_some_and(|most| number > most)
        {
            eprintln!("runtime-stand-in: told to die on request {number}: Aborted (core dumped)");
            std::process::exit(ABORTED);
        }
        if behaviour.hang_generation.is_some_and(|from| number >= from) {
            println!("request {number}: told to hang");
            std::future::pending::<()>().await;
        }
        if behaviour.health_lies {
            return Err(failed(
                StatusCode::INTERNAL_SERVER_ERROR,
                "told to fail while /health is 200",
            ));
        }
        if let Some(status) = behaviour
            .fail_requests
            .filter(|_| number >= behaviour.fail_from)
        {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return Err(failed(status, "told to fail"));
        }
        let wanted = ["max_tokens", "max_completion_tokens", "n_predict"]
            .iter()
            .find_map(|key| request[key].as_u64());
        let wanted = wanted.or_else(|| request["options"]["num_predict"].as_u64());
        let tokens = wanted.unwrap_or(behaviour.tokens).min(behaviour.tokens);
        Ok(Turn {
            number,
            tokens,
            takes: behaviour.latency(number, tokens),
            _permit: permit,
        })
    }
}

impl Turn {
    /// Takes the time of the whole answer.
    pub(crate) async fn whole(&self) {
        tokio::time::sleep(self.takes).await;
        println!(
            "request {}: {} tokens in {} ms",
            self.number,
            self.tokens,
            self.takes.as_millis()
        );
    }

    /// Takes the time of one token.
    pub(crate) async fn one(&self) {
        tokio::time::sleep(self.takes / u32::try_from(self.tokens.max(1)).unwrap_or(u32::MAX))
            .await;
    }

    /// The text of the answer: it says what it is, then counts its tokens.
    pub(crate) fn text(&self) -> String {
        (1..=self.tokens).map(|token| self.token(token)).collect()
    }

    /// One token of the text, the first is 1.
    pub(crate) fn token(&self, token: u64) -> String {
        match token {
            1 => format!("[rigor runtime-stand-in, answer {}]", self.number),
            _ => format!(" {token}"),
        }
    }
}

/// Tokens of a request, by llama.cpp's rule of thumb of four characters each.
pub(crate) fn prompt_tokens(request: &Value) -> u64 {
    let characters = match &request["messages"] {
        Value::Array(messages) => messages
            .iter()
            .filter_map(|it| it["content"].as_str())
            .map(str::len)
            .sum(),
        _ => request["prompt"]
            .as_str()
            .or(request["input"].as_str())
            .map_or(0, str::len),
    };
    (characters as u64).div_ceil(4)
}

/// OpenAI's form of an error, as llama.cpp and vLLM send it.
pub(crate) fn openai_error(status: StatusCode, kind: &str, message: &str) -> Value {
    json!({"error": {"message": message, "type": kind, "code": status.as_u16()}})
}
