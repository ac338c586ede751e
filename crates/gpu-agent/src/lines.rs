//! Lines that would repeat: said once, then at most every half minute with a count.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rigor_queue::heartbeat::Refusal;
use rigor_queue::task::Class;

/// How often the same "nothing" is said again.
const REPEAT_AFTER: Duration = Duration::from_secs(30);

/// What was said last of claiming nothing.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    said: HashMap<Refusal, Said>,
    /// When the line of an idle agent was said for which reason.
    idle: HashMap<Refusal, Instant>,
}

#[derive(Debug)]
struct Said {
    at: Instant,
    /// Times that it was not said since.
    kept: u32,
}

impl Lines {
    /// Something was claimed: the next "nothing" is news.
    pub(crate) fn reset(&mut self) {
        self.said.clear();
    }

    /// Says at DEBUG why nothing is claimed, unless that was just said.
    pub(crate) fn nothing(&mut self, code: Refusal, text: &str, now: Instant) {
        if let Some(line) = self.nothing_line(code, text, now) {
            tracing::debug!("{line}");
        }
    }

    fn nothing_line(&mut self, code: Refusal, text: &str, now: Instant) -> Option<String> {
        let times = match self.said.get_mut(&code) {
            Some(said) if now - said.at < REPEAT_AFTER => {
                said.kept += 1;
                return None;
            }
            Some(said) => said.kept + 1,
            None => 1,
        };
        self.said.insert(code, Said { at: now, kept: 0 });
        Some(if times > 1 {
            format!("{text} ({times} times)")
        } else {
            text.to_owned()
        })
    }

    /// Whether the INFO line of an idle agent is to be said for that reason: once, again when the
    /// reason changes, and not to and fro between two.
    pub(crate) fn idle_is_news(&mut self, code: Refusal, now: Instant) -> bool {
        let last = self.idle.iter().max_by_key(|(_, at)| **at);
        let is_last = last.is_some_and(|(of, _)| *of == code);
        let at = self.idle.get(&code);
        if is_last || at.is_some_and(|at| now - *at < REPEAT_AFTER) {
            return false;
        }
        self.idle.insert(code, now);
        true
    }

    /// The agent works again, or nothing is queued.
    pub(crate) fn reset_idle(&mut self) {
        self.idle.clear();
    }
}

/// `llm:125, cpu:3`
pub(crate) fn queue_words(counts: &[(Class, usize)]) -> String {
    let words: Vec<String> = counts
        .iter()
        .map(|(class, count)| format!("{class}:{count}"))
        .collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_nothing_is_said_once_in_half_a_minute_with_a_count() {
        let mut lines = Lines::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut say = |code, seconds| lines.nothing_line(code, "nothing", at(seconds));
        assert_eq!(say(Refusal::QueueEmpty, 0).as_deref(), Some("nothing"));
        for seconds in 1..30 {
            assert_eq!(say(Refusal::QueueEmpty, seconds), None);
        }
        assert_eq!(
            say(Refusal::QueueEmpty, 30).as_deref(),
            Some("nothing (30 times)")
        );
        assert_eq!(
            say(Refusal::SlotsFull, 31).as_deref(),
            Some("nothing"),
            "another reason is news"
        );
        assert_eq!(say(Refusal::QueueEmpty, 32), None, "nor is one of two");
        lines.reset();
        assert!(
            lines
                .nothing_line(Refusal::SlotsFull, "nothing", at(31))
                .is_some()
        );
    }

    #[test]
    fn an_idle_agent_speaks_again_when_the_reason_changes() {
        let mut lines = Lines::default();
        let start = Instant::now();
        let mut news =
            |code, seconds| lines.idle_is_news(code, start + Duration::from_secs(seconds));
        assert!(news(Refusal::ModelNotLoaded, 60));
        assert!(!news(Refusal::ModelNotLoaded, 3600), "once");
        assert!(news(Refusal::Paused, 3601));
        assert!(news(Refusal::ModelNotLoaded, 3602), "it was long ago");
        assert!(!news(Refusal::Paused, 3603), "to and fro");
        assert!(news(Refusal::Paused, 3640));
        lines.reset_idle();
        assert!(lines.idle_is_news(Refusal::Paused, start + Duration::from_secs(3641)));
    }
}
