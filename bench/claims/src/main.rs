//! `bench-claims DIR COUNT`: see the library.

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [dir, count] = words.as_slice() else {
        anyhow::bail!("usage: bench-claims DIR COUNT");
    };
    println!("{}", bench_claims_lib::run(dir.as_ref(), count.parse()?)?);
    Ok(())
}
