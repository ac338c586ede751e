use super::*;

pub(super) fn state() -> AgentState {
    AgentState {
        name: "gpu-1".into(),
        health: Health::Healthy,
        ailment: None,
        default_model: Some("qwen2.5:7b".into()),
        llm: LlmState::Cold,
        failed_loads: Vec::new(),
        cpu: Slots { used: 0, total: 4 },
        gpu: Some(GpuState {
            budget_mb: 4915,
            available_mb: 4915,
            ..GpuState::default()
        }),
        running: Vec::new(),
    }
}

fn hot(used: u32) -> AgentState {
    let llm = LlmState::Hot {
        model: "qwen2.5:7b".into(),
        tier: 2,
        slots: Slots { used, total: 2 },
    };
    let mut state = AgentState { llm, ..state() };
    let gpu = state.gpu.as_mut().unwrap();
    (gpu.available_mb, gpu.leased_mb) = (890, 4025);
    let running = |n| Running {
        class: Class::Llm,
        label: format!("a1b2c3d{n}"),
        for_s: 720,
    };
    state.running = (0..used).map(running).collect();
    state
}

fn ailing(health: Health, code: Refusal, detail: &str) -> AgentState {
    AgentState {
        health,
        ailment: Some(Verdict {
            code,
            detail: detail.into(),
        }),
        ..hot(0)
    }
}

fn candidate(class: Class, count: usize, needs: Needs) -> Candidate {
    Candidate {
        class,
        count,
        needs,
        passed_over_s: 0,
    }
}

fn cpu(cpus: u32) -> Candidate {
    candidate(Class::Cpu, 5, Needs::Cpu { cpus })
}

fn script(vram: VramNeed) -> Candidate {
    candidate(Class::Script, 3, Needs::Script { cpus: 1, vram })
}

fn llm(model: Option<&str>) -> Candidate {
    candidate(
        Class::Llm,
        125,
        Needs::Llm {
            model: model.map(str::to_owned),
            min_tier: None,
        },
    )
}

fn load(model: &str, eligible: &[&str]) -> Candidate {
    let eligible = eligible.iter().map(|name| (*name).to_owned()).collect();
    let needs = Needs::Load {
        model: model.into(),
        eligible,
        expired: false,
        vram: VramNeed::Mb(4000),
    };
    candidate(Class::Meta, 1, needs)
}

fn unload() -> Candidate {
    candidate(
        Class::Meta,
        1,
        Needs::Unload {
            agent: "gpu-1".into(),
        },
    )
}

#[track_caller]
fn admits(state: &AgentState, candidates: &[Candidate], class: Class) {
    let decision = decide(state, candidates);
    assert_eq!(
        decision.admit.map(|at| candidates[at].class),
        Some(class),
        "{decision:?}"
    );
    assert_eq!(decision.idle(state), None);
}

#[track_caller]
fn refuses(state: &AgentState, candidate: &Candidate, code: Refusal, detail: &str) {
    let candidates = std::slice::from_ref(candidate);
    let decision = decide(state, candidates);
    let verdict = Verdict {
        code,
        detail: detail.into(),
    };
    assert_eq!(decision.admit, None);
    assert_eq!(decision.verdicts.get(&candidate.class), Some(&verdict));
    let others = candidate.class == Class::Meta && code == Refusal::NoSuitableClass;
    let idle = decision.idle(state);
    match others {
        // What is for others is no reason.
        true => assert_eq!(idle.map(|it| it.code), Some(Refusal::QueueEmpty)),
        false => assert_eq!(idle, Some(verdict)),
    }
}

fn all() -> Vec<Candidate> {
    vec![
        cpu(1),
        llm(None),
        script(VramNeed::Mb(800)),
        load("qwen2.5:7b", &["gpu-1"]),
    ]
}

#[test]
fn a_cold_agent_prefers_meta_then_script_then_cpu() {
    let mut candidates = all();
    for class in [Class::Meta, Class::Script, Class::Cpu] {
        admits(&state(), &candidates, class);
        candidates.retain(|candidate| candidate.class != class);
    }
    refuses(
        &state(),
        &llm(None),
        Refusal::ModelNotLoaded,
        "llm:125 need qwen2.5:7b",
    );
}

#[test]
fn a_hot_agent_prefers_meta_then_llm_then_script_beside_the_model_then_cpu() {
    let mut candidates = all();
    candidates[3] = unload();
    for class in [Class::Meta, Class::Llm, Class::Script, Class::Cpu] {
        admits(&hot(0), &candidates, class);
        candidates.retain(|candidate| candidate.class != class);
    }
}

#[test]
fn a_constrained_agent_takes_meta_and_cpu_but_loads_nothing() {
    for (code, detail) in [
        (Refusal::Thermal, "84C >= 80C"),
        (Refusal::Power, "181W >= 170W"),
        (
            Refusal::VramShort,
            "5500MB in use of 6144MB, 5100MB held by ollama (pid 2210)",
        ),
    ] {
        let state = ailing(Health::Constrained, code, detail);
        admits(&state, &[cpu(1)], Class::Cpu);
        admits(&state, &[unload()], Class::Meta);
        for candidate in [llm(None), script(VramNeed::Mb(1)), load("x", &["gpu-1"])] {
            refuses(&state, &candidate, code, detail);
        }
    }
}

#[test]
fn a_paused_draining_or_lost_agent_takes_only_meta_on_request() {
    for (health, code) in [
        (Health::Paused, Refusal::Paused),
        (Health::Draining, Refusal::Draining),
        (Health::Quarantined, Refusal::GpuLost),
    ] {
        let state = ailing(health, code, "since 21:44");
        for candidate in [
            cpu(1),
            llm(None),
            script(VramNeed::Mb(1)),
            load("x", &["gpu-1", "gpu-2"]),
        ] {
            refuses(&state, &candidate, code, "since 21:44");
        }
        admits(&state, &[unload()], Class::Meta);
        let cold = AgentState {
            llm: LlmState::Cold,
            gpu: super::tests::state().gpu,
            ..state
        };
        match health {
            Health::Paused => admits(&cold, &[load("x", &["gpu-1"])], Class::Meta),
            _ => refuses(&cold, &load("x", &["gpu-1"]), code, "since 21:44"),
        }
    }
}

#[test]
fn an_agent_without_a_gpu_takes_only_cpu() {
    let state = AgentState {
        gpu: None,
        ..state()
    };
    admits(&state, &all(), Class::Cpu);
    refuses(
        &state,
        &script(VramNeed::Mb(1)),
        Refusal::NoSuitableClass,
        "script:3 need a GPU, this agent has none",
    );
    refuses(
        &state,
        &llm(None),
        Refusal::NoSuitableClass,
        "llm:125 need a GPU, this agent has none",
    );
    refuses(
        &state,
        &load("x", &["gpu-1"]),
        Refusal::NoSuitableClass,
        "load_llm is for gpu-1",
    );
}

#[test]
fn an_empty_queue_is_said_to_be_empty() {
    let decision = decide(&state(), &[]);
    assert_eq!(decision.idle(&state()).unwrap().code, Refusal::QueueEmpty);
    assert!(decision.verdicts.is_empty());
}

#[test]
fn what_is_for_others_does_not_hide_the_reason_that_counts() {
    let elsewhere = candidate(
        Class::Llm,
        2,
        Needs::Elsewhere {
            on: vec!["gpu-2".into()],
        },
    );
    refuses(
        &state(),
        &elsewhere,
        Refusal::NoSuitableClass,
        "llm:2 only for gpu-2",
    );
    let candidates = [
        load("qwen2.5:7b", &["gpu-2", "gpu-3"]),
        elsewhere,
        llm(None),
    ];
    let decision = decide(&state(), &candidates);
    assert_eq!(
        decision.verdicts[&Class::Meta].detail,
        "load_llm is for gpu-2, gpu-3"
    );
    let idle = decision.idle(&state()).unwrap();
    assert_eq!(
        (idle.code, idle.detail.as_str()),
        (Refusal::ModelNotLoaded, "llm:125 need qwen2.5:7b")
    );
}

#[test]
fn full_slots_name_who_has_them() {
    refuses(
        &hot(2),
        &llm(None),
        Refusal::SlotsFull,
        "2/2 (a1b2c3d0 for 12m, a1b2c3d1 for 12m)",
    );
    let mut state = state();
    state.cpu.used = 3;
    state.running = vec![Running {
        class: Class::Cpu,
        label: "d5de16d7".into(),
        for_s: 5400,
    }];
    admits(&state, &[cpu(1)], Class::Cpu);
    refuses(
        &state,
        &cpu(2),
        Refusal::CpuSlotsFull,
        "3/4 (d5de16d7 for 1h 30m), a task needs 2",
    );
    refuses(
        &state,
        &cpu(9),
        Refusal::CpuSlotsFull,
        "3/4 (d5de16d7 for 1h 30m), a task needs 9, which this agent never has",
    );
    let gpu = state.gpu.as_mut().unwrap();
    (gpu.scripts, gpu.script_slots) = (1, Some(1));
    state.running[0] = Running {
        class: Class::Script,
        label: "d5de16d7".into(),
        for_s: 34,
    };
    refuses(
        &state,
        &script(VramNeed::Mb(1)),
        Refusal::SlotsFull,
        "1/1 (d5de16d7 for 34s)",
    );
}

#[test]
fn the_model_must_be_the_one_that_is_asked_for() {
    let detail = "llm:125 need llama3:8b, qwen2.5:7b (tier 2) is loaded";
    refuses(
        &hot(0),
        &llm(Some("llama3:8b")),
        Refusal::WrongModel,
        detail,
    );
    let tier = |min_tier| {
        candidate(
            Class::Llm,
            1,
            Needs::Llm {
                model: None,
                min_tier,
            },
        )
    };
    admits(&hot(0), &[tier(Some(2))], Class::Llm);
    let detail = "llm:1 need a model of tier 3, qwen2.5:7b (tier 2) is loaded";
    refuses(&hot(0), &tier(Some(3)), Refusal::WrongModel, detail);
    // Another model than the agent's own is no answer to a task that names none.
    let other = AgentState {
        default_model: Some("llama3:8b".into()),
        ..hot(0)
    };
    refuses(
        &other,
        &llm(None),
        Refusal::WrongModel,
        "llm:125 need llama3:8b, qwen2.5:7b (tier 2) is loaded",
    );
    let no_default = AgentState {
        default_model: None,
        ..hot(0)
    };
    admits(&no_default, &[llm(None)], Class::Llm);
}

#[test]
fn a_script_that_does_not_fit_beside_a_needed_model_waits_for_it() {
    let large = script(VramNeed::Mb(4096));
    let decision = decide(&hot(2), &[large.clone(), llm(None)]);
    assert_eq!(
        decision.verdicts[&Class::Script],
        Verdict {
            code: Refusal::HoldingModel,
            detail: "script:3 need 4096MB, have 890MB beside qwen2.5:7b, kept by 125 queued and 2 running llm tasks".into(),
        }
    );
    refuses(
        &hot(0),
        &large,
        Refusal::VramShort,
        "script:3 need 4096MB, have 890MB of 4915MB, short by 3206MB; qwen2.5:7b is loaded and nothing needs it",
    );
    refuses(
        &hot(0),
        &script(VramNeed::Alone),
        Refusal::VramShort,
        "script:3 need the GPU alone until measured, have 890MB of 4915MB; qwen2.5:7b is loaded and nothing needs it",
    );
}

#[test]
fn an_unmeasured_script_runs_alone() {
    admits(&state(), &[script(VramNeed::Alone)], Class::Script);
    let mut busy = state();
    busy.running = vec![Running {
        class: Class::Script,
        label: "d5de16d7".into(),
        for_s: 60,
    }];
    let gpu = busy.gpu.as_mut().unwrap();
    (gpu.scripts, gpu.leased_mb, gpu.available_mb) = (1, 2048, 2867);
    admits(&busy, &[script(VramNeed::Mb(2867))], Class::Script);
    refuses(
        &busy,
        &script(VramNeed::Alone),
        Refusal::VramShort,
        "script:3 need the GPU alone until measured, have 2867MB of 4915MB; 1 running (d5de16d7 for 1m)",
    );
    let mut crowded = state();
    let gpu = crowded.gpu.as_mut().unwrap();
    gpu.available_mb = 0;
    gpu.foreign = Some("5100 MB held by ollama (pid 2210)".into());
    refuses(
        &crowded,
        &script(VramNeed::Alone),
        Refusal::VramShort,
        "script:3 need the GPU alone until measured, have 0MB of 4915MB; 5100 MB held by ollama (pid 2210)",
    );
    busy.gpu.as_mut().unwrap().alone = Some("d5de16d7".into());
    refuses(
        &busy,
        &script(VramNeed::Mb(10)),
        Refusal::VramShort,
        "script:3 need 10MB, have 2867MB of 4915MB; d5de16d7 runs alone until its memory is measured",
    );
    refuses(
        &state(),
        &script(VramNeed::Mb(8000)),
        Refusal::VramShort,
        "script:3 need 8000MB, have 4915MB of 4915MB, short by 3085MB: never fits here",
    );
}

#[test]
fn a_load_needs_a_cold_gpu_an_eligible_agent_and_no_backoff() {
    let mine = load("qwen2.5:7b", &["gpu-1", "gpu-2"]);
    admits(&state(), std::slice::from_ref(&mine), Class::Meta);
    refuses(
        &hot(0),
        &mine,
        Refusal::NoSuitableClass,
        "qwen2.5:7b is loaded here already",
    );
    let by_name = load("qwen2.5:7b", &["gpu-1"]);
    admits(&hot(0), std::slice::from_ref(&by_name), Class::Meta);
    refuses(
        &hot(0),
        &load("llama3:8b", &["gpu-1"]),
        Refusal::WrongModel,
        "load of llama3:8b needs a cold GPU, qwen2.5:7b is loaded",
    );
    let mut expired = mine.clone();
    if let Needs::Load { expired, .. } = &mut expired.needs {
        *expired = true;
    }
    refuses(
        &state(),
        &expired,
        Refusal::NoSuitableClass,
        "load of qwen2.5:7b is past its time",
    );

    let failed = |retry_in_s| AgentState {
        failed_loads: vec![FailedLoad {
            model: "qwen2.5:7b".into(),
            cause: "out of memory".into(),
            retry_in_s,
        }],
        ..state()
    };
    let detail = "qwen2.5:7b failed to load (out of memory); tried again in 25s";
    refuses(&failed(25), &mine, Refusal::Backoff, detail);
    admits(&failed(25), &[load("llama3:8b", &["gpu-1"])], Class::Meta);
    admits(&failed(0), std::slice::from_ref(&mine), Class::Meta);
    let detail = "llm:125 need qwen2.5:7b, whose runtime failed here (out of memory)";
    refuses(&failed(25), &llm(None), Refusal::RuntimeFailing, detail);

    let mut tight = state();
    tight.gpu.as_mut().unwrap().available_mb = 3000;
    let detail = "load of qwen2.5:7b needs 4000MB, have 3000MB of 4915MB, short by 1000MB";
    refuses(&tight, &mine, Refusal::VramShort, detail);
}

#[test]
fn while_a_model_moves_only_cpu_is_taken() {
    for (llm_state, words) in [
        (
            LlmState::Loading {
                model: "m".into(),
                for_s: 12,
            },
            "m is loading for 12s",
        ),
        (LlmState::Draining { model: "m".into() }, "m is draining"),
        (LlmState::Unloading { model: "m".into() }, "m is unloading"),
    ] {
        let state = AgentState {
            llm: llm_state,
            ..state()
        };
        admits(&state, &all(), Class::Cpu);
        let waits = format!("script:3 wait: {words}");
        refuses(
            &state,
            &script(VramNeed::Mb(1)),
            Refusal::HoldingModel,
            &waits,
        );
        let needs = format!("llm:125 need m; {words}");
        refuses(&state, &llm(Some("m")), Refusal::ModelNotLoaded, &needs);
        let busy = format!("one load or unload at a time: {words}");
        refuses(&state, &load("x", &["gpu-1"]), Refusal::SlotsFull, &busy);
        refuses(&state, &unload(), Refusal::SlotsFull, &busy);
    }
}

#[test]
fn what_others_hold_is_a_lost_race() {
    let contended = candidate(Class::Llm, 197, Needs::Contended);
    refuses(
        &hot(0),
        &contended,
        Refusal::LostRace,
        "llm:197 claimed by others",
    );
}

#[test]
fn what_was_passed_over_for_long_reserves_its_room() {
    let mut state = state();
    let gpu = state.gpu.as_mut().unwrap();
    (gpu.scripts, gpu.leased_mb, gpu.available_mb) = (1, 2048, 2867);
    let mut large = script(VramNeed::Mb(4096));
    let small = script(VramNeed::Mb(1000));
    admits(&state, &[large.clone(), small.clone()], Class::Script);
    large.passed_over_s = RESERVE_AFTER_S;
    let candidates = [large.clone(), small.clone(), cpu(1)];
    let decision = decide(&state, &candidates);
    assert_eq!(decision.admit, Some(2), "a cpu task takes no memory");
    assert_eq!(decision.verdicts[&Class::Script].code, Refusal::VramShort);
    // What can never fit reserves nothing.
    large.needs = Needs::Script {
        cpus: 1,
        vram: VramNeed::Mb(9000),
    };
    admits(&state, &[large, small], Class::Script);
}

#[test]
fn every_code_is_reached() {
    // Said by the tests above; lost codes would be dead vocabulary.
    let source = include_str!("tests.rs");
    for code in [
        "QueueEmpty",
        "NoSuitableClass",
        "ModelNotLoaded",
        "WrongModel",
        "HoldingModel",
        "VramShort",
        "SlotsFull",
        "CpuSlotsFull",
        "Thermal",
        "Power",
        "Paused",
        "Draining",
        "RuntimeFailing",
        "Backoff",
        "LostRace",
        "GpuLost",
    ] {
        assert!(source.contains(&format!("Refusal::{code}")), "{code}");
    }
}

#[test]
fn close_to_a_limit_half_of_the_slots_are_used_and_the_refusal_says_why() {
    let mut state = hot(2);
    let LlmState::Hot { slots, .. } = &mut state.llm else {
        panic!()
    };
    slots.total = 4;
    let llm = Candidate {
        class: Class::Llm,
        count: 7,
        needs: Needs::Llm {
            model: None,
            min_tier: None,
        },
        passed_over_s: 0,
    };
    assert_eq!(decide(&state, std::slice::from_ref(&llm)).admit, Some(0));
    let near = Some("78C is within 5C of the limit 80C".to_owned());
    state.gpu.as_mut().unwrap().near_limit = near.clone();
    let verdict = &decide(&state, std::slice::from_ref(&llm)).verdicts[&Class::Llm];
    assert_eq!(verdict.code, Refusal::SlotsFull);
    assert_eq!(
        verdict.detail,
        "2/2 (a1b2c3d0 for 12m, a1b2c3d1 for 12m); 2 of 4 slots while 78C is within 5C of the limit 80C"
    );

    let mut state = self::state();
    let script = Candidate {
        class: Class::Script,
        needs: Needs::Script {
            cpus: 1,
            vram: VramNeed::Mb(10),
        },
        ..llm
    };
    let gpu = state.gpu.as_mut().unwrap();
    (gpu.near_limit, gpu.scripts) = (near, 1);
    assert_eq!(
        decide(&state, std::slice::from_ref(&script)).admit,
        Some(0),
        "half of 4 CPU slots"
    );
    state.gpu.as_mut().unwrap().scripts = 2;
    let verdict = &decide(&state, std::slice::from_ref(&script)).verdicts[&Class::Script];
    assert_eq!(
        verdict.detail,
        "2/2; 2 of 4 slots while 78C is within 5C of the limit 80C"
    );
    let gpu = state.gpu.as_mut().unwrap();
    (gpu.scripts, gpu.script_slots) = (0, Some(1));
    assert_eq!(
        decide(&state, std::slice::from_ref(&script)).admit,
        Some(0),
        "one at least"
    );
}

#[test]
fn what_is_to_be_measured_waits_until_ended_memory_is_back() {
    let mut state = state();
    state.gpu.as_mut().unwrap().settling = Some("e1e2e3e4".into());
    let script = |vram| Candidate {
        class: Class::Script,
        count: 1,
        needs: Needs::Script { cpus: 1, vram },
        passed_over_s: 0,
    };
    let load = Candidate {
        class: Class::Meta,
        needs: Needs::Load {
            model: "m".into(),
            eligible: vec!["gpu-1".into()],
            expired: false,
            vram: VramNeed::Mb(10),
        },
        ..script(VramNeed::Alone)
    };
    let candidates = [script(VramNeed::Alone), load, script(VramNeed::Mb(4915))];
    let decision = decide(&state, &candidates);
    assert_eq!(
        decision.admit,
        Some(2),
        "a known need is counted, not measured"
    );
    for refused in &decision.refusals[..2] {
        let refused = refused.as_ref().unwrap();
        assert_eq!(refused.code, Refusal::VramShort);
        assert!(
            refused
                .detail
                .contains("the memory of e1e2e3e4, which has ended, is not seen to be back yet"),
            "{}",
            refused.detail
        );
    }
}

fn lend(agent: &str, to: &str, model: &str, mb: u64) -> Candidate {
    let needs = Needs::Lend {
        agent: agent.into(),
        to: to.into(),
        model: model.into(),
        expired: false,
        vram: VramNeed::Mb(mb),
    };
    candidate(Class::Meta, 1, needs)
}

#[test]
fn a_gpu_is_lent_by_a_cold_agent_with_room_and_by_no_other() {
    let mine = lend("gpu-1", "gpu-2", "big", 4000);
    admits(&state(), std::slice::from_ref(&mine), Class::Meta);
    let other = lend("gpu-3", "gpu-2", "big", 4000);
    let refusal = "lend_gpu is for gpu-3";
    refuses(&state(), &other, Refusal::NoSuitableClass, refusal);
    let mut short = state();
    short.gpu.as_mut().unwrap().available_mb = 3000;
    let detail = "load of big needs 4000MB, have 3000MB of 4915MB, short by 1000MB";
    refuses(&short, &mine, Refusal::VramShort, detail);
    let held = "load of big needs a cold GPU, qwen2.5:7b is loaded";
    refuses(&hot(0), &mine, Refusal::WrongModel, held);
    let paused = ailing(Health::Paused, Refusal::Paused, "by an operator");
    refuses(&paused, &mine, Refusal::Paused, "by an operator");
    let mut late = mine.clone();
    if let Needs::Lend { expired, .. } = &mut late.needs {
        *expired = true;
    }
    let past = "load of big is past its time";
    refuses(&state(), &late, Refusal::NoSuitableClass, past);
    // Like a load, it keeps later scripts off the memory that it waits for.
    let waiting = Candidate {
        passed_over_s: RESERVE_AFTER_S,
        ..mine
    };
    let decision = decide(&short, &[waiting, script(VramNeed::Mb(1000))]);
    assert_eq!(decision.admit, None);
    assert!(
        decision.verdicts[&Class::Script]
            .detail
            .contains("room for big")
    );
}

#[test]
fn a_lent_gpu_serves_nobody_else_and_names_who_has_it() {
    let lent = |to: &str| AgentState {
        llm: LlmState::Lent {
            model: "big".into(),
            to: to.into(),
        },
        ..state()
    };
    admits(&lent("gpu-2"), &all(), Class::Cpu);
    let waits = "script:3 wait: the GPU is lent to gpu-2 for big";
    let small = script(VramNeed::Mb(1));
    refuses(&lent("gpu-2"), &small, Refusal::HoldingModel, waits);
    let waits = "llm:125 wait: the GPU is lent to gpu-2, which runs big";
    refuses(
        &lent("gpu-2"),
        &llm(Some("big")),
        Refusal::ModelNotLoaded,
        waits,
    );
    let occupied = "load of x needs a cold GPU, this one is lent to gpu-2 for big";
    let single = load("x", &["gpu-1"]);
    refuses(&lent("gpu-2"), &single, Refusal::WrongModel, occupied);
    // Its own load over several, and the end of it.
    admits(&lent("gpu-1"), &[load("big", &["gpu-1"])], Class::Meta);
    let unload = Needs::Unload {
        agent: "gpu-1".into(),
    };
    admits(
        &lent("gpu-2"),
        &[candidate(Class::Meta, 1, unload)],
        Class::Meta,
    );
    // Asked again, it says so.
    admits(
        &lent("gpu-2"),
        &[lend("gpu-1", "gpu-2", "big", 9999)],
        Class::Meta,
    );
    let taken = lend("gpu-1", "gpu-3", "huge", 1);
    let occupied = "load of huge needs a cold GPU, this one is lent to gpu-2 for big";
    refuses(&lent("gpu-2"), &taken, Refusal::WrongModel, occupied);
}
