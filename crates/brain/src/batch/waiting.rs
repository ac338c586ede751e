//! What of a batch waits, and for what.

use super::*;
use crate::graph::Node;
use crate::outlook::Waiting;

impl Batch {
    /// Tasks that wait for something besides an agent.
    pub(crate) fn waiting(&self) -> Waiting {
        let mut found = Waiting::default();
        for (task, node) in self.plan.tasks.iter().zip(self.graph.nodes()) {
            let count = match &node.phase {
                Phase::Unexpanded => 1,
                Phase::Expanded => node.counts.waiting,
                Phase::Broken(_) | Phase::Cancelled(_) => 0,
            };
            found.retry += node.counts.retry;
            if count > 0 {
                *found.by_class.entry(task.class).or_default() += count;
            }
            if !matches!(task.class, Class::Script | Class::Llm) {
                continue;
            }
            let class = task.class;
            if count > 0 {
                let why = self.waits_for(task);
                found.words.push(format!("{class}:{count} {why}"));
            }
            match node.counts.retry {
                0 => {}
                retry => found
                    .words
                    .push(format!("{class}:{retry} wait for their next attempt")),
            }
        }
        found
    }

    /// Models of its tasks that wait for others and will be released.
    pub(crate) fn upcoming<'a>(&'a self, brain: &'a Brain) -> impl Iterator<Item = String> + 'a {
        let held = self.graph.is_held();
        self.plan
            .tasks
            .iter()
            .zip(self.graph.nodes())
            .filter(move |(task, node)| {
                !held
                    && task.class == Class::Llm
                    && match &node.phase {
                        Phase::Unexpanded => true,
                        Phase::Expanded => node.counts.waiting + node.counts.retry > 0,
                        Phase::Broken(_) | Phase::Cancelled(_) => false,
                    }
            })
            .filter_map(|(task, _)| brain.model_for(task).ok().flatten())
    }

    /// What the waiting instances of a task wait for.
    fn waits_for(&self, task: &rigor_plan::PlanTask) -> String {
        if self.graph.is_held() {
            return format!("of {} are held (rigor release {})", self.id, self.id);
        }
        let open: Vec<String> = task
            .deps
            .iter()
            .filter_map(|dep| {
                let at = self.plan.tasks.iter().position(|of| of.id == dep.task)?;
                let left = to_go(&self.graph.nodes()[at])?;
                Some(format!("{} ({left})", dep.task))
            })
            .collect();
        match (open.first(), task.max_parallel) {
            (Some(_), _) => format!("wait for {}", open.join(" and ")),
            (None, Some(most)) => {
                format!("of {} wait for their turn (max_parallel {most})", task.id)
            }
            (None, None) => format!("of {} are about to be released", task.id),
        }
    }
}

/// `3 of 500 to go`; none: it is over.
fn to_go(node: &Node) -> Option<String> {
    match &node.phase {
        Phase::Unexpanded => Some("not begun".to_owned()),
        Phase::Expanded => {
            let counts = node.counts;
            match counts.waiting + counts.released + counts.retry {
                0 => None,
                left => Some(format!("{left} of {} to go", counts.total)),
            }
        }
        Phase::Broken(_) | Phase::Cancelled(_) => None,
    }
}
