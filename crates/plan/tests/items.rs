//! Items of every kind of source, and tasks made for them.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use rigor_plan::{
    BatchVars, ForeachSource, ItemContent, Plan, Sources, check, failed_file, foreach_source,
    group, instantiate, parse_items, slug,
};
use rigor_queue::name::TaskId;
use rigor_queue::task::{Item, PromptPart, TaskSpec, Work};
use serde_json::json;

fn json_source(key: Option<&str>) -> ForeachSource {
    ForeachSource::Json {
        path: "v.json".into(),
        key: key.map(str::to_owned),
    }
}

fn ids(source: &ForeachSource, text: &str) -> Result<Vec<String>, String> {
    parse_items(source, ItemContent::Text(text), None)
        .map(|items| items.into_iter().map(|item| item.id).collect())
        .map_err(|error| error.to_string())
}

#[test]
fn ids_of_items() {
    let lines = ForeachSource::Lines("v.txt".into());
    let jsonl = ForeachSource::JsonLines("v.jsonl".into());
    let csv = ForeachSource::Csv("v.csv".into());
    let key = json_source(Some("new.videos"));
    for (source, text, expected) in [
        (
            &json_source(None),
            r#"[{"id":"-dQw_4"},{"id":7},{"x":1},"s"]"#,
            Ok("-dQw_4 7 2 3"),
        ),
        (&key, r#"{"new":{"videos":[{"id":"a"}]}}"#, Ok("a")),
        (
            &key,
            r#"{"new":{"video":[]}}"#,
            Err("`new` has no `videos`: did you mean `video`?"),
        ),
        (
            &key,
            r#"{"new":[1]}"#,
            Err("`new` is a list, and has no `videos`"),
        ),
        (
            &json_source(None),
            r#"{"a":[1],"b":2}"#,
            Err("(it has `a`, `b`)"),
        ),
        (&json_source(None), "[1,", Err("not JSON: EOF")),
        (&json_source(None), "[]", Ok("")),
        (
            &json_source(None),
            r#"[{"id":"a/b"}]"#,
            Err("item 0: its id \"a/b\" holds a `/`"),
        ),
        (
            &json_source(None),
            r#"[{"id":".."}]"#,
            Err("names a folder"),
        ),
        (
            &json_source(None),
            r#"[{"id":"a\u0000"}]"#,
            Err("control character"),
        ),
        (&json_source(None), r#"[{"id":""}]"#, Err("is empty")),
        (
            &json_source(None),
            r#"[{"id":[]}]"#,
            Err("its `id` is a list"),
        ),
        (
            &json_source(None),
            r#"[{"id":"a"},{"id":"b"},{"id":"a"}]"#,
            Err("stand twice: `a` (items 0 and 2)"),
        ),
        (
            &json_source(None),
            r#"[{"id":"1"},{"x":0}]"#,
            Err("stand twice: `1`"),
        ),
        (&jsonl, "{\"id\":\"x\"}\r\n\n3\n", Ok("x 1")),
        (&jsonl, "1\n{", Err("line 2: not JSON")),
        (&csv, "id,name\na,\"x,\ny\"\nb,z\n", Ok("a b")),
        (&csv, "name\nx\ny\n", Ok("0 1")),
        (&csv, "id,name\na\n", Err("record")),
        (&csv, "id,id\na,b\n", Err("two columns `id`")),
        (
            &lines,
            "\u{feff}videos/a b.mp4\r\n\n./c.mp4\n***\n",
            Ok("videos_a_b.mp4 c.mp4 2"),
        ),
        (&lines, "a b\na_b\n", Err("`a_b` (of \"a b\" and \"a_b\")")),
    ] {
        match (ids(source, text), expected) {
            (Ok(ids), Ok(expected)) => assert_eq!(ids.join(" "), expected, "of {text:?}"),
            (Err(error), Err(expected)) => {
                assert!(error.contains(expected), "of {text:?}: {error}")
            }
            (got, _) => panic!("{text:?} gave {got:?}, not {expected:?}"),
        }
    }
}

#[test]
fn more_items_than_the_queue_is_built_for_are_refused() {
    let text = format!("[{}0]", "0,".repeat(1_000_000));
    let error = ids(&json_source(None), &text).unwrap_err();
    assert!(
        error.contains("1000001 items; at most 1000000"),
        "{}",
        &error[..error.len().min(200)]
    );
}

#[test]
fn items_of_a_pattern() {
    let paths = ["in/a.tar.gz".to_owned(), "in/.hidden".to_owned()];
    let source = ForeachSource::Glob("in/*".into());
    let items = parse_items(&source, ItemContent::Paths(&paths), None).unwrap();
    assert_eq!(
        items[0].value,
        json!({"id": "in_a.tar.gz", "path": "in/a.tar.gz", "name": "a.tar.gz", "stem": "a.tar"})
    );
    assert_eq!(items[1].value["stem"], ".hidden");
    assert_eq!(
        parse_items(&source, ItemContent::Paths(&paths), Some(1))
            .unwrap()
            .len(),
        1
    );
    assert_eq!(source.base(), "in");
}

#[test]
fn groups() {
    let items = parse_items(&json_source(None), ItemContent::Text("[5,6,7,8,9]"), None).unwrap();
    assert_eq!(group(items.clone(), 1), items);
    let groups = group(items, 2);
    let ids: Vec<&str> = groups.iter().map(|group| group.id.as_str()).collect();
    assert_eq!(ids, ["0-1", "2-3", "4-4"]);
    assert_eq!(
        (&groups[1].value, &groups[1].members),
        (&json!([7, 8]), &vec!["2".to_owned(), "3".to_owned()])
    );
}

fn plan(tasks: &str) -> Plan {
    let used = tasks
        .contains("{OUT}")
        .then(|| ("OUT".to_owned(), "{ITEM.id}".to_owned()));
    check(&Sources {
        plan_file: "plan.md",
        text: &format!("# Plan: p\n## Tasks\n{tasks}"),
        inputs: &used.into_iter().collect(),
        files: &|_| None,
        exists: &|_| true,
        rig: None,
        infer: true,
    })
    .unwrap_or_else(|problems| panic!("{problems}"))
}

fn vars() -> BatchVars<'static> {
    BatchVars {
        batch_id: "b1",
        batch_path: Path::new("/p/history/b1"),
        plan_path: Path::new("/p"),
        created: jiff::Timestamp::UNIX_EPOCH,
    }
}

fn made(plan: &Plan, task: &str, item: Option<&Item>) -> TaskSpec {
    instantiate(
        plan,
        plan.task(task).expect("the plan has it"),
        item,
        &vars(),
    )
    .expect("it fits")
}

#[test]
fn a_task_made_for_an_item() {
    let plan = plan(
        "### t\n- **foreach**: {BATCH_PATH}/v.json:videos\n- **depends_on**: m\n- **prompt**: {OUT}: {ITEM.meta.tags} {ITEM.meta.tags.0} {FILE:t/{ITEM.id}.txt} {{ITEM}}{ITEM.none}.\n\
         - **output**: {BATCH_PATH}/{ITEM.id}.json\n- **env**: N={ITEM.n}\n- **requires**: t/{ITEM.id}.txt, `b/*.{x,y}`\n\
         ### m\n- **command**: make {PLAN_PATH} {BATCH_ID}\n\
         ### report\n- **command**: cat {FAILED_FILE:t}\n- **depends_on**: t\n",
    );
    let item = Item {
        id: "v7".to_owned(),
        value: json!({"id": "v7", "n": 3, "none": null, "meta": {"tags": ["{BATCH_ID}", "b"]}}),
        members: Vec::new(),
    };
    let spec = made(&plan, "t", Some(&item));
    assert_eq!(spec.id, TaskId::derive("b1", "t", Some("v7")));
    assert_eq!(
        (spec.name.as_str(), spec.task.as_str(), spec.plan.as_str()),
        ("t_v7", "t", "p")
    );
    assert_eq!(spec.env["N"], "3");
    assert_eq!(spec.requires, ["t/v7.txt", "b/*.{x,y}"]);
    let Work::Prompt(prompt) = spec.work else {
        panic!("{:?}", spec.work)
    };
    let expected = [
        PromptPart::Text("{ITEM.id}: [\"{BATCH_ID}\",\"b\"] {BATCH_ID} ".to_owned()),
        PromptPart::File("t/v7.txt".to_owned()),
        PromptPart::Text(" {ITEM}.".to_owned()),
    ];
    assert_eq!(prompt.user, expected);
    assert_eq!(prompt.output.as_deref(), Some("/p/history/b1/v7.json"));

    let source = foreach_source(plan.task("t").unwrap(), &vars())
        .unwrap()
        .unwrap();
    assert_eq!(source.to_string(), "/p/history/b1/v.json:videos");
    let Work::Command { command } = made(&plan, "m", None).work else {
        panic!("no command")
    };
    assert_eq!(command, "make '/p' 'b1'");
    let Work::Command { command } = made(&plan, "report", None).work else {
        panic!("no command")
    };
    assert_eq!(
        command,
        format!(
            "cat '{}'",
            failed_file(Path::new("/p/history/b1"), "t").display()
        )
    );

    let bare = Item {
        value: json!({"id": "v7", "mta": 1}),
        ..item
    };
    let error = instantiate(&plan, plan.task("t").unwrap(), Some(&bare), &vars()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "task `t_v7`: {ITEM.meta.tags} names a field that the item does not have; did you mean `mta`?"
    );
    assert!(instantiate(&plan, plan.task("t").unwrap(), None, &vars()).is_err());
    assert!(instantiate(&plan, plan.task("m").unwrap(), Some(&bare), &vars()).is_err());
}

#[test]
fn a_task_made_for_several_items() {
    let plan = plan(
        "### t\n- **foreach**: v.json\n- **batch_size**: 2\n- **command**: tag {ITEMS} {ITEMS_FILE} {ITEM.id}\n",
    );
    let items = parse_items(
        &json_source(None),
        ItemContent::Text("[\"it's\",2,3]"),
        None,
    )
    .unwrap();
    let groups = group(items, 2);
    let Work::Command { command } = made(&plan, "t", Some(&groups[0])).work else {
        panic!("no command")
    };
    assert_eq!(
        command,
        r#"tag '["it'\''s",2]' '/p/history/b1/items/t_0-1.json' '0-1'"#
    );
}

#[test]
fn an_item_of_lines_is_its_line() {
    let plan = plan("### t\n- **foreach**: v.txt\n- **command**: tag {ITEM} {ITEM.stem}\n");
    let source = ForeachSource::Lines("v.txt".into());
    let items = parse_items(&source, ItemContent::Text("a/b c.mp4\n"), None).unwrap();
    let Work::Command { command } = made(&plan, "t", Some(&items[0])).work else {
        panic!("no command")
    };
    assert_eq!(command, "tag 'a/b c.mp4' 'b c'");
}

proptest! {
    #[test]
    fn garbage_never_panics(
        text in "(# Plan: |## Tasks\n|### |- \\*\\*|command|foreach|\\*\\*: |```\n|~~~\r\n|<!--|-->|\\{ITEM|\\{\\{|\\}|\\.json:|a|\n|\"|'|\\$\\(|<<E|`|\u{e9}|depends_on|, |PDF_X|[ \t-~]){0,60}"
    ) {
        let sources = Sources {
            plan_file: "plan.md",
            text: &text,
            inputs: &BTreeMap::new(),
            files: &|_| Some(text.clone()),
            exists: &|_| true,
            rig: None,
            infer: true,
        };
        if let Err(problems) = check(&sources) {
            prop_assert!(!problems.problems.is_empty());
            let lines = text.split('\n').count();
            prop_assert!(problems.problems.iter().all(|p| p.line >= 1 && p.line <= lines));
            prop_assert!(!problems.render(true).is_empty());
        }
    }

    #[test]
    fn items_of_garbage_never_panic(text in "[\\[\\]{}\":,a-c\n\u{e9} ]{0,40}") {
        for source in [
            json_source(Some("a.b")), json_source(None), ForeachSource::JsonLines("x".into()),
            ForeachSource::Csv("x".into()), ForeachSource::Lines("x".into()),
        ] {
            let _ = parse_items(&source, ItemContent::Text(&text), None);
        }
    }

    #[test]
    fn slugs_are_safe_in_file_names(text in "\\PC{0,200}") {
        let slug = slug(&text);
        prop_assert!(slug.len() <= 100 && !slug.starts_with('.'));
        prop_assert!(!slug.chars().any(|c| c == '/' || c.is_control() || c.is_whitespace()));
    }
}
