//! Owns: what a call leaves behind for whoever accounts for it: its attempts, and their spans.
//! Never: a clock: times are those that the call has read anyway.
//! Next: `replies`, what comes back.

use std::cell::{Cell, OnceCell, RefCell};
use std::time::{Duration, Instant};

use crate::error::Kind;
use crate::limits;
use crate::plan::{BackendId, WorkerId};

/// The trail of one call, over all of its attempts.
#[derive(Debug, Default)]
pub struct Trail {
    first: Cell<Option<Instant>>,
    /// Time between attempts.
    idle: Cell<Duration>,
    running: Cell<u32>,
    stopped: Cell<Option<Instant>>,
    attempts: Cell<u32>,
    hedges: Cell<u32>,
    ejected: Cell<bool>,
    /// Who was asked last.
    backend: Cell<Option<BackendId>>,
    /// Whose child or event stream it went to last.
    worker: Cell<Option<WorkerId>>,
    /// Who was asked before, one behind the other.
    left: RefCell<Vec<Share>>,
    trace: OnceCell<Box<Traced>>,
}

/// The attempts of a call at one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which one.
    pub backend: BackendId,
    /// Attempts that were made there.
    pub attempts: u32,
    /// Those of them that were made beside another one.
    pub hedges: u32,
}

/// What the trail of a call that ran elsewhere for several says to one of them.
#[derive(Clone, Debug)]
pub struct Past {
    first: Option<Instant>,
    stopped: Option<Instant>,
    idle: Duration,
    ejected: bool,
    worker: Option<WorkerId>,
    shares: Vec<Share>,
    spans: Vec<AttemptSpan>,
}

impl Past {
    /// The same for one who waited with whoever is told of the attempts: who answered, and when
    /// somebody was at work.
    pub(super) fn without_attempts(&self) -> Past {
        let none = |share: &Share| Share { attempts: 0, hedges: 0, ..*share };
        let shares = self.shares.iter().map(none).collect();
        Past { shares, spans: Vec::new(), ..self.clone() }
    }

    /// The same for one whose message the backend did not get.
    pub(super) fn without_spans(&self) -> Past {
        Past { spans: Vec::new(), ..self.clone() }
    }
}

/// What is needed to give every attempt a span of its own.
#[derive(Debug)]
pub struct Traced {
    /// Where the sixteen digits of the span's id stand in the message that is sent now.
    pub at: Cell<usize>,
    /// Ids are made from it.
    pub seed: u64,
    /// Attempts so far.
    pub spans: RefCell<Vec<AttemptSpan>>,
}

/// One attempt.
#[derive(Clone, Debug)]
pub struct AttemptSpan {
    /// Its span's id, as the backend was told.
    pub id: u64,
    /// Who was asked.
    pub backend: BackendId,
    /// When it began.
    pub began: Instant,
    /// When it ended; `None` = it has not.
    pub ended: Option<Instant>,
    /// Why it failed.
    pub failed: Option<Kind>,
}

impl Trail {
    /// Attempts that were made.
    pub fn attempts(&self) -> u32 {
        self.attempts.get()
    }

    /// Those of them that were made beside another one.
    pub fn hedges(&self) -> u32 {
        self.hedges.get()
    }

    /// Whether the backend was found ejected.
    pub fn was_ejected(&self) -> bool {
        self.ejected.get()
    }

    /// Of a call that began at `began` and took `total`: the time without an attempt under way.
    pub fn overhead(&self, began: Instant, total: Duration) -> Duration {
        match self.first.get() {
            Some(first) => (first.saturating_duration_since(began) + self.idle.get()).min(total),
            None => total,
        }
    }

    /// The backend that was asked last; `None` = none was.
    pub fn backend(&self) -> Option<BackendId> {
        self.backend.get()
    }

    /// The worker whose child or event stream it went to last; `None` = to none.
    pub fn worker(&self) -> Option<WorkerId> {
        self.worker.get()
    }

    /// It goes to a child or an event stream of that worker.
    pub(super) fn goes_to(&self, worker: WorkerId) {
        self.worker.set(Some(worker));
    }

    /// The attempts at each backend that was asked.
    pub fn shares(&self) -> impl Iterator<Item = Share> {
        let left = self.left.borrow().clone();
        let (attempts, hedges) = (self.attempts.get(), self.hedges.get());
        let before = |of: fn(&Share) -> u32| left.iter().map(of).sum::<u32>();
        let last = self.backend.get().map(|backend| Share {
            backend,
            attempts: attempts - before(|share| share.attempts),
            hedges: hedges - before(|share| share.hedges),
        });
        left.into_iter().chain(last)
    }

    /// Gives spans to its attempts, or says that their ids stand elsewhere from now on.
    pub fn set_trace(&self, traced: Traced) {
        if let Err(traced) = self.trace.set(Box::new(traced))
            && let Some(known) = self.trace.get()
        {
            known.at.set(traced.at.get());
        }
    }

    /// See [`Trail::set_trace`].
    pub fn trace(&self) -> Option<&Traced> {
        self.trace.get().map(|traced| &**traced)
    }

    /// What it has to say by now.
    pub(super) fn past(&self) -> Past {
        let spans = self.trace().map(|traced| traced.spans.borrow().clone());
        Past {
            first: self.first.get(),
            stopped: self.stopped.get(),
            idle: self.idle.get(),
            ejected: self.ejected.get(),
            worker: self.worker.get(),
            shares: self.shares().collect(),
            spans: spans.unwrap_or_default(),
        }
    }

    /// Goes on behind the trail of a call that ran elsewhere for this one too.
    pub(super) fn go_on_behind(&self, past: Past) {
        for share in &past.shares {
            self.turn_to(share.backend);
            self.attempts.set(self.attempts.get() + share.attempts);
            self.hedges.set(self.hedges.get() + share.hedges);
        }
        let between = match (self.stopped.get(), past.first) {
            (Some(stopped), Some(first)) => first.saturating_duration_since(stopped),
            _ => Duration::ZERO,
        };
        self.idle.set(self.idle.get() + between + past.idle);
        self.first.set(self.first.get().or(past.first));
        self.stopped.set(past.stopped.or(self.stopped.get()));
        self.ejected.set(self.ejected.get() || past.ejected);
        self.worker.set(past.worker.or(self.worker.get()));
        if let Some(traced) = self.trace() {
            traced.spans.borrow_mut().extend(past.spans);
        }
    }

    /// That backend is asked from now on.
    fn turn_to(&self, backend: BackendId) {
        if self.backend.get().is_some_and(|last| last != backend) {
            let last = self.shares().last();
            self.left.borrow_mut().extend(last);
        }
        self.backend.set(Some(backend));
    }

    /// An attempt begins at that backend.
    pub(super) fn begin(&self, now: Instant, backend: BackendId) {
        self.turn_to(backend);
        if self.first.get().is_none() {
            self.first.set(Some(now));
        } else if self.running.get() == 0
            && let Some(stopped) = self.stopped.get()
        {
            self.idle.set(self.idle.get() + now.saturating_duration_since(stopped));
        }
        self.running.set(self.running.get() + 1);
        self.attempts.set(self.attempts.get() + 1);
    }

    /// An attempt of several ended.
    pub(super) fn end(&self, now: Instant) {
        self.running.set(self.running.get().saturating_sub(1));
        self.stopped.set(Some(now));
    }

    pub(super) fn count_hedge(&self) {
        self.hedges.set(self.hedges.get() + 1);
    }

    pub(super) fn note_ejected(&self) {
        self.ejected.set(true);
    }
}

impl Traced {
    /// Where ids stand, and what those of spans to come are made from.
    pub(super) fn rest(&self) -> (usize, u64) {
        (self.at.get(), self.seed.wrapping_add(self.spans.borrow().len() as u64))
    }

    /// Writes the id of a new span into the message of an attempt; its number here.
    pub(super) fn begin(
        &self,
        message: &mut [u8],
        now: Instant,
        backend: BackendId,
    ) -> Option<usize> {
        let mut spans = self.spans.borrow_mut();
        let number = spans.len();
        if number >= limits::SPANS_PER_CALL_MAX {
            return None;
        }
        let id = mix(self.seed.wrapping_add(number as u64)).max(1);
        let digits = format!("{id:016x}");
        let at = self.at.get();
        message.get_mut(at..at + digits.len())?.copy_from_slice(digits.as_bytes());
        spans.push(AttemptSpan { id, backend, began: now, ended: None, failed: None });
        Some(number)
    }

    /// That attempt failed, or has answered.
    pub(super) fn judge(&self, number: usize, failed: Option<Kind>) {
        if let Some(span) = self.spans.borrow_mut().get_mut(number) {
            span.failed = failed;
        }
    }

    /// That attempt is over.
    pub(super) fn end(&self, number: usize, now: Instant) {
        if let Some(span) = self.spans.borrow_mut().get_mut(number) {
            span.ended = Some(now);
        }
    }
}

/// Spreads a number over 64 bits (SplitMix64; not for secrets).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overhead_is_the_time_without_an_attempt() {
        let trail = Trail::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let total = Duration::from_millis(100);
        assert_eq!(trail.overhead(start, total), total);
        trail.begin(at(10), 1);
        trail.begin(at(15), 1);
        trail.end(at(20));
        trail.end(at(30));
        trail.begin(at(50), 1);
        assert_eq!(trail.overhead(start, total), Duration::from_millis(10 + 20));
        assert_eq!((trail.attempts(), trail.hedges()), (3, 0));
    }

    #[test]
    fn attempts_belong_to_the_backend_that_was_asked() {
        let (trail, now) = (Trail::default(), Instant::now());
        assert_eq!((trail.backend(), trail.shares().count()), (None, 0));
        for backend in [4, 4, 7, 2] {
            trail.begin(now, backend);
            if backend == 7 {
                trail.count_hedge();
                trail.begin(now, backend);
            }
        }
        let share = |backend, attempts, hedges| Share { backend, attempts, hedges };
        let shares: Vec<Share> = trail.shares().collect();
        assert_eq!(shares, [share(4, 2, 0), share(7, 2, 1), share(2, 1, 0)]);
        assert_eq!(trail.backend(), Some(2));
    }

    #[test]
    fn a_trail_goes_on_behind_that_of_a_call_that_ran_elsewhere() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let ran = Trail::default();
        ran.begin(at(40), 7);
        ran.end(at(50));
        ran.begin(at(60), 7);
        ran.end(at(90));
        let share = |backend, attempts| Share { backend, attempts, hedges: 0 };
        let trail = Trail::default();
        trail.begin(at(10), 4);
        trail.end(at(20));
        trail.go_on_behind(ran.past());
        assert_eq!(trail.shares().collect::<Vec<_>>(), [share(4, 1), share(7, 2)]);
        let total = Duration::from_millis(100);
        assert_eq!(trail.overhead(start, total), Duration::from_millis(10 + 20 + 10));
        // One who came later to wait for it too.
        let other = Trail::default();
        other.go_on_behind(ran.past().without_attempts());
        assert_eq!((other.attempts(), other.backend()), (0, Some(7)));
        assert_eq!(other.overhead(at(45), total), Duration::from_millis(10));
    }

    #[test]
    fn every_attempt_has_a_span_of_its_own() {
        let traced = Traced { at: Cell::new(2), seed: 7, spans: RefCell::default() };
        let now = Instant::now();
        let mut ids = std::collections::HashSet::new();
        for number in 0..limits::SPANS_PER_CALL_MAX {
            let mut message = *b"<<................>>";
            assert_eq!(traced.begin(&mut message, now, 0), Some(number));
            let id = std::str::from_utf8(&message[2..18]).unwrap().to_owned();
            assert_eq!(u64::from_str_radix(&id, 16), Ok(traced.spans.borrow()[number].id));
            assert!(ids.insert(id));
        }
        assert_eq!(traced.begin(&mut [0; 20], now, 0), None);
        traced.judge(1, Some(Kind::Lost));
        traced.end(1, now);
        assert_eq!(traced.spans.borrow()[1].failed, Some(Kind::Lost));
    }
}
