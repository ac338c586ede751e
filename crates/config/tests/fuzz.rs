//! Damaged rig.toml files: each is read or refused with every mistake and its line, in bounded time
//! and memory, and the same text always with the same answer.

#[path = "../../queue/tests/fuzz/mutate.rs"]
mod mutate;

use std::path::Path;

use mutate::{Dice, bytes, fuzz, lines};
use rigor_config::{Config, ConfigError};

const RIG: &str = r#"
[rig]
name = "garage"
durability = "strict"
[[gpu]]
name = "gpu-1"
uuid = "GPU-1"
port = 11435
model = "qwen2.5:7b"
[[cpu_agent]]
name = "cpu-1"
cpu_slots = 2
[[model]]
id = "qwen2.5:7b"
kind = "chat"
runtime = "llama-server"
file = "models/qwen2.5-7b-q4_k_m.gguf"
slots = 4
context = 8192
args = []
[[model]]
id = "own"
runtime = "command"
command = "serve --port {PORT}"
url = "http://127.0.0.1:{PORT}"
vram_mb = 4000
[limits]
[timing]
stuck_after = "5m"
heartbeat_warn = "60s"
[secrets]
HF_TOKEN = { env = "HF_TOKEN" }
[notify]
"#;

const WORDS: [&str; 30] = [
    "[[gpu]]",
    "[[model]]",
    "[rig]",
    "[gpu.x]",
    "[[[",
    "a.b.c = 1",
    "port = 65536",
    "port = 0",
    "port = -1",
    "slots = 18446744073709551615",
    "slots = 0",
    "context = 9223372036854775807",
    "vram_mb = 1e309",
    "stuck_after = \"99999999999999999999d\"",
    "stuck_after = \"-5m\"",
    "stuck_after = \"0.5s\"",
    "grace = 1979-05-27T07:32:00Z",
    "name = \"../../x\"",
    "name = \"\"",
    "name = \"\\u0000\"",
    "name = \"brain\"",
    "args = [[[[[]]]]]",
    "args = [\"{PORT}\", 1]",
    "file = \"/\"",
    "runtime = \"x\"",
    "min_free_disk = \"9999999999 TB\"",
    "vram_share = nan",
    "vram_share = inf",
    "command = \"'\"",
    "= = =",
];

fn text(dice: &mut Dice) -> Vec<u8> {
    match dice.below(3) {
        0 => bytes(dice, RIG.as_bytes()),
        _ => lines(dice, RIG, &WORDS),
    }
}

#[test]
fn rig_files() {
    let read = |text: &str| match Config::parse(text, Path::new("/srv/rig/rig.toml")) {
        Ok(config) => Ok(format!("{config:?}")),
        Err(ConfigError::Invalid { problems, .. }) => {
            assert!(!problems.is_empty());
            let last = text.split('\n').count();
            for problem in &problems {
                assert!(
                    (1..=last.max(1)).contains(&problem.line),
                    "{problem:?} of {last} lines"
                );
            }
            Err(format!("{problems:?}"))
        }
        Err(error) => panic!("{error}"),
    };
    assert!(read(RIG).is_ok(), "the seed is valid: {:?}", read(RIG));
    fuzz(2_500, text, |input| {
        let text = String::from_utf8_lossy(input);
        assert_eq!(read(&text), read(&text));
    });
}
