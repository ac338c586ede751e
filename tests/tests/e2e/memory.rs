//! GPU memory that does not suffice.

use rigor_tests::Rig;

/// A task whose first attempts run out of GPU memory gets more of it, then the GPU; none of that is
/// charged to its retries.
#[test]
fn who_runs_out_of_gpu_memory_gets_more_then_the_gpu() {
    let mut rig = Rig::new(1);
    let plan = rig.plan(
        "memory",
        "### train\n\n- **task_class**: script\n- **vram_policy**: fixed\n- **vram_estimate_mb**: 1000\n- **retries**: 1\n\
         - **command**: `[ $RIGOR_ATTEMPT -ge 3 ] || { echo 'torch.OutOfMemoryError: CUDA out of memory.'; exit 1; }`\n",
    );
    rig.start_all();
    let batch = rig.submit(&plan);
    assert_eq!(rig.wait_short_batch(&batch), 0);
    let shown = rig.json(&["show", &format!("{batch}/train"), "--json"]);
    let attempts = shown["attempts"].as_array().expect("attempts");
    let kinds: Vec<_> = attempts.iter().map(|it| it["kind"].as_str()).collect();
    let short = Some("out_of_memory");
    assert_eq!(kinds, [short, short, None], "{shown:#}");
    let reasons: Vec<_> = attempts
        .iter()
        .filter_map(|it| it["reason"].as_str())
        .collect();
    for (reason, had) in reasons.iter().zip(["it had 1000MB of", "it had 1500MB of"]) {
        assert!(reason.contains(had), "{reason}");
    }
    let log = rig.log("gpu-1");
    assert!(log.contains("[1500MB,"), "{log}");
    assert!(log.contains("[alone on the GPU until measured]"), "{log}");
    let brain = rig.log("brain");
    assert!(brain.contains("tried again with 1500MB"), "{brain}");
    assert!(brain.contains("tried again alone on a GPU"), "{brain}");
}
