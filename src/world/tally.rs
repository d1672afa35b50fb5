//! Owns: how many sessions each principal has, over all workers.
//! Never: their names: principals are counted by hash.
//! Next: `tape`.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::limits;

/// Counts of principals. Two whose hashes meet are counted as one, which takes many thousand of
/// them with hundreds of sessions each to matter.
#[derive(Debug)]
pub struct Tally {
    hasher: ahash::RandomState,
    places: Box<[AtomicU32]>,
}

impl Tally {
    fn place(&self, principal: &str) -> &AtomicU32 {
        &self.places[self.hasher.hash_one(principal) as usize % self.places.len()]
    }

    /// Counts one more, unless there are `max`.
    pub(super) fn enter(&self, principal: &str, max: u32) -> bool {
        let more = |count| (count < max).then_some(count + 1);
        self.place(principal).fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// One that was counted is over.
    pub(super) fn leave(&self, principal: &str) {
        self.place(principal).fetch_sub(1, Ordering::AcqRel);
    }
}

impl Default for Tally {
    fn default() -> Tally {
        let places = std::iter::repeat_with(AtomicU32::default);
        let places = places.take(limits::SESSION_TALLY_PLACES).collect();
        Tally { hasher: ahash::RandomState::new(), places }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_principal_has_so_many() {
        let tally = Tally::default();
        assert!((0..3).all(|_| tally.enter("a", 3)));
        assert!(!tally.enter("a", 3));
        assert!((0..3).all(|_| tally.enter("b", 3)), "another one");
        tally.leave("a");
        assert!(tally.enter("a", 3));
        assert!(!tally.enter("a", 3));
    }
}
