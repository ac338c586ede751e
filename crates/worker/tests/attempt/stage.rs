//! A rig in a temporary directory, with one agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rigor_exec::{Containment, Controller, Launch, Limits, Running, settle, spawn};
use rigor_queue::claim::{self, Candidate, Held, Opened};
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::record::{AttemptRecord, FailureKind, Outcome};
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::{Durability, submit};
use rigor_queue::task::{Class, TaskSpec, Vram, Work};

pub(crate) const AGENT: &str = "gpu-1";
pub(crate) const BATCH: &str = "b1";
/// For things that take milliseconds, on a machine that does other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Stage {
    _dir: tempfile::TempDir,
    pub(crate) rig: Rig,
    pub(crate) plan: PathBuf,
    pub(crate) rig_id: String,
    pub(crate) containment: Containment,
    pub(crate) output_cap_bytes: u64,
    pub(crate) grace: Duration,
    pub(crate) limits: Limits,
    pub(crate) env: Vec<(String, String)>,
}

/// Waits for a condition.
pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    let mut condition = condition;
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} in vain for: {what}"
        );
        thread::sleep(Duration::from_millis(3));
    }
}

/// Whether a process lives; a zombie does not.
pub(crate) fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" Z"))
    })
}

impl Stage {
    /// On the best tier that this machine has.
    pub(crate) fn new() -> Stage {
        Stage::on(Containment::detect)
    }

    pub(crate) fn on(containment: impl Fn(&str) -> Containment) -> Stage {
        let dir = tempfile::tempdir().expect("a directory");
        let rig = Rig::create(&dir.path().join("rig")).expect("a rig");
        rig.prepare_agent(AGENT).expect("an agent's directories");
        rig.prepare_batch(BATCH).expect("a batch's directories");
        let plan = dir.path().join("plan");
        fs::create_dir(&plan).expect("a plan's directory");
        let plan = plan.canonicalize().expect("a path");
        let rig_id = format!(
            "test-{}",
            dir.path().file_name().expect("a name").to_string_lossy()
        )
        .replace('.', "");
        Stage {
            containment: containment(&rig_id),
            rig_id,
            _dir: dir,
            rig,
            plan,
            output_cap_bytes: 1 << 20,
            grace: Duration::from_secs(5),
            limits: Limits::default(),
            env: Vec::new(),
        }
    }

    pub(crate) fn command(&self, command: &str) -> TaskSpec {
        self.task(
            Class::Cpu,
            Work::Command {
                command: command.to_owned(),
            },
        )
    }

    pub(crate) fn task(&self, class: Class, work: Work) -> TaskSpec {
        TaskSpec {
            plan: "p".to_owned(),
            vram: Vram::Infer,
            plan_dir: self.plan.clone(),
            batch_dir: self.plan.join("history").join(BATCH),
            ..TaskSpec::new(TaskId::derive(BATCH, "t", None), BATCH, "t", class, work)
        }
    }

    /// Submits a task and claims it.
    pub(crate) fn claim(&self, spec: &TaskSpec) -> Held {
        let name = FileName::first(spec.priority, 1, spec.shape(), spec.id);
        let place = Place::Queue(spec.class);
        assert!(submit(&self.rig, place, &name, spec, Durability::Process).expect("submitted"));
        self.claim_queued(&name, spec.class)
    }

    pub(crate) fn claim_queued(&self, name: &FileName, class: Class) -> Held {
        match claim::candidate(&self.rig, class, name).expect("a candidate") {
            Candidate::Ready(held) => held
                .claim(&self.rig, AGENT, false)
                .expect("claimed")
                .expect("nobody was first"),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn launch(&self, held: Held) -> Running {
        spawn(Launch {
            rig: &self.rig,
            agent: AGENT,
            held,
            env: self.env.clone(),
            containment: &self.containment,
            worker: Path::new(env!("CARGO_BIN_EXE_worker")),
            output_cap_bytes: self.output_cap_bytes,
            grace: self.grace,
            limits: self.limits,
        })
        .expect("the worker starts")
    }

    pub(crate) fn start(&self, spec: &TaskSpec) -> Running {
        self.launch(self.claim(spec))
    }

    /// Waits for the worker and settles the attempt.
    pub(crate) fn settle(&self, mut running: Running) -> AttemptRecord {
        let mut status = None;
        until("the worker exits", || {
            status = running.try_wait().expect("wait");
            status.is_some()
        });
        let status = status.expect("it exited");
        settle(
            &self.rig,
            AGENT,
            &self.containment,
            &running,
            status,
            None,
            PATIENCE,
        )
        .expect("settled")
    }

    pub(crate) fn run(&self, spec: &TaskSpec) -> AttemptRecord {
        self.settle(self.start(spec))
    }

    /// The file that a task writes to tell something.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.plan.join(name)
    }

    /// Waits for a file that holds a pid, and a line break after it.
    pub(crate) fn pid_in(&self, name: &str) -> u32 {
        let path = self.file(name);
        let read = || {
            fs::read_to_string(&path)
                .ok()
                .filter(|text| text.ends_with('\n'))
        };
        until(&format!("a pid in {name}"), || read().is_some());
        read().expect("it is there").trim().parse().expect("a pid")
    }

    pub(crate) fn output_path(&self, record: &AttemptRecord) -> PathBuf {
        self.rig.output_path(BATCH, record.id, record.attempt)
    }

    pub(crate) fn output(&self, record: &AttemptRecord) -> String {
        fs::read_to_string(self.output_path(record)).expect("it printed something")
    }

    /// Whether another process holds the lock of the task in `processing/`.
    pub(crate) fn is_leased(&self, name: &FileName) -> bool {
        match claim::open_in(&self.rig, Place::Processing(AGENT), name).expect("it can be opened") {
            Opened::Busy => true,
            Opened::Held(_) => false,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if thread::panicking() {
            // A test that failed half-way leaves nothing running.
            let claimed = self.rig.list(Place::Processing(AGENT)).unwrap_or_default();
            for name in claimed.names {
                let _ = self
                    .containment
                    .kill_attempt(name.id, name.attempt, PATIENCE);
            }
        }
        let mut groups = Vec::new();
        if let rigor_exec::Tier::Cgroup { path } = self.containment.tier() {
            groups.push(path);
        }
        for controller in [
            self.containment.limits_processes(),
            self.containment.limits_memory(),
        ] {
            if let Some(Controller::Legacy { path }) = controller {
                groups.push(path);
            }
        }
        for path in groups {
            // Attempts leave nothing behind, and the last one takes the rig's own cgroup along.
            assert!(
                thread::panicking() || !path.exists(),
                "{} is left",
                path.display()
            );
        }
    }
}

/// The kind and the reason of a failure.
pub(crate) fn failure(record: &AttemptRecord) -> (FailureKind, &str) {
    match &record.outcome {
        Outcome::Failed { kind, reason } => (*kind, reason),
        other => panic!("it should have failed: {other:?}"),
    }
}
