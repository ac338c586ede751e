//! Whether VRAM has grown with a load, and come back after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::error::{LoadCause, UnloadError};
use crate::host::VramProbe;

const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// The driver frees in steps; this many samples in a row count.
const SAMPLES: u32 = 3;
/// How far from the baseline is back: other programs' own small ups and downs.
const TOLERANCE_MB: u64 = 64;
/// A proven model is in VRAM; the reading may lag.
const GROWTH_PATIENCE: Duration = Duration::from_secs(3);
/// A good [`crate::HostOptions::vram_patience`]: a driver takes seconds to free tens of GB.
pub const VRAM_PATIENCE: Duration = Duration::from_secs(30);

/// `probe`, which tells nothing where it takes longer than `hung_after`, and nothing while such a
/// reading still hangs: NVML on a sick GPU may never answer, and an unload, or the agent's own end,
/// must not wait for it.
pub(crate) fn bounded(probe: VramProbe, hung_after: Duration) -> VramProbe {
    let under_way = Arc::new(AtomicBool::new(false));
    Arc::new(move |gpus: &[String]| {
        if under_way.swap(true, Ordering::AcqRel) {
            return None;
        }
        let (tell, told) = mpsc::sync_channel(1);
        let (probe, gpus) = (Arc::clone(&probe), gpus.to_vec());
        let over = Over(Arc::clone(&under_way));
        let read = move || {
            let used_mb = probe(&gpus);
            drop(over);
            // Nobody waits any more for one that took too long.
            let _ = tell.send(used_mb);
        };
        // Where no thread can be had, nothing is told.
        thread::Builder::new()
            .name("vram".to_owned())
            .spawn(read)
            .ok()?;
        told.recv_timeout(hung_after).ok().flatten()
    })
}

/// The end of a reading, also of one that panics.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// One reading, off the async threads, as NVML can block.
pub(crate) async fn read(probe: &Option<VramProbe>, gpus: &[String]) -> Option<u64> {
    let probe = probe.clone()?;
    let gpus = gpus.to_vec();
    // A probe that panics has told nothing.
    tokio::task::spawn_blocking(move || probe(&gpus))
        .await
        .ok()
        .flatten()
}

/// Waits until at least half of `expected_mb` (or anything, where that is not known) has been
/// added to `before_mb`. Half, because the expectation is an estimate, and what stays on the CPU
/// by mistake adds next to nothing.
pub(crate) async fn grown(
    probe: &Option<VramProbe>,
    gpus: &[String],
    before_mb: u64,
    expected_mb: Option<u64>,
) -> Result<Option<i64>, LoadCause> {
    let least_mb = expected_mb.map_or(1, |expected| (expected / 2).max(1));
    let deadline = tokio::time::Instant::now() + GROWTH_PATIENCE;
    let mut delta_mb = 0;
    loop {
        if let Some(now_mb) = read(probe, gpus).await {
            delta_mb = signed(now_mb) - signed(before_mb);
            if delta_mb >= signed(least_mb) {
                return Ok(Some(delta_mb));
            }
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(LoadCause::NotInVram {
                delta_mb,
                expected_mb: least_mb,
            });
        }
        tokio::time::sleep(SAMPLE_EVERY).await;
    }
}

/// What must be true of VRAM after a runtime is gone.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Return {
    /// At most this much is in use, MB.
    AtMost(u64),
    /// It ended by itself, so what others use beside it is not known: use must have stopped falling.
    Settled,
}

impl Return {
    /// From what was in use before the load and before the stop, and what the load added: work
    /// beside the model may have come and gone since.
    pub(crate) fn from_readings(
        before_load_mb: u64,
        before_stop_mb: Option<u64>,
        delta_mb: Option<i64>,
    ) -> Return {
        let beside = match (before_stop_mb, delta_mb) {
            (Some(used), Some(delta)) => used.saturating_sub(u64::try_from(delta).unwrap_or(0)),
            _ => 0,
        };
        Return::AtMost(before_load_mb.max(beside) + TOLERANCE_MB)
    }
}

/// Waits for 3 samples in a row.
pub(crate) async fn returned(
    probe: &Option<VramProbe>,
    gpus: &[String],
    wanted: Return,
    patience: Duration,
) -> Result<(), UnloadError> {
    let deadline = tokio::time::Instant::now() + patience;
    let mut good = 0;
    let mut previous = None;
    loop {
        let used_mb = read(probe, gpus).await;
        let is_good = match (wanted, used_mb, previous) {
            (Return::AtMost(most), Some(used), _) => used <= most,
            (Return::Settled, Some(used), Some(before)) => used >= before,
            (Return::Settled, Some(_), None) | (_, None, _) => false,
        };
        good = if is_good { good + 1 } else { 0 };
        if good >= SAMPLES {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            let expected_mb = match wanted {
                Return::AtMost(most) => most,
                Return::Settled => previous.unwrap_or(0),
            };
            return Err(UnloadError::Vram {
                waited_s: patience.as_secs(),
                used_mb,
                expected_mb,
            });
        }
        previous = used_mb;
        tokio::time::sleep(SAMPLE_EVERY).await;
    }
}

/// Waits until use has stopped falling after processes were killed: a load that begins on memory
/// that is being given back would seem to take none.
pub(crate) async fn settle(probe: &Option<VramProbe>, gpus: &[String], patience: Duration) {
    if read(probe, gpus).await.is_some() {
        // Still falling after all that time: the load's own proof tells.
        let _ = returned(probe, gpus, Return::Settled, patience).await;
    }
}

fn signed(mb: u64) -> i64 {
    i64::try_from(mb).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// A probe that gives these readings, the last for ever.
    fn readings(values: &'static [Option<u64>]) -> Option<VramProbe> {
        let at = AtomicUsize::new(0);
        Some(Arc::new(move |_: &[String]| {
            values[at.fetch_add(1, Ordering::Relaxed).min(values.len() - 1)]
        }))
    }

    #[tokio::test]
    async fn growth_is_waited_for_and_its_lack_is_told() {
        let lagging = readings(&[Some(500), None, Some(4_600)]);
        assert_eq!(
            grown(&lagging, &[], 500, Some(8_000)).await.unwrap(),
            Some(4_100)
        );
        let on_cpu = readings(&[Some(700)]);
        match grown(&on_cpu, &[], 500, Some(8_000)).await {
            Err(LoadCause::NotInVram {
                delta_mb: 200,
                expected_mb: 4_000,
            }) => {}
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_reading_that_hangs_tells_nothing_and_is_the_only_one_to_hang() {
        let (answer, answers) = mpsc::channel();
        let (answers, asked) = (Mutex::new(answers), Arc::new(AtomicUsize::new(0)));
        let count = asked.clone();
        let hanging: VramProbe = Arc::new(move |_: &[String]| {
            count.fetch_add(1, Ordering::Relaxed);
            answers.lock().unwrap().recv().unwrap()
        });
        let probe = bounded(hanging, Duration::from_millis(50));
        assert_eq!((probe(&[]), probe(&[])), (None, None));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        answer.send(Some(1)).unwrap();
        answer.send(Some(7)).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let mut next = None;
        while next.is_none() && std::time::Instant::now() < deadline {
            next = probe(&[]);
        }
        assert_eq!(next, Some(7), "what came late is not the answer to another");
    }

    #[tokio::test]
    async fn one_low_sample_is_not_enough() {
        let at = Arc::new(AtomicUsize::new(0));
        let seen = at.clone();
        let values = [9_000, 550, 4_000, 540, 540, 540];
        let probe: VramProbe =
            Arc::new(move |_: &[String]| Some(values[at.fetch_add(1, Ordering::Relaxed)]));
        returned(&Some(probe), &[], Return::AtMost(564), VRAM_PATIENCE)
            .await
            .unwrap();
        assert_eq!(seen.load(Ordering::Relaxed), 6);
        let falling = readings(&[
            Some(9_000),
            Some(5_000),
            Some(900),
            Some(900),
            Some(900),
            Some(900),
        ]);
        returned(&falling, &[], Return::Settled, VRAM_PATIENCE)
            .await
            .unwrap();
    }

    #[test]
    fn what_runs_beside_the_model_may_stay() {
        let most = |r| match r {
            Return::AtMost(most) => most,
            Return::Settled => panic!(),
        };
        assert_eq!(
            most(Return::from_readings(500, Some(8_500), Some(8_000))),
            564
        );
        assert_eq!(
            most(Return::from_readings(500, Some(10_500), Some(8_000))),
            2_564,
            "a script of 2 GB beside it"
        );
        assert_eq!(
            most(Return::from_readings(2_500, Some(8_500), Some(8_000))),
            2_564,
            "one that has ended since"
        );
    }
}
