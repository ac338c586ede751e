//! One agent per GPU: claims what it can run now, forks workers, owns the LLM runtime.

fn main() -> std::process::ExitCode {
    gpu_agent_bin::run()
}
