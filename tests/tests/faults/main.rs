//! The fault table: what is done to the programs and to the disk under them, and what must hold
//! all the same. `docs/guarantees.md` says which case shows which row.

#![expect(clippy::unwrap_used, reason = "a failed case panics")]

mod clock;
mod crash_points;
mod disk;
mod lanes;
mod power;
mod storm;
mod sweep;
mod watching;
