//! Owns: the guess that the next answer of a connection looks like its last one: a large body then
//! comes in one read with its head, and lies where it is to go on from.
//! Never: what an answer says. A guess that is wrong costs a copy, and is not made for ever.
//! Next: `exchange`, what becomes of a request.

use std::cell::Cell;

use super::{HEAD_ROOM, PIECE_BYTES_MAX};
use crate::limits;

/// Wrong guesses after which a connection makes none.
const MISSES_MAX: u8 = 3;

/// See the head of this file.
#[derive(Default)]
pub(super) struct Ahead {
    /// Bytes of the last head, if a large body followed.
    head: usize,
    /// Room for a body like that, as far as one read goes; 0 = there was none.
    body: usize,
    misses: u8,
    /// The start of a body whose head stands alone in the input.
    pub(super) bytes: Vec<u8>,
}

impl Ahead {
    /// An answer has this head, and a body of this length if that is known.
    pub(super) fn learn(&mut self, head: usize, body: Option<u64>) {
        let body = body.unwrap_or(0);
        // A smaller one comes with its head anyway.
        let is_large = body > HEAD_ROOM.saturating_sub(head) as u64 && self.misses < MISSES_MAX;
        // Some more: a body that outgrows its room is copied to another.
        let room = body.saturating_add(body / 4).min(PIECE_BYTES_MAX as u64) as usize;
        (self.head, self.body) = if is_large { (head, room) } else { (0, 0) };
    }

    /// The guess was wrong.
    pub(super) fn missed(&mut self) {
        self.misses += 1;
        // Of an answer that is known already, too.
        if self.misses >= MISSES_MAX {
            (self.head, self.body) = (0, 0);
        }
    }

    /// Memory for the next answer, if there is a guess and not too much is lent.
    pub(super) fn lend(&self) -> Option<Lent> {
        if self.body == 0 {
            return None;
        }
        LENT.with(|lent| {
            let sum = lent.get() + self.body;
            (sum <= limits::ANSWERS_LENT_BYTES_MAX).then(|| {
                lent.set(sum);
                Lent { head: self.head, body: self.body }
            })
        })
    }
}

thread_local! {
    /// Bytes that wait for answers, on this thread.
    static LENT: Cell<usize> = const { Cell::new(0) };
}

/// Memory that waits for an answer.
pub(super) struct Lent {
    /// Bytes of its head.
    pub(super) head: usize,
    /// Bytes of its body.
    pub(super) body: usize,
}

impl Drop for Lent {
    fn drop(&mut self) {
        // At the end of a thread there may be no sum any more.
        let _ = LENT.try_with(|lent| lent.set(lent.get() - self.body));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_lent_up_to_a_bound_and_given_back() {
        let mut ahead = Ahead::default();
        assert!(ahead.lend().is_none(), "nothing is known");
        ahead.learn(100, Some(HEAD_ROOM as u64 - 100));
        assert!(ahead.lend().is_none(), "too small");
        ahead.learn(100, Some(u64::MAX));
        let all: Vec<_> = std::iter::from_fn(|| ahead.lend()).collect();
        assert_eq!(all.len(), limits::ANSWERS_LENT_BYTES_MAX / PIECE_BYTES_MAX);
        assert_eq!((all[0].head, all[0].body), (100, PIECE_BYTES_MAX));
        drop(all);
        assert!(ahead.lend().is_some());
        ahead.learn(100, None);
        assert!(ahead.lend().is_none());
    }

    #[test]
    fn a_connection_that_cannot_be_guessed_is_left_alone() {
        let mut ahead = Ahead::default();
        for _ in 0..MISSES_MAX {
            ahead.learn(100, Some(65_536));
            assert!(ahead.lend().is_some());
            ahead.missed();
        }
        assert!(ahead.lend().is_none(), "not even what the last one taught");
        ahead.learn(100, Some(65_536));
        assert!(ahead.lend().is_none());
    }
}
