//! What holds in that world, whatever happens.

use proptest::prelude::*;

use super::world::{LOAD_S, MODELS, Phase, TASK_S, World};

#[derive(Clone, Copy, Debug)]
enum Event {
    Claim(usize),
    Tick(u64),
    Place,
    Die(usize),
    Start(usize),
    Fail(usize),
    Script(usize),
    Work(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0usize..3).prop_map(Event::Claim),
        6 => (1u64..8).prop_map(Event::Tick),
        6 => Just(Event::Place),
        1 => (0usize..3).prop_map(Event::Die),
        2 => (0usize..3).prop_map(Event::Start),
        1 => (0usize..3).prop_map(Event::Fail),
        1 => (0usize..3).prop_map(Event::Script),
        2 => (0usize..4).prop_map(Event::Work),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever happens, no part of a group runs, no GPU is in two, one group is gathered at a time
    /// (all asserted where it would happen), and once things calm down everything is served.
    #[test]
    fn whatever_happens_everything_is_served_in_the_end(events in prop::collection::vec(event(), 0..250)) {
        let mut world = World::new();
        for event in events {
            match event {
                Event::Claim(at) => world.claim(at),
                Event::Tick(seconds) => (0..seconds).for_each(|_| world.tick()),
                Event::Place => world.place(),
                Event::Die(at) => world.die(at),
                Event::Start(at) => world.gpus[at].alive = true,
                Event::Fail(at) => world.fail(at),
                Event::Script(at) => world.gpus[at].script_until = world.now + 40,
                Event::Work(at) => *world.queued.get_mut(MODELS[at]).unwrap() += 3,
            }
        }
        for gpu in &mut world.gpus {
            gpu.alive = true;
        }
        let calm = world.now;
        while world.queued.values().any(|left| *left > 0) {
            world.place();
            (0..3).for_each(|at| world.claim(at));
            world.tick();
            let state: Vec<_> = world.gpus.iter().map(|gpu| &gpu.phase).collect();
            prop_assert!(
                world.now - calm < 5_000,
                "deadlock: {:?} {state:?} {:?}", world.queued, world.tasks
            );
        }
        // What nobody needs any more is given back, but for models that stay for the next task.
        for _ in 0..200 {
            world.place();
            (0..3).for_each(|at| world.claim(at));
            world.tick();
        }
        let hot = |name: &str| world.gpus.iter().any(|gpu| gpu.name == name && matches!(gpu.phase, Phase::Hot { .. }));
        for gpu in &world.gpus {
            if let Phase::Lent { to, .. } = &gpu.phase {
                prop_assert!(hot(to), "{} is lent to {to}, which runs nothing", gpu.name);
            }
        }
    }
}

/// Work for all four comes all the time, on three GPUs: each of them waits for its turn at most.
#[test]
fn nothing_waits_much_longer_than_the_ageing_bound() {
    let mut world = World::new();
    for second in 0..20_000 {
        if second % TASK_S == 0 {
            for model in MODELS {
                *world.queued.get_mut(model).unwrap() += 1;
            }
        }
        world.place();
        (0..3).for_each(|at| world.claim(at));
        world.tick();
    }
    let bound = (crate::placement::STARVED_AFTER_LOADS * LOAD_S as f64) as u64;
    for model in MODELS {
        let waited = world.longest_wait.get(model).copied().unwrap_or(0);
        assert!(
            waited <= bound + bound / 2,
            "{model} waited {waited}s, the bound is {bound}s: {:?}",
            world.longest_wait
        );
    }
}
