//! What cannot be right is refused or put aside, by name, and the rest goes on.

use std::fs;
use std::os::unix::fs::symlink;

use rigor_queue::rig::{BRAIN, Place};
use rigor_queue::task::Class;
use rigor_tests::{Rig, Setup};

const BAD_PLAN: &str = include_str!("bad-plan.md");

/// Fault table 36.
#[test]
fn a_plan_is_refused_with_all_its_problems() {
    let mut rig = Setup {
        gpus: 1,
        slots: 1,
        ..Setup::default()
    }
    .make();
    rig.start_all();
    let plan = rig.raw_plan("bad", BAD_PLAN);
    let said = rig.rigor(&["submit", plan.to_str().unwrap()]);
    assert!(said.code == 1 || said.code == 2, "{said:?}");
    assert_eq!(said.stdout, "");
    for (task, field, what) in [
        ("one", "- **comand**", "unknown field `comand`"),
        (
            "two",
            "- **task_class**: gpuu",
            "invalid `task_class`: `gpuu`",
        ),
        ("three", "### three", "`three` has no `task_class`"),
        ("four", "- **depends_on**: nobody", "no task `nobody`"),
        (
            "five",
            "- **command**: `echo {NOWHERE}`",
            "unresolved variable {NOWHERE}",
        ),
        ("seven", "- **depends_on**: six", "wait for each other"),
        (
            "eight",
            "- **foreach**: `missing.json:items`",
            "`missing.json` is not there",
        ),
        ("ten", "### one", "a second task `one`"),
        ("nine", "- **llm_model**: nosuch", "no model `nosuch`"),
        (
            "eleven",
            "- **vram_estimate_mb**: 999999",
            "999999 MB of VRAM can never be had",
        ),
        ("twelve", "- **timeout**: soon", "invalid `timeout`: `soon`"),
    ] {
        assert!(
            said.stderr.contains(what),
            "{task}: {what}\n{}",
            said.stderr
        );
        // The last of equal lines is the one at fault.
        let lines: Vec<usize> = (1..)
            .zip(BAD_PLAN.lines())
            .filter(|(_, line)| line.starts_with(field))
            .map(|(n, _)| n)
            .collect();
        let message = said.stderr.find(what).unwrap();
        let place = said.stderr[message..]
            .split("plan.md:")
            .nth(1)
            .expect("a place");
        let line: usize = place.split(':').next().unwrap().parse().unwrap();
        // A cycle may be told from any of its tasks.
        let cycle = what.starts_with("wait")
            && BAD_PLAN
                .lines()
                .nth(line - 1)
                .unwrap()
                .contains("depends_on");
        assert!(
            lines.contains(&line) || cycle,
            "{task}: line {line}, not {lines:?}\n{}",
            said.stderr
        );
    }
    for class in Class::ALL {
        assert!(rig.list(Place::Queue(class)).is_empty(), "{class}");
    }
    assert_eq!(rig.status()["batches"].as_array().unwrap().len(), 0);
    assert!(
        !plan.join("history").exists(),
        "a refused plan has no history"
    );
}

/// Fault table 13 and 34.
#[test]
fn garbage_in_lanes_is_quarantined_and_others_proceed() {
    let mut rig = Rig::new(1);
    let queue = rig.rig.dir(Place::Queue(Class::Cpu));
    let name = |n: u32| format!("00-{n:012}-9c0ffee1-a1b2c3d4e5f6{n:04x}.a1c0.json");
    let outside = rig.root().join("outside");
    fs::write(&outside, "not to be touched").unwrap();
    fs::write(queue.join(name(1)), "").unwrap();
    fs::write(queue.join(name(2)), vec![0; 4096]).unwrap();
    fs::write(queue.join(name(3)), "this is no JSON").unwrap();
    symlink(&outside, queue.join(name(4))).unwrap();
    fs::write(queue.join("hello.json"), "{}").unwrap();
    fs::create_dir(queue.join(name(5))).unwrap();
    fs::write(
        queue.join(name(6)),
        "{\"schema\":99,\"sum\":\"0000000000000000\",\"task\":{}}",
    )
    .unwrap();
    fs::write(
        queue.join(name(7)),
        "{\"schema\":1,\"sum\":\"0000000000000000\",\"body\":{}}",
    )
    .unwrap();
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        queue.join(name(8)),
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    )
    .unwrap();
    fs::hard_link(&outside, queue.join(name(9))).unwrap();
    let garbage: Vec<String> = (1..=9).map(name).chain(["hello.json".to_owned()]).collect();
    rig.start_all();
    let plan = rig.plan(
        "good",
        "### works\n\n- **task_class**: cpu\n- **command**: `true`\n",
    );
    let batch = rig.submit(&plan);
    assert_eq!(rig.wait_short_batch(&batch), 0, "others proceed");
    let quarantine = rig.rig.dir(Place::Quarantine);
    for (what, reason) in garbage.iter().zip([
        "it is empty",
        "not a Rigor file",
        "not a Rigor file",
        "symbolic link",
        "regular file",
        "schema is 99",
        "checksum",
        "regular file",
        "hard links",
        "task file",
    ]) {
        rig.wait(&format!("{what} is in quarantine"), |_| {
            fs::symlink_metadata(quarantine.join(what)).is_ok()
        });
        let note = quarantine.join(format!("{what}.reason"));
        rig.wait(&format!("{what} has a reason"), |_| {
            fs::read_to_string(&note).is_ok_and(|text| text.ends_with('\n'))
        });
        let text = fs::read_to_string(&note).unwrap();
        let said: serde_json::Value = serde_json::from_str(&text).unwrap();
        let said = said["reason"].as_str().unwrap();
        assert!(!said.is_empty() && said.contains(reason), "{what}: {said}");
    }
    assert_eq!(fs::read_to_string(&outside).unwrap(), "not to be touched");
    let warned = rig.log("gpu-1") + &rig.log(BRAIN);
    assert!(
        warned.matches("WARNING").count() >= garbage.len(),
        "each is said"
    );
}

#[test]
fn garbage_in_rig_toml_is_refused_with_its_line_and_the_nearest_key() {
    let rig = Rig::new(1);
    let toml = rig.root().join("rig.toml");
    let good = fs::read_to_string(&toml).unwrap();
    let bad = good.replace("[timing]\n", "[timing]\nheartbeat_evry = \"5s\"\n");
    fs::write(&toml, &bad).unwrap();
    let line = 1 + bad
        .lines()
        .position(|line| line.starts_with("heartbeat_evry"))
        .unwrap();
    let mut commands = vec![rig.component(BRAIN), rig.component("gpu-1")];
    commands.push(rig.rigor_command(&["status"]));
    commands.push(rig.rigor_command(&["up"]));
    for command in commands {
        let program = format!("{:?}", command.get_program());
        let said = rig.output(command);
        assert!(said.code == 1 || said.code == 2, "{program}: {said:?}");
        for part in [
            "heartbeat_evry",
            "`heartbeat_every`",
            &format!("rig.toml:{line}"),
        ] {
            assert!(
                said.stderr.contains(part),
                "{program} does not say {part}: {}",
                said.stderr
            );
        }
    }
    fs::write(&toml, "this is = = no TOML").unwrap();
    let said = rig.output(rig.component(BRAIN));
    assert!(
        said.code != 0 && said.stderr.contains("rig.toml:1"),
        "{said:?}"
    );
    fs::write(&toml, good).unwrap();
}
