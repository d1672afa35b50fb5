//! Owns: what the exchanges of one worker share: sessions, streams, calls in flight, the catalogue.
//! Never: I/O; anything another worker may touch, except through mail.
//! Next: `clients`.
//!
//! An exchange takes the [`World`] that is in force when it begins, and keeps it: one plan, with what
//! comes of it. What outlasts plans is in [`Lasting`], which all of them share.

mod clients;
mod ear;
mod streams;
mod tally;
pub mod tape;
mod view;

use std::cell::{Cell, OnceCell, RefCell};
use std::ops::Deref;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ahash::{AHashMap, RandomState};
use ring::rand::{SecureRandom, SystemRandom};

use crate::auth::desk::Desk;
use crate::backend::{Backends, CallHandle};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::mcp::catalog::{Catalog, Changes};
use crate::mcp::name::Names;
use crate::mcp::session::{SessionId, SessionRecord};
use crate::middleware::custom::Hooks;
use crate::plan::{BackendId, Plan, WorkerId};
use crate::rt;
use crate::rt::local::{Event, OneSender, Sender};
use crate::rt::outlet::Outlet;
use crate::telemetry::lines::Line;
use crate::telemetry::metrics::Meter;
use crate::telemetry::trace::Report;
use crate::telemetry::{Switch, desk};
use streams::Streams;
pub use streams::{Answering, Reader, StreamMail};
pub use tally::Tally;

pub use ear::OpenEar;

/// What a worker tells another one about client sessions.
#[derive(Debug)]
pub enum SessionMail {
    /// To the owner: who is this? Answered with `Told`.
    Ask {
        /// The session in question.
        id: SessionId,
        /// Comes back with the answer.
        token: u64,
    },
    /// To the asker.
    Told {
        /// The token of the question.
        token: u64,
        /// `None`: there is no such session.
        record: Option<Arc<SessionRecord>>,
    },
    /// To all: the caller of this request wants it no more.
    Cancel {
        /// Whose request.
        session: SessionId,
        /// Its id as it was sent.
        id: Box<[u8]>,
        /// The client's words.
        reason: Option<String>,
    },
    /// Which sessions are yours? Answered with `Roll`.
    RollCall {
        /// Comes back with the answer.
        token: u64,
    },
    /// To the asker: these.
    Roll {
        /// The token of the question.
        token: u64,
        /// All of them.
        records: Vec<Arc<SessionRecord>>,
    },
    /// About event streams.
    Stream(StreamMail),
    /// To the owner: the client deleted this session.
    Delete {
        /// Which one.
        id: SessionId,
    },
    /// From the owner to all: a session ended; forget what you know of it.
    Ended {
        /// Which one.
        record: Arc<SessionRecord>,
    },
}

/// What its owner knows of a session id.
type Known = Option<Arc<SessionRecord>>;
/// Sends mail to another worker; gives it back when the box is full.
pub type SessionPost = Rc<dyn Fn(WorkerId, SessionMail) -> std::result::Result<(), SessionMail>>;

/// Counts that must be exact over all workers.
#[derive(Debug, Default)]
pub struct Counts {
    /// Client sessions alive.
    pub sessions: AtomicUsize,
    /// Client connections open.
    pub connections: AtomicUsize,
    /// Event streams open.
    pub streams: AtomicUsize,
    /// Names and URIs that more than one backend has, as worker 0 sees them.
    pub conflicts: AtomicUsize,
    /// Reads whose URI the templates of more than one backend matched.
    pub contested_reads: Arc<AtomicU64>,
    /// Client sessions of each principal.
    pub principals: Tally,
}

/// A session of this worker.
struct Owned {
    record: Arc<SessionRecord>,
    /// Changes that found no stream to go to.
    pending: Changes,
    /// Changes that are told soon, with others; and when.
    soon: Option<(Changes, Instant)>,
}

/// A plan and what comes of it; see the head of this file.
pub struct World {
    /// The settings.
    pub plan: Arc<Plan>,
    /// Prefixes of the plan.
    pub names: Names,
    /// The one backend that clients see, if it is only one.
    pub only: Option<BackendId>,
    /// Whether a backend gets the Authorization of clients.
    pub forwards: bool,
    /// The merged lists.
    pub catalog: RefCell<Catalog>,
    /// Verified tokens, and lists cut to rights.
    pub desk: Desk,
    /// Where lines of logs go; `None` = nobody wants any.
    pub lines: Option<Rc<Outlet<Line>>>,
    /// Where spans go; `None` = nobody traces.
    pub spans: Option<Rc<Outlet<Box<Report>>>>,
    /// The tools of the proxy's own, as lists show them: name and entry. Made when first listed.
    pub own_tools: OnceCell<Box<[(String, String)]>>,
    /// The catalogues of sessions that see other lists than the proxy.
    views: view::Views,
    /// Set when another plan has other rules about who may call: who listens has to come again.
    pub dismissed: Event,
    lasting: Rc<Lasting>,
}

impl Deref for World {
    type Target = Lasting;

    fn deref(&self) -> &Lasting {
        &self.lasting
    }
}

/// What one worker keeps whatever the plan.
pub struct Lasting {
    /// Which worker this is.
    pub me: WorkerId,
    /// Of how many.
    pub workers: usize,
    /// The one in force.
    current: RefCell<Weak<World>>,
    /// The backends.
    pub backends: Rc<Backends>,
    /// Exact counts.
    pub counts: Arc<Counts>,
    /// Set once, when the worker is to end.
    pub draining: Rc<Event>,
    post: SessionPost,
    random: SystemRandom,
    hasher: RandomState,
    owned: RefCell<AHashMap<SessionId, Owned>>,
    known: RefCell<AHashMap<SessionId, Arc<SessionRecord>>>,
    asked: RefCell<AHashMap<u64, OneSender<Known>>>,
    streams: Streams,
    in_flight: RefCell<AHashMap<u64, (SessionId, Rc<CallHandle>)>>,
    ears: RefCell<AHashMap<u64, Rc<ear::Ear>>>,
    next_token: Cell<u64>,
    /// Roll calls under way, and who hears the answers.
    rolls: RefCell<AHashMap<u64, Sender<Vec<Arc<SessionRecord>>>>>,
    /// Questions to the control plane under way.
    questions: RefCell<AHashMap<u64, OneSender<desk::Reply>>>,
    /// What is counted.
    pub meter: Meter,
    /// Where the control plane is asked.
    office: desk::Desk,
    /// The middleware of the program that embeds the proxy.
    pub custom: Option<Rc<dyn Hooks>>,
    /// Copies of calls that are under way.
    pub copies: Cell<usize>,
}

const TOOLS_CHANGED: &[u8] = br#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;
const RESOURCES_CHANGED: &[u8] =
    br#"{"jsonrpc":"2.0","method":"notifications/resources/list_changed"}"#;
const PROMPTS_CHANGED: &[u8] =
    br#"{"jsonrpc":"2.0","method":"notifications/prompts/list_changed"}"#;

impl Lasting {
    /// What worker `me` keeps; no world is in force yet.
    #[expect(clippy::too_many_arguments, reason = "each is made by who calls this, once")]
    pub fn new(
        me: WorkerId,
        workers: usize,
        backends: Rc<Backends>,
        counts: Arc<Counts>,
        post: SessionPost,
        meter: Meter,
        office: desk::Desk,
        custom: Option<Rc<dyn Hooks>>,
    ) -> Rc<Lasting> {
        Rc::new(Lasting {
            me,
            workers,
            current: RefCell::default(),
            backends,
            counts,
            draining: Rc::default(),
            post,
            random: SystemRandom::new(),
            hasher: RandomState::new(),
            owned: RefCell::default(),
            known: RefCell::default(),
            asked: RefCell::default(),
            streams: Streams::default(),
            in_flight: RefCell::default(),
            ears: RefCell::default(),
            next_token: Cell::new(1),
            rolls: RefCell::default(),
            questions: RefCell::default(),
            meter,
            office,
            custom,
            copies: Cell::new(0),
        })
    }

    /// The world in force; `None` once the worker has ended.
    pub fn current(&self) -> Option<Rc<World>> {
        self.current.borrow().upgrade()
    }
}

impl World {
    /// A world of a plan, in force from now on: whoever asks for the current one gets it. To be held
    /// by the worker. What goes out goes where it went `before`, unless `outlets` say otherwise.
    pub fn enter(
        lasting: &Rc<Lasting>,
        plan: Arc<Plan>,
        outlets: Switch,
        before: Option<&World>,
    ) -> Rc<World> {
        let lines = match outlets.lines {
            Some(lines) => lines.map(Rc::new),
            None => before.and_then(|before| before.lines.clone()),
        };
        let spans = match outlets.spans {
            Some(spans) => spans.map(Rc::new),
            None => before.and_then(|before| before.spans.clone()),
        };
        let mut catalog = Catalog::with(&plan, lasting.backends.offers());
        catalog.count_contested_reads(&lasting.counts.contested_reads);
        let world = Rc::new(World {
            names: Names::new(&plan),
            only: {
                let mut listed = plan.backends.iter().filter(|backend| !backend.unlisted);
                listed.next().map(|backend| backend.id).filter(|_| listed.next().is_none())
            },
            forwards: plan.backends.iter().any(|backend| backend.forwards()),
            plan,
            catalog: RefCell::new(catalog),
            desk: Desk::default(),
            lines,
            spans,
            own_tools: OnceCell::new(),
            views: view::Views::default(),
            dismissed: Event::new(),
            lasting: lasting.clone(),
        });
        *lasting.current.borrow_mut() = Rc::downgrade(&world);
        world
    }

    /// This one, or the one that is in force now: for what waits long and is to be told of the time
    /// at which it ends.
    pub fn latest(self: &Rc<World>) -> Rc<World> {
        self.lasting.current().unwrap_or_else(|| self.clone())
    }

    /// Tells backends again which log messages the sessions of this worker want.
    pub fn repeat_levels(&self) {
        let owned = self.owned.borrow();
        let records = owned.values().map(|owned| owned.record.clone());
        let records: Vec<_> = records.filter(|record| record.level().is_some()).collect();
        drop(owned);
        if !records.is_empty() {
            let backends = self.backends.clone();
            rt::spawn("levels", async move {
                for record in records {
                    backends.set_level(&record).await;
                }
            });
        }
    }

    /// What outlasts this plan.
    pub fn lasting(&self) -> &Rc<Lasting> {
        &self.lasting
    }

    fn token(&self) -> u64 {
        let token = self.next_token.get();
        self.next_token.set(token + 1);
        token
    }

    fn workers(&self) -> impl Iterator<Item = WorkerId> + use<> {
        let me = self.me;
        (0..self.workers).filter(move |worker| *worker != me)
    }

    // Sessions.

    /// Makes a session that this worker owns; fails when `proxy.max_sessions` are alive.
    pub fn open_session(
        &self,
        principal: Option<&Arc<str>>,
        make: impl FnOnce(SessionId) -> SessionRecord,
    ) -> Result<Arc<SessionRecord>> {
        let mut random = [0u8; 16];
        if self.random.fill(&mut random).is_err() {
            return Err(Error::new(Kind::Internal).cause("no random bytes"));
        }
        let max = self.plan.sessions_max;
        let taken =
            self.counts.sessions.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                (count < max).then_some(count + 1)
            });
        if taken.is_err() {
            return Err(Error::new(Kind::Capacity).context("too many sessions"));
        }
        if let Some(principal) = principal
            && !self.counts.principals.enter(principal, limits::SESSIONS_PER_PRINCIPAL_MAX)
        {
            self.counts.sessions.fetch_sub(1, Ordering::AcqRel);
            return Err(Error::new(Kind::Capacity).context("too many sessions of one principal"));
        }
        let record = Arc::new(make(SessionId::mint(self.me, random)));
        let owned = Owned { record: record.clone(), pending: Changes::default(), soon: None };
        self.owned.borrow_mut().insert(record.id, owned);
        Ok(record)
    }

    /// Finds a session; on a miss its owner is asked once.
    ///
    /// # Errors
    /// `SessionNotFound`; `Capacity` when the owner cannot be asked.
    pub async fn session(&self, id: SessionId) -> Result<Arc<SessionRecord>> {
        let missing = || Error::new(Kind::SessionNotFound);
        if id.owner() == self.me {
            let record = self.owned.borrow().get(&id).map(|owned| owned.record.clone());
            // Deleted by way of another worker, whose mail has not come yet.
            return record.filter(|record| !record.ended()).ok_or_else(missing);
        }
        if id.owner() >= self.workers {
            return Err(missing());
        }
        if let Some(record) = self.known.borrow().get(&id)
            && !record.ended()
        {
            return Ok(record.clone());
        }
        let (sender, receiver) = rt::local::oneshot();
        let token = self.token();
        self.asked.borrow_mut().insert(token, sender);
        let busy = || Error::new(Kind::Capacity);
        if (self.post)(id.owner(), SessionMail::Ask { id, token }).is_err() {
            self.asked.borrow_mut().remove(&token);
            return Err(busy());
        }
        let told = rt::time::timeout(limits::WORKER_ANSWER_WAIT, receiver).await;
        self.asked.borrow_mut().remove(&token);
        match told {
            Ok(Some(Some(record))) if !record.ended() => {
                self.known.borrow_mut().insert(id, record.clone());
                Ok(record)
            }
            Ok(_) => Err(missing()),
            Err(_) => Err(busy()),
        }
    }

    /// Ends a session on behalf of its client, from any worker: it is gone at once.
    pub fn delete_session(&self, record: &Arc<SessionRecord>) {
        let id = record.id;
        record.end();
        if id.owner() == self.me {
            self.end_owned(id);
        } else if (self.post)(id.owner(), SessionMail::Delete { id }).is_err() {
            // The owner's sweep finds the mark.
            tracing::debug!(?id, "the owner's box is full; its sweep will end the session");
        }
    }

    fn end_owned(&self, id: SessionId) {
        let Some(owned) = self.owned.borrow_mut().remove(&id) else { return };
        owned.record.end();
        self.counts.sessions.fetch_sub(1, Ordering::AcqRel);
        if let Some(principal) = &owned.record.principal {
            self.counts.principals.leave(principal);
        }
        for worker in self.workers() {
            let _ = (self.post)(worker, SessionMail::Ended { record: owned.record.clone() });
        }
        self.session_over(&owned.record);
    }

    /// A session has ended: so does what it has on this worker.
    fn session_over(&self, record: &Arc<SessionRecord>) {
        self.end_streams_of(record.id);
        let calls: Vec<Rc<CallHandle>> = {
            let in_flight = self.in_flight.borrow();
            let its = in_flight.values().filter(|(session, _)| *session == record.id);
            its.map(|(_, handle)| handle.clone()).collect()
        };
        for call in calls {
            call.cancel(Some("the session has ended".to_owned()));
        }
        self.backends.end_session(record);
    }

    /// Ends sessions that nobody used for too long, and forgets ended ones of other workers.
    pub fn sweep(&self, now: Instant) {
        // A session with a call under way is in use, whichever worker has the call.
        for (session, _) in self.in_flight.borrow().values() {
            let known = self.known.borrow();
            let owned = self.owned.borrow();
            let record = owned.get(session).map(|owned| &owned.record);
            if let Some(record) = record.or_else(|| known.get(session)) {
                record.touch(now);
            }
        }
        let idle = self.plan.session_idle;
        let dead: Vec<SessionId> = self
            .owned
            .borrow()
            .values()
            .filter(|owned| {
                owned.record.ended()
                    || (owned.record.idle(now) > idle && !self.is_listened(owned.record.id))
            })
            .map(|owned| owned.record.id)
            .collect();
        for id in dead {
            self.end_owned(id);
        }
        let mut gone = Vec::new();
        self.known.borrow_mut().retain(|_, record| {
            let keep = !record.ended();
            if !keep {
                gone.push(record.clone());
            }
            keep
        });
        for record in gone {
            self.session_over(&record);
        }
        self.sweep_streams(now);
    }

    fn own_sessions(&self) -> Vec<Arc<SessionRecord>> {
        self.owned.borrow().values().map(|owned| owned.record.clone()).collect()
    }

    /// The sessions of all workers; those of a worker that does not answer are missing.
    pub async fn all_sessions(&self) -> Vec<Arc<SessionRecord>> {
        let mut all = self.own_sessions();
        let token = self.token();
        let (sender, mut answers) = rt::local::queue(self.workers);
        self.rolls.borrow_mut().insert(token, sender);
        let _asking = Asking { world: self, token };
        let asked = self
            .workers()
            .filter(|worker| (self.post)(*worker, SessionMail::RollCall { token }).is_ok());
        let gather = async {
            for _ in 0..asked.count() {
                all.extend(answers.recv().await.unwrap_or_default());
            }
        };
        let _ = rt::time::timeout(limits::WORKER_ANSWER_WAIT, gather).await;
        all.retain(|record| !record.ended());
        all
    }

    /// Random bytes, also for ids that must not collide; false if there are none.
    pub fn random(&self, bytes: &mut [u8]) -> bool {
        self.random.fill(bytes).is_ok()
    }

    // The control plane.

    /// Asks the control plane. A drop forgets the question.
    ///
    /// # Errors
    /// `Capacity`: there are too many questions, or no answer comes.
    pub async fn ask_control(&self, wanted: desk::Wanted) -> Result<desk::Reply> {
        let busy = || Error::new(Kind::Capacity).context("the control plane is busy");
        if self.questions.borrow().len() >= limits::QUESTIONS_MAX {
            return Err(busy());
        }
        let token = self.token();
        let (sender, answer) = rt::local::oneshot();
        self.questions.borrow_mut().insert(token, sender);
        let _asking = Asking { world: self, token };
        let question = desk::Question { worker: self.me, token, wanted };
        let told = match self.office.ask(question) {
            Ok(()) => rt::time::timeout(limits::DESK_PATIENCE, answer).await,
            Err(_) => Ok(None),
        };
        told.ok().flatten().ok_or_else(busy)
    }

    /// The control plane answers.
    pub fn told(&self, token: u64, reply: desk::Reply) {
        if let Some(sender) = self.questions.borrow_mut().remove(&token) {
            sender.send(reply);
        }
    }

    // Calls in flight: what a cancellation finds.

    fn call_key(&self, session: SessionId, id: &[u8]) -> u64 {
        self.hasher.hash_one((session, id))
    }

    /// Registers a call until the guard is dropped.
    pub fn enter_call(
        self: &Rc<World>,
        session: SessionId,
        id: &[u8],
        handle: Rc<CallHandle>,
    ) -> InFlight {
        let key = self.call_key(session, id);
        self.in_flight.borrow_mut().insert(key, (session, handle.clone()));
        InFlight { world: self.clone(), key, handle }
    }

    /// Cancels a request wherever it is being served.
    pub fn cancel(&self, session: SessionId, id: &[u8], reason: Option<String>) {
        if self.cancel_here(session, id, reason.clone()) {
            return;
        }
        for worker in self.workers() {
            let mail = SessionMail::Cancel { session, id: id.into(), reason: reason.clone() };
            let _ = (self.post)(worker, mail);
        }
    }

    fn cancel_here(&self, session: SessionId, id: &[u8], reason: Option<String>) -> bool {
        let key = self.call_key(session, id);
        let handle = match self.in_flight.borrow().get(&key) {
            Some((owner, handle)) if *owner == session => handle.clone(),
            _ => return false,
        };
        handle.cancel(reason);
        true
    }

    // Changes of lists.

    /// Tells every session of this worker that lists changed.
    pub fn announce(&self, changes: Changes) {
        self.announce_where(changes, |_| true);
    }

    fn announce_where(&self, changes: Changes, concerns: impl Fn(&SessionRecord) -> bool) {
        if !(changes.tools || changes.resources || changes.prompts) {
            return;
        }
        self.tell_ears(changes);
        let ids: Vec<SessionId> = {
            let owned = self.owned.borrow();
            let concerned = owned.values().filter(|owned| concerns(&owned.record));
            concerned.map(|owned| owned.record.id).collect()
        };
        for id in ids {
            self.announce_to(id, changes);
        }
    }

    /// Tells a session of this worker that lists changed, after a pause: together with what else comes
    /// until then, and not at all if it has been told meanwhile.
    fn announce_soon(self: &Rc<World>, id: SessionId, changes: Changes, pause: Duration) {
        let due = Instant::now() + pause;
        {
            let mut owned = self.owned.borrow_mut();
            let Some(owned) = owned.get_mut(&id) else { return };
            if let Some((soon, _)) = &mut owned.soon {
                soon.add(changes);
                return;
            }
            owned.soon = Some((changes, due));
        }
        let lasting = Rc::downgrade(&self.lasting);
        rt::spawn("list changes", async move {
            rt::time::sleep(pause).await;
            let world = lasting.upgrade().and_then(|lasting| lasting.current());
            let Some(world) = world else { return };
            let soon = world.owned.borrow().get(&id).and_then(|owned| owned.soon);
            if let Some((changes, _)) = soon.filter(|(_, of)| *of == due) {
                world.announce_to(id, changes);
            }
        });
    }

    fn announce_to(&self, id: SessionId, changes: Changes) {
        {
            let mut owned = self.owned.borrow_mut();
            let Some(owned) = owned.get_mut(&id) else { return };
            if let Some((soon, due)) = owned.soon.take() {
                let rest = soon.without(changes);
                owned.soon = (rest != Changes::default()).then_some((rest, due));
            }
        }
        let mut missed = Changes::default();
        let tell = |changed: bool, message: &'static [u8], missed: &mut bool| {
            if changed {
                // On a stream that nobody reads, it is told again to who opens a new one.
                *missed = self.say(id, message.into()) != Some(true);
            }
        };
        tell(changes.tools, TOOLS_CHANGED, &mut missed.tools);
        tell(changes.resources, RESOURCES_CHANGED, &mut missed.resources);
        tell(changes.prompts, PROMPTS_CHANGED, &mut missed.prompts);
        if let Some(owned) = self.owned.borrow_mut().get_mut(&id) {
            owned.pending.add(missed);
        }
    }

    /// Waits until no backend is in its first start any more, or that start's deadline passed:
    /// a list asked for in the first seconds is then as whole as it can be.
    pub async fn settled(&self) {
        self.backends.settled().await;
    }

    /// Whether [`World::settled`] would not wait.
    pub fn settled_now(&self) -> bool {
        let listed = self.plan.backends.iter().filter(|backend| !backend.unlisted);
        listed.map(|backend| backend.id).all(|backend| self.backends.is_settled(backend))
    }

    /// Takes one mail of another worker.
    pub fn receive(self: &Rc<World>, from: WorkerId, mail: SessionMail) {
        match mail {
            SessionMail::Ask { id, token } => {
                let record = self.owned.borrow().get(&id).map(|owned| owned.record.clone());
                let _ = (self.post)(from, SessionMail::Told { token, record });
            }
            SessionMail::Told { token, record } => {
                if let Some(sender) = self.asked.borrow_mut().remove(&token) {
                    sender.send(record);
                }
            }
            SessionMail::Cancel { session, id, reason } => {
                self.cancel_here(session, &id, reason);
            }
            SessionMail::RollCall { token } => {
                let records = self.own_sessions();
                let _ = (self.post)(from, SessionMail::Roll { token, records });
            }
            SessionMail::Roll { token, records } => {
                if let Some(sender) = self.rolls.borrow().get(&token) {
                    let _ = sender.try_send(records);
                }
            }
            SessionMail::Stream(mail) => self.on_stream_mail(from, mail),
            SessionMail::Delete { id } => self.end_owned(id),
            SessionMail::Ended { record } => {
                self.known.borrow_mut().remove(&record.id);
                self.session_over(&record);
            }
        }
    }
}

/// A question that waits for its answers; forgotten when dropped.
struct Asking<'w> {
    world: &'w World,
    token: u64,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.world.rolls.borrow_mut().remove(&self.token);
        self.world.questions.borrow_mut().remove(&self.token);
    }
}

/// A call that a cancellation can find; unregisters itself.
pub struct InFlight {
    world: Rc<World>,
    key: u64,
    handle: Rc<CallHandle>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut calls = self.world.in_flight.borrow_mut();
        // A client that reused the id while it was in flight has put another call here.
        if calls.get(&self.key).is_some_and(|(_, handle)| Rc::ptr_eq(handle, &self.handle)) {
            calls.remove(&self.key);
        }
    }
}
