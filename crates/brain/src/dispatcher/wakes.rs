//! From wake-ups to what they are about.

use super::*;

/// Without wake-ups directories are read so often.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// Reading them may take this part of the time: one in so many.
const POLL_SHARE: u32 = 20;

/// When directories are to be read again where nothing wakes the brain, after a reading that began
/// then and is over now.
pub(super) fn next_poll(began: Instant) -> Instant {
    let now = Instant::now();
    now + POLL_EVERY.max(now.saturating_duration_since(began) * POLL_SHARE)
}

impl Dispatcher {
    pub(super) fn take_in(&mut self, event: Event) {
        match event {
            Event::ChildExited => {}
            Event::Retention(done) => self.retained(done),
            Event::Wake(Wake::Rescan) => {
                tracing::warn!(
                    "Wake-ups were lost (the kernel's queue overflowed): reading every directory again"
                );
                self.rescan = true;
            }
            Event::Wake(Wake::Failed(why)) => {
                if !std::mem::replace(&mut self.brain.polling, true) {
                    tracing::warn!(
                        "Watching failed: {why}; directories are read every second instead"
                    );
                }
                self.rescan = true;
            }
            Event::Wake(Wake::Added(path)) => self.changed(&path, true),
            Event::Wake(Wake::Removed(path)) => self.changed(&path, false),
            Event::Stop(what) => {
                if self.stopping {
                    tracing::warn!(
                        "{what} again: {} running tasks are killed and queued again",
                        self.attempts.running()
                    );
                    self.at_once = true;
                } else {
                    tracing::info!(
                        "{what}: draining ({} tasks of the brain's own are running)",
                        self.attempts.running()
                    );
                    self.stopping = true;
                }
            }
        }
    }

    /// One change in a watched directory.
    pub(super) fn changed(&mut self, path: &Path, added: bool) {
        let Ok(relative) = path.strip_prefix(self.brain.rig.root()) else {
            return;
        };
        let parts: Vec<&str> = relative
            .components()
            .filter_map(|part| match part {
                Component::Normal(name) => name.to_str(),
                _ => None,
            })
            .collect();
        if parts.last().is_none_or(|name| name.starts_with('.')) {
            return;
        }
        let name = |text: &str| text.parse::<FileName>().ok();
        match parts[..] {
            ["tasks", "queue", class, file] => {
                let Some(class) = Class::parse(class) else {
                    return;
                };
                match name(file) {
                    Some(name) if added => {
                        self.brain.index(class).insert(name);
                        if class == Class::Meta {
                            self.placer.appeared(&self.brain, &name);
                        }
                    }
                    Some(name) => self.brain.index(class).remove(&name),
                    None if added => self.brain.quarantine_foreign(path),
                    None => {}
                }
                self.place_wanted |= matches!(class, Class::Llm | Class::Script | Class::Meta);
            }
            ["tasks", "processing", agent, file] => {
                if let Some(name) = name(file) {
                    let names = self.brain.processing.entry(agent.to_owned()).or_default();
                    if added {
                        names.insert(name);
                    } else {
                        names.remove(&name);
                    }
                }
            }
            ["tasks", lane @ ("complete" | "retry"), batch, file] if added => {
                if let Some(name) = name(file) {
                    let result = self.arrived(batch, lane == "complete", name);
                    self.or_say(batch, result);
                }
            }
            ["tasks", "quarantine", file] if added => {
                if let Some(name) = name(file) {
                    for batch in self.batches.values_mut() {
                        // Looked at again with all lanes.
                        let done = batch.quarantined(&self.brain, name);
                        self.rescan |= done.is_err();
                    }
                }
            }
            // It is in force while it is there: that it is gone counts too.
            ["signals", "brain", log_level::SIGNAL] => self.signalled = true,
            ["signals", "brain", _] if added => self.signalled = true,
            ["agents", agent, "heartbeat.json"] if added => {
                self.place_wanted |= self
                    .agents
                    .read_heartbeat(&self.brain, agent, Instant::now());
            }
            _ => {}
        }
    }

    pub(super) fn arrived(&mut self, batch: &str, complete: bool, name: FileName) -> Result<()> {
        if batch == RIG_BATCH {
            self.place_wanted = true;
            return if complete {
                self.placer.completed(&mut self.brain, &name)
            } else {
                self.placer.failed(&mut self.brain, name)
            };
        }
        match self.batches.get_mut(batch) {
            Some(batch) if complete => batch.completed(&mut self.brain, name),
            Some(batch) => batch.failed_attempt(&mut self.brain, name),
            None => Ok(()),
        }
    }
}
