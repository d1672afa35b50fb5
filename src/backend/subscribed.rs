//! Owns: what sessions hear of resources of a backend of the request era.
//! Never: the listening itself (`hear`); backends with sessions (`wishes`).
//! Next: `listeners`, the same the other way round.
//!
//! MCP 2025-11-25, Resources, Subscriptions; 2026-07-28, Subscriptions. What a session is subscribed
//! to is one request that stays open, and whose filter cannot be changed: with each subscription it
//! is opened once more, and the former one is closed when the backend has agreed, so that no update
//! is missed between the two. Kept by the session's owner.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use ahash::AHashMap;

use super::entry::Entry;
use super::failure::Failure;
use super::hear::{self, Agreed, Heard, Subscription, Wanted};
use super::own::nothing;
use super::wishes::{self, Wished, uri_params};
use super::{Backends, Caller};
use crate::error::Kind;
use crate::jsonrpc;
use crate::limits;
use crate::mcp::envelope::{self, key, rebuilt};
use crate::mcp::session::{SessionId, SessionRecord};
use crate::rt;
use crate::rt::local::{Event, Receiver, queue};

/// The sessions of one worker that are subscribed at one backend.
#[derive(Default)]
pub(super) struct Subscribed(RefCell<AHashMap<SessionId, Held>>);

struct Held {
    session: Arc<SessionRecord>,
    uris: BTreeSet<String>,
    listening: Option<Subscription>,
    /// It is being changed; set when that is done.
    changing: Option<Rc<Event>>,
}

impl Subscribed {
    /// Forgets sessions that `ended` says have ended, which ends their listening.
    pub(super) fn forget(&self, ended: impl Fn(&SessionRecord) -> bool) {
        self.0.borrow_mut().retain(|_, held| !ended(&held.session));
    }

    /// Forgets what is not just being changed, which ends their listening: what they were subscribed to.
    pub(super) fn take(&self) -> Vec<wishes::Held> {
        let held = self.held();
        self.0.borrow_mut().retain(|_, held| held.changing.is_some());
        held
    }

    /// What they are subscribed to.
    pub(super) fn held(&self) -> Vec<wishes::Held> {
        let all = self.0.borrow();
        let each = all.values().flat_map(|held| held.uris.iter().map(|uri| (&held.session, uri)));
        each.map(|(session, uri)| (session.clone(), uri.as_str().into())).collect()
    }

    /// The turn to change what a session hears, and what it hears now; or what to wait for.
    fn turn(&self, session: &Arc<SessionRecord>) -> Result<BTreeSet<String>, Rc<Event>> {
        let mut all = self.0.borrow_mut();
        let held = all.entry(session.id).or_insert_with(|| Held {
            session: session.clone(),
            uris: BTreeSet::new(),
            listening: None,
            changing: None,
        });
        match &held.changing {
            Some(changing) => Err(changing.clone()),
            None => {
                held.changing = Some(Rc::new(Event::new()));
                Ok(held.uris.clone())
            }
        }
    }
}

/// A change; dropped, it is over, and without `new` all is as it was.
struct Change<'a> {
    subscribed: &'a Subscribed,
    session: SessionId,
    new: Option<(BTreeSet<String>, Option<Subscription>)>,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let mut all = self.subscribed.0.borrow_mut();
        let Some(held) = all.get_mut(&self.session) else { return };
        if let Some((uris, listening)) = self.new.take() {
            (held.uris, held.listening) = (uris, listening);
        }
        if let Some(changing) = held.changing.take() {
            changing.set();
        }
        if held.uris.is_empty() {
            all.remove(&self.session);
        }
    }
}

/// Subscribes a session to a resource, or ends that: the answer, with some id.
pub(super) async fn change(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: &Arc<SessionRecord>,
    uri: &str,
    on: bool,
) -> Wished {
    let mut uris = loop {
        match entry.subscribed.turn(session) {
            Ok(uris) => break uris,
            Err(changing) => changing.wait().await,
        }
    };
    let mut change = Change { subscribed: &entry.subscribed, session: session.id, new: None };
    if on && uris.len() >= limits::SUBSCRIPTIONS_PER_SESSION_MAX {
        return Err(Failure::new(Kind::Busy, "too many subscriptions"));
    }
    let differs = if on { uris.insert(uri.to_owned()) } else { uris.remove(uri) };
    if !differs {
        return Ok(nothing());
    }
    if uris.is_empty() {
        change.new = Some((uris, None));
        return Ok(nothing());
    }
    let caller = Caller {
        capabilities: session.capabilities.clone(),
        client: session.client_info.clone(),
        ..Caller::default()
    };
    let all = Wanted { uris: uris.iter().cloned().collect(), tasks: Vec::new() };
    let (out, mut heard) = queue(limits::HEARD_MAX);
    let listening = hear::client(backends, entry, &caller, &all, out);
    let first = rt::time::timeout(entry.plan.request_timeout, heard.recv()).await;
    let agreed = match first {
        Ok(Some(Heard::Agreed(agreed))) => agreed.uris,
        Ok(_) => return Err(Failure::new(Kind::Unavailable, "it does not listen")),
        Err(_) => return Err(Failure::new(Kind::Timeout, "no word about a subscription")),
    };
    if on && !agreed.iter().any(|one| one == uri) {
        let mut answer = Vec::new();
        let text = "The server does not tell of changes of this resource";
        jsonrpc::error(&mut answer, b"0", Kind::InvalidParams.code(), text, None);
        return Ok(answer);
    }
    rt::spawn("updates for a session", tell(backends.clone(), session.clone(), heard));
    change.new = Some((uris, Some(listening)));
    Ok(nothing())
}

/// Tells a session what is heard, until the listening ends.
async fn tell(backends: Rc<Backends>, session: Arc<SessionRecord>, mut heard: Receiver<Heard>) {
    while let Some(heard) = heard.recv().await {
        match heard {
            Heard::Updated(message) => backends.tell_client(session.id, untagged(message)),
            // None was asked for.
            Heard::Task(_) => {}
            // It was away: any of these may have changed.
            Heard::Agreed(Agreed { uris, .. }) | Heard::Again(uris) => {
                for uri in uris {
                    let mut message = Vec::new();
                    let method = "notifications/resources/updated";
                    jsonrpc::notification(&mut message, method, Some(&uri_params(&uri)));
                    backends.tell_client(session.id, message);
                }
            }
        }
    }
}

/// A notification without the name of the request that it came for, which is the proxy's own.
fn untagged(message: Vec<u8>) -> Vec<u8> {
    let meta = jsonrpc::scan(&message).ok().and_then(|envelope| envelope.meta);
    let Some(meta) =
        meta.filter(|meta| envelope::member(meta.of(&message), key::SUBSCRIPTION).is_some())
    else {
        return message;
    };
    let rest = rebuilt(meta.of(&message), &[key::SUBSCRIPTION], &[]);
    jsonrpc::splice(&message, &[(meta, &rest)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::revision::Revision;

    #[test]
    fn the_tag_of_the_hop_is_taken_off_and_nothing_else() {
        let update = |meta: &str| {
            format!(r#"{{"jsonrpc":"2.0","method":"m","params":{{"_meta":{{{meta}}},"uri":"a"}}}}"#)
        };
        let tag = r#""io.modelcontextprotocol/subscriptionId":7"#;
        for (before, after) in [(tag, ""), (&format!(r#"{tag},"x":1.0"#), r#""x":1.0"#), ("", "")] {
            let message = untagged(update(before).into_bytes());
            assert_eq!(String::from_utf8(message).unwrap(), update(after));
        }
    }

    #[test]
    fn one_change_at_a_time_and_one_that_failed_leaves_all_as_it_was() {
        let subscribed = Subscribed::default();
        let id = SessionId::mint(0, [1; 16]);
        let session =
            Arc::new(SessionRecord::new(id, Revision::NEWEST, None, "{}".into(), "{}".into()));
        let change = |new| Change { subscribed: &subscribed, session: id, new };
        let uris = subscribed.turn(&session).unwrap();
        assert!(uris.is_empty());
        let waits = subscribed.turn(&session).unwrap_err();
        drop(change(Some((BTreeSet::from(["a:b".to_owned()]), None))));
        assert!(waits.is_set());
        assert_eq!(subscribed.turn(&session).unwrap().len(), 1);
        drop(change(None));
        assert_eq!(subscribed.turn(&session).unwrap().len(), 1);
        drop(change(Some((BTreeSet::new(), None))));
        assert!(subscribed.0.borrow().is_empty());
    }
}
