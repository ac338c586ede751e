//! Rows 3, 7 and 16 in the real programs: each dies once at each step that matters, and the batch
//! comes to its end all the same, no attempt beside another.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rigor_queue::archive;
use rigor_queue::heartbeat::LlmBeat;
use rigor_queue::rig::{BRAIN, Place};
use rigor_tests::journal::{self, command, noted, ticking};
use rigor_tests::{Rig, Setup, parts};

/// From an agent's death to its tasks in the queue again.
const NOTICED: Duration = Duration::from_secs(5);
const AGENTS: [&str; 2] = ["gpu-1", "gpu-2"];

/// Who dies.
#[derive(Clone, Copy, PartialEq)]
enum Who {
    /// The brain: it is started again.
    Brain,
    /// The brain, while it recovers an agent that was killed.
    BrainThatRecovers,
    /// The brain, while it archives a batch that is over or takes it out again.
    BrainThatArchives,
    /// Whichever agent comes there first: the other goes on.
    Agent,
    /// Whichever agent comes there first, which has to do with a model: it is started again, as the
    /// runtime that it may leave is for its successor to take over.
    AgentWithModel,
    /// A worker: its agent goes on.
    Worker,
}

/// A test for each place, and the table of all.
macro_rules! points {
    ($($test:ident: $point:literal in $who:ident;)*) => {
        const TABLE: &[&str] = &[$($point),*];
        $(#[test]
        fn $test() {
            dies($point, Who::$who);
        })*
    };
}

points! {
    after_the_claim: "claimed" in Agent;
    after_the_hand_over: "handed_over" in Agent;
    after_the_workers_end: "worker_ended" in Agent;
    between_the_records_fsync_and_the_rename: "committed" in Agent;
    after_the_rename: "moved" in Agent;
    while_a_model_loads: "load.asked" in AgentWithModel;
    when_a_model_is_proven: "load.proven" in AgentWithModel;
    when_a_model_is_unloaded: "unload.stopped" in AgentWithModel;
    when_a_gpu_is_lent: "lent" in AgentWithModel;
    before_the_command: "worker.before_command" in Worker;
    between_the_command_and_the_record: "worker.before_record" in Worker;
    after_the_record: "worker.after_record" in Worker;
    in_an_expansion: "expand.building" in Brain;
    before_the_expansions_rename: "expand.built" in Brain;
    after_the_expansions_rename: "expand.renamed" in Brain;
    between_two_releases: "released" in Brain;
    in_a_retry: "retried" in Brain;
    in_a_cancel: "cancelled" in Brain;
    in_the_closing_of_a_batch: "closing" in Brain;
    when_an_archive_is_full: "archive.full" in BrainThatArchives;
    behind_the_archives_rename: "archive.renamed" in BrainThatArchives;
    in_the_removal_from_the_lanes: "archive.removing" in BrainThatArchives;
    before_an_archive_goes: "archive.taking_out" in BrainThatArchives;
    between_the_kill_and_the_requeue: "recover.killed" in BrainThatRecovers;
    between_the_requeue_and_the_next_look: "recover.moved" in BrainThatRecovers;
}

#[test]
fn every_point_of_the_code_has_a_case() {
    let mut in_code = BTreeSet::new();
    for entry in walkdir::WalkDir::new(parts::workspace().join("crates")) {
        let entry = entry.unwrap();
        if entry.path().extension().is_some_and(|kind| kind == "rs") {
            let text = fs::read_to_string(entry.path()).unwrap();
            for rest in text.split("crash_point!(\"").skip(1) {
                in_code.insert(rest.split_once('"').unwrap().0.to_owned());
            }
        }
    }
    let table = TABLE.iter().map(|&point| point.to_owned());
    assert_eq!(in_code, table.collect());
}

fn dies(point: &str, who: Who) {
    if who == Who::BrainThatArchives {
        return dies_archiving(point);
    }
    let model = who == Who::AgentWithModel;
    let mut rig = Setup {
        gpus: AGENTS.len(),
        slots: u32::from(model),
        // Lending needs a model that no GPU can hold alone.
        model: if point == "lent" {
            "vram_mb = 6000\nsplit_gpu = 2\nenv = { RIGOR_SIM_VRAM_MB = \"6000\" }"
        } else {
            ""
        },
        ..Setup::default()
    }
    .make();
    let plan = mixed(&rig, point == "cancelled", model);
    let items = if point.starts_with("expand.") {
        10_000
    } else {
        8
    };
    if items > 8 {
        // The tasks of a large expansion need not run to show that each is there once.
        rig.edit_toml(|text| text.replacen("[rig]\n", "[rig]\ndurability = \"process\"\n", 1));
    }
    let text: String = (0..items).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), text).unwrap();
    let mark = rig.plans().with_file_name("mark");
    let pass = if point == "expand.building" {
        ":5000"
    } else {
        ""
    };
    let wanted = format!("{point}{pass}");
    let env = [
        ("RIGOR_CRASH_POINT", wanted.as_str()),
        ("RIGOR_CRASH_MARK", mark.to_str().unwrap()),
    ];
    let batch = rig.submit(&plan);
    match who {
        Who::Brain | Who::BrainThatRecovers | Who::BrainThatArchives => rig.spawn_with(BRAIN, &env),
        Who::Agent | Who::AgentWithModel | Who::Worker => rig.start_brain(),
    }
    if items > 8 {
        died(&mut rig, BRAIN, &mark);
        rig.start_brain();
        return released_once(&rig, items);
    }
    for agent in AGENTS {
        match who {
            Who::Agent | Who::AgentWithModel | Who::Worker => rig.spawn_with(agent, &env),
            Who::Brain | Who::BrainThatRecovers | Who::BrainThatArchives => rig.spawn(agent),
        }
    }
    if who == Who::BrainThatRecovers {
        rig.wait("it works", |rig| {
            in_hand(rig, AGENTS[0]) > 0 && !journal::read(&plan).is_empty()
        });
        rig.kill(AGENTS[0]);
    }
    if point == "unload.stopped" {
        rig.wait("a model is there", |rig| hot(rig).is_some());
        let agent = hot(&rig).expect("it keeps its model until it is told otherwise");
        let said = rig.rigor(&["unload", agent]);
        assert_eq!(said.code, 0, "{said:?}");
    }
    rig.wait("one dies at the point", |_| read_mark(&mark).is_some());
    match who {
        Who::Brain | Who::BrainThatRecovers | Who::BrainThatArchives => {
            died(&mut rig, BRAIN, &mark);
            rig.start_brain();
        }
        Who::Agent | Who::AgentWithModel => {
            let pid = read_mark(&mark);
            let agent = AGENTS.into_iter().find(|one| Some(rig.pid(one)) == pid);
            let agent = agent.expect("it was an agent");
            let since = Instant::now();
            died(&mut rig, agent, &mark);
            rig.wait("its tasks are taken back", |rig| in_hand(rig, agent) == 0);
            assert!(
                since.elapsed() < NOTICED,
                "noticed after {:?}",
                since.elapsed()
            );
            if model {
                rig.start_agent(agent);
            }
        }
        Who::Worker => {
            let pid = read_mark(&mark);
            assert!(
                AGENTS.iter().all(|one| Some(rig.pid(one)) != pid),
                "an agent died"
            );
        }
    }
    let fails = point == "cancelled";
    assert_eq!(rig.wait_batch(&batch) != 0, fails);
    if ["worker_ended", "committed"].contains(&point) {
        // What was done is not done again.
        let log = rig.log(BRAIN);
        let adopted = log.lines().any(|line| line.contains(", adopted "));
        assert!(adopted, "{log}");
    }
    let mut runs = journal::read(&plan);
    runs.retain(|one| one.ended);
    if point == "worker.after_record" {
        assert_eq!(runs.len(), items + 3, "only what fails once runs twice");
    }
    let ended: BTreeSet<String> = runs.into_iter().map(|one| one.task).collect();
    // Each item, the script, and what fails once.
    assert_eq!(ended.len(), items + 2 + usize::from(fails), "0 lost");
    if !fails {
        let done = rig.summary(&plan, &batch)["done"].clone();
        assert_eq!(done, items + 2 + usize::from(model));
    }
    // The checker finds overlaps, and who lies in two lanes, when the rig is dropped.
}

/// A batch that failed is archived, taken out by a retry, and completes.
fn dies_archiving(point: &str) {
    let mut rig = Setup {
        gpus: 1,
        ..Setup::default()
    }
    .make();
    rig.edit_toml(|text| {
        text.replacen("[retention]\n", "[retention]\ncompact_after = \"1s\"\n", 1)
    });
    let plan = rig.plan(
        "archived",
        &format!(
            "### each\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n{}\n\
             ### fails\n\n- **task_class**: cpu\n- **retries**: 0\n{}\n",
            command(&noted("echo one")),
            command(&noted("test -e \"$RIGOR_PLAN_DIR/go\"")),
        ),
    );
    fs::write(plan.join("items.txt"), "a\nb\nc\nd\n").unwrap();
    let mark = rig.plans().with_file_name("mark");
    let pass = if point == "archive.removing" {
        ":5"
    } else {
        ""
    };
    let wanted = format!("{point}{pass}");
    let env = [
        ("RIGOR_CRASH_POINT", wanted.as_str()),
        ("RIGOR_CRASH_MARK", mark.to_str().unwrap()),
    ];
    rig.spawn_with(BRAIN, &env);
    rig.start_agent("gpu-1");
    let batch = rig.submit(&plan);
    let taken_out = point == "archive.taking_out";
    let archived = |rig: &Rig| {
        let left = archive::leftovers(&rig.rig).unwrap();
        rig.rig.is_archived(&batch) && left.is_empty()
    };
    let dead = |rig: &mut Rig| {
        rig.wait("it dies at the point", |_| read_mark(&mark).is_some());
        died(rig, BRAIN, &mark);
        // Readers do not see where it died.
        assert_eq!(rig.tasks(&batch, "complete").len(), 4);
        assert_eq!(rig.tasks(&batch, "failed"), ["fails"]);
        rig.start_brain();
    };
    if !taken_out {
        dead(&mut rig);
    }
    rig.wait("it is archived", archived);
    assert_eq!(rig.tasks(&batch, "complete").len(), 4);
    fs::write(plan.join("go"), "").unwrap();
    let said = rig.rigor(&["retry", &batch, "--failed"]);
    assert_eq!(said.code, 0, "{said:?}");
    if taken_out {
        dead(&mut rig);
    }
    rig.wait("it completes", |rig| {
        rig.tasks(&batch, "complete").len() == 5
    });
    assert_eq!(rig.wait_batch(&batch), 0);
    let mut ran: Vec<(String, usize)> = Vec::new();
    for one in journal::read(&plan) {
        match ran.iter_mut().find(|(task, _)| *task == one.task) {
            Some((_, times)) => *times += 1,
            None => ran.push((one.task, 1)),
        }
    }
    let mut times: Vec<usize> = ran.into_iter().map(|(_, times)| times).collect();
    times.sort_unstable();
    assert_eq!(times, [1, 1, 1, 1, 2], "only what failed ran again");
}

fn mixed(rig: &Rig, fails: bool, model: bool) -> std::path::PathBuf {
    let again = "- **retries**: 3\n- **backoff**: 1s..1s\n";
    let mut tasks = format!(
        "### each\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n{again}{}\n\
         ### script\n\n- **task_class**: script\n- **vram_estimate_mb**: 100\n{again}{}\n\
         ### second\n\n- **task_class**: cpu\n{again}{}\n",
        command(&ticking(3)),
        command(&ticking(3)),
        // Longer than the others' first: it is not the one that dies.
        command(&noted("sleep 0.5; test \"$RIGOR_ATTEMPT\" != 1")),
    );
    if fails {
        tasks += &format!(
            "### fails\n\n- **task_class**: cpu\n- **retries**: 0\n{}\n\
             ### never\n\n- **task_class**: cpu\n- **depends_on**: fails\n{}\n",
            command(&noted("false")),
            command(&noted("true")),
        );
    }
    if model {
        tasks += "### says\n\n- **task_class**: llm\n- **retries**: 3\n- **max_tokens**: 4\n- **prompt**: Hello\n";
    }
    rig.plan("mixed", &tasks)
}

/// SIGKILL ended it, and it was the one that came to the point.
#[track_caller]
fn died(rig: &mut Rig, name: &str, mark: &Path) {
    let pid = rig.pid(name);
    let status = rig.killed(name);
    assert_eq!(status.signal(), Some(9), "{name}: {}", rig.stderr(name));
    assert_eq!(read_mark(mark), Some(pid), "{name} died elsewhere");
}

fn read_mark(mark: &Path) -> Option<u32> {
    fs::read_to_string(mark)
        .ok()?
        .strip_suffix('\n')?
        .parse()
        .ok()
}

/// The agent that serves a model.
fn hot(rig: &Rig) -> Option<&'static str> {
    AGENTS.into_iter().find(|agent| {
        rig.heartbeat(agent)
            .is_some_and(|beat| matches!(beat.llm, LlmBeat::Hot { .. }))
    })
}

fn in_hand(rig: &Rig, agent: &str) -> usize {
    rig.list(Place::Processing(agent)).len()
}

/// Every item is in the queue once, beside the two tasks without items.
#[track_caller]
fn released_once(rig: &Rig, items: usize) {
    use rigor_queue::task::Class;
    let queued = |rig: &Rig| rig.list(Place::Queue(Class::Cpu));
    rig.wait("all are released", |rig| queued(rig).len() > items);
    let names = queued(rig);
    let ids: BTreeSet<_> = names.iter().map(|name| name.id).collect();
    assert_eq!((names.len(), ids.len()), (items + 1, items + 1));
}
