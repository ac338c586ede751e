//! What an earlier agent left: taken over where it is what would be started anyway and serves,
//! removed otherwise.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::api::{Api, Proof};
use crate::error::ReapError;
use crate::handle::Handle;
use crate::host::{HostOptions, Loaded, Reaped};
use crate::manifest::{Manifest, Proven};
use crate::process::{self, Running, blocking};
use crate::spec::ModelSpec;
use crate::tree::Leader;
use crate::vram;

/// How long a runtime may take to generate one token for its new agent. It has nothing else to do:
/// the tasks of the old agent are gone.
const PROOF_PATIENCE: Duration = Duration::from_secs(15);

/// What became of what an earlier agent left.
pub(crate) enum Left {
    /// Nothing was.
    Nothing,
    /// It serves.
    Adopted(Box<(Running, Loaded, jiff::Timestamp)>),
    /// It is gone.
    Reaped(Box<Reaped>),
}

pub(crate) async fn adopt_or_reap(
    options: &HostOptions,
    api: &Api,
    catalogue: &[ModelSpec],
) -> Result<Left, ReapError> {
    let path = options.manifest_path.clone();
    let Some(manifest) = blocking(move || Manifest::read(&path)).await? else {
        return Ok(Left::Nothing);
    };
    let why = match adopt(options, api, catalogue, &manifest).await {
        Ok((running, loaded)) => {
            return Ok(Left::Adopted(Box::new((
                running,
                loaded,
                manifest.started_at,
            ))));
        }
        Err(why) => why,
    };
    let reaped = process::reap(&options.manifest_path).await?;
    Ok(match reaped {
        Some((manifest, killed)) => {
            let gpus = manifest.proven.as_ref().map(|proven| proven.gpus.clone());
            let gpus = gpus.unwrap_or_else(|| options.gpu_uuid.clone().into_iter().collect());
            if killed > 0 && !gpus.is_empty() {
                vram::settle(&options.vram, &gpus, options.vram_patience).await;
            }
            Left::Reaped(Box::new(Reaped {
                manifest,
                killed,
                why,
            }))
        }
        None => Left::Nothing,
    })
}

/// Takes over what `manifest` leads to, or says why not.
async fn adopt(
    options: &HostOptions,
    api: &Api,
    catalogue: &[ModelSpec],
    manifest: &Manifest,
) -> Result<(Running, Loaded), String> {
    let Some(proven) = &manifest.proven else {
        return Err("it had not finished loading".to_owned());
    };
    if let [_, _, ..] = proven.gpus[..] {
        // Their agents have let go of them, or will: they see that this one was gone. The catalogue,
        // which is of what one GPU serves, says nothing of it.
        return Err(format!(
            "a runtime over several GPUs is not taken over, and it is on {}",
            proven.gpus.len()
        ));
    }
    let Some(spec) = catalogue.iter().find(|spec| spec.id == manifest.model) else {
        return Err("rig.toml has no such model any more, or not for one GPU".to_owned());
    };
    let (spec, host, gpu) = (spec.clone(), options.host.clone(), options.gpu_uuid.clone());
    let (port, wanted) = (options.port, spec.clone());
    let digest = blocking(move || wanted.digest(&host, port, gpu.as_deref())).await;
    if manifest.digest.as_deref() != Some(&digest) {
        return Err(
            "it was started with other settings, or its file or program has changed".to_owned(),
        );
    }
    let pidfd = {
        let manifest = manifest.clone();
        blocking(move || living(&manifest)).await?
    };
    if spec.must_listen() && !process::listens(manifest.tree(), port).await {
        return Err(format!("it does not listen on port {port}"));
    }
    let asked = spec.asked();
    api.lists(&asked).await?;
    match tokio::time::timeout(PROOF_PATIENCE, api.prove(&asked)).await {
        Ok(Proof::Given) => {}
        Ok(Proof::NotYet(detail) | Proof::Absent(detail) | Proof::Failed(detail)) => {
            return Err(format!("it does not generate: {detail}"));
        }
        Err(_) => {
            return Err(format!(
                "it did not generate within {}s",
                PROOF_PATIENCE.as_secs()
            ));
        }
    }
    let process = Handle::adopted(pidfd).map_err(|error| format!("watch its end: {error}"))?;
    let loaded = Loaded {
        model: spec.id.clone(),
        served_as: asked.name.clone(),
        load_ms: proven.load_ms,
        slots: spec.slots,
        base_url: api.base_url().to_owned(),
        vram_delta_mb: proven.vram_delta_mb,
        pid: manifest.pid.unwrap_or_default(),
        log: manifest.log.clone(),
        note: None,
    };
    let Proven {
        gpus,
        vram_before_mb,
        vram_delta_mb,
        ..
    } = proven.clone();
    let running = Running::adopted(
        process,
        manifest.clone(),
        asked,
        gpus,
        vram_before_mb,
        vram_delta_mb,
    );
    Ok((running, loaded))
}

/// A descriptor of the manifest's first process, which lives and is what it was. The descriptor is
/// opened before the look, so that its number cannot pass to another in between.
fn living(manifest: &Manifest) -> Result<OwnedFd, String> {
    let tree = manifest.tree();
    let Some(leader) = tree.leader else {
        return Err("it is of an earlier boot".to_owned());
    };
    let gone = || "its process has ended".to_owned();
    let pid = Pid::from_raw(leader.pid).ok_or_else(gone)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
    if Leader::of(leader.pid) != Some(leader) || !tree.members().contains(&leader.pid) {
        return Err(gone());
    }
    if !tree.bears_cookie(leader.pid) {
        return Err(format!("process {} does not bear its nonce", leader.pid));
    }
    Ok(pidfd)
}

/// A runtime that outlives its agent: the model's id and its living processes. `None`: there is no
/// manifest, or nothing of it lives. Reads /proc.
///
/// Nobody but its agent ends it: a started agent adopts it, and until then it holds VRAM.
pub fn orphan(manifest_path: &Path) -> Option<(String, Vec<i32>)> {
    let manifest = Manifest::read(manifest_path).ok()??;
    let pids = manifest.tree().members();
    (!pids.is_empty()).then_some((manifest.model, pids))
}
