//! Owns: `[backends.concurrency]`: how many calls of all workers a backend has at once.
//! Never: waiting, mail (`backend::around`).
//! Next: `breaker`.
//!
//! ```toml
//! [backends.concurrency]
//! max_concurrent = 4
//! queue = 1024                   # calls that wait; beyond it they are refused
//! queue_timeout_seconds = 10
//! ```
//! One counter for all workers, and for each worker the time of the first in its queue. A place
//! that becomes free goes to the worker whose first has waited longest, so that callers are served
//! in their order whichever worker they came to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// A limit and its state, which all workers share.
#[derive(Clone, Debug)]
pub struct Concurrency {
    max: usize,
    queue: usize,
    /// How long a call may wait.
    pub patience: Duration,
    shared: Arc<Shared>,
}

impl PartialEq for Concurrency {
    fn eq(&self, other: &Concurrency) -> bool {
        (self.max, self.queue, self.patience) == (other.max, other.queue, other.patience)
    }
}

#[derive(Debug)]
struct Shared {
    taken: Padded<AtomicUsize>,
    waiting: Padded<AtomicUsize>,
    /// When the first in each worker's queue came, in nanoseconds; `NOBODY` = none waits.
    first: Box<[Padded<AtomicU64>]>,
}

#[derive(Debug)]
#[repr(align(128))]
struct Padded<T>(T);

const NOBODY: u64 = u64::MAX;

impl Concurrency {
    /// A limit for that many workers.
    pub fn new(max: usize, queue: usize, patience: Duration, workers: usize) -> Concurrency {
        let shared = Shared {
            taken: Padded(AtomicUsize::new(0)),
            waiting: Padded(AtomicUsize::new(0)),
            first: (0..workers).map(|_| Padded(AtomicU64::new(NOBODY))).collect(),
        };
        Concurrency { max, queue, patience, shared: Arc::new(shared) }
    }

    /// Counts on from a limit that was in force before, whatever its settings: the places that are
    /// taken stay so, and who waits keeps his turn.
    pub fn go_on_with(&mut self, before: &Concurrency) {
        self.shared = before.shared.clone();
    }

    /// Takes a place, unless all are taken or somebody waits for one already.
    pub fn take(&self) -> bool {
        self.oldest().is_none() && self.take_any()
    }

    /// Takes a place, whoever waits.
    fn take_any(&self) -> bool {
        let order = Ordering::SeqCst;
        let grown = |taken| (taken < self.max).then_some(taken + 1);
        self.shared.taken.0.fetch_update(order, order, grown).is_ok()
    }

    /// Takes a place, whatever the limit: it is in force no more.
    pub fn take_beyond(&self) {
        self.shared.taken.0.fetch_add(1, Ordering::SeqCst);
    }

    /// Joins the queue; false = it is full.
    pub fn join_queue(&self) -> bool {
        let order = Ordering::SeqCst;
        let grown = |waiting| (waiting < self.queue).then_some(waiting + 1);
        self.shared.waiting.0.fetch_update(order, order, grown).is_ok()
    }

    /// Leaves the queue, with or without a place.
    pub fn leave_queue(&self) {
        self.shared.waiting.0.fetch_sub(1, Ordering::SeqCst);
    }

    /// Says when the first in this worker's queue came. To be followed by [`Concurrency::next`], for
    /// a place may have become free before anybody could see it.
    pub fn set_first(&self, worker: usize, came: Option<Duration>) {
        let came = came.map_or(NOBODY, |came| came.as_nanos() as u64);
        self.shared.first[worker].0.store(came, Ordering::SeqCst);
    }

    fn oldest(&self) -> Option<usize> {
        let came = |at: &usize| self.shared.first[*at].0.load(Ordering::SeqCst);
        (0..self.shared.first.len()).filter(|at| came(at) != NOBODY).min_by_key(came)
    }

    /// The worker that the place of a call that ended goes to; `None` = nobody waits, it is free.
    ///
    /// The place stays taken on its way. A worker to which it comes and where nobody waits any more
    /// passes it on with the same function.
    pub fn pass_on(&self) -> Option<usize> {
        if let Some(worker) = self.oldest() {
            return Some(worker);
        }
        self.shared.taken.0.fetch_sub(1, Ordering::SeqCst);
        // Somebody may have come between the look and the step.
        self.next()
    }

    /// Takes a free place for the worker whose first has waited longest.
    pub fn next(&self) -> Option<usize> {
        let worker = self.oldest()?;
        self.take_any().then_some(worker)
    }

    /// Calls that have a place.
    pub fn taken(&self) -> usize {
        self.shared.taken.0.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::middleware::testing::Dice;

    /// Callers come and go on three workers for a long time: never more than the limit at once, in
    /// the order in which they came, and at the end nobody is left and no place is lost.
    #[test]
    fn served_in_order_and_no_place_is_lost() {
        for seed in 0..50 {
            let mut dice = Dice(seed);
            let max = 1 + dice.below(4) as usize;
            let limit = Concurrency::new(max, 8, Duration::from_secs(1), 3);
            let mut queues: [VecDeque<u64>; 3] = Default::default();
            let (mut running, mut clock, mut last_served) = (0usize, 0u64, 0);
            let publish = |queues: &[VecDeque<u64>; 3], worker: usize| {
                let first = queues[worker].front().map(|came| Duration::from_nanos(*came));
                limit.set_first(worker, first);
            };
            let mut place = |to: Option<usize>, queues: &mut [VecDeque<u64>; 3]| {
                let Some(worker) = to else { return 0 };
                let came = queues[worker].pop_front().expect("a place for nobody");
                assert!(came > last_served, "out of order");
                last_served = came;
                limit.leave_queue();
                publish(queues, worker);
                1
            };
            for _ in 0..5_000 {
                clock += 1;
                let worker = dice.below(3) as usize;
                match dice.below(5) {
                    0 | 1 if limit.take() => running += 1,
                    0 | 1 if limit.join_queue() => {
                        queues[worker].push_back(clock);
                        publish(&queues, worker);
                        let next = limit.next();
                        running += place(next, &mut queues);
                    }
                    0 | 1 => assert_eq!(queues.iter().map(VecDeque::len).sum::<usize>(), 8),
                    // One loses patience.
                    2 if !queues[worker].is_empty() => {
                        let at = dice.below(queues[worker].len() as u64) as usize;
                        queues[worker].remove(at);
                        limit.leave_queue();
                        publish(&queues, worker);
                    }
                    _ if running > 0 => {
                        running -= 1;
                        let next = limit.pass_on();
                        running += place(next, &mut queues);
                    }
                    _ => {}
                }
                assert!(running <= max);
                assert_eq!(running, limit.taken());
                assert!(running == max || queues.iter().all(VecDeque::is_empty));
            }
        }
    }
}
