//! The catalogue: what each model needs, what was measured of it, and where it fits.

use rigor_config::{Config, ModelKind};
use rigor_models::{By, Catalogue, Estimate, Found, Measurements, Need, load_key, speed_key};
use rigor_policy::placement::{LOAD_BYTES_PER_SECOND_PRIOR, LOAD_SECONDS_PRIOR};
use rigor_queue::heartbeat::LlmBeat;
use rigor_queue::presence;
use rigor_queue::rig::Rig;
use serde::Serialize;

/// A model of the catalogue. MB are 2^20 bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// Its id.
    pub id: String,
    /// `chat` or `embedding`.
    pub kind: &'static str,
    /// The name of its runtime.
    pub runtime: &'static str,
    /// Its file, or what its runtime knows it by.
    pub from: Option<String>,
    /// Why its files cannot be used, with what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Requests at once.
    pub slots: u32,
    /// Tokens of context of all slots together; none: the runtime's choice.
    pub context: Option<u32>,
    /// Capability.
    pub tier: u32,
    /// GPUs that it is spread over.
    pub gpus: u32,
    /// Its weights in memory, MB, where its files tell.
    pub weights_mb: Option<u64>,
    /// What it is estimated to take on all of its GPUs together, with the parts.
    pub estimate: Option<Estimate>,
    /// What a load of it, served as now, was seen to take on all of its GPUs together, MB.
    pub measured_mb: Option<u64>,
    /// What is reckoned with on all of its GPUs together, MB; none: a GPU of its own.
    pub need_mb: Option<u64>,
    /// Where `need_mb` comes from.
    pub need_by: Option<By>,
    /// How long it takes to load, seconds; none: nothing tells.
    pub load_seconds: Option<f64>,
    /// `load_seconds` was measured, not assumed.
    pub load_measured: bool,
    /// Each GPU of the rig.
    pub on: Vec<OnGpu>,
}

/// A model on a GPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OnGpu {
    /// The agent.
    pub agent: String,
    /// Whether it fits.
    pub fits: Fits,
    /// What tasks and models may use there, MB, as its agent told last.
    pub budget_mb: Option<u64>,
    /// How long loads took there, seconds.
    pub load_seconds: Option<f64>,
    /// Tokens of answers in a second in which it answered there, all slots together.
    pub tokens_per_second: Option<f64>,
}

/// Whether a model, or its part of one that is spread, fits a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Fits {
    /// It is there now.
    Held,
    /// It fits when the GPU has nothing else.
    Fits,
    /// It never fits.
    Short {
        /// By so much, MB.
        by_mb: u64,
    },
    /// The agent has never told its memory, or nothing tells what the model needs.
    NotKnown,
}

/// The models of rig.toml, in its order. Reads their files. `budget_mb` tells what tasks may use of
/// the GPU of an agent that has never run.
pub fn models(
    rig: &Rig,
    config: &Config,
    budget_mb: impl Fn(&rigor_config::Gpu) -> Option<u64>,
) -> Vec<Model> {
    let seen: Vec<Seen> = config
        .gpus
        .iter()
        .map(|gpu| {
            let beat = presence::heartbeat(rig, &gpu.name).ok().flatten();
            // A model of an agent that is gone is gone.
            let alive = presence::is_held(rig, &gpu.name).ok().flatten() == Some(true);
            let told = beat.as_ref().and_then(|beat| beat.gpu.as_ref());
            Seen {
                budget_mb: told.map(|told| told.budget_mb).or_else(|| budget_mb(gpu)),
                held: beat.filter(|_| alive).and_then(|beat| match beat.llm {
                    LlmBeat::Hot { model, .. } | LlmBeat::Lent { model, .. } => Some(model),
                    _ => None,
                }),
            }
        })
        .collect();
    let catalogue = Catalogue::of(&config.models);
    of(config, &catalogue, &measured(rig), &seen)
}

/// What each model of rig.toml needs and what its files say, in its order. Reads their files.
pub(crate) fn needs(rig: &Rig, config: &Config) -> Vec<(Option<Need>, Found)> {
    let catalogue = Catalogue::of(&config.models);
    let measured = measured(rig);
    let models = config.models.iter();
    models
        .map(|model| {
            let need = catalogue.need(model, measured.vram_mb(model));
            (need, catalogue.found(&model.id).clone())
        })
        .collect()
}

/// What was measured; a file that cannot be read says nothing.
fn measured(rig: &Rig) -> Measurements {
    std::fs::read(rig.brain_dir().join("measured.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

/// What an agent has told.
struct Seen {
    budget_mb: Option<u64>,
    held: Option<String>,
}

/// Puts the models together; `seen` is of the GPUs, in rig.toml's order.
fn of(
    config: &Config,
    catalogue: &Catalogue,
    measured: &Measurements,
    seen: &[Seen],
) -> Vec<Model> {
    let one = |model: &rigor_config::Model| {
        let measured_mb = measured.vram_mb(model);
        let need = catalogue.need(model, measured_mb);
        let found = catalogue.found(&model.id);
        let estimate = found.estimate().copied();
        let loads = measured.get(&load_key(&model.id, None));
        let assumed = estimate.map(|estimate| {
            let bytes = estimate.weights_mb as f64 * f64::from(1 << 20);
            LOAD_SECONDS_PRIOR + bytes / LOAD_BYTES_PER_SECOND_PRIOR
        });
        let gpus = config.gpus.iter().zip(seen);
        let on = gpus.map(|(gpu, of_gpu)| {
            let budget_mb = of_gpu.budget_mb;
            let held = of_gpu.held.as_ref() == Some(&model.id);
            let fits = match (need.as_ref().map(Need::on_each_mb), budget_mb) {
                _ if held => Fits::Held,
                (Some(need), Some(budget)) if need > budget => Fits::Short {
                    by_mb: need - budget,
                },
                (Some(_), Some(_)) => Fits::Fits,
                (None, _) | (_, None) => Fits::NotKnown,
            };
            let load = measured.get(&load_key(&model.id, Some(&gpu.name)));
            let speed = measured.get(&speed_key(&model.id, &gpu.name));
            OnGpu {
                agent: gpu.name.clone(),
                fits,
                budget_mb,
                load_seconds: load.map(|load| load.seconds),
                tokens_per_second: speed.and_then(|speed| speed.tokens_per_second),
            }
        });
        Model {
            id: model.id.clone(),
            kind: match model.kind {
                ModelKind::Chat => "chat",
                ModelKind::Embedding => "embedding",
            },
            runtime: model.runtime_name(),
            from: model
                .file()
                .map(|file| file.display().to_string())
                .or_else(|| model.reference().map(str::to_owned)),
            problem: match found {
                Found::Problem(problem) => Some(problem.to_string()),
                Found::Estimate(_) | Found::Nothing => None,
            },
            slots: model.slots,
            context: model.context,
            tier: model.tier,
            gpus: model.split_gpu,
            weights_mb: estimate.map(|estimate| estimate.weights_mb),
            estimate,
            measured_mb,
            need_mb: need.as_ref().map(|need| need.mb),
            need_by: need.as_ref().map(|need| need.by),
            load_seconds: loads.map(|loads| loads.seconds).or(assumed),
            load_measured: loads.is_some(),
            on: on.collect(),
        }
    };
    config.models.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rigor_models::{Measurement, fingerprint};

    use super::*;

    fn config() -> Config {
        let gpu = |n: u32| {
            format!(
                "[[gpu]]\nname = \"gpu-{n}\"\nuuid = \"GPU-{n}\"\nport = {}\n",
                12_000 + n
            )
        };
        let model = "[[model]]\nid = \"m\"\nruntime = \"command\"\ncommand = \"x {PORT}\"\nvram_mb = 6000\n";
        let text = [gpu(1), gpu(2), gpu(3), model.to_owned()].concat();
        Config::parse(&text, Path::new("/rig/rig.toml")).unwrap()
    }

    #[test]
    fn where_a_model_fits_follows_from_need_and_budget() {
        let config = config();
        let gpu = |budget_mb, held: Option<&str>| Seen {
            budget_mb,
            held: held.map(str::to_owned),
        };
        let gpus = [
            gpu(Some(8000), Some("m")),
            gpu(Some(5000), Some("other")),
            gpu(None, None),
        ];
        let shown =
            |measured: &Measurements| of(&config, &Catalogue::default(), measured, &gpus).remove(0);
        let model = shown(&Measurements::default());
        let fits: Vec<Fits> = model.on.iter().map(|on| on.fits).collect();
        assert_eq!(
            fits,
            [Fits::Held, Fits::Short { by_mb: 1000 }, Fits::NotKnown]
        );
        assert_eq!(
            (model.need_mb, model.need_by),
            (Some(6000), Some(By::Configured))
        );
        assert_eq!((model.load_seconds, model.load_measured), (None, false));

        let mut measured = Measurements::default();
        let of = Some(fingerprint(&config.models[0]));
        let load = Measurement {
            seconds: 30.0,
            vram_mb: Some(4000),
            of,
            runs: 2,
            ..Measurement::default()
        };
        let speed = Measurement {
            tokens_per_second: Some(55.0),
            ..Measurement::default()
        };
        measured.0.insert(load_key("m", None), load);
        measured.0.insert(load_key("m", Some("gpu-2")), load);
        measured.0.insert(speed_key("m", "gpu-2"), speed);
        let model = shown(&measured);
        assert_eq!((model.need_mb, model.measured_mb), (Some(4000), Some(4000)));
        assert_eq!(
            (model.load_seconds, model.load_measured),
            (Some(30.0), true)
        );
        assert_eq!(
            model.on[1].fits,
            Fits::Fits,
            "it takes less than was thought"
        );
        assert_eq!(model.on[1].tokens_per_second, Some(55.0));
        assert_eq!(model.on[0].tokens_per_second, None);
    }
}
