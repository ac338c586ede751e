//! Which files a model's weights are in, and what can be read from them.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rigor_config::{Model, Serving};
use serde::Deserialize;
use thiserror::Error;

use crate::estimate::{Estimate, of_files, of_gguf};
use crate::gguf::{self, Header, KvHeads};
use crate::settings::Settings;

/// The longest JSON file that is read of a model, bytes.
const JSON_MAX: u64 = 16 << 20;
/// The most parts of a split GGUF, and the most files of a directory that are counted.
const FILES_MAX: usize = 4096;

/// Where the weights of a model are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A GGUF file, or the first part of one that is split.
    Gguf(PathBuf),
    /// A file of any kind.
    File(PathBuf),
    /// A directory of safetensors with a `config.json`.
    Directory(PathBuf),
    /// A tag in ollama's store: its manifest.
    Ollama(PathBuf),
}

/// Why nothing can be said from a model's files.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FileProblem {
    /// It is not there.
    #[error("{path} is not there: correct rig.toml, or fetch the model")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read {path}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// It is not what it should be.
    #[error("{path}: {why}; fetch it again")]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl FileProblem {
    fn of(path: &Path, error: &io::Error) -> FileProblem {
        let path = plain(path);
        match error.kind() {
            io::ErrorKind::NotFound => FileProblem::Missing { path },
            _ => FileProblem::Unreadable {
                path,
                why: error.to_string(),
            },
        }
    }

    fn broken(path: &Path, why: impl Into<String>) -> FileProblem {
        FileProblem::Broken {
            path: plain(path),
            why: why.into(),
        }
    }
}

/// A path for people: `/rig/models/m`, not `/rig/./models/m`.
fn plain(path: &Path) -> PathBuf {
    path.components().collect()
}

/// Where the weights of a model are, where that can be told on this machine: a model of vLLM that is
/// only a name on the hub is looked for in the hub's cache, ollama's in the first store that has it.
pub fn source(model: &Model) -> Option<Source> {
    let variable = |name: &str| {
        let own = model.env.get(name).map(PathBuf::from);
        own.or_else(|| std::env::var_os(name).map(PathBuf::from))
            .filter(|path| !path.as_os_str().is_empty())
    };
    match &model.serving {
        Serving::LlamaServer { file } => Some(Source::Gguf(file.clone())),
        Serving::Command { file, .. } => file.clone().map(Source::File),
        Serving::Vllm { reference } if reference.starts_with('/') => {
            Some(Source::Directory(reference.into()))
        }
        Serving::Vllm { reference } => {
            let hub = variable("HF_HUB_CACHE")
                .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
                .or_else(|| variable("HOME").map(|home| home.join(".cache/huggingface/hub")))?;
            let of_model = hub.join(format!("models--{}", reference.replace('/', "--")));
            let commit = fs::read_to_string(of_model.join("refs/main")).ok()?;
            let snapshot = of_model.join("snapshots").join(commit.trim());
            snapshot.is_dir().then_some(Source::Directory(snapshot))
        }
        Serving::Ollama { reference } => {
            let manifest = ollama_manifest(reference)?;
            let stores = match variable("OLLAMA_MODELS") {
                Some(store) => vec![store],
                None => variable("HOME")
                    .map(|home| home.join(".ollama/models"))
                    .into_iter()
                    .chain(["/usr/share/ollama/.ollama/models".into()])
                    .collect(),
            };
            let found = stores.into_iter().map(|store| store.join(&manifest));
            found
                .into_iter()
                .find(|path| path.is_file())
                .map(Source::Ollama)
        }
    }
}

/// `qwen2.5:7b` -> `manifests/registry.ollama.ai/library/qwen2.5/7b`, as ollama's `model.ParseName`
/// fills in what is left out.
fn ollama_manifest(reference: &str) -> Option<PathBuf> {
    let (path, tag) = match reference.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, tag),
        _ => (reference, "latest"),
    };
    let mut parts: Vec<&str> = path.split('/').collect();
    if parts.len() == 1 {
        parts.insert(0, "library");
    }
    if parts.len() == 2 {
        parts.insert(0, "registry.ollama.ai");
    }
    parts.push(tag);
    // A tag may not lead out of the store.
    let plain = |part: &&str| !part.is_empty() && !part.starts_with('.');
    (parts.len() == 4 && parts.iter().all(plain)).then(|| {
        parts
            .iter()
            .fold(PathBuf::from("manifests"), |at, part| at.join(part))
    })
}

impl Source {
    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Source::Gguf(path)
            | Source::File(path)
            | Source::Directory(path)
            | Source::Ollama(path) => path,
        }
    }

    /// Every file that an estimate comes from: when one of them changes, so may the estimate.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        match self {
            Source::Gguf(path) | Source::File(path) => parts(path),
            Source::Directory(path) => {
                let mut files = weights_in(path).unwrap_or_default();
                files.push(path.join("config.json"));
                files
            }
            Source::Ollama(path) => vec![path.clone()],
        }
    }

    /// Reads what it takes for an estimate.
    pub(crate) fn estimate(&self, settings: &Settings) -> Result<Estimate, FileProblem> {
        match self {
            Source::Gguf(path) => Ok(of_gguf(&gguf_model(path)?, settings)),
            Source::File(path) => match gguf_model(path) {
                Ok(header) => Ok(of_gguf(&header, settings)),
                Err(FileProblem::Broken { .. }) => Ok(of_files(size(path)?, settings)),
                Err(problem) => Err(problem),
            },
            Source::Directory(path) => of_directory(path, settings),
            Source::Ollama(path) => of_ollama(path, settings),
        }
    }
}

fn size(path: &Path) -> Result<u64, FileProblem> {
    let meta = fs::metadata(path).map_err(|error| FileProblem::of(path, &error))?;
    Ok(meta.len())
}

/// All parts of a GGUF file: itself, or all that `-00001-of-0000N.gguf` stands for.
fn parts(path: &Path) -> Vec<PathBuf> {
    let split = || {
        let name = path.file_name()?.to_str()?;
        let (stem, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let stem = stem.strip_suffix("-00001")?;
        let digits = count.len() == 5 && count.bytes().all(|byte| byte.is_ascii_digit());
        let parts = count.parse::<usize>().ok().filter(|_| digits)?;
        let part = |at| path.with_file_name(format!("{stem}-{at:05}-of-{count}.gguf"));
        Some((1..=parts.min(FILES_MAX)).map(part).collect::<Vec<_>>())
    };
    split()
        .filter(|parts| !parts.is_empty())
        .unwrap_or_else(|| vec![path.to_owned()])
}

/// The header of a model, all parts of its file counted.
pub(crate) fn gguf_model(path: &Path) -> Result<Header, FileProblem> {
    let mut found = Vec::new();
    for part in parts(path) {
        // A directory or a pipe must not be waited for.
        let meta = fs::metadata(&part).map_err(|error| FileProblem::of(&part, &error))?;
        if !meta.is_file() {
            return Err(FileProblem::broken(&part, "it is not a file"));
        }
        let read = gguf::read(&part).map_err(|error| FileProblem::of(&part, &error))?;
        found.push(read.map_err(|why| FileProblem::broken(&part, why))?);
    }
    let there = found.len() as u64;
    let header = gguf::join(found).ok_or_else(|| FileProblem::broken(path, "it is empty"))?;
    if header.parts != there {
        let why = format!(
            "it says that the model has {} parts, and its name says {there}",
            header.parts
        );
        return Err(FileProblem::broken(path, why));
    }
    if header.tensor_bytes == 0 {
        return Err(FileProblem::broken(path, "it holds no weights"));
    }
    Ok(header)
}

fn json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, FileProblem> {
    let failed = |error: io::Error| FileProblem::of(path, &error);
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(JSON_MAX).read_to_end(&mut text).map_err(failed)?;
    serde_json::from_slice(&text).map_err(|error| FileProblem::broken(path, error.to_string()))
}

/// What `config.json` says of a model's shape.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HubConfig {
    num_hidden_layers: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    hidden_size: u64,
    intermediate_size: u64,
    max_position_embeddings: Option<u64>,
}

fn of_directory(path: &Path, settings: &Settings) -> Result<Estimate, FileProblem> {
    let mut bytes = 0_u64;
    for file in weights_in(path).map_err(|error| FileProblem::of(path, &error))? {
        bytes = bytes.saturating_add(size(&file)?);
    }
    if bytes == 0 {
        let why = "it holds neither *.safetensors nor *.bin";
        return Err(FileProblem::broken(path, why));
    }
    let config: HubConfig = json(&path.join("config.json"))?;
    let heads = config.num_attention_heads;
    let of_head = config
        .head_dim
        .or(config.hidden_size.checked_div(heads))
        .unwrap_or(0);
    if config.num_hidden_layers == 0 || of_head == 0 {
        return Ok(of_files(bytes, settings));
    }
    let header = Header {
        trained_context: config.max_position_embeddings,
        layers: config.num_hidden_layers,
        width: config.hidden_size,
        heads,
        kv_heads: KvHeads::All(config.num_key_value_heads.unwrap_or(heads)),
        key_length: of_head,
        value_length: of_head,
        feed_forward: config.intermediate_size,
        tensor_bytes: bytes,
        parts: 1,
        ..Header::default()
    };
    Ok(Estimate {
        origin: crate::Origin::Files,
        ..of_gguf(&header, settings)
    })
}

/// The weights in a directory: its safetensors, else its `.bin` files.
fn weights_in(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(path)?.take(FILES_MAX) {
        all.push(entry?.path());
    }
    all.sort();
    let of = |ending: &str| {
        let with = |path: &&PathBuf| path.extension().is_some_and(|it| it == ending);
        all.iter().filter(with).cloned().collect::<Vec<_>>()
    };
    let found = of("safetensors");
    Ok(if found.is_empty() { of("bin") } else { found })
}

/// What ollama's manifest of a model lists.
#[derive(Debug, Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Debug, Deserialize)]
struct Layer {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: String,
    size: u64,
}

fn of_ollama(path: &Path, settings: &Settings) -> Result<Estimate, FileProblem> {
    let manifest: Manifest = json(path)?;
    let kind = |layer: &&Layer, kind: &str| {
        layer.media_type == format!("application/vnd.ollama.image.{kind}")
    };
    let weights = manifest.layers.iter().filter(|layer| kind(layer, "model"));
    let besides = manifest
        .layers
        .iter()
        .filter(|layer| kind(layer, "projector") || kind(layer, "adapter"))
        .fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
    let mut bytes = 0_u64;
    // store/manifests/host/namespace/name/tag -> store/blobs/sha256-...
    let blobs = path.ancestors().nth(5).map(|store| store.join("blobs"));
    let mut header = None;
    for layer in weights {
        bytes = bytes.saturating_add(layer.size);
        let name = layer.digest.replace(':', "-");
        let plain = !name.contains('/');
        if let Some(blobs) = blobs.as_ref().filter(|_| plain) {
            header = gguf_model(&blobs.join(name)).ok();
        }
    }
    if bytes == 0 {
        return Err(FileProblem::broken(path, "it lists no weights"));
    }
    Ok(match header {
        Some(mut header) => {
            header.tensor_bytes = header.tensor_bytes.saturating_add(besides);
            of_gguf(&header, settings)
        }
        // The store is another user's: the manifest's sizes must do.
        None => of_files(bytes.saturating_add(besides), settings),
    })
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
