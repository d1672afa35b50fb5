//! Owns: sessions with backends over HTTP: opened when needed, once, and ended.
//! Never: requests within them.
//! Next: `line`, the other way: children.
//!
//! A client session's is opened by the worker that owns that session, the one that all share by the
//! backend's owner; the others ask for it once by mail and keep a copy. A backend that forgot a
//! session gets a new one: whoever notices says which generation was lost, and the first to say so
//! starts the opening that all then wait for.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::entry::{Entry, Wire};
use super::failure::Failure;
use super::handle::CallHandle;
use super::http::{self, Request};
use super::own::Channel;
use super::{BackendMail, Backends, listen, own, wishes};
use crate::error::Kind;
use crate::http::request_head;
use crate::jsonrpc::{self, Raw};
use crate::limits;
use crate::mcp::catalog::Can;
use crate::mcp::revision::MODERN;
use crate::mcp::session::{Authorization, SessionId, SessionRecord};
use crate::plan::{BackendId, HttpPlan, WorkerId};
use crate::rt;
use crate::rt::local::Event;

/// A session with a backend. Each worker has a copy of its own, so that calls on several cores share
/// no count of references.
#[derive(Clone)]
pub struct Leg {
    /// Grows with each session opened in the place of another; 0 while it is being opened.
    pub generation: u64,
    /// When it was made, on whichever worker.
    pub(super) opened: Instant,
    /// `Mcp-Session-Id`, if the server gave one.
    session_id: OnceCell<Box<str>>,
    /// The server answered with an id that cannot be sent back.
    bad_session_id: Cell<bool>,
    /// What its server answered to `initialize`; goes into `MCP-Protocol-Version`.
    revision: Box<str>,
    /// What its server promised.
    pub(super) can: Can,
    /// Head of every POST, up to its Content-Length.
    prefix: Box<[u8]>,
    /// The raw result of `initialize`; kept of the proxy's own sessions.
    pub(super) init: Box<[u8]>,
    /// It is no session: one request of the request era.
    modern: bool,
    /// The client whose it is; `None` = the proxy's own.
    pub(super) session: Option<Arc<SessionRecord>>,
    /// Whether the backend gets that client's Authorization.
    forwards: bool,
}

impl std::fmt::Debug for Leg {
    /// Without the prefix and the id, which carry secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leg")
            .field("generation", &self.generation)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

impl Leg {
    /// Before `initialize`: neither an id nor a revision.
    fn provisional(plan: &HttpPlan) -> Leg {
        Leg::with(plan, 0, None, "", Box::default())
    }

    fn with(
        plan: &HttpPlan,
        generation: u64,
        session_id: Option<Box<str>>,
        revision: &str,
        init: Box<[u8]>,
    ) -> Leg {
        let mut lines = plan.header_lines.clone();
        lines.push_str("Content-Type: application/json\r\n");
        lines.push_str("Accept: application/json, text/event-stream\r\n");
        session_lines(&mut lines, session_id.as_deref(), revision);
        let mut prefix = Vec::new();
        request_head(&mut prefix, "POST", &plan.target, &plan.authority, &lines, None);
        // Open for one more field.
        prefix.truncate(prefix.len() - 2);
        prefix.extend_from_slice(b"Content-Length: ");
        Leg {
            modern: false,
            generation,
            opened: Instant::now(),
            session_id: session_id.map_or_else(OnceCell::new, OnceCell::from),
            bad_session_id: Cell::new(false),
            revision: revision.into(),
            can: Can::of(&init),
            prefix: prefix.into(),
            init,
            session: None,
            forwards: plan.forward_auth,
        }
    }

    /// The Authorization of messages that belong to no request of the client.
    pub(super) fn authorization(&self) -> Option<Arc<Authorization>> {
        let session = self.session.as_ref().filter(|_| self.forwards);
        session.and_then(|session| session.authorization())
    }

    /// What stands in the place of a session for one request of the request era; `more` are whole
    /// field lines.
    pub(super) fn modern(plan: &HttpPlan, more: &str) -> Leg {
        let mut lines = plan.header_lines.clone();
        lines.push_str("Content-Type: application/json\r\n");
        lines.push_str("Accept: application/json, text/event-stream\r\n");
        session_lines(&mut lines, None, MODERN);
        lines.push_str(more);
        let mut prefix = Vec::new();
        request_head(&mut prefix, "POST", &plan.target, &plan.authority, &lines, None);
        prefix.truncate(prefix.len() - 2);
        prefix.extend_from_slice(b"Content-Length: ");
        Leg {
            modern: true,
            generation: u64::MAX,
            opened: Instant::now(),
            session_id: OnceCell::new(),
            bad_session_id: Cell::new(false),
            revision: MODERN.into(),
            can: Can::default(),
            prefix: prefix.into(),
            init: Box::default(),
            session: None,
            forwards: false,
        }
    }

    /// Whether it is no session, but one request of the request era.
    pub(super) fn is_modern(&self) -> bool {
        self.modern
    }

    /// Appends the head of a POST with a body of `length` bytes.
    pub(super) fn post(&self, out: &mut Vec<u8>, length: usize, authorization: Option<&str>) {
        out.reserve(self.prefix.len() + 16 + length);
        out.extend_from_slice(&self.prefix);
        out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
        if let Some(authorization) = authorization {
            out.extend_from_slice(b"\r\nAuthorization: ");
            out.extend_from_slice(authorization.as_bytes());
        }
        out.extend_from_slice(b"\r\n\r\n");
    }

    /// Appends a request without a body, such as GET and DELETE.
    pub(super) fn bare(&self, out: &mut Vec<u8>, plan: &HttpPlan, method: &str, more: &str) {
        let mut lines = plan.header_lines.clone();
        lines.push_str(more);
        if let Some(authorization) = self.authorization() {
            lines.push_str("Authorization: ");
            lines.push_str(&authorization.0);
            lines.push_str("\r\n");
        }
        session_lines(&mut lines, self.session_id.get().map(|id| &**id), &self.revision);
        request_head(out, method, &plan.target, &plan.authority, &lines, None);
    }

    pub(super) fn is_provisional(&self) -> bool {
        self.generation == 0
    }

    pub(super) fn has_session(&self) -> bool {
        self.session_id.get().is_some()
    }

    /// Takes the id from the response to `initialize`: visible ASCII (2025-11-25, Session
    /// Management), for it is sent back in a header.
    pub(super) fn note_session(&self, field: Option<&[u8]>) {
        let Some(field) = field else { return };
        let fit = (1..=limits::BACKEND_SESSION_ID_BYTES_MAX).contains(&field.len())
            && field.iter().all(u8::is_ascii_graphic);
        match std::str::from_utf8(field) {
            Ok(id) if fit => drop(self.session_id.set(id.into())),
            _ => self.bad_session_id.set(true),
        }
    }
}

fn session_lines(lines: &mut String, session_id: Option<&str>, revision: &str) {
    if let Some(id) = session_id {
        lines.push_str("Mcp-Session-Id: ");
        lines.push_str(id);
        lines.push_str("\r\n");
    }
    if !revision.is_empty() {
        lines.push_str("MCP-Protocol-Version: ");
        lines.push_str(revision);
        lines.push_str("\r\n");
    }
}

/// A session, or the opening of one, under its key in the table.
pub(super) enum Slot {
    Opening(Rc<Opening>),
    /// With the client session it is for.
    Open(Rc<Leg>, Option<Arc<SessionRecord>>),
}

/// What all who want a session wait for.
pub(super) struct Opening {
    done: Event,
    result: RefCell<Option<Result<Rc<Leg>, Failure>>>,
    session: Option<Arc<SessionRecord>>,
}

/// The session, if it is at hand and not the generation that was `lost`.
pub(super) fn known(
    entry: &Entry,
    session: Option<&Arc<SessionRecord>>,
    lost: Option<u64>,
) -> Option<Rc<Leg>> {
    let legs = entry.http().1.legs.borrow();
    match legs.get(&session.map(|session| session.id)) {
        Some(Slot::Open(leg, _)) if lost.is_none_or(|lost| leg.generation > lost) => {
            Some(leg.clone())
        }
        _ => None,
    }
}

/// The session, opened if need be. A drop leaves the opening to itself: others may wait for it.
///
/// # Errors
/// Why it could not be opened, within the backend's start-up deadline.
pub(super) async fn get(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: Option<&Arc<SessionRecord>>,
    lost: Option<u64>,
) -> Result<Rc<Leg>, Failure> {
    if let Some(leg) = known(entry, session, lost) {
        return Ok(leg);
    }
    let key = session.map(|session| session.id);
    let under_way = match entry.http().1.legs.borrow().get(&key) {
        Some(Slot::Opening(opening)) => Some(opening.clone()),
        _ => None,
    };
    let opening = match under_way {
        Some(opening) => opening,
        None => start(backends, entry, session, lost),
    };
    opening.done.wait().await;
    let result = opening.result.borrow().clone();
    result.unwrap_or_else(|| Err(Failure::new(Kind::Internal, "an opening without a result")))
}

fn start(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: Option<&Arc<SessionRecord>>,
    lost: Option<u64>,
) -> Rc<Opening> {
    let opening = Rc::new(Opening {
        done: Event::new(),
        result: RefCell::new(None),
        session: session.cloned(),
    });
    let key = session.map(|session| session.id);
    let owner = key.map_or(entry.owner, |session| session.owner());
    entry.http().1.legs.borrow_mut().insert(key, Slot::Opening(opening.clone()));
    if owner == backends.me {
        let (backends, entry, opening) = (backends.clone(), entry.clone(), opening.clone());
        rt::spawn("session opening", async move {
            // Its numbers only grow, and one worker opens all sessions of one key.
            let generation = backends.number();
            let mut end = Finish { backends, entry, opening, result: None };
            let session = end.opening.session.clone();
            let result = open(&end.backends, &end.entry, session.as_ref(), generation).await;
            end.result = Some(result);
        });
    } else {
        let mail = BackendMail::Ask { backend: entry.id, session: session.cloned(), lost };
        if backends.try_send(owner, mail).is_err() {
            let failure =
                Failure::new(Kind::Capacity, "the mailbox of the session's owner is full");
            finish(backends, entry, &opening, Err(failure));
        }
    }
    opening
}

/// Ends an opening, also one whose task panicked: nobody must wait for ever.
struct Finish {
    backends: Rc<Backends>,
    entry: Rc<Entry>,
    opening: Rc<Opening>,
    result: Option<Result<Rc<Leg>, Failure>>,
}

impl Drop for Finish {
    fn drop(&mut self) {
        let result = self.result.take();
        let result =
            result.unwrap_or_else(|| Err(Failure::new(Kind::Internal, "the opening broke off")));
        finish(&self.backends, &self.entry, &self.opening, result);
    }
}

/// The opening is over: whoever waits learns how.
fn finish(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    opening: &Rc<Opening>,
    result: Result<Rc<Leg>, Failure>,
) {
    let key = opening.session.as_ref().map(|session| session.id);
    let current = {
        let mut legs = entry.http().1.legs.borrow_mut();
        let current =
            matches!(legs.get(&key), Some(Slot::Opening(now)) if Rc::ptr_eq(now, opening));
        let ended = opening.session.as_ref().is_some_and(|session| session.ended());
        if current {
            match &result {
                Ok(leg) if !ended => {
                    legs.insert(key, Slot::Open(leg.clone(), opening.session.clone()));
                }
                _ => drop(legs.remove(&key)),
            }
        }
        current && !ended
    };
    if let (Ok(leg), true) = (&result, current) {
        listen::attend(backends, entry, leg);
    }
    if let (Ok(leg), false) = (&result, current) {
        // Its client left meanwhile.
        if key.map_or(entry.owner, |session| session.owner()) == backends.me {
            bid_farewell(backends, entry, leg);
        }
    }
    *opening.result.borrow_mut() = Some(result);
    opening.done.set();
}

/// Opens a session: `initialize`, then `notifications/initialized` before anything else.
async fn open(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: Option<&Arc<SessionRecord>>,
    generation: u64,
) -> Result<Rc<Leg>, Failure> {
    let (plan, _) = entry.http();
    let limit = entry.plan.startup_timeout;
    let handle = Rc::new(CallHandle::deaf());
    let _deadline = backends.clock.arm(&handle, Instant::now(), limit);
    if let Some(authorization) =
        session.filter(|_| plan.forward_auth).and_then(|s| s.authorization())
    {
        handle.forward(authorization);
    }
    let provisional = Rc::new(Leg::provisional(plan));
    let asked = Raw::number(0);
    let mut body = Vec::with_capacity(256);
    let params = own::hello(&backends.plan.borrow(), session.map(|session| &**session));
    jsonrpc::request(&mut body, &asked, "initialize", Some(&params));
    let request =
        Request { body: &body, rename: None, asked, whole: true, caller: None, renewed: false };
    let answer = own::over_http(backends, entry, &provisional, &request, &handle)
        .await
        .map_err(|ended| own::failure(ended, "initialize", limit))?;
    let init = own::said(&answer)?.result("initialize")?;
    if provisional.bad_session_id.get() {
        return Err(Failure::new(Kind::BadAnswer, "a session id that is not visible ASCII"));
    }
    let revision = own::revision(&init)?;
    let session_id = provisional.session_id.get().cloned();
    let mut leg = Leg::with(plan, generation, session_id, &revision, init.into());
    leg.session = session.cloned();
    if session.is_some() {
        // A client's session needs no copy: the catalogue is built from the proxy's own.
        leg.init = Box::default();
    }
    let leg = Rc::new(leg);
    let mut body = Vec::with_capacity(64);
    jsonrpc::notification(&mut body, "notifications/initialized", None);
    http::tell(backends, entry, &leg, &body).await?;
    wishes::restore(backends, entry, session, &Channel::Leg(leg.clone())).await;
    Ok(leg)
}

/// Another worker asks.
pub(super) fn ask_for(
    backends: &Rc<Backends>,
    from: WorkerId,
    backend: BackendId,
    session: Option<Arc<SessionRecord>>,
    lost: Option<u64>,
) {
    let key = session.as_ref().map(|session| session.id);
    let Some(entry) = backends.entry(backend) else {
        let mail = BackendMail::Told { backend, session: key, leg: Err(Failure::left()) };
        return backends.send(from, mail);
    };
    let tell = move |backends: &Backends, leg: Result<Rc<Leg>, Failure>| {
        let leg = leg.map(|leg| Box::new(Leg::clone(&leg)));
        backends.send(from, BackendMail::Told { backend, session: key, leg });
    };
    if let Some(leg) = known(&entry, session.as_ref(), lost) {
        return tell(backends, Ok(leg));
    }
    // One for each worker and session at most: they ask once.
    let backends = backends.clone();
    rt::spawn("session for another worker", async move {
        let leg = match session.as_ref().is_some_and(|session| session.ended()) {
            true => Err(Failure::new(Kind::Unavailable, "the session has ended")),
            false => get(&backends, &entry, session.as_ref(), lost).await,
        };
        tell(&backends, leg);
    });
}

/// The owner answers.
pub(super) fn told(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: Option<SessionId>,
    leg: Result<Box<Leg>, Failure>,
) {
    let opening = match entry.http().1.legs.borrow().get(&session) {
        Some(Slot::Opening(opening)) => Some(opening.clone()),
        _ => None,
    };
    if let Some(opening) = opening {
        finish(backends, entry, &opening, leg.map(Rc::from));
    }
}

/// A client session ended: so does its session with this backend.
pub(super) fn end(backends: &Rc<Backends>, entry: &Rc<Entry>, session: SessionId) {
    drop(entry.http().1.streams.borrow_mut().remove(&session));
    let slot = {
        let mut legs = entry.http().1.legs.borrow_mut();
        match legs.get(&Some(session)) {
            // Its opening notices by itself.
            Some(Slot::Opening(_)) | None => None,
            Some(Slot::Open(..)) => legs.remove(&Some(session)),
        }
    };
    if let Some(Slot::Open(leg, _)) = slot
        && session.owner() == backends.me
    {
        bid_farewell(backends, entry, &leg);
    }
}

/// Copies of sessions that ended elsewhere, and what else was missed.
pub(super) fn sweep(backends: &Rc<Backends>, entry: &Rc<Entry>) {
    let ended: Vec<SessionId> = entry
        .http()
        .1
        .legs
        .borrow()
        .iter()
        .filter_map(|(key, slot)| match slot {
            Slot::Open(_, Some(session)) if session.ended() => *key,
            _ => None,
        })
        .collect();
    for session in ended {
        end(backends, entry, session);
    }
}

/// Tells a server that a session is over, without waiting for what it says.
fn bid_farewell(backends: &Rc<Backends>, entry: &Rc<Entry>, leg: &Rc<Leg>) {
    if leg.has_session() && !backends.is_down(entry) {
        let (backends, entry, leg) = (backends.clone(), entry.clone(), leg.clone());
        rt::spawn("session end", async move { delete(&backends, &entry, &leg).await });
    }
}

async fn delete(backends: &Rc<Backends>, entry: &Rc<Entry>, leg: &Leg) {
    let write = |out: &mut Vec<u8>| leg.bare(out, entry.http().0, "DELETE", "");
    if let Err(failure) = http::side(backends, entry, write).await {
        tracing::debug!(backend = entry.name(), %failure, "session not ended");
    }
}

/// Ends all sessions that this worker opened with these backends, as far as that goes within a
/// second.
pub(super) async fn end_all(backends: &Rc<Backends>, entries: &[Rc<Entry>], limit: Duration) {
    let mut open = VecDeque::new();
    for entry in entries {
        let Wire::Http(http) = &entry.wire else { continue };
        let down = backends.is_down(entry);
        http.streams.borrow_mut().clear();
        for (key, slot) in http.legs.borrow_mut().drain() {
            let owner = key.map_or(entry.owner, |session| session.owner());
            if let Slot::Open(leg, _) = slot
                && owner == backends.me
                && leg.has_session()
                && !down
            {
                open.push_back((entry.clone(), leg));
            }
        }
    }
    let left = Rc::new(Cell::new(open.len()));
    let open = Rc::new(RefCell::new(open));
    let done = Rc::new(Event::new());
    if left.get() == 0 {
        return;
    }
    for _ in 0..left.get().min(32) {
        let (backends, open, left, done) =
            (backends.clone(), open.clone(), left.clone(), done.clone());
        rt::spawn("session ends", async move {
            loop {
                let next = open.borrow_mut().pop_front();
                let Some((entry, leg)) = next else { return };
                delete(&backends, &entry, &leg).await;
                left.set(left.get() - 1);
                if left.get() == 0 {
                    done.set();
                }
            }
        });
    }
    let _ = rt::time::timeout(limit, done.wait()).await;
    open.borrow_mut().clear();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn plan() -> HttpPlan {
        HttpPlan {
            host: "localhost".into(),
            port: 81,
            authority: "localhost:81".into(),
            target: "/mcp?x=1".into(),
            header_lines: "X-Key: k\r\n".into(),
            tls: None,
            forward_auth: false,
            connections_max: 4,
            idle: Duration::from_secs(30),
            sse: crate::plan::SsePlan {
                only: false,
                streams_max: 2,
                idle_stop: Duration::from_secs(600),
            },
            fingerprint: 1,
        }
    }

    #[test]
    fn heads_carry_session_and_revision() {
        let leg = Leg::with(&plan(), 1, Some("abc".into()), "2025-06-18", Box::default());
        let mut out = Vec::new();
        leg.post(&mut out, 17, None);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "POST /mcp?x=1 HTTP/1.1\r\nHost: localhost:81\r\nX-Key: k\r\n\
             Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n\
             Mcp-Session-Id: abc\r\nMCP-Protocol-Version: 2025-06-18\r\nContent-Length: 17\r\n\r\n"
        );
        let mut out = Vec::new();
        leg.bare(&mut out, &plan(), "DELETE", "");
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "DELETE /mcp?x=1 HTTP/1.1\r\nHost: localhost:81\r\nX-Key: k\r\n\
             Mcp-Session-Id: abc\r\nMCP-Protocol-Version: 2025-06-18\r\n\r\n"
        );
        let first = Leg::provisional(&plan());
        let mut out = Vec::new();
        first.post(&mut out, 1, Some("Bearer x"));
        assert!(out.ends_with(b"\r\nContent-Length: 1\r\nAuthorization: Bearer x\r\n\r\n"));
        assert!(!String::from_utf8(out).unwrap().contains("Mcp-"));
    }

    #[test]
    fn session_ids_must_be_fit_for_a_header() {
        for (field, fit) in [
            (&b"abc-1"[..], true),
            (b"", false),
            (b"a b", false),
            (b"a\xff", false),
            (&[b'a'; limits::BACKEND_SESSION_ID_BYTES_MAX + 1], false),
        ] {
            let leg = Leg::provisional(&plan());
            leg.note_session(Some(field));
            assert_eq!(leg.has_session(), fit, "{field:?}");
            assert_eq!(leg.bad_session_id.get(), !fit);
        }
        let leg = Leg::provisional(&plan());
        leg.note_session(None);
        assert!(!leg.has_session() && !leg.bad_session_id.get());
    }
}
