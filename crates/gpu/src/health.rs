//! Whether a GPU may take work, from its readings. Pure.
//!
//! Each limit holds back at the limit and lets go only well below it, so that a GPU at its limit
//! does not start and stop with every reading.
//!
//! Before a limit there is a soft band ([`Near`]): in it a GPU takes half as much at once as it
//! could, which often keeps it from the limit, at which it takes nothing.
//!
//! Memory is no matter of health: what is short of it is what is to be admitted next, and the
//! [ledger](crate::ledger) refuses that with its numbers. A request to a model that is in memory
//! already takes no more of it, so a crowded GPU still serves.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::GpuError;
use crate::reading::Reading;

/// A GPU held back for heat takes work again this far below the limit, Celsius.
pub const COOL_BY_C: u32 = 5;

/// A GPU held back for power takes work again this far below the limit, percent of it.
pub const POWER_BELOW_PERCENT: u32 = 5;

/// The soft band before the temperature limit, Celsius. A GPU that was held back for heat comes
/// back into it, not past it.
pub const NEAR_C: u32 = COOL_BY_C;

/// The soft band before the power limit, percent of it.
pub const NEAR_POWER_PERCENT: u32 = POWER_BELOW_PERCENT;

/// The soft band is left this far below its beginning: Celsius, or percent of the power limit.
pub const NEAR_HYSTERESIS: u32 = 3;

/// The limits of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Celsius; at it the GPU takes no new work.
    pub temperature_c: u32,
    /// Watt; at it the GPU takes no new work. None: the card's own limit is enough.
    pub power_w: Option<u32>,
    /// The part of the memory that tasks and models may use, 0 to 1.
    pub vram_share: f64,
}

impl Limits {
    /// What tasks and models may use of a GPU with `total_mb`, MiB.
    pub fn budget_mb(&self, total_mb: u64) -> u64 {
        (total_mb as f64 * self.vram_share.clamp(0.0, 1.0)) as u64
    }
}

/// A GPU's condition. Its text is the reason, with numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "condition", rename_all = "snake_case")]
pub enum Condition {
    /// Takes work.
    #[default]
    Ok,
    /// Too hot.
    Thermal {
        /// The last reading, Celsius.
        temperature_c: u32,
        /// Celsius.
        limit_c: u32,
    },
    /// Draws too much.
    Power {
        /// The last reading, watt.
        power_w: u32,
        /// Watt.
        limit_w: u32,
    },
    /// Off the bus. Stays so: what a GPU held is gone with it, so the agent must start afresh.
    Lost {
        /// The error's text, with its remedy.
        cause: String,
    },
}

impl Condition {
    /// The condition that an error means; none for one that says nothing about the GPU itself.
    pub fn from_error(error: &GpuError) -> Option<Condition> {
        matches!(error, GpuError::Lost { .. }).then(|| Condition::Lost {
            cause: error.to_string(),
        })
    }

    /// Whether the GPU takes work.
    pub fn is_ok(&self) -> bool {
        *self == Condition::Ok
    }
}

impl fmt::Display for Condition {
    /// `84C >= 80C`; while it cools `77C, 75C needed (limit 80C)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over =
            |f: &mut fmt::Formatter<'_>, value: u32, limit: u32, release: u32, unit: &str| {
                if value >= limit {
                    write!(f, "{value}{unit} >= {limit}{unit}")
                } else {
                    write!(
                        f,
                        "{value}{unit}, {release}{unit} needed (limit {limit}{unit})"
                    )
                }
            };
        match self {
            Condition::Ok => f.write_str("ok"),
            Condition::Thermal {
                temperature_c,
                limit_c,
            } => over(f, *temperature_c, *limit_c, release_c(*limit_c), "C"),
            Condition::Power { power_w, limit_w } => {
                over(f, *power_w, *limit_w, release_w(*limit_w), "W")
            }
            Condition::Lost { cause } => f.write_str(cause),
        }
    }
}

/// A GPU that is close to a limit. Its text is the reason, with numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "near", rename_all = "snake_case")]
pub enum Near {
    /// It gets hot.
    Thermal {
        /// The last reading, Celsius.
        temperature_c: u32,
        /// Celsius.
        limit_c: u32,
    },
    /// It draws much.
    Power {
        /// The last reading, watt.
        power_w: u32,
        /// Watt.
        limit_w: u32,
    },
}

impl fmt::Display for Near {
    /// `78C is within 5C of the limit 80C`; on the way out `73C, 72C needed (limit 80C)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Near::Thermal {
                temperature_c,
                limit_c,
            } => {
                if temperature_c >= near_c(limit_c) {
                    write!(
                        f,
                        "{temperature_c}C is within {NEAR_C}C of the limit {limit_c}C"
                    )
                } else {
                    let needed = far_c(limit_c);
                    write!(f, "{temperature_c}C, {needed}C needed (limit {limit_c}C)")
                }
            }
            Near::Power { power_w, limit_w } => {
                if power_w >= near_w(limit_w) {
                    write!(
                        f,
                        "{power_w}W is within {NEAR_POWER_PERCENT}% of the limit {limit_w}W"
                    )
                } else {
                    let needed = far_w(limit_w);
                    write!(f, "{power_w}W, {needed}W needed (limit {limit_w}W)")
                }
            }
        }
    }
}

/// Whether the GPU is close to a limit after `reading`, or over it. Heat comes before power. A
/// value that is missing from a reading neither starts nor ends it.
pub fn near(previous: Option<Near>, reading: &Reading, limits: &Limits) -> Option<Near> {
    let limit_c = limits.temperature_c;
    let was_warm = matches!(previous, Some(Near::Thermal { .. }));
    match reading.temperature_c {
        Some(temperature_c)
            if temperature_c >= near_c(limit_c) || (was_warm && temperature_c > far_c(limit_c)) =>
        {
            return Some(Near::Thermal {
                temperature_c,
                limit_c,
            });
        }
        None if was_warm => return previous,
        Some(_) | None => {}
    }
    let was_high = matches!(previous, Some(Near::Power { .. }));
    match (reading.power_w, limits.power_w) {
        (Some(power_w), Some(limit_w))
            if power_w >= near_w(limit_w) || (was_high && power_w > far_w(limit_w)) =>
        {
            Some(Near::Power { power_w, limit_w })
        }
        (None, Some(_)) if was_high => previous,
        (Some(_) | None, Some(_) | None) => None,
    }
}

/// The condition after `reading`. Heat comes before power. A value that is missing from a reading
/// neither starts nor ends a condition.
pub fn condition(previous: &Condition, reading: &Reading, limits: &Limits) -> Condition {
    if let Condition::Lost { .. } = previous {
        return previous.clone();
    }

    let limit_c = limits.temperature_c;
    let was_hot = matches!(previous, Condition::Thermal { .. });
    match reading.temperature_c {
        Some(temperature_c)
            if temperature_c >= limit_c || (was_hot && temperature_c > release_c(limit_c)) =>
        {
            return Condition::Thermal {
                temperature_c,
                limit_c,
            };
        }
        None if was_hot => return previous.clone(),
        Some(_) | None => {}
    }

    let was_over = matches!(previous, Condition::Power { .. });
    match (reading.power_w, limits.power_w) {
        (Some(power_w), Some(limit_w))
            if power_w >= limit_w || (was_over && power_w > release_w(limit_w)) =>
        {
            Condition::Power { power_w, limit_w }
        }
        (None, Some(_)) if was_over => previous.clone(),
        (Some(_) | None, Some(_) | None) => Condition::Ok,
    }
}

fn release_c(limit_c: u32) -> u32 {
    limit_c.saturating_sub(COOL_BY_C)
}

fn release_w(limit_w: u32) -> u32 {
    limit_w - percent_of(limit_w, POWER_BELOW_PERCENT)
}

fn near_c(limit_c: u32) -> u32 {
    limit_c.saturating_sub(NEAR_C)
}

fn far_c(limit_c: u32) -> u32 {
    limit_c.saturating_sub(NEAR_C + NEAR_HYSTERESIS)
}

fn near_w(limit_w: u32) -> u32 {
    limit_w - percent_of(limit_w, NEAR_POWER_PERCENT)
}

fn far_w(limit_w: u32) -> u32 {
    limit_w - percent_of(limit_w, NEAR_POWER_PERCENT + NEAR_HYSTERESIS)
}

fn percent_of(watt: u32, percent: u32) -> u32 {
    watt.saturating_mul(percent) / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        temperature_c: 80,
        power_w: Some(300),
        vram_share: 0.8,
    };

    /// The conditions, as text, of a run of readings of (temperature, power).
    fn run(limits: &Limits, readings: &[(Option<u32>, Option<u32>)]) -> Vec<String> {
        let mut now = Condition::Ok;
        readings
            .iter()
            .map(|&(temperature_c, power_w)| {
                now = condition(
                    &now,
                    &Reading {
                        temperature_c,
                        power_w,
                        ..Reading::default()
                    },
                    limits,
                );
                now.to_string()
            })
            .collect()
    }

    #[test]
    fn heat_holds_from_the_limit_until_five_below() {
        let degrees = [79, 80, 84, 76, 75, 79].map(|c| (Some(c), Some(100)));
        assert_eq!(
            run(&LIMITS, &degrees),
            [
                "ok",
                "80C >= 80C",
                "84C >= 80C",
                "76C, 75C needed (limit 80C)",
                "ok",
                "ok"
            ]
        );
    }

    #[test]
    fn power_holds_from_the_limit_until_five_percent_below() {
        let watts = [299, 310, 286, 285, 290].map(|w| (Some(50), Some(w)));
        assert_eq!(
            run(&LIMITS, &watts),
            [
                "ok",
                "310W >= 300W",
                "286W, 285W needed (limit 300W)",
                "ok",
                "ok"
            ]
        );
        let no_limit = Limits {
            power_w: None,
            ..LIMITS
        };
        assert_eq!(run(&no_limit, &[(Some(50), Some(9000))]), ["ok"]);
    }

    #[test]
    fn a_missing_value_changes_nothing() {
        assert_eq!(
            run(
                &LIMITS,
                &[
                    (None, None),
                    (Some(85), None),
                    (None, Some(50)),
                    (Some(70), Some(310)),
                    (Some(70), None)
                ]
            ),
            [
                "ok",
                "85C >= 80C",
                "85C >= 80C",
                "310W >= 300W",
                "310W >= 300W"
            ]
        );
    }

    #[test]
    fn heat_comes_before_power_and_gives_way_to_it() {
        assert_eq!(
            run(
                &LIMITS,
                &[
                    (Some(81), Some(400)),
                    (Some(60), Some(400)),
                    (Some(60), Some(10))
                ]
            ),
            ["81C >= 80C", "400W >= 300W", "ok"]
        );
    }

    #[test]
    fn the_soft_band_begins_before_the_limit_and_ends_below_its_beginning() {
        let run = |readings: &[(Option<u32>, Option<u32>)]| -> Vec<String> {
            let mut now = None;
            let texts = readings.iter().map(|&(temperature_c, power_w)| {
                let reading = Reading {
                    temperature_c,
                    power_w,
                    ..Reading::default()
                };
                now = near(now, &reading, &LIMITS);
                now.map_or("-".to_owned(), |near| near.to_string())
            });
            texts.collect()
        };
        let degrees = [74, 75, 79, 85, 74, 73, 72, 74].map(|c| (Some(c), Some(100)));
        assert_eq!(
            run(&degrees),
            [
                "-",
                "75C is within 5C of the limit 80C",
                "79C is within 5C of the limit 80C",
                "85C is within 5C of the limit 80C",
                "74C, 72C needed (limit 80C)",
                "73C, 72C needed (limit 80C)",
                "-",
                "-"
            ]
        );
        let watts = [284, 285, 280, 276, 280].map(|w| (Some(50), Some(w)));
        assert_eq!(
            run(&watts),
            [
                "-",
                "285W is within 5% of the limit 300W",
                "280W, 276W needed (limit 300W)",
                "-",
                "-"
            ]
        );
        let kept = "76C is within 5C of the limit 80C";
        assert_eq!(
            run(&[(Some(76), None), (None, Some(299)), (Some(60), None)]),
            [kept, kept, "-"],
            "a missing value changes nothing"
        );
    }

    #[test]
    fn what_was_too_hot_comes_back_into_the_soft_band() {
        let mut hot = Condition::Ok;
        let mut warm = None;
        for (celsius, takes, halved) in [
            (80, false, true),
            (76, false, true),
            (75, true, true),
            (72, true, false),
        ] {
            let reading = Reading {
                temperature_c: Some(celsius),
                ..Reading::default()
            };
            hot = condition(&hot, &reading, &LIMITS);
            warm = near(warm, &reading, &LIMITS);
            assert_eq!((hot.is_ok(), warm.is_some()), (takes, halved), "{celsius}");
        }
    }

    #[test]
    fn lost_stays_lost() {
        let error = GpuError::Lost {
            uuid: "GPU-1".into(),
            cause: "off the bus".into(),
        };
        let lost = Condition::from_error(&error).unwrap();
        assert!(
            lost.to_string()
                .starts_with("GPU-1 is lost: off the bus; look for")
        );
        let cool = Reading {
            temperature_c: Some(30),
            power_w: Some(10),
            ..Reading::default()
        };
        assert_eq!(condition(&lost, &cool, &LIMITS), lost);
        assert_eq!(
            Condition::from_error(&GpuError::NotFound {
                uuid: "x".into(),
                known: vec![]
            }),
            None
        );
    }

    #[test]
    fn a_budget_is_a_share() {
        assert_eq!(LIMITS.budget_mb(6144), 4915);
        assert_eq!(
            Limits {
                vram_share: 7.0,
                ..LIMITS
            }
            .budget_mb(6144),
            6144
        );
    }
}
