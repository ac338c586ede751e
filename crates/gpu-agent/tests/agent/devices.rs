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
    drop(agent);
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
    agent.terminate();
    assert!(agent.ended().success());
}
