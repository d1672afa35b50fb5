//! Owns: starting tasks so that a panic ends one task and nothing else.
//! Never: join handles; tasks talk through `local`.
//! Next: `race`, waiting for two things in one task.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use super::time;

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Starts a task on this thread. A panic in it is logged at `error` under `name`, counted in
/// [`panics`], and ends only the task.
pub fn spawn(name: &'static str, task: impl Future<Output = ()> + 'static) {
    // An async block that is moved into keeps room for what it was given beside where it pins it:
    // every task, such as that of an idle connection, would cost twice its size.
    let mut task = Box::pin(task);
    // The handle is dropped at once, on this thread: see `driver` on why none is kept.
    drop(monoio::spawn(async move {
        let end = poll_fn(|cx| {
            let poll = || time::turn(|| task.as_mut().poll(cx));
            match catch_unwind(AssertUnwindSafe(poll)) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(())) => Poll::Ready(Ok(())),
                Err(payload) => Poll::Ready(Err(payload)),
            }
        });
        if let Err(payload) = end.await {
            PANICS.fetch_add(1, Ordering::Relaxed);
            tracing::error!(task = name, panic = text(&*payload), "task panicked");
            // A payload may panic when it is dropped.
            let _ = catch_unwind(AssertUnwindSafe(move || drop(payload)));
        }
    }));
}

/// Tasks of this process that panicked.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// What a panic said.
pub(super) fn text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::local;
    use crate::rt::testing::everywhere;

    struct Tell(Option<local::OneSender<()>>);

    impl Drop for Tell {
        fn drop(&mut self) {
            self.0.take().map(|tell| tell.send(()));
        }
    }

    #[test]
    fn a_panic_ends_one_task_only() {
        everywhere(async || {
            let before = panics();
            let (dropped, gone) = local::oneshot();
            let (alive, seen) = local::oneshot();
            let held = Tell(Some(dropped));
            spawn("bad at once", async move {
                let _held = held;
                panic!("expected by this test");
            });
            spawn("bad later", async {
                crate::rt::time::sleep(std::time::Duration::from_millis(1)).await;
                std::panic::panic_any(7);
            });
            spawn("good", async move {
                crate::rt::time::sleep(std::time::Duration::from_millis(20)).await;
                alive.send(5);
            });
            assert_eq!(gone.await, Some(()), "what the task held is dropped");
            assert_eq!(seen.await, Some(5));
            assert!(panics() >= before + 2);
        });
    }
}
