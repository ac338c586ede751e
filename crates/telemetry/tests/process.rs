//! Logging is set up once in a process, so each test runs a process of its own: this very
//! program, told by a variable which part to play.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rigor_telemetry::{Format, Level, Options, Scope, init, install_panic_hook, log_crash};

const PART: &str = "RIGOR_TELEMETRY_PART";
const LOG: &str = "RIGOR_TELEMETRY_LOG";
/// The size at which the log of the part `volume` is rotated.
const MEGABYTE: u64 = 1_000_000;
/// Lines of that part: some six megabytes.
const VOLUME: usize = 40_000;
/// Lines before the panic of the part `abort`.
const BEFORE_ABORT: usize = 3000;
/// Warnings of the part `trouble`: more than a pipe takes, and more than may wait of other lines.
const TROUBLE: usize = 10_000;

/// Runs a part in a process with exactly these variables.
fn play(part: &str, log: Option<&Path>, variables: &[(&str, &str)]) -> Output {
    let mut command = player(part, log, variables);
    command.output().expect("this program can be run")
}

fn player(part: &str, log: Option<&Path>, variables: &[(&str, &str)]) -> Command {
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
    command
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
            tracing::info!(target: "rigor_queue", task = %"d5de16d700000000", attempt = 2,
                agent = "gpu-1", batch = %"b-1", "Claimed meta task: d5de16d7 (load_llm)");
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
            // The crash has to wait for these, or it is lost with them.
            for index in 0..BEFORE_ABORT {
                tracing::warn!(target: "rigor", "line {index}");
            }
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
        "volume" => {
            let _guard = init(&Options {
                max_size_bytes: MEGABYTE,
                keep: 3,
                ..options
            })
            .unwrap();
            // A WARNING is never dropped, however fast they come.
            for index in 0..VOLUME {
                tracing::warn!(target: "rigor", "{index:07} {:100}", "of many");
            }
        }
        "trouble" => {
            let _guard = init(&options).unwrap();
            let started = Instant::now();
            for index in 0..TROUBLE {
                tracing::warn!(target: "rigor", "warning {index}");
            }
            let said = started.elapsed();
            assert!(said < Duration::from_secs(10), "waited {said:?}");
            // What the test waits for before it mends the disk.
            println!("all is said");
            let mut word = String::new();
            std::io::stdin().read_line(&mut word).unwrap();
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
        "twice",
        &[("GPU_LOG_LEVEL", "loud")],
        &[
            "[gpu-1] WARNING GPU_LOG_LEVEL: \"loud\" is no level: use DEBUG, INFO, WARNING or ERROR; INFO is used",
            "[gpu-1] INFO  logging is set up already: init is called once in a process",
        ],
    );
}

#[test]
fn json_has_the_fields() {
    let output = play("json", None, &[]);
    let line: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    let timestamp = line["timestamp"].as_str().unwrap();
    assert!(timestamp.ends_with("+00:00"), "{timestamp}");
    assert_eq!(
        line,
        serde_json::json!({
            "timestamp": timestamp,
            "level": "INFO",
            "component": "gpu-1",
            "message": "Claimed meta task: d5de16d7 (load_llm)",
            "task": "d5de16d700000000",
            "attempt": 2,
            "agent": "gpu-1",
            "batch": "b-1",
        })
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
        let before = if part == "abort" { BEFORE_ABORT } else { 0 };
        let mut lines = text.lines().skip(before);
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
fn a_fatal_error_is_logged_with_its_causes_and_a_backtrace_below() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("gpu-1.log");
    play("error", Some(&log), &[]);
    let text = fs::read_to_string(&log).unwrap();
    let (first, below) = text.split_once('\n').unwrap();
    assert_eq!(
        untimed(first, "+00:00"),
        ["[gpu-1] ERROR GPU agent crashed: cannot go on: the disk is on fire"]
    );
    assert!(
        below.lines().all(|line| line.starts_with("    ")),
        "one event: {text}"
    );
    assert!(below.contains("process::the_part_that_is_played"), "{text}");
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

/// The number that each line of the part `volume` begins with.
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
fn volume(path: &Path) -> Vec<usize> {
    let text = fs::read_to_string(path).unwrap();
    untimed(&text, "+00:00")
        .iter()
        .map(|line| {
            let number = line.strip_prefix("[gpu-1] WARNING ").unwrap();
            number[..7].parse().unwrap()
        })
        .collect()
}

#[test]
fn a_log_is_rotated_by_size_and_nothing_is_lost_in_between() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("gpu-1.log");
    let output = play("volume", Some(&log), &[]);
    assert!(output.status.success());
    let mut names: Vec<String> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = ["gpu-1.log", "gpu-1.log.1", "gpu-1.log.2", "gpu-1.log.3"];
    assert_eq!(names, expected, "exactly three are kept");
    let mut numbers = Vec::new();
    for name in expected.iter().rev() {
        let path = dir.path().join(name);
        let size = fs::metadata(&path).unwrap().len();
        assert!(size <= MEGABYTE, "{name} has {size} bytes");
        // Set aside when the next line did not fit, and not before.
        assert!(
            *name == "gpu-1.log" || size > MEGABYTE - 1000,
            "{name} has {size} bytes"
        );
        numbers.extend(volume(&path));
    }
    // From the oldest that is kept to the last that was said.
    let all: Vec<usize> = (numbers[0]..VOLUME).collect();
    assert!(numbers[0] > 0 && numbers == all, "from {}", numbers[0]);
}

/// Plays `trouble` on a log that cannot be written, mends it once all is said, and expects each warning in
/// order in what `mend` says holds the lines.
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
fn warnings_survive(log: &Path, mend: impl FnOnce() -> PathBuf) {
    let mut child = player("trouble", Some(log), &[])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("all is said") {
        line.clear();
        let read = stdout.read_line(&mut line).unwrap();
        assert!(read > 0, "saying it failed or waited for the disk");
    }
    let written = mend();
    let deadline = Instant::now() + Duration::from_secs(20);
    let last = format!("WARNING warning {}\n", TROUBLE - 1);
    let text = loop {
        let text = fs::read_to_string(&written).unwrap_or_default();
        if text.contains(&last) {
            break text;
        }
        assert!(Instant::now() < deadline, "the last warning never came");
        std::thread::sleep(Duration::from_millis(20));
    };
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(child.wait().unwrap().success());
    let lines = untimed(&text, "+00:00");
    let warnings: Vec<&String> = lines
        .iter()
        .filter(|line| line.starts_with("[gpu-1] WARNING warning "))
        .collect();
    assert_eq!(warnings.len(), TROUBLE);
    assert!(
        warnings
            .iter()
            .enumerate()
            .all(|(index, line)| line.ends_with(&format!(" {index}")))
    );
}

#[test]
fn a_full_disk_holds_nobody_up_and_loses_no_warning() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("gpu-1.log");
    // Takes no byte: "no space left on device".
    symlink("/dev/full", &log).unwrap();
    warnings_survive(&log, || {
        fs::remove_file(&log).unwrap();
        log.clone()
    });
    // The program is at its end, so what it said about the trouble is written too.
    let text = fs::read_to_string(&log).unwrap();
    assert!(
        text.contains("WARNING the log could not be written for "),
        "it says so"
    );
}

#[test]
fn a_disk_that_hangs_holds_nobody_up_and_loses_no_warning() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("gpu-1.log");
    // A pipe that nobody reads takes 64 KiB, and then a write to it waits.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &log,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    // Keeps what is in the pipe when the program ends.
    let mut pipe = fs::File::options()
        .read(true)
        .write(true)
        .open(&log)
        .unwrap();
    let copy = dir.path().join("copy.log");
    let written = copy.clone();
    warnings_survive(&log, move || {
        std::thread::spawn(move || {
            let mut copy = fs::File::create(copy).unwrap();
            // Ends with this test's process: this end of the pipe is open for writing, too.
            let _ = std::io::copy(&mut pipe, &mut copy);
        });
        written
    });
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
