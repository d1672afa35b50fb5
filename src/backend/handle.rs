//! Owns: what is held of a call in flight: its cancellation, its deadline, what arrived for it.
//! Never: sockets or children; how a cancellation is told to a backend.
//! Next: `trail`, which it carries.
//!
//! Deadlines cost no timer: one task of the worker looks at all of them every
//! [`DEADLINE_TICK`](limits::DEADLINE_TICK) while there are any. Arming and dropping a timer of the
//! runtime is 87 ns, an entry here a few.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::around::Place;
use super::bell::Bell;
use super::bridge::InUse;
use super::failure::Failure;
use super::trail::Trail;
use crate::limits;
use crate::mcp::session::Authorization;
use crate::plan::BackendId;

/// Why a wait ended without what it waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The caller wants no answer any more; seen once per cancellation.
    Cancelled,
    /// The deadline passed.
    Expired,
}

/// What arrives for a call from elsewhere than its own connection.
#[derive(Debug)]
pub enum Item {
    /// A notification, with the caller's progress token.
    Notification(Vec<u8>),
    /// A request for the client, with a number of the proxy's own: the time limit stands still.
    Ask(Vec<u8>),
    /// One of those requests is over.
    Settled,
    /// The answer, with the caller's id.
    Answer(Vec<u8>),
    /// There will be none.
    Failed(Failure),
}

/// The caller's hold on a call: made before it, given to it, used to cancel it.
pub struct CallHandle {
    /// The task in which the call waits; it waits in one place at a time.
    waker: RefCell<Option<Waker>>,
    cancelled: Cell<bool>,
    /// The cancellation was acted on.
    told: Cell<bool>,
    expired: Cell<bool>,
    reason: RefCell<Option<String>>,
    deadline: Cell<Option<Instant>>,
    /// What the caller showed, if the backend is to get it.
    authorization: OnceCell<Arc<Authorization>>,
    /// Attempts that are cancelled with it.
    below: RefCell<Vec<Weak<CallHandle>>>,
    /// Of a part or an attempt: the call that it belongs to.
    root: Option<Rc<CallHandle>>,
    /// An attempt that is made beside another one.
    beside: bool,
    /// Its place among the calls of the backend, where they are limited.
    place: Cell<Option<Place>>,
    trail: Trail,
    /// What arrived first: as a rule the answer, and nothing else, so that a call costs no queue.
    first: Cell<Option<Item>>,
    /// What arrived behind it.
    inbox: RefCell<VecDeque<Item>>,
    inbox_bytes: Cell<usize>,
    /// Requests of its backend that the client has not answered yet.
    asks: Cell<u32>,
    /// What was left of its time when the first of them came.
    left: Cell<Duration>,
    /// Nobody listens to what its backend asks.
    deaf: bool,
    /// The session that stands for its caller, if that has none.
    kept: OnceCell<InUse>,
}

thread_local! {
    /// Handles whose calls have ended, made new.
    static SPARE: RefCell<Vec<Rc<CallHandle>>> = const { RefCell::new(Vec::new()) };
}

/// Handles that a thread keeps for calls to come.
const SPARE_MAX: usize = 64;

impl CallHandle {
    /// A handle for one call, in storage of an earlier one if there is any.
    pub fn fresh() -> Rc<CallHandle> {
        let spare = SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten();
        spare.unwrap_or_else(|| Rc::new(CallHandle::new()))
    }

    /// The call has ended: nobody but the caller of this knows its handle as a rule, and then its
    /// storage serves another one.
    pub fn retire(mut handle: Rc<CallHandle>) {
        let Some(old) = Rc::get_mut(&mut handle) else { return };
        *old = CallHandle::new();
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_MAX {
                spare.push(handle);
            }
        });
    }

    /// A handle for one call.
    #[allow(clippy::new_without_default)]
    pub fn new() -> CallHandle {
        CallHandle {
            waker: RefCell::new(None),
            cancelled: Cell::new(false),
            told: Cell::new(false),
            expired: Cell::new(false),
            reason: RefCell::new(None),
            deadline: Cell::new(None),
            authorization: OnceCell::new(),
            below: RefCell::new(Vec::new()),
            root: None,
            beside: false,
            place: Cell::new(None),
            trail: Trail::default(),
            first: Cell::new(None),
            inbox: RefCell::new(VecDeque::new()),
            inbox_bytes: Cell::new(0),
            asks: Cell::new(0),
            left: Cell::new(Duration::ZERO),
            deaf: false,
            kept: OnceCell::new(),
        }
    }

    /// A handle for a call behind which is no client that could answer its backend.
    pub fn deaf() -> CallHandle {
        CallHandle { deaf: true, ..CallHandle::new() }
    }

    /// See [`CallHandle::deaf`].
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// A handle for one attempt of a call, cancelled with it.
    pub(super) fn below(call: &Rc<CallHandle>) -> Rc<CallHandle> {
        CallHandle::part(call, call.authorization.get().cloned())
    }

    /// The same, for one that is made beside another one (`hedging`).
    pub(super) fn beside(call: &Rc<CallHandle>) -> Rc<CallHandle> {
        CallHandle::child(call, call.authorization.get().cloned(), true)
    }

    /// See [`CallHandle::beside`].
    pub(super) fn is_beside(&self) -> bool {
        self.beside
    }

    /// A handle for a part of a call, cancelled with it, whose backend gets this Authorization.
    pub fn part(
        call: &Rc<CallHandle>,
        authorization: Option<Arc<Authorization>>,
    ) -> Rc<CallHandle> {
        CallHandle::child(call, authorization, false)
    }

    fn child(
        call: &Rc<CallHandle>,
        authorization: Option<Arc<Authorization>>,
        beside: bool,
    ) -> Rc<CallHandle> {
        let attempt = Rc::new(CallHandle {
            deaf: call.deaf,
            beside,
            authorization: authorization.map(OnceCell::from).unwrap_or_default(),
            root: Some(call.root.clone().unwrap_or_else(|| call.clone())),
            ..CallHandle::new()
        });
        let mut all = call.below.borrow_mut();
        all.retain(|other| other.strong_count() > 0);
        all.push(Rc::downgrade(&attempt));
        if call.is_cancelled() {
            attempt.cancel(call.reason());
        }
        attempt
    }

    /// The backend is to get this Authorization with the call.
    pub fn forward(&self, authorization: Arc<Authorization>) {
        let _ = self.authorization.set(authorization);
    }

    /// A session that must not end before the call.
    pub(super) fn keep(&self, session: InUse) {
        // A second attempt of a call uses the same one.
        let _ = self.kept.set(session);
    }

    /// The Authorization to send with the call, if it is the caller's own.
    pub(super) fn authorization(&self) -> Option<&str> {
        self.authorization.get().map(|authorization| authorization.0.as_str())
    }

    /// What its call leaves behind.
    pub fn trail(&self) -> &Trail {
        self.root.as_ref().map_or(&self.trail, |root| &root.trail)
    }

    /// Whether it is one of several attempts that a call may have.
    pub(super) fn is_one_of_several(&self) -> bool {
        self.root.is_some()
    }

    /// The deadline moves to `limit` from now, but not beyond `ends`.
    pub(super) fn postpone(&self, now: Instant, limit: Duration, ends: Option<Instant>) {
        if self.cancelled.get() {
            return;
        }
        if self.asks.get() > 0 {
            let most = ends.map(|ends| ends.saturating_duration_since(now));
            return self.left.set(most.map_or(limit, |most| most.min(limit)));
        }
        let next = now.checked_add(limit);
        self.deadline.set(match (next, ends) {
            (Some(next), Some(ends)) => Some(next.min(ends)),
            (next, ends) => next.or(ends),
        });
    }

    /// The backend asks the client something: people may have to think, so the time limit stands
    /// still, at most for [`ASK_TIMEOUT`](limits::ASK_TIMEOUT) from the last question on.
    pub(super) fn hold_clock(&self, now: Instant) {
        let asks = self.asks.get();
        self.asks.set(asks + 1);
        let Some(deadline) = self.deadline.get() else { return };
        if self.cancelled.get() {
            return;
        }
        if asks == 0 {
            self.left.set(deadline.saturating_duration_since(now));
        }
        self.deadline.set(now.checked_add(limits::ASK_TIMEOUT));
    }

    /// A question is answered, or nobody waits for its answer; behind the last one time goes on.
    pub(super) fn release_clock(&self, now: Instant) {
        let asks = self.asks.get().saturating_sub(1);
        self.asks.set(asks);
        if asks == 0 && !self.cancelled.get() && self.deadline.get().is_some() {
            self.deadline.set(now.checked_add(self.left.get()));
        }
    }

    /// Whether a question of its backend is open.
    pub(super) fn is_asked(&self) -> bool {
        self.asks.get() > 0
    }

    /// Ends the call: its backend is told (`notifications/cancelled`), and the wait goes on for at
    /// most [`CANCEL_GRACE`](limits::CANCEL_GRACE), since the answer may be on its way. Again, or
    /// after the end of the call, it does nothing.
    pub fn cancel(&self, reason: Option<String>) {
        if !self.cancelled.replace(true) {
            for attempt in self.below.borrow().iter().filter_map(Weak::upgrade) {
                attempt.cancel(reason.clone());
            }
            *self.reason.borrow_mut() = reason;
            self.wake();
        }
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.get()
    }

    /// The reason given with the cancellation.
    pub(super) fn reason(&self) -> Option<String> {
        self.reason.borrow().clone()
    }

    /// The call has this place among those of its backend, until it ends or the backend has been
    /// told that it is cancelled.
    pub(super) fn hold(&self, place: Place) {
        self.place.set(Some(place));
    }

    /// See [`CallHandle::hold`].
    pub(super) fn give_up_place(&self) {
        drop(self.place.take());
    }

    /// The backend has been told, or needs not be: from here on only the grace counts. Servers are
    /// told not to answer then, so that others need not wait for that.
    pub(super) fn acknowledge(&self, now: Instant) {
        self.told.set(true);
        self.give_up_place();
        let grace = now + limits::CANCEL_GRACE;
        self.deadline.set(Some(self.deadline.get().map_or(grace, |old| old.min(grace))));
    }

    /// Whether it was cancelled and nobody has acted on that.
    pub(super) fn is_untold(&self) -> bool {
        self.cancelled.get() && !self.told.get()
    }

    /// The time limit passed, or nothing may come any more.
    pub(super) fn expire(&self) {
        self.expired.set(true);
        self.wake();
    }

    fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn sleep_until_woken(&self, cx: &Context<'_>) {
        let mut slot = self.waker.borrow_mut();
        let old = match &*slot {
            Some(old) if old.will_wake(cx.waker()) => None,
            _ => slot.replace(cx.waker().clone()),
        };
        drop(slot);
        // The last waker of a task takes the task along, which may hold this handle.
        drop(old);
    }

    /// Ready when the wait should end.
    pub(super) fn poll_stop(&self, cx: &Context<'_>) -> Poll<Stop> {
        if self.is_untold() {
            return Poll::Ready(Stop::Cancelled);
        }
        if self.expired.get() {
            return Poll::Ready(Stop::Expired);
        }
        self.sleep_until_woken(cx);
        Poll::Pending
    }

    /// Awaits `future`, but not beyond a cancellation or the deadline; then it is dropped.
    pub(super) async fn watch<F: Future>(&self, future: F) -> Result<F::Output, Stop> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll_stop(cx).map(Err),
        })
        .await
    }

    /// Awaits `future`, but not beyond the deadline; then it is dropped. A cancellation is told
    /// through `tell` once, and the wait goes on.
    ///
    /// Give it a `pin!` of a large future: one that is passed by value has room here twice.
    pub(super) async fn watch_telling<F: Future>(
        &self,
        future: F,
        mut tell: impl FnMut(),
    ) -> Result<F::Output, Stop> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(output) = future.as_mut().poll(cx) {
                    return Poll::Ready(Ok(output));
                }
                match self.poll_stop(cx) {
                    Poll::Ready(Stop::Cancelled) => {
                        tell();
                        self.acknowledge(Instant::now());
                    }
                    Poll::Ready(Stop::Expired) => return Poll::Ready(Err(Stop::Expired)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    /// Something arrived. Notifications beyond the bound are dropped: progress is a courtesy, and
    /// the channel they come on serves others too.
    pub(super) fn deliver(&self, item: Item) {
        match &item {
            Item::Ask(_) => self.hold_clock(Instant::now()),
            Item::Settled => return self.release_clock(Instant::now()),
            _ => {}
        }
        {
            let mut inbox = self.inbox.borrow_mut();
            if let Item::Notification(message) = &item {
                let bytes = self.inbox_bytes.get() + message.len();
                // The state of a task may have its result in it.
                let most = match self.inbox_bytes.get() {
                    0 => limits::HEARD_TASK_BYTES_MAX,
                    _ => limits::SSE_QUEUE_BYTES_MAX,
                };
                if inbox.len() >= limits::SSE_QUEUE_MESSAGES_MAX || bytes > most {
                    return;
                }
                self.inbox_bytes.set(bytes);
            }
            match self.first.take() {
                None if inbox.is_empty() => self.first.set(Some(item)),
                first => {
                    self.first.set(first);
                    inbox.push_back(item);
                }
            }
        }
        self.wake();
    }

    /// What arrived first, or why to stop waiting.
    pub(super) async fn arrived(&self) -> Result<Item, Stop> {
        poll_fn(|cx| {
            let first = self.first.take();
            if let Some(item) = first.or_else(|| self.inbox.borrow_mut().pop_front()) {
                if let Item::Notification(message) = &item {
                    self.inbox_bytes.set(self.inbox_bytes.get() - message.len());
                }
                return Poll::Ready(Ok(item));
            }
            self.poll_stop(cx).map(Err)
        })
        .await
    }
}

impl std::fmt::Debug for CallHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallHandle")
            .field("cancelled", &self.cancelled.get())
            .field("expired", &self.expired.get())
            .finish_non_exhaustive()
    }
}

/// A call with a deadline, and the backend that is called, if its end ends the call.
type Armed = (Option<BackendId>, Rc<CallHandle>);

/// The deadlines of one worker.
pub(super) struct Clock {
    slots: RefCell<Vec<Option<Armed>>>,
    free: RefCell<Vec<usize>>,
    armed: Cell<usize>,
    /// Rung when the first deadline is armed.
    bell: Bell,
    /// As of the last tick.
    now: Cell<Instant>,
}

/// An armed deadline; dropping it disarms it.
pub(super) struct Deadline {
    clock: Rc<Clock>,
    slot: usize,
}

impl Clock {
    pub(super) fn new(now: Instant) -> Rc<Clock> {
        Rc::new(Clock {
            slots: RefCell::new(Vec::new()),
            free: RefCell::new(Vec::new()),
            armed: Cell::new(0),
            bell: Bell::new(),
            now: Cell::new(now),
        })
    }

    /// `handle` expires `limit` from now.
    pub(super) fn arm(
        self: &Rc<Clock>,
        handle: &Rc<CallHandle>,
        now: Instant,
        limit: Duration,
    ) -> Deadline {
        self.arm_for(None, handle, now, limit)
    }

    /// As [`Clock::arm`], for a call of a backend.
    pub(super) fn arm_for(
        self: &Rc<Clock>,
        backend: Option<BackendId>,
        handle: &Rc<CallHandle>,
        now: Instant,
        limit: Duration,
    ) -> Deadline {
        handle.deadline.set(now.checked_add(limit));
        let slot = self.free.borrow_mut().pop();
        let mut slots = self.slots.borrow_mut();
        let slot = slot.unwrap_or_else(|| {
            slots.push(None);
            slots.len() - 1
        });
        slots[slot] = Some((backend, handle.clone()));
        if self.armed.replace(self.armed.get() + 1) == 0 {
            self.now.set(now);
            self.bell.ring(1);
        }
        Deadline { clock: self.clone(), slot }
    }

    /// The time of the last tick: exact to [`DEADLINE_TICK`](limits::DEADLINE_TICK) while a
    /// deadline is armed.
    pub(super) fn now(&self) -> Instant {
        self.now.get()
    }

    /// Expires what is due.
    pub(super) fn tick(&self, now: Instant) {
        self.now.set(now);
        for (_, handle) in self.slots.borrow().iter().flatten() {
            if !handle.expired.get() && handle.deadline.get().is_some_and(|at| at <= now) {
                handle.expire();
            }
        }
    }

    /// Expires all calls of a backend.
    pub(super) fn end_calls_of(&self, backend: BackendId) {
        for (of, handle) in self.slots.borrow().iter().flatten() {
            if *of == Some(backend) {
                handle.expire();
            }
        }
    }

    /// Waits until the next look at the deadlines is worth it, at most `limit`.
    pub(super) async fn pause(&self, limit: Duration) {
        if self.armed.get() == 0 {
            self.bell.take();
            // A wait for the bell may be dropped.
            let _ = crate::rt::time::timeout(limit, self.bell.wait()).await;
        }
        if self.armed.get() > 0 {
            crate::rt::time::sleep(limits::DEADLINE_TICK).await;
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        let handle = self.clock.slots.borrow_mut()[self.slot].take();
        drop(handle);
        self.clock.free.borrow_mut().push(self.slot);
        self.clock.armed.set(self.clock.armed.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_deadline_ends_the_wait_and_a_dropped_one_does_not() {
        let start = Instant::now();
        let clock = Clock::new(start);
        let (one, two) = (Rc::new(CallHandle::new()), Rc::new(CallHandle::new()));
        let first = clock.arm(&one, start, Duration::from_secs(1));
        let second = clock.arm(&two, start, Duration::from_secs(1));
        let mut wait = pin!(one.watch(std::future::pending::<()>()));
        assert!(poll(wait.as_mut()).is_pending());
        clock.tick(start + Duration::from_millis(999));
        assert!(poll(wait.as_mut()).is_pending());
        drop(second);
        clock.tick(start + Duration::from_secs(1));
        assert_eq!(poll(wait.as_mut()), Poll::Ready(Err(Stop::Expired)));
        assert!(!two.expired.get());
        drop(first);
        assert_eq!((clock.armed.get(), clock.free.borrow().len()), (0, 2));
    }

    #[test]
    fn a_cancellation_is_told_once_and_leaves_a_short_grace() {
        let start = Instant::now();
        let clock = Clock::new(start);
        let handle = Rc::new(CallHandle::new());
        let _deadline = clock.arm(&handle, start, Duration::from_secs(300));
        let told = Cell::new(0);
        let mut wait =
            pin!(handle.watch_telling(std::future::pending::<()>(), || told.set(told.get() + 1)));
        assert!(poll(wait.as_mut()).is_pending());
        handle.cancel(Some("enough".into()));
        handle.cancel(None);
        assert!(poll(wait.as_mut()).is_pending());
        assert!(poll(wait.as_mut()).is_pending());
        assert_eq!((told.get(), handle.reason().as_deref()), (1, Some("enough")));
        clock.tick(Instant::now() + limits::CANCEL_GRACE);
        assert_eq!(poll(wait.as_mut()), Poll::Ready(Err(Stop::Expired)));
    }

    #[test]
    fn time_stands_still_while_the_client_is_asked() {
        let start = Instant::now();
        let clock = Clock::new(start);
        let handle = Rc::new(CallHandle::new());
        let _deadline = clock.arm(&handle, start, Duration::from_secs(10));
        let at = |seconds| start + Duration::from_secs(seconds);
        handle.hold_clock(at(4));
        handle.hold_clock(at(5));
        handle.release_clock(at(90));
        clock.tick(at(100));
        assert!(!handle.expired.get() && handle.is_asked());
        // Progress means the whole limit anew, once time goes on.
        handle.postpone(at(100), Duration::from_secs(8), None);
        clock.tick(at(120));
        handle.release_clock(at(120));
        assert!(!handle.is_asked());
        clock.tick(at(127));
        assert!(!handle.expired.get());
        clock.tick(at(128));
        assert!(handle.expired.get());

        let handle = Rc::new(CallHandle::new());
        let _deadline = clock.arm(&handle, start, Duration::from_secs(10));
        handle.hold_clock(at(1));
        clock.tick(at(1) + limits::ASK_TIMEOUT);
        assert!(handle.expired.get(), "a question nobody answers ends at last");
    }

    #[test]
    fn the_inbox_is_bounded_but_always_takes_the_answer() {
        let handle = CallHandle::new();
        for _ in 0..5 {
            handle.deliver(Item::Notification(vec![0; limits::SSE_QUEUE_BYTES_MAX / 2]));
        }
        handle.deliver(Item::Answer(vec![1]));
        assert_eq!(handle.inbox.borrow().len(), 2);
        for _ in 0..2 {
            let next = poll(pin!(handle.arrived()));
            assert!(matches!(next, Poll::Ready(Ok(Item::Notification(_)))));
        }
        assert!(matches!(poll(pin!(handle.arrived())), Poll::Ready(Ok(Item::Answer(_)))));
        assert_eq!(handle.inbox_bytes.get(), 0);
        // A long one while nothing else is there, and none too long.
        let handle = CallHandle::new();
        for bytes in [limits::HEARD_TASK_BYTES_MAX + 1, limits::HEARD_TASK_BYTES_MAX, 1] {
            handle.deliver(Item::Notification(vec![0; bytes]));
        }
        assert_eq!(handle.inbox_bytes.get(), limits::HEARD_TASK_BYTES_MAX);
    }
}
