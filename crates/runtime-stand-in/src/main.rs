//! `runtime-stand-in`: see the library.

fn main() -> anyhow::Result<()> {
    runtime_stand_in::run(std::env::args().skip(1).collect())
}
