//! Prompts sent to model servers by clients that do nothing else: the floor under whatever brings
//! prompts to the same servers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// The requests of a run.
#[derive(Clone, Copy)]
struct Prompts<'a> {
    model: &'a str,
    /// Where each begins, so that no server remembers it from another run.
    prefix: &'a str,
    /// Where each ends.
    text: &'a str,
}

/// An answer is short: what takes its time is to read the prompt.
const MAX_TOKENS: u64 = 4;

/// Sends `count` prompts, with so many clients for each server, who share the work. Milliseconds of
/// each request and seconds of all.
pub(crate) fn run(
    (model, prefix, text): (&str, &str, &str),
    count: u64,
    clients: u64,
    urls: &[&str],
) -> Result<Value> {
    let prompts = Prompts {
        model,
        prefix,
        text,
    };
    let next = AtomicU64::new(0);
    let started = Instant::now();
    let took: Vec<Vec<f64>> = thread::scope(|scope| {
        let mut all = Vec::new();
        for url in urls {
            for _ in 0..clients {
                let next = &next;
                all.push(scope.spawn(move || {
                    let client = client();
                    let mut took = Vec::new();
                    loop {
                        let item = next.fetch_add(1, Ordering::Relaxed);
                        if item >= count {
                            return anyhow::Ok(took);
                        }
                        let sent = Instant::now();
                        prompts.send(&client, url, item)?;
                        took.push(sent.elapsed().as_secs_f64() * 1e3);
                    }
                }));
            }
        }
        let joined = all.into_iter();
        joined
            .map(|one| one.join().expect("a client does not panic"))
            .collect::<Result<_>>()
    })?;
    Ok(json!({ "seconds": started.elapsed().as_secs_f64(), "ms": took.concat() }))
}

fn client() -> ureq::Agent {
    ureq::Agent::config_builder().proxy(None).build().into()
}

impl Prompts<'_> {
    fn send(self, client: &ureq::Agent, url: &str, item: u64) -> Result<()> {
        let body = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": format!("{} {item}. {}", self.prefix, self.text)}],
            "stream": false,
            "max_tokens": MAX_TOKENS,
            "seed": 1,
        });
        let url = format!("{url}/v1/chat/completions");
        let mut response = client
            .post(&url)
            .send_json(&body)
            .with_context(|| format!("ask {url}"))?;
        let answer: Value = response.body_mut().read_json().context("its answer")?;
        if answer["choices"][0]["message"]["content"].is_null() {
            bail!("{url} answered {answer}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn every_prompt_is_sent_once() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let server = thread::spawn(move || {
            let mut asked = Vec::new();
            // Each client keeps its connection, so with one there is one.
            let (stream, _) = listener.accept().expect("a client");
            let mut reader = BufReader::new(stream);
            while asked.len() < 3 {
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).expect("a header");
                    if line.trim().is_empty() {
                        break;
                    }
                    if let Some(text) = line.to_lowercase().strip_prefix("content-length:") {
                        length = text.trim().parse().expect("a length");
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).expect("a body");
                let body: Value = serde_json::from_slice(&body).expect("JSON");
                asked.push(
                    body["messages"][0]["content"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned(),
                );
                let answer = r#"{"choices":[{"message":{"content":"x"}}]}"#;
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
                let text = format!("{head}{}\r\n\r\n{answer}", answer.len());
                reader
                    .get_mut()
                    .write_all(text.as_bytes())
                    .expect("it listens");
            }
            asked
        });
        let found = run(("m", "Item", "More."), 3, 1, &[&url]).expect("three answers");
        assert_eq!(found["ms"].as_array().map(Vec::len), Some(3));
        let asked = server.join().expect("the server ends");
        assert_eq!(asked, ["Item 0. More.", "Item 1. More.", "Item 2. More."]);
    }
}
