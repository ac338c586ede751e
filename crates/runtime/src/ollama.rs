//! What only ollama has: a store of pulled models, and a list of what is loaded and where.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::api::Api;

/// Where a loaded model is (`GET /api/ps`), bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// All of it.
    pub(crate) size: u64,
    /// In VRAM.
    pub(crate) in_vram: u64,
}

impl Placed {
    /// For people, where a part of it is not in VRAM although there is a GPU.
    pub(crate) fn on_cpu(self) -> Option<String> {
        let mb = |bytes: u64| bytes.div_ceil(1 << 20);
        let outside = self
            .size
            .checked_sub(self.in_vram)
            .filter(|bytes| *bytes > 0)?;
        Some(format!(
            "{} of its {} MB are not in VRAM: ollama runs that part on the CPU, many times slower; fewer slots, a shorter context or a smaller model would fit",
            mb(outside),
            mb(self.size)
        ))
    }
}

/// Whether the server answers: it lists what is pulled, whatever that is.
pub(crate) async fn is_up(api: &Api) -> Result<(), String> {
    api.get("/api/tags").await.map(drop)
}

/// Where the model is, if it is loaded.
pub(crate) async fn loaded(api: &Api, reference: &str) -> Result<Option<Placed>, String> {
    let list = api.get("/api/ps").await?;
    Ok(find(&list, reference).map(placed))
}

fn placed(model: &Value) -> Placed {
    let bytes = |key: &str| model[key].as_u64().unwrap_or(0);
    Placed {
        size: bytes("size"),
        in_vram: bytes("size_vram"),
    }
}

fn find<'a>(list: &'a Value, reference: &str) -> Option<&'a Value> {
    let wanted = with_tag(reference);
    let models = list["models"].as_array()?;
    models.iter().find(|model| {
        let is = |key: &str| {
            model[key]
                .as_str()
                .is_some_and(|name| with_tag(name) == wanted)
        };
        is("model") || is("name")
    })
}

/// ollama's names: without a tag `:latest` is meant, and names do not differ by case.
fn with_tag(reference: &str) -> String {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    let tag = if last.contains(':') { "" } else { ":latest" };
    format!("{reference}{tag}").to_ascii_lowercase()
}

/// The file that a pull writes last; none where it cannot be told.
pub(crate) fn manifest_file(reference: &str, env: &[(String, String)]) -> Option<PathBuf> {
    let own = env.iter().find(|(name, _)| name == "OLLAMA_MODELS");
    let models = match own {
        Some((_, folder)) => PathBuf::from(folder),
        None => match std::env::var_os("OLLAMA_MODELS") {
            Some(folder) => PathBuf::from(folder),
            None => Path::new(&std::env::var_os("HOME")?).join(".ollama/models"),
        },
    };
    let full = with_tag(reference);
    let (name, tag) = full.rsplit_once(':')?;
    let name = match name.split('/').count() {
        1 => format!("registry.ollama.ai/library/{name}"),
        2 => format!("registry.ollama.ai/{name}"),
        _ => name.to_owned(),
    };
    Some(models.join("manifests").join(name).join(tag))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_without_a_tag_is_the_latest() {
        let list = json!({"models": [
            {"name": "Qwen2.5:latest", "model": "qwen2.5:latest", "size": 3 << 20, "size_vram": 2 << 20},
            {"name": "qwen2.5:7b"},
        ]});
        let found = find(&list, "qwen2.5").map(placed).unwrap();
        assert!(
            found
                .on_cpu()
                .unwrap()
                .starts_with("1 of its 3 MB are not in VRAM")
        );
        assert!(find(&list, "qwen2.5:7b").is_some());
        assert!(find(&list, "qwen2.5:1b").is_none());
        assert_eq!(
            Placed {
                size: 5,
                in_vram: 5
            }
            .on_cpu(),
            None
        );
        let env = [("OLLAMA_MODELS".to_owned(), "/m".to_owned())];
        let file = |name| manifest_file(name, &env).unwrap();
        assert_eq!(
            file("qwen2.5"),
            Path::new("/m/manifests/registry.ollama.ai/library/qwen2.5/latest")
        );
        assert_eq!(
            file("hf.co/org/model:q4"),
            Path::new("/m/manifests/hf.co/org/model/q4")
        );
    }
}
