//! A rig in a temporary directory.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rigor_queue::heartbeat::Heartbeat;
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::presence;
use rigor_queue::rig::{self as queue, BRAIN, Place};
use rustix::process::Signal;
use serde_json::Value;

use crate::{checker, lines, parts, processes};

/// Longer than anything takes here, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long programs may take to end after SIGTERM, and once more after a second one.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// More than a batch of a few seconds takes, less than the brain waits between two looks at all lanes.
const SHORT_BATCH: Duration = Duration::from_secs(20);
/// How old temporary files may be where something was killed while it wrote.
const LITTER_AGE: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);
/// Lines of each log that a failed case prints.
const TAIL_LINES: usize = 40;

/// What a rig is to be.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Stand-in GPUs, each with an agent `gpu-N`.
    pub gpus: usize,
    /// Agents without a GPU, `cpu-N`.
    pub cpu_agents: usize,
    /// The chat model of the fixtures, as every GPU's default, with so many slots; 0: none.
    pub slots: u32,
    /// More of that model's table.
    pub model: &'static str,
    /// More of `[rig]`.
    pub rig: &'static str,
    /// More of `[limits]`.
    pub limits: &'static str,
    /// More of `[timing]`.
    pub timing: &'static str,
    /// More tables.
    pub tables: String,
}

/// The rig, its programs, its plans.
#[derive(Debug)]
pub struct Rig {
    dir: tempfile::TempDir,
    /// The queue's view of it.
    pub rig: queue::Rig,
    id: String,
    children: BTreeMap<String, Child>,
    litter_age: Duration,
    /// Batches whose submission was acknowledged.
    submitted: RefCell<Vec<String>>,
    closed: bool,
}

/// What a program said.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit code; -1 where a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

impl Rig {
    /// A rig of `gpus` stand-in GPUs without a model.
    pub fn new(gpus: usize) -> Rig {
        Setup {
            gpus,
            ..Setup::default()
        }
        .make()
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        self.rig.root()
    }

    /// What tells its processes from those of other rigs.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where what programs say is kept: on no file system that the case fills.
    fn said_dir(&self) -> PathBuf {
        let dir = std::env::var_os(crate::mounts::OUTSIDE);
        dir.map_or(self.dir.path().to_owned(), PathBuf::from)
    }

    /// The folder that holds the plans.
    pub fn plans(&self) -> PathBuf {
        self.dir.path().join("plans")
    }

    /// Writes a plan: `tasks` is what stands under `## Tasks`.
    pub fn plan(&self, name: &str, tasks: &str) -> PathBuf {
        self.raw_plan(
            name,
            &format!("# Plan: {name}\n\n## Goal\n\nA test.\n\n## Tasks\n\n{tasks}"),
        )
    }

    /// Writes a plan with that text.
    pub fn raw_plan(&self, name: &str, text: &str) -> PathBuf {
        let dir = self.plans().join(name);
        fs::create_dir_all(&dir).expect("make the plan's folder");
        fs::write(dir.join("plan.md"), text).expect("write plan.md");
        dir
    }

    /// Starts the brain and waits until it is ready.
    #[track_caller]
    pub fn start_brain(&mut self) {
        let ready = |rig: &Rig| rig.log(BRAIN).matches("Brain ready").count();
        let before = ready(self);
        self.spawn(BRAIN);
        self.wait("the brain is ready", |rig| ready(rig) > before);
    }

    /// Starts an agent and waits until it is there.
    #[track_caller]
    pub fn start_agent(&mut self, name: &str) {
        let starting = format!("GPU agent {name} starting");
        let count = |rig: &Rig| rig.log(name).matches(&starting).count();
        let before = count(self);
        self.spawn(name);
        self.wait(&starting, |rig| count(rig) > before);
    }

    /// Starts the brain and every agent of rig.toml.
    #[track_caller]
    pub fn start_all(&mut self) {
        self.start_brain();
        for name in self.agents() {
            self.start_agent(&name);
        }
    }

    /// The agents of rig.toml.
    pub fn agents(&self) -> Vec<String> {
        let status = self.status();
        let agents = status["agents"].as_array().expect("agents").iter();
        agents
            .map(|agent| agent["name"].as_str().expect("a name").to_owned())
            .collect()
    }

    /// Starts the brain or an agent, and waits for nothing.
    pub fn spawn(&mut self, name: &str) {
        self.spawn_with(name, &[]);
    }

    /// The same with more environment.
    pub fn spawn_with(&mut self, name: &str, env: &[(&str, &str)]) {
        let mut command = self.component(name);
        command.envs(env.iter().copied());
        self.spawn_command(name, command);
    }

    /// The same under another program: `wrapper` are its words, which must leave the process that
    /// it starts in its own place.
    pub fn spawn_under(&mut self, wrapper: &[&str], name: &str) {
        let inner = self.component(name);
        let mut command = Command::new(wrapper[0]);
        command
            .args(&wrapper[1..])
            .arg(inner.get_program())
            .args(inner.get_args())
            .env(processes::MARK, self.root())
            .stdin(Stdio::null());
        self.spawn_command(name, command);
    }

    fn spawn_command(&mut self, name: &str, mut command: Command) {
        let out = |kind| {
            let path = self.said_dir().join(format!("{name}.{kind}"));
            File::create(path).expect("make a file")
        };
        command.stdout(out("stdout")).stderr(out("stderr"));
        let child = command.spawn().expect("start a program");
        let before = self.children.insert(name.to_owned(), child);
        assert!(before.is_none(), "{name} was started twice");
    }

    /// Changes rig.toml; for before anything runs.
    pub fn edit_toml(&self, change: impl FnOnce(String) -> String) {
        let path = self.root().join("rig.toml");
        let text = fs::read_to_string(&path).expect("read rig.toml");
        fs::write(&path, change(text)).expect("write rig.toml");
    }

    /// Changes what the stand-in GPUs say.
    pub fn stand_in(&self, change: impl FnOnce(&mut nvml_stand_in::State)) {
        let path = self.root().join("sim").join(nvml_stand_in::STATE_NAME);
        let mut state = nvml_stand_in::State::read(&path).expect("read the stand-in's state");
        change(&mut state);
        state.write(&path).expect("write the stand-in's state");
    }

    /// The command that starts the brain or an agent.
    pub fn component(&self, name: &str) -> Command {
        let program = parts::program(if name == BRAIN { "brain" } else { "gpu-agent" });
        // The worker lies beside the agent and is needed too.
        parts::program("worker");
        let mut command = if parts::on_path("setpriv") {
            // A test that is killed leaves nothing running.
            let mut tied = Command::new("setpriv");
            tied.args(["--pdeathsig", "KILL", "--"]).arg(program);
            tied
        } else {
            Command::new(program)
        };
        if name != BRAIN {
            command.arg(name);
        }
        command
            .arg("--rig")
            .arg(self.root())
            .env(processes::MARK, self.root())
            .stdin(Stdio::null());
        command
    }

    /// The process of the brain or an agent.
    pub fn pid(&self, name: &str) -> u32 {
        self.children[name].id()
    }

    /// Kills a program at once and reaps it.
    pub fn kill(&mut self, name: &str) {
        self.litter_age = LITTER_AGE;
        let mut child = self.children.remove(name).expect("it was started");
        child.kill().expect("kill a program");
        child.wait().expect("reap a program");
    }

    /// Whether a program was started and not reaped since.
    pub fn is_started(&self, name: &str) -> bool {
        self.children.contains_key(name)
    }

    /// Reaps a program if it has ended by itself, or was killed by another.
    pub fn reap(&mut self, name: &str) -> Option<ExitStatus> {
        let child = self.children.get_mut(name)?;
        let status = child.try_wait().expect("wait for a program")?;
        self.litter_age = LITTER_AGE;
        self.children.remove(name);
        Some(status)
    }

    /// Somebody else than this value has killed something of the rig, perhaps while it wrote.
    pub fn was_hit(&mut self) {
        self.litter_age = LITTER_AGE;
    }

    /// Tells a program to end (SIGTERM).
    pub fn terminate(&self, name: &str) {
        processes::send(self.pid(name), Signal::TERM);
    }

    /// Waits for the end of a program that was told to.
    #[track_caller]
    pub fn ended(&mut self, name: &str) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let child = self.children.get_mut(name).expect("it was started");
            if let Some(status) = child.try_wait().expect("wait for a program") {
                self.children.remove(name);
                return status;
            }
            assert!(Instant::now() < deadline, "{name} does not end");
            std::thread::sleep(POLL);
        }
    }

    /// Waits for the end of a program that somebody else kills.
    #[track_caller]
    pub fn killed(&mut self, name: &str) -> ExitStatus {
        self.litter_age = LITTER_AGE;
        self.ended(name)
    }

    /// Runs `rigor` on the rig to its end.
    #[track_caller]
    pub fn rigor(&self, words: &[&str]) -> Output {
        self.output(self.rigor_command(words))
    }

    /// The command that [`Rig::rigor`] runs.
    pub fn rigor_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(parts::program("rigor"));
        command
            .arg("--rig")
            .arg(self.root())
            .args(words)
            .current_dir(self.dir.path())
            .env(processes::MARK, self.root())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs a program to its end, which has to come in time.
    #[track_caller]
    pub fn output(&self, mut command: Command) -> Output {
        // Into files, as whoever inherits a pipe keeps its reader waiting.
        let dir = self.said_dir();
        let paths = ["stdout", "stderr"].map(|kind| {
            let file = tempfile::NamedTempFile::with_prefix_in(kind, &dir);
            file.expect("make a file")
        });
        let [stdout, stderr] = paths
            .each_ref()
            .map(|file| file.reopen().expect("open a file"));
        let mut child = command
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .expect("start a program");
        let deadline = Instant::now() + 2 * PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().expect("wait for a program") {
                break status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{command:?} does not end");
            }
            std::thread::sleep(POLL);
        };
        let [stdout, stderr] = paths.map(|file| {
            let bytes = fs::read(file.path()).expect("read what was said");
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Output {
            code: status.code().unwrap_or(-1),
            stdout,
            stderr,
        }
    }

    /// A batch that was submitted otherwise was acknowledged.
    pub fn acknowledged(&self, batch: &str) {
        self.submitted.borrow_mut().push(batch.to_owned());
    }

    /// An operator removed a batch: nobody misses it.
    pub fn forgotten(&self, batch: &str) {
        self.submitted.borrow_mut().retain(|known| known != batch);
    }

    /// Submits a plan and returns the batch's id.
    #[track_caller]
    pub fn submit(&self, plan: &Path) -> String {
        self.submit_with(plan, &[])
    }

    /// The same with more arguments.
    #[track_caller]
    pub fn submit_with(&self, plan: &Path, words: &[&str]) -> String {
        let plan = plan.to_str().expect("a path in UTF-8");
        let output = self.rigor(&[&["submit", plan], words].concat());
        assert_eq!(output.code, 0, "{}", output.stderr);
        let batch = output.stdout.trim_end().to_owned();
        self.submitted.borrow_mut().push(batch.clone());
        batch
    }

    /// Waits until a batch is over and returns the exit code of `rigor wait`.
    #[track_caller]
    pub fn wait_batch(&self, batch: &str) -> i32 {
        self.rigor(&["wait", batch]).code
    }

    /// The same for a batch of which nothing takes long: no wake-up may have been lost on the way,
    /// which the brain would only make good when it compares the lanes with its memory.
    #[track_caller]
    pub fn wait_short_batch(&self, batch: &str) -> i32 {
        let started = Instant::now();
        let code = self.wait_batch(batch);
        let took = started.elapsed();
        assert!(
            took < SHORT_BATCH,
            "{batch} took {took:?}: a wake-up was lost?"
        );
        code
    }

    /// What `rigor status --json` prints.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.json(&["status", "--json"])
    }

    /// What a command prints as JSON.
    #[track_caller]
    pub fn json(&self, words: &[&str]) -> Value {
        let output = self.rigor(words);
        assert_eq!(output.code, 0, "rigor {words:?}: {}", output.stderr);
        serde_json::from_str(&output.stdout).expect("it prints JSON")
    }

    /// The tasks of a batch in a lane, by name.
    #[track_caller]
    pub fn tasks(&self, batch: &str, lane: &str) -> Vec<String> {
        let printed = self.json(&["tasks", "--batch", batch, "--lane", lane, "--json"]);
        let tasks = printed["tasks"].as_array().expect("tasks").iter();
        let mut names: Vec<String> = tasks
            .map(|task| task["name"].as_str().expect("a name").to_owned())
            .collect();
        names.sort();
        names
    }

    /// RUN_SUMMARY.json of a batch of that plan.
    #[track_caller]
    pub fn summary(&self, plan: &Path, batch: &str) -> Value {
        let path = plan.join("history").join(batch).join("RUN_SUMMARY.json");
        self.wait("RUN_SUMMARY.json", |_| path.exists());
        let text = fs::read(&path).expect("read RUN_SUMMARY.json");
        serde_json::from_slice(&text).expect("RUN_SUMMARY.json is JSON")
    }

    /// The log of a component so far.
    pub fn log(&self, component: &str) -> String {
        self.log_of(&format!("{component}.log"))
    }

    /// A file of the rig's `logs/`.
    pub fn log_of(&self, file: &str) -> String {
        let path = self.rig.logs_dir().join(file);
        let bytes = fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What a component said on stderr since it was last started.
    pub fn stderr(&self, component: &str) -> String {
        let path = self.said_dir().join(format!("{component}.stderr"));
        fs::read_to_string(path).expect("read what a program said")
    }

    /// The last heartbeat of a component.
    pub fn heartbeat(&self, component: &str) -> Option<Heartbeat> {
        presence::heartbeat(&self.rig, component).expect("read a heartbeat")
    }

    /// Task files in a place.
    pub fn list(&self, place: Place<'_>) -> Vec<FileName> {
        self.rig.list(place).expect("read a lane").names
    }

    /// Living processes of one attempt.
    pub fn processes_of(&self, id: TaskId, attempt: u32) -> Vec<processes::Process> {
        let cookie = format!("{}:{id}.a{attempt}", self.id);
        let mut all = processes::of_rig(self.root(), &self.id);
        all.retain(|process| process.cookie.as_deref() == Some(&cookie));
        all
    }

    /// Living processes of the rig.
    pub fn processes(&self) -> Vec<processes::Process> {
        processes::of_rig(self.root(), &self.id)
    }

    /// Waits until `condition` holds; a failure prints the ends of the logs.
    #[track_caller]
    pub fn wait(&self, what: &str, condition: impl Fn(&Rig) -> bool) {
        wait_until(PATIENCE, what, || condition(self));
    }

    /// Waits for a text in the log of a component.
    #[track_caller]
    pub fn wait_for_line(&self, component: &str, text: &str) {
        let what = format!("{component} says {text:?}");
        self.wait(&what, |rig| rig.log(component).contains(text));
    }

    /// Waits for a line in the log of a component that the pattern matches, and returns it.
    #[track_caller]
    pub fn wait_for_match(&self, component: &str, pattern: &str) -> String {
        let what = format!("{component} says {pattern}");
        self.wait(&what, |rig| {
            lines::find(&rig.log(component), pattern).is_some()
        });
        lines::find(&self.log(component), pattern).expect("it was there a moment ago")
    }

    /// Stops every program in order: agents drain, then the brain.
    pub fn stop(&mut self) -> Result<(), String> {
        let agents: Vec<String> = self
            .children
            .keys()
            .filter(|name| *name != BRAIN)
            .cloned()
            .collect();
        let brain: Vec<String> = self
            .children
            .keys()
            .filter(|name| *name == BRAIN)
            .cloned()
            .collect();
        for names in [agents, brain] {
            for _ in 0..2 {
                names
                    .iter()
                    .filter(|name| self.children.contains_key(*name))
                    .for_each(|name| self.terminate(name));
                let deadline = Instant::now() + STOP_PATIENCE;
                while names.iter().any(|name| self.children.contains_key(name))
                    && Instant::now() < deadline
                {
                    self.children
                        .retain(|_, child| !matches!(child.try_wait(), Ok(Some(_))));
                    std::thread::sleep(POLL);
                }
            }
            if let Some(name) = names.iter().find(|name| self.children.contains_key(*name)) {
                return Err(format!("{name} does not end after two SIGTERM"));
            }
        }
        Ok(())
    }

    /// Stops every program in order and checks the rig, in place of its drop. Returns everything
    /// that is wrong.
    pub fn close(&mut self) -> Vec<String> {
        self.closed = true;
        let mut wrong: Vec<String> = self.stop().err().into_iter().collect();
        let submitted = self.submitted.borrow();
        let plans: Vec<TaskId> = submitted
            .iter()
            .map(|batch| TaskId::derive(batch, "_plan", None))
            .collect();
        drop(submitted);
        wrong.extend(checker::check(
            self.root(),
            &self.id,
            &self.plans(),
            self.litter_age,
            &plans,
        ));
        if !wrong.is_empty() {
            self.print_tails();
            self.kill_everything();
        }
        wrong
    }

    fn kill_everything(&mut self) {
        for child in self.children.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.children.clear();
        processes::kill_all(self.root(), &self.id);
    }

    /// Whether a program has said something on stderr that is not in its log.
    fn is_own_words(&self, path: &Path) -> bool {
        let component = path.file_stem().unwrap_or_default().to_string_lossy();
        path.extension().is_some_and(|kind| kind == "stderr") && self.log(&component).is_empty()
    }

    fn print_tails(&self) {
        let logs = [self.rig.logs_dir(), self.said_dir()];
        let mut paths: Vec<PathBuf> = logs
            .iter()
            .flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten())
            .map(|entry| entry.path())
            .filter(|path| {
                let kind = path.extension().unwrap_or_default();
                // Journals are long, and the log says the same.
                (kind == "log" && !path.ends_with("brain_decisions.log"))
                    || kind == "out"
                    || self.is_own_words(path)
            })
            .collect();
        paths.sort();
        let mut text = String::new();
        for path in paths {
            let bytes = fs::read(&path).unwrap_or_default();
            let said = String::from_utf8_lossy(&bytes);
            // The monitor's lines would push out the others.
            let lines: Vec<&str> = said
                .lines()
                .filter(|line| !line.contains(" MONITOR: "))
                .collect();
            if lines.is_empty() {
                continue;
            }
            let _ = writeln!(text, "--- the end of {}", path.display());
            for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
                let _ = writeln!(text, "{line}");
            }
        }
        eprintln!("{text}");
    }
}

impl Setup {
    /// Makes the rig by `rigor init`, with short timings.
    pub fn make(self) -> Rig {
        let dir = tempfile::Builder::new()
            .prefix("rigor-test-")
            .tempdir()
            .expect("a temporary directory");
        let root = dir.path().join("rig");
        fs::create_dir(dir.path().join("plans")).expect("make a folder");
        let ports = parts::free_ports(self.gpus as u16);
        let mut init = Command::new(parts::program("rigor"));
        init.arg("init").arg(&root);
        match self.gpus {
            0 => init.arg("--cpu-only"),
            gpus => init.arg("--sim-gpus").arg(gpus.to_string()),
        };
        init.arg("--port").arg(ports.to_string());
        init.arg("--cpu-agents").arg(self.cpu_agents.to_string());
        init.arg("--llama-server")
            .arg(parts::fixture("llama_server"));
        if self.slots > 0 {
            init.arg("--model").arg(parts::fixture("model"));
            init.arg("--slots").arg(self.slots.to_string());
        }
        let said = init.output().expect("start rigor");
        assert!(
            said.status.success(),
            "{}",
            String::from_utf8_lossy(&said.stderr)
        );
        let toml = root.join("rig.toml");
        let mut text = fs::read_to_string(&toml).expect("read rig.toml");
        let timing = "heartbeat_every = \"200ms\"\nlock_poll = \"200ms\"\nmonitor_every = \"1s\"\ngrace = \"2s\"\n";
        for (table, more) in [
            ("[[model]]\n", self.model),
            ("[rig]\n", self.rig),
            ("[limits]\n", self.limits),
            ("[timing]\n", timing),
            ("[timing]\n", self.timing),
        ] {
            text = text.replacen(table, &format!("{table}{more}\n"), 1);
        }
        text.push_str(&self.tables);
        fs::write(&toml, &text).expect("write rig.toml");
        let id = text
            .lines()
            .find_map(|line| line.strip_prefix("id = \"")?.strip_suffix('"'));
        let id = id.expect("rig.toml names the rig's id").to_owned();
        Rig {
            rig: queue::Rig::open(&root).expect("open the rig"),
            dir,
            id,
            children: BTreeMap::new(),
            litter_age: Duration::ZERO,
            submitted: RefCell::default(),
            closed: false,
        }
    }
}

/// The end of a case: an orderly stop and the check, or, where it has failed, the logs.
impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_tails();
            return self.kill_everything();
        }
        if self.closed {
            return;
        }
        let mut wrong = self.close();
        if !wrong.is_empty() {
            let more = wrong.len().saturating_sub(20);
            wrong.truncate(20);
            panic!(
                "the rig is not as it must be ({more} more):\n{}",
                wrong.join("\n")
            );
        }
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_until(patience: Duration, what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "waited in vain ({patience:?}): {what}"
        );
        std::thread::sleep(POLL);
    }
}
