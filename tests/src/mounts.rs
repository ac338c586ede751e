//! Tests that need a small file system of their own: they run once more in a mount namespace.

use std::env;
use std::path::Path;
use std::process::Command;

/// Set in the second run.
const INSIDE: &str = "RIGOR_TEST_NAMESPACE";
/// In the second run: a directory that is on no file system which the test fills.
pub const OUTSIDE: &str = "RIGOR_TEST_OUTSIDE";

/// Where a test is.
#[derive(Debug, PartialEq, Eq)]
pub enum Namespace {
    /// In a namespace of its own: mounts vanish with it.
    Inside,
    /// The second run is over and went well.
    Done,
    /// This machine allows none.
    Unable(String),
}

/// Runs the test of that name (`module::name`) again in a mount namespace of its own. Where
/// `whole_mb` is given, temporary files lie on a file system of so many MB there.
///
/// Panics where the second run fails.
pub fn enter(test: &str, whole_mb: Option<u32>) -> Namespace {
    if env::var_os(INSIDE).is_some() {
        return Namespace::Inside;
    }
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let tries: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
    let probe = "mount -t tmpfs -o size=1m tmpfs \"$0\"";
    let works = |flags: &&&[&str]| {
        let mut command = Command::new("unshare");
        command.args(**flags).args(["sh", "-c", probe]);
        command.arg(scratch.path());
        command.output().is_ok_and(|said| said.status.success())
    };
    let Some(flags) = tries.iter().find(works) else {
        return Namespace::Unable(
            "no mount namespace with a tmpfs (it needs root, or user namespaces)".to_owned(),
        );
    };
    let outside = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new("unshare");
    command.args(*flags).env(OUTSIDE, outside.path());
    if let Some(mb) = whole_mb {
        let mount = format!("mount -t tmpfs -o size={mb}m tmpfs \"$0\" && exec \"$@\"");
        command.args(["sh", "-c", &mount]).arg(scratch.path());
        command.env("TMPDIR", scratch.path());
    }
    command
        .arg(env::current_exe().expect("the test knows where it lies"))
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "1");
    let status = command.status().expect("start unshare");
    assert!(status.success(), "{test} in its own namespace: {status}");
    Namespace::Done
}

/// Puts an empty file system of `kb` KB over a directory.
pub fn tmpfs(dir: &Path, kb: u32) {
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o"])
        .arg(format!("size={kb}k,mode=0755"))
        .arg("tmpfs")
        .arg(dir)
        .status()
        .expect("start mount");
    assert!(status.success(), "mount on {}: {status}", dir.display());
}

/// Takes all the room of the file system that `file` lies on.
pub fn fill(file: &Path) {
    use std::io::Write as _;

    let mut filler = std::fs::File::create(file).expect("make a file");
    // Large pieces first, then what is left.
    for size in [1 << 20, 4096, 1] {
        let piece = vec![b'x'; size];
        while filler.write_all(&piece).is_ok() {}
    }
}
