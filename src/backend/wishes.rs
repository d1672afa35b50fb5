//! Owns: what sessions want of a backend beside calls: a log level, updates of resources.
//! Never: how they are told (`world`).
//! Next: `listen`, hearing what comes of it.
//!
//! A wish is kept where the channel that it concerns is opened: a client's own session or child by
//! the worker that owns the client's session, a shared one by the backend's owner. There it is told to
//! the backend again whenever that channel is opened anew. On a shared channel the wishes of all
//! become one: the most verbose level, and a subscription as long as anybody wants it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;

use super::entry::{Entry, Wire};
use super::failure::Failure;
use super::health::State;
use super::leg;
use super::own::{Channel, nothing, said};
use super::relay::{self, Word};
use super::stdio;
use super::subscribed;
use super::{BackendMail, Backends};
use crate::error::{Error, Kind, Result};
use crate::jsonrpc;
use crate::limits;
use crate::mcp::logging::Level;
use crate::mcp::revision::Era;
use crate::mcp::session::{SessionId, SessionRecord};
use crate::mcp::{note, tasks};
use crate::plan::{BackendId, Isolation, WorkerId};
use crate::rt;
use crate::rt::local::Event;

/// How often one that takes another one's place is looked at until it is up.
const HEIR_LOOK: Duration = Duration::from_millis(50);
/// So often it is asked, where it is not there or goes down before it has answered. The pauses between
/// double, and take 51 s together.
const HEIR_TRIES: u32 = 10;

/// The wishes of sessions at one backend, as far as they are kept on this worker.
#[derive(Default)]
pub(super) struct Wishes {
    /// Sessions that asked for a level, of a shared channel.
    levels: RefCell<AHashMap<SessionId, Arc<SessionRecord>>>,
    /// The level that the shared channel was told last.
    told: Cell<Option<Level>>,
    /// By channel: the session whose own it is, `None` = the shared one.
    subscriptions: RefCell<AHashMap<Option<SessionId>, Subscriptions>>,
    /// Tasks that were created on the shared channel, newest last, with whose they are.
    tasks: RefCell<VecDeque<(String, Arc<SessionRecord>)>>,
}

/// A subscription: whose, and the URI.
pub(super) type Held = (Arc<SessionRecord>, Box<str>);

/// By URI.
type Subscriptions = BTreeMap<Box<str>, Subscription>;

/// What another worker says that was asked: a raw answer, if it is of use.
pub(super) type Wished = std::result::Result<Vec<u8>, Failure>;

/// A resource of which somebody wants to hear.
#[derive(Default)]
struct Subscription {
    holders: Vec<Arc<SessionRecord>>,
    /// The backend is being asked; set when it has answered.
    asking: Option<Rc<Event>>,
}

/// What to do about a wish of one of many.
enum Step {
    /// Somebody else asks just now.
    Wait(Rc<Event>),
    /// The backend has to be asked.
    Ask(Rc<Event>),
    /// Nothing: it is as it is wanted.
    Done,
    /// The session has too many.
    Full,
}

impl Wishes {
    /// The most verbose level that anybody asked for.
    fn level(&self) -> Option<Level> {
        self.levels.borrow().values().filter_map(|session| session.level()).min()
    }

    /// Whether a session's own channel has subscriptions.
    pub(super) fn has_subscriptions(&self, session: SessionId) -> bool {
        self.subscriptions.borrow().get(&Some(session)).is_some_and(|all| !all.is_empty())
    }

    /// The URIs that a channel is subscribed to.
    fn uris(&self, key: Option<SessionId>) -> Vec<Box<str>> {
        let all = self.subscriptions.borrow();
        let held = all.get(&key).into_iter().flatten();
        held.filter(|(_, one)| one.asking.is_none()).map(|(uri, _)| uri.clone()).collect()
    }

    /// Forgets what is subscribed to and not just being asked: what, and by whom.
    fn take(&self) -> Vec<Held> {
        let held = self.held();
        self.subscriptions.borrow_mut().retain(|_, all| {
            all.retain(|_, one| one.asking.is_some());
            !all.is_empty()
        });
        held
    }

    /// What is subscribed to, and by whom.
    fn held(&self) -> Vec<Held> {
        let all = self.subscriptions.borrow();
        let each = all.values().flatten();
        each.flat_map(|(uri, one)| one.holders.iter().map(|session| (session.clone(), uri.clone())))
            .collect()
    }

    fn step(
        &self,
        key: Option<SessionId>,
        session: &Arc<SessionRecord>,
        uri: &str,
        on: bool,
    ) -> Step {
        let mut all = self.subscriptions.borrow_mut();
        let of_key = all.entry(key).or_default();
        let holds = |one: &Subscription| one.holders.iter().any(|other| other.id == session.id);
        let count = of_key.values().filter(|one| holds(one)).count();
        let known = of_key.get_mut(uri);
        if let Some(asking) = known.as_ref().and_then(|one| one.asking.clone()) {
            return Step::Wait(asking);
        }
        let asking = Rc::new(Event::new());
        match (known, on) {
            (Some(one), true) if key.is_some() || holds(one) => {
                one.asking = key.is_some().then(|| asking.clone());
                if key.is_some() { Step::Ask(asking) } else { Step::Done }
            }
            (_, true) if count >= limits::SUBSCRIPTIONS_PER_SESSION_MAX => Step::Full,
            (Some(one), true) => {
                one.holders.push(session.clone());
                Step::Done
            }
            (None, true) => {
                let holders = vec![session.clone()];
                let one = Subscription { holders, asking: Some(asking.clone()) };
                of_key.insert(uri.into(), one);
                Step::Ask(asking)
            }
            (Some(one), false) => {
                one.holders.retain(|other| other.id != session.id);
                if !one.holders.is_empty() {
                    return Step::Done;
                }
                one.asking = Some(asking.clone());
                Step::Ask(asking)
            }
            // The server of a session of its own says what it thinks of that.
            (None, false) if key.is_some() => {
                let one = Subscription { holders: Vec::new(), asking: Some(asking.clone()) };
                of_key.insert(uri.into(), one);
                Step::Ask(asking)
            }
            (None, false) => Step::Done,
        }
    }

    /// The backend was asked.
    fn settle(&self, key: Option<SessionId>, uri: &str, held: bool) {
        let mut all = self.subscriptions.borrow_mut();
        let Some(of_key) = all.get_mut(&key) else { return };
        let Some(one) = of_key.get_mut(uri) else { return };
        let asking = one.asking.take();
        if !held || one.holders.is_empty() {
            of_key.remove(uri);
        }
        if of_key.is_empty() {
            all.remove(&key);
        }
        if let Some(asking) = asking {
            asking.set();
        }
    }

    /// Sessions that want to hear of an update of `uri` that came on the shared channel: who
    /// subscribed to it or to what it is a part of.
    fn hearers(&self, uri: &str) -> Vec<Arc<SessionRecord>> {
        let all = self.subscriptions.borrow();
        let mut hearers: Vec<Arc<SessionRecord>> = Vec::new();
        for (held, one) in all.get(&None).into_iter().flatten() {
            if !is_part(uri, held) {
                continue;
            }
            for session in &one.holders {
                if !session.ended() && !hearers.iter().any(|other| other.id == session.id) {
                    hearers.push(session.clone());
                }
            }
        }
        hearers
    }

    /// The tasks of a session, with one that was just created.
    pub(super) fn tasks(
        &self,
        session: &Arc<SessionRecord>,
        created: Option<String>,
    ) -> Vec<String> {
        let mut tasks = self.tasks.borrow_mut();
        if let Some(created) = created.filter(|_| !session.ended()) {
            tasks.retain(|(task, _)| *task != created);
            if tasks.len() >= limits::TASKS_MAX {
                tasks.pop_front();
            }
            tasks.push_back((created, session.clone()));
        }
        let own = tasks.iter().filter(|(_, owner)| owner.id == session.id);
        own.map(|(task, _)| task.clone()).collect()
    }

    /// Whose task it is.
    fn owner_of_task(&self, task: &str) -> Option<Arc<SessionRecord>> {
        let tasks = self.tasks.borrow();
        tasks.iter().find(|(known, _)| known == task).map(|(_, owner)| owner.clone())
    }

    /// Forgets sessions that `ended` says have ended: URIs that nobody wants any more, and whether the
    /// level may be another one now.
    fn forget(&self, ended: impl Fn(&SessionRecord) -> bool) -> (Vec<Box<str>>, bool) {
        let mut levels = self.levels.borrow_mut();
        let before = levels.len();
        levels.retain(|_, session| !ended(session));
        let changed = levels.len() != before;
        self.tasks.borrow_mut().retain(|(_, owner)| !ended(owner));
        let mut unwanted = Vec::new();
        self.subscriptions.borrow_mut().retain(|key, all| {
            all.retain(|uri, one| {
                one.holders.retain(|session| !ended(session));
                let wanted = !one.holders.is_empty() || one.asking.is_some();
                if !wanted && key.is_none() {
                    unwanted.push(uri.clone());
                }
                wanted
            });
            !all.is_empty()
        });
        (unwanted, changed)
    }
}

/// Whether `uri` is `whole`, or lies below it (2025-11-25, Resources: an update may be of a
/// sub-resource of what was subscribed to).
pub(super) fn is_part(uri: &str, whole: &str) -> bool {
    uri.strip_prefix(whole).is_some_and(|rest| {
        rest.is_empty() || whole.ends_with('/') || rest.starts_with(['/', '?', '#'])
    })
}

pub(super) fn uri_params(uri: &str) -> Vec<u8> {
    let mut params = b"{\"uri\":".to_vec();
    jsonrpc::quote(uri, &mut params);
    params.push(b'}');
    params
}

fn level_params(level: Level) -> Vec<u8> {
    format!(r#"{{"level":"{}"}}"#, level.as_str()).into_bytes()
}

impl Backends {
    /// Makes the level that a session asked for known to its backends; returns when they have taken
    /// it, or after a short time. Safe to drop.
    pub async fn set_level(self: &Rc<Self>, session: &Arc<SessionRecord>) {
        let mut waits = Vec::new();
        for worker in (0..self.workers).filter(|worker| *worker != self.me) {
            let token = self.number();
            let mail = BackendMail::Level { session: session.clone(), token };
            waits.push(self.ask_worker(worker, token, mail));
        }
        let here = level_here(self.clone(), session.clone());
        let all = async {
            here.await;
            for wait in waits {
                wait.await;
            }
        };
        let _ = rt::time::timeout(limits::SIDE_MESSAGE_TIMEOUT, all).await;
    }

    /// Subscribes a session to a resource, or ends that: the raw answer of the backend, with some id.
    /// Safe to drop.
    ///
    /// # Errors
    /// As [`Backends::call`].
    pub async fn subscribe_session(
        self: &Rc<Self>,
        session: &Arc<SessionRecord>,
        backend: BackendId,
        uri: &str,
        params: &[u8],
        on: bool,
    ) -> Result<Vec<u8>> {
        let entry = self.entry_of(backend)?;
        let home = match entry.plan.isolation {
            Isolation::Shared if entry.era.get() != Era::Request => entry.owner,
            Isolation::Session | Isolation::Shared => session.id.owner(),
        };
        let limit = entry.plan.startup_timeout + entry.plan.request_timeout;
        let (session, uri, params) = (session.clone(), Box::from(uri), params.to_vec());
        let (sender, receiver) = rt::local::oneshot();
        if home == self.me {
            // In a task of its own: what was asked of the backend must be noted, whoever waits.
            let (backends, entry) = (self.clone(), entry.clone());
            rt::spawn("subscription", async move {
                sender.send(subscribe_here(&backends, &entry, &session, uri, &params, on).await);
            });
        } else {
            let token = self.number();
            let mail = BackendMail::Wish { backend, session, uri, params, on, token };
            let wait = self.ask_worker(home, token, mail);
            rt::spawn("subscription elsewhere", async move {
                if let Some(outcome) = wait.await {
                    sender.send(outcome);
                }
            });
        }
        match rt::time::timeout(limit, receiver).await {
            Ok(Some(outcome)) => outcome.map_err(|failure| failure.error(entry.name())),
            Ok(None) => Err(Error::new(Kind::Capacity)),
            Err(_) => Err(Error::new(Kind::Timeout).context(entry.name().to_owned())),
        }
    }

    /// The tasks that a session has at a backend that sessions share, with one that was just created;
    /// `None` where it has a session of its own, and so no other's tasks. Safe to drop.
    ///
    /// # Errors
    /// `Capacity`: the backend's owner cannot be asked.
    pub async fn tasks_of(
        self: &Rc<Self>,
        session: &Arc<SessionRecord>,
        backend: BackendId,
        created: Option<String>,
    ) -> Result<Option<Vec<String>>> {
        let entry = self.entry_of(backend)?;
        if entry.plan.isolation == Isolation::Session {
            return Ok(None);
        }
        if entry.owner == self.me {
            return Ok(Some(entry.wishes.tasks(session, created)));
        }
        let token = self.number();
        let mail = BackendMail::Tasks { backend, session: session.clone(), created, token };
        let wait = self.ask_worker(entry.owner, token, mail);
        match rt::time::timeout(limits::SIDE_MESSAGE_TIMEOUT, wait).await {
            Ok(Some(Ok(ids))) => Ok(serde_json::from_slice(&ids).ok()),
            _ => Err(Error::new(Kind::Capacity)),
        }
    }

    /// Asks another worker; `None` if it cannot be asked.
    fn ask_worker(
        self: &Rc<Self>,
        worker: WorkerId,
        token: u64,
        mail: BackendMail,
    ) -> impl Future<Output = Option<Wished>> + use<> {
        let (sender, receiver) = rt::local::oneshot();
        let asked = self.try_send(worker, mail).is_ok();
        if asked {
            let mut asked = self.asked.borrow_mut();
            // Who stopped waiting left its place behind.
            asked.retain(|_, sender| !sender.is_closed());
            asked.insert(token, sender);
        }
        async move { if asked { receiver.await } else { None } }
    }

    /// What another worker was asked is done.
    pub(super) fn wished(&self, token: u64, outcome: Wished) {
        let sender = self.asked.borrow_mut().remove(&token);
        if let Some(sender) = sender {
            sender.send(outcome);
        }
    }

    /// Another worker's session has set its level.
    pub(super) fn level_for(
        self: &Rc<Self>,
        from: WorkerId,
        session: Arc<SessionRecord>,
        token: u64,
    ) {
        let backends = self.clone();
        rt::spawn("level", async move {
            level_here(backends.clone(), session).await;
            backends.send(from, BackendMail::Wished { token, outcome: Ok(Vec::new()) });
        });
    }

    /// A session has a wish whose home is here.
    #[expect(clippy::too_many_arguments, reason = "the parts of one mail")]
    pub(super) fn wish_for(
        self: &Rc<Self>,
        from: WorkerId,
        backend: BackendId,
        session: Arc<SessionRecord>,
        uri: Box<str>,
        params: Vec<u8>,
        on: bool,
        token: u64,
    ) {
        let Some(entry) = self.entry(backend) else {
            return self.send(from, BackendMail::Wished { token, outcome: Err(Failure::left()) });
        };
        let backends = self.clone();
        rt::spawn("subscription for another worker", async move {
            let outcome = subscribe_here(&backends, &entry, &session, uri, &params, on).await;
            backends.send(from, BackendMail::Wished { token, outcome });
        });
    }

    /// Tells a message to the client of a session.
    pub(super) fn tell_client(&self, session: SessionId, message: Vec<u8>) {
        if let Some(clients) = self.clients.get() {
            clients.tell(session, message);
        }
    }

    /// Asks the client of a session of this worker; false if it does not listen.
    pub(super) fn ask_client(&self, session: SessionId, message: Vec<u8>) -> bool {
        self.clients.get().is_some_and(|clients| clients.ask(session, message))
    }
}

/// The channel, if it is open.
fn open(entry: &Entry, session: Option<&Arc<SessionRecord>>) -> Option<Channel> {
    match &entry.wire {
        Wire::Http(http) if !http.is_sse.get() => {
            leg::known(entry, session, None).map(Channel::Leg)
        }
        _ => entry.link(session.map(|session| session.id)).map(Channel::Line),
    }
}

/// A session has set its level: tells it to the channels that have their home here.
async fn level_here(backends: Rc<Backends>, session: Arc<SessionRecord>) {
    let mut waits = Vec::new();
    // One that is about to come may have its home here too.
    for entry in &backends.known() {
        let own = match entry.plan.isolation {
            Isolation::Session if session.id.owner() == backends.me => Some(session.clone()),
            Isolation::Shared if entry.owner == backends.me && !session.ended() => {
                entry.wishes.levels.borrow_mut().insert(session.id, session.clone());
                None
            }
            _ => continue,
        };
        let (sender, receiver) = rt::local::oneshot();
        let (backends, entry) = (backends.clone(), entry.clone());
        rt::spawn("level at a backend", async move {
            if let Some(channel) = open(&entry, own.as_ref()) {
                level_at(&backends, &entry, own.as_ref(), &channel).await;
            }
            sender.send(());
        });
        waits.push(receiver);
    }
    for wait in waits {
        wait.await;
    }
}

/// A caller without a session wants log messages: the session that stands for it asks for the most
/// verbose level that any such caller wanted. Returns when this backend has been told.
pub(super) async fn want_level(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: &Arc<SessionRecord>,
    level: Level,
) {
    if session.level().is_some_and(|known| known <= level) {
        return;
    }
    session.set_level(level);
    for other in &*backends.entries() {
        if other.plan.isolation != Isolation::Session || other.id == entry.id {
            continue;
        }
        let Some(channel) = open(other, Some(session)) else { continue };
        let (backends, other, session) = (backends.clone(), other.clone(), session.clone());
        rt::spawn("level at another backend", async move {
            level_at(&backends, &other, Some(&session), &channel).await;
        });
    }
    // One that is opened later is told then.
    if let Some(channel) = open(entry, Some(session)) {
        level_at(backends, entry, Some(session), &channel).await;
    }
}

/// Tells a channel the level that it should have, until it has it.
async fn level_at(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: Option<&Arc<SessionRecord>>,
    channel: &Channel,
) {
    if !channel.can().logging {
        return;
    }
    let wanted = || match session {
        Some(session) => session.level(),
        None => entry.wishes.level(),
    };
    let mut told = if session.is_none() { entry.wishes.told.get() } else { None };
    while let Some(level) = wanted().filter(|level| told != Some(*level)) {
        told = Some(level);
        if session.is_none() {
            entry.wishes.told.set(told);
        }
        ask(backends, entry, channel, "logging/setLevel", &level_params(level)).await;
    }
}

/// Asks and does not care what the answer is; false if there is none.
async fn ask(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    channel: &Channel,
    method: &str,
    params: &[u8],
) -> bool {
    let limit = limits::SIDE_MESSAGE_TIMEOUT;
    match channel.ask(backends, entry, method, Some(params), limit).await {
        Ok(super::own::Said::Result(_)) => true,
        Ok(super::own::Said::Error { code, .. }) => {
            tracing::debug!(backend = entry.name(), method, code, "refused");
            true
        }
        Err(failure) => {
            tracing::debug!(backend = entry.name(), method, %failure, "not heard");
            false
        }
    }
}

/// A channel was opened: tells it what is wanted.
pub(super) async fn restore(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: Option<&Arc<SessionRecord>>,
    channel: &Channel,
) {
    if session.is_none() {
        entry.wishes.told.set(None);
    }
    level_at(backends, entry, session, channel).await;
    if channel.can().subscribe {
        for uri in entry.wishes.uris(session.map(|session| session.id)) {
            // One that does not answer is not waited for a thousand times.
            if !ask(backends, entry, channel, "resources/subscribe", &uri_params(&uri)).await {
                break;
            }
        }
    }
    let Some(session) = session else {
        let backend = entry.id;
        backends.broadcast(|| BackendMail::Again { backend });
        return backends.listeners.again(backend, None);
    };
    backends.listeners.again(entry.id, Some(session.id));
}

/// A wish whose home is here.
async fn subscribe_here(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: &Arc<SessionRecord>,
    uri: Box<str>,
    params: &[u8],
    on: bool,
) -> Wished {
    if entry.era.get() == Era::Request {
        return subscribed::change(backends, entry, session, &uri, on).await;
    }
    let own = (entry.plan.isolation == Isolation::Session).then_some(session);
    let key = own.map(|session| session.id);
    let asking = loop {
        match entry.wishes.step(key, session, &uri, on) {
            Step::Wait(asking) => asking.wait().await,
            Step::Ask(asking) => break asking,
            Step::Done => return Ok(nothing()),
            Step::Full => return Err(Failure::new(Kind::Busy, "too many subscriptions")),
        }
    };
    let settle = Settle { entry, key, uri: &uri, on, outcome: Cell::new(None) };
    let answer = asked(backends, entry, own, params, on).await;
    let held = match &answer {
        Ok(answer) => matches!(said(answer), Ok(super::own::Said::Result(_))) == on,
        // What became of it is not known; an update that nobody wants reaches nobody.
        Err(_) => false,
    };
    // If the session has ended meanwhile, the next sweep takes its wish back.
    settle.outcome.set(Some(held));
    drop(settle);
    drop(asking);
    answer
}

/// Ends the asking, also if its task panicked: nobody must wait for ever.
struct Settle<'a> {
    entry: &'a Entry,
    key: Option<SessionId>,
    uri: &'a str,
    on: bool,
    outcome: Cell<Option<bool>>,
}

impl Drop for Settle<'_> {
    fn drop(&mut self) {
        let held = self.on && self.outcome.get() == Some(true);
        self.entry.wishes.settle(self.key, self.uri, held);
    }
}

async fn asked(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    own: Option<&Arc<SessionRecord>>,
    params: &[u8],
    on: bool,
) -> Wished {
    let method = if on { "resources/subscribe" } else { "resources/unsubscribe" };
    let mut lost = None;
    loop {
        let channel = match &entry.wire {
            Wire::Http(http) if !http.is_sse.get() => {
                Channel::Leg(leg::get(backends, entry, own, lost).await?)
            }
            _ => Channel::Line(stdio::wait_for(backends, entry, own).await?),
        };
        let limit: Duration = entry.plan.request_timeout;
        match channel.answer(backends, entry, method, Some(params), limit).await {
            Err(failure) if failure.session_lost && lost.is_none() => {
                let Channel::Leg(leg) = &channel else { return Err(failure) };
                lost = Some(leg.generation);
            }
            outcome => return outcome,
        }
    }
}

/// A shared channel said that a resource was updated, or how a task is: tells it to whom it
/// concerns.
pub(super) fn said_to_all(backends: &Rc<Backends>, entry: &Entry, message: &[u8]) {
    let Ok(envelope) = jsonrpc::scan(message) else { return };
    match relay::word(&envelope, message) {
        Word::Updated => {
            let uri = envelope.uri.and_then(|uri| uri.text(message));
            for session in uri.into_iter().flat_map(|uri| entry.wishes.hearers(&uri)) {
                backends.tell_client(session.id, message.to_vec());
            }
        }
        Word::Task => {
            let task = tasks::named(message);
            if let Some(session) = task.and_then(|task| entry.wishes.owner_of_task(&task)) {
                shape_and_tell(backends, entry, &session, message);
            }
        }
        _ => {}
    }
}

/// The same, said by the child of one session.
pub(super) fn said_to(
    backends: &Rc<Backends>,
    entry: &Entry,
    session: &SessionRecord,
    message: &[u8],
) {
    let Ok(envelope) = jsonrpc::scan(message) else { return };
    let is_update = relay::word(&envelope, message) == Word::Updated;
    if !is_update || entry.wishes.has_subscriptions(session.id) {
        shape_and_tell(backends, entry, session, message);
    }
}

/// A notification for the client of a session, on its own stream.
pub(super) fn shape_and_tell(
    backends: &Backends,
    entry: &Entry,
    session: &SessionRecord,
    message: &[u8],
) {
    let level = session.level();
    if let Some(message) = note::shaped(message.to_vec(), level, &backends.plan.borrow(), entry.id)
    {
        backends.tell_client(session.id, message);
    }
}

/// A reload puts another backend in the place of this one, under its name: who is subscribed here is
/// to be so there.
pub(super) fn bequeath(backends: &Rc<Backends>, old: &Entry) {
    let mut held = old.wishes.held();
    held.extend(old.subscribed.held());
    move_on(backends, old, held);
}

/// A backend speaks another era than before: who was subscribed in the way of that one is to be so in
/// the way of this one.
pub(super) fn cross(backends: &Rc<Backends>, entry: &Entry) {
    let held = match entry.era.get() {
        Era::Request => entry.wishes.take(),
        _ => entry.subscribed.take(),
    };
    move_on(backends, entry, held);
}

/// Subscribes to a backend, or to what takes its name, as soon as it is up, and again if it goes down
/// in between. A refusal is the end of it.
fn move_on(backends: &Rc<Backends>, entry: &Entry, mut held: Vec<Held>) {
    if held.is_empty() {
        return;
    }
    let (backends, name) = (backends.clone(), entry.plan.name.clone());
    rt::spawn("subscriptions that move", async move {
        for times in 0..HEIR_TRIES {
            let Some(heir) = heir_of(&backends, &name, &mut held).await else { return };
            for (session, uri) in mem::take(&mut held) {
                let params = uri_params(&uri);
                match backends.subscribe_session(&session, heir, &uri, &params, true).await {
                    Ok(_) => {}
                    Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Lost) => {
                        held.push((session, uri));
                    }
                    Err(error) => {
                        tracing::debug!(backend = &*name, %error, "a subscription did not move");
                    }
                }
            }
            if held.is_empty() {
                return;
            }
            rt::time::sleep(HEIR_LOOK * (1 << times)).await;
        }
        let lost = held.len();
        tracing::warn!(
            backend = &*name,
            lost,
            "subscriptions did not move: the backend was down whenever it was to be asked for them"
        );
    });
}

/// Waits until a backend of that name is up; `None` if there is none any more, or if no session of those
/// that held something goes on.
async fn heir_of(backends: &Rc<Backends>, name: &str, held: &mut Vec<Held>) -> Option<BackendId> {
    loop {
        held.retain(|(session, _)| !session.ended());
        if held.is_empty() || backends.stopping.is_set() {
            return None;
        }
        // The next reload may have replaced that one too.
        let entries = backends.entries();
        let heir = entries.iter().find(|e| e.is_in_force.get() && *e.plan.name == *name)?;
        if backends.board.state(heir.id) == State::Up {
            return Some(heir.id);
        }
        rt::time::sleep(HEIR_LOOK).await;
    }
}

/// Forgets the wishes of sessions that ended.
pub(super) fn forget(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    ended: impl Fn(&SessionRecord) -> bool,
) {
    let (unwanted, level) = entry.wishes.forget(ended);
    if unwanted.is_empty() && !level {
        return;
    }
    let Some(channel) = open(entry, None) else { return };
    let (backends, entry) = (backends.clone(), entry.clone());
    rt::spawn("wishes of an ended session", async move {
        level_at(&backends, &entry, None, &channel).await;
        for uri in unwanted {
            let wanted = || {
                let all = entry.wishes.subscriptions.borrow();
                all.get(&None).is_some_and(|all| all.contains_key(&uri))
            };
            if channel.can().subscribe && !wanted() {
                ask(&backends, &entry, &channel, "resources/unsubscribe", &uri_params(&uri)).await;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::revision::Revision;

    fn session(n: u8) -> Arc<SessionRecord> {
        let id = SessionId::mint(0, [n; 16]);
        Arc::new(SessionRecord::new(id, Revision::NEWEST, None, "{}".into(), "{}".into()))
    }

    #[test]
    fn the_first_asks_and_the_last_takes_back() {
        let wishes = Wishes::default();
        let (one, two) = (session(1), session(2));
        let Step::Ask(_) = wishes.step(None, &one, "a:b", true) else { panic!("the first") };
        assert!(matches!(wishes.step(None, &two, "a:b", true), Step::Wait(_)), "it is being asked");
        wishes.settle(None, "a:b", true);
        assert!(matches!(wishes.step(None, &two, "a:b", true), Step::Done));
        assert!(matches!(wishes.step(None, &two, "a:b", true), Step::Done), "twice is once");
        assert_eq!(wishes.hearers("a:b").len(), 2);
        assert_eq!(wishes.uris(None).len(), 1);
        assert!(matches!(wishes.step(None, &one, "a:b", false), Step::Done));
        assert_eq!(wishes.hearers("a:b").len(), 1);
        assert!(matches!(wishes.step(None, &two, "a:b", false), Step::Ask(_)), "the last");
        wishes.settle(None, "a:b", false);
        assert!(wishes.subscriptions.borrow().is_empty());
        assert!(matches!(wishes.step(None, &two, "a:b", false), Step::Done), "nothing to end");
    }

    #[test]
    fn a_refusal_leaves_nothing() {
        let wishes = Wishes::default();
        let one = session(1);
        for key in [None, Some(one.id)] {
            assert!(matches!(wishes.step(key, &one, "a:b", true), Step::Ask(_)));
            wishes.settle(key, "a:b", false);
            assert!(wishes.subscriptions.borrow().is_empty());
        }
    }

    #[test]
    fn subscriptions_of_a_session_are_bounded() {
        let wishes = Wishes::default();
        let (one, two) = (session(1), session(2));
        for n in 0..limits::SUBSCRIPTIONS_PER_SESSION_MAX {
            let uri = format!("a:{n}");
            assert!(matches!(wishes.step(None, &one, &uri, true), Step::Ask(_)));
            wishes.settle(None, &uri, true);
        }
        assert!(matches!(wishes.step(None, &one, "b", true), Step::Full));
        assert!(matches!(wishes.step(None, &one, "a:1", true), Step::Done));
        assert!(matches!(wishes.step(None, &two, "a:1", true), Step::Done));
    }

    #[test]
    fn ended_sessions_are_forgotten() {
        let wishes = Wishes::default();
        let (one, two) = (session(1), session(2));
        for (session, level) in [(&one, Level::Debug), (&two, Level::Error)] {
            session.set_level(level);
            wishes.levels.borrow_mut().insert(session.id, session.clone());
            wishes.step(None, session, "a:b", true);
            wishes.settle(None, "a:b", true);
        }
        wishes.step(None, &one, "a:c", true);
        wishes.settle(None, "a:c", true);
        wishes.step(Some(one.id), &one, "a:d", true);
        wishes.settle(Some(one.id), "a:d", true);
        assert_eq!(wishes.level(), Some(Level::Debug));
        let (unwanted, changed) = wishes.forget(|session| session.id == one.id);
        assert_eq!((unwanted.len(), &*unwanted[0], changed), (1, "a:c", true));
        assert_eq!(wishes.level(), Some(Level::Error));
        assert!(!wishes.has_subscriptions(one.id));
        assert_eq!(wishes.hearers("a:b").len(), 1);
    }

    #[test]
    fn parts_of_a_resource() {
        assert!(is_part("file:///a", "file:///a") && is_part("file:///a/b", "file:///a"));
        assert!(is_part("file:///a/b", "file:///a/") && is_part("s://a?x", "s://a"));
        assert!(!is_part("file:///ab", "file:///a") && !is_part("file:///a", "file:///a/b"));
    }
}
