//! What is decided about split models, case by case.

use jiff::Timestamp;

use super::*;
use crate::placement::{Demand, Pending, decide, is_misplaced};

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

fn hot(model: &str, lenders: &[&str]) -> LlmBeat {
    LlmBeat::Hot {
        model: model.to_owned(),
        slots: 1,
        load_ms: 10_000,
        since: Timestamp::UNIX_EPOCH,
        lenders: lenders.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn lent(to: &str) -> LlmBeat {
    LlmBeat::Lent {
        model: "big".to_owned(),
        to: to.to_owned(),
        since: Timestamp::UNIX_EPOCH,
    }
}

fn lend(agent: &str, to: &str) -> Lend {
    Lend {
        agent: agent.to_owned(),
        to: to.to_owned(),
        model: "big".to_owned(),
        overdue: false,
    }
}

fn demand(model: &str, queued: usize) -> Demand {
    Demand {
        model: model.to_owned(),
        queued,
        task_seconds: 20.0,
        measured: true,
        slots: 1,
        load_seconds: 10.0,
        waiting_seconds: 5.0,
    }
}

/// `big` needs two of three GPUs, in these states.
fn view(states: [LlmBeat; 3]) -> View {
    let [one, two, three] = states;
    View {
        models: vec![demand("big", 50)],
        agents: vec![
            agent("gpu-1", one),
            agent("gpu-2", two),
            agent("gpu-3", three),
        ],
        splits: Splits {
            gpus: BTreeMap::from([("big".to_owned(), 2)]),
            ..Splits::default()
        },
        ..View::default()
    }
}

fn cold() -> View {
    view([LlmBeat::Cold, LlmBeat::Cold, LlmBeat::Cold])
}

/// What is to be done, in words: `lend gpu-1+gpu-2`, `unload gpu-1`, ...
fn orders(view: &View) -> Vec<String> {
    let words = |decision: Decision| match decision {
        Decision::Split { step } => Some(match step {
            Step::Lend { to, agents, .. } => format!("lend {} to {to}", agents.join("+")),
            Step::Load { on, lenders, .. } => format!("load on {on} over {}", lenders.join("+")),
            Step::Withdraw { to, late, .. } => {
                format!("withdraw {to}{}", if late { " late" } else { "" })
            }
        }),
        Decision::Unload { agent, .. } => Some(format!("unload {agent}")),
        Decision::Load {
            model, eligible, ..
        } => Some(format!("load {model} on {}", eligible.join("|"))),
        Decision::Stranded { model, .. } => Some(format!("{model} stranded")),
        Decision::Keep { .. } => None,
    };
    decide(view).into_iter().filter_map(words).collect()
}

#[test]
fn the_cheapest_gpus_are_gathered_and_the_rest_serves_others() {
    assert_eq!(orders(&cold()), ["lend gpu-1+gpu-2 to gpu-1"]);
    let mut shared = cold();
    shared.models.push(demand("a", 50));
    assert_eq!(
        orders(&shared),
        ["lend gpu-1+gpu-2 to gpu-1", "load a on gpu-3"]
    );
    // Cold ones before those that have to be freed, needed ones not at all.
    let mut mixed = view([hot("a", &[]), hot("b", &[]), LlmBeat::Cold]);
    mixed.models.push(demand("a", 1));
    assert_eq!(orders(&mixed), ["lend gpu-2+gpu-3 to gpu-2"]);
    mixed.models.push(demand("b", 1));
    assert_eq!(orders(&mixed), Vec::<String>::new());
    // Who loads it fastest runs it.
    let mut measured = cold();
    for (at, seconds) in [(0, 40.0), (1, 8.0)] {
        measured.agents[at].load_seconds.push(ModelSeconds {
            model: "big".to_owned(),
            seconds,
        });
    }
    assert_eq!(orders(&measured), ["lend gpu-2+gpu-1 to gpu-2"]);
}

#[test]
fn what_has_waited_long_takes_gpus_whose_models_are_needed() {
    let mut view = view([hot("a", &[]), hot("a", &[]), hot("b", &[])]);
    view.models.extend([demand("a", 9), demand("b", 5)]);
    assert_eq!(orders(&view), Vec::<String>::new());
    view.models[0].waiting_seconds = 201.0;
    assert_eq!(orders(&view), ["lend gpu-1+gpu-3 to gpu-1"]);
    // Not one that has just been loaded.
    view.agents[0].held_seconds = 1.0;
    assert_eq!(orders(&view), ["lend gpu-2+gpu-3 to gpu-2"]);
    view.agents[0].held_seconds = 1000.0;
    view.splits.lends = vec![lend("gpu-1", "gpu-1"), lend("gpu-3", "gpu-1")];
    assert_eq!(orders(&view), ["unload gpu-1", "unload gpu-3"]);
}

#[test]
fn it_is_loaded_when_everybody_lends_and_not_before() {
    let mut view = view([lent("gpu-1"), LlmBeat::Cold, LlmBeat::Cold]);
    view.splits.lends = vec![lend("gpu-2", "gpu-1")];
    view.models.push(demand("a", 50));
    // The third is free for others, the second is spoken for.
    assert_eq!(orders(&view), ["load a on gpu-3"]);
    view.models.truncate(1);
    view.agents[1].llm = lent("gpu-1");
    assert_eq!(
        orders(&view),
        ["load on gpu-1 over gpu-2"],
        "a lend that shows is not waited for, though its task is not over"
    );
    view.splits.lends.clear();
    view.splits.loads = vec![("gpu-1".to_owned(), "big".to_owned())];
    assert_eq!(orders(&view), Vec::<String>::new(), "it was asked for");
}

#[test]
fn a_part_of_a_group_is_completed() {
    let mut view = view([LlmBeat::Cold, lent("gpu-2"), LlmBeat::Cold]);
    assert_eq!(orders(&view), ["lend gpu-1 to gpu-2"]);
    view.agents[0].alive = false;
    view.agents[2].alive = false;
    assert_eq!(orders(&view), ["unload gpu-2"]);
}

#[test]
fn what_is_not_complete_in_time_is_given_back_and_rests() {
    let mut view = view([lent("gpu-1"), hot("a", &[]), LlmBeat::Cold]);
    view.models.push(demand("a", 50));
    view.splits.lends = vec![Lend {
        overdue: true,
        ..lend("gpu-2", "gpu-1")
    }];
    assert_eq!(
        orders(&view),
        ["unload gpu-1", "withdraw gpu-1 late", "load a on gpu-3"]
    );
    view.agents[0].llm = LlmBeat::Cold;
    view.agents[1].llm = LlmBeat::Cold;
    view.splits.lends.clear();
    view.splits.resting = vec![ModelSeconds {
        model: "big".to_owned(),
        seconds: 60.0,
    }];
    assert_eq!(orders(&view), ["load a on gpu-1|gpu-2|gpu-3"]);
}

#[test]
fn one_group_is_gathered_at_a_time() {
    let mut view = cold();
    view.agents.push(agent("gpu-4", LlmBeat::Cold));
    view.models.push(demand("huge", 60));
    view.splits.gpus.insert("huge".to_owned(), 2);
    assert_eq!(orders(&view), ["lend gpu-1+gpu-2 to gpu-1"]);
    let lends = |of: &[(&str, &str)]| -> Vec<Lend> {
        of.iter()
            .flat_map(|(model, to)| {
                ["gpu-1", "gpu-2"].map(|agent| Lend {
                    model: (*model).to_owned(),
                    ..lend(agent, to)
                })
            })
            .collect()
    };
    view.splits.lends = lends(&[("huge", "gpu-1")]);
    assert_eq!(orders(&view), Vec::<String>::new());
    // Two that an earlier brain left: the first by name goes on.
    view.splits.lends = lends(&[("big", "gpu-1"), ("huge", "gpu-2")]);
    assert_eq!(orders(&view), ["withdraw gpu-2"]);
}

#[test]
fn a_lender_that_is_lost_takes_the_group_with_it() {
    let running = || view([lent("gpu-2"), hot("big", &["gpu-1"]), LlmBeat::Cold]);
    assert_eq!(orders(&running()), Vec::<String>::new());
    let mut dead = running();
    dead.agents[0].alive = false;
    assert_eq!(orders(&dead), ["unload gpu-2"]);
    let mut sick = running();
    sick.agents[0].health = Health::Quarantined;
    assert_eq!(orders(&sick), ["unload gpu-2"]);
    let mut busy = running();
    busy.agents[0].llm = hot("a", &[]);
    assert_eq!(orders(&busy), ["unload gpu-2"]);
    // One that was started anew is asked again, once, and not for ever.
    let mut anew = running();
    anew.agents[0].llm = LlmBeat::Cold;
    assert_eq!(orders(&anew), ["lend gpu-1 to gpu-2"]);
    anew.splits.lends = vec![lend("gpu-1", "gpu-2")];
    assert_eq!(orders(&anew), Vec::<String>::new());
    anew.splits.lends[0].overdue = true;
    assert_eq!(orders(&anew), ["unload gpu-2"]);
}

#[test]
fn what_a_leader_leaves_is_given_back() {
    // It dies, or its load failed: nobody else is to run it with these.
    for leader in [
        agent("gpu-2", LlmBeat::Cold),
        Agent {
            alive: false,
            ..agent("gpu-2", hot("big", &["gpu-1"]))
        },
        agent("gpu-2", hot("a", &[])),
    ] {
        let mut view = view([lent("gpu-2"), LlmBeat::Cold, LlmBeat::Cold]);
        view.agents[1] = leader;
        assert_eq!(orders(&view), ["unload gpu-1"]);
    }
    // While it leaves, its memory is not free.
    let mut leaves = view([
        lent("gpu-2"),
        LlmBeat::Unloading {
            model: "big".to_owned(),
        },
        LlmBeat::Cold,
    ]);
    assert_eq!(orders(&leaves), Vec::<String>::new());
    leaves.models.clear();
    leaves.agents[1].llm = LlmBeat::Cold;
    assert_eq!(orders(&leaves), ["unload gpu-1"]);
    // A stranger that lends to a group that runs without it.
    let stranger = view([lent("gpu-2"), hot("big", &["gpu-3"]), lent("gpu-2")]);
    assert_eq!(orders(&stranger), ["unload gpu-1"]);
    // A model that is in rig.toml no more.
    let mut gone = view([lent("gpu-1"), lent("gpu-1"), LlmBeat::Cold]);
    gone.splits.gpus.clear();
    gone.models.clear();
    assert_eq!(orders(&gone), ["unload gpu-1", "unload gpu-2"]);
}

#[test]
fn a_group_goes_for_what_starves_and_only_it_could_serve() {
    let mut view = view([lent("gpu-2"), hot("big", &["gpu-1"]), hot("b", &[])]);
    view.models.extend([demand("a", 5), demand("b", 5)]);
    let only_on_one = |agent: &mut Agent| agent.cannot.push(("a".to_owned(), "small".to_owned()));
    only_on_one(&mut view.agents[1]);
    only_on_one(&mut view.agents[2]);
    assert_eq!(orders(&view), Vec::<String>::new());
    view.models[1].waiting_seconds = 201.0;
    assert_eq!(orders(&view), ["unload gpu-2"]);
    view.agents[1].held_seconds = 1.0;
    assert_eq!(
        orders(&view),
        Vec::<String>::new(),
        "it has just been loaded"
    );
    // Another split model that starves has it likewise.
    let mut two = self::view([lent("gpu-2"), hot("big", &["gpu-1"]), LlmBeat::Cold]);
    two.models.push(demand("huge", 5));
    two.splits.gpus.insert("huge".to_owned(), 2);
    assert_eq!(orders(&two), Vec::<String>::new());
    two.models[1].waiting_seconds = 201.0;
    assert_eq!(orders(&two), ["unload gpu-2"]);
    two.models[1].waiting_seconds = 5.0;
    two.models[0].queued = 0;
    assert_eq!(orders(&two), ["unload gpu-2"], "nothing needs it");
}

/// A script keeps gpu-1 for long, and a load that names gpu-1 alone lies in the queue.
#[test]
fn a_gpu_that_scripts_keep_is_no_reason_to_leave_others_empty() {
    let busy = |mut view: View| {
        view.models.push(demand("a", 20));
        for model in ["a", "big"] {
            let room = ModelSeconds {
                model: model.to_owned(),
                seconds: 600.0,
            };
            view.agents[0].room_in_seconds.push(room);
        }
        view
    };
    let mut asked = busy(cold());
    asked.pending = vec![Pending {
        model: "a".to_owned(),
        eligible: vec!["gpu-1".to_owned()],
    }];
    assert_eq!(orders(&asked), ["lend gpu-2+gpu-3 to gpu-2"]);
    let eligible = ["gpu-1".to_owned()];
    assert!(is_misplaced(&asked, "a", &eligible), "gpu-2 could, too");

    // It was gathered on gpu-1 before the others were free.
    let mut waits = busy(view([LlmBeat::Cold, LlmBeat::Cold, lent("gpu-3")]));
    waits.splits.lends = vec![lend("gpu-1", "gpu-3")];
    let given = orders(&waits);
    assert!(
        given.contains(&"unload gpu-3".to_owned()) && given.contains(&"withdraw gpu-3".to_owned()),
        "{given:?}"
    );
    // Where nobody else is free it waits.
    waits.agents[1].alive = false;
    let given = orders(&waits);
    assert!(!given.contains(&"withdraw gpu-3".to_owned()), "{given:?}");
}

#[test]
fn it_does_not_take_what_others_were_promised_or_wait_for_longer() {
    let mut pending = cold();
    pending.agents[2].alive = false;
    pending.models.push(demand("a", 1));
    pending.pending = vec![Pending {
        model: "a".to_owned(),
        eligible: Vec::new(),
    }];
    assert_eq!(orders(&pending), Vec::<String>::new());
    let mut starving = cold();
    starving.agents[2].alive = false;
    starving.models.push(demand("a", 5));
    starving.models[1].waiting_seconds = 201.0;
    assert_eq!(orders(&starving), ["load a on gpu-1|gpu-2"]);
    // The last GPUs are left to scripts until its turn comes.
    let mut scripts = cold();
    scripts.agents[2].alive = false;
    scripts.scripts_queued = 9;
    assert_eq!(orders(&scripts), Vec::<String>::new());
    scripts.models[0].waiting_seconds = 201.0;
    assert_eq!(orders(&scripts), ["lend gpu-1+gpu-2 to gpu-1"]);
}

#[test]
fn a_model_for_more_gpus_than_there_are_is_stranded_with_the_reasons() {
    let mut view = cold();
    view.agents[0].alive = false;
    view.agents[1]
        .cannot
        .push(("big".to_owned(), "vram_short".to_owned()));
    assert_eq!(orders(&view), ["big stranded"]);
    let reason = decide(&view)
        .into_iter()
        .find_map(|decision| match decision {
            Decision::Stranded { reason, .. } => Some(reason),
            _ => None,
        });
    assert_eq!(
        reason.as_deref(),
        Some("it needs 2 GPUs and 1 could have it: gpu-1 not running, gpu-2 vram_short")
    );
}
