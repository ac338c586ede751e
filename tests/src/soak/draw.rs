//! What is drawn, and from what: the n-th draw of a stream depends on the seed alone, not on what
//! happened before.

use std::time::Duration;

/// The parts of a soak that draw.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    Kills,
    Faults,
    Load,
}

/// All draws of a seed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draws {
    seed: u64,
}

impl Draws {
    pub(super) fn new(seed: u64) -> Draws {
        Draws { seed }
    }

    /// The numbers for the `n`-th thing of a stream.
    pub(super) fn of(self, stream: Stream, n: u64) -> fastrand::Rng {
        // Distinct for all that a soak draws; the generator mixes it.
        let own = (n << 2) | stream as u64;
        let mut mixed = fastrand::Rng::with_seed(self.seed);
        fastrand::Rng::with_seed(mixed.u64(..) ^ own.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// From half to one and a half of a time.
pub(super) fn around(rng: &mut fastrand::Rng, time: Duration) -> Duration {
    time.mul_f64(0.5 + rng.f64())
}

/// A moment within these milliseconds.
pub(super) fn milliseconds(rng: &mut fastrand::Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.u64(range))
}

/// One of them, if there is one.
pub(super) fn one<'a, T>(rng: &mut fastrand::Rng, of: &'a [T]) -> Option<&'a T> {
    // Drawn also where there is none: what comes next stays the same.
    let at = rng.usize(0..1 << 30);
    of.get(at % of.len().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_depends_on_seed_stream_and_number() {
        let first = |seed, stream, n| Draws::new(seed).of(stream, n).u64(..);
        assert_eq!(first(7, Stream::Kills, 3), first(7, Stream::Kills, 3));
        let mut all: Vec<u64> = (0..100)
            .flat_map(|n| {
                [Stream::Kills, Stream::Faults, Stream::Load]
                    .into_iter()
                    .flat_map(move |stream| [7, 8].map(|seed| first(seed, stream, n)))
            })
            .collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 600);
    }
}
