//! What was measured of models, as the brain keeps it in `brain/measured.json`.

use std::collections::BTreeMap;

use rigor_config::Model;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What is remembered of a task name or a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Average wall-clock seconds, the newest counting most: of a successful attempt, or of a load.
    #[serde(default)]
    pub seconds: f64,
    /// The highest GPU memory, MiB; of a load the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_mb: Option<u64>,
    /// Tokens of answers in a second in which the model answered, all its slots together; `seconds`
    /// are then such seconds, of the last ten minutes at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// The model's [`fingerprint`] when it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
    /// Attempts measured.
    #[serde(default)]
    pub runs: u64,
}

/// The content of `brain/measured.json`: by `plan/task`, [`load_key`] or [`speed_key`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Measurements(pub BTreeMap<String, Measurement>);

impl Measurements {
    /// What is known under a key.
    pub fn get(&self, key: &str) -> Option<&Measurement> {
        self.0.get(key)
    }

    /// What a load of that model, served as it is now, was seen to take, MB.
    pub fn vram_mb(&self, model: &Model) -> Option<u64> {
        let known = self.0.get(&load_key(&model.id, None))?;
        known
            .vram_mb
            .filter(|_| known.of == Some(fingerprint(model)))
    }
}

/// The key of loads of a model: by all agents, or by one. Neither name has a space in it.
pub fn load_key(model: &str, agent: Option<&str>) -> String {
    match agent {
        None => format!("load:{model}"),
        Some(agent) => format!("load:{model} {agent}"),
    }
}

/// The key of a model's answers on an agent.
pub fn speed_key(model: &str, agent: &str) -> String {
    format!("speed:{model} {agent}")
}

/// A number that changes with everything in rig.toml that changes what a load of the model takes.
/// What was measured under another says nothing any more.
pub fn fingerprint(model: &Model) -> u64 {
    let told = format!(
        "{:?}",
        (
            &model.serving,
            model.slots,
            model.context,
            &model.args,
            &model.env,
            model.split_gpu
        )
    );
    let digest = Sha256::digest(told.as_bytes());
    let first = digest.iter().take(8);
    first.fold(0, |number, byte| number << 8 | u64::from(*byte))
}
