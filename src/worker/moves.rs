//! Owns: which connections go to another worker, and which worker takes no more.
//! Never: a connection with a request under way; serving it (`accept`).
//! Next: `http`, what is spoken on them.
//!
//! A child belongs to one worker, and so does an event stream that all share. A connection that was
//! accepted by another one crosses over with each of its calls, and back: two mails, and two wake-ups
//! where nothing else is to be done. One whose calls go to the same worker again and again
//! goes there itself, between two of them; its client does not notice.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::http::Moving;
use crate::limits;
use crate::plan::WorkerId;
use crate::rt;

/// A connection that changes its worker.
pub struct Moved {
    pub(super) connection: Moving,
    pub(super) address: IpAddr,
    /// The worker that accepted it, and counts its address.
    pub(super) home: WorkerId,
}

/// Where the calls of a connection went last, and how many of them in a row.
#[derive(Default)]
pub(super) struct Pull {
    to: WorkerId,
    calls: u8,
}

impl Pull {
    /// A call went to that worker's child; true if the connection should go where its calls go.
    pub(super) fn call(&mut self, me: WorkerId, to: WorkerId) -> bool {
        if to != self.to {
            *self = Pull { to, calls: 0 };
        }
        self.calls += 1;
        let full = self.calls >= limits::MOVE_AFTER_CALLS;
        if full {
            // Whatever comes of it: asked again after as many more.
            self.calls = 0;
        }
        full && to != me
    }
}

/// How busy each worker is, as far as it matters to the others.
pub struct Loads {
    began: Instant,
    /// Thousandths of a CPU, and above them the low half of the millisecond in which that was
    /// measured; 0 = never.
    words: Box<[AtomicU64]>,
}

impl Loads {
    /// Of so many workers, which have nothing to do.
    pub fn new(workers: usize) -> Arc<Loads> {
        let words = (0..workers).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Loads { began: Instant::now(), words })
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_millis() as u64
    }

    fn tell(&self, worker: WorkerId, load: u32, now: Instant) {
        if let Some(word) = self.words.get(worker) {
            word.store((self.millis(now) << 32) | u64::from(load), Ordering::Relaxed);
        }
    }

    /// Whether a worker was too busy when it was looked at last.
    fn is_full(&self, worker: WorkerId, now: Instant) -> bool {
        let Some(word) = self.words.get(worker) else { return true };
        let word = word.load(Ordering::Relaxed);
        // In 32 bits, which come around every 49 days.
        let age = (self.millis(now) as u32).wrapping_sub((word >> 32) as u32);
        word as u32 > limits::MOVE_LOAD_MAX && u128::from(age) < limits::LOAD_TTL.as_millis()
    }
}

/// One worker's part in it.
pub(super) struct Moves {
    me: WorkerId,
    loads: Arc<Loads>,
    /// When the own load was looked at last, and the CPU time taken until then.
    looked: Cell<(Instant, Duration)>,
    /// Connections sent away since that time.
    sent: Cell<(Instant, u32)>,
}

impl Moves {
    pub(super) fn new(me: WorkerId, loads: Arc<Loads>, now: Instant) -> Moves {
        let looked = Cell::new((now, rt::time::spent()));
        Moves { me, loads, looked, sent: Cell::new((now, 0)) }
    }

    /// Whether one more may go to that worker now; it counts as sent if so.
    pub(super) fn may_send(&self, to: WorkerId, now: Instant) -> bool {
        if self.loads.is_full(to, now) {
            return false;
        }
        let (mut since, mut sent) = self.sent.get();
        if now.saturating_duration_since(since) >= Duration::from_secs(1) {
            (since, sent) = (now, 0);
        }
        let may = sent < limits::MOVES_PER_SECOND_MAX;
        self.sent.set((since, sent + u32::from(may)));
        may
    }

    /// One came from another worker: a moment to tell the others how busy this one is.
    pub(super) fn came(&self, now: Instant) {
        if now.saturating_duration_since(self.looked.get().0) >= limits::LOAD_SPAN {
            self.look(now, rt::time::spent());
        }
    }

    fn look(&self, now: Instant, spent: Duration) {
        let (since, before) = self.looked.replace((now, spent));
        let span = now.saturating_duration_since(since).as_micros().max(1);
        let load = spent.saturating_sub(before).as_micros() * 1000 / span;
        self.loads.tell(self.me, u32::try_from(load).unwrap_or(u32::MAX), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_in_a_row_to_one_other_worker_pull() {
        let times = usize::from(limits::MOVE_AFTER_CALLS);
        let mut pull = Pull::default();
        let mut calls = |to| pull.call(1, to);
        assert!((0..10 * times).all(|_| !calls(1)), "it is there already");
        assert!((0..10 * times).all(|n| !calls(n % 2)), "now here, now there");
        assert!((1..times).all(|_| !calls(0)));
        assert!(calls(0));
        assert!((1..times).all(|_| !calls(0)), "asked again after as many more");
        assert!(calls(0));
    }

    #[test]
    fn a_busy_worker_gets_no_more_until_that_is_long_ago() {
        let begin = Instant::now();
        let loads = Loads::new(2);
        let moves = Moves::new(0, loads.clone(), begin);
        assert!(moves.may_send(1, begin));
        let at = |millis| begin + Duration::from_millis(millis);
        loads.tell(1, limits::MOVE_LOAD_MAX + 1, at(1000));
        assert!(!moves.may_send(1, at(1500)));
        loads.tell(1, limits::MOVE_LOAD_MAX, at(2000));
        assert!(moves.may_send(1, at(2500)));
        loads.tell(1, 1000, at(3000));
        assert!(!moves.may_send(1, at(3000) + limits::LOAD_TTL / 2));
        assert!(moves.may_send(1, at(3001) + limits::LOAD_TTL));
        assert!(!moves.may_send(2, begin), "there is no such worker");
    }

    /// The time beside the load has 32 bits: what is young must look young when they have come around.
    #[test]
    fn a_busy_worker_is_known_after_fifty_days_too() {
        let begin = Instant::now();
        let loads = Loads::new(2);
        let moves = Moves::new(0, loads.clone(), begin);
        for days in [49, 50, 200] {
            let now = begin + Duration::from_secs(days * 86_400);
            loads.tell(1, 1000, now);
            assert!(!moves.may_send(1, now + Duration::from_millis(1)), "{days}");
            assert!(moves.may_send(1, now + 2 * limits::LOAD_TTL), "{days}");
        }
    }

    #[test]
    fn so_many_go_within_a_second() {
        let begin = Instant::now();
        let moves = Moves::new(0, Loads::new(2), begin);
        let go = |at| (0..1000).filter(|_| moves.may_send(1, at)).count() as u32;
        assert_eq!(go(begin), limits::MOVES_PER_SECOND_MAX);
        assert_eq!(go(begin + Duration::from_millis(999)), 0);
        assert_eq!(go(begin + Duration::from_secs(1)), limits::MOVES_PER_SECOND_MAX);
    }

    #[test]
    fn a_worker_that_works_says_so() {
        let begin = Instant::now();
        let loads = Loads::new(2);
        let (me, other) = (Moves::new(1, loads.clone(), begin), Moves::new(0, loads, begin));
        let mut spent = rt::time::spent();
        let mut at = begin;
        for (share, may) in [(950, false), (700, true), (990, false), (0, true)] {
            at += Duration::from_secs(1);
            spent += Duration::from_millis(share);
            me.look(at, spent);
            assert_eq!(other.may_send(1, at), may, "{share}");
        }
        // Not measured more often than it makes sense.
        let looked = me.looked.get();
        me.came(at + limits::LOAD_SPAN / 2);
        assert_eq!(me.looked.get(), looked);
        me.came(at + limits::LOAD_SPAN);
        assert_eq!(me.looked.get().0, at + limits::LOAD_SPAN);
    }

    #[test]
    fn time_that_a_thread_works_is_counted() {
        let before = rt::time::spent();
        while rt::time::spent() - before < Duration::from_millis(2) {}
        let other = std::thread::spawn(rt::time::spent).join().unwrap();
        assert!(other < rt::time::spent(), "each thread has its own");
    }
}
