//! Wake-ups. `notify` only says that something may have changed; the truth is readdir.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use notify::event::{EventKind, ModifyKind, RenameMode};
use notify::{Config, EventKindMask, INotifyWatcher, RecursiveMode, Watcher as _};

use crate::error::{QueueError, Result};

/// What a watched directory reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// A file appeared under this path.
    Added(PathBuf),
    /// The file under this path is gone.
    Removed(PathBuf),
    /// Events were lost: read every directory again.
    Rescan,
    /// Watching failed: read every directory now and then.
    Failed(String),
}

/// Watches directories (not what is below them).
///
/// Only creations, removals and renames are asked of the kernel: with the default mask every open
/// of a task file by a claimant would wake every other one.
#[derive(Debug)]
pub struct Watcher {
    inner: INotifyWatcher,
    dirs: BTreeSet<PathBuf>,
}

impl Watcher {
    /// Reports to `sink`, from the watcher's own thread.
    pub fn new(mut sink: impl FnMut(Wake) + Send + 'static) -> Result<Watcher> {
        let mask = EventKindMask::CREATE | EventKindMask::REMOVE | EventKindMask::MODIFY_NAME;
        let handler = move |event: notify::Result<notify::Event>| match event {
            Ok(event) => translate(event, &mut sink),
            Err(error) => sink(Wake::Failed(error.to_string())),
        };
        let config = Config::default()
            .with_event_kinds(mask)
            .with_follow_symlinks(false);
        let inner =
            INotifyWatcher::new(handler, config).map_err(|error| QueueError::Unwatched {
                path: PathBuf::from("inotify"),
                why: format!("{error}; raise fs.inotify.max_user_instances"),
            })?;
        Ok(Watcher {
            inner,
            dirs: BTreeSet::new(),
        })
    }

    /// Starts watching a directory; from then on no change goes unreported (list it *after* this).
    pub fn watch(&mut self, dir: &Path) -> Result<()> {
        self.dirs.insert(dir.to_owned());
        self.inner
            .watch(dir, RecursiveMode::NonRecursive)
            .map_err(|error| QueueError::Unwatched {
                path: dir.to_owned(),
                // notify names the path too.
                why: match error.kind {
                    notify::ErrorKind::MaxFilesWatch => {
                        "no more watches are allowed; raise fs.inotify.max_user_watches".to_owned()
                    }
                    _ => error.to_string(),
                },
            })
    }

    /// Watches what lies now where the watched directories were: another one may have been put
    /// there.
    pub fn watch_again(&mut self) -> Result<()> {
        for dir in std::mem::take(&mut self.dirs) {
            self.unwatch(&dir);
            self.watch(&dir)?;
        }
        Ok(())
    }

    /// Stops watching a directory.
    pub fn unwatch(&mut self, dir: &Path) {
        self.dirs.remove(dir);
        // A directory that is gone took its watch along.
        let _ = self.inner.unwatch(dir);
    }
}

fn translate(event: notify::Event, sink: &mut impl FnMut(Wake)) {
    if event.need_rescan() {
        sink(Wake::Rescan);
        return;
    }
    let wake: fn(PathBuf) -> Wake = match event.kind {
        EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Wake::Added,
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => {
            Wake::Removed
        }
        // `Both` repeats what From and To have said.
        _ => return,
    };
    event.paths.into_iter().map(wake).for_each(sink);
}
