//! Owns: `[backends.rate_limit]`, `[proxy.rate_limit]`: exact admission times of all workers.
//! Never: a clock; time comes as an argument.
//! Next: `quota`, each caller by itself.
//!
//! ```toml
//! [backends.rate_limit]
//! requests = 30        # never more are admitted in any interval of the period
//! period_seconds = 1
//! per = "all"          # or "principal": each caller by itself
//! ```
//! A ring holds the last `requests` admission times; a request is admitted when the oldest of them
//! is older than the period. Workers share the ring without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::quota::Table;

/// A limit and its state, which all workers share.
#[derive(Clone, Debug)]
pub struct RateLimit {
    requests: usize,
    period: Duration,
    scope: Scope,
}

/// Who is counted together.
#[derive(Clone, Debug)]
enum Scope {
    All(Arc<Ring>),
    EachPrincipal(Arc<Table>),
}

impl PartialEq for RateLimit {
    fn eq(&self, other: &RateLimit) -> bool {
        self.requests == other.requests
            && self.period == other.period
            && std::mem::discriminant(&self.scope) == std::mem::discriminant(&other.scope)
    }
}

/// Why a ring does not admit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It is full for so long.
    Wait(Duration),
    /// It was given up: there is another one.
    Closed,
}

/// Admission times. Alone in its cache lines: every admission writes it.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Ring {
    /// Admissions so far.
    cursor: AtomicU64,
    /// No admission is earlier, in microseconds.
    since: u64,
    /// Of each of the last admissions: the lap of the ring in the upper bits, microseconds below.
    slots: Box<[AtomicU64]>,
}

/// Room for nine years of microseconds.
const TIME_BITS: u32 = 48;
const TIME: u64 = (1 << TIME_BITS) - 1;
const LAPS: u64 = 1 << (64 - TIME_BITS);

/// What stands where the next admission would in a ring that is given up; no time is that late.
const CLOSED: u64 = u64::MAX;

impl RateLimit {
    /// A limit of that many requests in any interval of that length.
    ///
    /// # Panics
    /// When `requests` is 0.
    pub fn new(requests: usize, period: Duration) -> RateLimit {
        RateLimit {
            requests,
            period,
            scope: Scope::All(Arc::new(Ring::new(requests, Duration::ZERO))),
        }
    }

    /// The same for each principal by itself.
    ///
    /// # Panics
    /// When `requests` is 0.
    pub fn per_principal(requests: usize, period: Duration) -> RateLimit {
        let table = Arc::new(Table::new(requests));
        RateLimit { requests, period, scope: Scope::EachPrincipal(table) }
    }

    /// Admits a request of a principal at `now`, a time since any fixed moment. All callers without
    /// one are one.
    ///
    /// # Errors
    /// How long to wait until the next one can be admitted.
    pub fn admit(&self, now: Duration, principal: Option<&str>) -> Result<(), Duration> {
        let outcome = match &self.scope {
            Scope::All(ring) => ring.admit(now, self.period),
            Scope::EachPrincipal(table) => {
                table.admit(now, self.period, principal.unwrap_or_default())
            }
        };
        outcome.map_err(|stop| match stop {
            Stop::Wait(wait) => wait,
            Stop::Closed => self.period,
        })
    }
}

/// An interval as the times in a ring are compared: both rounded so that none is too short.
fn micros(period: Duration) -> u64 {
    u64::try_from(period.as_nanos().div_ceil(1000)).unwrap_or(TIME).min(TIME) + 1
}

impl Ring {
    /// Room for that many admissions, at `since` or later.
    ///
    /// # Panics
    /// When there is none.
    pub(super) fn new(requests: usize, since: Duration) -> Ring {
        assert!(requests > 0);
        let since = since.as_micros() as u64 & TIME;
        // Lap 0 is no admission, so that the first lap finds its slots free.
        let slots = (0..requests).map(|_| AtomicU64::new(0)).collect();
        Ring { cursor: AtomicU64::new(0), since, slots }
    }

    /// The slot of the next admission, its number, and what stands there; whoever has taken it
    /// without moving the cursor is helped.
    fn next(&self) -> (&AtomicU64, u64, u64) {
        let size = self.slots.len() as u64;
        let order = Ordering::SeqCst;
        loop {
            let at = self.cursor.load(order);
            let slot = &self.slots[(at % size) as usize];
            let seen = slot.load(order);
            if seen != CLOSED && seen >> TIME_BITS == lap(at, size) {
                let _ = self.cursor.compare_exchange(at, at + 1, order, order);
                continue;
            }
            if self.cursor.load(order) == at {
                return (slot, at, seen);
            }
        }
    }

    /// When the last one before the admission `at` was, in microseconds.
    fn before(&self, at: u64) -> u64 {
        let size = self.slots.len() as u64;
        match at {
            0 => self.since,
            at => self.slots[((at - 1) % size) as usize].load(Ordering::SeqCst) & TIME,
        }
    }

    /// Admits at `now`, if fewer than all slots were taken within `period` before.
    pub(super) fn admit(&self, now: Duration, period: Duration) -> Result<(), Stop> {
        let (size, period, order) = (self.slots.len() as u64, micros(period), Ordering::SeqCst);
        loop {
            let (slot, at, seen) = self.next();
            if seen == CLOSED {
                return Err(Stop::Closed);
            }
            // Times ascend along the ring, whatever clocks were read when.
            let time = (now.as_micros() as u64).max(self.before(at)) & TIME;
            if at >= size && time < (seen & TIME) + period {
                return Err(Stop::Wait(Duration::from_micros((seen & TIME) + period - time)));
            }
            let taken = lap(at, size) << TIME_BITS | time;
            if slot.compare_exchange(seen, taken, order, order).is_ok() {
                let _ = self.cursor.compare_exchange(at, at + 1, order, order);
                return Ok(());
            }
        }
    }

    /// Gives the ring up if it has forgotten everything: none was admitted within `period` before
    /// `now`. True if it is given up: an admission that comes too late for it finds it closed.
    pub(super) fn close_if_idle(&self, now: Duration, period: Duration) -> bool {
        let (slot, at, seen) = self.next();
        if seen == CLOSED {
            return true;
        }
        if at > 0 && (now.as_micros() as u64) < self.before(at) + micros(period) {
            return false;
        }
        slot.compare_exchange(seen, CLOSED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Admissions so far.
    #[cfg(test)]
    fn admitted(&self) -> u64 {
        self.cursor.load(Ordering::SeqCst)
    }
}

/// The lap in which the admission `at` is; never that of [`CLOSED`].
fn lap(at: u64, size: u64) -> u64 {
    (at / size + 1) % (LAPS - 1)
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
                match limit.admit(now, None) {
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
                limit.admit(now, None).unwrap();
            }
            let wait = limit.admit(now + MS * 40, None).unwrap_err();
            assert!(wait >= MS * 60 && wait < MS * 61);
        }
    }

    #[test]
    fn only_an_idle_ring_is_given_up_and_then_for_good() {
        let (ring, period) = (Ring::new(2, MS), MS * 100);
        ring.admit(MS * 50, period).unwrap();
        assert!(!ring.close_if_idle(MS * 150, period));
        ring.admit(MS * 150, period).unwrap();
        assert!(!ring.close_if_idle(MS * 200, period));
        assert!(ring.close_if_idle(MS * 251, period));
        assert!(ring.close_if_idle(MS, period), "once closed it stays so");
        assert_eq!(ring.admit(MS * 252, period), Err(Stop::Closed));
        assert_eq!(ring.admitted(), 2);
        let fresh = Ring::new(1, MS);
        assert!(fresh.close_if_idle(Duration::ZERO, period));
        assert_eq!(fresh.admit(Duration::ZERO, period), Err(Stop::Closed));
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
                        if limit.admit(Duration::from_micros(now), None).is_ok() {
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
        let Scope::All(ring) = &limit.scope else { panic!("one for all") };
        assert_eq!(count, ring.admitted());
    }
}
