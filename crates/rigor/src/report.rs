//! `rigor report`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::args::Report;
use crate::exit::Exit;
use crate::target;
use crate::terminal::{line, print};

/// Prints the summary that the brain left in the batch's folder.
pub(crate) fn run(at: &Path, args: &Report) -> Result<Exit> {
    let opened = target::open(at)?;
    let id = opened.batch(&args.batch)?;
    let Some(batch) = rigor_snapshot::batch(&opened.rig, &id)? else {
        bail!("the batch {id} has no plan in the lanes; its submission did not finish");
    };
    let Some(dir) = &batch.batch_dir else {
        bail!("where {id} left its summary is not known: its plan cannot be read");
    };
    let file = if args.json {
        "RUN_SUMMARY.json"
    } else {
        "RUN_SUMMARY.md"
    };
    let path = PathBuf::from(dir).join(file);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !batch.state.is_over() => {
            bail!(
                "{id} is {}; its summary is written when it is over: rigor wait {id}",
                batch.state.as_str()
            );
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    if args.path {
        line(path.display().to_string())?;
    } else {
        print(&text)?;
    }
    Ok(Exit::Ok)
}
