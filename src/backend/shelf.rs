//! Owns: the answers of one backend that one worker keeps (`[backends.cache]`).
//! Never: which may be kept, and for how long (`middleware::reuse`); how they reach other workers.
//! Next: `flight`, calls that run together.
//!
//! Every worker keeps all answers: one that is put here is mailed to the others as the same bytes,
//! so their next call is answered from memory too. What makes answers old is an age that all
//! threads see (`health`), so nothing old is ever found, whatever mail is still under way.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;

use super::entry::Entry;
use super::{BackendMail, Backends};
use crate::limits;
use crate::middleware::reuse::{self, Held, Reusable};

/// An answer, and until when it is of use.
#[derive(Clone)]
pub struct Kept {
    held: Held,
    /// On the clock of all workers.
    until: Duration,
    resource: bool,
    /// The backend's age when it was asked.
    age: u64,
}

/// The answers of one backend on one worker.
pub(super) struct Shelf {
    entries_max: usize,
    bytes_max: u64,
    rows: RefCell<Rows>,
    /// Sum of both ages when it was looked through last.
    seen: Cell<u64>,
}

/// What stands there: at a bound the oldest one goes that nobody has asked for since it came to be
/// the oldest (second chance).
#[derive(Default)]
struct Rows {
    by_key: AHashMap<Arc<[u8]>, Row>,
    /// By age; also of those that have gone, by whose numbers that is known.
    order: VecDeque<(u64, Arc<[u8]>)>,
    bytes: u64,
    /// Numbers so far.
    numbers: u64,
}

struct Row {
    kept: Kept,
    number: u64,
    asked_for: bool,
}

fn bytes(key: &[u8], kept: &Kept) -> u64 {
    (key.len() + kept.held.answer.len()) as u64
}

impl Rows {
    fn remove(&mut self, key: &[u8]) {
        if let Some(row) = self.by_key.remove(key) {
            self.bytes -= bytes(key, &row.kept);
        }
    }

    fn put(&mut self, key: Arc<[u8]>, kept: Kept) {
        self.numbers += 1;
        let number = self.numbers;
        self.bytes += bytes(&key, &kept);
        self.order.push_back((number, key.clone()));
        self.by_key.insert(key, Row { kept, number, asked_for: false });
        self.tidy();
    }

    /// Forgets those that have gone, once they are most of the names.
    fn tidy(&mut self) {
        let Rows { by_key, order, .. } = self;
        if order.len() > 2 * by_key.len() + 64 {
            order.retain(|(number, key)| by_key.get(key).is_some_and(|row| row.number == *number));
        }
    }

    /// Makes room for one more.
    fn drop_one(&mut self) {
        // Each pass is the last one for whoever is not asked for meanwhile.
        while let Some((number, key)) = self.order.pop_front() {
            let Some(row) = self.by_key.get_mut(&key) else { continue };
            if row.number != number {
                continue;
            }
            if !std::mem::take(&mut row.asked_for) {
                return self.remove(&key);
            }
            self.order.push_back((number, key));
        }
    }
}

impl Shelf {
    pub(super) fn new(settings: &reuse::Cache) -> Shelf {
        Shelf {
            entries_max: settings.max_entries.max(1),
            bytes_max: settings.max_bytes,
            rows: RefCell::default(),
            seen: Cell::new(0),
        }
    }

    fn find(&self, key: &[u8], now: Duration, age: u64) -> Option<Held> {
        let mut rows = self.rows.borrow_mut();
        let row = rows.by_key.get_mut(key)?;
        if row.kept.until > now && row.kept.age == age {
            row.asked_for = true;
            return Some(row.kept.held.clone());
        }
        rows.remove(key);
        None
    }

    fn put(&self, key: Arc<[u8]>, kept: Kept) {
        let mut rows = self.rows.borrow_mut();
        rows.remove(&key);
        let more = bytes(&key, &kept);
        if more > self.bytes_max {
            return;
        }
        while rows.by_key.len() >= self.entries_max || rows.bytes + more > self.bytes_max {
            rows.drop_one();
        }
        rows.put(key, kept);
    }

    /// Drops what is not as it should be.
    fn retain(&self, good: impl Fn(&Kept) -> bool) {
        let mut rows = self.rows.borrow_mut();
        let Rows { by_key, bytes: sum, .. } = &mut *rows;
        by_key.retain(|key, row| {
            let stays = good(&row.kept);
            if !stays {
                *sum -= bytes(key, &row.kept);
            }
            stays
        });
        rows.tidy();
    }

    fn size(&self) -> (u64, u64) {
        let rows = self.rows.borrow();
        (rows.by_key.len() as u64, rows.bytes)
    }
}

/// How old a backend is when a call begins: if that changes, its answer is not kept.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    age: u64,
    asks: u64,
}

impl Moment {
    pub(super) fn now(backends: &Backends, entry: &Entry, reusable: &Reusable) -> Moment {
        let board = &backends.board;
        Moment { age: board.age(entry.id, reusable.resource), asks: board.asks(entry.id) }
    }
}

/// The answer that is kept for such a call.
pub(super) fn find(backends: &Backends, entry: &Entry, reusable: &Reusable) -> Option<Held> {
    let shelf = entry.shelf.as_ref().filter(|_| reusable.ttl.is_some())?;
    let age = backends.board.age(entry.id, reusable.resource);
    let before = shelf.size();
    let found = shelf.find(&reusable.key, backends.board.elapsed(), age);
    if shelf.size() != before {
        count(backends, entry, shelf);
    }
    found
}

/// Keeps an answer on all workers, if it may be kept.
pub(super) fn keep(
    backends: &Backends,
    entry: &Entry,
    reusable: &Reusable,
    moment: Moment,
    answer: &[u8],
) {
    let Some(shelf) = &entry.shelf else { return };
    if answer.len() > limits::CACHED_ANSWER_BYTES_MAX {
        return;
    }
    let Some((answer, id, ttl)) = reuse::keepable(reusable, answer) else { return };
    let now = Moment::now(backends, entry, reusable);
    if (now.age, now.asks) != (moment.age, moment.asks) {
        return;
    }
    let kept = Kept {
        held: Held { answer: answer.into(), id },
        until: backends.board.elapsed() + ttl,
        resource: reusable.resource,
        age: moment.age,
    };
    for worker in (0..backends.workers).filter(|worker| *worker != backends.me) {
        let (key, kept) = (reusable.key.clone(), Box::new(kept.clone()));
        // Who misses it asks the backend itself.
        let _ = backends.try_send(worker, BackendMail::Keep { backend: entry.id, key, kept });
    }
    shelf.put(reusable.key.clone(), kept);
    count(backends, entry, shelf);
}

/// An answer came that another worker keeps.
pub(super) fn came(backends: &Backends, entry: &Entry, key: Arc<[u8]>, kept: Kept) {
    if let Some(shelf) = &entry.shelf
        && kept.age == backends.board.age(entry.id, kept.resource)
    {
        shelf.put(key, kept);
        count(backends, entry, shelf);
    }
}

fn count(backends: &Backends, entry: &Entry, shelf: &Shelf) {
    let (entries, bytes) = shelf.size();
    backends.board.set_cache(backends.me, entry.id, entries, bytes);
}

/// Drops what is old, and tells how much is kept.
pub(super) fn sweep(backends: &Backends, entry: &Entry) {
    let Some(shelf) = &entry.shelf else { return };
    let board = &backends.board;
    let (tools, resources) = (board.age(entry.id, false), board.age(entry.id, true));
    if shelf.seen.replace(tools + resources) != tools + resources {
        shelf.retain(|kept| kept.age == if kept.resource { resources } else { tools });
    }
    count(backends, entry, shelf);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonrpc::Span;

    const SECOND: Duration = Duration::from_secs(1);

    fn shelf(max_entries: usize, max_bytes: u64) -> Shelf {
        Shelf::new(&reuse::Cache {
            tool_ttl: Some(SECOND),
            resource_ttl: None,
            max_entries,
            max_bytes,
            tools: Default::default(),
            shared: false,
        })
    }

    fn kept(bytes: usize) -> Kept {
        let answer: Arc<[u8]> = vec![b'x'; bytes].into();
        Kept { held: Held { answer, id: Span::new(0, 1) }, until: SECOND, resource: false, age: 7 }
    }

    #[test]
    fn what_is_late_or_old_is_not_found() {
        let shelf = shelf(10, 10_000);
        let key: Arc<[u8]> = Arc::from(*b"key");
        shelf.put(key.clone(), kept(5));
        assert!(shelf.find(&key, SECOND / 2, 7).is_some());
        assert!(shelf.find(b"other", SECOND / 2, 7).is_none());
        assert!(shelf.find(&key, SECOND / 2, 8).is_none());
        assert_eq!(shelf.size().0, 0, "and it is gone");
        shelf.put(key.clone(), kept(5));
        assert!(shelf.find(&key, SECOND, 7).is_none());
    }

    /// Each entry was counted as its share of the bytes at least: of one nothing was kept, and of
    /// several fewer than both bounds allow.
    #[test]
    fn entries_and_bytes_are_kept_up_to_their_bounds() {
        let key = |n: u8| Arc::<[u8]>::from([n]);
        let one = shelf(1, 1_000_000);
        for n in 0..3 {
            one.put(key(n), kept(5));
            assert_eq!(one.size(), (1, 6));
            assert!(one.find(&[n], SECOND / 2, 7).is_some());
        }
        let both = shelf(10, 100_000);
        for n in 0..5 {
            both.put(key(n), kept(99));
        }
        for n in 5..9 {
            both.put(key(n), kept(17_000));
        }
        assert_eq!(both.size(), (9, 500 + 4 * 17_001));
        for n in 9..100 {
            both.put(key(n), kept(5));
        }
        assert_eq!(both.size(), (10, 60));
        both.put(key(0), kept(100_000));
        assert_eq!(both.size(), (10, 60), "it is too large alone");
        both.put(key(0), kept(99_999));
        assert_eq!(both.size(), (1, 100_000));
        both.put(key(0), kept(1));
        assert_eq!(both.size(), (1, 2), "the new one takes its place");
        both.retain(|_| false);
        assert_eq!(both.size(), (0, 0));
        assert!(both.rows.borrow().order.len() <= 64);
    }

    #[test]
    fn what_is_asked_for_stays() {
        let shelf = shelf(10, 100_000);
        for n in 0..=255u8 {
            shelf.put(Arc::from([n]), kept(5));
            assert!(shelf.find(&[0], SECOND / 2, 7).is_some(), "{n}");
        }
        assert_eq!(shelf.size().0, 10);
        // One that comes again and again leaves no trail.
        for _ in 0..10_000 {
            shelf.put(Arc::from([1]), kept(5));
        }
        assert!(shelf.rows.borrow().order.len() < 100);
    }
}
