//! Owns: `[backends.rate_limit]`, `[proxy.rate_limit]`: exact admission times of all workers.
//! Never: a clock; time comes as an argument.
//! Next: `concurrency`.
//!
//! ```toml
//! [backends.rate_limit]
//! requests = 30        # never more are admitted in any interval of the period
//! period_seconds = 1
//! ```
//! A ring holds the last `requests` admission times; a request is admitted when the oldest of them
//! is older than the period. Workers share the ring without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A limit and its state, which all workers share.
#[derive(Clone, Debug)]
pub struct RateLimit {
    requests: usize,
    period: Duration,
    ring: Arc<Ring>,
}

impl PartialEq for RateLimit {
    fn eq(&self, other: &RateLimit) -> bool {
        self.requests == other.requests && self.period == other.period
    }
}

/// Alone in its cache lines: every admission writes it.
#[derive(Debug)]
#[repr(align(128))]
struct Ring {
    /// Admissions so far.
    cursor: AtomicU64,
    /// Of each of the last admissions: the lap of the ring in the upper bits, microseconds below.
    slots: Box<[AtomicU64]>,
}

/// Room for nine years of microseconds.
const TIME_BITS: u32 = 48;
const TIME: u64 = (1 << TIME_BITS) - 1;
const LAPS: u64 = 1 << (64 - TIME_BITS);

impl RateLimit {
    /// A limit of that many requests in any interval of that length.
    ///
    /// # Panics
    /// When `requests` is 0.
    pub fn new(requests: usize, period: Duration) -> RateLimit {
        assert!(requests > 0);
        // Lap 0 is no admission, so that the first lap finds its slots free.
        let slots = (0..requests).map(|_| AtomicU64::new(0)).collect();
        RateLimit { requests, period, ring: Arc::new(Ring { cursor: AtomicU64::new(0), slots }) }
    }

    /// Admits a request at `now`, a time since any fixed moment.
    ///
    /// # Errors
    /// How long to wait until the next one can be admitted.
    pub fn admit(&self, now: Duration) -> Result<(), Duration> {
        let ring = &*self.ring;
        let size = ring.slots.len() as u64;
        // Both rounded so that an interval is never too short.
        let period = u64::try_from(self.period.as_nanos().div_ceil(1000)).unwrap_or(TIME).min(TIME);
        let period = period + 1;
        loop {
            let at = ring.cursor.load(Ordering::SeqCst);
            let lap = (at / size + 1) % LAPS;
            let slot = &ring.slots[(at % size) as usize];
            let seen = slot.load(Ordering::SeqCst);
            if seen >> TIME_BITS == lap {
                // Taken by one who has not moved the cursor yet: done for him.
                let _ =
                    ring.cursor.compare_exchange(at, at + 1, Ordering::SeqCst, Ordering::SeqCst);
                continue;
            }
            if ring.cursor.load(Ordering::SeqCst) != at {
                continue;
            }
            // Times ascend along the ring, whatever clocks were read when.
            let before = match at {
                0 => 0,
                at => ring.slots[((at - 1) % size) as usize].load(Ordering::SeqCst) & TIME,
            };
            let time = (now.as_micros() as u64).max(before) & TIME;
            if at >= size && time < (seen & TIME) + period {
                return Err(Duration::from_micros((seen & TIME) + period - time));
            }
            let taken = lap << TIME_BITS | time;
            if slot.compare_exchange(seen, taken, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                let _ =
                    ring.cursor.compare_exchange(at, at + 1, Ordering::SeqCst, Ordering::SeqCst);
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::testing::Dice;

    const MS: Duration = Duration::from_millis(1);

    /// Hours of bursts and pauses: no interval of one period ever holds more than the limit, and a
    /// request is refused only if one does.
    #[test]
    fn never_more_in_any_interval_and_never_less() {
        let mut dice = Dice(7);
        for (requests, period) in [(1, 1000), (3, 10), (30, 1000), (100, 60_000)] {
            let limit = RateLimit::new(requests, MS * period);
            let mut now = Duration::ZERO;
            let mut admitted: Vec<Duration> = Vec::new();
            for _ in 0..100_000 {
                now += match dice.below(10) {
                    0 => MS * dice.below(2 * u64::from(period)) as u32,
                    _ => Duration::from_micros(dice.below(20_000)),
                };
                let mut recent = admitted.iter().rev().take(requests);
                let oldest = recent.next_back().filter(|_| admitted.len() >= requests).copied();
                match limit.admit(now) {
                    Ok(()) => {
                        assert!(oldest.is_none_or(|oldest| now - oldest > MS * period));
                        admitted.push(now);
                    }
                    Err(wait) => {
                        let free = oldest.unwrap() + MS * period + Duration::from_micros(2);
                        assert!(now < free && now + wait <= free + Duration::from_micros(1));
                    }
                }
            }
            assert!(admitted.len() > requests);
        }
    }

    #[test]
    fn the_full_number_at_once_after_a_pause() {
        let limit = RateLimit::new(5, MS * 100);
        for round in 0..3 {
            let now = MS * 1000 * round;
            for _ in 0..5 {
                limit.admit(now).unwrap();
            }
            let wait = limit.admit(now + MS * 40).unwrap_err();
            assert!(wait >= MS * 60 && wait < MS * 61);
        }
    }

    /// Threads on one ring, with a shared clock that they advance: the ring's own times are the
    /// admissions, so it is they that must keep the distance.
    #[test]
    fn exact_across_threads() {
        const REQUESTS: usize = 7;
        let limit = RateLimit::new(REQUESTS, MS);
        let clock = AtomicU64::new(0);
        let admitted = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        let now = clock.fetch_add(3, Ordering::SeqCst);
                        if limit.admit(Duration::from_micros(now)).is_ok() {
                            admitted.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        let time = clock.load(Ordering::SeqCst);
        let most = (time / 1000 + 1) * REQUESTS as u64;
        let count = admitted.load(Ordering::SeqCst);
        assert!(count <= most, "{count} of {most}");
        assert!(count >= most * 9 / 10, "{count} of {most}");
        assert_eq!(count, limit.ring.cursor.load(Ordering::SeqCst));
    }
}
