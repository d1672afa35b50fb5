//! Owns: callers of the request era that listen for changed resources of backends with sessions.
//! Never: their streams (`exchange`); backends of their own era (`hear`).
//! Next: `mail`, what workers tell each other of all this.
//!
//! MCP 2026-07-28, Subscriptions; 2025-11-25, Resources, Subscriptions. The session that stands for a
//! caller (`bridge`) subscribes to each resource once, as long as anybody listens for it through that
//! session. What comes waits here for its listener, one word for each resource.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use ahash::AHashMap;

use super::bridge::{self, InUse};
use super::entry::{Entry, Wire};
use super::hear::{Agreed, Heard};
use super::own::{Said, said};
use super::relay::{self, Word};
use super::wishes::{is_part, uri_params};
use super::{Backends, Caller, listen};
use crate::jsonrpc;
use crate::limits;
use crate::mcp::session::{SessionId, SessionRecord};
use crate::plan::{BackendId, Isolation};
use crate::rt;
use crate::rt::local::{Notify, Sender};

/// Those of one worker, by the session that stands for them.
#[derive(Default)]
pub(super) struct Listeners(RefCell<AHashMap<SessionId, Vec<Rc<Listener>>>>);

struct Listener {
    backend: BackendId,
    uris: Vec<String>,
    /// Updates that have not been told, by resource.
    news: RefCell<BTreeMap<String, Vec<u8>>>,
    /// The backend was away: nobody knows what it would have told.
    again: Cell<bool>,
    bell: Notify,
}

impl Listener {
    fn wants(&self, uri: &str) -> bool {
        self.uris.iter().any(|held| is_part(uri, held))
    }
}

impl Listeners {
    /// Whether anybody but those who just left wants `uri`.
    fn want(&self, session: SessionId, backend: BackendId, uri: &str) -> bool {
        let all = self.0.borrow();
        let mut its = all.get(&session).into_iter().flatten();
        its.any(|one| one.backend == backend && one.uris.iter().any(|held| held == uri))
    }

    /// A message for such a session; false if there is none of that id. Nothing but an update
    /// concerns anybody.
    pub(super) fn hear(&self, session: SessionId, message: &[u8]) -> bool {
        let all = self.0.borrow();
        let Some(its) = all.get(&session) else { return false };
        let Ok(envelope) = jsonrpc::scan(message) else { return true };
        let uri = envelope.uri.and_then(|uri| uri.text(message));
        let (Word::Updated, Some(uri)) = (relay::word(&envelope, message), uri) else {
            return true;
        };
        if message.len() > limits::SSE_QUEUE_BYTES_MAX {
            return true;
        }
        for one in its.iter().filter(|one| one.wants(&uri)) {
            let mut news = one.news.borrow_mut();
            if news.len() < limits::SUBSCRIPTIONS_MAX || news.contains_key(&*uri) {
                news.insert(uri.clone().into_owned(), message.to_vec());
            }
            one.bell.notify_all();
        }
        true
    }

    /// A channel of a backend was opened anew: the own one of a session, or the one that all share.
    pub(super) fn again(&self, backend: BackendId, session: Option<SessionId>) {
        for (id, its) in self.0.borrow().iter() {
            if session.is_some_and(|session| session != *id) {
                continue;
            }
            for one in its.iter().filter(|one| one.backend == backend) {
                one.again.set(true);
                one.bell.notify_all();
            }
        }
    }
}

/// A listener that is there; dropped, it takes back what nobody else wants.
struct Seat {
    backends: Rc<Backends>,
    entry: Rc<Entry>,
    /// As long as anybody listens through it the session does not end.
    in_use: Option<InUse>,
    listener: Rc<Listener>,
    agreed: Vec<String>,
}

impl Seat {
    fn take(backends: &Rc<Backends>, entry: &Rc<Entry>, in_use: InUse, uris: Vec<String>) -> Seat {
        let listener = Rc::new(Listener {
            backend: entry.id,
            uris,
            news: RefCell::default(),
            again: Cell::new(false),
            bell: Notify::new(),
        });
        let id = in_use.record.id;
        backends.listeners.0.borrow_mut().entry(id).or_default().push(listener.clone());
        if let (Wire::Http(_), Isolation::Session) = (&entry.wire, entry.plan.isolation) {
            listen::attended(backends, &in_use.record, true);
        }
        let (backends, entry) = (backends.clone(), entry.clone());
        Seat { backends, entry, in_use: Some(in_use), listener, agreed: Vec::new() }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(in_use) = self.in_use.take() else { return };
        let record = in_use.record.clone();
        let nobody = {
            let mut all = self.backends.listeners.0.borrow_mut();
            let its = all.entry(record.id).or_default();
            its.retain(|one| !Rc::ptr_eq(one, &self.listener));
            let nobody = its.is_empty();
            if nobody {
                all.remove(&record.id);
            }
            nobody
        };
        // One that stands for callers who can be asked something keeps its stream.
        if nobody && record.class.is_empty() {
            listen::attended(&self.backends, &record, false);
        }
        if record.ended() || self.backends.stopping.is_set() {
            return;
        }
        let (backends, entry) = (self.backends.clone(), self.entry.clone());
        let uris = std::mem::take(&mut self.agreed);
        rt::spawn("end of listening", async move {
            for uri in uris {
                if !backends.listeners.want(record.id, entry.id, &uri) {
                    subscribe(&backends, &entry, &record, &uri, false).await;
                }
            }
            drop(in_use);
        });
    }
}

async fn subscribe(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    record: &Arc<SessionRecord>,
    uri: &str,
    on: bool,
) -> bool {
    let asked = backends.subscribe_session(record, entry.id, uri, &uri_params(uri), on).await;
    asked.is_ok_and(|answer| matches!(said(&answer), Ok(Said::Result(_))))
}

/// Listens for `caller` until nobody takes what is heard; a drop ends it too. The first word is
/// [`Heard::Agreed`].
pub(super) async fn attend(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    caller: &Caller,
    uris: &[String],
    out: &Sender<Heard>,
) {
    let Ok(in_use) = bridge::record(backends, entry, caller) else {
        return drop(out.send(Heard::Agreed(Agreed::default())).await);
    };
    let record = in_use.record.clone();
    let mut seat = Seat::take(backends, entry, in_use, uris.to_vec());
    for uri in uris {
        if subscribe(backends, entry, &record, uri, true).await {
            seat.agreed.push(uri.clone());
        }
    }
    if let Wire::Http(_) = &entry.wire
        && let Some(opened) = listen::opened(entry, record.id)
    {
        // What is told without a stream is lost.
        opened.await;
    }
    // What was opened for this very listener was not away.
    seat.listener.again.set(false);
    let agreed = Agreed::resources(seat.agreed.clone());
    if out.send(Heard::Agreed(agreed)).await.is_err() {
        return;
    }
    loop {
        let bell = seat.listener.bell.notified();
        if seat.listener.again.take() && out.send(Heard::Again(seat.agreed.clone())).await.is_err()
        {
            return;
        }
        let next = seat.listener.news.borrow_mut().pop_first();
        match next {
            Some((_, message)) => {
                if out.send(Heard::Updated(message)).await.is_err() {
                    return;
                }
            }
            None => bell.await,
        }
    }
}
