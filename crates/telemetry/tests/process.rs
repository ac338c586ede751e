//! Logging is set up once in a process, so each test runs a process of its own: this very
//! program, told by a variable which part to play.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rigor_telemetry::{Format, Level, Options, Scope, init, install_panic_hook, log_crash};

const PART: &str = "RIGOR_TELEMETRY_PART";
const LOG: &str = "RIGOR_TELEMETRY_LOG";

/// Runs a part in a process with exactly these variables.
fn play(part: &str, log: Option<&Path>, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args([
        "the_part_that_is_played",
        "--exact",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command
        .env_clear()
        .env("TZ", "UTC")
        .env(PART, part)
        .envs(variables.iter().copied());
    if let Some(log) = log {
        command.env(LOG, log);
    }
    command.output().expect("this program can be run")
}

#[test]
#[ignore = "run by the other tests, in processes of their own"]
fn the_part_that_is_played() {
    let part = std::env::var(PART).unwrap();
    let log_file = std::env::var_os(LOG).map(Into::into);
    let options = Options {
        log_file,
        level_variables: &["GPU_LOG_LEVEL", "WORKER_LOG_LEVEL"],
        scopes: &[Scope {
            target: "rigor_exec",
            level_variables: &["EXECUTOR_LOG_LEVEL"],
        }],
        ..Options::new("gpu-1")
    };
    match part.as_str() {
        "speak" => {
            let _guard = init(&options).unwrap();
            tracing::debug!(target: "rigor_queue", "a detail");
            tracing::info!(target: "gpu_agent_bin", task = "d5de16d700000000", attempt = 2, "Claimed {}", "d5de16d7");
            tracing::warn!(target: "rigor_gpu", "hot");
            tracing::info!(target: "somebody_else", "chatter");
            tracing::warn!(target: "somebody_else", "their warning");
            tracing::debug!(target: "rigor_exec::rules", "ALLOWED");
            tracing::info!(target: "rigor_exec::rules", "BLOCKED");
        }
        "json" => {
            let _guard = init(&Options {
                format: Some(Format::Json),
                ..options
            })
            .unwrap();
            tracing::info!(target: "rigor_queue", task = "d5de16d700000000", attempt = 2, "Claimed");
        }
        "change" => {
            let guard = init(&options).unwrap();
            // The same place in the code before and after: its interest must not be remembered.
            let detail = |word: &str| tracing::debug!(target: "rigor_queue", "detail {word}");
            detail("one");
            guard.set_level(Level::Debug);
            assert_eq!(guard.levels().get(), Level::Debug);
            detail("two");
            let levels = guard.levels();
            std::thread::spawn(move || levels.set(Level::Error))
                .join()
                .unwrap();
            detail("three");
            tracing::warn!(target: "rigor_queue", "quiet");
            assert!(guard.levels().set_scope("rigor_exec", Level::Debug));
            assert!(!guard.levels().set_scope("rigor_exce", Level::Debug));
            tracing::debug!(target: "rigor_exec", "executor");
        }
        "panic" => {
            let _guard = init(&options).unwrap();
            install_panic_hook("GPU agent");
            let _ = std::thread::Builder::new()
                .name("claims".into())
                .spawn(|| panic!("no {}", "luck"))
                .unwrap()
                .join();
        }
        "abort" => {
            // Nobody drops the guard.
            std::mem::forget(init(&options).unwrap());
            install_panic_hook("GPU agent");
            let _ = std::panic::catch_unwind(|| panic!("at once"));
            std::process::abort();
        }
        "error" => {
            let _guard = init(&options).unwrap();
            let cause = std::io::Error::other("the disk is on fire");
            let error = Outer(cause);
            log_crash("GPU agent", &error, &std::backtrace::Backtrace::disabled());
        }
        "twice" => {
            let _guard = init(&options).unwrap();
            let error = init(&Options::new("other")).err().unwrap();
            tracing::info!(target: "rigor", "{error}");
        }
        "flood" => {
            let guard = init(&options).unwrap();
            for index in 0..20_000 {
                tracing::warn!(target: "rigor", "line {index}");
            }
            assert!(guard.flush(Duration::from_secs(60)));
            std::process::abort();
        }
        other => panic!("no part is named {other}"),
    }
}

#[derive(Debug)]
struct Outer(std::io::Error);

impl std::fmt::Display for Outer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cannot go on")
    }
}

impl std::error::Error for Outer {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// Lines without their `[timestamp] `, after checking that each has one with this offset.
#[track_caller]
fn untimed(text: &str, offset: &str) -> Vec<String> {
    let untimed = |line: &str| {
        let (time, rest) = line
            .strip_prefix('[')
            .and_then(|line| line.split_once("] "))
            .unwrap_or_else(|| panic!("{line:?}"));
        assert!(
            time.len() == 29 && time.ends_with(offset) && &time[19..20] == ".",
            "{time}"
        );
        rest.to_owned()
    };
    text.lines().map(untimed).collect()
}

/// Plays the part with a log file and compares its lines.
#[track_caller]
fn logs(part: &str, variables: &[(&str, &str)], expected: &[&str]) {
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("logs/gpu-1.log");
    let output = play(part, Some(&log), variables);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    let text = std::fs::read_to_string(&log).expect("the log was written");
    assert_eq!(untimed(&text, "+00:00"), expected);
    // stderr is no terminal here: the same lines in the same form.
    assert_eq!(stderr, text);
}

#[test]
fn lines_have_their_form_and_others_are_heard_from_warning_on() {
    logs(
        "speak",
        &[],
        &[
            "[gpu-1] INFO  Claimed d5de16d7",
            "[gpu-1] WARNING hot",
            "[gpu-1] WARNING their warning",
            "[gpu-1] INFO  BLOCKED",
        ],
    );
}

#[test]
fn levels_come_from_the_environment_each_for_itself() {
    logs(
        "speak",
        &[
            ("WORKER_LOG_LEVEL", "Warning"),
            ("EXECUTOR_LOG_LEVEL", "debug"),
        ],
        &[
            "[gpu-1] WARNING hot",
            "[gpu-1] WARNING their warning",
            "[gpu-1] DEBUG ALLOWED",
            "[gpu-1] INFO  BLOCKED",
        ],
    );
    logs(
        "speak",
        &[
            ("GPU_LOG_LEVEL", "debug"),
            ("WORKER_LOG_LEVEL", "error"),
            ("EXECUTOR_LOG_LEVEL", "error"),
        ],
        &[
            "[gpu-1] DEBUG a detail",
            "[gpu-1] INFO  Claimed d5de16d7",
            "[gpu-1] WARNING hot",
            "[gpu-1] WARNING their warning",
        ],
    );
}

#[test]
fn a_bad_level_is_named_once() {
    logs(
        "error",
        &[("GPU_LOG_LEVEL", "loud")],
        &[
            "[gpu-1] WARNING GPU_LOG_LEVEL: \"loud\" is no level: use DEBUG, INFO, WARNING or ERROR; INFO is used",
            "[gpu-1] ERROR GPU agent crashed: cannot go on: the disk is on fire",
        ],
    );
}

#[test]
fn json_has_the_fields() {
    let output = play("json", None, &[]);
    let line: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(line["message"], "Claimed");
    assert_eq!(line["task"], "d5de16d700000000");
    assert_eq!(line["attempt"], 2);
    assert_eq!(
        (&line["component"], &line["level"]),
        (&"gpu-1".into(), &"INFO".into())
    );
}

#[test]
fn levels_change_at_run_time() {
    logs(
        "change",
        &[],
        &["[gpu-1] DEBUG detail two", "[gpu-1] DEBUG executor"],
    );
}

#[test]
fn a_panic_is_logged_with_its_backtrace_below() {
    for part in ["panic", "abort"] {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("gpu-1.log");
        play(part, Some(&log), &[]);
        let text = std::fs::read_to_string(&log).unwrap();
        let mut lines = text.lines();
        let first = untimed(lines.next().unwrap(), "+00:00").remove(0);
        let start = match part {
            "panic" => "[gpu-1] ERROR GPU agent crashed: no luck (thread claims, ",
            _ => "[gpu-1] ERROR GPU agent crashed: at once (thread ",
        };
        assert!(first.starts_with(start), "{first}");
        let below: Vec<&str> = lines.collect();
        assert!(below.iter().all(|line| line.starts_with("    ")), "{text}");
        assert!(
            below
                .iter()
                .any(|line| line.contains("process::the_part_that_is_played")),
            "{text}"
        );
    }
}

#[test]
fn a_fatal_error_is_logged_with_its_causes() {
    logs(
        "error",
        &[],
        &["[gpu-1] ERROR GPU agent crashed: cannot go on: the disk is on fire"],
    );
}

#[test]
fn init_is_called_once() {
    logs(
        "twice",
        &[],
        &["[gpu-1] INFO  logging is set up already: init is called once in a process"],
    );
}

#[test]
fn after_a_flush_nothing_is_lost_even_by_an_abort() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("gpu-1.log");
    play("flood", Some(&log), &[]);
    let text = std::fs::read_to_string(&log).unwrap();
    let lines = untimed(&text, "+00:00");
    assert_eq!(lines.len(), 20_000);
    assert!(
        lines
            .iter()
            .enumerate()
            .all(|(index, line)| *line == format!("[gpu-1] WARNING line {index}"))
    );
}

#[test]
fn times_are_local_and_utc_where_the_zone_is_unknown() {
    for (zone, offset) in [
        // A rule needs no database.
        ("XYZ-5:30", "+05:30"),
        ("Nowhere/Land", "+00:00"),
        (":/nonexistent/zone", "+00:00"),
    ] {
        let output = play("speak", None, &[("TZ", zone)]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(untimed(&text, offset).len(), 4, "{zone}: {text}");
    }
}

#[test]
fn a_log_that_cannot_be_opened_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        log_file: Some(dir.path().to_owned()),
        ..Options::new("gpu-1")
    };
    let message = init(&options).err().unwrap().to_string();
    assert!(
        message.starts_with(&format!("cannot open the log {}: ", dir.path().display())),
        "{message}"
    );
}
