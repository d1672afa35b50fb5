//! Owns: being woken by another thread (the bell), one value from another thread (the reply), and
//! giving other tasks a turn (the breath).
//! Never: streams of data; the bell says only that something has changed.
//! Next: `mailbox`, what the bell announces.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use monoio::fs::File;
use monoio::net::UnixStream;

use super::sys;

/// An event counter that any thread may ring.
#[derive(Clone)]
pub(super) struct Bell(Arc<OwnedFd>);

impl Bell {
    pub(super) fn new() -> io::Result<Bell> {
        sys::eventfd().map(|fd| Bell(Arc::new(fd)))
    }

    /// Wakes the listener, or ends its next wait at once. One system call.
    pub(super) fn ring(&self) {
        sys::ring_eventfd(&self.0);
    }

    /// The waiting side, on the loop of this thread. There must be one at a time.
    pub(super) fn listen(&self) -> io::Result<Listening> {
        let fd = self.0.try_clone()?;
        if monoio::utils::is_legacy() {
            return Ok(Listening { poll: Some(pollable(fd)?), read: None });
        }
        Ok(Listening { poll: None, read: Some(File::from_std(std::fs::File::from(fd))?) })
    }
}

/// A descriptor that can be waited for on both drivers. The stream type is a disguise: only its
/// readiness is used, which works for whatever epoll takes.
pub(super) fn pollable(fd: OwnedFd) -> io::Result<UnixStream> {
    UnixStream::from_std(std::os::unix::net::UnixStream::from(fd))
}

/// See [`Bell::listen`].
pub(super) struct Listening {
    /// epoll: readiness, then a read that cannot wait, as there is one listener.
    poll: Option<UnixStream>,
    /// ring: one read, half the calls.
    read: Option<File>,
}

impl Listening {
    /// Waits for a ring since the last wait. Never drop it and wait again: as with any read, the
    /// ring may have been taken already, and the next wait would miss it.
    pub(super) async fn heard(&self) -> io::Result<()> {
        if let Some(read) = &self.read {
            return read.read_at(vec![0u8; 8], 0).await.0.map(drop);
        }
        if let Some(poll) = &self.poll {
            poll.readable(false).await?;
            sys::read(poll.as_raw_fd(), &mut Vec::with_capacity(8))?;
        }
        Ok(())
    }
}

/// Gives the other tasks and the timers of this thread a turn in the middle of long work.
///
/// A task that merely wakes itself would keep the run queue filled and starve I/O and timers; so
/// the turn is given by waiting for real I/O, an event counter that is raised right then. About
/// 1 µs.
pub struct Breath {
    bell: Bell,
    poll: UnixStream,
}

impl Breath {
    /// Two descriptors; keep it for as long as the work goes on.
    ///
    /// # Errors
    /// Those of eventfd, such as too many open files.
    pub fn new() -> io::Result<Breath> {
        let bell = Bell::new()?;
        let poll = pollable(bell.0.try_clone()?)?;
        Ok(Breath { bell, poll })
    }

    /// Lets the others run. Safe to drop.
    pub async fn take(&mut self) {
        let mut ready = pin!(self.poll.readable(false));
        let mut rung = false;
        let done = poll_fn(|cx| {
            // The first poll finds nothing and leaves the waker; only then is the bell rung, so
            // the loop has to go round. A count left by a dropped wait ends this one early, once.
            if let Poll::Ready(result) = ready.as_mut().poll(cx) {
                return Poll::Ready(result);
            }
            if !std::mem::replace(&mut rung, true) {
                self.bell.ring();
            }
            Poll::Pending
        });
        if done.await.is_ok() {
            let _ = sys::read(self.poll.as_raw_fd(), &mut Vec::with_capacity(8));
        }
    }
}

/// Immediate completions of one stream's I/O before the other tasks get a turn.
const STREAK_MAX: u8 = 32;

/// Counts how often I/O completed without waiting. On epoll a call that can be served is served at
/// once, so a task between two fast peers would never give way; on a ring every call waits.
#[derive(Default)]
pub(super) struct Streak(u8);

impl Streak {
    /// Awaits `io`, which was not polled before, after a breath if there were too many in a row
    /// that did not wait.
    ///
    /// It is pinned by the caller: one that is passed by value has room here twice.
    pub(super) async fn pace<F: Future>(&mut self, mut io: Pin<&mut F>) -> F::Output {
        if self.0 >= STREAK_MAX {
            self.0 = 0;
            // Before the I/O, so that a drop here loses nothing. Without descriptors to spare,
            // fairness has to wait.
            // Boxed: the rare case must not make every wait for I/O larger.
            if let Ok(mut breath) = Breath::new() {
                Box::pin(async move { breath.take().await }).await;
            }
        }
        let mut waited = false;
        let output = poll_fn(|cx| {
            let poll = io.as_mut().poll(cx);
            waited |= poll.is_pending();
            poll
        })
        .await;
        self.0 = if waited { 0 } else { self.0 + 1 };
        output
    }
}

/// One value from another thread to a task of this one.
pub(super) fn reply<T: Send>() -> io::Result<(Reply<T>, Replied<T>)> {
    let bell = Bell::new()?;
    let listening = bell.listen()?;
    let place = Arc::new(Mutex::new(None));
    Ok((Reply { place: place.clone(), bell }, Replied { place, listening }))
}

/// The other thread's end of a [`reply`]; dropped without a value, the task is told so.
pub(super) struct Reply<T> {
    place: Arc<Mutex<Option<T>>>,
    bell: Bell,
}

impl<T> Reply<T> {
    pub(super) fn send(self, value: T) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        self.bell.ring();
    }
}

/// The task's end of a [`reply`].
pub(super) struct Replied<T> {
    place: Arc<Mutex<Option<T>>>,
    listening: Listening,
}

impl<T> Replied<T> {
    /// Waits for the value. Dropped before, the value is dropped by the other thread.
    pub(super) async fn get(self) -> io::Result<T> {
        self.listening.heard().await?;
        // A lock that is never held for longer than a move.
        let value = self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
        value.ok_or_else(|| io::Error::other("the other thread gave no answer"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::testing::everywhere;
    use crate::rt::{Either, local, race, spawn, time};
    use std::time::Duration;

    #[test]
    fn a_bell_is_heard_before_and_while_listening() {
        everywhere(async || {
            let bell = Bell::new().unwrap();
            bell.ring();
            bell.ring();
            let listening = bell.listen().unwrap();
            listening.heard().await.unwrap();
            for _ in 0..100 {
                let mut heard = pin!(listening.heard());
                let nap = time::sleep(Duration::from_millis(1));
                let first = race(heard.as_mut(), nap).await;
                assert!(matches!(first, Either::Right(())), "nobody rang");
                let far = bell.clone();
                let thread = std::thread::spawn(move || far.ring());
                heard.await.unwrap();
                thread.join().unwrap();
            }
        });
    }

    #[test]
    fn a_reply_crosses_or_its_loss_is_told() {
        everywhere(async || {
            let (reply, replied) = reply().unwrap();
            std::thread::spawn(move || reply.send(7));
            assert_eq!(replied.get().await.unwrap(), 7);
            let (lost, replied) = super::reply::<u8>().unwrap();
            std::thread::spawn(move || drop(lost));
            assert!(replied.get().await.is_err());
        });
    }

    #[test]
    fn a_breath_lets_timers_and_tasks_run() {
        everywhere(async || {
            let event = std::rc::Rc::new(local::Event::new());
            let set = event.clone();
            spawn("timer", async move {
                for _ in 0..5 {
                    time::sleep(Duration::from_millis(1)).await;
                }
                set.set();
            });
            let mut breath = Breath::new().unwrap();
            while !event.is_set() {
                breath.take().await; // never sleeps itself, and would spin for ever
            }
        });
    }

    /// As a task does between two fast peers on epoll: its I/O never waits.
    #[test]
    fn io_that_never_waits_is_paced() {
        everywhere(async || {
            let event = std::rc::Rc::new(local::Event::new());
            let set = event.clone();
            spawn("timer", async move {
                for _ in 0..5 {
                    time::sleep(Duration::from_millis(1)).await;
                }
                set.set();
            });
            let mut streak = Streak::default();
            while !event.is_set() {
                streak.pace(pin!(std::future::ready(()))).await;
            }
        });
    }
}
