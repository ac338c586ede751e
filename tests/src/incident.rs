//! The founding incident, replayed: three GPUs transcribe, then an LLM tags each transcript, and
//! one of the GPUs has something in its way.
//!
//! A case goes through the stages by itself: transcriptions hold their GPUs until
//! [`Incident::transcribed`], so that whatever is to go wrong is in place when the LLM work
//! begins; reviews hold the model's slots until [`Incident::ends`], so that work is queued
//! while the case asks why a GPU does nothing.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use rigor_queue::lane::Lane;
use rigor_queue::reasons::Cause;
use rigor_queue::rig::{BRAIN, Place};
use rigor_queue::task::Class;
use serde_json::Value;

use crate::journal::{self, command, noted};
use crate::{Rig, Setup, lines, parts};

/// The agent that something is wrong with.
pub const VICTIM: &str = "gpu-1";
/// The others.
pub const HEALTHY: [&str; 2] = ["gpu-2", "gpu-3"];
/// All of them.
pub const ALL: [&str; 3] = ["gpu-1", "gpu-2", "gpu-3"];

/// Short scripts on the GPU; at most three fit on one at once.
const TRANSCRIPTS: usize = 12;
/// Prompts over a real llama.cpp: as many as in the founding run.
const PROMPTS: usize = 125;
/// Asks for another number of prompts.
const PROMPTS_VARIABLE: &str = "RIGOR_INCIDENT_PROMPTS";
/// LLM tasks that wait for the case: more than all models together have slots.
const REVIEWS: usize = 9;
/// Requests that each model serves at once.
pub const SLOTS: usize = 2;
/// What a minute of the real settings is here: `idle_warn`, `heartbeat_warn` and `load_warn`.
const MINUTE: f64 = 2.0;
/// How late a line may be on a busy machine, seconds.
const SLACK: f64 = 10.0;

/// Settings that make a minute two seconds, and an agent hung after four.
const TIMING: &str = "idle_warn = \"2s\"\nheartbeat_warn = \"2s\"\nheartbeat_hung = \"4s\"\nload_warn = \"2s\"\nabort_grace = \"2s\"\n";

/// A replay under way.
#[derive(Debug)]
pub struct Incident {
    /// Its rig.
    pub rig: Rig,
    variant: &'static str,
    plan: PathBuf,
    batch: String,
    prompts: usize,
    healthy: Vec<&'static str>,
    /// When what is wrong was there to be seen, seconds since 1970.
    wrong_at: f64,
    /// What was said, for people.
    shown: String,
}

impl Incident {
    /// The rig and the plan; nothing runs yet.
    pub fn new(variant: &'static str, healthy: &[&'static str]) -> Incident {
        let rig = Setup {
            gpus: ALL.len(),
            slots: SLOTS as u32,
            // The tiny model stands for a large one.
            model: "vram_mb = 3000\nenv = { RIGOR_SIM_VRAM_MB = \"3000\" }\n",
            limits: "cpu_slots = 8\n",
            timing: TIMING,
            ..Setup::default()
        }
        .make();
        let prompts = std::env::var(PROMPTS_VARIABLE).map_or(PROMPTS, |number| {
            number.parse().expect("RIGOR_INCIDENT_PROMPTS is a number")
        });
        let wait_for = |file: &str| {
            let work = format!("until [ -e \"$RIGOR_PLAN_DIR/{file}\" ]; do sleep 0.1; done");
            command(&noted(&work))
        };
        let plan = rig.plan(
            "video-tags",
            &format!(
                "### transcribe\n\n- **task_class**: script\n- **foreach**: `videos.txt`\n\
                 - **vram_estimate_mb**: 1500\n- **vram_policy**: fixed\n- **env**: RIGOR_SIM_VRAM_MB=1400\n{}\n\
                 ### tag\n\n- **depends_on**: transcribe\n- **foreach**: `transcripts.txt`\n\
                 - **prompt**: Tags for {{ITEM}}\n- **max_tokens**: 24\n- **output**: `{{BATCH_PATH}}/{{ITEM.id}}.txt`\n\n\
                 ### review\n\n- **task_class**: llm\n- **depends_on**: transcribe\n- **foreach**: `reviews.txt`\n- **priority**: 1\n{}",
                wait_for("transcribed"),
                wait_for("reviewed"),
            ),
        );
        for (file, count) in [
            ("videos.txt", TRANSCRIPTS),
            ("transcripts.txt", prompts),
            ("reviews.txt", REVIEWS),
        ] {
            let items: String = (1..=count).map(|n| format!("v{n}\n")).collect();
            fs::write(plan.join(file), items).expect("write the items");
        }
        Incident {
            rig,
            variant,
            plan,
            batch: String::new(),
            prompts,
            healthy: healthy.to_vec(),
            wrong_at: 0.0,
            shown: String::new(),
        }
    }

    /// Submits the plan and waits until each of these agents transcribes.
    #[track_caller]
    pub fn transcribe(&mut self, agents: &[&str]) {
        self.batch = self.rig.submit(&self.plan);
        for agent in agents {
            self.rig.wait(&format!("{agent} transcribes"), |_| {
                journal::read(&self.plan)
                    .iter()
                    .any(|one| one.agent == *agent)
            });
        }
    }

    /// What is wrong is there from now on.
    pub fn is_wrong(&mut self) {
        self.wrong_at = now();
    }

    /// Lets transcriptions end, and waits until all prompts are answered and every slot of the
    /// healthy agents holds a review: the others are queued.
    #[track_caller]
    pub fn transcribed(&mut self) {
        fs::write(self.plan.join("transcribed"), "").expect("end the transcriptions");
        let answered = TRANSCRIPTS + self.prompts;
        self.rig.wait("every prompt is answered", |rig| {
            rig.list(Place::Complete(&self.batch)).len() >= answered
        });
        let busy = SLOTS * self.healthy.len();
        self.rig.wait("the healthy agents are full", |rig| {
            let running = self.healthy.iter().flat_map(|agent| {
                let names = rig.list(Place::Processing(agent));
                names.into_iter()
            });
            running.count() == busy && rig.list(Place::Queue(Class::Llm)).len() == REVIEWS - busy
        });
    }

    /// The line of that component's log that names the cause; it has to come in time, at INFO.
    #[track_caller]
    pub fn tells(&mut self, component: &str, pattern: &str) -> String {
        let line = self.rig.wait_for_match(component, pattern);
        // The moment from which the GPU could have done LLM work, if that came later.
        let stage = lines::find(&self.rig.log(BRAIN), "LLM tasks waiting");
        let stage = stage.and_then(|line| lines::seconds(&line)).unwrap_or(0.0);
        let from = stage.max(self.wrong_at);
        let at = lines::seconds(&line).expect("a line begins with its time");
        assert!(
            at - from < MINUTE + SLACK,
            "{:.1}s after it went wrong: {line}",
            at - from
        );
        for component in ALL.iter().chain([&BRAIN]) {
            let debug = lines::find(&self.rig.log(component), "] DEBUG ");
            assert_eq!(debug, None, "the cause has to be told at INFO alone");
        }
        self.show(&format!("line in {component}.log"), &line);
        line
    }

    /// `rigor why gpu-1`: the cause is in its first line, and in its JSON.
    #[track_caller]
    pub fn why(&mut self, pattern: &str) -> Value {
        let deadline = Instant::now() + crate::PATIENCE;
        // It answers from what was last heard: the case's moment may not be there yet.
        let said = loop {
            let said = self.rig.rigor(&["why", VICTIM]);
            assert_eq!(said.code, 0, "rigor why {VICTIM}: {}", said.stderr);
            let first = said.stdout.lines().next().unwrap_or_default();
            if lines::find(first, pattern).is_some() {
                break said;
            }
            assert!(
                Instant::now() < deadline,
                "the first line of rigor why {VICTIM} is not {pattern}:\n{}",
                said.stdout
            );
            std::thread::sleep(std::time::Duration::from_millis(100));
        };
        self.show("rigor why gpu-1", &said.stdout);
        self.rig.json(&["why", VICTIM, "--json"])
    }

    /// The healthy agents finish the work, each task once; RUN_SUMMARY has GPU 1's time under
    /// that cause. `attempts`: those that were taken from the agent may have run again.
    #[track_caller]
    pub fn ends(&mut self, cause: Option<Cause>, restarted: bool) {
        fs::write(self.plan.join("reviewed"), "").expect("end the reviews");
        assert_eq!(self.rig.wait_batch(&self.batch), 0, "the batch is complete");
        let summary = self.rig.summary(&self.plan, &self.batch);
        let total = TRANSCRIPTS + self.prompts + REVIEWS;
        assert_eq!(
            (&summary["done"], &summary["failed"]),
            (&total.into(), &0.into()),
            "{summary}"
        );
        let mut ended: Vec<String> = journal::read(&self.plan)
            .into_iter()
            .filter(|one| one.ended)
            .map(|one| one.task)
            .collect();
        let all = ended.len();
        ended.sort();
        ended.dedup();
        assert_eq!(ended.len(), TRANSCRIPTS + REVIEWS);
        assert_eq!(all, ended.len(), "each task came to its end once");
        if !restarted {
            let mut records = self.rig.list(Place::Complete(&self.batch));
            records.retain(|name| name.attempt > 1);
            assert_eq!(records, [], "each task ran once");
        }
        let batch_dir = self.plan.join("history").join(&self.batch);
        for item in 1..=self.prompts {
            let path = batch_dir.join(format!("v{item}.txt"));
            assert!(path.exists(), "no answer in {}", path.display());
        }
        let agents = summary["agents"].as_array().expect("agents");
        for name in &self.healthy {
            let agent = agents.iter().find(|one| one["name"] == *name);
            let llm = agent.and_then(|one| one["by_class"]["llm"].as_u64());
            assert!(llm > Some(0), "{name} did no LLM work: {agents:?}");
        }
        self.gpu_time(&summary, cause);
        self.keep();
    }

    /// Every millisecond of every GPU belongs to one cause.
    #[track_caller]
    fn gpu_time(&mut self, summary: &Value, cause: Option<Cause>) {
        let time = &summary["gpu_time"];
        let wall = time["wall_ms"].as_i64().expect("gpu_time.wall_ms");
        let gpus = time["gpus"].as_array().expect("gpu_time.gpus");
        assert_eq!(gpus.len(), ALL.len(), "{time}");
        let mut total = 0;
        for gpu in gpus {
            let causes = gpu["ms"].as_object().expect("ms");
            let sum: i64 = causes.values().filter_map(Value::as_i64).sum();
            assert_eq!(sum, wall, "the causes of {gpu} are the wall time");
            total += sum;
        }
        let all = time["total_ms"].as_object().expect("total_ms");
        let sum: i64 = all.values().filter_map(Value::as_i64).sum();
        assert_eq!(sum, total, "{time}");
        let lost = |agent: &str, cause: Cause| {
            let gpu = gpus.iter().find(|gpu| gpu["agent"] == agent);
            let gpu = gpu.expect("every GPU is there");
            gpu["ms"][cause.as_str()].as_i64().unwrap_or(0)
        };
        if let Some(cause) = cause {
            // It had at least the shortened minute in which the line was waited for.
            let most = (MINUTE * 1000.0 / 2.0) as i64;
            assert!(
                lost(VICTIM, cause) >= most,
                "{VICTIM} has too little {}: {time}",
                cause.as_str()
            );
            for name in HEALTHY {
                assert!(
                    lost(name, cause) < lost(VICTIM, cause),
                    "{name} has as much {}: {time}",
                    cause.as_str()
                );
            }
        }
        let report = self.rig.rigor(&["report", &self.batch]);
        assert_eq!(report.code, 0, "{}", report.stderr);
        let gpu_lines = lines::all(&report.stdout, "(?i)gpu|loss|lost").join("\n");
        self.show("GPU time in RUN_SUMMARY.json", &time.to_string());
        self.show("lines of rigor report about GPUs", &gpu_lines);
    }

    /// The healthy baseline: nobody was idle without a reason while work was queued.
    #[track_caller]
    pub fn nobody_idles(&self) {
        for agent in ALL {
            assert_eq!(
                lines::find(&self.rig.log(agent), "Idle \\d+s with"),
                None,
                "nothing was in {agent}'s way"
            );
        }
    }

    /// The batch's folder of tasks in a lane, for cases that look closer.
    #[track_caller]
    pub fn count(&self, lane: Lane) -> usize {
        self.rig.tasks(&self.batch, lane.as_str()).len()
    }

    fn show(&mut self, what: &str, text: &str) {
        self.shown
            .push_str(&format!("=== {what}\n{}\n\n", text.trim_end()));
    }

    /// Writes what a person would have seen to `target/incident/VARIANT.txt`.
    fn keep(&mut self) {
        for component in [BRAIN, VICTIM] {
            let log = self.rig.log(component);
            // Hundreds of lines tell of the work itself; what matters here is the rest.
            let rest: Vec<&str> = log
                .lines()
                .filter(|line| {
                    !["Claimed llm", "Claimed script", "Spawned", "Worker "]
                        .iter()
                        .any(|word| line.contains(word))
                })
                .collect();
            self.show(
                &format!("{component}.log at INFO, without lines of single tasks"),
                &rest.join("\n"),
            );
        }
        let dir = parts::workspace().join("target/incident");
        fs::create_dir_all(&dir).expect("make target/incident");
        let path = dir.join(format!("{}.txt", self.variant));
        fs::write(&path, &self.shown).expect("write what was shown");
        println!("{}\n{}", path.display(), self.shown);
    }
}

fn now() -> f64 {
    jiff::Timestamp::now().as_microsecond() as f64 / 1e6
}
