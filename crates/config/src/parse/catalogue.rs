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
            ("ollama", RuntimeName::Later),
            ("vllm", RuntimeName::Later),
        ],
    );
    // Asked for in any case, so that they are known keys.
    let file = section
        .text("file", "models/qwen2.5-7b-q4_k_m.gguf")
        .map(|file| rig_dir.join(file));
    let command = section.text("command", "my-server --port {PORT} --model {FILE}");
    let url = section.text("url", "http://127.0.0.1:{PORT}");
    let args = section.texts("args");
    let serving = match runtime {
        Some(RuntimeName::LlamaServer) => {
            for (key, given) in [("command", command.is_some()), ("url", url.is_some())] {
                if given {
                    section.problem(
                        key,
                        format!(
                            "`{key}` is for runtime = \"command\": remove it, or change `runtime`"
                        ),
                    );
                }
            }
            section.require("file", "\"models/qwen2.5-7b-q4_k_m.gguf\"");
            file.map(|file| Serving::LlamaServer { file })
        }
        Some(RuntimeName::Command) => {
            section.require("command", "\"my-server --port {PORT} --model {FILE}\"");
            command.and_then(|command| serving_command(section, &command, &args, url, file))
        }
        Some(RuntimeName::Later) => {
            section.problem("runtime", "this runtime is not supported yet: use \"llama-server\", or \"command\" with a `command` that serves the OpenAI API on {PORT}");
            None
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
    );
    section.refuse_unknown_keys();
    let (slots, context, tier, vram_mb, load_timeout) = model;
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
    })
}

/// Runtimes that rig.toml may name.
#[derive(Clone, Copy)]
enum RuntimeName {
    LlamaServer,
    Command,
    Later,
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
