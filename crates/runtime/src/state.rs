//! What an agent's runtime is doing, and what may happen next. Pure: time is an argument.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The wait after a first failure; it doubles with each further one.
pub const BACKOFF_FIRST_MS: u64 = 5_000;
/// The longest wait between two attempts to load one model.
pub const BACKOFF_LONGEST_MS: u64 = 300_000;

/// The state of the one runtime that an agent owns. Times are milliseconds on the host's own
/// monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// No runtime, nothing of it in VRAM.
    Cold,
    /// Started, not proven yet.
    Loading {
        /// The model's id.
        model: String,
        /// Failures in a row of this model before this attempt.
        failures: u32,
    },
    /// Proven by an answer; takes work.
    Hot {
        /// The model's id.
        model: String,
    },
    /// Takes no new work; what runs may end.
    Draining {
        /// The model's id.
        model: String,
    },
    /// Being stopped; VRAM is not free yet.
    Unloading {
        /// The model's id.
        model: String,
    },
    /// The last attempt failed. Nothing runs, unless `stuck`.
    Failed {
        /// The model's id.
        model: String,
        /// Failures in a row.
        failures: u32,
        /// When this model may be tried again.
        retry_at_ms: u64,
        /// The runtime could not be removed: processes or VRAM remain. No model may be loaded.
        stuck: bool,
    },
}

impl State {
    /// The word for displays and logs.
    pub fn name(&self) -> &'static str {
        match self {
            State::Cold => "cold",
            State::Loading { .. } => "loading",
            State::Hot { .. } => "hot",
            State::Draining { .. } => "draining",
            State::Unloading { .. } => "unloading",
            State::Failed { .. } => "failed",
        }
    }

    /// The model it is about, if any.
    pub fn model(&self) -> Option<&str> {
        match self {
            State::Cold => None,
            State::Loading { model, .. }
            | State::Hot { model }
            | State::Draining { model }
            | State::Unloading { model }
            | State::Failed { model, .. } => Some(model),
        }
    }

    /// How many milliseconds `model` must still wait before it may be loaded, 0 when it need not.
    pub fn backoff_ms(&self, wanted: &str, now_ms: u64) -> u64 {
        match self {
            State::Failed {
                model, retry_at_ms, ..
            } if model == wanted => retry_at_ms.saturating_sub(now_ms),
            State::Failed { .. }
            | State::Cold
            | State::Loading { .. }
            | State::Hot { .. }
            | State::Draining { .. }
            | State::Unloading { .. } => 0,
        }
    }
}

/// What happened, or what is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A model is to be loaded.
    Load {
        /// The model's id.
        model: String,
        /// Now.
        at_ms: u64,
    },
    /// The runtime answered as the model.
    Proven,
    /// The load failed; nothing of it runs any more.
    LoadFailed {
        /// Now.
        at_ms: u64,
    },
    /// No new work.
    Drain,
    /// Stop it now.
    Unload,
    /// Processes and VRAM are gone.
    Unloaded,
    /// The runtime ended by itself while it was to serve.
    Exited {
        /// Now.
        at_ms: u64,
    },
    /// The runtime was stopped, but processes or VRAM remain.
    Stuck {
        /// Now.
        at_ms: u64,
    },
}

/// An event that the state does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct IllegalTransition {
    /// The state, unchanged.
    pub state: State,
    /// The event.
    pub event: Event,
}

impl fmt::Display for IllegalTransition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.name();
        let about = self
            .state
            .model()
            .map(|model| format!(" with {model}"))
            .unwrap_or_default();
        match &self.event {
            Event::Load { model, at_ms } => match &self.state {
                State::Failed { stuck: true, .. } => {
                    write!(
                        f,
                        "cannot load {model}: the runtime before it left processes or VRAM behind"
                    )
                }
                State::Failed { failures, .. } => write!(
                    f,
                    "cannot load {model} yet: {failures} failures in a row, {} ms of backoff left",
                    self.state.backoff_ms(model, *at_ms)
                ),
                State::Cold
                | State::Loading { .. }
                | State::Hot { .. }
                | State::Draining { .. }
                | State::Unloading { .. } => {
                    write!(f, "cannot load {model}: the runtime is {state}{about}")
                }
            },
            event @ (Event::Proven
            | Event::LoadFailed { .. }
            | Event::Drain
            | Event::Unload
            | Event::Unloaded
            | Event::Exited { .. }
            | Event::Stuck { .. }) => {
                write!(f, "{event:?} does not apply: the runtime is {state}{about}")
            }
        }
    }
}

/// The state after `event`. Every pair is decided here and nowhere else.
pub fn next(state: State, event: Event) -> Result<State, IllegalTransition> {
    use {Event as E, State as S};
    match (state, event) {
        (S::Cold, E::Load { model, .. }) => Ok(S::Loading { model, failures: 0 }),
        (
            S::Failed {
                model: failed,
                failures,
                retry_at_ms,
                stuck: false,
            },
            E::Load { model, at_ms },
        ) => {
            if failed != model {
                Ok(S::Loading { model, failures: 0 })
            } else if at_ms >= retry_at_ms {
                Ok(S::Loading { model, failures })
            } else {
                let state = S::Failed {
                    model: failed,
                    failures,
                    retry_at_ms,
                    stuck: false,
                };
                Err(IllegalTransition {
                    state,
                    event: E::Load { model, at_ms },
                })
            }
        }

        (S::Loading { model, .. }, E::Proven) => Ok(S::Hot { model }),
        (S::Loading { model, failures }, E::LoadFailed { at_ms }) => {
            Ok(failed(model, failures, at_ms, false))
        }
        (S::Loading { model, failures }, E::Stuck { at_ms }) => {
            Ok(failed(model, failures, at_ms, true))
        }
        (S::Loading { model, .. }, E::Unload) => Ok(S::Unloading { model }),

        (S::Hot { model }, E::Drain) => Ok(S::Draining { model }),
        (S::Draining { model }, E::Drain) => Ok(S::Draining { model }),
        (S::Hot { model } | S::Draining { model }, E::Unload) => Ok(S::Unloading { model }),
        (S::Hot { model } | S::Draining { model }, E::Exited { at_ms }) => {
            Ok(failed(model, 0, at_ms, false))
        }
        (S::Hot { model } | S::Draining { model }, E::Stuck { at_ms }) => {
            Ok(failed(model, 0, at_ms, true))
        }

        (S::Unloading { .. }, E::Unloaded) => Ok(S::Cold),
        (S::Unloading { model }, E::Stuck { at_ms }) => Ok(failed(model, 0, at_ms, true)),

        // Asked again, what is left of a failed runtime may be removed after all.
        (S::Failed { model, .. }, E::Unload) => Ok(S::Unloading { model }),

        (
            state @ S::Cold,
            event @ (E::Proven
            | E::LoadFailed { .. }
            | E::Drain
            | E::Unload
            | E::Unloaded
            | E::Exited { .. }
            | E::Stuck { .. }),
        )
        | (
            state @ S::Loading { .. },
            // An exit during the load is a failed load.
            event @ (E::Load { .. } | E::Drain | E::Unloaded | E::Exited { .. }),
        )
        | (
            state @ (S::Hot { .. } | S::Draining { .. }),
            event @ (E::Load { .. } | E::Proven | E::LoadFailed { .. } | E::Unloaded),
        )
        | (
            state @ S::Unloading { .. },
            // An exit during the unload is what was asked for.
            event @ (E::Load { .. }
            | E::Proven
            | E::LoadFailed { .. }
            | E::Drain
            | E::Unload
            | E::Exited { .. }),
        )
        | (
            state @ S::Failed { stuck: false, .. },
            event @ (E::Proven
            | E::LoadFailed { .. }
            | E::Drain
            | E::Unloaded
            | E::Exited { .. }
            | E::Stuck { .. }),
        )
        | (
            state @ S::Failed { stuck: true, .. },
            event @ (E::Load { .. }
            | E::Proven
            | E::LoadFailed { .. }
            | E::Drain
            | E::Unloaded
            | E::Exited { .. }
            | E::Stuck { .. }),
        ) => Err(IllegalTransition { state, event }),
    }
}

fn failed(model: String, failures_before: u32, at_ms: u64, stuck: bool) -> State {
    let wait_ms = BACKOFF_FIRST_MS
        .saturating_mul(1 << failures_before.min(16))
        .min(BACKOFF_LONGEST_MS);
    State::Failed {
        model,
        failures: failures_before.saturating_add(1),
        retry_at_ms: at_ms + wait_ms,
        stuck,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 100_000;

    fn m() -> String {
        "m".into()
    }

    fn failed_state(failures: u32, retry_at_ms: u64, stuck: bool) -> State {
        State::Failed {
            model: m(),
            failures,
            retry_at_ms,
            stuck,
        }
    }

    fn events() -> Vec<Event> {
        vec![
            Event::Load {
                model: m(),
                at_ms: NOW,
            },
            Event::Proven,
            Event::LoadFailed { at_ms: NOW },
            Event::Drain,
            Event::Unload,
            Event::Unloaded,
            Event::Exited { at_ms: NOW },
            Event::Stuck { at_ms: NOW },
        ]
    }

    /// One row per state, one column per event; `None` is an illegal pair.
    #[test]
    fn every_pair_is_decided() {
        let (cold, hot, draining) = (
            State::Cold,
            State::Hot { model: m() },
            State::Draining { model: m() },
        );
        let loading = |failures| State::Loading {
            model: m(),
            failures,
        };
        let unloading = State::Unloading { model: m() };
        let first = failed_state(1, NOW + 5_000, false);
        let stuck = failed_state(1, NOW + 5_000, true);
        let u = || Some(unloading.clone());
        #[rustfmt::skip]
        let table = [
            //                               Load               Proven             LoadFailed           Drain                   Unload Unloaded           Exited               Stuck
            (cold.clone(),                  [Some(loading(0)),  None,              None,                None,                   None,  None,              None,                None]),
            (loading(0),                    [None,              Some(hot.clone()), Some(first.clone()), None,                   u(),   None,              None,                Some(stuck.clone())]),
            (hot,                           [None,              None,              None,                Some(draining.clone()), u(),   None,              Some(first.clone()), Some(stuck.clone())]),
            (draining.clone(),              [None,              None,              None,                Some(draining),         u(),   None,              Some(first),         Some(stuck.clone())]),
            (unloading.clone(),             [None,              None,              None,                None,                   None,  Some(cold),        None,                Some(stuck.clone())]),
            (failed_state(3, NOW, false),   [Some(loading(3)),  None,              None,                None,                   u(),   None,              None,                None]),
            (failed_state(3, NOW+1, false), [None,              None,              None,                None,                   u(),   None,              None,                None]),
            (stuck,                         [None,              None,              None,                None,                   u(),   None,              None,                None]),
        ];
        for (state, row) in table {
            for (event, expected) in events().into_iter().zip(row) {
                let got = next(state.clone(), event.clone());
                match expected {
                    Some(expected) => {
                        assert_eq!(got.as_ref(), Ok(&expected), "{state:?} + {event:?}")
                    }
                    None => assert_eq!(
                        got,
                        Err(IllegalTransition {
                            state: state.clone(),
                            event
                        })
                    ),
                }
            }
        }
    }

    #[test]
    fn backoff_doubles_is_bounded_and_is_the_models_own() {
        let mut state = State::Cold;
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..9 {
            state = next(
                state,
                Event::Load {
                    model: m(),
                    at_ms: now,
                },
            )
            .unwrap();
            state = next(state, Event::LoadFailed { at_ms: now }).unwrap();
            let wait = state.backoff_ms("m", now);
            waits.push(wait);
            assert_eq!(state.backoff_ms("other", now), 0);
            now += wait;
        }
        assert_eq!(
            waits,
            [5, 10, 20, 40, 80, 160, 300, 300, 300].map(|s| s * 1_000)
        );
        let other = next(
            state,
            Event::Load {
                model: "other".into(),
                at_ms: 0,
            },
        );
        assert_eq!(
            other,
            Ok(State::Loading {
                model: "other".into(),
                failures: 0
            })
        );
    }

    #[test]
    fn a_refusal_says_why() {
        let refused = |state| {
            next(
                state,
                Event::Load {
                    model: m(),
                    at_ms: NOW,
                },
            )
            .unwrap_err()
            .to_string()
        };
        assert_eq!(
            refused(State::Hot { model: "n".into() }),
            "cannot load m: the runtime is hot with n"
        );
        let waiting = refused(failed_state(2, NOW + 700, false));
        assert_eq!(
            waiting,
            "cannot load m yet: 2 failures in a row, 700 ms of backoff left"
        );
        assert!(refused(failed_state(1, 0, true)).contains("left processes or VRAM behind"));
    }
}
