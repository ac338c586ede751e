//! Real parts for tests and the demo on a machine without a GPU: llama.cpp's own server and models
//! with random weights, in `target/fixtures`.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const REQUIREMENTS: &str = include_str!("../fixtures/requirements.txt");
const MAKE_MODEL: &str = include_str!("../fixtures/make_model.py");
const LLAMA_SERVER: &str = include_str!("../fixtures/llama_server.py");

/// Where the fixtures are. The same object is in `target/fixtures/fixtures.json`, whose presence
/// says that the folder is complete.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fixtures {
    /// A program with `llama-server`'s flags: the one on `PATH`, else llama.cpp from its wheel.
    pub llama_server: PathBuf,
    /// A chat model with random weights, 0.5 MB. Its id is `tiny-random`.
    pub model: PathBuf,
    /// The same network with mean pooling, for embeddings. Its id is `tiny-random-embedding`.
    pub embedding_model: PathBuf,
    stamp: String,
}

impl Fixtures {
    /// A model of 0.8 GB with random weights that takes about two seconds to load, made on the
    /// first call. Its id is `big-random`.
    pub fn big_model(&self) -> Result<PathBuf> {
        let _lock = lock()?;
        let path = root().join("models/big-random.gguf");
        if path.exists() {
            return Ok(path);
        }
        eprintln!("fixtures: writing {} (0.8 GB)", path.display());
        let partial = path.with_extension("gguf.partial");
        let size = ["--name", "big-random", "--width", "1024", "--layers", "24"];
        make_model(&root(), &partial, &size)?;
        fs::rename(&partial, &path)
            .with_context(|| format!("rename {} into place", partial.display()))?;
        Ok(path)
    }
}

/// Makes what is missing and returns where everything is.
///
/// Idempotent, and safe for several callers at once: one builds, the others wait. The folder is
/// built aside and renamed, so an interrupted call leaves nothing that looks complete.
pub fn ensure() -> Result<Fixtures> {
    let _lock = lock()?;
    let root = root();
    let stamp = stamp(&root);
    let built = match read_index(&root) {
        Some(fixtures) if fixtures.stamp == stamp => fixtures,
        _ => build(&root, stamp)?,
    };
    Ok(match on_path("llama-server") {
        Some(llama_server) => Fixtures {
            llama_server,
            ..built
        },
        None => built,
    })
}

fn build(root: &Path, stamp: String) -> Result<Fixtures> {
    let staging = root.with_file_name("fixtures.new");
    remove(&staging)?;
    for folder in ["bin", "models"] {
        let folder = staging.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    }
    eprintln!(
        "fixtures: installing llama.cpp's server into {}",
        root.display()
    );
    let venv = staging.join("venv");
    let venv_text = venv.to_str().context("the checkout's path is not UTF-8")?;
    run(Command::new("python3").args(["-m", "venv", venv_text])).context(
        "make a Python virtual environment: Python 3.10 or newer with venv and pip is needed \
         (Debian and Ubuntu: apt install python3-venv)",
    )?;
    write(&staging.join("requirements.txt"), REQUIREMENTS, 0o644)?;
    write(&staging.join("make_model.py"), MAKE_MODEL, 0o644)?;
    write(&staging.join("llama_server.py"), LLAMA_SERVER, 0o644)?;
    run(Command::new(staging.join("venv/bin/python"))
        .args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "-r"])
        .arg(staging.join("requirements.txt")))
    .context("install the Python packages of xtask/fixtures/requirements.txt (network access to the package registry is needed)")?;

    // Python finds its environment from the interpreter's own path, so the folder may be renamed
    // as long as only `venv/bin/python` is used and never the scripts beside it.
    let launcher = format!(
        "#!/bin/sh\nexec {} -I {} \"$@\"\n",
        shell_quoted(&root.join("venv/bin/python"))?,
        shell_quoted(&root.join("llama_server.py"))?,
    );
    write(&staging.join("bin/llama-server"), &launcher, 0o755)?;
    make_model(
        &staging,
        &staging.join("models/tiny-random.gguf"),
        &["--name", "tiny-random"],
    )?;
    let pooled = ["--name", "tiny-random-embedding", "--pooling"];
    make_model(
        &staging,
        &staging.join("models/tiny-random-embedding.gguf"),
        &pooled,
    )?;

    let fixtures = Fixtures {
        llama_server: root.join("bin/llama-server"),
        model: root.join("models/tiny-random.gguf"),
        embedding_model: root.join("models/tiny-random-embedding.gguf"),
        stamp,
    };
    write(
        &staging.join("fixtures.json"),
        &serde_json::to_string_pretty(&fixtures)?,
        0o644,
    )?;
    // Two renames and not a removal in between, so that the old one is gone for an instant only.
    let old = root.with_file_name("fixtures.old");
    remove(&old)?;
    match fs::rename(root, &old) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("move {} aside", root.display()));
        }
        _ => {}
    }
    fs::rename(&staging, root)
        .with_context(|| format!("rename {} into place", staging.display()))?;
    remove(&old)?;
    Ok(fixtures)
}

fn root() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    workspace
        .expect("xtask is a folder of the workspace")
        .join("target/fixtures")
}

/// What the folder was built from, the place included: the launcher holds absolute paths.
fn stamp(root: &Path) -> String {
    let mut hash = Sha256::new();
    for part in [
        REQUIREMENTS,
        MAKE_MODEL,
        LLAMA_SERVER,
        &root.to_string_lossy(),
    ] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn read_index(root: &Path) -> Option<Fixtures> {
    // Anything unreadable is built anew: nothing but this program writes here.
    serde_json::from_slice(&fs::read(root.join("fixtures.json")).ok()?).ok()
}

fn lock() -> Result<File> {
    let path = root().with_file_name("fixtures.lock");
    fs::create_dir_all(path.parent().expect("the lock lies in target"))?;
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    file.lock()
        .with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

fn make_model(home: &Path, path: &Path, options: &[&str]) -> Result<()> {
    run(Command::new(home.join("venv/bin/python"))
        .arg(home.join("make_model.py"))
        .arg(path)
        .args(options))
    .with_context(|| format!("write the model {}", path.display()))
}

fn on_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|path| {
            fs::metadata(path)
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    // Standard output carries the caller's data; what these programs say goes to standard error.
    let status = match command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
    {
        Ok(status) => status,
        Err(error) if error.kind() == ErrorKind::NotFound => bail!("{shown}: no such program"),
        Err(error) => return Err(error).context(shown),
    };
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("write {}", path.display()))?;
    file.set_permissions(fs::Permissions::from_mode(mode))
        .with_context(|| format!("chmod {}", path.display()))
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn shell_quoted(path: &Path) -> Result<String> {
    let text = path.to_str().context("the checkout's path is not UTF-8")?;
    Ok(format!("'{}'", text.replace('\'', "'\\''")))
}
