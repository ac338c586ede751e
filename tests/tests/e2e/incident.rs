//! The founding incident: after transcription two GPUs of three stopped claiming, and the logs did
//! not say why. Here one of three has something in its way, each time something else. The healthy
//! ones finish the work; one line at INFO, the first line of `rigor why` and the GPU time of
//! RUN_SUMMARY name the cause.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use rigor_queue::heartbeat::{Health, LlmBeat};
use rigor_queue::reasons::Cause;
use rigor_queue::rig::BRAIN;
use rigor_tests::incident::{ALL, HEALTHY, Incident, VICTIM};
use rigor_tests::mounts::{self, Namespace};
use rigor_tests::{Rig, lines, parts, processes};
use rustix::process::Signal;

fn health(rig: &Rig) -> Option<Health> {
    Some(rig.heartbeat(VICTIM)?.health)
}

#[test]
fn three_healthy_gpus_share_the_work() {
    let mut incident = Incident::new("healthy", &ALL);
    incident.rig.start_all();
    incident.transcribe(&ALL);
    incident.transcribed();
    incident.tells(
        BRAIN,
        r"INFO  LLM tasks waiting \(\d+\) but no models loaded - inserting 3 load_llm tasks \(gpu-1, gpu-2, gpu-3\): ",
    );
    incident.tells(
        BRAIN,
        r"INFO  MONITOR: GPUs: 3/3 busy \(hot: 3\), Agents: 3/3 alive, ",
    );
    incident.why("gpu-1.* (runs|running|busy|works)");
    incident.ends(None, false);
    incident.nobody_idles();
}

/// llama-server of the fixtures, broken for one GPU.
fn broken_runtime(incident: &Incident) {
    let rig = &incident.rig;
    let mut uuid = String::new();
    rig.stand_in(|state| uuid = state.gpus[0].uuid.clone());
    let real = parts::fixture("llama_server");
    let path = rig.plans().with_file_name("llama-server");
    // What llama.cpp says where a GPU has no room left for the model.
    let script = format!(
        "#!/bin/sh\nif [ \"$CUDA_VISIBLE_DEVICES\" = {uuid} ]; then\n\
         echo 'ggml_backend_cuda_buffer_type_alloc_buffer: allocating 2861.02 MiB on device 0: cudaMalloc failed: out of memory' >&2\n\
         echo 'llama_model_load: error loading model: unable to allocate CUDA0 buffer' >&2\n\
         echo 'llama_model_load_from_file_impl: failed to load model' >&2\n\
         echo 'main: exiting due to model loading error' >&2\n  exit 1\nfi\nexec {real:?} \"$@\"\n",
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    rig.edit_toml(|text| {
        text.replace(
            &format!("llama_server = {real:?}"),
            &format!("llama_server = {path:?}"),
        )
    });
}

#[test]
fn one_agent_cannot_load_the_model() {
    let mut incident = Incident::new("cannot-load", &HEALTHY);
    broken_runtime(&incident);
    incident.rig.start_all();
    incident.transcribe(&ALL);
    incident.is_wrong();
    incident.transcribed();
    incident.tells(
        BRAIN,
        "WARNING .*load.* gpu-1.*cudaMalloc failed: out of memory",
    );
    incident.tells(
        VICTIM,
        r"INFO  Idle \d+s with \d+ queued: (runtime_failing|backoff) - .*cudaMalloc failed: out of memory",
    );
    let why = incident.why("gpu-1.*cudaMalloc failed: out of memory");
    assert!(
        why.to_string().contains("cudaMalloc failed: out of memory"),
        "{why}"
    );
    incident.ends(Some(Cause::RuntimeFailing), false);
}

#[test]
fn one_gpu_is_too_hot() {
    let mut incident = Incident::new("thermal", &HEALTHY);
    incident.rig.start_all();
    incident.transcribe(&ALL);
    incident.is_wrong();
    incident
        .rig
        .stand_in(|state| state.gpus[0].temperature_c = 84);
    incident.rig.wait("gpu-1 is over its limit", |rig| {
        health(rig) == Some(Health::Constrained)
    });
    incident.transcribed();
    incident.tells(VICTIM, r"WARNING GPU is over a limit: 84C >= 80C");
    incident.tells(
        VICTIM,
        r"INFO  Idle \d+s with \d+ queued: thermal - 84C >= 80C",
    );
    let why = incident.why("gpu-1.*(thermal|hot).*84C >= 80C");
    assert!(why.to_string().contains("\"thermal\""), "{why}");
    incident.ends(Some(Cause::ThermalPower), false);
}

#[test]
fn one_agent_hangs() {
    let mut incident = Incident::new("hung", &HEALTHY);
    incident.rig.start_all();
    incident.transcribe(&ALL);
    processes::send(incident.rig.pid(VICTIM), Signal::STOP);
    incident.is_wrong();
    incident.rig.wait_for_match(
        BRAIN,
        r"WARNING Agent gpu-1 last heartbeat [23]s ago \(threshold: 2s\)",
    );
    incident.why("gpu-1.*(heartbeat|does not answer|hung)");
    incident.tells(
        BRAIN,
        r"WARNING Agent gpu-1 last heartbeat [23]s ago \(threshold: 2s\)",
    );
    incident.tells(
        BRAIN,
        r"WARNING Agent gpu-1 is (hung|dead).*requeued \d+ task",
    );
    incident.rig.killed(VICTIM);
    incident.transcribed();
    let why = incident.why("gpu-1.*(hung|down|dead|not running)");
    assert!(
        why.to_string().contains("down") || why.to_string().contains("dead"),
        "{why}"
    );
    incident.ends(Some(Cause::AgentDown), true);
}

#[test]
fn one_agent_is_killed() {
    let mut incident = Incident::new("killed", &HEALTHY);
    incident.rig.start_all();
    incident.transcribe(&ALL);
    incident.rig.kill(VICTIM);
    incident.is_wrong();
    incident.tells(
        BRAIN,
        r"WARNING Agent gpu-1 is dead \(its lock is free\): requeued \d+ tasks?, killed \d+ process(es)?",
    );
    incident.transcribed();
    let why = incident.why("gpu-1.*(down|dead|not running)");
    assert!(
        why.to_string().contains("down") || why.to_string().contains("dead"),
        "{why}"
    );
    incident.ends(Some(Cause::AgentDown), true);
}

#[test]
fn one_agent_is_paused_by_hand() {
    let mut incident = Incident::new("paused", &HEALTHY);
    incident.rig.start_all();
    incident.transcribe(&ALL);
    let said = incident.rig.rigor(&["pause", VICTIM]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    incident.is_wrong();
    incident
        .rig
        .wait("gpu-1 is paused", |rig| health(rig) == Some(Health::Paused));
    incident.transcribed();
    incident.tells(VICTIM, r"INFO  Idle \d+s with \d+ queued: paused - ");
    let why = incident.why("gpu-1.*paused");
    assert!(why.to_string().contains("\"paused\""), "{why}");
    incident.ends(Some(Cause::Paused), false);
}

/// A program that is not Rigor's and holds memory of a GPU.
struct Game(Child);

impl Game {
    /// Holds so much of GPU 1, as `blender`.
    fn start(rig: &Rig, mb: u32) -> Game {
        let program = rig.plans().with_file_name("blender");
        let shell = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|dir| dir.join("sleep"))
            .find(|path| path.is_file());
        fs::copy(shell.expect("sleep is on PATH"), &program).unwrap();
        let mut uuid = String::new();
        rig.stand_in(|state| uuid = state.gpus[0].uuid.clone());
        let child = Command::new(program)
            .arg("600")
            .env("CUDA_VISIBLE_DEVICES", uuid)
            .env("RIGOR_SIM_VRAM_MB", mb.to_string())
            .spawn();
        Game(child.unwrap())
    }
}

impl Drop for Game {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn one_gpu_is_held_by_a_foreign_process() {
    let mut incident = Incident::new("foreign-vram", &HEALTHY);
    let game = Game::start(&incident.rig, 3300);
    let pid = game.0.id();
    incident.rig.start_all();
    incident.transcribe(&ALL);
    incident.is_wrong();
    incident.transcribed();
    incident.tells(
        VICTIM,
        &format!(r"INFO  Idle \d+s with \d+ queued: vram_short - .*needs 3000MB, have \d+MB.*3300 ?MB held by blender \(pid {pid}\)"),
    );
    let why = incident.why(&format!(r"gpu-1.*3300 ?MB held by blender \(pid {pid}\)"));
    assert!(why.to_string().contains("\"vram_short\""), "{why}");
    incident.ends(Some(Cause::VramShort), false);
}

/// A load that names an agent which is not there, asked for before this brain was started.
#[test]
fn a_load_is_left_for_an_agent_that_is_not_there() {
    let mut incident = Incident::new("stale-load", &HEALTHY);
    let said = incident.rig.rigor(&["load", VICTIM, "tiny-random"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    incident.rig.start_brain();
    for agent in HEALTHY {
        incident.rig.start_agent(agent);
    }
    incident.transcribe(&HEALTHY);
    incident.is_wrong();
    incident.transcribed();
    incident.rig.wait("both healthy GPUs are hot", |rig| {
        HEALTHY.iter().all(|agent| {
            let beat = rig.heartbeat(agent);
            beat.is_some_and(|beat| matches!(beat.llm, LlmBeat::Hot { .. }))
        })
    });
    incident.tells(
        BRAIN,
        r"WARNING load_llm task available for \d+s but agents \[gpu-1\] still have no model: gpu-1 (is )?not running",
    );
    incident.tells(
        BRAIN,
        r"WARNING Agent gpu-1 is not running .*while \d+ tasks are queued",
    );
    let why = incident.why("gpu-1.*(not running|down)");
    println!("{why}");
    incident.ends(Some(Cause::AgentDown), false);
}

const THIS: &str = "incident::";

#[test]
fn one_agent_has_a_full_disk() {
    match mounts::enter(&format!("{THIS}one_agent_has_a_full_disk"), None) {
        Namespace::Done => return,
        Namespace::Unable(why) => return println!("skipped: {why}"),
        Namespace::Inside => {}
    }
    let mut incident = Incident::new("full-disk-of-one", &HEALTHY);
    let dir = incident.rig.rig.agent_dir(VICTIM);
    fs::create_dir_all(&dir).unwrap();
    mounts::tmpfs(&dir, 1024);
    incident.rig.start_all();
    incident.transcribe(&ALL);
    mounts::fill(&dir.join("filler"));
    incident.is_wrong();
    incident.transcribed();
    incident.tells(
        VICTIM,
        "WARNING Cannot write the heartbeat: .*No space left on device",
    );
    incident.tells(
        VICTIM,
        r"INFO  Idle \d+s with \d+ queued: \w+ - .*No space left on device",
    );
    let why = incident.why("gpu-1.*(No space left on device|disk|heartbeat)");
    println!("{why}");
    fs::remove_file(dir.join("filler")).unwrap();
    incident.ends(Some(Cause::Quarantined), false);
}

fn filler(rig: &Rig) -> PathBuf {
    rig.plans().with_file_name("filler")
}

#[test]
fn the_whole_disk_is_full_for_a_while() {
    match mounts::enter(
        &format!("{THIS}the_whole_disk_is_full_for_a_while"),
        Some(96),
    ) {
        Namespace::Done => return,
        Namespace::Unable(why) => return println!("skipped: {why}"),
        Namespace::Inside => {}
    }
    let mut incident = Incident::new("full-disk", &ALL);
    incident.rig.start_all();
    incident.transcribe(&ALL);
    mounts::fill(&filler(&incident.rig));
    incident.is_wrong();
    for agent in ALL {
        incident.tells(agent, "(WARNING|ERROR) .*No space left on device");
    }
    incident.tells(BRAIN, "(WARNING|ERROR) .*No space left on device");
    incident.why("gpu-1.*(No space left on device|disk)");
    let said = lines::all(&incident.rig.log(BRAIN), "No space left on device");
    let most = 20;
    assert!(
        said.len() <= most,
        "{} lines in a few seconds take the room that the log has left",
        said.len()
    );
    fs::remove_file(filler(&incident.rig)).unwrap();
    incident.transcribed();
    incident.ends(None, false);
}
