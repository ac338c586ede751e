//! What `cargo xtask soak` is told.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use clap::Parser;

use super::{Options, again, run};
use crate::{mounts, parts};

/// A mixed load with random faults on a rig of stand-in GPUs; exits with 1 where something is lost,
/// runs twice at once, is left behind or grows.
#[derive(Parser)]
#[command(
    name = "cargo xtask soak",
    bin_name = "cargo xtask soak",
    max_term_width = 100
)]
struct Soak {
    /// For so long faults happen; then it waits until all work is over.
    #[arg(long, value_name = "N")]
    minutes: f64,
    /// Draw what a run drew that printed this seed; what a fault hits still depends on the machine.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Between two kills, on average; other faults come as often.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    kill_every: f64,
    /// Agents, each with a stand-in GPU; one without a GPU comes on top.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=16))]
    agents: u8,
    /// The counts, as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Where tasks note what they do, and where the rig is left if something is wrong: a directory
    /// that is emptied first.
    #[arg(long, value_name = "DIR", hide = true)]
    keep: Option<PathBuf>,
}

/// Runs a soak as the program's arguments say, and prints the counts.
///
/// # Errors
///
/// Something that it writes cannot be written.
pub fn main() -> Result<ExitCode> {
    let told = Soak::parse();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let drawn = now.map_or(1, |it| it.subsec_nanos().into());
    let seed = told.seed.unwrap_or(drawn);
    let keep = parts::workspace().join(format!("target/soak/seed-{seed}"));
    let keep = told.keep.clone().unwrap_or(keep);
    if !mounts::is_inside() {
        match on_own_disk(&told, seed, &keep)? {
            Ok(status) => {
                let code = status.code().and_then(|code| u8::try_from(code).ok());
                return Ok(ExitCode::from(code.unwrap_or(1)));
            }
            Err(why) => eprintln!("soak: the disk is never filled: {why}"),
        }
    }
    let options = Options {
        time: Duration::try_from_secs_f64(told.minutes * 60.0).context("--minutes")?,
        seed,
        every: Duration::try_from_secs_f64(told.kill_every).context("--kill-every")?,
        agents: told.agents.into(),
        // Unfinished writing is collected when it is a minute old, by a brain that looks now and then.
        calm: Duration::from_secs(100),
        keep,
        own_disk: mounts::is_inside(),
    };
    let report =
        run(&options).with_context(|| format!("cannot write to {}", options.keep.display()))?;
    print!("{report}");
    if let Some(path) = told.out {
        let text = serde_json::to_vec_pretty(&report).context("the report is no JSON")?;
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(match report.is_good() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// The same once more where its rig lies on a file system of its own; the inner error says why this
/// machine allows none.
fn on_own_disk(told: &Soak, seed: u64, keep: &Path) -> Result<Result<ExitStatus, String>> {
    eprintln!("soak: seed {seed}");
    std::fs::create_dir_all(keep).with_context(|| format!("cannot make {}", keep.display()))?;
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    if told.seed.is_none() {
        words.extend(["--seed".to_owned(), seed.to_string()]);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(again(&words, keep))
}
