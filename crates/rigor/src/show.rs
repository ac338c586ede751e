//! `rigor show`.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use jiff::tz::TimeZone;
use rigor_queue::task::{Prompt, PromptPart, Vram, Work};
use rigor_snapshot::{Attempt, Detail};

use crate::args::Show;
use crate::exit::Exit;
use crate::target;
use crate::terminal::{ago, duration, json, print, printable};

/// Shows one task.
pub(crate) fn run(at: &Path, args: &Show) -> Result<Exit> {
    let opened = target::open_running(at)?;
    let detail = opened.detail(&args.task)?;
    if args.json {
        json(&detail)?;
    } else {
        print(&text(&detail, opened.rig.is_archived(&detail.batch)))?;
    }
    Ok(Exit::Ok)
}

fn text(detail: &Detail, archived: bool) -> String {
    let spec = &detail.specification;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut row = |head: &str, value: String| {
        let _ = writeln!(text, "{head:<10} {value}");
    };
    row(
        "Task",
        format!("{}  {}", detail.id, printable(&detail.name)),
    );
    row("Batch", detail.batch.clone());
    row("Class", detail.class.to_string());
    let agent = detail
        .agent
        .as_ref()
        .map(|agent| format!(" by {agent}"))
        .unwrap_or_default();
    let since = detail
        .since
        .map(|at| format!(" for {}", ago(at)))
        .unwrap_or_default();
    row("Lane", format!("{}{agent}{since}", detail.lane));
    row(
        "Attempt",
        format!(
            "{}, {} of {} retries used",
            detail.attempt,
            detail.charged.min(spec.retries),
            spec.retries
        ),
    );
    if let Some(reason) = &detail.reason {
        row("Reason", printable(reason));
    }
    if let Some(model) = &spec.model {
        row("Model", model.clone());
    }
    match spec.vram {
        Vram::Fixed { mb } => row("VRAM", format!("{mb} MB")),
        Vram::Default {
            estimate_mb: Some(mb),
        } => row("VRAM", format!("{mb} MB, until measured")),
        Vram::Default { estimate_mb: None } | Vram::Infer => {}
    }
    if !spec.on.is_empty() {
        row("Only on", spec.on.join(", "));
    }
    if let Some(seconds) = spec.timeout_s {
        row("Timeout", duration(Duration::from_secs(seconds)));
    }
    if let Some(item) = &spec.item {
        row("Item", printable(&item.value.to_string()));
    }
    row("Plan", spec.plan_dir.display().to_string());
    let output = if archived {
        format!("`rigor logs {}`; its batch is archived", detail.id.short())
    } else {
        detail.output.display().to_string()
    };
    row("Output", output);
    let _ = writeln!(text, "\n{}", indented(&work(&spec.work)));
    if !detail.attempts.is_empty() {
        text.push_str("\nAttempts\n");
        for attempt in &detail.attempts {
            text.push_str(&attempt_text(attempt));
        }
    }
    text
}

fn work(work: &Work) -> String {
    match work {
        Work::Command { command } => command.clone(),
        Work::Prompt(prompt) => prompt_text(prompt),
        Work::LoadLlm {
            model,
            eligible,
            lenders,
            expires,
        } if lenders.is_empty() => {
            format!(
                "load {model} on one of {} until {expires}",
                eligible.join(", ")
            )
        }
        Work::LoadLlm {
            model,
            eligible,
            lenders,
            expires,
        } => {
            format!(
                "load {model} on {}, over its GPU and those of {}, until {expires}",
                eligible.join(", "),
                lenders.join(", ")
            )
        }
        Work::LendGpu {
            agent,
            to,
            model,
            gpus,
            expires,
        } => format!(
            "lend the GPU of {agent} to {to}, for {model} over {gpus} GPUs, until {expires}"
        ),
        Work::UnloadLlm { agent, .. } => format!("unload what {agent} holds"),
        Work::Plan(submission) => submission.source.clone(),
    }
}

fn prompt_text(prompt: &Prompt) -> String {
    let parts = |parts: &[PromptPart]| -> String {
        parts
            .iter()
            .map(|part| match part {
                PromptPart::Text(text) => text.clone(),
                PromptPart::File(path) => format!("{{FILE:{path}}}"),
            })
            .collect()
    };
    let mut text = String::new();
    if !prompt.system.is_empty() {
        text = format!("system: {}\n", parts(&prompt.system));
    }
    text.push_str(&parts(&prompt.user));
    text
}

fn indented(text: &str) -> String {
    let lines: Vec<String> = text
        .lines()
        .map(|line| format!("  {}", printable(line)))
        .collect();
    lines.join("\n")
}

fn attempt_text(attempt: &Attempt) -> String {
    let mut words = vec![format!("{} on {}", attempt.outcome, attempt.agent)];
    if let Some(at) = attempt.started {
        let local = at
            .to_zoned_datetime(TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S");
        words.push(local.to_string());
    }
    words.extend(
        attempt
            .duration_ms
            .map(|ms| duration(Duration::from_millis(ms))),
    );
    words.extend(attempt.exit_code.map(|code| format!("exit code {code}")));
    words.extend(attempt.signal.map(|signal| format!("signal {signal}")));
    words.extend(attempt.peaks.rss_mb.map(|mb| format!("RSS {mb} MB")));
    words.extend(attempt.peaks.vram_mb.map(|mb| format!("VRAM {mb} MB")));
    if let Some(llm) = &attempt.llm {
        words.push(format!(
            "{} + {} tokens of {}",
            llm.prompt_tokens, llm.completion_tokens, llm.model
        ));
    }
    let mut text = format!("  {}. {}\n", attempt.attempt, words.join(", "));
    if let Some(reason) = &attempt.reason {
        let _ = writeln!(text, "     {}", printable(reason));
    }
    text
}
