//! Owns: `[backends.circuit_breaker]`: a backend that fails too often is left alone for a while.
//! Never: a clock, a lock; which outcomes are failures (`backend::around`).
//! Next: `window`, the calls that it looks at.
//!
//! ```toml
//! [backends.circuit_breaker]
//! failure_rate_threshold = 0.5
//! minimum_calls = 5
//! wait_duration_seconds = 30
//! permitted_calls_in_half_open = 3
//! window = 100                      # last calls that are looked at, or
//! window_seconds = 60               # those of the last so many seconds
//! ```
//! Every worker writes the outcomes of its own calls (`window`). Who writes a failure looks at those
//! of all workers, and may open the breaker for all: one word that every worker reads before a call.
//! So a verdict is exact, and holds everywhere at once. A success costs a store or two.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use super::window::Span;
use super::window::{ERA_BITS, ERAS, Window};

/// The settings of a breaker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Share of failures at which it opens, 0 to 1.
    pub failure_rate: f64,
    /// It does not open before the window has so many calls.
    pub minimum_calls: usize,
    /// How long it stays open.
    pub wait: Duration,
    /// Calls that are let through to see whether the backend is well again.
    pub permitted: u32,
    /// Calls that are looked at.
    pub window: Span,
}

/// A breaker, which all workers share.
#[derive(Clone, Debug)]
pub struct Breaker {
    settings: Settings,
    shared: Arc<Shared>,
}

impl PartialEq for Breaker {
    fn eq(&self, other: &Breaker) -> bool {
        self.settings == other.settings
    }
}

#[derive(Debug)]
struct Shared {
    word: Padded,
    window: Window,
}

#[derive(Debug)]
#[repr(align(128))]
struct Padded(AtomicU64);

/// What may be seen of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Calls go through.
    Closed,
    /// A few calls go through.
    HalfOpen,
    /// No call goes through.
    Open,
}

/// A call that was let through; to be handed back with its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    era: u64,
    probe: bool,
}

// The word: two bits of state, twelve of era, and fifty that mean a time in microseconds until
// which it is open (35 years), or counts of probes: sent and succeeded, twenty bits each. The era
// changes with every change of state, so that outcomes of calls of an earlier one are told apart.
const CLOSED: u64 = 0;
const HALF_OPEN: u64 = 1;
const OPEN: u64 = 2;
const REST_BITS: u32 = 50;
const REST: u64 = (1 << REST_BITS) - 1;
const COUNT: u64 = (1 << 20) - 1;

const fn word(state: u64, era: u64, rest: u64) -> u64 {
    state << (ERA_BITS + REST_BITS) | (era % ERAS) << REST_BITS | (rest & REST)
}

const fn parts(word: u64) -> (u64, u64, u64) {
    (word >> (ERA_BITS + REST_BITS), word >> REST_BITS & (ERAS - 1), word & REST)
}

impl Breaker {
    /// A closed breaker for that many workers.
    pub fn new(settings: Settings, workers: usize) -> Breaker {
        let shared = Shared {
            word: Padded(AtomicU64::new(word(CLOSED, 0, 0))),
            window: Window::new(settings.window, workers),
        };
        Breaker { settings, shared: Arc::new(shared) }
    }

    /// What it is, as long as no call comes.
    pub fn state(&self) -> State {
        match parts(self.shared.word.0.load(Ordering::SeqCst)).0 {
            CLOSED => State::Closed,
            HALF_OPEN => State::HalfOpen,
            _ => State::Open,
        }
    }

    /// How long it will stay open at `now`, if it is.
    pub fn would_refuse(&self, now: Duration) -> Option<Duration> {
        let (state, _, rest) = parts(self.shared.word.0.load(Ordering::SeqCst));
        let now = now.as_micros() as u64;
        (state == OPEN && now < rest).then(|| Duration::from_micros(rest - now))
    }

    fn swap(&self, old: u64, new: u64) -> bool {
        let order = Ordering::SeqCst;
        self.shared.word.0.compare_exchange(old, new, order, order).is_ok()
    }

    /// Asks for one call at `now`, a time since any fixed moment that is the same for all workers.
    ///
    /// # Errors
    /// It is open, or half-open with all its calls under way: how long that lasts at least.
    pub fn admit(&self, now: Duration) -> Result<Pass, Duration> {
        loop {
            let old = self.shared.word.0.load(Ordering::SeqCst);
            let (state, era, rest) = parts(old);
            let now = now.as_micros() as u64;
            match state {
                CLOSED => return Ok(Pass { era, probe: false }),
                HALF_OPEN => {
                    if rest >> 20 >= u64::from(self.settings.permitted) {
                        return Err(Duration::ZERO);
                    }
                    if self.swap(old, word(HALF_OPEN, era, rest + (1 << 20))) {
                        return Ok(Pass { era, probe: true });
                    }
                }
                _ if now < rest => return Err(Duration::from_micros(rest - now)),
                _ => {
                    let era = (era + 1) % ERAS;
                    if self.swap(old, word(HALF_OPEN, era, 1 << 20)) {
                        return Ok(Pass { era, probe: true });
                    }
                }
            }
        }
    }

    /// The call failed, or did not, at `now`, on `worker`. True if that opened the breaker.
    pub fn record(&self, worker: usize, pass: Pass, failed: bool, now: Duration) -> bool {
        let until = (now + self.settings.wait).as_micros() as u64;
        if !pass.probe {
            self.shared.window.add(worker, pass.era, failed, now);
            let old = self.shared.word.0.load(Ordering::SeqCst);
            let (state, era, _) = parts(old);
            return failed
                && state == CLOSED
                && era == pass.era
                && self.is_too_much(era, now)
                && self.swap(old, word(OPEN, era + 1, until));
        }
        loop {
            let old = self.shared.word.0.load(Ordering::SeqCst);
            let (state, era, rest) = parts(old);
            if state != HALF_OPEN || era != pass.era {
                return false;
            }
            let succeeded = (rest & COUNT) + 1;
            let new = if failed {
                word(OPEN, era + 1, until)
            } else if succeeded >= u64::from(self.settings.permitted) {
                word(CLOSED, era + 1, 0)
            } else {
                word(HALF_OPEN, era, rest + 1)
            };
            if self.swap(old, new) {
                return failed;
            }
        }
    }

    /// The call ended without saying anything about the backend, such as by its caller's leave.
    pub fn give_back(&self, pass: Pass) {
        if !pass.probe {
            return;
        }
        loop {
            let old = self.shared.word.0.load(Ordering::SeqCst);
            let (state, era, rest) = parts(old);
            if state != HALF_OPEN || era != pass.era || rest >> 20 == 0 {
                return;
            }
            if self.swap(old, word(HALF_OPEN, era, rest - (1 << 20))) {
                return;
            }
        }
    }

    /// Looks at the calls of all workers.
    fn is_too_much(&self, era: u64, now: Duration) -> bool {
        let (calls, failed) = self.shared.window.count(era, now);
        calls >= self.settings.minimum_calls.max(1)
            && failed as f64 >= self.settings.failure_rate * calls as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::testing::Dice;

    const SETTINGS: Settings = Settings {
        failure_rate: 0.5,
        minimum_calls: 5,
        wait: Duration::from_secs(30),
        permitted: 3,
        window: Span::Calls(100),
    };
    const MS: Duration = Duration::from_millis(1);

    fn call(breaker: &Breaker, worker: usize, failed: bool, now: Duration) -> bool {
        let pass = breaker.admit(now).unwrap();
        breaker.record(worker, pass, failed, now)
    }

    #[test]
    fn opens_at_the_threshold_and_not_before() {
        let breaker = Breaker::new(SETTINGS, 2);
        for n in 0..4u32 {
            assert!(!call(&breaker, n as usize % 2, true, MS * n));
        }
        assert!(call(&breaker, 0, true, MS * 5));
        assert_eq!(breaker.state(), State::Open);
        let wait = breaker.admit(MS * 1005).unwrap_err();
        assert_eq!(wait, SETTINGS.wait - MS * 1000);
    }

    #[test]
    fn half_open_lets_exactly_so_many_through() {
        let breaker = Breaker::new(SETTINGS, 2);
        for n in 0..5 {
            call(&breaker, 0, true, MS * n);
        }
        let later = Duration::from_secs(31);
        let passes: Vec<Pass> = (0..10).filter_map(|_| breaker.admit(later).ok()).collect();
        assert_eq!(passes.len(), 3);
        // One leaves: its place is free again.
        breaker.give_back(passes[0]);
        let again = breaker.admit(later).unwrap();
        assert!(breaker.admit(later).is_err());
        assert!(!breaker.record(1, again, false, later));
        assert!(!breaker.record(1, passes[1], false, later));
        assert_eq!(breaker.state(), State::HalfOpen);
        assert!(!breaker.record(0, passes[2], false, later));
        assert_eq!(breaker.state(), State::Closed);
        // Failures from before do not count any more.
        assert!(!call(&breaker, 0, true, later));
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn one_failed_probe_opens_it_again() {
        let breaker = Breaker::new(SETTINGS, 1);
        for n in 0..5 {
            call(&breaker, 0, true, MS * n);
        }
        let later = Duration::from_secs(31);
        let (first, second) = (breaker.admit(later).unwrap(), breaker.admit(later).unwrap());
        assert!(breaker.record(0, first, true, later));
        assert!(breaker.admit(later + Duration::from_secs(29)).is_err());
        // What was sent before says nothing about what comes.
        assert!(!breaker.record(0, second, false, later));
        assert_eq!(breaker.state(), State::Open);
    }

    /// A window that never goes stale: after a million successes the last hundred calls decide.
    #[test]
    fn after_a_million_successes() {
        let breaker = Breaker::new(SETTINGS, 2);
        let mut now = MS;
        for n in 0..1_000_000 {
            now += Duration::from_micros(50);
            call(&breaker, n % 2, false, now);
        }
        let mut failures = 0;
        while breaker.state() == State::Closed {
            now += MS;
            call(&breaker, failures % 2, true, now);
            failures += 1;
        }
        assert_eq!(failures, 50);
    }

    /// A worker that has long been silent does not bring its old outcomes in.
    #[test]
    fn the_last_calls_of_all_workers_count() {
        let breaker = Breaker::new(Settings { window: Span::Calls(10), ..SETTINGS }, 2);
        for n in 0..10 {
            call(&breaker, 0, false, MS * n);
        }
        let mut now = MS * 1000;
        for _ in 0..4 {
            now += MS;
            assert!(!call(&breaker, 1, true, now));
        }
        assert!(call(&breaker, 1, true, now + MS));
    }

    /// With a window of time, failures count for as long as they are in it, however many calls came.
    #[test]
    fn a_window_of_time() {
        let window = Span::Time(Duration::from_secs(10));
        let breaker = Breaker::new(Settings { window, ..SETTINGS }, 2);
        for n in 0..4u32 {
            assert!(!call(&breaker, 0, true, MS * n));
        }
        // Eleven seconds later the four are forgotten.
        let mut now = MS * 11_000;
        for n in 0..600 {
            now += MS;
            assert!(!call(&breaker, n % 2, false, now));
        }
        // Now it takes as many failures as there were successes, since these are in it too.
        let mut failures = 0;
        while breaker.state() == State::Closed {
            now += MS;
            call(&breaker, failures % 2, true, now);
            failures += 1;
        }
        assert_eq!(failures, 600);
    }

    /// Hours of chance against a plain model that sees everything.
    #[test]
    fn agrees_with_a_model() {
        for seed in 0..20 {
            let mut dice = Dice(seed);
            let last_calls = 20 + dice.below(30) as usize;
            let settings = Settings {
                failure_rate: [0.1, 0.5, 1.0][dice.below(3) as usize],
                minimum_calls: 1 + dice.below(20) as usize,
                wait: Duration::from_secs(1 + dice.below(60)),
                permitted: 1 + dice.below(5) as u32,
                window: Span::Calls(last_calls),
            };
            let breaker = Breaker::new(settings, 3);
            let mut window: Vec<bool> = Vec::new();
            let mut open_until: Option<Duration> = None;
            let mut probes = 0;
            let mut now = Duration::from_secs(1);
            let mut opened = 0;
            for _ in 0..20_000 {
                now += MS * (1 + dice.below(1000) as u32);
                let failed = dice.below(1000) < [20, 400, 900][(now.as_secs() / 600 % 3) as usize];
                let may = open_until.is_none_or(|until| now >= until);
                let admitted = breaker.admit(now);
                assert_eq!(admitted.is_ok(), may);
                let Ok(pass) = admitted else { continue };
                let tripped = breaker.record(dice.below(3) as usize, pass, failed, now);
                let should_trip = if open_until.is_some() {
                    probes += u32::from(!failed);
                    if probes >= settings.permitted {
                        (open_until, probes) = (None, 0);
                        window.clear();
                    }
                    failed
                } else {
                    window.push(failed);
                    let last = &window[window.len().saturating_sub(last_calls)..];
                    let count = last.iter().filter(|failed| **failed).count();
                    failed
                        && last.len() >= settings.minimum_calls
                        && count as f64 >= settings.failure_rate * last.len() as f64
                };
                assert_eq!(tripped, should_trip);
                if tripped {
                    (open_until, probes) = (Some(now + settings.wait), 0);
                    opened += 1;
                }
            }
            assert!(opened > 0, "seed {seed}");
        }
    }
}
