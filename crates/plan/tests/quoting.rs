//! Values reach commands byte for byte, and never run: checked with the real bash.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use proptest::prelude::*;
use rigor_plan::{BatchVars, InstantiateError, Plan, Problems, Sources, check, instantiate};
use rigor_queue::task::{Item, Work};

/// A plan whose one task has `command` for each item.
fn plan(command: &str) -> Result<Plan, Problems> {
    let block = command.replace('\n', "\n    ");
    let text = format!(
        "# Plan: quoting\n## Tasks\n### t\n- **task_class**: cpu\n- **foreach**: items.jsonl\n- **command**:\n    `````\n    {block}\n    `````\n"
    );
    check(&Sources {
        plan_file: "plan.md",
        text: &text,
        inputs: &BTreeMap::new(),
        files: &|_| None,
        exists: &|_| true,
        rig: None,
        infer: false,
    })
}

/// The command of that task for an item whose field `x` is `value`.
fn filled(plan: &Plan, value: &str) -> Result<String, InstantiateError> {
    let item = Item {
        id: "0".to_owned(),
        value: serde_json::json!({ "x": value }),
        members: Vec::new(),
    };
    let vars = BatchVars {
        batch_id: "b",
        batch_path: Path::new("/p/history/b"),
        plan_path: Path::new("/p"),
        created: jiff::Timestamp::UNIX_EPOCH,
    };
    let spec = instantiate(plan, &plan.tasks[0], Some(&item), &vars)?;
    let Work::Command { command } = spec.work else {
        panic!("{:?} is no command", spec.work)
    };
    Ok(command)
}

fn bash(command: &str, dir: &Path) -> Output {
    Command::new("bash")
        .args(["--noprofile", "--norc", "-c", command])
        .current_dir(dir)
        .env("LC_ALL", "C.UTF-8")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("bash runs")
}

/// What a command prints for a value.
type Printed = fn(&str) -> String;

/// Commands in which a value stands in every place that has a quoting of its own.
const TEMPLATES: &[(&str, Printed)] = &[
    (r"printf '%s\0' {ITEM.x}", |v| format!("{v}\0")),
    ("printf '%s\\0' \\\n  {ITEM.x} \\\n# {ITEM.x}", |v| {
        format!("{v}\0")
    }),
    (r"printf '%s\0' {ITEM.x}{ITEM.x} end", |v| {
        format!("{v}{v}\0end\0")
    }),
    (r#"printf '%s\0' "a {ITEM.x} b""#, |v| format!("a {v} b\0")),
    (r#"printf '%s\0' "{ITEM.x}" "{ITEM.x}""#, |v| {
        format!("{v}\0{v}\0")
    }),
    (r#"printf '%s\0' "\\{ITEM.x}""#, |v| format!("\\{v}\0")),
    (r"printf '%s\0' 'pre {ITEM.x} post'", |v| {
        format!("pre {v} post\0")
    }),
    (r"printf '%s\0' $'t\t{ITEM.x}\x41'", |v| {
        format!("t\t{v}A\0")
    }),
    (
        r#"X=b; printf '%s\0' "$X{ITEM.x}" $X{ITEM.x} "${X}{ITEM.x}""#,
        |v| format!("b{v}\0b{v}\0b{v}\0"),
    ),
    (r#"X={ITEM.x}; printf '%s\0' "$X""#, |v| format!("{v}\0")),
    (r"printf '%s\0' --opt={ITEM.x}", |v| format!("--opt={v}\0")),
    (r#"printf '%s\0' "$(printf '%s.' {ITEM.x})""#, |v| {
        format!("{v}.\0")
    }),
    (
        r#"printf '%s\0' "$(printf '%s.' "<{ITEM.x}>")" {ITEM.x}"#,
        |v| format!("<{v}>.\0{v}\0"),
    ),
    ("# {ITEM.x} it's\nprintf '%s' ok", |_| "ok".to_owned()),
    ("printf '%s' ok # {ITEM.x}", |_| "ok".to_owned()),
    ("cat <<EOF\n[{ITEM.x}]\n${UNSET_}\nEOF\nprintf end", |v| {
        format!("[{v}]\n\nend")
    }),
    ("cat <<EOF\n{ITEM.x}\nEOF", |v| format!("{v}\n")),
    ("cat <<EOF\nE{ITEM.x}\n{ITEM.x}OF\nEOF", |v| {
        format!("E{v}\n{v}OF\n")
    }),
    ("cat <<-EOF\n\t{ITEM.x}\n\tEOF\nprintf end", |v| {
        format!("{v}\nend")
    }),
    (
        "cat <<A - <<B\n{ITEM.x}\nA\n<{ITEM.x}>\nB\nprintf '%s' {ITEM.x}",
        |v| format!("<{v}>\n{v}"),
    ),
    (
        "printf '%s.' \"$(cat <<EOF\n{ITEM.x}.\nEOF\n)\" {ITEM.x}",
        |v| format!("{v}..{v}."),
    ),
    ("cat <<EOF; printf '%s' {ITEM.x}\nx\nEOF", |v| {
        format!("x\n{v}")
    }),
    ("cat <<< {ITEM.x}; cat <<<\"{ITEM.x}\"", |v| {
        format!("{v}\n{v}\n")
    }),
    (r#"a=({ITEM.x} "{ITEM.x}"); printf '%s\0' "${a[@]}""#, |v| {
        format!("{v}\0{v}\0")
    }),
    (
        r#"case {ITEM.x} in "{ITEM.x}") printf ok;; *) printf no;; esac"#,
        |_| "ok".to_owned(),
    ),
    (r#"[[ {ITEM.x} == "{ITEM.x}" ]] && printf ok"#, |_| {
        "ok".to_owned()
    }),
    (
        r#"f() { printf '%s\0' "$@"; }; if true; then (f {ITEM.x}); fi"#,
        |v| format!("{v}\0"),
    ),
    (
        r#"for i in {ITEM.x}; do printf '%s\0' "$i" $((1<<2)); done"#,
        |v| format!("{v}\04\0"),
    ),
    (
        r#"printf '%s\0' {ITEM.x} | { read -r -d '' y; printf '%s\0' "$y"; }"#,
        |v| format!("{v}\0"),
    ),
];

const VALUES: &[&str] = &[
    "",
    "plain",
    "two words",
    " lead and trail ",
    "'",
    "''",
    "\"",
    "\\",
    "\\\\",
    "a\\",
    "\\'",
    "$HOME",
    "${HOME}",
    "$(touch pwned)",
    "`touch pwned`",
    "';touch pwned;'",
    "\";touch pwned;\"",
    "\n",
    "a\nb",
    "\nEOF\n",
    "EOF",
    "OF",
    "\tEOF",
    "\nA\ntouch pwned\n",
    "*",
    "?",
    "[a-z]*",
    "~",
    "-n",
    "-e \\t",
    "--",
    "!x",
    "!!",
    "é💥\u{301}",
    "{a,b}",
    "{ITEM.x}",
    "{{ITEM}}",
    "%s%d",
    ")",
    "))",
    "}",
    "esac",
    "#",
    "a #b",
    "\r\n",
    "\t",
    "\u{1}\u{7f}",
    "a=b",
    "$'x'",
    "\\\n",
    "x\\\ny",
    "\n\n",
    "<<EOF",
    "& |",
    ";",
    "_+}",
    "\u{feff}",
];

#[test]
fn values_arrive_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    for (template, expected) in TEMPLATES {
        let plan = plan(template).unwrap_or_else(|problems| panic!("{template}:\n{problems}"));
        for value in VALUES {
            // What `read -d ''` strips and `<<<` adds is the shell's; only `read` would hide it.
            if template.contains("read ") && value.trim() != *value {
                continue;
            }
            let command = filled(&plan, value).unwrap();
            let output = bash(&command, dir.path());
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                expected(value),
                "of {template:?} with {value:?}: {command}\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    assert!(!dir.path().join("pwned").exists(), "a value ran");
}

#[test]
fn a_quoted_here_document_takes_what_does_not_end_it() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan("cat <<'EOF'\nE{ITEM.x}\nEOF\nprintf end").unwrap();
    for value in VALUES {
        match filled(&plan, value) {
            Ok(command) => {
                let output = bash(&command, dir.path());
                assert_eq!(
                    String::from_utf8_lossy(&output.stdout),
                    format!("E{value}\nend")
                );
            }
            Err(error) => {
                let ends = format!("E{value}").split('\n').any(|line| line == "EOF");
                assert!(ends, "{value:?} was refused: {error}");
            }
        }
    }
    assert!(filled(&plan, "OF").is_err() && filled(&plan, "x\nEOF").is_err());
}

#[test]
fn arithmetic_takes_whole_numbers_only() {
    let dir = tempfile::tempdir().unwrap();
    for template in [
        "printf '%s' $((5-{ITEM.x}))",
        "((y=5-{ITEM.x})); printf '%s' $y",
    ] {
        let plan = plan(template).unwrap();
        for (value, expected) in [("3", "2"), ("-3", "8"), ("08", "-3")] {
            let output = bash(&filled(&plan, value).unwrap(), dir.path());
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                expected,
                "of {template} {value}"
            );
        }
        for value in ["a[$(touch pwned)]", "", "1.5", "x", "1)) ; touch pwned"] {
            assert!(filled(&plan, value).is_err(), "{value:?} was taken");
        }
    }
    let plan = plan(r#"[[ "{ITEM.x}" -gt 3 ]] && printf yes"#).unwrap();
    assert_eq!(
        bash(&filled(&plan, "4").unwrap(), dir.path()).stdout,
        b"yes"
    );
    assert!(filled(&plan, "a[$(touch pwned)]").is_err());
}

#[test]
fn nul_is_refused_and_raw_is_raw() {
    assert!(filled(&plan("echo {ITEM.x}").unwrap(), "a\0b").is_err());
    assert_eq!(
        filled(&plan("echo {ITEM.x:raw} {{ITEM.x}}").unwrap(), "a b").unwrap(),
        "echo a b {ITEM.x}"
    );
}

/// Pieces of bash that a scanner of quotes gets wrong easily. None of them can make `pwned`.
const PIECES: &[&str] = &[
    "{ITEM.x}",
    "\"",
    "\"",
    "'",
    "'",
    "`",
    "\\",
    "$",
    "$(",
    ")",
    "(",
    "((",
    "))",
    "$((",
    "${",
    "${y:-",
    "}",
    "$'",
    "$\"",
    "$[",
    "]",
    "[",
    " a[",
    "]=1 ",
    "[[ ",
    " ]]",
    " -eq ",
    "\n",
    "\n",
    " ",
    " ",
    "<<EOF",
    "<<'EOF'",
    "<<-E",
    "\nEOF\n",
    "\nE\n",
    "<<< ",
    "#",
    " # it's",
    "case x in ",
    "x) ",
    ";; ",
    "esac",
    "echo ",
    "echo ",
    ": ",
    "; ",
    " && ",
    "| cat ",
    "x",
    "y=",
    "$y",
    "$#",
    "$$",
    "if ",
    "then ",
    "fi",
    "do ",
    "done",
    "{ ",
    " }",
    "<(",
    "!",
    "\t",
    "\\\n",
    "for i in ",
    "((i=",
    "{a,b}",
    "é",
    "💥",
];

const ATTACKS: &[&str] = &[
    "$(touch pwned)",
    "`touch pwned`",
    "';touch pwned;'",
    "\";touch pwned;\"",
    "'\"`;touch pwned;\n touch pwned\n",
    "\ntouch pwned\n",
    "\nEOF\ntouch pwned\n",
    "\nE\ntouch pwned\n",
    ");touch pwned;(",
    "};touch pwned;{",
    "a[$(touch pwned)]",
    "x[$(touch pwned)]=1",
    "]=$(touch pwned)",
    "\\';touch pwned;'",
    "1 ]]; touch pwned; [[ 1",
    "-eq 1 ]]; touch pwned",
    "| touch pwned;",
    "#\ntouch pwned #",
    "EOF",
    "${y:=$(touch pwned)}",
    "<(touch pwned)",
];

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("RIGOR_QUOTING_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(150),
        ..ProptestConfig::default()
    })]

    /// Whatever the command is: it is refused, or no value runs in it.
    #[test]
    fn no_value_runs(
        before in prop::collection::vec(prop::sample::select(PIECES), 0..8),
        after in prop::collection::vec(prop::sample::select(PIECES), 0..8),
        attack in prop::sample::select(ATTACKS),
    ) {
        let template = format!("{}{{ITEM.x}}{}", before.concat(), after.concat());
        let Ok(plan) = plan(&template) else { return Ok(()) };
        let Ok(command) = filled(&plan, attack) else { return Ok(()) };
        let dir = tempfile::tempdir().unwrap();
        let output = Command::new("timeout")
            .args(["5", "bash", "--noprofile", "--norc", "-c", &command])
            .current_dir(dir.path())
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        prop_assert!(
            !dir.path().join("pwned").exists(),
            "{template:?} ran {attack:?}: {command}\n{}", String::from_utf8_lossy(&output.stderr)
        );
    }

    /// No text is too strange to be scanned.
    #[test]
    fn any_command_is_read(text in "([^\0{}]|[\"'`$(){}\\\\\n<#\\[]){0,40}", at in 0usize..40) {
        let cut = text.char_indices().nth(at).map_or(text.len(), |(at, _)| at);
        let template = format!("{}{{ITEM.x}}{}", &text[..cut], &text[cut..]);
        if let Ok(plan) = plan(&template) {
            let _ = filled(&plan, "1");
        }
    }

    /// Any text at all, in the places where commands have values.
    #[test]
    fn any_value_arrives(value in "[^\0]{0,20}") {
        let dir = tempfile::tempdir().unwrap();
        let template = "printf '%s\\0' {ITEM.x} \"{ITEM.x}\" '{ITEM.x}' \"$(printf '%s.' \"{ITEM.x}\")\"; cat <<EOF\n{ITEM.x}\nEOF";
        let command = filled(&plan(template).unwrap(), &value).unwrap();
        let expected = format!("{value}\0{value}\0{value}\0{value}.\0{value}\n");
        prop_assert_eq!(bash(&command, dir.path()).stdout, expected.as_bytes());
    }
}
