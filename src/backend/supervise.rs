//! Owns: keeping a backend up: bring it up, watch it, read its lists, bring it up again, for ever.
//! Never: calls of clients.
//! Next: `health`, what is known by it.
//!
//! A backend's lists stay in the catalogue while it is away, so that clients do not see them come
//! and go; they are withdrawn only when it is given up.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::entry::{Entry, Wire};
use super::era::{self, Found};
use super::failure::Failure;
use super::health::{Backoff, State};
use super::hear::{self, Subscription};
use super::http;
use super::leg;
use super::listen::{self, Listening};
use super::listing;
use super::own::{Channel, Said};
use super::relay::changed;
use super::sse;
use super::stdio::{self, Channels, Newborn};
use super::{BackendMail, Backends, views, wishes};
use crate::error::Kind;
use crate::limits;
use crate::mcp::catalog::{Changes, ListKind, Pages, Slice};
use crate::mcp::revision::Era;
use crate::plan::Protocol;
use crate::rt::{self, Either, race};

/// A call failed: probe now.
pub(super) const FAILED: u32 = 1 << 8;
/// Something was answered by a backend that is not shown as up: try now.
pub(super) const SUCCEEDED: u32 = 1 << 9;
/// A session was lost: the server may be another than before.
pub(super) const LOST: u32 = 1 << 10;
/// Its lists are to be read, though it did not say that they changed.
pub(super) const STALE: u32 = 1 << 12;
/// The end.
pub(super) const STOP: u32 = 1 << 11;
/// It has other rules now.
pub(super) const RULES: u32 = 1 << 13;

/// Why the watch over a backend ended.
enum End {
    Stopped,
    /// It does not know our session any more; a new one is needed, nothing else.
    SessionLost,
    Failed(Failure),
}

/// How a channel fared.
struct Lived {
    /// What ended it.
    failure: Failure,
    /// It was up.
    up: bool,
    /// It was, for long enough to be called well.
    well: bool,
}

/// The supervisor of one backend, on its owner.
struct Supervisor {
    backends: Rc<Backends>,
    entry: Rc<Entry>,
    backoff: Backoff,
    /// What was read of it last.
    slice: Option<Arc<Slice>>,
    /// How the last attempt was told: repeated failures are logged once.
    told: String,
    /// The last pause was cut short.
    hurried: bool,
}

/// Marks its backend as supervised; a supervisor that panicked leaves the mark off and is started
/// anew by the clock of its worker.
struct Mark<'a>(&'a Backends, &'a Entry);

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        self.1.supervised.set(false);
        self.0.running.set(self.0.running.get() - 1);
    }
}

/// Starts the supervisor of a backend that has none; it runs until the proxy stops.
pub(super) fn start(backends: &Rc<Backends>, entry: &Rc<Entry>) {
    entry.supervised.set(true);
    backends.running.set(backends.running.get() + 1);
    rt::spawn("supervisor", run(backends.clone(), entry.clone()));
}

async fn run(backends: Rc<Backends>, entry: Rc<Entry>) {
    let _mark = Mark(&backends, &entry);
    let seed = seed();
    let mut supervisor = Supervisor {
        backoff: Backoff::new(entry.plan.restart, seed),
        backends: backends.clone(),
        entry: entry.clone(),
        slice: None,
        told: String::new(),
        hurried: false,
    };
    match &entry.wire {
        Wire::Http(_) if entry.plan.forwards() => supervisor.at_the_gate().await,
        Wire::Http(http) if !http.is_sse.get() => supervisor.over_http(seed).await,
        _ => supervisor.over_channel().await,
    }
    supervisor.settle();
    supervisor.show(State::Stopped, None);
}

/// A different one for each backend and start.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

impl Supervisor {
    fn show(&self, state: State, detail: Option<String>) {
        self.backends.board.set(self.entry.id, state, detail);
    }

    /// The first start has ended: nobody needs to wait any more.
    fn settle(&self) {
        if !self.entry.settled.is_set() {
            self.entry.settled.set();
            let backend = self.entry.id;
            self.backends.broadcast(|| BackendMail::Settled { backend });
        }
    }

    /// A server that offers something else, or is another one, may answer otherwise too.
    fn outdate(&self) {
        self.backends.board.outdate(self.entry.id, true, true);
    }

    /// Makes known what the backend offers, on all workers.
    fn publish(&mut self, slice: Option<Slice>) {
        let slice = slice.map(Arc::new);
        let tools = slice.as_ref().map_or(0, |slice| slice.tools.len());
        self.backends.board.set_tools(self.entry.id, tools);
        self.slice = slice.clone();
        let backend = self.entry.id;
        self.backends.broadcast(|| BackendMail::Slice { backend, slice: slice.clone() });
        self.backends.sliced(backend, slice);
    }

    /// Makes known what it speaks, on all workers, before anything else of this life of it.
    fn speaks(&self, era: Era) {
        let backend = self.entry.id;
        if self.entry.speaks(era) {
            tracing::debug!(backend = self.entry.name(), era = era.as_str(), "backend speaks");
            self.backends.board.set_era(backend, era);
            self.backends.broadcast(|| BackendMail::Era { backend, era });
            wishes::cross(&self.backends, &self.entry);
        }
    }

    /// A reload may have given it other rules: they hold from here on, and what it offers was shaped
    /// by them on this worker; whoever took an older word of ours in after that hears it again.
    fn follow_rules(&mut self) {
        let Some(entry) = self.backends.entry(self.entry.id) else { return };
        if Rc::ptr_eq(&entry, &self.entry) {
            return;
        }
        self.entry = entry;
        self.backoff.follow(self.entry.plan.restart);
        if self.slice.is_some() {
            let slice = self.entry.slice.borrow().clone();
            self.publish(slice.map(|slice| Slice::clone(&slice)));
        }
    }

    /// Reads all lists and publishes them if anything differs.
    async fn read_all(&mut self, channel: &Channel, init: &[u8]) -> Result<(), Failure> {
        let bad = |error: crate::error::Error| Failure::new(Kind::BadAnswer, error.to_string());
        let (backends, entry) = (self.backends.clone(), self.entry.clone());
        let capable = Slice::build(&entry.plan, init, &Pages::default()).map_err(bad)?;
        let mut pages = Pages::default();
        listing::read(&backends, &entry, channel, &capable, changed::ANY, &mut pages).await?;
        self.follow_rules();
        let entry = self.entry.clone();
        let known = self.slice.as_ref();
        let is_known =
            known.is_some_and(|slice| slice.initialize_result() == init && same(slice, &pages));
        if !is_known || self.refresh().is_some() {
            let slice = Slice::build(&entry.plan, init, &pages).map_err(bad)?;
            if !is_known {
                self.outdate();
            }
            self.publish(Some(slice));
            views::outdated(&backends, &entry, changed::ANY, false);
        } else {
            views::outdated(&backends, &entry, changed::ANY, true);
        }
        Ok(())
    }

    /// Reads the lists that changed; of those that `said` is about the backend said so itself.
    async fn read_changed(
        &mut self,
        channel: &Channel,
        flags: u32,
        said: u32,
    ) -> Result<(), Failure> {
        let Some(slice) = self.slice.clone().filter(|_| flags != 0) else { return Ok(()) };
        let (backends, entry) = (self.backends.clone(), self.entry.clone());
        let mut pages = Pages::default();
        for kind in ListKind::ALL {
            *pages.of_mut(kind) = slice.pages(kind).to_vec();
        }
        listing::read(&backends, &entry, channel, &slice, flags, &mut pages).await?;
        self.follow_rules();
        let entry = self.entry.clone();
        let Some(slice) = self.slice.clone() else { return Ok(()) };
        // Of what was good for a time, the time begins anew.
        let same = same(&slice, &pages);
        // What a rule hides may change unseen; all else that a backend says is passed on.
        let said = if entry.plan.chain.spares_lists() { said } else { 0 };
        if same {
            // Not for the proxy, but perhaps for clients that can do more. What was said all hear.
            views::outdated(&backends, &entry, flags & !said, true);
        }
        if same && said == 0 && self.refresh().is_none() {
            return Ok(());
        }
        let mut fresh = Slice::clone(&slice);
        fresh.said = Changes {
            tools: said & changed::TOOLS != 0,
            resources: said & changed::RESOURCES != 0,
            prompts: said & changed::PROMPTS != 0,
        };
        for kind in listing::kinds(flags) {
            match fresh.with_list(&entry.plan, kind, pages.of(kind)) {
                Ok(slice) => fresh = slice,
                Err(error) => {
                    tracing::warn!(backend = entry.name(), %error, "changed list not taken over");
                }
            }
        }
        if !same {
            self.outdate();
        }
        self.publish(Some(fresh));
        views::outdated(&backends, &entry, flags, false);
        self.show(self.backends.board.state(self.entry.id), None);
        Ok(())
    }

    /// How often its lists are to be read, by what it says of them.
    fn refresh(&self) -> Option<Duration> {
        let slice = self.slice.as_ref()?;
        let fresh = ListKind::ALL.into_iter().filter_map(|kind| slice.list(kind).fresh());
        let ttl = fresh.map(|fresh| fresh.ttl).filter(|ttl| !ttl.is_zero()).min()?;
        Some(ttl.max(limits::LIST_TTL_MIN))
    }

    /// It is up.
    fn rise(&mut self) {
        let restarts = self.backends.board.restarts(self.entry.id);
        let tools = self.backends.board.tools(self.entry.id);
        tracing::debug!(backend = self.entry.name(), tools, restarts, "backend is up");
        self.told.clear();
        self.backends.board.succeeded(self.backends.me, self.entry.id, Instant::now());
        self.show(State::Up, None);
        self.settle();
    }

    /// It is not up: the pause before the next attempt, `None` to give up.
    fn fall(&mut self, failure: &Failure, max: Duration) -> Option<Duration> {
        let detail = failure.to_string();
        let pause = self.backoff.next(max);
        let state = match (&self.entry.wire, pause) {
            (_, None) => State::Failed,
            (Wire::Http(_), _) => State::Down,
            (Wire::Stdio(_), _) => self.backoff.state(),
        };
        // The same news is told once: an attempt every few seconds would fill the log.
        if self.told != detail {
            tracing::warn!(
                backend = self.entry.name(),
                state = state.as_str(),
                detail,
                retry_ms = pause.map(|pause| pause.as_millis() as u64),
                "backend is not up"
            );
            self.told.clone_from(&detail);
        } else {
            tracing::debug!(backend = self.entry.name(), detail, "backend is still not up");
        }
        self.show(state, Some(detail));
        self.settle();
        if pause.is_none() {
            tracing::error!(backend = self.entry.name(), "backend is given up");
            self.outdate();
            self.publish(None);
        }
        pause
    }

    /// Waits; flags in `wake` cut it short. True = go on, false = the end.
    async fn pause(&self, pause: Duration, wake: u32) -> bool {
        let end = Instant::now() + pause;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match rt::time::timeout(left, self.entry.bell.wait()).await {
                Ok(flags) if flags & STOP != 0 => return false,
                Ok(flags) if flags & wake != 0 => return true,
                Ok(_) => {}
                Err(_) => return !self.entry.closing.is_set(),
            }
        }
    }

    /// Waits for the next attempt; what a client is answered meanwhile cuts it short, but not twice
    /// in a row: an attempt may fail for reasons that calls do not have. True as in
    /// [`Supervisor::pause`].
    async fn bide(&mut self, pause: Duration) -> bool {
        // What the attempt itself was answered has rung as well.
        let others = self.entry.bell.take() & !SUCCEEDED;
        if others != 0 {
            self.entry.bell.ring(others);
        }
        let end = Instant::now() + pause;
        let wake = if self.hurried { 0 } else { SUCCEEDED };
        let goes_on = self.pause(pause, wake).await;
        self.hurried = Instant::now() < end;
        goes_on
    }

    // ---- over HTTP ----

    async fn over_http(&mut self, seed: u64) {
        let mut lost = None;
        let mut ups = 0u32;
        while !self.entry.closing.is_set() {
            self.follow_rules();
            let began = Instant::now();
            let entry = self.entry.clone();
            // What is open by then has other holders, or is dropped with the opening.
            let opened = match race(Box::pin(self.open(lost)), entry.closing.wait()).await {
                Either::Left(opened) => opened,
                Either::Right(()) => return,
            };
            let failure = match opened {
                Ok(channel) => {
                    lost = None;
                    self.speak(false);
                    if ups > 0 {
                        self.backends.board.count_restart(self.entry.id);
                    }
                    ups += 1;
                    self.rise();
                    let (backends, entry) = (&self.backends, &self.entry);
                    let seed = seed ^ u64::from(ups);
                    let listening = match &channel {
                        Channel::Leg(leg) => Ears::Open(listen::start(backends, entry, leg, seed)),
                        _ => Ears::Heard(hear::own(backends, entry)),
                    };
                    let end = self.watch_over(&channel).await;
                    drop(listening);
                    match end {
                        End::Stopped => return,
                        End::SessionLost => {
                            if let Channel::Leg(leg) = &channel {
                                lost = Some(leg.generation);
                            }
                            // A server that forgets every session at once is not well.
                            if began.elapsed() >= limits::LIVED_WELL {
                                self.backoff.reset();
                            }
                            let Some(pause) = self.backoff.next(limits::HTTP_RETRY_MAX) else {
                                let failure =
                                    Failure::new(Kind::Unavailable, "it loses every session");
                                self.fall(&failure, limits::HTTP_RETRY_MAX);
                                return self.wait_for_the_end().await;
                            };
                            // The first time at once.
                            if self.backoff.failures() > 1 && !self.pause(pause, 0).await {
                                return;
                            }
                            continue;
                        }
                        End::Failed(failure) => {
                            self.backoff.reset();
                            failure
                        }
                    }
                }
                Err(refusal) if self.was_refused(&refusal) => {
                    // A server of 2024-11-05, perhaps; if it is none, the refusal says more.
                    match Box::pin(self.live()).await {
                        Some(Lived { failure, up: true, .. }) => {
                            ups += 1;
                            failure
                        }
                        Some(_) => refusal,
                        None => return,
                    }
                }
                Err(failure) => failure,
            };
            // No server with sessions answers a POST so: it is another one now.
            let is_another = matches!(failure.status, 404 | 405);
            if (failure.session_lost || is_another)
                && let Some(leg) = leg::known(&self.entry, None, None)
            {
                lost = Some(leg.generation);
            }
            let Some(pause) = self.fall(&failure, limits::HTTP_RETRY_MAX) else {
                return self.wait_for_the_end().await;
            };
            if !self.bide(pause).await {
                return;
            }
        }
    }

    /// A backend that its clients alone have tokens for: whether it can be reached is all that the
    /// proxy by itself can know.
    async fn at_the_gate(&mut self) {
        // Without a token of its own it cannot find out what is spoken there.
        self.speaks(match self.entry.plan.protocol {
            Protocol::Modern => Era::Request,
            Protocol::Auto | Protocol::Legacy => Era::Session,
        });
        let mut up = false;
        while !self.entry.closing.is_set() {
            self.follow_rules();
            match http::connect(&self.backends, &self.entry).await {
                Ok(_) => {
                    if !std::mem::replace(&mut up, true) {
                        self.backoff.reset();
                        self.rise();
                    }
                    if !self.pause(limits::PING_INTERVAL, FAILED).await
                        || !self.pause(limits::PROBE_PAUSE, 0).await
                    {
                        return;
                    }
                }
                Err(failure) => {
                    up = false;
                    let Some(pause) = self.fall(&failure, limits::HTTP_RETRY_MAX) else {
                        return self.wait_for_the_end().await;
                    };
                    if !self.bide(pause).await {
                        return;
                    }
                }
            }
        }
    }
    /// A way to it, a session of the proxy's own if it has sessions alone, and the lists.
    async fn open(&mut self, lost: Option<u64>) -> Result<Channel, Failure> {
        let (backends, entry) = (self.backends.clone(), self.entry.clone());
        let opening = async {
            let found = match entry.plan.protocol {
                Protocol::Legacy => Found::Legacy,
                _ => era::over_http(&backends, &entry).await?,
            };
            if let Found::Modern(init) = found {
                // Who has sessions too serves clients with sessions better than any translation.
                let sessions = match entry.plan.protocol {
                    Protocol::Auto => {
                        let session = leg::get(&backends, &entry, None, lost);
                        let patience = limits::PING_TIMEOUT;
                        matches!(rt::time::timeout(patience, session).await, Ok(Ok(_)))
                    }
                    _ => false,
                };
                self.speaks(if sessions { Era::Both } else { Era::Request });
                self.read_all(&Channel::Posts, &init).await?;
                return Ok(Channel::Posts);
            }
            self.speaks(Era::Session);
            let mut leg = leg::get(&backends, &entry, None, lost).await?;
            match self.read_all(&Channel::Leg(leg.clone()), &leg.init).await {
                // What is known is of an earlier life of the server.
                Err(failure) if failure.session_lost => {
                    leg = leg::get(&backends, &entry, None, Some(leg.generation)).await?;
                    self.read_all(&Channel::Leg(leg.clone()), &leg.init).await?;
                }
                outcome => outcome?,
            }
            Ok(Channel::Leg(leg))
        };
        // Each step has a limit of its own; all together have the start-up deadline.
        match rt::time::timeout(entry.plan.startup_timeout, opening).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::new(Kind::Timeout, "not up within the start-up deadline")),
        }
    }

    /// Whether `initialize` was refused as servers of the older transport do.
    fn was_refused(&self, failure: &Failure) -> bool {
        sse::may_be_older(failure) && leg::known(&self.entry, None, None).is_none()
    }

    /// From now on the backend is spoken to over event streams, or (`sse` = false) not.
    fn speak(&self, sse: bool) {
        if self.backends.spoken(&self.entry, sse) {
            let backend = self.entry.id;
            tracing::debug!(backend = self.entry.name(), sse, "the transport is another one now");
            self.backends.broadcast(|| BackendMail::Spoken { backend, sse });
        }
    }

    // ---- over a channel: a child, or an event stream ----

    async fn over_channel(&mut self) {
        let mut starts = 0u32;
        while !self.entry.closing.is_set() {
            self.follow_rules();
            if starts > 0 {
                self.backends.board.count_restart(self.entry.id);
            }
            starts += 1;
            let Some(lived) = self.live().await else { return };
            let max = match &self.entry.wire {
                // To open a stream costs a server next to nothing.
                Wire::Http(_) if lived.up && lived.well => continue,
                Wire::Http(_) => limits::HTTP_RETRY_MAX,
                Wire::Stdio(_) if lived.up => limits::RESTART_AFTER_UP_MAX,
                Wire::Stdio(_) => Duration::MAX,
            };
            let Some(pause) = self.fall(&lived.failure, max) else {
                return self.wait_for_the_end().await;
            };
            if !self.pause(pause, 0).await {
                return;
            }
        }
    }

    /// One life of the channel that all share, from its start to its end; `None` if the proxy stops.
    async fn live(&mut self) -> Option<Lived> {
        let entry = self.entry.clone();
        let channels = entry.channels();
        let began = Instant::now();
        channels.rising.set(true);
        let risen = self.raise(channels).await;
        channels.rising.set(false);
        let mut up = false;
        let failure = match risen {
            Ok(Some(newborn)) => {
                up = true;
                self.rise();
                let channel = channel_of(&newborn);
                let hearing = channel.is_modern().then(|| hear::own(&self.backends, &entry));
                let end = race(newborn.gone(), self.watch_over(&channel)).await;
                drop(hearing);
                match end {
                    Either::Left(()) => newborn.end(&entry).await,
                    Either::Right(End::Failed(failure)) => {
                        newborn.end(&entry).await;
                        failure
                    }
                    Either::Right(_) => {
                        channels.share(None);
                        newborn.stop(&entry).await;
                        return None;
                    }
                }
            }
            Ok(None) => return None,
            Err(failure) => failure,
        };
        let well = up && began.elapsed() >= limits::LIVED_WELL;
        if well {
            self.backoff.reset();
        }
        *channels.fault.borrow_mut() = Some(failure.clone());
        channels.share(None);
        Some(Lived { failure, up, well })
    }

    /// Brings a channel up and reads the lists; `None` if the proxy stops meanwhile.
    async fn raise(&mut self, channels: &Channels) -> Result<Option<Newborn>, Failure> {
        let (backends, entry) = (self.backends.clone(), self.entry.clone());
        let newborn = {
            let how = entry.plan.protocol;
            let birth = stdio::bring_up(&backends, &entry, None, how);
            match race(birth, entry.closing.wait()).await {
                Either::Left(newborn) => newborn?,
                // What it holds is dropped with the birth: a child is killed, a stream closed.
                Either::Right(()) => return Ok(None),
            }
        };
        self.speaks(newborn.era);
        // From here on it takes calls.
        self.speak(true);
        channels.share(Some(newborn.link.clone()));
        let channel = channel_of(&newborn);
        let reading =
            rt::time::timeout(entry.plan.startup_timeout, self.read_all(&channel, &newborn.init));
        let gone = race(newborn.gone(), entry.closing.wait());
        let failure = match race(reading, gone).await {
            Either::Left(Ok(Ok(()))) => return Ok(Some(newborn)),
            Either::Left(Ok(Err(failure))) => failure,
            Either::Left(Err(_)) => Failure::new(Kind::Timeout, "lists not read in time"),
            Either::Right(Either::Left(())) => Failure::new(Kind::Lost, ""),
            Either::Right(Either::Right(())) => {
                newborn.stop(&entry).await;
                return Ok(None);
            }
        };
        let end = newborn.end(&entry).await;
        Err(if failure.kind == Kind::Lost { end } else { failure })
    }

    // ---- both ----

    /// Watches over a backend that is up: list changes, pings, hints. Returns when it is not.
    async fn watch_over(&mut self, channel: &Channel) -> End {
        let (backends, entry) = (self.backends.clone(), self.entry.clone());
        let mut probed = Instant::now();
        let mut due = probed + self.backoff.jitter(limits::PING_INTERVAL);
        let mut stale = self.refresh().map(|pause| probed + self.backoff.jitter(pause));
        // A call has failed since the last ping.
        let mut suspect = false;
        // Pings in a row that were not answered in time.
        let mut mute = 0;
        loop {
            let now = Instant::now();
            let next = stale.map_or(due, |stale| stale.min(due));
            let mut flags = if next > now {
                rt::time::timeout(next - now, entry.bell.wait()).await.unwrap_or(0)
            } else {
                entry.bell.take()
            };
            let mut said = flags & changed::ANY;
            if flags & STALE != 0 || stale.is_some_and(|stale| Instant::now() >= stale) {
                flags |= changed::ANY;
            }
            if flags & STOP != 0 || entry.closing.is_set() {
                return End::Stopped;
            }
            if flags & RULES != 0 {
                self.follow_rules();
            }
            suspect |= flags & FAILED != 0;
            let mut outcome = Ok(());
            let wanted = LOST | STALE | changed::ANY;
            if flags & wanted != 0 {
                // More of the same burst is likely on its way; what else comes is for the next turn.
                rt::time::sleep(limits::LIST_CHANGE_PAUSE).await;
                let more = entry.bell.take();
                if more & !wanted != 0 {
                    entry.bell.ring(more & !wanted);
                }
                said |= more & changed::ANY;
                let more = if more & STALE != 0 { more | changed::ANY } else { more };
                outcome = self.read_again(channel, flags | more, said).await;
                let now = Instant::now();
                stale = self.refresh().map(|pause| now + self.backoff.jitter(pause));
            } else if suspect || Instant::now() >= due {
                let now = Instant::now();
                if suspect && now.duration_since(probed) < limits::PROBE_PAUSE {
                    // Probed just now: again a little later, not with every failing call.
                    due = due.min(probed + limits::PROBE_PAUSE);
                    continue;
                }
                due = now + self.backoff.jitter(limits::PING_INTERVAL);
                let quiet = backends.board.last_success(entry.id).is_none_or(|last| {
                    now.saturating_duration_since(last) >= limits::PING_INTERVAL / 2
                });
                if quiet || suspect || backends.board.state(entry.id) != State::Up {
                    (probed, suspect) = (now, false);
                    outcome = self.ping(channel).await;
                    mute = if outcome.is_ok() { 0 } else { mute };
                }
            }
            match outcome {
                Ok(()) => {
                    if backends.board.state(entry.id) != State::Up {
                        self.rise();
                    }
                }
                Err(failure) if failure.session_lost => return End::SessionLost,
                Err(failure) if self.is_patient_with(channel, &failure, mute) => {
                    mute += 1;
                    // A child that is busy or frozen keeps what it was sent; killing it would cost
                    // its callers more than waiting.
                    if backends.board.state(entry.id) == State::Up {
                        tracing::warn!(backend = entry.name(), %failure, "backend does not answer");
                        self.show(State::Down, Some(failure.to_string()));
                    }
                }
                Err(failure) => return End::Failed(failure),
            }
        }
    }

    /// Reads what hints say has changed.
    async fn read_again(
        &mut self,
        channel: &Channel,
        flags: u32,
        said: u32,
    ) -> Result<(), Failure> {
        let leg = match channel {
            Channel::Leg(leg) if flags & LOST != 0 => leg,
            _ if flags & LOST != 0 && channel.is_modern() => {
                // A session that a client had was lost, or a call was told of sessions.
                self.ping(channel).await?;
                return self.read_changed(channel, changed::ANY, said).await;
            }
            _ => return self.read_changed(channel, flags & changed::ANY, said).await,
        };
        if leg::known(&self.entry, None, Some(leg.generation)).is_some() {
            // A call has opened another session in the place of ours.
            let mut lost = Failure::new(Kind::Unavailable, "session lost");
            lost.session_lost = true;
            return Err(lost);
        }
        // Another session was lost. If ours is not, the server is the one that it was.
        if leg.has_session() {
            self.ping(channel).await?;
            return self.read_changed(channel, flags & changed::ANY, said).await;
        }
        self.read_all(channel, &leg.init).await
    }

    fn is_patient_with(&self, channel: &Channel, failure: &Failure, mute: u32) -> bool {
        let kept = match (channel, &self.entry.wire) {
            (Channel::Leg(_) | Channel::Posts | Channel::PostsOf(_) | Channel::Client(_), _) => {
                false
            }
            (Channel::Line(_) | Channel::ModernLine(_), Wire::Stdio(_)) => true,
            (Channel::Line(_) | Channel::ModernLine(_), Wire::Http(_)) => {
                mute < limits::SSE_MUTE_PINGS
            }
        };
        kept && matches!(failure.kind, Kind::Timeout | Kind::Busy)
    }

    /// Any answer to a ping is a sign of life, an error too.
    async fn ping(&self, channel: &Channel) -> Result<(), Failure> {
        if channel.is_modern() {
            return era::ping(channel, &self.backends, &self.entry).await;
        }
        let said =
            channel.ask(&self.backends, &self.entry, "ping", None, limits::PING_TIMEOUT).await?;
        if let Said::Error { code: -32022 | -32020, .. } = said {
            return Err(Failure::new(Kind::BadAnswer, "it has no sessions: another server?"));
        }
        if let Said::Error { code, .. } = said {
            tracing::debug!(backend = self.entry.name(), code, "ping answered with an error");
        }
        Ok(())
    }

    /// It is given up: only its end in a reload, or that of the proxy, ends this.
    async fn wait_for_the_end(&self) {
        self.entry.closing.wait().await;
    }
}

/// How it is listened to.
enum Ears {
    Open(#[expect(dead_code, reason = "held until it is dropped")] Listening),
    Heard(#[expect(dead_code, reason = "held until it is dropped")] Subscription),
}

fn channel_of(newborn: &Newborn) -> Channel {
    match newborn.era {
        Era::Session => Channel::Line(newborn.link.clone()),
        _ => Channel::ModernLine(newborn.link.clone()),
    }
}

/// Whether the lists are the same, byte by byte.
fn same(slice: &Slice, pages: &Pages) -> bool {
    ListKind::ALL.into_iter().all(|kind| slice.pages(kind) == pages.of(kind).as_slice())
}
