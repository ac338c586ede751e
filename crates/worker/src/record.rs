//! The attempt's record.

use std::io;
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rigor_exec::WorkerArgs;
use rigor_queue::record::{AttemptRecord, Peaks};
use rigor_queue::records;
use rigor_queue::rig::Rig;
use rigor_queue::task::TaskSpec;

use crate::capture::Capture;
use crate::log::Log;
use crate::outcome::Ended;
use crate::signals::Signals;

/// Between two tries to write the record to a disk that is full.
const ROOM_EVERY: Duration = Duration::from_secs(1);

/// Puts the record together. To be called when all children are reaped: their use is in it.
pub(crate) fn compose(
    args: &WorkerArgs,
    spec: &TaskSpec,
    started: Instant,
    started_at: Timestamp,
    ended: Ended,
    output: &Capture,
) -> AttemptRecord {
    AttemptRecord {
        id: spec.id,
        batch: spec.batch.clone(),
        task: spec.task.clone(),
        name: spec.name.clone(),
        class: spec.class,
        attempt: args.file.attempt,
        agent: args.agent.clone(),
        nonce: Some(args.nonce.clone()),
        started: Some(started_at),
        ended: Timestamp::now(),
        duration_ms: started.elapsed().as_millis() as u64,
        outcome: ended.outcome,
        exit_code: ended.exit_code,
        signal: ended.signal,
        peaks: peaks(),
        output_bytes: output.total(),
        output_dropped: output.dropped(),
        llm: ended.llm,
        gpu_memory: None,
    }
}

/// Writes the record, over one that is torn or of a claim that a power cut made forgotten. While
/// the disk is full it waits: what was computed is not thrown away for that.
pub(crate) fn write(
    rig: &Rig,
    record: &AttemptRecord,
    signals: &mut Signals,
    log: &Log,
) -> anyhow::Result<()> {
    let mut said = false;
    loop {
        let tried = match records::write_new(rig, record) {
            Ok(true) => return Ok(()),
            Ok(false) => records::replace(rig, record),
            Err(error) => Err(error),
        };
        let Err(error) = tried else { return Ok(()) };
        let full = matches!(
            error.io_kind(),
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        );
        if !full || (said && signals.terminate()) {
            return Err(error).context("write the attempt's record");
        }
        if !said {
            log.warning(&format!(
                "task {} is done and its record cannot be written ({error}); waiting for room on the disk",
                record.id.short()
            ));
            said = true;
        }
        signals.wait(None, Some(Instant::now() + ROOM_EVERY));
    }
}

/// What the task's processes used at most, as far as they were waited for.
fn peaks() -> Peaks {
    match getrusage(UsageWho::RUSAGE_CHILDREN) {
        Ok(usage) => {
            let cpu = usage.user_time() + usage.system_time();
            Peaks {
                // Linux counts it in KiB (getrusage(2)).
                rss_mb: u64::try_from(usage.max_rss())
                    .ok()
                    .map(|kib| kib.div_ceil(1024)),
                cpu_ms: u64::try_from(cpu.num_milliseconds()).ok(),
                vram_mb: None,
            }
        }
        Err(_) => Peaks::default(),
    }
}
