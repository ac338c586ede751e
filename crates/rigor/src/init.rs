//! `rigor init`: a rig directory and its rig.toml.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rigor_config::{Config, FILE_NAME, InitAnswers, InitGpu, Model, ModelKind, Serving, render};
use rigor_gpu::{Gpus, holders};
use rigor_queue::rig::{Rig, is_safe_name};

use crate::args::Init;
use crate::exit::Exit;
use crate::target::resolved;
use crate::terminal::{line, note, plural};

/// What a GGUF file begins with.
pub(crate) const GGUF_MAGIC: &[u8; 4] = b"GGUF";
/// Where the stand-in library and its state lie in a rig.
const SIM_DIR: &str = "sim";

/// Makes a rig. rig.toml is written last: without it the directory is no rig yet.
pub(crate) fn run(args: &Init) -> Result<Exit> {
    let toml = args.dir.join(FILE_NAME);
    if toml.exists() {
        bail!(
            "{} is there already; edit it, or choose another directory",
            toml.display()
        );
    }
    let models = models(args)?;
    let llama_server = args.llama_server.as_deref().map(program).transpose()?;
    // Before anything is made: without a GPU nothing is left behind.
    let real = match (args.sim_gpus, args.cpu_only) {
        (None, false) => Some(Gpus::open(None)?),
        _ => None,
    };
    let rig = Rig::create(&args.dir)?;
    let library = args
        .sim_gpus
        .map(|count| install_stand_in(&rig, count))
        .transpose()?;
    let gpus = match (&library, real) {
        (Some(library), _) => found(&Gpus::open(Some(library))?, args, &models)?,
        (None, Some(gpus)) => found(&gpus, args, &models)?,
        (None, None) => Vec::new(),
    };
    let cpu_agents = args.cpu_agents.unwrap_or(u16::from(gpus.is_empty()));
    let answers = InitAnswers {
        rig_name: rig_name(args, rig.root())?,
        rig_id: crate::submit::random_word(),
        cpu_agents: (1..=cpu_agents).map(|n| format!("cpu-{n}")).collect(),
        models,
        llama_server: llama_server.map(|path| path.display().to_string()),
        nvml_library: library
            .as_ref()
            .map(|_| format!("{SIM_DIR}/{}", nvml_stand_in::LIBRARY_NAME)),
        simulated: library.is_some(),
        gpus,
    };
    let toml = rig.root().join(FILE_NAME);
    let text = render(&answers);
    // What is written has to be readable: better said now, before there is a file in the way.
    Config::parse(&text, &toml)?;
    Config::write_new(&toml, &text)?;

    if answers.simulated {
        note(format!(
            "SIMULATED: {} that compute nothing, from the stand-in NVML library in {}",
            plural(answers.gpus.len(), "stand-in GPU"),
            rig.root().join(SIM_DIR).display()
        ));
    }
    for gpu in &answers.gpus {
        note(format!(
            "{}: {}",
            gpu.name,
            gpu.remarks.first().map_or("", String::as_str)
        ));
        for remark in gpu.remarks.iter().skip(1) {
            note(format!("  {remark}"));
        }
    }
    if answers.models.is_empty() && !answers.gpus.is_empty() {
        note("No model yet: fill in a [[model]] in rig.toml before llm tasks can run.");
    }
    note("Start it: rigor up");
    line(toml.display().to_string())?;
    Ok(Exit::Ok)
}

fn install_stand_in(rig: &Rig, count: u16) -> Result<PathBuf> {
    let state = nvml_stand_in::State::with_gpus(usize::from(count));
    Ok(nvml_stand_in::install(&rig.root().join(SIM_DIR), &state)?)
}

/// The GPUs of a machine, each with what sits on it and how to free it.
fn found(gpus: &Gpus, args: &Init, models: &[Model]) -> Result<Vec<InitGpu>> {
    for (index, error) in gpus.unreadable()? {
        note(format!("GPU number {index} is left out: {error}"));
    }
    let default = models.iter().find(|model| model.kind == ModelKind::Chat);
    let mut found = Vec::new();
    for (n, gpu) in gpus.list()?.into_iter().enumerate() {
        let mut remarks = vec![format!("{}, {} MB", gpu.name, gpu.total_mb)];
        match gpus.reading(&gpu.uuid) {
            Ok(reading) => {
                let sitting = holders(&reading, |_| false);
                remarks.extend(sitting.iter().map(|one| format!("{one}; {}", one.remedy)));
                let known: u64 = sitting.iter().filter_map(|one| one.used_mb).sum();
                // What no process accounts for: the driver's own, or processes of elsewhere.
                const WORTH_NAMING_MB: u64 = 512;
                let unknown = reading.used_mb.saturating_sub(known);
                if sitting.is_empty() && unknown >= WORTH_NAMING_MB {
                    remarks.push(format!(
                        "{unknown} MB held by nobody that NVML names; see `nvidia-smi`"
                    ));
                }
            }
            Err(error) => remarks.push(error.to_string()),
        }
        let port = args
            .port
            .checked_add(n as u16)
            .context("the ports run out; begin lower: --port")?;
        found.push(InitGpu {
            name: format!("gpu-{}", n + 1),
            uuid: gpu.uuid,
            port,
            model: default.map(|model| model.id.clone()),
            remarks,
        });
    }
    if found.is_empty() {
        bail!("NVML answers and has no GPU; use --cpu-only, or --sim-gpus N to simulate some");
    }
    Ok(found)
}

fn models(args: &Init) -> Result<Vec<Model>> {
    let chat = args.model.iter().map(|file| (file, ModelKind::Chat));
    let embedding = args
        .embedding_model
        .iter()
        .map(|file| (file, ModelKind::Embedding));
    chat.chain(embedding)
        .map(|(file, kind)| model(args, file, kind))
        .collect()
}

fn model(args: &Init, file: &Path, kind: ModelKind) -> Result<Model> {
    let file = resolved(file)?;
    let mut magic = [0; 4];
    let read =
        fs::File::open(&file).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
    if read.is_err() || &magic != GGUF_MAGIC {
        bail!(
            "{} is not a GGUF file (it does not begin with GGUF)",
            file.display()
        );
    }
    let id = file
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Ok(Model {
        id,
        kind,
        serving: Serving::LlamaServer { file },
        slots: args.slots,
        context: Some(args.context),
        args: Vec::new(),
        env: Default::default(),
        tier: 0,
        vram_mb: None,
        load_timeout: None,
        split_gpu: 1,
    })
}

/// A path is made absolute, since rig.toml's are relative to the rig; a name is left to PATH.
fn program(path: &Path) -> Result<PathBuf> {
    if path.components().count() == 1 && !path.exists() {
        return Ok(path.to_owned());
    }
    std::path::absolute(path)
        .context("cannot resolve --llama-server")
        .and_then(|path| {
            if !path.is_file() {
                bail!(
                    "{} is not there: --llama-server names a program",
                    path.display()
                );
            }
            Ok(path)
        })
}

fn rig_name(args: &Init, root: &Path) -> Result<String> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => root
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    };
    if args.name.is_some() && !is_safe_name(&name) {
        bail!("{name:?} cannot be a rig's name: letters, digits, `-`, `_` and `.`");
    }
    Ok(if is_safe_name(&name) {
        name
    } else {
        "rig".to_owned()
    })
}
