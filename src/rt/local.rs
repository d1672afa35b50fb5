//! Owns: how the tasks of one thread wait for each other: oneshot, queue, event, notify.
//! Never: other threads (`mailbox`, `blocking`); anything unbounded.
//! Next: `spawn`, starting the tasks.
//!
//! Every wait may be dropped at any time and loses nothing. Wakers and values are always dropped
//! outside the borrow of the shared state: the last waker of a task drops the task, which may
//! hold the other end of the same channel.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

// ---- oneshot ----

/// One value from one task to another.
pub fn oneshot<T>() -> (OneSender<T>, OneReceiver<T>) {
    let shared = Rc::new(One {
        value: RefCell::new(None),
        waker: RefCell::new(None),
        sender: Cell::new(true),
        receiver: Cell::new(true),
    });
    (OneSender(shared.clone()), OneReceiver(shared))
}

struct One<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
    sender: Cell<bool>,
    receiver: Cell<bool>,
}

/// The sending end of a [`oneshot`].
pub struct OneSender<T>(Rc<One<T>>);

impl<T> OneSender<T> {
    /// Hands the value over; false if nobody waits for it any more.
    pub fn send(self, value: T) -> bool {
        if self.is_closed() {
            return false;
        }
        *self.0.value.borrow_mut() = Some(value);
        true // the drop of self wakes the receiver
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        !self.0.receiver.get()
    }
}

impl<T> Drop for OneSender<T> {
    fn drop(&mut self) {
        self.0.sender.set(false);
        wake(&self.0.waker);
    }
}

/// The receiving end of a [`oneshot`]: a future of the value, or of `None` when the sender is
/// dropped without one.
#[must_use = "a future does nothing unless it is awaited"]
pub struct OneReceiver<T>(Rc<One<T>>);

impl<T> Future for OneReceiver<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let value = self.0.value.borrow_mut().take();
        if value.is_some() || !self.0.sender.get() {
            return Poll::Ready(value);
        }
        register(&self.0.waker, cx);
        Poll::Pending
    }
}

impl<T> Drop for OneReceiver<T> {
    fn drop(&mut self) {
        self.0.receiver.set(false);
        let value = self.0.value.borrow_mut().take();
        let waker = self.0.waker.borrow_mut().take();
        drop((value, waker));
    }
}

// ---- queue ----

/// A queue of at most `capacity` values from many tasks to one. `capacity` is at least 1.
pub fn queue<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    assert!(capacity > 0, "a queue holds at least one value");
    let shared = Rc::new(Queue {
        values: RefCell::new(VecDeque::new()),
        capacity,
        receiving: RefCell::new(None),
        sending: Waiters::default(),
        senders: Cell::new(1),
        receiver: Cell::new(true),
    });
    (Sender(shared.clone()), Receiver(shared))
}

struct Queue<T> {
    values: RefCell<VecDeque<T>>,
    capacity: usize,
    receiving: RefCell<Option<Waker>>,
    sending: Waiters,
    senders: Cell<usize>,
    receiver: Cell<bool>,
}

impl<T> Queue<T> {
    fn push(&self, value: T) -> Result<(), T> {
        let mut values = self.values.borrow_mut();
        if values.len() >= self.capacity || !self.receiver.get() {
            return Err(value);
        }
        values.push_back(value);
        drop(values);
        wake(&self.receiving);
        Ok(())
    }

    fn pop(&self) -> Option<T> {
        let value = self.values.borrow_mut().pop_front();
        if value.is_some() {
            self.sending.wake_one();
        }
        value
    }
}

/// The sending end of a [`queue`].
pub struct Sender<T>(Rc<Queue<T>>);

impl<T> Sender<T> {
    /// Queues the value without waiting.
    ///
    /// # Errors
    /// The value, if the queue is full or closed; [`Sender::is_closed`] tells which.
    pub fn try_send(&self, value: T) -> Result<(), T> {
        self.0.push(value)
    }

    /// Waits for room and queues the value. Dropped before it is ready, the value was not queued.
    /// Waiting senders are served in their order, but `try_send` may overtake them.
    ///
    /// # Errors
    /// The value, if the queue is closed.
    pub async fn send(&self, value: T) -> Result<(), T> {
        let mut value = Some(value);
        let mut wait = Wait::new(&self.0.sending);
        poll_fn(|cx| {
            let Some(mine) = value.take() else { unreachable!("polled after it was ready") };
            match self.0.push(mine) {
                Ok(()) => {
                    wait.done();
                    Poll::Ready(Ok(()))
                }
                Err(back) if self.is_closed() => {
                    wait.done();
                    Poll::Ready(Err(back))
                }
                Err(back) => {
                    value = Some(back);
                    wait.register(cx);
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        !self.0.receiver.get()
    }

    /// Values waiting.
    pub fn len(&self) -> usize {
        self.0.values.borrow().len()
    }

    /// Whether no value waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.set(self.0.senders.get() + 1);
        Sender(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.senders.set(self.0.senders.get() - 1);
        if self.0.senders.get() == 0 {
            wake(&self.0.receiving);
        }
    }
}

/// The receiving end of a [`queue`].
pub struct Receiver<T>(Rc<Queue<T>>);

impl<T> Receiver<T> {
    /// The next value; `None` when all senders are gone and the queue is empty. A drop loses
    /// nothing.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| {
            let value = self.0.pop();
            if value.is_some() || self.0.senders.get() == 0 {
                return Poll::Ready(value);
            }
            register(&self.0.receiving, cx);
            Poll::Pending
        })
        .await
    }

    /// The next value if one waits.
    pub fn try_recv(&mut self) -> Option<T> {
        self.0.pop()
    }

    /// Whether all senders are gone; values may still wait.
    pub fn is_closed(&self) -> bool {
        self.0.senders.get() == 0
    }

    /// Values waiting.
    pub fn len(&self) -> usize {
        self.0.values.borrow().len()
    }

    /// Whether no value waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.receiver.set(false);
        let values = std::mem::take(&mut *self.0.values.borrow_mut());
        let waker = self.0.receiving.borrow_mut().take();
        drop((values, waker));
        self.0.sending.wake_all();
    }
}

// ---- event ----

/// Something that happens once: waits before and after it end alike.
#[derive(Default)]
pub struct Event {
    set: Cell<bool>,
    waiters: Waiters,
}

impl Event {
    /// Not yet happened.
    pub fn new() -> Event {
        Event::default()
    }

    /// It has happened. Again is the same as once.
    pub fn set(&self) {
        if !self.set.replace(true) {
            self.waiters.wake_all();
        }
    }

    /// Whether it has happened.
    pub fn is_set(&self) -> bool {
        self.set.get()
    }

    /// Waits until it has happened. Safe to drop.
    pub async fn wait(&self) {
        let mut wait = Wait::new(&self.waiters);
        poll_fn(|cx| {
            if self.is_set() {
                wait.done();
                return Poll::Ready(());
            }
            wait.register(cx);
            Poll::Pending
        })
        .await;
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("set", &self.is_set()).finish()
    }
}

// ---- notify ----

/// Something that happens again and again; a wait sees what happens after it was asked for.
#[derive(Default)]
pub struct Notify {
    turn: Cell<u64>,
    waiters: Waiters,
}

impl Notify {
    /// Nothing happened yet.
    pub fn new() -> Notify {
        Notify::default()
    }

    /// Ends all waits that were asked for before.
    pub fn notify_all(&self) {
        self.turn.set(self.turn.get() + 1);
        self.waiters.wake_all();
    }

    /// Waits for the next [`Notify::notify_all`]. What counts is this call, not the first poll: ask,
    /// then check the condition, then await, and nothing is missed. Safe to drop.
    pub fn notified(&self) -> impl Future<Output = ()> {
        let turn = self.turn.get();
        async move {
            let mut wait = Wait::new(&self.waiters);
            poll_fn(|cx| {
                if self.turn.get() != turn {
                    wait.done();
                    return Poll::Ready(());
                }
                wait.register(cx);
                Poll::Pending
            })
            .await;
        }
    }
}

impl fmt::Debug for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notify").field("turn", &self.turn.get()).finish()
    }
}

// ---- wakers ----

fn register(slot: &RefCell<Option<Waker>>, cx: &Context<'_>) {
    let mut waker = slot.borrow_mut();
    if waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
        return;
    }
    let old = waker.replace(cx.waker().clone());
    drop(waker);
    drop(old);
}

fn wake(slot: &RefCell<Option<Waker>>) {
    let waker = slot.borrow_mut().take();
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Tasks waiting for the same thing, in the order in which they came. As many as there are waits,
/// which the owners bound.
#[derive(Default)]
struct Waiters {
    waiting: RefCell<VecDeque<(u64, Waker)>>,
    next: Cell<u64>,
}

impl Waiters {
    fn wake_one(&self) {
        let first = self.waiting.borrow_mut().pop_front();
        if let Some((_, waker)) = first {
            waker.wake();
        }
    }

    fn wake_all(&self) {
        let all = std::mem::take(&mut *self.waiting.borrow_mut());
        for (_, waker) in all {
            waker.wake();
        }
    }
}

/// One wait's place in [`Waiters`].
struct Wait<'a> {
    waiters: &'a Waiters,
    /// Number of the place taken; the place itself is gone once it has been woken.
    place: Option<u64>,
}

impl<'a> Wait<'a> {
    fn new(waiters: &'a Waiters) -> Wait<'a> {
        Wait { waiters, place: None }
    }

    fn register(&mut self, cx: &Context<'_>) {
        let mut waiting = self.waiters.waiting.borrow_mut();
        if let Some(place) = self.place
            && let Some((_, waker)) = waiting.iter_mut().find(|(number, _)| *number == place)
        {
            if !waker.will_wake(cx.waker()) {
                let old = std::mem::replace(waker, cx.waker().clone());
                drop(waiting);
                drop(old);
            }
            return;
        }
        let place = self.waiters.next.replace(self.waiters.next.get() + 1);
        waiting.push_back((place, cx.waker().clone()));
        self.place = Some(place);
    }

    /// Leaves; true if the place was still there, so the wait had not been woken.
    fn leave(&mut self) -> bool {
        let Some(place) = self.place.take() else { return true };
        let mut waiting = self.waiters.waiting.borrow_mut();
        let at = waiting.iter().position(|(number, _)| *number == place);
        let left = at.and_then(|at| waiting.remove(at));
        drop(waiting);
        left.is_some()
    }

    /// The wait has got what it waited for.
    fn done(&mut self) {
        self.leave();
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        // Woken and dropped before it could act: the next in line gets the turn. (Where all are
        // woken together, nobody is in line and this is nothing.)
        if !self.leave() {
            self.waiters.wake_one();
        }
    }
}
