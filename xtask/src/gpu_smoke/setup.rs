//! The rig of the run: made by `rigor init` from NVML, then its model is added.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::GpuSmoke;
use crate::own_rig::{self, OwnRig};

/// The model's name in rig.toml and in the plans.
pub(super) const MODEL: &str = "smoke";
/// Requests that it answers at once.
const SLOTS: u32 = 2;

/// What serves the model.
pub(super) enum Runtime {
    LlamaServer { program: PathBuf, file: PathBuf },
    Ollama { tag: String },
    Vllm { reference: String },
    Torch { python: PathBuf, weights_mb: u64 },
}

impl Runtime {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Runtime::LlamaServer { .. } => "llama-server",
            Runtime::Ollama { .. } => "ollama",
            Runtime::Vllm { .. } => "vllm",
            Runtime::Torch { .. } => {
                "a server on PyTorch with random weights (runtime \"command\")"
            }
        }
    }

    /// The `[[model]]` of rig.toml.
    fn entry(&self, folder: &Path) -> String {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let path = |path: &Path| quoted(&path.to_string_lossy());
        let head = format!("\n[[model]]\nid = {}\nslots = {SLOTS}\n", quoted(MODEL));
        head + &match self {
            Runtime::LlamaServer { file, .. } => {
                format!(
                    "runtime = \"llama-server\"\nfile = {}\ncontext = 4096\n",
                    path(file)
                )
            }
            Runtime::Ollama { tag } => {
                format!("runtime = \"ollama\"\nreference = {}\n", quoted(tag))
            }
            Runtime::Vllm { reference } => {
                format!(
                    "runtime = \"vllm\"\nreference = {}\ncontext = 4096\n",
                    quoted(reference)
                )
            }
            Runtime::Torch { python, weights_mb } => {
                let command = format!(
                    "{} {} --port {{PORT}} --model {{MODEL}} --weights-mb {weights_mb} --slots {SLOTS}",
                    word(python),
                    word(&folder.join("serve.py"))
                );
                // CUDA's context and PyTorch's own memory come on top of the weights.
                let vram_mb = weights_mb + 1024;
                format!(
                    "runtime = \"command\"\ncommand = {}\nvram_mb = {vram_mb}\n",
                    quoted(&command)
                )
            }
        }
    }
}

/// A path as one word of a shell.
pub(super) fn word(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

/// Makes the rig directory, rig.toml and the programs that hold memory and serve.
pub(super) fn make(own: &OwnRig, rig: &Path, runtime: &Runtime, options: &GpuSmoke) -> Result<()> {
    let folder = rig.parent().context("the rig has a folder")?;
    for (name, text) in [
        ("hold.py", include_str!("hold.py")),
        ("serve.py", include_str!("serve.py")),
    ] {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut words: Vec<OsString> = vec![
        "init".into(),
        rig.into(),
        "--name".into(),
        "gpu-smoke".into(),
    ];
    if options.simulated {
        words.extend(["--sim-gpus".into(), "1".into()]);
    }
    if let Runtime::LlamaServer { program, .. } = runtime {
        words.extend(["--llama-server".into(), program.into()]);
    }
    words.extend(["--port".into(), own_rig::free_ports(8)?.to_string().into()]);
    let words: Vec<&std::ffi::OsStr> = words.iter().map(OsString::as_os_str).collect();
    println!("{}", own.rigor(&words)?.trim_end());
    let path = rig.join("rig.toml");
    let mut text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text += &runtime.entry(folder);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
