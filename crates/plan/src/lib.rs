//! plan.md to a checked graph of tasks, or to every problem it has, each with its place.
//!
//! The crate is pure: it opens no file and reads no clock. [`check`] is given the text of a plan
//! and answers with a [`Plan`] or with all of its [`Problems`]; [`parse_items`] turns the content
//! of a foreach source into items, and [`instantiate`] a task and an item into the task that a
//! worker runs. `docs/plan-format.md` is the format in words.

mod check;
mod class;
mod draft;
mod fields;
mod graph;
mod heredoc;
mod infer;
mod instantiate;
mod items;
mod markdown;
mod plan;
mod problem;
mod rig;
mod scanner;
mod shell;
mod template;
mod variables;
mod work;

pub use check::{Sources, TASKS_MAX, TEXT_MAX_BYTES, check};
pub use infer::infer_class;
pub use instantiate::{
    BatchVars, InstantiateError, failed_file, foreach_source, instantiate, items_file,
};
pub use items::{ITEM_ID_MAX_BYTES, ITEMS_MAX, ItemContent, ItemError, group, parse_items, slug};
pub use plan::{
    CommandTemplate, Dependency, Executor, Foreach, ForeachSource, LlmPlacement, MaxFailed,
    OnFailure, Plan, PlanTask, PromptTemplate, Template, WorkTemplate,
};
pub use problem::{Problem, Problems};
pub use rig::{AgentFacts, ModelFacts, RigFacts};
pub use shell::Unquotable;
