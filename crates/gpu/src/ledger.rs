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
//! available = min(budget - used, free) - sum(max(reserved, peak) - held, where positive)
//! ```
//!
//! A holder that was seen to use more than it was promised will do so again, so its peak counts.
//!
//! **After a release** the driver gives memory back late, what the holder took after the last
//! reading is in none, and a reading that was asked for before may come in after. So an ended lease
//! counts as before until a reading that was asked for after its end has come in; then that reading
//! counts. Nor may anything be *measured* from what is in use meanwhile: an unmeasured task or a
//! model that began then would be taken to need too little. So the ledger is
//! [settling](Ledger::settling) until the memory is back, for at most [`SETTLE_READINGS`]: what is
//! still in use then is somebody's. Until then nothing unmeasured is admitted.
//!
//! **A reading that failed** says that what is known is old: [`Ledger::lost_sight`]. Until the next
//! one that succeeds nothing is admitted.
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

/// Memory that an ended holder had and that so many readings do not show to be back is taken to be
/// somebody else's.
pub const SETTLE_READINGS: u32 = 10;

/// What the memory in use may differ by and still be called the same, MiB: a context of another
/// process that comes or goes takes more.
const SETTLE_SLACK_MB: u64 = 64;

/// The ledger of one GPU.
#[derive(Clone, Debug)]
pub struct Ledger {
    budget_mb: u64,
    last: Option<Observed>,
    /// The last try to read the GPU failed.
    blind: bool,
    /// A reading was asked for and has not come in.
    on_its_way: bool,
    settling: Option<Settling>,
    /// Leases that no reading has shown without.
    ended: Vec<Ended>,
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
}

/// A lease has ended, and its memory was not seen to be back yet.
#[derive(Clone, Debug)]
struct Settling {
    /// Whose.
    id: String,
    /// In use without what it held, MiB.
    expected_mb: u64,
    /// Since it ended.
    readings: u32,
}

/// A lease whose end is in no reading yet.
#[derive(Clone, Debug)]
struct Ended {
    lease: Lease,
    /// Readings to come until one was asked for after its end.
    unread: u32,
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
            blind: false,
            on_its_way: false,
            settling: None,
            ended: Vec::new(),
            idle_mb: None,
            leases: Vec::new(),
        }
    }

    /// What leases may add up to, MiB.
    pub fn budget_mb(&self) -> u64 {
        self.budget_mb
    }

    /// The most that a lease can have here, were it the only one: the budget, less what was in use
    /// when the GPU was last seen without any lease. A need between the two can only be met by the
    /// whole GPU.
    pub fn most_mb(&self) -> u64 {
        self.budget_mb.saturating_sub(self.idle_mb.unwrap_or(0))
    }

    /// Takes in a reading. `owner` tells which lease a process of the GPU belongs to; none: nobody
    /// of ours. Due after every change of leases, and every second or so while there are any: a
    /// peak between two readings is not seen.
    pub fn observe<'a>(&mut self, reading: &Reading, owner: impl Fn(u32) -> Option<&'a str>) {
        let used_mb = reading.used_mb;
        self.blind = false;
        self.on_its_way = false;
        let by_process = reading
            .processes
            .iter()
            .any(|process| process.used_mb.is_some());
        let mut unattributed = used_mb.saturating_sub(self.idle_mb.unwrap_or(used_mb));

        let ended = self.ended.iter_mut().map(|ended| &mut ended.lease);
        for lease in self.leases.iter_mut().chain(ended) {
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
                // It is the only one.
                (None, None) if !by_process => unattributed,
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
        // Of two holders of one name it is not known whose a process is: what the reading shows may
        // all be the ended one's.
        for lease in &mut self.leases {
            if self.ended.iter().any(|ended| ended.lease.id == lease.id) {
                lease.held_mb = 0;
            }
        }
        self.ended.retain_mut(|ended| {
            ended.unread -= 1;
            ended.unread > 0
        });
        self.settle_after(used_mb);
        if self.leases.is_empty() && self.settling.is_none() {
            self.idle_mb = Some(used_mb);
        }
        self.last = Some(Observed {
            used_mb,
            free_mb: reading.free_mb,
            total_mb: reading.total_mb,
        });
    }

    /// A reading was asked for. It shows what was before anything that happens from now on.
    pub fn reading_asked(&mut self) {
        self.on_its_way = true;
    }

    /// The GPU could not be read: what was read before is no ground for a promise any more.
    pub fn lost_sight(&mut self) {
        self.blind = true;
        self.on_its_way = false;
    }

    /// The lease that has ended and whose memory was not seen to be back yet. Readings are due
    /// while there is one.
    pub fn settling(&self) -> Option<&str> {
        self.settling.as_ref().map(|it| it.id.as_str())
    }

    fn settle_after(&mut self, used_mb: u64) {
        let Some(settling) = &mut self.settling else {
            return;
        };
        settling.readings += 1;
        // What was in use without any lease is reached where all is back, whatever was attributed.
        let expected_mb = settling.expected_mb.max(self.idle_mb.unwrap_or(0));
        let back = self.ended.is_empty() && used_mb <= expected_mb + SETTLE_SLACK_MB;
        if back || settling.readings >= SETTLE_READINGS {
            self.settling = None;
        }
    }

    /// What a further lease could have, MiB: 0 before the first reading, after one that failed, and
    /// beside an unmeasured lease.
    pub fn available_mb(&self) -> u64 {
        let Some(last) = self.last else { return 0 };
        let unmeasured_ended = self
            .ended
            .iter()
            .any(|ended| ended.lease.reserved_mb.is_none());
        if self.blind || self.exclusive().is_some() || unmeasured_ended {
            return 0;
        }
        let ended = self.ended.iter().map(|ended| &ended.lease);
        let to_come: u64 = self.leases.iter().chain(ended).map(Lease::to_come_mb).sum();
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
        if self.blind {
            return short("the last reading of the GPU failed".to_owned());
        }
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
            None => match &self.settling {
                Some(settling) => short(format!(
                    "it is to be measured, and the memory of {}, which has ended, is not seen to be back yet",
                    settling.id
                )),
                None => Ok(()),
            },
        }
    }

    /// Admits `need` and promises it to `id` (a task's attempt, a model), which has no lease yet.
    pub fn lease(&mut self, id: &str, need: Need) -> Result<(), Short> {
        self.admit(need)?;
        self.add(id, need);
        Ok(())
    }

    /// Takes in a lease that is a fact already (a runtime found running at start), whether or not it
    /// fits: what was read so far has its memory in it. One that `id` had is replaced.
    pub fn adopt(&mut self, id: &str, need: Need) {
        let is_first = self.leases.is_empty();
        self.add(id, need);
        let Some(lease) = self.leases.last_mut() else {
            return;
        };
        // What was in use before it began is not known.
        lease.alone_from_mb = None;
        if let (true, Some(mb), Some(with_it_mb)) = (is_first, need.mb, self.idle_mb) {
            lease.held_mb = mb.min(with_it_mb);
            self.idle_mb = Some(with_it_mb.saturating_sub(mb));
        }
    }

    fn add(&mut self, id: &str, need: Need) {
        self.leases.retain(|lease| lease.id != id);
        let alone = self.leases.is_empty();
        for other in &mut self.leases {
            other.alone_from_mb = None;
            other.peak = other.peak.filter(|peak| peak.by == MeasuredBy::Process);
        }
        let alone_from_mb = self
            .last
            .filter(|_| alone && self.settling.is_none())
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
        let lease = self.leases.remove(position);
        // Two that end at once are waited for together.
        let used_mb = match &self.settling {
            Some(settling) => settling.expected_mb,
            None => self.last.map_or(0, |last| last.used_mb),
        };
        self.settling = Some(Settling {
            id: lease.id.clone(),
            expected_mb: used_mb.saturating_sub(lease.held_mb),
            readings: 0,
        });
        let peak = lease.peak;
        self.ended.push(Ended {
            lease,
            unread: if self.on_its_way { 2 } else { 1 },
        });
        peak
    }

    /// Ends the lease of `id` under which nothing ever ran: there is no memory to wait for.
    pub fn take_back(&mut self, id: &str) {
        self.leases.retain(|lease| lease.id != id);
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
            mb if self.settling.is_some() => {
                why += &format!(", {mb} MB in use by others or just ended")
            }
            mb => why += &format!(", {mb} MB in use by others"),
        }
        if !self.ended.is_empty() {
            why += ", a reading since the last end is to come";
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
        // A delta that others may have a part in counts no higher than the promise.
        let peak_mb = match self.peak {
            Some(Measured {
                peak_mb,
                by: MeasuredBy::Process,
            }) => peak_mb,
            Some(_) | None => 0,
        };
        let wanted_mb = self.reserved_mb.unwrap_or(0).max(peak_mb);
        wanted_mb.saturating_sub(self.held_mb)
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
