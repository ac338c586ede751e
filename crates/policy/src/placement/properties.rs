//! What holds of every decision, over random views.

use proptest::prelude::*;

use super::*;

const MODELS: [&str; 4] = ["a", "b", "c", "d"];

fn any_model() -> impl Strategy<Value = String> {
    prop::sample::select(MODELS.to_vec()).prop_map(str::to_owned)
}

fn any_llm() -> impl Strategy<Value = LlmBeat> {
    let since = jiff::Timestamp::UNIX_EPOCH;
    prop_oneof![
        3 => Just(LlmBeat::Cold),
        1 => any_model().prop_map(move |model| LlmBeat::Loading {
            model,
            since,
            lenders: Vec::new(),
        }),
        4 => (any_model(), 0u64..100_000).prop_map(move |(model, load_ms)| LlmBeat::Hot {
            model,
            slots: 2,
            load_ms,
            since,
            lenders: Vec::new(),
        }),
        1 => any_model().prop_map(|model| LlmBeat::Draining { model }),
        1 => any_model().prop_map(|model| LlmBeat::Unloading { model }),
    ]
}

fn any_seconds() -> impl Strategy<Value = Vec<ModelSeconds>> {
    let one =
        (any_model(), 0.0..400.0).prop_map(|(model, seconds)| ModelSeconds { model, seconds });
    prop::collection::vec(one, 0..3)
}

prop_compose! {
    fn any_agent()(
        llm in any_llm(),
        alive in prop::bool::weighted(0.9),
        health in prop::sample::select(vec![
            Health::Healthy, Health::Healthy, Health::Healthy, Health::Healthy,
            Health::Constrained, Health::Paused, Health::Draining, Health::Quarantined,
        ]),
        held_seconds in 0.0..200.0,
        llm_running in 0u32..3,
        scripts_blocked in any::<bool>(),
        cannot in prop::collection::vec(any_model(), 0..2),
        failed in prop::collection::vec((any_model(), 1u32..9, prop_oneof![Just(0.0), 0.0..600.0]), 0..2),
        load_seconds in any_seconds(),
        room_in_seconds in any_seconds(),
    ) -> Agent {
        Agent {
            name: String::new(),
            alive,
            health,
            health_reason: None,
            llm_running: if matches!(llm, LlmBeat::Hot { .. } | LlmBeat::Draining { .. }) { llm_running } else { 0 },
            scripts_blocked: scripts_blocked && matches!(llm, LlmBeat::Hot { .. }),
            held_seconds,
            cannot: cannot.into_iter().map(|model| (model, "vram_short".to_owned())).collect(),
            failed: failed.into_iter().map(|(model, times, retry_in_seconds)| FailedLoad {
                model, cause: "no such file".to_owned(), times, retry_in_seconds,
            }).collect(),
            load_seconds,
            room_in_seconds,
            llm,
        }
    }
}

prop_compose! {
    fn any_view()(
        demands in prop::collection::vec(
            (0usize..300, 0.5..60.0, 1u32..5, 1.0..300.0, prop_oneof![2 => 0.0..100.0, 1 => 0.0..9000.0]),
            MODELS.len(),
        ),
        agents in prop::collection::vec(any_agent(), 0..8),
        pending in prop::collection::vec(any_model(), 0..3),
        upcoming in prop::collection::btree_set(any_model(), 0..3),
        scripts_queued in prop_oneof![Just(0usize), 1usize..300],
        script_seconds in 1.0..30.0,
        scripts_waiting_seconds in prop_oneof![2 => Just(0.0), 1 => 0.0..9000.0],
    ) -> View {
        let models = demands.into_iter().zip(MODELS).map(
            |((queued, task_seconds, slots, load_seconds, waiting_seconds), model)| Demand {
                model: model.to_owned(),
                queued,
                task_seconds,
                measured: true,
                slots,
                load_seconds,
                waiting_seconds,
            },
        );
        let mut view = View {
            models: models.collect(),
            agents: agents
                .into_iter()
                .enumerate()
                .map(|(at, agent)| Agent { name: format!("gpu-{at}"), ..agent })
                .collect(),
            upcoming,
            scripts_queued,
            script_seconds: script_seconds * scripts_queued as f64,
            scripts_waiting_seconds,
            ..View::default()
        };
        // What is served does not wait.
        for demand in &mut view.models {
            let hot = |agent: &Agent| {
                let hot = matches!(agent.llm, LlmBeat::Hot { .. });
                hot && serves(agent, &demand.model)
            };
            if view.agents.iter().any(hot) {
                demand.waiting_seconds = 0.0;
            }
        }
        // An empty GPU keeps room for scripts that were passed over: they wait on full ones.
        let empty = |agent: &Agent| agent.alive && agent.llm == LlmBeat::Cold;
        if view.agents.iter().any(empty) {
            view.scripts_waiting_seconds = 0.0;
        }
        // As the brain counts them: loads that somebody will take.
        for model in pending {
            if view.agents.iter().any(|agent| obstacle(agent, &model).is_none()) {
                view.pending.push(Pending { model, eligible: Vec::new() });
            }
        }
        view
    }
}

/// What the world is once what was decided is asked for.
fn applied(view: &View, decisions: &[Decision]) -> View {
    let mut view = view.clone();
    for decision in decisions {
        match decision {
            Decision::Load {
                model,
                count,
                eligible,
                ..
            } => {
                let load = Pending {
                    model: model.clone(),
                    eligible: eligible.clone(),
                };
                view.pending.extend(vec![load; *count]);
            }
            Decision::Unload { agent, .. } => {
                let agent = view.agents.iter_mut().find(|of| of.name == *agent);
                let agent = agent.expect("a known agent");
                let model = agent.llm.model().expect("it holds one").to_owned();
                agent.llm = LlmBeat::Draining { model };
                agent.scripts_blocked = false;
            }
            Decision::Split { .. } | Decision::Keep { .. } | Decision::Stranded { .. } => {}
        }
    }
    view
}

fn acts(decisions: &[Decision]) -> Vec<&Decision> {
    let is_act =
        |decision: &&Decision| matches!(decision, Decision::Load { .. } | Decision::Unload { .. });
    decisions.iter().filter(is_act).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn one_view_one_decision_and_a_record_of_it_says_the_same(view in any_view()) {
        let decisions = decide(&view);
        prop_assert_eq!(&decisions, &decide(&view));
        let record = Record {
            schema: SCHEMA,
            policy: POLICY,
            at: jiff::Timestamp::UNIX_EPOCH,
            view,
            decisions,
        };
        prop_assert_eq!(record.differences(), Vec::<String>::new());
    }

    /// What was asked for is not asked for again, and soon nothing is: a model whose GPU was given to
    /// another may ask for one itself, and that is all.
    #[test]
    fn nothing_is_asked_for_twice(view in any_view()) {
        let (mut now, mut loaded, mut made_room) = (view, BTreeSet::new(), BTreeSet::new());
        for round in 0.. {
            let decisions = decide(&now);
            let asked = acts(&decisions);
            if asked.is_empty() {
                break;
            }
            prop_assert!(round <= MODELS.len(), "it goes on: {asked:#?}");
            for act in asked {
                let new = match act {
                    Decision::Load { model, .. } => loaded.insert(model.clone()),
                    Decision::Unload { next: Some(next), .. } => made_room.insert(next.clone()),
                    _ => true,
                };
                prop_assert!(new, "again in round {round}: {act:?}");
            }
            now = applied(&now, &decisions);
        }
    }

    #[test]
    fn every_demand_has_its_answer_and_loads_go_where_they_can(view in any_view()) {
        let decisions = decide(&view);
        for demand in &view.models {
            let about = |decision: &&Decision| match decision {
                Decision::Load { model, .. }
                | Decision::Keep { model, .. }
                | Decision::Stranded { model, .. } => *model == demand.model,
                Decision::Unload { next, .. } => next.as_ref() == Some(&demand.model),
                Decision::Split { .. } => false,
            };
            let answers = decisions.iter().filter(about).count();
            prop_assert_eq!(answers, usize::from(demand.queued > 0), "{}", demand.model);
        }
        let mut loads = 0;
        for decision in &decisions {
            let Decision::Load { model, count, eligible, .. } = decision else { continue };
            prop_assert!(*count > 0 && *count <= eligible.len(), "{decision:?}");
            loads += count;
            for name in eligible {
                let agent = view.agents.iter().find(|agent| agent.name == *name).unwrap();
                prop_assert!(agent.alive && agent.health == Health::Healthy, "{agent:?}");
                prop_assert!(matches!(agent.llm, LlmBeat::Cold | LlmBeat::Failed { .. }), "{agent:?}");
                prop_assert!(agent.cannot.iter().all(|(of, _)| of != model), "{agent:?}");
                prop_assert!(
                    agent.failed.iter().find(|failed| failed.model == *model)
                        .is_none_or(|failed| failed.retry_in_seconds <= 0.0),
                    "{agent:?}"
                );
            }
            let blocked = |name: &String| {
                let agent = view.agents.iter().find(|agent| agent.name == *name).unwrap();
                let demand = view.models.iter().find(|demand| demand.model == *model).unwrap();
                agent.is_blocked_for_long(demand)
            };
            prop_assert!(
                eligible.iter().all(blocked) || !eligible.iter().any(blocked),
                "with one whom scripts keep busy: {decision:?}"
            );
        }
        let cold = view.agents.iter().filter(|agent| {
            agent.alive && agent.health == Health::Healthy && agent.llm == LlmBeat::Cold
        });
        prop_assert!(loads <= cold.count(), "{decisions:#?}");
    }

    #[test]
    fn a_model_goes_only_where_it_may(view in any_view()) {
        let decisions = decide(&view);
        let mut needed_ones = 0;
        let mut seen = BTreeSet::new();
        for decision in &decisions {
            let Decision::Unload { agent, next, .. } = decision else { continue };
            prop_assert!(seen.insert(agent), "{agent} twice");
            let agent = view.agents.iter().find(|of| of.name == *agent).unwrap();
            let LlmBeat::Hot { model, load_ms, .. } = &agent.llm else {
                return Err(TestCaseError::fail(format!("not hot: {agent:?}")));
            };
            prop_assert!(agent.alive);
            let queued = view.models.iter().find(|of| of.model == *model).map_or(0, |of| of.queued);
            if queued > 0 {
                needed_ones += 1;
                prop_assert!(agent.held_seconds >= *load_ms as f64 / 1000.0, "{agent:?}");
                let starves = match next {
                    Some(next) => view.models.iter().any(|of| {
                        of.model == *next && of.waiting_seconds > STARVED_AFTER_LOADS * of.load_seconds
                    }),
                    None => {
                        let held = view.models.iter().find(|of| of.model == *model).unwrap();
                        view.scripts_waiting_seconds > STARVED_AFTER_LOADS * held.load_seconds
                    }
                };
                prop_assert!(starves, "{decision:?}");
            }
            if let Some(next) = next {
                prop_assert!(agent.health == Health::Healthy && model != next);
                prop_assert!(agent.cannot.iter().all(|(of, _)| of != next), "{agent:?}");
            }
        }
        // One for each model that starves, and one for scripts.
        let starving = view.models.iter().filter(|of| of.queued > 0 && of.starves()).count();
        prop_assert!(needed_ones <= starving + 1, "{decisions:#?}");
    }
}
