//! What to run for a model.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::fingerprint::Fingerprint;
use crate::ollama;

/// What a model answers to, and so how it is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// Chat completions: proven by generating one token.
    Chat,
    /// Embeddings: proven by one vector.
    Embedding,
}

/// A model and the program that serves it.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    /// The name that the runtime must serve it under.
    pub id: String,
    /// What it answers to.
    pub kind: ModelKind,
    /// What serves it.
    pub program: RuntimeProgram,
    /// Requests served at once, at least 1.
    pub slots: u32,
    /// Tokens of context for each slot; `None` leaves it to the runtime.
    pub context: Option<u32>,
    /// Added to the runtime's environment.
    pub env: Vec<(String, String)>,
    /// The longest a load may take, from start to proof.
    pub load_timeout: Duration,
    /// UUIDs of the GPUs beside the agent's own that it is spread over.
    pub more_gpus: Vec<String>,
    /// NVML's index of each of its GPUs, the agent's own first, for programs that know no UUID;
    /// empty where they are not known.
    pub gpu_indices: Vec<u32>,
    /// What it should take of VRAM, on all of its GPUs together, in MB, where known. A load that takes less than half of it
    /// did not go to the GPU.
    pub vram_mb: Option<u64>,
    /// Whether the GPU's memory must grow as a part of the proof. Not where other work on the
    /// GPU may end meanwhile: what it frees would hide what the model takes.
    pub prove_vram: bool,
}

/// The program that serves a model.
#[derive(Clone, Debug)]
pub enum RuntimeProgram {
    /// llama.cpp's server.
    LlamaServer {
        /// The program, looked up on `PATH` when it has no slash.
        program: PathBuf,
        /// The GGUF file.
        file: PathBuf,
        /// Further flags; the last one wins where a flag is repeated.
        args: Vec<String>,
    },
    /// An ollama server of the agent's own, which loads the model when it is asked to.
    Ollama {
        /// The program, looked up on `PATH` when it has no slash.
        program: PathBuf,
        /// The tag, as `ollama pull` takes it.
        reference: String,
    },
    /// vLLM's OpenAI-compatible server.
    Vllm {
        /// The program, looked up on `PATH` when it has no slash.
        program: PathBuf,
        /// A name on the model hub or a directory.
        reference: String,
        /// The share of each GPU's memory that it may take, above 0 and at most 1; `None` leaves
        /// it to vLLM, which takes nine tenths.
        memory_share: Option<f64>,
        /// Further flags; the last one wins where a flag is repeated.
        args: Vec<String>,
    },
    /// Anything that speaks the OpenAI API over HTTP on the port it is given.
    Command {
        /// Program and arguments. `{HOST}`, `{PORT}`, `{MODEL}` (the id), `{FILE}`, `{SLOTS}` and
        /// `{CONTEXT}` are replaced.
        command: Vec<String>,
        /// What `{FILE}` stands for.
        file: Option<PathBuf>,
    },
}

/// How a runtime is asked for its model.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) kind: ModelKind,
    /// The name that requests use.
    pub(crate) name: String,
    /// It lists what is pulled as its models, and what is loaded elsewhere.
    pub(crate) ollama: bool,
}

/// Where a program is that has no slash in its name; one that has stands for itself.
fn on_path(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return Some(program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// llama-server's word for all layers.
const ALL_LAYERS: &str = "999";

impl ModelSpec {
    /// UUIDs of the GPUs that it may use, the agent's own first; none where the agent has none.
    pub(crate) fn gpus(&self, own: Option<&str>) -> Vec<String> {
        own.into_iter()
            .map(str::to_owned)
            .chain(own.into_iter().flat_map(|_| self.more_gpus.iter().cloned()))
            .collect()
    }

    /// Which of the machine's GPUs, which are these UUIDs, the program is shown: by UUID, as indices
    /// depend on the order that CUDA chooses. vLLM before 0.24 fails on a UUID (its issue 13815), so
    /// it gets the indices and is told the order that is NVML's too. No GPU hides all.
    pub(crate) fn visible(&self, gpus: &[String]) -> Vec<(&'static str, String)> {
        const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
        match &self.program {
            RuntimeProgram::Vllm { .. }
                if !gpus.is_empty() && self.gpu_indices.len() == gpus.len() =>
            {
                let indices: Vec<String> =
                    self.gpu_indices.iter().map(ToString::to_string).collect();
                vec![
                    ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned()),
                    (VISIBLE, indices.join(",")),
                ]
            }
            RuntimeProgram::LlamaServer { .. }
            | RuntimeProgram::Ollama { .. }
            | RuntimeProgram::Vllm { .. }
            | RuntimeProgram::Command { .. } => vec![(VISIBLE, gpus.join(","))],
        }
    }

    /// The files that it is loaded from, as they are now. Looks at files.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut files = Vec::new();
        let program = match &self.program {
            RuntimeProgram::LlamaServer { program, file, .. } => {
                files.push(file.clone());
                Some(program.clone())
            }
            RuntimeProgram::Ollama { program, reference } => {
                files.extend(ollama::manifest_file(reference, &self.env));
                Some(program.clone())
            }
            RuntimeProgram::Vllm {
                program, reference, ..
            } => {
                if reference.starts_with('/') {
                    files.push(Path::new(reference).join("config.json"));
                }
                Some(program.clone())
            }
            RuntimeProgram::Command { command, file } => {
                files.extend(file.clone());
                command.first().map(PathBuf::from)
            }
        };
        files.extend(program.and_then(|program| on_path(&program)));
        Fingerprint::of(files)
    }

    /// Equal for the same start of the same model. Looks at files.
    pub(crate) fn digest(&self, host: &str, port: u16, own_gpu: Option<&str>) -> String {
        let mut fixed = self.clone();
        // Chosen by what was free at the load; what it follows from is in `vram_mb`.
        if let RuntimeProgram::Vllm { memory_share, .. } = &mut fixed.program {
            *memory_share = None;
        }
        let line = fixed.command_line(host, port, own_gpu.is_some());
        let text = format!(
            "{line:?} {:?} {:?} {:?} {:?} {}",
            fixed.environment(host, port),
            fixed.env,
            fixed.gpus(own_gpu),
            fixed.vram_mb,
            fixed.fingerprint().text(),
        );
        Sha256::digest(text.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// Whether one of its own processes must be what listens on the port. A command may serve
    /// through something else, such as a container's proxy, so there the model's name has to do.
    pub(crate) fn must_listen(&self) -> bool {
        match &self.program {
            RuntimeProgram::LlamaServer { .. }
            | RuntimeProgram::Ollama { .. }
            | RuntimeProgram::Vllm { .. } => true,
            RuntimeProgram::Command { .. } => false,
        }
    }

    /// How to ask it for its model.
    pub(crate) fn asked(&self) -> Asked {
        Asked {
            kind: self.kind,
            name: self.served_as().to_owned(),
            ollama: matches!(self.program, RuntimeProgram::Ollama { .. }),
        }
    }

    /// What the program needs in its environment beside [`ModelSpec::env`], which may replace it.
    pub(crate) fn environment(&self, host: &str, port: u16) -> Vec<(&'static str, String)> {
        match &self.program {
            RuntimeProgram::LlamaServer { .. } | RuntimeProgram::Command { .. } => Vec::new(),
            // docs.ollama.com/faq: requests at once of each model, context of one request, how long
            // a model stays (for ever), and how many models.
            RuntimeProgram::Ollama { .. } => {
                let mut variables = vec![
                    ("OLLAMA_HOST", format!("{host}:{port}")),
                    ("OLLAMA_NUM_PARALLEL", self.slots.to_string()),
                    ("OLLAMA_KEEP_ALIVE", "-1".to_owned()),
                    ("OLLAMA_MAX_LOADED_MODELS", "1".to_owned()),
                    // Its own is 5 minutes, whatever rig.toml allows.
                    (
                        "OLLAMA_LOAD_TIMEOUT",
                        format!("{}s", self.load_timeout.as_secs()),
                    ),
                ];
                if let Some(context) = self.context {
                    variables.push(("OLLAMA_CONTEXT_LENGTH", context.to_string()));
                }
                variables
            }
            // vLLM names its processes with setproctitle, which by default writes over the
            // environment that /proc shows, and so over the cookie.
            RuntimeProgram::Vllm { .. } => vec![("SPT_NOENV", "1".to_owned())],
        }
    }

    /// The name that requests must use.
    pub(crate) fn served_as(&self) -> &str {
        match &self.program {
            RuntimeProgram::Ollama { reference, .. } => reference,
            RuntimeProgram::LlamaServer { .. }
            | RuntimeProgram::Vllm { .. }
            | RuntimeProgram::Command { .. } => &self.id,
        }
    }

    /// Program and arguments, or what is wrong with the specification.
    pub(crate) fn command_line(
        &self,
        host: &str,
        port: u16,
        on_gpu: bool,
    ) -> Result<Vec<OsString>, String> {
        match &self.program {
            RuntimeProgram::LlamaServer {
                program,
                file,
                args,
            } => {
                let mut line: Vec<OsString> = vec![program.into(), "--model".into(), file.into()];
                let mut flag = |name: &str, value: String| line.extend([name.into(), value.into()]);
                flag("--alias", self.id.clone());
                flag("--host", host.to_owned());
                flag("--port", port.to_string());
                flag("--parallel", self.slots.to_string());
                if let Some(context) = self.context {
                    // llama-server divides its context among the slots.
                    flag(
                        "--ctx-size",
                        (u64::from(context) * u64::from(self.slots)).to_string(),
                    );
                }
                if on_gpu {
                    // Left alone it would quietly keep on the CPU what does not fit.
                    flag("--n-gpu-layers", ALL_LAYERS.to_owned());
                }
                match self.kind {
                    ModelKind::Chat => {}
                    ModelKind::Embedding => line.push("--embeddings".into()),
                }
                line.extend(args.iter().map(OsString::from));
                Ok(line)
            }
            RuntimeProgram::Ollama { program, .. } => Ok(vec![program.into(), "serve".into()]),
            RuntimeProgram::Vllm {
                program,
                reference,
                memory_share,
                args,
            } => {
                let mut line: Vec<OsString> = vec![program.into(), "serve".into()];
                line.push(reference.into());
                let mut flag = |name: &str, value: String| line.extend([name.into(), value.into()]);
                flag("--served-model-name", self.id.clone());
                flag("--host", host.to_owned());
                flag("--port", port.to_string());
                flag("--max-num-seqs", self.slots.to_string());
                if let Some(context) = self.context {
                    // Of one request, as here.
                    flag("--max-model-len", context.to_string());
                }
                if let Some(share) = memory_share {
                    flag("--gpu-memory-utilization", format!("{share:.3}"));
                }
                flag(
                    "--tensor-parallel-size",
                    (1 + self.more_gpus.len()).to_string(),
                );
                line.extend(args.iter().map(OsString::from));
                Ok(line)
            }
            RuntimeProgram::Command { command, file } => {
                if command.first().is_none_or(String::is_empty) {
                    return Err(format!("model {}: the runtime's command is empty", self.id));
                }
                let file = match file {
                    None => "",
                    Some(file) => file
                        .to_str()
                        .ok_or_else(|| format!("model {}: {file:?} is not UTF-8", self.id))?,
                };
                let context = self
                    .context
                    .map(|tokens| tokens.to_string())
                    .unwrap_or_default();
                Ok(command
                    .iter()
                    .map(|part| {
                        let part = part
                            .replace("{HOST}", host)
                            .replace("{PORT}", &port.to_string());
                        let part = part
                            .replace("{SLOTS}", &self.slots.to_string())
                            .replace("{CONTEXT}", &context);
                        part.replace("{MODEL}", &self.id)
                            .replace("{FILE}", file)
                            .into()
                    })
                    .collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: ModelKind, program: RuntimeProgram) -> ModelSpec {
        let load_timeout = Duration::from_secs(1);
        ModelSpec {
            id: "m".into(),
            kind,
            program,
            slots: 4,
            context: Some(2048),
            env: vec![],
            load_timeout,
            more_gpus: vec![],
            gpu_indices: vec![],
            vram_mb: None,
            prove_vram: true,
        }
    }

    fn shown(spec: &ModelSpec, on_gpu: bool) -> String {
        let line = spec.command_line("127.0.0.1", 9, on_gpu).unwrap();
        line.join(std::ffi::OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn llama_servers_context_is_that_of_all_slots_together() {
        let program = |args: &[&str]| RuntimeProgram::LlamaServer {
            program: "llama-server".into(),
            file: "f.gguf".into(),
            args: args.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(
            shown(&spec(ModelKind::Chat, program(&["-t", "1"])), true),
            "llama-server --model f.gguf --alias m --host 127.0.0.1 --port 9 --parallel 4 --ctx-size 8192 \
             --n-gpu-layers 999 -t 1"
        );
        let embedding = shown(&spec(ModelKind::Embedding, program(&[])), false);
        assert!(
            embedding.ends_with("--ctx-size 8192 --embeddings"),
            "{embedding}"
        );
    }

    #[test]
    fn a_commands_placeholders_are_replaced_and_an_empty_one_is_refused() {
        let command = [
            "serve",
            "{MODEL}={FILE}",
            "-p{PORT}",
            "{HOST}",
            "{SLOTS}x{CONTEXT}",
        ]
        .map(String::from)
        .to_vec();
        let mut spec = spec(
            ModelKind::Chat,
            RuntimeProgram::Command {
                command,
                file: Some("/f".into()),
            },
        );
        assert_eq!(shown(&spec, true), "serve m=/f -p9 127.0.0.1 4x2048");
        spec.program = RuntimeProgram::Command {
            command: vec![],
            file: None,
        };
        assert!(
            spec.command_line("h", 1, true)
                .unwrap_err()
                .contains("command is empty")
        );
    }
}
