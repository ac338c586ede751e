//! What fails again and again is said once, and again only when something about it is news.

use std::time::{Duration, Instant};

/// On a full disk one try may work and the next fail, each with other words: so often it is news.
const NEWS_EVERY: Duration = Duration::from_secs(30);

/// One thing that failed.
#[derive(Debug, Default)]
pub(super) struct Complaint {
    failing: bool,
    said: Option<(String, Instant)>,
    recovery_said: Option<Instant>,
}

impl Complaint {
    /// It failed. `true`: that is to be said.
    pub(super) fn fails(&mut self, message: &str, now: Instant) -> bool {
        let again = std::mem::replace(&mut self.failing, true);
        let old_news = self.said.as_ref().is_some_and(|(said, at)| {
            now.duration_since(*at) < NEWS_EVERY || (again && said == message)
        });
        if old_news {
            return false;
        }
        self.said = Some((message.to_owned(), now));
        true
    }

    /// It worked. `true`: it had failed, and that it works is to be said.
    pub(super) fn works(&mut self, now: Instant) -> bool {
        if !std::mem::replace(&mut self.failing, false) {
            return false;
        }
        let recent = self
            .recovery_said
            .is_some_and(|at| now.duration_since(at) < NEWS_EVERY);
        if recent {
            return false;
        }
        self.recovery_said = Some(now);
        true
    }

    /// What was last said of it.
    pub(super) fn message(&self) -> &str {
        self.said.as_ref().map_or("", |(said, _)| said)
    }

    /// It is to be tried again.
    pub(super) fn is_failing(&self) -> bool {
        self.failing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_and_again_when_it_is_news() {
        let mut complaint = Complaint::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(complaint.fails("full", at(0)));
        assert!(!complaint.fails("full", at(40)), "nothing new");
        assert!(complaint.fails("read-only", at(41)));
        assert!(complaint.works(at(42)));
        assert!(!complaint.works(at(42)));
        assert!(!complaint.fails("full", at(43)), "it flaps");
        assert!(complaint.is_failing());
        assert!(!complaint.works(at(44)), "it flaps");
        assert!(complaint.fails("full", at(100)));
        assert!(complaint.works(at(101)));
    }
}
