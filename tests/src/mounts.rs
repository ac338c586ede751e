//! Tests that need a small file system of their own: they run once more in a mount namespace.

use std::env;
use std::path::Path;
use std::process::{Command, ExitStatus};

use crate::parts;

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
    if is_inside() {
        return Namespace::Inside;
    }
    let outside = tempfile::tempdir().expect("a temporary directory");
    match again(&[test, "--exact", "--nocapture"], whole_mb, outside.path()) {
        Ok(status) => assert!(status.success(), "{test} in its own namespace: {status}"),
        Err(why) => return Namespace::Unable(why),
    }
    Namespace::Done
}

/// Whether this is the second run.
pub fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}

/// Runs this program again with these words, as [`enter`] does. The error says why this machine
/// allows none.
pub fn again(words: &[&str], whole_mb: Option<u32>, outside: &Path) -> Result<ExitStatus, String> {
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
        return Err(
            "no mount namespace with a tmpfs (it needs root, or user namespaces)".to_owned(),
        );
    };
    let mut command = Command::new("unshare");
    if parts::on_path("setpriv") {
        // It ends with this program, should that be killed.
        command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "unshare"]);
    }
    command.args(*flags).env(OUTSIDE, outside);
    if let Some(mb) = whole_mb {
        let mount = format!("mount -t tmpfs -o size={mb}m tmpfs \"$0\" && exec \"$@\"");
        command.args(["sh", "-c", &mount]).arg(scratch.path());
        command.env("TMPDIR", scratch.path());
    }
    command
        .arg(env::current_exe().expect("the program knows where it lies"))
        .args(words)
        .env(INSIDE, "1");
    Ok(command.status().expect("start unshare"))
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

/// A file system in a file, whose power can be cut.
#[derive(Debug)]
pub struct Image {
    file: std::path::PathBuf,
    dir: std::path::PathBuf,
}

/// `FS_IOC_SHUTDOWN` of linux/fs.h with `EXT4_GOING_FLAGS_NOLOGFLUSH`: from then on nothing more
/// reaches the disk, not even the journal that is in memory. Safe Rust has no ioctl.
const CUT: &str = "import fcntl, os, struct, sys\n\
     fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

impl Image {
    /// Makes an ext4 with a journal of `mb` MB in `file` and mounts it on `dir`; the error says why
    /// this machine does not let it. For use inside a namespace (see [`enter`]).
    pub fn mount(file: &Path, dir: &Path, mb: u64) -> Result<Image, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("a loop device needs root".to_owned());
        }
        let room = std::fs::File::create(file).and_then(|file| file.set_len(mb << 20));
        room.map_err(|error| error.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(file))?;
        let image = Image {
            file: file.to_owned(),
            dir: dir.to_owned(),
        };
        image.attach()?;
        // Not every kernel has it for every file system.
        image.cut()?;
        Ok(image)
    }

    /// What a power cut at this moment leaves, mounted again: whatever was not made durable is gone.
    pub fn cut(&self) -> Result<(), String> {
        run(Command::new("python3").args(["-c", CUT]).arg(&self.dir))?;
        run(Command::new("umount").arg(&self.dir))?;
        self.attach()
    }

    /// Makes all that is there durable.
    pub fn sync(&self) -> Result<(), String> {
        run(Command::new("sync").arg("-f").arg(&self.dir))
    }

    fn attach(&self) -> Result<(), String> {
        let mut mount = Command::new("mount");
        run(mount.args(["-o", "loop"]).arg(&self.file).arg(&self.dir))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // The namespace's end unmounts it too.
        let _ = run(Command::new("umount").arg(&self.dir));
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let said = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if said.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&said.stderr);
    Err(format!("{command:?}: {}", words.trim()))
}
