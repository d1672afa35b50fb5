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
    /// By number, ascending.
    waiting: RefCell<VecDeque<(u64, Waker)>>,
    next: Cell<u64>,
}

/// Where the wait of that number stands. Every connection waits for the end of its worker, and is
/// looked up whenever it is polled.
fn place_of(waiting: &VecDeque<(u64, Waker)>, number: u64) -> Option<usize> {
    waiting.binary_search_by_key(&number, |(number, _)| *number).ok()
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
            && let Some(at) = place_of(&waiting, place)
        {
            let (_, waker) = &mut waiting[at];
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
        let left = place_of(&waiting, place).and_then(|at| waiting.remove(at));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::testing::everywhere;
    use crate::rt::{Either, join, race, spawn, time};
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::time::Duration;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Count {
        fn poll<F: Future>(self: &Arc<Self>, future: Pin<&mut F>) -> Poll<F::Output> {
            future.poll(&mut Context::from_waker(&Waker::from(self.clone())))
        }
        fn woken(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn oneshot_gives_the_value_or_the_end() {
        let count = Arc::new(Count::default());
        let (sender, receiver) = oneshot();
        let mut receiver = pin!(receiver);
        assert!(count.poll(receiver.as_mut()).is_pending());
        assert!(!sender.is_closed());
        assert!(sender.send(7));
        assert_eq!(count.woken(), 1);
        assert_eq!(count.poll(receiver.as_mut()), Poll::Ready(Some(7)));

        let (sender, receiver) = oneshot::<u8>();
        drop(sender);
        assert_eq!(count.poll(pin!(receiver)), Poll::Ready(None));

        let (sender, receiver) = oneshot();
        drop(receiver);
        assert!(sender.is_closed());
        assert!(!sender.send(1), "nobody takes it");
    }

    /// A value that owns an end of its own channel must not be dropped under the borrow.
    #[test]
    fn ends_inside_values_are_dropped_safely() {
        struct Loop(#[expect(dead_code, reason = "held for its drop")] Sender<Loop>);
        let (sender, receiver) = queue::<Loop>(2);
        assert!(sender.try_send(Loop(sender.clone())).is_ok());
        drop(receiver);
        assert!(sender.is_closed());
        assert_eq!(sender.0.senders.get(), 1, "the one inside is gone");
    }

    #[test]
    fn queue_is_bounded_ordered_and_closes() {
        let count = Arc::new(Count::default());
        let (sender, mut receiver) = queue(2);
        assert_eq!(sender.try_send(1), Ok(()));
        assert_eq!(sender.try_send(2), Ok(()));
        assert_eq!(sender.try_send(3), Err(3));
        {
            let mut third = pin!(sender.send(3));
            assert!(count.poll(third.as_mut()).is_pending());
            assert_eq!(receiver.try_recv(), Some(1));
            assert_eq!(count.woken(), 1);
            assert_eq!(count.poll(third), Poll::Ready(Ok(())));
        }
        let other = sender.clone();
        drop(sender);
        assert!(!receiver.is_closed());
        drop(other);
        assert!(receiver.is_closed());
        assert_eq!(count.poll(pin!(receiver.recv())), Poll::Ready(Some(2)));
        assert_eq!(count.poll(pin!(receiver.recv())), Poll::Ready(Some(3)));
        assert_eq!(count.poll(pin!(receiver.recv())), Poll::Ready(None));
    }

    /// The sender that was woken for the free place is dropped before it takes it: the next one
    /// must hear of the place, or it waits for ever.
    #[test]
    fn a_dropped_turn_is_passed_on() {
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let (sender, mut receiver) = queue(1);
        assert_eq!(sender.try_send(0), Ok(()));
        let mut a = Box::pin(sender.send(1));
        let mut b = Box::pin(sender.send(2));
        assert!(first.poll(a.as_mut()).is_pending());
        assert!(second.poll(b.as_mut()).is_pending());
        assert_eq!(receiver.try_recv(), Some(0));
        assert_eq!((first.woken(), second.woken()), (1, 0));
        drop(a);
        assert_eq!(second.woken(), 1);
        assert_eq!(second.poll(b.as_mut()), Poll::Ready(Ok(())));
        drop(b);
        assert_eq!(receiver.try_recv(), Some(2), "the dropped one was not queued");

        // Dropped before its turn, it leaves no trace.
        assert_eq!(sender.try_send(3), Ok(()));
        let mut c = Box::pin(sender.send(4));
        assert!(first.poll(c.as_mut()).is_pending());
        drop(c);
        assert!(sender.0.sending.waiting.borrow().is_empty());
    }

    #[test]
    fn closing_wakes_all_senders() {
        let count = Arc::new(Count::default());
        let (sender, receiver) = queue(1);
        assert_eq!(sender.try_send(0), Ok(()));
        let (mut a, mut b) = (pin!(sender.send(1)), pin!(sender.send(2)));
        assert!(count.poll(a.as_mut()).is_pending());
        assert!(count.poll(b.as_mut()).is_pending());
        drop(receiver);
        assert_eq!(count.woken(), 2);
        assert_eq!(count.poll(a), Poll::Ready(Err(1)));
        assert_eq!(count.poll(b), Poll::Ready(Err(2)));
    }

    #[test]
    fn an_event_is_sticky_and_for_all() {
        let count = Arc::new(Count::default());
        let event = Event::new();
        {
            let (mut a, mut b) = (pin!(event.wait()), pin!(event.wait()));
            assert!(count.poll(a.as_mut()).is_pending());
            assert!(count.poll(b.as_mut()).is_pending());
            event.set();
            event.set();
            assert_eq!(count.woken(), 2);
            assert!(count.poll(a).is_ready() && count.poll(b).is_ready());
        }
        assert!(event.is_set());
        assert!(count.poll(pin!(event.wait())).is_ready());
        assert!(event.waiters.waiting.borrow().is_empty());
    }

    #[test]
    fn a_notification_counts_from_the_call() {
        let count = Arc::new(Count::default());
        let notify = Notify::new();
        let asked = notify.notified();
        notify.notify_all();
        let mut asked = pin!(asked);
        assert!(count.poll(asked.as_mut()).is_ready(), "asked before, polled after");
        let mut next = pin!(notify.notified());
        assert!(count.poll(next.as_mut()).is_pending(), "old ones do not count");
        notify.notify_all();
        assert_eq!(count.woken(), 1);
        assert!(count.poll(next).is_ready());
    }

    #[test]
    fn tasks_pass_values_under_time_limits() {
        everywhere(async || {
            let (sender, mut receiver) = queue(3);
            spawn("producer", async move {
                for n in 0..10_000u32 {
                    if n % 1000 == 0 {
                        time::sleep(Duration::from_millis(2)).await;
                    }
                    assert!(sender.send(n).await.is_ok());
                }
            });
            let (mut expected, mut limits) = (0, 0);
            loop {
                match time::timeout(Duration::from_millis(1), receiver.recv()).await {
                    Ok(Some(n)) => {
                        assert_eq!(n, expected);
                        expected += 1;
                    }
                    Ok(None) => break,
                    Err(_) => limits += 1,
                }
            }
            assert_eq!(expected, 10_000, "with {limits} waits dropped");
            let (a, b) = (Event::new(), Event::new());
            let set = async {
                time::sleep(Duration::from_millis(1)).await;
                b.set();
            };
            let (first, ()) = join(race(a.wait(), b.wait()), set).await;
            assert_eq!(first, Either::Right(()));
        });
    }
}
