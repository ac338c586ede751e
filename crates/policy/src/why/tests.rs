use rigor_queue::heartbeat::{Health, LlmBeat, Refusal, Verdict};
use rigor_queue::outlook::{AskedLoad, ModelOutlook, StuckTask};
use rigor_queue::reasons::Cause;

use super::*;

const NOW_S: i64 = 1_770_000_000;

fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW_S - seconds).unwrap()
}

fn verdict(code: Refusal, detail: &str) -> Verdict {
    Verdict {
        code,
        detail: detail.to_owned(),
    }
}

fn id() -> TaskId {
    TaskId::derive("b", "tag", Some("v7"))
}

fn component(name: &str) -> Component {
    let mut beat = Heartbeat::alive(3, ago(3600), Health::Healthy);
    beat.pid = 42;
    beat.at = ago(1);
    Component {
        name: name.to_owned(),
        presence: Presence::Alive,
        pid: Some(42),
        process: Some('S'),
        beat: Some(beat),
        seen: Some(ago(1)),
    }
}

fn gpu(name: &str) -> AgentFacts {
    AgentFacts {
        component: component(name),
        configured: true,
        gpu: true,
        default_model: Some("qwen2.5:7b".to_owned()),
    }
}

fn facts() -> Facts {
    Facts {
        now: ago(0),
        zone: TimeZone::UTC,
        brain: component("brain"),
        outlook: None,
        agents: vec![gpu("gpu-1"), gpu("gpu-2")],
        split_models: BTreeSet::new(),
        heartbeat_warn: Duration::from_secs(60),
        heartbeat_hung: Duration::from_secs(300),
        brain_signals: Vec::new(),
    }
}

impl Facts {
    fn beat(&mut self, agent: usize) -> &mut Heartbeat {
        self.agents[agent].component.beat.as_mut().unwrap()
    }
}

fn step(id: &str, class: Class, total: u64, done: u64, after: &[&str]) -> Step {
    Step {
        id: id.to_owned(),
        class: Some(class),
        expanded: true,
        foreach: true,
        total: Some(total),
        done,
        depends_on: after.iter().map(|id| (*id).to_owned()).collect(),
        measured: Some((36.0, 480)),
        ..Step::default()
    }
}

fn plan() -> BatchFacts {
    let mut transcribe = step("transcribe", Class::Script, 500, 480, &[]);
    transcribe.released = 20;
    transcribe.running = 3;
    BatchFacts {
        id: "b".to_owned(),
        state: BatchState::Running,
        done: 480,
        total: 1000,
        steps: vec![transcribe, step("tag", Class::Llm, 500, 0, &["transcribe"])],
        ..BatchFacts::default()
    }
}

fn in_lane(lane: Lane) -> TaskFacts {
    TaskFacts {
        id: id(),
        name: "b/tag_v7".to_owned(),
        step: "tag".to_owned(),
        class: Class::Llm,
        lane,
        since: Some(ago(120)),
        shape: Shape(7),
        on: Vec::new(),
        model: None,
        charged: 0,
        attempt: 1,
        retries: 2,
        backoff: Backoff::default(),
        items: 1,
        batch: Some(plan()),
        own_items: BTreeMap::new(),
        ahead: 5,
        attempts: Vec::new(),
        agent: None,
        beat: None,
        worker: None,
        quarantined: None,
        output: Vec::new(),
    }
}

fn failed(ended_ago: i64) -> Attempt {
    Attempt {
        attempt: 1,
        agent: "gpu-1".to_owned(),
        outcome: "failed",
        kind: Some(FailureKind::ExitCode),
        reason: Some("exit code 3".to_owned()),
        ended: Some(ago(ended_ago)),
        took: Some(Duration::from_secs(4)),
    }
}

fn refuse(facts: &mut Facts, code: Refusal, detail: &str) {
    for agent in 0..facts.agents.len() {
        facts.beat(agent).shapes = BTreeMap::from([(Shape(7), verdict(code, detail))]);
    }
}

#[track_caller]
fn answers(
    facts: &Facts,
    one: &TaskFacts,
    verdict: TaskVerdict,
    reason: &str,
    words: &str,
) -> Explanation<TaskVerdict> {
    let told = task(facts, one);
    assert_eq!(
        (told.verdict, told.reason.as_str()),
        (verdict, reason),
        "{told:#?}"
    );
    assert!(told.summary.contains(words), "{words:?}: {}", told.summary);
    told
}

#[test]
fn a_waiting_task_names_its_dependency_with_numbers_and_an_estimate() {
    let told = answers(
        &facts(),
        &in_lane(Lane::Waiting),
        TaskVerdict::NotYet,
        "waiting_deps",
        "waits for transcribe: 480/500 done, 3 running, 17 queued; about 4m 12s \
         (20 left x 36s measured over 480 runs, on 3 GPUs)",
    );
    let gate = told.gates.iter().find(|gate| gate.gate == "dependency");
    assert_eq!(gate.and_then(|gate| gate.eta_s), Some(7 * 36));
    let mut unmeasured = in_lane(Lane::Waiting);
    unmeasured.batch.as_mut().unwrap().steps[0].measured = None;
    answers(
        &facts(),
        &unmeasured,
        TaskVerdict::NotYet,
        "waiting_deps",
        "ETA unknown: nothing measured for transcribe",
    );
}

#[test]
fn what_an_item_waits_for_is_the_same_item() {
    let mut one = in_lane(Lane::Waiting);
    let own = |lane| BTreeMap::from([("transcribe".to_owned(), lane)]);
    one.own_items = own(Some(Lane::Processing));
    let words = "waits for transcribe: the same item lies in processing";
    answers(&facts(), &one, TaskVerdict::NotYet, "waiting_deps", words);
    one.own_items = own(Some(Lane::Failed));
    answers(
        &facts(),
        &one,
        TaskVerdict::Never,
        "dependency_failed",
        "transcribe failed for good",
    );
    one.own_items = own(Some(Lane::Complete));
    answers(
        &facts(),
        &one,
        TaskVerdict::NotYet,
        "waiting_deps",
        "in a moment",
    );
}

#[test]
fn a_dependency_that_failed_for_good_means_never() {
    let mut one = in_lane(Lane::Waiting);
    let dep = &mut one.batch.as_mut().unwrap().steps[0];
    (dep.done, dep.failed, dep.released, dep.running) = (0, 500, 0, 0);
    answers(
        &facts(),
        &one,
        TaskVerdict::Never,
        "dependency_failed",
        "500 failed",
    );
    let dep = &mut one.batch.as_mut().unwrap().steps[0];
    (dep.done, dep.failed) = (499, 1);
    // A few failures may be borne: that is the brain's to say.
    answers(
        &facts(),
        &one,
        TaskVerdict::NotYet,
        "waiting_deps",
        "in a moment",
    );
}

#[test]
fn without_the_brain_nothing_is_released() {
    let mut facts = facts();
    facts.brain.presence = Presence::Gone;
    let told = answers(
        &facts,
        &in_lane(Lane::Waiting),
        TaskVerdict::NotYet,
        "brain_down",
        "the brain is not running: nothing is released (rigor up)",
    );
    assert_eq!(told.help[0].command, "rigor up");
    let told = batch(&facts, &plan());
    assert_eq!(told.reason, "brain_down");
    assert!(told.summary.contains("480/1000 done"), "{}", told.summary);
}

#[test]
fn an_operators_hold_is_named() {
    let mut one = in_lane(Lane::Waiting);
    one.batch.as_mut().unwrap().state = BatchState::Held;
    let told = answers(
        &facts(),
        &one,
        TaskVerdict::NotYet,
        "held",
        "rigor release b",
    );
    assert!(
        told.help
            .iter()
            .any(|help| help.command == "rigor release b")
    );
}

#[test]
fn a_queued_task_tells_each_agents_own_refusal() {
    let mut facts = facts();
    let detail = "need 8000 MB, have 5100 MB, short by 2900 MB";
    refuse(&mut facts, Refusal::VramShort, detail);
    facts.beat(1).shapes =
        BTreeMap::from([(Shape(7), verdict(Refusal::Paused, "paused by the operator"))]);
    let told = answers(
        &facts,
        &in_lane(Lane::Queue),
        TaskVerdict::NotYet,
        "vram_short",
        "vram_short on gpu-1: need 8000 MB, have 5100 MB, short by 2900 MB; 5 ahead of it",
    );
    let codes: Vec<Option<&str>> = told
        .gates
        .iter()
        .filter(|gate| gate.gate == "agent")
        .map(|gate| gate.code)
        .collect();
    assert_eq!(codes, [Some("vram_short"), Some("paused")]);
}

#[test]
fn a_model_that_is_elsewhere_comes_with_the_brains_reason() {
    let mut facts = facts();
    refuse(
        &mut facts,
        Refusal::ModelNotLoaded,
        "llm:125 need qwen2.5:7b",
    );
    facts.outlook = Some(Outlook {
        models: vec![ModelOutlook {
            model: "qwen2.5:7b".to_owned(),
            queued: 125,
            holders: vec!["gpu-3".to_owned()],
            asked: vec![AskedLoad {
                id: id(),
                since: ago(62),
                eligible: vec!["gpu-1".to_owned()],
            }],
            reason: "the brain keeps it on gpu-3 only: 40s of work < 1.5 x 40s load".to_owned(),
            stranded: false,
        }],
        ..Outlook::default()
    });
    let told = answers(
        &facts,
        &in_lane(Lane::Queue),
        TaskVerdict::NotYet,
        "model_not_loaded",
        "the brain keeps it on gpu-3 only: 40s of work < 1.5 x 40s load",
    );
    let load = told.gates.iter().find(|gate| gate.gate == "load").unwrap();
    assert!(
        load.words.contains("1m 2s ago; gpu-1 may take it"),
        "{}",
        load.words
    );
}

#[test]
fn a_class_refusal_stands_in_for_a_shape_that_is_not_told() {
    let mut facts = facts();
    for agent in 0..2 {
        let beat = facts.beat(agent);
        beat.shapes_cut = true;
        beat.verdicts = BTreeMap::from([(Class::Llm, verdict(Refusal::SlotsFull, "4/4"))]);
    }
    answers(
        &facts,
        &in_lane(Lane::Queue),
        TaskVerdict::NotYet,
        "slots_full",
        "4/4",
    );
    for agent in 0..2 {
        facts.beat(agent).verdicts.clear();
    }
    // Not told is not the same as taken.
    answers(
        &facts,
        &in_lane(Lane::Queue),
        TaskVerdict::NotYet,
        "no_agent",
        "more kinds",
    );
}

#[test]
fn no_refusal_and_no_claim_for_long_is_a_bug() {
    let mut facts = facts();
    refuse(&mut facts, Refusal::Paused, "paused");
    facts.beat(1).shapes.clear();
    facts.beat(1).idle_since = Some(ago(90));
    answers(
        &facts,
        &in_lane(Lane::Queue),
        TaskVerdict::ShouldBeRunning,
        "bug",
        "should be running: bug: gpu-2 has no reason against it and has claimed nothing for 1m 29s",
    );
    // It has just finished something: its turn comes.
    facts.beat(1).idle_since = Some(ago(2));
    answers(
        &facts,
        &in_lane(Lane::Queue),
        TaskVerdict::NotYet,
        "queued_behind",
        "5 ahead",
    );
    // It was queued after the heartbeat.
    let mut fresh = in_lane(Lane::Queue);
    fresh.since = Some(ago(0));
    facts.beat(1).idle_since = Some(ago(90));
    answers(
        &facts,
        &fresh,
        TaskVerdict::NotYet,
        "queued_behind",
        "gpu-2 takes it",
    );
    // What a stale heartbeat says is worth nothing.
    facts.agents[1].component.seen = Some(ago(70));
    answers(
        &facts,
        &in_lane(Lane::Queue),
        TaskVerdict::NotYet,
        "paused",
        "paused on gpu-1",
    );
}

#[test]
fn where_nobody_may_run_it_is_there_each_is_named() {
    let mut facts = facts();
    facts.agents[0].component.presence = Presence::Gone;
    facts.agents[1].component.presence = Presence::Gone;
    facts.agents[1].component.beat = None;
    let mut one = in_lane(Lane::Queue);
    let told = answers(
        &facts,
        &one,
        TaskVerdict::NotYet,
        "no_agent",
        "gpu-1 is down: dead since",
    );
    assert!(told.summary.contains("gpu-2 is down: it was never started"));
    one.on = vec!["gpu-9".to_owned()];
    answers(
        &facts,
        &one,
        TaskVerdict::NotYet,
        "no_agent",
        "rig.toml has none",
    );
}

#[test]
fn a_batch_counts_its_own_queued_tasks_and_says_first_that_nobody_is_there() {
    let mut facts = facts();
    let mut one = plan();
    one.steps[0].running = 0;
    one.steps[0].released = 2;
    // Two batches share the shape.
    let queued = Queued {
        count: 4,
        one: id(),
        class: Class::Script,
        model: None,
    };
    one.queued = BTreeMap::from([(Shape(7), queued)]);
    let told = batch(&facts, &one);
    assert!(told.summary.contains("2 queued"), "{}", told.summary);
    for agent in &mut facts.agents {
        agent.component.presence = Presence::Gone;
    }
    let told = batch(&facts, &one);
    assert_eq!(told.reason, "no_agent", "{}", told.summary);
    assert!(
        told.summary
            .starts_with("not yet: 2 queued, and no agent is there (rigor up)"),
        "{}",
        told.summary
    );
}

#[test]
fn what_fits_nowhere_never_runs() {
    let mut facts = facts();
    let why = "needs 30000 MB, the largest budget is 19600 MB on gpu-2";
    facts.outlook = Some(Outlook {
        never: BTreeMap::from([(Shape(7), why.to_owned())]),
        ..Outlook::default()
    });
    answers(
        &facts,
        &in_lane(Lane::Queue),
        TaskVerdict::Never,
        "never_fits",
        why,
    );
    let mut batch_of = plan();
    batch_of.queued = BTreeMap::from([(Shape(7), queued(12, None)), (Shape(8), queued(1, None))]);
    let never = &mut facts.outlook.as_mut().unwrap().never;
    never.insert(Shape(8), "needs a GPU".to_owned());
    let told = batch(&facts, &batch_of);
    assert_eq!(told.verdict, BatchVerdict::Never);
    assert!(
        told.summary.contains("13 tasks can never run"),
        "{}",
        told.summary
    );
    no_estimate(&told);
}

#[test]
fn between_attempts_the_backoff_counts() {
    let mut one = in_lane(Lane::Retry);
    one.attempts = vec![failed(4)];
    answers(
        &facts(),
        &one,
        TaskVerdict::NotYet,
        "backoff",
        "attempt 1 failed (exit code 3); attempt 2 of 3 in 6s, at 02:40:06",
    );
    one.attempts = vec![failed(400)];
    answers(
        &facts(),
        &one,
        TaskVerdict::NotYet,
        "backoff",
        "attempt 2 of 3 is due now",
    );
}

#[test]
fn what_is_over_says_how() {
    let mut one = in_lane(Lane::Failed);
    one.attempts = vec![failed(60)];
    one.output = vec!["no such file".to_owned()];
    let told = answers(&facts(), &one, TaskVerdict::Over, "failed", "exit code 3");
    let commands: Vec<&str> = told.help.iter().map(|help| help.command.as_str()).collect();
    let short = id().short();
    assert_eq!(
        commands,
        [
            format!("rigor logs {short}"),
            format!("rigor retry {short}")
        ]
    );
    assert!(told.gates.iter().any(|gate| gate.words == "no such file"));
    one.lane = Lane::Cancelled;
    one.attempts[0].reason = Some("dependency transcribe failed".to_owned());
    answers(
        &facts(),
        &one,
        TaskVerdict::Over,
        "cancelled",
        "dependency transcribe failed",
    );
    one.lane = Lane::Complete;
    answers(
        &facts(),
        &one,
        TaskVerdict::Over,
        "complete",
        "on gpu-1, attempt 1, took 4s",
    );
    one.lane = Lane::Quarantine;
    one.quarantined = Some("its checksum is wrong".to_owned());
    answers(
        &facts(),
        &one,
        TaskVerdict::Never,
        "quarantined",
        "its checksum is wrong",
    );
}

fn running_beat() -> RunningBeat {
    RunningBeat {
        id: id(),
        attempt: 1,
        name: "tag_v7".to_owned(),
        batch: "b".to_owned(),
        class: Class::Llm,
        since: ago(720),
        active_at: ago(3),
        output_at: Some(ago(360)),
        cpu_percent: Some(97),
        gpu_percent: None,
        timeout_s: Some(3600),
        kill_if_silent_s: None,
    }
}

#[test]
fn a_running_task_shows_its_signs_of_life_and_what_ends_it() {
    let mut facts = facts();
    let mut one = in_lane(Lane::Processing);
    one.agent = Some("gpu-1".to_owned());
    one.beat = Some(running_beat());
    let told = answers(
        &facts,
        &one,
        TaskVerdict::Running,
        "running",
        "running on gpu-1 for 12m",
    );
    for words in [
        "last sign of life 3s ago (last output 6m ago, CPU 97%)",
        "its timeout of 1h ends it at 03:28:00",
    ] {
        assert!(told.summary.contains(words), "{words}: {}", told.summary);
    }
    facts.outlook = Some(Outlook {
        stuck: vec![StuckTask {
            id: id(),
            name: "tag_v7".to_owned(),
            agent: "gpu-1".to_owned(),
            since: ago(720),
            quiet_since: ago(360),
            end: "nothing will stop it (no timeout)".to_owned(),
        }],
        ..Outlook::default()
    });
    answers(
        &facts,
        &one,
        TaskVerdict::Running,
        "stuck",
        "stuck: quiet for 6m; nothing will stop it",
    );
    facts.agents[0].component.presence = Presence::Gone;
    answers(
        &facts,
        &one,
        TaskVerdict::NotYet,
        "agent_down",
        "puts it back into the queue",
    );
}

fn one_agent() -> OneAgent {
    OneAgent {
        name: "gpu-1".to_owned(),
        ..OneAgent::default()
    }
}

#[track_caller]
fn agent_says(facts: &Facts, one: &OneAgent, verdict: AgentVerdict, words: &str) {
    let told = agent(facts, one);
    assert_eq!(told.verdict, verdict, "{told:#?}");
    assert!(told.summary.contains(words), "{words:?}: {}", told.summary);
}

#[test]
fn an_idle_agent_names_its_cause_and_the_brains() {
    let mut facts = facts();
    let beat = facts.beat(0);
    beat.idle_since = Some(ago(240));
    beat.idle = Some(verdict(Refusal::ModelNotLoaded, "llm:125 need qwen2.5:7b"));
    facts.outlook = Some(Outlook {
        models: vec![ModelOutlook {
            model: "qwen2.5:7b".to_owned(),
            queued: 125,
            holders: vec!["gpu-2".to_owned()],
            asked: Vec::new(),
            reason: "the brain keeps it on gpu-2 only: 40s of work < 1.5 x 40s load".to_owned(),
            stranded: false,
        }],
        waiting: BTreeMap::from([(Class::Llm, 40)]),
        ..Outlook::default()
    });
    let line = "gpu-1 idle for 4m: model_not_loaded - llm:125 need qwen2.5:7b; the brain keeps it \
                on gpu-2 only: 40s of work < 1.5 x 40s load";
    agent_says(&facts, &one_agent(), AgentVerdict::Idle, line);
    facts.beat(0).idle = Some(verdict(Refusal::QueueEmpty, "nothing queued"));
    let line = "queue_empty - nothing queued; 40 tasks wait for dependencies (llm:40)";
    agent_says(&facts, &one_agent(), AgentVerdict::Idle, line);
    facts.brain.presence = Presence::Gone;
    agent_says(
        &facts,
        &one_agent(),
        AgentVerdict::Idle,
        "nothing is released",
    );
}

#[test]
fn a_dead_a_hung_and_a_stopped_agent_are_told_apart() {
    let mut facts = facts();
    facts.agents[0].component.seen = Some(ago(75));
    let hung = "gpu-1 does not answer: lock held, no heartbeat for 75s; the brain kills it at 300s";
    agent_says(&facts, &one_agent(), AgentVerdict::NotAnswering, hung);
    facts.agents[0].component.process = Some('T');
    agent_says(
        &facts,
        &one_agent(),
        AgentVerdict::NotAnswering,
        "is stopped (state T",
    );
    facts.agents[0].component.presence = Presence::Gone;
    facts.agents[0].component.seen = Some(ago(180));
    let dead = "gpu-1 is down: dead since 02:37:00 (its lock is free; last heartbeat 3m ago). \
                Start it: rigor up";
    agent_says(&facts, &one_agent(), AgentVerdict::Down, dead);
    let ended = |detail: &str| OneAgent {
        changes: vec![Reason {
            since: ago(180),
            cause: rigor_queue::reasons::Cause::AgentDown,
            code: None,
            detail: detail.to_owned(),
            batches: Vec::new(),
        }],
        ..one_agent()
    };
    let stopped = "gpu-1 is down: it was stopped at 02:37:00 (SIGTERM received). Start it";
    let of = ended("stopped: SIGTERM received");
    agent_says(&facts, &of, AgentVerdict::Down, stopped);
    let hung = "last heartbeat 3m ago); hung: no heartbeat for 300s, killed by the brain. Start";
    let of = ended("hung: no heartbeat for 300s, killed by the brain");
    agent_says(&facts, &of, AgentVerdict::Down, hung);
    facts.agents[0].component.presence = Presence::Recovering;
    agent_says(
        &facts,
        &one_agent(),
        AgentVerdict::Recovering,
        "takes back what it left",
    );
    facts.agents[0].component.presence = Presence::Alive;
    facts.agents[0].component.pid = Some(43);
    agent_says(
        &facts,
        &one_agent(),
        AgentVerdict::Starting,
        "has not beaten yet",
    );
}

/// VRAM that nobody else accounts for any more is held by what a dead agent left.
#[test]
fn a_dead_agents_runtime_that_still_runs_is_told_with_what_ends_it() {
    let mut facts = facts();
    facts.agents[0].component.presence = Presence::Gone;
    let one = OneAgent {
        orphan: Some(("tiny".to_owned(), vec![18749])),
        ..one_agent()
    };
    let words = "its runtime of tiny still runs (pid 18749). Start it: rigor up";
    agent_says(&facts, &one, AgentVerdict::Down, words);
    let told = agent(&facts, &one);
    assert!(told.gates.iter().any(|gate| gate.gate == "runtime"));
    let up = told.help.iter().find(|help| help.command == "rigor up");
    assert!(up.unwrap().does.contains("takes its runtime over"));
}

#[test]
fn an_agent_that_cannot_write_lives_and_its_heartbeat_is_old() {
    let mut facts = facts();
    facts.beat(0).at = ago(200);
    let mut one = one_agent();
    agent_says(
        &facts,
        &one,
        AgentVerdict::CannotWrite,
        "could be written 3m 20s ago",
    );
    one.disks = vec![("agents/gpu-1".to_owned(), 0, 500)];
    let full = "gpu-1 cannot write: its disk is full (0 MB free on agents/gpu-1)";
    agent_says(&facts, &one, AgentVerdict::CannotWrite, full);
}

#[test]
fn a_working_agent_shows_its_tasks_and_its_past() {
    let mut facts = facts();
    facts.beat(0).running = vec![running_beat()];
    facts.beat(0).llm = LlmBeat::Failed {
        model: "big".to_owned(),
        cause: "out of memory".to_owned(),
        until: ago(-30),
    };
    let mut one = one_agent();
    one.changes = vec![Reason {
        since: ago(600),
        cause: Cause::WrongModel,
        code: Some(Refusal::WrongModel),
        detail: "llm:3 need small".to_owned(),
        batches: Vec::new(),
    }];
    agent_says(&facts, &one, AgentVerdict::Working, "gpu-1 runs tag_v7");
    let told = agent(&facts, &one);
    let words: Vec<&str> = told.gates.iter().map(|gate| gate.words.as_str()).collect();
    assert!(
        words.contains(&"wrong model - llm:3 need small"),
        "{words:?}"
    );
    let load = "the last load of big failed: out of memory; tried again from 02:40:30 on";
    assert!(words.contains(&load), "{words:?}");
}

#[test]
fn a_batch_tells_its_critical_path_and_how_long_it_takes() {
    let mut batch_of = plan();
    batch_of.steps[1].measured = None;
    let mut facts = facts();
    facts.beat(0).llm_slots = (0, 4);
    let told = batch(&facts, &batch_of);
    assert_eq!(told.verdict, BatchVerdict::Running);
    let path = told
        .gates
        .iter()
        .find(|gate| gate.gate == "critical path")
        .unwrap();
    assert_eq!(path.words, "transcribe 4m 12s -> tag 42m");
    assert_eq!(path.eta_s, Some(7 * 36 + 125 * 20));
    for words in [
        "running: 480/1000 done, 3 running; about 46m",
        "transcribe: 20 left x 36s measured over 480 runs, on 3 GPUs",
        "tag: 500 left x 20s assumed, on 4 model slots",
    ] {
        assert!(told.summary.contains(words), "{words}: {}", told.summary);
    }
}

#[test]
fn a_batch_that_is_over_groups_its_failures() {
    let mut batch_of = plan();
    batch_of.state = BatchState::Failed;
    batch_of.failed = 3;
    batch_of.failures = vec![Failures {
        cause: "exit_code: exit code 3".to_owned(),
        count: 3,
        examples: vec![("tag_v7".to_owned(), "a1b2c3d4".to_owned())],
    }];
    let told = batch(&facts(), &batch_of);
    assert_eq!(told.verdict, BatchVerdict::Over);
    assert_eq!(
        told.summary,
        "over: failed: 480/1000 done, 3 failed; most: 3 x exit_code: exit code 3"
    );
    batch_of.reason = Some("plan.md:3: the task x is unknown".to_owned());
    let told = batch(&facts(), &batch_of);
    assert!(
        told.summary.ends_with("the task x is unknown"),
        "{}",
        told.summary
    );
}

#[test]
fn a_batch_of_which_nothing_runs_says_what_its_tasks_are_refused_for() {
    let mut facts = facts();
    refuse(&mut facts, Refusal::Thermal, "84C >= 80C");
    let mut batch_of = plan();
    batch_of.steps[0].running = 0;
    batch_of.queued = BTreeMap::from([(Shape(7), queued(17, None))]);
    let told = batch(&facts, &batch_of);
    assert_eq!(
        (told.verdict, told.reason.as_str()),
        (BatchVerdict::NotYet, "thermal")
    );
    let words = "not yet: 17 queued, thermal - gpu-1: 84C >= 80C";
    assert!(told.summary.starts_with(words), "{}", told.summary);
}

fn queued(count: usize, model: Option<&str>) -> Queued {
    Queued {
        count,
        one: id(),
        class: Class::Llm,
        model: model.map(str::to_owned),
    }
}

#[track_caller]
fn no_estimate(told: &Explanation<BatchVerdict>) {
    assert!(!told.summary.contains("about"), "{}", told.summary);
    let path = told.gates.iter().find(|gate| gate.gate == "critical path");
    assert_eq!(path, None);
    let eta = told.gates.iter().find(|gate| gate.gate == "eta").unwrap();
    assert_eq!((eta.eta_s, eta.state), (None, GateState::Unknown));
}

/// One agent says least about what is wrong; the brain knows, and nobody can say how long.
#[test]
fn a_batch_whose_model_nobody_can_load_gives_the_brains_reason_and_no_estimate() {
    let mut facts = facts();
    let detail = "llm:1 need wide";
    refuse(&mut facts, Refusal::ModelNotLoaded, detail);
    let reason = "no agent can load it now: it needs 2 GPUs and 1 could have it: gpu-1 dead";
    let model = ModelOutlook {
        model: "wide".to_owned(),
        queued: 1,
        holders: Vec::new(),
        asked: Vec::new(),
        reason: reason.to_owned(),
        stranded: true,
    };
    facts.outlook = Some(Outlook {
        models: vec![model],
        ..Outlook::default()
    });
    let mut batch_of = plan();
    batch_of.steps[0].running = 0;
    batch_of.queued = BTreeMap::from([(Shape(7), queued(1, Some("wide")))]);
    let told = batch(&facts, &batch_of);
    assert_eq!(
        told.summary,
        format!(
            "not yet: 1 queued, model_not_loaded - wide: {reason}; 480/1000 done; ETA unknown: wide cannot be loaded now"
        )
    );
    no_estimate(&told);
    // What runs meanwhile does not make the estimate hold.
    batch_of.steps[0].running = 1;
    let told = batch(&facts, &batch_of);
    assert_eq!(told.verdict, BatchVerdict::Running);
    no_estimate(&told);
    // A reason that is no obstacle for ever stands beside the agent's words, with an estimate.
    let model = &mut facts.outlook.as_mut().unwrap().models[0];
    model.stranded = false;
    model.reason = "needs 2 GPUs, 1 is free".to_owned();
    batch_of.steps[0].running = 0;
    let told = batch(&facts, &batch_of);
    let words = "not yet: 1 queued, model_not_loaded - gpu-1: llm:1 need wide; needs 2 GPUs, 1 is free; 480/1000 done; about";
    assert!(told.summary.starts_with(words), "{}", told.summary);
}

#[test]
fn a_batch_that_every_agent_is_told_to_leave_has_no_estimate() {
    let mut facts = facts();
    refuse(&mut facts, Refusal::Paused, "paused by the operator");
    let mut batch_of = plan();
    batch_of.steps[0].running = 0;
    batch_of.queued = BTreeMap::from([(Shape(7), queued(17, None))]);
    let told = batch(&facts, &batch_of);
    assert_eq!(told.reason, "paused");
    no_estimate(&told);
}

/// An operator's load goes to one agent, which refuses a model that lies on several GPUs.
#[test]
fn a_load_by_hand_is_advised_only_where_it_is_accepted() {
    let mut facts = facts();
    refuse(&mut facts, Refusal::ModelNotLoaded, "llm:1 need wide");
    let mut one = in_lane(Lane::Queue);
    one.model = Some("wide".to_owned());
    let advised = |facts: &Facts| {
        let told = task(facts, &one);
        told.help
            .iter()
            .any(|help| help.command == "rigor load gpu-1 wide")
    };
    assert!(advised(&facts));
    facts.split_models.insert("wide".to_owned());
    assert!(!advised(&facts));
    // Nor for a default model.
    let say = |facts: &mut Facts, split: bool| {
        facts.agents[0].default_model = Some("wide".to_owned());
        facts.beat(0).idle = Some(verdict(Refusal::ModelNotLoaded, "llm:1 need wide"));
        if !split {
            facts.split_models.clear();
        }
        let told = agent(facts, &one_agent());
        told.help
            .iter()
            .any(|help| help.command.starts_with("rigor load"))
    };
    assert!(!say(&mut facts, true));
    assert!(say(&mut facts, false));
}

#[test]
fn words_agree_in_number_and_end_where_nothing_follows() {
    let mut facts = facts();
    refuse(&mut facts, Refusal::ModelNotLoaded, "llm:1 need wide");
    facts.outlook = Some(Outlook {
        models: vec![ModelOutlook {
            model: "qwen2.5:7b".to_owned(),
            queued: 1,
            holders: Vec::new(),
            asked: Vec::new(),
            reason: String::new(),
            stranded: false,
        }],
        ..Outlook::default()
    });
    let mut one = in_lane(Lane::Queue);
    one.ahead = 1;
    let told = task(&facts, &one);
    let words =
        "model_not_loaded on gpu-1: llm:1 need wide (and 1 more says the same); 1 ahead of it";
    assert!(told.summary.ends_with(words), "{}", told.summary);
    let queue = told.gates.iter().find(|gate| gate.gate == "queue").unwrap();
    assert_eq!(queue.words, "1 task ahead of it in queue/llm");
}

#[test]
fn the_brain_says_what_it_waits_for() {
    let mut facts = facts();
    let none: [(String, String); 0] = [];
    assert!(brain(&facts, &none).summary.contains("waits for a plan"));
    let waits = [("b".to_owned(), "running: 480/1000 done".to_owned())];
    let told = brain(&facts, &waits);
    assert_eq!(told.verdict, AgentVerdict::Working);
    assert!(
        told.summary.contains("1 active batch; running: 480/1000"),
        "{}",
        told.summary
    );
    facts.brain.presence = Presence::Gone;
    assert!(brain(&facts, &waits).summary.contains("Start it: rigor up"));
}
