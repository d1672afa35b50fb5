//! Owns: what is kept of one event stream, so that a client that lost its connection can go on.
//! Never: connections, mail, or which streams there are (`streams`).
//! Next: `streams`.
//!
//! A tape has at most one reader: who comes back takes it over from a connection that is dead and
//! not yet known to be.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::limits;
use crate::mcp::event::{EventId, StreamKind};
use crate::mcp::session::SessionId;
use crate::plan::WorkerId;
use crate::rt::local::{Event, Notify};

/// One message of a stream, and its number there.
pub type Numbered = (u64, Arc<[u8]>);

/// See the head of this file.
pub struct Tape {
    /// What began the stream.
    pub kind: StreamKind,
    /// Its number on this worker.
    pub stream: u64,
    /// Whose it is.
    pub session: SessionId,
    worker: WorkerId,
    kept: RefCell<VecDeque<Numbered>>,
    bytes: Cell<usize>,
    /// Bytes of all tapes of the worker.
    all: Rc<Cell<usize>>,
    /// The number of the last message.
    last: Cell<u64>,
    /// No further message will come.
    ended: Cell<bool>,
    /// Who reads it; 0 = nobody.
    reader: Cell<u64>,
    readers: Cell<u64>,
    /// Up to here its reader has taken it.
    taken: Cell<u64>,
    /// Since when nobody has read it.
    idle_since: Cell<Option<Instant>>,
    /// The last sign of a reader on another worker, whose leaving may be lost.
    seen: Cell<Option<Instant>>,
    changed: Notify,
    /// It is not kept any more: nobody will come back to it.
    gone: Event,
}

impl Tape {
    /// An empty tape, read by nobody.
    pub(super) fn new(
        kind: StreamKind,
        worker: WorkerId,
        stream: u64,
        session: SessionId,
        all: Rc<Cell<usize>>,
    ) -> Rc<Tape> {
        Rc::new(Tape {
            kind,
            stream,
            session,
            worker,
            kept: RefCell::default(),
            bytes: Cell::new(0),
            all,
            last: Cell::new(0),
            ended: Cell::new(false),
            reader: Cell::new(0),
            readers: Cell::new(0),
            taken: Cell::new(0),
            idle_since: Cell::new(None),
            seen: Cell::new(None),
            changed: Notify::new(),
            gone: Event::new(),
        })
    }

    /// The id of the event with that number.
    pub fn id(&self, number: u64) -> EventId {
        EventId { kind: self.kind, worker: self.worker, stream: self.stream, number }
    }

    /// Adds a message and says its number. What is over the bounds is forgotten, oldest first; the
    /// newest message is always kept, for it may be the response.
    pub fn push(&self, message: Arc<[u8]>) -> u64 {
        let number = self.last.get() + 1;
        self.last.set(number);
        self.count(message.len() as isize);
        self.kept.borrow_mut().push_back((number, message));
        self.trim();
        self.changed.notify_all();
        number
    }

    fn count(&self, by: isize) {
        self.bytes.set(self.bytes.get().saturating_add_signed(by));
        self.all.set(self.all.get().saturating_add_signed(by));
    }

    /// Forgets what is over the bounds of the stream, and, while the worker keeps too much in all,
    /// what its reader has taken.
    fn trim(&self) {
        let mut kept = self.kept.borrow_mut();
        while kept.len() > 1 {
            let over = kept.len() > limits::REPLAY_MESSAGES_MAX
                || self.bytes.get() > limits::REPLAY_BYTES_MAX;
            let read = kept.front().is_some_and(|(number, _)| *number <= self.taken.get());
            let crowded = self.all.get() > limits::REPLAY_WORKER_BYTES_MAX && read;
            if !over && !crowded {
                return;
            }
            if let Some((_, message)) = kept.pop_front() {
                self.count(-(message.len() as isize));
            }
        }
    }

    /// No further message will come.
    pub fn end(&self) {
        self.ended.set(true);
        self.changed.notify_all();
    }

    /// Whether no further message will come.
    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Bytes kept.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Gives it to a new reader, that has all up to `after`; whoever read it before is told.
    pub(super) fn attach(&self, after: u64) -> u64 {
        let reader = self.readers.get() + 1;
        self.readers.set(reader);
        self.reader.set(reader);
        self.taken.set(after.min(self.last.get()));
        self.idle_since.set(None);
        self.seen.set(None);
        self.changed.notify_all();
        reader
    }

    /// A reader leaves; false if it had been replaced before.
    pub(super) fn detach(&self, reader: u64, now: Instant) -> bool {
        let mine = self.is_read_by(reader);
        if mine {
            self.reader.set(0);
            self.idle_since.set(Some(now));
            self.changed.notify_all();
        }
        mine
    }

    /// The time for which it is kept begins now.
    pub(super) fn rest(&self, now: Instant) {
        self.idle_since.set(Some(now));
    }

    /// Whether that reader still has it.
    pub fn is_read_by(&self, reader: u64) -> bool {
        self.reader.get() == reader && !self.gone.is_set()
    }

    /// Whether anybody reads it.
    pub fn is_read(&self) -> bool {
        self.reader.get() != 0
    }

    /// Since when nobody has read it.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        self.idle_since.get()
    }

    /// A reader on another worker gave a sign.
    pub(super) fn see(&self, now: Instant) {
        self.seen.set(Some(now));
    }

    /// The reader, if it is on another worker and has been silent for too long.
    pub(super) fn lost_reader(&self, now: Instant) -> Option<u64> {
        let silent = now.saturating_duration_since(self.seen.get()?);
        (self.is_read() && silent > limits::REPLAY_READER_SILENCE).then(|| self.reader.get())
    }

    /// Its reader has taken all up to this.
    pub fn take(&self, number: u64) {
        if number > self.taken.get() {
            self.taken.set(number);
            self.changed.notify_all();
        }
    }

    /// What stands behind `after`: some messages, at least one if there is any.
    pub(super) fn behind(&self, after: u64) -> Vec<Numbered> {
        let kept = self.kept.borrow();
        let mut bytes = 0;
        let start = kept.partition_point(|(number, _)| *number <= after);
        let fits = |(_, message): &&Numbered| {
            let first = bytes == 0;
            bytes += message.len().max(1);
            first || bytes <= limits::REPLAY_STEP_BYTES
        };
        kept.iter().skip(start).take_while(fits).cloned().collect()
    }

    /// Waits until there is something behind `after`, or the stream is over for this reader (then
    /// there is nothing). Safe to drop.
    pub(super) async fn next(&self, reader: u64, after: u64) -> Vec<Numbered> {
        self.take(after);
        loop {
            let changed = self.changed.notified();
            if !self.is_read_by(reader) {
                return Vec::new();
            }
            let messages = self.behind(after);
            if !messages.is_empty() || self.has_ended() {
                return messages;
            }
            changed.await;
        }
    }

    /// Waits until that reader has lost it to another one, or it is not kept any more. Safe to drop.
    pub async fn lost_by(&self, reader: u64) {
        loop {
            let changed = self.changed.notified();
            if !self.is_read_by(reader) {
                return;
            }
            changed.await;
        }
    }

    /// Waits while its reader lags behind by more than is kept. Safe to drop.
    pub async fn room(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.lags() || !self.is_read() || self.gone.is_set() {
                return;
            }
            changed.await;
        }
    }

    /// Whether its reader has not taken half of what can be kept.
    fn lags(&self) -> bool {
        let taken = self.taken.get();
        let kept = self.kept.borrow();
        let unread = kept.iter().filter(|(number, _)| *number > taken);
        let bytes: usize = unread.map(|(_, text)| text.len()).sum();
        let many = self.last.get().saturating_sub(taken);
        bytes > limits::REPLAY_BYTES_MAX / 2 || many > limits::REPLAY_MESSAGES_MAX as u64 / 2
    }

    /// It is not kept any more.
    pub(super) fn forget(&self) {
        self.gone.set();
        self.changed.notify_all();
    }

    /// Waits until it is not kept any more. Safe to drop.
    pub async fn forgotten(&self) {
        self.gone.wait().await;
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        self.count(-(self.bytes.get() as isize));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tape() -> Rc<Tape> {
        let session = SessionId::mint(0, [7; 16]);
        Tape::new(StreamKind::Answering, 0, 1, session, Rc::default())
    }

    fn numbers(messages: &[Numbered]) -> Vec<u64> {
        messages.iter().map(|(number, _)| *number).collect()
    }

    #[test]
    fn what_stands_behind_an_event_is_read_again() {
        let tape = tape();
        for text in ["a", "b", "c"] {
            tape.push(text.as_bytes().into());
        }
        assert_eq!(numbers(&tape.behind(0)), [1, 2, 3]);
        assert_eq!(numbers(&tape.behind(2)), [3]);
        assert!(tape.behind(3).is_empty() && tape.behind(u64::MAX).is_empty());
    }

    #[test]
    fn a_tape_is_bounded_and_keeps_the_newest() {
        let tape = tape();
        for _ in 0..limits::REPLAY_MESSAGES_MAX + 10 {
            tape.push([0; 1].as_slice().into());
        }
        assert_eq!(tape.behind(0)[0].0, 11);
        tape.push(vec![0; limits::REPLAY_BYTES_MAX + 1].into());
        let rest = tape.behind(0);
        assert_eq!(numbers(&rest), [limits::REPLAY_MESSAGES_MAX as u64 + 11]);
        assert_eq!(tape.all.get(), limits::REPLAY_BYTES_MAX + 1);
        let all = tape.all.clone();
        drop(tape);
        assert_eq!(all.get(), 0);
    }

    #[test]
    fn a_step_is_bounded_and_has_at_least_one() {
        let tape = tape();
        tape.push(vec![0; limits::REPLAY_STEP_BYTES + 1].into());
        tape.push(vec![0; 10].into());
        assert_eq!(numbers(&tape.behind(0)), [1]);
        assert_eq!(numbers(&tape.behind(1)), [2]);
    }

    #[test]
    fn the_last_reader_has_it() {
        let tape = tape();
        let now = Instant::now();
        let first = tape.attach(0);
        let second = tape.attach(0);
        assert!(!tape.is_read_by(first) && tape.is_read_by(second));
        assert!(!tape.detach(first, now), "it was replaced");
        assert!(tape.is_read() && tape.idle_since().is_none());
        assert!(tape.detach(second, now));
        assert_eq!((tape.is_read(), tape.idle_since()), (false, Some(now)));
    }

    #[test]
    fn where_all_is_crowded_what_was_read_goes_first() {
        let tape = tape();
        tape.attach(0);
        for _ in 0..3 {
            tape.push([0; 1].as_slice().into());
        }
        tape.take(2);
        tape.all.set(limits::REPLAY_WORKER_BYTES_MAX + 10);
        tape.push([0; 1].as_slice().into());
        assert_eq!(numbers(&tape.behind(0)), [3, 4], "what was not read is kept");
    }

    #[test]
    fn a_silent_reader_of_another_worker_is_lost() {
        let tape = tape();
        let now = Instant::now();
        let reader = tape.attach(0);
        let later = now + limits::REPLAY_READER_SILENCE * 2;
        assert_eq!(tape.lost_reader(later), None, "one of this worker says when it leaves");
        tape.see(now);
        assert_eq!((tape.lost_reader(now), tape.lost_reader(later)), (None, Some(reader)));
    }
}
