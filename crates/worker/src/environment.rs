//! The environment of a command: what the agent gave, a file of variables, the task's own, a
//! virtual or conda environment.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use rigor_queue::task::TaskSpec;

use crate::outcome::Failure;

/// What tells whose a process is and what it may use: a task that could set these would escape its
/// containment, see a GPU that is another's, or mistake itself for another task.
const RESERVED: [&str; 12] = [
    rigor_exec::COOKIE_VARIABLE,
    "CUDA_VISIBLE_DEVICES",
    "RIGOR_AGENT",
    "RIGOR_ATTEMPT",
    "RIGOR_BATCH_DIR",
    "RIGOR_BATCH_ID",
    "RIGOR_ITEM",
    "RIGOR_LLM_KIND",
    "RIGOR_LLM_MODEL",
    "RIGOR_LLM_URL",
    "RIGOR_PLAN_DIR",
    "RIGOR_TASK_ID",
];

/// The rule that protects them.
const RESERVED_RULE: &str = "variables that only the agent sets";

/// How a command is to be started.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    /// Over what this process has.
    pub(crate) set: BTreeMap<String, OsString>,
    /// Not to be handed on.
    pub(crate) unset: Vec<&'static str>,
    /// A program and its arguments that start the shell; empty: it is started as it is.
    pub(crate) launcher: Vec<OsString>,
    /// The working directory.
    pub(crate) dir: PathBuf,
}

/// Reads and checks all that the task names.
pub(crate) fn of(spec: &TaskSpec) -> Result<Environment, Failure> {
    let mut environment = Environment {
        dir: directory(spec)?,
        ..Environment::default()
    };
    for name in &spec.secrets {
        if env::var_os(name).is_none() {
            return Err(Failure::setup(format!(
                "secret {name} was not handed over by the agent; name it under [secrets] in rig.toml"
            )));
        }
    }
    if let Some(file) = &spec.env_file {
        let path = spec.plan_dir.join(file);
        let text = fs::read_to_string(&path).map_err(|error| {
            Failure::setup(format!("read env_file {}: {error}", path.display()))
        })?;
        for (name, value) in variables(&text)
            .map_err(|why| Failure::setup(format!("env_file {}: {why}", path.display())))?
        {
            refuse_reserved(&name, &path.display().to_string())?;
            environment.set.insert(name, value.into());
        }
    }
    for (name, value) in &spec.env {
        refuse_reserved(name, "env")?;
        environment.set.insert(name.clone(), value.into());
    }
    if let Some(venv) = &spec.venv {
        use_venv(&mut environment, &spec.plan_dir.join(venv))?;
    }
    if let Some(conda) = &spec.conda {
        use_conda(&mut environment, &spec.plan_dir, conda)?;
    }
    Ok(environment)
}

fn refuse_reserved(name: &str, by: &str) -> Result<(), Failure> {
    if RESERVED.contains(&name) {
        let reason =
            format!("{by} sets {name}, which only the agent sets; take it out or use another name");
        return Err(Failure::blocked(reason, RESERVED_RULE));
    }
    Ok(())
}

fn directory(spec: &TaskSpec) -> Result<PathBuf, Failure> {
    let dir = match &spec.workdir {
        Some(dir) => spec.plan_dir.join(dir),
        None => spec.plan_dir.clone(),
    };
    match fs::metadata(&dir) {
        Ok(meta) if meta.is_dir() => Ok(dir),
        Ok(_) => Err(Failure::setup(format!(
            "workdir {} is not a directory",
            dir.display()
        ))),
        Err(error) => Err(Failure::setup(format!(
            "workdir {}: {error}",
            dir.display()
        ))),
    }
}

/// `NAME=value` lines; `#` starts a comment line, `export` may stand before, quotes around a whole
/// value are taken off. Nothing is expanded. An error quotes no line: these files hold secrets.
fn variables(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut found = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let bad = || format!("line {} is not NAME=value", n + 1);
        let (name, value) = line.split_once('=').ok_or_else(bad)?;
        let name = name.trim_end();
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty() || !name.bytes().all(word) {
            return Err(bad());
        }
        if value.contains('\0') {
            return Err(format!("line {}: {name} has a NUL in its value", n + 1));
        }
        let value = value.trim_start();
        let bare = ['"', '\'']
            .into_iter()
            .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote))
            .unwrap_or(value);
        found.push((name.to_owned(), bare.to_owned()));
    }
    Ok(found)
}

fn use_venv(environment: &mut Environment, venv: &Path) -> Result<(), Failure> {
    if !venv.join("bin/python").exists() {
        return Err(Failure::setup(format!(
            "venv {} has no bin/python; make it with `python3 -m venv {0}`",
            venv.display()
        )));
    }
    prepend_path(environment, &venv.join("bin"));
    environment
        .set
        .insert("VIRTUAL_ENV".to_owned(), venv.into());
    environment.unset.push("PYTHONHOME");
    Ok(())
}

/// By `conda run`, which also runs the environment's activation scripts. A path without a conda on
/// this machine is used by PATH alone.
fn use_conda(environment: &mut Environment, plan_dir: &Path, conda: &str) -> Result<(), Failure> {
    let prefix = conda.contains('/').then(|| plan_dir.join(conda));
    if let Some(prefix) = &prefix
        && !prefix.join("conda-meta").is_dir()
    {
        return Err(Failure::setup(format!(
            "conda {} is no conda environment: it has no conda-meta",
            prefix.display()
        )));
    }
    let program = match environment
        .set
        .get("CONDA_EXE")
        .cloned()
        .or_else(|| env::var_os("CONDA_EXE"))
    {
        Some(exe) => Some(PathBuf::from(exe)),
        None => on_path(environment, "conda"),
    };
    match (program, prefix) {
        (Some(program), prefix) => {
            let (option, value) = match prefix {
                Some(prefix) => ("-p", prefix.into_os_string()),
                None => ("-n", conda.into()),
            };
            environment.launcher = vec![
                program.into(),
                "run".into(),
                "--no-capture-output".into(),
                option.into(),
                value,
            ];
            Ok(())
        }
        (None, Some(prefix)) => {
            prepend_path(environment, &prefix.join("bin"));
            environment
                .set
                .insert("CONDA_PREFIX".to_owned(), prefix.into());
            Ok(())
        }
        (None, None) => Err(Failure::setup(format!(
            "conda {conda}: there is no `conda` on PATH and CONDA_EXE is not set; install conda, or give the environment's path instead of its name"
        ))),
    }
}

fn search_path(environment: &Environment) -> OsString {
    match environment.set.get("PATH") {
        Some(path) => path.clone(),
        None => env::var_os("PATH").unwrap_or_default(),
    }
}

fn prepend_path(environment: &mut Environment, dir: &Path) {
    let mut path = dir.as_os_str().to_owned();
    let rest = search_path(environment);
    if !rest.is_empty() {
        path.push(":");
        path.push(rest);
    }
    environment.set.insert("PATH".to_owned(), path);
}

fn on_path(environment: &Environment, program: &str) -> Option<PathBuf> {
    env::split_paths(&search_path(environment))
        .map(|dir| dir.join(program))
        .find(|file| {
            file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_variables() {
        let text = "# a comment\n\nA=1\nexport B = two words\nC=\"quoted $A\"\nD='x=y'\nE=\n";
        let found = variables(text).expect("valid");
        let expected = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "quoted $A"),
            ("D", "x=y"),
            ("E", ""),
        ];
        assert_eq!(found.len(), expected.len());
        for ((name, value), (n, v)) in found.iter().zip(expected) {
            assert_eq!((name.as_str(), value.as_str()), (n, v));
        }
    }

    #[test]
    fn a_bad_line_is_named_without_its_content() {
        for (text, expected) in [
            ("A=1\ns3cret", "line 2 is not NAME=value"),
            ("A-s3cret=s3cret", "line 1 is not NAME=value"),
            ("A=s3cret\0", "line 1: A has a NUL in its value"),
        ] {
            assert_eq!(variables(text).expect_err("refused"), expected);
        }
    }
}
