//! Prompts, against a stand-in for the model's server: a few lines of HTTP in a thread of the
//! test, whose answers are those that llama.cpp gave (see `Script`).

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rigor_queue::record::{FailureKind, Outcome};
use rigor_queue::task::{Class, Prompt, PromptPart, TaskSpec, TooLong, Work};
use serde_json::{Value, json};

use crate::stage::{PATIENCE, Stage, failure};

/// What the stand-in answers to a request.
type Script = fn(&Request, usize) -> Reply;

struct Request {
    path: String,
    authorization: Option<String>,
    body: Value,
}

enum Reply {
    Json(u16, Value),
    /// Never, until the client goes away; then it says so.
    Never,
    /// Half an answer, and the connection breaks.
    BreakOff,
}

struct Server {
    url: String,
    requests: Receiver<Request>,
    /// A client went away while it waited for an answer.
    left: Receiver<()>,
}

fn serve(script: Script) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    let (sender, requests) = channel();
    let (gone, left) = channel();
    thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let Ok(stream) = stream else { return };
            answer(stream, n, script, &sender, &gone);
        }
    });
    Server {
        url,
        requests,
        left,
    }
}

fn answer(
    stream: TcpStream,
    n: usize,
    script: Script,
    sender: &Sender<Request>,
    gone: &Sender<()>,
) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut stream = stream;
    let mut line = String::new();
    reader.read_line(&mut line).expect("a request line");
    let path = line.split(' ').nth(1).expect("a path").to_owned();
    let (mut length, mut authorization) = (0, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).expect("a header");
        let Some((name, value)) = header.trim().split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().expect("a number"),
            "authorization" => authorization = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    let body = serde_json::from_slice(&body).expect("JSON");
    let request = Request {
        path,
        authorization,
        body,
    };
    let reply = script(&request, n);
    let _ = sender.send(request);
    match reply {
        Reply::Json(status, body) => {
            let body = body.to_string();
            let head = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
        Reply::BreakOff => {
            let _ =
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"choices\"");
        }
        Reply::Never => {
            let mut byte = [0];
            if matches!(stream.read(&mut byte), Ok(0) | Err(_)) {
                let _ = gone.send(());
            }
        }
    }
}

fn chat(text: &str) -> Reply {
    Reply::Json(
        200,
        json!({
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 17, "completion_tokens": 3, "total_tokens": 20},
        }),
    )
}

/// As llama.cpp refuses: one token for four bytes of the user's message, a context of 1,000.
fn limited(request: &Request, _: usize) -> Reply {
    let user = request
        .body
        .pointer("/messages/0/content")
        .and_then(Value::as_str)
        .expect("a message");
    let tokens = user.len() / 4;
    if tokens < 1000 {
        return chat(&format!("{tokens} tokens"));
    }
    let error = json!({
        "code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": tokens, "n_ctx": 1000,
        "message": "the request exceeds the available context size",
    });
    Reply::Json(400, json!({ "error": error }))
}

fn prompt(user: Vec<PromptPart>) -> Prompt {
    Prompt {
        user,
        system: Vec::new(),
        temperature: None,
        max_tokens: None,
        seed: None,
        too_long: TooLong::Fail,
        output: Some("answers/one.txt".to_owned()),
    }
}

fn task(stage: &mut Stage, server: &Server, prompt: Prompt) -> TaskSpec {
    for (name, value) in [
        ("RIGOR_LLM_URL", server.url.as_str()),
        ("RIGOR_LLM_MODEL", "qwen2.5:7b"),
        ("OPENAI_API_KEY", "key-1"),
        // Must not be used for a server on this machine.
        ("http_proxy", "http://127.0.0.1:9"),
    ] {
        stage.env.push((name.to_owned(), value.to_owned()));
    }
    stage.task(Class::Llm, Work::Prompt(prompt))
}

fn text(text: &str) -> PromptPart {
    PromptPart::Text(text.to_owned())
}

#[test]
fn a_prompt_is_sent_and_its_answer_written() {
    let mut stage = Stage::new();
    let server = serve(|_, _| chat("Three tags."));
    fs::write(stage.file("talk.txt"), "what {ITEM} was said").expect("write");
    let mut asked = prompt(vec![
        text("Tag this: "),
        PromptPart::File("talk.txt".to_owned()),
        text("!"),
    ]);
    asked.system = vec![text("Be brief.")];
    asked.temperature = Some(0.5);
    asked.max_tokens = Some(64);
    asked.seed = Some(-7);
    let mut spec = task(&mut stage, &server, asked);
    spec.produces = vec!["answers/*.txt".to_owned()];
    let record = stage.run(&spec);
    assert_eq!(record.outcome, Outcome::Succeeded, "{record:?}");
    let request = server.requests.recv_timeout(PATIENCE).expect("a request");
    assert_eq!(request.path, "/v1/chat/completions");
    assert_eq!(request.authorization.as_deref(), Some("Bearer key-1"));
    let expected = json!({
        "model": "qwen2.5:7b", "stream": false, "temperature": 0.5, "max_tokens": 64, "seed": -7,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Tag this: what {ITEM} was said!"},
        ],
    });
    assert_eq!(request.body, expected);
    assert_eq!(
        fs::read_to_string(stage.file("answers/one.txt")).expect("written"),
        "Three tags."
    );
    assert_eq!(
        fs::read_dir(stage.file("answers")).expect("read").count(),
        1,
        "no litter"
    );
    assert_eq!(stage.output(&record), "Three tags.\n");
    let llm = record.llm.expect("the model's use");
    assert_eq!(
        (llm.model.as_str(), llm.prompt_tokens, llm.completion_tokens),
        ("qwen2.5:7b", 17, 3)
    );
    assert!(!llm.truncated);
}

#[test]
fn an_embedding_model_gives_a_vector() {
    let mut stage = Stage::new();
    let server = serve(|_, _| {
        Reply::Json(
            200,
            json!({"data": [{"embedding": [0.25, -1.0]}], "usage": {"prompt_tokens": 4}}),
        )
    });
    let spec = task(&mut stage, &server, prompt(vec![text("some text")]));
    stage
        .env
        .push(("RIGOR_LLM_KIND".to_owned(), "embedding".to_owned()));
    let record = stage.run(&spec);
    assert_eq!(record.outcome, Outcome::Succeeded, "{record:?}");
    let request = server.requests.recv_timeout(PATIENCE).expect("a request");
    assert_eq!(request.path, "/v1/embeddings");
    assert_eq!(
        request.body,
        json!({"model": "qwen2.5:7b", "input": "some text"})
    );
    assert_eq!(
        fs::read_to_string(stage.file("answers/one.txt")).expect("written"),
        "[0.25,-1.0]"
    );
}

#[test]
fn a_prompt_over_the_context_fails_with_both_counts() {
    let mut stage = Stage::new();
    let server = serve(limited);
    let spec = task(
        &mut stage,
        &server,
        prompt(vec![text(&"word".repeat(1500))]),
    );
    let record = stage.run(&spec);
    let (kind, reason) = failure(&record);
    assert_eq!(kind, FailureKind::PromptTooLong);
    assert!(
        reason.contains("1500 tokens") && reason.contains("context 1000"),
        "{reason}"
    );
    assert!(!stage.file("answers").exists());
}

#[test]
fn truncate_cuts_the_longest_file_and_says_so() {
    let mut stage = Stage::new();
    let server = serve(limited);
    fs::write(stage.file("short.txt"), "s".repeat(400)).expect("write");
    fs::write(stage.file("long.txt"), "l".repeat(20_000)).expect("write");
    let mut asked = prompt(vec![
        text("Question? "),
        PromptPart::File("long.txt".to_owned()),
        PromptPart::File("short.txt".to_owned()),
    ]);
    asked.too_long = TooLong::Truncate;
    asked.max_tokens = Some(100);
    let spec = task(&mut stage, &server, asked);
    let record = stage.run(&spec);
    assert_eq!(record.outcome, Outcome::Succeeded, "{record:?}");
    assert!(record.llm.as_ref().is_some_and(|llm| llm.truncated));
    let sent = server
        .requests
        .iter()
        .take(2)
        .last()
        .expect("two requests")
        .body;
    let sent = sent
        .pointer("/messages/0/content")
        .and_then(Value::as_str)
        .expect("a message");
    assert!(sent.starts_with("Question? lll") && sent.ends_with(&"s".repeat(400)));
    // It uses the context, and leaves room for the answer.
    assert!(
        (3_000..=3_600).contains(&sent.len()),
        "{} bytes",
        sent.len()
    );
    let output = stage.output(&record);
    assert!(
        output.contains("bytes of long.txt were sent") && output.contains("of 20000"),
        "{output}"
    );
}

#[test]
fn a_busy_server_is_asked_again() {
    let mut stage = Stage::new();
    let server = serve(|_, n| match n {
        0 | 1 => Reply::Json(
            503,
            json!({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}),
        ),
        _ => chat("ready"),
    });
    let spec = task(&mut stage, &server, prompt(vec![text("hello")]));
    let record = stage.run(&spec);
    assert_eq!(record.outcome, Outcome::Succeeded, "{record:?}");
    assert_eq!(server.requests.iter().take(3).count(), 3);
}

#[test]
fn errors_of_the_server_are_quoted() {
    let cases: [(Script, &str); 4] = [
        (
            |_, _| {
                Reply::Json(
                    500,
                    json!({"error": {"code": 500, "message": "CUDA error: out of memory"}}),
                )
            },
            "HTTP 500: CUDA error: out of memory",
        ),
        (
            |_, _| Reply::Json(200, json!({"choices": []})),
            "holds no choices[0].message.content",
        ),
        (
            |_, _| Reply::Json(404, json!("nothing here")),
            "HTTP 404: \"nothing here\"",
        ),
        (|_, _| Reply::BreakOff, "its answer broke off"),
    ];
    for (script, expected) in cases {
        let mut stage = Stage::new();
        let server = serve(script);
        let spec = task(&mut stage, &server, prompt(vec![text("hello")]));
        let record = stage.run(&spec);
        let (kind, reason) = failure(&record);
        assert_eq!(kind, FailureKind::LlmError);
        assert!(reason.contains(expected), "{reason}");
        assert!(!stage.file("answers").exists());
    }
}

#[test]
fn no_server_no_model_and_no_file_are_named() {
    let mut stage = Stage::new();
    let mut server = serve(|_, _| chat("x"));
    // A port that nobody listens on any more.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    server.url = format!("http://{}", listener.local_addr().expect("its address"));
    drop(listener);
    let spec = task(&mut stage, &server, prompt(vec![text("hello")]));
    let record = stage.run(&spec);
    assert_eq!(failure(&record).0, FailureKind::LlmError);
    assert!(
        failure(&record).1.to_lowercase().contains("refused"),
        "{}",
        failure(&record).1
    );

    let stage = Stage::new();
    let record = stage.run(&stage.task(Class::Llm, Work::Prompt(prompt(vec![text("hello")]))));
    assert_eq!(failure(&record).0, FailureKind::Setup);
    assert!(failure(&record).1.contains("RIGOR_LLM_URL"));

    let mut stage = Stage::new();
    let server = serve(|_, _| chat("x"));
    let spec = task(
        &mut stage,
        &server,
        prompt(vec![PromptPart::File("gone.txt".to_owned())]),
    );
    let record = stage.run(&spec);
    assert_eq!(failure(&record).0, FailureKind::MissingRequirement);
    assert!(failure(&record).1.contains("gone.txt"));
}

#[test]
fn a_timeout_ends_a_waiting_request() {
    let mut stage = Stage::new();
    let server = serve(|_, _| Reply::Never);
    let mut spec = task(&mut stage, &server, prompt(vec![text("hello")]));
    spec.timeout_s = Some(1);
    let record = stage.run(&spec);
    let expected = "timeout: ran 1s, limit 1s; the model had not answered";
    assert_eq!(failure(&record), (FailureKind::Timeout, expected));
    server
        .left
        .recv_timeout(PATIENCE)
        .expect("the server saw that nobody waits");
}

#[test]
fn sigterm_ends_a_waiting_request() {
    let mut stage = Stage::new();
    let server = serve(|_, _| Reply::Never);
    let spec = task(&mut stage, &server, prompt(vec![text("hello")]));
    let running = stage.start(&spec);
    server.requests.recv_timeout(PATIENCE).expect("a request");
    running.terminate("drained").expect("sent");
    let record = stage.settle(running);
    assert_eq!(failure(&record), (FailureKind::Aborted, "drained"));
    server
        .left
        .recv_timeout(PATIENCE)
        .expect("the server saw that nobody waits");
}
