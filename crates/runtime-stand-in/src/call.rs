//! Whose behaviour the command line asks for.

use anyhow::{Context, Result, bail};

/// Whose behaviour it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Llama,
    Ollama,
    Vllm,
}

/// A command line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) dialect: Dialect,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The name that it serves its model under; empty for ollama, which is told later.
    pub(crate) model: String,
    /// The file or reference of the model.
    pub(crate) source: String,
    /// Requests at once.
    pub(crate) slots: usize,
}

const USAGE: &str = "usage: runtime-stand-in --model FILE --alias ID --port PORT [--host HOST] [--parallel N]   as llama-server
       OLLAMA_HOST=HOST:PORT runtime-stand-in serve                                       as ollama
       runtime-stand-in serve REFERENCE --port PORT [--served-model-name ID] [--host HOST] [--max-num-seqs N]   as vllm";

impl Call {
    pub(crate) fn parse(
        words: &[String],
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Call> {
        let call = match words.split_first() {
            Some((first, rest)) if first == "serve" => match rest.first() {
                Some(reference) if !reference.starts_with('-') => vllm(reference, rest),
                _ => ollama(environment),
            },
            Some((first, _)) if first.starts_with('-') => llama(words),
            _ => bail!("{USAGE}"),
        };
        call.with_context(|| USAGE)
    }
}

fn llama(words: &[String]) -> Result<Call> {
    let source = flag(words, &["--model", "-m"]).context("--model is missing")?;
    let stem = std::path::Path::new(source).file_name().unwrap_or_default();
    let alias = flag(words, &["--alias", "-a"])
        .map_or_else(|| stem.to_string_lossy().into_owned(), str::to_owned);
    Ok(Call {
        dialect: Dialect::Llama,
        host: flag(words, &["--host"]).unwrap_or("127.0.0.1").to_owned(),
        port: number(flag(words, &["--port"]).unwrap_or("8080"))?,
        model: alias,
        source: source.to_owned(),
        slots: number(flag(words, &["--parallel", "-np"]).unwrap_or("1"))?,
    })
}

fn vllm(reference: &str, words: &[String]) -> Result<Call> {
    Ok(Call {
        dialect: Dialect::Vllm,
        host: flag(words, &["--host"]).unwrap_or("0.0.0.0").to_owned(),
        port: number(flag(words, &["--port"]).unwrap_or("8000"))?,
        model: flag(words, &["--served-model-name"])
            .unwrap_or(reference)
            .to_owned(),
        source: reference.to_owned(),
        slots: number(flag(words, &["--max-num-seqs"]).unwrap_or("256"))?,
    })
}

fn ollama(environment: &dyn Fn(&str) -> Option<String>) -> Result<Call> {
    let address = environment("OLLAMA_HOST").context("OLLAMA_HOST is not set")?;
    let address = address
        .split_once("://")
        .map_or(&*address, |(_, rest)| rest)
        .trim_end_matches('/');
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, number(port)?),
        _ => (address, 11434),
    };
    let slots = environment("OLLAMA_NUM_PARALLEL").filter(|slots| !slots.is_empty());
    Ok(Call {
        dialect: Dialect::Ollama,
        host: if host.is_empty() { "127.0.0.1" } else { host }.to_owned(),
        port,
        model: String::new(),
        source: String::new(),
        slots: number(slots.as_deref().unwrap_or("1"))?,
    })
}

/// The last value of a flag, written `--flag value` or `--flag=value`.
fn flag<'w>(words: &'w [String], names: &[&str]) -> Option<&'w str> {
    words.iter().enumerate().rev().find_map(|(at, word)| {
        let (name, joined) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word.as_str(), None),
        };
        if !names.contains(&name) {
            return None;
        }
        joined.or_else(|| words.get(at + 1).map(String::as_str))
    })
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse()
        .ok()
        .with_context(|| format!("{text:?} is not a number in range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str, environment: &[(&str, &str)]) -> Result<Call> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Call::parse(&words, &|name| {
            environment
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_call_decides_the_dialect() {
        let call = parse("--model /m/f.gguf --alias q:7b --host 127.0.0.1 --port 9 --parallel 4 --ctx-size 64 --n-gpu-layers 999 -t 1", &[]).unwrap();
        assert_eq!(
            (call.dialect, call.port, call.slots, &*call.model),
            (Dialect::Llama, 9, 4, "q:7b")
        );
        assert_eq!(
            parse("-m /m/f.gguf --port=7 --port 8", &[]).unwrap().model,
            "f.gguf"
        );
        assert_eq!(
            parse("-m /m/f.gguf --port=7 --port 8", &[]).unwrap().port,
            8
        );
        let call = parse(
            "serve org/m --served-model-name q --port 9 --max-num-seqs 3",
            &[],
        )
        .unwrap();
        assert_eq!(
            (call.dialect, &*call.model, &*call.source, call.slots),
            (Dialect::Vllm, "q", "org/m", 3)
        );
        let call = parse(
            "serve",
            &[
                ("OLLAMA_HOST", "http://127.0.0.1:77"),
                ("OLLAMA_NUM_PARALLEL", "2"),
            ],
        )
        .unwrap();
        assert_eq!(
            (call.dialect, &*call.host, call.port, call.slots),
            (Dialect::Ollama, "127.0.0.1", 77, 2)
        );
        assert_eq!(
            parse("serve", &[("OLLAMA_HOST", "[::1]")]).unwrap().port,
            11434
        );
    }

    #[test]
    fn what_is_no_call_is_refused_with_the_usage() {
        for line in ["", "run m", "serve", "--port 9", "--model f --port x"] {
            let error = format!("{:#}", parse(line, &[]).unwrap_err());
            assert!(error.contains("usage:"), "{line}: {error}");
        }
    }
}
