//! Owns: channels: the one that all share, and those that sessions have; birth and end of children.
//! Never: restarting the shared one (`supervise`); opening event streams (`sse`).
//! Next: `stderr`, its last output.
//!
//! A child is stopped as MCP says (Lifecycle, Shutdown, stdio): close its input, wait, SIGTERM,
//! wait, SIGKILL; signals go to its group.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::AHashMap;

use super::entry::Entry;
use super::failure::Failure;
use super::hearing::Hearing;
use super::link::Link;
use super::own::Channel;
use super::wishes::{self, Wishes};
use super::{Backends, era, sse, stderr, views};
use crate::error::Kind;
use crate::limits;
use crate::mcp::catalog::Can;
use crate::mcp::revision::Era;
use crate::mcp::session::{SessionId, SessionRecord};
use crate::plan::{Protocol, StdioPlan, TransportPlan};
use crate::rt::child::{self, Handle, Spec};
use crate::rt::local::{Event, Notify};
use crate::rt::{self, Either, race};

/// The channels of one backend on one worker: to children, or over event streams.
pub(super) struct Channels {
    /// The shared one, once its handshake is complete.
    shared: RefCell<Option<Rc<Link>>>,
    /// The shared one is being brought up.
    pub(super) rising: Cell<bool>,
    /// Why the shared one is not there.
    pub(super) fault: RefCell<Option<Failure>>,
    /// The shared one came up, or failed to.
    turn: Notify,
    /// The child ends when it is asked what it does not know: it is greeted with `initialize`.
    shy: Cell<bool>,
    /// Of the sessions that this worker owns.
    sessions: RefCell<AHashMap<SessionId, Rc<Kid>>>,
    /// Those of sessions that have not ended, stopped ones included.
    alive: Cell<usize>,
}

/// The child, or the stream, of a session.
struct Kid {
    link: RefCell<Option<Rc<Link>>>,
    /// Its start ended: there is a link, or a fault.
    ready: Event,
    fault: RefCell<Option<Failure>>,
    /// It is no longer wanted.
    stop: Event,
}

impl Channels {
    pub(super) fn new() -> Channels {
        Channels {
            shared: RefCell::new(None),
            rising: Cell::new(false),
            fault: RefCell::new(None),
            turn: Notify::new(),
            shy: Cell::new(false),
            sessions: RefCell::new(AHashMap::new()),
            alive: Cell::new(0),
        }
    }

    /// The open channel of the shared child, or of a session's.
    pub(super) fn link(&self, session: Option<SessionId>) -> Option<Rc<Link>> {
        let link = match session {
            None => self.shared.borrow().clone(),
            Some(session) => self.sessions.borrow().get(&session)?.link.borrow().clone(),
        };
        link.filter(|link| link.is_open())
    }

    /// The shared child came up (or is gone, or failed to come).
    pub(super) fn share(&self, link: Option<Rc<Link>>) {
        *self.shared.borrow_mut() = link;
        self.turn.notify_all();
    }

    /// Stops the child of a session that ended.
    pub(super) fn end(&self, session: SessionId) {
        let kid = self.sessions.borrow_mut().remove(&session);
        if let Some(kid) = kid {
            kid.stop.set();
        }
    }

    /// Stops the children of all sessions.
    pub(super) fn end_all(&self) {
        let kids = std::mem::take(&mut *self.sessions.borrow_mut());
        kids.values().for_each(|kid| kid.stop.set());
    }

    /// Channels of sessions that have not ended.
    pub(super) fn alive(&self) -> usize {
        self.alive.get()
    }

    /// Whether there are children, and nobody waits for any of them or has done so lately.
    pub(super) fn are_left(&self, now: Instant) -> bool {
        let is_left = |link: &Rc<Link>| link.is_left(now);
        let shared = self.shared.borrow();
        let sessions = self.sessions.borrow();
        !self.rising.get()
            && (shared.is_some() || !sessions.is_empty())
            && shared.iter().all(is_left)
            && sessions.values().all(|kid| kid.link.borrow().as_ref().is_some_and(is_left))
    }

    /// Looks for children that are stuck or not needed.
    pub(super) fn sweep(&self, now: Instant, idle_stop: Duration, wishes: &Wishes) {
        let check = |link: &Link| {
            if link.is_stalled(now) {
                link.close(Failure::new(Kind::Lost, "it does not take its input"));
            }
        };
        if let Some(link) = &*self.shared.borrow() {
            check(link);
        }
        self.sessions.borrow_mut().retain(|session, kid| {
            let Some(link) = kid.link.borrow().clone() else { return true };
            check(&link);
            // One that has to tell of updates is in use.
            let idle = link.idle(now).is_some_and(|idle| idle >= idle_stop)
                && !wishes.has_subscriptions(*session);
            if idle {
                kid.stop.set();
            }
            !idle
        });
    }
}

/// Channels that sessions may have at once.
fn channels_max(entry: &Entry) -> usize {
    match &entry.plan.transport {
        TransportPlan::Stdio(plan) => plan.children_max,
        TransportPlan::Http(plan) => plan.sse.streams_max,
    }
}

/// The channel of the shared child or a session's, started if it is a session's; waits for a start
/// that is under way. A drop leaves the start to itself.
///
/// # Errors
/// Why there is none: all of them mean that nothing was sent.
pub(super) async fn wait_for(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: Option<&Arc<SessionRecord>>,
) -> Result<Rc<Link>, Failure> {
    let channels = entry.channels();
    if let Some(session) = session {
        return session_link(backends, entry, session).await;
    }
    let end = Instant::now() + limits::RESTART_WAIT;
    loop {
        let turn = channels.turn.notified();
        if let Some(link) = channels.link(None) {
            return Ok(link);
        }
        let left = end.saturating_duration_since(Instant::now());
        if !channels.rising.get() || left.is_zero() {
            let fault = channels.fault.borrow().clone();
            return Err(match fault {
                Some(fault) => fault.unsent(),
                None => Failure::new(Kind::Unavailable, "not up"),
            });
        }
        let _ = rt::time::timeout(left, turn).await;
    }
}

async fn session_link(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: &Arc<SessionRecord>,
) -> Result<Rc<Link>, Failure> {
    let channels = entry.channels();
    let known = channels.sessions.borrow().get(&session.id).cloned();
    let kid = match known {
        Some(kid) => kid,
        None => {
            if session.ended() || entry.closing.is_set() {
                return Err(Failure::new(Kind::Unavailable, "the session has ended"));
            }
            if backends.board.children(entry.id) as usize >= channels_max(entry) {
                return Err(Failure::new(Kind::Busy, "as many channels as are allowed"));
            }
            let kid = Rc::new(Kid {
                link: RefCell::new(None),
                ready: Event::new(),
                fault: RefCell::new(None),
                stop: Event::new(),
            });
            channels.sessions.borrow_mut().insert(session.id, kid.clone());
            channels.count(backends, entry, 1);
            rt::spawn(
                "session child",
                nurse(backends.clone(), entry.clone(), session.clone(), kid.clone()),
            );
            kid
        }
    };
    kid.ready.wait().await;
    let link = kid.link.borrow().clone();
    let fault = || kid.fault.borrow().clone();
    link.filter(|link| link.is_open()).ok_or_else(|| {
        fault().unwrap_or_else(|| Failure::new(Kind::Unavailable, "the channel has ended")).unsent()
    })
}

impl Channels {
    fn count(&self, backends: &Backends, entry: &Entry, by: isize) {
        self.alive.set(self.alive.get().saturating_add_signed(by));
        backends.board.set_children(backends.me, entry.id, self.alive.get());
        backends.running.set(backends.running.get().saturating_add_signed(by));
    }
}

/// The life of a session's child.
async fn nurse(
    backends: Rc<Backends>,
    entry: Rc<Entry>,
    session: Arc<SessionRecord>,
    kid: Rc<Kid>,
) {
    let _farewell = Farewell { backends: &backends, entry: &entry, session: session.id, kid: &kid };
    let born = Instant::now();
    // As the shared one of its kind, which has been asked.
    let how = match entry.era.get() {
        Era::Session => Protocol::Legacy,
        _ => Protocol::Modern,
    };
    let birth = bring_up(&backends, &entry, Some(&session), how);
    let birth = race(birth, kid.stop.wait()).await;
    let fault = match birth {
        // The birth is dropped, and with its handle the child is killed.
        Either::Right(()) => None,
        Either::Left(Ok(newborn)) => {
            *kid.link.borrow_mut() = Some(newborn.link.clone());
            kid.ready.set();
            match race(newborn.gone(), kid.stop.wait()).await {
                Either::Left(()) => {
                    let fault = newborn.end(&entry).await;
                    tracing::warn!(backend = entry.name(), %fault, "channel of a session ended");
                    Some(fault)
                }
                Either::Right(()) => {
                    newborn.stop(&entry).await;
                    None
                }
            }
        }
        Either::Left(Err(fault)) => {
            tracing::warn!(backend = entry.name(), %fault, "channel of a session did not start");
            Some(fault)
        }
    };
    kid.link.borrow_mut().take();
    views::session_lost(&entry, Some(&session));
    *kid.fault.borrow_mut() = fault;
    kid.ready.set();
    if born.elapsed() < limits::LIVED_WELL {
        // Until then its calls fail at once, so that a child that cannot live is not started with
        // every call.
        let _ = rt::time::timeout(entry.plan.restart.initial, kid.stop.wait()).await;
    }
}

/// The end of a session's child, also when its nurse panicked: nobody must wait for it for ever.
struct Farewell<'a> {
    backends: &'a Backends,
    entry: &'a Entry,
    session: SessionId,
    kid: &'a Rc<Kid>,
}

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        let channels = self.entry.channels();
        self.kid.link.borrow_mut().take();
        self.kid.ready.set();
        let mut sessions = channels.sessions.borrow_mut();
        if sessions.get(&self.session).is_some_and(|current| Rc::ptr_eq(current, self.kid)) {
            sessions.remove(&self.session);
        }
        drop(sessions);
        channels.count(self.backends, self.entry, -1);
    }
}

/// A channel with a complete handshake.
pub(super) struct Newborn {
    pub(super) link: Rc<Link>,
    pub(super) life: Life,
    /// The raw result of its `initialize`, or what stands for it.
    pub(super) init: Vec<u8>,
    /// What it speaks.
    pub(super) era: Era,
}

/// What stands behind a channel.
pub(super) enum Life {
    Child {
        handle: Handle,
        /// Set when its standard error needs not be read any more.
        over: Rc<Event>,
    },
    Stream(sse::Hangup),
}

/// Brings a channel up, whatever it leads to; an event stream is always of the session era.
///
/// # Errors
/// It could not be opened, ended, or the handshake was not complete within the start-up deadline;
/// nothing of it is left then.
pub(super) async fn bring_up(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: Option<&Arc<SessionRecord>>,
    how: Protocol,
) -> Result<Newborn, Failure> {
    match &entry.plan.transport {
        TransportPlan::Stdio(plan) => child(backends, entry, plan, session, how).await,
        TransportPlan::Http(plan) => Box::pin(sse::bring_up(backends, entry, plan, session)).await,
    }
}

/// Starts a child and shakes hands with it.
///
/// # Errors
/// It could not be started, ended, or did not answer within the start-up deadline; it is gone then.
async fn child(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    plan: &StdioPlan,
    session: Option<&Arc<SessionRecord>>,
    how: Protocol,
) -> Result<Newborn, Failure> {
    let shy = &entry.channels().shy;
    if how != Protocol::Auto || shy.get() {
        let how = if how == Protocol::Auto { Protocol::Legacy } else { how };
        return raise(backends, entry, plan, session, how, &Cell::new(false)).await;
    }
    let probing = Cell::new(false);
    match raise(backends, entry, plan, session, how, &probing).await {
        Err(failure) if probing.get() && failure.kind == Kind::Lost => {
            // It ended at a question that it does not know, or for a reason of its own.
            tracing::debug!(backend = entry.name(), %failure, "the child ended at server/discover");
            let again = raise(backends, entry, plan, session, Protocol::Legacy, &probing).await;
            shy.set(again.is_ok());
            again
        }
        outcome => outcome,
    }
}

/// One birth. `probing` is left true if the child ended while it was asked what it speaks.
async fn raise(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    plan: &StdioPlan,
    session: Option<&Arc<SessionRecord>>,
    how: Protocol,
    probing: &Cell<bool>,
) -> Result<Newborn, Failure> {
    let spec = Spec {
        program: plan.command.clone().into(),
        args: plan.args.iter().map(Into::into).collect(),
        env: plan.env.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        cwd: plan.cwd.clone(),
    };
    let child = child::spawn(spec).await.map_err(|fault| {
        Failure::new(Kind::Unavailable, format!("cannot start {:?}: {fault}", plan.command))
    })?;
    let link = link(backends, entry, session);
    let over = Rc::new(Event::new());
    rt::spawn("child writer", link.clone().write(child.stdin));
    rt::spawn("child reader", link.clone().read(child.stdout));
    rt::spawn("child stderr", stderr::drain(entry.plan.name.clone(), child.stderr, over.clone()));
    let handle = child.handle.clone();
    let life = Life::Child { handle: child.handle, over };
    let mut newborn = Newborn { link, life, init: Vec::new(), era: Era::Session };
    let link = newborn.link.clone();
    let greeting = Box::pin(async {
        let (era, init) = era::greet(backends, entry, &link, how, session, probing).await?;
        if era == Era::Session {
            link.can.set(Can::of(&init));
            let channel = Channel::Line(link.clone());
            wishes::restore(backends, entry, session, &channel).await;
        }
        Ok((era, init))
    });
    // A child that exits is seen at once even if a grandchild keeps its pipes open.
    let greeted = match race(greeting, handle.exited()).await {
        Either::Left(greeted) => greeted,
        Either::Right(_) => Err(newborn.end(entry).await),
    };
    match greeted {
        Ok((era, init)) => {
            (newborn.era, newborn.init) = (era, init);
            Ok(newborn)
        }
        Err(fault) => {
            // If it ended by itself, how it ended says more than that it is gone.
            let fault = match newborn.end(entry).await {
                end if fault.kind == Kind::Lost => end,
                _ => fault,
            };
            Err(fault)
        }
    }
}

/// A link that tells the rest of this worker, and the client of its session, what it hears.
pub(super) fn link(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: Option<&Arc<SessionRecord>>,
) -> Rc<Link> {
    let hearing =
        Hearing { backends: backends.clone(), entry: entry.clone(), session: session.cloned() };
    Link::new(entry.plan.name.clone(), Box::new(hearing), Instant::now())
}

impl Newborn {
    /// Waits until it has ended or is broken.
    pub(super) async fn gone(&self) {
        match &self.life {
            Life::Child { handle, .. } => drop(race(self.link.closed(), handle.exited()).await),
            Life::Stream(_) => self.link.closed().await,
        }
    }

    /// Clears away one that has ended or is broken; says why.
    pub(super) async fn end(&self, entry: &Entry) -> Failure {
        let (handle, over) = match &self.life {
            Life::Child { handle, over } => (handle, over),
            Life::Stream(hangup) => {
                hangup.now();
                return self.link.failure();
            }
        };
        // What it wrote before it exited is still in the pipe.
        let _ = rt::time::timeout(limits::CHILD_LAST_WORDS, self.link.closed()).await;
        // One that closed its output is mostly about to exit, and its status says why.
        let _ = rt::time::timeout(limits::CHILD_LAST_WORDS, handle.exited()).await;
        let status = handle.status();
        let mut failure = match &status {
            Some(status) => Failure::new(Kind::Lost, format!("the child ended: {status}")),
            None => self.link.failure(),
        };
        self.link.close(failure.clone());
        kill(entry, handle, over).await;
        if status.is_none() {
            failure.kind = Kind::Lost;
        }
        failure
    }

    /// Stops one that is well: it may finish what it has begun.
    pub(super) async fn stop(&self, entry: &Entry) {
        self.link.finish();
        let (handle, over) = match &self.life {
            Life::Child { handle, over } => (handle, over),
            // Nobody waits for anything on it any more.
            Life::Stream(hangup) => return hangup.now(),
        };
        // A proxy that has to be gone soon leaves half of what is left for either.
        let patience = entry.left(2, limits::CHILD_TERM_AFTER);
        if rt::time::timeout(patience, handle.exited()).await.is_err() {
            handle.signal_group(libc::SIGTERM);
            let patience = entry.left(1, limits::CHILD_KILL_AFTER);
            if rt::time::timeout(patience, handle.exited()).await.is_err() {
                let waited = patience.as_secs_f64();
                tracing::warn!(backend = entry.name(), waited, "child outlasts SIGTERM: killed");
            }
        }
        let _ = rt::time::timeout(limits::CHILD_LAST_WORDS, self.link.closed()).await;
        self.link.close(Failure::new(Kind::Lost, "the child was stopped"));
        kill(entry, handle, over).await;
    }
}

async fn kill(entry: &Entry, handle: &Handle, over: &Rc<Event>) {
    handle.signal_group(libc::SIGKILL);
    if rt::time::timeout(limits::CHILD_KILL_AFTER, handle.exited()).await.is_err() {
        tracing::error!(backend = entry.name(), pid = handle.pid(), "child cannot be killed");
    }
    // Its last words are read to the end, unless somebody outside its group holds the pipe.
    let over = over.clone();
    rt::spawn("child stderr end", async move {
        rt::time::sleep(limits::CHILD_STDERR_END).await;
        over.set();
    });
}
