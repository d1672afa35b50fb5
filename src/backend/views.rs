//! Owns: what a backend shows to others than the proxy itself: to clients of one kind, to one
//! session; who fetches it, and until when it holds.
//! Never: merged lists (`world::view`).
//! Next: `supervise`, who asks for all that.
//!
//! What a server lists may depend on what its client can do, and it may change lists in one session
//! alone. So a session whose client can do anything sees its backends through a view of its kind,
//! fetched once in the backend session of the first that asked; and a session that was told of a
//! change sees them through a view of its own, fetched in its own. Each kind has the backend's owner
//! as its keeper, each session its own owner; the other workers ask the keeper once. Views are
//! fetched when they are asked for and dropped when anything changes: a stale one is worse than a
//! late one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use ahash::AHashMap;

use super::entry::Entry;
use super::own::Channel;
use super::relay::{self, changed};
use super::{BackendMail, Backends, listing};
use crate::limits;
use crate::mcp::catalog::{ListKind, Pages, Slice};
use crate::mcp::session::{SessionId, SessionRecord};
use crate::plan::{Isolation, WorkerId};
use crate::rt;
use crate::rt::local::Event;

/// Whose view it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Whose {
    /// Of all clients of a kind.
    Kind(Arc<str>),
    /// Of one session.
    Session(SessionId),
}

/// What is seen.
#[derive(Clone, Debug)]
pub enum Seen {
    /// What the proxy sees.
    Same,
    /// Other lists.
    Other(Arc<Slice>),
}

/// The views of one backend on one worker.
#[derive(Default)]
pub(super) struct Views {
    known: RefCell<AHashMap<Whose, Known>>,
    opening: RefCell<AHashMap<Whose, Rc<Opening>>>,
    /// Counts the uses, to tell which is the oldest.
    clock: Cell<u64>,
    /// Counts how often all were dropped.
    round: Cell<u64>,
}

struct Known {
    /// `None`: it could not be fetched.
    seen: Option<Seen>,
    /// Changes of the session's lists that it knows of.
    changes: u32,
    used: Cell<u64>,
    since: Instant,
}

/// A view that is being fetched, here or by its keeper.
struct Opening {
    changes: u32,
    /// All views were dropped meanwhile: what comes is for those who wait, and is not kept.
    outdated: Cell<bool>,
    done: Event,
    result: RefCell<Option<Seen>>,
}

/// What a session would see through, and how many changes that must know of; `None`: it sees what
/// the proxy sees.
fn whose(entry: &Entry, session: &SessionRecord) -> Option<(Whose, u32)> {
    // What a backend shows to one client's own token is nobody else's, and is never kept.
    let private = entry.plan.forwards();
    if entry.plan.isolation != Isolation::Session || entry.plan.unlisted || private {
        return None;
    }
    match session.list_changes(entry.id) {
        0 if session.class.is_empty() => None,
        0 => Some((Whose::Kind(session.class.clone()), 0)),
        changes => Some((Whose::Session(session.id), changes)),
    }
}

fn keeper(entry: &Entry, whose: &Whose) -> WorkerId {
    match whose {
        Whose::Kind(_) => entry.owner,
        Whose::Session(session) => session.owner(),
    }
}

/// What is at hand for a session.
pub(super) enum Hand {
    Seen(Seen),
    /// It could not be fetched just now.
    Failed,
    Missing,
}

pub(super) fn at_hand(entry: &Entry, session: &SessionRecord) -> Hand {
    match whose(entry, session) {
        None => Hand::Seen(Seen::Same),
        Some((whose, changes)) => entry.views.look(&whose, changes),
    }
}

impl Views {
    fn look(&self, whose: &Whose, changes: u32) -> Hand {
        let known = self.known.borrow();
        let Some(known) = known.get(whose).filter(|known| known.changes >= changes) else {
            return Hand::Missing;
        };
        self.clock.set(self.clock.get() + 1);
        known.used.set(self.clock.get());
        match &known.seen {
            Some(seen) => Hand::Seen(seen.clone()),
            None if known.since.elapsed() < limits::VIEW_RETRY_PAUSE => Hand::Failed,
            None => Hand::Missing,
        }
    }

    fn keep(&self, whose: Whose, changes: u32, seen: Option<Seen>) {
        let mut known = self.known.borrow_mut();
        self.clock.set(self.clock.get() + 1);
        let used = Cell::new(self.clock.get());
        let is_kind = matches!(whose, Whose::Kind(_));
        known.insert(whose, Known { seen, changes, used, since: Instant::now() });
        let max = if is_kind { limits::VIEW_CLASSES_MAX } else { limits::VIEW_SESSIONS_MAX };
        let alike = |other: &Whose| matches!(other, Whose::Kind(_)) == is_kind;
        if known.keys().filter(|other| alike(other)).count() > max {
            let candidates = known.iter().filter(|(whose, _)| alike(whose));
            let oldest = candidates.min_by_key(|(_, known)| known.used.get());
            if let Some(oldest) = oldest.map(|(whose, _)| whose.clone()) {
                known.remove(&oldest);
            }
        }
    }

    /// The same lists as another view has, as that one: then merged lists are shared too.
    fn shared(&self, slice: Slice) -> Arc<Slice> {
        let known = self.known.borrow();
        let mut others = known.values().filter_map(|known| match &known.seen {
            Some(Seen::Other(other)) => Some(other),
            _ => None,
        });
        let same = others.find(|other| other.has_the_lists_of(&slice));
        same.cloned().unwrap_or_else(|| Arc::new(slice))
    }
}

/// Begins to fetch what a session sees, unless it is at hand or under way.
pub(super) fn want(backends: &Rc<Backends>, entry: &Rc<Entry>, session: &Arc<SessionRecord>) {
    if let Some((whose, changes)) = whose(entry, session)
        && matches!(entry.views.look(&whose, changes), Hand::Missing)
    {
        begin(backends, entry, session, whose, changes);
    }
}

/// What a session sees, fetched if need be; `None`: it cannot be told. A drop leaves the fetching
/// to itself.
pub(super) async fn seen(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: &Arc<SessionRecord>,
) -> Option<Seen> {
    let Some((whose, changes)) = whose(entry, session) else { return Some(Seen::Same) };
    see(backends, entry, session, whose, changes).await
}

async fn see(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: &Arc<SessionRecord>,
    whose: Whose,
    changes: u32,
) -> Option<Seen> {
    match entry.views.look(&whose, changes) {
        Hand::Seen(seen) => return Some(seen),
        Hand::Failed => return None,
        Hand::Missing => {}
    }
    let opening = begin(backends, entry, session, whose, changes)?;
    opening.done.wait().await;
    opening.result.borrow().clone()
}

/// `None`: nobody can be asked.
fn begin(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: &Arc<SessionRecord>,
    whose: Whose,
    changes: u32,
) -> Option<Rc<Opening>> {
    if entry.slice.borrow().is_none() || backends.is_down(entry) || session.ended() {
        return None;
    }
    let under_way = entry.views.opening.borrow().get(&whose).cloned();
    if let Some(opening) = under_way.filter(|opening| opening.changes >= changes) {
        return Some(opening);
    }
    let opening = Rc::new(Opening {
        changes,
        outdated: Cell::new(false),
        done: Event::new(),
        result: RefCell::new(None),
    });
    entry.views.opening.borrow_mut().insert(whose.clone(), opening.clone());
    let keeper = keeper(entry, &whose);
    if keeper == backends.me {
        let end = Finish {
            backends: backends.clone(),
            entry: entry.clone(),
            whose,
            opening: opening.clone(),
            seen: None,
        };
        let session = session.clone();
        rt::spawn("view", async move {
            let mut end = end;
            end.seen = fetch(&end.backends, &end.entry, &session).await;
        });
    } else {
        let (backend, session) = (entry.id, session.clone());
        let mail = BackendMail::View { backend, session, whose: whose.clone(), changes };
        if backends.try_send(keeper, mail).is_err() {
            finish(backends, entry, &whose, &opening, None);
        }
    }
    Some(opening)
}

/// Ends the fetching, also one whose task panicked: nobody must wait for ever.
struct Finish {
    backends: Rc<Backends>,
    entry: Rc<Entry>,
    whose: Whose,
    opening: Rc<Opening>,
    seen: Option<Seen>,
}

impl Drop for Finish {
    fn drop(&mut self) {
        let seen = self.seen.take();
        finish(&self.backends, &self.entry, &self.whose, &self.opening, seen);
    }
}

fn finish(
    backends: &Backends,
    entry: &Entry,
    whose: &Whose,
    opening: &Rc<Opening>,
    seen: Option<Seen>,
) {
    let views = &entry.views;
    let current = {
        let mut all = views.opening.borrow_mut();
        let current = all.get(whose).is_some_and(|now| Rc::ptr_eq(now, opening));
        if current {
            all.remove(whose);
        }
        current
    };
    if current && !opening.outdated.get() {
        views.keep(whose.clone(), opening.changes, seen.clone());
        backends.views_version.set(backends.views_version.get() + 1);
    }
    *opening.result.borrow_mut() = seen;
    opening.done.set();
}

/// Reads the lists in the session's own backend session.
async fn fetch(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: &Arc<SessionRecord>,
) -> Option<Seen> {
    // What was read while everything changed is read once more; what changes then is for the next one
    // to see, for servers may tell of changes as often as they are looked at.
    let mut again = true;
    loop {
        let round = entry.views.round.get();
        let base = entry.slice.borrow().clone()?;
        let mut pages = Pages::default();
        let channel = Channel::Client(session.clone());
        let reading = listing::read(backends, entry, &channel, &base, changed::ANY, &mut pages);
        match rt::time::timeout(entry.plan.startup_timeout, reading).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                tracing::debug!(backend = entry.name(), %failure, "lists of a client not read");
                return None;
            }
            Err(_) => return None,
        }
        if entry.views.round.get() != round && std::mem::take(&mut again) {
            continue;
        }
        let mut slice = Slice::clone(&base);
        for kind in ListKind::ALL {
            let pages = pages.of(kind);
            // A list that was not read stays as the proxy sees it.
            if !pages.is_empty() {
                slice = slice.with_list(&entry.plan, kind, pages).ok()?;
            }
        }
        return Some(match slice.has_the_lists_of(&base) {
            true => Seen::Same,
            false => Seen::Other(entry.views.shared(slice)),
        });
    }
}

/// Another worker asks the keeper.
pub(super) fn ask_for(
    backends: &Rc<Backends>,
    from: WorkerId,
    entry: Rc<Entry>,
    session: Arc<SessionRecord>,
    whose: Whose,
    changes: u32,
) {
    // One for each worker and view at most: they ask once.
    let backends = backends.clone();
    rt::spawn("view for another worker", async move {
        let seen = see(&backends, &entry, &session, whose.clone(), changes).await;
        backends.send(from, BackendMail::Viewed { backend: entry.id, whose, seen });
    });
}

/// The keeper answers.
pub(super) fn told(backends: &Backends, entry: &Entry, whose: &Whose, seen: Option<Seen>) {
    let opening = entry.views.opening.borrow().get(whose).cloned();
    if let Some(opening) = opening {
        finish(backends, entry, whose, &opening, seen);
    }
}

/// The backend's owner: its lists changed, or it is another than before. `announce`: the clients
/// that may see it differently have not been told.
pub(super) fn outdated(backends: &Rc<Backends>, entry: &Entry, flags: u32, announce: bool) {
    if entry.plan.isolation == Isolation::Session && !entry.plan.unlisted {
        let flags = if announce { flags } else { 0 };
        let backend = entry.id;
        backends.broadcast(|| BackendMail::Outdated { backend, flags });
        drop_all(backends, entry, flags);
    }
}

/// See [`outdated`], on any worker.
pub(super) fn drop_all(backends: &Backends, entry: &Entry, flags: u32) {
    let views = &entry.views;
    views.round.set(views.round.get() + 1);
    views.known.borrow_mut().clear();
    views.opening.borrow().values().for_each(|opening| opening.outdated.set(true));
    backends.views_version.set(backends.views_version.get() + 1);
    if flags != 0
        && let Some(clients) = backends.clients.get()
    {
        clients.views_changed(relay::changes(flags));
    }
}

/// A session has ended.
pub(super) fn end(entry: &Entry, session: SessionId) {
    entry.views.known.borrow_mut().remove(&Whose::Session(session));
}

/// The backend session of a client was lost, and with it what it alone had changed.
pub(super) fn session_lost(entry: &Entry, session: Option<&Arc<SessionRecord>>) {
    if let Some(session) = session
        && session.list_changes(entry.id) > 0
    {
        session.lists_changed(entry.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> Whose {
        Whose::Kind(name.into())
    }

    #[test]
    fn kinds_and_sessions_are_bounded_apart_and_the_oldest_goes() {
        let views = Views::default();
        for n in 0..limits::VIEW_CLASSES_MAX {
            views.keep(kind(&n.to_string()), 0, Some(Seen::Same));
        }
        let session = Whose::Session(SessionId::mint(0, [1; 16]));
        views.keep(session.clone(), 3, Some(Seen::Same));
        assert!(matches!(views.look(&kind("0"), 0), Hand::Seen(Seen::Same)));
        views.keep(kind("one more"), 0, Some(Seen::Same));
        assert!(matches!(views.look(&kind("0"), 0), Hand::Seen(_)));
        assert!(matches!(views.look(&kind("1"), 0), Hand::Missing));
        // A later change is not in it.
        assert!(matches!(views.look(&session, 3), Hand::Seen(_)));
        assert!(matches!(views.look(&session, 4), Hand::Missing));
        views.keep(kind("none"), 0, None);
        assert!(matches!(views.look(&kind("none"), 0), Hand::Failed));
    }
}
