//! What a load is expected to gain, and what it gained.
//!
//! With W = seconds of queued work on one GPU, k = GPUs that have the model without this decision,
//! K = with it, and L = seconds of the load:
//!
//! - without: W / k, from cold (k = 0) L + W, as if one GPU had been heated
//! - with: L + (W - k L) / K, as the k GPUs that have it work on meanwhile; from cold L + W / K
//!
//! Afterwards, with N = tasks of the model that ended from the decision on, wherever they ran, s =
//! seconds of one GPU for each of them (measured duration / slots), and X = seconds that the load
//! took: without it they would have taken N s / max(k, 1), from cold X more; they took the time
//! that went by. The difference is what it saved, about: it supposes that the GPUs had work all
//! the time and served at one speed.

use serde::{Deserialize, Serialize};

use super::Demand;
use crate::span::estimate;

/// What is expected of a load. Seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// GPUs that have the model, are loading it or were asked to, without this decision.
    pub before: usize,
    /// The same, with it.
    pub gpus: usize,
    /// The load.
    pub load_seconds: f64,
    /// Until the queued work is done without it.
    pub without_seconds: f64,
    /// Until it is done with it.
    pub with_seconds: f64,
}

impl Predicted {
    pub(super) fn of(demand: &Demand, before: usize, gpus: usize, load_seconds: f64) -> Predicted {
        let backlog = demand.backlog_seconds();
        let (without_seconds, meanwhile) = match before {
            0 => (load_seconds + backlog, 0.0),
            some => (backlog / some as f64, some as f64 * load_seconds),
        };
        Predicted {
            before,
            gpus,
            load_seconds,
            without_seconds,
            with_seconds: load_seconds + (backlog - meanwhile).max(0.0) / gpus.max(1) as f64,
        }
    }

    /// What it is expected to save.
    pub fn saves_seconds(&self) -> f64 {
        self.without_seconds - self.with_seconds
    }

    /// `42m on one GPU, 15m on three`
    pub(super) fn words(&self) -> String {
        let before = self.before.max(1);
        let gpus = if before == 1 { "GPU" } else { "GPUs" };
        let first = format!(
            "{} on {} {gpus}",
            estimate(self.without_seconds),
            number(before)
        );
        if self.gpus == before {
            return first;
        }
        let with = estimate(self.with_seconds);
        format!("{first}, {with} on {}", number(self.gpus))
    }
}

/// What came of a load. Seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Came {
    /// The longest of its loads.
    pub load_seconds: f64,
    /// Tasks that the GPUs of this decision served.
    pub served: usize,
    /// Tasks of the model that ended meanwhile, wherever they ran.
    pub ended: usize,
    /// Seconds of one GPU for each of those: duration / slots.
    pub each_seconds: f64,
    /// From the decision to the end of its work.
    pub took_seconds: f64,
}

impl Came {
    /// What it saved, about; negative: it took longer than without it. See the module for the
    /// formula.
    pub fn saved_seconds(&self, predicted: &Predicted) -> f64 {
        let load = match predicted.before {
            0 => self.load_seconds,
            _ => 0.0,
        };
        let work = self.ended as f64 * self.each_seconds;
        load + work / predicted.before.max(1) as f64 - self.took_seconds
    }

    /// `load took 41s (predicted 40s), served 83 of 125 tasks in 14m; predicted to save 27m, saved
    /// about 26m`
    pub fn words(&self, predicted: &Predicted) -> String {
        let start = format!(
            "load took {} (predicted {}), served {} of {} tasks in {}",
            estimate(self.load_seconds),
            estimate(predicted.load_seconds),
            self.served,
            self.ended,
            estimate(self.took_seconds),
        );
        if predicted.before == 0 && predicted.gpus <= 1 {
            return format!("{start}; no other GPU had it");
        }
        let saved = self.saved_seconds(predicted);
        let words = if saved < 0.0 { "lost" } else { "saved" };
        format!(
            "{start}; predicted to save {}, {words} about {}",
            estimate(predicted.saves_seconds()),
            estimate(saved.abs())
        )
    }
}

/// Small numbers in words.
fn number(count: usize) -> String {
    const WORDS: [&str; 8] = [
        "one", "two", "three", "four", "five", "six", "seven", "eight",
    ];
    count
        .checked_sub(1)
        .and_then(|at| WORDS.get(at))
        .map_or_else(|| count.to_string(), |word| (*word).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn founding() -> Demand {
        Demand {
            model: "m".to_owned(),
            queued: 125,
            task_seconds: 20.0,
            slots: 1,
            load_seconds: 40.0,
            ..Demand::default()
        }
    }

    #[test]
    fn the_founding_run_is_predicted_as_the_design_reckons_it() {
        let predicted = Predicted::of(&founding(), 0, 3, 40.0);
        assert_eq!(predicted.without_seconds, 2540.0);
        assert!((predicted.with_seconds - 873.3).abs() < 0.1);
        assert_eq!(predicted.words(), "42m on one GPU, 15m on three");
    }

    #[test]
    fn gpus_that_have_it_work_on_during_the_load() {
        let predicted = Predicted::of(&founding(), 1, 2, 40.0);
        assert_eq!(predicted.without_seconds, 2500.0);
        // 40 s on one, then 2,460 s of work on two.
        assert_eq!(predicted.with_seconds, 40.0 + 1230.0);
        assert_eq!(predicted.saves_seconds(), 1230.0);
    }

    /// What happens exactly as it was predicted gains exactly what was predicted.
    #[test]
    fn a_true_prediction_comes_true() {
        for before in [0, 1, 2] {
            let predicted = Predicted::of(&founding(), before, 3, 40.0);
            let came = Came {
                load_seconds: 40.0,
                served: 80,
                ended: 125,
                each_seconds: 20.0,
                took_seconds: predicted.with_seconds,
            };
            let error = came.saved_seconds(&predicted) - predicted.saves_seconds();
            assert!(error.abs() < 1e-9, "{before}: {error}");
        }
    }

    #[test]
    fn a_load_that_did_not_pay_is_said_to_have_lost() {
        let predicted = Predicted::of(&founding(), 1, 2, 40.0);
        let came = Came {
            load_seconds: 300.0,
            served: 0,
            ended: 10,
            each_seconds: 20.0,
            took_seconds: 320.0,
        };
        assert_eq!(
            came.words(&predicted),
            "load took 5m (predicted 40s), served 0 of 10 tasks in 5m 20s; predicted to save 21m, lost about 2m"
        );
    }
}
