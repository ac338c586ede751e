//! Names of tasks from the manifests of their expansions: a few reads instead of one for each
//! task file.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use rigor_queue::name::TaskId;
use rigor_queue::rig::Rig;
use rigor_queue::submit::manifest;
use rigor_queue::task::Class;

use crate::Result;
use crate::batches::Batch;

/// What the manifests say of a task.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) batch: Rc<str>,
    pub(crate) task: Rc<str>,
    pub(crate) item: Option<String>,
    pub(crate) class: Option<Class>,
}

impl Known {
    pub(crate) fn name(&self) -> String {
        match &self.item {
            Some(item) => format!("{}_{item}", self.task),
            None => self.task.to_string(),
        }
    }
}

/// Names of the tasks of some batches.
#[derive(Default)]
pub(crate) struct Names {
    known: HashMap<TaskId, Known>,
}

impl Names {
    /// Reads the manifests of a batch. One that cannot be read names nothing: those tasks are
    /// read one by one.
    pub(crate) fn add(&mut self, rig: &Rig, id: &str, batch: Option<&Batch>) -> Result<()> {
        let classes: BTreeMap<&str, Class> = batch
            .map(|batch| {
                batch
                    .tasks
                    .iter()
                    .map(|task| (task.id.as_str(), task.class))
                    .collect()
            })
            .unwrap_or_default();
        let batch: Rc<str> = id.into();
        for task in plan_tasks(rig, id)? {
            let Ok(Some(entries)) = manifest(rig, id, &task) else {
                continue;
            };
            let class = classes.get(task.as_str()).copied();
            let task: Rc<str> = task.as_str().into();
            for entry in entries {
                let (batch, task) = (batch.clone(), task.clone());
                self.known.insert(
                    entry.id,
                    Known {
                        batch,
                        task,
                        item: entry.item,
                        class,
                    },
                );
            }
        }
        Ok(())
    }

    pub(crate) fn get(&self, id: TaskId) -> Option<&Known> {
        self.known.get(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (TaskId, &Known)> {
        self.known.iter().map(|(id, known)| (*id, known))
    }
}

/// The tasks of a batch that have a folder in `waiting/`: those that were expanded.
pub(crate) fn plan_tasks(rig: &Rig, batch: &str) -> Result<Vec<String>> {
    Ok(rig.expansions(batch)?)
}
