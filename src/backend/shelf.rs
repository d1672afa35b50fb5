//! Owns: the answers of one backend that one worker keeps (`[backends.cache]`).
//! Never: which may be kept, and for how long (`middleware::reuse`); how they reach other workers.
//! Next: `flight`, calls that run together.
//!
//! Every worker keeps all answers: one that is put here is mailed to the others as the same bytes,
//! so their next call is answered from memory too. What makes answers old is an age that all
//! threads see (`health`), so nothing old is ever found, whatever mail is still under way.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::unsync::Cache;

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
    cache: RefCell<Cache<Arc<[u8]>, Kept, Weigher>>,
    /// Sum of both ages when it was looked through last.
    seen: Cell<u64>,
}

/// Bounds entries and bytes by one sum: nothing weighs less than its share of the bytes.
#[derive(Clone)]
struct Weigher {
    least: u64,
}

impl Weighter<Arc<[u8]>, Kept> for Weigher {
    fn weight(&self, key: &Arc<[u8]>, kept: &Kept) -> u64 {
        self.least.max(bytes(key, kept))
    }
}

fn bytes(key: &[u8], kept: &Kept) -> u64 {
    (key.len() + kept.held.answer.len()) as u64
}

impl Shelf {
    pub(super) fn new(settings: &reuse::Cache) -> Shelf {
        let least = settings.max_bytes.div_ceil(settings.max_entries.max(1) as u64).max(1);
        // Made for what is likely: it grows up to its bound.
        let likely = settings.max_entries.min(limits::CACHE_ENTRIES_MAX as usize);
        let most = least * settings.max_entries as u64;
        let cache = Cache::with_weighter(
            likely,
            most.min(settings.max_bytes.max(least)),
            Weigher { least },
        );
        Shelf { cache: RefCell::new(cache), seen: Cell::new(0) }
    }

    fn find(&self, key: &[u8], now: Duration, age: u64) -> Option<Held> {
        let mut cache = self.cache.borrow_mut();
        let kept = cache.get(key)?;
        if kept.until > now && kept.age == age {
            return Some(kept.held.clone());
        }
        cache.remove(key);
        None
    }

    fn put(&self, key: Arc<[u8]>, kept: Kept) {
        self.cache.borrow_mut().insert(key, kept);
    }

    fn size(&self) -> (u64, u64) {
        let cache = self.cache.borrow();
        (cache.len() as u64, cache.iter().map(|(key, kept)| bytes(key, kept)).sum())
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
    shelf.find(&reusable.key, backends.board.elapsed(), age)
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
    let entries = shelf.cache.borrow().len() as u64;
    // Bytes are told exactly at each sweep; until then by what the bound counts.
    let weight = shelf.cache.borrow().weight();
    backends.board.set_cache(backends.me, entry.id, entries, weight);
}

/// Drops what is old, and tells how much is kept.
pub(super) fn sweep(backends: &Backends, entry: &Entry) {
    let Some(shelf) = &entry.shelf else { return };
    let board = &backends.board;
    let (tools, resources) = (board.age(entry.id, false), board.age(entry.id, true));
    if shelf.seen.replace(tools + resources) != tools + resources {
        shelf
            .cache
            .borrow_mut()
            .retain(|_, kept| kept.age == if kept.resource { resources } else { tools });
    }
    let (entries, bytes) = shelf.size();
    board.set_cache(backends.me, entry.id, entries, bytes);
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

    #[test]
    fn entries_and_bytes_are_bounded() {
        let small = shelf(10, 1_000_000);
        for n in 0..100u8 {
            small.put(Arc::from([n]), kept(5));
        }
        assert!((1..=10).contains(&small.size().0), "{:?}", small.size());
        let large = shelf(1000, 10_000);
        for n in 0..100u8 {
            large.put(Arc::from([n]), kept(3000));
        }
        let (entries, bytes) = large.size();
        assert!(entries >= 1 && bytes <= 10_000, "{entries} {bytes}");
        large.put(Arc::from(*b"big"), kept(20_000));
        assert!(large.size().1 <= 10_000);
    }
}
