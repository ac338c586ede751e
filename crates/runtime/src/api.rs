//! The runtime's HTTP side: what it serves, and whether it answers.

use std::time::Duration;

use serde_json::{Value, json};

use crate::ollama;
use crate::spec::{Asked, ModelKind};

/// A list of models answers at once or the server is not well.
const MODELS_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// An answer to a probe is small; whatever sends more is not what we started.
const LONGEST_ANSWER: usize = 4 * 1024 * 1024;
const LONGEST_QUOTE: usize = 200;

/// A client of one runtime.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    client: reqwest::Client,
    base_url: String,
}

/// What `/v1/models` said.
#[derive(Debug)]
pub(crate) enum Models {
    /// These ids and aliases.
    Served(Vec<String>),
    /// Nothing that counts, for this reason.
    NotYet(String),
}

/// What an answer to a one-token request proves.
#[derive(Debug)]
pub(crate) enum Proof {
    /// It generated, or embedded.
    Given,
    /// It is still loading, or too busy.
    NotYet(String),
    /// It does not know the model (or the route).
    Absent(String),
    /// It answered, but not with what was asked for.
    Failed(String),
}

impl Api {
    pub(crate) fn new(host: &str, port: u16) -> Result<Api, reqwest::Error> {
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        // A proxy of the environment is for the world outside, not for a runtime of this machine.
        let client = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .build()?;
        Ok(Api {
            client,
            base_url: format!("http://{host}:{port}"),
        })
    }

    pub(crate) fn base_url(&self) -> &str {
        &self.base_url
    }

    pub(crate) async fn models(&self) -> Models {
        let request = self
            .client
            .get(format!("{}/v1/models", self.base_url))
            .timeout(MODELS_TIMEOUT);
        let (status, body) = match answer(request).await {
            Ok(answer) => answer,
            Err(detail) => return Models::NotYet(detail),
        };
        if status != 200 {
            return Models::NotYet(format!("/v1/models: {status} {}", quote(&body)));
        }
        let Ok(body) = serde_json::from_slice::<Value>(&body) else {
            return Models::NotYet(format!("/v1/models: not JSON: {}", quote(&body)));
        };
        let list = body["data"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let names = list.iter().flat_map(|model| {
            let aliases = model["aliases"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            std::iter::once(&model["id"]).chain(aliases)
        });
        let mut names: Vec<String> = names
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect();
        names.dedup();
        if names.is_empty() {
            Models::NotYet("/v1/models: names no model".to_owned())
        } else {
            Models::Served(names)
        }
    }

    /// `route` as JSON, or why not.
    pub(crate) async fn get(&self, route: &str) -> Result<Value, String> {
        let request = self
            .client
            .get(format!("{}{route}", self.base_url))
            .timeout(MODELS_TIMEOUT);
        let (status, body) = answer(request).await?;
        if status != 200 {
            return Err(format!("{route}: {status} {}", quote(&body)));
        }
        serde_json::from_slice(&body).map_err(|_| format!("{route}: not JSON: {}", quote(&body)))
    }

    /// Whether it says that it serves its model: a cheap question that says little about whether
    /// it generates. `Err` says what it answers instead.
    pub(crate) async fn lists(&self, asked: &Asked) -> Result<(), String> {
        if asked.ollama {
            return match ollama::loaded(self, &asked.name).await? {
                Some(_) => Ok(()),
                None => Err(format!("ollama has unloaded {:?}", asked.name)),
            };
        }
        match self.models().await {
            Models::Served(names) if names.contains(&asked.name) => Ok(()),
            Models::Served(names) => Err(format!("it serves {names:?} and not {:?}", asked.name)),
            Models::NotYet(detail) => Err(detail),
        }
    }

    /// One token or one vector. Bounded by the caller.
    pub(crate) async fn prove(&self, asked: &Asked) -> Proof {
        let (kind, model) = (asked.kind, asked.name.as_str());
        let (route, body) = match kind {
            ModelKind::Chat => (
                "/v1/chat/completions",
                json!({"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Hello"}]}),
            ),
            ModelKind::Embedding => ("/v1/embeddings", json!({"model": model, "input": "Hello"})),
        };
        let request = self
            .client
            .post(format!("{}{route}", self.base_url))
            .json(&body);
        let (status, body) = match answer(request).await {
            Ok(answer) => answer,
            Err(detail) => return Proof::NotYet(detail),
        };
        // Loading, or (also 429) too busy for one more request.
        if status == 503 || status == 429 {
            return Proof::NotYet(format!("{route}: {status} {}", quote(&body)));
        }
        if status == 404 {
            return Proof::Absent(format!("{route}: 404 {}", quote(&body)));
        }
        if status != 200 {
            return Proof::Failed(format!("{route}: {status} {}", quote(&body)));
        }
        let given = serde_json::from_slice::<Value>(&body).is_ok_and(|body| match kind {
            ModelKind::Chat => generated(&body),
            ModelKind::Embedding => embedded(&body),
        });
        if given {
            Proof::Given
        } else {
            Proof::Failed(format!("{route}: no result in {}", quote(&body)))
        }
    }
}

/// The one token may be one that shows as nothing; then the count says that it was generated.
fn generated(body: &Value) -> bool {
    let message = &body["choices"][0]["message"];
    let shows = |key: &str| message[key].as_str().is_some_and(|text| !text.is_empty());
    let counted = body["usage"]["completion_tokens"]
        .as_u64()
        .is_some_and(|count| count > 0);
    message.is_object() && (counted || shows("content") || shows("reasoning_content"))
}

/// A vector of zeros is what a server gives that has not computed anything.
fn embedded(body: &Value) -> bool {
    let vector = body["data"][0]["embedding"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    vector.iter().all(Value::is_number)
        && vector
            .iter()
            .any(|value| value.as_f64().is_some_and(|value| value != 0.0))
}

async fn answer(request: reqwest::RequestBuilder) -> Result<(u16, Vec<u8>), String> {
    let mut response = request.send().await.map_err(|error| root_cause(&error))?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| root_cause(&error))? {
        body.extend_from_slice(&chunk);
        if body.len() > LONGEST_ANSWER {
            return Err(format!("an answer of more than {LONGEST_ANSWER} bytes"));
        }
    }
    Ok((response.status().as_u16(), body))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

fn quote(body: &[u8]) -> String {
    String::from_utf8_lossy(body)
        .trim()
        .chars()
        .take(LONGEST_QUOTE)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_generated_token_or_a_vector_proves() {
        let chat = |message: Value, tokens: u64| {
            generated(
                &json!({"choices": [{"message": message}], "usage": {"completion_tokens": tokens}}),
            )
        };
        assert!(chat(json!({"content": "a"}), 0));
        assert!(chat(json!({"content": ""}), 1));
        assert!(chat(json!({"content": null, "reasoning_content": "so"}), 0));
        assert!(!chat(json!({"content": ""}), 0));
        assert!(!chat(Value::Null, 1));
        assert!(!generated(&json!({"status": "ok"})));
        assert!(embedded(&json!({"data": [{"embedding": [0.0, -0.5]}]})));
        assert!(!embedded(&json!({"data": [{"embedding": [0.0, 0.0]}]})));
        assert!(!embedded(&json!({"data": [{"embedding": []}]})));
        assert!(!embedded(&json!({"data": []})));
    }
}
