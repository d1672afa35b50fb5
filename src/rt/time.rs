//! Owns: sleeping, time limits and the clock of the workers.
//! Never: limits themselves (`limits`).
//! Next: `alarm`, limits that move.
//!
//! Timers tick in milliseconds, rounded up; they fire only when the run queue of the thread has
//! been empty once, so tasks that keep waking each other hold them up.

use std::cell::Cell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::{Duration, Instant};

use super::busy_poll;

/// The time limit passed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("time limit passed")
    }
}

impl std::error::Error for Elapsed {}

/// Waits for `duration`, rounded up to the next millisecond. Dropping it leaves nothing behind.
pub async fn sleep(duration: Duration) {
    timer(duration).await;
}

/// A timer, started when it is polled first.
///
/// In a box: the runtime's timers fill cache lines of their own, and every future that holds one
/// would be aligned to 128 bytes, padded at each level, and too odd for the allocator's fast path.
fn timer(duration: Duration) -> Pin<Box<monoio::time::Sleep>> {
    Box::pin(monoio::time::sleep(duration))
}

/// Awaits `future` for at most `limit`; the future is dropped when the limit passes.
///
/// Only around waits for queues, events and other timers, or around I/O whose connection is closed
/// when the limit passes: a read that is dropped may take bytes with it.
///
/// # Errors
/// [`Elapsed`] when the limit passed first. A future that is ready when both are wins.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut timer = None;
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        // What is ready at once costs no timer.
        let timer = timer.get_or_insert_with(|| self::timer(limit));
        timer.as_mut().poll(cx).map(|()| Err(Elapsed))
    })
    .await
}

/// What [`now`] says on this thread.
#[derive(Clone, Copy)]
enum Hand {
    /// No task is at work: whatever the clock says.
    Free,
    /// A task is at work and has not asked.
    Unread,
    /// What it was told when it asked.
    At(Instant),
}

thread_local! {
    static HAND: Cell<Hand> = const { Cell::new(Hand::Free) };
}

/// The monotonic clock, read once for each turn of a task: all that a task does between two waits
/// happens at one time, exact to what that takes. A request asks half a dozen times, and each
/// reading is some 20 ns.
pub fn now() -> Instant {
    match HAND.get() {
        Hand::At(now) => now,
        Hand::Unread => exact(),
        Hand::Free => Instant::now(),
    }
}

/// The monotonic clock itself, for the end of what may have begun in this very turn; [`now`] says
/// the same until the task waits.
pub fn exact() -> Instant {
    let now = Instant::now();
    if !matches!(HAND.get(), Hand::Free) {
        HAND.set(Hand::At(now));
    }
    now
}

/// The CPU time that this thread has taken so far for what it had to do, without the looks of
/// [`busy_poll`] that saw nothing. One system call.
pub fn spent() -> Duration {
    super::sys::thread_time().saturating_sub(busy_poll::idle())
}

/// Lets a task have its turn.
pub(super) fn turn<T>(work: impl FnOnce() -> T) -> T {
    struct Over;
    impl Drop for Over {
        fn drop(&mut self) {
            HAND.set(Hand::Free);
        }
    }
    busy_poll::turn();
    HAND.set(Hand::Unread);
    let _over = Over;
    work()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::testing::everywhere;

    #[test]
    fn sleeps_are_never_short() {
        everywhere(async || {
            let (start, nap) = (now(), Duration::from_millis(20));
            sleep(nap).await;
            assert!(now() - start >= nap);
        });
    }

    #[test]
    fn a_turn_of_a_task_happens_at_one_time() {
        everywhere(async || {
            let (tell, told) = crate::rt::local::oneshot();
            crate::rt::spawn("turn", async move {
                let first = now();
                while Instant::now() == first {}
                let second = now();
                let end = exact();
                let third = now();
                sleep(Duration::from_millis(1)).await;
                tell.send((first, second, end, third, now()));
            });
            let (first, second, end, third, next) = told.await.unwrap();
            assert_eq!(first, second, "no wait, no time");
            assert!(end > second);
            assert_eq!(third, end);
            assert!(next > third, "a wait is a new turn");
        });
        let first = now();
        while Instant::now() == first {}
        assert!(now() > first, "nothing stands still where no task runs");
    }

    #[test]
    fn limits_pass_or_do_not() {
        everywhere(async || {
            let never = std::future::pending::<()>();
            assert_eq!(timeout(Duration::from_millis(5), never).await, Err(Elapsed));
            assert_eq!(timeout(Duration::ZERO, async { 1 }).await, Ok(1), "ready wins");
            let soon = async {
                sleep(Duration::from_millis(1)).await;
                2
            };
            assert_eq!(timeout(Duration::from_secs(3600), soon).await, Ok(2));
            // Beyond what a timer can hold: waits all the same, and harms nobody.
            assert_eq!(timeout(Duration::MAX, async { 3 }).await, Ok(3));
        });
    }
}
