//! Owns: calls that run once for several callers (`[performance]`), and the eye on answers that are
//! to be kept.
//! Never: which calls are the same (`middleware::reuse`).
//! Next: `stand_in`, who is asked.
//!
//! A key has an owner worker. There the call runs in a task of its own, which is nobody's: a caller
//! that leaves harms no other, also if it came first. When the last one leaves, the call is given
//! up. Every caller gets the answer under its own id, and one of them is told of the attempts: the
//! one that came first, or who is there in its place.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::entry::Entry;
use super::handle::CallHandle;
use super::names::Own;
use super::shelf::{self, Moment};
use super::trail::{Past, Traced};
use super::{BackendMail, Backends, Call, Caller, Kept, Replies, Reply, left, stopped};
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, Kind as Message, Span};
use crate::limits;
use crate::mcp::session::SessionRecord;
use crate::middleware::reuse::{Held, Reusable};
use crate::plan::{BackendId, WorkerId};
use crate::rt;
use crate::rt::local::{Event, Receiver, queue};
use crate::rt::{Either, race};

/// Mail about calls that run together.
pub enum FlightMail {
    /// To the owner of a key: a call that wants its answer.
    Join {
        /// Its number on the sending worker.
        token: u64,
        /// What may be done with the answer.
        reusable: Box<Reusable>,
        /// The call.
        sent: Box<Sent>,
    },
    /// To the owner: that call wants it no more.
    Leave {
        /// Its number on the sending worker.
        token: u64,
        /// Under which it joined.
        key: Arc<[u8]>,
        /// It was cancelled, for this reason.
        cancelled: Option<Option<String>>,
    },
    /// From the owner: yours is the call that runs for all.
    Leads {
        /// The call's number.
        token: u64,
    },
    /// From the owner: how far it is.
    Note {
        /// The call's number.
        token: u64,
        /// A whole notification, with somebody's progress token.
        message: Arc<[u8]>,
    },
    /// From the owner: the end.
    Landed {
        /// The call's number.
        token: u64,
        /// What it came to.
        landed: Landed,
        /// What the call left behind, if it ran.
        past: Option<Box<Past>>,
    },
}

/// A call on its way to the owner of its key.
#[derive(Clone)]
pub struct Sent {
    backend: BackendId,
    session: Option<Arc<SessionRecord>>,
    tool_call: bool,
    safe: bool,
    tool: Option<String>,
    body: Vec<u8>,
    id: Span,
    progress_token: Option<Span>,
    timeout: Duration,
    /// Of a caller without a session, which nobody can ask anything then.
    modern: Option<Box<Caller>>,
    /// Where the ids of spans stand in it, and what they are made from.
    trace: Option<(usize, u64)>,
}

/// What became of a call.
#[derive(Clone)]
pub enum Landed {
    /// An answer, with somebody's id.
    Answer(Held),
    /// None.
    Failed(Fault),
    /// It is too long to be shared: each caller is to fetch it for itself.
    Alone,
}

/// An error in a form that can be copied and mailed.
#[derive(Clone)]
pub struct Fault {
    kind: Kind,
    context: String,
    cause: String,
    status: u16,
    wait: Option<Duration>,
}

impl Fault {
    fn of(error: &Error) -> Fault {
        Fault {
            kind: error.kind(),
            context: error.public_context().to_owned(),
            cause: error.to_string(),
            status: error.http_status(),
            wait: error.wait(),
        }
    }

    fn error(self) -> Error {
        let error = Error::new(self.kind).context(self.context).cause(self.cause);
        error.http(self.status).retry_after(self.wait)
    }
}

/// A call of this worker that waits for one that runs for several.
pub(super) struct Joined {
    backends: Rc<Backends>,
    owner: WorkerId,
    key: Arc<[u8]>,
    token: u64,
    inbox: Receiver<News>,
    own: Own,
    backend: BackendId,
    handle: Rc<CallHandle>,
    /// Should it have to run alone.
    call: Option<Call>,
    /// To be done if it is the one that runs.
    lead: Option<Lead>,
    alone: Option<Box<Replies>>,
    done: bool,
}

/// What is done once for calls that run together.
pub type Lead = Box<dyn FnOnce()>;

/// What a waiting call hears.
pub(super) enum News {
    Leads,
    Note(Arc<[u8]>),
    Landed(Landed, Option<Box<Past>>),
}

/// A call that runs for several, on the owner of its key.
pub(super) struct Flight {
    reusable: Box<Reusable>,
    sent: Sent,
    waiters: RefCell<Vec<Waiter>>,
    /// Whose call it is that runs.
    lead: (WorkerId, u64),
    /// Of all its runs.
    handle: Rc<CallHandle>,
    /// The last one left.
    deserted: Event,
}

struct Waiter {
    worker: WorkerId,
    token: u64,
    session: Option<Arc<SessionRecord>>,
}

/// Sends a call whose answer may serve others. A drop leaves it.
pub(super) async fn call(
    backends: &Rc<Backends>,
    call: Call,
    reusable: Box<Reusable>,
    lead: Lead,
) -> Result<Replies> {
    let entry = backends.entry_of(call.backend)?;
    let Some(key) = reusable.flight.clone() else {
        lead();
        let moment = Moment::now(backends, &entry, &reusable);
        let replies = backends.call(call).await?;
        let backends = backends.clone();
        let tap = Tap { backends, entry, reusable, moment, replies, seen: None };
        return Ok(Replies::of(Kept::Tapped(Box::new(tap))));
    };
    let owner = owner(&key, backends.workers);
    let token = backends.number();
    let (sender, inbox) = queue(limits::SSE_QUEUE_MESSAGES_MAX);
    backends.seats.borrow_mut().insert(token, sender);
    let mut joined = Box::new(Joined {
        backends: backends.clone(),
        owner,
        key,
        token,
        inbox,
        own: Own::of(&call.body, call.id, call.progress_token),
        backend: call.backend,
        handle: call.handle.clone(),
        call: None,
        lead: Some(lead),
        alone: None,
        done: false,
    });
    let sent = Sent {
        backend: call.backend,
        session: call.session.clone(),
        tool_call: call.tool_call,
        safe: call.safe,
        tool: call.tool.clone(),
        body: call.body.clone(),
        id: call.id,
        progress_token: call.progress_token,
        timeout: call.timeout,
        modern: call.modern.as_ref().map(|caller| Box::new(Caller::clone(caller))),
        trace: call.handle.trail().trace().map(Traced::rest),
    };
    if owner == backends.me {
        join(backends, owner, token, reusable, sent);
    } else {
        let mail = FlightMail::Join { token, reusable, sent: Box::new(sent) };
        if backends.try_send(owner, BackendMail::Flight(Box::new(mail))).is_err() {
            joined.done = true;
            return Err(Error::new(Kind::Capacity).context(entry.name().to_owned()));
        }
    }
    joined.call = Some(call);
    Ok(Replies::of(Kept::Joined(joined)))
}

/// The same on every worker, so no seed of chance.
fn owner(key: &[u8], workers: usize) -> WorkerId {
    let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
    (hasher.hash_one(key) % workers.max(1) as u64) as usize
}

/// Takes mail of another worker.
pub(super) fn receive(backends: &Rc<Backends>, from: WorkerId, mail: FlightMail) {
    match mail {
        FlightMail::Join { token, reusable, sent } => {
            join(backends, from, token, reusable, *sent);
        }
        FlightMail::Leave { token, key, cancelled } => {
            leave(backends, from, token, &key, cancelled);
        }
        FlightMail::Leads { token } => tell(backends, token, News::Leads),
        FlightMail::Note { token, message } => tell(backends, token, News::Note(message)),
        FlightMail::Landed { token, landed, past } => {
            tell(backends, token, News::Landed(landed, past));
        }
    }
}

/// Tells a waiting call of this worker.
fn tell(backends: &Backends, token: u64, news: News) {
    let sender = match news {
        News::Leads | News::Note(_) => backends.seats.borrow().get(&token).cloned(),
        News::Landed(..) => backends.seats.borrow_mut().remove(&token),
    };
    let Some(sender) = sender else { return };
    // Progress is a courtesy; the last place is the answer's.
    if matches!(news, News::Landed(..)) || sender.len() + 1 < limits::SSE_QUEUE_MESSAGES_MAX {
        let _ = sender.try_send(news);
    }
}

fn join(backends: &Rc<Backends>, from: WorkerId, token: u64, reusable: Box<Reusable>, sent: Sent) {
    let Some(key) = reusable.flight.clone() else { return };
    let Some(entry) = backends.entry(sent.backend) else {
        return land(backends, from, token, Landed::Failed(Fault::of(&left())), None);
    };
    // It may have landed while the mail was under way.
    if let Some(held) = shelf::find(backends, &entry, &reusable) {
        return land(backends, from, token, Landed::Answer(held), None);
    }
    let waiter = Waiter { worker: from, token, session: sent.session.clone() };
    let under_way = backends.flights.borrow().get(&key).cloned();
    if let Some(flight) = under_way {
        backends.board.count_merged(backends.me, entry.id);
        return flight.waiters.borrow_mut().push(waiter);
    }
    let handle = Rc::new(CallHandle::new());
    if let Some((at, seed)) = sent.trace {
        handle.trail().set_trace(Traced { at: Cell::new(at), seed, spans: RefCell::default() });
    }
    let flight = Rc::new(Flight {
        reusable,
        sent,
        waiters: RefCell::new(vec![waiter]),
        lead: (from, token),
        handle,
        deserted: Event::new(),
    });
    backends.flights.borrow_mut().insert(key, flight.clone());
    if from == backends.me {
        tell(backends, token, News::Leads);
    } else {
        backends.send(from, BackendMail::Flight(Box::new(FlightMail::Leads { token })));
    }
    rt::spawn("shared call", fly(backends.clone(), entry, flight));
}

fn leave(
    backends: &Rc<Backends>,
    from: WorkerId,
    token: u64,
    key: &Arc<[u8]>,
    cancelled: Option<Option<String>>,
) {
    let Some(flight) = backends.flights.borrow().get(key).cloned() else { return };
    let deserted = {
        let mut waiters = flight.waiters.borrow_mut();
        waiters.retain(|waiter| (waiter.worker, waiter.token) != (from, token));
        waiters.is_empty()
    };
    if !deserted {
        return;
    }
    // Who comes now begins anew.
    backends.flights.borrow_mut().remove(key);
    match cancelled {
        Some(reason) => flight.handle.cancel(reason),
        None => flight.deserted.set(),
    }
}

fn land(backends: &Backends, to: WorkerId, token: u64, landed: Landed, past: Option<Box<Past>>) {
    if to == backends.me {
        return tell(backends, token, News::Landed(landed, past));
    }
    let mail = FlightMail::Landed { token, landed, past };
    backends.send(to, BackendMail::Flight(Box::new(mail)));
}

/// The end of a flight, also of one whose task panicked: nobody must wait for ever.
struct Landing {
    backends: Rc<Backends>,
    flight: Rc<Flight>,
    landed: Option<Landed>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let (backends, flight) = (&self.backends, &self.flight);
        if let Some(key) = &flight.reusable.flight {
            let mut flights = backends.flights.borrow_mut();
            if flights.get(key).is_some_and(|current| Rc::ptr_eq(current, flight)) {
                flights.remove(key);
            }
        }
        let landed = self.landed.take().unwrap_or_else(|| {
            Landed::Failed(Fault::of(&Error::new(Kind::Internal).cause("a shared call broke off")))
        });
        let waiters = std::mem::take(&mut *flight.waiters.borrow_mut());
        let past = flight.handle.trail().past();
        let is_lead = |waiter: &Waiter| (waiter.worker, waiter.token) == flight.lead;
        let told = waiters.iter().position(is_lead).unwrap_or(0);
        for (at, waiter) in waiters.iter().enumerate() {
            let past = match at == told {
                // The ids of the spans are in the message of another one.
                true if !is_lead(waiter) => past.without_spans(),
                true => past.clone(),
                false => past.without_attempts(),
            };
            land(backends, waiter.worker, waiter.token, landed.clone(), Some(Box::new(past)));
        }
    }
}

/// The life of a call that runs for several.
async fn fly(backends: Rc<Backends>, entry: Rc<Entry>, flight: Rc<Flight>) {
    let mut end = Landing { backends: backends.clone(), flight: flight.clone(), landed: None };
    let mut first = true;
    loop {
        // It runs in the session of one of those who wait.
        let session = {
            let waiters = flight.waiters.borrow();
            let alive = |waiter: &&Waiter| waiter.session.as_ref().is_none_or(|s| !s.ended());
            let leader = waiters.iter().find(alive).or(waiters.first());
            leader.and_then(|waiter| waiter.session.clone())
        };
        let run = Box::pin(run(&backends, &entry, &flight, session.clone()));
        // Dropped when nobody waits any more: the call is given up.
        let Either::Left(landed) = race(run, flight.deserted.wait()).await else { return };
        // That its session ended is no fault of the others.
        let ended = session.is_some_and(|session| session.ended());
        let well = matches!(&landed, Landed::Answer(held)
            if jsonrpc::scan(&held.answer).is_ok_and(|e| e.kind == Message::Response));
        let others = !flight.waiters.borrow().is_empty();
        if std::mem::take(&mut first) && ended && !well && others && flight.reusable.repeatable {
            continue;
        }
        end.landed = Some(landed);
        return;
    }
}

async fn run(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    flight: &Flight,
    session: Option<Arc<SessionRecord>>,
) -> Landed {
    let moment = Moment::now(backends, entry, &flight.reusable);
    let handle = CallHandle::below(&flight.handle);
    let sent = flight.sent.clone();
    let call = Call {
        backend: sent.backend,
        session,
        tool_call: sent.tool_call,
        safe: sent.safe,
        tool: sent.tool,
        body: sent.body,
        id: sent.id,
        progress_token: sent.progress_token,
        timeout: sent.timeout,
        // Its id is one caller's, who may be gone and have used it again.
        again: true,
        modern: sent.modern.map(|caller| Rc::new(*caller)),
        handle,
    };
    let failed = |error: Error| Landed::Failed(Fault::of(&error));
    let mut replies = match backends.call(call).await {
        Ok(replies) => replies,
        Err(error) => return failed(error),
    };
    let answer = loop {
        match replies.next().await {
            Ok(Reply::Notification(message)) => {
                let message: Arc<[u8]> = message.into();
                for waiter in &*flight.waiters.borrow() {
                    let (token, message) = (waiter.token, message.clone());
                    if waiter.worker == backends.me {
                        tell(backends, token, News::Note(message));
                    } else {
                        let mail = Box::new(FlightMail::Note { token, message });
                        let _ = backends.try_send(waiter.worker, BackendMail::Flight(mail));
                    }
                }
            }
            // Whose client is to be asked cannot be told.
            Ok(Reply::Ask(question)) => backends.decline(&question),
            // The rest comes all the same.
            Ok(Reply::Away { .. }) => {}
            Ok(Reply::Answer(answer)) => break answer,
            Ok(Reply::Streaming { .. }) => {
                let mut whole = Vec::new();
                loop {
                    match replies.chunk().await {
                        Ok(Some(piece)) => whole.extend_from_slice(&piece),
                        Ok(None) => break,
                        Err(error) => return failed(error),
                    }
                    if whole.len() > limits::MESSAGE_BYTES_MAX {
                        if flight.reusable.repeatable {
                            return Landed::Alone;
                        }
                        let context = format!("{}: too long to be shared", entry.name());
                        return failed(Error::new(Kind::BadAnswer).context(context));
                    }
                }
                break whole;
            }
            Err(error) => return failed(error),
        }
    };
    shelf::keep(backends, entry, &flight.reusable, moment, &answer);
    match jsonrpc::scan(&answer).ok().and_then(|envelope| envelope.id) {
        Some(id) => Landed::Answer(Held { answer: answer.into(), id }),
        None => failed(Error::new(Kind::BadAnswer).context(entry.name().to_owned())),
    }
}

impl Joined {
    /// See [`Replies::backend`].
    pub(super) fn backend(&self) -> BackendId {
        self.backend
    }

    /// See [`Replies::next`].
    pub(super) async fn next(&mut self) -> Result<Reply> {
        loop {
            if let Some(alone) = &mut self.alone {
                return Box::pin(alone.next()).await;
            }
            match self.handle.watch(self.inbox.recv()).await {
                Ok(Some(News::Leads)) => {
                    if let Some(lead) = self.lead.take() {
                        lead();
                    }
                }
                Ok(Some(News::Note(message))) => {
                    if let Some(message) = self.note(&message) {
                        return Ok(Reply::Notification(message));
                    }
                }
                Ok(Some(News::Landed(landed, past))) => {
                    self.done = true;
                    if let Some(past) = past {
                        self.handle.trail().go_on_behind(*past);
                    }
                    match landed {
                        Landed::Answer(held) => return Ok(Reply::Answer(held.to(&self.own.id))),
                        Landed::Failed(fault) => return Err(fault.error()),
                        Landed::Alone => {
                            let Some(call) = self.call.take() else {
                                return Err(Error::new(Kind::Internal).cause("it ran alone"));
                            };
                            let replies = Box::pin(self.backends.call(call)).await?;
                            self.alone = Some(Box::new(replies));
                        }
                    }
                }
                Ok(None) => return Err(Error::new(Kind::Internal).cause("nobody tells the end")),
                Err(stop) => {
                    let entry = self.backends.entry(self.backend);
                    let name = entry.map_or(String::new(), |entry| entry.name().to_owned());
                    return Err(stopped(stop, &self.handle, &name, Duration::ZERO));
                }
            }
        }
    }

    /// See [`Replies::chunk`].
    pub(super) async fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        match &mut self.alone {
            Some(alone) => Box::pin(alone.chunk()).await,
            None => Ok(None),
        }
    }

    /// A notification as this caller should see it.
    fn note(&self, message: &[u8]) -> Option<Vec<u8>> {
        match jsonrpc::scan(message).ok()?.progress_token {
            Some(token) => self.own.progress(message, token),
            None => Some(message.to_vec()),
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.backends.seats.borrow_mut().remove(&self.token);
        if self.done {
            return;
        }
        let cancelled = self.handle.is_cancelled().then(|| self.handle.reason());
        let (token, key) = (self.token, self.key.clone());
        if self.owner == self.backends.me {
            leave(&self.backends, self.owner, token, &key, cancelled);
        } else {
            let mail = FlightMail::Leave { token, key, cancelled };
            self.backends.send(self.owner, BackendMail::Flight(Box::new(mail)));
        }
    }
}

/// A call whose answer is kept as it passes.
pub(super) struct Tap {
    backends: Rc<Backends>,
    entry: Rc<Entry>,
    reusable: Box<Reusable>,
    moment: Moment,
    replies: Replies,
    /// What has passed of a long answer, as long as it may be kept.
    seen: Option<Vec<u8>>,
}

impl Tap {
    /// See [`Replies::backend`].
    pub(super) fn backend(&self) -> BackendId {
        self.entry.id
    }

    /// See [`Replies::next`].
    pub(super) async fn next(&mut self) -> Result<Reply> {
        let reply = Box::pin(self.replies.next()).await?;
        match &reply {
            Reply::Answer(answer) => self.keep(answer),
            Reply::Streaming { len } => {
                let fits = len.is_none_or(|len| len <= limits::CACHED_ANSWER_BYTES_MAX as u64);
                self.seen = fits.then(Vec::new);
            }
            Reply::Notification(_) | Reply::Ask(_) | Reply::Away { .. } => {}
        }
        Ok(reply)
    }

    /// See [`Replies::chunk`].
    pub(super) async fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let piece = Box::pin(self.replies.chunk()).await?;
        match (&piece, &mut self.seen) {
            (Some(piece), Some(seen))
                if seen.len() + piece.len() <= limits::CACHED_ANSWER_BYTES_MAX =>
            {
                seen.extend_from_slice(piece);
            }
            (Some(_), seen) => *seen = None,
            (None, seen) => {
                if let Some(answer) = seen.take() {
                    self.keep(&answer);
                }
            }
        }
        Ok(piece)
    }

    fn keep(&self, answer: &[u8]) {
        shelf::keep(&self.backends, &self.entry, &self.reusable, self.moment, answer);
    }
}
