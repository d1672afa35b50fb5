//! Owns: the calls that a breaker looks at: the last so many, or those of the last seconds, of all
//! workers.
//! Never: a clock, a lock; what follows from them (`breaker`).
//! Next: `outlier`.
//!
//! Every worker writes the outcomes of its own calls, and nobody else does; who wants to know reads
//! what all of them wrote. Of the last so many calls each worker keeps so many with their times; of the
//! last seconds each keeps counts, one for every sixtieth of the time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How far back it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// So many calls.
    Calls(usize),
    /// So long, less a sixtieth at most.
    Time(Duration),
}

/// Bits of an era, which tells outcomes of different states of a breaker apart.
pub(super) const ERA_BITS: u32 = 12;
/// Eras, before they come again.
pub(super) const ERAS: u64 = 1 << ERA_BITS;
/// Parts of a window of time.
const SLICES: u64 = 60;

/// The outcomes of calls.
#[derive(Debug)]
pub(super) enum Window {
    Calls(usize, Box<[Ring]>),
    /// With the microseconds of one slice.
    Time(u64, Box<[Slices]>),
}

/// Written by one worker, read by all.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Ring {
    /// Outcomes so far.
    count: AtomicU64,
    /// Time in microseconds, era, failed or not; 0 = none yet.
    outcomes: Box<[AtomicU64]>,
}

/// Written by one worker, read by all.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Slices([Slice; SLICES as usize]);

/// The calls of one slice: above, which slice and era it is, in 32 bits a count.
#[derive(Debug, Default)]
struct Slice {
    calls: AtomicU64,
    failed: AtomicU64,
}

// An outcome: the era, a failure bit, and a time above zero.
const TIME: u64 = (1 << (u64::BITS - ERA_BITS - 1)) - 1;

const fn outcome(time: u64, era: u64, failed: bool) -> u64 {
    (time & TIME) << (ERA_BITS + 1) | era << 1 | failed as u64
}

const COUNT_BITS: u32 = 32;
const NUMBERS: u64 = 1 << (u64::BITS - COUNT_BITS - ERA_BITS);

/// What stands above the counts of a slice.
const fn tag(number: u64, era: u64) -> u64 {
    (number % NUMBERS) << ERA_BITS | era
}

/// Adds to a count that this thread alone writes, and that begins anew under another tag.
fn add(cell: &AtomicU64, tag: u64, by: u64) {
    let old = cell.load(Ordering::Relaxed);
    let count = if old >> COUNT_BITS == tag { old & u64::from(u32::MAX) } else { 0 };
    let count = (count + by).min(u64::from(u32::MAX));
    cell.store(tag << COUNT_BITS | count, Ordering::SeqCst);
}

/// The count under that tag.
fn read(cell: &AtomicU64, tag: u64) -> u64 {
    let seen = cell.load(Ordering::SeqCst);
    if seen >> COUNT_BITS == tag { seen & u64::from(u32::MAX) } else { 0 }
}

impl Window {
    /// An empty one.
    pub(super) fn new(span: Span, workers: usize) -> Window {
        match span {
            Span::Calls(calls) => {
                let slot = |_| AtomicU64::new(0);
                let ring =
                    |_| Ring { count: AtomicU64::new(0), outcomes: (0..calls).map(slot).collect() };
                Window::Calls(calls, (0..workers).map(ring).collect())
            }
            Span::Time(time) => {
                let slices = |_| Slices(std::array::from_fn(|_| Slice::default()));
                let micros = (time.as_micros() as u64 / SLICES).max(1);
                Window::Time(micros, (0..workers).map(slices).collect())
            }
        }
    }

    /// A call of a worker ended at `now`.
    pub(super) fn add(&self, worker: usize, era: u64, failed: bool, now: Duration) {
        let now = (now.as_micros() as u64).max(1);
        match self {
            Window::Calls(_, rings) => {
                let ring = &rings[worker];
                let count = ring.count.load(Ordering::Relaxed);
                let at = (count % ring.outcomes.len() as u64) as usize;
                ring.outcomes[at].store(outcome(now, era, failed), Ordering::SeqCst);
                ring.count.store(count + 1, Ordering::Relaxed);
            }
            Window::Time(micros, workers) => {
                let number = now / micros;
                let slice = &workers[worker].0[(number % SLICES) as usize];
                // Failures last: nobody sees more of them than calls.
                add(&slice.calls, tag(number, era), 1);
                add(&slice.failed, tag(number, era), u64::from(failed));
            }
        }
    }

    /// Calls of an era that are in it at `now`, and how many of them failed.
    pub(super) fn count(&self, era: u64, now: Duration) -> (usize, usize) {
        match self {
            Window::Calls(calls, rings) => {
                let mut all: Vec<u64> = Vec::with_capacity(calls * rings.len());
                for ring in rings {
                    let seen = ring.outcomes.iter().map(|outcome| outcome.load(Ordering::SeqCst));
                    all.extend(seen.filter(|seen| *seen != 0 && seen >> 1 & (ERAS - 1) == era));
                }
                // The time stands in the upper bits.
                all.sort_unstable_by(|a, b| b.cmp(a));
                all.truncate(*calls);
                (all.len(), all.iter().filter(|seen| *seen & 1 == 1).count())
            }
            Window::Time(micros, workers) => {
                let last = (now.as_micros() as u64).max(1) / micros;
                let (mut calls, mut failed) = (0, 0);
                for number in last.saturating_sub(SLICES - 1)..=last {
                    for worker in workers {
                        let slice = &worker.0[(number % SLICES) as usize];
                        failed += read(&slice.failed, tag(number, era));
                        calls += read(&slice.calls, tag(number, era));
                    }
                }
                (calls as usize, failed as usize)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::testing::Dice;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_older_than_the_time_is_forgotten() {
        let window = Window::new(Span::Time(MS * 60_000), 2);
        window.add(0, 3, true, MS * 500);
        window.add(1, 3, false, MS * 1_500);
        window.add(0, 2, true, MS * 1_500);
        assert_eq!(window.count(3, MS * 59_999), (2, 1));
        assert_eq!(window.count(3, MS * 60_000), (1, 0));
        assert_eq!(window.count(2, MS * 60_000), (1, 1));
        assert_eq!(window.count(3, MS * 61_000), (0, 0));
        assert_eq!(window.count(3, MS * 3_600_000), (0, 0));
    }

    /// Days of chance against a plain list of everything.
    #[test]
    fn agrees_with_a_model() {
        for (seed, seconds) in [(1, 10), (2, 60), (3, 3600)] {
            let mut dice = Dice(seed);
            let window = Window::new(Span::Time(MS * 1000 * seconds), 3);
            let slice = u64::from(seconds) * 1_000_000 / SLICES;
            let mut all: Vec<(u64, u64, bool)> = Vec::new();
            let mut now = MS;
            for _ in 0..20_000 {
                now += Duration::from_micros(dice.below(u64::from(seconds) * 40_000));
                let (era, failed) = (dice.below(2), dice.below(3) == 0);
                let number = now.as_micros() as u64 / slice;
                window.add(dice.below(3) as usize, era, failed, now);
                all.push((number, era, failed));
                all.retain(|(of, ..)| of + SLICES > number);
                let of_era = || all.iter().filter(|(_, its, _)| *its == era);
                let failed = of_era().filter(|(.., failed)| *failed).count();
                // A slice holds one era at a time: what another one wrote there is forgotten.
                let (calls, failures) = window.count(era, now);
                assert!(calls <= of_era().count() && failures <= failed && failures <= calls);
            }
        }
        // In one era, as between two verdicts, nothing is missing.
        let mut dice = Dice(4);
        let window = Window::new(Span::Time(MS * 6_000), 3);
        let mut all: Vec<(u64, bool)> = Vec::new();
        let mut now = MS;
        for _ in 0..50_000 {
            now += Duration::from_micros(dice.below(20_000));
            let failed = dice.below(3) == 0;
            let number = now.as_micros() as u64 / 100_000;
            window.add(dice.below(3) as usize, 7, failed, now);
            all.push((number, failed));
            all.retain(|(of, _)| of + SLICES > number);
            let failures = all.iter().filter(|(_, failed)| *failed).count();
            assert_eq!(window.count(7, now), (all.len(), failures));
        }
    }
}
