//! Programs from outside that tests use: installed where that is possible, else named.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A program, the Debian package that brings it, and what is missed without it.
struct Tool {
    program: &'static str,
    package: &'static str,
    without: &'static str,
}

const TOOLS: [Tool; 4] = [
    Tool {
        program: "tmux",
        package: "tmux",
        without: "tests of `rigor up` in a tmux session",
    },
    Tool {
        program: "espeak-ng",
        package: "espeak-ng",
        without: "tests that speak a sample to transcribe",
    },
    Tool {
        program: "strace",
        package: "strace",
        without: "tests that fail system calls",
    },
    Tool {
        program: "faketime",
        package: "faketime",
        without: "the test that sets the clock",
    },
];

/// Installs what is missing where apt-get and the rights are there; says what is left out where
/// they are not. Never an error: the tests that need a missing tool say so themselves.
pub(crate) fn ensure() {
    let missing: Vec<&Tool> = missing().collect();
    if missing.is_empty() {
        return;
    }
    if !rustix::process::geteuid().is_root() || on_path("apt-get").is_none() {
        for tool in missing {
            eprintln!(
                "xtask: {} is not installed, so these are skipped: {}. Install it: apt-get install {}",
                tool.program, tool.without, tool.package
            );
        }
        return;
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    eprintln!("xtask: installing {}", packages.join(", "));
    // A fresh machine has no package lists, or old ones.
    let installed = apt_get(&["update"])
        && apt_get(&[&["install", "--no-install-recommends"], &packages[..]].concat());
    for tool in self::missing() {
        let why = if installed {
            "is not in its package"
        } else {
            "could not be installed (see above)"
        };
        eprintln!(
            "xtask: {} {why}, so these are skipped: {}",
            tool.program, tool.without
        );
    }
}

/// A program on PATH.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

fn missing() -> impl Iterator<Item = &'static Tool> {
    TOOLS.iter().filter(|tool| on_path(tool.program).is_none())
}

/// Whether apt-get did that without asking.
pub(crate) fn apt_get(words: &[&str]) -> bool {
    Command::new("apt-get")
        .args(["-y", "-qq"])
        .args(words)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        // Standard output is the test runner's.
        .stdout(std::io::stderr())
        .status()
        .is_ok_and(|status| status.success())
}
