//! The memory of one GPU: how much is spoken for, and by whom. Pure.
//!
//! A *lease* is memory promised to a task or a model. A new one must fit beside
//!
//! - what is in use, by us or by others (a reading does not care whose it is), and
//! - what is promised but not taken yet: a task that has just started shows in no reading.
//!
//! So with `held` for what a lease was last seen to hold:
//!
//! ```text
//! available = min(budget - used, free) - sum(reserved - held, where positive)
//! ```
//!
//! Where the driver tells memory by process, `held` is known. Where it does not, what is in use
//! beyond what was in use before the first lease is taken to be the leases'; others' memory that
//! came since is then mistaken for ours until the leases end, never for more than they reserved.
//!
//! A need that nobody has measured cannot be added up: such a task runs **alone** on its GPU, with
//! no other task and no model, until its peak is known.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::reading::Reading;

/// The ledger of one GPU.
#[derive(Clone, Debug)]
pub struct Ledger {
    budget_mb: u64,
    last: Option<Observed>,
    /// In use when last seen without any lease, MiB.
    idle_mb: Option<u64>,
    leases: Vec<Lease>,
}

/// What a task or a model needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// MiB; none: unmeasured, so alone on its GPU.
    pub mb: Option<u64>,
}

/// Why a need is not met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Short {
    /// MiB; none: unmeasured.
    pub need_mb: Option<u64>,
    /// What could be had, MiB.
    pub have_mb: u64,
    /// MiB; 0 where memory is not what is missing.
    pub short_by_mb: u64,
    /// Who or what is in the way.
    pub why: String,
}

impl fmt::Display for Short {
    /// `need 4200 MB, have 3100 MB, short by 1100 MB: budget 4915 MB of 6144 MB, ...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.need_mb {
            Some(need) => write!(f, "need {need} MB, ")?,
            None => f.write_str("need unmeasured, ")?,
        }
        write!(f, "have {} MB, ", self.have_mb)?;
        if self.short_by_mb > 0 {
            write!(f, "short by {} MB: ", self.short_by_mb)?;
        }
        f.write_str(&self.why)
    }
}

/// The most memory that the holder of a lease was seen to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// MiB.
    pub peak_mb: u64,
    /// How it was seen.
    pub by: MeasuredBy,
}

/// How a peak was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeasuredBy {
    /// The driver told the memory of its processes.
    Process,
    /// What the device used beyond what it used before, the lease being the only one throughout.
    /// Others' memory that came or went meanwhile is in it.
    DeviceDelta,
}

#[derive(Clone, Copy, Debug)]
struct Observed {
    used_mb: u64,
    free_mb: u64,
    total_mb: u64,
    /// A lease ended since, so some of what is in use was its.
    before_release: bool,
}

#[derive(Clone, Debug)]
struct Lease {
    id: String,
    /// None: unmeasured, so the only one.
    reserved_mb: Option<u64>,
    /// When last observed; 0 before.
    held_mb: u64,
    peak: Option<Measured>,
    /// In use before it began, while it is the only lease and that is known.
    alone_from_mb: Option<u64>,
}

impl Ledger {
    /// An empty ledger. `budget_mb` is what leases may add up to; see
    /// [`Limits::budget_mb`](crate::Limits::budget_mb).
    pub fn new(budget_mb: u64) -> Ledger {
        Ledger {
            budget_mb,
            last: None,
            idle_mb: None,
            leases: Vec::new(),
        }
    }

    /// What leases may add up to, MiB.
    pub fn budget_mb(&self) -> u64 {
        self.budget_mb
    }

    /// Takes in a reading. `owner` tells which lease a process of the GPU belongs to; none: nobody
    /// of ours. Due after every change of leases, and every second or so while there are any: a
    /// peak between two readings is not seen.
    pub fn observe<'a>(&mut self, reading: &Reading, owner: impl Fn(u32) -> Option<&'a str>) {
        let used_mb = reading.used_mb;
        let by_process = reading
            .processes
            .iter()
            .any(|process| process.used_mb.is_some());
        let mut unattributed = used_mb.saturating_sub(self.idle_mb.unwrap_or(used_mb));

        for lease in &mut self.leases {
            let own = reading
                .processes
                .iter()
                .filter(|process| owner(process.pid) == Some(lease.id.as_str()));
            // None unless it has processes, the memory of each of which is known.
            let sum = own
                .map(|process| process.used_mb)
                .reduce(|sum, mb| Some(sum? + mb?))
                .flatten();

            lease.held_mb = match (sum, lease.reserved_mb) {
                (Some(mb), _) => mb,
                (None, Some(reserved)) if !by_process => reserved.min(unattributed),
                (None, _) => 0,
            };
            unattributed = unattributed.saturating_sub(lease.held_mb);

            let delta = lease.alone_from_mb.map(|from| used_mb.saturating_sub(from));
            let seen = match (sum, delta) {
                (Some(mb), _) => Some(Measured {
                    peak_mb: mb,
                    by: MeasuredBy::Process,
                }),
                // A delta says nothing where the driver tells better, but for not knowing it yet.
                (None, Some(mb)) if mb > 0 => Some(Measured {
                    peak_mb: mb,
                    by: MeasuredBy::DeviceDelta,
                }),
                (None, _) => None,
            };
            lease.peak = better(lease.peak, seen);
        }
        if self.leases.is_empty() {
            self.idle_mb = Some(used_mb);
        }
        self.last = Some(Observed {
            used_mb,
            free_mb: reading.free_mb,
            total_mb: reading.total_mb,
            before_release: false,
        });
    }

    /// What a further lease could have, MiB: 0 before the first reading, and beside an unmeasured
    /// one.
    pub fn available_mb(&self) -> u64 {
        let Some(last) = self.last else { return 0 };
        if self.exclusive().is_some() {
            return 0;
        }
        let to_come: u64 = self.leases.iter().map(Lease::to_come_mb).sum();
        self.budget_mb
            .saturating_sub(last.used_mb)
            .min(last.free_mb)
            .saturating_sub(to_come)
    }

    /// Whether `need` can be met now.
    pub fn admit(&self, need: Need) -> Result<(), Short> {
        let have_mb = self.available_mb();
        let short = |why: String| {
            let short_by_mb = need.mb.map_or(0, |need| need.saturating_sub(have_mb));
            Err(Short {
                need_mb: need.mb,
                have_mb,
                short_by_mb,
                why,
            })
        };

        let Some(last) = self.last else {
            return short("the GPU has not been read yet".to_owned());
        };
        if let Some(lease) = self.exclusive() {
            return short(format!(
                "{} has the GPU to itself until its memory is measured",
                lease.id
            ));
        }
        match need.mb {
            Some(mb) if mb <= have_mb => Ok(()),
            Some(mb) if mb > self.budget_mb => short(format!(
                "more than the whole budget of {} MB of {} MB",
                self.budget_mb, last.total_mb
            )),
            Some(_) => short(self.taken(last)),
            None if !self.leases.is_empty() => {
                let others: Vec<_> = self.leases.iter().map(|lease| lease.id.as_str()).collect();
                short(format!(
                    "it runs alone until its memory is measured, and waits for {}",
                    others.join(", ")
                ))
            }
            None if have_mb == 0 => short(self.taken(last)),
            None => Ok(()),
        }
    }

    /// Admits `need` and promises it to `id` (a task's attempt, a model), which has no lease yet.
    pub fn lease(&mut self, id: &str, need: Need) -> Result<(), Short> {
        self.admit(need)?;
        self.adopt(id, need);
        Ok(())
    }

    /// Takes in a lease that is a fact already (a runtime or worker found running at start), whether
    /// or not it fits. One that `id` had is replaced.
    pub fn adopt(&mut self, id: &str, need: Need) {
        self.leases.retain(|lease| lease.id != id);
        let alone = self.leases.is_empty();
        for other in &mut self.leases {
            other.alone_from_mb = None;
            other.peak = other.peak.filter(|peak| peak.by == MeasuredBy::Process);
        }
        let alone_from_mb = self
            .last
            .filter(|last| alone && !last.before_release)
            .map(|last| last.used_mb);
        self.leases.push(Lease {
            id: id.to_owned(),
            reserved_mb: need.mb,
            held_mb: 0,
            peak: None,
            alone_from_mb,
        });
    }

    /// Changes what `id` is promised, as when a model that has loaded turns out to need more or
    /// less. Nothing happens where it has no lease.
    pub fn settle(&mut self, id: &str, reserved_mb: u64) {
        if let Some(lease) = self.leases.iter_mut().find(|lease| lease.id == id) {
            lease.reserved_mb = Some(reserved_mb);
        }
    }

    /// The peak of `id` so far.
    pub fn measured(&self, id: &str) -> Option<Measured> {
        self.leases.iter().find(|lease| lease.id == id)?.peak
    }

    /// Ends the lease of `id` and gives its peak, where one was seen. What its holder used counts
    /// as in use until the next reading shows that it is not.
    pub fn release(&mut self, id: &str) -> Option<Measured> {
        let position = self.leases.iter().position(|lease| lease.id == id)?;
        if let Some(last) = &mut self.last {
            last.before_release = true;
        }
        self.leases.remove(position).peak
    }

    /// The leases: whose, and MiB promised (none: the whole GPU).
    pub fn leases(&self) -> impl Iterator<Item = (&str, Option<u64>)> {
        self.leases
            .iter()
            .map(|lease| (lease.id.as_str(), lease.reserved_mb))
    }

    /// In use, when last observed, by others than the leases, MiB.
    pub fn foreign_mb(&self) -> u64 {
        let held: u64 = self.leases.iter().map(|lease| lease.held_mb).sum();
        self.last
            .map_or(0, |last| last.used_mb.saturating_sub(held))
    }

    fn exclusive(&self) -> Option<&Lease> {
        self.leases.iter().find(|lease| lease.reserved_mb.is_none())
    }

    fn taken(&self, last: Observed) -> String {
        let mut why = format!("budget {} MB of {} MB", self.budget_mb, last.total_mb);
        match self.foreign_mb() {
            0 => {}
            mb if last.before_release => {
                why += &format!(", {mb} MB in use by others or just ended")
            }
            mb => why += &format!(", {mb} MB in use by others"),
        }
        for lease in &self.leases {
            let mb = lease.reserved_mb.unwrap_or(0).max(lease.held_mb);
            why += &format!(", {mb} MB leased to {}", lease.id);
        }
        why
    }
}

impl Lease {
    fn to_come_mb(&self) -> u64 {
        self.reserved_mb.unwrap_or(0).saturating_sub(self.held_mb)
    }
}

/// The greater of two of a kind; what the driver tells by process beats a delta.
fn better(old: Option<Measured>, new: Option<Measured>) -> Option<Measured> {
    match (old, new) {
        (Some(old), Some(new)) if old.by == new.by => {
            Some(if new.peak_mb > old.peak_mb { new } else { old })
        }
        (Some(old), Some(_)) if old.by == MeasuredBy::Process => Some(old),
        (_, Some(new)) => Some(new),
        (old, None) => old,
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
