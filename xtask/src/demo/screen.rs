//! What is going on, live: lines that move on a terminal, lines that follow each other elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::own_rig::state::{Agent, Batch};

/// Between two lines where they cannot move.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Shows a batch and the agents.
pub(super) struct Screen {
    started: Instant,
    moving: Option<Moving>,
    last: Option<(Instant, String)>,
}

struct Moving {
    all: MultiProgress,
    batch: ProgressBar,
    agents: Vec<ProgressBar>,
}

impl Screen {
    pub(super) fn new(started: Instant) -> Screen {
        let moving = std::io::stderr().is_terminal().then(|| {
            let all = MultiProgress::new();
            let style = ProgressStyle::with_template("{elapsed:>4} [{bar:30}] {pos}/{len} {msg}")
                .expect("the template is valid")
                .progress_chars("=> ");
            let batch = all.add(ProgressBar::new(0).with_style(style));
            Moving {
                all,
                batch,
                agents: Vec::new(),
            }
        });
        Screen {
            started,
            moving,
            last: None,
        }
    }

    pub(super) fn show(&mut self, batch: &Batch, agents: &[Agent]) {
        match &mut self.moving {
            Some(moving) => moving.show(batch, agents),
            None => {
                let line = line(batch, agents);
                let is_news = self.last.as_ref().is_none_or(|(at, last)| {
                    *last != line && (batch.is_over() || at.elapsed() >= LINE_EVERY)
                });
                if is_news {
                    println!("[{:>3}s] {line}", self.started.elapsed().as_secs());
                    self.last = Some((Instant::now(), line));
                }
            }
        }
    }

    /// Leaves the last state where it is.
    pub(super) fn close(self) {
        if let Some(moving) = self.moving {
            moving.batch.abandon();
            moving.agents.iter().for_each(ProgressBar::abandon);
        }
    }
}

impl Moving {
    fn show(&mut self, batch: &Batch, agents: &[Agent]) {
        self.batch.set_length(batch.total);
        self.batch.set_position(batch.done);
        self.batch.set_message(tasks(batch));
        for (index, agent) in agents.iter().enumerate() {
            if self.agents.len() == index {
                let style =
                    ProgressStyle::with_template("     {msg}").expect("the template is valid");
                self.agents
                    .push(self.all.add(ProgressBar::new_spinner().with_style(style)));
            }
            self.agents[index].set_message(doing(agent));
        }
        self.batch.tick();
    }
}

/// Everything in one line.
pub(super) fn line(batch: &Batch, agents: &[Agent]) -> String {
    let agents: Vec<String> = agents.iter().map(doing).collect();
    format!(
        "{} of {} tasks: {} | {}",
        batch.done,
        batch.total,
        tasks(batch),
        agents.join(" | ")
    )
}

/// `measure 12/40, tag 3/40 (1 failed)`
fn tasks(batch: &Batch) -> String {
    let tasks: Vec<String> = batch
        .tasks
        .iter()
        .map(|task| {
            let total = task.total.map_or("?".to_owned(), |total| total.to_string());
            let failed = match task.failed {
                0 => String::new(),
                failed => format!(" ({failed} failed)"),
            };
            format!("{} {}/{total}{failed}", task.id, task.done)
        })
        .collect();
    tasks.join(", ")
}

/// `gpu-1 hot tiny-random, 2 running`, `gpu-2 cold, idle: model_not_loaded`
fn doing(agent: &Agent) -> String {
    let model = agent
        .model
        .as_deref()
        .map(|model| format!(" {model}"))
        .unwrap_or_default();
    let work = match (agent.processing.len(), &agent.idle_reason) {
        (0, Some(reason)) => format!(", idle: {reason}"),
        (0, None) => String::new(),
        (count, _) => format!(", {count} running"),
    };
    format!("{} {}{model}{work}", agent.name, agent.state)
}
