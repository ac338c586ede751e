//! What an agent's runtime is doing, and what may happen next. Pure, and without time: when a model
//! that has failed may be tried again is [`crate::Backoff`]'s to say.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of the one runtime that an agent owns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// No runtime, nothing of it in VRAM.
    Cold,
    /// Started, not proven yet.
    Loading {
        /// The model's id.
        model: String,
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
}

/// What happened, or what is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A model is to be loaded.
    Load {
        /// The model's id.
        model: String,
    },
    /// A runtime that an earlier agent left serves this model, proven by an answer.
    Adopted {
        /// The model's id.
        model: String,
    },
    /// The runtime answered as the model.
    Proven,
    /// The load failed; nothing of it runs any more.
    LoadFailed,
    /// No new work.
    Drain,
    /// Stop it now.
    Unload,
    /// Processes and VRAM are gone.
    Unloaded,
    /// The runtime ended by itself while it was to serve.
    Exited,
    /// The runtime was stopped, but processes or VRAM remain.
    Stuck,
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
            Event::Load { model } => match &self.state {
                State::Failed { stuck: true, .. } => {
                    write!(
                        f,
                        "cannot load {model}: the runtime before it left processes or VRAM behind"
                    )
                }
                State::Cold
                | State::Loading { .. }
                | State::Hot { .. }
                | State::Draining { .. }
                | State::Unloading { .. }
                | State::Failed { stuck: false, .. } => {
                    write!(f, "cannot load {model}: the runtime is {state}{about}")
                }
            },
            event @ (Event::Adopted { .. }
            | Event::Proven
            | Event::LoadFailed
            | Event::Drain
            | Event::Unload
            | Event::Unloaded
            | Event::Exited
            | Event::Stuck) => {
                write!(f, "{event:?} does not apply: the runtime is {state}{about}")
            }
        }
    }
}

/// The state after `event`. Every pair is decided here and nowhere else.
pub fn next(state: State, event: Event) -> Result<State, IllegalTransition> {
    use {Event as E, State as S};
    match (state, event) {
        (S::Cold | S::Failed { stuck: false, .. }, E::Load { model }) => Ok(S::Loading { model }),
        (S::Cold, E::Adopted { model }) => Ok(S::Hot { model }),

        (S::Loading { model }, E::Proven) => Ok(S::Hot { model }),
        (S::Loading { model }, E::LoadFailed) => Ok(failed(model, false)),
        (S::Loading { model }, E::Stuck) => Ok(failed(model, true)),
        (S::Loading { model }, E::Unload) => Ok(S::Unloading { model }),

        (S::Hot { model } | S::Draining { model }, E::Drain) => Ok(S::Draining { model }),
        (S::Hot { model } | S::Draining { model }, E::Unload) => Ok(S::Unloading { model }),
        (S::Hot { model } | S::Draining { model }, E::Exited) => Ok(failed(model, false)),
        (S::Hot { model } | S::Draining { model }, E::Stuck) => Ok(failed(model, true)),

        (S::Unloading { .. }, E::Unloaded) => Ok(S::Cold),
        (S::Unloading { model }, E::Stuck) => Ok(failed(model, true)),

        // Asked again, what is left of a failed runtime may be removed after all.
        (S::Failed { model, .. }, E::Unload) => Ok(S::Unloading { model }),

        (
            state @ S::Cold,
            event @ (E::Proven
            | E::LoadFailed
            | E::Drain
            | E::Unload
            | E::Unloaded
            | E::Exited
            | E::Stuck),
        )
        | (
            state @ S::Loading { .. },
            // An exit during the load is a failed load.
            event @ (E::Load { .. } | E::Adopted { .. } | E::Drain | E::Unloaded | E::Exited),
        )
        | (
            state @ (S::Hot { .. } | S::Draining { .. }),
            event @ (E::Load { .. } | E::Adopted { .. } | E::Proven | E::LoadFailed | E::Unloaded),
        )
        | (
            state @ S::Unloading { .. },
            // An exit during the unload is what was asked for.
            event @ (E::Load { .. }
            | E::Adopted { .. }
            | E::Proven
            | E::LoadFailed
            | E::Drain
            | E::Unload
            | E::Exited),
        )
        | (
            state @ S::Failed { stuck: false, .. },
            event @ (E::Adopted { .. }
            | E::Proven
            | E::LoadFailed
            | E::Drain
            | E::Unloaded
            | E::Exited
            | E::Stuck),
        )
        | (
            state @ S::Failed { stuck: true, .. },
            event @ (E::Load { .. }
            | E::Adopted { .. }
            | E::Proven
            | E::LoadFailed
            | E::Drain
            | E::Unloaded
            | E::Exited
            | E::Stuck),
        ) => Err(IllegalTransition { state, event }),
    }
}

fn failed(model: String, stuck: bool) -> State {
    State::Failed { model, stuck }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn m() -> String {
        "m".into()
    }

    fn events() -> Vec<Event> {
        vec![
            Event::Load { model: m() },
            Event::Adopted { model: m() },
            Event::Proven,
            Event::LoadFailed,
            Event::Drain,
            Event::Unload,
            Event::Unloaded,
            Event::Exited,
            Event::Stuck,
        ]
    }

    /// One row per state, one column per event; `None` is an illegal pair.
    #[test]
    fn every_pair_is_decided() {
        let (cold, loading, hot, draining, unloading) = (
            State::Cold,
            State::Loading { model: m() },
            State::Hot { model: m() },
            State::Draining { model: m() },
            State::Unloading { model: m() },
        );
        let (gone, stuck) = (failed(m(), false), failed(m(), true));
        let (l, h, d, g, s) = (
            || Some(loading.clone()),
            || Some(hot.clone()),
            || Some(draining.clone()),
            || Some(gone.clone()),
            || Some(stuck.clone()),
        );
        let u = || Some(unloading.clone());
        let c = || Some(cold.clone());
        #[rustfmt::skip]
        let table = [
            //          Load  Adopted Proven LoadFailed Drain Unload Unloaded Exited Stuck
            (c(), [l(),  h(),  None,  None,      None, None,  None,    None,  None]),
            (l(), [None, None, h(),   g(),       None, u(),   None,    None,  s()]),
            (h(), [None, None, None,  None,      d(),  u(),   None,    g(),   s()]),
            (d(), [None, None, None,  None,      d(),  u(),   None,    g(),   s()]),
            (u(), [None, None, None,  None,      None, None,  c(),     None,  s()]),
            (g(), [l(),  None, None,  None,      None, u(),   None,    None,  None]),
            (s(), [None, None, None,  None,      None, u(),   None,    None,  None]),
        ];
        for (state, row) in table {
            let state = state.unwrap();
            for (event, expected) in events().into_iter().zip(row) {
                let got = next(state.clone(), event.clone());
                let refused = IllegalTransition {
                    state: state.clone(),
                    event: event.clone(),
                };
                assert_eq!(got, expected.ok_or(refused), "{state:?} + {event:?}");
            }
        }
    }

    #[test]
    fn a_refusal_says_why() {
        let refused = |state| {
            next(state, Event::Load { model: m() })
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refused(State::Hot { model: "n".into() }),
            "cannot load m: the runtime is hot with n"
        );
        assert!(refused(failed(m(), true)).contains("left processes or VRAM behind"));
    }
}
