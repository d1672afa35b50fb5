//! Owns: the event streams of one worker: who reads which, what is kept of those that nobody reads.
//! Never: connections.
//! Next: `ear`, those who listen without a session.
//!
//! A stream that was opened by GET is kept by the worker that owns the session, the stream of an
//! answer by the worker that received the request. A connection on another worker reads by mail: it
//! asks for what stands behind the event that it has, and is answered when there is something. So
//! nothing depends on a mail that was lost, and a slow client holds nobody up.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ahash::AHashMap;

use super::tape::{Numbered, Tape};
use super::{SessionMail, World};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::mcp::event::{EventId, StreamKind};
use crate::mcp::session::{SessionId, SessionRecord};
use crate::plan::WorkerId;
use crate::rt;
use crate::rt::local::{Event, OneSender};

/// What workers say to each other about streams.
#[derive(Debug)]
pub enum StreamMail {
    /// To the session's owner: open a stream; I read it.
    Open {
        /// Whose.
        session: SessionId,
        /// Comes back with the answer.
        token: u64,
    },
    /// To the worker that keeps it: I read this stream from now on.
    Resume {
        /// Whose it must be.
        session: SessionId,
        /// Its number.
        stream: u64,
        /// The last event that the client has.
        after: u64,
        /// Comes back with the answer.
        token: u64,
    },
    /// Stream and reader; `None`: there is no such stream, or no room for one.
    Opened {
        /// The token of the question.
        token: u64,
        /// Numbers of the stream and of the reader.
        place: Option<(u64, u64)>,
    },
    /// What stands behind this event?
    Pull {
        /// The stream.
        stream: u64,
        /// Who reads.
        reader: u64,
        /// The last event that the connection has.
        after: u64,
        /// Comes back with the answer.
        token: u64,
    },
    /// This does; nothing = the stream is over for you.
    Pulled {
        /// The token of the question.
        token: u64,
        /// In their order.
        messages: Vec<Numbered>,
    },
    /// That reader has left.
    Left {
        /// The stream.
        stream: u64,
        /// Who left.
        reader: u64,
    },
    /// To the session's owner: tell this to its client.
    Say {
        /// Whose client.
        session: SessionId,
        /// One message.
        message: Arc<[u8]>,
    },
}

/// What a question about a stream is answered with.
enum Told {
    Opened(Option<(u64, u64)>),
    Pulled(Vec<Numbered>),
}

/// The streams of one worker.
#[derive(Default)]
pub(super) struct Streams {
    tapes: RefCell<AHashMap<u64, Rc<Tape>>>,
    /// Of each session; the one that was opened or taken up last stands last.
    of: RefCell<AHashMap<SessionId, Vec<Rc<Tape>>>>,
    /// Those that nobody reads, the oldest first; a tape that was read again is not what it says.
    idle: RefCell<VecDeque<(Instant, u64)>>,
    bytes: Rc<Cell<usize>>,
    asked: RefCell<AHashMap<u64, OneSender<Told>>>,
    /// Streams end, so that connections can close.
    over: Event,
}

/// A connection that reads a stream; dropping it leaves the stream to who comes back.
pub struct Reader {
    world: Rc<World>,
    place: Place,
    reader: u64,
    /// The last event that was handed out.
    after: u64,
    /// Of a stream that was opened by GET.
    listening: bool,
    id: EventId,
}

enum Place {
    Here(Rc<Tape>),
    Away(WorkerId, u64),
}

impl Reader {
    /// The next messages, `None` at the end of the stream. Safe to drop; asking again says that what
    /// was handed out before has been sent.
    pub async fn next(&mut self) -> Option<Vec<Numbered>> {
        let world = self.world.clone();
        let over = async {
            match self.listening {
                true => world.streams.over.wait().await,
                // The response of a call is worth waiting for.
                false => std::future::pending().await,
            }
        };
        let messages = async {
            match &self.place {
                Place::Here(tape) => tape.next(self.reader, self.after).await,
                Place::Away(worker, stream) => {
                    world.pull(*worker, *stream, self.reader, self.after).await
                }
            }
        };
        let messages = match rt::race(messages, over).await {
            rt::Either::Left(messages) => messages,
            rt::Either::Right(()) => return None,
        };
        self.after = messages.last()?.0;
        Some(messages)
    }

    /// The id of one of its events.
    pub fn id(&self, number: u64) -> EventId {
        EventId { number, ..self.id }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        match &self.place {
            Place::Here(tape) => self.world.leave(tape, self.reader),
            Place::Away(worker, stream) => {
                let mail = StreamMail::Left { stream: *stream, reader: self.reader };
                // Lost: its silence says the same.
                let _ = (self.world.post)(*worker, SessionMail::Stream(mail));
            }
        }
        if self.listening {
            self.world.counts.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The stream of an answer, as the exchange that fills it has it; dropping it ends the stream.
pub struct Answering {
    world: Rc<World>,
    tape: Rc<Tape>,
    reader: u64,
}

impl Answering {
    /// What is kept of it.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }

    /// Adds a message and says its number.
    pub fn push(&self, message: Arc<[u8]>) -> u64 {
        let number = self.tape.push(message);
        self.world.keep_within_bounds(&self.tape);
        number
    }

    /// Waits until the connection of the exchange is not the one that reads it any more. Safe to
    /// drop.
    pub async fn lost(&self) {
        self.tape.lost_by(self.reader).await;
    }

    /// The connection of the exchange is gone, or was replaced by another one.
    pub fn leave(&self) {
        self.world.leave(&self.tape, self.reader);
    }

    /// Nobody is to come back to it.
    pub fn withdraw(&self) {
        self.world.forget(&self.tape);
    }

    /// Waits until it is of no use to go on: nobody can come back to it.
    pub async fn abandoned(&self) {
        self.tape.forgotten().await;
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.tape.end();
        self.leave();
        if !self.tape.is_read() {
            // The time to come back begins with the end of the call.
            let now = rt::time::now();
            self.tape.rest(now);
            self.world.streams.idle.borrow_mut().push_back((now, self.tape.stream));
        }
    }
}

impl World {
    /// Opens the stream of an answer; the exchange's own connection is its reader.
    pub fn open_answer(self: &Rc<World>, session: SessionId) -> Answering {
        let tape = self.new_tape(StreamKind::Answering, session);
        let reader = tape.attach(0);
        Answering { world: self.clone(), tape, reader }
    }

    /// Opens a stream of a session for its client to listen on.
    ///
    /// # Errors
    /// `Capacity` when the session's owner cannot be asked; `SessionNotFound`.
    pub async fn open_stream(self: &Rc<World>, record: &SessionRecord) -> Result<Reader> {
        let (session, owner) = (record.id, record.id.owner());
        let place = if owner == self.me {
            self.opened_here(session)
        } else {
            let ask = |token| StreamMail::Open { session, token };
            self.asked_for_place(owner, ask).await?
        };
        let missing = || Error::new(Kind::SessionNotFound);
        let (stream, reader) = place.ok_or_else(missing)?;
        let id = EventId { kind: StreamKind::Listening, worker: owner, stream, number: 0 };
        self.reader(id, reader).ok_or_else(missing)
    }

    /// Takes a stream up behind the event that the client has; `None`: it is not kept (any more).
    ///
    /// # Errors
    /// `Capacity` when the worker that keeps it cannot be asked.
    pub async fn resume_stream(
        self: &Rc<World>,
        record: &SessionRecord,
        id: EventId,
    ) -> Result<Option<Reader>> {
        let session = record.id;
        if id.worker >= self.workers {
            return Ok(None);
        }
        let place = if id.worker == self.me {
            self.resumed_here(session, id.stream, id.number)
        } else {
            let (stream, after) = (id.stream, id.number);
            let ask = |token| StreamMail::Resume { session, stream, after, token };
            self.asked_for_place(id.worker, ask).await?
        };
        Ok(place.and_then(|(_, reader)| self.reader(id, reader)))
    }

    fn reader(self: &Rc<World>, id: EventId, reader: u64) -> Option<Reader> {
        let place = match id.worker == self.me {
            true => Place::Here(self.streams.tapes.borrow().get(&id.stream)?.clone()),
            false => Place::Away(id.worker, id.stream),
        };
        let listening = id.kind == StreamKind::Listening;
        if listening {
            self.counts.streams.fetch_add(1, Ordering::Relaxed);
        }
        Some(Reader { world: self.clone(), place, reader, after: id.number, listening, id })
    }

    async fn asked_for_place(
        &self,
        worker: WorkerId,
        ask: impl FnOnce(u64) -> StreamMail,
    ) -> Result<Option<(u64, u64)>> {
        match self.ask_about_stream(worker, ask, limits::WORKER_ANSWER_WAIT).await {
            Some(Told::Opened(place)) => Ok(place),
            _ => Err(Error::new(Kind::Capacity)),
        }
    }

    async fn pull(&self, worker: WorkerId, stream: u64, reader: u64, after: u64) -> Vec<Numbered> {
        loop {
            let ask = |token| StreamMail::Pull { stream, reader, after, token };
            // The answer comes when there is something to say, or is lost: asked again, it is the
            // same one.
            match self.ask_about_stream(worker, ask, limits::SSE_COMMENT_INTERVAL).await {
                Some(Told::Pulled(messages)) => return messages,
                Some(Told::Opened(_)) => return Vec::new(),
                None => rt::time::sleep(limits::WORKER_ASK_PAUSE).await,
            }
        }
    }

    async fn ask_about_stream(
        &self,
        worker: WorkerId,
        ask: impl FnOnce(u64) -> StreamMail,
        patience: Duration,
    ) -> Option<Told> {
        struct Asked<'a>(&'a World, u64);
        impl Drop for Asked<'_> {
            fn drop(&mut self) {
                self.0.streams.asked.borrow_mut().remove(&self.1);
            }
        }
        let (sender, receiver) = rt::local::oneshot();
        let asked = Asked(self, self.token());
        self.streams.asked.borrow_mut().insert(asked.1, sender);
        (self.post)(worker, SessionMail::Stream(ask(asked.1))).ok()?;
        rt::time::timeout(patience, receiver).await.ok()?
    }

    /// Takes mail about streams.
    pub(super) fn on_stream_mail(self: &Rc<World>, from: WorkerId, mail: StreamMail) {
        let told = |token, told| {
            let sender = self.streams.asked.borrow_mut().remove(&token);
            sender.map(|sender| sender.send(told));
        };
        let answer = |mail| drop((self.post)(from, SessionMail::Stream(mail)));
        match mail {
            StreamMail::Open { session, token } => {
                let place = self.opened_here(session);
                self.see_reader(place);
                answer(StreamMail::Opened { token, place });
            }
            StreamMail::Resume { session, stream, after, token } => {
                let place = self.resumed_here(session, stream, after);
                self.see_reader(place);
                answer(StreamMail::Opened { token, place });
            }
            StreamMail::Opened { token, place } => told(token, Told::Opened(place)),
            StreamMail::Pulled { token, messages } => told(token, Told::Pulled(messages)),
            StreamMail::Pull { stream, reader, after, token } => {
                let tape = self.streams.tapes.borrow().get(&stream).cloned();
                let Some(tape) = tape.filter(|tape| tape.is_read_by(reader)) else {
                    return answer(StreamMail::Pulled { token, messages: Vec::new() });
                };
                tape.see(rt::time::now());
                // Few: a reader asks again only when it has an answer or has waited for long.
                let world = self.clone();
                rt::spawn("stream for another worker", async move {
                    let next = tape.next(reader, after);
                    let next = rt::time::timeout(limits::SSE_COMMENT_INTERVAL, next).await;
                    if let Ok(messages) = next {
                        let mail = StreamMail::Pulled { token, messages };
                        let _ = (world.post)(from, SessionMail::Stream(mail));
                    }
                });
            }
            StreamMail::Left { stream, reader } => {
                let tape = self.streams.tapes.borrow().get(&stream).cloned();
                if let Some(tape) = tape {
                    self.leave(&tape, reader);
                }
            }
            StreamMail::Say { session, message } => self.tell(session, message),
        }
    }

    fn see_reader(&self, place: Option<(u64, u64)>) {
        if let Some((stream, _)) = place
            && let Some(tape) = self.streams.tapes.borrow().get(&stream)
        {
            tape.see(rt::time::now());
        }
    }

    fn new_tape(&self, kind: StreamKind, session: SessionId) -> Rc<Tape> {
        let stream = self.token();
        let tape = Tape::new(kind, self.me, stream, session, self.streams.bytes.clone());
        self.streams.tapes.borrow_mut().insert(stream, tape.clone());
        self.streams.of.borrow_mut().entry(session).or_default().push(tape.clone());
        tape
    }

    /// A stream for the client of a session of this worker to listen on.
    fn opened_here(&self, session: SessionId) -> Option<(u64, u64)> {
        if !self.owned.borrow().contains_key(&session) {
            return None;
        }
        let listened = self.is_listened(session);
        let tape = self.new_tape(StreamKind::Listening, session);
        let reader = tape.attach(0);
        // Connections die unseen; the newest stream is the likeliest to be read.
        let open: Vec<_> = self.listened(session).filter(|tape| tape.is_read()).collect();
        if open.len() > limits::STREAMS_PER_SESSION_MAX {
            open[0].end();
            self.forget(&open[0]);
        }
        let pending = match self.owned.borrow_mut().get_mut(&session) {
            Some(owned) => std::mem::take(&mut owned.pending),
            None => return None,
        };
        if !listened {
            self.attend(session, true);
        }
        self.announce_to(session, pending);
        Some((tape.stream, reader))
    }

    /// A stream that is kept here gets another reader.
    fn resumed_here(&self, session: SessionId, stream: u64, after: u64) -> Option<(u64, u64)> {
        let tape = self.streams.tapes.borrow().get(&stream).cloned();
        let tape = tape.filter(|tape| tape.session == session)?;
        let listened = self.is_listened(session);
        let reader = tape.attach(after);
        if let Some(all) = self.streams.of.borrow_mut().get_mut(&session) {
            all.retain(|other| !Rc::ptr_eq(other, &tape));
            all.push(tape.clone());
        }
        if tape.kind == StreamKind::Listening
            && let Some(owned) = self.owned.borrow_mut().get_mut(&session)
        {
            // They stand on the tape.
            owned.pending = Default::default();
        }
        if tape.kind == StreamKind::Listening && !listened {
            self.attend(session, true);
        }
        Some((stream, reader))
    }

    /// The streams that a client of this worker's session opened to listen, oldest first.
    fn listened(&self, session: SessionId) -> impl Iterator<Item = Rc<Tape>> {
        let of = self.streams.of.borrow();
        let all = of.get(&session).map(Vec::as_slice).unwrap_or_default().iter();
        let is_listened =
            |tape: &&Rc<Tape>| tape.kind == StreamKind::Listening && !tape.has_ended();
        all.filter(is_listened).cloned().collect::<Vec<_>>().into_iter()
    }

    /// The client of a session of this worker has begun to listen, or listens no more.
    fn attend(&self, session: SessionId, listens: bool) {
        let record = self.owned.borrow().get(&session).map(|owned| owned.record.clone());
        if let Some(record) = record {
            self.backends.attend(&record, listens);
        }
    }

    /// Whether the client of a session of this worker listens.
    pub(super) fn is_listened(&self, session: SessionId) -> bool {
        self.listened(session).any(|tape| tape.is_read())
    }

    /// Tells something to the client of a session that this worker owns: on its newest stream, or
    /// on one that it may come back to. `None`: there is neither; else whether it is being read.
    pub(super) fn say(&self, session: SessionId, message: Arc<[u8]>) -> Option<bool> {
        let all: Vec<_> = self.listened(session).collect();
        let tape = all.iter().rfind(|tape| tape.is_read()).or(all.last())?;
        tape.push(message);
        self.keep_within_bounds(tape);
        Some(tape.is_read())
    }

    /// Tells something to the client of a session, whoever owns it; it is lost if nobody listens.
    pub fn tell(&self, session: SessionId, message: Arc<[u8]>) {
        if session.owner() == self.me {
            if !self.backends.listener_hears(session, &message) {
                self.say(session, message);
            }
        } else {
            let mail = SessionMail::Stream(StreamMail::Say { session, message });
            let _ = (self.post)(session.owner(), mail);
        }
    }

    /// A reader leaves a tape of this worker.
    fn leave(&self, tape: &Rc<Tape>, reader: u64) {
        let now = rt::time::now();
        if tape.detach(reader, now) {
            self.streams.idle.borrow_mut().push_back((now, tape.stream));
            if tape.kind == StreamKind::Listening {
                if let Some(owned) = self.owned.borrow().get(&tape.session) {
                    owned.record.touch(now);
                }
                if !self.is_listened(tape.session) {
                    self.attend(tape.session, false);
                }
            }
        }
        if tape.is_read() {
            return;
        }
        // Nobody can come back to it, or there are too many that may.
        let running = |tape: &&Rc<Tape>| {
            tape.kind == StreamKind::Answering && !tape.is_read() && !tape.has_ended()
        };
        let useless = self.draining.is_set()
            || !self.streams.of.borrow().contains_key(&tape.session)
            || !tape.has_ended()
                && self.streams.tapes.borrow().values().filter(running).count()
                    > limits::DETACHED_MAX;
        match useless {
            true => self.forget(tape),
            false => self.keep_within_bounds(tape),
        }
    }

    /// Forgets tapes, the oldest first, while more is kept than the bounds allow.
    fn keep_within_bounds(&self, tape: &Rc<Tape>) {
        if !tape.is_read() {
            self.keep_session_within_bounds(tape);
        }
        loop {
            let many = self.streams.bytes.get() > limits::REPLAY_WORKER_BYTES_MAX
                || self.streams.idle.borrow().len() > limits::REPLAY_WORKER_STREAMS_MAX;
            if !many || !self.forget_oldest(None) {
                return;
            }
        }
    }

    /// The same of those of one session that nobody reads.
    fn keep_session_within_bounds(&self, tape: &Rc<Tape>) {
        let mut count_max = limits::REPLAY_SESSION_STREAMS_MAX;
        loop {
            let (mut bytes, mut count, mut oldest) = (0, 0, None);
            if let Some(all) = self.streams.of.borrow().get(&tape.session) {
                // What is true of all of them is true of those.
                if all.len() <= count_max
                    && self.streams.bytes.get() <= limits::REPLAY_SESSION_BYTES_MAX
                {
                    return;
                }
                for old in all.iter().filter(|tape| !tape.is_read()) {
                    (bytes, count) = (bytes + old.bytes(), count + 1);
                    // The response of the one at hand is what somebody will come back for.
                    if oldest.is_none() && !Rc::ptr_eq(old, tape) {
                        oldest = Some(old.clone());
                    }
                }
            }
            let many = count > count_max;
            let Some(oldest) = oldest.filter(|_| many || bytes > limits::REPLAY_SESSION_BYTES_MAX)
            else {
                return;
            };
            if many {
                count_max = limits::REPLAY_SESSION_STREAMS_LEFT;
            }
            self.forget(&oldest);
        }
    }

    /// Forgets the tape that nobody has read for longest, if it is older than that; false if there
    /// is none.
    fn forget_oldest(&self, before: Option<Instant>) -> bool {
        let first = self.streams.idle.borrow().front().copied();
        let Some((since, stream)) = first else { return false };
        if before.is_some_and(|before| since > before) {
            return false;
        }
        self.streams.idle.borrow_mut().pop_front();
        let tape = self.streams.tapes.borrow().get(&stream).cloned();
        let Some(tape) = tape.filter(|tape| tape.idle_since() == Some(since)) else { return true };
        if before.is_some() && tape.kind == StreamKind::Answering && !tape.has_ended() {
            // Its call has a limit of its own.
            return true;
        }
        self.forget(&tape);
        true
    }

    fn forget(&self, tape: &Rc<Tape>) {
        tape.forget();
        self.streams.tapes.borrow_mut().remove(&tape.stream);
        if let Some(all) = self.streams.of.borrow_mut().get_mut(&tape.session) {
            all.retain(|other| !Rc::ptr_eq(other, tape));
        }
    }

    /// The streams of a session that ended: those of answers that somebody reads go on.
    pub(super) fn end_streams_of(&self, session: SessionId) {
        let all = self.streams.of.borrow_mut().remove(&session).unwrap_or_default();
        for tape in all {
            if tape.kind == StreamKind::Listening {
                tape.end();
            }
            if tape.kind == StreamKind::Listening || !tape.is_read() {
                self.forget(&tape);
            }
        }
    }

    /// Ends all streams of this worker that clients listen on, so that their connections can close,
    /// and what goes on without a client.
    pub fn end_streams(&self) {
        self.streams.over.set();
        let tapes: Vec<_> = self.streams.tapes.borrow().values().cloned().collect();
        for tape in tapes.iter().filter(|tape| !tape.is_read()) {
            self.forget(tape);
        }
    }

    /// Forgets what nobody came back to, and readers that left without a word.
    pub(super) fn sweep_streams(&self, now: Instant) {
        let silent: Vec<_> = {
            let tapes = self.streams.tapes.borrow();
            let lost = |tape: &Rc<Tape>| Some((tape.clone(), tape.lost_reader(now)?));
            tapes.values().filter_map(lost).collect()
        };
        for (tape, reader) in silent {
            self.leave(&tape, reader);
        }
        let Some(before) = now.checked_sub(limits::REPLAY_TTL) else { return };
        while self.forget_oldest(Some(before)) {}
        let known = |session: &SessionId| match session.owner() == self.me {
            true => self.owned.borrow().contains_key(session),
            false => self.known.borrow().get(session).is_some_and(|record| !record.ended()),
        };
        let empty = |streams: &Vec<Rc<Tape>>| streams.is_empty();
        let ended: Vec<SessionId> = {
            let of = self.streams.of.borrow();
            of.iter().filter(|(id, all)| empty(all) || !known(id)).map(|(id, _)| *id).collect()
        };
        for session in ended {
            self.end_streams_of(session);
        }
    }
}
