//! A host with its files in a temporary folder, and what tests ask of it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rigor_runtime::state::State;
use rigor_runtime::{
    COOKIE_VARIABLE, HostOptions, ModelKind, ModelSpec, RuntimeEvent, RuntimeHost, RuntimeProgram,
};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Bed {
    pub(crate) host: RuntimeHost,
    pub(crate) events: UnboundedReceiver<RuntimeEvent>,
    pub(crate) options: HostOptions,
    folder: tempfile::TempDir,
}

impl Bed {
    pub(crate) fn new() -> Bed {
        Bed::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut HostOptions)) -> Bed {
        let folder = tempfile::tempdir().unwrap();
        let mut options = HostOptions {
            rig_id: "rig".into(),
            agent: "gpu-1".into(),
            host: "127.0.0.1".into(),
            port: free_port(),
            gpu_uuid: None,
            log_dir: folder.path().join("logs"),
            manifest_path: folder.path().join("runtime.json"),
            grace: Duration::from_secs(5),
            vram: None,
            vram_hung: PATIENCE,
            vram_patience: PATIENCE,
            watch_every: Duration::from_secs(30),
            again_every: PATIENCE,
        };
        change(&mut options);
        let (host, events) = RuntimeHost::new(options.clone()).unwrap();
        Bed {
            host,
            events,
            options,
            folder,
        }
    }

    pub(crate) async fn event(&mut self) -> RuntimeEvent {
        tokio::time::timeout(PATIENCE, self.events.recv())
            .await
            .expect("an event in time")
            .expect("the host lives")
    }

    pub(crate) fn state(&self) -> State {
        self.host.state().borrow().clone()
    }

    /// Tells the stand-ins of this bed how to behave from now on.
    pub(crate) fn tell(&self, behaviour: Value) {
        let (new, file) = (
            self.folder.path().join("behaviour.new"),
            self.folder.path().join("behaviour.json"),
        );
        std::fs::write(&new, behaviour.to_string()).unwrap();
        std::fs::rename(new, file).unwrap();
    }

    /// A model that the stand-in serves, as `behaviour` says, in any program's place.
    pub(crate) fn stand_in_as(&self, program: RuntimeProgram, behaviour: Value) -> ModelSpec {
        self.tell(behaviour);
        let mut spec = spec("stand-in", ModelKind::Chat, program);
        let file = self.folder.path().join("behaviour.json");
        spec.env
            .push(("RIGOR_RUNTIME_STAND_IN".into(), file.display().to_string()));
        spec
    }

    /// One that it serves as a `command`.
    pub(crate) fn stand_in(&self, behaviour: Value) -> ModelSpec {
        let command = [
            stand_in_program().to_str().unwrap(),
            "--model",
            "none.gguf",
            "--alias",
            "{MODEL}",
            "--host",
            "{HOST}",
            "--port",
            "{PORT}",
        ]
        .map(String::from)
        .to_vec();
        let program = RuntimeProgram::Command {
            command,
            file: None,
        };
        self.stand_in_as(program, behaviour)
    }

    pub(crate) fn ollama(&self, behaviour: Value) -> ModelSpec {
        let program = RuntimeProgram::Ollama {
            program: stand_in_program(),
            reference: "qwen2.5:7b".into(),
        };
        self.stand_in_as(program, behaviour)
    }

    pub(crate) fn vllm(&self, behaviour: Value) -> ModelSpec {
        let program = RuntimeProgram::Vllm {
            program: stand_in_program(),
            reference: "Qwen/Qwen2.5-7B-Instruct".into(),
            memory_share: Some(0.8),
            args: vec![],
        };
        self.stand_in_as(program, behaviour)
    }

    pub(crate) fn manifest(&self) -> Value {
        serde_json::from_slice(&std::fs::read(&self.options.manifest_path).unwrap()).unwrap()
    }

    pub(crate) fn nonce(&self) -> String {
        self.manifest()["nonce"].as_str().unwrap().to_owned()
    }

    /// Nothing of a load is left: no manifest, and the port is free.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&self, nonce: Option<&str>) {
        assert!(!self.options.manifest_path.exists(), "the manifest remains");
        TcpListener::bind(("127.0.0.1", self.options.port)).expect("the port is free");
        if let Some(nonce) = nonce {
            assert_eq!(processes_with(COOKIE_VARIABLE, nonce), Vec::<i32>::new());
        }
    }

    pub(crate) async fn post(&self, route: &str, body: Value) -> (u16, Value) {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("http://127.0.0.1:{}{route}", self.options.port);
        let response = client.post(url).json(&body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }
}

/// The living processes that were started with `variable` set to `value`.
pub(crate) fn processes_with(variable: &str, value: &str) -> Vec<i32> {
    let entry = format!("{variable}={value}");
    let processes = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|it| it.unwrap().file_name().to_str()?.parse().ok());
    processes
        .filter(|pid: &i32| {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ
                .split(|byte| *byte == 0)
                .any(|it| it == entry.as_bytes())
        })
        .collect()
}

/// Of a GPU that no other test has, in this or another run.
pub(crate) fn fresh_uuid() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!(
        "GPU-{:08x}-5eed-4000-8000-{number:012x}",
        std::process::id()
    )
}

pub(crate) fn session_of(pid: &str) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in parentheses, may hold anything.
    stat.rsplit_once(") ")
        .unwrap()
        .1
        .split(' ')
        .nth(3)
        .unwrap()
        .to_owned()
}

/// The memory of the processes that see the GPU stands for its VRAM, in MB, over what others use.
pub(crate) fn memory_as_vram(others_mb: u64, uuid: &str) -> u64 {
    let resident_kb = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:").map(str::to_owned));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let used_kb: u64 = processes_with("CUDA_VISIBLE_DEVICES", uuid)
        .into_iter()
        .map(resident_kb)
        .sum();
    others_mb + used_kb / 1024
}

/// Below the range that the kernel gives to outgoing connections, so that none can take it.
fn free_port() -> u16 {
    static NEXT: Mutex<u32> = Mutex::new(0);
    let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let port =
            20_000 + (std::process::id().wrapping_mul(37).wrapping_add(*next) % 12_000) as u16;
        *next += 1;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What `cargo xtask fixtures` has made, made now if it has not.
pub(crate) fn fixture(key: &str) -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let index = workspace.join("target/fixtures/fixtures.json");
    if !index.exists() {
        let made = Command::new(env!("CARGO"))
            .args(["xtask", "fixtures"])
            .current_dir(&workspace)
            .status()
            .unwrap();
        assert!(made.success(), "cargo xtask fixtures: {made}");
    }
    let fixtures: Value = serde_json::from_slice(&std::fs::read(index).unwrap()).unwrap();
    fixtures[key].as_str().unwrap().into()
}

pub(crate) fn llama(id: &str, kind: ModelKind, file: PathBuf) -> ModelSpec {
    let args = vec!["--threads".into(), "1".into()];
    spec(
        id,
        kind,
        RuntimeProgram::LlamaServer {
            program: fixture("llama_server"),
            file,
            args,
        },
    )
}

pub(crate) fn tiny() -> ModelSpec {
    llama("tiny-random", ModelKind::Chat, fixture("model"))
}

/// The stand-in for every runtime, built now if it is not.
pub(crate) fn stand_in_program() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        // Beside the folder of the test's own program.
        let tests = std::env::current_exe().unwrap();
        let folder = tests.parent().unwrap().parent().unwrap();
        let program = folder.join("runtime-stand-in");
        if !program.exists() {
            let built = Command::new(env!("CARGO"))
                .args(["build", "-p", "runtime-stand-in"])
                .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
                .status()
                .unwrap();
            assert!(built.success(), "cargo build -p runtime-stand-in: {built}");
        }
        program
    })
    .clone()
}

fn spec(id: &str, kind: ModelKind, program: RuntimeProgram) -> ModelSpec {
    ModelSpec {
        id: id.into(),
        kind,
        program,
        slots: 2,
        context: Some(1024),
        env: vec![],
        load_timeout: PATIENCE,
        more_gpus: vec![],
        gpu_indices: vec![],
        vram_mb: None,
        prove_vram: true,
    }
}
