//! What an agent says of what it does, and of why it does nothing.

use std::fs;
use std::time::Duration;

use jiff::Timestamp;
use rigor_queue::heartbeat::{Health, Refusal, RunningBeat};
use rigor_queue::name::FileName;
use rigor_queue::outlook::{self, ModelOutlook, Outlook};
use rigor_queue::presence::{self, ComponentLock, Role};
use rigor_queue::reasons::{self, Cause, Reason, ReasonLog};
use rigor_queue::records;
use rigor_queue::rig::Place;
use rigor_queue::task::Class;
use rustix::process::Signal;

use crate::models::{load, with_model};
use crate::rig::{BATCH, TestRig};

/// A task that ends when the test says so.
const UNTIL_GO: &str = "until [ -e go ]; do sleep 0.05; done";
/// A model whose load the test never asks for.
const NO_SERVER: &str = "false {PORT}";
const MODEL: &str = "[[model]]\nid = \"m\"\nkind = \"chat\"\nruntime = \"command\"\ncommand = \"false {PORT}\"\nvram_mb = 200\n";

fn running(rig: &TestRig, agent: &str, name: &FileName) -> Option<RunningBeat> {
    let running = rig.heartbeat(agent)?.running;
    running.into_iter().find(|beat| beat.id == name.id)
}

fn causes(rig: &TestRig, agent: &str) -> Vec<Cause> {
    let entries = reasons::read(&rig.rig, agent, Timestamp::MIN).expect("read the journal");
    let mut causes: Vec<Cause> = entries.iter().map(|entry| entry.cause).collect();
    causes.dedup();
    causes
}

#[test]
fn a_task_that_sleeps_is_quiet_and_those_that_compute_or_print_are_not() {
    let rig = TestRig::new(1, "[limits]\ncpu_slots = 8\n");
    rig.set_state(|state| state.gpus[0].utilization = 40);
    let quiet = rig.run(Class::Cpu, "quiet", "sleep 600");
    let busy = rig.run(Class::Cpu, "busy", "timeout 60 sh -c 'while :; do :; done'");
    let talking = rig.run(Class::Cpu, "talking", "while echo x; do sleep 0.2; done");
    let mut spec = rig.spec(Class::Script, "on_gpu", "sleep 600");
    spec.timeout_s = Some(700);
    let on_gpu = rig.queue(&spec);
    let _agent = rig.agent("gpu-1");
    let beat = |name| running(&rig, "gpu-1", name);
    // Well after the start of each, and known to be so.
    let later = |name| {
        beat(name)
            .is_some_and(|it: RunningBeat| it.active_at.duration_since(it.since).as_millis() > 2500)
    };
    rig.wait("signs of life", || {
        later(&busy)
            && later(&talking)
            && later(&on_gpu)
            && beat(&quiet).is_some_and(|it| it.cpu_percent.is_some())
    });
    let quiet = beat(&quiet).unwrap();
    assert_eq!(quiet.active_at, quiet.since, "{quiet:?}");
    assert_eq!((quiet.output_at, quiet.gpu_percent), (None, None));
    let busy = beat(&busy).unwrap();
    assert!(busy.cpu_percent.unwrap() > 1, "{busy:?}");
    assert!(beat(&talking).unwrap().output_at.is_some());
    let on_gpu = beat(&on_gpu).unwrap();
    assert_eq!(
        (on_gpu.gpu_percent, on_gpu.timeout_s),
        (Some(40), Some(700))
    );
    assert_eq!(
        (on_gpu.batch.as_str(), on_gpu.name.as_str()),
        (BATCH, "on_gpu")
    );
    let all = rig.heartbeat("gpu-1").unwrap().running;
    assert!(all.is_sorted_by_key(|beat| beat.since), "{all:?}");
}

#[test]
fn what_the_gpus_time_goes_into_is_journalled_on_change() {
    let rig = with_model("python3 server.py {PORT}");
    let path = rig.root().join("rig.toml");
    let text = fs::read_to_string(&path).unwrap();
    let server = rig.root().join("server.py").display().to_string();
    fs::write(&path, text.replace("server.py", &server)).unwrap();
    rig.rig.prepare_agent("gpu-1").unwrap();
    ReasonLog::open(&rig.rig, "gpu-1")
        .unwrap()
        .note(Reason {
            since: Timestamp::now(),
            cause: Cause::AgentDown,
            code: None,
            detail: "hung for 5m, killed".to_owned(),
            batches: Vec::new(),
        })
        .unwrap();

    rig.run(Class::Llm, "t", "sleep 0.3");
    let mut agent = rig.agent("gpu-1");
    rig.wait_for_line("gpu-1", "INFO  The last gpu-1 was declared dead ");
    rig.wait_for_line("gpu-1", " ago: hung for 5m, killed");
    let last = |cause| move |rig: &TestRig| causes(rig, "gpu-1").last() == Some(&cause);
    rig.wait("a model is missing", || last(Cause::ModelNotLoaded)(&rig));
    rig.meta("load", load(&["gpu-1"]));
    rig.wait("the task", || rig.complete() == 1);
    rig.wait("nothing is left", || last(Cause::NoWork)(&rig));
    presence::send(&rig.rig, "gpu-1", "pause", "").unwrap();
    rig.run(Class::Llm, "u", "true");
    rig.wait("it is paused", || last(Cause::Paused)(&rig));
    agent.terminate();
    assert!(agent.ended().success());
    assert_eq!(
        causes(&rig, "gpu-1"),
        [
            Cause::AgentDown,
            Cause::ModelNotLoaded,
            Cause::Loading,
            Cause::Running,
            Cause::NoWork,
            Cause::Paused,
            Cause::AgentDown
        ]
    );
    let entries = reasons::read(&rig.rig, "gpu-1", Timestamp::MIN).unwrap();
    let of = |cause| entries.iter().find(|entry| entry.cause == cause).unwrap();
    let missing = of(Cause::ModelNotLoaded);
    assert_eq!(missing.code, Some(Refusal::ModelNotLoaded));
    assert_eq!(missing.detail, "llm:1 need m");
    assert_eq!(of(Cause::Loading).detail, "m");
    assert_eq!(of(Cause::Running).batches, [BATCH]);
    assert_eq!(entries.last().unwrap().detail, "stopped: SIGTERM received");
    assert!(entries.is_sorted_by_key(|entry| entry.since));
}

#[test]
fn an_agent_without_a_gpu_journals_its_cpu_tasks() {
    let rig = TestRig::new(0, "");
    let mut agent = rig.agent("cpu-1");
    rig.wait("it is idle", || causes(&rig, "cpu-1") == [Cause::NoWork]);
    rig.run(Class::Cpu, "t", UNTIL_GO);
    rig.wait("it works", || {
        causes(&rig, "cpu-1") == [Cause::NoWork, Cause::Running]
    });
    fs::write(rig.scratch().join("go"), "").unwrap();
    rig.wait("it is idle again", || causes(&rig, "cpu-1").len() == 3);
    presence::send(&rig.rig, "cpu-1", "stop", r#"{"reason":"by rigor down"}"#).unwrap();
    assert!(agent.ended().success());
    let entries = reasons::read(&rig.rig, "cpu-1", Timestamp::MIN).unwrap();
    assert_eq!(entries.last().unwrap().detail, "stopped: by rigor down");
    let log = rig.log("cpu-1");
    let lines: Vec<&str> = log.lines().rev().take(2).collect();
    assert!(lines[1].ends_with("INFO  Stopped: by rigor down"), "{log}");
}

#[test]
fn a_journal_that_cannot_be_written_is_named_once_and_delays_nothing() {
    let rig = TestRig::new(0, "");
    rig.rig.prepare_agent("cpu-1").unwrap();
    let journal = rig.rig.agent_dir("cpu-1").join("reasons.jsonl");
    let _agent = rig.agent("cpu-1");
    rig.wait("an entry", || journal.exists());
    fs::remove_file(&journal).unwrap();
    fs::create_dir(&journal).unwrap();
    for n in 0..3 {
        rig.run(Class::Cpu, &format!("t_{n}"), "true");
        rig.wait("it runs", || rig.complete() == n + 1);
    }
    rig.wait_for_line("cpu-1", "WARNING Cannot journal reasons: ");
    assert_eq!(rig.log("cpu-1").matches("Cannot journal").count(), 1);
}

#[test]
fn an_idle_agent_quotes_the_brain() {
    let timing = "[timing]\nheartbeat_every = \"100ms\"\nidle_warn = \"300ms\"\n";
    let rig = TestRig::new(1, &format!("{timing}{MODEL}"));
    let outlook = Outlook {
        schema: 1,
        models: vec![ModelOutlook {
            model: "m".to_owned(),
            queued: 2,
            holders: vec!["gpu-2".to_owned()],
            asked: Vec::new(),
            reason: "the brain keeps it on gpu-2 only: 40s of work < 1.5 x 40s load".to_owned(),
            stranded: false,
        }],
        ..Outlook::default()
    };
    outlook::write(&rig.rig, &outlook).unwrap();
    let brain = ComponentLock::acquire(&rig.rig, "brain", Role::Running).unwrap();
    rig.run(Class::Llm, "a", "true");
    rig.run(Class::Llm, "b", "true");
    let agent = rig.agent("gpu-1");
    rig.wait_for_line(
        "gpu-1",
        "s with 2 queued: model_not_loaded - llm:2 need m; the brain keeps it on gpu-2 only: \
         40s of work < 1.5 x 40s load. Override: rigor load gpu-1 m\n",
    );
    presence::send(&rig.rig, "gpu-1", "pause", "").unwrap();
    rig.wait_for_line("gpu-1", "s with 2 queued: paused - paused by the operator");
    let log = rig.log("gpu-1");
    assert_eq!(log.matches("INFO  Idle ").count(), 2, "{log}");
    drop(agent);
    drop(brain);
    presence::unsend(&rig.rig, "gpu-1", "pause").unwrap();
    let _agent = rig.agent("gpu-1");
    rig.wait_for_line(
        "gpu-1",
        "llm:2 need m. The brain, which places models, does not run: rigor up\n",
    );
}

#[test]
fn a_gpu_that_idles_beside_a_cpu_task_says_so() {
    let timing = "[timing]\nheartbeat_every = \"100ms\"\nidle_warn = \"300ms\"\n";
    let rig = TestRig::new(1, &format!("{timing}{MODEL}[limits]\ncpu_slots = 1\n"));
    let long = rig.run(Class::Cpu, "long", UNTIL_GO);
    rig.run(Class::Cpu, "next", "true");
    let _agent = rig.agent("gpu-1");
    rig.wait_for_line("gpu-1", &format!("Spawned worker {}", long.id.short()));
    rig.wait("the GPU has nothing to do", || {
        rig.heartbeat("gpu-1").is_some_and(|beat| {
            beat.running.len() == 1
                && beat.idle_since.is_some()
                && beat.idle.is_some_and(|it| it.code == Refusal::QueueEmpty)
        })
    });
    assert_eq!(causes(&rig, "gpu-1"), [Cause::NoWork]);
    rig.run(Class::Llm, "a", "true");
    rig.wait_for_line("gpu-1", "s with 2 queued: model_not_loaded - llm:1 need m");
    let beat = rig.heartbeat("gpu-1").unwrap();
    assert_eq!(beat.idle.unwrap().code, Refusal::ModelNotLoaded);
    assert_eq!(
        causes(&rig, "gpu-1"),
        [Cause::NoWork, Cause::ModelNotLoaded]
    );
    let log = rig.log("gpu-1");
    assert_eq!(log.matches("INFO  Idle ").count(), 1, "{log}");
    assert!(
        log.contains("DEBUG Not claiming: cpu_slots_full 1/1 ("),
        "{log}"
    );
    fs::write(rig.scratch().join("go"), "").unwrap();
    rig.wait("both cpu tasks", || rig.complete() == 2);
}

#[test]
fn in_trouble_every_queued_shape_is_refused_with_its_reason() {
    let rig = TestRig::new(0, "");
    let _agent = rig.agent("cpu-1");
    rig.wait_for_line("cpu-1", "Queue empty");
    let lane = rig.rig.dir(Place::Processing("cpu-1"));
    fs::remove_dir(&lane).unwrap();
    fs::write(&lane, "in the way").unwrap();
    let first = rig.run(Class::Cpu, "t", "true");
    rig.wait_for_line("cpu-1", "ERROR Claiming nothing: ");
    // One that came while nothing was looked at.
    let mut spec = rig.spec(Class::Cpu, "u", "true");
    spec.cpus = 2;
    let second = rig.queue(&spec);
    rig.wait("both are refused", || {
        rig.heartbeat("cpu-1").is_some_and(|beat| {
            beat.health == Health::Quarantined
                && [first, second].iter().all(|name| {
                    beat.shapes.get(&name.shape).is_some_and(|verdict| {
                        verdict.code == Refusal::Backoff
                            && verdict.detail.contains("tasks/processing/cpu-1")
                    })
                })
        })
    });
    let beat = rig.heartbeat("cpu-1").unwrap();
    assert_eq!(beat.verdicts[&Class::Cpu].code, Refusal::Backoff);
    assert_eq!(beat.idle.map(|it| it.code), Some(Refusal::Backoff));
    assert!(!beat.shapes_cut);
    assert_eq!(causes(&rig, "cpu-1").last(), Some(&Cause::Quarantined));
    rig.wait_for_line("cpu-1", "DEBUG Not claiming: backoff ");
    fs::remove_file(&lane).unwrap();
    fs::create_dir(&lane).unwrap();
    rig.wait("it goes on", || rig.complete() == 2);
    rig.wait("nothing is refused", || {
        rig.heartbeat("cpu-1")
            .is_some_and(|beat| beat.shapes.is_empty() && beat.verdicts.is_empty())
    });
}

#[test]
fn each_refused_shape_has_its_own_verdict() {
    let rig = with_model(NO_SERVER);
    let a = rig.run(Class::Llm, "a", "true");
    let mut spec = rig.spec(Class::Cpu, "large", "true");
    spec.cpus = 4000;
    let large = rig.queue(&spec);
    let mut spec = rig.spec(Class::Cpu, "elsewhere", "true");
    spec.on = vec!["gpu-9".to_owned()];
    let elsewhere = rig.queue(&spec);
    let _agent = rig.agent("gpu-1");
    rig.wait("three verdicts", || {
        rig.heartbeat("gpu-1").is_some_and(|beat| {
            let code = |name: &FileName| beat.shapes.get(&name.shape).map(|it| it.code);
            [code(&a), code(&large), code(&elsewhere)]
                == [
                    Some(Refusal::ModelNotLoaded),
                    Some(Refusal::CpuSlotsFull),
                    Some(Refusal::NoSuitableClass),
                ]
        })
    });
}

#[test]
fn an_agent_that_was_stopped_finds_what_was_taken_back() {
    let timing = "[timing]\nheartbeat_every = \"200ms\"\nheartbeat_warn = \"1s\"\ngrace = \"2s\"\n";
    let rig = TestRig::new(0, timing);
    let command = "echo $RIGOR_ATTEMPT >> attempts; [ $RIGOR_ATTEMPT = 2 ] || sleep 600";
    let name = rig.run(Class::Cpu, "t", command);
    let kept = rig.run(Class::Cpu, "kept", UNTIL_GO);
    let agent = rig.agent("cpu-1");
    rig.wait("the first attempt", || {
        rig.scratch().join("attempts").exists()
    });
    rig.wait_for_line("cpu-1", &format!("Spawned worker {}", kept.id.short()));
    agent.signal(Signal::STOP);
    let next = name.next_attempt(false);
    fs::rename(
        rig.rig.path(Place::Processing("cpu-1"), &name),
        rig.rig.path(Place::Queue(Class::Cpu), &next),
    )
    .unwrap();
    // The time that the agent does not run for.
    std::thread::sleep(Duration::from_millis(1600));
    agent.signal(Signal::CONT);
    rig.wait_for_line(
        "cpu-1",
        &format!(
            "WARNING Fenced: {} was taken back while this process did not run; its result is dropped",
            name.id.short()
        ),
    );
    assert!(
        rig.log("cpu-1").contains(
            "WARNING This process did not run for 1s (stopped, or the machine was asleep)"
        ),
        "{}",
        rig.log("cpu-1")
    );
    rig.wait("the second attempt", || rig.complete() == 1);
    assert_eq!(
        fs::read_to_string(rig.scratch().join("attempts")).unwrap(),
        "1\n2\n"
    );
    let dropped = records::read(&rig.rig, BATCH, name.id, name.attempt).unwrap();
    assert!(dropped.is_none(), "{dropped:?}");
    fs::write(rig.scratch().join("go"), "").unwrap();
    rig.wait("the one that was not", || rig.complete() == 2);
    assert_eq!(rig.log("cpu-1").matches("Fenced").count(), 1);
}

#[test]
fn a_bad_level_of_the_executor_is_named_once_for_all_workers() {
    let rig = TestRig::new(0, "");
    let _agent = rig.start("cpu-1", &[], &[("EXECUTOR_LOG_LEVEL", "loud")]);
    for n in 0..3 {
        rig.run(Class::Cpu, &format!("t_{n}"), "true");
    }
    rig.wait("they run", || rig.complete() == 3);
    rig.wait_for_line("cpu-1", "WARNING EXECUTOR_LOG_LEVEL: \"loud\" is no level");
    let log = rig.log("cpu-1");
    assert_eq!(log.matches("EXECUTOR_LOG_LEVEL").count(), 1, "{log}");
}
