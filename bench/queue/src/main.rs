//! `bench-queue WHAT ...`: see the library.

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    bench_queue_lib::run(&words)
}
