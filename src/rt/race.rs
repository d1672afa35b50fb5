//! Owns: waiting for two futures in one task.
//! Never: more than two; nest, or spawn.
//! Next: `bell`, being woken by another thread.

use std::future::{Future, poll_fn};
use std::pin::pin;
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
