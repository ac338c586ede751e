//! Who may depend on whom. Arrows point down only.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Violation;

/// The libraries, each with those that it may use.
const LIBRARIES: [(&str, &[&str]); 11] = [
    ("rigor-queue", &[]),
    ("rigor-config", &[]),
    ("rigor-gpu", &[]),
    ("rigor-runtime", &[]),
    ("rigor-telemetry", &[]),
    ("nvml-stand-in", &[]),
    ("rigor-models", &["rigor-config"]),
    ("rigor-exec", &["rigor-queue"]),
    ("rigor-plan", &["rigor-queue"]),
    ("rigor-policy", &["rigor-queue"]),
    (
        "rigor-snapshot",
        &[
            "rigor-queue",
            "rigor-config",
            "rigor-models",
            "rigor-plan",
            "rigor-policy",
        ],
    ),
];

/// The programs. They may use every library and never each other: they speak through the rig
/// directory and exit codes.
const PROGRAMS: [&str; 5] = ["brain", "gpu-agent", "worker", "rigor", "simulator"];

/// What is ours and no part of a rig, beside the stand-in for NVML: it uses no library of ours.
const APART: &str = "runtime-stand-in";

/// A stand-in is no part of a rig with GPUs: only `rigor init --sim-gpus` installs it, and tests.
const STAND_IN: &str = "nvml-stand-in";
const INSTALLS_STAND_IN: &str = "rigor";

/// What `cargo metadata` says, as far as it is looked at.
#[derive(Debug, Deserialize)]
pub(super) struct Metadata {
    pub(super) packages: Vec<Package>,
    pub(super) workspace_root: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) manifest_path: PathBuf,
    pub(super) dependencies: Vec<Dependency>,
    pub(super) targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Dependency {
    pub(super) name: String,
    /// None for a normal one, else `dev` or `build`.
    pub(super) kind: Option<String>,
    /// Only ours have one.
    pub(super) path: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Target {
    pub(super) kind: Vec<String>,
    pub(super) src_path: PathBuf,
}

impl Metadata {
    /// A path as it is shown.
    pub(super) fn relative(&self, path: &Path) -> String {
        let path = path.strip_prefix(&self.workspace_root).unwrap_or(path);
        path.display().to_string()
    }
}

/// Checks every dependency of ours on ours.
pub(super) fn check(metadata: &Metadata) -> Vec<Violation> {
    let mut violations = Vec::new();
    for package in &metadata.packages {
        let manifest = fs::read_to_string(&package.manifest_path).unwrap_or_default();
        let path = metadata.relative(&package.manifest_path);
        if !is_known(&package.name) {
            violations.push(Violation {
                path: path.clone(),
                line: 1,
                what: format!(
                    "{} is not in the table of who may depend on whom; add it in xtask/src/tidy/dependencies.rs",
                    package.name
                ),
            });
            continue;
        }
        for dependency in package
            .dependencies
            .iter()
            .filter(|dependency| dependency.path.is_some())
        {
            if !may_use(&package.name, &dependency.name, dependency.kind.as_deref()) {
                violations.push(Violation {
                    path: path.clone(),
                    line: line_of(&manifest, &dependency.name),
                    what: format!(
                        "{} may not depend on {}: move what it needs down into a library both may use \
                         (the table is in xtask/src/tidy/dependencies.rs)",
                        package.name, dependency.name
                    ),
                });
            }
        }
    }
    violations
}

fn is_known(package: &str) -> bool {
    library(package).is_some()
        || PROGRAMS.contains(&package)
        || [APART, "bench-claims", "bench-queue", "rigor-tests", "xtask"].contains(&package)
}

fn library(name: &str) -> Option<&'static [&'static str]> {
    LIBRARIES
        .iter()
        .find(|(library, _)| *library == name)
        .map(|(_, uses)| *uses)
}

fn may_use(package: &str, dependency: &str, kind: Option<&str>) -> bool {
    if dependency == STAND_IN {
        return package == INSTALLS_STAND_IN || package == "rigor-tests" || kind == Some("dev");
    }
    match (library(package), package) {
        (Some(uses), _) => uses.contains(&dependency),
        (None, "xtask" | APART) => false,
        (None, "rigor-tests") => library(dependency).is_some() || dependency == "xtask",
        (None, _) => library(dependency).is_some(),
    }
}

fn line_of(manifest: &str, dependency: &str) -> usize {
    let named = |line: &str| {
        line.trim_start()
            .strip_prefix(dependency)
            .is_some_and(|rest| rest.starts_with(['.', ' ', '=']))
    };
    manifest
        .lines()
        .position(named)
        .map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(package: &str, dependency: &str, kind: Option<&str>) -> Metadata {
        Metadata {
            workspace_root: PathBuf::from("/w"),
            packages: vec![Package {
                name: package.to_owned(),
                manifest_path: PathBuf::from(format!("/w/crates/{package}/Cargo.toml")),
                dependencies: vec![Dependency {
                    name: dependency.to_owned(),
                    kind: kind.map(str::to_owned),
                    path: Some(PathBuf::from("/w/x")),
                }],
                targets: Vec::new(),
            }],
        }
    }

    #[test]
    fn arrows_point_down_only() {
        for (package, dependency, kind, allowed) in [
            ("rigor-plan", "rigor-queue", None, true),
            ("rigor-queue", "rigor-plan", None, false),
            ("rigor-queue", "rigor-plan", Some("dev"), false),
            ("rigor-policy", "rigor-plan", None, false),
            ("brain", "rigor-policy", None, true),
            ("brain", "worker", None, false),
            ("rigor", "brain", Some("dev"), false),
            ("rigor", "nvml-stand-in", None, true),
            ("gpu-agent", "nvml-stand-in", None, false),
            ("gpu-agent", "nvml-stand-in", Some("dev"), true),
            ("xtask", "rigor-queue", None, false),
            ("runtime-stand-in", "rigor-queue", None, false),
            ("runtime-stand-in", "nvml-stand-in", Some("dev"), true),
            ("rigor-tests", "rigor-snapshot", None, true),
            ("rigor-tests", "brain", None, false),
            ("rigor-new", "rigor-queue", None, false),
        ] {
            let violations = check(&metadata(package, dependency, kind));
            assert_eq!(
                violations.is_empty(),
                allowed,
                "{package} -> {dependency}: {violations:?}"
            );
        }
    }

    #[test]
    fn others_crates_are_free() {
        let mut metadata = metadata("rigor-queue", "serde", None);
        metadata.packages[0].dependencies[0].path = None;
        assert!(check(&metadata).is_empty());
    }

    #[test]
    fn the_line_is_that_of_the_dependency() {
        let manifest = "[dependencies]\nrigor-planner = 1\nrigor-plan.workspace = true\n";
        assert_eq!(line_of(manifest, "rigor-plan"), 3);
        assert_eq!(line_of(manifest, "absent"), 1);
    }
}
