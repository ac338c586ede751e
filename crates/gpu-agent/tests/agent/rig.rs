//! A rig in a temporary directory, with stand-in GPUs and real agents.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nvml_stand_in::State;
use rigor_queue::heartbeat::Heartbeat;
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::record::AttemptRecord;
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::{Durability, submit};
use rigor_queue::task::{Class, TaskSpec, Vram, Work};
use rigor_queue::{presence, records};

/// Longer than anything takes here, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const BATCH: &str = "b1";

static SEQUENCE: AtomicU64 = AtomicU64::new(1);

pub(crate) struct TestRig {
    dir: tempfile::TempDir,
    pub(crate) rig: Rig,
    pub(crate) state: State,
    /// Of the stand-in runtime's files, removed with the rig.
    folder: std::cell::OnceCell<PathBuf>,
}

/// Agents that tests kill leave their runtimes and attempts to a successor; after the last there is none.
impl Drop for TestRig {
    fn drop(&mut self) {
        let id = rigor_config::Config::load(self.root()).map(|config| config.rig.id);
        for agent in self.rig.agents().unwrap_or_default() {
            let left = self.rig.list(Place::Processing(&agent)).unwrap_or_default();
            for name in left.names {
                if let Ok(id) = &id {
                    let containment = rigor_exec::Containment::detect(id);
                    let _ = containment.kill_attempt(name.id, name.attempt, PATIENCE);
                }
            }
            let manifest = self
                .rig
                .agent_dir(&agent)
                .join(rigor_runtime::MANIFEST_NAME);
            let pids = rigor_runtime::orphan(&manifest).map_or(Vec::new(), |(_, pids)| pids);
            for pid in pids.into_iter().filter_map(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        if let Some(folder) = self.folder.get() {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

impl TestRig {
    /// A rig with that many stand-in GPUs of 6144 MiB; `extra` is more of rig.toml.
    pub(crate) fn new(gpus: usize, extra: &str) -> TestRig {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = dir.path().join("rig");
        let rig = Rig::create(&root).expect("create the rig");
        rig.prepare_batch(BATCH).expect("prepare the batch");
        rig.prepare_batch(rigor_queue::rig::RIG_BATCH)
            .expect("prepare the rig's own batch");
        let state = State::with_gpus(gpus);
        let library =
            nvml_stand_in::install(&root.join("sim"), &state).expect("install the stand-in");
        let mut text = String::from("[rig]\nname = \"test\"\n");
        for (n, gpu) in state.gpus.iter().enumerate() {
            text += &format!(
                "[[gpu]]\nname = \"gpu-{}\"\nuuid = \"{}\"\nport = {}\n{}",
                n + 1,
                gpu.uuid,
                free_port(),
                if extra.contains("[[model]]") {
                    "model = \"m\"\n"
                } else {
                    ""
                }
            );
        }
        text += "[[cpu_agent]]\nname = \"cpu-1\"\n";
        text += &format!(
            "[nvml]\nlibrary = {:?}\nsimulated = true\n",
            library.display().to_string()
        );
        if !extra.contains("[timing]") {
            text += "[timing]\nheartbeat_every = \"200ms\"\ngrace = \"2s\"\n";
        }
        text += extra;
        fs::write(root.join("rig.toml"), text).expect("write rig.toml");
        TestRig {
            dir,
            rig,
            state,
            folder: std::cell::OnceCell::new(),
        }
    }

    pub(crate) fn set_folder(&self, folder: PathBuf) {
        self.folder.set(folder).expect("it has none yet");
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.get().expect("it has one")
    }

    pub(crate) fn root(&self) -> &Path {
        self.rig.root()
    }

    /// A folder for what tasks write.
    pub(crate) fn scratch(&self) -> PathBuf {
        let scratch = self.dir.path().join("scratch");
        fs::create_dir_all(&scratch).expect("make the scratch folder");
        scratch
    }

    /// Says what the GPUs say from now on.
    pub(crate) fn set_state(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.clone();
        change(&mut state);
        let path = self.root().join("sim").join(nvml_stand_in::STATE_NAME);
        state.write(&path).expect("write the state");
    }

    pub(crate) fn spec(&self, class: Class, name: &str, command: &str) -> TaskSpec {
        TaskSpec {
            plan: "plan".into(),
            name: name.into(),
            vram: Vram::Infer,
            plan_dir: self.scratch(),
            batch_dir: self.scratch(),
            ..TaskSpec::new(
                TaskId::derive(BATCH, name, None),
                BATCH,
                &format!(
                    "{}_t",
                    name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '_')
                ),
                class,
                Work::Command {
                    command: command.into(),
                },
            )
        }
    }

    pub(crate) fn queue(&self, spec: &TaskSpec) -> FileName {
        let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        let name = FileName::first(spec.priority, sequence, spec.shape(), spec.id);
        let place = Place::Queue(spec.class);
        let fresh = submit(&self.rig, place, &name, spec, Durability::Process).expect("submit");
        assert!(fresh, "{} was queued twice", spec.name);
        name
    }

    pub(crate) fn run(&self, class: Class, name: &str, command: &str) -> FileName {
        self.queue(&self.spec(class, name, command))
    }

    /// A task of the rig's own.
    pub(crate) fn meta(&self, name: &str, work: Work) -> FileName {
        let mut spec = self.spec(Class::Meta, name, "");
        spec.batch = rigor_queue::rig::RIG_BATCH.into();
        spec.work = work;
        self.queue(&spec)
    }

    pub(crate) fn agent(&self, name: &str) -> Agent<'_> {
        self.agent_with(name, &[])
    }

    pub(crate) fn agent_with(&self, name: &str, args: &[&str]) -> Agent<'_> {
        self.start(name, args, &[])
    }

    pub(crate) fn start(&self, name: &str, args: &[&str], env: &[(&str, &str)]) -> Agent<'_> {
        let program = Path::new(env!("CARGO_BIN_EXE_gpu-agent"));
        self.start_program(program, name, args, env)
    }

    /// Starts that copy of the agent, which takes the worker beside it.
    pub(crate) fn start_program(
        &self,
        program: &Path,
        name: &str,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Agent<'_> {
        build_worker();
        let path = self.dir.path().join(format!("{name}.stderr"));
        let child = Command::new(program)
            .arg(name)
            .arg("--rig")
            .arg(self.root())
            .args(args)
            .env("GPU_LOG_LEVEL", "debug")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stderr(File::create(path).expect("make a file"))
            .spawn()
            .expect("start the agent");
        Agent {
            rig: self,
            name: name.to_owned(),
            child,
        }
    }

    pub(crate) fn count(&self, place: Place<'_>) -> usize {
        self.rig.count(place).expect("list")
    }

    pub(crate) fn complete(&self) -> usize {
        self.count(Place::Complete(BATCH))
    }

    pub(crate) fn record(&self, name: &FileName) -> AttemptRecord {
        self.record_of(BATCH, name)
    }

    pub(crate) fn record_of(&self, batch: &str, name: &FileName) -> AttemptRecord {
        let record =
            records::read(&self.rig, batch, name.id, name.attempt).expect("read the record");
        record.unwrap_or_else(|| panic!("no record of {name}"))
    }

    pub(crate) fn log(&self, agent: &str) -> String {
        fs::read_to_string(self.rig.logs_dir().join(format!("{agent}.log"))).unwrap_or_default()
    }

    pub(crate) fn heartbeat(&self, agent: &str) -> Option<Heartbeat> {
        presence::heartbeat(&self.rig, agent).expect("read the heartbeat")
    }

    /// Waits until `condition` holds; `what` and every log are in the failure.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            if Instant::now() > deadline {
                let logs = fs::read_dir(self.rig.logs_dir()).expect("read logs");
                let outputs = fs::read_dir(self.dir.path()).expect("read the outputs");
                let outputs = outputs.flatten().filter(|entry| entry.path().is_file());
                let logs: String = logs
                    .flatten()
                    .chain(outputs)
                    .filter_map(|entry| fs::read_to_string(entry.path()).ok())
                    .collect();
                panic!("waited in vain: {what}\n{logs}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    pub(crate) fn wait_for_line(&self, agent: &str, text: &str) {
        self.wait(&format!("{agent} says {text:?}"), || {
            self.log(agent).contains(text)
        });
    }
}

/// A running agent; killed when dropped.
pub(crate) struct Agent<'r> {
    rig: &'r TestRig,
    pub(crate) name: String,
    child: Child,
}

impl Agent<'_> {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("signal the agent");
    }

    pub(crate) fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for the agent") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{} does not end\n{}",
                self.name,
                self.rig.log(&self.name)
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn stderr(&self) -> String {
        let path = self.rig.dir.path().join(format!("{}.stderr", self.name));
        fs::read_to_string(path).expect("read what the agent said")
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("an address").port()
}

/// Cargo builds the programs of this package for its tests; the worker is another's.
pub(crate) fn build_worker() {
    let worker = Path::new(env!("CARGO_BIN_EXE_gpu-agent")).with_file_name("worker");
    if worker.exists() {
        return;
    }
    let built = Command::new(env!("CARGO"))
        .args(["build", "-p", "worker"])
        .status();
    assert!(
        built.is_ok_and(|status| status.success()),
        "cargo build -p worker"
    );
}
