//! `cargo xtask bench`.

use anyhow::{Result, bail};

/// There are none so far: a figure is only worth having beside a peer's from the same machine.
pub(crate) fn run(name: Option<&str>) -> Result<()> {
    match name {
        None => {
            println!("No benchmarks yet.");
            Ok(())
        }
        Some(name) => bail!("there is no benchmark {name}: there are none yet"),
    }
}
