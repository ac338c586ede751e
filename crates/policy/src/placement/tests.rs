use super::*;

fn agent(name: &str, llm: LlmBeat) -> Agent {
    Agent {
        name: name.to_owned(),
        alive: true,
        health: Health::Healthy,
        health_reason: None,
        llm,
        llm_running: 0,
        scripts_blocked: false,
        cannot: Vec::new(),
        backing_off: None,
    }
}

fn hot(model: &str) -> LlmBeat {
    LlmBeat::Hot {
        model: model.to_owned(),
        slots: 1,
        load_ms: 40_000,
        since: jiff_epoch(),
    }
}

fn jiff_epoch() -> jiff::Timestamp {
    jiff::Timestamp::UNIX_EPOCH
}

fn demand(model: &str, queued: usize) -> Demand {
    Demand {
        model: model.to_owned(),
        queued,
        task_seconds: 20.0,
        measured: true,
        slots: 1,
        load_seconds: 40.0,
        waiting_seconds: 0.0,
    }
}

fn three_cold() -> Vec<Agent> {
    ["gpu-1", "gpu-2", "gpu-4"]
        .map(|name| agent(name, LlmBeat::Cold))
        .to_vec()
}

fn loads(view: &View) -> Vec<(String, usize, usize)> {
    decide(view)
        .into_iter()
        .filter_map(|decision| match decision {
            Decision::Load {
                model,
                count,
                eligible,
                ..
            } => Some((model, count, eligible.len())),
            Decision::Unload { .. } | Decision::Stranded { .. } => None,
        })
        .collect()
}

/// The founding run: 125 tasks of 20 s, a load of 40 s, three GPUs: all three are heated.
#[test]
fn the_founding_run_heats_every_gpu() {
    let view = View {
        models: vec![demand("m", 125)],
        agents: three_cold(),
        ..View::default()
    };
    assert_eq!(loads(&view), [("m".to_owned(), 3, 3)]);
    let Decision::Load { reason, .. } = &decide(&view)[0] else {
        panic!()
    };
    assert_eq!(
        reason,
        "125 tasks x 20.0s (measured) / 1 slots = 2500s on one GPU, load 40.0s: 2540s on 1, 873s on 3"
    );
}

#[test]
fn a_short_backlog_heats_one() {
    let view = View {
        models: vec![demand("m", 3)],
        agents: three_cold(),
        ..View::default()
    };
    assert_eq!(loads(&view), [("m".to_owned(), 1, 3)]);
}

#[test]
fn what_is_hot_loading_or_asked_for_is_not_asked_for_again() {
    let mut agents = three_cold();
    agents[0].llm = hot("m");
    agents[1].llm = LlmBeat::Loading {
        model: "m".to_owned(),
        since: jiff_epoch(),
    };
    let view = View {
        models: vec![demand("m", 125)],
        agents,
        pending: vec![Pending {
            model: "m".to_owned(),
        }],
        ..View::default()
    };
    assert_eq!(decide(&view), []);
}

#[test]
fn no_more_gpus_than_slots_can_use() {
    let many_slots = Demand {
        slots: 8,
        task_seconds: 1000.0,
        ..demand("m", 8)
    };
    let view = View {
        models: vec![many_slots],
        agents: three_cold(),
        ..View::default()
    };
    assert_eq!(loads(&view), [("m".to_owned(), 1, 3)]);
}

#[test]
fn an_agent_that_cannot_is_left_out_and_named_when_nobody_can() {
    let mut agents = three_cold();
    agents[0].health = Health::Constrained;
    agents[0].health_reason = Some("84C >= 80C".to_owned());
    agents[1].alive = false;
    let view = View {
        models: vec![demand("m", 125)],
        agents: agents.clone(),
        ..View::default()
    };
    assert_eq!(loads(&view), [("m".to_owned(), 1, 1)]);
    agents[2].llm = LlmBeat::Failed {
        model: "m".to_owned(),
        cause: "no such file".to_owned(),
        until: jiff_epoch(),
    };
    agents[2].backing_off = Some("m".to_owned());
    let view = View {
        models: vec![demand("m", 125)],
        agents,
        ..View::default()
    };
    let Decision::Stranded { reason, .. } = &decide(&view)[0] else {
        panic!()
    };
    assert_eq!(
        reason,
        "gpu-1 constrained (84C >= 80C), gpu-2 not running, gpu-4 backing off after a failed load: no such file"
    );
}

#[test]
fn queued_scripts_keep_the_last_cold_gpu_but_not_all() {
    let view = View {
        models: vec![demand("m", 125)],
        agents: three_cold(),
        scripts_queued: 50,
        script_seconds: 100.0,
        ..View::default()
    };
    assert_eq!(loads(&view), [("m".to_owned(), 2, 3)]);
}

#[test]
fn one_gpu_finishes_its_scripts_first_unless_the_model_is_starved() {
    let view = |waiting_seconds| View {
        models: vec![Demand {
            waiting_seconds,
            ..demand("m", 125)
        }],
        agents: vec![agent("gpu-1", LlmBeat::Cold)],
        scripts_queued: 5,
        script_seconds: 100.0,
        ..View::default()
    };
    assert_eq!(loads(&view(0.0)), []);
    assert_eq!(loads(&view(401.0)), [("m".to_owned(), 1, 1)]);
}

#[test]
fn a_model_that_nobody_needs_makes_room_for_one_that_somebody_does() {
    let view = View {
        models: vec![demand("b", 5)],
        agents: vec![agent("gpu-1", hot("a"))],
        ..View::default()
    };
    assert!(matches!(&decide(&view)[..], [Decision::Unload { agent, .. }] if agent == "gpu-1"));
}

#[test]
fn two_needed_models_swap_only_after_a_long_wait() {
    let view = |waiting_seconds| View {
        models: vec![
            demand("a", 50),
            Demand {
                waiting_seconds,
                ..demand("b", 5)
            },
        ],
        agents: vec![agent("gpu-1", hot("a"))],
        ..View::default()
    };
    assert!(matches!(
        &decide(&view(100.0))[..],
        [Decision::Stranded { .. }]
    ));
    assert!(matches!(
        &decide(&view(401.0))[..],
        [Decision::Unload { .. }]
    ));
}

/// The whole swap, decision by decision: the room that was made for the starving model is not
/// given back to the one with the larger backlog.
#[test]
fn a_starving_model_gets_the_room_that_was_made_for_it() {
    let starving = Demand {
        waiting_seconds: 500.0,
        ..demand("b", 5)
    };
    let view = |llm: LlmBeat| View {
        models: vec![demand("a", 50), starving.clone()],
        agents: vec![agent("gpu-1", llm)],
        ..View::default()
    };
    assert!(matches!(
        &decide(&view(hot("a")))[..],
        [Decision::Unload { .. }, ..]
    ));
    let second = decide(&view(LlmBeat::Cold));
    assert!(
        matches!(&second[0], Decision::Load { model, .. } if model == "b"),
        "{second:?}"
    );
    assert!(
        !second
            .iter()
            .any(|decision| matches!(decision, Decision::Load { model, .. } if model == "a")),
        "{second:?}"
    );
}

#[test]
fn an_idle_model_yields_to_scripts_that_it_blocks_but_not_while_it_runs() {
    let view = |llm_running| {
        let mut holder = agent("gpu-1", hot("a"));
        holder.scripts_blocked = true;
        holder.llm_running = llm_running;
        View {
            agents: vec![holder],
            scripts_queued: 3,
            script_seconds: 60.0,
            ..View::default()
        }
    };
    assert!(matches!(&decide(&view(0))[..], [Decision::Unload { .. }]));
    assert_eq!(decide(&view(1)), []);
}
