//! Owns: the control plane: starting the workers, watching them, ending them; what a program that
//! embeds the proxy holds in its hands.
//! Never: a client's request; none ever waits for this.
//! Next: `diagnose` and `config`, how the configuration is read.
//!
//! Everything here is plain blocking code on one thread, `mcp-control`. Those who wait for it may
//! block or be futures under any executor.

mod access;
mod added;
mod admin;
mod banner;
mod caution;
mod compile;
pub mod config;
mod crew;
pub mod diagnose;
mod entrance;
mod foreign;
mod import;
mod jwks;
pub mod notify;
pub mod reload;
mod roles;
mod rules;
mod schema;
mod scrape;
mod setting;
mod watch_file;
mod watching;

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use admin::Office;
pub use banner::{greeting, standing, status, summary};
use config::ProxyConfig;
use crew::{Crew, Job, Work};
use diagnose::Report;
use entrance::Entrance;
use reload::{Applied, NotApplied, Numbers, Overlay, Reloads, Wanted};
use scrape::Admitted;
use watch_file::Watcher;
use watching::Watching;

use crate::auth::Scheme;
use crate::backend::health::{Board, Note, State as Health};
use crate::limits;
use crate::middleware::custom::{self, Middleware};
use crate::plan::BackendId;
use crate::rt::Driver;
use crate::telemetry::desk::Question;
use crate::telemetry::lines::Orders;
use crate::worker;
use crate::world::Counts;

/// Why a proxy does not run, or no longer.
#[derive(Clone, Debug, PartialEq)]
pub enum ProxyError {
    /// The configuration has faults.
    Config(Report),
    /// The machine refuses something that a start needs; the text says what, and what to do.
    Start(String),
    /// A worker ended that nobody asked to.
    Worker(String),
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProxyError::Config(report) => report.fmt(f),
            ProxyError::Start(message) | ProxyError::Worker(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for ProxyError {}

/// How to run, beside what the configuration says.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The event loop to use; `None`, the default, is the best that works here.
    pub driver: Option<Driver>,
    /// Whether to listen where `[proxy.listen]` says; default `true`. Without it the only way in is
    /// [`Handle::connect`], on which the router of the feature `axum` stands.
    pub listen: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { driver: None, listen: true }
    }
}

/// A proxy that listens. Dropping it ends it as [`Handle::shutdown`] does, without waiting.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use mcp_proxy::{Proxy, ProxyConfig};
///
/// let config = ProxyConfig::load("proxy.toml".as_ref())?;
/// let proxy = Proxy::from_config(config).await?;
/// println!("http://{}/mcp", proxy.handle().addr());
/// proxy.serve().await?;
/// # Ok(())
/// # }
/// ```
///
/// `M` is the program's own [`Middleware`]; the default is none.
#[derive(Debug)]
pub struct Proxy<M = ()> {
    handle: Handle,
    own: PhantomData<fn() -> M>,
}

impl Proxy {
    /// Starts the workers, on threads of their own; done when all of them listen. Backends are
    /// brought up meanwhile and afterwards: one that is down does not stand in the way.
    ///
    /// Works under any executor. A dropped future ends what it has started.
    ///
    /// # Errors
    /// The configuration cannot be compiled any more (a certificate file has gone, say), or the
    /// address cannot be bound.
    pub async fn from_config(config: ProxyConfig) -> Result<Proxy, ProxyError> {
        Proxy::from_config_with(config, Options::default()).await
    }

    /// As [`Proxy::from_config`], with options.
    ///
    /// # Errors
    /// As [`Proxy::from_config`], or the event loop that was asked for does not work here.
    pub async fn from_config_with(
        config: ProxyConfig,
        options: Options,
    ) -> Result<Proxy, ProxyError> {
        Proxy::with_middleware(config, options, ()).await
    }

    /// As [`Proxy::from_config_with`], blocking the thread.
    ///
    /// # Errors
    /// As [`Proxy::from_config_with`].
    pub fn start(config: ProxyConfig, options: Options) -> Result<Proxy, ProxyError> {
        Proxy::start_with_middleware(config, options, ())
    }
}

impl<M: Middleware> Proxy<M> {
    /// As [`Proxy::from_config_with`], with middleware of the program's own: each worker gets a
    /// clone of it.
    ///
    /// # Errors
    /// As [`Proxy::from_config_with`].
    pub async fn with_middleware(
        config: ProxyConfig,
        options: Options,
        middleware: M,
    ) -> Result<Proxy<M>, ProxyError> {
        let proxy = Proxy::begin(config, options, worker::run, middleware)?;
        proxy.handle.0.until(State::started).await?;
        Ok(proxy)
    }

    /// As [`Proxy::with_middleware`], blocking the thread.
    ///
    /// # Errors
    /// As [`Proxy::from_config_with`].
    pub fn start_with_middleware(
        config: ProxyConfig,
        options: Options,
        middleware: M,
    ) -> Result<Proxy<M>, ProxyError> {
        let proxy = Proxy::begin(config, options, worker::run, middleware)?;
        proxy.handle.0.wait(None, State::started).unwrap_or(Ok(()))?;
        Ok(proxy)
    }

    /// Serves until somebody calls [`Handle::shutdown`] and what was in flight has ended.
    ///
    /// Works under any executor. A dropped future ends the proxy.
    ///
    /// # Errors
    /// A worker has ended that nobody asked to: the proxy is no longer to be trusted.
    pub async fn serve(self) -> Result<(), ProxyError> {
        self.handle.0.until(State::ended).await
    }

    /// A handle, which may be cloned and sent to other threads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    fn begin(
        config: ProxyConfig,
        options: Options,
        work: Work,
        middleware: M,
    ) -> Result<Proxy<M>, ProxyError> {
        let shared = Arc::new(Shared::default());
        let proxy = Proxy { handle: Handle(shared.clone()), own: PhantomData };
        let listens = options.listen;
        let job = Job { work, listens, custom: Box::new(move || custom::maker(&middleware)) };
        std::thread::Builder::new()
            .name("mcp-control".to_owned())
            .spawn(move || {
                // Whatever happens, those who wait must hear of an end.
                let end = EndGuard(shared.clone());
                let outcome = control(config, options, &job, &shared);
                end.0.change(|state| state.phase = Phase::Ended(outcome));
            })
            .map_err(|error| ProxyError::Start(format!("cannot start a thread: {error}")))?;
        Ok(proxy)
    }
}

impl<M> Drop for Proxy<M> {
    fn drop(&mut self) {
        self.handle.shutdown();
    }
}

/// What can be asked of a running proxy, from any thread.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Where it listens, or would: with `port = 0` the port that the system chose.
    pub fn addr(&self) -> SocketAddr {
        // A proxy is only handed out once it listens.
        self.0.lock().addr.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)))
    }

    /// The URL that a client on this machine uses.
    pub fn url(&self) -> String {
        let tls = self.0.lock().tls;
        banner::url(self.addr(), tls)
    }

    /// Ends the proxy in good order: no new connections, calls in flight may go on for
    /// `proxy.shutdown_timeout_seconds`. Does not wait; calling it again changes nothing.
    pub fn shutdown(&self) {
        self.0.change(|state| state.shutdown_wanted = true);
        self.0.wake();
    }

    /// A connection into the proxy that only this process can make, served like one that came to its
    /// listener: HTTP/1.1 as bytes. It blocks unless told otherwise. Dropping it is what a client does
    /// that leaves.
    ///
    /// Whoever holds it may say in each request for whom it speaks, in the field `Mcp-Proxy-Client:
    /// IP:PORT`; without it the client is `127.0.0.1:0`. TLS is not spoken on it, `Host` and `Origin`
    /// are looked at as anywhere, and /admin is closed without a token for it.
    ///
    /// # Errors
    /// No descriptors are left; `NotConnected`: the proxy is ending, has ended, or is too busy.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the proxy does not serve");
        let entrance = {
            let state = self.0.lock();
            let serves = state.phase == Phase::Serving && !state.shutdown_wanted;
            state.entrance.clone().filter(|_| serves).ok_or_else(gone)?
        };
        entrance.connect()
    }

    /// Takes no more connections from outside: [`Handle::connect`] is the only way in from now on.
    /// Connections that are open stay.
    pub fn stop_listening(&self) {
        let entrance = self.0.lock().entrance.clone();
        if let Some(entrance) = entrance {
            entrance.stop_listening();
        }
    }

    /// Reads the files of the configuration again and puts them in force without a stop: what has
    /// not changed goes on, exchanges under way end under the settings under which they began.
    ///
    /// Works under any executor. A dropped future leaves the reload to itself.
    ///
    /// # Errors
    /// Nothing has changed.
    pub async fn reload(&self) -> Result<Applied, NotApplied> {
        let order = self.order(Wanted::Again);
        self.0.until(|state| order.outcome(state)).await
    }

    /// As [`Handle::reload`], with another configuration.
    ///
    /// # Errors
    /// As [`Handle::reload`].
    pub async fn reload_with(&self, config: ProxyConfig) -> Result<Applied, NotApplied> {
        let order = self.order(Wanted::Config(Box::new(config)));
        self.0.until(|state| order.outcome(state)).await
    }

    /// As [`Handle::reload`], blocking the thread.
    ///
    /// # Errors
    /// As [`Handle::reload`].
    pub fn reload_now(&self) -> Result<Applied, NotApplied> {
        let order = self.order(Wanted::Again);
        self.0.wait(None, |state| order.outcome(state)).unwrap_or_else(|| Err(ended()))
    }

    fn order(&self, wanted: Wanted) -> Arc<Order> {
        let order = Arc::new(Order { wanted: Mutex::new(Some(wanted)), outcome: OnceLock::new() });
        self.0.change(|state| state.orders.push_back(order.clone()));
        self.0.wake();
        order
    }

    /// What is known of reloads so far.
    pub fn reloads(&self) -> Reloads {
        self.0.lock().reloads.clone()
    }

    /// Has `hear` called with every configuration that a reload puts in force, on the control thread:
    /// for what is outside of the proxy, such as the level of the log. Once for each proxy: a later
    /// one is not called.
    pub fn on_reload(&self, hear: impl Fn(&ProxyConfig) + Send + Sync + 'static) {
        let _ = self.0.on_reload.set(Box::new(hear));
    }

    /// Opens the files of logs anew, which may have been moved away.
    pub fn reopen_logs(&self) {
        self.0.lines.reopen.fetch_add(1, Ordering::AcqRel);
    }

    /// Blocks until the proxy has ended.
    ///
    /// # Errors
    /// As [`Proxy::serve`].
    pub fn wait(&self) -> Result<(), ProxyError> {
        self.0.wait(None, State::ended).unwrap_or(Ok(()))
    }

    /// Blocks until every backend has had its first start, or the proxy has ended, but no longer
    /// than `limit`; whether that came true.
    pub fn wait_settled(&self, limit: Duration) -> bool {
        self.0.wait(Some(limit), State::settled).is_some()
    }

    /// How much it has in hand just now; all zero before it serves and after its end.
    pub fn stats(&self) -> Stats {
        let state = self.0.lock();
        let counts = state.counts.as_deref().filter(|_| state.phase == Phase::Serving);
        let count = |of: fn(&Counts) -> &AtomicUsize| {
            counts.map_or(0, |counts| of(counts).load(Ordering::Relaxed))
        };
        Stats {
            connections: count(|counts| &counts.connections),
            sessions: count(|counts| &counts.sessions),
            streams: count(|counts| &counts.streams),
            backends: state.backends.clone(),
        }
    }

    /// The backends in the order of the file, as last heard of them.
    pub fn backends(&self) -> Vec<BackendStatus> {
        self.0.lock().backends.clone()
    }
}

/// How much a proxy has in hand at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Client connections open.
    pub connections: usize,
    /// Client sessions alive.
    pub sessions: usize,
    /// Event streams that clients have open.
    pub streams: usize,
    /// The backends in the order of the file, as last heard of them.
    pub backends: Vec<BackendStatus>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("addr", &self.addr()).finish_non_exhaustive()
    }
}

/// A backend as last heard of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendStatus {
    /// Its number: another one when it is reached in another way.
    pub id: BackendId,
    /// Its name in the configuration.
    pub name: String,
    /// `stdio` or `http`.
    pub transport: &'static str,
    /// Where it is in its life.
    pub state: Health,
    /// Tools in its list.
    pub tools: u32,
    /// Why it is not well.
    pub detail: Option<String>,
}

/// What the control thread and those who wait for it share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// What the writer of log lines is told.
    lines: Arc<Orders>,
    /// See [`Handle::on_reload`].
    on_reload: OnceLock<Hear>,
    /// Has the control thread look at once for what is wanted of it.
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// Hears of configurations.
type Hear = Box<dyn Fn(&ProxyConfig) + Send + Sync>;

/// A reload that somebody waits for.
struct Order {
    /// `None` once it is under way.
    wanted: Mutex<Option<Wanted>>,
    outcome: OnceLock<Result<Applied, NotApplied>>,
}

impl Order {
    fn outcome(&self, state: &State) -> Option<Result<Applied, NotApplied>> {
        let outcome = self.outcome.get().cloned();
        outcome.or_else(|| state.ended().map(|_| Err(ended())))
    }
}

fn ended() -> NotApplied {
    NotApplied::Failed("the proxy has ended".to_owned())
}

#[derive(Default)]
struct State {
    phase: Phase,
    addr: Option<SocketAddr>,
    tls: bool,
    shutdown_wanted: bool,
    backends: Vec<BackendStatus>,
    counts: Option<Arc<Counts>>,
    entrance: Option<Arc<Entrance>>,
    /// Reloads that are wanted, in their order.
    orders: VecDeque<Arc<Order>>,
    reloads: Reloads,
    /// Of futures that wait for a change.
    wakers: Vec<Waker>,
}

#[derive(Clone, Debug, Default, PartialEq)]
enum Phase {
    #[default]
    Starting,
    Serving,
    Ended(Result<(), ProxyError>),
}

impl State {
    fn started(&self) -> Option<Result<(), ProxyError>> {
        match &self.phase {
            Phase::Starting => None,
            Phase::Serving => Some(Ok(())),
            Phase::Ended(outcome) => Some(outcome.clone()),
        }
    }

    fn ended(&self) -> Option<Result<(), ProxyError>> {
        match &self.phase {
            Phase::Ended(outcome) => Some(outcome.clone()),
            _ => None,
        }
    }

    fn settled(&self) -> Option<()> {
        let starting = self.backends.iter().any(|backend| backend.state == Health::Starting);
        (self.ended().is_some() || (self.started().is_some() && !starting)).then_some(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }

    fn on_applied(&self, config: &ProxyConfig) {
        if let Some(hear) = self.on_reload.get() {
            hear(config);
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.changed.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Resolves when `look` finds something. Dropping it leaves a waker behind until the next
    /// change.
    fn until<T>(&self, look: impl Fn(&State) -> Option<T>) -> impl Future<Output = T> {
        std::future::poll_fn(move |context: &mut Context<'_>| {
            let mut state = self.lock();
            if let Some(found) = look(&state) {
                return Poll::Ready(found);
            }
            if !state.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                state.wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
    }

    /// Blocks until `look` finds something; `None` if it does not within `limit`.
    fn wait<T>(&self, limit: Option<Duration>, look: impl Fn(&State) -> Option<T>) -> Option<T> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&state) {
                return Some(found);
            }
            state = match deadline {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.checked_duration_since(Instant::now())?;
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// Reports an end that the control thread itself could not.
struct EndGuard(Arc<Shared>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        if self.0.lock().ended().is_none() {
            let error = ProxyError::Worker("the control thread has panicked".to_owned());
            self.0.change(|state| state.phase = Phase::Ended(Err(error)));
        }
    }
}

// ---------------------------------------------------------------------------------------------
// The control thread
// ---------------------------------------------------------------------------------------------

/// A proxy's whole life.
fn control(
    config: ProxyConfig,
    options: Options,
    job: &Job,
    shared: &Arc<Shared>,
) -> Result<(), ProxyError> {
    let used = watch_file::contents(config.watched());
    let mut report = Report::default();
    let Some(plan) = compile::compile(&config, &mut report).map(Arc::new) else {
        return Err(ProxyError::Config(report));
    };
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let connections_max = raise_descriptor_limit();
    let (driver, reasons) = Driver::choose(options.driver)
        .map_err(|error| ProxyError::Start(format!("the event loop does not work: {error}")))?;
    for reason in reasons {
        tracing::warn!("not the best event loop: {reason}");
    }
    tracing::info!(workers = plan.workers, "event loop: {driver}");

    if let Some(Scheme::Jwt(jwt)) = plan.access.as_ref().and_then(|access| access.scheme.as_ref()) {
        jwks::start(&jwt.shelf)
            .map_err(|error| ProxyError::Start(format!("cannot start a thread: {error}")))?;
    }
    let statuses: Vec<BackendStatus> = plan.backends.iter().map(|b| banner::starting(b)).collect();
    shared.change(|state| state.backends = statuses);
    let (letters, inbox) = sync_channel(limits::NOTES_LEN);
    let (notes, wake) = (letters.clone(), letters.clone());
    let _ = shared.wake.set(Box::new(move || drop(wake.try_send(Letter::Wake))));
    let tell = Box::new(move |note| drop(notes.try_send(Letter::Note(note))));
    let ask: Arc<dyn Fn(Question) -> Result<(), Question> + Send + Sync> =
        Arc::new(move |question| {
            letters.try_send(Letter::Question(question)).map_err(|back| match back {
                TrySendError::Full(Letter::Question(question))
                | TrySendError::Disconnected(Letter::Question(question)) => question,
                _ => unreachable!("what was sent comes back"),
            })
        });
    let board = Board::new(plan.workers, plan.backends.len(), tell);
    let counts = Arc::new(Counts::default());
    let (watching, outlets) =
        Watching::start(&plan, &config, &shared.lines).map_err(ProxyError::Start)?;
    let kits = watching.kits(outlets, &ask);
    let handle = Handle(shared.clone());
    let watcher = Watcher::start(move || drop(handle.order(Wanted::Again)))
        .map_err(|error| ProxyError::Start(format!("cannot start a thread: {error}")))?;
    let (crew, addr) = Crew::start(&plan, driver, connections_max, &board, &counts, kits, job)
        .map_err(ProxyError::Start)?;
    if job.listens {
        tracing::info!("listening on {addr}");
    }
    shared.change(|state| {
        state.addr = Some(addr);
        state.tls = plan.listen.tls.is_some();
        state.counts = Some(counts.clone());
        state.entrance = Some(crew.entrance());
        state.phase = Phase::Serving;
    });
    watcher.watch(used);
    let office = Office {
        file: config.clone(),
        config,
        overlay: Overlay::default(),
        numbers: Numbers::of(&plan),
        leaving: Vec::new(),
        plan,
        board,
        counts,
        metrics: watching.metrics.clone(),
        shared,
        admitted: Admitted::default(),
        crew,
        watcher,
        watching,
    };
    let mut news = News { inbox, office };
    let outcome = watch(&mut news).and_then(|()| {
        tracing::info!("shutting down");
        end(&mut news)
    });
    news.office.watching.end();
    outcome
}

/// What workers write to the control thread.
enum Letter {
    Note(Note),
    Question(Question),
    /// Something is wanted that stands elsewhere.
    Wake,
}

/// Until the end is wanted, or a worker has fallen.
fn watch(news: &mut News<'_>) -> Result<(), ProxyError> {
    loop {
        news.take();
        if let Some(message) = news.office.crew.fallen() {
            tracing::error!("{message}; the proxy ends, as it can no longer be trusted");
            news.office.crew.drain();
            return Err(ProxyError::Worker(message));
        }
        news.office.obey();
        news.office.tidy();
        if news.office.shared.lock().shutdown_wanted {
            return Ok(());
        }
    }
}

/// Lets every worker finish, and gives up on those that do not.
fn end(news: &mut News<'_>) -> Result<(), ProxyError> {
    // Behind the workers' own limit, children have theirs.
    let children = limits::CHILD_TERM_AFTER + limits::CHILD_KILL_AFTER;
    let limit = news.office.plan.shutdown_timeout + children + limits::SHUTDOWN_SLACK;
    let deadline = Instant::now() + limit;
    loop {
        let crew = &mut news.office.crew;
        crew.drain();
        if crew.is_done() {
            return match crew.fallen() {
                Some(message) => Err(ProxyError::Worker(message)),
                None => Ok(()),
            };
        }
        if Instant::now() >= deadline {
            tracing::warn!("some workers do not end: they are left behind");
            return Ok(());
        }
        news.take();
    }
}

/// What is heard of backends; they log it themselves.
struct News<'a> {
    inbox: Receiver<Letter>,
    office: Office<'a>,
}

impl Office<'_> {
    /// Does the reloads that are wanted, one after the other.
    fn obey(&mut self) {
        loop {
            let order = self.shared.lock().orders.pop_front();
            let Some(order) = order else { return };
            let wanted = order.wanted.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(wanted) = wanted {
                let outcome = self.reload(wanted);
                self.shared.change(|_| drop(order.outcome.set(outcome)));
            }
        }
    }
}

impl News<'_> {
    /// Takes in what there is, for one tick or until something has come.
    fn take(&mut self) {
        let questions = self.notes();
        for Question { worker, token, wanted } in questions {
            let answer = self.office.answer(wanted);
            self.office.crew.tell(worker, token, answer);
        }
    }

    /// Takes the notes in; the questions that came with them.
    fn notes(&mut self) -> Vec<Question> {
        let mut questions = Vec::new();
        if let Ok(first) = self.inbox.recv_timeout(limits::CONTROL_TICK) {
            let more = self.inbox.try_iter().take(limits::NOTES_LEN);
            for letter in std::iter::once(first).chain(more) {
                match letter {
                    Letter::Note(Note::Backend { id, state, tools, detail }) => {
                        self.update(id, state, tools, Some(detail));
                    }
                    Letter::Question(question) => questions.push(question),
                    Letter::Wake => {}
                }
            }
        }
        // Notes are dropped when there are too many; the board is always right.
        let Office { plan, board, .. } = &self.office;
        for id in plan.backends.iter().map(|backend| backend.id) {
            self.update(id, board.state(id), board.tools(id), None);
        }
        questions
    }

    /// Tells those who look, if it is new; without a detail the last one stays.
    fn update(&self, id: BackendId, state: Health, tools: u32, detail: Option<Option<String>>) {
        let shared = self.office.shared;
        let is_it = |known: &&mut BackendStatus| known.id == id;
        let is_news = shared.lock().backends.iter_mut().find(is_it).is_some_and(|known| {
            (known.state, known.tools) != (state, tools)
                || detail.as_ref().is_some_and(|detail| *detail != known.detail)
        });
        if is_news {
            shared.change(|shared| {
                let Some(known) = shared.backends.iter_mut().find(is_it) else { return };
                (known.state, known.tools) = (state, tools);
                if let Some(detail) = detail {
                    known.detail = detail;
                }
            });
        }
    }
}

/// Allows this process as many open files as it may have; how many client connections that is
/// enough for. The rest is for backends, children and files.
fn raise_descriptor_limit() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => before.maximum,
        Err(error) => {
            tracing::warn!("the limit of open files stays at {:?}: {error}", before.current);
            before.current
        }
    };
    match limit {
        Some(files) => usize::try_from(files / 10 * 8).unwrap_or(usize::MAX).max(1),
        None => usize::MAX,
    }
}

/// Binds the address once without sharing it: workers share theirs among themselves, and would
/// share it with another proxy of the same user too.
///
/// An address in use is tried again for [`limits::BIND_PATIENCE`]: the kernel takes a ring down
/// behind the end of its process, so the listeners of a proxy that was killed outlive it a little.
fn is_free(addr: SocketAddr) -> io::Result<()> {
    let deadline = Instant::now() + limits::BIND_PATIENCE;
    loop {
        match try_bind(addr) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(limits::BIND_PAUSE);
            }
            other => return other,
        }
    }
}

fn try_bind(addr: SocketAddr) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None)?;
    // Connections of an earlier run that the kernel still remembers are no obstacle.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    Ok(bind(&socket, &addr)?)
}

/// What to tell when an address cannot be bound, with the way out.
fn bind_fault(addr: SocketAddr, error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program listens there; end it, or choose another port with --listen or \
             [proxy.listen] port (0 lets the system choose)"
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; choose one of its own with --listen or \
             [proxy.listen] host"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need a privilege; choose a higher one with --listen or \
             [proxy.listen] port"
        }
        _ => "choose another address with --listen or [proxy.listen]",
    };
    format!("cannot listen on {addr}: {error}: {remedy}")
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Wake;
    use std::thread::Thread;

    use super::*;
    use crate::rt;
    use crate::worker::Seat;
    use crate::worker::orders::Mail;

    /// The least executor there is: a future must not need more.
    fn block_on<T>(future: impl Future<Output = T>) -> T {
        struct Unpark(Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut future = pin!(future);
        loop {
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(output) => return output,
                Poll::Pending => std::thread::park(),
            }
        }
    }

    fn config(lines: &str) -> ProxyConfig {
        let text = format!(
            "[proxy]\nname = 'p'\nworkers = 2\nshutdown_timeout_seconds = 0\n{lines}\n\
             [[backends]]\nname = 'a'\ntransport = 'stdio'\ncommand = 'true'\n\
             [[backends]]\nname = 'b'\ntransport = 'http'\nurl = 'http://127.0.0.1:1'\n"
        );
        ProxyConfig::parse(&text).unwrap()
    }

    fn any_port() -> ProxyConfig {
        config("listen.port = 0")
    }

    const EPOLL: Options = Options { driver: Some(Driver::Epoll), listen: true };

    fn start(config: ProxyConfig, work: Work) -> Result<Proxy, ProxyError> {
        let proxy = Proxy::begin(config, EPOLL, work, ())?;
        proxy.handle.0.wait(None, State::started).unwrap()?;
        Ok(proxy)
    }

    /// A worker that listens and takes mail until it is drained.
    const IDLE: Work = |seat| idle(seat, || Ok(()));

    fn idle(seat: Seat, end: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        seat.driver.run(async {
            let listener = rt::net::Listener::bind(seat.listen)?;
            (seat.ready)(listener.local_addr()?);
            let drained = rt::local::Event::new();
            let mail = seat.mail.inbox.serve(|_, mail| {
                assert!(matches!(mail, Mail::Drain));
                drained.set();
            });
            rt::race(mail, drained.wait()).await;
            end()
        })?
    }

    #[test]
    fn workers_share_a_port_that_the_system_chose_and_end_when_asked() {
        let proxy = start(any_port(), IDLE).unwrap();
        let handle = proxy.handle();
        assert_ne!(handle.addr().port(), 0);
        std::net::TcpStream::connect(handle.addr()).unwrap();
        let server = std::thread::spawn(move || block_on(proxy.serve()));
        handle.shutdown();
        handle.shutdown();
        assert_eq!(server.join().unwrap(), Ok(()));
        assert_eq!(handle.wait(), Ok(()));
        assert!(std::net::TcpStream::connect(handle.addr()).is_err());
    }

    #[test]
    fn a_dropped_proxy_ends() {
        let proxy = start(any_port(), IDLE).unwrap();
        let handle = proxy.handle();
        drop(proxy);
        assert_eq!(handle.wait(), Ok(()));
        // The same by way of a future that is never polled to its end.
        let proxy = start(any_port(), IDLE).unwrap();
        let handle = proxy.handle();
        drop(proxy.serve());
        assert_eq!(handle.wait(), Ok(()));
    }

    #[test]
    fn an_address_in_use_is_told_with_the_way_out() {
        // Held by a proxy, whose listeners would share it with any other of the same user.
        let first = start(any_port(), IDLE).unwrap();
        let addr = first.handle().addr();
        let second = start(config(&format!("listen.port = {}", addr.port())), IDLE);
        let Err(ProxyError::Start(message)) = second else { panic!("{second:?}") };
        assert!(message.starts_with(&format!("cannot listen on {addr}: ")), "{message}");
        assert!(message.contains("--listen"), "{message}");
        // Held by a stranger.
        let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = stranger.local_addr().unwrap().port();
        let refused = start(config(&format!("listen.port = {port}")), IDLE);
        assert!(matches!(refused, Err(ProxyError::Start(_))), "{refused:?}");
        // An address of another machine (TEST-NET-1, RFC 5737).
        let refused = start(config("listen = { host = '192.0.2.1', port = 0 }"), IDLE);
        let Err(ProxyError::Start(message)) = refused else { panic!("{refused:?}") };
        assert!(message.contains("this machine has no such address"), "{message}");
    }

    #[test]
    fn a_worker_that_falls_ends_the_proxy() {
        const PANICS: Work = |seat| match seat.id {
            0 => IDLE(seat),
            _ => {
                (seat.ready)(seat.listen);
                panic!("for a test");
            }
        };
        let proxy = start(any_port(), PANICS).unwrap();
        let error = ProxyError::Worker("worker 1 panicked: for a test".to_owned());
        assert_eq!(block_on(proxy.serve()), Err(error));

        const LEAVES: Work = |seat| {
            (seat.ready)(seat.listen);
            if seat.id == 0 { Err(io::Error::other("no more")) } else { Ok(()) }
        };
        let proxy = start(any_port(), LEAVES).unwrap();
        let Err(ProxyError::Worker(message)) = block_on(proxy.serve()) else { panic!("served") };
        assert!(message.ends_with("no more") || message.ends_with("unasked"), "{message}");
    }

    #[test]
    fn a_worker_that_fails_before_it_listens_fails_the_start() {
        for (work, part) in [
            ((|_| Err(io::Error::from(io::ErrorKind::PermissionDenied))) as Work, "privilege"),
            (|_| Ok(()), "a worker ended while it started"),
            (|_| panic!("for a test"), "a worker panicked: for a test"),
        ] {
            let Err(ProxyError::Start(message)) = start(any_port(), work) else { panic!() };
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn an_error_while_draining_is_an_error_of_the_end() {
        const FAILS: Work = |seat| idle(seat, || Err(io::Error::other("late")));
        let proxy = start(any_port(), FAILS).unwrap();
        let handle = proxy.handle();
        handle.shutdown();
        let Err(ProxyError::Worker(message)) = handle.wait() else { panic!("ended well") };
        assert!(message.ends_with("failed: late"), "{message}");
    }

    #[test]
    fn news_of_backends_reach_those_who_wait() {
        let shared = Shared::default();
        let mut report = Report::default();
        let config = any_port();
        let plan = compile::compile(&config, &mut report).unwrap();
        let statuses = plan.backends.iter().map(|b| banner::starting(b)).collect();
        shared.change(|state| {
            state.backends = statuses;
            state.phase = Phase::Serving;
        });
        let (notes, inbox) = sync_channel(8);
        let board = Board::new(2, 2, Box::new(|_| {}));
        let (watching, _) = Watching::start(&plan, &config, &shared.lines).unwrap();
        let office = Office {
            watching,
            file: config.clone(),
            config,
            overlay: Overlay::default(),
            numbers: Numbers::of(&plan),
            leaving: Vec::new(),
            plan: Arc::new(plan),
            crew: Crew::none(),
            watcher: Watcher::default(),
            board: board.clone(),
            counts: Default::default(),
            metrics: crate::telemetry::metrics::Metrics::new(true, 2, Vec::new(), &["other"]),
            shared: &shared,
            admitted: Admitted::default(),
        };
        let mut news = News { inbox, office };
        assert_eq!(shared.wait(Some(Duration::from_millis(1)), State::settled), None);
        let note = |id, state, tools, detail: Option<&str>| Note::Backend {
            id,
            state,
            tools,
            detail: detail.map(str::to_owned),
        };
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| block_on(shared.until(State::settled)));
            for state in [Health::Up, Health::Backoff] {
                news.update(usize::from(state != Health::Up), state, 3, Some(Some("x\ny".into())));
            }
            waiter.join().unwrap();
        });
        let shown = status(&shared.lock().backends);
        assert!(shown.contains("a  stdio  up, 3 tools\n"), "{shown}");
        assert!(shown.contains("b  http   backoff: x y\n"), "{shown}");
        // A note beyond the plan harms nobody, and the board has the last word.
        notes.send(Letter::Note(note(7, Health::Up, 1, None))).unwrap();
        notes.send(Letter::Note(note(0, Health::Down, 1, Some("why")))).unwrap();
        assert!(news.notes().is_empty());
        let backends = shared.lock().backends.clone();
        assert_eq!((backends[0].state, backends[0].tools), (Health::Starting, 0));
        assert_eq!(backends[0].detail.as_deref(), Some("why"));
    }

    #[test]
    fn what_a_process_that_listens_cannot_change_is_named_and_the_rest_applied() {
        let proxy = Proxy::start(any_port(), EPOLL).unwrap();
        let handle = proxy.handle();
        let addr = handle.addr();
        let port = if addr.port() == 4242 { 4243 } else { 4242 };
        let other = config(&format!("listen = {{ host = '::1', port = {port} }}"));
        let mut other = other;
        other.proxy.workers = any_port().proxy.workers.map(|_| super::setting::Count(3));
        other.proxy.name = "other".to_owned();
        let applied = block_on(handle.reload_with(other)).unwrap();
        let keys = ["proxy.listen.host", "proxy.listen.port", "proxy.workers"];
        assert_eq!(applied.needs_restart, keys);
        assert_eq!((applied.generation, handle.reloads().applied), (2, 1));
        assert_eq!((handle.addr(), handle.backends().len()), (addr, 2));
        std::net::TcpStream::connect(addr).unwrap();
        // Nothing has been read from a file that could be read again.
        let Err(NotApplied::Faults(report)) = handle.reload_now() else { panic!("reloaded") };
        assert!(report.to_string().contains("not read from a file"), "{report}");
        assert_eq!((handle.reloads().generation, handle.reloads().failed), (2, 1));
        handle.shutdown();
        assert_eq!(handle.wait(), Ok(()));
        assert!(matches!(block_on(handle.reload()), Err(NotApplied::Failed(_))));
    }

    #[test]
    fn a_driver_that_was_asked_for_is_never_replaced() {
        let proxy = start(any_port(), |seat| {
            assert_eq!(seat.driver, Driver::Epoll);
            IDLE(seat)
        });
        proxy.unwrap();
    }

    #[test]
    fn from_config_works_under_any_executor() {
        let proxy = block_on(Proxy::from_config(any_port())).unwrap();
        assert_ne!(proxy.handle().addr().port(), 0);
        proxy.handle().shutdown();
        assert_eq!(block_on(proxy.serve()), Ok(()));
    }
}
