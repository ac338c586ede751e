//! `[notify]`.

use std::time::Duration;

use crate::section::Section;
use crate::{Notify, NotifyEvent};

/// None: nobody is told anything.
pub(super) fn notify(section: &Section<'_, '_>) -> Option<Notify> {
    // An empty table is what `rigor init` leaves; keys without a command are a slip.
    if !section.entries().is_empty() {
        section.require("command", "\"mail -s rigor me@example.org\"");
    }
    let events = NotifyEvent::ALL.map(|event| (event.as_str(), event));
    let command = section.command("command");
    let on = section.choices("on", &events);
    let times = (
        section.duration("gpu_idle_after"),
        section.duration("every"),
        section.duration("timeout"),
    );
    section.refuse_unknown_keys();
    let (gpu_idle_after, every, timeout) = times;
    Some(Notify {
        command: command?,
        on: on.map_or_else(|| NotifyEvent::ALL.into(), |on| on.into_iter().collect()),
        gpu_idle_after: gpu_idle_after.unwrap_or(Duration::from_secs(600)),
        every: every.unwrap_or(Duration::from_secs(60)),
        timeout: timeout.unwrap_or(Duration::from_secs(30)),
    })
}
