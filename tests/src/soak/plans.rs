//! The plans of a soak.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::journal::command;

/// The model that LLM tasks ask.
pub(super) const MODEL: &str = "soak";
/// What is killed is tried again until it is done.
const AGAIN: &str = "- **retries**: 100\n- **backoff**: 1s..1s\n";

/// What has to become of a batch's tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promise {
    /// All complete.
    Complete,
    /// Each begins once at most, and is complete, or failed because it was killed.
    Once,
    /// All fail.
    Fail,
    /// All fail until somebody mends what is wrong and asks for them again.
    Mended,
    /// Somebody cancels it.
    Cancelled,
}

/// A kind of plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Short,
    Medium,
    Children,
    Once,
    Failing,
    Mended,
    Output,
    FanOut,
    Llm,
    Prompts,
    Cancelled,
    Held,
    TimedOut,
}

impl Kind {
    pub(super) const ALL: [Kind; 13] = [
        Kind::Short,
        Kind::Medium,
        Kind::Children,
        Kind::Once,
        Kind::Failing,
        Kind::Mended,
        Kind::Output,
        Kind::FanOut,
        Kind::Llm,
        Kind::Prompts,
        Kind::Cancelled,
        Kind::Held,
        Kind::TimedOut,
    ];

    pub(super) fn promise(self) -> Promise {
        match self {
            Kind::Once => Promise::Once,
            Kind::Failing | Kind::TimedOut => Promise::Fail,
            Kind::Mended => Promise::Mended,
            Kind::Cancelled => Promise::Cancelled,
            _ => Promise::Complete,
        }
    }

    /// Whether its tasks are commands, which note what they do.
    pub(super) fn notes(self) -> bool {
        self != Kind::Prompts
    }
}

/// A plan that was written.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) dir: PathBuf,
    pub(super) kind: Kind,
    /// How many tasks it has when all of it is expanded.
    pub(super) tasks: usize,
}

impl Plan {
    /// What [`Promise::Mended`] waits for.
    pub(super) fn mend(&self) -> io::Result<()> {
        fs::write(self.dir.join("mended"), "")
    }
}

/// Writes the plan of a number under `plans`; its tasks note what they do under `keep`.
pub(super) fn write(
    plans: &Path,
    keep: &Path,
    number: u64,
    kind: Kind,
    rng: &mut fastrand::Rng,
) -> io::Result<Plan> {
    let items = rng.usize(3..12);
    let tenths = rng.u32(5..25);
    let noted = |work: &str| command(&self::noted(keep, work));
    let ticks = |tenths: u32| noted(&ticking(tenths));
    let each = "- **foreach**: `items.txt`\n";
    let cpu = format!("### each\n\n- **task_class**: cpu\n{each}");
    let script = "- **task_class**: script\n- **vram_estimate_mb**: 500\n- **vram_policy**: fixed\n\
                  - **env**: RIGOR_SIM_VRAM_MB=500\n";
    let mut tasks = items;
    let text = match kind {
        Kind::Short => cpu + AGAIN + &noted("sleep 0.1"),
        Kind::Medium => format!("### each\n\n{script}{each}{AGAIN}{}", ticks(tenths)),
        // One in a session of its own, and one that does not listen either.
        Kind::Children => {
            let work = "setsid -f sleep 300\nsetsid -f bash -c 'trap \"\" TERM INT HUP; sleep 300; sleep 300'\n\
                        for n in 1 2 3; do sleep 0.4 & done\nsleep 0.3; note tick";
            format!("### each\n\n{script}{each}{AGAIN}{}", noted(work))
        }
        Kind::Once => cpu + "- **retries**: 0\n" + &ticks(tenths),
        Kind::Failing => {
            cpu + "- **retries**: 1\n- **backoff**: 1s..1s\n" + &noted("sleep 0.1; exit 3")
        }
        Kind::Mended => {
            cpu + "- **retries**: 3\n- **backoff**: 1s..1s\n"
                + &noted("sleep 0.1; [ -e \"$RIGOR_PLAN_DIR/mended\" ]")
        }
        Kind::Output => {
            cpu + AGAIN + &noted("head -c 3000000 /dev/zero | tr '\\0' 'x' | fold -w 99")
        }
        Kind::FanOut => {
            tasks = 2 * items + 2;
            // A full disk fails the attempt that finds it so.
            let list = format!(
                "for n in $(seq {items}); do echo \"i$n\"; done > \"$RIGOR_BATCH_DIR/list.new\" && \
                 mv \"$RIGOR_BATCH_DIR/list.new\" \"$RIGOR_BATCH_DIR/list.txt\""
            );
            format!(
                "### make\n\n- **task_class**: cpu\n- **produces**: {{BATCH_PATH}}/list.txt\n{AGAIN}{}\n\
                 ### first\n\n{script}- **depends_on**: make\n- **foreach**: {{BATCH_PATH}}/list.txt\n{AGAIN}{}\n\
                 ### second\n\n- **task_class**: cpu\n- **depends_on**: first_{{ITEM.id}}\n\
                 - **foreach**: {{BATCH_PATH}}/list.txt\n{AGAIN}{}\n\
                 ### gather\n\n- **executor**: brain\n- **depends_on**: second\n{AGAIN}{}",
                noted(&list),
                ticks(3),
                noted("sleep 0.1"),
                noted("sleep 0.1"),
            )
        }
        Kind::Llm => {
            let ask = format!(
                "curl -sf --max-time 60 \"$OPENAI_BASE_URL/chat/completions\" -H 'Content-Type: application/json' \
                 -d '{{\"model\":\"{MODEL}\",\"max_tokens\":8,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}' -o /dev/null"
            );
            format!(
                "### each\n\n- **task_class**: llm\n- **llm_model**: {MODEL}\n{each}{AGAIN}{}",
                noted(&ask)
            )
        }
        Kind::Prompts => format!(
            "### each\n\n- **llm_model**: {MODEL}\n- **max_tokens**: 8\n- **output**: {{BATCH_PATH}}/{{ITEM.id}}.txt\n\
             {each}{AGAIN}- **prompt**: Say hello to {{ITEM}}\n"
        ),
        Kind::Cancelled => cpu + AGAIN + &ticks(600),
        Kind::Held => cpu + AGAIN + &ticks(3),
        Kind::TimedOut => cpu + "- **retries**: 0\n- **timeout**: 1s\n" + &noted("sleep 600"),
    };
    let dir = plans.join(format!("soak-{number}"));
    fs::create_dir_all(&dir)?;
    let head = format!("# Plan: soak {number}\n\n## Goal\n\n{kind:?}\n\n## Tasks\n\n");
    fs::write(dir.join("plan.md"), head + &text)?;
    let lines: String = (0..items).map(|n| format!("i{n}\n")).collect();
    fs::write(dir.join("items.txt"), lines)?;
    Ok(Plan { dir, kind, tasks })
}

/// A command that notes its start and its end around `work`, and holds its task's lock from beginning
/// to end: everything that it starts inherits that. `work` may call `note tick`.
fn noted(keep: &Path, work: &str) -> String {
    let (journal, locks) = (keep.join("journal"), keep.join("locks"));
    format!(
        "note() {{ printf '%s %s %s %s %s\\n' \"$RIGOR_TASK_ID\" \"$RIGOR_ATTEMPT\" \"$1\" \"$EPOCHREALTIME\" \"$RIGOR_AGENT\" >> '{}'/\"$RIGOR_BATCH_ID\"; }}\n\
         exec 9>> '{}'/\"$RIGOR_TASK_ID\"\nnote start\nflock -n 9 || note overlap\n\
         ( {work} )\ncode=$?\nnote \"stop:$code\"\nexit $code",
        journal.display(),
        locks.display()
    )
}

fn ticking(tenths: u32) -> String {
    format!("for n in $(seq {tenths}); do sleep 0.1; note tick; done")
}
