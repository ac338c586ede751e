//! `rigor run`: one command as a batch of its own.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rigor_queue::rig::is_safe_name;
use rigor_queue::task::Class;
use rigor_snapshot::Found;

use crate::args::{PlanArgs, Run};
use crate::check::{self, PLAN_FILE};
use crate::exit::Exit;
use crate::submit::{New, Terms};
use crate::target;
use crate::terminal::{line, note};
use crate::{logs, wait};

/// Writes the plan of the command into `RIG/runs/<batch>/` and submits it.
pub(crate) fn run(at: &Path, args: &Run) -> Result<Exit> {
    if args.vram.is_some() && args.class != Class::Script {
        bail!("--vram is for --class script");
    }
    if args.model.is_some() && args.class != Class::Llm {
        bail!("--model is for --class llm");
    }
    let opened = target::open(at)?;
    let name = match &args.name {
        Some(name) if !is_task_id(name) => {
            bail!("{name:?} cannot be a task's name: letters, digits, `-` and `_`")
        }
        Some(name) => name.clone(),
        None => program_name(&args.command),
    };
    let new = New::of(&name);
    let plan_dir = opened.rig.runs_dir().join(&new.id);
    fs::create_dir(&plan_dir).with_context(|| format!("cannot make {}", plan_dir.display()))?;
    let here = std::env::current_dir().context("the present directory is gone")?;
    let here = here
        .to_str()
        .context("the present directory's name is not UTF-8")?;
    let plan = plan(&name, args, here)?;
    let path = plan_dir.join(PLAN_FILE);
    fs::write(&path, plan).with_context(|| format!("cannot write {}", path.display()))?;

    let facts = rigor_snapshot::facts::read(&opened.rig, &opened.config);
    let plan_args = PlanArgs {
        plan_dir,
        set: Vec::new(),
        config: None,
        infer: false,
    };
    let checked = match check::check(&plan_args, Some(&facts))? {
        Ok(checked) => checked,
        Err(problems) => {
            check::say(&problems, "; nothing was submitted");
            return Ok(Exit::Failed);
        }
    };
    let batch = new.submit(&opened, Terms::default().over(checked), false)?;
    if !args.wait {
        line(&batch.id)?;
        opened.warn_without_brain()?;
        return Ok(Exit::Ok);
    }
    note(&batch.id);
    let task = format!("{}/{name}", batch.id);
    wait::until_over_with(&opened, &batch.id, |opened| {
        match rigor_snapshot::find(&opened.rig, &opened.config, &task)? {
            Found::One(_) => logs::follow_to_the_end(opened, &task).map(|()| true),
            // The brain has not expanded it yet.
            Found::NotFound { .. } | Found::Ambiguous(_) => Ok(false),
        }
    })
}

fn plan(name: &str, args: &Run, here: &str) -> Result<String> {
    let command = match &args.command[..] {
        [line] => line.clone(),
        words => words
            .iter()
            .map(|word| quoted(word))
            .collect::<Vec<_>>()
            .join(" "),
    };
    if command.trim().is_empty() {
        bail!("there is no command");
    }
    if here.contains(['\n', '`']) {
        bail!("{here:?} cannot be written into a plan; go to another directory");
    }
    let mut plan = format!("# Plan: {name}\n\n## Tasks\n\n### {name}\n");
    // Writing to a String cannot fail.
    let _ = writeln!(plan, "- **task_class**: {}", args.class);
    if let Some(mb) = args.vram {
        let _ = writeln!(
            plan,
            "- **vram_policy**: fixed\n- **vram_estimate_mb**: {mb}"
        );
    }
    if let Some(model) = &args.model {
        let _ = writeln!(plan, "- **llm_model**: {model}");
    }
    let _ = writeln!(plan, "- **retries**: {}", args.retries);
    let _ = writeln!(plan, "- **workdir**: `{}`", literal(here));
    let command = literal(&command);
    let fence = fence_for(&command);
    let _ = writeln!(plan, "- **command**:\n{fence}bash\n{command}\n{fence}");
    Ok(plan)
}

/// A word as bash reads it back. Braces are quoted too: bash, unlike sh, expands `{a,b}`.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+,-./:@_".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A fence that is longer than any run of backticks in the text.
fn fence_for(text: &str) -> String {
    let mut longest = 0;
    let mut run = 0;
    for c in text.chars() {
        run = if c == '`' { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    "`".repeat(longest.max(2) + 1)
}

/// Text that a plan reads back as it is: whatever has the form of a variable, `{NAME}`, gets a
/// second pair of braces.
fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(brace) = text[at..].find('{').map(|found| at + found) {
        out.push_str(&text[at..brace]);
        match variable_end(&text[brace..]) {
            Some(length) if !text[..brace].ends_with('$') => {
                let variable = &text[brace..brace + length];
                out.push('{');
                out.push_str(variable);
                out.push('}');
                at = brace + length;
            }
            _ => {
                out.push('{');
                at = brace + 1;
            }
        }
    }
    out.push_str(&text[at..]);
    out
}

/// The length of `{NAME}`, `{NAME.field}` or `{NAME:argument}` at the beginning of a text. Only
/// what a plan takes for a variable may get further braces: in other text they would stay.
fn variable_end(text: &str) -> Option<usize> {
    let inside = text.strip_prefix('{')?;
    if !inside.starts_with(|c: char| c.is_ascii_uppercase()) {
        return None;
    }
    let name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let mut rest = inside.trim_start_matches(name);
    while let Some(field) = rest.strip_prefix('.') {
        rest = field.trim_start_matches(|c: char| c.is_alphanumeric() || matches!(c, '_' | '-'));
        if rest.len() == field.len() {
            return None;
        }
    }
    if let Some(argument) = rest.strip_prefix(':') {
        rest = &argument[argument_length(argument)?..];
    }
    rest.starts_with('}').then(|| text.len() - rest.len() + 1)
}

/// An argument ends at its closing brace, on its line, and may hold one level of braces.
fn argument_length(text: &str) -> Option<usize> {
    if text.starts_with(|c: char| c.is_whitespace() || c == '}') {
        return None;
    }
    let mut open = false;
    for (at, c) in text.char_indices() {
        match c {
            '\n' => return None,
            '{' if open => return None,
            '{' => open = true,
            '}' if open => open = false,
            '}' => return Some(at),
            _ => {}
        }
    }
    None
}

/// The program's name as a task's id.
fn program_name(command: &[String]) -> String {
    let first = command[0].split_whitespace().next().unwrap_or_default();
    let base = first.rsplit('/').next().unwrap_or_default();
    let word: String = base
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '_'
            }
        })
        .take(40)
        .collect();
    let word = word.trim_matches('_');
    if is_task_id(word) {
        word.to_owned()
    } else {
        "command".to_owned()
    }
}

fn is_task_id(text: &str) -> bool {
    is_safe_name(text)
        && text.len() <= 64
        && !text.contains('.')
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rigor_plan::{BatchVars, Sources, check, instantiate};
    use rigor_queue::task::Work;
    use std::collections::BTreeMap;

    fn args(command: &str) -> Run {
        Run {
            class: Class::Cpu,
            vram: None,
            model: None,
            name: None,
            retries: 0,
            wait: false,
            command: vec![command.to_owned()],
        }
    }

    #[test]
    fn a_command_comes_out_of_its_plan_as_it_went_in() {
        for command in [
            "echo hello",
            "awk '{print $1}' x | jq '{A: 1}'",
            "echo ${HOME} {ITEM} {{ITEM}} {{{X}}} {ITEM.id} {ITEM.id:raw} '{X:a{Y}b}' ${A:-{B}}",
            "echo {BATCH_ID} {FILE:x} {nothing} {X",
            "cat <<'EOF'\n```\n### not a task\n- **command**: no\n{BATCH_PATH}\nEOF",
            "echo \"a 'b' `date` ``` \\ $(x)\" && true || false; sleep 0 &",
            "printf '%s\\n' \"\t{\"",
            "echo '# Plan: x' {A}{B} {A:{B}} ${{A}}",
        ] {
            let text = plan("t", &args(command), "/tmp/a {HOME} b").unwrap();
            let sources = Sources {
                plan_file: "plan.md",
                text: &text,
                inputs: &BTreeMap::new(),
                files: &|_| None,
                exists: &|_| false,
                rig: None,
                infer: false,
            };
            let plan = check(&sources).unwrap_or_else(|problems| panic!("{text}\n{problems}"));
            let vars = BatchVars {
                batch_id: "b",
                batch_path: Path::new("/b"),
                plan_path: Path::new("/p"),
                created: jiff::Timestamp::UNIX_EPOCH,
            };
            let spec = instantiate(&plan, &plan.tasks[0], None, &vars).unwrap();
            let Work::Command { command: back } = spec.work else {
                panic!("no command")
            };
            assert_eq!(back, command, "by way of\n{text}");
            assert_eq!(spec.workdir.as_deref(), Some("/tmp/a {HOME} b"));
        }
    }

    #[test]
    fn bash_reads_words_back_as_they_were() {
        let words = [
            "{a,b}",
            "",
            "it's",
            "$HOME `x` \\",
            "A=1",
            "~",
            "*",
            "a\nb",
            "-n",
            "#",
            "\"",
            "!",
        ];
        let line = words.map(quoted).join(" ");
        let script = format!("printf '%s\\0' {line}");
        let output = std::process::Command::new("bash")
            .args(["-c", &script])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            words.join("\0") + "\0"
        );
    }

    #[test]
    fn a_task_is_named_after_its_program() {
        let name = |words: &[&str]| {
            program_name(
                &words
                    .iter()
                    .map(|word| (*word).to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(name(&["/usr/bin/python3.11", "x.py"]), "python3_11");
        assert_eq!(name(&["grep -c ERROR *.log"]), "grep");
        assert_eq!(name(&["("]), "command");
    }
}
