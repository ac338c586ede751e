use nvml_stand_in::Fault;
use rigor_queue::heartbeat::{Health, Refusal};
use rigor_queue::record::Outcome;
use rigor_queue::rig::Place;
use rigor_queue::task::{Class, Vram};

use crate::rig::TestRig;

#[test]
fn a_hot_gpu_takes_cpu_tasks_only_until_it_has_cooled() {
    let rig = TestRig::new(1, "");
    rig.set_state(|state| state.gpus[0].temperature_c = 84);
    rig.run(Class::Script, "s", "true");
    rig.run(Class::Cpu, "c", "true");
    let _agent = rig.agent("gpu-1");
    rig.wait("the cpu task", || rig.complete() == 1);
    rig.wait("the verdict", || {
        rig.heartbeat("gpu-1").is_some_and(|beat| {
            beat.verdicts
                .get(&Class::Script)
                .is_some_and(|it| it.code == Refusal::Thermal)
        })
    });
    let beat = rig.heartbeat("gpu-1").unwrap();
    assert_eq!(beat.health, Health::Constrained);
    assert_eq!(beat.verdicts[&Class::Script].detail, "84C >= 80C");
    rig.set_state(|state| state.gpus[0].temperature_c = 60);
    rig.wait("the script", || rig.complete() == 2);
}

#[test]
fn memory_that_others_hold_is_named_with_its_holder() {
    let rig = TestRig::new(1, "");
    // It names the GPU in its environment, so the stand-in counts its claim.
    let mut other = std::process::Command::new("sleep")
        .arg("600")
        .env("CUDA_VISIBLE_DEVICES", &rig.state.gpus[0].uuid)
        .env(nvml_stand_in::CLAIM_VARIABLE, "4900")
        .spawn()
        .unwrap();
    let mut spec = rig.spec(Class::Script, "s", "true");
    spec.vram = Vram::Fixed { mb: 1000 };
    rig.queue(&spec);
    let _agent = rig.agent("gpu-1");
    let holder = format!("4900 MB held by sleep (pid {})", other.id());
    rig.wait("the verdict", || {
        rig.heartbeat("gpu-1").is_some_and(|beat| {
            beat.verdicts
                .get(&Class::Script)
                .is_some_and(|it| it.detail.contains(&holder))
        })
    });
    other.kill().unwrap();
    other.wait().unwrap();
    rig.wait("the script, once there is room", || rig.complete() == 1);
}

#[test]
fn a_lost_gpu_is_quarantined_and_its_task_goes_back_uncharged() {
    let rig = TestRig::new(1, "");
    let name = rig.run(Class::Script, "s", "sleep 600");
    rig.run(Class::Cpu, "c", "true");
    let agent = rig.agent("gpu-1");
    rig.wait_for_line("gpu-1", &format!("Spawned worker {}", name.id.short()));
    rig.wait("the cpu task", || rig.complete() == 1);
    rig.set_state(|state| state.gpus[0].fault = Some(Fault::GpuIsLost));
    let next = name.next_attempt(false);
    rig.wait("it is back in the queue", || {
        rig.rig.path(Place::Queue(Class::Script), &next).exists()
    });
    assert!(matches!(rig.record(&name).outcome, Outcome::Lost { .. }));
    rig.wait("the quarantine", || {
        rig.heartbeat("gpu-1")
            .is_some_and(|beat| beat.health == Health::Quarantined)
    });
    let idle = rig.heartbeat("gpu-1").unwrap();
    assert!(idle.health_reason.unwrap().contains("is lost"));
    rig.wait_for_line("gpu-1", "ERROR GPU of gpu-1 is lost and quarantined");
    assert_eq!(rig.count(Place::Queue(Class::Script)), 1);

    rig.set_state(|state| state.gpus[0].fault = None);
    rig.wait("what to do, now that it answers", || {
        let reason = rig.heartbeat("gpu-1").and_then(|beat| beat.health_reason);
        reason.is_some_and(|it| it.contains("answers again: start its agent anew"))
    });
    assert_eq!(
        rig.count(Place::Queue(Class::Script)),
        1,
        "nothing is taken"
    );
    drop(agent);
    let _agent = rig.agent("gpu-1");
    rig.wait("the script is taken", || {
        rig.count(Place::Queue(Class::Script)) == 0
    });
}

#[test]
fn without_a_driver_the_agent_lives_and_says_why_it_does_nothing() {
    let rig = TestRig::new(1, "");
    rig.set_state(|state| state.init_fault = Some(Fault::DriverNotLoaded));
    rig.run(Class::Script, "s", "true");
    let mut agent = rig.agent("gpu-1");
    rig.wait("the heartbeat", || {
        rig.heartbeat("gpu-1")
            .is_some_and(|beat| beat.health == Health::Quarantined)
    });
    let reason = rig.heartbeat("gpu-1").unwrap().health_reason.unwrap();
    assert!(reason.contains("driver does not answer"), "{reason}");
    rig.wait_for_line("gpu-1", "tried again until it works");
    rig.set_state(|state| state.init_fault = None);
    rig.wait("the script, once the driver is there", || {
        rig.complete() == 1
    });
    rig.wait_for_line("gpu-1", "The GPU of gpu-1 can be read, after");
    agent.terminate();
    assert!(agent.ended().success());
}

/// A short patience with the driver.
const IMPATIENT: &str =
    "[timing]\nheartbeat_every = \"200ms\"\ngrace = \"2s\"\ngpu_hung = \"1s\"\n";

fn gpu_lost_because(rig: &TestRig, words: &str) -> bool {
    rig.heartbeat("gpu-1").is_some_and(|beat| {
        let script = beat.verdicts.get(&Class::Script);
        script.is_some_and(|it| it.code == Refusal::GpuLost && it.detail.contains(words))
    })
}

#[test]
fn a_driver_that_hangs_is_told_and_cpu_work_goes_on() {
    let rig = TestRig::new(1, IMPATIENT);
    rig.run(Class::Cpu, "c1", "true");
    let _agent = rig.agent("gpu-1");
    rig.wait("the first cpu task", || rig.complete() == 1);
    rig.set_state(|state| state.gpus[0].hangs = true);
    rig.wait_for_line(
        "gpu-1",
        "WARNING NVML has not answered for 1s: reading the GPU hangs",
    );
    rig.run(Class::Script, "s", "true");
    rig.run(Class::Cpu, "c2", "true");
    rig.wait("the other cpu task", || rig.complete() == 2);
    rig.wait("the verdict", || {
        gpu_lost_because(&rig, "NVML does not answer for")
    });
    assert_eq!(rig.heartbeat("gpu-1").unwrap().health, Health::Constrained);
    rig.set_state(|state| state.gpus[0].hangs = false);
    rig.wait("the script", || rig.complete() == 3);
    rig.wait_for_line("gpu-1", "NVML answers again, after");
    let warned = rig.log("gpu-1").matches("NVML has not answered").count();
    assert_eq!(warned, 1, "once");
}

#[test]
fn a_driver_that_hangs_at_the_start_does_not_hang_the_agent() {
    let rig = TestRig::new(1, IMPATIENT);
    rig.set_state(|state| state.init_hangs = true);
    rig.run(Class::Script, "s", "true");
    let _agent = rig.agent("gpu-1");
    rig.wait_for_line(
        "gpu-1",
        "WARNING NVML has not answered for 1s: opening the GPU hangs",
    );
    rig.wait("the verdict", || {
        gpu_lost_because(&rig, "NVML does not answer for")
    });
    rig.set_state(|state| state.init_hangs = false);
    rig.wait("the script", || rig.complete() == 1);
}

#[test]
fn a_gpu_that_comes_late_is_waited_for() {
    let rig = TestRig::new(1, IMPATIENT);
    let own = rig.state.gpus[0].clone();
    rig.set_state(|state| state.gpus.clear());
    rig.run(Class::Script, "s", "true");
    let _agent = rig.agent("gpu-1");
    let there_is_none = format!("there is no GPU {} here (found: none)", own.uuid);
    rig.wait("the verdict", || gpu_lost_because(&rig, &there_is_none));
    rig.set_state(|state| state.gpus = vec![own.clone()]);
    rig.wait("the script", || rig.complete() == 1);
}

#[test]
fn readings_that_fail_are_no_ground_for_a_claim() {
    for fault in [Fault::Unknown, Fault::Timeout, Fault::NoPermission] {
        let rig = TestRig::new(1, IMPATIENT);
        rig.run(Class::Cpu, "c1", "true");
        let _agent = rig.agent("gpu-1");
        rig.wait("the first cpu task", || rig.complete() == 1);
        rig.set_state(|state| {
            state.gpus[0]
                .fails
                .insert(nvml_stand_in::Query::Memory, fault);
        });
        rig.wait("the failure", || {
            rig.heartbeat("gpu-1")
                .is_some_and(|beat| beat.health == Health::Constrained)
        });
        rig.run(Class::Script, "s", "true");
        rig.run(Class::Cpu, "c2", "true");
        rig.wait("the other cpu task", || rig.complete() == 2);
        rig.wait("the verdict", || {
            gpu_lost_because(&rig, "cannot read the memory of")
        });
        rig.set_state(|state| state.gpus[0].fails.clear());
        rig.wait("the script", || rig.complete() == 3);
    }
}

#[test]
fn what_a_gpu_does_not_tell_costs_nothing() {
    use nvml_stand_in::Query;
    let rig = TestRig::new(1, IMPATIENT);
    rig.set_state(|state| {
        for query in [
            Query::Name,
            Query::Temperature,
            Query::PowerUsage,
            Query::PowerLimit,
            Query::Utilization,
            Query::Clocks,
            Query::Throttle,
            Query::Processes,
        ] {
            state.gpus[0].fails.insert(query, Fault::NotSupported);
        }
    });
    rig.run(Class::Script, "s", "true");
    let _agent = rig.agent("gpu-1");
    rig.wait("the script", || rig.complete() == 1);
}

#[test]
fn a_script_that_runs_out_of_memory_says_what_it_had() {
    let rig = TestRig::new(1, "");
    let shortage = "echo 'RuntimeError: CUDA out of memory. Tried to allocate 2 GiB'; exit 1";
    let mut spec = rig.spec(Class::Script, "s", shortage);
    spec.vram = Vram::Fixed { mb: 1000 };
    let name = rig.queue(&spec);
    let _agent = rig.agent("gpu-1");
    rig.wait("it failed", || {
        rig.rig.path(Place::Retry(&spec.batch), &name).exists()
    });
    let record = rig.record(&name);
    let Outcome::Failed { kind, reason } = &record.outcome else {
        panic!("{:?}", record.outcome);
    };
    assert_eq!(*kind, rigor_queue::record::FailureKind::OutOfMemory);
    assert!(
        reason.contains(
            "CUDA out of memory. Tried to allocate 2 GiB; it had 1000MB of the 4915MB for tasks"
        ),
        "{reason}"
    );
    let had = record.gpu_memory.unwrap();
    assert_eq!(
        (had.leased_mb, had.budget_mb, had.raised),
        (Some(1000), 4915, false)
    );
}
