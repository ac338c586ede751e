//! What tasks write of themselves: each attempt notes its start, its life and its end in a file of
//! its plan, opened for appending, so that no line of one attempt is lost in another's.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The file, in the plan's folder.
pub const FILE: &str = "journal";

/// A shell command that notes the attempt's start and its end around `work`. `work` may call
/// `note tick`, and must not exit by itself.
pub fn noted(work: &str) -> String {
    format!(
        "note() {{ printf '%s %s %s %s %s\\n' \"$RIGOR_TASK_ID\" \"$RIGOR_ATTEMPT\" \"$1\" \"$EPOCHREALTIME\" \"$RIGOR_AGENT\" >> \"$RIGOR_PLAN_DIR/{FILE}\"; }}\n\
         note start\n( {work} )\ncode=$?\nnote stop\nexit $code"
    )
}

/// Work that takes `tenths` of a second and shows at each of them that it lives.
pub fn ticking(tenths: u32) -> String {
    noted(&format!(
        "for n in $(seq {tenths}); do sleep 0.1; note tick; done"
    ))
}

/// A `- **command**:` field with a block of several lines.
pub fn command(text: &str) -> String {
    let lines: String = text.lines().map(|line| format!("  {line}\n")).collect();
    format!("- **command**:\n  ```bash\n{lines}  ```\n")
}

/// One attempt, as it noted itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// The task's id.
    pub task: String,
    /// Its number.
    pub attempt: u32,
    /// Who ran it.
    pub agent: String,
    /// When it began, seconds.
    pub start: f64,
    /// The last sign of life, seconds.
    pub last: f64,
    /// It came to its end.
    pub ended: bool,
}

/// Every attempt noted in the plan's journal, by task and number.
///
/// Panics over an attempt that noted two starts: it ran twice.
pub fn read(plan_dir: &Path) -> Vec<Attempt> {
    let path = plan_dir.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => panic!("read {}: {error}", path.display()),
    };
    let mut attempts: BTreeMap<(String, u32), Attempt> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [task, attempt, what, at, agent] = words[..] else {
            panic!("{line:?} in {}", path.display());
        };
        let attempt: u32 = attempt.parse().expect("an attempt's number");
        let at: f64 = at.parse().expect("a time");
        let key = (task.to_owned(), attempt);
        match what {
            "start" => {
                let new = Attempt {
                    task: task.to_owned(),
                    attempt,
                    agent: agent.to_owned(),
                    start: at,
                    last: at,
                    ended: false,
                };
                let before = attempts.insert(key, new);
                assert_eq!(before, None, "attempt {attempt} of {task} started twice");
            }
            _ => {
                let known = attempts.get_mut(&key);
                let known = known.unwrap_or_else(|| panic!("{line:?} has no start"));
                known.last = known.last.max(at);
                known.ended |= what == "stop";
            }
        }
    }
    attempts.into_values().collect()
}
