//! Lines that would repeat: said once, then at most every half minute with a count.

use std::time::{Duration, Instant};

use rigor_queue::heartbeat::{Refusal, Verdict};
use rigor_queue::task::Class;

/// How often the same "nothing" is said again.
const REPEAT_AFTER: Duration = Duration::from_secs(30);

/// What was said last of claiming nothing.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    last: Option<Said>,
    idle_said: Option<Refusal>,
}

#[derive(Debug)]
struct Said {
    code: Refusal,
    at: Instant,
    /// Times that it was not said since.
    kept: u32,
}

impl Lines {
    /// Something was claimed: the next "nothing" is news.
    pub(crate) fn reset(&mut self) {
        self.last = None;
        self.idle_said = None;
    }

    /// Says at DEBUG why nothing is claimed, unless that was just said.
    pub(crate) fn nothing(&mut self, code: Refusal, text: &str, now: Instant) {
        if let Some(line) = self.nothing_line(code, text, now) {
            tracing::debug!("{line}");
        }
    }

    fn nothing_line(&mut self, code: Refusal, text: &str, now: Instant) -> Option<String> {
        let times = match &mut self.last {
            Some(said) if said.code == code && now - said.at < REPEAT_AFTER => {
                said.kept += 1;
                return None;
            }
            Some(said) if said.code == code => said.kept + 1,
            Some(_) | None => 1,
        };
        self.last = Some(Said {
            code,
            at: now,
            kept: 0,
        });
        Some(if times > 1 {
            format!("{text} ({times} times)")
        } else {
            text.to_owned()
        })
    }

    /// The INFO line of an agent that has been idle although tasks are queued: once, and again
    /// when the reason changes.
    pub(crate) fn idle(
        &mut self,
        idle: Duration,
        queued: usize,
        verdict: &Verdict,
        remedy: Option<&str>,
    ) {
        if self.idle_said == Some(verdict.code) {
            return;
        }
        self.idle_said = Some(verdict.code);
        let code = verdict.code.as_str();
        let remedy = remedy.map_or(String::new(), |remedy| format!(". Override: {remedy}"));
        tracing::info!(
            "Idle {}s with {queued} queued: {code} - {}{remedy}",
            idle.as_secs(),
            verdict.detail
        );
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
        lines.reset();
        assert!(
            lines
                .nothing_line(Refusal::SlotsFull, "nothing", at(31))
                .is_some()
        );
    }
}
