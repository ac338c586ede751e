//! What follows from what happened: gates open, instances become ready, failures cancel.

use super::*;

impl Graph {
    /// Whether a task is over, and well enough for its dependants to start.
    pub(super) fn outcome(&self, task: usize) -> Outcome {
        let node = &self.nodes[task];
        match &node.phase {
            Phase::Unexpanded => Outcome::Open,
            Phase::Broken(_) => Outcome::Bad("failed"),
            Phase::Cancelled(_) => Outcome::Bad("was cancelled"),
            Phase::Expanded => {
                let counts = node.counts;
                if counts.done + counts.failed + counts.cancelled < counts.total {
                    return Outcome::Open;
                }
                let bad = (counts.failed + counts.cancelled) as u64;
                if bad == 0 || self.max_failed[task].allows(bad, counts.total as u64) {
                    Outcome::Good
                } else if counts.failed > 0 {
                    Outcome::Bad("failed")
                } else {
                    Outcome::Bad("was cancelled")
                }
            }
        }
    }

    /// Connects new instances with their predecessors for the same item.
    pub(super) fn wire(&mut self, task: usize, first: usize) {
        for instance in first..self.nodes[task].instances.len() {
            if self.nodes[task].instances[instance].state != State::Waiting {
                continue;
            }
            self.enter(task, instance);
        }
    }

    /// A waiting instance: what does it wait for?
    pub(super) fn enter(&mut self, task: usize, instance: usize) {
        let Some(item) = self.nodes[task].instances[instance].item.clone() else {
            self.make_ready(task, instance, 0);
            return;
        };
        let mut blocked = 0;
        for dep in self.nodes[task].item_deps.clone() {
            let before = &self.nodes[dep];
            match before
                .by_item
                .get(&item)
                .map(|n| before.instances[*n].state)
            {
                Some(State::Done) => {}
                Some(State::Failed | State::Split) => {
                    let reason = format!("dependency {}_{item} failed", self.names[dep]);
                    self.give_up(task, instance, reason);
                    return;
                }
                Some(State::Cancelled) => {
                    let reason = format!("dependency {}_{item} was cancelled", self.names[dep]);
                    self.give_up(task, instance, reason);
                    return;
                }
                Some(State::Waiting | State::Released | State::Retry) => blocked += 1,
                None => {
                    let reason = format!("there is no {}_{item} to depend on", self.names[dep]);
                    self.give_up(task, instance, reason);
                    return;
                }
            }
        }
        self.make_ready(task, instance, blocked);
    }

    /// One instance will not be done.
    pub(super) fn give_up(&mut self, task: usize, instance: usize, reason: String) {
        self.nodes[task].cause.get_or_insert_with(|| reason.clone());
        self.steps.push_back(Step::Cancel {
            task,
            instance,
            reason,
        });
    }

    /// Why a task that is over badly is: `failed (2 of 20, first each_13)`.
    pub(super) fn blame(&self, task: usize, how: &str) -> String {
        let node = &self.nodes[task];
        let name = &self.names[task];
        match &node.cause {
            _ if how == "failed" && node.counts.total > 1 => {
                let first = node
                    .instances
                    .iter()
                    .find(|instance| instance.state == State::Failed);
                let item = first
                    .and_then(|instance| instance.item.as_deref())
                    .unwrap_or("?");
                format!(
                    "dependency {name} failed ({} of {}, first {name}_{item})",
                    node.counts.failed, node.counts.total
                )
            }
            Some(cause) if how == "was cancelled" => {
                // Only the root of a chain of cancellations helps.
                let root = match cause.rsplit_once(": dependency ") {
                    Some((_, root)) => format!("dependency {root}"),
                    None => cause.clone(),
                };
                format!("dependency {name} was cancelled: {root}")
            }
            _ => format!("dependency {name} {how}"),
        }
    }

    pub(super) fn make_ready(&mut self, task: usize, instance: usize, blocked: u32) {
        let node = &mut self.nodes[task];
        node.instances[instance].blocked_on = blocked;
        if blocked == 0 {
            node.ready.push_back(instance);
        }
    }

    pub(super) fn revived(&mut self, task: usize, instance: usize) {
        self.nodes[task].over = false;
        self.enter(task, instance);
    }

    /// An instance is over: its successors for the same item go on, or are cancelled.
    pub(super) fn ended(&mut self, task: usize, instance: usize, state: State) {
        if state == State::Failed && self.on_failure[task] == OnFailure::Stop {
            self.stop(format!(
                "task {} failed and the plan says on_failure: stop",
                self.names[task]
            ));
        }
        let Some(item) = self.nodes[task].instances[instance].item.clone() else {
            return;
        };
        for dependant in self.nodes[task].item_dependants.clone() {
            let Some(successor) = self.nodes[dependant].by_item.get(&item).copied() else {
                continue;
            };
            let waits = &mut self.nodes[dependant].instances[successor];
            if waits.state != State::Waiting {
                continue;
            }
            if state == State::Done {
                waits.blocked_on = waits.blocked_on.saturating_sub(1);
                if waits.blocked_on == 0 {
                    self.nodes[dependant].ready.push_back(successor);
                    self.pump(dependant);
                }
            } else {
                let how = if state == State::Cancelled {
                    "was cancelled"
                } else {
                    "failed"
                };
                let reason = format!("dependency {}_{item} {how}", self.names[task]);
                self.give_up(dependant, successor, reason);
            }
        }
    }

    /// If a task is over now, its dependants look at their gates.
    pub(super) fn settle(&mut self, task: usize) {
        if self.nodes[task].over || matches!(self.outcome(task), Outcome::Open) {
            return;
        }
        self.nodes[task].over = true;
        for dependant in self.nodes[task].whole_dependants.clone() {
            self.check_gate(dependant);
        }
        // Without instances there is nobody whose end would tell the successors.
        if !matches!(self.nodes[task].phase, Phase::Expanded) {
            for dependant in self.nodes[task].item_dependants.clone() {
                self.check_gate(dependant);
            }
        }
    }

    /// Are all dependencies of the whole task met? Then it is expanded, or its ready instances go.
    pub(super) fn check_gate(&mut self, task: usize) {
        if self.nodes[task].over {
            return;
        }
        let mut met = true;
        for dep in self.nodes[task].whole_deps.clone() {
            match self.outcome(dep) {
                Outcome::Good => {}
                Outcome::Open => met = false,
                Outcome::Bad(how) => {
                    let reason = self.blame(dep, how);
                    self.cancel_task(task, &reason, false);
                    return;
                }
            }
        }
        for dep in self.nodes[task].item_deps.clone() {
            match &self.nodes[dep].phase {
                Phase::Expanded => {}
                Phase::Unexpanded => met = false,
                Phase::Broken(_) | Phase::Cancelled(_) => {
                    let how = if matches!(self.outcome(dep), Outcome::Bad("failed")) {
                        "failed"
                    } else {
                        "was cancelled"
                    };
                    let reason = self.blame(dep, how);
                    self.cancel_task(task, &reason, false);
                    return;
                }
            }
        }
        if !met {
            return;
        }
        self.nodes[task].gate_open = true;
        if let Some(reason) = self.stopping.clone() {
            self.cancel_task(task, &reason, false);
        } else if self.nodes[task].phase == Phase::Unexpanded && !self.nodes[task].expanding {
            self.nodes[task].expanding = true;
            self.steps.push_back(Step::Expand { task });
        } else {
            self.pump(task);
        }
    }

    /// Releases what may go.
    pub(super) fn pump(&mut self, task: usize) {
        if self.held || self.stopping.is_some() || !self.nodes[task].gate_open {
            return;
        }
        let node = &mut self.nodes[task];
        let mut active = node.counts.released + node.counts.retry;
        while active < node.max_parallel {
            let Some(instance) = node.ready.pop_front() else {
                break;
            };
            if node.instances[instance].state != State::Waiting {
                continue;
            }
            // Counted at once, so that one call never releases more than may run.
            count(&mut node.counts, State::Waiting, -1);
            count(&mut node.counts, State::Released, 1);
            node.instances[instance].state = State::Released;
            self.steps.push_back(Step::Release { task, instance });
            active += 1;
        }
    }

    /// Cancels what has not started; with `queued` also what is queued or to be retried.
    pub(super) fn cancel_task(&mut self, task: usize, reason: &str, queued: bool) {
        if self.nodes[task].phase == Phase::Unexpanded && self.nodes[task].expanding {
            self.nodes[task].cancel_when_expanded = Some(reason.to_owned());
            return;
        }
        if self.nodes[task].phase == Phase::Unexpanded {
            self.nodes[task]
                .cause
                .get_or_insert_with(|| reason.to_owned());
            self.nodes[task].phase = Phase::Cancelled(reason.to_owned());
            self.settle(task);
            return;
        }
        for instance in 0..self.nodes[task].instances.len() {
            let cancel = match self.nodes[task].instances[instance].state {
                State::Waiting => true,
                State::Released | State::Retry => queued,
                State::Done | State::Failed | State::Cancelled | State::Split => false,
            };
            if cancel {
                self.give_up(task, instance, reason.to_owned());
            }
        }
        self.settle(task);
    }
}
