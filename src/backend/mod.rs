//! Owns: backends as a worker sees them: calling them, keeping them alive.
//! Never: client connections; JSON-RPC semantics beyond id, method and progress token.
//! Next: `entry`, what a worker holds of one.
//!
//! Each backend has one owner worker, whose supervisor keeps it up, reads its lists and mails them
//! to all. A child belongs to its owner, and other workers mail it whole messages. A backend over
//! HTTP is called by every worker on connections of its own; only sessions with it are opened in
//! one place: a client session's by the worker that owns that session, the proxy's own by the
//! backend's owner.

pub mod frame;
pub mod health;

mod address;
mod around;
mod aside;
mod asks;
mod attempt;
mod bell;
mod bridge;
mod endpoint;
mod entry;
mod era;
mod failure;
mod flight;
mod handle;
mod hear;
mod hearing;
mod http;
mod judge;
mod leg;
mod line;
mod link;
mod listen;
mod listeners;
mod listing;
mod mail;
mod modern;
mod names;
mod own;
mod parking;
mod pool;
mod relay;
mod reload;
mod replies;
mod resume;
mod rounds;
mod shelf;
mod spoilt;
mod sse;
mod stand_in;
mod stderr;
mod stdio;
mod subscribed;
mod supervise;
#[cfg(test)]
mod tests;
mod trail;
mod views;
mod wishes;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::{AHashMap, AHashSet};

pub use asks::Word;
pub use failure::Failure;
pub use flight::{Fault, FlightMail, Landed, Lead, Sent};
pub use handle::{CallHandle, Item};
pub use hear::{Agreed, Heard, Subscription, TaskName, Wanted};
pub use leg::Leg;
pub use link::Behind;
pub use listing::Viewer;
pub use mail::BackendMail;
pub use modern::Caller;
pub use parking::{Attended, Claim, Piece, Seal};
pub use reload::Staged;
pub use replies::{Replies, Reply};
pub use shelf::Kept as KeptAnswer;
pub use stand_in::{Prepare, Prepared};
pub use trail::{AttemptSpan, Past, Share, Traced, Trail};
pub use views::{Seen, Whose};

use crate::error::{Error, Kind, Result};
use crate::jsonrpc::Span;
use crate::limits;
use crate::mcp::capable;
use crate::mcp::catalog::{Changes, List, ListKind, Slice};
use crate::mcp::revision::Era;
use crate::mcp::session::{SessionId, SessionRecord};
use crate::middleware::reuse::{Held, Reusable, Use};
use crate::plan::{BackendId, Isolation, Plan, TransportPlan, WorkerId};
use crate::rt;
use crate::rt::local::{Event, OneSender, Sender};
use entry::Entry;
use handle::{Clock, Stop};
use health::{Board, State};
use replies::{Attempt, Kept, Wire};

/// How a worker sends mail to another; full boxes give the mail back.
pub type Post = Rc<dyn Fn(WorkerId, BackendMail) -> std::result::Result<(), BackendMail>>;

/// What is done on this worker when a backend's lists changed; `None` = they are withdrawn.
pub type OnSlice = Box<dyn Fn(BackendId, Option<Arc<Slice>>)>;

/// The way from backends to clients, beside answers.
pub trait Clients {
    /// Tells a message to the client of a session, on the stream on which it listens, or on one to
    /// which it may come back.
    fn tell(&self, session: SessionId, message: Vec<u8>);
    /// Asks the client of a session that this worker owns; false if it does not listen just now.
    fn ask(&self, session: SessionId, message: Vec<u8>) -> bool;
    /// A backend said in a session that its lists changed: its client is told after `pause` at the
    /// latest, unless it is told before that they changed for all.
    fn lists_changed(&self, session: SessionId, changes: Changes, pause: Duration);
    /// Lists may have changed for all sessions that may see others than the proxy.
    fn views_changed(&self, changes: Changes);
}

/// A request for a backend.
pub struct Call {
    /// Which one.
    pub backend: BackendId,
    /// The client's session, if it has one.
    pub session: Option<Arc<SessionRecord>>,
    /// Whether it is `tools/call`.
    pub tool_call: bool,
    /// Whether it may be repeated when it is unknown whether it was executed.
    pub safe: bool,
    /// The JSON-RPC request, scanned and found well-formed; the backend's own name is in place, the
    /// client's id and progress token are still in it.
    pub body: Vec<u8>,
    /// Where its id stands.
    pub id: Span,
    /// Where its progress token stands.
    pub progress_token: Option<Span>,
    /// From now to the last byte of its answer; with rows around the call, of one attempt.
    pub timeout: Duration,
    /// The tool's own name, where something stands around the calls of the backend.
    pub tool: Option<String>,
    /// Who calls, if the request is one of the request era: it has no session then.
    pub modern: Option<Rc<Caller>>,
    /// It is not the first attempt: its id has been used in the client's own session before.
    pub again: bool,
    /// To cancel it with; made for this call alone.
    pub handle: Rc<CallHandle>,
}

/// The backends of one worker.
pub struct Backends {
    me: WorkerId,
    workers: usize,
    /// The settings in force.
    plan: RefCell<Arc<Plan>>,
    post: Post,
    board: Arc<Board>,
    on_slice: OnSlice,
    /// Those of the plan, those that are to come with the next one, and those that leave.
    table: reload::Table,
    clock: Rc<Clock>,
    /// Numbers for requests; see [`Backends::number`].
    serial: Cell<u64>,
    /// See [`Backends::chance`].
    dice: Cell<u64>,
    /// Backend sessions of callers that have none.
    bridges: bridge::Bridges,
    /// Callers without sessions that listen at backends with sessions.
    listeners: listeners::Listeners,
    /// Calls of this worker at children of other workers.
    away: RefCell<AHashMap<u64, Rc<CallHandle>>>,
    /// Requests of backends that wait here for an answer of a client.
    asks: asks::Asks,
    /// Calls whose callers are asked by a result.
    parking: parking::Parking,
    /// Set once, before anything is called.
    clients: OnceCell<Box<dyn Clients>>,
    /// Sessions of this worker whose client has an event stream open, or stands for callers that can
    /// be asked something.
    attended: RefCell<AHashSet<SessionId>>,
    /// Counts all changes of what other than the proxy see.
    views_version: Cell<u64>,
    /// Requests of other workers that wait here for their child to start.
    parked: RefCell<AHashSet<u64>>,
    /// Calls that run here for several callers, by what makes them the same.
    flights: RefCell<AHashMap<Arc<[u8]>, Rc<flight::Flight>>>,
    /// Calls of this worker that wait for such a one.
    seats: RefCell<AHashMap<u64, Sender<flight::News>>>,
    /// Mail that must not be lost and found a full box. Bounded by the calls in flight.
    backlog: RefCell<VecDeque<(WorkerId, BackendMail)>>,
    /// What other workers were asked.
    asked: RefCell<AHashMap<u64, OneSender<wishes::Wished>>>,
    /// The end has begun.
    stopping: Event,
    /// See [`Backends::end_by`].
    end_by: Cell<Option<Instant>>,
    /// Supervisors and children of sessions that have not ended.
    running: Cell<usize>,
}

impl Backends {
    /// The backends of worker `me`. Nothing happens before [`Backends::start`].
    pub fn new(
        me: WorkerId,
        plan: &Arc<Plan>,
        post: Post,
        board: Arc<Board>,
        on_slice: OnSlice,
    ) -> Rc<Backends> {
        Rc::new(Backends {
            me,
            workers: plan.workers,
            plan: RefCell::new(plan.clone()),
            post,
            board,
            on_slice,
            table: reload::Table::new(plan),
            clock: Clock::new(Instant::now()),
            serial: Cell::new(0),
            dice: Cell::new(ahash::RandomState::new().hash_one(me)),
            bridges: bridge::Bridges::default(),
            listeners: listeners::Listeners::default(),
            away: RefCell::new(AHashMap::new()),
            asks: asks::Asks::default(),
            parking: parking::Parking::new(),
            clients: OnceCell::new(),
            attended: RefCell::default(),
            views_version: Cell::new(0),
            parked: RefCell::new(AHashSet::new()),
            flights: RefCell::default(),
            seats: RefCell::default(),
            backlog: RefCell::new(VecDeque::new()),
            asked: RefCell::default(),
            stopping: Event::new(),
            end_by: Cell::new(None),
            running: Cell::new(0),
        })
    }

    /// Whom to tell what backends say by themselves; nobody is told before it is called.
    pub fn hear(&self, clients: Box<dyn Clients>) {
        let _ = self.clients.set(clients);
    }

    /// Starts the supervisors of the backends that this worker owns, and its clock.
    pub fn start(self: &Rc<Self>) {
        rt::spawn("backend clock", self.clone().keep_time());
        for entry in &*self.entries() {
            if entry.owner == self.me {
                supervise::start(self, entry);
            }
        }
    }

    /// Sends a request, and returns when its answer has begun or, for a child, when it is sent.
    /// The request is repeated only where that is right (`attempt`). A drop abandons it.
    ///
    /// # Errors
    /// [`Kind::Unavailable`], [`Kind::Lost`], [`Kind::BadAnswer`], [`Kind::Timeout`],
    /// [`Kind::Busy`], [`Kind::Capacity`], [`Kind::Cancelled`]; the context names the backend.
    pub async fn call(self: &Rc<Self>, call: Call) -> Result<Replies> {
        if self.entry_of(call.backend)?.plan.around.is_empty() {
            let attempt = attempt::call(self, call).await;
            return attempt.map(|attempt| Replies::of(Kept::Plain(attempt)));
        }
        // In a box of its own: the place is not kept in every connection's task.
        Box::pin(around::call(self, call)).await.map(|run| Replies::of(Kept::Run(run)))
    }

    /// As [`Backends::call`], of a call whose answer may serve others; `lead` is done by the one of
    /// several that runs.
    ///
    /// # Errors
    /// As for [`Backends::call`].
    pub async fn call_reusing(
        self: &Rc<Self>,
        call: Call,
        reusable: Box<Reusable>,
        lead: Lead,
    ) -> Result<Replies> {
        flight::call(self, call, reusable, lead).await
    }

    /// The answer that is kept for such a call of a backend, if there is one.
    pub fn held(&self, backend: BackendId, reusable: &Reusable) -> Option<Held> {
        shelf::find(self, &*self.entry(backend)?, reusable)
    }

    /// The cache of a backend did this for a call.
    pub fn count_cache(&self, backend: BackendId, used: Use) {
        self.board.count_cache(self.me, backend, used);
    }

    /// The session that stands for a caller without one where what backends show depends on what
    /// their client can do; `None` = he sees what all see.
    pub fn viewer(self: &Rc<Self>, caller: &Caller) -> Option<Arc<SessionRecord>> {
        let depends = |entry: &Rc<Entry>| {
            entry.era.get() == Era::Session && entry.plan.isolation == Isolation::Session
        };
        if capable::class(&caller.capabilities).is_empty() || !self.entries().iter().any(depends) {
            return None;
        }
        bridge::stand_in(self, caller, None).ok().map(|in_use| in_use.record.clone())
    }

    /// A client session ended: what it had at backends ends. To be called on its owner; other
    /// workers notice by themselves.
    pub fn end_session(self: &Rc<Self>, session: &Arc<SessionRecord>) {
        asks::session_over(self, session.id);
        self.attended.borrow_mut().remove(&session.id);
        for entry in &*self.entries() {
            wishes::forget(self, entry, |other| other.id == session.id);
            entry.subscribed.forget(|other| other.id == session.id);
            views::end(entry, session.id);
            if let entry::Wire::Http(_) = &entry.wire {
                leg::end(self, entry, session.id);
            }
            entry.channels().end(session.id);
        }
    }

    /// A client said something about a request of a backend; `at` is where the number stands that
    /// the request had. What belongs to no open request of this session is dropped.
    pub fn said(self: &Rc<Self>, session: SessionId, word: Word, message: Vec<u8>, at: Span) {
        asks::said(self, session, word, message, at);
    }

    /// A request of a backend cannot be brought to a client: the backend is told.
    pub fn decline(self: &Rc<Self>, question: &[u8]) {
        if let Some(number) = asks::number_of(question) {
            asks::decline(self, number);
        }
    }

    /// A message for a session that stands for callers without one; false if it does not. Safe to call
    /// with any session.
    pub fn listener_hears(&self, session: SessionId, message: &[u8]) -> bool {
        self.listeners.hear(session, message)
    }

    /// Sends a notification of a client to all its backend sessions and children that are open.
    pub fn spread(self: &Rc<Self>, session: &Arc<SessionRecord>, message: Vec<u8>) {
        let owner = session.id.owner();
        if owner != self.me {
            return self.send(owner, BackendMail::Spread { session: session.clone(), message });
        }
        for entry in &*self.entries() {
            if let entry::Wire::Http(_) = &entry.wire
                && let Some(leg) = leg::known(entry, Some(session), None)
            {
                http::send(self, entry, &leg, message.clone());
            }
            if let Some(link) = entry.link(Some(session.id)) {
                link.tell(&message);
            }
        }
    }

    /// The client of a session that this worker owns has an event stream, or none any more: so its
    /// sessions with backends get streams, or lose them.
    pub fn attend(self: &Rc<Self>, session: &Arc<SessionRecord>, listens: bool) {
        session.set_listens(listens);
        listen::attended(self, session, listens);
    }

    /// What a session sees of a backend; `None`: it would have to be fetched.
    pub fn view_at_hand(&self, backend: BackendId, session: &SessionRecord) -> Option<Seen> {
        // Who has left shows nothing that is another one's business.
        let Some(entry) = self.entry(backend) else { return Some(Seen::Same) };
        match views::at_hand(&entry, session) {
            views::Hand::Seen(seen) => Some(seen),
            views::Hand::Failed | views::Hand::Missing => None,
        }
    }

    /// Begins to fetch what a session sees of a backend; see [`Backends::view`].
    pub fn want_view(self: &Rc<Self>, backend: BackendId, session: &Arc<SessionRecord>) {
        if let Some(entry) = self.entry(backend) {
            views::want(self, &entry, session);
        }
    }

    /// What a session sees of a backend, fetched if need be, within the backend's start-up
    /// deadline; `None`: it cannot be told. Safe to drop.
    pub async fn view(
        self: &Rc<Self>,
        backend: BackendId,
        session: &Arc<SessionRecord>,
    ) -> Option<Seen> {
        views::seen(self, &self.entry(backend)?, session).await
    }

    /// Grows whenever what a session sees may have changed on this worker.
    pub fn views_version(&self) -> u64 {
        self.views_version.get()
    }

    /// Whether a backend's first start has ended, well or not, or nothing waits for it.
    pub fn is_settled(&self, backend: BackendId) -> bool {
        let entry = self.entry(backend);
        entry.is_none_or(|entry| entry.settled.is_set() || !entry.is_awaited.get())
    }

    /// Waits until a backend's first start has ended, well or not. Safe to drop.
    pub async fn settled_one(&self, backend: BackendId) {
        if let Some(entry) = self.entry(backend) {
            entry.settled.wait().await;
        }
    }

    /// One list of a backend as a client sees it, read with what that client showed. A drop leaves
    /// nothing behind.
    ///
    /// # Errors
    /// It cannot be read now, which is logged.
    pub async fn list_of_client(
        self: &Rc<Self>,
        backend: BackendId,
        viewer: Viewer<'_>,
        kind: ListKind,
    ) -> Result<List> {
        let entry = self.entry_of(backend)?;
        listing::of_client(self, &entry, viewer, kind).await.map_err(|failure| {
            let (backend, list) = (entry.name(), kind.method());
            tracing::warn!(backend, list, %failure, "a client's own list is not read");
            failure.error(backend)
        })
    }

    /// Waits until the first start of every backend that the proxy began with has ended, well or not;
    /// each is bounded by its `startup_timeout`. Safe to drop.
    pub async fn settled(&self) {
        let awaited = |entry: &&Rc<Entry>| !entry.plan.unlisted && entry.is_awaited.get();
        for entry in self.entries().iter().filter(awaited) {
            entry.settled.wait().await;
            for failover in stand_in::awaited(self, entry) {
                failover.settled.wait().await;
            }
        }
    }

    /// Takes mail from the backends of another worker.
    pub fn on_mail(self: &Rc<Self>, from: WorkerId, mail: BackendMail) {
        // Mail for one that has left meanwhile is late; who waits for an answer to it gets one.
        let entry = |backend| self.entry(backend);
        match mail {
            BackendMail::Slice { backend, slice } => self.sliced(backend, slice),
            BackendMail::Era { backend, era } => {
                if let Some(entry) = entry(backend)
                    && entry.speaks(era)
                {
                    wishes::cross(self, &entry);
                }
            }
            BackendMail::Settled { backend } => {
                if let Some(entry) = entry(backend) {
                    entry.settled.set();
                }
            }
            BackendMail::Send { backend, session, id, body, span, token, behind } => {
                line::send_for(self, from, backend, session, id, body, span, token, behind);
            }
            BackendMail::Said { session, word, message, at } => {
                self.said(session, word, message, at);
            }
            BackendMail::Spread { session, message } => self.spread(&session, message),
            BackendMail::View { backend, session, whose, changes } => match entry(backend) {
                Some(entry) => views::ask_for(self, from, entry, session, whose, changes),
                None => self.send(from, BackendMail::Viewed { backend, whose, seen: None }),
            },
            BackendMail::Viewed { backend, whose, seen } => {
                if let Some(entry) = entry(backend) {
                    views::told(self, &entry, &whose, seen);
                }
            }
            BackendMail::Again { backend } => self.listeners.again(backend, None),
            BackendMail::Outdated { backend, flags } => {
                if let Some(entry) = entry(backend) {
                    views::drop_all(self, &entry, flags);
                }
            }
            BackendMail::Carry { id, item } => {
                let handle = match item {
                    Item::Notification(_) | Item::Ask(_) | Item::Settled => {
                        self.away.borrow().get(&id).cloned()
                    }
                    Item::Answer(_) | Item::Failed(_) => self.away.borrow_mut().remove(&id),
                };
                if let Some(handle) = handle {
                    handle.deliver(item);
                }
            }
            BackendMail::Cancel { backend, session, id, reason } => {
                if let Some(link) = entry(backend).and_then(|entry| entry.link(session)) {
                    link.cancel(id, reason.as_deref());
                }
            }
            BackendMail::Forget { backend, session, id } => {
                self.parked.borrow_mut().remove(&id);
                if let Some(link) = entry(backend).and_then(|entry| entry.link(session)) {
                    link.forget(id);
                }
            }
            BackendMail::Ask { backend, session, lost } => {
                leg::ask_for(self, from, backend, session, lost);
            }
            BackendMail::Told { backend, session, leg } => {
                if let Some(entry) = entry(backend) {
                    leg::told(self, &entry, session, leg);
                }
            }
            BackendMail::Resume { token, claim } => parking::resumed(self, from, token, *claim),
            BackendMail::Piece { token, piece } => parking::came(self, token, piece),
            BackendMail::Leave { token } => parking::leave(self, token),
            BackendMail::Place { backend } => {
                if let Some(entry) = entry(backend) {
                    around::place_came(self, &entry);
                }
            }
            BackendMail::Level { session, token } => self.level_for(from, session, token),
            BackendMail::Wish { backend, session, uri, params, on, token } => {
                self.wish_for(from, backend, session, uri, params, on, token);
            }
            BackendMail::Wished { token, outcome } => self.wished(token, outcome),
            BackendMail::Tasks { backend, session, created, token } => {
                let ids = entry(backend).map(|entry| entry.wishes.tasks(&session, created));
                let outcome = match ids {
                    Some(ids) => Ok(serde_json::to_vec(&ids).unwrap_or_default()),
                    None => Err(Failure::left()),
                };
                self.send(from, BackendMail::Wished { token, outcome });
            }
            BackendMail::Heard { backend, message } => {
                if let Some(entry) = entry(backend) {
                    wishes::said_to_all(self, &entry, &message);
                }
            }
            BackendMail::Keep { backend, key, kept } => {
                if let Some(entry) = entry(backend) {
                    shelf::came(self, &entry, key, *kept);
                }
            }
            BackendMail::Flight(mail) => flight::receive(self, from, *mail),
            BackendMail::Spoken { backend, sse } => {
                if let Some(entry) = entry(backend) {
                    self.spoken(&entry, sse);
                }
            }
            BackendMail::Hint { backend, flags } => {
                if let Some(entry) = entry(backend) {
                    entry.bell.ring(flags);
                }
            }
        }
    }

    /// A backend offers something else now.
    fn sliced(&self, backend: BackendId, slice: Option<Arc<Slice>>) {
        let Some(entry) = self.entry(backend) else { return };
        entry.slice.borrow_mut().clone_from(&slice);
        (self.on_slice)(backend, slice.or_else(|| stand_in::offered(self, &entry)));
        stand_in::changed(self, &entry);
    }

    /// The proxy ends, and has to be gone by then: no child is given longer to end.
    pub fn end_by(&self, deadline: Instant) {
        self.end_by.set(Some(deadline));
        for entry in &*self.entries() {
            entry.end_by.set(Some(deadline));
        }
    }

    /// Lets children end that nobody calls any more, while others finish their calls: they have the
    /// time then that they need. To be called again and again once no requests come in.
    pub fn part(&self) {
        let now = Instant::now();
        for entry in &*self.entries() {
            if let entry::Wire::Stdio(channels) = &entry.wire
                && !entry.closing.is_set()
                && entry.in_flight.get() == 0
                && channels.are_left(now)
            {
                self.let_go(entry);
            }
        }
    }

    /// Begins the end of a backend here.
    fn let_go(&self, entry: &Entry) {
        entry.closing.set();
        entry.bell.ring(supervise::STOP);
        entry.channels().end_all();
    }

    /// Ends everything: children are stopped and reaped, sessions ended, connections closed. Calls
    /// still in flight fail. Returns when that is done, at the latest after the time that a child
    /// is given to end.
    pub async fn stop(self: &Rc<Self>) {
        self.stopping.set();
        parking::sweep(self, true);
        let entries = self.entries();
        for entry in &*entries {
            self.let_go(entry);
        }
        let now = Instant::now();
        let patience = limits::CHILD_TERM_AFTER + limits::CHILD_KILL_AFTER + Duration::from_secs(2);
        let mut end = now + patience;
        // Children that are killed when the time is over are still to be reaped.
        if let Some(by) = self.end_by.get() {
            end = end.min(by.max(now) + limits::REAP_TIMEOUT);
        }
        let limit = limits::SESSION_ENDS_WAIT.min(end - now);
        leg::end_all(self, &entries, limit).await;
        while self.running.get() > 0 && Instant::now() < end {
            rt::time::sleep(Duration::from_millis(5)).await;
        }
        for entry in &*entries {
            if let entry::Wire::Http(http) = &entry.wire {
                http.pool.clear();
            }
        }
    }

    /// Deadlines, idle connections, ended sessions, mail that waits for room.
    async fn keep_time(self: Rc<Self>) {
        let mut swept = Instant::now();
        while !self.stopping.is_set() || self.running.get() > 0 {
            self.clock.pause(limits::SWEEP_INTERVAL).await;
            let now = Instant::now();
            self.clock.tick(now);
            self.flush();
            if now.duration_since(swept) >= limits::SWEEP_INTERVAL {
                swept = now;
                self.sweep(now);
            }
        }
    }

    fn sweep(self: &Rc<Self>, now: Instant) {
        bridge::sweep(self, now);
        asks::sweep(self, now);
        parking::sweep(self, false);
        for entry in &*self.entries() {
            if entry.owner == self.me && !entry.supervised.get() && entry.is_kept_up() {
                tracing::error!(backend = entry.name(), "its supervisor ended: started anew");
                supervise::start(self, entry);
            }
            wishes::forget(self, entry, SessionRecord::ended);
            entry.subscribed.forget(SessionRecord::ended);
            shelf::sweep(self, entry);
            match (&entry.wire, &entry.plan.transport) {
                (entry::Wire::Http(http), TransportPlan::Http(plan)) => {
                    http.pool.reap(now, plan.idle);
                    self.board.set_idle(self.me, entry.id, http.pool.len());
                    leg::sweep(self, entry);
                    http.channels.sweep(now, plan.sse.idle_stop, &entry.wishes);
                }
                (entry::Wire::Stdio(stdio), TransportPlan::Stdio(plan)) => {
                    stdio.sweep(now, plan.idle_stop, &entry.wishes);
                }
                _ => {}
            }
        }
    }

    /// Time since a moment that is the same for all workers.
    pub fn elapsed(&self) -> Duration {
        self.board.elapsed()
    }

    /// Any number, for pauses that must not be the same everywhere (SplitMix64; not for secrets).
    fn chance(&self) -> u64 {
        let state = self.dice.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.dice.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number that no other request on any shared channel has: workers take turns. Numbers stay
    /// small, since some servers read ids into 32 bits.
    fn number(&self) -> u64 {
        let serial = self.serial.get() + 1;
        self.serial.set(serial);
        serial * self.workers as u64 + self.me as u64
    }

    /// Mail that may be lost when the box is full.
    fn try_send(&self, to: WorkerId, mail: BackendMail) -> std::result::Result<(), BackendMail> {
        if self.backlog.borrow().is_empty() { (self.post)(to, mail) } else { Err(mail) }
    }

    /// Mail that must arrive: kept until there is room.
    fn send(&self, to: WorkerId, mail: BackendMail) {
        if let Err(mail) = self.try_send(to, mail) {
            self.backlog.borrow_mut().push_back((to, mail));
        }
    }

    fn flush(&self) {
        let waiting = self.backlog.borrow().len();
        for _ in 0..waiting {
            let Some((to, mail)) = self.backlog.borrow_mut().pop_front() else { return };
            if let Err(mail) = (self.post)(to, mail) {
                self.backlog.borrow_mut().push_front((to, mail));
                return;
            }
        }
    }

    /// To all other workers.
    fn broadcast(&self, mail: impl Fn() -> BackendMail) {
        for worker in (0..self.workers).filter(|worker| *worker != self.me) {
            self.send(worker, mail());
        }
    }

    /// A backend over HTTP is spoken to in this way from now on; true if it was not before.
    fn spoken(&self, entry: &Entry, sse: bool) -> bool {
        let entry::Wire::Http(http) = &entry.wire else { return false };
        let changed = http.is_sse.replace(sse) != sse;
        if changed && !sse {
            http.channels.end_all();
        }
        changed
    }

    /// A backend says that lists changed: what is kept of it is old, and its supervisor looks.
    fn changed(&self, entry: &Entry, flags: u32) {
        let about = |flag| flags & flag != 0;
        let (tools, resources) = (about(relay::changed::TOOLS), about(relay::changed::RESOURCES));
        self.board.outdate(entry.id, tools, resources);
        self.hint(entry, flags);
    }

    /// The same, said in the session of a client, or in one that all share.
    fn changed_in(&self, entry: &Entry, session: Option<&SessionRecord>, flags: u32) {
        self.changed(entry, flags);
        let Some(session) = session else { return };
        session.lists_changed(entry.id);
        if let Some(clients) = self.clients.get() {
            // What a backend shows to its clients' tokens alone nobody reads for all.
            let pause = match entry.plan.forwards() {
                true => limits::LIST_CHANGE_PAUSE,
                false => limits::LIST_CHANGE_WAIT,
            };
            clients.lists_changed(session.id, relay::changes(flags), pause);
        }
    }

    /// Wakes a backend's supervisor, wherever it is.
    fn hint(&self, entry: &Entry, flags: u32) {
        if entry.owner == self.me {
            entry.bell.ring(flags);
        } else {
            // The next call brings the next hint.
            let _ = self.try_send(entry.owner, BackendMail::Hint { backend: entry.id, flags });
        }
    }

    /// A backend answered something.
    fn succeeded(&self, entry: &Entry) {
        self.board.succeeded(self.me, entry.id, self.clock.now());
        if self.board.state(entry.id) != State::Up && entry.settled.is_set() {
            self.hint(entry, supervise::SUCCEEDED);
        }
    }

    /// A call failed in a way that says something about the backend.
    fn failed(&self, entry: &Entry, kind: Kind) {
        let telling = matches!(kind, Kind::Unavailable | Kind::Lost | Kind::Timeout);
        if telling && self.board.state(entry.id) == State::Up {
            self.hint(entry, supervise::FAILED);
        }
    }

    fn is_down(&self, entry: &Entry) -> bool {
        !matches!(self.board.state(entry.id), State::Up | State::Starting)
    }
}

/// The error of a call of a backend that is in no plan any more.
fn left() -> Error {
    Error::new(Kind::Unavailable).cause("it has left the configuration")
}

/// The error of a wait that was stopped.
fn stopped(stop: Stop, handle: &CallHandle, name: &str, limit: Duration) -> Error {
    if stop == Stop::Cancelled || handle.is_cancelled() {
        return Error::new(Kind::Cancelled).context(name.to_owned());
    }
    Error::new(Kind::Timeout).context(format!("{name} after {} s", limit.as_secs_f64()))
}
