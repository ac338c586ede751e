//! Snapshots of hand-made rigs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rigor_config::Config;
use rigor_queue::claim::{self, Candidate, Held};
use rigor_queue::heartbeat::{Health, Heartbeat, LlmBeat, Refusal, Verdict};
use rigor_queue::lane::{Lane, Move};
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::outlook::{self, Outlook, StuckTask};
use rigor_queue::presence::{self, ComponentLock, Role};
use rigor_queue::reasons::{Cause, Reason, ReasonLog};
use rigor_queue::record::{AttemptRecord, FailureKind, Outcome, Peaks};
use rigor_queue::records;
use rigor_queue::rig::{BRAIN, Place, Rig};
use rigor_queue::submit::{Durability, expand, submit};
use rigor_queue::task::{Class, Item, Submission, TaskSpec, Work};
use rigor_snapshot::{
    AgentState, BatchGpuTime, BatchState, Filter, Found, Snapshot, Target, detail, find,
    find_batch, gpu_time, tasks,
};

const BATCH: &str = "video-tags-20260207-214530-ab2c";
const TOML: &str = r#"
[rig]
name = "garage"
id = "testrig1"
[[gpu]]
name = "gpu-1"
uuid = "GPU-1"
port = 11435
[[gpu]]
name = "gpu-2"
uuid = "GPU-2"
port = 11436
"#;

struct Fixture {
    _dir: tempfile::TempDir,
    rig: Rig,
    config: Config,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("rig");
    let rig = Rig::create(&root).unwrap();
    let config = Config::parse(TOML, &root.join("rig.toml")).unwrap();
    Fixture {
        _dir: dir,
        rig,
        config,
    }
}

fn spec(batch: &str, task: &str, item: Option<&str>, class: Class) -> TaskSpec {
    let text = serde_json::json!({
        "id": TaskId::derive(batch, task, item),
        "batch": batch,
        "plan": "video-tags",
        "task": task,
        "name": item.map_or(task.to_owned(), |item| format!("{task}_{item}")),
        "class": class,
        "work": {"kind": "command", "command": "true"},
        "plan_dir": "/plans/video-tags",
        "batch_dir": format!("/plans/video-tags/history/{batch}"),
        "created": "2026-02-07T21:45:30Z",
    });
    let mut spec: TaskSpec = serde_json::from_value(text).unwrap();
    spec.item = item.map(|id| Item {
        id: id.to_owned(),
        value: id.into(),
        members: Vec::new(),
    });
    spec
}

fn first(spec: &TaskSpec, sequence: u64) -> FileName {
    FileName::first(spec.priority, sequence, spec.shape(), spec.id)
}

impl Fixture {
    fn submit_plan(&self, batch: &str) -> FileName {
        self.rig.prepare_batch(batch).unwrap();
        let mut spec = spec(batch, "_plan", None, Class::Brain);
        spec.work = Work::Plan(Box::new(Submission {
            source: "# Plan: video-tags".to_owned(),
            files: Default::default(),
            inputs: Default::default(),
            limit: None,
            infer: false,
        }));
        let name = first(&spec, 1);
        submit(
            &self.rig,
            Place::Queue(Class::Brain),
            &name,
            &spec,
            Durability::Process,
        )
        .unwrap();
        name
    }

    fn claim(&self, class: Class, name: &FileName, agent: &str) -> Held {
        self.rig.prepare_agent(agent).unwrap();
        let Candidate::Ready(held) = claim::candidate(&self.rig, class, name).unwrap() else {
            panic!("{name} cannot be claimed")
        };
        held.claim(&self.rig, agent, false).unwrap().unwrap()
    }

    /// An active batch with `count` items of `tag`, all waiting.
    fn active_batch(&self, count: usize) -> (Held, Vec<FileName>) {
        let plan = self.claim(Class::Brain, &self.submit_plan(BATCH), BRAIN);
        let items: Vec<String> = (0..count).map(|n| format!("v{n}")).collect();
        let specs: Vec<(FileName, TaskSpec)> = items
            .iter()
            .enumerate()
            .map(|(n, item)| {
                let spec = spec(BATCH, "tag", Some(item), Class::Llm);
                (first(&spec, 10 + n as u64), spec)
            })
            .collect();
        let names = specs.iter().map(|(name, _)| *name).collect();
        expand(&self.rig, BATCH, "tag", specs, Durability::Process).unwrap();
        (plan, names)
    }

    fn release(&self, name: &FileName) {
        claim::release(&self.rig, BATCH, "tag", Class::Llm, name).unwrap();
    }

    fn record(&self, spec: &TaskSpec, attempt: u32, outcome: Outcome) {
        let record = AttemptRecord {
            id: spec.id,
            batch: spec.batch.clone(),
            task: spec.task.clone(),
            name: spec.name.clone(),
            class: spec.class,
            attempt,
            agent: "gpu-1".to_owned(),
            nonce: None,
            started: Some(Timestamp::now()),
            ended: Timestamp::now(),
            duration_ms: 5400,
            exit_code: (outcome != Outcome::Succeeded).then_some(3),
            outcome,
            signal: None,
            peaks: Peaks::default(),
            output_bytes: 0,
            output_dropped: 0,
            llm: None,
            gpu_memory: None,
        };
        assert!(records::write_new(&self.rig, &record).unwrap());
    }

    fn brains_count(&self, state: &str) {
        let dir = self.rig.brain_dir().join("batches");
        std::fs::create_dir_all(&dir).unwrap();
        let count = serde_json::json!({
            "id": BATCH, "plan": "video-tags", "plan_dir": "/plans/video-tags",
            "batch_dir": "/b", "submitted": "2026-02-07T21:45:30Z", "state": state,
            "tasks": [{"id": "tag", "class": "llm", "foreach": true, "expanded": true, "total": 4,
                       "done": 1, "failed": 0, "cancelled": 0, "running": 2, "depends_on": []}],
            "total": 4, "done": 1, "failed": 0, "cancelled": 0, "new_key": 1,
        });
        std::fs::write(dir.join(format!("{BATCH}.json")), count.to_string()).unwrap();
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::read(&self.rig, &self.config).unwrap()
    }
}

fn heartbeat(llm: LlmBeat) -> Heartbeat {
    Heartbeat {
        llm,
        idle: Some(Verdict {
            code: Refusal::ModelNotLoaded,
            detail: "llm:3 need qwen2.5:7b".to_owned(),
        }),
        completed: 42,
        failed: 1,
        cpu_slots: (0, 4),
        ..Heartbeat::alive(7, Timestamp::now(), Health::Healthy)
    }
}

#[test]
fn an_empty_rig_has_the_fixed_shape() {
    let fixture = fixture();
    let json = serde_json::to_value(fixture.snapshot()).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["brain"]["alive"], false);
    let agent = &json["agents"][0];
    assert_eq!(agent["name"], "gpu-1");
    for key in [
        "gpu",
        "state",
        "model",
        "alive",
        "idle_reason",
        "heartbeat_age_s",
        "processing",
    ] {
        assert!(agent.get(key).is_some(), "agents[].{key} is missing");
    }
    assert_eq!(agent["alive"], false);
    assert_eq!(agent["state"], "down");
    assert_eq!(agent["processing"], serde_json::json!([]));
    let queue = &json["queue"];
    for key in [
        "total_pending",
        "processing",
        "stuck",
        "completed_last_5min",
    ] {
        assert_eq!(queue[key], 0, "queue.{key}");
    }
    assert_eq!(queue["by_class"]["llm"], 0);
    assert_eq!(json["batches"], serde_json::json!([]));
}

#[test]
fn an_agent_says_why_it_is_idle_until_it_is_gone() {
    let fixture = fixture();
    let lock = ComponentLock::acquire(&fixture.rig, "gpu-1", Role::Running).unwrap();
    let state = |fixture: &Fixture| fixture.snapshot().agents[0].state;
    assert_eq!(state(&fixture), AgentState::Starting);
    presence::beat(&fixture.rig, "gpu-1", &heartbeat(LlmBeat::Cold)).unwrap();
    let agent = fixture.snapshot().agents.remove(0);
    assert!(agent.alive);
    assert_eq!(agent.state, AgentState::Cold);
    assert_eq!(agent.idle_reason, Some("model_not_loaded"));
    assert_eq!(agent.idle_detail.as_deref(), Some("llm:3 need qwen2.5:7b"));
    assert!(agent.heartbeat_age_s.unwrap() < 5);
    drop(lock);
    let agent = fixture.snapshot().agents.remove(0);
    assert!(!agent.alive);
    assert_eq!((agent.state, agent.idle_reason), (AgentState::Down, None));
    let _recovering = ComponentLock::acquire(&fixture.rig, "gpu-1", Role::Recovering).unwrap();
    let agent = fixture.snapshot().agents.remove(0);
    assert!(!agent.alive, "the brain holds its lock, not the agent");
    assert_eq!(agent.state, AgentState::Recovering);
}

fn ago(seconds: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_secs(seconds)
}

fn journal(fixture: &Fixture, name: &str, entries: &[(Timestamp, Cause, &[&str])]) {
    fixture.rig.prepare_agent(name).unwrap();
    let mut log = ReasonLog::open(&fixture.rig, name).unwrap();
    for (since, cause, batches) in entries {
        let reason = Reason {
            since: *since,
            cause: *cause,
            code: None,
            detail: String::new(),
            batches: batches.iter().map(|batch| (*batch).to_owned()).collect(),
        };
        assert!(log.note(reason).unwrap());
    }
}

#[test]
fn every_second_of_a_gpu_has_a_cause() {
    let fixture = fixture();
    let _lock = ComponentLock::acquire(&fixture.rig, "gpu-1", Role::Running).unwrap();
    presence::beat(&fixture.rig, "gpu-1", &heartbeat(LlmBeat::Cold)).unwrap();
    let (start, idle) = (ago(600), ago(400));
    journal(
        &fixture,
        "gpu-1",
        &[(start, Cause::Running, &["b"]), (idle, Cause::NoWork, &[])],
    );
    journal(&fixture, BRAIN, &[(ago(500), Cause::WaitingDeps, &[])]);
    // gpu-2 died without a word a hundred seconds ago.
    journal(&fixture, "gpu-2", &[(ago(300), Cause::Running, &["other"])]);
    presence::beat(&fixture.rig, "gpu-2", &heartbeat(LlmBeat::Cold)).unwrap();
    let beat = fixture.rig.agent_dir("gpu-2").join("heartbeat.json");
    let seen = std::time::SystemTime::now() - Duration::from_secs(100);
    std::fs::File::open(&beat)
        .unwrap()
        .set_modified(seen)
        .unwrap();

    let (from, to) = (ago(700), ago(0));
    let times = gpu_time(&fixture.rig, &fixture.config, from, to).unwrap();
    assert_eq!(times.len(), 2);
    for time in &times {
        let sum: SignedDuration = time.totals().into_values().sum();
        assert_eq!(sum, to.duration_since(from), "{}", time.agent);
    }
    assert_eq!(
        times[0].totals(),
        [
            (Cause::AgentDown, start.duration_since(from)),
            (Cause::Running, idle.duration_since(start)),
            (Cause::WaitingDeps, to.duration_since(idle)),
        ]
        .into()
    );
    let down = times[1].spans.last().unwrap();
    assert_eq!(down.cause, Cause::AgentDown);
    assert_eq!(down.from, Timestamp::try_from(seen).unwrap());

    let of_batch = BatchGpuTime::read(&fixture.rig, &fixture.config, "b", from, to)
        .unwrap()
        .unwrap();
    for gpu in &of_batch.gpus {
        assert_eq!(gpu.ms.values().sum::<i64>(), of_batch.wall_ms);
    }
    assert!(of_batch.gpus[0].ms["running"] > 0);
    assert!(of_batch.gpus[1].ms["running_other_batches"] > 0);

    // Status tells of what the journals cover.
    let json = serde_json::to_value(fixture.snapshot()).unwrap();
    let told = &json["agents"][0]["gpu_time"];
    assert_eq!(told["from"], serde_json::to_value(start).unwrap());
    let seconds = told["seconds"].as_object().unwrap();
    assert_eq!(seconds.len(), 2, "{told}");
    let sum: f64 = seconds.values().map(|value| value.as_f64().unwrap()).sum();
    let end: Timestamp = serde_json::from_value(told["to"].clone()).unwrap();
    let wall = end.duration_since(start).as_secs_f64();
    assert!((sum - wall).abs() < 1e-6, "{sum} of {wall}");
}

#[test]
fn a_silent_agent_is_down_since_its_last_sign_of_life() {
    let fixture = fixture();
    let _lock = ComponentLock::acquire(&fixture.rig, "gpu-1", Role::Running).unwrap();
    presence::beat(&fixture.rig, "gpu-1", &heartbeat(LlmBeat::Cold)).unwrap();
    journal(&fixture, "gpu-1", &[(ago(300), Cause::Running, &["b"])]);
    let cause_now = || {
        let times = gpu_time(&fixture.rig, &fixture.config, ago(310), ago(0)).unwrap();
        times[0].spans.last().unwrap().cause
    };
    assert_eq!(cause_now(), Cause::Running);
    let beat = fixture.rig.agent_dir("gpu-1").join("heartbeat.json");
    let touch = |age| {
        let at = std::time::SystemTime::now() - Duration::from_secs(age);
        let file = std::fs::File::open(&beat).unwrap();
        file.set_modified(at).unwrap();
    };
    touch(61);
    assert_eq!(cause_now(), Cause::AgentDown);
    touch(59);
    assert_eq!(cause_now(), Cause::Running);
}

#[test]
fn a_heartbeat_that_is_only_touched_is_told_of() {
    let fixture = fixture();
    let _lock = ComponentLock::acquire(&fixture.rig, "gpu-1", Role::Running).unwrap();
    let mut beat = heartbeat(LlmBeat::Cold);
    presence::beat(&fixture.rig, "gpu-1", &beat).unwrap();
    let agent = fixture.snapshot().agents.remove(0);
    assert_eq!(agent.heartbeat_unwritten_s, None);
    beat.at = ago(90);
    presence::beat(&fixture.rig, "gpu-1", &beat).unwrap();
    let agent = fixture.snapshot().agents.remove(0);
    assert!((85..=95).contains(&agent.heartbeat_unwritten_s.unwrap()));
    assert!(agent.heartbeat_age_s.unwrap() < 5);
}

#[test]
fn the_disk_of_the_rig_is_shown() {
    let disk = fixture().snapshot().disk.unwrap();
    assert!(disk.total_mb >= disk.free_mb && disk.total_mb > 0);
}

#[test]
fn reading_takes_no_lock() {
    let fixture = fixture();
    drop(ComponentLock::acquire(&fixture.rig, "gpu-1", Role::Running).unwrap());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                fixture.snapshot();
            }
        });
        for _ in 0..200 {
            let lock = ComponentLock::acquire(&fixture.rig, "gpu-1", Role::Running);
            if lock.is_err() {
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            lock.unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_batch_is_what_the_lane_of_its_plan_says() {
    let fixture = fixture();
    let name = fixture.submit_plan(BATCH);
    let only = |fixture: &Fixture| {
        let snapshot = fixture.snapshot();
        assert_eq!(snapshot.batches.len(), 1);
        assert_eq!(snapshot.queue.total_pending, 0, "a plan is no task");
        assert_eq!(snapshot.queue.processing, 0, "a plan is no task");
        snapshot.batches[0].clone()
    };
    let batch = only(&fixture);
    assert_eq!(
        (batch.state, batch.plan.as_str()),
        (BatchState::Submitted, "video-tags")
    );
    assert_eq!(
        batch.batch_dir.as_deref(),
        Some(&*format!("/plans/video-tags/history/{BATCH}"))
    );
    let held = fixture.claim(Class::Brain, &name, BRAIN);
    assert_eq!(only(&fixture).state, BatchState::Running);
    let hold = fixture.rig.brain_dir().join("held").join(BATCH);
    std::fs::write(&hold, "").unwrap();
    assert_eq!(only(&fixture).state, BatchState::Held);
    std::fs::remove_file(hold).unwrap();
    fixture.brains_count("running");
    held.close(&fixture.rig, Move::CloseFailed).unwrap();
    assert_eq!(
        only(&fixture).state,
        BatchState::Failed,
        "the lane beats the brain's count"
    );
}

#[test]
fn tasks_are_counted_where_they_lie() {
    let fixture = fixture();
    let (_plan, names) = fixture.active_batch(4);
    fixture.brains_count("running");
    for name in &names[..3] {
        fixture.release(name);
    }
    let done = fixture.claim(Class::Llm, &names[0], "gpu-1");
    let running = fixture.claim(Class::Llm, &names[1], "gpu-1");
    fixture.record(&done.spec, 1, Outcome::Succeeded);
    let id = running.spec.id;
    let done = (done.spec.id, done.complete(&fixture.rig).unwrap());
    let stuck = |id| StuckTask {
        id,
        name: "tag_v1".to_owned(),
        agent: "gpu-1".to_owned(),
        since: Timestamp::UNIX_EPOCH,
        quiet_since: Timestamp::UNIX_EPOCH,
        end: "nothing will stop it (no timeout)".to_owned(),
    };
    let outlook = Outlook {
        schema: 1,
        stuck: vec![stuck(id), stuck(done.0)],
        ..Outlook::default()
    };
    outlook::write(&fixture.rig, &outlook).unwrap();

    let snapshot = fixture.snapshot();
    let queue = &snapshot.queue;
    assert_eq!(queue.total_pending, 1);
    assert_eq!(queue.by_class[&Class::Llm], 1);
    assert_eq!((queue.processing, queue.waiting), (1, 1));
    assert_eq!(queue.completed_last_5min, 1);
    assert_eq!(queue.stuck_tasks, [id], "only what still runs");
    assert_eq!((queue.stuck, &queue.stuck_details[0]), (1, &stuck(id)));
    assert_eq!(snapshot.agents[0].processing, [id]);
    let batch = &snapshot.batches[0];
    assert_eq!((batch.done, batch.total), (1, 4));
    assert_eq!((batch.running, batch.queued), (1, 1), "of two released");
    let task = &batch.tasks[0];
    assert_eq!((task.running, task.queued), (1, 1));
}

#[test]
fn tasks_are_listed_with_names_lanes_and_reasons() {
    let fixture = fixture();
    let (_plan, names) = fixture.active_batch(3);
    for name in &names[..2] {
        fixture.release(name);
    }
    let failed = fixture.claim(Class::Llm, &names[0], "gpu-1");
    let reason = "exit code 3".to_owned();
    fixture.record(
        &failed.spec,
        1,
        Outcome::Failed {
            kind: FailureKind::ExitCode,
            reason,
        },
    );
    failed.fail(&fixture.rig).unwrap();
    claim::give_up(&fixture.rig, BATCH, &names[0]).unwrap();
    // With the brain's count, which says the class, and without.
    for counted in [false, true] {
        if counted {
            fixture.brains_count("running");
        }
        let all = tasks(&fixture.rig, &Filter::default()).unwrap();
        let rows: Vec<(&str, Lane, Option<Class>)> = all
            .iter()
            .map(|task| (task.name.as_str(), task.lane, task.class))
            .collect();
        assert_eq!(
            rows,
            [
                ("tag_v2", Lane::Waiting, Some(Class::Llm)),
                ("tag_v1", Lane::Queue, Some(Class::Llm)),
                ("tag_v0", Lane::Failed, Some(Class::Llm)),
            ]
        );
        assert!(all.iter().all(|task| task.batch == BATCH));
        assert_eq!(all[2].reason.as_deref(), Some("exit code 3"));
    }
    let count = |filter: Filter| tasks(&fixture.rig, &filter).unwrap().len();
    assert_eq!(
        count(Filter {
            lane: Some(Lane::Failed),
            ..Filter::default()
        }),
        1
    );
    assert_eq!(
        count(Filter {
            class: Some(Class::Cpu),
            ..Filter::default()
        }),
        0
    );
    assert_eq!(
        count(Filter {
            batch: Some("other".to_owned()),
            ..Filter::default()
        }),
        0
    );
    assert_eq!(
        count(Filter {
            limit: Some(2),
            ..Filter::default()
        }),
        2
    );
}

#[test]
fn names_may_be_shortened_as_far_as_they_stay_unique() {
    let fixture = fixture();
    let (_plan, names) = fixture.active_batch(12);
    let look = |text: &str| find(&fixture.rig, &fixture.config, text).unwrap();
    let id = names[3].id;
    for text in [
        id.to_string(),
        id.short(),
        format!("{BATCH}/tag_v3"),
        "video/tag_v3".to_owned(),
    ] {
        let Found::One(Target::Task { name, .. }) = look(&text) else {
            panic!("{text}")
        };
        assert_eq!(name.id, id, "{text}");
    }
    assert_eq!(look("gpu-1"), Found::One(Target::Agent("gpu-1".to_owned())));
    assert_eq!(look(BATCH), Found::One(Target::Batch(BATCH.to_owned())));
    assert_eq!(
        find_batch(&fixture.rig, "video").unwrap(),
        Found::One(Target::Batch(BATCH.to_owned()))
    );
    assert_eq!(
        look("gpu-3"),
        Found::NotFound {
            nearest: Some("gpu-1".to_owned())
        }
    );
    assert_eq!(
        look("video/tagv3"),
        Found::NotFound {
            nearest: Some(format!("{BATCH}/tag_v3"))
        }
    );
    assert_eq!(
        look("video/tag_v1"),
        Found::One(Target::Task {
            name: names[1],
            spot: rigor_snapshot::Spot::Waiting {
                batch: BATCH.to_owned(),
                task: "tag".to_owned()
            },
            ahead: 1,
        }),
        "the whole name comes before its being a prefix of tag_v10"
    );
    let Found::Ambiguous(choices) = look("video/tag") else {
        panic!()
    };
    assert_eq!(choices.len(), 12);
    fixture.submit_plan("video-tags-20260208-000000-zzzz");
    assert!(matches!(look("video"), Found::Ambiguous(choices) if choices.len() == 2));
}

#[test]
fn a_task_shows_its_attempts_and_the_one_that_runs() {
    let fixture = fixture();
    let (_plan, names) = fixture.active_batch(1);
    fixture.release(&names[0]);
    let held = fixture.claim(Class::Llm, &names[0], "gpu-1");
    fixture.record(
        &held.spec,
        1,
        Outcome::Lost {
            reason: "agent gpu-1 died".to_owned(),
        },
    );
    let next = held.requeue(&fixture.rig).unwrap();
    let _running = fixture.claim(Class::Llm, &next, "gpu-2");
    let Found::One(Target::Task { name, spot, .. }) =
        find(&fixture.rig, &fixture.config, &next.id.to_string()).unwrap()
    else {
        panic!()
    };
    let detail = detail(&fixture.rig, &name, &spot).unwrap().unwrap();
    let json = serde_json::to_value(&detail).unwrap();
    assert_eq!(json["lane"], "processing");
    assert_eq!(json["agent"], "gpu-2");
    assert_eq!(json["specification"]["work"]["command"], "true");
    assert_eq!(json["attempts"][0]["outcome"], "lost");
    assert_eq!(json["attempts"][0]["exit_code"], 3);
    assert_eq!(json["attempts"][0]["reason"], "agent gpu-1 died");
    assert_eq!(json["attempts"][1]["outcome"], "running");
    assert_eq!(json["attempts"][1]["agent"], "gpu-2");
    assert!(json["attempts"][1]["started"].is_string());
}

#[test]
fn a_hundred_thousand_queued_are_read_by_name_only() {
    let fixture = fixture();
    let dir = fixture.rig.dir(Place::Queue(Class::Llm));
    let model = spec(BATCH, "tag", None, Class::Llm);
    for n in 0..100_000u64 {
        let id = TaskId::derive(BATCH, "tag", Some(&n.to_string()));
        let name = FileName::first(5, n, model.shape(), id);
        // Empty files: whoever read one would fail.
        std::fs::File::create(dir.join(name.to_string())).unwrap();
    }
    // Measured against one listing, so that a debug build on a busy machine passes too. In a
    // release build on two busy cores both took 120 ms.
    let time = |what: &mut dyn FnMut()| {
        let start = Instant::now();
        what();
        start.elapsed()
    };
    let listing = time(&mut || drop(fixture.rig.list(Place::Queue(Class::Llm)).unwrap()));
    let mut pending = 0;
    let status = time(&mut || pending = fixture.snapshot().queue.total_pending);
    assert_eq!(pending, 100_000);
    eprintln!("100,000 queued: listing {listing:?}, status {status:?}");
    assert!(
        status < 3 * listing + Duration::from_millis(50),
        "{status:?} for a listing of {listing:?}"
    );
}
