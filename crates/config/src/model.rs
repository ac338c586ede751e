//! The catalogue's entries.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `[[model]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// The name that plans and `[[gpu]]` use.
    pub id: String,
    /// What it answers.
    pub kind: ModelKind,
    /// What serves it, and how.
    pub serving: Serving,
    /// Requests it answers at once.
    pub slots: u32,
    /// The context window in tokens, all slots together; none: the runtime's own default.
    pub context: Option<u32>,
    /// More arguments for the runtime.
    pub args: Vec<String>,
    /// More environment for the runtime.
    pub env: BTreeMap<String, String>,
    /// Capability, higher is more capable, for tasks with `llm_min_tier`; 0 where not said.
    pub tier: u32,
    /// An estimate of the VRAM it takes in MB (2^20 bytes), until it was measured.
    pub vram_mb: Option<u32>,
    /// How long it may take to load, instead of `timing.load_timeout`.
    pub load_timeout: Option<Duration>,
    /// The GPUs that it is spread over, 1 to 8; 1 where not said.
    pub split_gpu: u32,
}

/// What a model answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// Completions of a conversation.
    Chat,
    /// Vectors.
    Embedding,
}

/// What serves a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serving {
    /// llama.cpp's server.
    LlamaServer {
        /// The GGUF file.
        file: PathBuf,
    },
    /// An ollama server of the agent's own.
    Ollama {
        /// The tag, as `ollama pull` takes it.
        reference: String,
    },
    /// vLLM's OpenAI-compatible server.
    Vllm {
        /// A name on the model hub, or a directory as an absolute path.
        reference: String,
    },
    /// Any program that speaks the OpenAI API.
    Command {
        /// The program and its arguments, `{PORT}`, `{MODEL}` and `{FILE}` not filled in.
        words: Vec<String>,
        /// Where it answers, if not at the loopback interface's `{PORT}`.
        url: Option<String>,
        /// The model's file, where it has one.
        file: Option<PathBuf>,
    },
}

/// The variables of a `command`.
pub(crate) const COMMAND_VARIABLES: [&str; 3] = ["PORT", "MODEL", "FILE"];

impl Model {
    /// The name of its runtime, as rig.toml has it.
    pub fn runtime_name(&self) -> &'static str {
        match self.serving {
            Serving::LlamaServer { .. } => "llama-server",
            Serving::Ollama { .. } => "ollama",
            Serving::Vllm { .. } => "vllm",
            Serving::Command { .. } => "command",
        }
    }

    /// Its file, where it has one.
    pub fn file(&self) -> Option<&Path> {
        match &self.serving {
            Serving::LlamaServer { file } => Some(file),
            Serving::Ollama { .. } | Serving::Vllm { .. } => None,
            Serving::Command { file, .. } => file.as_deref(),
        }
    }

    /// What its runtime knows it by, where that is neither a file nor the id: ollama's tag, vLLM's
    /// model name or directory.
    pub fn reference(&self) -> Option<&str> {
        match &self.serving {
            Serving::Ollama { reference } | Serving::Vllm { reference } => Some(reference),
            Serving::LlamaServer { .. } | Serving::Command { .. } => None,
        }
    }

    /// The program and arguments of a `command` runtime for that port, `args` at the end and
    /// everything filled in. None for the other runtimes.
    pub fn command_line(&self, port: u16) -> Option<Vec<String>> {
        let Serving::Command { words, .. } = &self.serving else {
            return None;
        };
        Some(
            words
                .iter()
                .chain(&self.args)
                .map(|word| self.fill_in(word, port))
                .collect(),
        )
    }

    /// The bare base URL at which it is reached when served at that port, without a slash at the end.
    pub fn base_url(&self, port: u16) -> String {
        match &self.serving {
            Serving::Command { url: Some(url), .. } => {
                self.fill_in(url, port).trim_end_matches('/').to_owned()
            }
            Serving::Command { url: None, .. }
            | Serving::LlamaServer { .. }
            | Serving::Ollama { .. }
            | Serving::Vllm { .. } => format!("http://127.0.0.1:{port}"),
        }
    }

    /// Fills in the variables in one pass: what a value brings in is not read again.
    fn fill_in(&self, word: &str, port: u16) -> String {
        let mut filled = String::with_capacity(word.len());
        let mut rest = word;
        while let Some((before, name, after)) = next_variable(rest) {
            filled.push_str(before);
            match name {
                "PORT" => filled.push_str(&port.to_string()),
                "MODEL" => filled.push_str(&self.id),
                "FILE" => filled.push_str(&self.file().unwrap_or(Path::new("")).to_string_lossy()),
                other => filled.push_str(&format!("{{{other}}}")),
            }
            rest = after;
        }
        filled.push_str(rest);
        filled
    }
}

/// The first `{NAME}` in capitals: what is before it, the name, what is after it.
pub(crate) fn next_variable(text: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    while let Some(open) = text[from..].find('{').map(|at| from + at) {
        let inside = &text[open + 1..];
        if let Some(length) = inside.find('}') {
            let name = &inside[..length];
            let capital = |c: char| c.is_ascii_uppercase() || c == '_';
            if !name.is_empty() && name.chars().all(capital) {
                return Some((&text[..open], name, &inside[length + 1..]));
            }
        }
        from = open + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str], url: Option<&str>) -> Model {
        Model {
            id: "m{PORT}".into(),
            kind: ModelKind::Chat,
            serving: Serving::Command {
                words: words.iter().map(|word| (*word).to_owned()).collect(),
                url: url.map(str::to_owned),
                file: Some("/models/a b.gguf".into()),
            },
            slots: 1,
            context: None,
            args: vec!["--n={PORT}".into()],
            env: BTreeMap::new(),
            tier: 0,
            vram_mb: None,
            load_timeout: None,
            split_gpu: 1,
        }
    }

    #[test]
    fn variables_are_filled_in_once() {
        let model = command(
            &["serve", "{MODEL}", "{FILE}:{PORT}", "{\"a\": {PORT}}"],
            None,
        );
        assert_eq!(
            model.command_line(8080).unwrap(),
            [
                "serve",
                "m{PORT}",
                "/models/a b.gguf:8080",
                "{\"a\": 8080}",
                "--n=8080"
            ]
        );
    }

    #[test]
    fn the_url_is_the_loopback_unless_given() {
        assert_eq!(
            command(&["x"], None).base_url(9000),
            "http://127.0.0.1:9000"
        );
        let given = command(&["x"], Some("http://[::1]:{PORT}/llm/"));
        assert_eq!(given.base_url(9000), "http://[::1]:9000/llm");
    }
}
