//! Owns: calls of callers without sessions at servers over HTTP that may ask their callers something,
//! also beside the stream of the call.
//! Never: the wire (`http`); what becomes of a question (`asks`, `parking`).
//! Next: `bridge`, sessions for callers that have none.
//!
//! MCP 2025-11-25, Transports: a server may ask on the stand-alone stream of its session, where nothing
//! says what call it is about. Such a question belongs to the only call that is in flight in that
//! session; of several it is nobody's, and the server is told at once that nobody can be asked. So
//! that it finds its place among what the call itself brings, the replies are read by a task of their
//! own, which also spares the reading from being broken off when somebody comes back.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use ahash::AHashMap;

use super::asks::{self, Back, Caller};
use super::attempt::Ended;
use super::entry::Entry;
use super::failure::Failure;
use super::handle::CallHandle;
use super::http::{Beside, HttpReplies};
use super::leg::Leg;
use super::{Backends, Reply, relay};
use crate::error::Kind;
use crate::jsonrpc::Envelope;
use crate::limits;
use crate::mcp::session::{SessionId, SessionRecord};
use crate::rt;
use crate::rt::local::{self, Event, Receiver, Sender};
use crate::rt::race;

type Piece = Result<Reply, Ended>;

/// The calls in flight of one worker, by the session that stands for their callers.
#[derive(Default)]
pub(super) struct Asides(RefCell<AHashMap<SessionId, Vec<Seat>>>);

/// One of them.
#[derive(Clone)]
struct Seat {
    handle: Rc<CallHandle>,
    out: Sender<Piece>,
}

/// Whose a question beside the streams of calls is.
enum Owner {
    /// No call is in flight.
    None,
    One(Seat),
    /// It cannot be told.
    Several,
}

impl Asides {
    fn owner(&self, session: SessionId) -> Owner {
        match self.0.borrow().get(&session).map(Vec::as_slice) {
            None | Some([]) => Owner::None,
            Some([seat]) => Owner::One(seat.clone()),
            Some(_) => Owner::Several,
        }
    }

    fn leave(&self, session: SessionId, handle: &Rc<CallHandle>) {
        let mut all = self.0.borrow_mut();
        if let Some(seats) = all.get_mut(&session) {
            seats.retain(|seat| !Rc::ptr_eq(&seat.handle, handle));
            if seats.is_empty() {
                all.remove(&session);
            }
        }
    }
}

/// The replies to such a call. Dropping it abandons the call, as everywhere.
pub(super) struct AsideReplies {
    pieces: Receiver<Piece>,
    /// Set when nobody wants them any more.
    deserted: Rc<Event>,
    beside: Rc<Cell<Beside>>,
}

impl AsideReplies {
    /// What HTTP says beside the answer that came, if it is an error.
    pub(super) fn beside(&self) -> Beside {
        self.beside.get()
    }

    /// See [`super::Replies::next`]. Safe to drop.
    pub(super) async fn next(&mut self) -> Piece {
        let lost = || Err(Failure::new(Kind::Internal, "a call was lost").into());
        self.pieces.recv().await.unwrap_or_else(lost)
    }
}

impl Drop for AsideReplies {
    fn drop(&mut self) {
        self.deserted.set();
    }
}

/// The end of a call's task, however it comes: it is in flight no more.
struct Leave {
    entry: Rc<Entry>,
    session: SessionId,
    handle: Rc<CallHandle>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.entry.http().1.asides.leave(self.session, &self.handle);
    }
}

/// Reads the replies of the call of `handle`, which waits nowhere else, in a task of its own; `sent`
/// sends it.
pub(super) fn start(
    entry: &Rc<Entry>,
    session: &Arc<SessionRecord>,
    handle: &Rc<CallHandle>,
    sent: impl Future<Output = Result<rt::Place<HttpReplies>, Ended>> + 'static,
) -> AsideReplies {
    let (out, pieces) = local::queue(limits::PIECES_MAX);
    let deserted = Rc::new(Event::new());
    let seat = Seat { handle: handle.clone(), out: out.clone() };
    entry.http().1.asides.0.borrow_mut().entry(session.id).or_default().push(seat);
    let leave = Leave { entry: entry.clone(), session: session.id, handle: handle.clone() };
    let beside = Rc::new(Cell::new(Beside::default()));
    let (stop, seen) = (deserted.clone(), beside.clone());
    rt::spawn("call of a caller without a session", async move {
        let _leave = leave;
        // Dropped where nobody waits, and with it what was sent, which tells a cancellation.
        let _ = race(read(sent, out, &seen), Box::pin(stop.wait())).await;
    });
    AsideReplies { pieces, deserted, beside }
}

async fn read(
    sent: impl Future<Output = Result<rt::Place<HttpReplies>, Ended>>,
    out: Sender<Piece>,
    beside: &Cell<Beside>,
) {
    let mut replies = match sent.await {
        Ok(replies) => replies,
        Err(ended) => return drop(out.send(Err(ended)).await),
    };
    loop {
        let piece = replies.next().await;
        let ends = matches!(piece, Ok(Reply::Answer(_) | Reply::Streaming { .. }) | Err(_));
        beside.set(replies.beside());
        // Waits where nobody takes it: then the server is not read either.
        if out.send(piece).await.is_err() || ends {
            return;
        }
    }
}

/// A request that a server sent beside the streams of calls, in a session that stands for callers
/// without one: the answer that the server gets at once, if it gets one. `None` of the outer kind: no
/// call is in flight there.
pub(super) fn question(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    leg: &Rc<Leg>,
    session: &Arc<SessionRecord>,
    message: &[u8],
    envelope: &Envelope,
) -> Option<Option<Vec<u8>>> {
    let seat = match entry.http().1.asides.owner(session.id) {
        Owner::None => return None,
        Owner::Several => return Some(relay::reply(envelope, message)),
        Owner::One(seat) => seat,
    };
    if seat.handle.is_deaf() {
        return Some(relay::reply(envelope, message));
    }
    let caller = Some(Caller::over_http(&seat.handle));
    let back = Back::Leg(leg.clone());
    Some(match asks::open(backends, entry, session, back, caller, message, envelope) {
        Err(refusal) => Some(refusal),
        Ok(opened) => {
            seat.handle.hold_clock(Instant::now());
            if seat.out.try_send(Ok(Reply::Ask(opened.message))).is_err() {
                asks::decline(backends, opened.number);
            }
            None
        }
    })
}

/// A notification of such a session that names no call: the only one in flight gets it. False if
/// there is none, or more than one.
pub(super) fn note(entry: &Entry, session: SessionId, message: &[u8]) -> bool {
    match entry.http().1.asides.owner(session) {
        // As elsewhere, what finds no room is dropped.
        Owner::One(seat) => {
            let _ = seat.out.try_send(Ok(Reply::Notification(message.to_vec())));
            true
        }
        Owner::None | Owner::Several => false,
    }
}
