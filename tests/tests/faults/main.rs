//! The fault table: what is done to the programs and to the disk under them, and what must hold
//! all the same. `docs/guarantees.md` says which case shows which row.

#![expect(clippy::unwrap_used, reason = "a failed case panics")]

mod clock;
mod containment;
mod crash_points;
mod disk;
mod fsck;
mod lanes;
mod links;
mod power;
mod read_only;
mod restart;
mod soak;
mod storm;
mod sweep;
mod watching;
