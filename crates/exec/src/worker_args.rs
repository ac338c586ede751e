//! What an agent tells a worker: written and read here, so that both sides agree.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use rigor_queue::name::FileName;

use crate::groups::Groups;

/// The arguments of the `worker` program. The task's file comes as standard input, locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerArgs {
    /// The rig directory.
    pub rig: PathBuf,
    /// In whose `processing/` the task lies.
    pub agent: String,
    /// The name of the task file.
    pub file: FileName,
    /// Drawn for this claim.
    pub nonce: String,
    /// How much of the task's output is kept, bytes.
    pub output_cap_bytes: u64,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// Where the attempt's processes belong.
    pub groups: Groups,
    /// The most that the command may write to one file, bytes.
    pub file_size_bytes: Option<u64>,
}

/// Arguments that are none of a worker's.
#[derive(Debug, thiserror::Error)]
#[error(
    "{why}\nusage: worker --rig DIR --agent NAME --file TASK_FILE --nonce WORD --output-cap BYTES --grace-ms MS [--cgroup DIR] [--pids-cgroup DIR] [--memory-cgroup DIR] [--file-size BYTES] < TASK_FILE (locked)\nAgents start workers; to run a plan use `rigor submit`."
)]
pub struct WorkerArgsError {
    why: String,
}

impl WorkerArgs {
    /// As a command line, without the program.
    pub fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec![
            "--rig".into(),
            self.rig.clone().into(),
            "--agent".into(),
            self.agent.clone().into(),
            "--file".into(),
            self.file.to_string().into(),
            "--nonce".into(),
            self.nonce.clone().into(),
            "--output-cap".into(),
            self.output_cap_bytes.to_string().into(),
            "--grace-ms".into(),
            self.grace.as_millis().to_string().into(),
        ];
        let Groups {
            tree,
            processes,
            memory,
        } = &self.groups;
        for (name, dir) in [
            ("--cgroup", tree),
            ("--pids-cgroup", processes),
            ("--memory-cgroup", memory),
        ] {
            if let Some(dir) = dir {
                args.extend([name.into(), dir.clone().into()]);
            }
        }
        if let Some(bytes) = self.file_size_bytes {
            args.extend(["--file-size".into(), bytes.to_string().into()]);
        }
        args
    }

    /// From a command line, without the program.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<WorkerArgs, WorkerArgsError> {
        read(lexopt::Parser::from_args(args)).map_err(|error| WorkerArgsError {
            why: error.to_string(),
        })
    }
}

fn read(mut parser: lexopt::Parser) -> Result<WorkerArgs, lexopt::Error> {
    use lexopt::prelude::{Long, ValueExt};
    let (mut rig, mut agent, mut file, mut nonce) = (None, None, None, None);
    let (mut output_cap_bytes, mut grace_ms, mut file_size_bytes) = (None, None, None);
    let mut groups = Groups::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("rig") => rig = Some(PathBuf::from(parser.value()?)),
            Long("agent") => agent = Some(parser.value()?.string()?),
            Long("file") => file = Some(parser.value()?.parse()?),
            Long("nonce") => nonce = Some(parser.value()?.string()?),
            Long("output-cap") => output_cap_bytes = Some(parser.value()?.parse()?),
            Long("grace-ms") => grace_ms = Some(parser.value()?.parse()?),
            Long("cgroup") => groups.tree = Some(parser.value()?.into()),
            Long("pids-cgroup") => groups.processes = Some(parser.value()?.into()),
            Long("memory-cgroup") => groups.memory = Some(parser.value()?.into()),
            Long("file-size") => file_size_bytes = Some(parser.value()?.parse()?),
            other => return Err(other.unexpected()),
        }
    }
    let missing = |name: &str| lexopt::Error::from(format!("missing argument --{name}"));
    Ok(WorkerArgs {
        rig: rig.ok_or_else(|| missing("rig"))?,
        agent: agent.ok_or_else(|| missing("agent"))?,
        file: file.ok_or_else(|| missing("file"))?,
        nonce: nonce.ok_or_else(|| missing("nonce"))?,
        output_cap_bytes: output_cap_bytes.ok_or_else(|| missing("output-cap"))?,
        grace: Duration::from_millis(grace_ms.ok_or_else(|| missing("grace-ms"))?),
        groups,
        file_size_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rigor_queue::name::{Shape, TaskId};

    fn example() -> WorkerArgs {
        WorkerArgs {
            rig: "/srv/my rig".into(),
            agent: "gpu-1".into(),
            file: FileName::first(5, 42, Shape(7), TaskId::derive("b", "t", None)),
            nonce: "c0ffee".into(),
            output_cap_bytes: 1 << 20,
            grace: Duration::from_millis(1500),
            groups: Groups {
                tree: Some("/sys/fs/cgroup/rigor-x/y.a1".into()),
                processes: Some("/sys/fs/cgroup/pids/rigor-x/y.a1".into()),
                memory: Some("/sys/fs/cgroup/rigor-x/y.a1/command".into()),
            },
            file_size_bytes: Some(1 << 40),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (groups, file_size_bytes) in [
            (Groups::default(), None),
            (example().groups, example().file_size_bytes),
        ] {
            let args = WorkerArgs {
                groups,
                file_size_bytes,
                ..example()
            };
            assert_eq!(WorkerArgs::parse(args.to_args()).expect("parses"), args);
        }
    }

    #[test]
    fn misuse_is_named() {
        let all = example().to_args();
        let refused = |args: &[OsString]| {
            WorkerArgs::parse(args.to_vec())
                .expect_err("refused")
                .to_string()
        };
        assert!(refused(&[]).contains("missing argument --rig"));
        assert!(refused(&all[..2]).contains("missing argument --agent"));
        assert!(refused(&[all.clone(), vec!["--bogus".into()]].concat()).contains("--bogus"));
        assert!(refused(&["--file".into(), "../../x".into()]).contains("../../x"));
        assert!(refused(&all[..2]).contains("usage: worker"));
    }
}
