//! Owns: the event stream that answers a POST, from its first event on; it outlives its connection.
//! Never: what is said on it (`relay`, `batch`).
//! Next: `relay`.
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
        let connection = Some(connection);
        Outlet { world, record, connection, ask, peer, stream, primes, begun: false, here: true }
    }

    /// The rest of a stream whose connection has ended.
    pub(super) fn without(
        world: &'c Rc<World>,
        record: &'c Arc<SessionRecord>,
        ask: &'c Ask,
        peer: SocketAddr,
        stream: Answering,
    ) -> Outlet<'c> {
        let (connection, primes, begun, here) = (None, false, true, false);
        Outlet { world, record, connection, ask, peer, stream, primes, begun, here }
    }

    /// Who asked.
    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Awaits `next`, whatever becomes of the connection; a comment now and then keeps a silent one
    /// open. `None`: it is of no use to wait any longer.
    pub(super) async fn attend<F: Future>(&mut self, mut next: Pin<&mut F>) -> Option<F::Output> {
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
        let mut bytes = self.opening();
        bytes.extend_from_slice(sse::COMMENT);
        self.write(bytes).await;
    }

    /// Adds a message; waits for a reader that lags behind.
    pub(super) async fn event(&mut self, message: Vec<u8>) {
        if !self.here {
            // One that has died unseen holds nobody up for ever.
            let _ = rt::time::timeout(limits::WRITE_STALL_TIMEOUT, self.stream.tape().room()).await;
        }
        let (number, event) = self.put(message);
        if self.here && self.write(event).await {
            self.stream.tape().take(number);
        }
    }

    /// Ends the stream, with the response if there is one.
    pub(super) async fn finish(mut self, last: Option<Vec<u8>>) -> io::Result<()> {
        let event = match last {
            Some(message) => self.put(message).1,
            None => self.opening(),
        };
        self.stream.tape().end();
        match self.connection {
            Some(connection) if self.here => {
                end(connection, self.begun, &self.ask.cors, &event).await
            }
            _ => Ok(()),
        }
    }

    /// Ends the connection's answer, but not the stream: the client is told to come back for the
    /// rest, and how long to wait before.
    pub(super) async fn pause(self, retry: Option<Duration>) -> (io::Result<()>, Answering) {
        let mut bytes = Vec::new();
        if self.here {
            // Before the first event there is the id of the beginning; later the pause has its own.
            let number = match self.begun {
                true => self.stream.push(Vec::new().into()),
                false => 0,
            };
            let id = self.stream.tape().id(number).to_string();
            sse::write_priming(&mut bytes, &id, retry.unwrap_or(limits::SSE_RETRY));
        }
        let written = match self.connection {
            Some(connection) if self.here => {
                let written = end(connection, self.begun, &self.ask.cors, &bytes).await;
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

    /// Keeps a message, and writes its event.
    fn put(&mut self, message: Vec<u8>) -> (u64, Vec<u8>) {
        let mut event = if self.here { self.opening() } else { Vec::new() };
        let message: Arc<[u8]> = message.into();
        let number = self.stream.push(message.clone());
        if self.here {
            sse::write(&mut event, Some(&self.stream.tape().id(number).to_string()), &message);
        }
        (number, event)
    }

    /// What comes before the first event.
    fn opening(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if std::mem::take(&mut self.primes) {
            let id = self.stream.tape().id(0).to_string();
            sse::write_priming(&mut bytes, &id, limits::SSE_RETRY);
        }
        bytes
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
        if let Some(connection) = &mut self.connection {
            connection.abort();
        }
        self.stream.leave();
    }
}

/// Ends an answer with these events; `begun` says whether its head was sent.
async fn end(
    connection: &mut Connection,
    begun: bool,
    cors: &str,
    events: &[u8],
) -> io::Result<()> {
    if !begun {
        connection.begin(200, &with(EVENTS, cors), None).await?;
    }
    connection.finish_with(events).await
}
