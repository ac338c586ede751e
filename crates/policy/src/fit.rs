//! Whether any agent of the rig can ever run a task.

use rigor_queue::task::Class;

/// Readings of a GPU are some time apart, so a peak may be missed: so much is added to a measured
/// one, percent.
pub const PEAK_MARGIN_PERCENT: u64 = 10;

/// What a task needs, as far as it is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Needs {
    /// Its class.
    pub class: Class,
    /// CPU slots.
    pub cpus: u32,
    /// GPU memory of a script task, MiB: its estimate or measured peak. None: not known yet, it
    /// runs alone on any GPU.
    pub vram_mb: Option<u64>,
    /// The model of an llm task.
    pub model: Option<ModelNeed>,
    /// Agents that it may run on; empty: any.
    pub on: Vec<String>,
}

/// What the model of an llm task needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelNeed {
    /// Its id.
    pub id: String,
    /// What it takes of each of its GPUs, MiB, where that is known.
    pub on_each_mb: Option<u64>,
    /// GPUs that it is spread over, at least 1.
    pub gpus: u32,
    /// How the memory comes about, to follow the number: ` (4300 MB weights + ...)`, or nothing.
    pub aside: String,
}

/// An agent of the rig, running or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    /// Its name.
    pub name: String,
    /// It has a GPU.
    pub gpu: bool,
    /// What tasks and models may use of its GPU, MiB; none until it has said so once.
    pub budget_mb: Option<u64>,
    /// Its CPU slots.
    pub cpu_slots: u32,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Some agent can.
    Fits,
    /// No agent that is known can, but not all have told their memory yet.
    NotKnown,
    /// None ever can, with the numbers.
    Never(String),
}

/// Looks for an agent that could run it if everything else were idle.
pub fn fit(needs: &Needs, agents: &[Agent]) -> Fit {
    // The brain runs those itself, and meta tasks name their agents.
    if matches!(needs.class, Class::Brain | Class::Meta) {
        return Fit::Fits;
    }
    let mut left: Vec<&Agent> = agents
        .iter()
        .filter(|agent| needs.on.is_empty() || needs.on.contains(&agent.name))
        .collect();
    if left.is_empty() {
        return Fit::Never(if needs.on.is_empty() {
            "rig.toml has no agent".to_owned()
        } else {
            format!("only for {}, which is not in rig.toml", needs.on.join(", "))
        });
    }
    let only = if needs.on.is_empty() {
        String::new()
    } else {
        format!(" of {}", needs.on.join(", "))
    };
    let on_gpu = matches!(needs.class, Class::Script | Class::Llm);
    if on_gpu {
        left.retain(|agent| agent.gpu);
        if left.is_empty() {
            return Fit::Never(if needs.on.is_empty() {
                "needs a GPU, no agent has one".to_owned()
            } else {
                format!("needs a GPU, only for {} without one", needs.on.join(", "))
            });
        }
    }
    if matches!(needs.class, Class::Script | Class::Cpu) {
        let most = left.iter().max_by_key(|agent| agent.cpu_slots);
        if let Some(most) = most.filter(|most| most.cpu_slots < needs.cpus) {
            return Fit::Never(format!(
                "needs {} CPU slots, the most{only} is {} on {}",
                needs.cpus, most.cpu_slots, most.name
            ));
        }
        left.retain(|agent| agent.cpu_slots >= needs.cpus);
    }
    if let (Class::Llm, Some(model)) = (needs.class, &needs.model)
        && model.gpus > 1
    {
        return fit_split(model, &left, &needs.on);
    }
    let (what, need, aside) = match (needs.class, &needs.model) {
        (Class::Script, _) => ("needs".to_owned(), needs.vram_mb, ""),
        (Class::Llm, Some(model)) => {
            let what = format!("model {} needs", model.id);
            (what, model.on_each_mb, model.aside.as_str())
        }
        _ => return Fit::Fits,
    };
    let Some(need) = need else {
        return Fit::Fits;
    };
    if left
        .iter()
        .any(|agent| agent.budget_mb.is_some_and(|budget| budget >= need))
    {
        return Fit::Fits;
    }
    let largest = left
        .iter()
        .max_by_key(|agent| agent.budget_mb)
        .filter(|_| left.iter().all(|agent| agent.budget_mb.is_some()));
    match largest {
        Some(agent) => Fit::Never(format!(
            "{what} {need}MB{aside}, largest budget{only} is {}MB on {}",
            agent.budget_mb.unwrap_or_default(),
            agent.name
        )),
        None => Fit::NotKnown,
    }
}

/// Whether enough of these GPUs have room for their part of a model.
fn fit_split(model: &ModelNeed, gpus: &[&Agent], on: &[String]) -> Fit {
    let need = model.on_each_mb.unwrap_or(0);
    let able = |agent: &&&Agent| agent.budget_mb.is_some_and(|budget| budget >= need);
    let wanted = model.gpus as usize;
    if gpus.iter().filter(able).count() >= wanted {
        return Fit::Fits;
    }
    if gpus.len() >= wanted && gpus.iter().any(|agent| agent.budget_mb.is_none()) {
        return Fit::NotKnown;
    }
    let mut budgets: Vec<String> = Vec::new();
    for agent in gpus {
        if let Some(budget) = agent.budget_mb {
            budgets.push(format!("{} has {budget}MB", agent.name));
        }
    }
    let have = if gpus.len() < wanted {
        match gpus.len() {
            1 => "there is 1".to_owned(),
            more => format!("there are {more}"),
        }
    } else {
        budgets.join(", ")
    };
    let only = if on.is_empty() {
        String::new()
    } else {
        format!(" (the task is only for {})", on.join(", "))
    };
    Fit::Never(format!(
        "model {} needs {need}MB on each of {wanted} GPUs{}, {have}{only}",
        model.id, model.aside
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rig() -> Vec<Agent> {
        let agent = |name: &str, budget_mb| Agent {
            name: name.to_owned(),
            gpu: budget_mb != Some(0),
            budget_mb,
            cpu_slots: 4,
        };
        vec![
            agent("gpu-1", Some(4915)),
            agent("gpu-2", Some(3000)),
            agent("cpu-1", Some(0)),
        ]
    }

    fn script(vram_mb: u64) -> Needs {
        Needs {
            class: Class::Script,
            cpus: 1,
            vram_mb: Some(vram_mb),
            model: None,
            on: Vec::new(),
        }
    }

    fn never(needs: Needs, agents: &[Agent]) -> String {
        match fit(&needs, agents) {
            Fit::Never(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_exceeds_every_agent_is_said_with_the_numbers() {
        assert_eq!(fit(&script(4915), &rig()), Fit::Fits);
        assert_eq!(
            never(script(24_000), &rig()),
            "needs 24000MB, largest budget is 4915MB on gpu-1"
        );
        let many = Needs {
            cpus: 16,
            ..script(1)
        };
        assert_eq!(
            never(many, &rig()),
            "needs 16 CPU slots, the most is 4 on gpu-2"
        );
        let llm = Needs {
            class: Class::Llm,
            model: Some(model(9000, 1)),
            ..script(0)
        };
        assert_eq!(
            never(llm, &rig()),
            "model X needs 9000MB (weights and more), largest budget is 4915MB on gpu-1"
        );
    }

    fn model(on_each_mb: u64, gpus: u32) -> ModelNeed {
        ModelNeed {
            id: "X".to_owned(),
            on_each_mb: Some(on_each_mb),
            gpus,
            aside: " (weights and more)".to_owned(),
        }
    }

    #[test]
    fn a_split_model_fits_where_enough_gpus_have_room_for_their_part() {
        let of = |on_each_mb, gpus| Needs {
            class: Class::Llm,
            model: Some(model(on_each_mb, gpus)),
            ..script(0)
        };
        assert_eq!(fit(&of(3000, 2), &rig()), Fit::Fits);
        assert_eq!(
            never(of(3001, 2), &rig()),
            "model X needs 3001MB on each of 2 GPUs (weights and more), gpu-1 has 4915MB, gpu-2 has 3000MB"
        );
        assert_eq!(
            never(of(1, 3), &rig()),
            "model X needs 1MB on each of 3 GPUs (weights and more), there are 2"
        );
        let only = Needs {
            on: vec!["gpu-1".to_owned()],
            ..of(1, 2)
        };
        assert_eq!(
            never(only, &rig()),
            "model X needs 1MB on each of 2 GPUs (weights and more), there is 1 (the task is only for gpu-1)"
        );
        let mut agents = rig();
        agents[1].budget_mb = None;
        assert_eq!(fit(&of(3001, 2), &agents), Fit::NotKnown);
    }

    #[test]
    fn only_the_agents_that_it_names_count() {
        let on = |names: &[&str], vram_mb| Needs {
            on: names.iter().map(|name| (*name).to_owned()).collect(),
            ..script(vram_mb)
        };
        assert_eq!(
            never(on(&["gpu-9"], 1), &rig()),
            "only for gpu-9, which is not in rig.toml"
        );
        assert_eq!(
            never(on(&["gpu-2"], 4000), &rig()),
            "needs 4000MB, largest budget of gpu-2 is 3000MB on gpu-2"
        );
        assert_eq!(
            never(on(&["cpu-1"], 1), &rig()),
            "needs a GPU, only for cpu-1 without one"
        );
        assert_eq!(fit(&on(&["gpu-9", "gpu-1"], 1), &rig()), Fit::Fits);
    }

    #[test]
    fn nothing_is_said_before_every_agent_has_told_its_memory() {
        let mut agents = rig();
        agents[1].budget_mb = None;
        assert_eq!(fit(&script(24_000), &agents), Fit::NotKnown);
        assert_eq!(fit(&script(4000), &agents), Fit::Fits);
        let unknown = Needs {
            vram_mb: None,
            ..script(0)
        };
        assert_eq!(fit(&unknown, &rig()), Fit::Fits, "it runs alone");
    }
}
