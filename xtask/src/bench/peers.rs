//! Programs that do a part of what Rigor does, installed from their registries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{tools, workspace};

/// The Debian packages, each with the program that it brings. redis-tools has Redis's one program,
/// which is the server under the name `redis-server`; the package of that name would also start it
/// as a service.
const PACKAGES: [(&str, &str); 3] = [
    ("tsp", "task-spooler"),
    ("parallel", "parallel"),
    ("redis-check-rdb", "redis-tools"),
];
/// From PyPI; the second is how the first speaks to Redis.
const PYTHON_PACKAGES: [&str; 2] = ["huey==3.5.4", "redis==8.1.0"];

/// What there is.
#[derive(Debug)]
pub(super) struct Peers {
    pub(super) task_spooler: Option<PathBuf>,
    pub(super) parallel: Option<PathBuf>,
    /// To be started as `redis-server`.
    pub(super) redis: Option<PathBuf>,
    /// The folder of a Python environment with huey in it.
    pub(super) huey: Option<PathBuf>,
    /// The folder with pueue and pueued.
    pub(super) pueue: Option<PathBuf>,
}

impl Peers {
    /// Installs what is missing, where that is possible, and says what is absent.
    pub(super) fn ensure() -> Result<Peers> {
        let missing = PACKAGES
            .iter()
            .filter(|(program, _)| tools::on_path(program).is_none());
        let missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
        if !missing.is_empty() && rustix::process::geteuid().is_root() {
            eprintln!("xtask: installing {}", missing.join(", "));
            // Whether that went well is seen by what is there then.
            let _ = tools::apt_get(&["update"])
                && tools::apt_get(
                    &[&["install", "--no-install-recommends"], &missing[..]].concat(),
                );
        }
        let kept = workspace::root().join("target/bench/peers");
        let peers = Peers {
            task_spooler: tools::on_path("tsp"),
            parallel: tools::on_path("parallel"),
            redis: tools::on_path("redis-server").or_else(|| tools::on_path("redis-check-rdb")),
            huey: huey(&kept.join("huey")),
            pueue: pueue(&kept.join("pueue")),
        };
        for (name, is_there) in [
            ("task-spooler", peers.task_spooler.is_some()),
            ("GNU parallel", peers.parallel.is_some()),
            ("Redis (for huey)", peers.redis.is_some()),
            ("huey", peers.huey.is_some()),
            ("pueue", peers.pueue.is_some()),
        ] {
            if !is_there {
                println!("Absent, so not compared with: {name} (it could not be installed)");
            }
        }
        Ok(peers)
    }
}

fn huey(dir: &Path) -> Option<PathBuf> {
    let done = dir.join("bin/huey_consumer");
    if !done.is_file() {
        eprintln!("xtask: installing huey into {}", dir.display());
        let made = run(Command::new("python3").args(["-m", "venv"]).arg(dir));
        let installed = made
            && run(Command::new(dir.join("bin/python"))
                .args([
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                ])
                .args(PYTHON_PACKAGES));
        if !installed {
            let _ = fs::remove_dir_all(dir);
        }
    }
    done.is_file().then(|| dir.to_owned())
}

fn pueue(dir: &Path) -> Option<PathBuf> {
    let bin = dir.join("bin");
    if !bin.join("pueued").is_file() {
        eprintln!("xtask: building pueue into {}", dir.display());
        let mut install = workspace::cargo(&["install", "--quiet", "--locked", "--root"]);
        // Whether that went well is seen by what is there then.
        let _ = run(install.arg(dir).arg("pueue@4.0.4"));
    }
    (bin.join("pueue").is_file() && bin.join("pueued").is_file()).then_some(bin)
}

fn run(command: &mut Command) -> bool {
    match workspace::checked(command.stdout(std::io::stderr())) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            false
        }
    }
}
