//! Owns: the event stream that answers a POST, from its first event on; it outlives its connection.
//! Never: what is said on it (`relay`, `batch`).
//! Next: `stream`, where a client that comes back reads on.
//!
//! MCP 2025-11-25, Transports: a lost connection is no cancellation. The exchange goes on, and what
//! it has to say is kept for the client, that comes back with a GET.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Ask;
use super::answer::{EVENTS, with};
use crate::http::{Connection, sse};
use crate::limits;
use crate::mcp::session::SessionRecord;
use crate::rt::{self, Either, race};
use crate::world::{Answering, World};

/// Room for a few events of progress and a short answer.
const EVENTS_ROOM: usize = 1024;

/// See the head of this file.
pub(super) struct Outlet<'c> {
    pub(super) world: &'c Rc<World>,
    pub(super) record: &'c Arc<SessionRecord>,
    connection: Option<&'c mut Connection>,
    pub(super) ask: &'c Ask,
    peer: SocketAddr,
    stream: Answering,
    /// Whether it begins with a priming event.
    primes: bool,
    begun: bool,
    /// The connection is there, and nobody else reads the stream.
    here: bool,
    /// What waits for company: events that are there already go out in one write.
    held: Vec<u8>,
    /// The number of the last message in it.
    last: u64,
}

impl<'c> Outlet<'c> {
    /// A stream that has not begun.
    pub(super) fn new(
        world: &'c Rc<World>,
        record: &'c Arc<SessionRecord>,
        connection: &'c mut Connection,
        ask: &'c Ask,
    ) -> Outlet<'c> {
        let primes = record.revision.primes();
        let stream = world.open_answer(record.id);
        let peer = connection.peer();
        Outlet {
            world,
            record,
            connection: Some(connection),
            ask,
            peer,
            stream,
            primes,
            begun: false,
            here: true,
            held: Vec::new(),
            last: 0,
        }
    }

    /// The rest of a stream whose connection has ended.
    pub(super) fn without(
        world: &'c Rc<World>,
        record: &'c Arc<SessionRecord>,
        ask: &'c Ask,
        peer: SocketAddr,
        stream: Answering,
    ) -> Outlet<'c> {
        Outlet {
            world,
            record,
            connection: None,
            ask,
            peer,
            stream,
            primes: false,
            begun: true,
            here: false,
            held: Vec::new(),
            last: 0,
        }
    }

    /// Who asked.
    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Awaits `next`, whatever becomes of the connection; a comment now and then keeps a silent one
    /// open. `None`: it is of no use to wait any longer.
    ///
    /// What was said before is written first, unless there is nothing to wait for.
    pub(super) async fn attend<F: Future>(&mut self, mut next: Pin<&mut F>) -> Option<F::Output> {
        if let Some(output) = rt::at_once(next.as_mut()).await {
            return Some(output);
        }
        self.flush().await;
        while self.here
            && let Some(connection) = &mut self.connection
        {
            let silence = rt::time::sleep(limits::SSE_COMMENT_INTERVAL);
            let left = race(connection.closed(), self.stream.lost());
            match race(next.as_mut(), race(silence, left)).await {
                Either::Left(output) => return Some(output),
                Either::Right(Either::Left(())) => self.comment().await,
                Either::Right(Either::Right(_)) => self.leave(),
            }
        }
        match race(next, self.stream.abandoned()).await {
            Either::Left(output) => Some(output),
            Either::Right(()) => None,
        }
    }

    /// Says something to keep the connection open.
    pub(super) async fn comment(&mut self) {
        self.open();
        self.held.extend_from_slice(sse::COMMENT);
        self.flush().await;
    }

    /// Adds a message, to be written with the next one or by [`Outlet::attend`] when that has to
    /// wait; waits for a reader that lags behind.
    pub(super) async fn event(&mut self, message: Vec<u8>) {
        if !self.here {
            // One that has died unseen holds nobody up for ever.
            let _ = rt::time::timeout(limits::WRITE_STALL_TIMEOUT, self.stream.tape().room()).await;
        }
        self.put(message);
        if self.held.len() >= limits::EVENTS_HELD_BYTES {
            self.flush().await;
        }
    }

    /// Ends the stream, with the response if there is one.
    pub(super) async fn finish(mut self, last: Option<Vec<u8>>) -> io::Result<()> {
        match last {
            Some(message) => self.put(message),
            None => self.open(),
        }
        self.stream.tape().end();
        match self.connection {
            Some(connection) if self.here => {
                end(connection, self.begun, &self.ask.cors, self.held).await
            }
            _ => Ok(()),
        }
    }

    /// Ends the connection's answer, but not the stream: the client is told to come back for the
    /// rest, and how long to wait before.
    pub(super) async fn pause(mut self, retry: Option<Duration>) -> (io::Result<()>, Answering) {
        if self.here {
            // Before the first event there is the id of the beginning; later the pause has its own.
            let number = match self.begun || !self.held.is_empty() {
                true => self.stream.push(Vec::new().into()),
                false => 0,
            };
            let id = self.stream.tape().id(number).text();
            sse::write_priming(&mut self.held, &id, retry.unwrap_or(limits::SSE_RETRY));
        }
        let written = match self.connection {
            Some(connection) if self.here => {
                let written = end(connection, self.begun, &self.ask.cors, self.held).await;
                self.stream.leave();
                written
            }
            _ => Ok(()),
        };
        (written, self.stream)
    }

    /// Ends the stream of a request that its client has cancelled: nobody is to come back for it.
    pub(super) async fn cancel(mut self) -> io::Result<()> {
        self.stream.withdraw();
        self.primes = false;
        self.finish(None).await
    }

    /// Keeps a message, and holds its event.
    fn put(&mut self, message: Vec<u8>) {
        self.open();
        let message: Arc<[u8]> = message.into();
        self.last = self.stream.push(message.clone());
        if self.here {
            if self.held.capacity() == 0 {
                self.held.reserve(EVENTS_ROOM.max(message.len() + 128));
            }
            let id = self.stream.tape().id(self.last).text();
            sse::write(&mut self.held, Some(&id), &message);
        }
    }

    /// Holds what comes before the first event.
    fn open(&mut self) {
        if self.here && std::mem::take(&mut self.primes) {
            let id = self.stream.tape().id(0).text();
            sse::write_priming(&mut self.held, &id, limits::SSE_RETRY);
        }
    }

    /// Writes what is held.
    async fn flush(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let held = std::mem::take(&mut self.held);
        if self.write(held).await {
            self.stream.tape().take(self.last);
        }
    }

    /// Writes to the connection; false if it is lost.
    async fn write(&mut self, bytes: Vec<u8>) -> bool {
        let begun = std::mem::replace(&mut self.begun, true);
        let lost = self.stream.lost();
        let lines = with(EVENTS, &self.ask.cors);
        let Some(connection) = &mut self.connection else { return false };
        let written = async {
            match begun {
                true => connection.chunk(bytes).await,
                false => connection.begin_with(200, &lines, None, &bytes).await,
            }
        };
        // Dropped when another connection has taken the stream over; this one is closed then.
        let whole = matches!(race(written, lost).await, Either::Left(Ok(())));
        if !whole {
            self.leave();
        }
        whole
    }

    fn leave(&mut self) {
        self.here = false;
        self.held = Vec::new();
        if let Some(connection) = &mut self.connection {
            connection.abort();
        }
        self.stream.leave();
    }
}

/// Ends an answer with these events; `begun` says whether its head was sent. A stream that is over
/// before that is an answer whose length is known.
async fn end(
    connection: &mut Connection,
    begun: bool,
    cors: &str,
    events: Vec<u8>,
) -> io::Result<()> {
    match begun {
        true => connection.finish_with(&events).await,
        false => connection.answer_with(200, &with(EVENTS, cors), events).await,
    }
}
