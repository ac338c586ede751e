//! The rig directory: lanes, the immutable task file, the claim protocol, and the wake-ups over it.
//!
//! `docs/queue-protocol.md` is the protocol in words; this crate is the only code that builds
//! paths in a rig or moves task files. It is synchronous and keeps no state but the index.

pub mod archive;
pub mod claim;
pub mod copies;
pub mod crash;
pub mod error;
mod format;
pub mod fsck;
pub mod heartbeat;
pub mod index;
pub mod keys;
pub mod lane;
mod lease;
pub mod name;
pub mod outlook;
pub mod output;
pub mod presence;
pub mod reasons;
pub mod record;
pub mod records;
pub mod rig;
mod small;
pub mod submit;
pub mod task;
pub mod watch;

pub use error::{QueueError, Result};
pub use lease::Lease;
