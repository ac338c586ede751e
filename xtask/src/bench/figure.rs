//! A figure: ours beside what it is held against, with the spread of both.

use serde::Serialize;

/// One row of the table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figure {
    pub(super) name: String,
    pub(super) unit: &'static str,
    pub(super) ours: Runs,
    pub(super) against: Option<Against>,
    /// How `ours / against` has to be.
    pub(super) target: Option<Target>,
}

/// What was measured, of all runs.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Runs {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    /// One after another, as they ran.
    pub(super) all: Vec<f64>,
}

/// The other side.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Against {
    /// A peer, a bare loop, or a limit.
    pub(super) what: String,
    /// Measured in the same run, in turn with ours; else a number that was set.
    pub(super) measured: bool,
    pub(super) runs: Runs,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Target {
    /// Smaller than that.
    Under(f64),
    /// At least that.
    AtLeast(f64),
}

impl Figure {
    /// Of the runs; there is at least one.
    pub(super) fn of(name: impl Into<String>, unit: &'static str, runs: Vec<f64>) -> Figure {
        Figure {
            name: name.into(),
            unit,
            ours: Runs::of(runs),
            against: None,
            target: None,
        }
    }

    /// Beside a peer or a bare loop that ran in turn with it.
    pub(super) fn beside(mut self, what: impl Into<String>, runs: Vec<f64>) -> Figure {
        self.against = Some(Against {
            what: what.into(),
            measured: true,
            runs: Runs::of(runs),
        });
        self
    }

    /// The same, with how the ratio has to be.
    pub(super) fn against(self, what: impl Into<String>, runs: Vec<f64>, target: Target) -> Figure {
        Figure {
            target: Some(target),
            ..self.beside(what, runs)
        }
    }

    /// Held against a number that was set.
    pub(super) fn limit(mut self, limit: f64, target: Target) -> Figure {
        self.against = Some(Against {
            what: "the limit".to_owned(),
            measured: false,
            runs: Runs::of(vec![limit]),
        });
        self.target = Some(target);
        self
    }

    /// `ours / against`, of the medians.
    pub(super) fn ratio(&self) -> Option<f64> {
        let against = self.against.as_ref()?;
        Some(self.ours.median / against.runs.median)
    }

    pub(super) fn is_met(&self) -> Option<bool> {
        Some(self.target?.allows(self.ratio()?))
    }

    /// One line, and another for the other side.
    pub(super) fn rows(&self) -> String {
        let row = |name: &str, unit: &str, runs: &Runs| {
            format!(
                "{name:<64} {unit:>8} {:>11} {:>11} {:>11}",
                short(runs.median),
                short(runs.min),
                short(runs.max)
            )
        };
        let mut text = row(&self.name, self.unit, &self.ours);
        if let Some(against) = &self.against {
            text.push('\n');
            text.push_str(&row(&format!("    {}", against.what), "", &against.runs));
            text.push_str(&format!(" {:>8}", short(self.ratio().unwrap_or(f64::NAN))));
            if let (Some(target), Some(met)) = (self.target, self.is_met()) {
                text.push_str(&format!(
                    "  {target} {}",
                    if met { "met" } else { "MISSED" }
                ));
            }
        }
        text
    }
}

impl Runs {
    fn of(all: Vec<f64>) -> Runs {
        let mut sorted = all.clone();
        sorted.sort_by(f64::total_cmp);
        Runs {
            median: median(&sorted),
            min: sorted.first().copied().unwrap_or(f64::NAN),
            max: sorted.last().copied().unwrap_or(f64::NAN),
            all,
        }
    }
}

impl Target {
    pub(super) fn allows(self, ratio: f64) -> bool {
        match self {
            Target::Under(limit) => ratio < limit,
            Target::AtLeast(limit) => ratio >= limit,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Under(limit) => write!(f, "< {limit}"),
            Target::AtLeast(limit) => write!(f, ">= {limit}"),
        }
    }
}

/// The header of the table that [`Figure::rows`] fills.
pub(super) fn header() -> String {
    format!(
        "{:<64} {:>8} {:>11} {:>11} {:>11} {:>8}  target",
        "", "unit", "median", "min", "max", "ratio"
    )
}

/// A number with three digits or so, whatever its size.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        size if size >= 0.001 => format!("{value:.4}"),
        _ => format!("{value:.2e}"),
    }
}

/// Of sorted numbers.
pub(super) fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted {
        [] => f64::NAN,
        _ if sorted.len().is_multiple_of(2) => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

/// The smallest of the numbers that this share of them does not exceed (nearest rank).
pub(super) fn percentile(mut numbers: Vec<f64>, share: f64) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let rank = (numbers.len() as f64 * share).ceil() as usize;
    numbers
        .get(rank.clamp(1, numbers.len().max(1)) - 1)
        .copied()
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_a_median_with_its_spread_and_its_verdict() {
        let figure = Figure::of("x", "us", vec![9.0, 1.0, 2.0]);
        let ours = &figure.ours;
        assert_eq!((ours.median, ours.min, ours.max), (2.0, 1.0, 9.0));
        assert_eq!(ours.all, [9.0, 1.0, 2.0], "in the order of the runs");
        assert_eq!((figure.ratio(), figure.is_met()), (None, None));
        let figure = figure.limit(50.0, Target::Under(1.0));
        assert_eq!((figure.ratio(), figure.is_met()), (Some(0.04), Some(true)));
        let peer = vec![80.0, 120.0, 100.0];
        let beside = Figure::of("x", "1/s", vec![90.0, 94.0]).beside("a peer", peer.clone());
        assert_eq!((beside.ratio(), beside.is_met()), (Some(0.92), None));
        let slow =
            Figure::of("x", "1/s", vec![90.0, 94.0]).against("a peer", peer, Target::AtLeast(0.95));
        assert_eq!((slow.ratio(), slow.is_met()), (Some(0.92), Some(false)));
        assert!(
            slow.rows().contains("0.9200  >= 0.95 MISSED"),
            "{}",
            slow.rows()
        );
    }

    #[test]
    fn a_target_is_met_at_its_edge_only_where_it_says_at_least() {
        assert!(Target::AtLeast(0.7).allows(0.7));
        assert!(!Target::Under(0.7).allows(0.7));
        assert!(Target::Under(0.7).allows(0.69));
    }

    #[test]
    fn a_percentile_is_one_of_the_numbers() {
        let numbers: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(numbers.clone(), 0.5), 100.0);
        assert_eq!(percentile(numbers.clone(), 0.95), 190.0);
        assert_eq!(percentile(numbers, 1.0), 200.0);
        assert_eq!(percentile(vec![3.0], 0.5), 3.0);
        assert!(percentile(Vec::new(), 0.5).is_nan());
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.00001234, 0.05, 1.5, 1234.6].map(short);
        assert_eq!(shown, ["0", "1.23e-5", "0.0500", "1.50", "1235"]);
    }
}
