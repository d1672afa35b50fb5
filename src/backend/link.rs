//! Owns: the channel to one child, or over one event stream: requests out, answers back to whoever
//! asked.
//! Never: starting or stopping it (`stdio`, `sse`), repeating a call.
//! Next: `spoilt`, lines that are no messages.
//!
//! MCP, Transports, stdio: one message a line, UTF-8, no line ends within. Everything that is queued
//! goes out as one write; writing and reading are two tasks, for a child may stop reading until
//! somebody takes its output. An answer is delivered to the call whose id it carries, and to nobody
//! else: ids are the proxy's own numbers, unknown ones are dropped.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::AHashMap;

use super::asks::Caller;
use super::bell::Bell;
use super::failure::Failure;
use super::frame::Lines;
use super::handle::{CallHandle, Item};
use super::names::{self, Own};
use super::relay::{self, Word};
use super::spoilt;
use crate::error::Kind;
use crate::jsonrpc::{self, Envelope, Kind as Message, Shape, Span};
use crate::limits;
use crate::mcp::catalog::Can;
use crate::mcp::envelope::{key, member, subscription};
use crate::plan::WorkerId;
use crate::rt::child::{Input, Output};
use crate::rt::local::Event;
use crate::rt::{Either, race};

/// Read at once from a child; also what its reader keeps between messages.
const READ_BYTES: usize = 64 * 1024;
/// Written at once to a child: the capacity of a pipe.
const WRITE_BYTES: usize = 64 * 1024;
/// A writer's buffer is kept up to this size.
const KEEP_BYTES: usize = 256 * 1024;

/// Who waits for an answer.
pub(super) struct Waiter {
    route: Route,
    /// What the caller calls its call.
    own: Own,
    behind: Behind,
    /// Its caller has no session: others may use the same child.
    alone: bool,
    /// It asks for log messages (2026-07-28: what does not gets none).
    logs: bool,
    /// Its place in the order of calls.
    turn: u64,
    /// The child has asked its client something.
    asked: bool,
}

/// A call that nobody waits for any more.
struct Ghost {
    id: u64,
    until: Instant,
    logs: bool,
}

/// Who is behind a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// A client that listens.
    Client,
    /// Nobody who listens: a copy of a client's call, or the proxy among a client's calls.
    Nobody,
    /// The proxy itself, with what makes no server talk.
    Proxy,
}

impl Behind {
    pub(super) fn call(deaf: bool) -> Behind {
        if deaf { Behind::Nobody } else { Behind::Client }
    }
}

impl Waiter {
    pub(super) fn new(route: Route, own: Own, behind: Behind) -> Waiter {
        Waiter { route, own, behind, alone: false, logs: false, turn: 0, asked: false }
    }

    /// Of a caller without a session: what names no call is its own only where there is no other.
    pub(super) fn alone(mut self, alone: bool) -> Waiter {
        self.alone = alone;
        self
    }
}

/// Where an answer goes.
#[derive(Clone)]
pub(super) enum Route {
    /// To a task of this worker.
    Here(Rc<CallHandle>),
    /// To a call of another worker, which knows it by the same number.
    Worker(WorkerId),
}

/// What a link does with what is not for this worker's calls.
pub(super) trait Outside {
    /// Carries an item to the call `id` of another worker.
    fn carry(&self, to: WorkerId, id: u64, item: Item);
    /// The child said that lists changed.
    fn changed(&self, flags: u32);
    /// The child said that a resource changed.
    fn updated(&self);
    /// The child answered something.
    fn answered(&self);
    /// The child said something of interest to whom it concerns: an update, the state of a task.
    fn said(&self, message: &[u8]);
    /// A log message that belongs to no call for sure; `caller` is the newest.
    fn logged(&self, message: &[u8], caller: Option<Caller>);
    /// Whether the child speaks the request era.
    fn is_modern(&self) -> bool;
    /// A request of the child, which the client of `caller` may have to answer: the answer that the
    /// child gets at once, if it gets one.
    fn asked(&self, message: &[u8], envelope: &Envelope, caller: Option<Caller>)
    -> Option<Vec<u8>>;
    /// The child takes a request back.
    fn withdrawn(&self, message: &[u8], envelope: &Envelope);
    /// A notification that names no call; `caller` is the likeliest.
    fn noted(&self, message: &[u8], caller: Option<Caller>);
    /// A call that the child has asked about is over, or not wanted any more.
    fn over(&self, id: u64);
    /// The child is gone.
    fn closed(&self);
}

/// What goes out: a whole message, or a request whose id and token are to be replaced.
pub(super) enum Outgoing<'a> {
    Ready(&'a [u8]),
    Rename { body: &'a [u8], id: Span, token: Option<Span> },
}

/// A channel to a child.
pub(super) struct Link {
    /// What the child promised.
    pub(super) can: Cell<Can>,
    name: Arc<str>,
    outside: Box<dyn Outside>,
    waiting: RefCell<AHashMap<u64, Waiter>>,
    /// Calls of clients that nobody waits for any more, and that the child may still be busy with:
    /// until when that is believed.
    ghosts: RefCell<VecDeque<Ghost>>,
    queue: RefCell<Vec<u8>>,
    /// Bytes taken from the queue and not yet taken by the child.
    writing: Cell<usize>,
    /// Since when the child has taken nothing of them.
    writing_since: Cell<Option<Instant>>,
    /// Rung for the writer.
    bell: Bell,
    /// No more requests; the input closes when the queue is empty.
    finishing: Cell<bool>,
    closed: Event,
    failure: RefCell<Option<Failure>>,
    last_used: Cell<Instant>,
    /// Calls so far.
    turns: Cell<u64>,
    /// Lines that were no messages, and when the last one was logged.
    noise: Cell<u64>,
    noise_logged: Cell<Option<Instant>>,
}

impl Link {
    /// A link; its tasks [`Link::write`] and [`Link::read`] are started by the caller.
    pub(super) fn new(name: Arc<str>, outside: Box<dyn Outside>, now: Instant) -> Rc<Link> {
        Rc::new(Link {
            can: Cell::default(),
            name,
            outside,
            waiting: RefCell::new(AHashMap::new()),
            ghosts: RefCell::default(),
            queue: RefCell::new(Vec::new()),
            writing: Cell::new(0),
            writing_since: Cell::new(None),
            bell: Bell::new(),
            finishing: Cell::new(false),
            closed: Event::new(),
            failure: RefCell::new(None),
            last_used: Cell::new(now),
            turns: Cell::new(0),
            noise: Cell::new(0),
            noise_logged: Cell::new(None),
        })
    }

    /// Whether requests can be sent.
    pub(super) fn is_open(&self) -> bool {
        !self.finishing.get() && !self.closed.is_set()
    }

    /// Waits until the child can neither be written to nor read from.
    pub(super) async fn closed(&self) {
        self.closed.wait().await;
    }

    /// Why it closed.
    pub(super) fn failure(&self) -> Failure {
        self.failure
            .borrow()
            .clone()
            .unwrap_or_else(|| Failure::new(Kind::Unavailable, "the channel is closed"))
    }

    /// How long nobody has called, `None` while somebody waits.
    pub(super) fn idle(&self, now: Instant) -> Option<Duration> {
        let idle = self.waiting.borrow().is_empty();
        idle.then(|| now.saturating_duration_since(self.last_used.get()))
    }

    /// Whether no client waits for anything, and nobody has called just now: a call that another
    /// worker has sent may still be on its way.
    pub(super) fn is_left(&self, now: Instant) -> bool {
        let quiet = now.saturating_duration_since(self.last_used.get()) >= limits::PARTING_PAUSE;
        quiet && self.waiting.borrow().values().all(|waiter| waiter.behind == Behind::Proxy)
    }

    /// Whether the child has taken nothing of its input for too long.
    pub(super) fn is_stalled(&self, now: Instant) -> bool {
        self.writing_since
            .get()
            .is_some_and(|since| now.saturating_duration_since(since) >= limits::CHILD_WRITE_STALL)
    }

    /// Queues a request of the upstream id `id`.
    ///
    /// # Errors
    /// [`Kind::Busy`] when too many bytes are queued, [`Kind::Unavailable`] when it is closed: the
    /// child has seen nothing of the request, and the waiter is dropped.
    pub(super) fn send(
        &self,
        id: u64,
        mut waiter: Waiter,
        message: &Outgoing<'_>,
        now: Instant,
    ) -> Result<(), Failure> {
        if !self.is_open() {
            return Err(self.failure().unsent());
        }
        self.push(message, id)?;
        self.last_used.set(now);
        waiter.logs = self.outside.is_modern() && asks_for_logs(message);
        waiter.turn = self.turns.get() + 1;
        self.turns.set(waiter.turn);
        self.waiting.borrow_mut().insert(id, waiter);
        Ok(())
    }

    /// Queues a message that nobody waits for an answer of.
    pub(super) fn tell(&self, message: &[u8]) {
        if self.is_open() {
            // A child that takes nothing misses its cancellations too.
            let _ = self.push(&Outgoing::Ready(message), 0);
        }
    }

    /// Nobody waits for this answer any more.
    pub(super) fn forget(&self, id: u64) {
        let waiter = self.waiting.borrow_mut().remove(&id);
        let Some(waiter) = waiter else { return };
        if waiter.behind != Behind::Proxy {
            let mut ghosts = self.ghosts.borrow_mut();
            if ghosts.len() >= limits::GHOSTS_MAX {
                ghosts.pop_front();
            }
            let until = Instant::now() + limits::CALL_TIMEOUT;
            ghosts.push_back(Ghost { id, until, logs: waiter.logs });
        }
        if waiter.asked {
            self.outside.over(id);
        }
    }

    /// The only call that the child can be talking about, if a client is behind it; `None` if there
    /// are several, or none. `logs`: of those alone that ask for log messages.
    fn only_call(&self, logs: bool) -> Option<(u64, Route)> {
        let mut ghosts = self.ghosts.borrow_mut();
        if !ghosts.is_empty() {
            let now = Instant::now();
            ghosts.retain(|ghost| ghost.until > now);
            if ghosts.iter().any(|ghost| ghost.logs || !logs) {
                return None;
            }
        }
        let waiting = self.waiting.borrow();
        let mut calls = waiting
            .iter()
            .filter(|(_, waiter)| waiter.behind != Behind::Proxy && (waiter.logs || !logs));
        let (id, waiter) = calls.next()?;
        let only = calls.next().is_none() && waiter.behind == Behind::Client;
        only.then(|| (*id, waiter.route.clone()))
    }

    /// Cancels a request at the child; its answer, should one come, is still delivered.
    pub(super) fn cancel(&self, id: u64, reason: Option<&str>) {
        let asked = match self.waiting.borrow_mut().get_mut(&id) {
            Some(waiter) => std::mem::take(&mut waiter.asked),
            None => return,
        };
        self.tell(&names::cancellation(itoa::Buffer::new().format(id).as_bytes(), reason));
        if asked {
            self.outside.over(id);
        }
    }

    /// The newest call of a client: what the child says without naming one belongs to it, if to any.
    fn newest(&self) -> Option<Caller> {
        let waiting = self.waiting.borrow();
        let calls = waiting.iter().filter(|(_, waiter)| waiter.behind == Behind::Client);
        let (id, waiter) = calls.max_by_key(|(_, waiter)| waiter.turn)?;
        if waiter.alone && waiting.len() > 1 {
            return None;
        }
        Some(Caller { id: *id, route: waiter.route.clone() })
    }

    fn push(&self, message: &Outgoing<'_>, id: u64) -> Result<(), Failure> {
        let length = match message {
            Outgoing::Ready(message) => message.len(),
            Outgoing::Rename { body, .. } => body.len(),
        };
        let mut queue = self.queue.borrow_mut();
        if queue.len() + self.writing.get() + length > limits::CHILD_QUEUE_BYTES_MAX {
            return Err(Failure::new(Kind::Busy, "the backend does not take its input"));
        }
        let start = queue.len();
        match message {
            Outgoing::Ready(message) => queue.extend_from_slice(message),
            Outgoing::Rename { body, id: span, token } => {
                let mut number = itoa::Buffer::new();
                names::renamed(&mut queue, body, *span, *token, number.format(id).as_bytes());
            }
        }
        flatten(&mut queue[start..]);
        queue.push(b'\n');
        drop(queue);
        self.bell.ring(1);
        Ok(())
    }

    /// Takes no more requests, and closes the child's input once it has taken what is queued.
    pub(super) fn finish(&self) {
        self.finishing.set(true);
        self.bell.ring(1);
    }

    /// The channel is broken: all who wait are told at once. Only the first cause counts.
    pub(super) fn close(&self, failure: Failure) {
        if self.closed.is_set() {
            return;
        }
        *self.failure.borrow_mut() = Some(failure.clone());
        self.closed.set();
        *self.queue.borrow_mut() = Vec::new();
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for (id, waiter) in waiting {
            self.deliver(id, &waiter.route, Item::Failed(failure.clone()));
        }
        self.outside.closed();
    }

    /// The request `id` came to nothing; the others go on.
    pub(super) fn refuse(&self, id: u64, failure: Failure) {
        let waiter = self.waiting.borrow_mut().remove(&id);
        if let Some(waiter) = waiter {
            self.deliver(id, &waiter.route, Item::Failed(failure));
        }
    }

    fn deliver(&self, id: u64, route: &Route, item: Item) {
        match route {
            Route::Here(handle) => handle.deliver(item),
            Route::Worker(worker) => self.outside.carry(*worker, id, item),
        }
    }

    /// What is queued, as whole lines, once there is some; `None` when the link is closed, or
    /// finished and empty. `spare` is an empty buffer to queue in next.
    pub(super) async fn queued(&self, mut spare: Vec<u8>) -> Option<Vec<u8>> {
        loop {
            let batch = std::mem::replace(&mut *self.queue.borrow_mut(), spare);
            if !batch.is_empty() {
                return Some(batch);
            }
            spare = batch;
            if self.finishing.get() || self.closed.is_set() {
                return None;
            }
            if let Either::Right(()) = race(self.bell.wait(), self.closed.wait()).await {
                return None;
            }
        }
    }

    /// So many bytes more are (or, negative, fewer are) taken from the queue and not yet sent.
    pub(super) fn hold(&self, bytes: isize) {
        self.writing.set(self.writing.get().saturating_add_signed(bytes));
    }

    /// The writer to a child: ends when the link is closed, or finished and empty.
    pub(super) async fn write(self: Rc<Link>, mut input: Input) {
        let mut spare = Vec::new();
        // One wait for all writes, as in `read`.
        let mut closed = std::pin::pin!(self.closed.wait());
        while let Some(mut batch) = self.queued(spare).await {
            let mut at = 0;
            while at < batch.len() {
                // A long batch goes in pieces, so that a child that takes some of it counts as alive.
                let end = batch.len().min(at + WRITE_BYTES);
                self.writing.set(batch.len() - at);
                self.writing_since.set(Some(Instant::now()));
                // Dropped on close: the child is killed then.
                let written = match race(input.write(batch, at..end), closed.as_mut()).await {
                    Either::Left(written) => written,
                    Either::Right(()) => return,
                };
                self.writing_since.set(None);
                if let (Err(fault), _) = written {
                    let cause = format!("writing to the child: {fault}");
                    return self.close(Failure::new(Kind::Lost, cause));
                }
                (batch, at) = (written.1, end);
            }
            batch.clear();
            self.writing.set(0);
            spare = if batch.capacity() > KEEP_BYTES { Vec::new() } else { batch };
        }
    }

    /// The reader: ends when the child closes its output, breaks a bound, or the link is closed.
    pub(super) async fn read(self: Rc<Link>, mut output: Output) {
        // Also should this task panic: nobody must wait for a channel that is not read.
        let _close = CloseOnDrop(&self);
        let mut lines = Lines::new(limits::MESSAGE_BYTES_MAX);
        let mut closed = std::pin::pin!(self.closed.wait());
        loop {
            let buffer = lines.buffer();
            // Dropped on close: the child is killed then.
            let (read, buffer) = match race(output.read(buffer, READ_BYTES), closed.as_mut()).await
            {
                Either::Left(read) => read,
                Either::Right(()) => return,
            };
            lines.restore(buffer);
            match read {
                Ok(0) => {
                    return self.close(Failure::new(Kind::Lost, "the child closed its output"));
                }
                Ok(_) => {}
                Err(fault) => {
                    let cause = format!("reading from the child: {fault}");
                    return self.close(Failure::new(Kind::Lost, cause));
                }
            }
            loop {
                match lines.cut() {
                    Ok(Some(line)) => self.line(line),
                    Ok(None) => break,
                    Err(_) => {
                        let cause = "a line over the bound of one message";
                        return self.close(Failure::new(Kind::BadAnswer, cause));
                    }
                }
            }
            lines.shrink(4 * READ_BYTES);
        }
    }

    /// Takes one message, or an array of them.
    pub(super) fn line(&self, line: &[u8]) {
        match jsonrpc::scan(line) {
            Ok(envelope) => self.message(line, &envelope),
            Err(fault) => match jsonrpc::shape(line) {
                // An array of messages: revision 2025-03-26 alone.
                Ok(Shape::Batch(elements)) => {
                    for element in elements {
                        let message = element.of(line);
                        match jsonrpc::scan(message) {
                            Ok(envelope) => self.message(message, &envelope),
                            Err(fault) => self.spoilt(message, fault.text()),
                        }
                    }
                }
                _ => self.spoilt(line, fault.text()),
            },
        }
    }

    /// What a notification is about; an update outdates what is kept.
    fn word(&self, envelope: &Envelope, message: &[u8]) -> Word {
        let word = relay::word(envelope, message);
        if word == Word::Updated {
            self.outside.updated();
        }
        word
    }

    fn message(&self, message: &[u8], envelope: &Envelope) {
        match envelope.kind {
            Message::Response | Message::ErrorResponse => {
                self.outside.answered();
                let Some(id) = envelope.id else {
                    return self.noise(message, "an error that names no request");
                };
                let number = names::number(id.of(message));
                let waiter = number
                    .and_then(|number| Some((number, self.waiting.borrow_mut().remove(&number)?)));
                // Unknown: cancelled, timed out, or never asked. It belongs to nobody.
                let Some((number, waiter)) = waiter else {
                    self.ghosts.borrow_mut().retain(|ghost| Some(ghost.id) != number);
                    return;
                };
                let answer = waiter.own.answer(message, id);
                self.deliver(number, &waiter.route, Item::Answer(answer));
                if waiter.asked {
                    self.outside.over(number);
                }
            }
            Message::Notification => match self.word(envelope, message) {
                Word::Progress => {
                    let Some(token) = envelope.progress_token else { return };
                    let Some(number) = names::number(token.of(message)) else { return };
                    let waiting = self.waiting.borrow();
                    let Some(waiter) = waiting.get(&number) else { return };
                    if let Some(progress) = waiter.own.progress(message, token) {
                        self.deliver(number, &waiter.route, Item::Notification(progress));
                    }
                }
                Word::Changed(flags) => self.outside.changed(flags),
                Word::Withdrawn if self.outside.is_modern() => self.torn_down(message, envelope),
                Word::Updated | Word::Task | Word::Other if self.outside.is_modern() => {
                    self.subscribed(message, envelope);
                }
                // None names its request there, but one that does not ask for any gets none.
                Word::Log if self.outside.is_modern() => {
                    if let Some((number, route)) = self.only_call(true) {
                        self.deliver(number, &route, Item::Notification(message.to_vec()));
                    }
                }
                Word::Log => match self.only_call(false) {
                    Some((number, route)) => {
                        self.deliver(number, &route, Item::Notification(message.to_vec()));
                    }
                    None => self.outside.logged(message, self.newest()),
                },
                Word::Updated | Word::Task => self.outside.said(message),
                Word::Withdrawn => self.outside.withdrawn(message, envelope),
                Word::Other => self.outside.noted(message, self.newest()),
            },
            Message::Request => {
                let reply = match relay::pong(envelope, message) {
                    None => {
                        let caller = self.newest();
                        let id = caller.as_ref().map(|caller| caller.id);
                        let reply = self.outside.asked(message, envelope, caller);
                        if let (None, Some(id)) = (&reply, id)
                            && let Some(waiter) = self.waiting.borrow_mut().get_mut(&id)
                        {
                            waiter.asked = true;
                        }
                        reply
                    }
                    pong => pong,
                };
                if let Some(reply) = reply {
                    self.tell(&reply);
                }
            }
        }
    }

    /// What came on the stream of a request that listens (2026-07-28, Subscriptions).
    fn subscribed(&self, message: &[u8], envelope: &Envelope) {
        let number =
            subscription(message, envelope).and_then(|span| names::number(span.of(message)));
        let Some(number) = number else { return };
        if let Some(waiter) = self.waiting.borrow().get(&number) {
            self.deliver(number, &waiter.route, Item::Notification(message.to_vec()));
        }
    }

    /// The child ends such a stream: nothing else may it cancel.
    fn torn_down(&self, message: &[u8], envelope: &Envelope) {
        let number = envelope.request_id.and_then(|span| names::number(span.of(message)));
        let waiter = number.and_then(|number| self.waiting.borrow_mut().remove(&number));
        if let (Some(number), Some(waiter)) = (number, waiter) {
            let failure = Failure::new(Kind::Lost, "the child ended the stream");
            self.deliver(number, &waiter.route, Item::Failed(failure));
        }
    }

    /// What is no message, and may be meant as the answer to a call.
    fn spoilt(&self, line: &[u8], why: &str) {
        for number in spoilt::ids(line).into_iter().filter_map(names::number) {
            let waiter = self.waiting.borrow_mut().remove(&number);
            let Some(waiter) = waiter else { continue };
            let failure = Failure::new(Kind::BadAnswer, format!("an answer that is none: {why}"));
            self.deliver(number, &waiter.route, Item::Failed(failure));
            if waiter.asked {
                self.outside.over(number);
            }
        }
        self.noise(line, why);
    }

    /// A line that is no message: servers print to their output by mistake. Logged once in a while.
    fn noise(&self, line: &[u8], why: &str) {
        self.noise.set(self.noise.get() + 1);
        let now = Instant::now();
        let quiet = |last| now.duration_since(last) < limits::LOG_QUIET;
        if self.noise_logged.get().is_some_and(quiet) {
            return;
        }
        self.noise_logged.set(Some(now));
        let start = String::from_utf8_lossy(&line[..line.len().min(120)]);
        tracing::warn!(
            backend = &*self.name,
            lines = self.noise.replace(0),
            why,
            first = start.escape_debug().to_string(),
            "output that is no message ignored"
        );
    }
}

/// Closes the link when the task that reads it ends, however it does.
pub(super) struct CloseOnDrop<'a>(pub(super) &'a Link);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close(Failure::new(Kind::Lost, "the channel is not read any more"));
    }
}

/// Whether a request of the newer era asks for log messages (2026-07-28, Logging, Per-request log level).
fn asks_for_logs(message: &Outgoing<'_>) -> bool {
    let (Outgoing::Ready(body) | Outgoing::Rename { body, .. }) = message;
    // Spelt with escapes it would be no less.
    if memchr::memmem::find(body, b"logLevel").is_none() && !body.contains(&b'\\') {
        return false;
    }
    let meta = jsonrpc::scan(body).ok().and_then(|envelope| envelope.meta);
    meta.is_some_and(|meta| member(meta.of(body), key::LOG_LEVEL).is_some())
}

/// Line ends within a message stand only between its tokens, where a space is as good.
fn flatten(message: &mut [u8]) {
    let mut from = 0;
    while let Some(at) = memchr::memchr2(b'\n', b'\r', &message[from..]) {
        message[from + at] = b' ';
        from += at + 1;
    }
}

#[cfg(test)]
mod tests;
