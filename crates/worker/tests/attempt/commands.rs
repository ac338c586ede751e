//! What a command does, and what is recorded of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rigor_exec::finish;
use rigor_queue::lane::Lane;
use rigor_queue::record::{FailureKind, Outcome};
use rigor_queue::records;
use rigor_queue::rig::Place;
use rigor_queue::task::Item;

use crate::stage::{AGENT, BATCH, Stage, failure, until};

#[test]
fn success_is_recorded_and_moved_to_complete() {
    let stage = Stage::new();
    let running = stage.start(&stage.command("echo out; echo err >&2"));
    let (name, nonce) = (running.name, running.nonce.clone());
    let record = stage.settle(running);
    assert_eq!(record.outcome, Outcome::Succeeded);
    assert_eq!(
        (record.exit_code, record.signal, record.attempt),
        (Some(0), None, 1)
    );
    assert_eq!((record.nonce, record.agent.as_str()), (Some(nonce), AGENT));
    assert_eq!((record.output_bytes, record.output_dropped), (8, 0));
    assert!(
        record
            .started
            .is_some_and(|started| started <= record.ended)
    );
    assert!(record.peaks.rss_mb.is_some_and(|mb| mb > 0) && record.peaks.cpu_ms.is_some());
    let record = records::read(&stage.rig, BATCH, name.id, 1)
        .expect("read")
        .expect("valid");
    assert_eq!(stage.output(&record), "out\nerr\n");
    assert_eq!(
        finish(&stage.rig, AGENT, &name, &record).expect("moved"),
        Lane::Complete
    );
    assert!(stage.rig.path(Place::Complete(BATCH), &name).exists());
    assert_eq!(stage.rig.count(Place::Processing(AGENT)).expect("count"), 0);
}

#[test]
fn failures_say_why_with_numbers() {
    let stage = Stage::new();
    let running = stage.start(&stage.command("echo the cause; exit 3"));
    let name = running.name;
    let record = stage.settle(running);
    let (kind, reason) = failure(&record);
    assert_eq!((kind, record.exit_code), (FailureKind::ExitCode, Some(3)));
    assert!(
        reason.starts_with("exit code 3 after ") && reason.ends_with(": the cause"),
        "{reason}"
    );
    assert_eq!(
        finish(&stage.rig, AGENT, &name, &record).expect("moved"),
        Lane::Retry
    );
    assert!(stage.rig.path(Place::Retry(BATCH), &name).exists());

    let stage = Stage::new();
    let record = stage.run(&stage.command("kill -SEGV $$"));
    let (kind, reason) = failure(&record);
    assert_eq!(
        (kind, record.exit_code, record.signal),
        (FailureKind::Signal, None, Some(11))
    );
    assert!(reason.contains("signal 11 (SIGSEGV)"), "{reason}");
}

#[test]
fn a_command_that_ignores_sigterm_is_killed_after_the_grace() {
    let mut stage = Stage::new();
    stage.grace = Duration::from_millis(300);
    let mut spec = stage.command("trap '' TERM; echo $$ > pid; while :; do sleep 0.05; done");
    spec.timeout_s = Some(1);
    let started = Instant::now();
    let record = stage.run(&spec);
    let (kind, reason) = failure(&record);
    assert_eq!((kind, record.signal), (FailureKind::Timeout, Some(9)));
    assert_eq!(
        reason,
        "timeout: ran 1s, limit 1s; SIGTERM did not end it within 0.3s, killed"
    );
    assert!(record.duration_ms >= 1300 && started.elapsed() < Duration::from_secs(15));
    assert!(!crate::stage::lives(stage.pid_in("pid")));
}

#[test]
fn a_timeout_lets_the_command_clean_up() {
    let stage = Stage::new();
    let mut spec = stage.command("trap 'echo cleaned; exit 7' TERM; while :; do sleep 0.05; done");
    spec.timeout_s = Some(1);
    let record = stage.run(&spec);
    assert_eq!(
        failure(&record),
        (FailureKind::Timeout, "timeout: ran 1s, limit 1s")
    );
    assert_eq!(record.exit_code, Some(7));
    assert!(stage.output(&record).ends_with("cleaned\n"));
}

#[test]
fn a_silent_command_is_ended_and_a_talking_one_is_not() {
    let stage = Stage::new();
    let mut spec = stage.command("for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.2; done; sleep 60");
    spec.kill_if_silent_s = Some(1);
    let record = stage.run(&spec);
    let (kind, reason) = failure(&record);
    assert_eq!(kind, FailureKind::Silent);
    assert!(
        reason.starts_with("silent: printed nothing for 1s (kill_if_silent 1s), ran "),
        "{reason}"
    );
    assert!(
        stage.output(&record).ends_with("8\n"),
        "it was ended while it talked"
    );
}

#[test]
fn sigterm_to_the_worker_aborts_with_the_agents_reason() {
    let stage = Stage::new();
    let running = stage.start(&stage.command("echo $$ > pid; sleep 60"));
    let pid = stage.pid_in("pid");
    running
        .terminate("cancelled by the operator")
        .expect("sent");
    let record = stage.settle(running);
    assert_eq!(
        failure(&record),
        (FailureKind::Aborted, "cancelled by the operator")
    );
    assert_eq!(record.signal, Some(15));
    assert!(!crate::stage::lives(pid));
    let stored = records::read(&stage.rig, BATCH, record.id, 1).expect("read");
    assert_eq!(stored, Some(record));
}

#[test]
fn much_output_keeps_its_beginning_and_its_end_in_flat_memory() {
    let mut stage = Stage::new();
    stage.output_cap_bytes = 1_000_000;
    // 100 MB and a bit.
    let running =
        stage.start(&stage.command("echo $PPID > worker; seq -f 'line %015.0f' 1 5000000"));
    let worker = stage.pid_in("worker");
    let mut most_kib = 0;
    let mut longest = 0;
    let output = stage.rig.output_path(BATCH, running.spec.id, 1);
    until("the command ends", || {
        let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap_or_default();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = kib.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok());
        most_kib = most_kib.max(kib.unwrap_or(0_u64));
        longest = longest.max(fs::metadata(&output).map_or(0, |meta| meta.len()));
        kib.is_none()
    });
    let record = stage.settle(running);
    assert_eq!(
        (record.outcome.clone(), record.output_bytes),
        (Outcome::Succeeded, 105_000_000)
    );
    assert!(
        most_kib > 0 && most_kib < 20_000,
        "the worker used {most_kib} KiB"
    );
    assert!(longest <= 1_700_000, "the file grew to {longest} bytes");
    let text = stage.output(&record);
    assert!(
        text.len() <= 1_000_200 && text.len() > 990_000,
        "{} bytes are kept",
        text.len()
    );
    assert!(text.starts_with("line 000000000000001\nline 000000000000002\n"));
    assert!(text.ends_with("line 000000004999999\nline 000000005000000\n"));
    let marker = format!(
        "[rigor] {:>20} bytes of output left out here",
        record.output_dropped
    );
    assert!(record.output_dropped > 103_900_000 && text.contains(&marker));
}

#[test]
fn output_is_there_while_the_command_runs() {
    let stage = Stage::new();
    let running = stage.start(&stage.command("echo first; until [ -e go ]; do sleep 0.01; done"));
    let output = stage.rig.output_path(BATCH, running.spec.id, 1);
    until("the first line", || {
        fs::read(&output).is_ok_and(|bytes| bytes == b"first\n")
    });
    fs::write(stage.file("go"), "").expect("write");
    assert_eq!(stage.settle(running).outcome, Outcome::Succeeded);
}

#[test]
fn no_output_makes_no_file() {
    let stage = Stage::new();
    let record = stage.run(&stage.command("true"));
    assert_eq!(
        (record.outcome.clone(), record.output_bytes),
        (Outcome::Succeeded, 0)
    );
    assert!(!stage.output_path(&record).exists());
}

#[test]
fn what_is_required_and_produced_is_checked() {
    let stage = Stage::new();
    let mut spec = stage.command("touch ran");
    spec.requires = vec!["in/*.txt".to_owned(), "plan.md".to_owned()];
    let record = stage.run(&spec);
    let expected = (
        FailureKind::MissingRequirement,
        "required and not there: in/*.txt, plan.md",
    );
    assert_eq!(failure(&record), expected);
    assert!(!stage.file("ran").exists());

    let stage = Stage::new();
    fs::write(stage.file("plan.md"), "").expect("write");
    let mut spec = stage.command("mkdir out; touch out/a.json");
    spec.requires = vec!["*.md".to_owned()];
    spec.produces = vec!["out/*.json".to_owned(), "out/b.json".to_owned()];
    let record = stage.run(&spec);
    let (kind, reason) = failure(&record);
    assert_eq!(
        (kind, record.exit_code),
        (FailureKind::MissingProduct, Some(0))
    );
    assert!(reason.ends_with("did not produce out/b.json"), "{reason}");

    let stage = Stage::new();
    let mut spec = stage.command("mkdir out; touch out/a.json");
    spec.produces = vec!["out/*.json".to_owned()];
    assert_eq!(stage.run(&spec).outcome, Outcome::Succeeded);
}

#[test]
fn the_environment_is_what_the_plan_says() {
    let mut stage = Stage::new();
    stage.env = vec![
        ("CUDA_VISIBLE_DEVICES".to_owned(), "GPU-7".to_owned()),
        ("HF_TOKEN".to_owned(), "s3cret".to_owned()),
        ("A".to_owned(), "agent".to_owned()),
        ("B".to_owned(), "agent".to_owned()),
        ("C".to_owned(), "agent".to_owned()),
    ];
    fs::create_dir_all(stage.file("sub/dir")).expect("mkdir");
    fs::create_dir_all(stage.file("venv/bin")).expect("mkdir");
    for program in ["python", "tool"] {
        let path = stage.file("venv/bin").join(program);
        fs::write(&path, "#!/bin/sh\necho from the venv\n").expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    fs::write(stage.file("vars"), "# variables\nB=file\nexport C='file'\n").expect("write");
    let mut spec = stage.command(
        "pwd; tool; echo $VIRTUAL_ENV; echo $A $B $C $HF_TOKEN $CUDA_VISIBLE_DEVICES; \
         echo $RIGOR_TASK_ID $RIGOR_ATTEMPT $RIGOR_BATCH_ID $RIGOR_AGENT; echo $RIGOR_PLAN_DIR $RIGOR_BATCH_DIR; \
         echo \"$RIGOR_ITEM\"; readlink /proc/$$/fd/0; readlink /proc/$$/fd/* | grep tasks/; true",
    );
    spec.workdir = Some("sub/dir".to_owned());
    spec.venv = Some("venv".to_owned());
    spec.env_file = Some("vars".to_owned());
    spec.env.insert("C".to_owned(), "task".to_owned());
    spec.secrets = vec!["HF_TOKEN".to_owned()];
    let value = serde_json::json!({"id": "x", "text": "a \"b\" $(c)"});
    spec.item = Some(Item {
        id: "x".to_owned(),
        value: value.clone(),
        members: Vec::new(),
    });
    let record = stage.run(&spec);
    assert_eq!(record.outcome, Outcome::Succeeded, "{record:?}");
    let output = stage.output(&record);
    let lines: Vec<&str> = output.lines().collect();
    let plan = stage.plan.display();
    assert_eq!(lines[0], format!("{plan}/sub/dir"));
    assert_eq!(lines[1], "from the venv");
    assert_eq!(lines[2], format!("{plan}/venv"));
    assert_eq!(lines[3], "agent file task s3cret GPU-7");
    assert_eq!(lines[4], format!("{} 1 {BATCH} {AGENT}", spec.id));
    assert_eq!(lines[5], format!("{plan} {plan}/history/{BATCH}"));
    assert_eq!(lines[6], value.to_string());
    assert_eq!(lines[7], "/dev/null");
    assert_eq!(
        lines.len(),
        8,
        "the command inherited the task file: {output}"
    );
}

#[test]
fn what_cannot_be_set_up_is_named() {
    type Change = fn(&mut rigor_queue::task::TaskSpec);
    let cases: [(Change, &str); 8] = [
        (
            |spec| spec.workdir = Some("nowhere".to_owned()),
            "/nowhere: No such file",
        ),
        (
            |spec| spec.env_file = Some("no.env".to_owned()),
            "/no.env: No such file",
        ),
        (
            |spec| {
                spec.env_file = Some("gpu.env".to_owned());
            },
            "/gpu.env sets CUDA_VISIBLE_DEVICES, which only the agent sets",
        ),
        (
            |spec| {
                spec.env
                    .insert("RIGOR_COOKIE".to_owned(), "another's".to_owned());
            },
            "env sets RIGOR_COOKIE, which only the agent sets",
        ),
        (
            |spec| spec.venv = Some("no-venv".to_owned()),
            "/no-venv has no bin/python",
        ),
        (
            |spec| spec.secrets = vec!["NOT_GIVEN".to_owned()],
            "secret NOT_GIVEN was not handed over",
        ),
        (
            |spec| spec.conda = Some("./no-env".to_owned()),
            "is no conda environment",
        ),
        (
            |spec| {
                spec.env
                    .insert("PATH".to_owned(), "/nonexistent".to_owned());
                spec.conda = Some("science".to_owned());
            },
            "conda science: there is no `conda` on PATH",
        ),
    ];
    for (change, expected) in cases {
        let stage = Stage::new();
        fs::write(stage.file("gpu.env"), "CUDA_VISIBLE_DEVICES=0\n").expect("write");
        let mut spec = stage.command("touch ran");
        change(&mut spec);
        let record = stage.run(&spec);
        let (kind, reason) = failure(&record);
        assert_eq!(kind, FailureKind::Setup);
        assert!(reason.contains(expected), "{reason}");
        assert!(!stage.file("ran").exists());
    }
}

/// A stand-in for conda, which is told as much of the real one as is relied on: it refuses an
/// argument of several lines and replaces itself by the rest of its arguments.
#[test]
fn a_conda_environment_is_entered_by_conda_run() {
    let stage = Stage::new();
    fs::create_dir_all(stage.file("bin")).expect("mkdir");
    let conda = stage.file("bin/conda");
    let script = "#!/bin/bash\ncase \"$*\" in *$'\\n'*) echo newline; exit 9;; esac\n\
                  [ \"$1 $2 $3\" = 'run --no-capture-output -n' ] || exit 8\n\
                  export CONDA_DEFAULT_ENV=$4; shift 4; exec \"$@\"\n";
    fs::write(&conda, script).expect("write");
    fs::set_permissions(&conda, fs::Permissions::from_mode(0o755)).expect("chmod");
    let mut spec = stage.command("echo in $CONDA_DEFAULT_ENV\necho 'two  words'");
    let path = std::env::var("PATH").expect("PATH");
    spec.env.insert(
        "PATH".to_owned(),
        format!("{}:{path}", stage.file("bin").display()),
    );
    spec.conda = Some("science".to_owned());
    let record = stage.run(&spec);
    assert_eq!(record.outcome, Outcome::Succeeded, "{record:?}");
    assert_eq!(stage.output(&record), "in science\ntwo  words\n");
}

#[test]
fn a_command_longer_than_an_argument_can_be() {
    let stage = Stage::new();
    let command = format!("data='{}'\necho ${{#data}}", "x".repeat(300_000));
    let record = stage.run(&stage.command(&command));
    assert_eq!(record.outcome, Outcome::Succeeded, "{record:?}");
    assert_eq!(stage.output(&record), "300000\n");
}

#[test]
fn misuse_is_an_error_with_the_usage() {
    let output = std::process::Command::new(Path::new(env!("CARGO_BIN_EXE_worker")))
        .arg("--bogus")
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("--bogus") && said.contains("usage: worker"),
        "{said}"
    );
}

#[test]
fn the_executor_says_what_it_allows_at_debug_and_what_it_blocks_at_info() {
    const ALLOWED: &str = "(no permission file: everything is allowed)";
    const BLOCKED: &str = "(variables that only the agent sets)";
    for (level, says_allowed, says_blocked) in [
        ("debug", true, true),
        ("", false, true),
        ("ERROR", false, false),
    ] {
        let mut stage = Stage::new();
        stage.env = vec![("EXECUTOR_LOG_LEVEL".to_owned(), level.to_owned())];
        let mut spec = stage.command("echo out");
        spec.name = "fine".to_owned();
        let record = stage.run(&spec);
        let log = || {
            let path = stage.rig.logs_dir().join(format!("{AGENT}.log"));
            fs::read_to_string(path).expect("a log")
        };
        let line = format!(
            "[{AGENT}] DEBUG ALLOWED: {} (fine) - bash in {}: echo out {ALLOWED}\n",
            spec.id.short(),
            stage.plan.display()
        );
        assert_eq!(log().contains(&line), says_allowed, "{level}: {}", log());
        let shown = stage.output(&record);
        assert_eq!(shown.contains("[rigor] ALLOWED: "), says_allowed, "{shown}");
        assert!(shown.ends_with("out\n"), "{shown}");

        let mut spec = stage.command("true");
        spec.id = rigor_queue::name::TaskId::derive(BATCH, "u", None);
        spec.env.insert("RIGOR_COOKIE".into(), "mine".into());
        failure(&stage.run(&spec));
        let line = format!(
            "[{AGENT}] INFO  BLOCKED: {} (t) - env sets RIGOR_COOKIE, ",
            spec.id.short()
        );
        let log = log();
        assert_eq!(log.contains(&line), says_blocked, "{level}: {log}");
        assert_eq!(log.contains(BLOCKED), says_blocked, "{level}: {log}");
    }
}
