//! Plans and what is wrong with them, as users see it.

use std::collections::BTreeMap;

use insta::assert_snapshot;
use rigor_plan::{
    AgentFacts, Executor, ForeachSource, MaxFailed, ModelFacts, OnFailure, Plan, Problems,
    RigFacts, Sources, check,
};
use rigor_queue::task::{Class, Vram};

/// Checks `text` in a folder that has `videos.json` and `prompts/tag.md`, for a rig of two GPUs.
fn checked(text: &str, inputs: &[(&str, &str)], infer: bool) -> Result<Plan, Problems> {
    let rig = RigFacts {
        agents: vec![
            agent("gpu-1", Some(19_660)),
            agent("gpu-2", Some(9_830)),
            agent("cpu-1", None),
        ],
        models: vec![
            model("qwen2.5:7b", true, Some(2)),
            model("nomic-embed", false, None),
            ModelFacts {
                gpus: 2,
                ..model("big", true, Some(2))
            },
        ],
        secrets: vec!["HF_TOKEN".to_owned()],
    };
    check(&Sources {
        plan_file: "plan.md",
        text,
        inputs: &inputs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect::<BTreeMap<_, _>>(),
        files: &|path| match path {
            "prompts/tag.md" => Some("Tag this:\n{FILE:out/{ITEM.id}.txt}\n".to_owned()),
            "prompts/bad.md" => Some("Fine.\nTag {ITM.title} please\n".to_owned()),
            _ => None,
        },
        exists: &|source| source.base() == "videos.json",
        rig: Some(&rig),
        infer,
    })
}

fn agent(name: &str, vram_budget_mb: Option<u64>) -> AgentFacts {
    AgentFacts {
        name: name.to_owned(),
        gpu: vram_budget_mb.is_some(),
        vram_budget_mb,
    }
}

fn model(id: &str, chat: bool, tier: Option<u32>) -> ModelFacts {
    ModelFacts {
        id: id.to_owned(),
        chat,
        tier,
        gpus: 1,
        vram: None,
        problem: None,
    }
}

/// The problems of the tasks `tasks`, as they are shown.
fn problems(tasks: &str) -> String {
    match checked(&format!("# Plan: p\n## Tasks\n{tasks}"), &[], false) {
        Ok(plan) => panic!("no problem was found in {plan:?}"),
        Err(problems) => problems.to_string(),
    }
}

const COMPLETE: &str = r#"# Plan: videos

## Goal
Every video has a transcript and tags.

## Inputs
- **LANGUAGE**: of the videos (default: `en`)
- **STYLE**: how tags are written (default: short (or so))
- **videos.json**: what to work on

## Available Scripts
### transcribe.py
- **command**: not a task

## Tasks
- **retries**: 1
- **env**: A=default
- **env**: B=default
- **on_failure**: continue

### summary
All of it.
- **depends_on**: `tag`, fetch
- **task_class**: cpu
- **command**: python scripts/sum.py --batch {BATCH_ID} --out {BATCH_PATH}/sum.json && echo "done"
- **produces**: {BATCH_PATH}/sum.json
- **on_failure**: stop

<!--
### disabled
- **command**: rm -rf
-->

### fetch
- **executor**: brain
- **command**: |
- **env**: A=own

```
### not_a_heading
- **task_class**: nonsense
```

### transcribe
- **task_class**: script
- **foreach**: videos.json:new.videos
- **command**:

  ```bash
  # {ITEM.path}
  whisper "{ITEM.path}" --language {LANGUAGE} |
    awk '{print $1}' > ${OUT:-out}/x
  ```
- **vram_policy**: fixed
- **vram_estimate_mb**: 6000
- **timeout**: 1h 30m
- **max_failed**: 10%

### tag
- **foreach**: videos.json:new.videos
- **depends_on**: transcribe_{ITEM.id}
- **prompt_file**: prompts/tag.md
- **system**: Be {STYLE}.
- **llm_model**: qwen2.5:7b
- **output**: {BATCH_PATH}/tags/{ITEM.id}.json
"#;

#[test]
fn a_complete_plan() {
    let plan = checked(COMPLETE, &[("LANGUAGE", "cs")], false).unwrap_or_else(|p| panic!("{p}"));
    assert_eq!(plan.name, "videos");
    assert_eq!(plan.goal, "Every video has a transcript and tags.");
    assert_eq!(plan.inputs["LANGUAGE"], "cs");
    assert_eq!(plan.inputs["STYLE"], "short (or so)");
    let order: Vec<&str> = plan.tasks.iter().map(|task| task.id.as_str()).collect();
    assert_eq!(order, ["fetch", "transcribe", "tag", "summary"]);
    assert_eq!(plan.on_failure, OnFailure::Continue);

    let fetch = plan.task("fetch").unwrap();
    assert_eq!(
        (fetch.class, fetch.executor),
        (Class::Brain, Executor::Brain)
    );
    assert_eq!(fetch.env.len(), 2);

    let transcribe = plan.task("transcribe").unwrap();
    let source = ForeachSource::Json {
        path: "videos.json".into(),
        key: Some("new.videos".into()),
    };
    assert_eq!(transcribe.foreach.as_ref().unwrap().source, source);
    assert_eq!(transcribe.vram, Vram::Fixed { mb: 6000 });
    assert_eq!(transcribe.timeout_s, Some(5400));
    assert_eq!(transcribe.max_failed, MaxFailed::Percent(10.0));
    assert_eq!(transcribe.retries, 1);

    let tag = plan.task("tag").unwrap();
    assert_eq!(tag.class, Class::Llm);
    assert!(tag.deps[0].per_item && tag.deps[0].task == "transcribe");
    assert_eq!(
        plan.prompt_files.keys().collect::<Vec<_>>(),
        ["prompts/tag.md"]
    );

    let summary = plan.task("summary").unwrap();
    assert_eq!(summary.on_failure, OnFailure::Stop);
    assert_eq!(
        summary
            .deps
            .iter()
            .map(|dep| dep.task.as_str())
            .collect::<Vec<_>>(),
        ["tag", "fetch"]
    );
    assert_eq!(
        plan.dependants("transcribe")
            .map(|task| task.id.as_str())
            .collect::<Vec<_>>(),
        ["tag"]
    );
}

#[test]
fn line_ends_and_a_byte_order_mark_change_nothing() {
    let unix = checked(COMPLETE, &[], false).unwrap();
    let windows = checked(
        &format!("\u{feff}{}", COMPLETE.replace('\n', "\r\n")),
        &[],
        false,
    )
    .unwrap();
    assert_eq!(unix, windows);
}

#[test]
fn every_problem_at_once() {
    let text = r#"# Plan: many
## Tasks
### fetch
- **comand**: python fetch.py
- **task_class**: cpu

### tag it
- **prompt**: Tag {ITEM.title}
- **temperature**: hot

### transcribe
- **task_class**: gpu
- **foreach**: missing.json:videos
- **command**: whisper `echo {ITEM.path}`
- **depends_on**: fetsh, transcribe
- **timeout**: 30

### a
- **task_class**: cpu
- **command**: true {NOBODY}
- **depends_on**: b
- **resume**: on
### b
- **task_class**: cpu
- **command**: true
- **depends_on**: c
- **priority**: 11
### c
- **task_class**: script
- **command**: true
- **depends_on**: a
- **vram_estimate_mb**: 90000
- **on**: gpu-3
### c
- **prompt**: x
- **llm_model**: qwen2.5:7
- **llm_placement**: two
- timeout: 5m
"#;
    let problems = checked(text, &[], false).unwrap_err();
    let shown: Vec<String> = problems.problems.iter().map(ToString::to_string).collect();
    assert_snapshot!(shown.join("\n"), @r##"
plan.md:4:5: unknown field `comand`
plan.md:7:5: `tag it` cannot be a task's id
plan.md:8:19: {ITEM.title} in a task without `foreach`
plan.md:9:20: invalid `temperature`: `hot`
plan.md:12:19: invalid `task_class`: `gpu`
plan.md:13:16: `missing.json` is not there, and no task that `transcribe` waits for produces it
plan.md:14:30: {ITEM.path} cannot be quoted here
plan.md:15:19: no task `fetsh`
plan.md:15:26: task `transcribe` depends on itself
plan.md:16:16: invalid `timeout`: `30`
plan.md:20:21: unresolved variable {NOBODY}
plan.md:21:19: tasks wait for each other: a -> b -> c -> a
plan.md:22:5: `resume: on` is not supported yet
plan.md:27:17: invalid `priority`: `11`
plan.md:33:11: the rig has no agent `gpu-3`
plan.md:34:5: a second task `c`
plan.md:36:18: no model `qwen2.5:7` in the rig's catalogue
plan.md:37:22: invalid `llm_placement`: `two`
plan.md:38:1: this looks like a field, but is not written as one
"##);
    let json = serde_json::to_value(&problems).unwrap();
    assert_eq!(json["problems"][0]["line"], 4);
}

#[test]
fn problems_are_shown_as_a_compiler_shows_them() {
    assert_snapshot!(problems("### a\n- **comand**: true\n- **task_class**: cpu\n"), @r##"
error: unknown field `comand`
 --> plan.md:4:5
  |
4 | - **comand**: true
  |     ^^^^^^
  |
  = help: did you mean `command`?
"##);
    assert_snapshot!(
        problems("### t\n- **task_class**: cpu\n- **command**:\n\n  ```\r\n  echo\r\n  é echo {NAM}\r\n  ```\n"), @r##"
error: unresolved variable {NAM}
 --> plan.md:9:10
  |
9 |   é echo {NAM}
  |          ^^^^^
  |
  = help: give it with `--set NAM=VALUE`, or write {{NAM}} for the text {NAM}
"##);
    assert_snapshot!(problems("### t\n- **prompt_file**: prompts/bad.md\n"), @r##"
error: unresolved variable {ITM.title}
 --> prompts/bad.md:2:5
  |
2 | Tag {ITM.title} please
  |     ^^^^^^^^^^^
  |
  = help: did you mean `ITEM`?
"##);
}

/// The problems of a task `t` that has these fields, a line each: place and message, then help.
fn of_task(fields: &str) -> String {
    let text = format!(
        "# Plan: p\n## Tasks\n### t\n{fields}\n### other\n- **task_class**: cpu\n- **command**: true\n"
    );
    match checked(&text, &[], false) {
        Ok(_) => "fine".to_owned(),
        Err(problems) => {
            let lines = problems.problems.iter().map(|problem| {
                let help = problem
                    .help
                    .as_ref()
                    .map_or(String::new(), |help| format!("  ({help})"));
                format!(
                    "{}:{} {}{help}",
                    problem.line, problem.column, problem.message
                )
            });
            lines.collect::<Vec<_>>().join("\n")
        }
    }
}

/// Each case and what is said about it.
fn table(cases: &[&str]) -> String {
    cases
        .iter()
        .map(|case| format!("{case}\n  => {}\n", of_task(case).replace('\n', "\n     ")))
        .collect()
}

#[test]
fn what_a_task_does() {
    assert_snapshot!(table(&[
        "- **task_class**: cpu",
        "- **task_class**: cpu\n- **command**:",
        "- **task_class**: cpu\n- **command**:\n```\ntrue",
        "- **task_class**: cpu\n- **command**: true \\\n  --more",
        "- **task_class**: cpu\n- **command**: true\n- **command**: false",
        "- **command**: true\n- **prompt**: x",
        "- **prompt_file**: prompts/none.md",
        "- **command**: true\n- **task_class**: cpu\n- **temperature**: 1\n- **output**: x",
        "- **command**: python whisper.py",
        "- **command**: curl $OPENAI_BASE_URL/models\n- **task_class**: lmm",
        "- **command**: true\n- **task_class**: meta",
        "- **command**: true\n- **task_class**: brain",
        "- **command**: true\n- **executor**: brain\n- **task_class**: cpu",
        "- **prompt**: x\n- **executor**: brain",
        "- **prompt**: x\n- **task_class**: script",
        "- **prompt**: x\n- **schema**: s.json",
        "**task_class**: cpu\n- **command:** true",
    ]), @r##"
- **task_class**: cpu
  => 3:5 task `t` does nothing  (give it a `command`, a `prompt` or a `prompt_file`)
- **task_class**: cpu
- **command**:
  => 5:5 `command` has no value  (the value stands on the same line or in a fenced block under it)
- **task_class**: cpu
- **command**:
```
true
  => 6:1 this fenced block is not closed
- **task_class**: cpu
- **command**: true \
  --more
  => 5:21 a value ends with its line  (put what has several lines into a fenced block under the field)
- **task_class**: cpu
- **command**: true
- **command**: false
  => 6:5 `command` stands twice in this task
- **command**: true
- **prompt**: x
  => 3:5 task `t` has no `task_class`  (the command looks like `cpu`: write `- **task_class**: cpu`, or accept it with --infer)
     5:5 both `command` and `prompt`  (a task does one thing: keep one)
- **prompt_file**: prompts/none.md
  => 4:20 prompt file `prompts/none.md` cannot be read  (its path is relative to the plan's folder, its text UTF-8)
- **command**: true
- **task_class**: cpu
- **temperature**: 1
- **output**: x
  => 6:5 `temperature` in a task with a command  (it is for prompts)
     7:5 `output` in a task with a command  (it gets a prompt's answer; name a command's files in `produces`)
- **command**: python whisper.py
  => 3:5 task `t` has no `task_class`  (the command looks like `script`: write `- **task_class**: script`, or accept it with --infer)
- **command**: curl $OPENAI_BASE_URL/models
- **task_class**: lmm
  => 5:19 invalid `task_class`: `lmm`  (the command looks like `llm`: write `- **task_class**: llm`, or accept it with --infer)
- **command**: true
- **task_class**: meta
  => 5:19 a plan's task cannot be of class `meta`: the brain makes those  (models are placed by need, or by `rigor load AGENT MODEL`)
- **command**: true
- **task_class**: brain
  => 5:19 `task_class: brain` without `executor: brain`  (write `- **executor**: brain` if the brain is to run it)
- **command**: true
- **executor**: brain
- **task_class**: cpu
  => 6:19 `executor: brain` with `task_class: cpu`  (leave `task_class` out, or let a worker run it)
- **prompt**: x
- **executor**: brain
  => 5:17 the brain answers no prompts  (leave `executor` out: a prompt goes to an agent that holds a model)
- **prompt**: x
- **task_class**: script
  => 5:19 a prompt in a task of class `script`  (a prompt needs the model: leave `task_class` out)
- **prompt**: x
- **schema**: s.json
  => 5:5 `schema` is not supported yet  (check the answer in a task that depends on this one)
**task_class**: cpu
- **command:** true
  => 3:5 task `t` does nothing  (give it a `command`, a `prompt` or a `prompt_file`)
     4:1 this looks like a field, but is not written as one  (a field is written `- **name**: value`)
     5:1 this looks like a field, but is not written as one  (a field is written `- **name**: value`)
"##);
}

#[test]
fn values_of_fields() {
    assert_snapshot!(table(&[
        "- **prompt**: x\n- **timeout**: soon",
        "- **prompt**: x\n- **timeout**: none",
        "- **prompt**: x\n- **backoff**: 5m..1m",
        "- **prompt**: x\n- **priority**: 11",
        "- **prompt**: x\n- **retries**: -1",
        "- **prompt**: x\n- **cpus**: 0",
        "- **prompt**: x\n- **temperature**: NaN",
        "- **prompt**: x\n- **too_long**: cut",
        "- **prompt**: x\n- **max_failed**: 3",
        "- **prompt**: x\n- **batch_size**: 3",
        "- **prompt**: x\n- **env**: 1A=b",
        "- **prompt**: x\n- **vram_policy**: fixed",
        "- **prompt**: x\n- **vram_policy**: fixed\n- **vram_estimate_mb**: lots",
        "- **prompt**: x\n- **resume**: maybe",
        "- **prompt**: x\n- **timeout**: {BATCH_ID}",
        "- **prompt**: x\n- **on_failure**: panic",
    ]), @r##"
- **prompt**: x
- **timeout**: soon
  => 5:16 invalid `timeout`: `soon`  (a duration is written `90s`, `30m`, `1h 30m` or `2d`)
- **prompt**: x
- **timeout**: none
  => fine
- **prompt**: x
- **backoff**: 5m..1m
  => 5:16 invalid `backoff`: `5m..1m`  (the first wait is the shorter one: `10s..5m`)
- **prompt**: x
- **priority**: 11
  => 5:17 invalid `priority`: `11`  (a whole number from 0 to 10)
- **prompt**: x
- **retries**: -1
  => 5:16 invalid `retries`: `-1`  (a whole number from 0 to 1000)
- **prompt**: x
- **cpus**: 0
  => 5:13 invalid `cpus`: `0`  (a whole number from 1 to 4096)
- **prompt**: x
- **temperature**: NaN
  => 5:20 invalid `temperature`: `NaN`  (a number from 0 to 5)
- **prompt**: x
- **too_long**: cut
  => 5:17 invalid `too_long`: `cut`  (`fail` or `truncate`)
- **prompt**: x
- **max_failed**: 3
  => 5:5 `max_failed` in a task without `foreach`
- **prompt**: x
- **batch_size**: 3
  => 5:5 `batch_size` in a task without `foreach`
- **prompt**: x
- **env**: 1A=b
  => 5:12 `1A=b` sets no variable  (a variable is written `NAME=value`)
- **prompt**: x
- **vram_policy**: fixed
  => 5:20 `fixed` without `vram_estimate_mb`  (add `- **vram_estimate_mb**: 6000`)
- **prompt**: x
- **vram_policy**: fixed
- **vram_estimate_mb**: lots
  => 6:25 invalid `vram_estimate_mb`: `lots`  (a whole number from 0 to 100000000)
- **prompt**: x
- **resume**: maybe
  => 5:15 invalid `resume`: `maybe`  (`on` or `off`)
- **prompt**: x
- **timeout**: {BATCH_ID}
  => 5:16 {BATCH_ID} cannot stand here  (this value is needed when the plan is checked: only inputs are known then)
- **prompt**: x
- **on_failure**: panic
  => 5:19 invalid `on_failure`: `panic`  (`continue` or `stop`)
"##);
}

#[test]
fn variables() {
    assert_snapshot!(table(&[
        "- **prompt**: {TITEL}",
        "- **prompt**: {BATCHID} {BATCH_ID.x} {BATCH_ID:x}",
        "- **prompt**: {ITEM.title}",
        "- **prompt**: {FILE} {FAILED_FILE:other} {FAILED_FILE:othr}",
        "- **task_class**: cpu\n- **command**: cat {FILE:x}",
        "- **foreach**: videos.json\n- **prompt**: {ITEMS} {ITEM} {ITEM.id}\n- **batch_size**: 5",
        "- **foreach**: videos.json\n- **prompt**: {ITEM.title} {FILE:t/{ITEM.id}.txt} {FILE:t/{ITEN.id}.txt}",
        "- **foreach**: videos.txt\n- **prompt**: {ITEM.stm} {ITEM} {ITEM.stem}",
        "- **foreach**: videos.json\n- **task_class**: cpu\n- **command**: echo `x {ITEM}` \\{ITEM}",
        "- **foreach**: videos.json\n- **task_class**: cpu\n- **command**: echo \"{ITEM}",
        "- **foreach**: videos.json\n- **task_class**: cpu\n- **command**: echo ${x:-{ITEM}} a[{ITEM}]=1",
        "- **foreach**: videos.json\n- **task_class**: cpu\n- **command**: x=$(case a in a) echo {ITEM};; esac)",
        "- **task_class**: cpu\n- **command**: awk '{print $1}' ${ITEM} {a,b} {\"A\": {}} {{TITLE}}",
    ]), @r##"
- **prompt**: {TITEL}
  => 4:15 unresolved variable {TITEL}  (give it with `--set TITEL=VALUE`, or write {{TITEL}} for the text {TITEL})
- **prompt**: {BATCHID} {BATCH_ID.x} {BATCH_ID:x}
  => 4:15 unresolved variable {BATCHID}  (did you mean `BATCH_ID`?)
     4:25 {BATCH_ID.x}: `BATCH_ID` has no fields
     4:38 {BATCH_ID:x} is not a variable  (after the colon only `raw` can stand)
- **prompt**: {ITEM.title}
  => 4:15 {ITEM.title} in a task without `foreach`  (items are known only to a task with `- **foreach**: source`)
- **prompt**: {FILE} {FAILED_FILE:other} {FAILED_FILE:othr}
  => 4:15 {FILE} is not a variable  (write {FILE:path})
     4:22 {FAILED_FILE:other}: `other` has no `foreach`
     4:42 {FAILED_FILE:othr} names no task  (did you mean `other`?)
- **task_class**: cpu
- **command**: cat {FILE:x}
  => 5:20 {FILE:x} outside a prompt  (a command reads a file itself: `$(cat path)`, or the path as an argument)
- **foreach**: videos.json
- **prompt**: {ITEMS} {ITEM} {ITEM.id}
- **batch_size**: 5
  => 5:23 {ITEM} in a task for several items  (with `batch_size` use {ITEMS} (JSON), {ITEMS_FILE} or {ITEM.id})
- **foreach**: videos.json
- **prompt**: {ITEM.title} {FILE:t/{ITEM.id}.txt} {FILE:t/{ITEN.id}.txt}
  => 5:59 unresolved variable {ITEN.id}  (did you mean `ITEM`?)
- **foreach**: videos.txt
- **prompt**: {ITEM.stm} {ITEM} {ITEM.stem}
  => 4:16 `videos.txt` is not there, and no task that `t` waits for produces it  (paths are relative to the plan's folder)
     5:15 items of this source have no `stm`  (did you mean `stem`?)
- **foreach**: videos.json
- **task_class**: cpu
- **command**: echo `x {ITEM}` \{ITEM}
  => 6:24 {ITEM} cannot be quoted here  (it stands within backticks; use $(...))
     6:33 {ITEM} cannot be quoted here  (a backslash stands directly before it)
- **foreach**: videos.json
- **task_class**: cpu
- **command**: echo "{ITEM}
  => 6:22 {ITEM} cannot be quoted here  (the command has a quote, parenthesis or here-document that is not closed)
- **foreach**: videos.json
- **task_class**: cpu
- **command**: echo ${x:-{ITEM}} a[{ITEM}]=1
  => 6:26 {ITEM} cannot be quoted here  (it stands within ${...}; assign it to a shell variable first)
     6:36 {ITEM} cannot be quoted here  (it stands in an array's index, which bash evaluates)
- **foreach**: videos.json
- **task_class**: cpu
- **command**: x=$(case a in a) echo {ITEM};; esac)
  => 6:38 {ITEM} cannot be quoted here  (a `case` stands within $(...) before it; move it into a script)
- **task_class**: cpu
- **command**: awk '{print $1}' ${ITEM} {a,b} {"A": {}} {{TITLE}}
  => fine
"##);
}

#[test]
fn tasks_among_each_other() {
    assert_snapshot!(table(&[
        "- **prompt**: x\n- **depends_on**: othr",
        "- **prompt**: x\n- **depends_on**: other, `other`, none",
        "- **prompt**: x\n- **depends_on**: t",
        "- **prompt**: x\n- **depends_on**: other_{ITEM.id}",
        "- **prompt**: x\n- **foreach**: videos.json\n- **depends_on**: other_{ITEM.id}",
        "- **prompt**: x\n- **foreach**: videos.json\n- **depends_on**: u_{ITEM.id}\n### u\n- **prompt**: x\n- **foreach**: videos.json:new",
        "- **prompt**: x\n- **foreach**: videos.json\n- **depends_on**: u_{ITEM.id}\n### u\n- **prompt**: x\n- **foreach**: videos.json\n- **batch_size**: 2",
        "- **prompt**: x\n- **depends_on**: u\n### u\n- **prompt**: x\n- **depends_on**: v\n### v\n- **prompt**: x\n- **depends_on**: t, other",
        "- **prompt**: x\n### t\n- **prompt**: y",
        "- **prompt**: x\n### -u\n- **prompt**: y",
    ]), @r##"
- **prompt**: x
- **depends_on**: othr
  => 5:19 no task `othr`  (did you mean `other`?)
- **prompt**: x
- **depends_on**: other, `other`, none
  => fine
- **prompt**: x
- **depends_on**: t
  => 5:19 task `t` depends on itself
- **prompt**: x
- **depends_on**: other_{ITEM.id}
  => 5:19 `other_{ITEM.id}` in a task without `foreach`  (to wait for all of it, write `other`)
- **prompt**: x
- **foreach**: videos.json
- **depends_on**: other_{ITEM.id}
  => 6:19 `other` has no `foreach`, so no instance for an item  (to wait for all of it, write `other`)
- **prompt**: x
- **foreach**: videos.json
- **depends_on**: u_{ITEM.id}
### u
- **prompt**: x
- **foreach**: videos.json:new
  => 6:19 `u` takes its items from `videos.json:new`, this task from `videos.json`  (to wait for all of it, write `u`)
- **prompt**: x
- **foreach**: videos.json
- **depends_on**: u_{ITEM.id}
### u
- **prompt**: x
- **foreach**: videos.json
- **batch_size**: 2
  => 6:19 `u` takes 2 items at a time, this task 1  (to wait for all of it, write `u`)
- **prompt**: x
- **depends_on**: u
### u
- **prompt**: x
- **depends_on**: v
### v
- **prompt**: x
- **depends_on**: t, other
  => 5:19 tasks wait for each other: t -> u -> v -> t  (each depends on the one after the arrow)
- **prompt**: x
### t
- **prompt**: y
  => 5:5 a second task `t`  (the first is in line 3)
- **prompt**: x
### -u
- **prompt**: y
  => 5:5 `-u` cannot be a task's id  (an id has letters, digits, `_` and `-`, does not begin with `-`, and has at most 64 bytes)
"##);
}

#[test]
fn sources_of_items() {
    let made_by = |line: &str| {
        format!(
            "- **prompt**: {{ITEM}}\n- **foreach**: list.json:a\n- **depends_on**: m\n### m\n- **task_class**: cpu\n{line}"
        )
    };
    assert_snapshot!(table(&[
        "- **prompt**: x\n- **foreach**: videos",
        "- **prompt**: x\n- **foreach**: videos.json:",
        "- **prompt**: x\n- **foreach**: glob:",
        "- **prompt**: x\n- **foreach**: glob:video/[*.mp4",
        "- **prompt**: x\n- **foreach**: list.json",
        "- **prompt**: x\n- **foreach**: list.json\n### m\n- **task_class**: cpu\n- **command**: echo > list.json",
        "- **prompt**: x\n- **foreach**: {BATCH_PATH}/list.json",
        "- **prompt**: x\n- **foreach**: {BATCH_PATH}/list.json\n- **depends_on**: other",
        "- **prompt**: x\n- **foreach**: {ITEM}.json",
        &made_by("- **command**: python make.py"),
        &made_by("- **command**: python make.py > list.json"),
        &made_by("- **command**: python make.py\n- **produces**: *.json"),
        "- **prompt**: x\n- **foreach**: glob:frames/*.png\n- **depends_on**: m\n### m\n- **task_class**: cpu\n- **command**: ffmpeg x frames/%d.png",
    ]), @r##"
- **prompt**: x
- **foreach**: videos
  => 5:16 `videos` is not a source of items  (a source is `path.json:key`, `path.jsonl`, `path.csv`, `path.txt` or `glob:pattern`)
- **prompt**: x
- **foreach**: videos.json:
  => 5:16 `videos.json:` is not a source of items  (the key after `.json:` is dotted: `index.json:videos.new`)
- **prompt**: x
- **foreach**: glob:
  => 5:16 `glob:` is not a source of items  (`glob:` needs a pattern: `glob:videos/*.mp4`)
- **prompt**: x
- **foreach**: glob:video/[*.mp4
  => 5:16 `glob:video/[*.mp4` is not a source of items  (error parsing glob 'video/[*.mp4': unclosed character class; missing ']')
- **prompt**: x
- **foreach**: list.json
  => 5:16 `list.json` is not there, and no task that `t` waits for produces it  (paths are relative to the plan's folder)
- **prompt**: x
- **foreach**: list.json
### m
- **task_class**: cpu
- **command**: echo > list.json
  => 5:16 `list.json` is not there, and no task that `t` waits for produces it  (`m` names it: add `- **depends_on**: m`)
- **prompt**: x
- **foreach**: {BATCH_PATH}/list.json
  => 5:16 `{BATCH_PATH}/list.json` is not there, and no task that `t` waits for produces it  (the batch's folder is new: depend on the task that writes the file)
- **prompt**: x
- **foreach**: {BATCH_PATH}/list.json
- **depends_on**: other
  => fine
- **prompt**: x
- **foreach**: {ITEM}.json
  => 5:16 `{ITEM}.json` names an item before there is one
- **prompt**: {ITEM}
- **foreach**: list.json:a
- **depends_on**: m
### m
- **task_class**: cpu
- **command**: python make.py
  => 5:16 `list.json` is not there, and no task that `t` waits for produces it  (if `m` writes it, say so there: `- **produces**: list.json`)
- **prompt**: {ITEM}
- **foreach**: list.json:a
- **depends_on**: m
### m
- **task_class**: cpu
- **command**: python make.py > list.json
  => fine
- **prompt**: {ITEM}
- **foreach**: list.json:a
- **depends_on**: m
### m
- **task_class**: cpu
- **command**: python make.py
- **produces**: *.json
  => fine
- **prompt**: x
- **foreach**: glob:frames/*.png
- **depends_on**: m
### m
- **task_class**: cpu
- **command**: ffmpeg x frames/%d.png
  => fine
"##);
}

#[test]
fn what_the_rig_has() {
    assert_snapshot!(table(&[
        "- **prompt**: x\n- **on**: gpu-11",
        "- **prompt**: x\n- **on**: cpu-1",
        "- **task_class**: script\n- **command**: true\n- **vram_estimate_mb**: 10000\n- **on**: gpu-2",
        "- **task_class**: script\n- **command**: true\n- **vram_estimate_mb**: 10000",
        "- **prompt**: x\n- **llm_model**: qwen2.5:7",
        "- **prompt**: x\n- **llm_model**: nomic-embed",
        "- **prompt**: x\n- **llm_min_tier**: 3",
        "- **prompt**: x\n- **llm_model**: qwen2.5:7b\n- **llm_min_tier**: 3",
        "- **prompt**: x\n- **llm_placement**: split_gpu",
        "- **prompt**: x\n- **llm_model**: qwen2.5:7b\n- **llm_placement**: split_gpu",
        "- **prompt**: x\n- **llm_model**: qwen2.5:7b\n- **llm_placement**: single_gpu",
        "- **prompt**: x\n- **llm_model**: big\n- **llm_placement**: split_gpu",
        "- **prompt**: x\n- **llm_model**: big\n- **llm_placement**: single_gpu",
        "- **prompt**: x\n- **secrets**: HF_TOKN",
    ]), @r##"
- **prompt**: x
- **on**: gpu-11
  => 5:11 the rig has no agent `gpu-11`  (did you mean `gpu-1`?)
- **prompt**: x
- **on**: cpu-1
  => 5:11 task `t` of class `llm` needs a GPU, and none of the agents it may run on has one
- **task_class**: script
- **command**: true
- **vram_estimate_mb**: 10000
- **on**: gpu-2
  => 6:25 10000 MB of VRAM can never be had: the most is 9830 MB (gpu-2)
- **task_class**: script
- **command**: true
- **vram_estimate_mb**: 10000
  => fine
- **prompt**: x
- **llm_model**: qwen2.5:7
  => 5:18 no model `qwen2.5:7` in the rig's catalogue  (did you mean `qwen2.5:7b`?)
- **prompt**: x
- **llm_model**: nomic-embed
  => fine
- **prompt**: x
- **llm_min_tier**: 3
  => 5:21 no model of the rig's catalogue is of tier 3 or above
- **prompt**: x
- **llm_model**: qwen2.5:7b
- **llm_min_tier**: 3
  => 6:21 model `qwen2.5:7b` is of tier 2, below 3
- **prompt**: x
- **llm_placement**: split_gpu
  => 5:22 `llm_placement: split_gpu` without `llm_model`  (name a model that has `split_gpu` in rig.toml)
- **prompt**: x
- **llm_model**: qwen2.5:7b
- **llm_placement**: split_gpu
  => 6:22 model `qwen2.5:7b` lies on one GPU  (add `split_gpu = 2` (or more) to the model in rig.toml)
- **prompt**: x
- **llm_model**: qwen2.5:7b
- **llm_placement**: single_gpu
  => fine
- **prompt**: x
- **llm_model**: big
- **llm_placement**: split_gpu
  => fine
- **prompt**: x
- **llm_model**: big
- **llm_placement**: single_gpu
  => 6:22 model `big` lies on 2 GPUs  (name another model, or leave `llm_placement` out)
- **prompt**: x
- **secrets**: HF_TOKN
  => 5:16 the rig has no secret `HF_TOKN`  (did you mean `HF_TOKEN`?)
"##);
}

#[test]
fn the_plan_as_a_whole() {
    let of = |text: &str, inputs: &[(&str, &str)]| match checked(text, inputs, false) {
        Ok(_) => "fine".to_owned(),
        Err(problems) => problems
            .problems
            .iter()
            .map(|p| format!("{p}  {:?}\n", p.help))
            .collect(),
    };
    let tasks = "## Tasks\n### t\n- **prompt**: {NAME}\n";
    assert_snapshot!(of("", &[]), @r##"
plan.md:1:1: the plan has no name  Some("begin it with `# Plan: <name>`")
plan.md:1:1: the plan has no tasks  Some("a task is a heading `### <id>` under `## Tasks`")
"##);
    assert_snapshot!(of("# Plan: p\n\0", &[]), @"plan.md:2:1: a NUL byte: this is not a text file  None");
    assert_snapshot!(of(&"x".repeat((1 << 20) + 1), &[]), @"plan.md:1:1: 1048577 bytes; at most 1048576 are read  None");
    assert_snapshot!(of(&format!("# Plan: p\n## Goal\n- **type**: target_count\n{tasks}"), &[("NAME", "x")]), @r##"plan.md:3:13: goal-driven plans (`type: target_count`) are not supported yet  Some("state the goal in prose and list the work with `foreach`")"##);
    assert_snapshot!(of(&format!("# Plan: p\n## Inputs\n- **NAME**: words\n{tasks}"), &[]), @r##"plan.md:6:15: input `NAME` has no value  Some("give one with `--set NAME=VALUE`, or write `(default: VALUE)` under `## Inputs`")"##);
    assert_snapshot!(of(&format!("# Plan: p\n## Inputs\n- **NAME**: words (default: x)\n- **ITEM**: y\n{tasks}"), &[("NAM", "x")]), @r##"
plan.md:3:5: a value was given for `NAM`, which the plan does not use  Some("did you mean `NAME`?")
plan.md:4:5: `ITEM` is a variable of Rigor's own  Some("name the input otherwise")
"##);
    assert_snapshot!(of(&format!("# Plan: p\n{tasks}{tasks}"), &[("NAME", "{ITEM}")]), @r##"
plan.md:5:4: a second `## Tasks`  Some("put all tasks under one heading")
plan.md:6:5: a second task `t`  Some("the first is in line 3")
"##);
    assert_snapshot!(of(&format!("# Plan: p\n{tasks}<!-- open\n"), &[("NAME", "{ITEM}")]), @"plan.md:5:1: this comment is not closed  None");
}

#[test]
fn more_tasks_than_a_plan_may_have_are_refused() {
    let task = |n: usize| format!("### t{n}\n- **task_class**: cpu\n- **command**: `true`\n");
    let tasks: String = (0..10_001).map(task).collect();
    let text = format!("# Plan: p\n## Tasks\n{tasks}");
    let said = checked(&text, &[], false).unwrap_err();
    let said: Vec<String> = said.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        ["plan.md:30003:5: 10001 tasks; a plan has at most 10000"]
    );
}

#[test]
fn a_class_can_be_inferred_on_request() {
    let text = "# Plan: p\n## Tasks\n### t\n- **command**: whisper a.mp3\n";
    assert!(checked(text, &[], false).is_err());
    assert_eq!(
        checked(text, &[], true).unwrap().tasks[0].class,
        Class::Script
    );
}

#[test]
fn a_default_that_is_wrong_is_wrong_once() {
    let tasks: String = (0..50)
        .map(|n| format!("### t{n}\n- **prompt**: x\n"))
        .collect();
    let problems = checked(
        &format!("# Plan: p\n## Tasks\n- **retries**: many\n{tasks}"),
        &[],
        false,
    )
    .unwrap_err();
    assert_eq!(problems.problems.len(), 1, "{problems}");
}

#[test]
fn a_model_for_more_gpus_than_the_task_may_use_is_a_problem() {
    let said = problems("### t\n- **prompt**: x\n- **llm_model**: big\n- **on**: gpu-1\n");
    assert!(
        said.contains("model `big` lies on 2 GPUs, and `on` leaves it 1"),
        "{said}"
    );
    let of = |gpus: u32, problem: Option<&str>, named: &str| {
        let rig = RigFacts {
            agents: vec![agent("gpu-1", Some(1)), agent("gpu-2", Some(1))],
            models: vec![ModelFacts {
                gpus,
                problem: problem.map(str::to_owned),
                ..model("m", true, None)
            }],
            secrets: Vec::new(),
        };
        let text = format!("# Plan: p\n## Tasks\n### t\n- **prompt**: x\n{named}");
        check(&Sources {
            plan_file: "plan.md",
            text: &text,
            inputs: &BTreeMap::new(),
            files: &|_| None,
            exists: &|_| true,
            rig: Some(&rig),
            infer: false,
        })
        .map_err(|problems| problems.to_string())
    };
    let named = "- **llm_model**: m\n";
    assert!(of(2, None, named).is_ok());
    let said = of(4, None, named).unwrap_err();
    assert!(
        said.contains("model `m` lies on 4 GPUs, and the rig has 2"),
        "{said}"
    );
    for named in [named, ""] {
        let said = of(1, Some("/models/m.gguf is not there"), named).unwrap_err();
        assert!(said.contains("/models/m.gguf is not there"), "{said}");
    }
}

#[test]
fn a_model_for_a_task_that_gets_none_is_a_problem() {
    for field in [
        "llm_model**: qwen2.5:7b",
        "llm_min_tier**: 1",
        "llm_placement**: single_gpu",
    ] {
        let name = field.split_once('*').unwrap().0;
        for class in ["cpu", "script"] {
            let said = problems(&format!(
                "### t\n- **task_class**: {class}\n- **command**: true\n- **{field}\n"
            ));
            let words = format!("`{name}` on a task of class {class}: it gets no model");
            assert!(said.contains(&words), "{said}");
        }
        // What the plan says for all of its tasks is for those that have a model.
        let text = format!(
            "# Plan: p\n## Tasks\n- **{field}\n### t\n- **task_class**: cpu\n- **command**: true\n"
        );
        assert!(checked(&text, &[], false).is_ok(), "{field}");
    }
}

#[test]
fn a_model_that_the_rig_has_no_room_for_is_a_problem_with_its_numbers() {
    let of = |need_mb: u64, gpus: u32, on: &str, third: Option<u64>| {
        let rig = RigFacts {
            agents: vec![
                agent("gpu-1", Some(20_000)),
                agent("gpu-2", Some(10_000)),
                AgentFacts {
                    gpu: true,
                    ..agent("gpu-3", third)
                },
            ],
            models: vec![ModelFacts {
                gpus,
                vram: Some((need_mb, "8000 MB weights + more".to_owned())),
                ..model("m", true, None)
            }],
            secrets: Vec::new(),
        };
        let text = format!("# Plan: p\n## Tasks\n### t\n- **prompt**: x\n- **llm_model**: m\n{on}");
        check(&Sources {
            plan_file: "plan.md",
            text: &text,
            inputs: &std::collections::BTreeMap::new(),
            files: &|_| None,
            exists: &|_| true,
            rig: Some(&rig),
            infer: false,
        })
        .map_err(|problems| problems.to_string())
    };
    assert!(of(20_000, 1, "", Some(10_000)).is_ok());
    let said = of(20_001, 1, "", Some(10_000)).unwrap_err();
    assert!(
        said.contains(
            "model `m` needs 20001 MB of VRAM (8000 MB weights + more), which the rig cannot give: \
             tasks may use gpu-1 20000 MB, gpu-2 10000 MB, gpu-3 10000 MB"
        ),
        "{said}"
    );
    assert!(of(20_001, 1, "", None).is_ok(), "gpu-3 may have room");
    assert!(of(15_000, 1, "- **on**: gpu-2\n", Some(1)).is_err());
    assert!(of(10_000, 3, "", Some(10_000)).is_ok());
    let said = of(10_001, 3, "", Some(10_000)).unwrap_err();
    assert!(said.contains("on each of 3 GPUs"), "{said}");
}
