//! Owns: waiting for two futures in one task.
//! Never: more than two; nest, or spawn.
//! Next: `bell`, being woken by another thread.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

/// Which of two futures was first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Either<A, B> {
    /// The first.
    Left(A),
    /// The second.
    Right(B),
}

/// Awaits whichever is ready first; if both are, `a`. The loser is dropped.
///
/// So it must be something that may be dropped: a wait for a queue, an event or a timer; or a
/// pinned `&mut` to a read that the caller keeps and awaits again. Never a read or an accept
/// itself: what the kernel had already taken would be lost.
pub async fn race<A: Future, B: Future>(a: A, b: B) -> Either<A::Output, B::Output> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|cx| {
        if let Poll::Ready(a) = a.as_mut().poll(cx) {
            return Poll::Ready(Either::Left(a));
        }
        b.as_mut().poll(cx).map(Either::Right)
    })
    .await
}

/// What a future has to say without waiting; `None` leaves it to be awaited.
pub async fn at_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Awaits both. Their first steps are taken together, so a write and the read of its answer go to
/// the kernel in one system call.
pub async fn join<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut left, mut right) = (None, None);
    poll_fn(|cx| {
        if left.is_none()
            && let Poll::Ready(a) = a.as_mut().poll(cx)
        {
            left = Some(a);
        }
        if right.is_none()
            && let Poll::Ready(b) = b.as_mut().poll(cx)
        {
            right = Some(b);
        }
        match (left.take(), right.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (left, right) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::testing::everywhere;
    use crate::rt::{local, time};
    use std::future::ready;
    use std::time::Duration;

    #[test]
    fn the_first_wins_a_tie() {
        everywhere(async || {
            assert_eq!(race(ready(1), ready(2)).await, Either::Left(1));
            let never = std::future::pending::<()>();
            assert_eq!(race(never, ready(2)).await, Either::Right(2));
        });
    }

    #[test]
    fn at_once_is_now_or_later() {
        everywhere(async || {
            assert_eq!(at_once(pin!(ready(1))).await, Some(1));
            let mut late = pin!(async {
                time::sleep(Duration::from_millis(2)).await;
                2
            });
            assert_eq!(at_once(late.as_mut()).await, None);
            assert_eq!(late.await, 2, "nothing is lost");
        });
    }

    #[test]
    fn join_waits_for_both() {
        everywhere(async || {
            let (send, receive) = local::oneshot();
            let late = async {
                time::sleep(Duration::from_millis(2)).await;
                send.send(1);
                2
            };
            assert_eq!(join(receive, late).await, (Some(1), 2));
        });
    }
}
