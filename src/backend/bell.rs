//! Owns: waking one task of this worker, with a word on why.
//! Never: values; several waiters.
//! Next: `http`, one way to a backend.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Flags that gather until one task takes them.
#[derive(Default)]
pub(super) struct Bell {
    flags: Cell<u32>,
    waker: RefCell<Option<Waker>>,
}

impl Bell {
    pub(super) fn new() -> Bell {
        Bell::default()
    }

    /// Adds flags and wakes the waiter. Nothing is lost when nobody waits yet.
    pub(super) fn ring(&self, flags: u32) {
        self.flags.set(self.flags.get() | flags);
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The flags gathered, 0 if none.
    pub(super) fn take(&self) -> u32 {
        self.flags.replace(0)
    }

    /// Waits for flags and takes them. A drop loses none.
    pub(super) async fn wait(&self) -> u32 {
        poll_fn(|cx| match self.take() {
            0 => {
                *self.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
            flags => Poll::Ready(flags),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    #[test]
    fn flags_gather() {
        let bell = Bell::new();
        bell.ring(1);
        bell.ring(4);
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(pin!(bell.wait()).poll(&mut cx), Poll::Ready(5));
        assert_eq!(pin!(bell.wait()).poll(&mut cx), Poll::Pending);
        bell.ring(2);
        assert_eq!(bell.take(), 2);
    }
}
