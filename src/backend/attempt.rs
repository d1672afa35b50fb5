//! Owns: one attempt of a call from its admission to its first reply, and what it repeats by itself.
//! Never: bytes on a wire (`http`, `link`).
//! Next: `handle`, the caller's hold on it.
//!
//! More attempts by rule are `around`'s, other backends `stand_in`'s. What is repeated here, each at
//! most once: a request on a pooled connection that turned out dead, if
//! no byte of an answer came and either not all of the request was sent or it may be repeated; and
//! a request that was refused for a lost session, for then it was not executed (and again if what took
//! its place was lost before).

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::entry::{self, Entry};
use super::failure::Failure;
use super::handle::{CallHandle, Deadline, Stop};
use super::http::{self, Broken, HttpReplies, Request};
use super::leg::{self, Leg};
use super::names::Own;
use super::{Attempt, Backends, Call, Wire, line, modern, stopped, supervise, views};
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::Raw;
use crate::limits;
use crate::mcp::revision::Era;
use crate::mcp::session::SessionRecord;
use crate::plan::{BackendId, Isolation};
use crate::rt;

/// Why there is no reply.
#[derive(Debug)]
pub(super) enum Ended {
    /// The caller or the clock ended it.
    Stopped(Stop),
    /// The backend did.
    Failed(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Ended {
        Ended::Failed(failure)
    }
}

impl From<Stop> for Ended {
    fn from(stop: Stop) -> Ended {
        Ended::Stopped(stop)
    }
}

/// A call that counts as in flight, until it is dropped.
pub(super) struct Guard {
    backends: Rc<Backends>,
    entry: Rc<Entry>,
    handle: Rc<CallHandle>,
    limit: Duration,
    /// Number of its span.
    span: Option<usize>,
    _deadline: Deadline,
}

impl Guard {
    fn new(backends: &Rc<Backends>, entry: Rc<Entry>, call: &mut Call) -> Result<Guard> {
        let calls = entry.in_flight.get();
        if backends.stopping.is_set() {
            return Err(Error::new(Kind::Capacity).context("shutting down"));
        }
        if calls >= limits::IN_FLIGHT_MAX {
            return Err(Error::new(Kind::Busy).context(entry.name().to_owned()));
        }
        entry.in_flight.set(calls + 1);
        rt::busy_poll::sent();
        backends.board.set_in_flight(backends.me, entry.id, calls + 1);
        let now = rt::time::now();
        let deadline = backends.clock.arm_for(Some(entry.id), &call.handle, now, call.timeout);
        let trail = call.handle.trail();
        trail.begin(now, entry.id);
        if call.handle.is_beside() {
            trail.count_hedge();
        }
        let span = match trail.trace() {
            Some(traced) => traced.begin(&mut call.body, now, entry.id),
            None => None,
        };
        Ok(Guard {
            backends: backends.clone(),
            entry,
            handle: call.handle.clone(),
            limit: call.timeout,
            span,
            _deadline: deadline,
        })
    }

    pub(super) fn backend(&self) -> BackendId {
        self.entry.id
    }

    /// The time limit begins anew, but does not go beyond `ends`.
    pub(super) fn restart_clock(&self, ends: Option<Instant>) {
        self.handle.postpone(rt::time::now(), self.limit, ends);
    }

    /// Turns the outcome of a wait into the caller's, and learns from it.
    pub(super) fn judge<T>(&self, outcome: std::result::Result<T, Ended>) -> Result<T> {
        match outcome {
            Ok(value) => Ok(value),
            Err(Ended::Failed(failure)) => {
                self.backends.failed(&self.entry, failure.kind);
                self.note(failure.kind);
                Err(failure.error(self.entry.name()))
            }
            Err(Ended::Stopped(Stop::Expired)) if self.entry.closing.is_set() => {
                let failure = Failure::new(Kind::Lost, "it has left the configuration");
                self.note(failure.kind);
                Err(failure.error(self.entry.name()))
            }
            Err(Ended::Stopped(stop)) => {
                let error = stopped(stop, &self.handle, self.entry.name(), self.limit);
                self.backends.failed(&self.entry, error.kind());
                self.note(error.kind());
                Err(error)
            }
        }
    }
}

impl Guard {
    /// The attempt failed.
    fn note(&self, kind: Kind) {
        if let (Some(span), Some(traced)) = (self.span, self.handle.trail().trace()) {
            traced.judge(span, Some(kind));
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // A call of one attempt ends with it, and whoever accounts for that reads the clock.
        if self.span.is_some() || self.handle.is_one_of_several() {
            let now = rt::time::now();
            let trail = self.handle.trail();
            trail.end(now);
            if let (Some(span), Some(traced)) = (self.span, trail.trace()) {
                traced.end(span, now);
            }
        }
        let calls = self.entry.in_flight.get() - 1;
        self.entry.in_flight.set(calls);
        rt::busy_poll::settled();
        self.backends.board.set_in_flight(self.backends.me, self.entry.id, calls);
    }
}

/// See [`Backends::call`].
pub(super) async fn call(backends: &Rc<Backends>, mut call: Call) -> Result<Attempt> {
    let entry = backends.entry_of(call.backend)?;
    let guard = Guard::new(backends, entry.clone(), &mut call)?;
    let wire = wire(backends, &entry, call).await;
    Ok(Attempt { wire: guard.judge(wire)?, guard })
}

async fn wire(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    call: Call,
) -> std::result::Result<Wire, Ended> {
    if !entry.settled.is_set() {
        // In its first start it is neither up nor down: worth waiting for, within its bound.
        let settled = rt::time::timeout(entry.plan.startup_timeout, entry.settled.wait());
        let _ = call.handle.watch(Box::pin(settled)).await?;
    }
    if call.modern.is_some() || entry.era.get() == Era::Request {
        return Box::pin(modern::wire(backends, entry, call)).await;
    }
    match &entry.wire {
        entry::Wire::Http(http) if !http.is_sse.get() => {
            let replies = over_http(backends, entry, &call).await;
            rt::spare::give(call.body);
            replies.map(Wire::Http)
        }
        _ => line::call(backends, entry, call).await.map(Wire::Line),
    }
}

/// A call over HTTP, up to the head of its response.
async fn over_http(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    call: &Call,
) -> std::result::Result<rt::Place<HttpReplies>, Ended> {
    let session = call.session.as_ref().filter(|_| entry.plan.isolation == Isolation::Session);
    let mut request = if session.is_some() && !call.again {
        // A session of the client's own: its id and token are unique there as they are.
        let asked = Raw::new(call.id.of(&call.body));
        Request {
            body: &call.body,
            rename: None,
            asked,
            whole: false,
            caller: None,
            renewed: false,
        }
    } else {
        let own = Own::of(&call.body, call.id, call.progress_token);
        let rename = Some((call.id, call.progress_token, own));
        let number = backends.number();
        let asked = match session {
            None => Raw::number(number),
            // Among ids of the client's own, which are numbers as a rule.
            Some(_) => Raw::new(format!("\"again-{number}\"").as_bytes()),
        };
        // Whose call it is needs to be said only where the session does not.
        let caller = call.session.as_ref().filter(|_| session.is_none());
        Request { body: &call.body, rename, asked, whole: false, caller, renewed: false }
    };
    let mut lost: Option<(u64, Instant)> = None;
    loop {
        let generation = lost.map(|(generation, _)| generation);
        let leg = open(backends, entry, session, generation, &call.handle).await?;
        // What took the place of a lost session may be lost as well, if it was opened before that was
        // noticed: this worker's copy can be several sessions old.
        let is_old = lost.is_none_or(|(_, noticed)| leg.opened < noticed);
        request.renewed = !is_old;
        match sent(backends, entry, &leg, &request, &call.handle, call.safe).await {
            // Refused, so not executed: once more with a new session.
            Err(Ended::Failed(failure)) if failure.session_lost && is_old => {
                backends.hint(entry, supervise::LOST);
                let noticed = lost.map_or_else(Instant::now, |(_, noticed)| noticed);
                lost = Some((leg.generation, noticed));
                views::session_lost(entry, session);
            }
            outcome => return outcome,
        }
    }
}

/// The session to use with the backend, unless the caller stops waiting for it.
pub(super) async fn open(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: Option<&Arc<SessionRecord>>,
    lost: Option<u64>,
    handle: &CallHandle,
) -> std::result::Result<Rc<Leg>, Ended> {
    if let Some(leg) = leg::known(entry, session, lost) {
        return Ok(leg);
    }
    let leg = handle.watch(Box::pin(leg::get(backends, entry, session, lost))).await?;
    leg.map_err(|failure| Ended::Failed(failure.unsent()))
}

/// One request in one session, repeated on a fresh connection if the pooled one was dead.
pub(super) async fn sent(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    leg: &Rc<Leg>,
    request: &Request<'_>,
    handle: &Rc<CallHandle>,
    safe: bool,
) -> std::result::Result<rt::Place<HttpReplies>, Ended> {
    match http::post(backends, entry, leg, request, handle, true).await {
        Ok(replies) => Ok(replies),
        Err(Broken::Ended(ended)) => Err(ended),
        Err(Broken::Stale { taken, cause }) => {
            if taken && !safe {
                return Err(Failure::new(Kind::Lost, cause).into());
            }
            match Box::pin(http::post(backends, entry, leg, request, handle, false)).await {
                Ok(replies) => Ok(replies),
                Err(Broken::Ended(ended)) => Err(ended),
                // Not said of a fresh connection.
                Err(Broken::Stale { cause, .. }) => Err(Failure::new(Kind::Lost, cause).into()),
            }
        }
    }
}
