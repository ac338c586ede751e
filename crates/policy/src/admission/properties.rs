use std::collections::BTreeSet;

use proptest::prelude::*;

use super::tests::state;
use super::*;

fn any_llm() -> impl Strategy<Value = LlmState> {
    let model = || prop_oneof![Just("a".to_owned()), Just("b".to_owned())];
    prop_oneof![
        Just(LlmState::Cold),
        model().prop_map(|model| LlmState::Loading { model, for_s: 3 }),
        (model(), 0u32..3, 0u32..5).prop_map(|(model, tier, used)| LlmState::Hot {
            model,
            tier,
            slots: Slots {
                used: used.min(4),
                total: 4
            }
        }),
        (model(), prop::sample::select(vec!["gpu-1", "gpu-2"])).prop_map(|(model, to)| {
            LlmState::Lent {
                model,
                to: to.to_owned(),
            }
        }),
        model().prop_map(|model| LlmState::Draining { model }),
        model().prop_map(|model| LlmState::Unloading { model }),
    ]
}

fn any_state() -> impl Strategy<Value = AgentState> {
    let health = prop::sample::select(vec![
        Health::Healthy,
        Health::Constrained,
        Health::Paused,
        Health::Draining,
        Health::Quarantined,
    ]);
    let gpu = prop::option::of((
        0u64..6000,
        0u64..6000,
        0u32..3,
        prop::option::of(1u32..3),
        any::<bool>(),
        any::<bool>(),
    ));
    (health, any_llm(), 0u32..5, gpu).prop_map(|(health, llm, used, gpu)| AgentState {
        health,
        llm: if gpu.is_some() { llm } else { LlmState::Cold },
        cpu: Slots {
            used: used.min(4),
            total: 4,
        },
        gpu: gpu.map(
            |(available_mb, leased_mb, scripts, script_slots, settling, near)| GpuState {
                budget_mb: available_mb + leased_mb,
                available_mb,
                leased_mb,
                scripts,
                script_slots,
                alone: None,
                foreign: None,
                settling: settling.then(|| "e1".to_owned()),
                near_limit: near.then(|| "78C is within 5C of the limit 80C".to_owned()),
            },
        ),
        ailment: (health != Health::Healthy).then(|| Verdict {
            code: Refusal::Paused,
            detail: "test".into(),
        }),
        ..state()
    })
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let vram = || prop_oneof![(0u64..7000).prop_map(VramNeed::Mb), Just(VramNeed::Alone)];
    let model = || prop::sample::select(vec!["a".to_owned(), "b".to_owned()]);
    let needs = prop_oneof![
        (1u32..6).prop_map(|cpus| (Class::Cpu, Needs::Cpu { cpus })),
        (1u32..6, vram()).prop_map(|(cpus, vram)| (Class::Script, Needs::Script { cpus, vram })),
        (prop::option::of(model()), prop::option::of(0u32..3))
            .prop_map(|(model, min_tier)| (Class::Llm, Needs::Llm { model, min_tier })),
        (model(), any::<bool>(), any::<bool>(), vram()).prop_map(|(model, me, expired, vram)| {
            let eligible = vec![if me {
                "gpu-1".to_owned()
            } else {
                "gpu-2".to_owned()
            }];
            (
                Class::Meta,
                Needs::Load {
                    model,
                    eligible,
                    expired,
                    vram,
                },
            )
        }),
        (model(), any::<bool>(), any::<bool>(), vram()).prop_map(|(model, me, expired, vram)| {
            let (agent, to) = if me {
                ("gpu-1", "gpu-2")
            } else {
                ("gpu-2", "gpu-1")
            };
            let (agent, to) = (agent.to_owned(), to.to_owned());
            (
                Class::Meta,
                Needs::Lend {
                    agent,
                    to,
                    model,
                    expired,
                    vram,
                },
            )
        }),
        any::<bool>().prop_map(|me| {
            let agent = if me { "gpu-1" } else { "gpu-2" }.to_owned();
            (Class::Meta, Needs::Unload { agent })
        }),
        Just((Class::Llm, Needs::Contended)),
        Just((
            Class::Cpu,
            Needs::Elsewhere {
                on: vec!["gpu-9".to_owned()]
            }
        )),
    ];
    (
        needs,
        1usize..200,
        prop::sample::select(vec![0, RESERVE_AFTER_S]),
    )
        .prop_map(|((class, needs), count, passed_over_s)| Candidate {
            class,
            count,
            needs,
            passed_over_s,
        })
}

proptest! {
    #[test]
    fn never_admits_over_slots_cpus_or_memory(
        state in any_state(), candidates in prop::collection::vec(any_candidate(), 0..12),
    ) {
        let decision = decide(&state, &candidates);
        let available = state.gpu.as_ref().map_or(0, |gpu| gpu.available_mb);
        let fits = |vram: VramNeed| match vram {
            VramNeed::Mb(mb) => mb <= available,
            VramNeed::Alone => state.gpu.as_ref().is_some_and(|gpu| gpu.leased_mb == 0 && gpu.scripts == 0 && gpu.settling.is_none()),
        };
        if let Some(at) = decision.admit {
            match &candidates[at].needs {
                Needs::Cpu { cpus } => prop_assert!(state.cpu.used + cpus <= state.cpu.total),
                Needs::Script { cpus, vram } => {
                    prop_assert!(state.cpu.used + cpus <= state.cpu.total);
                    prop_assert!(fits(*vram));
                    prop_assert_eq!(state.health, Health::Healthy);
                    let gpu = state.gpu.as_ref().unwrap();
                    prop_assert!(gpu.script_slots.is_none_or(|limit| gpu.scripts < limit));
                    let most = gpu.script_slots.unwrap_or(state.cpu.total) / 2;
                    prop_assert!(gpu.near_limit.is_none() || gpu.scripts < most.max(1));
                }
                Needs::Llm { .. } => match &state.llm {
                    LlmState::Hot { slots, .. } => {
                        let near = state.gpu.as_ref().is_some_and(|gpu| gpu.near_limit.is_some());
                        let allowed = if near { (slots.total / 2).max(1) } else { slots.total };
                        prop_assert!(slots.used < allowed);
                    }
                    other => prop_assert!(false, "an llm task with {other:?}"),
                },
                Needs::Load { model, vram, eligible, expired } => {
                    prop_assert!(!expired && eligible.contains(&state.name));
                    match &state.llm {
                        LlmState::Cold => prop_assert!(fits(*vram)),
                        // It is there already, and this agent alone was asked.
                        LlmState::Hot { model: loaded, .. } => {
                            prop_assert!(loaded == model && eligible.len() == 1);
                        }
                        // Its memory is leased.
                        LlmState::Lent { model: of, to } => {
                            prop_assert!(of == model && *to == state.name);
                        }
                        other => prop_assert!(false, "a load with {other:?}"),
                    }
                }
                Needs::Lend { agent, to, model, expired, vram } => {
                    prop_assert!(!expired && *agent == state.name);
                    prop_assert_eq!(state.health, Health::Healthy);
                    match &state.llm {
                        LlmState::Cold => prop_assert!(fits(*vram)),
                        LlmState::Lent { model: of, to: whom } => prop_assert!(of == model && whom == to),
                        other => prop_assert!(false, "a lend with {other:?}"),
                    }
                }
                Needs::Unload { agent } => prop_assert_eq!(agent, &state.name),
                Needs::Contended | Needs::Elsewhere { .. } => prop_assert!(false),
            }
            if matches!(state.health, Health::Paused | Health::Draining | Health::Quarantined) {
                prop_assert_eq!(candidates[at].class, Class::Meta);
            }
        }
        // Each class either has something admissible or a verdict with words in it.
        let classes: BTreeSet<Class> = candidates.iter().map(|candidate| candidate.class).collect();
        for class in classes {
            let admitted = decision.admit.is_some_and(|at| candidates[at].class == class);
            if let Some(verdict) = decision.verdicts.get(&class) {
                prop_assert!(!admitted && !verdict.detail.is_empty());
            }
            prop_assert!(decision.admit.is_some() || decision.verdicts.contains_key(&class));
        }
    }

    #[test]
    fn claim_order_decides_within_a_class(
        state in any_state(), candidates in prop::collection::vec(any_candidate(), 1..12),
    ) {
        if let Some(at) = decide(&state, &candidates).admit {
            for earlier in candidates[..at].iter().filter(|c| c.class == candidates[at].class) {
                prop_assert_eq!(decide(&state, std::slice::from_ref(earlier)).admit, None);
            }
        }
    }
}
