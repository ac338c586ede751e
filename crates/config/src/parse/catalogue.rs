//! `[[model]]`.

use std::path::{Path, PathBuf};

use super::{SLOTS_MAX, Unique};
use crate::model::{COMMAND_VARIABLES, next_variable};
use crate::problem::nearest;
use crate::section::Section;
use crate::{Model, ModelKind, Serving};

pub(super) fn model(section: &Section<'_, '_>, rig_dir: &Path, ids: &mut Unique) -> Option<Model> {
    let id = section.required("id", "qwen2.5:7b").filter(|id| {
        let fits = id.len() <= 200 && !id.chars().any(|c| c.is_whitespace() || c.is_control());
        if !fits {
            section.problem("id", "`id` must be at most 200 characters without spaces");
        }
        fits
    });
    if let Some(id) = &id {
        ids.add(section, "id", id);
    }
    let kind = section
        .choice(
            "kind",
            &[
                ("chat", ModelKind::Chat),
                ("embedding", ModelKind::Embedding),
            ],
        )
        .unwrap_or(ModelKind::Chat);
    let runtime = section.choice(
        "runtime",
        &[
            ("llama-server", RuntimeName::LlamaServer),
            ("command", RuntimeName::Command),
            ("ollama", RuntimeName::Ollama),
            ("vllm", RuntimeName::Vllm),
        ],
    );
    // Asked for in any case, so that they are known keys.
    let file = section
        .text("file", "models/qwen2.5-7b-q4_k_m.gguf")
        .map(|file| rig_dir.join(file));
    let command = section.text("command", "my-server --port {PORT} --model {FILE}");
    let url = section.text("url", "http://127.0.0.1:{PORT}");
    let reference = section.text("reference", "qwen2.5:7b");
    let args = section.texts("args");
    let given = Given {
        file: file.is_some(),
        command: command.is_some(),
        url: url.is_some(),
        reference: reference.is_some(),
        args: !args.is_empty(),
    };
    if let Some(runtime) = runtime {
        refuse_foreign_keys(section, runtime, given);
    }
    let serving = match runtime {
        Some(RuntimeName::LlamaServer) => {
            section.require("file", "\"models/qwen2.5-7b-q4_k_m.gguf\"");
            file.map(|file| Serving::LlamaServer { file })
        }
        Some(RuntimeName::Command) => {
            section.require("command", "\"my-server --port {PORT} --model {FILE}\"");
            command.and_then(|command| serving_command(section, &command, &args, url, file))
        }
        // Its own name for the model is most often the id already.
        Some(RuntimeName::Ollama) => reference
            .or_else(|| id.clone())
            .map(|reference| Serving::Ollama { reference }),
        Some(RuntimeName::Vllm) => {
            section.require("reference", "\"Qwen/Qwen2.5-7B-Instruct\"");
            reference.map(|reference| Serving::Vllm {
                reference: name_or_directory(reference, rig_dir),
            })
        }
        None => {
            section.require("runtime", "\"llama-server\"");
            None
        }
    };
    let environment = section.inner_table("env");
    let env = environment.text_entries();
    let model = (
        section.number("slots", 1..=SLOTS_MAX, "slots").unwrap_or(1),
        section.number("context", 1..=u32::MAX, "tokens"),
        section.number("tier", 0..=1000, "tier").unwrap_or(0),
        section.number("vram_mb", 1..=u32::MAX, "MB"),
        section.duration("load_timeout"),
        section
            .number("split_gpu", 2..=SPLIT_MAX, "GPUs; without it one")
            .unwrap_or(1),
    );
    section.refuse_unknown_keys();
    let (slots, context, tier, vram_mb, load_timeout, split_gpu) = model;
    Some(Model {
        id: id?,
        kind,
        serving: serving?,
        slots,
        context,
        args,
        env,
        tier,
        vram_mb,
        load_timeout,
        split_gpu,
    })
}

/// The GPUs of the largest rig that this is for.
const SPLIT_MAX: u32 = 8;

/// Runtimes that rig.toml may name.
#[derive(Clone, Copy)]
enum RuntimeName {
    LlamaServer,
    Command,
    Ollama,
    Vllm,
}

/// Which of the keys that only some runtimes have are there.
#[derive(Clone, Copy)]
struct Given {
    file: bool,
    command: bool,
    url: bool,
    reference: bool,
    args: bool,
}

/// Notes the keys that mean nothing to `runtime`.
fn refuse_foreign_keys(section: &Section<'_, '_>, runtime: RuntimeName, given: Given) {
    use RuntimeName::{Command, LlamaServer, Ollama, Vllm};
    let foreign: &[(&'static str, bool, &str)] = match runtime {
        LlamaServer => &[
            ("command", given.command, "is for runtime = \"command\""),
            ("url", given.url, "is for runtime = \"command\""),
            (
                "reference",
                given.reference,
                "is for \"ollama\" and \"vllm\"; llama-server has a `file`",
            ),
        ],
        Command => &[(
            "reference",
            given.reference,
            "is for \"ollama\" and \"vllm\"; write the name into `command`",
        )],
        Ollama => &[
            ("command", given.command, "is for runtime = \"command\""),
            ("url", given.url, "is for runtime = \"command\""),
            (
                "file",
                given.file,
                "is not for \"ollama\", which has its own store: make a tag of it with `ollama create`",
            ),
            (
                "args",
                given.args,
                "is not for \"ollama\", whose server takes none: use `env`",
            ),
        ],
        Vllm => &[
            ("command", given.command, "is for runtime = \"command\""),
            ("url", given.url, "is for runtime = \"command\""),
            (
                "file",
                given.file,
                "is not for \"vllm\": name the model or its directory in `reference`",
            ),
        ],
    };
    for (key, is_given, why) in foreign {
        if *is_given {
            section.problem(
                key,
                format!("`{key}` {why}: remove it, or change `runtime`"),
            );
        }
    }
}

/// A directory is written as a path that begins with `/`, `./` or `../`, the latter two from the
/// rig's directory; everything else is a name on the model hub.
fn name_or_directory(reference: String, rig_dir: &Path) -> String {
    if reference.starts_with("./") || reference.starts_with("../") {
        rig_dir.join(reference).to_string_lossy().into_owned()
    } else {
        reference
    }
}

fn serving_command(
    section: &Section<'_, '_>,
    command: &str,
    args: &[String],
    url: Option<String>,
    file: Option<PathBuf>,
) -> Option<Serving> {
    let words = match shell_words::split(command) {
        Ok(words) if !words.is_empty() => words,
        Ok(_) => return None,
        Err(error) => {
            section.problem(
                "command",
                format!("`command` cannot be split into words: {error}"),
            );
            return None;
        }
    };
    let mut uses_port = false;
    let url_words = url.iter().map(|url| ("url", url));
    let all = words
        .iter()
        .map(|word| ("command", word))
        .chain(args.iter().map(|arg| ("args", arg)));
    for (key, word) in all.chain(url_words) {
        let mut rest = word.as_str();
        while let Some((_, name, after)) = next_variable(rest) {
            uses_port |= name == "PORT" && key != "url";
            if !COMMAND_VARIABLES.contains(&name) {
                let near = nearest(name, COMMAND_VARIABLES).unwrap_or_default();
                section.problem(
                    key,
                    format!("unknown variable {{{name}}}; the nearest known one is {{{near}}}"),
                );
            }
            if name == "FILE" && file.is_none() {
                section.problem(
                    key,
                    "{FILE} is used, but this model has no `file`: add file = \"models/...\"",
                );
            }
            rest = after;
        }
    }
    if !uses_port {
        section.problem("command", "`command` never uses {PORT}: it must serve the OpenAI API on the port that it is given");
    }
    if let Some(url) = &url
        && !(url.starts_with("http://") || url.starts_with("https://"))
    {
        section.problem(
            "url",
            format!("`url` must begin with http:// or https://, not \"{url}\""),
        );
    }
    Some(Serving::Command { words, url, file })
}
