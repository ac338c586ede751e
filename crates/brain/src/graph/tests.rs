use std::collections::BTreeMap;

use proptest::prelude::*;
use rigor_queue::name::Shape;

use super::*;

fn plan(tasks: &str) -> Plan {
    let text = format!("# Plan: t\n\n## Tasks\n\n{tasks}");
    let checked = rigor_plan::check(&rigor_plan::Sources {
        plan_file: "plan.md",
        text: &text,
        inputs: &BTreeMap::new(),
        files: &|_| None,
        exists: &|_| true,
        rig: None,
        infer: false,
    });
    checked.unwrap_or_else(|problems| panic!("{}", problems.render(false)))
}

const CHAIN: &str = "
### list
- **executor**: brain
- **command**: `true`

### first
- **task_class**: cpu
- **foreach**: `items.txt`
- **depends_on**: list
- **command**: `echo {ITEM}`

### second
- **task_class**: cpu
- **foreach**: `items.txt`
- **depends_on**: first_{ITEM.id}
- **command**: `echo {ITEM}`

### end
- **executor**: brain
- **depends_on**: second
- **command**: `true`
";

/// Carries out steps in memory, as the shell does in files.
struct Runner {
    graph: Graph,
    plan: Plan,
    items: usize,
    released: Vec<String>,
    cancelled: Vec<(String, String)>,
}

impl Runner {
    fn new(text: &str, items: usize) -> Runner {
        let plan = plan(text);
        let mut graph = Graph::new(&plan);
        graph.start();
        let mut runner = Runner {
            graph,
            plan,
            items,
            released: Vec::new(),
            cancelled: Vec::new(),
        };
        runner.run();
        runner
    }

    fn run(&mut self) {
        while let Some(step) = self.graph.next_step() {
            match step {
                Step::Expand { task } => {
                    let plan_task = &self.plan.tasks[task];
                    let items: Vec<Option<String>> = match plan_task.foreach {
                        Some(_) => (0..self.items).map(|n| Some(n.to_string())).collect(),
                        None => vec![None],
                    };
                    let made = items
                        .into_iter()
                        .map(|item| {
                            let id = TaskId::derive("b", &plan_task.id, item.as_deref());
                            (FileName::first(5, 0, Shape(0), id), item, 1, State::Waiting)
                        })
                        .collect();
                    self.graph.expanded(task, made);
                }
                Step::Release { task, instance } => self.released.push(self.title(task, instance)),
                Step::Cancel {
                    task,
                    instance,
                    reason,
                } => {
                    let name = self.graph.instance(task, instance).name;
                    self.cancelled.push((self.title(task, instance), reason));
                    self.graph.moved(task, instance, name, State::Cancelled);
                }
            }
        }
    }

    fn title(&self, task: usize, instance: usize) -> String {
        self.plan.tasks[task].instance(self.graph.instance(task, instance).item.as_deref())
    }

    fn end(&mut self, title: &str, state: State) {
        for task in 0..self.plan.tasks.len() {
            for instance in 0..self.graph.nodes()[task].instances.len() {
                if self.title(task, instance) == title {
                    let name = self.graph.instance(task, instance).name;
                    self.graph.moved(task, instance, name, state);
                    self.run();
                    return;
                }
            }
        }
        panic!("there is no {title}");
    }

    fn take_released(&mut self) -> Vec<String> {
        std::mem::take(&mut self.released)
    }
}

#[test]
fn each_item_goes_on_as_soon_as_its_own_predecessor_is_done() {
    let mut runner = Runner::new(CHAIN, 3);
    assert_eq!(runner.take_released(), ["list"]);
    runner.end("list", State::Done);
    assert_eq!(runner.take_released(), ["first_0", "first_1", "first_2"]);
    runner.end("first_1", State::Done);
    assert_eq!(runner.take_released(), ["second_1"]);
    for title in ["first_0", "first_2", "second_0", "second_2", "second_1"] {
        runner.end(title, State::Done);
    }
    assert_eq!(runner.take_released(), ["second_0", "second_2", "end"]);
    assert_eq!(runner.graph.ending(), None);
    runner.end("end", State::Done);
    assert_eq!(runner.graph.ending(), Some(Ending::Complete));
}

#[test]
fn a_failure_cancels_what_depends_on_it_and_says_so() {
    let mut runner = Runner::new(CHAIN, 2);
    runner.end("list", State::Done);
    runner.end("first_0", State::Failed);
    runner.end("first_1", State::Done);
    runner.end("second_1", State::Done);
    assert_eq!(
        runner.cancelled,
        [
            (
                "second_0".to_owned(),
                "dependency first_0 failed".to_owned()
            ),
            (
                "end".to_owned(),
                "dependency second was cancelled: dependency first_0 failed".to_owned()
            ),
        ]
    );
    assert_eq!(runner.graph.ending(), Some(Ending::Failed));
}

#[test]
fn a_failed_source_cancels_everything_behind_it_without_expanding() {
    let mut runner = Runner::new(CHAIN, 2);
    runner.end("list", State::Failed);
    assert_eq!(
        runner.graph.nodes()[1].phase,
        Phase::Cancelled("dependency list failed".to_owned())
    );
    assert_eq!(
        runner.graph.nodes()[2].phase,
        Phase::Cancelled("dependency first was cancelled: dependency list failed".to_owned())
    );
    assert_eq!(
        runner.cancelled,
        [(
            "end".to_owned(),
            "dependency second was cancelled: dependency list failed".to_owned()
        )]
    );
    assert_eq!(runner.graph.ending(), Some(Ending::Failed));
}

#[test]
fn a_foreach_over_nothing_completes() {
    let mut runner = Runner::new(CHAIN, 0);
    runner.end("list", State::Done);
    assert_eq!(runner.take_released(), ["list", "end"]);
    runner.end("end", State::Done);
    assert_eq!(runner.graph.ending(), Some(Ending::Complete));
}

#[test]
fn max_failed_lets_dependants_start() {
    let text = CHAIN.replace("### second\n", "### second\n- **max_failed**: 1\n");
    let mut runner = Runner::new(&text, 3);
    runner.end("list", State::Done);
    runner.end("first_0", State::Failed);
    for title in ["first_1", "first_2", "second_1", "second_2"] {
        runner.end(title, State::Done);
    }
    assert!(runner.released.contains(&"end".to_owned()));
    runner.end("end", State::Done);
    // `first` itself bears no failure, so the batch has failed although `end` ran.
    assert_eq!(runner.graph.ending(), Some(Ending::Failed));
}

#[test]
fn max_parallel_bounds_what_is_released_retries_included() {
    let text = CHAIN.replace("### first\n", "### first\n- **max_parallel**: 2\n");
    let mut runner = Runner::new(&text, 5);
    runner.end("list", State::Done);
    assert_eq!(runner.take_released(), ["list", "first_0", "first_1"]);
    runner.end("first_0", State::Retry);
    assert_eq!(runner.take_released(), Vec::<String>::new());
    runner.end("first_1", State::Done);
    assert_eq!(runner.take_released(), ["second_1", "first_2"]);
}

#[test]
fn a_hold_releases_nothing_until_it_ends() {
    let mut runner = Runner::new(CHAIN, 2);
    runner.graph.hold();
    runner.end("list", State::Done);
    assert_eq!(runner.take_released(), ["list"]);
    runner.graph.release();
    runner.run();
    assert_eq!(runner.take_released(), ["first_0", "first_1"]);
}

#[test]
fn on_failure_stop_cancels_the_rest_of_the_batch() {
    let text = CHAIN.replace("### first\n", "### first\n- **on_failure**: stop\n");
    let mut runner = Runner::new(&text, 3);
    runner.end("list", State::Done);
    runner.end("first_0", State::Failed);
    assert_eq!(runner.graph.ending(), Some(Ending::Failed));
    assert_eq!(runner.graph.totals().cancelled, 6, "{:?}", runner.cancelled);
}

#[test]
fn a_revived_task_takes_its_dependants_along() {
    let mut runner = Runner::new(CHAIN, 2);
    runner.end("list", State::Done);
    runner.end("first_0", State::Failed);
    runner.end("first_1", State::Done);
    runner.end("second_1", State::Done);
    assert_eq!(runner.graph.ending(), Some(Ending::Failed));
    runner.take_released();
    runner.graph.reopen();
    for (task, instance) in [(1, 0), (2, 0), (3, 0)] {
        let name = runner.graph.instance(task, instance).name;
        runner.graph.moved(task, instance, name, State::Waiting);
    }
    runner.graph.start();
    runner.run();
    assert_eq!(runner.take_released(), ["first_0"]);
    for title in ["first_0", "second_0", "end"] {
        runner.end(title, State::Done);
    }
    assert_eq!(runner.graph.ending(), Some(Ending::Complete));
}

#[test]
fn a_restart_takes_up_each_task_once_whatever_gate_opens_first() {
    let plan = plan(CHAIN);
    let mut graph = Graph::new(&plan);
    // As the shell reads them back: in the plan's order, each with where its file lies.
    for (task, plan_task) in plan.tasks.iter().enumerate() {
        let state = if plan_task.id == "list" {
            State::Done
        } else {
            State::Waiting
        };
        let item = plan_task.foreach.as_ref().map(|_| "0".to_owned());
        let id = TaskId::derive("b", &plan_task.id, item.as_deref());
        let name = FileName::first(5, 0, Shape(0), id);
        graph.expanded(task, vec![(name, item, 1, state)]);
    }
    graph.start();
    let mut steps = Vec::new();
    while let Some(step) = graph.next_step() {
        steps.push(step);
    }
    let first = plan
        .tasks
        .iter()
        .position(|task| task.id == "first")
        .unwrap();
    assert_eq!(
        steps,
        [Step::Release {
            task: first,
            instance: 0
        }]
    );
    assert_eq!(graph.totals().total, 4);
}

#[test]
fn a_group_that_is_split_is_over_when_its_items_are() {
    let mut runner = Runner::new(CHAIN, 1);
    runner.end("list", State::Done);
    let items = (10..12)
        .map(|n: i32| {
            let item = n.to_string();
            let id = TaskId::derive("b", "first", Some(&item));
            (
                FileName::first(5, 0, Shape(0), id),
                Some(item),
                1,
                State::Waiting,
            )
        })
        .collect();
    runner.graph.expanded(1, items);
    runner.end("first_0", State::Split);
    assert_eq!(runner.graph.nodes()[1].counts.total, 2);
    assert!(
        runner
            .released
            .ends_with(&["first_10".to_owned(), "first_11".to_owned()])
    );
}

proptest! {
    /// Whatever ends in whatever order and way: every instance is released at most once, only
    /// after its predecessor was done, and the batch comes to an end.
    #[test]
    fn every_order_of_ends_comes_to_an_end(
        items in 0usize..6,
        choices in prop::collection::vec((any::<prop::sample::Index>(), 0u8..10), 0..40),
    ) {
        let mut runner = Runner::new(CHAIN, items);
        let mut done: Vec<String> = Vec::new();
        let mut seen: Vec<String> = Vec::new();
        let mut choices = choices.into_iter();
        let mut open: Vec<String> = Vec::new();
        loop {
            for title in runner.take_released() {
                prop_assert!(!seen.contains(&title), "{title} was released twice");
                if let Some(item) = title.strip_prefix("second_") {
                    let before = format!("first_{item}");
                    prop_assert!(done.contains(&before), "{title} before {before}");
                }
                seen.push(title.clone());
                open.push(title);
            }
            if open.is_empty() {
                break;
            }
            let (at, fate) = choices.next().map_or((0, 9), |(index, fate)| (index.index(open.len()), fate));
            let title = open.swap_remove(at);
            let state = if fate == 0 { State::Failed } else { State::Done };
            if state == State::Done {
                done.push(title.clone());
            }
            runner.end(&title, state);
        }
        prop_assert!(runner.graph.ending().is_some(), "{:?}", runner.graph.totals());
        let totals = runner.graph.totals();
        prop_assert_eq!(totals.waiting + totals.released + totals.retry, 0);
    }
}
