use std::path::Path;

use rigor_config::Config;

use crate::hand_made::{ran, rigor_command};

fn rigor(at: &Path, words: &[&str]) -> crate::hand_made::Ran {
    ran(rigor_command(
        Path::new(env!("CARGO_BIN_EXE_rigor")),
        at,
        words,
    ))
}

#[test]
fn simulated_gpus_are_named_and_said_to_be_simulated() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("tiny-random.gguf");
    std::fs::write(&model, b"GGUF rest").unwrap();
    let words = [
        "init",
        "rig",
        "--sim-gpus",
        "3",
        "--model",
        "tiny-random.gguf",
        "--slots",
        "2",
    ];
    let done = rigor(dir.path(), &words)
        .ok()
        .says("SIMULATED: 3 stand-in GPUs");
    assert!(done.line().ends_with("/rig/rig.toml"), "{}", done.line());

    let config = Config::load(&dir.path().join("rig")).unwrap();
    let names: Vec<&str> = config.gpus.iter().map(|gpu| gpu.name.as_str()).collect();
    assert_eq!(names, ["gpu-1", "gpu-2", "gpu-3"]);
    assert_eq!(config.gpus[2].port, 11437);
    assert_eq!(config.gpus[0].model.as_deref(), Some("tiny-random"));
    assert_eq!(
        (config.models[0].slots, config.models[0].file()),
        (2, Some(model.canonicalize().unwrap().as_path()))
    );
    assert!(config.nvml.simulated);
    let gpus = rigor_gpu::Gpus::open(config.nvml.library.as_deref()).unwrap();
    assert!(gpus.stand_in());
    assert_eq!(gpus.list().unwrap()[1].uuid, config.gpus[1].uuid);

    let before = std::fs::read(dir.path().join("rig/rig.toml")).unwrap();
    rigor(dir.path(), &["init", "rig", "--sim-gpus", "1"])
        .exits(1)
        .says("is there already");
    assert_eq!(
        std::fs::read(dir.path().join("rig/rig.toml")).unwrap(),
        before
    );
}

#[test]
fn without_a_gpu_the_remedy_is_said_and_nothing_is_left() {
    if rigor_gpu::Gpus::open(None).is_ok() {
        eprintln!("skipped: this machine has a GPU");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    rigor(dir.path(), &["init", "rig"])
        .exits(1)
        .says("--sim-gpus");
    assert!(!dir.path().join("rig").exists());
    rigor(dir.path(), &["init", "rig", "--cpu-only"]).ok();
    let config = Config::load(&dir.path().join("rig")).unwrap();
    assert_eq!(config.agent_names().collect::<Vec<_>>(), ["cpu-1"]);
}

#[test]
fn what_is_no_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("page.gguf"), "<html>").unwrap();
    rigor(
        dir.path(),
        &["init", "rig", "--sim-gpus", "1", "--model", "page.gguf"],
    )
    .exits(1)
    .says("is not a GGUF file");
    assert!(!dir.path().join("rig").exists());
    rigor(dir.path(), &["init", "rig", "--sim-gpus", "0"]).exits(2);
}

#[test]
fn a_directory_that_is_no_rig_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    rigor(dir.path(), &["status"])
        .exits(1)
        .says("rigor init DIR");
    rigor(dir.path(), &["--rig", "elsewhere", "tasks"])
        .exits(1)
        .says("elsewhere");
}

#[test]
fn every_command_has_help_with_examples() {
    let dir = tempfile::tempdir().unwrap();
    let help = rigor(dir.path(), &["--help"]).ok().stdout;
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            line.strip_prefix("  ")
                .filter(|line| !line.starts_with(' '))
        })
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.len() >= 20, "{commands:?}");
    for command in commands {
        let help = rigor(dir.path(), &[command, "--help"]).ok().stdout;
        assert!(help.contains("Examples:"), "{command}");
    }
    assert!(
        rigor(dir.path(), &["completions", "bash"])
            .ok()
            .stdout
            .contains("_rigor")
    );
}

#[test]
fn a_driver_that_hangs_does_not_hang_those_who_look() {
    let dir = tempfile::tempdir().unwrap();
    rigor(dir.path(), &["init", "rig", "--sim-gpus", "1"]).ok();
    let rig = dir.path().join("rig");
    let toml = rig.join("rig.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    let mut text = text.replacen("[timing]", "[timing]\ngpu_hung = \"1s\"", 1);
    text.push_str("\n[[model]]\nid = \"m\"\nruntime = \"command\"\ncommand = \"true {PORT}\"\n");
    std::fs::write(&toml, text).unwrap();
    let mut state = nvml_stand_in::State::with_gpus(1);
    state.gpus[0].uuid = Config::load(&rig).unwrap().gpus[0].uuid.clone();
    state.gpus[0].hangs = true;
    state
        .write(&rig.join("sim").join(nvml_stand_in::STATE_NAME))
        .unwrap();
    let said = rigor(dir.path(), &["--rig", "rig", "doctor"])
        .exits(1)
        .stdout;
    assert!(
        said.contains("it does not answer for 1s: the driver hangs"),
        "{said}"
    );
    let said = rigor(dir.path(), &["--rig", "rig", "models"]).ok().stdout;
    assert!(said.contains("NVML does not tell"), "{said}");
}
