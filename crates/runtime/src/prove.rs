//! The proof that a runtime which was started serves its model: by an answer, and by its memory.

use std::time::Duration;

use crate::api::{Api, Models, Proof};
use crate::error::LoadCause;
use crate::host::HostOptions;
use crate::spec::{ModelSpec, RuntimeProgram};
use crate::tree::Tree;
use crate::{ollama, process, vram};

/// Between two looks at a loading runtime: short at first, as small models load in milliseconds.
const POLL_FIRST: Duration = Duration::from_millis(10);
const POLL_LONGEST: Duration = Duration::from_millis(250);

/// What a proof is held against.
pub(crate) struct Before {
    pub(crate) tree: Tree,
    /// In use before the load, MB.
    pub(crate) vram_mb: Option<u64>,
}

/// What a proof has shown.
pub(crate) struct Proved {
    pub(crate) vram_delta_mb: Option<i64>,
    pub(crate) note: Option<String>,
}

/// Runs until the runtime is proven or cannot be; `last` tells a time-out what was last seen.
pub(crate) async fn prove(
    options: &HostOptions,
    api: &Api,
    spec: &ModelSpec,
    before: Before,
    last: &mut String,
) -> Result<Proved, LoadCause> {
    let asked = spec.asked();
    let mut pause = POLL_FIRST;
    loop {
        match lists(api, spec).await? {
            Ok(()) => {
                if spec.must_listen() && !process::listens(before.tree.clone(), options.port).await
                {
                    let holder = process::listener(options.port).await;
                    return Err(LoadCause::NotOurs {
                        port: options.port,
                        holder,
                    });
                }
                "it lists its model and has not generated yet".clone_into(last);
                match api.prove(&asked).await {
                    Proof::Given => break,
                    Proof::NotYet(detail) => *last = detail,
                    Proof::Absent(_) if asked.ollama => {
                        return Err(LoadCause::NotPulled {
                            reference: asked.name,
                        });
                    }
                    Proof::Absent(detail) | Proof::Failed(detail) => {
                        return Err(LoadCause::Unproven(detail));
                    }
                }
            }
            Err(detail) => *last = detail,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL_LONGEST);
    }
    let gpus = spec.gpus(options.gpu_uuid.as_deref());
    let note = match (asked.ollama, gpus.is_empty()) {
        // A list that cannot be had is no reason to doubt what has just generated.
        (true, false) => ollama::loaded(api, &asked.name)
            .await
            .ok()
            .flatten()
            .and_then(ollama::Placed::on_cpu),
        (true, true) | (false, _) => None,
    };
    let vram_delta_mb = match (before.vram_mb, spec.prove_vram) {
        (Some(before_mb), true) if !gpus.is_empty() => {
            "it generates, but VRAM has not grown".clone_into(last);
            vram::grown(&options.vram, &gpus, before_mb, spec.vram_mb).await?
        }
        _ => None,
    };
    Ok(Proved {
        vram_delta_mb,
        note,
    })
}

/// Whether the runtime says that it has its model: inside, what it says instead, as long as that may
/// change.
async fn lists(api: &Api, spec: &ModelSpec) -> Result<Result<(), String>, LoadCause> {
    if let RuntimeProgram::Ollama { .. } = &spec.program {
        // It lists what it has pulled and not what is loaded: the request that follows loads.
        return Ok(ollama::is_up(api).await);
    }
    match api.models().await {
        Models::Served(names) if names.contains(&spec.id) => Ok(Ok(())),
        Models::Served(served) => Err(LoadCause::WrongModel {
            expected: spec.id.clone(),
            served,
        }),
        Models::NotYet(detail) => Ok(Err(detail)),
    }
}
