//! A guess at the class of a command, to suggest or, on request, to use.

use rigor_queue::task::Class;

/// What a command that talks to the rig's model tends to mention.
const LLM: &[&str] = &[
    "rigor_llm_",
    "openai",
    "worker_ollama_url",
    "ollama",
    "llm",
    "llama",
    "chat/completions",
    "v1/embeddings",
    "langchain",
    "litellm",
    "gpt",
    "prompt",
];

/// What a command that computes on a GPU tends to mention.
const GPU: &[&str] = &[
    "whisper",
    "cuda",
    "nvidia",
    "gpu",
    "torch",
    "nvenc",
    "nvdec",
    "hwaccel",
    "diffusion",
    "diffusers",
    "comfyui",
    "yolo",
    "tensorrt",
    "accelerate",
    "deepspeed",
    "finetune",
    "fine_tune",
    "upscale",
    "transcribe",
];

/// The class that `command` looks like: by words that are the mark of model clients and of GPU
/// programs, else `cpu`. A suggestion; nothing relies on it unless the user says so.
pub fn infer_class(command: &str) -> Class {
    let command = command.to_lowercase();
    let mentions = |words: &[&str]| words.iter().any(|word| command.contains(word));
    if mentions(LLM) {
        Class::Llm
    } else if mentions(GPU) {
        Class::Script
    } else {
        Class::Cpu
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_what_they_look_like() {
        for (command, expected) in [
            (
                "python scripts/transcribe.py --device cuda v.mp4",
                Class::Script,
            ),
            ("whisper a.mp3 --model large-v3", Class::Script),
            (
                "curl \"$OPENAI_BASE_URL/chat/completions\" -d @q.json",
                Class::Llm,
            ),
            ("python tag.py --url $WORKER_OLLAMA_URL", Class::Llm),
            ("python scripts/aggregate.py && ls *.json", Class::Cpu),
            ("", Class::Cpu),
        ] {
            assert_eq!(infer_class(command), expected, "of {command:?}");
        }
    }
}
