//! Breadth first over every state that can be reached, with the way back to the first.

use std::collections::HashMap;
use std::fmt::Write;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};

use crate::steps::{Label, Rules, Steps};
use crate::world::World;

/// What an exploration found.
#[derive(Debug)]
pub(crate) struct Explored {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    /// The shortest way to a violation, a step a line.
    pub(crate) violation: Option<Violation>,
}

#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) what: &'static str,
    pub(crate) trace: String,
    pub(crate) steps: usize,
}

type Seen = HashMap<u128, u32, BuildHasherDefault<DefaultHasher>>;

/// Explores everything from `first`, at most `limit` states (a mistake in the model would not end).
pub(crate) fn explore<const N: usize>(first: World<N>, rules: &Rules, limit: usize) -> Explored {
    let mut seen = Seen::default();
    let mut parents: Vec<u32> = vec![0];
    let mut edges: Vec<(u32, u32)> = Vec::new();
    let mut over: Vec<u32> = Vec::new();
    let mut frontier = vec![(0u32, first)];
    let mut steps = 0;
    seen.insert(fingerprint(&first), 0);
    while !frontier.is_empty() {
        let mut next_frontier = Vec::new();
        for (index, world) in frontier {
            if world.is_over() {
                over.push(index);
            }
            for (label, next) in successors(&world, rules) {
                steps += 1;
                let fresh = parents.len() as u32;
                let to = *seen.entry(fingerprint(&next)).or_insert(fresh);
                if to == fresh {
                    assert!(parents.len() < limit, "more than {limit} states");
                    parents.push(index);
                    if let Some(what) = next.bad {
                        let violation = Some(retrace(what, first, rules, &parents, to));
                        return Explored {
                            states: parents.len(),
                            steps,
                            violation,
                        };
                    }
                    next_frontier.push((to, next));
                }
                if !label.fault {
                    edges.push((index, to));
                }
            }
        }
        frontier = next_frontier;
    }
    let violation = stuck(parents.len(), &edges, over)
        .map(|at| retrace("from here the tasks never end", first, rules, &parents, at));
    Explored {
        states: parents.len(),
        steps,
        violation,
    }
}

fn successors<'a, const N: usize>(world: &'a World<N>, rules: &'a Rules) -> Vec<(Label, World<N>)> {
    let mut steps = Steps {
        rules,
        world,
        next: Vec::new(),
    };
    steps.all();
    steps.next
}

/// The first state from which no end is reached by steps that are no faults.
fn stuck(states: usize, edges: &[(u32, u32)], over: Vec<u32>) -> Option<u32> {
    // Edges by target, as one array: counted, then filled.
    let mut starts = vec![0u32; states + 1];
    for (_, to) in edges {
        starts[*to as usize + 1] += 1;
    }
    for at in 0..states {
        starts[at + 1] += starts[at];
    }
    let mut sources = vec![0u32; edges.len()];
    let mut filled = starts.clone();
    for (from, to) in edges {
        let slot = &mut filled[*to as usize];
        sources[*slot as usize] = *from;
        *slot += 1;
    }
    let mut ends = vec![false; states];
    let mut open = over;
    for at in &open {
        ends[*at as usize] = true;
    }
    while let Some(at) = open.pop() {
        let range = starts[at as usize] as usize..starts[at as usize + 1] as usize;
        for source in &sources[range] {
            if !ends[*source as usize] {
                ends[*source as usize] = true;
                open.push(*source);
            }
        }
    }
    ends.iter().position(|ends| !ends).map(|at| at as u32)
}

/// The steps from the first state to that one, found again by walking.
fn retrace<const N: usize>(
    what: &'static str,
    first: World<N>,
    rules: &Rules,
    parents: &[u32],
    end: u32,
) -> Violation {
    let mut path = vec![end];
    while *path.last().expect("it has an end") != 0 {
        path.push(parents[*path.last().expect("it has an end") as usize]);
    }
    path.reverse();
    // Indices were given in the order of discovery: replay it as far as needed.
    let mut seen = Seen::default();
    seen.insert(fingerprint(&first), 0);
    let mut trace = String::new();
    let mut world = first;
    let mut queue = std::collections::VecDeque::from([(0u32, first)]);
    let mut at = 1;
    let mut count = 1u32;
    while let (Some((index, current)), true) = (queue.pop_front(), at < path.len()) {
        let on_path = index == path[at - 1];
        if on_path {
            world = current;
        }
        for (label, next) in successors(&current, rules) {
            let to = *seen.entry(fingerprint(&next)).or_insert(count);
            if to != count {
                continue;
            }
            count += 1;
            if next.bad.is_none() {
                queue.push_back((to, next));
            }
            if on_path && to == path[at] {
                let task = label
                    .task
                    .map_or(String::new(), |task| format!(" (task {task})"));
                let _ = writeln!(trace, "{at:3}. {}: {}{task}", label.who, label.what);
                world = next;
            }
        }
        if on_path {
            at += 1;
        }
    }
    let _ = writeln!(trace, "     {world:?}");
    Violation {
        what,
        trace,
        steps: path.len() - 1,
    }
}

/// Two hashes as one, so that two states share it about once in 2^100 comparisons.
fn fingerprint<const N: usize>(world: &World<N>) -> u128 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    let low = hasher.finish();
    0x9e37_79b9_7f4a_7c15u64.hash(&mut hasher);
    (u128::from(hasher.finish()) << 64) | u128::from(low)
}
