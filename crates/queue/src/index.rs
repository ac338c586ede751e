//! What is queued, sorted by name and by shape, so that a claim costs the same at any depth.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::name::{FileName, Shape, TaskId};

/// How soon a busy candidate is looked at again: unlocking wakes nobody.
const BUSY_FIRST: Duration = Duration::from_millis(20);
/// The longest wait between two looks at a busy candidate.
const BUSY_MOST: Duration = Duration::from_secs(1);

/// Task files of one class. It follows events; a rescan replaces it ([`Index::replace`]).
#[derive(Debug, Default)]
pub struct Index {
    shapes: BTreeMap<Shape, BTreeSet<FileName>>,
    busy: BTreeMap<TaskId, Busy>,
    len: usize,
}

#[derive(Debug)]
struct Busy {
    until: Instant,
    wait: Duration,
}

impl Index {
    /// How many are queued.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A file appeared.
    pub fn insert(&mut self, name: FileName) {
        self.len += usize::from(self.shapes.entry(name.shape).or_default().insert(name));
    }

    /// A file is gone.
    pub fn remove(&mut self, name: &FileName) {
        if let Some(names) = self.shapes.get_mut(&name.shape)
            && names.remove(name)
        {
            self.len -= 1;
            self.busy.remove(&name.id);
            if names.is_empty() {
                self.shapes.remove(&name.shape);
            }
        }
    }

    /// Whether that file is queued.
    pub fn contains(&self, name: &FileName) -> bool {
        self.shapes
            .get(&name.shape)
            .is_some_and(|names| names.contains(name))
    }

    /// The queued file of that task, by a scan of all.
    pub fn find(&self, id: TaskId) -> Option<FileName> {
        self.shapes
            .values()
            .flatten()
            .find(|name| name.id == id)
            .copied()
    }

    /// Every shape with its count.
    pub fn counts(&self) -> impl Iterator<Item = (Shape, usize)> + '_ {
        self.shapes
            .iter()
            .map(|(shape, names)| (*shape, names.len()))
    }

    /// The first file of a shape, busy or not.
    pub fn any(&self, shape: Shape) -> Option<FileName> {
        self.shapes.get(&shape)?.first().copied()
    }

    /// The truth after a rescan.
    pub fn replace(&mut self, names: impl IntoIterator<Item = FileName>) {
        self.shapes.clear();
        self.len = 0;
        for name in names {
            self.insert(name);
        }
        let shapes = &self.shapes;
        let queued: BTreeSet<TaskId> = self
            .busy
            .keys()
            .copied()
            .filter(|id| shapes.values().flatten().any(|name| name.id == *id))
            .collect();
        self.busy.retain(|id, _| queued.contains(id));
    }

    /// Each shape with its count and its first name that is not known to be busy, in claim order
    /// of those names. Shapes whose every name is busy are left out.
    pub fn shapes(&self, now: Instant) -> Vec<(Shape, usize, FileName)> {
        let mut found: Vec<(Shape, usize, FileName)> = self
            .shapes
            .iter()
            .filter_map(|(shape, names)| {
                let first = names.iter().find(|name| !self.is_busy(name.id, now))?;
                Some((*shape, names.len(), *first))
            })
            .collect();
        found.sort_unstable_by_key(|(_, _, first)| *first);
        found
    }

    /// The first name of a shape that is not known to be busy.
    pub fn first(&self, shape: Shape, now: Instant) -> Option<FileName> {
        self.shapes
            .get(&shape)?
            .iter()
            .find(|name| !self.is_busy(name.id, now))
            .copied()
    }

    /// Another process held the lock of this one: look again after 20 ms, doubling to 1 s.
    pub fn defer(&mut self, name: &FileName, now: Instant) {
        let busy = self.busy.entry(name.id).or_insert(Busy {
            until: now,
            wait: BUSY_FIRST / 2,
        });
        busy.wait = (busy.wait * 2).min(BUSY_MOST);
        busy.until = now + busy.wait;
    }

    /// When the next busy candidate is due, after `now`: one that is due already is looked at
    /// whenever its shape is.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        self.busy
            .values()
            .map(|busy| busy.until)
            .filter(|until| *until > now)
            .min()
    }

    fn is_busy(&self, id: TaskId, now: Instant) -> bool {
        self.busy.get(&id).is_some_and(|busy| busy.until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(sequence: u64, shape: u32) -> FileName {
        let id = TaskId::derive("b", "t", Some(&sequence.to_string()));
        FileName::first(5, sequence, Shape(shape), id)
    }

    #[test]
    fn a_busy_one_steps_aside_and_comes_back() {
        let mut index = Index::default();
        index.insert(name(1, 7));
        index.insert(name(2, 7));
        let start = Instant::now();
        index.defer(&name(1, 7), start);
        assert_eq!(index.first(Shape(7), start), Some(name(2, 7)));
        assert_eq!(index.due(start), Some(start + BUSY_FIRST));
        let later = start + BUSY_FIRST;
        assert_eq!(index.due(later), None, "it is due");
        assert_eq!(index.first(Shape(7), later), Some(name(1, 7)));
        for _ in 0..10 {
            index.defer(&name(1, 7), later);
        }
        assert_eq!(index.due(later), Some(later + BUSY_MOST));
        index.remove(&name(1, 7));
        assert_eq!(index.due(later), None);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_set(steps in prop::collection::vec((0u64..40, any::<bool>()), 0..200)) {
            let mut index = Index::default();
            let mut model = BTreeSet::new();
            for (n, add) in steps {
                let name = name(n, (n % 5) as u32);
                if add { index.insert(name); model.insert(name); } else { index.remove(&name); model.remove(&name); }
                prop_assert_eq!(index.len(), model.len());
            }
            let now = Instant::now();
            let firsts: Vec<FileName> = index.shapes(now).into_iter().map(|(_, _, first)| first).collect();
            prop_assert_eq!(firsts.first(), model.first());
            prop_assert!(firsts.is_sorted());
            let counted: usize = index.shapes(now).iter().map(|(_, count, _)| count).sum();
            prop_assert_eq!(counted, model.len());
        }
    }
}
