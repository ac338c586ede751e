//! `cargo xtask gpu-smoke`: everything that needs a GPU, once, on the GPU of this machine, with the
//! real NVML and a real LLM runtime; and a report of it.
//!
//! Each step is tried by the same programs and commands that an owner uses. A step that fails does
//! not end the run, as the others still say something.

mod report;
mod setup;
mod shared_rig;
mod steps;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::own_rig::OwnRig;
use crate::{fixtures, workspace};
use report::{Outcome, Report};
use setup::Runtime;
use shared_rig::Smoke;

/// Options of `cargo xtask gpu-smoke`.
#[derive(Args)]
pub(crate) struct GpuSmoke {
    /// A model for llama-server; without it and the next two, a model with random weights on
    /// PyTorch is served.
    #[arg(long, value_name = "FILE.gguf")]
    model: Option<PathBuf>,
    /// llama.cpp's server.
    #[arg(long, value_name = "PROGRAM", default_value = "llama-server")]
    llama_server: PathBuf,
    /// A model that ollama has pulled.
    #[arg(long, value_name = "TAG", conflicts_with = "model")]
    ollama: Option<String>,
    /// A model for vLLM: its name or its folder.
    #[arg(long, value_name = "REF", conflicts_with_all = ["model", "ollama"])]
    vllm: Option<String>,
    /// The Python that has PyTorch.
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: PathBuf,
    /// Weights of the model on PyTorch, MiB.
    #[arg(long, value_name = "MB", default_value_t = 2048)]
    weights_mb: u64,
    /// Try the steps themselves on a stand-in GPU with a tiny model on the CPU: shows that this
    /// program works, and nothing about GPUs.
    #[arg(long)]
    simulated: bool,
    /// Use the programs that lie beside this one as they are, for a machine without a toolchain.
    #[arg(long)]
    no_build: bool,
    /// Where the rig and the report go.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs all steps. An error if one failed.
pub(crate) fn run(options: &GpuSmoke) -> Result<()> {
    if !options.no_build {
        workspace::build()?;
    }
    let out = match &options.out {
        Some(out) => std::path::absolute(out).context("--out")?,
        None => workspace::root().join("target/gpu-smoke"),
    };
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let runtime = runtime(options)?;
    let rig = out.join("rig");
    let mut own = OwnRig::new(&rig)?;
    own.clear()?;
    setup::make(&own, &rig, &runtime, options)?;

    let mut report = Report::new(options.simulated, runtime.name());
    let mut smoke = Smoke::new(&mut own, &rig, &out, options, &runtime)?;
    for (name, step) in steps::ALL {
        let began = Instant::now();
        let outcome =
            step(&mut smoke).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        report.add(name, outcome, began.elapsed());
    }
    report.machine = smoke.machine();
    drop(smoke);
    let stopped = own.stop();
    report.write(&out)?;
    stopped?;
    match report.failed() {
        0 => Ok(()),
        failed => bail!("{failed} of {} steps failed", steps::ALL.len()),
    }
}

fn runtime(options: &GpuSmoke) -> Result<Runtime> {
    Ok(match (&options.model, &options.ollama, &options.vllm) {
        (Some(file), ..) => Runtime::LlamaServer {
            program: options.llama_server.clone(),
            file: fs::canonicalize(file).with_context(|| format!("--model {}", file.display()))?,
        },
        (_, Some(tag), _) => Runtime::Ollama { tag: tag.clone() },
        (.., Some(reference)) => Runtime::Vllm {
            reference: reference.clone(),
        },
        _ if options.simulated => {
            let fixtures = fixtures::ensure()?;
            Runtime::LlamaServer {
                program: fixtures.llama_server.clone(),
                file: fixtures.model.clone(),
            }
        }
        _ => Runtime::Torch {
            python: options.python.clone(),
            weights_mb: options.weights_mb,
        },
    })
}
