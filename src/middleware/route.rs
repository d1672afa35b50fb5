//! Owns: `canary_of`, `weight`, `failover_for`, `priority`: which backends may answer the calls of
//! another one, and whose turn it is.
//! Never: whether a backend is well, the calls themselves (`backend::stand_in`).
//! Next: `backend`, which is called at last.
//!
//! ```toml
//! [[backends]]
//! name = "api-v2"
//! canary_of = "api"      # answers a share of that backend's calls
//! weight = 10            # 1 to 99 percent; all canaries of one backend 99 at most
//!
//! [[backends]]
//! name = "api-spare"
//! failover_for = "api"   # answers them while that one cannot
//! priority = 0           # of several the lowest first
//! ```
//! Shares are interleaved by smooth weighted turns, a hundred long, and all workers take their turns
//! from one counter: of any hundred calls in a row a canary of weight 10 is offered exactly ten.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Turns after which the shares come round.
const ROUND: u64 = 100;

/// Who else may answer the calls of a backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    shares: Option<Shares>,
    /// Indexes in the plan, in the order in which they are asked.
    pub failovers: Vec<usize>,
}

/// The shares of canaries.
#[derive(Clone, Debug)]
struct Shares {
    /// Whose each turn is; `None` = the backend's own.
    turns: Arc<[Option<usize>]>,
    count: Arc<Count>,
}

/// Alone in its cache lines: every call writes it.
#[derive(Debug)]
#[repr(align(128))]
struct Count(AtomicU64);

impl PartialEq for Shares {
    fn eq(&self, other: &Shares) -> bool {
        self.turns == other.turns
    }
}

impl Route {
    /// The route of a backend with these canaries and their percent, and these failovers.
    ///
    /// # Panics
    /// When the canaries have more than all.
    pub fn new(canaries: &[(usize, u64)], failovers: Vec<usize>) -> Route {
        let shares = (!canaries.is_empty())
            .then(|| Shares { turns: turns(canaries), count: Arc::new(Count(AtomicU64::new(0))) });
        Route { shares, failovers }
    }

    /// Everybody who may answer its calls.
    pub fn all(&self) -> impl Iterator<Item = usize> {
        let canaries = self.shares.iter().flat_map(|shares| shares.turns.iter().copied().flatten());
        canaries.chain(self.failovers.iter().copied())
    }

    /// The canary whose turn the next call is; `None` = the backend's own.
    pub fn next(&self) -> Option<usize> {
        let shares = self.shares.as_ref()?;
        let turn = shares.count.0.fetch_add(1, Ordering::Relaxed) % ROUND;
        shares.turns[turn as usize]
    }
}

/// Each turn goes to who has waited longest for it, measured by his share.
fn turns(canaries: &[(usize, u64)]) -> Arc<[Option<usize>]> {
    let given: u64 = canaries.iter().map(|(_, weight)| weight).sum();
    assert!(given <= ROUND);
    let own = (None, ROUND - given);
    let shares: Vec<(Option<usize>, u64)> = std::iter::once(own)
        .chain(canaries.iter().map(|(backend, weight)| (Some(*backend), *weight)))
        .collect();
    let mut credit = vec![0i64; shares.len()];
    let turn = |_| {
        for (credit, (_, weight)) in credit.iter_mut().zip(&shares) {
            *credit += *weight as i64;
        }
        // Of equals the first, which is the backend itself.
        let next = (0..shares.len()).rev().max_by_key(|at| credit[*at]).unwrap_or(0);
        credit[next] -= ROUND as i64;
        shares[next].0
    };
    (0..ROUND).map(turn).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(turns: &[Option<usize>], of: Option<usize>) -> usize {
        turns.iter().filter(|turn| **turn == of).count()
    }

    #[test]
    fn shares_are_exact_in_any_hundred_and_even() {
        for canaries in [
            &[(3, 10)][..],
            &[(3, 1)],
            &[(3, 99)],
            &[(3, 33), (4, 33)],
            &[(7, 5), (1, 50), (2, 44)],
        ] {
            let route = Route::new(canaries, Vec::new());
            let taken: Vec<Option<usize>> = (0..1_000).map(|_| route.next()).collect();
            for window in taken.windows(100) {
                for (backend, weight) in canaries {
                    assert_eq!(share(window, Some(*backend)) as u64, *weight, "{canaries:?}");
                }
            }
            // In no stretch is anybody more than one turn away from his share.
            let begins = |len: usize| taken.iter().take(len);
            for (backend, weight) in canaries {
                for len in 1..=200 {
                    let due = len as f64 * *weight as f64 / 100.0;
                    let had = begins(len).filter(|turn| **turn == Some(*backend)).count() as f64;
                    assert!((had - due).abs() <= 1.0 + 1e-9, "{backend} {len}: {had} of {due}");
                }
            }
        }
    }

    #[test]
    fn the_first_call_is_the_backends_own() {
        for weight in [1, 10, 50] {
            assert_eq!(Route::new(&[(1, weight)], Vec::new()).next(), None);
        }
        assert_eq!(Route::new(&[], vec![4]).next(), None);
    }

    /// Several threads take turns from one counter.
    #[test]
    fn exact_over_workers() {
        let route = Route::new(&[(1, 10), (2, 25)], Vec::new());
        let counts = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let turns: Vec<Option<usize>> = (0..25_000).map(|_| route.next()).collect();
                        [share(&turns, Some(1)), share(&turns, Some(2)), share(&turns, None)]
                    })
                })
                .collect();
            let counts = workers.into_iter().map(|worker| worker.join().unwrap());
            counts.fold([0; 3], |sum, one| [sum[0] + one[0], sum[1] + one[1], sum[2] + one[2]])
        });
        assert_eq!(counts, [10_000, 25_000, 65_000]);
    }
}
