//! Why a runtime ended, in its own words: from the end of its log.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::error::LoadClass;

/// A cause is within the last lines; a log may be long.
const TAIL_BYTES: u64 = 64 * 1024;
const LONGEST_CAUSE: usize = 600;

/// The most telling line at the end of the log at `path`; says so when there is none.
pub(crate) fn of_log(path: &Path) -> String {
    match tail(path) {
        Ok(text) => of_text(&text).unwrap_or_else(|| "it wrote nothing".to_owned()),
        Err(error) => format!("its log cannot be read: {error}"),
    }
}

/// What runtimes say when the GPU's memory is too small for a model: llama.cpp's and ollama's CUDA
/// and Vulkan back ends, ollama's own estimate, PyTorch, and vLLM's look at what is free before it
/// starts.
const OUT_OF_MEMORY: [&str; 8] = [
    "out of memory",
    "outofmemory",
    "erroroutofdevicememory",
    "unable to allocate cuda",
    "failed to allocate compute",
    "failed to allocate buffer",
    "memory layout cannot be allocated",
    "is less than desired gpu memory utilization",
];

/// What runtimes say when the same start will fail again: no such file, no model in it, a model or
/// a flag that they do not know, a context that does not fit the share they were given.
const PERMANENT: [&str; 27] = [
    "no such file",
    "is a directory",
    "invalid magic",
    "not within the file bounds",
    "corrupted or incomplete",
    "failed to open gguf",
    "unknown model architecture",
    "unknown architecture",
    "another architecture",
    "not supported for now",
    "are not supported",
    "invalid argument",
    "unrecognized arguments",
    "unknown argument",
    "invalid choice",
    "error: argument",
    "unknown flag",
    "not found, try pulling",
    "repositorynotfounderror",
    "is not a valid model identifier",
    "is not a local folder",
    "can't load the configuration",
    "larger than the available kv cache",
    "no available memory for the cache blocks",
    "is greater than the derived max_model_len",
    "failed to read tensor",
    "failed to read magic",
];

/// What follows from a runtime's own words.
pub(crate) fn class_of(words: &str) -> LoadClass {
    let words = words.to_ascii_lowercase();
    let says = |list: &[&str]| list.iter().any(|phrase| words.contains(phrase));
    if says(&OUT_OF_MEMORY) {
        LoadClass::OutOfMemory
    } else if says(&PERMANENT) {
        LoadClass::Permanent
    } else {
        LoadClass::Transient
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn of_text(text: &str) -> Option<String> {
    let lines: Vec<&str> = text
        .lines()
        .map(without_stamp)
        .filter(|line| !line.is_empty())
        .collect();
    let cause = match lines
        .iter()
        .rposition(|line| line.contains("exiting due to"))
    {
        Some(end) => llama_cause(&lines[..=end]),
        None => {
            let telling = python_cause(&lines)
                .or_else(|| lines.iter().rev().find(|line| is_error(line)).copied())
                .or(lines.last().copied())?;
            telling.to_owned()
        }
    };
    Some(cause.chars().take(LONGEST_CAUSE).collect())
}

/// vLLM's engine dies of an exception of its own, which its log shows before the server's, which
/// only says to look above. Lines of the engine begin with its name, a level, a time and a place.
fn python_cause<'a>(lines: &[&'a str]) -> Option<&'a str> {
    let end = lines
        .iter()
        .rposition(|line| line.contains("See root cause above"))?;
    let exception = |line: &&'a str| -> Option<&'a str> {
        let rest = line
            .rsplit_once("] ")
            .map_or(*line, |(_, rest)| rest)
            .trim();
        let (name, _) = rest.split_once(": ")?;
        let is_name = name
            .chars()
            .all(|c| c.is_alphanumeric() || c == '.' || c == '_');
        (is_name && (name.ends_with("Error") || name.ends_with("Exception"))).then_some(rest)
    };
    lines[..end].iter().rev().find_map(exception)
}

/// llama.cpp tells the root cause first and then once more at each level above it, after a load
/// that was tried twice all over again. The first line is the cause; the first that says
/// `error loading model: ` adds what was being done, unless it only repeats that the load failed.
fn llama_cause(lines: &[&str]) -> String {
    let begin = lines
        .iter()
        .rposition(|line| line.ends_with("loading model") || line.contains(": loading model '"));
    let mut seen = HashSet::new();
    let errors = lines[begin.unwrap_or(0)..]
        .iter()
        .filter(|line| is_error(line) && seen.insert(**line));
    let errors: Vec<&str> = errors.copied().collect();
    let Some(first) = errors.first() else {
        return lines.last().copied().unwrap_or_default().to_owned();
    };
    let context = errors
        .iter()
        .skip(1)
        .find_map(|line| line.split_once("error loading model: "));
    match context {
        Some((_, detail))
            if !detail.contains("failed to load model") && !first.contains(detail) =>
        {
            format!("{first}; {detail}")
        }
        _ => (*first).to_owned(),
    }
}

/// Without `0.00.006.160 E `, the time and level that newer llama.cpp writes; the level is kept as
/// a word where the line does not have one.
fn without_stamp(line: &str) -> &str {
    let line = line.trim();
    match line.split_once(' ') {
        Some((stamp, rest))
            if stamp.contains('.') && stamp.chars().all(|c| c.is_ascii_digit() || c == '.') =>
        {
            rest.strip_prefix("E ")
                .or(rest.strip_prefix("I "))
                .or(rest.strip_prefix("W "))
                .unwrap_or(rest)
                .trim()
        }
        _ => line,
    }
}

fn is_error(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    const WORDS: [&str; 14] = [
        "error",
        "failed",
        "couldn't",
        "cannot",
        "could not",
        "invalid",
        "out of memory",
        "unable",
        "unknown",
        "not found",
        "corrupted",
        "panicked",
        "fatal",
        "no such",
    ];
    WORDS.iter().any(|word| line.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(log: &str, cause: &str) {
        assert_eq!(of_text(log).as_deref(), Some(cause));
    }

    #[test]
    fn llama_cpps_first_line_of_the_last_load_is_the_cause() {
        check(
            "0.00.002 I srv init: initializing ...\n\
             0.00.005.274 I srv          init: loading model\n\
             0.00.005.355 I srv    load_model: loading model 'nope.gguf'\n\
             0.00.005.456 E gguf_init_from_file: failed to open GGUF file 'nope.gguf' (No such file or directory)\n\
             0.00.005.599 E llama_model_load: error loading model: llama_model_loader: failed to load model from nope.gguf\n\
             0.00.005.619 E llama_model_load_from_file_impl: failed to load model\n\
             0.00.005.699 E gguf_init_from_file: failed to open GGUF file 'nope.gguf' (No such file or directory)\n\
             0.00.006.259 E srv          init: exiting due to model loading error\n",
            "gguf_init_from_file: failed to open GGUF file 'nope.gguf' (No such file or directory)",
        );
        check(
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 5000.00 MiB on device 0: cudaMalloc failed: out of memory\n\
             llama_model_load: error loading model: unable to allocate CUDA0 buffer\n\
             main: exiting due to model loading error\n",
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 5000.00 MiB on device 0: cudaMalloc failed: out of \
             memory; unable to allocate CUDA0 buffer",
        );
        check(
            "srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 9\nsrv init: exiting due to HTTP server error",
            "srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 9",
        );
    }

    #[test]
    fn vllms_engine_tells_the_cause_and_not_its_server() {
        check(
            "(EngineCore_0 pid=7) ERROR 08-01 12:00:01 [core.py:700] Traceback (most recent call last):\n\
             (EngineCore_0 pid=7) ERROR 08-01 12:00:01 [core.py:700] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n\
             Traceback (most recent call last):\n\
             RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n",
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        );
    }

    #[test]
    fn words_decide_the_class() {
        use LoadClass::{OutOfMemory, Permanent, Transient};
        for (words, class) in [
            (
                "allocating 5000.00 MiB on device 0: cudaMalloc failed: out of memory",
                OutOfMemory,
            ),
            (
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
                OutOfMemory,
            ),
            (
                "ValueError: Free memory on device (5.1/23.6 GiB) on startup is less than desired GPU memory utilization (0.8, 18.9 GiB).",
                OutOfMemory,
            ),
            (
                "/v1/chat/completions: 500 {\"error\":{\"message\":\"model requires more system memory (5.5 GiB) than is available (3.4 GiB)\"}}",
                // The machine's own: a GPU with more room would not help.
                Transient,
            ),
            (
                "gguf_init_from_file: failed to open GGUF file 'n.gguf' (No such file or directory)",
                Permanent,
            ),
            (
                "llama_model_load: error loading model: unknown model architecture: 'new'",
                Permanent,
            ),
            ("gguf_init_from_file_impl: failed to read magic", Permanent),
            ("error: invalid argument: --flash", Permanent),
            ("vllm: error: unrecognized arguments: --fast", Permanent),
            (
                "ValueError: To serve at least one request with the models's max seq len (32768), (4.00 GiB KV cache is needed, which is larger than the available KV cache memory (1.00 GiB).",
                Permanent,
            ),
            ("Segmentation fault", Transient),
            ("it wrote nothing", Transient),
        ] {
            assert_eq!(class_of(words), class, "{words}");
        }
    }

    #[test]
    fn of_others_the_last_error_and_else_the_last_line() {
        check(
            "Traceback (most recent call last):\n  File \"x\"\nValueError: no KV cache\n\nbye\n",
            "ValueError: no KV cache",
        );
        check("starting\ndone early\n", "done early");
        assert_eq!(of_text("\n \n"), None);
    }
}
