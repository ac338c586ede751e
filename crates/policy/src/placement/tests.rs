use super::*;

fn agent(name: &str, llm: LlmBeat) -> Agent {
    Agent {
        name: name.to_owned(),
        alive: true,
        health: Health::Healthy,
        health_reason: None,
        llm,
        held_seconds: 1000.0,
        llm_running: 0,
        scripts_blocked: false,
        cannot: Vec::new(),
        failed: Vec::new(),
        load_seconds: Vec::new(),
        room_in_seconds: Vec::new(),
    }
}

fn hot(model: &str) -> LlmBeat {
    LlmBeat::Hot {
        model: model.to_owned(),
        slots: 1,
        load_ms: 40_000,
        since: jiff_epoch(),
        lenders: Vec::new(),
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
            Decision::Unload { .. }
            | Decision::Split { .. }
            | Decision::Keep { .. }
            | Decision::Stranded { .. } => None,
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
    assert_eq!(reason, "42m on one GPU, 15m on three");
}

/// Where each of two models gets its loads, as (model, agents).
fn places(view: &View) -> Vec<(String, String)> {
    let places = decide(view)
        .into_iter()
        .filter_map(|decision| match decision {
            Decision::Load {
                model, eligible, ..
            } => Some((model, eligible.join(" "))),
            _ => None,
        });
    places.collect()
}

/// Ten times the work does not keep the other model from its first GPU, whose load has to be anyway;
/// and neither may take the GPU that is meant for the other.
#[test]
fn each_waiting_model_gets_a_gpu_before_one_gets_a_second() {
    let mut view = View {
        models: vec![demand("a", 500), demand("b", 1)],
        agents: three_cold(),
        ..View::default()
    };
    let expected = [("a", "gpu-1 gpu-4"), ("b", "gpu-2")];
    let expected = expected.map(|(model, agents)| (model.to_owned(), agents.to_owned()));
    assert_eq!(places(&view), expected);
    // One that is served already has had its first.
    view.agents[0].llm = hot("a");
    view.agents.pop();
    assert_eq!(places(&view), [("b".to_owned(), "gpu-2".to_owned())]);
}

#[test]
fn further_gpus_go_by_the_work_for_each_gpu() {
    let mut agents = three_cold();
    agents.push(agent("gpu-5", LlmBeat::Cold));
    let view = View {
        models: vec![demand("a", 110), demand("b", 100)],
        agents,
        ..View::default()
    };
    let two = |model: &str| (model.to_owned(), 2, 2);
    assert_eq!(loads(&view), [two("a"), two("b")]);
}

/// `b` failed on gpu-4 and fits there only as a last resort: what can be loaded there as well goes there.
#[test]
fn a_model_takes_the_gpu_that_others_can_use_least() {
    let mut view = View {
        models: vec![demand("a", 1), demand("b", 100)],
        agents: three_cold(),
        ..View::default()
    };
    view.agents[2].failed = vec![failed("b", 1, 0.0)];
    let expected = [("b", "gpu-1 gpu-2"), ("a", "gpu-4")];
    let expected = expected.map(|(model, agents)| (model.to_owned(), agents.to_owned()));
    assert_eq!(places(&view), expected);
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
        lenders: Vec::new(),
    };
    let view = View {
        models: vec![demand("m", 125)],
        agents,
        pending: vec![Pending {
            model: "m".to_owned(),
            eligible: Vec::new(),
        }],
        ..View::default()
    };
    assert_eq!(
        kept(&view),
        "the brain keeps it on gpu-1, a load is on its way on gpu-2, a load was asked for: only gpu-4 may take it"
    );
    assert_eq!(decide(&view).len(), 1, "and nothing else");
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
    agents[0].health_reason = Some("thermal (84C >= 80C)".to_owned());
    agents[1].alive = false;
    let view = View {
        models: vec![demand("m", 125)],
        agents: agents.clone(),
        ..View::default()
    };
    assert_eq!(loads(&view), [("m".to_owned(), 1, 1)]);
    agents[2].failed = vec![FailedLoad {
        model: "m".to_owned(),
        cause: "no such file".to_owned(),
        times: 1,
        retry_in_seconds: 30.0,
    }];
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
        "gpu-1 thermal (84C >= 80C), gpu-2 not running, gpu-4 failed to load it 1 time, again in 30s: no such file"
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
    assert_eq!(loads(&view(801.0)), [("m".to_owned(), 1, 1)]);
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
        [Decision::Keep { .. }, Decision::Keep { .. }]
    ));
    assert!(matches!(
        &decide(&view(801.0))[..],
        [Decision::Unload { .. }, Decision::Keep { .. }]
    ));
}

/// The whole swap, decision by decision: the room that was made for the starving model is not
/// given back to the one with the larger backlog.
#[test]
fn a_starving_model_gets_the_room_that_was_made_for_it() {
    let starving = Demand {
        waiting_seconds: 900.0,
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

#[test]
fn scripts_that_waited_twenty_loads_take_one_gpu_from_a_model_that_is_needed() {
    let mut agents = three_cold();
    for agent in &mut agents {
        agent.llm = hot("a");
        agent.scripts_blocked = true;
        agent.llm_running = 1;
    }
    let view = |agents: &[Agent], scripts_waiting_seconds| View {
        models: vec![demand("a", 500)],
        agents: agents.to_vec(),
        scripts_queued: 1,
        scripts_waiting_seconds,
        ..View::default()
    };
    let unloads = |view: &View| {
        decide(view)
            .into_iter()
            .filter_map(|decision| match decision {
                Decision::Unload { agent, reason, .. } => Some((agent, reason)),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(unloads(&view(&agents, 799.0)), []);
    let expected = "script tasks have waited 13m for memory, more than 20 loads of a (13m)";
    assert_eq!(
        unloads(&view(&agents, 801.0)),
        [("gpu-1".to_owned(), expected.to_owned())]
    );
    agents[2].llm = LlmBeat::Draining {
        model: "a".to_owned(),
    };
    assert_eq!(unloads(&view(&agents, 801.0)), [], "one at a time");
}

/// The reason of the one decision, which is to keep everything as it is.
fn kept(view: &View) -> String {
    match &decide(view)[..] {
        [Decision::Keep { reason, .. }, ..] => reason.clone(),
        other => panic!("{other:?}"),
    }
}

fn hot_on_first(demand: Demand) -> View {
    let mut agents = three_cold();
    agents[0].llm = hot("m");
    View {
        models: vec![demand],
        agents,
        ..View::default()
    }
}

#[test]
fn too_little_work_for_another_gpu_is_said_with_the_comparison() {
    let mut view = hot_on_first(demand("m", 2));
    assert_eq!(
        kept(&view),
        "the brain keeps it on gpu-1 only: 40s of work < 1.5 x 40s load"
    );
    view.agents[1].llm = hot("m");
    view.models[0].queued = 6;
    view.agents[2].health = Health::Constrained;
    view.agents[2].health_reason = Some("thermal (84C >= 80C)".to_owned());
    assert_eq!(
        kept(&view),
        "the brain keeps it on gpu-1, gpu-2 only: no other agent can take it (gpu-4 thermal (84C >= 80C))"
    );
    view.agents[2] = agent("gpu-4", LlmBeat::Cold);
    assert_eq!(
        kept(&view),
        "the brain keeps it on gpu-1, gpu-2 only: 2m of work / 2 GPUs <= 1.5 x 40s load"
    );
}

#[test]
fn enough_slots_are_said_with_both_counts() {
    let many = Demand {
        slots: 4,
        task_seconds: 1000.0,
        ..demand("m", 3)
    };
    assert_eq!(
        kept(&hot_on_first(many)),
        "the brain keeps it on gpu-1 only: as many GPUs as slots need: 3 tasks <= 1 x 4 slots"
    );
}

#[test]
fn a_gpu_that_is_kept_for_scripts_is_named() {
    let mut view = hot_on_first(demand("m", 125));
    view.agents.remove(2);
    view.scripts_queued = 12;
    view.script_seconds = 300.0;
    assert_eq!(
        kept(&view),
        "the brain keeps it on gpu-1 only: gpu-2 is kept for 12 queued script tasks (5m)"
    );
}

#[test]
fn a_model_that_is_everywhere_has_no_gpu_left() {
    let mut view = hot_on_first(demand("m", 125));
    view.agents.truncate(1);
    assert_eq!(kept(&view), "the brain keeps it on gpu-1: no GPU is left");
}

#[test]
fn an_agent_that_was_just_given_another_model_is_named() {
    let mut agents = three_cold();
    agents.truncate(2);
    agents[0].llm = hot("m");
    let view = View {
        models: vec![demand("m", 50), demand("n", 100)],
        agents,
        ..View::default()
    };
    let decisions = decide(&view);
    assert!(matches!(&decisions[0], Decision::Load { model, .. } if model == "n"));
    let Decision::Keep { reason, .. } = &decisions[1] else {
        panic!("{decisions:?}")
    };
    assert_eq!(
        reason,
        "the brain keeps it on gpu-1 only: no other agent can take it (gpu-2 is to load n)"
    );
}

/// Asked of gpu-1 alone while the others did not run: gpu-1 dies, another one comes.
#[test]
fn a_load_that_only_others_could_take_is_misplaced() {
    let mut agents = three_cold();
    let eligible = ["gpu-1".to_owned()];
    let misplaced = |agents: &[Agent]| {
        let view = View {
            models: vec![demand("m", 125)],
            agents: agents.to_vec(),
            ..View::default()
        };
        is_misplaced(&view, "m", &eligible)
    };
    assert!(!misplaced(&agents), "gpu-1 will take it");
    agents[0].alive = false;
    assert!(misplaced(&agents));
    for agent in &mut agents {
        agent.alive = false;
    }
    assert!(!misplaced(&agents), "nobody could");
}

#[test]
fn one_starved_model_frees_one_gpu_alone() {
    let mut agents = three_cold();
    for agent in &mut agents {
        agent.llm = hot("b");
        agent.llm_running = 1;
    }
    let starved = Demand {
        waiting_seconds: 900.0,
        ..demand("a", 1)
    };
    let mut view = View {
        models: vec![demand("b", 500), starved],
        agents,
        ..View::default()
    };
    let unloads = |view: &View| {
        let decisions = decide(view).into_iter();
        decisions
            .filter(|decision| matches!(decision, Decision::Unload { .. }))
            .count()
    };
    assert_eq!(unloads(&view), 1);
    view.agents[0].llm = LlmBeat::Draining {
        model: "b".to_owned(),
    };
    assert_eq!(unloads(&view), 0, "gpu-1 is on its way");
}

#[test]
fn what_a_paused_agent_holds_serves_nobody() {
    let mut agents = three_cold();
    agents[0].llm = hot("m");
    agents[0].health = Health::Paused;
    let view = View {
        models: vec![demand("m", 3)],
        agents,
        ..View::default()
    };
    assert_eq!(loads(&view), [("m".to_owned(), 1, 2)]);
}

fn failed(model: &str, times: u32, retry_in_seconds: f64) -> FailedLoad {
    FailedLoad {
        model: model.to_owned(),
        cause: "no such file".to_owned(),
        times,
        retry_in_seconds,
    }
}

/// A model that no agent can load is not asked for again and again: it is stranded, with causes,
/// until the first wait is over; and who has not failed is asked before who has.
#[test]
fn a_model_that_every_agent_has_failed_is_stranded_until_a_wait_is_over() {
    let mut agents = three_cold();
    agents.truncate(2);
    agents[0].failed = vec![failed("m", 3, 100.0)];
    agents[1].failed = vec![failed("m", 1, 20.0)];
    let mut view = View {
        models: vec![demand("m", 125)],
        agents,
        ..View::default()
    };
    let Decision::Stranded { reason, .. } = &decide(&view)[0] else {
        panic!("{:?}", decide(&view))
    };
    assert_eq!(
        reason,
        "gpu-1 failed to load it 3 times, again in 1m 40s: no such file, gpu-2 failed to load it 1 time, again in 20s: no such file"
    );
    view.agents[1].failed[0].retry_in_seconds = 0.0;
    assert_eq!(
        loads(&view),
        [("m".to_owned(), 1, 1)],
        "gpu-2 may try again"
    );
    view.agents.push(agent("gpu-4", LlmBeat::Cold));
    let Decision::Load { eligible, .. } = &decide(&view)[0] else {
        panic!()
    };
    assert_eq!(eligible, &["gpu-4"], "it has never failed");
    // What failed for one model hinders no other.
    view.models[0].model = "n".to_owned();
    assert_eq!(loads(&view), [("n".to_owned(), 3, 3)]);
}

#[test]
fn two_models_for_one_gpu_wait_for_their_turn_and_say_so() {
    let view = View {
        models: vec![
            demand("a", 50),
            Demand {
                waiting_seconds: 200.0,
                ..demand("b", 5)
            },
        ],
        agents: vec![agent("gpu-1", hot("a"))],
        ..View::default()
    };
    let Decision::Keep { model, reason } = &decide(&view)[1] else {
        panic!("{:?}", decide(&view))
    };
    assert_eq!(model, "b");
    assert_eq!(
        reason,
        "waits for gpu-1, which has 50 tasks for a (at most 10m until its turn)"
    );
}

#[test]
fn nothing_is_unloaded_for_a_load_that_scripts_would_keep_off() {
    let mut agents = three_cold();
    agents.truncate(2);
    agents[0].llm = hot("m");
    agents[1].llm = hot("n");
    let mut view = View {
        models: vec![demand("m", 125)],
        agents,
        ..View::default()
    };
    let unloads = |view: &View| {
        let decisions = decide(view);
        let is_unload = |decision: &&Decision| matches!(decision, Decision::Unload { .. });
        decisions.iter().filter(is_unload).count()
    };
    assert_eq!(unloads(&view), 1, "nothing needs n");
    view.scripts_queued = 3;
    view.script_seconds = 60.0;
    assert_eq!(unloads(&view), 0, "scripts would have the GPU then");
}

#[test]
fn a_model_serves_for_as_long_as_its_load_took() {
    let mut view = View {
        models: vec![
            demand("a", 50),
            Demand {
                waiting_seconds: 801.0,
                ..demand("b", 5)
            },
        ],
        agents: vec![agent("gpu-1", hot("a"))],
        ..View::default()
    };
    view.agents[0].held_seconds = 39.0;
    let Decision::Keep { reason, .. } = &decide(&view)[0] else {
        panic!("{:?}", decide(&view))
    };
    assert_eq!(
        reason,
        "waits for gpu-1, which has just loaded a and keeps it for 1s yet (its turn is next)"
    );
    view.agents[0].held_seconds = 40.0;
    assert!(matches!(&decide(&view)[0], Decision::Unload { next: Some(next), .. } if next == "b"));
    // Unless nothing needs it.
    view.agents[0].held_seconds = 1.0;
    view.models[0].queued = 0;
    assert!(matches!(&decide(&view)[0], Decision::Unload { .. }));
}

#[test]
fn who_runs_scripts_for_long_is_not_asked_while_another_could() {
    let mut view = View {
        models: vec![demand("m", 125)],
        agents: three_cold(),
        ..View::default()
    };
    let busy = |seconds| {
        vec![ModelSeconds {
            model: "m".to_owned(),
            seconds,
        }]
    };
    view.agents[0].room_in_seconds = busy(600.0);
    view.agents[1].room_in_seconds = busy(10.0);
    let Decision::Load {
        count, eligible, ..
    } = &decide(&view)[0]
    else {
        panic!()
    };
    assert_eq!((*count, eligible.join(" ")), (2, "gpu-2 gpu-4".to_owned()));
    for agent in &mut view.agents {
        agent.room_in_seconds = busy(600.0);
    }
    assert_eq!(loads(&view), [("m".to_owned(), 3, 3)], "nobody else could");
}

#[test]
fn each_gpu_counts_with_its_own_load_time() {
    let mut view = View {
        models: vec![demand("m", 10)],
        agents: three_cold(),
        ..View::default()
    };
    view.agents[0].load_seconds = vec![ModelSeconds {
        model: "m".to_owned(),
        seconds: 300.0,
    }];
    let Decision::Load {
        count, eligible, ..
    } = &decide(&view)[0]
    else {
        panic!()
    };
    // 200 s of work: a third GPU pays with a load of 40 s, and not with one of 300 s.
    assert_eq!((*count, eligible.join(" ")), (2, "gpu-2 gpu-4".to_owned()));
}
