//! Secrets: where each is kept. Their text never shows in a log.

use std::fmt;
use std::path::PathBuf;

/// Where a secret is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// In rig.toml itself.
    Literal(SecretText),
    /// In a file, without the line end after it.
    File(PathBuf),
    /// In an environment variable of the program that needs it.
    Env(String),
}

/// A text that is shown only to who asks for it by name.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

/// A secret that is not where rig.toml says.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file could not be read.
    #[error("cannot read the secret in {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The variable is not set, or is not text.
    #[error(
        "the environment variable {name} that holds a secret {problem}: set it before starting the agent"
    )]
    Env {
        /// The variable.
        name: String,
        /// What is wrong with it.
        problem: std::env::VarError,
    },
}

impl Secret {
    /// Reads the secret, now.
    pub fn resolve(&self) -> Result<SecretText, SecretError> {
        match self {
            Secret::Literal(text) => Ok(text.clone()),
            Secret::File(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| SecretError::File {
                    path: path.clone(),
                    source,
                })?;
                Ok(SecretText(text.trim_end_matches(['\r', '\n']).to_owned()))
            }
            Secret::Env(name) => {
                std::env::var(name)
                    .map(SecretText)
                    .map_err(|problem| SecretError::Env {
                        name: name.clone(),
                        problem,
                    })
            }
        }
    }
}

impl SecretText {
    pub(crate) fn new(text: String) -> SecretText {
        SecretText(text)
    }

    /// The text itself, to hand to a task.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_does_not_show_a_secret() {
        let secret = Secret::Literal(SecretText::new("hunter2".into()));
        assert!(!format!("{secret:?}").contains("hunter2"));
        assert_eq!(secret.resolve().unwrap().reveal(), "hunter2");
    }

    #[test]
    fn a_file_loses_its_line_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "abc \n").unwrap();
        assert_eq!(Secret::File(path).resolve().unwrap().reveal(), "abc ");
    }

    #[test]
    fn a_missing_source_is_named() {
        let file = Secret::File("/nonexistent/token".into())
            .resolve()
            .unwrap_err()
            .to_string();
        assert!(
            file.starts_with("cannot read the secret in /nonexistent/token: "),
            "{file}"
        );
        let env = Secret::Env("RIGOR_NO_SUCH_SECRET".into())
            .resolve()
            .unwrap_err()
            .to_string();
        assert!(env.contains("RIGOR_NO_SUCH_SECRET"), "{env}");
    }
}
