//! What a plan asks of the rig that it is submitted to.

use rigor_queue::task::{Class, Vram};

use crate::draft::Draft;
use crate::fields::Field;
use crate::plan::{LlmPlacement, WorkTemplate};
use crate::problem::{Problems, did_you_mean};

/// What a plan is checked against of a rig.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RigFacts {
    /// Its agents.
    pub agents: Vec<AgentFacts>,
    /// Its catalogue of models.
    pub models: Vec<ModelFacts>,
    /// Names of its secrets.
    pub secrets: Vec<String>,
}

/// An agent of the rig.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentFacts {
    /// Its name.
    pub name: String,
    /// Whether it has a GPU.
    pub gpu: bool,
    /// The most GPU memory that one task can ever get there, MiB; none: not known.
    pub vram_budget_mb: Option<u64>,
}

/// A model of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// Its id.
    pub id: String,
    /// Whether it answers in words; false for one that answers with a vector, which a task gets
    /// only by name.
    pub chat: bool,
    /// Its capability tier, where it has one.
    pub tier: Option<u32>,
    /// GPUs that it lies on: `split_gpu`, else 1.
    pub gpus: u32,
    /// GPU memory that it needs on each of them, MiB, and how that comes about; none: not known, or
    /// not asked.
    pub vram: Option<(u64, String)>,
    /// Why its files cannot be used, with what to do; none: they can, or were not asked for.
    pub problem: Option<String>,
}

pub(crate) fn check(rig: &RigFacts, file: &str, drafts: &[Draft], problems: &mut Problems) {
    for draft in drafts {
        agents(rig, file, draft, problems);
        models(rig, file, draft, problems);
        let names = || rig.secrets.iter().map(String::as_str);
        for secret in draft
            .task
            .secrets
            .iter()
            .filter(|secret| !rig.secrets.contains(secret))
        {
            let help = did_you_mean(secret, names());
            problems.push(
                file,
                at(draft, Field::Secrets),
                format!("the rig has no secret `{secret}`"),
                help,
            );
        }
    }
}

fn agents(rig: &RigFacts, file: &str, draft: &Draft, problems: &mut Problems) {
    let task = &draft.task;
    for name in task
        .on
        .iter()
        .filter(|name| rig.agents.iter().all(|agent| agent.name != **name))
    {
        let help =
            did_you_mean(name, rig.agents.iter().map(|agent| agent.name.as_str())).or_else(|| {
                Some(format!(
                    "the rig has: {}",
                    names(rig.agents.iter().map(|a| a.name.as_str()))
                ))
            });
        problems.push(
            file,
            at(draft, Field::On),
            format!("the rig has no agent `{name}`"),
            help,
        );
    }
    if !matches!(task.class, Class::Llm | Class::Script) {
        return;
    }
    let mut able = rig
        .agents
        .iter()
        .filter(|agent| agent.gpu && (task.on.is_empty() || task.on.contains(&agent.name)))
        .peekable();
    if able.peek().is_none() {
        let unknown = |name: &String| rig.agents.iter().all(|agent| agent.name != *name);
        if !task.on.iter().any(unknown) {
            let (span, whose) = match task.on.is_empty() {
                true => (draft.span.clone(), "the rig has none"),
                false => (
                    at(draft, Field::On),
                    "none of the agents it may run on has one",
                ),
            };
            let message = format!(
                "task `{}` of class `{}` needs a GPU, and {whose}",
                task.id, task.class
            );
            problems.push(file, span, message, None);
        }
        return;
    }
    let (Vram::Fixed { mb: need }
    | Vram::Default {
        estimate_mb: Some(need),
    }) = task.vram
    else {
        return;
    };
    // One whose budget is not known might have room.
    let budgets: Option<Vec<(u64, &str)>> = able
        .map(|agent| Some((agent.vram_budget_mb?, agent.name.as_str())))
        .collect();
    if let Some((most, name)) = budgets.and_then(|budgets| budgets.into_iter().max())
        && need > most
    {
        let message = format!("{need} MB of VRAM can never be had: the most is {most} MB ({name})");
        problems.push(file, at(draft, Field::VramEstimateMb), message, None);
    }
}

fn models(rig: &RigFacts, file: &str, draft: &Draft, problems: &mut Problems) {
    let task = &draft.task;
    if task.class != Class::Llm {
        return;
    }
    let prompt = matches!(task.work, WorkTemplate::Prompt(_));
    let tier = task.min_tier.unwrap_or(0);
    let tried = task.model.as_ref();
    if let Some(model) = tried.and_then(|id| rig.models.iter().find(|model| model.id == *id)) {
        room(rig, file, draft, model, problems);
    }
    if task.placement == Some(LlmPlacement::SplitGpu) && task.model.is_none() {
        problems.push(
            file,
            at(draft, Field::LlmPlacement),
            "`llm_placement: split_gpu` without `llm_model`",
            "name a model that has `split_gpu` in rig.toml".to_owned(),
        );
    }
    if let Some(id) = &task.model {
        match rig.models.iter().find(|model| model.id == *id) {
            None => {
                let ids = || rig.models.iter().map(|model| model.id.as_str());
                let help = did_you_mean(id, ids()).or_else(|| {
                    (!rig.models.is_empty()).then(|| format!("the catalogue has: {}", names(ids())))
                });
                problems.push(
                    file,
                    at(draft, Field::LlmModel),
                    format!("no model `{id}` in the rig's catalogue"),
                    help,
                );
            }
            Some(model) if model.tier.is_some_and(|has| has < tier) => {
                let message = format!(
                    "model `{id}` is of tier {}, below {tier}",
                    model.tier.unwrap_or(0)
                );
                problems.push(file, at(draft, Field::LlmMinTier), message, None);
            }
            Some(model) => match (task.placement, model.gpus) {
                (Some(LlmPlacement::SplitGpu), 0 | 1) => problems.push(
                    file,
                    at(draft, Field::LlmPlacement),
                    format!("model `{id}` lies on one GPU"),
                    "add `split_gpu = 2` (or more) to the model in rig.toml".to_owned(),
                ),
                (Some(LlmPlacement::SingleGpu), gpus @ 2..) => problems.push(
                    file,
                    at(draft, Field::LlmPlacement),
                    format!("model `{id}` lies on {gpus} GPUs"),
                    "name another model, or leave `llm_placement` out".to_owned(),
                ),
                (Some(LlmPlacement::SplitGpu), 2..)
                | (Some(LlmPlacement::SingleGpu), 0 | 1)
                | (None, _) => {}
            },
        }
        return;
    }
    let fits = |model: &&ModelFacts| model.chat || !prompt;
    if rig.models.iter().filter(fits).count() == 0 {
        let message = format!(
            "task `{}` needs a model, and the rig's catalogue has none for it",
            task.id
        );
        problems.push(
            file,
            draft.span.clone(),
            message,
            "add a `[[model]]` to rig.toml".to_owned(),
        );
    } else if let Some(problem) = rig
        .models
        .iter()
        .filter(fits)
        .map(|model| model.problem.as_ref())
        .collect::<Option<Vec<_>>>()
        .and_then(|problems| problems.first().copied())
    {
        let message = format!(
            "task `{}` needs a model, and none of the rig's can be used: {problem}",
            task.id
        );
        problems.push(file, draft.span.clone(), message, None);
    } else if tier > 0
        && !rig
            .models
            .iter()
            .filter(fits)
            .any(|model| model.tier.is_some_and(|has| has >= tier))
    {
        let message = format!("no model of the rig's catalogue is of tier {tier} or above");
        problems.push(file, at(draft, Field::LlmMinTier), message, None);
    }
}

/// Whether the model that a task names can be loaded, and fits the GPUs that it may run on.
fn room(rig: &RigFacts, file: &str, draft: &Draft, model: &ModelFacts, problems: &mut Problems) {
    let task = &draft.task;
    if let Some(problem) = &model.problem {
        let message = format!("model `{}` cannot be loaded: {problem}", model.id);
        problems.push(file, at(draft, Field::LlmModel), message, None);
        return;
    }
    let wanted = model.gpus.max(1) as usize;
    let may = rig
        .agents
        .iter()
        .filter(|agent| agent.gpu && (task.on.is_empty() || task.on.contains(&agent.name)));
    let there = may.count();
    // That there is none at all was said.
    if there > 0 && there < wanted {
        let (field, have, help) = if task.on.is_empty() {
            let have = format!("the rig has {there}");
            (Field::LlmModel, have, "a smaller `split_gpu` in rig.toml")
        } else {
            let have = format!("`on` leaves it {there}");
            (Field::On, have, "name more agents, or leave `on` out")
        };
        let message = format!("model `{}` lies on {wanted} GPUs, and {have}", model.id);
        problems.push(file, at(draft, field), message, help.to_owned());
        return;
    }
    let Some((need, how)) = &model.vram else {
        return;
    };
    let able = rig
        .agents
        .iter()
        .filter(|agent| agent.gpu && (task.on.is_empty() || task.on.contains(&agent.name)));
    // One whose budget is not known might have room.
    let budgets: Option<Vec<(u64, &str)>> = able
        .map(|agent| Some((agent.vram_budget_mb?, agent.name.as_str())))
        .collect();
    let Some(budgets) = budgets.filter(|budgets| budgets.len() >= wanted) else {
        return;
    };
    if budgets.iter().filter(|(budget, _)| budget >= need).count() >= wanted {
        return;
    }
    let each = match wanted {
        1 => String::new(),
        wanted => format!(" on each of {wanted} GPUs"),
    };
    let have: Vec<String> = budgets
        .iter()
        .map(|(budget, name)| format!("{name} {budget} MB"))
        .collect();
    let message = format!(
        "model `{}` needs {need} MB of VRAM{each} ({how}), which the rig cannot give: tasks may use {}",
        model.id,
        have.join(", ")
    );
    let help = "give it less `context` or fewer `slots`, raise `vram_share`, or set `vram_mb` if the estimate is wrong, in rig.toml";
    problems.push(file, at(draft, Field::LlmModel), message, help.to_owned());
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn at(draft: &Draft, field: Field) -> std::ops::Range<usize> {
    draft
        .spans
        .get(&field)
        .cloned()
        .unwrap_or(draft.span.clone())
}
