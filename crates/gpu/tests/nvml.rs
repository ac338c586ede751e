//! The stand-in library, loaded through the real NVML interface.

#![allow(clippy::unwrap_used, reason = "the helpers of tests fail the test")]

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nvml_stand_in::{
    CLAIM_VARIABLE, Fault, GPU_NAME, Query, STATE_NAME, State, Throttle as SimThrottle,
};
use rigor_gpu::{GpuError, Gpus, Reading, Throttle, holders};

const DEADLINE: Duration = Duration::from_secs(10);

/// A folder with a library and a state of its own.
struct Rig {
    folder: tempfile::TempDir,
    library: PathBuf,
    state: State,
}

impl Rig {
    fn new(gpus: usize) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let state = State::with_gpus(gpus);
        let library = nvml_stand_in::install(folder.path(), &state).unwrap();
        Rig {
            folder,
            library,
            state,
        }
    }

    fn open(&self) -> Result<Gpus, GpuError> {
        Gpus::open(Some(&self.library))
    }

    fn uuid(&self, gpu: usize) -> &str {
        &self.state.gpus[gpu].uuid
    }

    fn change(&mut self, change: impl FnOnce(&mut State)) {
        change(&mut self.state);
        self.state
            .write(&self.folder.path().join(STATE_NAME))
            .unwrap();
    }
}

/// A process, killed and reaped when dropped.
struct Process(Child);

impl Process {
    /// Runs `program` under another process name: that of a link to it in `folder`.
    fn start_as(
        name: &str,
        program: &str,
        folder: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Process {
        let link = folder.join(name);
        std::os::unix::fs::symlink(program, &link).unwrap();
        Process::spawn(Command::new(link).arg0(program), arguments, variables)
    }

    fn start(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Process {
        Process::spawn(&mut Command::new(program), arguments, variables)
    }

    fn spawn(command: &mut Command, arguments: &[&str], variables: &[(&str, &str)]) -> Process {
        let command = command.args(arguments).envs(variables.iter().copied());
        Process(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads until `enough`, or fails with the last reading.
fn reading_when(gpus: &Gpus, uuid: &str, enough: impl Fn(&Reading) -> bool) -> Reading {
    let start = Instant::now();
    loop {
        let reading = gpus.reading(uuid).unwrap();
        if enough(&reading) {
            return reading;
        }
        assert!(start.elapsed() < DEADLINE, "still {reading:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn message(error: GpuError) -> String {
    error.to_string()
}

#[test]
fn the_gpus_are_listed_and_read() {
    let mut rig = Rig::new(3);
    rig.change(|state| {
        state.gpus[2].base_used_mb = 120;
        state.gpus[2].throttle = vec![
            SimThrottle::GpuIdle,
            SimThrottle::SwPowerCap,
            SimThrottle::HwThermalSlowdown,
        ];
    });
    let gpus = rig.open().unwrap();

    let list = gpus.list().unwrap();
    assert!(gpus.stand_in());
    assert_eq!(list.len(), 3);
    for (index, gpu) in list.iter().enumerate() {
        assert_eq!(
            (gpu.index as usize, gpu.uuid.as_str()),
            (index, rig.uuid(index))
        );
        assert_eq!(
            (gpu.name.as_str(), gpu.total_mb, gpu.stand_in),
            (GPU_NAME, 6144, true)
        );
    }
    let expected = Reading {
        index: 2,
        used_mb: 120,
        free_mb: 6024,
        total_mb: 6144,
        temperature_c: Some(40),
        power_w: Some(25),
        power_limit_w: Some(170),
        utilization: Some(0),
        clock_mhz: Some(1500),
        throttle: Some(vec![Throttle::PowerCap, Throttle::HwThermal]),
        processes: vec![],
    };
    assert_eq!(gpus.reading(rig.uuid(2)).unwrap(), expected);
}

#[test]
fn a_state_replaced_by_rename_is_seen_at_once() {
    let mut rig = Rig::new(1);
    let gpus = rig.open().unwrap();
    for temperature_c in [41, 84, 60] {
        rig.change(|state| state.gpus[0].temperature_c = temperature_c);
        assert_eq!(
            gpus.reading(rig.uuid(0)).unwrap().temperature_c,
            Some(temperature_c)
        );
    }
}

#[test]
fn a_lost_gpu_takes_no_other_with_it() {
    let mut rig = Rig::new(3);
    let gpus = rig.open().unwrap();
    rig.change(|state| state.gpus[1].fault = Some(Fault::GpuIsLost));

    let error = gpus.reading(rig.uuid(1)).unwrap_err();
    assert!(
        matches!(&error, GpuError::Lost { uuid, .. } if uuid == rig.uuid(1)),
        "{error:?}"
    );
    assert!(message(error).contains("dmesg"));
    gpus.reading(rig.uuid(0)).unwrap();
    gpus.reading(rig.uuid(2)).unwrap();

    assert_eq!(
        gpus.list()
            .unwrap()
            .iter()
            .map(|gpu| gpu.index)
            .collect::<Vec<_>>(),
        [0, 2]
    );
    let unreadable = gpus.unreadable().unwrap();
    assert!(
        matches!(&unreadable[..], [(1, GpuError::Lost { .. })]),
        "{unreadable:?}"
    );

    // One that a handle was good for: lost in the middle of a reading, or needing a reset.
    for fault in [Fault::GpuIsLost, Fault::ResetRequired] {
        for query in [Query::Memory, Query::PowerUsage, Query::Processes] {
            rig.change(|state| {
                state.gpus[0].fails.clear();
                state.gpus[0].fails.insert(query, fault);
            });
            let error = gpus.reading(rig.uuid(0)).unwrap_err();
            assert!(
                matches!(error, GpuError::Lost { .. }),
                "{query:?}: {error:?}"
            );
        }
    }
}

#[test]
fn what_is_not_supported_is_missing_and_no_more() {
    let mut rig = Rig::new(1);
    let gpus = rig.open().unwrap();
    let full = gpus.reading(rig.uuid(0)).unwrap();
    let mut check = |query, expected: Reading| {
        rig.change(|state| {
            state.gpus[0].fails.clear();
            state.gpus[0].fails.insert(query, Fault::NotSupported);
        });
        assert_eq!(gpus.reading(rig.uuid(0)).unwrap(), expected, "{query:?}");
    };
    check(
        Query::Temperature,
        Reading {
            temperature_c: None,
            ..full.clone()
        },
    );
    check(
        Query::PowerUsage,
        Reading {
            power_w: None,
            ..full.clone()
        },
    );
    check(
        Query::PowerLimit,
        Reading {
            power_limit_w: None,
            ..full.clone()
        },
    );
    check(
        Query::Utilization,
        Reading {
            utilization: None,
            ..full.clone()
        },
    );
    check(
        Query::Clocks,
        Reading {
            clock_mhz: None,
            ..full.clone()
        },
    );
    check(
        Query::Throttle,
        Reading {
            throttle: None,
            ..full.clone()
        },
    );
    check(Query::Processes, full);

    // Without its memory there is no reading.
    rig.change(|state| state.gpus[0].fails = [(Query::Memory, Fault::NotSupported)].into());
    let error = gpus.reading(rig.uuid(0)).unwrap_err();
    assert!(matches!(error, GpuError::Other { .. }), "{error:?}");
    assert!(message(error).contains("leave it out of rig.toml"));
}

#[test]
fn an_unknown_uuid_is_told_with_the_known_ones() {
    let rig = Rig::new(2);
    let error = rig.open().unwrap().reading("GPU-not-here").unwrap_err();
    assert!(
        matches!(&error, GpuError::NotFound { uuid, .. } if uuid == "GPU-not-here"),
        "{error:?}"
    );
    let text = message(error);
    assert!(
        text.contains(rig.uuid(0)) && text.contains(rig.uuid(1)),
        "{text}"
    );
}

#[test]
fn no_driver_no_library_and_no_nvml_are_told_apart() {
    let mut rig = Rig::new(1);
    for (fault, remedy) in [
        (Fault::DriverNotLoaded, "modprobe"),
        (Fault::LibRmVersionMismatch, "reboot"),
    ] {
        rig.change(|state| state.init_fault = Some(fault));
        let error = rig.open().unwrap_err();
        assert!(matches!(error, GpuError::NoDriver { .. }), "{error:?}");
        assert!(message(error).contains(remedy));
    }
    rig.change(|state| state.init_fault = None);
    rig.open().unwrap();

    std::fs::remove_file(rig.folder.path().join(STATE_NAME)).unwrap();
    assert!(matches!(rig.open().unwrap_err(), GpuError::NoDriver { .. }));

    let error = Gpus::open(Some(Path::new("/nowhere/libnvidia-ml.so.1"))).unwrap_err();
    assert!(matches!(error, GpuError::NoLibrary { .. }), "{error:?}");
    assert!(message(error).contains("--cpu-only"));
}

#[test]
fn what_is_not_nvml_is_refused_without_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    // The second would be dropped with a call of the missing nvmlShutdown.
    for (source, missing) in [
        ("", "nvmlInit_v2"),
        ("int nvmlInit_v2(void) { return 0; }", "nvmlShutdown"),
    ] {
        let (file, library) = (
            folder.path().join("half.c"),
            folder.path().join(format!("no-{missing}.so")),
        );
        std::fs::write(&file, source).unwrap();
        // Cargo links with it, so it is there.
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([&library, &file])
            .status()
            .unwrap();
        assert!(built.success());

        let error = Gpus::open(Some(&library)).unwrap_err();
        assert!(matches!(error, GpuError::NoLibrary { .. }), "{error:?}");
        let text = message(error);
        assert!(
            text.contains("it is not NVML") && text.contains(missing),
            "{text}"
        );
    }
}

#[test]
fn memory_follows_a_process_that_names_the_gpu() {
    let mut rig = Rig::new(2);
    let gpus = rig.open().unwrap();
    let process = Process::start("sleep", &["600"], &[("CUDA_VISIBLE_DEVICES", rig.uuid(0))]);
    let pid = process.0.id();

    let reading = reading_when(&gpus, rig.uuid(0), |reading| {
        reading.processes.iter().any(|p| p.pid == pid)
    });
    let [holder] = &reading.processes[..] else {
        panic!("{reading:?}")
    };
    let used_mb = holder.used_mb.unwrap();
    assert!(
        (1..100).contains(&used_mb),
        "a sleep is resident with {used_mb} MiB"
    );
    assert_eq!(
        (reading.used_mb, reading.free_mb),
        (used_mb, 6144 - used_mb)
    );
    assert_eq!(
        gpus.reading(rig.uuid(1)).unwrap().used_mb,
        0,
        "the other GPU has nothing of it"
    );

    rig.change(|state| state.gpus[0].process_memory = false);
    let unknown = reading_when(&gpus, rig.uuid(0), |reading| {
        reading.processes.iter().all(|p| p.used_mb.is_none())
    });
    assert_eq!((unknown.processes[0].pid, unknown.used_mb), (pid, used_mb));

    drop(process);
    reading_when(&gpus, rig.uuid(0), |reading| {
        reading.used_mb == 0 && reading.processes.is_empty()
    });
}

#[test]
fn a_claim_counts_once_for_a_tree_and_its_holder_is_named() {
    let rig = Rig::new(1);
    let gpus = rig.open().unwrap();
    // A stranger's program by the name of ollama, with children that inherit its claim.
    let process = Process::start_as(
        "ollama",
        "/bin/sh",
        rig.folder.path(),
        &["-c", "sleep 600 & sleep 600 & wait"],
        &[
            ("CUDA_VISIBLE_DEVICES", rig.uuid(0)),
            (CLAIM_VARIABLE, "5100"),
        ],
    );
    let pid = process.0.id();
    let children = || std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let start = Instant::now();
    while children().split_whitespace().count() < 2 {
        assert!(start.elapsed() < DEADLINE, "no children");
        std::thread::sleep(Duration::from_millis(10));
    }

    let reading = reading_when(&gpus, rig.uuid(0), |reading| reading.used_mb == 5100);
    let found = holders(&reading, |_| false);
    assert_eq!(
        found.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [format!("5100 MB held by ollama (pid {pid})")]
    );
    assert!(
        found[0].remedy.contains("ollama stop"),
        "{}",
        found[0].remedy
    );
    assert_eq!(holders(&reading, |ours| ours == pid), []);

    let children = children();
    drop(process);
    for child in children.split_whitespace() {
        assert!(Command::new("kill").arg(child).status().unwrap().success());
    }
    reading_when(&gpus, rig.uuid(0), |reading| reading.used_mb == 0);
}

#[test]
fn rigors_own_programs_hold_nothing() {
    let rig = Rig::new(1);
    let gpus = rig.open().unwrap();
    let variables = [("CUDA_VISIBLE_DEVICES", rig.uuid(0))];
    let processes = ["worker", "gpu-agent"]
        .map(|name| Process::start_as(name, "/bin/sleep", rig.folder.path(), &["600"], &variables));
    // Started last: once it is counted, the others were looked at.
    let counted = Process::start("sleep", &["600"], &variables);
    let reading = reading_when(&gpus, rig.uuid(0), |reading| !reading.processes.is_empty());
    assert_eq!(
        reading.processes.iter().map(|p| p.pid).collect::<Vec<_>>(),
        [counted.0.id()]
    );
    drop(processes);
}

#[test]
fn the_state_variable_comes_before_the_file_beside_the_library() {
    let rig = Rig::new(1);
    let elsewhere = rig.folder.path().join("other.json");
    let other = State::with_gpus(4);
    other.write(&elsewhere).unwrap();
    // The variable is read once in a process, so in one of its own.
    let test = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "listed_uuids", "--ignored", "--nocapture"])
        .env("RIGOR_NVML_STATE", &elsewhere)
        .env("RIGOR_TEST_LIBRARY", &rig.library)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&test.stdout);
    for gpu in &other.gpus {
        assert!(output.contains(&gpu.uuid), "{output}");
    }
    assert!(!output.contains(rig.uuid(0)), "{output}");
}

/// Not a test: the other process of the one above.
#[test]
#[ignore = "run by the_state_variable_comes_before_the_file_beside_the_library"]
fn listed_uuids() {
    let library = std::env::var_os("RIGOR_TEST_LIBRARY").map(PathBuf::from);
    if let Some(library) = library {
        println!("{:?}", Gpus::open(Some(&library)).unwrap().list().unwrap());
    }
}
