//! Owns: a connection that goes from one thread to another, between two requests.
//! Never: when, or why.
//! Next: `sealed`, connections under TLS.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use super::sealed::Sealed;
use super::{Answer, Connection, Timing};
use crate::rt::net::{self, Stream};

/// A connection on its way, with what it has received and what it has still to send. Dropped, it is
/// closed.
pub struct Moving {
    socket: OwnedFd,
    peer: SocketAddr,
    sealed: Option<Box<Sealed>>,
    timing: Option<Box<Timing>>,
    input: Vec<u8>,
    output: Vec<u8>,
    tail: Vec<u8>,
    size: usize,
    served: u32,
}

impl Connection {
    /// Whether it stands between two requests, and has not been told to end. The answer to the last
    /// one may still have to be written.
    pub fn may_move(&self) -> bool {
        self.answer == Answer::Done
            && self.unread.is_none()
            && !(self.closing || self.lingering || self.dead || self.inside)
    }

    /// Its socket once more, for [`Connection::pack`].
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn socket(&self) -> io::Result<OwnedFd> {
        self.reader.duplicate()
    }

    /// Takes it off this thread, if it [may move](Connection::may_move); `socket` is its own.
    pub fn pack(self, socket: OwnedFd) -> Moving {
        debug_assert!(self.may_move());
        let Connection { reader, writer, peer, sealed, timing, mut input, at, .. } = self;
        let (output, tail, size, served) = (self.output, self.tail, self.size, self.served);
        net::let_go(reader, writer);
        input.drain(..at);
        Moving { socket, peer, sealed, timing, input, output, tail, size, served }
    }
}

impl Moving {
    /// The connection, on this thread from now on.
    ///
    /// # Errors
    /// The event loop does not take it; it is closed then.
    pub fn unpack(self) -> io::Result<Connection> {
        let stream = Stream::adopt(self.socket, self.peer)?;
        Ok(Connection {
            sealed: self.sealed,
            input: self.input,
            output: self.output,
            tail: self.tail,
            size: self.size,
            served: self.served,
            ..Connection::timed(stream, self.peer, self.timing)
        })
    }
}
