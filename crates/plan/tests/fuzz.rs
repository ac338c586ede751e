//! Damaged plans and lists of items: every text is answered with a plan or with problems that can be
//! shown, in bounded time and memory, and the same text always with the same answer.

#[path = "../../queue/tests/fuzz/mutate.rs"]
mod mutate;

use std::collections::BTreeMap;

use mutate::{Dice, bytes, fuzz, lines};
use rigor_plan::{
    AgentFacts, ForeachSource, ITEM_ID_MAX_BYTES, ItemContent, Plan, Problems, RigFacts, Sources,
    check, group, parse_items, slug,
};

const PLAN: &str = r#"# Plan: videos

## Goal
Every video has a transcript and tags.

## Inputs
- **LANGUAGE**: of the videos (default: `en`)
- **videos.json**: what to work on

## Tasks
- **retries**: 1
- **env**: A=default
- **on_failure**: continue

### fetch
- **executor**: brain
- **command**: |
    python fetch.py <<'EOF'
    {INPUT.LANGUAGE}
    EOF
- **timeout**: 5m

### transcribe
- **task_class**: script
- **depends_on**: fetch
- **foreach**: videos.json:new.videos
- **command**: python t.py --in "{ITEM.path}" --out {BATCH_PATH}/{ITEM.id}.txt
- **produces**: {BATCH_PATH}/{ITEM.id}.txt
- **vram_policy**: fixed
- **vram_estimate_mb**: 2000
- **max_failed**: 10%

### tag
- **depends_on**: transcribe_{ITEM.id}
- **foreach**: videos.json:new.videos
- **task_class**: llm
- **llm_model**: qwen2.5:7b
- **prompt**: |
    Tag this: {FILE:out/{ITEM.id}.txt}

### summary
- **depends_on**: `tag`, fetch
- **task_class**: cpu
- **command**: python scripts/sum.py --batch {BATCH_ID} --failed {FAILED_FILE:tag} && echo "done"
- **on_failure**: stop
"#;

const WORDS: [&str; 41] = [
    "- **depends_on**: summary",
    "- **depends_on**: fetch, fetch,, none",
    "- **foreach**: a.csv",
    "- **foreach**: out/*.json",
    "- **foreach**: lines.txt",
    "- **retries**: 99999999999999999999",
    "- **retries**: -1",
    "- **timeout**: 1e9d",
    "- **timeout**: 0s",
    "- **vram_estimate_mb**: 18446744073709551615",
    "- **batch_size**: 10",
    "- **batch_size**: 0",
    "- **batch_size**: 4294967296",
    "- **max_failed**: 101%",
    "- **max_failed**: -0%",
    "- **priority**: 255",
    "- **cpus**: 0",
    "- **on**: gpu-1, gpu-1, x",
    "- **llm_min_tier**: 300",
    "- **command**: |",
    "- **prompt**: |",
    "- **command**:",
    "### ../../x",
    "### a b",
    "### fetch",
    "## Tasks",
    "# Plan:",
    "```",
    "~~~~",
    "<!--",
    "-->",
    "{ITEM.id}",
    "{ITEM.a.b.c",
    "{FILE:{FILE:x}}",
    "{INPUT.NONE}",
    "{{",
    "}}",
    "<<'EOF'",
    "'\"",
    "$(rm -rf /)",
    "- **env**: =\u{0}",
];

fn checked(text: &str, infer: bool) -> Result<Plan, Problems> {
    let agent = |name: &str, vram_budget_mb| AgentFacts {
        name: name.to_owned(),
        gpu: true,
        vram_budget_mb,
    };
    let rig = RigFacts {
        agents: vec![agent("gpu-1", Some(19_660)), agent("gpu-2", None)],
        models: Vec::new(),
        secrets: vec!["HF_TOKEN".to_owned()],
    };
    check(&Sources {
        plan_file: "plan.md",
        text,
        inputs: &BTreeMap::from([("LANGUAGE".to_owned(), "'\n\"".to_owned())]),
        files: &|path| (path.len() < 20).then(|| "Tag {ITEM.id} {FILE:x}\n".to_owned()),
        exists: &|source| source.base().len() < 20,
        rig: infer.then_some(&rig),
        infer,
    })
}

fn text(dice: &mut Dice) -> Vec<u8> {
    match dice.below(3) {
        0 => bytes(dice, PLAN.as_bytes()),
        _ => lines(dice, PLAN, &WORDS),
    }
}

#[test]
fn plans() {
    if let Err(problems) = checked(PLAN, false) {
        panic!("the seed is valid: {problems}");
    }
    fuzz(1_500, text, |input| {
        let text = String::from_utf8_lossy(input);
        let infer = input.len() % 2 == 0;
        match (checked(&text, infer), checked(&text, infer)) {
            (Ok(plan), Ok(again)) => {
                assert_eq!(format!("{plan:?}"), format!("{again:?}"));
                let mut ids: Vec<&str> = plan.tasks.iter().map(|task| task.id.as_str()).collect();
                assert!(
                    ids.iter().all(|id| rigor_queue::rig::is_safe_name(id)),
                    "{ids:?}"
                );
                ids.sort_unstable();
                ids.dedup();
                assert_eq!(ids.len(), plan.tasks.len());
            }
            (Err(problems), Err(again)) => {
                assert!(!problems.to_string().is_empty());
                assert_eq!(problems.to_string(), again.to_string());
            }
            _ => panic!("two answers to one text"),
        }
    });
}

#[test]
fn items() {
    let sources = [
        (
            ForeachSource::Json {
                path: "a.json".into(),
                key: Some("a.b".to_owned()),
            },
            r#"{"a":{"b":[{"id":"x","n":1},{"id":"y","t":"'$(x)\n"},3,"z",null,[1]]}}"#,
        ),
        (
            ForeachSource::Json {
                path: "a.json".into(),
                key: None,
            },
            r#"[{"id":"x"},"b",7]"#,
        ),
        (
            ForeachSource::JsonLines("a.jsonl".into()),
            "{\"id\":\"x\"}\n{\"id\":\"y\",\"v\":[1]}\n",
        ),
        (
            ForeachSource::Csv("a.csv".into()),
            "id,name\nx,\"a \"\"b\"\"\n c\"\ny,d\n",
        ),
        (
            ForeachSource::Lines("a.txt".into()),
            "one\ntwo three\n# no\n\nüñ\n",
        ),
    ];
    for (source, seed) in sources {
        let read = |text: &str| parse_items(&source, ItemContent::Text(text), None);
        assert!(
            !read(seed).unwrap().is_empty(),
            "the seed of {source} is valid"
        );
        let make = |dice: &mut Dice| match dice.below(2) {
            0 => bytes(dice, seed.as_bytes()),
            _ => lines(
                dice,
                seed,
                &[
                    "\"",
                    ",",
                    "{",
                    "[",
                    "\\",
                    "99999999999999999999",
                    "\u{0}",
                    "id,id",
                    "../x",
                ],
            ),
        };
        fuzz(4_000, make, |input| {
            match read(&String::from_utf8_lossy(input)) {
                Ok(items) => {
                    for item in &items {
                        assert!(item.id.len() <= ITEM_ID_MAX_BYTES, "{:?}", item.id);
                        assert!(!item.id.contains(['/', '\0', '\n']), "{:?}", item.id);
                        assert!(item.id != "." && item.id != "..", "{:?}", item.id);
                    }
                    let count = items.len();
                    assert_eq!(group(items, 3).len(), count.div_ceil(3));
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        });
    }
    fuzz(
        4_000,
        |dice| bytes(dice, "Ein Film (2024) – Üben.mp4".as_bytes()),
        |input| {
            let id = slug(&String::from_utf8_lossy(input));
            assert!(id.len() <= ITEM_ID_MAX_BYTES && !id.contains('/'));
        },
    );
}
