//! `cargo xtask bench`: figures beside peers and limits, from this machine, now.

mod claim;
mod depth;
mod disk;
mod dispatch;
mod figure;
mod idle;
mod latency;
mod llm;
mod logging;
mod machine;
mod memory;
mod peers;
mod plans;
mod plot;
mod process;
mod programs;
mod release;
mod results;
mod rig;
mod submit;
mod throughput;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::workspace;
use disk::Disk;
use figure::Figure;
use machine::Machine;

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub(crate) struct Bench {
    /// Only this one; see docs/performance.md.
    #[arg(value_parser = BENCHMARKS.map(|benchmark| benchmark.name))]
    name: Option<String>,
    /// How often each side of a comparison runs; they alternate.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// How long an idle rig is watched, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    idle: u64,
    /// Compare with the committed results, write nothing, and fail if a ratio is more than 20 %
    /// worse.
    #[arg(long)]
    check: bool,
    /// A tenth of the tasks, to see that all works; nothing is written.
    #[arg(long, conflicts_with = "check")]
    quick: bool,
}

/// Measures below a directory that is fresh.
type Run = fn(&Bench, &Path) -> Result<Vec<Figure>>;

struct Benchmark {
    name: &'static str,
    run: Run,
    /// Small files that it makes at the most.
    files: u64,
}

const BENCHMARKS: [Benchmark; 11] = [
    Benchmark {
        name: "logging",
        run: logging::run,
        files: 50_000,
    },
    Benchmark {
        name: "claim",
        run: claim::run,
        files: 50_000,
    },
    Benchmark {
        name: "depth",
        run: depth::run,
        files: 1_200_000,
    },
    Benchmark {
        name: "dispatch",
        run: dispatch::run,
        files: 200_000,
    },
    Benchmark {
        name: "latency",
        run: latency::run,
        files: 50_000,
    },
    Benchmark {
        name: "submit",
        run: submit::run,
        files: 100_000,
    },
    Benchmark {
        name: "release",
        run: release::run,
        files: 600_000,
    },
    Benchmark {
        name: "idle",
        run: idle::run,
        files: 10_000,
    },
    Benchmark {
        name: "memory",
        run: memory::run,
        files: 1_100_000,
    },
    Benchmark {
        name: "why",
        run: memory::why,
        files: 120_000,
    },
    Benchmark {
        name: "llm",
        run: llm::run,
        files: 20_000,
    },
];

impl Bench {
    /// So many, or a tenth of it for `--quick`.
    fn size(&self, whole: u64) -> u64 {
        if self.quick { whole / 10 } else { whole }
    }
}

/// Runs all, or the one that is named. A target that is missed is shown, not an error: other work on
/// the machine may be why. With `--check`, what is worse than the committed result is an error.
pub(crate) fn run(options: &Bench) -> Result<()> {
    if options.runs == 0 || options.idle == 0 {
        bail!("--runs and --idle are at least 1");
    }
    disk::enter_namespace()?;
    programs::build()?;
    let scratch = workspace::root().join("target/bench");
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    let mut worse = Vec::new();
    let mut compared = 0;
    for benchmark in BENCHMARKS {
        let name = benchmark.name;
        if options.name.as_deref().is_some_and(|wanted| wanted != name) {
            continue;
        }
        let disk = Disk::new(&scratch, options.size(benchmark.files))?;
        let machine = Machine::look(&disk.file_system)?;
        eprintln!("xtask: {name}");
        let figures = (benchmark.run)(options, &disk.dir).with_context(|| name.to_owned())?;
        drop(disk);
        println!("\n{name}, on {machine}\n\n{}", figure::header());
        for figure in &figures {
            println!("{}", figure.rows());
        }
        if options.check {
            match results::committed(name)? {
                None => println!("\nNo result of {name} is committed: nothing to compare with"),
                Some(committed) => {
                    let found = results::compare(&committed, &figures);
                    for words in &found.left_out {
                        println!("\nNot compared: {words}");
                    }
                    compared += found.count;
                    worse.extend(
                        found
                            .worse
                            .into_iter()
                            .map(|what| format!("{name}: {what}")),
                    );
                }
            }
        } else if options.quick {
            println!("\nNot written: --quick");
        } else {
            let paths = results::write(name, options, &machine, &figures)?;
            let paths = paths.map(|path| results::shown(&path));
            println!("\nWritten to {}", paths.join(" and "));
        }
    }
    if !worse.is_empty() {
        bail!("worse than committed:\n  {}", worse.join("\n  "));
    }
    if options.check {
        if compared == 0 {
            bail!("no figure could be compared with a committed one");
        }
        println!("\n{compared} figures are as good as the committed ones, within 20 %");
    }
    Ok(())
}
