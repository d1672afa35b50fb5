//! Owns: `mirror_of`, `mirror_percent`: which calls another backend hears of too.
//! Never: sending the copies, or what becomes of them (`exchange`).
//! Next: `inject`.
//!
//! ```toml
//! [[backends]]
//! name = "api-v2"
//! mirror_of = "api"      # hears the calls of that backend; is itself neither listed nor callable
//! mirror_percent = 10    # 0 to 100, evenly spread
//! ```
//! A copy is taken before arguments are injected: the other backend has rules of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Copy, Request, Row};
use crate::error::Result;

/// A share of calls, evenly spread over all workers.
#[derive(Clone, Debug)]
pub struct Spread {
    percent: u64,
    count: Arc<Count>,
}

/// Alone in its cache lines: every call writes it.
#[derive(Debug)]
#[repr(align(128))]
struct Count(AtomicU64);

impl PartialEq for Spread {
    fn eq(&self, other: &Spread) -> bool {
        self.percent == other.percent
    }
}

impl Spread {
    /// That many percent.
    pub fn new(percent: u64) -> Spread {
        Spread { percent, count: Arc::new(Count(AtomicU64::new(0))) }
    }

    /// Whether the next call belongs to the share: of any hundred in a row exactly so many do.
    pub fn takes_next(&self) -> bool {
        let turn = self.count.0.fetch_add(1, Ordering::Relaxed) % 100;
        (turn + 1) * self.percent / 100 > turn * self.percent / 100
    }
}

/// Who hears the calls of one backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mirror(pub Vec<(usize, Spread)>);

impl Row for Mirror {
    const CALLS: bool = true;

    fn request(&self, ask: &mut Request<'_>) -> Result<()> {
        if ask.held.is_some() {
            return Ok(());
        }
        for (backend, spread) in &self.0 {
            if spread.takes_next() {
                let (message, envelope) = (ask.message.clone(), *ask.envelope);
                ask.copies.push(Copy { backend: *backend, message, envelope });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evenly_spread_and_exact() {
        for percent in [0, 1, 10, 33, 50, 99, 100] {
            let spread = Spread::new(percent);
            let taken: Vec<bool> = (0..1_000).map(|_| spread.takes_next()).collect();
            for window in taken.windows(100) {
                let count = window.iter().filter(|taken| **taken).count() as u64;
                assert_eq!(count, percent);
            }
            // No two gaps differ by more than one.
            let at: Vec<usize> = (0..taken.len()).filter(|n| taken[*n]).collect();
            let gaps: Vec<usize> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
            if let (Some(least), Some(most)) = (gaps.iter().min(), gaps.iter().max()) {
                assert!(most - least <= 1, "{percent}: {least} to {most}");
            }
        }
    }
}
