//! Owns: requests of servers that wait for the answer of a client.
//! Never: their way to the client (a call's replies, `Clients`), what they ask.
//! Next: `wishes`, what clients want of servers beside calls.
//!
//! MCP 2025-11-25, Client Features; SEP-2260: sampling, elicitation and roots belong to a request of
//! the client. Each gets a number of the proxy's own, which names the worker that keeps it: the
//! client may answer over any connection. An answer counts only if it comes in the session that was
//! asked; it then carries the server's own id again. A progress token is replaced likewise, for two
//! servers may choose the same.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use ahash::AHashMap;

use super::entry::Entry;
use super::handle::{CallHandle, Item};
use super::leg::Leg;
use super::link::Route;
use super::names;
use super::rounds::Slot;
use super::{BackendMail, Backends, http};
use crate::error::Kind;
use crate::jsonrpc::{self, Envelope, Kind as Message, Raw, Span};
use crate::limits;
use crate::mcp::session::{SessionId, SessionRecord};
use crate::mcp::{capable, note};

/// What a server is told that asked for somebody who is gone: the code of the SDKs for a connection
/// that closed.
const GONE: i32 = -32000;

/// The questions that this worker keeps.
#[derive(Default)]
pub(super) struct Asks {
    open: RefCell<AHashMap<u64, Ask>>,
    /// How many of them each session has.
    counts: RefCell<AHashMap<SessionId, usize>>,
}

/// A question.
struct Ask {
    entry: Rc<Entry>,
    session: Arc<SessionRecord>,
    back: Back,
    /// As the server wrote it.
    id: Raw,
    /// Its progress token, if it wants any.
    token: Option<Raw>,
    /// The call that it belongs to, if it belongs to one.
    caller: Option<Caller>,
    /// It is about the session rather than that call, whose end it outlasts.
    stays: bool,
    since: Instant,
}

/// Where an answer goes.
pub(super) enum Back {
    /// Into a session over HTTP.
    Leg(Rc<Leg>),
    /// To the child of the session, which this worker owns.
    Child,
    /// To the call that goes on with it.
    Round(Slot),
}

/// A call of a client.
#[derive(Clone)]
pub(super) struct Caller {
    /// Its number on the channel to a child; 0 over HTTP.
    pub(super) id: u64,
    pub(super) route: Route,
}

impl Caller {
    pub(super) fn over_http(handle: &Rc<CallHandle>) -> Caller {
        Caller { id: 0, route: Route::Here(handle.clone()) }
    }

    fn is(&self, handle: &Rc<CallHandle>) -> bool {
        matches!(&self.route, Route::Here(own) if Rc::ptr_eq(own, handle))
    }

    /// Gives it an item, wherever it is.
    pub(super) fn deliver(&self, backends: &Backends, item: Item) {
        match &self.route {
            Route::Here(handle) => handle.deliver(item),
            Route::Worker(worker) => {
                backends.send(*worker, BackendMail::Carry { id: self.id, item });
            }
        }
    }
}

/// A question on its way to the client.
pub(super) struct Opened {
    pub(super) number: u64,
    /// As the client shall see it.
    pub(super) message: Vec<u8>,
}

/// Takes a request of a server for the client of `session`.
///
/// # Errors
/// The answer that the server gets at once: the client cannot take it, or has too many.
pub(super) fn open(
    backends: &Backends,
    entry: &Rc<Entry>,
    session: &Arc<SessionRecord>,
    back: Back,
    caller: Option<Caller>,
    message: &[u8],
    envelope: &Envelope,
) -> Result<Opened, Vec<u8>> {
    let id = envelope.id.unwrap_or_default();
    let refuse = |kind: Kind, context: &str| {
        let text = format!("{}{context}", kind.text());
        Err(refusal(id.of(message), kind.code(), &text))
    };
    let method = envelope.method_name(message).unwrap_or_default();
    let params = envelope.params.map_or(&b"null"[..], |params| params.of(message));
    if let Some(kind) = capable::lacks(&session.capabilities, &method, params) {
        return refuse(kind, ": the client does not support it");
    }
    if session.ended() || backends.stopping.is_set() {
        return Err(refusal(id.of(message), GONE, "The client has left"));
    }
    let asks = &backends.asks;
    {
        let mut counts = asks.counts.borrow_mut();
        let count = counts.entry(session.id).or_default();
        if *count >= limits::ASKS_PER_SESSION_MAX {
            return refuse(Kind::Capacity, ": too many unanswered requests to the client");
        }
        *count += 1;
    }
    let number = backends.number();
    let token = envelope.progress_token;
    let mut shown = Vec::with_capacity(message.len() + 32);
    names::renamed(&mut shown, message, id, token, itoa::Buffer::new().format(number).as_bytes());
    let shown = note::related(shown, &backends.plan.borrow(), entry.id);
    let stays = matches!(back, Back::Child) && is_of_session(backends, session, &method);
    let ask = Ask {
        stays,
        entry: entry.clone(),
        session: session.clone(),
        back,
        id: Raw::new(id.of(message)),
        token: token.map(|token| Raw::new(token.of(message))),
        caller,
        since: Instant::now(),
    };
    asks.open.borrow_mut().insert(number, ask);
    Ok(Opened { number, message: shown })
}

/// Whether the child of a session asks this for itself, and not for whoever calls it just then: no
/// question of a child names a call, and servers ask for the roots as soon as they are greeted. Who
/// calls without a session can be asked in his call alone.
pub(super) fn is_of_session(backends: &Backends, session: &SessionRecord, method: &str) -> bool {
    method == "roots/list" && !backends.bridges.has(session.id)
}

/// An error response.
pub(super) fn refusal(id: &[u8], code: i32, text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    jsonrpc::error(&mut out, id, code, text, None);
    out
}

impl Asks {
    /// Whether a session is asked something.
    pub(super) fn has_open(&self, session: SessionId) -> bool {
        self.counts.borrow().contains_key(&session)
    }

    /// Takes a question out.
    fn take(&self, number: u64) -> Option<Ask> {
        let ask = self.open.borrow_mut().remove(&number)?;
        let mut counts = self.counts.borrow_mut();
        if let Some(count) = counts.get_mut(&ask.session.id) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&ask.session.id);
            }
        }
        Some(ask)
    }

    /// Takes out all that `choose` picks.
    fn take_all(&self, mut choose: impl FnMut(&Ask) -> bool) -> Vec<(u64, Ask)> {
        if self.open.borrow().is_empty() {
            return Vec::new();
        }
        let chosen: Vec<u64> = {
            let open = self.open.borrow();
            open.iter().filter(|(_, ask)| choose(ask)).map(|(number, _)| *number).collect()
        };
        chosen.into_iter().filter_map(|number| Some((number, self.take(number)?))).collect()
    }
}

impl Ask {
    /// The server is told, and the call that it asked in goes on.
    fn close(&self, backends: &Rc<Backends>, answer: Vec<u8>) {
        self.tell(backends, answer);
        self.settle(backends);
    }

    /// Sends a message to the server.
    fn tell(&self, backends: &Rc<Backends>, message: Vec<u8>) {
        match &self.back {
            Back::Leg(leg) => http::send(backends, &self.entry, leg, message),
            Back::Child => {
                if let Some(link) = self.entry.link(Some(self.session.id)) {
                    link.tell(&message);
                }
            }
            Back::Round(slot) => slot.take(message),
        }
    }

    /// The clock of its call goes on.
    fn settle(&self, backends: &Backends) {
        if let Some(caller) = &self.caller {
            caller.deliver(backends, Item::Settled);
        }
    }
}

/// What a client sends about a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The answer; its id is the number.
    Answer,
    /// `notifications/progress`; its token is the number.
    Progress,
}

/// A client said something about a question: `at` is where its number stands. What is late, unknown
/// or of another session is dropped.
pub(super) fn said(
    backends: &Rc<Backends>,
    session: SessionId,
    word: Word,
    message: Vec<u8>,
    at: Span,
) {
    let Some(number) = names::number(at.of(&message)) else { return };
    let keeper = (number % backends.workers as u64) as usize;
    if keeper != backends.me {
        let mail = BackendMail::Said { session, word, message, at };
        return backends.send(keeper, mail);
    }
    let asks = &backends.asks;
    let is_its = |ask: &Ask| ask.session.id == session;
    if !asks.open.borrow().get(&number).is_some_and(is_its) {
        return;
    }
    match word {
        Word::Answer => {
            let Some(ask) = asks.take(number) else { return };
            let answer = jsonrpc::splice(&message, &[(at, &ask.id)]);
            let answer = note::own_related(answer, &backends.plan.borrow(), ask.entry.id);
            ask.close(backends, answer);
        }
        Word::Progress => {
            let open = asks.open.borrow();
            let Some(ask) = open.get(&number) else { return };
            let Some(token) = &ask.token else { return };
            let progress = jsonrpc::splice(&message, &[(at, token)]);
            let progress = note::own_related(progress, &backends.plan.borrow(), ask.entry.id);
            ask.tell(backends, progress);
        }
    }
}

/// A server takes a question back (`notifications/cancelled`): what its client shall be told, and
/// the call that it belongs to. `None`: no such question is open here.
pub(super) fn withdrawn(
    backends: &Backends,
    entry: &Entry,
    session: &SessionRecord,
    leg: Option<&Rc<Leg>>,
    message: &[u8],
    envelope: &Envelope,
) -> Option<(Vec<u8>, Option<Caller>)> {
    let at = envelope.request_id?;
    let is_it = |ask: &Ask| {
        let here = match (&ask.back, leg) {
            (Back::Leg(own), Some(leg)) => own.generation == leg.generation,
            (Back::Child, None) => true,
            _ => false,
        };
        here && ask.entry.id == entry.id
            && ask.session.id == session.id
            && names::same(&ask.id, at.of(message))
    };
    let (number, ask) = backends.asks.take_all(is_it).pop()?;
    ask.settle(backends);
    let number = itoa::Buffer::new().format(number).to_owned();
    let shown = jsonrpc::splice(message, &[(at, number.as_bytes())]);
    Some((shown, ask.caller))
}

/// What a caller without a session gave for a question, once.
pub(super) fn given(backends: &Rc<Backends>, number: u64, result: &[u8]) {
    if let Some(ask) = backends.asks.take(number) {
        let mut answer = Vec::with_capacity(result.len() + 64);
        jsonrpc::result(&mut answer, &ask.id, result);
        ask.close(backends, answer);
    }
}

/// Nobody can bring a question to its client: the server is told so.
pub(super) fn decline(backends: &Rc<Backends>, number: u64) {
    if let Some(ask) = backends.asks.take(number) {
        let kind = Kind::MethodNotFound;
        ask.close(backends, refusal(&ask.id, kind.code(), kind.text()));
    }
}

/// A call over HTTP has ended or is not wanted any more: so are its questions.
pub(super) fn call_over(backends: &Rc<Backends>, handle: &Rc<CallHandle>) {
    end(backends, |ask| ask.caller.as_ref().is_some_and(|caller| caller.is(handle)));
}

/// A call of a child likewise.
pub(super) fn number_over(backends: &Rc<Backends>, id: u64) {
    let is_its = |ask: &Ask| ask.caller.as_ref().is_some_and(|caller| caller.id == id);
    end(backends, |ask| is_its(ask) && !ask.stays);
}

/// A child is gone: nobody waits for what it asked.
pub(super) fn child_over(backends: &Rc<Backends>, entry: &Entry, session: SessionId) {
    end(backends, |ask| {
        matches!(ask.back, Back::Child) && ask.entry.id == entry.id && ask.session.id == session
    });
}

/// A session has ended.
pub(super) fn session_over(backends: &Rc<Backends>, session: SessionId) {
    if backends.asks.has_open(session) {
        end(backends, |ask| ask.session.id == session);
    }
}

fn end(backends: &Rc<Backends>, choose: impl FnMut(&Ask) -> bool) {
    for (_, ask) in backends.asks.take_all(choose) {
        let answer = refusal(&ask.id, GONE, "The client does not wait for this any more");
        ask.close(backends, answer);
    }
}

/// Questions that were open for too long, and those of sessions that have ended.
pub(super) fn sweep(backends: &Rc<Backends>, now: Instant) {
    let late = |ask: &Ask| {
        ask.session.ended() || now.saturating_duration_since(ask.since) >= limits::ASK_TIMEOUT
    };
    for (number, ask) in backends.asks.take_all(late) {
        let kind = Kind::Timeout;
        ask.close(backends, refusal(&ask.id, kind.code(), kind.text()));
        let number = itoa::Buffer::new().format(number).to_owned();
        let taken_back = names::cancellation(number.as_bytes(), Some("no answer in time"));
        match &ask.caller {
            Some(caller) if caller.id > 0 => {
                caller.deliver(backends, Item::Notification(taken_back));
            }
            // Its stream is in other hands; the client's answer will find nobody.
            Some(_) => {}
            None => backends.tell_client(ask.session.id, taken_back),
        }
    }
}

/// The number of a question as it was shown to a client.
pub(super) fn number_of(message: &[u8]) -> Option<u64> {
    let envelope = jsonrpc::scan(message).ok()?;
    let id = envelope.id.filter(|_| envelope.kind == Message::Request)?;
    names::number(id.of(message))
}
