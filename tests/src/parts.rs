//! What the tests run: the programs that cargo built, llama.cpp's server, models.

use std::env;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range from which the kernel takes ports for outgoing connections.
const PORT_FIRST: u16 = 20_000;
const PORT_COUNT: u16 = 10_000;
/// Ports that are set aside for one rig.
const PORTS_PER_RIG: u16 = 16;

/// One of Rigor's programs, from where cargo puts them. Built now if it is not there;
/// `cargo xtask test` builds them all before any test runs.
pub fn program(name: &str) -> PathBuf {
    let test = env::current_exe().expect("the test knows where it lies");
    // A test lies in target/PROFILE/deps, a program of this package beside the others.
    let mut profile = test.parent().expect("it lies in a folder");
    if profile.ends_with("deps") {
        profile = profile.parent().expect("deps lies in target/PROFILE");
    }
    let profile = profile.to_owned();
    let path = profile.join(name);
    static BUILD: Once = Once::new();
    if !path.exists() {
        BUILD.call_once(|| build(&profile));
    }
    assert!(path.exists(), "{} is not built", path.display());
    path
}

fn build(profile: &Path) {
    let mut cargo = cargo();
    cargo.args(["build", "--workspace", "--bins"]);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("start cargo");
    assert!(status.success(), "cargo build --workspace --bins: {status}");
}

fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo
}

/// The root of the source tree.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this package lies in the workspace")
}

/// A path of `cargo xtask fixtures` (`llama_server`, `model`, `embedding_model`), made now if it
/// is not there.
pub fn fixture(key: &str) -> PathBuf {
    static MAKE: Once = Once::new();
    let index = workspace().join("target/fixtures/fixtures.json");
    if !index.exists() {
        MAKE.call_once(|| {
            let status = cargo()
                .args(["xtask", "fixtures"])
                .status()
                .expect("start cargo");
            assert!(status.success(), "cargo xtask fixtures: {status}");
        });
    }
    let text = std::fs::read(&index).expect("read target/fixtures/fixtures.json");
    let fixtures: serde_json::Value = serde_json::from_slice(&text).expect("fixtures.json is JSON");
    let path = fixtures[key].as_str();
    path.unwrap_or_else(|| panic!("fixtures.json has no {key}"))
        .into()
}

/// The first of `count` ports in a row that are free.
pub fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let slots = PORT_COUNT / PORTS_PER_RIG;
    assert!(
        count <= PORTS_PER_RIG,
        "{count} ports are too many for a rig"
    );
    // Tests of other processes begin elsewhere.
    let own = (std::process::id() % u32::from(slots)) as u16;
    for _ in 0..slots {
        let slot = (own + NEXT.fetch_add(1, Ordering::Relaxed) * 7) % slots;
        let first = PORT_FIRST + slot * PORTS_PER_RIG;
        if (first..first + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return first;
        }
    }
    panic!("no {count} free ports in a row");
}

/// Whether there is a program of that name on `PATH`.
pub fn on_path(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(name).is_file())
}
