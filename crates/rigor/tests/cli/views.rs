use std::io::Read;
use std::process::Stdio;

use rigor_queue::task::Class;

use crate::hand_made::{HandMade, until};

#[test]
fn status_has_the_fixed_shape_and_a_table_for_people() {
    let made = HandMade::new();
    let (batch, _plan) = made.running_batch();
    let names = made.queued(&batch, "tag", &["v1", "v2"]);
    let _held = made.claim(Class::Cpu, &names[0], "gpu-1");
    let json = made.rigor(&["status", "--json"]).ok().json();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["brain"]["alive"], false);
    assert_eq!(json["agents"][0]["processing"][0], names[0].id.to_string());
    assert_eq!(json["queue"]["by_class"]["cpu"], 1);
    assert_eq!(json["queue"]["processing"], 1);
    assert_eq!(
        (&json["batches"][0]["id"], &json["batches"][0]["state"]),
        (&batch.clone().into(), &"running".into())
    );
    let done = made.rigor(&["status"]).ok();
    assert!(
        done.stdout.contains("not running. Start it: rigor up"),
        "{}",
        done.stdout
    );
    assert!(
        done.stdout.contains("Queue 1 (cpu:1), processing 1"),
        "{}",
        done.stdout
    );
    assert!(done.stdout.contains(&batch));
    assert!(!done.stdout.contains('\x1b'), "no colour in a pipe");
}

#[test]
fn tasks_and_show_say_where_and_why() {
    let made = HandMade::new();
    let (batch, _plan) = made.running_batch();
    let names = made.queued(&batch, "tag", &["v1", "v2"]);
    let held = made.claim(Class::Cpu, &names[0], "gpu-1");
    made.fail(held, "exit code 3: no such file\x1b[31m");

    let json = made
        .rigor(&["tasks", "--batch", "video", "--json"])
        .ok()
        .json();
    let lanes: Vec<&str> = json["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|task| task["lane"].as_str().unwrap())
        .collect();
    assert_eq!(lanes, ["queue", "failed"]);
    let rows = made.rigor(&["tasks", "--lane", "failed"]).ok().stdout;
    assert_eq!(rows.lines().count(), 2, "{rows}");
    assert!(rows.contains("exit code 3: no such file [31m"), "{rows}");
    made.rigor(&["tasks", "--lane", "complete"])
        .ok()
        .says("No such tasks");

    let name = format!("{batch}/tag_v1");
    let json = made.rigor(&["show", &name, "--json"]).ok().json();
    assert_eq!(json["lane"], "failed");
    assert_eq!(json["specification"]["work"]["command"], "echo v1");
    let attempt = &json["attempts"][0];
    assert_eq!(
        (&attempt["agent"], &attempt["exit_code"]),
        (&"gpu-1".into(), &3.into())
    );
    assert_eq!(attempt["reason"], json["reason"]);
    let text = made.rigor(&["show", &names[0].id.short()]).ok().stdout;
    assert!(text.contains("1h 30m"), "{text}");
    assert!(text.contains("exit code 3"), "{text}");

    made.rigor(&["show", &format!("{batch}/tagv1")])
        .exits(1)
        .says(&format!("did you mean {name}?"));
    made.rigor(&["show", &batch]).exits(1).says("is a batch");
    made.rigor(&["show", "gpu-1"]).exits(1).says("is an agent");
}

#[test]
fn logs_print_the_output_and_follow_it_to_the_end() {
    let made = HandMade::new();
    let (batch, _plan) = made.running_batch();
    let names = made.queued(&batch, "tag", &["v1"]);
    let id = names[0].id;
    made.rigor(&["logs", &id.short()])
        .ok()
        .says("It has not run yet.");
    let held = made.claim(Class::Cpu, &names[0], "gpu-1");
    let output = made.rig.output_path(&batch, id, 1);
    std::fs::write(&output, "first\n").unwrap();
    assert_eq!(made.rigor(&["logs", &id.short()]).ok().stdout, "first\n");

    let mut follower = made
        .command(&["logs", "-f", &format!("{batch}/tag_v1")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = follower.stdout.take().unwrap();
    let mut start = [0; 6];
    stdout.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"first\n");
    assert!(
        follower.try_wait().unwrap().is_none(),
        "the task still runs"
    );
    std::fs::write(&output, "first\nlast\n").unwrap();
    made.complete(held);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "last\n");
    let mut status = None;
    until("the follower ends with the task", || {
        status = follower.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success());
    made.rigor(&["logs", &id.short(), "--attempt", "7"])
        .exits(1)
        .says("no attempt 7");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let made = HandMade::new();
    let (batch, _plan) = made.running_batch();
    // More than a pipe holds.
    let items: Vec<String> = (0..2000).map(|n| format!("item-{n:04}")).collect();
    made.queued(
        &batch,
        "tag",
        &items.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    for words in [&["tasks"][..], &["tasks", "--json"]] {
        let mut command = made.command(words);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 10]).unwrap();
        drop(stdout);
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
        assert!(output.status.success(), "{words:?}");
    }
}

#[test]
fn doctor_finds_what_is_wrong_and_says_what_to_do() {
    let made = HandMade::new();
    // Where that fails, somebody else has taken the port, which does as well.
    let taken = std::net::TcpListener::bind("127.0.0.1:21436");
    let done = made.rigor(&["doctor", "--json"]).exits(1);
    let json = done.json();
    assert_eq!(json["ok"], false);
    let find = |check: &str| {
        let checks = json["checks"].as_array().unwrap();
        checks
            .iter()
            .find(|one| one["check"] == check)
            .unwrap_or_else(|| panic!("{check}"))
    };
    assert_eq!(find("file system")["result"], "ok");
    assert_eq!(find("rig.toml")["result"], "ok");
    assert_eq!(find("gpu-1 port")["result"], "ok");
    assert_eq!(find("gpu-2 port")["result"], "failed");
    assert_eq!(find("NVML")["result"], "failed");
    let port = find("gpu-2 port")["detail"].as_str().unwrap();
    if taken.is_ok() {
        let own = format!("(pid {})", std::process::id());
        assert!(
            port.contains(&own) && port.contains("none of this rig's"),
            "{port}"
        );
    }
    assert_eq!(find("permissions")["result"], "ok");
    assert_eq!(find("model tiny")["result"], "ok");
    for there in ["disk", "clock", "containment", "limits", "sandbox"] {
        assert_ne!(find(there)["result"], "failed", "{there}");
    }
    for check in json["checks"].as_array().unwrap() {
        if check["result"] != "ok" {
            assert!(
                check["remedy"]
                    .as_str()
                    .is_some_and(|remedy| !remedy.is_empty()),
                "{check}"
            );
        }
    }
    drop(taken);
    std::fs::write(made.rig.root().join("rig.toml"), "[rig]\nnme = \"x\"\n").unwrap();
    let text = made.rigor(&["doctor"]).exits(1).stdout;
    assert!(text.contains("FAILED  rig.toml"), "{text}");
    // The cgroup that the containment check makes.
    let _ = std::fs::remove_dir("/sys/fs/cgroup/unified/rigor-handmade");
    let _ = std::fs::remove_dir("/sys/fs/cgroup/rigor-handmade");
}

#[test]
fn a_model_for_more_gpus_than_there_are_is_said_by_all_who_look() {
    let made = HandMade::new();
    let toml = made.rig.root().join("rig.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    let wide = "[[model]]\nid = \"wide\"\nruntime = \"command\"\ncommand = \"true {PORT}\"\nvram_mb = 40\nsplit_gpu = 4\n";
    std::fs::write(&toml, format!("{text}{wide}")).unwrap();
    made.plan_of("# Plan: x\n\n## Tasks\n\n### one\n- **prompt**: hello\n- **llm_model**: wide\n");
    made.rigor(&["check", "plan"])
        .exits(1)
        .says("model `wide` lies on 4 GPUs, and the rig has 2");
    let json = made.rigor(&["doctor", "--json"]).exits(1).json();
    let checks = json["checks"].as_array().unwrap();
    let wide = checks.iter().find(|one| one["check"] == "model wide");
    let wide = wide.unwrap();
    assert_eq!(wide["result"], "failed");
    let detail = wide["detail"].as_str().unwrap();
    assert!(
        detail.contains("it lies on 4 GPUs, and the rig has 2"),
        "{wide}"
    );
    let remedy = wide["remedy"].as_str().unwrap();
    assert!(remedy.contains("a smaller `split_gpu`"), "{remedy}");
    let text = made.rigor(&["doctor"]).exits(1).stdout;
    // Every detail stands in one column, whatever the longest name.
    let column = |check: &str, detail: &str| {
        let line = text.lines().find(|line| line.contains(check)).unwrap();
        line.find(detail).unwrap()
    };
    assert_eq!(
        column("file system", "locks, renames"),
        column("model wide", "it lies on 4")
    );
}

#[test]
fn models_are_listed_with_what_they_need_and_a_missing_file_is_said() {
    let made = HandMade::new();
    let toml = made.rig.root().join("rig.toml");
    let mut text = std::fs::read_to_string(&toml).unwrap();
    text.push_str(
        "[[model]]\nid = \"lost\"\nruntime = \"llama-server\"\nfile = \"lost.gguf\"\n\
         [[model]]\nid = \"told\"\nruntime = \"command\"\ncommand = \"true {PORT}\"\nvram_mb = 3000\nslots = 4\ncontext = 8192\n",
    );
    std::fs::write(&toml, text).unwrap();
    let measured = r#"{"load:told": {"seconds": 12.0, "runs": 1}, "load:told gpu-2": {"seconds": 12.0, "runs": 1},
        "speed:told gpu-2": {"seconds": 60.0, "runs": 9, "tokens_per_second": 41.25}}"#;
    std::fs::create_dir_all(made.rig.brain_dir()).unwrap();
    std::fs::write(made.rig.brain_dir().join("measured.json"), measured).unwrap();

    let json = made.rigor(&["models", "--json"]).ok().json();
    assert_eq!(json["schema"], 1);
    let model = |at: usize| json["models"][at].clone();
    assert_eq!(model(1)["id"], "lost");
    let problem = model(1)["problem"].as_str().unwrap().to_owned();
    assert!(problem.contains("lost.gguf is not there"), "{problem}");
    assert_eq!(
        (&model(2)["need_mb"], &model(2)["need_by"]),
        (&3000.into(), &"configured".into())
    );
    assert_eq!(
        (&model(2)["load_seconds"], &model(2)["load_measured"]),
        (&12.0.into(), &true.into())
    );
    assert_eq!(model(2)["on"][1]["tokens_per_second"], 41.25);
    assert_eq!(model(2)["on"][0]["fits"]["state"], "not_known");

    let text = made.rigor(&["models"]).ok().stdout;
    let line = |start: &str| {
        let found = text
            .lines()
            .find(|line| line.trim_start().starts_with(start));
        found.unwrap_or_else(|| panic!("{start}: {text}"))
    };
    assert!(line("told ").contains("3000 (rig.toml)"), "{text}");
    assert!(line("lost:").contains("is not there"), "{text}");
    assert!(text.contains("41.2"), "{text}");
}

#[test]
fn a_report_is_there_when_the_batch_is_over() {
    let made = HandMade::new();
    let (batch, plan) = made.running_batch();
    made.rigor(&["report", &batch]).exits(1).says("is running");
    let summary = plan.spec.batch_dir.join("RUN_SUMMARY.md");
    std::fs::write(&summary, "# Done\n").unwrap();
    plan.close(&made.rig, rigor_queue::lane::Move::Complete)
        .unwrap();
    assert_eq!(made.rigor(&["report", "video"]).ok().stdout, "# Done\n");
    assert_eq!(
        made.rigor(&["report", "video", "--path"]).ok().line(),
        summary.display().to_string()
    );
}
