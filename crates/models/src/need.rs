//! What a model needs. Pure.

use rigor_config::{Model, Serving};
use serde::Serialize;

use crate::estimate::{Estimate, Origin};

/// Where a need comes from, the surest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// A load of it was seen to take this.
    Measured,
    /// `vram_mb` of rig.toml.
    Configured,
    /// Estimated from the metadata of its GGUF file.
    Gguf,
    /// Estimated from the size of its files.
    Files,
}

/// What a model needs of GPU memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    /// On all of its GPUs together, MB (2^20 bytes).
    pub mb: u64,
    /// Where that comes from.
    pub by: By,
    /// GPUs that it is spread over, at least 1.
    pub gpus: u64,
    /// The parts of an estimate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
}

impl Need {
    /// What it needs on each of its GPUs, MB.
    pub fn on_each_mb(&self) -> u64 {
        self.mb.div_ceil(self.gpus.max(1))
    }

    /// The parts of an estimate in brackets, to follow its number; else nothing.
    pub fn aside(&self) -> String {
        let estimate = self.estimate.as_ref();
        estimate.map_or_else(String::new, |estimate| format!(" ({})", estimate.words()))
    }

    /// Where the number comes from, in words.
    pub fn words(&self) -> String {
        match (self.by, &self.estimate) {
            (By::Measured, _) => "as it was seen to take".to_owned(),
            (By::Configured, _) => "`vram_mb` in rig.toml".to_owned(),
            (By::Gguf | By::Files, Some(estimate)) => estimate.words(),
            (By::Gguf | By::Files, None) => "estimated".to_owned(),
        }
    }
}

/// What a model needs: as it was seen to take, else as rig.toml says, else as its files say. None
/// where nothing is known: it then needs a GPU of its own.
///
/// vLLM takes a share of the GPU that is chosen for it, not what its model needs: it has a need only
/// where rig.toml gives it one.
pub fn need(model: &Model, measured_mb: Option<u64>, estimate: Option<&Estimate>) -> Option<Need> {
    let of = |mb, by| Need {
        mb,
        by,
        gpus: u64::from(model.split_gpu.max(1)),
        estimate: None,
    };
    let configured = model.vram_mb.map(u64::from);
    if let (Serving::Vllm { .. }, None) = (&model.serving, configured) {
        return None;
    }
    if let Some(mb) = measured_mb {
        return Some(of(mb, By::Measured));
    }
    if let Some(mb) = configured {
        return Some(of(mb, By::Configured));
    }
    estimate.map(|estimate| Need {
        estimate: Some(*estimate),
        ..of(
            estimate.total_mb(),
            match estimate.origin {
                Origin::Gguf => By::Gguf,
                Origin::Files => By::Files,
            },
        )
    })
}
