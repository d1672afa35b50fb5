//! Owns: what stands around a call: retry, hedging, concurrency, rate limit, time limits, breaker,
//! outlier detection; it makes attempts, and abandons and repeats them.
//! Never: one attempt itself (`attempt`); what the rows decide (`middleware`).
//! Next: `attempt`, one of those it makes.
//!
//! Outermost first: retry, hedging, concurrency, rate limit, time limit, breaker, outlier detection. So every
//! attempt takes a place and a token of its own, is bounded by its own time, and is counted.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::attempt;
use super::entry::Entry;
use super::handle::CallHandle;
use super::{Attempt, BackendMail, Backends, Call, Reply, http};
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, Kind as Message};
use crate::limits;
use crate::middleware::around::{Around, Verdict};
use crate::middleware::breaker::{Breaker, Pass};
use crate::middleware::concurrency::Concurrency;
use crate::middleware::hedge::Hedge;
use crate::middleware::retry::Budget;
use crate::rt;
use crate::rt::local::{Event, Receiver, Sender};

/// A call with rows around it.
pub(super) struct Run {
    maker: Rc<Maker>,
    /// Attempts made one after another.
    made: u32,
    current: Under,
    /// What stood beside the last answer, if it is an error of one attempt.
    beside: http::Beside,
}

/// What is under way.
enum Under {
    Nothing,
    One(Current),
    /// Attempts side by side.
    Many(Race),
}

/// What makes attempts of one call.
struct Maker {
    backends: Rc<Backends>,
    entry: Rc<Entry>,
    /// Copied for each attempt.
    call: Call,
    /// When all attempts must have ended.
    ends: Option<Instant>,
    /// An attempt has been made: its request id is used up.
    begun: Cell<bool>,
}

/// An attempt under way, and what it holds. Dropped without an outcome it says nothing.
struct Current {
    attempt: Attempt,
    holds: Holds,
}

/// What an attempt holds; its place among the calls of the backend is in its handle, for a
/// cancellation that was told gives it back, whether or not an answer still comes.
struct Holds {
    pass: Option<Ticket>,
    handle: Rc<CallHandle>,
}

impl Drop for Holds {
    fn drop(&mut self) {
        self.handle.give_up_place();
    }
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
    let entry = backends.entry_of(call.backend)?;
    if let Some(budget) = rows(&entry).retry.as_ref().and_then(|retry| retry.budget.as_ref()) {
        budget.call(backends.board.elapsed());
    }
    let ends = rows(&entry).total.map(|total| Instant::now() + total);
    let maker =
        Rc::new(Maker { backends: backends.clone(), entry, call, ends, begun: Cell::new(false) });
    let mut run = Run { maker, made: 0, current: Under::Nothing, beside: http::Beside::default() };
    if let Err(error) = run.start().await {
        run.again(error).await?;
    }
    Ok(Box::new(run))
}

fn rows(entry: &Entry) -> &Around {
    &entry.plan.around
}

impl Run {
    pub(super) fn backend(&self) -> crate::plan::BackendId {
        self.maker.entry.id
    }

    /// See [`super::Replies::wait`].
    pub(super) fn wait(&self) -> Option<Duration> {
        self.beside.wait
    }

    /// See [`super::Replies::next`].
    pub(super) async fn next(&mut self) -> Result<Reply> {
        loop {
            self.beside = http::Beside::default();
            let ended = match &mut self.current {
                Under::Nothing => {
                    return Err(Error::new(Kind::Internal).cause("asked behind the answer"));
                }
                Under::One(current) => match self.maker.reply(current).await {
                    Ok(Reply::Answer(answer)) => {
                        self.beside = current.attempt.beside();
                        Ok(answer)
                    }
                    Ok(other) => return Ok(other),
                    Err(error) => Err(error),
                },
                Under::Many(race) => match race.next(&self.maker).await {
                    Leads::On(message) => return Ok(Reply::Notification(message)),
                    Leads::Asking(question) => return Ok(Reply::Ask(question)),
                    Leads::To(ended) => ended,
                    Leads::Over(current, len) => {
                        self.current = Under::One(*current);
                        return Ok(Reply::Streaming { len });
                    }
                },
            };
            self.current = Under::Nothing;
            match ended {
                Ok(answer) => {
                    let verdict = Verdict::of_answer(&answer, self.beside.status);
                    if !self.may_repeat(verdict, self.beside.wait).await?
                        || self.start().await.is_err()
                    {
                        // Of a refusal by the proxy the backend's own word says more.
                        return Ok(Reply::Answer(answer));
                    }
                }
                Err(error) => self.again(error).await?,
            }
        }
    }

    /// See [`super::Replies::chunk`].
    pub(super) async fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        match &mut self.current {
            Under::One(current) => current.attempt.chunk().await,
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
        let maker = &*self.maker;
        let Some(retry) = &rows(&maker.entry).retry else { return Ok(false) };
        let tool = maker.call.tool.as_ref();
        let safe = maker.call.safe || tool.is_some_and(|tool| retry.tools.matches(tool));
        let chance = maker.backends.chance();
        let Some(pause) = retry.pause(self.made, verdict.outcome, safe, after, chance) else {
            return Ok(false);
        };
        if maker.call.handle.is_cancelled()
            || maker.ends.is_some_and(|ends| Instant::now() + pause >= ends)
            || retry.budget.as_ref().is_some_and(|b| !b.take(maker.backends.board.elapsed()))
        {
            return Ok(false);
        }
        match maker.call.handle.watch(rt::time::sleep(pause)).await {
            Ok(()) => Ok(true),
            Err(_) => Err(maker.error(Kind::Cancelled)),
        }
    }

    /// Begins one attempt, or a race of several.
    async fn start(&mut self) -> Result<()> {
        let maker = &self.maker;
        self.made += 1;
        let hedge = rows(&maker.entry).hedge.as_ref();
        let tool = maker.call.tool.as_deref();
        self.current = match hedge.filter(|hedge| hedge.applies(maker.call.safe, tool)) {
            Some(hedge) => Under::Many(Race::new(maker, hedge)),
            None => Under::One(maker.begin(CallHandle::below(&maker.call.handle), None).await?),
        };
        Ok(())
    }
}

impl Maker {
    fn error(&self, kind: Kind) -> Error {
        Error::new(kind).context(self.entry.name().to_owned())
    }

    /// Who calls; `None` without `[auth]`.
    fn principal(&self) -> Option<&str> {
        match (&self.call.session, &self.call.modern) {
            (Some(session), _) => session.principal.as_deref(),
            (None, caller) => caller.as_ref().and_then(|caller| caller.principal.as_deref()),
        }
    }

    /// Begins one attempt: up to its first reply, or for a child until it is sent. What it costs of
    /// the budget of retries is spent only if it is made.
    async fn begin(&self, handle: Rc<CallHandle>, charge: Option<Charge>) -> Result<Current> {
        let rows = rows(&self.entry);
        let refusal = |kind, wait| self.error(kind).retry_after(Some(wait));
        // Before a wait for a place: who would be refused behind it need not wait.
        if let Some(breaker) = &rows.breaker
            && let Some(wait) = breaker.would_refuse(self.backends.board.elapsed())
        {
            return Err(refusal(Kind::Resting, wait));
        }
        if let Some(limit) = &rows.concurrency {
            handle.hold(self.place(limit, &handle).await?);
        }
        let mut holds = Holds { pass: None, handle: handle.clone() };
        let now = self.backends.board.elapsed();
        if let Some(rate) = &rows.rate {
            rate.admit(now, self.principal()).map_err(|wait| refusal(Kind::RateLimited, wait))?;
        }
        if let Some(breaker) = &rows.breaker {
            let pass = breaker.admit(now).map_err(|wait| refusal(Kind::Resting, wait))?;
            let ticket = Ticket { breaker: breaker.clone(), pass, used: Cell::new(false) };
            holds.pass = Some(ticket);
        }
        if let Some(outlier) = &rows.outlier {
            outlier.admit(now).map_err(|wait| {
                handle.trail().note_ejected();
                refusal(Kind::Resting, wait)
            })?;
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
            handle,
            session: self.call.session.clone(),
            body: self.call.body.clone(),
            tool: None,
            modern: self.call.modern.clone(),
            again: self.begun.replace(true) || self.call.again,
            ..self.call
        };
        if let Some(charge) = charge {
            charge.spend();
        }
        match attempt::call(&self.backends, call).await {
            Ok(attempt) => Ok(Current { attempt, holds }),
            Err(error) => {
                self.count(&holds, Verdict::of_error(&error));
                Err(error)
            }
        }
    }

    /// The next reply to an attempt; its end is counted.
    async fn reply(&self, current: &mut Current) -> Result<Reply> {
        let reply = current.attempt.next().await;
        match &reply {
            Ok(Reply::Notification(_)) => {
                if rows(&self.entry).progress_resets {
                    current.attempt.restart_clock(self.ends);
                }
            }
            Ok(Reply::Ask(_) | Reply::Away { .. }) => {}
            Ok(Reply::Answer(answer)) => {
                let status = current.attempt.beside().status;
                self.count(&current.holds, Verdict::of_answer(answer, status));
            }
            // What is long is no error.
            Ok(Reply::Streaming { .. }) => self.count(&current.holds, Verdict::of_answer(b"", 0)),
            Err(error) => self.count(&current.holds, Verdict::of_error(error)),
        }
        reply
    }

    /// Counts the outcome of an attempt.
    fn count(&self, holds: &Holds, verdict: Verdict) {
        let Some(failed) = verdict.failed else { return };
        let now = self.backends.board.elapsed();
        if let Some(ticket) = &holds.pass
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
    async fn place(&self, limit: &Concurrency, handle: &CallHandle) -> Result<Place> {
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
        match handle.watch(wait).await {
            Err(_) => Err(self.error(Kind::Cancelled)),
            // Dropped, it passes on a place that came in the last moment, or too late for a race.
            Ok(_) if handle.is_cancelled() => Err(self.error(Kind::Cancelled)),
            Ok(_) if waiting.waiter.served.is_set() => Ok(waiting.take()),
            Ok(_) => Err(crowded("waited too long in the queue")),
        }
    }
}

/// One more attempt in the budget of retries; dropped without being spent, it goes back there.
struct Charge {
    budget: Budget,
    taken: Duration,
    spent: Cell<bool>,
}

impl Charge {
    /// Takes it; `None` = the budget has no more.
    fn take(budget: &Budget, now: Duration) -> Option<Charge> {
        // Made only then: dropped, it gives back.
        budget.take(now).then(|| Charge {
            budget: budget.clone(),
            taken: now,
            spent: Cell::new(false),
        })
    }

    /// The attempt is made.
    fn spend(self) {
        self.spent.set(true);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if !self.spent.get() {
            self.budget.give_back(self.taken);
        }
    }
}

/// Attempts side by side (`hedging`). Dropped, it cancels all of them but the one that it has led to.
struct Race {
    /// `None` = the one whose answer goes on after the race.
    lanes: Vec<Option<Rc<CallHandle>>>,
    /// Attempts that have not ended.
    running: usize,
    hedges_left: u32,
    delay: Duration,
    due: Instant,
    sender: Sender<(usize, Said)>,
    inbox: Receiver<(usize, Said)>,
    /// An end that is the answer if no better one comes.
    last: Option<Result<Vec<u8>>>,
    /// What the best attempt held. Given back only behind the cancellation of the others: one of
    /// them may wait for just that, and would be sent after the answer.
    won: Option<Holds>,
}

/// What an attempt in a race says.
enum Said {
    Note(Vec<u8>),
    Asks(Vec<u8>),
    /// With what it held, if it was made.
    Ended(Result<Vec<u8>>, Option<Holds>),
    /// The answer follows in pieces.
    Long(Box<Current>, Option<u64>),
}

/// Where a race leads.
enum Leads {
    /// On, with a notification.
    On(Vec<u8>),
    /// On, with a request for the client.
    Asking(Vec<u8>),
    /// To the end of the best attempt.
    To(Result<Vec<u8>>),
    /// To an attempt with a long answer.
    Over(Box<Current>, Option<u64>),
}

impl Race {
    fn new(maker: &Rc<Maker>, hedge: &Hedge) -> Race {
        let lanes = hedge.max_hedges as usize + 1;
        let (sender, inbox) = rt::local::queue(limits::SSE_QUEUE_MESSAGES_MAX + lanes);
        let mut race = Race {
            lanes: Vec::with_capacity(lanes),
            running: 0,
            hedges_left: hedge.max_hedges,
            delay: hedge.delay,
            due: Instant::now() + hedge.delay,
            sender,
            inbox,
            last: None,
            won: None,
        };
        race.enter(maker, None);
        race
    }

    /// Sends one more attempt.
    fn enter(&mut self, maker: &Rc<Maker>, charge: Option<Charge>) {
        let (lane, maker, sender) = (self.lanes.len(), maker.clone(), self.sender.clone());
        let handle = match lane {
            0 => CallHandle::below(&maker.call.handle),
            _ => CallHandle::beside(&maker.call.handle),
        };
        self.lanes.push(Some(handle.clone()));
        self.running += 1;
        rt::spawn("hedged attempt", async move {
            let said = run_lane(&maker, lane, handle, charge, &sender).await;
            let _ = sender.send((lane, said)).await;
        });
    }

    async fn next(&mut self, maker: &Rc<Maker>) -> Leads {
        loop {
            if self.running == 0 {
                let none = || Err(maker.error(Kind::Internal));
                return Leads::To(self.last.take().unwrap_or_else(none));
            }
            let heard = if self.hedges_left > 0 {
                let wait = self.due.saturating_duration_since(Instant::now());
                rt::time::timeout(wait, self.inbox.recv()).await
            } else {
                Ok(self.inbox.recv().await)
            };
            let Ok(heard) = heard else {
                self.hedge(maker);
                continue;
            };
            let Some((lane, said)) = heard else {
                self.running = 0;
                continue;
            };
            match said {
                // Of several the first tells how far it is: numbers must not go back.
                Said::Note(message) if lane == 0 => return Leads::On(message),
                Said::Note(_) => {}
                Said::Asks(question) => return Leads::Asking(question),
                Said::Long(current, len) => {
                    self.lanes[lane] = None;
                    return Leads::Over(current, len);
                }
                Said::Ended(ended, held) => {
                    self.running -= 1;
                    let well = ended.as_ref().is_ok_and(|answer| !is_error(answer));
                    if well {
                        self.won = held;
                        return Leads::To(ended);
                    }
                    // An answer says more than a failure, and that more than a refusal of the proxy.
                    let says_more = match (&self.last, &ended) {
                        (None, _) | (_, Ok(_)) => true,
                        (Some(Ok(_)), Err(_)) => false,
                        (Some(Err(last)), Err(error)) => is_refusal(last) || !is_refusal(error),
                    };
                    if says_more {
                        self.last = Some(ended);
                    }
                }
            }
        }
    }

    fn hedge(&mut self, maker: &Rc<Maker>) {
        self.hedges_left -= 1;
        self.due = Instant::now() + self.delay;
        let retry = rows(&maker.entry).retry.as_ref();
        match retry.and_then(|retry| retry.budget.as_ref()) {
            None => self.enter(maker, None),
            Some(budget) => {
                if let Some(charge) = Charge::take(budget, maker.backends.board.elapsed()) {
                    self.enter(maker, Some(charge));
                }
            }
        }
    }
}

impl Drop for Race {
    fn drop(&mut self) {
        for lane in self.lanes.iter().flatten() {
            // Nothing for those that have ended.
            lane.cancel(Some("another attempt was faster".to_owned()));
        }
    }
}

/// One attempt of a race, up to its end.
async fn run_lane(
    maker: &Maker,
    lane: usize,
    handle: Rc<CallHandle>,
    charge: Option<Charge>,
    out: &Sender<(usize, Said)>,
) -> Said {
    let mut current = match maker.begin(handle, charge).await {
        Ok(current) => current,
        Err(error) => return Said::Ended(Err(error), None),
    };
    loop {
        match maker.reply(&mut current).await {
            // Progress is a courtesy: what finds no room is dropped.
            Ok(Reply::Notification(message)) => drop(out.try_send((lane, Said::Note(message)))),
            // Of several attempts one may go on meanwhile.
            Ok(Reply::Away { .. }) => {}
            Ok(Reply::Ask(question)) => drop(out.send((lane, Said::Asks(question))).await),
            Ok(Reply::Answer(answer)) => return Said::Ended(Ok(answer), Some(current.holds)),
            Ok(Reply::Streaming { len }) => return Said::Long(Box::new(current), len),
            Err(error) => return Said::Ended(Err(error), Some(current.holds)),
        }
    }
}

/// Whether a response is an error.
fn is_error(answer: &[u8]) -> bool {
    jsonrpc::scan(answer).is_ok_and(|envelope| envelope.kind == Message::ErrorResponse)
}

/// Whether the proxy itself refused.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), Kind::Resting | Kind::RateLimited | Kind::Crowded)
}

/// A place among the calls of a backend; dropped, it goes to the next.
pub(super) struct Place {
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

/// The backend has other rules: who waits for a place waits under the new limit, or no more.
pub(super) fn follow_rules(backends: &Rc<Backends>, old: &Rc<Entry>, new: &Rc<Entry>) {
    match (&rows(old).concurrency, &rows(new).concurrency) {
        (Some(before), None) => {
            let waiters = std::mem::take(&mut *old.waiters.borrow_mut());
            for waiter in waiters {
                before.take_beyond();
                before.leave_queue();
                waiter.served.set();
            }
            publish(backends, old, before);
        }
        (Some(_), Some(limit)) => {
            while let Some(worker) = limit.next() {
                hand_on(backends, new, limit, Some(worker));
                if worker != backends.me {
                    // That worker looks for more by itself.
                    break;
                }
            }
        }
        _ => {}
    }
}

/// A place came from another worker.
pub(super) fn place_came(backends: &Rc<Backends>, entry: &Rc<Entry>) {
    if let Some(limit) = &rows(entry).concurrency {
        hand_on(backends, entry, limit, Some(backends.me));
    }
}
