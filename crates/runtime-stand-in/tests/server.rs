#![expect(clippy::unwrap_used, reason = "a test ends where it is wrong")]
//! The program as its callers see it.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use runtime_stand_in::{BEHAVIOUR_VARIABLE, CLAIM_VARIABLE, OWNER};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Server {
    fn llama(behaviour: Value) -> Server {
        Server::start(behaviour, |port| {
            format!("--model /m/f.gguf --alias m --host 127.0.0.1 --port {port} --parallel 2 -t 1")
        })
    }

    fn ollama(behaviour: Value) -> Server {
        Server::start(behaviour, |_| "serve".into())
    }

    fn start(behaviour: Value, words: impl Fn(u16) -> String) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let (file, port) = (folder.path().join("behaviour.json"), free_port());
        std::fs::write(&file, behaviour.to_string()).unwrap();
        let output = std::fs::File::create(folder.path().join("output")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_runtime-stand-in"))
            .args(words(port).split_whitespace())
            .env(BEHAVIOUR_VARIABLE, file)
            .env("OLLAMA_HOST", format!("127.0.0.1:{port}"))
            .env_remove(CLAIM_VARIABLE)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Server {
            child,
            port,
            folder,
        }
    }

    fn tell(&self, behaviour: Value) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, behaviour.to_string()).unwrap();
        std::fs::rename(new, self.folder.path().join("behaviour.json")).unwrap();
    }

    fn output(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("output")).unwrap()
    }

    fn ask(&self, route: &str, body: Option<Value>) -> Result<(u16, String), ureq::Error> {
        self.ask_for(PATIENCE, route, body)
    }

    fn ask_for(
        &self,
        patience: Duration,
        route: &str,
        body: Option<Value>,
    ) -> Result<(u16, String), ureq::Error> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(patience))
            .build()
            .into();
        let url = format!("http://127.0.0.1:{}{route}", self.port);
        let mut response = match body {
            None => agent.get(url).call()?,
            Some(body) => agent.post(url).send_json(body)?,
        };
        Ok((
            response.status().as_u16(),
            response.body_mut().read_to_string()?,
        ))
    }

    fn get(&self, route: &str) -> (u16, Value) {
        let (status, text) = self.ask(route, None).unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    fn post(&self, route: &str, body: Value) -> (u16, Value) {
        let (status, text) = self.ask(route, Some(body)).unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    fn chat(&self) -> (u16, Value) {
        self.post("/v1/chat/completions", hello())
    }

    fn answers(&self, route: &str, status: u16) {
        until(&format!("{status} on {route}"), || {
            self.ask(route, None).is_ok_and(|(it, _)| it == status)
        });
    }

    fn exits(&mut self) -> Option<i32> {
        let mut status = None;
        until("the end of the process", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }

    fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Its processes, itself included, with what each claims of the GPU.
    fn claims(&self) -> Vec<(i32, String)> {
        let file = self.folder.path().join("behaviour.json");
        let own = format!("{BEHAVIOUR_VARIABLE}={}", file.display());
        let mut claims = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap() {
            let entry = entry.unwrap();
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            let text = String::from_utf8_lossy(&environment).into_owned();
            if text.split('\0').any(|it| it == own) {
                let claim = text
                    .split('\0')
                    .find_map(|it| it.strip_prefix(CLAIM_VARIABLE)?.strip_prefix('='));
                let pid = entry.file_name().to_str().unwrap().parse().unwrap();
                claims.push((pid, claim.unwrap_or("none").to_owned()));
            }
        }
        claims.sort_unstable();
        claims
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // All that bears this server's own file in its environment is this test's.
        for (pid, _) in self.claims() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = self.child.wait();
    }
}

fn hello() -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "Hello"}]})
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = (std::process::id() % 300) as u16;
    loop {
        let port = 30_500 + own * 7 % 1500 + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

#[test]
fn llama_server_is_503_while_it_loads_and_then_names_itself_in_everything() {
    let server = Server::llama(json!({"load_ms": 400, "vram_mb": 4700}));
    server.answers("/health", 503);
    assert_eq!(
        server.get("/v1/models").1["error"]["message"],
        "Loading model"
    );
    server.answers("/health", 200);
    assert_eq!(server.get("/health").1, json!({"status": "ok"}));
    assert_eq!(
        server.get("/v1/models").1["data"][0],
        json!({"id": "m", "object": "model", "created": 0, "owned_by": OWNER})
    );
    let (status, answer) = server.chat();
    assert_eq!(status, 200);
    assert_eq!(answer["system_fingerprint"], OWNER);
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    assert!(
        answer["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .contains(OWNER)
    );
    let embedding = server
        .post("/v1/embeddings", json!({"input": ["a", "b"]}))
        .1;
    assert_eq!(
        embedding["data"][1]["embedding"],
        json!([0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    );
    assert_eq!(
        server
            .post("/completion", json!({"prompt": "a", "n_predict": 3}))
            .1["tokens_predicted"],
        3
    );
    assert_eq!(server.get("/nothing").0, 404);
    assert!(
        server
            .output()
            .starts_with("rigor runtime-stand-in: no model is here"),
        "{}",
        server.output()
    );
    let pid = i32::try_from(server.child.id()).unwrap();
    assert_eq!(
        server.claims(),
        [(pid, "4700".to_owned())],
        "one process, which claims the model's memory"
    );
}

#[test]
fn requests_beyond_the_slots_wait_for_their_turn() {
    let server = Server::llama(json!({"latency_ms": 500}));
    server.answers("/health", 200);
    let since = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(server.chat().0, 200));
        }
    });
    let took = since.elapsed();
    assert!(
        took >= Duration::from_millis(1000),
        "four of 500 ms, two at once: {took:?}"
    );
    assert!(
        took < Duration::from_millis(1900),
        "they did not run two at once: {took:?}"
    );
}

#[test]
fn an_answer_can_be_streamed_token_by_token() {
    let server = Server::llama(json!({"tokens": 3}));
    server.answers("/health", 200);
    let mut request = hello();
    request["stream"] = true.into();
    let text = server.ask("/v1/chat/completions", Some(request)).unwrap().1;
    let events: Vec<&str> = text
        .split_terminator("\n\n")
        .map(|event| event.strip_prefix("data: ").unwrap())
        .collect();
    assert_eq!((events.len(), events[4]), (5, "[DONE]"));
    let third: Value = serde_json::from_str(events[2]).unwrap();
    assert_eq!(third["choices"][0]["delta"]["content"], " 3");
}

#[test]
fn the_behaviour_is_read_afresh_and_a_wrong_one_is_said() {
    let server = Server::llama(json!({}));
    server.answers("/health", 200);
    server.tell(json!({"fail_requests": 429, "wrong_model": "other"}));
    assert_eq!(server.chat().0, 429);
    assert_eq!(server.get("/v1/models").1["data"][0]["id"], "other");
    server.tell(json!({"latency": 1}));
    let (status, answer) = server.chat();
    assert_eq!(status, 500);
    assert!(
        answer["error"]["message"]
            .as_str()
            .unwrap()
            .contains("unknown field `latency`"),
        "{answer}"
    );
    server.tell(json!({}));
    assert_eq!(server.chat().0, 200);
}

#[test]
fn a_failed_load_ends_with_the_programs_own_words() {
    let mut server = Server::llama(json!({"out_of_memory": true}));
    assert_eq!(server.exits(), Some(1));
    assert!(
        server.output().contains("cudaMalloc failed: out of memory"),
        "{}",
        server.output()
    );
    let mut server = Server::start(json!({"out_of_memory": true}), |port| {
        format!("serve org/m --port {port}")
    });
    assert_eq!(server.exits(), Some(1));
    assert!(
        server.output().contains("CUDA out of memory"),
        "{}",
        server.output()
    );
    let mut server =
        Server::llama(json!({"exit_code": 3, "stderr": "no such thing", "load_ms": 10}));
    assert_eq!(server.exits(), Some(3));
    assert!(
        server.output().ends_with("no such thing\n"),
        "{}",
        server.output()
    );
}

#[test]
fn health_can_lie_and_a_load_can_last() {
    let server = Server::llama(json!({"health_lies": true, "never_ready": true}));
    server.answers("/health", 200);
    assert_eq!(server.get("/v1/models").0, 503);
    server.tell(json!({"health_lies": true}));
    server.answers("/v1/models", 200);
    assert_eq!(server.chat().0, 500);
}

#[test]
fn a_generation_can_hang_and_the_process_can_die_in_one() {
    let mut server = Server::llama(json!({"hang_generation": 2}));
    server.answers("/health", 200);
    assert_eq!(server.chat().0, 200);
    let second = Duration::from_secs(1);
    let hung = server.ask_for(second, "/v1/chat/completions", Some(hello()));
    assert!(hung.is_err(), "{hung:?}");
    assert_eq!(server.get("/health").0, 200);
    server.tell(json!({"exit_after_requests": 2}));
    assert!(server.ask("/v1/chat/completions", Some(hello())).is_err());
    assert_eq!(server.exits(), Some(134));
}

#[test]
fn sigterm_ends_it_unless_told_otherwise() {
    let mut server = Server::llama(json!({"ignore_sigterm": true, "latency_ms": 60000}));
    server.answers("/health", 200);
    server.terminate();
    until("the words of SIGTERM", || {
        server.output().contains("told to ignore SIGTERM")
    });
    assert_eq!(server.get("/health").0, 200);
    server.tell(json!({}));
    server.terminate();
    assert_eq!(server.exits(), Some(0));
}

#[test]
fn a_leaked_child_survives_with_its_memory() {
    let mut server = Server::llama(json!({"leak_child": true, "vram_mb": 100}));
    server.answers("/health", 200);
    server.terminate();
    assert_eq!(server.exits(), Some(0));
    let left = server.claims();
    assert!(left.len() == 1 && left[0].1 == "100", "{left:?}");
    let session = rustix::process::getsid(rustix::process::Pid::from_raw(left[0].0)).unwrap();
    assert_eq!(
        session.as_raw_nonzero().get(),
        left[0].0,
        "it has a session of its own"
    );
}

#[test]
fn vllm_listens_when_loaded_and_serves_its_one_name() {
    let words = |port| format!("serve org/m --served-model-name m --host 127.0.0.1 --port {port}");
    let server = Server::start(json!({"load_ms": 300}), words);
    until("its first line", || {
        server.output().contains("behaves like vllm")
    });
    assert!(
        server.ask("/health", None).is_err(),
        "it listens before it is loaded"
    );
    server.answers("/health", 200);
    assert_eq!(server.get("/v1/models").1["data"][0]["id"], "m");
    assert_eq!(server.chat().0, 200);
    let (status, answer) = server.post(
        "/v1/chat/completions",
        json!({"model": "org/m", "messages": []}),
    );
    assert_eq!(
        (status, &answer["error"]["type"]),
        (404, &json!("NotFoundError"))
    );
}

#[test]
fn ollama_loads_in_a_child_and_answers_before_it_has_unloaded() {
    let server = Server::ollama(
        json!({"vram_mb": 700, "size_vram_mb": 350, "pulled": ["q:7b", "m"], "unload_ms": 300}),
    );
    server.answers("/api/version", 200);
    assert_eq!(server.get("/api/tags").1["models"][0]["name"], "q:7b");
    assert_eq!(server.get("/api/ps").1, json!({"models": []}));
    let (status, answer) = server.post("/api/generate", json!({"model": "absent"}));
    assert_eq!(
        (status, &answer["error"]),
        (
            404,
            &json!("model \"absent\" not found, try pulling it first")
        )
    );
    let (status, answer) = server.post("/api/generate", json!({"model": "q:7b", "keep_alive": -1}));
    assert_eq!((status, &answer["done_reason"]), (200, &json!("load")));
    let loaded = &server.get("/api/ps").1["models"][0];
    assert_eq!(
        (loaded["size"].as_u64(), loaded["size_vram"].as_u64()),
        (Some(700 << 20), Some(350 << 20))
    );
    let holds = |server: &Server| server.claims().iter().any(|(_, claim)| claim == "700");
    assert!(holds(&server), "{:?}", server.claims());
    let request = json!({"model": "q:7b", "messages": [{"role": "user", "content": "Hello"}], "stream": false});
    assert!(
        server.post("/api/chat", request).1["message"]["content"]
            .as_str()
            .unwrap()
            .contains(OWNER)
    );
    assert_eq!(server.chat().1["model"], "m:latest");
    for model in ["m", "q:7b"] {
        let answer = server
            .post("/api/generate", json!({"model": model, "keep_alive": 0}))
            .1;
        assert_eq!(answer["done_reason"], "unload");
    }
    assert!(holds(&server), "the memory goes after the answer");
    until("free memory", || !holds(&server));
    assert_eq!(server.get("/api/ps").1, json!({"models": []}));
    server.tell(json!({"out_of_memory": true}));
    let (status, answer) = server.post("/api/generate", json!({"model": "q:7b"}));
    assert_eq!(status, 500);
    assert!(
        answer["error"].as_str().unwrap().contains("out of memory"),
        "{answer}"
    );
}
