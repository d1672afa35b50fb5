//! Owns: what is known of a backend's health, readable from any thread; pauses between attempts.
//! Never: probing (`supervise`), verdicts of breakers.
//! Next: `era`, which of the two a backend speaks.
//!
//! Every atomic has one writer: a backend's line is written by its owner worker, a share by its
//! own worker. Texts do not fit atomics; they go to the control thread as [`Note`]s, and are
//! dropped when it is busy: the next change brings the next text.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::parking;
use crate::limits;
use crate::mcp::revision::Era;
use crate::mcp::task_ids::TaskIds;
use crate::middleware::reuse::Use;
use crate::plan::{BackendId, RestartPlan, WorkerId, slot};

/// Where a backend is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Being brought up for the first time.
    Starting = 0,
    /// Its handshake is complete and its lists are read.
    Up = 1,
    /// It was up and does not answer.
    Down = 2,
    /// It failed, and the next attempt waits.
    Backoff = 3,
    /// As `Backoff`, after several failures in a row.
    CrashLoop = 4,
    /// Given up (`restart.give_up_after`).
    Failed = 5,
    /// Ended with the proxy, or by a reload.
    Stopped = 6,
}

impl State {
    /// Every state, in the order of their numbers.
    pub const ALL: [State; 7] = [
        State::Starting,
        State::Up,
        State::Down,
        State::Backoff,
        State::CrashLoop,
        State::Failed,
        State::Stopped,
    ];

    /// Its name in the admin surface.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Up => "up",
            State::Down => "down",
            State::Backoff => "backoff",
            State::CrashLoop => "crash-loop",
            State::Failed => "failed",
            State::Stopped => "stopped",
        }
    }

    /// Whether calls can be expected to succeed.
    pub const fn is_healthy(self) -> bool {
        matches!(self, State::Up)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// News for the control thread.
#[derive(Clone, Debug)]
pub enum Note {
    /// A backend's state or lists changed.
    Backend {
        /// Which one.
        id: BackendId,
        /// Its state now.
        state: State,
        /// Tools in its list.
        tools: u32,
        /// Why, when it is not well; may name addresses and statuses, never secrets.
        detail: Option<String>,
    },
}

/// Takes news to the control thread, from any worker, without waiting.
pub type Tell = Box<dyn Fn(Note) + Send + Sync>;

/// Adds one to a count that this thread alone writes.
fn raise(count: &AtomicU64) {
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// One backend, written by its owner.
#[derive(Default)]
#[repr(align(128))]
struct Line {
    state: AtomicU8,
    era: AtomicU8,
    tools: AtomicU32,
    restarts: AtomicU32,
}

/// One backend as one worker sees it, written by that worker.
#[derive(Default)]
#[repr(align(128))]
struct Share {
    in_flight: AtomicU32,
    children: AtomicU32,
    idle: AtomicU32,
    /// Milliseconds since the board was made, plus 1; 0 = never.
    success: AtomicU64,
    cache: Cached,
}

/// What one worker's cache of one backend did and holds, written by that worker.
#[derive(Default)]
struct Cached {
    hits: AtomicU64,
    misses: AtomicU64,
    bypassed: AtomicU64,
    merged: AtomicU64,
    entries: AtomicU64,
    bytes: AtomicU64,
    /// The age of both lists when entries and bytes were counted.
    age: AtomicU64,
}

/// What the caches of one backend did and hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Calls answered from memory.
    pub hits: u64,
    /// Calls that might have been.
    pub misses: u64,
    /// Calls that never are.
    pub bypassed: u64,
    /// Calls that ran together with another one.
    pub merged: u64,
    /// Answers kept: every worker keeps all, so the most that one has.
    pub entries: u64,
    /// Their bytes, likewise.
    pub bytes: u64,
}

/// What makes answers of one backend old. Single atomics that every thread may raise: an answer
/// that was asked for before is void at once on all workers, whatever mail is under way.
#[derive(Default)]
#[repr(align(128))]
struct Age {
    tools: AtomicU64,
    resources: AtomicU64,
    /// Requests that the backend sent to clients: an answer that needed one is its caller's alone.
    asks: AtomicU64,
}

/// All that is known of one backend.
struct Row {
    line: Line,
    age: Age,
    /// One for each worker.
    shares: Box<[Share]>,
    /// Workers that have nothing to do with it any more.
    left: AtomicUsize,
}

impl Row {
    fn new(workers: usize) -> Row {
        let shares = (0..workers).map(|_| Share::default()).collect();
        Row { line: Line::default(), age: Age::default(), shares, left: AtomicUsize::new(0) }
    }

    /// As it was made, for another backend; ages go on, as what is old must stay so.
    fn clear(&self) {
        let Line { state, era, tools, restarts } = &self.line;
        state.store(0, Ordering::Relaxed);
        era.store(0, Ordering::Relaxed);
        for count in [tools, restarts] {
            count.store(0, Ordering::Relaxed);
        }
        for share in &self.shares {
            let Share { in_flight, children, idle, success, cache } = share;
            for count in [in_flight, children, idle] {
                count.store(0, Ordering::Relaxed);
            }
            let Cached { hits, misses, bypassed, merged, entries, bytes, age } = cache;
            for count in [success, hits, misses, bypassed, merged, entries, bytes, age] {
                count.store(0, Ordering::Relaxed);
            }
        }
        self.left.store(0, Ordering::Release);
    }
}

/// Rows that are made together.
const CHUNK: usize = 16;

/// The health of all backends, shared by all threads.
pub struct Board {
    born: Instant,
    workers: usize,
    /// By place ([`slot`]), made when first needed: a worker only follows a pointer.
    chunks: Box<[OnceLock<Box<[Row]>>]>,
    tell: Tell,
    task_ids: TaskIds,
}

impl Board {
    /// A board on which all backends are in their first start.
    pub fn new(workers: usize, backends: usize, tell: Tell) -> Arc<Board> {
        let chunks = (0..limits::BACKENDS_MAX.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        let task_ids = TaskIds::new(parking::fresh_key());
        let board = Board { born: Instant::now(), workers, chunks, tell, task_ids };
        for id in 0..backends {
            board.the(id);
        }
        Arc::new(board)
    }

    fn the(&self, id: BackendId) -> &Row {
        let slot = slot(id);
        let made = || (0..CHUNK).map(|_| Row::new(self.workers)).collect();
        &self.chunks[slot / CHUNK].get_or_init(made)[slot % CHUNK]
    }

    /// Begins a row for a backend that no worker has heard of yet; whoever had the place before has
    /// [left](Board::has_left) it.
    pub fn open(&self, id: BackendId) {
        self.the(id).clear();
    }

    /// A worker has nothing to do with a backend any more.
    pub(super) fn leave(&self, id: BackendId) {
        self.the(id).left.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether that is so of all workers.
    pub fn has_left(&self, id: BackendId) -> bool {
        self.the(id).left.load(Ordering::Acquire) >= self.workers
    }

    /// Its state.
    pub fn state(&self, id: BackendId) -> State {
        State::ALL[usize::from(self.the(id).line.state.load(Ordering::Relaxed))]
    }

    /// What it speaks, as last found out.
    pub fn era(&self, id: BackendId) -> Era {
        Era::ALL[usize::from(self.the(id).line.era.load(Ordering::Relaxed))]
    }

    /// Tools in its list as last read.
    pub fn tools(&self, id: BackendId) -> u32 {
        self.the(id).line.tools.load(Ordering::Relaxed)
    }

    /// How often it was brought up again.
    pub fn restarts(&self, id: BackendId) -> u32 {
        self.the(id).line.restarts.load(Ordering::Relaxed)
    }

    /// Calls in flight, all workers together.
    pub fn in_flight(&self, id: BackendId) -> u32 {
        self.row(id).map(|share| share.in_flight.load(Ordering::Relaxed)).sum()
    }

    /// Children that sessions have of it, all workers together.
    pub fn children(&self, id: BackendId) -> u32 {
        self.row(id).map(|share| share.children.load(Ordering::Relaxed)).sum()
    }

    /// Pooled connections that wait for a request, all workers together, as of about a second ago.
    pub fn idle_connections(&self, id: BackendId) -> u32 {
        self.row(id).map(|share| share.idle.load(Ordering::Relaxed)).sum()
    }

    /// When it last answered anything; `None` = never. Exact to about 20 ms.
    pub fn last_success(&self, id: BackendId) -> Option<Instant> {
        let last = self.row(id).map(|share| share.success.load(Ordering::Relaxed)).max()?;
        last.checked_sub(1).map(|since| self.born + Duration::from_millis(since))
    }

    /// What the caches of a backend did and hold, all workers together.
    pub fn cache(&self, id: BackendId) -> CacheStats {
        let sum = |of: fn(&Cached) -> &AtomicU64| {
            self.row(id).map(|share| of(&share.cache).load(Ordering::Relaxed)).sum()
        };
        let age = self.age(id, true) + self.age(id, false);
        let most = |of: fn(&Cached) -> &AtomicU64| {
            let current = self.row(id).map(|share| &share.cache);
            let current = current.filter(|cache| cache.age.load(Ordering::Relaxed) == age);
            current.map(|cache| of(cache).load(Ordering::Relaxed)).max().unwrap_or(0)
        };
        CacheStats {
            hits: sum(|cache| &cache.hits),
            misses: sum(|cache| &cache.misses),
            bypassed: sum(|cache| &cache.bypassed),
            merged: sum(|cache| &cache.merged),
            entries: most(|cache| &cache.entries),
            bytes: most(|cache| &cache.bytes),
        }
    }

    /// Empties the caches of all backends: no call from now on is answered with what is there now.
    pub fn clear_caches(&self) {
        for row in self.chunks.iter().filter_map(OnceLock::get).flatten() {
            row.age.tools.fetch_add(1, Ordering::AcqRel);
            row.age.resources.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Answers about tools, resources or both are old from now on.
    pub fn outdate(&self, id: BackendId, tools: bool, resources: bool) {
        let age = &self.the(id).age;
        for (old, which) in [(tools, &age.tools), (resources, &age.resources)] {
            if old {
                which.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// Grows whenever what is kept becomes old.
    pub(super) fn age(&self, id: BackendId, resources: bool) -> u64 {
        let age = &self.the(id).age;
        if resources { &age.resources } else { &age.tools }.load(Ordering::Acquire)
    }

    /// The backend asked a client for something.
    pub(super) fn asked(&self, id: BackendId) {
        self.the(id).age.asks.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn asks(&self, id: BackendId) -> u64 {
        self.the(id).age.asks.load(Ordering::Acquire)
    }

    pub(super) fn count_cache(&self, worker: WorkerId, id: BackendId, used: Use) {
        let cache = &self.share(worker, id).cache;
        raise(match used {
            Use::Hit => &cache.hits,
            Use::Miss => &cache.misses,
            Use::Bypass => &cache.bypassed,
        });
    }

    pub(super) fn count_merged(&self, worker: WorkerId, id: BackendId) {
        raise(&self.share(worker, id).cache.merged);
    }

    pub(super) fn set_cache(&self, worker: WorkerId, id: BackendId, entries: u64, bytes: u64) {
        let cache = &self.share(worker, id).cache;
        cache.entries.store(entries, Ordering::Relaxed);
        cache.bytes.store(bytes, Ordering::Relaxed);
        cache.age.store(self.age(id, true) + self.age(id, false), Ordering::Relaxed);
    }

    /// Time since the board was made: the same for all threads.
    pub fn elapsed(&self) -> Duration {
        self.born.elapsed()
    }

    /// Ids of tasks, as callers of the request era have them.
    pub(super) fn task_ids(&self) -> &TaskIds {
        &self.task_ids
    }

    fn row(&self, id: BackendId) -> impl Iterator<Item = &Share> {
        self.the(id).shares.iter()
    }

    fn share(&self, worker: WorkerId, id: BackendId) -> &Share {
        &self.the(id).shares[worker]
    }

    /// The owner's word; the control thread is told.
    pub(super) fn set(&self, id: BackendId, state: State, detail: Option<String>) {
        self.the(id).line.state.store(state as u8, Ordering::Relaxed);
        (self.tell)(Note::Backend { id, state, tools: self.tools(id), detail });
    }

    pub(super) fn set_era(&self, id: BackendId, era: Era) {
        self.the(id).line.era.store(era as u8, Ordering::Relaxed);
    }

    pub(super) fn set_tools(&self, id: BackendId, tools: usize) {
        let tools = u32::try_from(tools).unwrap_or(u32::MAX);
        self.the(id).line.tools.store(tools, Ordering::Relaxed);
    }

    pub(super) fn count_restart(&self, id: BackendId) {
        let restarts = &self.the(id).line.restarts;
        restarts.store(restarts.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    pub(super) fn set_in_flight(&self, worker: WorkerId, id: BackendId, calls: usize) {
        self.share(worker, id).in_flight.store(calls as u32, Ordering::Relaxed);
    }

    pub(super) fn set_children(&self, worker: WorkerId, id: BackendId, children: usize) {
        self.share(worker, id).children.store(children as u32, Ordering::Relaxed);
    }

    pub(super) fn set_idle(&self, worker: WorkerId, id: BackendId, connections: usize) {
        self.share(worker, id).idle.store(connections as u32, Ordering::Relaxed);
    }

    pub(super) fn succeeded(&self, worker: WorkerId, id: BackendId, now: Instant) {
        let since = now.saturating_duration_since(self.born).as_millis() as u64 + 1;
        let success = &self.share(worker, id).success;
        if success.load(Ordering::Relaxed) != since {
            success.store(since, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").field("workers", &self.workers).finish_non_exhaustive()
    }
}

/// Pauses between attempts: doubling from `initial` to `max`, each between half and the whole of
/// its step by chance, so that backends that fell together do not rise together.
#[derive(Debug)]
pub(super) struct Backoff {
    plan: RestartPlan,
    failures: u32,
    chance: Chance,
}

impl Backoff {
    pub(super) fn new(plan: RestartPlan, seed: u64) -> Backoff {
        Backoff { plan, failures: 0, chance: Chance(seed) }
    }

    /// One more failure; the pause before the next attempt, or `None` to give up.
    pub(super) fn next(&mut self, max: Duration) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        if self.plan.give_up_after.is_some_and(|limit| self.failures >= limit.max(1)) {
            return None;
        }
        let doublings = (self.failures - 1).min(20);
        let step = self.plan.initial.saturating_mul(1 << doublings).min(self.plan.max).min(max);
        Some(self.chance.between(step / 2, step))
    }

    /// Other pauses from now on.
    pub(super) fn follow(&mut self, plan: RestartPlan) {
        self.plan = plan;
    }

    /// Failures since all was well.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// All is well again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// What the next pause is called.
    pub(super) fn state(&self) -> State {
        if self.failures >= limits::CRASH_LOOP_AFTER { State::CrashLoop } else { State::Backoff }
    }

    /// `duration`, up to a fifth shorter or longer.
    pub(super) fn jitter(&mut self, duration: Duration) -> Duration {
        self.chance.between(duration * 4 / 5, duration * 6 / 5)
    }
}

/// Numbers by chance, the same for the same seed (splitmix64). For spreading work, not for secrets.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn between(&mut self, low: Duration, high: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let range = high.saturating_sub(low).as_micros() as u64 + 1;
        low + Duration::from_micros(z % range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(give_up_after: Option<u32>) -> RestartPlan {
        RestartPlan {
            initial: Duration::from_millis(500),
            max: Duration::from_secs(30),
            give_up_after,
        }
    }

    #[test]
    fn caches_are_counted_and_cleared() {
        let board = Board::new(2, 2, Box::new(|_| {}));
        board.count_cache(0, 1, Use::Hit);
        board.count_cache(1, 1, Use::Miss);
        board.count_cache(1, 1, Use::Bypass);
        board.count_merged(1, 1);
        board.set_cache(0, 1, 3, 300);
        board.set_cache(1, 1, 4, 400);
        let stats =
            CacheStats { hits: 1, misses: 1, bypassed: 1, merged: 1, entries: 4, bytes: 400 };
        assert_eq!((board.cache(0), board.cache(1)), (CacheStats::default(), stats));
        let (tools, resources) = (board.age(1, false), board.age(1, true));
        board.outdate(1, false, true);
        assert_eq!((board.age(1, false), board.age(1, true)), (tools, resources + 1));
        board.set_cache(0, 1, 3, 300);
        assert_eq!(board.cache(1).entries, 3, "what the other one has is old");
        board.clear_caches();
        assert!(board.age(1, false) > tools);
        assert_eq!(board.cache(1), CacheStats { entries: 0, bytes: 0, ..stats });
    }

    #[test]
    fn pauses_double_up_to_the_bound_and_are_spread() {
        for seed in 0..200 {
            let mut backoff = Backoff::new(plan(None), seed);
            let mut step = Duration::from_millis(500);
            for _ in 0..40 {
                let pause = backoff.next(Duration::MAX).unwrap();
                assert!(step / 2 <= pause && pause <= step, "{pause:?} for {step:?}");
                step = (step * 2).min(Duration::from_secs(30));
            }
            assert!(backoff.next(Duration::from_secs(5)).unwrap() <= Duration::from_secs(5));
            backoff.reset();
            assert!(backoff.next(Duration::MAX).unwrap() <= Duration::from_millis(500));
        }
        let first = |seed| Backoff::new(plan(None), seed).next(Duration::MAX).unwrap();
        assert!((0..50).any(|seed| first(seed) != first(seed + 1)));
        assert_eq!(first(7), first(7));
    }

    #[test]
    fn it_gives_up_only_where_told() {
        let mut backoff = Backoff::new(plan(Some(3)), 1);
        assert!(backoff.next(Duration::MAX).is_some());
        assert!(backoff.next(Duration::MAX).is_some());
        assert!(backoff.next(Duration::MAX).is_none());
    }

    #[test]
    fn a_crash_loop_shows() {
        let mut backoff = Backoff::new(plan(None), 1);
        for _ in 1..limits::CRASH_LOOP_AFTER {
            backoff.next(Duration::MAX);
            assert_eq!(backoff.state(), State::Backoff);
        }
        backoff.next(Duration::MAX);
        assert_eq!(backoff.state(), State::CrashLoop);
    }

    #[test]
    fn the_board_sums_over_workers() {
        let (notes, inbox) = std::sync::mpsc::sync_channel(1);
        let board = Board::new(2, 3, Box::new(move |note| drop(notes.try_send(note))));
        assert_eq!((board.state(1), board.last_success(1)), (State::Starting, None));
        board.set_in_flight(0, 1, 4);
        board.set_in_flight(1, 1, 5);
        board.set_in_flight(1, 2, 9);
        assert_eq!(board.in_flight(1), 9);
        let now = board.born + Duration::from_millis(70);
        board.succeeded(0, 1, board.born + Duration::from_millis(20));
        board.succeeded(1, 1, now);
        assert_eq!(board.last_success(1), Some(now));
        board.set_tools(1, 6);
        board.set(1, State::Up, None);
        board.set(1, State::Down, Some("no room for this one".into()));
        assert_eq!(board.state(1), State::Down);
        let Note::Backend { id, state, tools, detail } = inbox.recv().unwrap();
        assert_eq!((id, state, tools, detail), (1, State::Up, 6, None));
    }

    #[test]
    fn states_and_their_numbers_agree() {
        for (number, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, number);
        }
    }
}
