//! One task, two files: somebody has copied one. The latest attempt counts, the other goes to
//! quarantine.

use super::*;

/// Takes every file but the one that counts out of the lanes, of those tasks that were met more
/// than once. What is claimed is its agent's and stays. Returns the file that counts, where there
/// were two.
///
/// A task that moves while lanes are listed is met twice too: a file is only taken for a copy
/// while its lock is held, so that nobody moves it, and while the other one is there.
pub(super) fn take_out(
    brain: &Brain,
    batch: &str,
    mut met: Vec<(FileName, State, Place<'_>)>,
) -> Result<Option<(FileName, State)>> {
    // Of equal attempts the one that is further on in a task's life.
    met.sort_by_key(|(name, _, place)| (name.attempt, place.lane()));
    let Some((name, state, place)) = met.pop() else {
        return Ok(None);
    };
    let counts = brain.rig.path(place, &name);
    let mut found = false;
    for (copy, _, at) in met {
        if at.lane() == Lane::Processing {
            continue;
        }
        let Opened::Held(held) = claim::open_in(&brain.rig, at, &copy)? else {
            continue;
        };
        if std::fs::symlink_metadata(&counts).is_err() {
            continue;
        }
        let reason = format!(
            "the task is in {} as attempt {} too, which counts: this file is a copy",
            place.lane(),
            name.attempt
        );
        tracing::warn!(task = %name.id, batch, "Moved {copy} from {} to quarantine: {reason}", at.lane());
        held.quarantine(&brain.rig, &reason)?;
        found = true;
    }
    Ok(found.then_some((name, state)))
}
