//! `runtime-stand-in`: a program that behaves like an LLM server and has no model.
//!
//! It is there for tests (a runtime that is slow, lies, crashes, hangs, leaks) and for measuring the
//! scheduler with answers that take a known time. It says what it is in its first line of output, in
//! `/v1/models` (`owned_by`), and in every answer.
//!
//! # Dialects
//!
//! How it is called decides whose behaviour it has; flags that it does not know are accepted.
//!
//! | call | behaves like | requests at once |
//! |---|---|---|
//! | `--model F --alias ID --host H --port P --parallel N` | llama.cpp's `llama-server`: listens at once, 503 `Loading model` until loaded | `--parallel`, 1 |
//! | `serve`, with `OLLAMA_HOST` | `ollama serve`: loads what `/api/generate` or `/api/chat` names, in a child process | `OLLAMA_NUM_PARALLEL`, 1 |
//! | `serve REF --served-model-name ID --port P` | `vllm serve`: listens when loaded, refuses a model that it does not serve | `--max-num-seqs`, 256 |
//!
//! All answer `/health`, `/v1/models`, `/v1/chat/completions` (streaming too), `/v1/completions` and
//! `/v1/embeddings`; requests beyond those at once wait in a queue. llama-server's also `/completion`; ollama's
//! `/api/version`, `/api/tags`, `/api/show`, `/api/ps`, `/api/generate` and `/api/chat`.
//!
//! # Behaviour
//!
//! The file that `RIGOR_RUNTIME_STAND_IN` names is a JSON object, see [`Behaviour`] for its keys; every key may be
//! missing, and so may the variable. It is read afresh at each use: to change what the server does, replace the
//! file. `models` and `ports` hold objects of the same keys for single models and ports, which win over the rest.
//!
//! ```json
//! {"latency_ms": 300, "load_ms": 2000, "vram_mb": 4700,
//!  "models": {"qwen:7b": {"load_ms": 4000}},
//!  "ports": {"11436": {"hang_generation": 2}}}
//! ```
//!
//! # Memory
//!
//! On a GPU of the NVML stand-in the program holds `vram_mb` as long as it has a model: it restarts itself (the same
//! process) with that claim in `RIGOR_SIM_VRAM_MB`, which the NVML stand-in counts; ollama's child is started with
//! it. On a real GPU it holds nothing.

mod behaviour;
mod call;
mod generate;
mod holder;
mod ollama;
mod openai;
mod server;

pub use behaviour::{BEHAVIOUR_VARIABLE, Behaviour, BehaviourError};
pub use holder::CLAIM_VARIABLE;
pub use server::OWNER;

use anyhow::{Context, Result};

/// Runs the program with the words of its command line; returns when it was told to stop.
///
/// # Errors
///
/// A call that is none of the dialects, a port that is taken, a behaviour file that cannot be understood.
pub fn run(words: Vec<String>) -> Result<()> {
    if words.first().is_some_and(|word| word == holder::WORD) {
        holder::hold();
        return Ok(());
    }
    let call = call::Call::parse(&words, &|name| std::env::var(name).ok())?;
    let behaviour = Behaviour::of(&call.model, call.port)?;
    if call.dialect != call::Dialect::Ollama {
        holder::claim(behaviour.vram_mb)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let code = runtime.block_on(server::serve(call))?;
    std::process::exit(code)
}
