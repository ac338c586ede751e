//! What to run for a model.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

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
    /// What it should take of VRAM, in MB, where known. A load that takes less than half of it
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
    /// Anything that speaks the OpenAI API over HTTP on the port it is given.
    Command {
        /// Program and arguments. `{HOST}`, `{PORT}`, `{MODEL}` (the id), `{FILE}`, `{SLOTS}` and
        /// `{CONTEXT}` are replaced.
        command: Vec<String>,
        /// What `{FILE}` stands for.
        file: Option<PathBuf>,
    },
}

/// llama-server's word for all layers.
const ALL_LAYERS: &str = "999";

impl ModelSpec {
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
