use std::path::PathBuf;
use std::time::Duration;

use super::*;

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A rig whose notices run `command` in bash.
    fn notifier(&self, command: &str, more: &str) -> Notifier {
        let text = format!(
            "[rig]\nname = \"garage\"\n[notify]\ncommand = '''{command}'''\n{more}\n\
             [secrets]\nHF_TOKEN = {{ env = \"CARGO_MANIFEST_DIR\" }}\n"
        );
        let config = Config::parse(&text, &self.path("rig.toml")).unwrap();
        Notifier::new(&config)
    }

    fn wait_for(&self, name: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match std::fs::read_to_string(self.path(name)) {
                Ok(text) => return text,
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => panic!("{name}: {error}"),
            }
        }
    }
}

fn dead(subject: &str) -> Notice {
    Notice {
        event: NotifyEvent::AgentDead,
        subject: subject.to_owned(),
        message: format!("Agent {subject} is dead\n"),
        details: json!({"agent": subject}),
    }
}

#[test]
fn the_command_gets_an_object_and_no_secrets() {
    let fixture = Fixture::new();
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    let command = "cat > new.$RIGOR_SUBJECT; env > env; mv new.$RIGOR_SUBJECT told.$RIGOR_SUBJECT";
    let mut notifier = fixture.notifier(command, "");
    let now = Instant::now();
    for _ in 0..3 {
        notifier.tell(dead("gpu-1"), now);
    }
    notifier.tell(dead("gpu-2"), now);
    let told: Value = serde_json::from_str(&fixture.wait_for("told.gpu-1")).unwrap();
    assert_eq!(told["schema"], 1);
    assert_eq!(told["event"], "agent_dead");
    assert_eq!(told["rig"], "garage");
    assert_eq!(told["subject"], "gpu-1");
    assert_eq!(told["message"], "Agent gpu-1 is dead ");
    assert_eq!(told["details"]["agent"], "gpu-1");
    assert_eq!(told["suppressed"], json!({}));
    let at: jiff::Timestamp = serde_json::from_value(told["at"].clone()).unwrap();
    assert!(jiff::Timestamp::now().duration_since(at).as_secs() < 60);
    let next: Value = serde_json::from_str(&fixture.wait_for("told.gpu-2")).unwrap();
    assert_eq!(next["suppressed"], json!({"agent_dead": 2}));
    let environment = fixture.wait_for("env");
    let has = |start: &str| environment.lines().any(|line| line.starts_with(start));
    assert!(has("RIGOR_EVENT=agent_dead") && has("RIGOR_MESSAGE=Agent gpu-2 is dead"));
    assert!(has(&format!("RIGOR_DIR={}", fixture.dir.path().display())));
    assert!(!has("CARGO_MANIFEST_DIR="), "{environment}");
}

#[test]
fn only_what_is_wanted_is_told() {
    let fixture = Fixture::new();
    let mut notifier = fixture.notifier("cat > got", "on = [\"gpu_idle\"]");
    let now = Instant::now();
    notifier.tell(dead("gpu-1"), now);
    notifier.rejected("b", "no tasks", now);
    let mut drained = Heartbeat::alive(1, jiff::Timestamp::now(), Health::Draining);
    drop(notifier);
    assert!(!fixture.path("got").exists());

    let mut notifier = fixture.notifier("cat > got", "");
    notifier.agent_gone("gpu-1", Some(&drained), "gone", now);
    drop(notifier);
    assert!(!fixture.path("got").exists(), "it was stopped");
    let mut notifier = fixture.notifier("cat > got", "");
    drained.health = Health::Healthy;
    notifier.agent_gone("gpu-1", Some(&drained), "gone", now);
    drop(notifier);
    assert!(
        fixture.path("got").exists(),
        "the last words are waited for"
    );
}

#[test]
fn a_command_that_fails_is_quoted_and_the_next_one_is_told() {
    let fixture = Fixture::new();
    let mut notifier = fixture.notifier(
        "if [ $RIGOR_SUBJECT = gpu-1 ]; then echo no such host >&2; yes >&2 & exit 3; fi; touch next",
        "",
    );
    notifier.tell(dead("gpu-1"), Instant::now());
    notifier.tell(dead("gpu-2"), Instant::now());
    fixture.wait_for("next");
    drop(notifier);
    let failed = command::attempt_once(
        &["bash", "-c", "echo no such host >&2; exit 3"],
        fixture.dir.path(),
    );
    assert_eq!(failed.unwrap_err(), "exit status: 3: no such host");
    let missing = command::attempt_once(&["/no/such/program"], fixture.dir.path());
    assert!(
        missing
            .unwrap_err()
            .starts_with("/no/such/program cannot be started: ")
    );
}

#[test]
fn one_that_hangs_is_killed_with_what_it_started() {
    let fixture = Fixture::new();
    let command = "if [ $RIGOR_SUBJECT = gpu-1 ]; then sleep 300 & echo $! > pid.new; mv pid.new pid; wait; fi; touch next";
    let mut notifier = fixture.notifier(command, "timeout = \"300ms\"");
    notifier.tell(dead("gpu-1"), Instant::now());
    notifier.tell(dead("gpu-2"), Instant::now());
    fixture.wait_for("next");
    let pid = fixture.wait_for("pid");
    let deadline = Instant::now() + Duration::from_secs(10);
    let lives = || {
        std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
            .is_ok_and(|stat| !stat.contains(") Z "))
    };
    while lives() {
        assert!(Instant::now() < deadline, "{pid} still lives");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_brain_ends_soon_whatever_the_command_does() {
    let fixture = Fixture::new();
    let mut notifier = fixture.notifier("touch began; sleep 300", "");
    let begun = Instant::now();
    for n in 0..20 {
        notifier.tell(dead(&format!("gpu-{n}")), begun);
    }
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "telling never waits"
    );
    fixture.wait_for("began");
    let ending = Instant::now();
    drop(notifier);
    assert!(
        ending.elapsed() < Duration::from_secs(3),
        "{:?}",
        ending.elapsed()
    );
}

#[test]
fn a_gpu_that_idles_is_told_of_with_its_reason() {
    let verdict = Verdict {
        code: rigor_queue::heartbeat::Refusal::ModelNotLoaded,
        detail: "llm:125 need m".to_owned(),
    };
    let mut beat = Heartbeat::alive(1, jiff::Timestamp::now(), Health::Healthy);
    assert_eq!(idle_because(&beat, 0), None, "it has not said why");
    beat.idle = Some(verdict.clone());
    assert_eq!(idle_because(&beat, 0), Some(verdict.clone()));
    assert_eq!(idle_because(&beat, 1), None, "it works");
    beat.llm = LlmBeat::Draining {
        model: "m".to_owned(),
    };
    assert_eq!(idle_because(&beat, 0), None, "a model is on its way");

    let fixture = Fixture::new();
    let mut notifier = fixture.notifier("cat > new; mv new got", "gpu_idle_after = \"10m\"");
    let gpus = [("gpu-1".to_owned(), Some(verdict))];
    let start = Instant::now();
    notifier.gpus(&gpus, 125, start);
    notifier.gpus(&gpus, 125, start + Duration::from_secs(600));
    let told: Value = serde_json::from_str(&fixture.wait_for("got")).unwrap();
    assert_eq!(
        told["message"],
        "gpu-1 has been idle for 10m with 125 queued: model_not_loaded: llm:125 need m. See: rigor why gpu-1"
    );
    assert_eq!(told["details"]["idle_seconds"], 600);
}
