//! Owns: `[backends.retry]`: whether, and after what pause, a failed attempt is made again.
//! Never: a clock, the attempts themselves (`backend::around`).
//! Next: `route`.
//!
//! ```toml
//! [backends.retry]
//! max_retries = 3
//! initial_backoff_ms = 100
//! max_backoff_ms = 5000
//! budget_percent = 20.0       # retries of the last 10 s: at most this share of its calls,
//! min_retries_per_sec = 10    # or ten times this number, if that is more
//! tools = ["pay_*"]           # repeated although their outcome is unknown
//! ```
//! Repeated for every method: what was surely not executed, and failures that the server itself
//! reports. Repeated for reads, and for tools that are annotated read-only or idempotent or are
//! listed in `tools`: what may have been executed (a time-out, a lost connection, 502, 504). Never:
//! faults of the client, and results that say `isError`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::pattern::Patterns;

/// The settings of one backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Repetitions of one call at most.
    pub max_retries: u32,
    /// Bound of the first pause; it doubles with each one.
    pub initial: Duration,
    /// Bound of every pause.
    pub max: Duration,
    /// Tools that are repeated although their outcome is unknown.
    pub tools: Patterns,
    /// Share of calls that may be retries.
    pub budget: Option<Budget>,
}

/// How an attempt ended, as far as repeating it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was surely not executed.
    Unsent,
    /// The server itself says that it failed.
    Reported,
    /// It may have been executed.
    Unknown,
    /// An answer, or a fault of the caller: it stays as it is.
    Final,
}

impl Retry {
    /// The pause before the next attempt; `None` = there is none.
    ///
    /// `made` attempts have been made, `safe` = it may run twice, `chance` is any number, `after` is
    /// what the server asked for. The bound of the pause doubles, and the pause is anything from
    /// zero to the bound: callers that failed together do not come back together.
    pub fn pause(
        &self,
        made: u32,
        outcome: Outcome,
        safe: bool,
        after: Option<Duration>,
        chance: u64,
    ) -> Option<Duration> {
        let may = match outcome {
            Outcome::Unsent | Outcome::Reported => true,
            Outcome::Unknown => safe,
            Outcome::Final => false,
        };
        if !may || made > self.max_retries {
            return None;
        }
        if let Some(after) = after {
            return (after <= self.max).then_some(after);
        }
        let doubled = 1u32.checked_shl(made.saturating_sub(1)).unwrap_or(u32::MAX);
        let bound = self.initial.saturating_mul(doubled).min(self.max);
        let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        Some(Duration::from_nanos(((u128::from(chance) * u128::from(nanos)) >> 64) as u64))
    }
}

/// Retries of the last ten seconds, counted over all workers.
#[derive(Clone, Debug)]
pub struct Budget {
    percent: f64,
    min_per_second: u64,
    seconds: Arc<[Second]>,
}

impl PartialEq for Budget {
    fn eq(&self, other: &Budget) -> bool {
        self.percent == other.percent && self.min_per_second == other.min_per_second
    }
}

/// The second that is counted in the upper 20 bits, calls and retries in 22 each.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Second(AtomicU64);

const SECONDS: u64 = 10;
const COUNT_BITS: u32 = 22;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
const STAMPS: u64 = 1 << 20;

impl Budget {
    /// Retries at most: `percent` of the calls, or ten times `min_per_second`, whichever is more.
    pub fn new(percent: f64, min_per_second: u64) -> Budget {
        let seconds = (0..SECONDS).map(|_| Second::default()).collect();
        Budget { percent, min_per_second, seconds }
    }

    /// Adds to the count of `now`'s second.
    fn add(&self, now: Duration, what: u64) {
        // Stamp 0 is a second that nothing was counted in.
        let stamp = now.as_secs() % (STAMPS - 1) + 1;
        let _ = self.seconds[(now.as_secs() % SECONDS) as usize].0.fetch_update(
            Ordering::SeqCst,
            Ordering::SeqCst,
            |word| {
                let fresh = stamp << (2 * COUNT_BITS);
                let word = if word >> (2 * COUNT_BITS) == stamp { word } else { fresh };
                let full = what == 1 && word & COUNT == COUNT
                    || what != 1 && word >> COUNT_BITS & COUNT == COUNT;
                Some(if full { word } else { word + what })
            },
        );
    }

    /// A call came at `now`.
    pub fn call(&self, now: Duration) {
        self.add(now, 1 << COUNT_BITS);
    }

    /// Takes one retry at `now`; false = the budget is spent.
    pub fn take(&self, now: Duration) -> bool {
        // Claimed first, then counted: of several at once none goes beyond the bound.
        self.add(now, 1);
        let (mut calls, mut retries) = (0, 0);
        for ago in 0..SECONDS.min(now.as_secs() + 1) {
            let second = now.as_secs() - ago;
            let word = self.seconds[(second % SECONDS) as usize].0.load(Ordering::SeqCst);
            if word >> (2 * COUNT_BITS) == second % (STAMPS - 1) + 1 {
                calls += word >> COUNT_BITS & COUNT;
                retries += word & COUNT;
            }
        }
        let allowed = (self.percent / 100.0 * calls as f64).floor() as u64;
        if retries <= allowed.max(SECONDS * self.min_per_second) {
            return true;
        }
        self.give_back(now);
        false
    }

    /// What was taken at `taken` is not made.
    pub fn give_back(&self, taken: Duration) {
        let stamp = taken.as_secs() % (STAMPS - 1) + 1;
        let _ = self.seconds[(taken.as_secs() % SECONDS) as usize].0.fetch_update(
            Ordering::SeqCst,
            Ordering::SeqCst,
            // Another second may have its place by now.
            |word| (word >> (2 * COUNT_BITS) == stamp && word & COUNT > 0).then(|| word - 1),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::testing::Dice;

    fn retry() -> Retry {
        Retry {
            max_retries: 3,
            initial: Duration::from_millis(100),
            max: Duration::from_millis(250),
            tools: Patterns::default(),
            budget: None,
        }
    }

    #[test]
    fn pauses_are_jittered_and_bounded() {
        let retry = retry();
        let mut dice = Dice(1);
        for (made, bound) in [(1, 100), (2, 200), (3, 250)] {
            let pauses: Vec<u128> = (0..2000)
                .map(|_| retry.pause(made, Outcome::Unsent, false, None, dice.roll()).unwrap())
                .map(|pause| pause.as_millis())
                .collect();
            assert!(pauses.iter().all(|pause| *pause <= bound));
            let mean = pauses.iter().sum::<u128>() / 2000;
            assert!(mean > bound * 45 / 100 && mean < bound * 55 / 100, "{mean} of {bound}");
        }
        assert_eq!(retry.pause(4, Outcome::Unsent, true, None, 1), None);
        let long = Retry { max_retries: 1000, ..retry };
        assert!(long.pause(900, Outcome::Unsent, true, None, u64::MAX).unwrap() <= long.max);
    }

    #[test]
    fn what_is_repeated() {
        let retry = retry();
        for (outcome, unsafe_too, safe) in [
            (Outcome::Unsent, true, true),
            (Outcome::Reported, true, true),
            (Outcome::Unknown, false, true),
            (Outcome::Final, false, false),
        ] {
            assert_eq!(retry.pause(1, outcome, false, None, 0).is_some(), unsafe_too);
            assert_eq!(retry.pause(1, outcome, true, None, 0).is_some(), safe);
        }
    }

    #[test]
    fn the_server_says_when() {
        let ms = Duration::from_millis;
        assert_eq!(retry().pause(1, Outcome::Unsent, true, Some(ms(200)), 0), Some(ms(200)));
        assert_eq!(retry().pause(1, Outcome::Unsent, true, Some(ms(251)), 0), None);
    }

    /// Hours of failing calls: never more retries than the share of the last ten seconds' calls.
    #[test]
    fn the_budget_holds() {
        let budget = Budget::new(20.0, 0);
        let mut dice = Dice(5);
        let mut now = Duration::ZERO;
        let mut calls: Vec<u64> = Vec::new();
        let mut retries: Vec<u64> = Vec::new();
        let recent = |list: &[u64], now: Duration| {
            list.iter().rev().take_while(|at| **at + SECONDS > now.as_secs()).count()
        };
        for _ in 0..200_000 {
            now += Duration::from_millis(dice.below(if now.as_secs() % 97 < 50 { 5 } else { 500 }));
            budget.call(now);
            calls.push(now.as_secs());
            for _ in 0..3 {
                if budget.take(now) {
                    retries.push(now.as_secs());
                    let (some, all) = (recent(&retries, now), recent(&calls, now));
                    assert!(some * 5 <= all, "{some} of {all}");
                }
            }
        }
        assert!(retries.len() > calls.len() / 10);
        assert!(retries.len() <= calls.len() / 5);
    }

    #[test]
    fn a_few_retries_are_always_there() {
        let budget = Budget::new(0.0, 2);
        let now = Duration::from_secs(100);
        budget.call(now);
        assert_eq!((0..100).filter(|_| budget.take(now)).count(), 20);
        assert_eq!((0..100).filter(|_| budget.take(now + Duration::from_secs(10))).count(), 20);
    }
}
