//! What it is told to do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

/// Names the file with the behaviour.
pub const BEHAVIOUR_VARIABLE: &str = "RIGOR_RUNTIME_STAND_IN";

/// The behaviour, of one model and port. The first group are its measures, the rest faults.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// How long a load takes, ms.
    pub load_ms: u64,
    /// How long an answer of `tokens` tokens takes once its turn has come, ms; a request for fewer
    /// (`max_tokens`) takes its share.
    pub latency_ms: u64,
    /// Each latency is drawn from this much around `latency_ms`, percent.
    pub latency_jitter_percent: u32,
    /// Where the draws begin: the same seed, the same latencies in the order of the requests.
    pub seed: u64,
    /// Tokens of an answer, unless the request wants fewer.
    pub tokens: u64,
    /// Numbers of a vector.
    pub dimensions: usize,
    /// What a loaded model holds of a stand-in GPU, MiB. Absent: what `RIGOR_SIM_VRAM_MB` says
    /// already, else 512.
    pub vram_mb: Option<u64>,
    /// What ollama's `/api/ps` says of `vram_mb` is on the GPU, MiB. Absent: all of it.
    pub size_vram_mb: Option<u64>,
    /// Of ollama: how long it goes on holding a model after it said that it has unloaded it, ms.
    pub unload_ms: u64,
    /// Of ollama: the models that it has pulled. Absent: whatever is asked for.
    pub pulled: Option<Vec<String>>,

    /// `/health` is 200 from the start, and every generation fails with 500.
    pub health_lies: bool,
    /// The name that `/v1/models` has in place of its own.
    pub wrong_model: Option<String>,
    /// It never gets ready: the load does not end.
    pub never_ready: bool,
    /// The load fails after `load_ms` with this exit code, 0 to 255. Of ollama, the request that loads fails with 500
    /// and the server lives on.
    pub exit_code: Option<i32>,
    /// What a failing load says.
    pub stderr: Option<String>,
    /// The load fails with exit code 1 and the words that this dialect's program has for a GPU without enough
    /// memory; `stderr` and `exit_code` win over them.
    pub out_of_memory: bool,
    /// It dies (exit code 134, as of an abort) on the first generation after so many.
    pub exit_after_requests: Option<u64>,
    /// From the n-th generation on (the first is 1; a load's proof is one) there is no answer any more; `/health`
    /// stays 200.
    pub hang_generation: Option<u64>,
    /// Generations are answered with this HTTP status, from `fail_from` on.
    pub fail_requests: Option<u16>,
    /// The first generation that `fail_requests` is for, 1 is the first of all.
    pub fail_from: u64,
    /// SIGTERM does nothing.
    pub ignore_sigterm: bool,
    /// When loaded it starts a child in a session of its own, with its environment and so its
    /// memory, which survives it and ignores SIGTERM; for at most ten minutes.
    pub leak_child: bool,
}

impl Default for Behaviour {
    fn default() -> Behaviour {
        Behaviour {
            load_ms: 0,
            latency_ms: 0,
            latency_jitter_percent: 0,
            seed: 0,
            tokens: 16,
            dimensions: 8,
            vram_mb: None,
            size_vram_mb: None,
            unload_ms: 200,
            pulled: None,
            health_lies: false,
            wrong_model: None,
            never_ready: false,
            exit_code: None,
            stderr: None,
            out_of_memory: false,
            exit_after_requests: None,
            hang_generation: None,
            fail_requests: None,
            fail_from: 1,
            ignore_sigterm: false,
            leak_child: false,
        }
    }
}

/// Why the behaviour is not known.
#[derive(Debug, thiserror::Error)]
pub enum BehaviourError {
    /// The file cannot be read.
    #[error("{BEHAVIOUR_VARIABLE}: read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is no behaviour.
    #[error("{BEHAVIOUR_VARIABLE}: {}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    models: BTreeMap<String, Map<String, Value>>,
    #[serde(default)]
    ports: BTreeMap<String, Map<String, Value>>,
    #[serde(flatten)]
    all: Map<String, Value>,
}

impl Behaviour {
    /// The behaviour now, of the file that the environment names.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or understood; no variable is no error.
    pub fn of(model: &str, port: u16) -> Result<Behaviour, BehaviourError> {
        match std::env::var_os(BEHAVIOUR_VARIABLE) {
            None => Ok(Behaviour::default()),
            Some(path) => Behaviour::of_file(Path::new(&path), model, port),
        }
    }

    fn of_file(path: &Path, model: &str, port: u16) -> Result<Behaviour, BehaviourError> {
        let text = std::fs::read(path).map_err(|source| BehaviourError::Io {
            path: path.to_owned(),
            source,
        })?;
        Behaviour::of_json(&text, model, port).map_err(|source| BehaviourError::Json {
            path: path.to_owned(),
            source,
        })
    }

    fn of_json(text: &[u8], model: &str, port: u16) -> Result<Behaviour, serde_json::Error> {
        let mut file: File = serde_json::from_slice(text)?;
        let own = [
            file.models.remove(model),
            file.ports.remove(&port.to_string()),
        ];
        for over in own.into_iter().flatten() {
            file.all.extend(over);
        }
        serde_json::from_value(Value::Object(file.all))
    }

    /// How long the `number`-th generation takes (the first is 1), for `tokens` tokens.
    pub fn latency(&self, number: u64, tokens: u64) -> Duration {
        let mut draws = fastrand::Rng::with_seed(self.seed.wrapping_add(number));
        let jitter = f64::from(self.latency_jitter_percent.min(100)) / 100.0;
        let factor = 1.0 + jitter * (2.0 * draws.f64() - 1.0);
        let share = tokens.min(self.tokens) as f64 / self.tokens.max(1) as f64;
        Duration::from_secs_f64(self.latency_ms as f64 / 1000.0 * factor * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Behaviour {
        Behaviour::of_json(text.as_bytes(), "m", 9).unwrap()
    }

    #[test]
    fn a_ports_words_win_over_a_models_and_those_over_the_rest() {
        assert_eq!(parse("{}"), Behaviour::default());
        let behaviour = parse(
            r#"{"load_ms": 1, "latency_ms": 1, "tokens": 1, "models": {"m": {"latency_ms": 2, "tokens": 2}, "n": {"load_ms": 9}},
                "ports": {"9": {"tokens": 3}, "8": {"tokens": 9}}}"#,
        );
        assert_eq!(
            (behaviour.load_ms, behaviour.latency_ms, behaviour.tokens),
            (1, 2, 3)
        );
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        for text in [r#"{"latency": 1}"#, r#"{"models": {"m": {"latency": 1}}}"#] {
            let error = Behaviour::of_json(text.as_bytes(), "m", 9).unwrap_err();
            assert!(error.to_string().contains("`latency`"), "{error}");
        }
    }

    #[test]
    fn a_latency_is_within_its_jitter_the_same_again_and_shared_by_tokens() {
        let behaviour =
            parse(r#"{"latency_ms": 1000, "latency_jitter_percent": 20, "tokens": 10}"#);
        let all: Vec<f64> = (1..=100)
            .map(|number| behaviour.latency(number, 10).as_secs_f64())
            .collect();
        assert!(all.iter().all(|it| (0.8..=1.2).contains(it)), "{all:?}");
        let (least, most) = (
            all.iter().copied().fold(9.0, f64::min),
            all.iter().copied().fold(0.0, f64::max),
        );
        assert!(least < 0.85 && most > 1.15, "{least} {most}");
        assert_eq!(behaviour.latency(7, 10), behaviour.latency(7, 10));
        let still = parse(r#"{"latency_ms": 1000, "tokens": 10}"#);
        assert_eq!(still.latency(1, 10), Duration::from_secs(1));
        assert_eq!(still.latency(1, 1), Duration::from_millis(100));
        assert_eq!(still.latency(1, 99), Duration::from_secs(1));
    }
}
