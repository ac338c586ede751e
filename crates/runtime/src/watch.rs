//! Whether a runtime that serves still does: a cheap question now and then, and a generation where
//! there is a doubt.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::api::{Api, Proof};
use crate::spec::Asked;

/// A good [`crate::HostOptions::watch_every`]: what is asked is cheap.
pub const WATCH_EVERY: Duration = Duration::from_secs(30);
/// A good [`crate::HostOptions::again_every`]: it kills and waits, which takes a while itself.
pub const AGAIN_EVERY: Duration = Duration::from_secs(60);
/// After one that was answered badly: a server may be too busy for once.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How many bad answers in a row are a doubt.
const BAD_ANSWERS: u32 = 2;
/// How long a generation may take when nothing but bad answers gave rise to the doubt.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries to have it generate.
const TRY_EVERY: Duration = Duration::from_secs(1);
/// How many refusals in a row are proof of the contrary.
const REFUSALS: u32 = 3;

type Answer = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// The watch over one runtime.
pub(crate) struct Watch {
    api: Api,
    asked: Asked,
    every: Duration,
    due: Instant,
    bad: u32,
    question: Option<Answer>,
    /// Why it is doubted, and its proof.
    doubt: Option<(String, Answer)>,
}

impl Watch {
    pub(crate) fn new(api: Api, asked: Asked, every: Duration) -> Watch {
        Watch {
            every,
            api,
            asked,
            due: Instant::now() + every,
            bad: 0,
            question: None,
            doubt: None,
        }
    }

    /// Has it prove itself, unless it is doing so already.
    pub(crate) fn suspect(&mut self, why: String, patience: Duration) {
        if self.doubt.is_none() {
            let (api, asked) = (self.api.clone(), self.asked.clone());
            let proof = async move { still_generates(&api, &asked, patience).await };
            self.doubt = Some((why, Box::pin(proof)));
        }
    }

    /// Ends when it is wedged, with the cause. May be dropped at any point and called again.
    pub(crate) async fn wedged(&mut self) -> String {
        loop {
            if let Some((why, proof)) = &mut self.doubt {
                let proven = proof.await;
                let why = std::mem::take(why);
                self.doubt = None;
                self.question = None;
                self.bad = 0;
                self.due = Instant::now() + self.every;
                match proven {
                    Ok(()) => continue,
                    Err(detail) => return format!("{why}; asked to generate: {detail}"),
                }
            }
            if self.question.is_none() {
                tokio::time::sleep_until(self.due).await;
                let (api, asked) = (self.api.clone(), self.asked.clone());
                self.question = Some(Box::pin(async move { api.lists(&asked).await }));
            }
            let Some(question) = &mut self.question else {
                continue;
            };
            let answer = question.await;
            self.question = None;
            match answer {
                Ok(()) => {
                    self.bad = 0;
                    self.due = Instant::now() + self.every;
                }
                Err(detail) => {
                    self.bad += 1;
                    self.due = Instant::now() + self.every.min(ASK_AGAIN);
                    if self.bad >= BAD_ANSWERS {
                        self.suspect(format!("asked for its models: {detail}"), PATIENCE);
                    }
                }
            }
        }
    }
}

async fn still_generates(api: &Api, asked: &Asked, patience: Duration) -> Result<(), String> {
    let mut last = "no answer".to_owned();
    let mut refusals = 0;
    let proof = async {
        loop {
            match api.prove(asked).await {
                Proof::Given => return Ok(()),
                // Busy, or not there: its end would be noticed by other means.
                Proof::NotYet(detail) => {
                    refusals = 0;
                    last = detail;
                }
                Proof::Absent(detail) | Proof::Failed(detail) => {
                    refusals += 1;
                    if refusals >= REFUSALS {
                        return Err(detail);
                    }
                    last = detail;
                }
            }
            tokio::time::sleep(TRY_EVERY).await;
        }
    };
    match timeout(patience, proof).await {
        Ok(proven) => proven,
        Err(_) => Err(format!("{last} within {}s", patience.as_secs())),
    }
}
