//! Owns: connections of one worker to one backend that wait for their next request.
//! Never: connecting, or judging whether a connection may be used again.
//! Next: `address`, where to connect to.
//!
//! Last in, first out: under less load the same few connections stay warm, and the rest ages and is
//! closed.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use crate::limits;

/// Idle connections, newest last.
pub(super) struct Pool<C> {
    idle: RefCell<Vec<(C, Instant)>>,
    max: Cell<usize>,
}

impl<C> Pool<C> {
    pub(super) fn new(max: usize) -> Pool<C> {
        Pool { idle: RefCell::new(Vec::new()), max: Cell::new(max) }
    }

    /// Keeps so many at most from now on; the oldest of those beyond are closed.
    pub(super) fn bound(&self, max: usize) {
        self.max.set(max);
        let mut idle = self.idle.borrow_mut();
        let beyond = idle.len().saturating_sub(max);
        drop(idle.drain(..beyond));
    }

    /// The connection used last, of those that `is_quiet`; others are closed. One that waited for
    /// less than [`POOL_TRUST`](limits::POOL_TRUST) is not asked.
    pub(super) fn take(&self, now: Instant, is_quiet: impl Fn(&C) -> bool) -> Option<C> {
        let mut idle = self.idle.borrow_mut();
        while let Some((connection, since)) = idle.pop() {
            let trusted = now.saturating_duration_since(since) < limits::POOL_TRUST;
            if trusted || is_quiet(&connection) {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection, if there is room; else it is closed.
    pub(super) fn put(&self, connection: C, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < self.max.get() {
            idle.push((connection, now));
        }
    }

    /// Closes what waited for longer than `limit`.
    pub(super) fn reap(&self, now: Instant, limit: Duration) {
        let mut idle = self.idle.borrow_mut();
        let old = idle
            .iter()
            .take_while(|(_, since)| now.saturating_duration_since(*since) >= limit)
            .count();
        drop(idle.drain(..old));
        if idle.is_empty() {
            idle.shrink_to_fit();
        }
    }

    /// Closes all: their backend is gone.
    pub(super) fn clear(&self) {
        *self.idle.borrow_mut() = Vec::new();
    }

    /// Connections waiting.
    pub(super) fn len(&self) -> usize {
        self.idle.borrow().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn last_in_first_out_and_capped() {
        let pool = Pool::new(2);
        let now = Instant::now();
        for connection in [1, 2, 3] {
            pool.put(connection, now);
        }
        pool.bound(3);
        pool.put(3, now);
        pool.put(4, now);
        pool.bound(2);
        assert_eq!(pool.take(now, |_| true), Some(3));
        assert_eq!(pool.take(now, |_| true), Some(2));
        assert_eq!(pool.take(now, |_| true), None);
    }

    #[test]
    fn the_dead_are_skipped_and_the_just_used_are_not_asked() {
        let pool = Pool::new(9);
        let now = Instant::now();
        for connection in [1, 2, 3] {
            pool.put(connection, now);
        }
        assert_eq!(pool.take(now + MS / 2, |_| unreachable!()), Some(3));
        assert_eq!(pool.take(now + MS, |connection| *connection == 1), Some(1));
        assert_eq!(pool.len(), 0);
    }

    #[test]
    fn the_old_are_reaped() {
        let pool = Pool::new(9);
        let now = Instant::now();
        pool.put(1, now);
        pool.put(2, now + 5 * MS);
        pool.reap(now + 9 * MS, 5 * MS);
        assert_eq!(pool.len(), 1);
        assert_eq!(pool.take(now + 9 * MS, |_| true), Some(2));
        pool.put(3, now);
        pool.reap(now + 5 * MS, 5 * MS);
        assert_eq!(pool.len(), 0);
    }
}
