//! Owns: `rate_limit.per = "principal"`: a ring of admission times for each caller who was there lately.
//! Never: a clock, a lock; the rings themselves (`rate`).
//! Next: `concurrency`.
//!
//! Callers are spread over buckets by hash. A bucket is an immutable list behind one atomic pointer:
//! who is new puts a longer list in its place, in which those are missing whose rings have forgotten
//! everything. Such a ring is closed first, so that nobody is admitted by one that is on its way out.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::rate::{Ring, Stop};
use crate::limits::{RATE_BUCKET_CALLERS_MAX, RATE_BUCKETS};

/// The callers of one limit.
#[derive(Debug)]
pub(super) struct Table {
    requests: usize,
    hasher: ahash::RandomState,
    buckets: Box<[ArcSwap<Vec<Arc<Seat>>>]>,
}

#[derive(Debug)]
struct Seat {
    principal: Box<str>,
    ring: Ring,
}

impl Table {
    /// Room for that many admissions of each caller.
    pub(super) fn new(requests: usize) -> Table {
        let bucket = |_| ArcSwap::from_pointee(Vec::new());
        Table {
            requests,
            hasher: ahash::RandomState::new(),
            buckets: (0..RATE_BUCKETS).map(bucket).collect(),
        }
    }

    /// Admits a request of a caller at `now`.
    pub(super) fn admit(
        &self,
        now: Duration,
        period: Duration,
        principal: &str,
    ) -> Result<(), Stop> {
        let at = self.hasher.hash_one(principal) as usize % self.buckets.len();
        let bucket = &self.buckets[at];
        loop {
            let seats = bucket.load();
            let seat = seats.iter().find(|seat| *seat.principal == *principal);
            match seat.map(|seat| seat.ring.admit(now, period)) {
                Some(Err(Stop::Closed)) | None => {}
                Some(told) => return told,
            }
            let mut fresh: Vec<Arc<Seat>> = seats
                .iter()
                .filter(|seat| !seat.ring.close_if_idle(now, period))
                .cloned()
                .collect();
            if fresh.len() >= RATE_BUCKET_CALLERS_MAX {
                return Err(Stop::Wait(period));
            }
            let ring = Ring::new(self.requests, now);
            fresh.push(Arc::new(Seat { principal: principal.into(), ring }));
            // If another was faster, his list is the one to look into.
            bucket.compare_and_swap(&seats, Arc::new(fresh));
        }
    }

    /// Callers that have a ring.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.load().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::middleware::testing::Dice;

    const MS: Duration = Duration::from_millis(1);

    /// Hours of callers that come and go, against a model that forgets nobody.
    #[test]
    fn each_caller_has_his_own_limit_whoever_comes_and_goes() {
        let mut dice = Dice(11);
        let (requests, period) = (3, MS * 1000);
        let table = Table::new(requests);
        let mut admitted: HashMap<u64, Vec<Duration>> = HashMap::new();
        let mut now = Duration::ZERO;
        let mut refused = 0;
        for _ in 0..200_000 {
            now += Duration::from_micros(dice.below(4_000));
            // A few that come often, and many that come once in a while.
            let who = if dice.below(2) == 0 { dice.below(50) } else { dice.below(20_000) };
            let times = admitted.entry(who).or_default();
            let oldest = times.len().checked_sub(requests).map(|at| times[at]);
            let free = oldest.is_none_or(|oldest| now > oldest + period + MS / 100);
            match table.admit(now, period, &format!("caller {who}")) {
                Ok(()) => {
                    assert!(oldest.is_none_or(|oldest| now - oldest > period), "{who}");
                    times.push(now);
                }
                Err(_) => {
                    assert!(!free, "{who} was refused at {now:?}: {oldest:?}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 1_000, "{refused}");
        assert!(table.len() <= 8_000, "{}", table.len());
    }

    #[test]
    fn it_is_bounded_and_who_finds_no_room_is_refused() {
        let table = Table::new(1);
        let callers = 4 * RATE_BUCKETS * RATE_BUCKET_CALLERS_MAX;
        let in_time = |n: usize, now| table.admit(now, MS * 1000, &format!("c{n}"));
        let admitted = (0..callers).filter(|n| in_time(*n, MS).is_ok()).count();
        assert!(admitted <= RATE_BUCKETS * RATE_BUCKET_CALLERS_MAX);
        assert_eq!(table.len(), admitted);
        // A period later all of them are forgotten.
        assert!((0..500).all(|n| in_time(callers + n, MS * 2000).is_ok()));
    }

    /// Threads that admit for few callers while others push them out: a ring that is given up admits
    /// nobody, so no caller has more than his share.
    #[test]
    fn exact_across_threads() {
        const REQUESTS: usize = 5;
        let (table, period) = (Table::new(REQUESTS), MS);
        let clock = AtomicU64::new(0);
        let counts: Vec<AtomicU64> = (0..4).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (table, clock, counts) = (&table, &clock, &counts);
                scope.spawn(move || {
                    let mut dice = Dice(thread);
                    for _ in 0..30_000 {
                        let now = Duration::from_micros(clock.fetch_add(5, Ordering::SeqCst));
                        let who = dice.below(4);
                        if table.admit(now, period, &format!("often {who}")).is_ok() {
                            counts[who as usize].fetch_add(1, Ordering::SeqCst);
                        }
                        if dice.below(4) == 0 {
                            let _ = table.admit(now, period, &format!("once {}", dice.roll()));
                        }
                    }
                });
            }
        });
        // A thread that was held up admits with an old time: by some periods at most.
        let periods = clock.load(Ordering::SeqCst) / 1000 + 1;
        for count in &counts {
            let count = count.load(Ordering::SeqCst);
            assert!(count <= periods * REQUESTS as u64, "{count} in {periods} periods");
            assert!(count >= periods * REQUESTS as u64 / 2, "{count} in {periods} periods");
        }
    }
}
