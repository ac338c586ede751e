//! Setting up a folder with the library and its state.

use std::io;
use std::path::{Path, PathBuf};

use crate::state::{State, StateError, replace};

/// The name that NVML's callers load.
pub const LIBRARY_NAME: &str = "libnvidia-ml.so.1";

/// The state's name, beside the library.
pub const STATE_NAME: &str = "nvml.json";

/// The name that cargo gives the built library.
const BUILT_NAME: &str = "libnvml_stand_in.so";

/// Puts the library (as `libnvidia-ml.so.1`) and `state` (as `nvml.json`) into `folder`, which is
/// made where it is missing; both replace what is there by rename, so that a process which has the
/// old library loaded is not disturbed. Returns the library's path.
///
/// # Errors
///
/// [`StateError::NotBuilt`] where [`built_library`] finds nothing; else the failed file operation.
pub fn install(folder: &Path, state: &State) -> Result<PathBuf, StateError> {
    let built = built_library()?;
    std::fs::create_dir_all(folder).map_err(StateError::io("make the folder", folder))?;
    state.write(&folder.join(STATE_NAME))?;
    let library = folder.join(LIBRARY_NAME);
    let mut source = std::fs::File::open(&built).map_err(StateError::io("read", &built))?;
    replace(&library, |file| io::copy(&mut source, file).map(drop))?;
    Ok(library)
}

/// The built library, looked for beside the running program, where cargo puts it (the same folder
/// and `deps/`), and in `../lib` of an installation; of several the newest.
///
/// # Errors
///
/// [`StateError::NotBuilt`], naming where it was looked for.
pub fn built_library() -> Result<PathBuf, StateError> {
    let program = std::env::current_exe().map_err(StateError::io(
        "find the program",
        Path::new("/proc/self/exe"),
    ))?;
    let beside = program.parent().unwrap_or(Path::new("/"));
    let above = beside.parent().unwrap_or(Path::new("/"));
    let places = [
        beside.to_owned(),
        beside.join("deps"),
        above.to_owned(),
        above.join("lib"),
        above.join("lib/rigor"),
    ];
    places
        .iter()
        .map(|place| place.join(BUILT_NAME))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .ok_or_else(|| StateError::NotBuilt {
            file: BUILT_NAME,
            places: places
                .iter()
                .map(|place| place.display().to_string())
                .collect::<Vec<_>>()
                .join(", "),
        })
}
