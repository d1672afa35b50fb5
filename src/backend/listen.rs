//! Owns: the stand-alone event stream of a session with a backend: the proxy's own, or that of a
//! client that listens itself.
//! Never: the streams that clients open (`world`).
//! Next: `hearing`.
//!
//! MCP 2025-11-25, Transports, Listening for Messages from the Server: a GET, which servers may
//! refuse; a stream that ends is opened again, after the pause that the server asked for.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::asks::{self, Back};
use super::entry::{Entry, Wire};
use super::health::Backoff;
use super::leg::{self, Leg};
use super::own::Channel;
use super::relay::{self, Word};
use super::{Backends, aside, http, supervise, views, wishes};
use crate::http::head::is_value;
use crate::http::{ClientConnection, sse};
use crate::jsonrpc::{self, Envelope, Kind as Message};
use crate::limits;
use crate::mcp::session::{SessionId, SessionRecord};
use crate::plan::RestartPlan;
use crate::rt::local::Event;
use crate::rt::{self, Either, race};

/// A stream that is kept open; dropping it closes it.
pub(super) struct Listening {
    stop: Rc<Event>,
    /// Set when it is known for the first time whether there is a stream.
    opened: Rc<Event>,
    since: Instant,
    /// For the stream that comes after it.
    backoff: Rc<RefCell<Backoff>>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.set();
    }
}

/// What to wait for before a server is given a reason to say something on the stream of a session,
/// if it has just been asked for one: at most [`STREAM_OPEN_WAIT`](limits::STREAM_OPEN_WAIT).
pub(super) fn opened(
    entry: &Entry,
    session: SessionId,
) -> Option<impl Future<Output = ()> + use<>> {
    let streams = entry.http().1.streams.borrow();
    let stream = streams.get(&session).filter(|stream| !stream.opened.is_set())?;
    let left = limits::STREAM_OPEN_WAIT.checked_sub(stream.since.elapsed())?;
    let opened = stream.opened.clone();
    Some(async move {
        // One that says nothing, not even that it is there, is not waited for again.
        let _ = rt::time::timeout(left, opened.wait()).await;
    })
}

/// What is known of the streams of a session before.
#[derive(Default)]
struct Past {
    /// Where the next one goes on.
    last_id: Vec<u8>,
    /// There was one.
    was_open: bool,
}

/// How a stream ended.
enum End {
    /// The server has none.
    Refused,
    /// The server does not know the session any more.
    SessionLost,
    /// It may be opened again, after a pause if the server asked for one.
    Closed { opened: bool, retry: Option<Duration> },
    /// The server will not have it now, but is there.
    NotNow { retry: Option<Duration> },
}

/// A session was opened: if its client listens, there is a stream for it, in the place of that of
/// an earlier session.
pub(super) fn attend(backends: &Rc<Backends>, entry: &Rc<Entry>, leg: &Rc<Leg>) {
    let Some(session) = &leg.session else { return };
    if backends.attended.borrow().contains(&session.id) {
        // Of a server that loses one session after the other each would begin with short pauses.
        let before = entry.http().1.streams.borrow_mut().remove(&session.id);
        let backoff = match &before {
            Some(before) => before.backoff.clone(),
            None => fresh(backends.chance()),
        };
        drop(before);
        let listening = keep(backends, entry, leg, backoff);
        entry.http().1.streams.borrow_mut().insert(session.id, listening);
    }
}

/// The client of a session that this worker owns opened its first stream, or closed its last.
pub(super) fn attended(backends: &Rc<Backends>, session: &Arc<SessionRecord>, listens: bool) {
    if !listens {
        backends.attended.borrow_mut().remove(&session.id);
    } else if session.ended() || !backends.attended.borrow_mut().insert(session.id) {
        return;
    }
    for entry in &*backends.entries() {
        let Wire::Http(http) = &entry.wire else { continue };
        if !listens {
            drop(http.streams.borrow_mut().remove(&session.id));
        } else if let Some(leg) = leg::known(entry, Some(session), None) {
            attend(backends, entry, &leg);
        }
    }
}

/// Pauses of a stream, or of several in a row.
fn fresh(seed: u64) -> Rc<RefCell<Backoff>> {
    let plan = RestartPlan {
        initial: limits::RESTART_INITIAL,
        max: limits::RESTART_MAX,
        give_up_after: None,
    };
    Rc::new(RefCell::new(Backoff::new(plan, seed)))
}

/// Keeps a stream open until the value is dropped.
pub(super) fn start(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    leg: &Rc<Leg>,
    seed: u64,
) -> Listening {
    keep(backends, entry, leg, fresh(seed))
}

fn keep(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    leg: &Rc<Leg>,
    backoff: Rc<RefCell<Backoff>>,
) -> Listening {
    let (stop, opened) = (Rc::new(Event::new()), Rc::new(Event::new()));
    let listening = Listening {
        stop: stop.clone(),
        opened: opened.clone(),
        since: Instant::now(),
        backoff: backoff.clone(),
    };
    let (backends, entry, leg, stopped) = (backends.clone(), entry.clone(), leg.clone(), stop);
    rt::spawn("backend stream", async move {
        let pause = || {
            let pause = backoff.borrow_mut().next(limits::RESTART_MAX);
            pause.unwrap_or(limits::RESTART_MAX)
        };
        let mut past = Past::default();
        loop {
            let began = Instant::now();
            // Dropped on stop, and its connection with it.
            let stream = listen(&backends, &entry, &leg, &mut past, &opened);
            let end = race(stream, stopped.wait()).await;
            opened.set();
            let (was_open, is_there, retry) = match end {
                Either::Left(End::Closed { opened, retry }) => (opened, false, retry),
                Either::Left(End::NotNow { retry }) => (false, true, retry),
                Either::Left(End::SessionLost) => {
                    backends.hint(&entry, supervise::LOST);
                    let Some(session) = &leg.session else { return };
                    // The new session brings a stream of its own.
                    views::session_lost(&entry, Some(session));
                    loop {
                        if rt::time::timeout(pause(), stopped.wait()).await.is_ok() {
                            return;
                        }
                        let lost = Some(leg.generation);
                        let again = Box::pin(leg::get(&backends, &entry, Some(session), lost));
                        if again.await.is_ok() {
                            return;
                        }
                    }
                }
                Either::Left(End::Refused) | Either::Right(()) => return,
            };
            if was_open && began.elapsed() >= limits::LIVED_WELL {
                backoff.borrow_mut().reset();
            }
            if !is_there && (!was_open || began.elapsed() < limits::PROBE_PAUSE) {
                // Whether the server is there at all is the supervisor's question.
                backends.hint(&entry, supervise::FAILED);
            }
            let pause = pause();
            let pause = retry.map_or(pause, |retry| pause.max(retry.min(limits::RESTART_MAX)));
            if rt::time::timeout(pause, stopped.wait()).await.is_ok() {
                return;
            }
        }
    });
    listening
}

async fn listen(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    leg: &Rc<Leg>,
    past: &mut Past,
    opened: &Event,
) -> End {
    let closed = End::Closed { opened: false, retry: None };
    let Ok(mut connection) = http::connect(backends, entry).await else { return closed };
    let mut more = "Accept: text/event-stream\r\n".to_owned();
    let last_id = &past.last_id;
    if let (false, true, Ok(id)) =
        (last_id.is_empty(), is_value(last_id), std::str::from_utf8(last_id))
    {
        more.push_str("Last-Event-ID: ");
        more.push_str(id);
        more.push_str("\r\n");
    }
    let mut bytes = connection.buffer();
    leg.bare(&mut bytes, entry.http().0, "GET", &more);
    // A server without anything to say may send even the head late; but one that refuses does so
    // at once, and until then nothing depends on it.
    if connection.send(bytes).await.is_err() {
        return closed;
    }
    let Ok(head) = connection.head().await else { return closed };
    if (400..500).contains(&head.status()) {
        // It may be the place that it does not know any more: the next stream begins anew.
        past.last_id.clear();
    }
    match head.status() {
        200 => {}
        // What stands on a path that takes no GET, or not of us.
        401 | 403 | 405 => return End::Refused,
        404 => {
            drop((head, connection));
            opened.set();
            return missing(backends, entry, leg, past.was_open).await;
        }
        400..=499 => return End::NotNow { retry: http::wait(&head) },
        _ => return End::Closed { opened: false, retry: http::wait(&head) },
    }
    if !matches!(http::media(&head), http::Media::Events) {
        return End::Refused;
    }
    drop(head);
    opened.set();
    past.was_open = true;
    let mut reader = sse::Reader::default();
    events(backends, entry, leg, &mut connection, &mut reader).await;
    if !reader.last_id().is_empty() {
        past.last_id = reader.last_id().to_vec();
    }
    End::Closed { opened: true, retry: reader.last_retry().map(Duration::from_millis) }
}

/// A stream was answered with 404, as of a session that is lost, and by servers that have a route for
/// POST alone: a request in the session tells which.
async fn missing(backends: &Rc<Backends>, entry: &Rc<Entry>, leg: &Rc<Leg>, was_open: bool) -> End {
    if !leg.has_session() {
        return End::Refused;
    }
    let channel = Channel::Leg(leg.clone());
    // In a box: it is rare, and larger than what waits for events.
    let ping = Box::pin(channel.ask(backends, entry, "ping", None, limits::PING_TIMEOUT));
    match ping.await {
        Ok(_) if was_open => End::NotNow { retry: None },
        Ok(_) => End::Refused,
        Err(failure) if failure.session_lost => End::SessionLost,
        Err(_) => End::Closed { opened: false, retry: None },
    }
}

async fn events(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    leg: &Rc<Leg>,
    connection: &mut ClientConnection,
    reader: &mut sse::Reader,
) {
    while let Ok(Some(piece)) = connection.body().await {
        let mut input = &piece[..];
        loop {
            match reader.take(&mut input) {
                Ok(Some(event)) => {
                    backends.succeeded(entry);
                    if !event.is_message() {
                        continue;
                    }
                    message(backends, entry, leg, &event.data).await;
                }
                Ok(None) => break,
                Err(fault) => {
                    tracing::warn!(backend = entry.name(), %fault, "event stream given up");
                    return;
                }
            }
        }
    }
}

/// One message; only one answer is under way at a time, so a server cannot make many.
async fn message(backends: &Rc<Backends>, entry: &Rc<Entry>, leg: &Rc<Leg>, message: &[u8]) {
    let Ok(envelope) = jsonrpc::scan(message) else { return };
    let session = leg.session.as_ref();
    match envelope.kind {
        Message::Request => backends.board.asked(entry.id),
        Message::Notification if relay::word(&envelope, message) == Word::Updated => {
            backends.board.outdate(entry.id, false, true);
        }
        _ => {}
    }
    match (envelope.kind, session) {
        (Message::Notification, _) => match (relay::word(&envelope, message), session) {
            (Word::Changed(flags), _) => {
                backends.changed_in(entry, session.map(|session| &**session), flags);
            }
            (Word::Updated | Word::Task, None) => wishes::said_to_all(backends, entry, message),
            (Word::Updated | Word::Task, Some(session)) => {
                wishes::said_to(backends, entry, session, message);
            }
            // Whom it concerns cannot be told.
            (_, None) => {}
            (Word::Withdrawn, Some(session)) => {
                let leg = Some(leg);
                let found = asks::withdrawn(backends, entry, session, leg, message, &envelope);
                if let Some((message, _)) = found
                    && !aside::note(entry, session.id, &message)
                {
                    backends.tell_client(session.id, message);
                }
            }
            (Word::Log | Word::Other, Some(session)) if aside::note(entry, session.id, message) => {
            }
            (Word::Progress | Word::Log | Word::Other, Some(session)) => {
                wishes::shape_and_tell(backends, entry, session, message);
            }
        },
        (Message::Request, _) => {
            if let Some(reply) = question(backends, entry, leg, message, &envelope)
                && let Err(failure) = http::tell(backends, entry, leg, &reply).await
            {
                tracing::debug!(backend = entry.name(), %failure, "reply not taken");
            }
        }
        (Message::Response | Message::ErrorResponse, _) => {}
    }
}

/// A request of the server, on its way to the client's own stream: the answer that it gets at once,
/// if it gets one.
fn question(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    leg: &Rc<Leg>,
    message: &[u8],
    envelope: &Envelope,
) -> Option<Vec<u8>> {
    let Some(session) = &leg.session else { return relay::reply(envelope, message) };
    if let Some(pong) = relay::pong(envelope, message) {
        return Some(pong);
    }
    if let Some(reply) = aside::question(backends, entry, leg, session, message, envelope) {
        return reply;
    }
    let back = Back::Leg(leg.clone());
    match asks::open(backends, entry, session, back, None, message, envelope) {
        Err(refusal) => return Some(refusal),
        Ok(opened) => {
            if !backends.ask_client(session.id, opened.message) {
                asks::decline(backends, opened.number);
            }
        }
    }
    None
}
