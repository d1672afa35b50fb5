//! Owns: what stands around a call: retry, concurrency, rate limit, time limits, breaker, outlier
//! detection; it makes attempts, and abandons and repeats them.
//! Never: one attempt itself (`attempt`); what the rows decide (`middleware`).
//! Next: `attempt`.
//!
//! Outermost first: retry, concurrency, rate limit, time limit, breaker, outlier detection. So every
//! attempt takes a place and a token of its own, is bounded by its own time, and is counted.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::attempt;
use super::entry::Entry;
use super::handle::CallHandle;
use super::{Attempt, BackendMail, Backends, Call, Reply};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::middleware::around::{Around, Verdict};
use crate::middleware::breaker::{Breaker, Pass};
use crate::middleware::concurrency::Concurrency;
use crate::rt;
use crate::rt::local::Event;

/// A call with rows around it.
pub(super) struct Run {
    backends: Rc<Backends>,
    entry: Rc<Entry>,
    /// Copied for each attempt.
    call: Call,
    /// When all attempts must have ended.
    ends: Option<Instant>,
    /// Attempts made.
    made: u32,
    current: Option<Current>,
}

/// An attempt under way, and what it holds. Dropped without an outcome it says nothing.
struct Current {
    attempt: Option<Attempt>,
    pass: Option<Ticket>,
    _place: Option<Place>,
}

/// A call that a breaker let through.
struct Ticket {
    breaker: Breaker,
    pass: Pass,
    used: Cell<bool>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.used.get() {
            self.breaker.give_back(self.pass);
        }
    }
}

/// See [`Backends::call`].
pub(super) async fn call(backends: &Rc<Backends>, call: Call) -> Result<Box<Run>> {
    let entry = backends.entries[call.backend].clone();
    if let Some(budget) = rows(&entry).retry.as_ref().and_then(|retry| retry.budget.as_ref()) {
        budget.call(backends.board.elapsed());
    }
    let ends = rows(&entry).total.map(|total| Instant::now() + total);
    let backends = backends.clone();
    let mut run = Run { backends, entry, call, ends, made: 0, current: None };
    let first = run.start().await;
    if let Err(error) = first {
        run.again(error).await?;
    }
    Ok(Box::new(run))
}

fn rows(entry: &Entry) -> &Around {
    &entry.plan.around
}

impl Run {
    /// See [`super::Replies::next`].
    pub(super) async fn next(&mut self) -> Result<Reply> {
        loop {
            let Some(Current { attempt: Some(attempt), .. }) = &mut self.current else {
                return Err(Error::new(Kind::Internal).cause("asked for a reply after the answer"));
            };
            match attempt.next().await {
                Ok(Reply::Notification(message)) => {
                    if rows(&self.entry).progress_resets {
                        attempt.restart_clock(self.ends);
                    }
                    return Ok(Reply::Notification(message));
                }
                Ok(Reply::Answer(answer)) => {
                    let verdict = Verdict::of_answer(&answer);
                    self.finish(verdict);
                    if !self.may_repeat(verdict, None).await? {
                        return Ok(Reply::Answer(answer));
                    }
                    if self.start().await.is_err() {
                        // Refused by the proxy: the backend's own word says more.
                        self.current = None;
                        return Ok(Reply::Answer(answer));
                    }
                }
                // What is long is no error.
                Ok(Reply::Streaming { len }) => {
                    self.count(Verdict::of_answer(b""));
                    return Ok(Reply::Streaming { len });
                }
                Err(error) => {
                    self.finish(Verdict::of_error(&error));
                    self.again(error).await?;
                }
            }
        }
    }

    /// See [`super::Replies::chunk`].
    pub(super) async fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        match &mut self.current {
            Some(Current { attempt: Some(attempt), .. }) => attempt.chunk().await,
            _ => Ok(None),
        }
    }

    /// Makes attempts until one has begun well, or `error` is the last word.
    async fn again(&mut self, mut error: Error) -> Result<()> {
        loop {
            let verdict = Verdict::of_error(&error);
            if !self.may_repeat(verdict, error.wait()).await? {
                return Err(error);
            }
            match self.start().await {
                Ok(()) => return Ok(()),
                // The proxy's own refusal of a repetition says less than what happened before.
                Err(refusal) if is_refusal(&refusal) => return Err(error),
                Err(next) => error = next,
            }
        }
    }

    /// Whether there is to be another attempt; waits until it is due.
    async fn may_repeat(&mut self, verdict: Verdict, after: Option<Duration>) -> Result<bool> {
        let Some(retry) = &rows(&self.entry).retry else { return Ok(false) };
        let safe =
            self.call.safe || self.call.tool.as_ref().is_some_and(|tool| retry.tools.matches(tool));
        let chance = self.backends.chance();
        let Some(pause) = retry.pause(self.made, verdict.outcome, safe, after, chance) else {
            return Ok(false);
        };
        if self.call.handle.is_cancelled()
            || self.ends.is_some_and(|ends| Instant::now() + pause >= ends)
            || retry.budget.as_ref().is_some_and(|b| !b.take(self.backends.board.elapsed()))
        {
            return Ok(false);
        }
        match self.call.handle.watch(rt::time::sleep(pause)).await {
            Ok(()) => Ok(true),
            Err(_) => Err(Error::new(Kind::Cancelled).context(self.entry.name().to_owned())),
        }
    }

    /// Begins one attempt: up to its first reply, or for a child until it is sent.
    async fn start(&mut self) -> Result<()> {
        let rows = rows(&self.entry);
        let name = || self.entry.name().to_owned();
        self.current = None;
        // Before a wait for a place: who would be refused behind it need not wait.
        if let Some(breaker) = &rows.breaker
            && let Some(wait) = breaker.would_refuse(self.backends.board.elapsed())
        {
            return Err(Error::new(Kind::Resting).context(name()).retry_after(Some(wait)));
        }
        let place = match &rows.concurrency {
            Some(limit) => Some(self.place(limit).await?),
            None => None,
        };
        let now = self.backends.board.elapsed();
        if let Some(rate) = &rows.rate
            && let Err(wait) = rate.admit(now)
        {
            return Err(Error::new(Kind::RateLimited).context(name()).retry_after(Some(wait)));
        }
        let pass = match &rows.breaker {
            Some(breaker) => match breaker.admit(now) {
                Ok(pass) => Some(Ticket { breaker: breaker.clone(), pass, used: Cell::new(false) }),
                Err(wait) => {
                    let error = Error::new(Kind::Resting).context(name());
                    return Err(error.retry_after(Some(wait)));
                }
            },
            None => None,
        };
        if let Some(outlier) = &rows.outlier
            && let Err(wait) = outlier.admit(now)
        {
            return Err(Error::new(Kind::Resting).context(name()).retry_after(Some(wait)));
        }
        let mut timeout = self.call.timeout;
        if let Some(tool) = &self.call.tool
            && let Some(own) = rows.tool_timeouts.get(tool.as_str())
        {
            timeout = *own;
        }
        if let Some(ends) = self.ends {
            timeout = timeout.min(ends.saturating_duration_since(Instant::now()));
        }
        let call = Call {
            timeout,
            handle: CallHandle::below(&self.call.handle),
            session: self.call.session.clone(),
            body: self.call.body.clone(),
            tool: None,
            ..self.call
        };
        self.made += 1;
        self.current = Some(Current { attempt: None, pass, _place: place });
        match attempt::call(&self.backends, call).await {
            Ok(attempt) => {
                if let Some(current) = &mut self.current {
                    current.attempt = Some(attempt);
                }
                Ok(())
            }
            Err(error) => {
                self.finish(Verdict::of_error(&error));
                Err(error)
            }
        }
    }

    /// The attempt has ended.
    fn finish(&mut self, verdict: Verdict) {
        self.count(verdict);
        self.current = None;
    }

    /// Counts the outcome of the attempt.
    fn count(&mut self, verdict: Verdict) {
        let Some(failed) = verdict.failed else { return };
        let now = self.backends.board.elapsed();
        if let Some(ticket) = self.current.as_ref().and_then(|current| current.pass.as_ref())
            && !ticket.used.replace(true)
            && ticket.breaker.record(self.backends.me, ticket.pass, failed, now)
        {
            tracing::warn!(backend = self.entry.name(), "circuit breaker opened");
        }
        if let Some(outlier) = &rows(&self.entry).outlier {
            if !failed {
                outlier.succeeded();
            } else if let Some(time) = outlier.failed(now) {
                let seconds = time.as_secs_f64();
                tracing::warn!(backend = self.entry.name(), seconds, "backend ejected");
            }
        }
    }

    /// Waits for a place among the calls of the backend.
    async fn place(&self, limit: &Concurrency) -> Result<Place> {
        let crowded = |text: &str| {
            let context = format!("{}: {text}", self.entry.name());
            Error::new(Kind::Crowded).context(context).retry_after(Some(limits::CROWDED_RETRY))
        };
        if limit.take() {
            return Ok(Place { backends: self.backends.clone(), entry: self.entry.clone() });
        }
        if !limit.join_queue() {
            return Err(crowded("the queue is full"));
        }
        let waiting = Waiting::join(&self.backends, &self.entry, limit);
        let mut patience = limit.patience;
        if let Some(ends) = self.ends {
            patience = patience.min(ends.saturating_duration_since(Instant::now()));
        }
        let wait = rt::time::timeout(patience, waiting.waiter.served.wait());
        match self.call.handle.watch(wait).await {
            Err(_) => Err(Error::new(Kind::Cancelled).context(self.entry.name().to_owned())),
            // Dropped, it passes on a place that came in the last moment.
            Ok(_) if waiting.waiter.served.is_set() => Ok(waiting.take()),
            Ok(_) => Err(crowded("waited too long in the queue")),
        }
    }
}

/// Whether the proxy itself refused.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), Kind::Resting | Kind::RateLimited | Kind::Crowded)
}

/// A place among the calls of a backend; dropped, it goes to the next.
struct Place {
    backends: Rc<Backends>,
    entry: Rc<Entry>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(limit) = &rows(&self.entry).concurrency {
            hand_on(&self.backends, &self.entry, limit, limit.pass_on());
        }
    }
}

/// One in the queue of this worker.
pub(super) struct Waiter {
    came: Duration,
    served: Event,
}

/// Its hold on the queue.
struct Waiting {
    backends: Rc<Backends>,
    entry: Rc<Entry>,
    limit: Concurrency,
    waiter: Rc<Waiter>,
    taken: Cell<bool>,
}

impl Waiting {
    fn join(backends: &Rc<Backends>, entry: &Rc<Entry>, limit: &Concurrency) -> Waiting {
        let waiter = Rc::new(Waiter { came: backends.board.elapsed(), served: Event::new() });
        entry.waiters.borrow_mut().push_back(waiter.clone());
        publish(backends, entry, limit);
        let waiting = Waiting {
            backends: backends.clone(),
            entry: entry.clone(),
            limit: limit.clone(),
            waiter,
            taken: Cell::new(false),
        };
        hand_on(backends, entry, limit, limit.next());
        waiting
    }

    fn take(&self) -> Place {
        self.taken.set(true);
        Place { backends: self.backends.clone(), entry: self.entry.clone() }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.taken.get() {
            return;
        }
        if self.waiter.served.is_set() {
            return drop(self.take());
        }
        self.entry.waiters.borrow_mut().retain(|other| !Rc::ptr_eq(other, &self.waiter));
        self.limit.leave_queue();
        publish(&self.backends, &self.entry, &self.limit);
    }
}

/// Says who is first in this worker's queue.
fn publish(backends: &Backends, entry: &Entry, limit: &Concurrency) {
    let first = entry.waiters.borrow().front().map(|waiter| waiter.came);
    limit.set_first(backends.me, first);
}

/// Brings a place to the worker that it is for.
fn hand_on(backends: &Rc<Backends>, entry: &Rc<Entry>, limit: &Concurrency, mut to: Option<usize>) {
    while let Some(worker) = to {
        if worker != backends.me {
            return backends.send(worker, BackendMail::Place { backend: entry.id });
        }
        let first = entry.waiters.borrow_mut().pop_front();
        publish(backends, entry, limit);
        to = match first {
            Some(waiter) => {
                limit.leave_queue();
                waiter.served.set();
                limit.next()
            }
            // Nobody waits here any more.
            None => limit.pass_on(),
        };
    }
}

/// A place came from another worker.
pub(super) fn place_came(backends: &Rc<Backends>, entry: &Rc<Entry>) {
    if let Some(limit) = &rows(entry).concurrency {
        hand_on(backends, entry, limit, Some(backends.me));
    }
}
