//! Owns: one connection to a backend: a request out, its answer in, over TCP or TLS.
//! Never: pools, repeats or time limits of a call (`backend`); what an answer says; and it never
//! trusts a connection again on which anything was odd.
//! Next: `ahead`, what it expects of the next answer.
//!
//! RFC 9112 §6.3, §9; RFC 9110 §15.2 (1xx).
//!
//! A request is written while its answer is being read, in one entry to the kernel:
//! [`ClientConnection::send`] takes it and [`ClientConnection::head`], which has to follow, does
//! both. Reads are never given up by this module; whoever drops a call of it drops the connection.

mod ahead;

use self::ahead::Ahead;
use super::body::{Decoder, FramingFault};
use super::head::{HeadFault, ResponseHead};
use super::tls::Session;
use crate::limits;
use crate::rt;
use crate::rt::local::{Event, OneReceiver, oneshot};
use crate::rt::net::{ReadHalf, Stream, WriteHalf};
use rustls::ClientConfig;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// Bytes of a body returned at a time, and the most that one read asks for.
pub const PIECE_BYTES_MAX: usize = 64 * 1024;
/// Room for the read of an answer of unknown size: most heads with their small bodies.
const HEAD_ROOM: usize = 4 * 1024;
/// Requests over this are written by a task of their own, so that a backend which answers before
/// it has read everything meets a reader.
const OWN_TASK_BYTES: usize = 64 * 1024;
/// Interim answers (1xx) before one answer.
const INTERIM_MAX: u32 = 16;

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectFault {
    /// TCP did not connect.
    Tcp(io::Error),
    /// The time limit passed, in TCP or TLS.
    Timeout,
    /// The TLS handshake failed; nothing of the request was sent.
    Tls(rustls::Error),
    /// The backend left within the TLS handshake.
    Lost,
}

impl fmt::Display for ConnectFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectFault::Tcp(error) => write!(f, "connect: {error}"),
            ConnectFault::Timeout => f.write_str("connect: time limit passed"),
            ConnectFault::Tls(error) => write!(f, "TLS: {error}"),
            ConnectFault::Lost => f.write_str("TLS: connection closed in the handshake"),
        }
    }
}

impl std::error::Error for ConnectFault {}

/// What went wrong with an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum FaultKind {
    /// The connection ended before the head was whole.
    Closed,
    /// Reading or writing failed.
    Io(io::ErrorKind),
    /// The head is not HTTP/1.1 as it should be.
    Head(HeadFault),
    /// The body is not framed as it should be, or was cut short.
    Body(FramingFault),
    /// 101, or interim answers without end: nobody asked for them.
    Interim,
    /// TLS broke.
    Tls(rustls::Error),
    /// [`ClientConnection::send`] found the connection in no state to be used.
    Unusable,
}

/// A failed exchange. The connection is of no further use.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What went wrong.
    pub kind: FaultKind,
    /// Whether the request was handed to the socket whole: if not, it was surely not executed.
    pub sent: bool,
    /// Whether any byte of an answer had arrived.
    pub answered: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            FaultKind::Closed => f.write_str("connection closed before the answer")?,
            FaultKind::Io(kind) => write!(f, "connection failed: {kind}")?,
            FaultKind::Head(fault) => write!(f, "answer refused: {fault}")?,
            FaultKind::Body(fault) => write!(f, "answer refused: {fault}")?,
            FaultKind::Interim => f.write_str("answer refused: unasked 1xx")?,
            FaultKind::Tls(error) => write!(f, "TLS: {error}")?,
            FaultKind::Unusable => f.write_str("connection not usable")?,
        }
        match (self.sent, self.answered) {
            (_, true) => f.write_str(", after a part of it"),
            (false, false) => f.write_str(", request not sent whole"),
            (true, false) => Ok(()),
        }
    }
}

impl std::error::Error for Fault {}

type Written = (io::Result<()>, WriteHalf, Vec<u8>);

/// Who holds the writing half.
enum Writer {
    Here(WriteHalf),
    /// A task that writes a large request; it gives up when the pledge is gone.
    Away {
        done: OneReceiver<Written>,
        _pledge: Pledge,
    },
    /// A write failed, or its task did.
    Lost,
}

/// Somebody wants the request to be written.
struct Pledge(Rc<Event>);

impl Drop for Pledge {
    fn drop(&mut self) {
        self.0.set();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No exchange; the only state in which the connection can be used again.
    Idle,
    /// A request was taken by `send`.
    Sending,
    /// The head has been read, the body not to its end.
    Body,
    /// Of no further use. Also set while anything is in flight whose drop would lose bytes.
    Broken,
}

/// The client's side of one connection, for one exchange at a time.
///
/// Dropping it closes the connection.
pub struct ClientConnection {
    reader: ReadHalf,
    writer: Writer,
    tls: Option<Box<Session>>,
    /// Ciphertext as it is received.
    cipher: Vec<u8>,
    /// Plain bytes received and, from `at` on, not consumed.
    input: Vec<u8>,
    at: usize,
    /// What is to be written next.
    output: Vec<u8>,
    /// Storage of a request that was written, for the next one.
    spare: Vec<u8>,
    head: Rc<ResponseHead>,
    decoder: Decoder,
    state: State,
    keep_alive: bool,
    to_head: bool,
    interim: u32,
    sent: bool,
    answered: bool,
    /// How much the next read of a body of unknown length asks for.
    room: usize,
    /// What the next answer may look like.
    ahead: Ahead,
}

impl ClientConnection {
    /// Connects within `limit`, and shakes hands for TLS within
    /// [`limits::TLS_HANDSHAKE_TIMEOUT`]. A drop leaves nothing behind.
    ///
    /// # Errors
    /// Whatever it is, no request was sent.
    pub async fn connect(
        address: SocketAddr,
        tls: Option<(Arc<ClientConfig>, &str)>,
        limit: Duration,
    ) -> Result<ClientConnection, ConnectFault> {
        let stream = Stream::connect(address, limit).await.map_err(|error| {
            if error.kind() == io::ErrorKind::TimedOut {
                ConnectFault::Timeout
            } else {
                ConnectFault::Tcp(error)
            }
        })?;
        let (reader, writer) = stream.split();
        let mut connection = ClientConnection {
            reader,
            writer: Writer::Here(writer),
            tls: None,
            cipher: Vec::new(),
            input: Vec::new(),
            at: 0,
            output: Vec::new(),
            spare: Vec::new(),
            head: Rc::default(),
            decoder: Decoder::new(super::Framing::Empty, 0).map_err(|_| ConnectFault::Lost)?,
            state: State::Idle,
            keep_alive: true,
            to_head: false,
            interim: 0,
            sent: false,
            answered: false,
            room: HEAD_ROOM,
            ahead: Ahead::default(),
        };
        if let Some((config, name)) = tls {
            let session = Session::new(config, name, &mut connection.output);
            connection.tls = Some(Box::new(session.map_err(ConnectFault::Tls)?));
            // A hung handshake ends with its connection.
            rt::time::timeout(limits::TLS_HANDSHAKE_TIMEOUT, connection.handshake())
                .await
                .map_err(|_| ConnectFault::Timeout)??;
        }
        Ok(connection)
    }

    async fn handshake(&mut self) -> Result<(), ConnectFault> {
        loop {
            let failed = self.write_here().await.err();
            match &self.tls {
                Some(session) if session.is_handshaking() => {}
                _ => return failed.map_or(Ok(()), |error| Err(ConnectFault::Tcp(error))),
            }
            // A backend that refuses says why before it closes, so what it said is read even if
            // nothing can be written any more.
            let cipher = std::mem::take(&mut self.cipher);
            let (received, cipher) = self.reader.read(cipher, HEAD_ROOM).await;
            self.cipher = cipher;
            match received {
                Ok(0) => return Err(ConnectFault::Lost),
                Ok(_) => {}
                Err(error) => return Err(ConnectFault::Tcp(error)),
            }
            if let Err(error) = self.open_cipher() {
                let _ = self.write_here().await;
                return Err(ConnectFault::Tls(error));
            }
        }
    }

    /// Writes what is due, with the writer at hand.
    async fn write_here(&mut self) -> io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        let Writer::Here(writer) = &mut self.writer else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let (result, mut output) = writer.write_all(std::mem::take(&mut self.output)).await;
        output.clear();
        self.output = output;
        result
    }

    fn open_cipher(&mut self) -> Result<(), rustls::Error> {
        let Some(session) = &mut self.tls else { return Ok(()) };
        let result = session.decrypt(&self.cipher, &mut self.input, &mut self.output);
        self.cipher.clear();
        result
    }

    /// An empty buffer to build the next request in, with the storage of the last one.
    pub fn buffer(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.spare)
    }

    /// Takes a whole request, head and body. It is on its way once [`ClientConnection::head`], which
    /// has to follow, is awaited.
    ///
    /// # Errors
    /// `NotConnected` if the connection is not [`ClientConnection::reusable`]; nothing was sent.
    pub async fn send(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        if !self.reusable() {
            self.state = State::Broken;
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.state = State::Sending;
        (self.sent, self.answered, self.interim) = (false, false, 0);
        self.to_head = bytes.starts_with(b"HEAD ");
        match &mut self.tls {
            None => {
                debug_assert!(self.output.is_empty());
                self.output = bytes;
            }
            Some(session) => {
                // A reply to the last thing the backend's TLS said may wait here already.
                if let Err(error) = session.encrypt(&bytes, &mut self.output) {
                    self.state = State::Broken;
                    return Err(io::Error::other(error));
                }
                self.keep(bytes);
            }
        }
        if self.output.len() > OWN_TASK_BYTES {
            self.write_away();
        }
        Ok(())
    }

    fn keep(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= OWN_TASK_BYTES {
            buffer.clear();
            self.spare = buffer;
        }
    }

    /// Gives the request to a task of its own.
    fn write_away(&mut self) {
        let Writer::Here(mut writer) = std::mem::replace(&mut self.writer, Writer::Lost) else {
            return;
        };
        let bytes = std::mem::take(&mut self.output);
        let (tell, done) = oneshot();
        let gone = Rc::new(Event::new());
        self.writer = Writer::Away { done, _pledge: Pledge(gone.clone()) };
        rt::spawn("request writer", async move {
            // The write may be dropped: the connection goes with it.
            let write = writer.write_all(bytes);
            if let rt::Either::Left((result, bytes)) = rt::race(write, gone.wait()).await {
                tell.send((result, writer, bytes));
            }
        });
    }

    fn fault<T>(&mut self, kind: FaultKind) -> Result<T, Fault> {
        self.state = State::Broken;
        Err(Fault { kind, sent: self.sent, answered: self.answered })
    }

    /// Writes the request and reads the head of its answer; interim answers are skipped.
    ///
    /// A drop breaks the connection.
    ///
    /// # Errors
    /// An answer that is not HTTP, ambiguous, or an upgrade; a connection that ended.
    pub async fn head(&mut self) -> Result<Rc<ResponseHead>, Fault> {
        if self.state != State::Sending {
            return self.fault(FaultKind::Unusable);
        }
        self.state = State::Broken;
        let kind = match self.exchange_head().await {
            Ok(()) => return Ok(self.head.clone()),
            Err(kind) => kind,
        };
        self.fault(kind)
    }

    async fn exchange_head(&mut self) -> Result<(), FaultKind> {
        let output = std::mem::take(&mut self.output);
        let mut writer = std::mem::replace(&mut self.writer, Writer::Lost);
        // The write goes on beside all reads that the head takes.
        let mut wrote: Option<io::Result<()>> = None;
        let result = {
            let mut write = pin!(async {
                match &mut writer {
                    Writer::Here(writer) if !output.is_empty() => writer.write_all(output).await,
                    Writer::Here(_) => (Ok(()), output),
                    Writer::Away { done, .. } => match done.await {
                        Some((result, half, bytes)) => {
                            writer = Writer::Here(half);
                            (result, bytes)
                        }
                        None => (Err(io::ErrorKind::BrokenPipe.into()), output),
                    },
                    Writer::Lost => (Err(io::ErrorKind::BrokenPipe.into()), output),
                }
            });
            let mut written = Vec::new();
            let result = loop {
                match self.parse_start() {
                    Ok(true) => break Ok(()),
                    Ok(false) => {}
                    Err(kind) => break Err(kind),
                }
                if self.is_ended() {
                    break Err(FaultKind::Closed);
                }
                let plain = self.tls.is_none();
                let buffer = std::mem::take(if plain { &mut self.input } else { &mut self.cipher });
                let room = if plain { HEAD_ROOM } else { self.room };
                let lent = if plain && buffer.is_empty() { self.ahead.lend() } else { None };
                let (received, buffer) = {
                    let (reader, ahead) = (&mut self.reader, &mut self.ahead.bytes);
                    let mut read = pin!(async move {
                        let Some(lent) = lent else { return reader.read(buffer, room).await };
                        // Boxed: no answer has to be large.
                        let both = Box::pin(reader.read_both(buffer, lent.head, lent.body));
                        let (received, buffer, rest) = both.await;
                        *ahead = rest;
                        (received, buffer)
                    });
                    poll_fn(|cx| {
                        if wrote.is_none()
                            && let Poll::Ready((result, bytes)) = write.as_mut().poll(cx)
                        {
                            self.sent = result.is_ok();
                            wrote = Some(result);
                            written = bytes;
                        }
                        // Also after a failed write: a backend that refuses early may have
                        // answered.
                        read.as_mut().poll(cx)
                    })
                    .await
                };
                let count = match self.received(received, buffer) {
                    Ok(count) => count,
                    Err(kind) => break Err(kind),
                };
                if count == 0 {
                    break Err(match &wrote {
                        Some(Err(error)) => FaultKind::Io(error.kind()),
                        _ => FaultKind::Closed,
                    });
                }
            };
            if wrote.is_some() {
                self.keep(written);
            }
            result
        };
        match (&wrote, writer) {
            (Some(Ok(())), writer @ Writer::Here(_)) => self.writer = writer,
            // A large request may still be on its way; `body` lets it go on.
            (None, writer @ Writer::Away { .. }) => self.writer = writer,
            // Answered before the request was read: nothing can follow it on this connection.
            _ => self.keep_alive = false,
        }
        result
    }

    /// Takes in what a read brought and returns its plain length, at least 1 for ciphertext without
    /// any.
    fn received(
        &mut self,
        received: io::Result<usize>,
        buffer: Vec<u8>,
    ) -> Result<usize, FaultKind> {
        if self.tls.is_none() {
            self.input = buffer;
            let count = received.map_err(|error| FaultKind::Io(error.kind()))?;
            self.answered |= count > 0;
            return Ok(count);
        }
        self.cipher = buffer;
        let count = received.map_err(|error| FaultKind::Io(error.kind()))?;
        if count >= self.room {
            self.room = (self.room * 2).min(PIECE_BYTES_MAX);
        }
        let before = self.input.len();
        self.open_cipher().map_err(FaultKind::Tls)?;
        self.answered |= self.input.len() > before;
        Ok(count)
    }

    /// As `parse_head`, with a guess behind it: what was read as the start of the body goes back to
    /// the head unless it is just that.
    fn parse_start(&mut self) -> Result<bool, FaultKind> {
        let whole = self.parse_head()?;
        if self.ahead.bytes.is_empty()
            || (whole && self.at == self.input.len() && self.decoder.is_plain())
        {
            return Ok(whole);
        }
        self.ahead.missed();
        self.input.append(&mut self.ahead.bytes);
        if whole { Ok(true) } else { self.parse_head() }
    }

    /// Whether the head of the answer is complete; skips interim ones.
    fn parse_head(&mut self) -> Result<bool, FaultKind> {
        if Rc::get_mut(&mut self.head).is_none() {
            self.head = Rc::default();
        }
        let Some(head) = Rc::get_mut(&mut self.head) else { return Ok(false) };
        while let Some(length) =
            head.parse(&self.input[self.at..], self.to_head).map_err(FaultKind::Head)?
        {
            self.at += length;
            if head.status() >= 200 {
                let framing = head.framing();
                // As large as the reader wants: callers bound what they keep.
                self.decoder = Decoder::new(framing, u64::MAX).map_err(FaultKind::Body)?;
                self.keep_alive &= head.keep_alive();
                let length = self.decoder.expected().filter(|_| self.decoder.is_plain());
                self.ahead.learn(self.at, length);
                self.state = State::Body;
                return Ok(true);
            }
            self.interim += 1;
            if head.status() == 101 || self.interim > INTERIM_MAX {
                return Err(FaultKind::Interim);
            }
            head.reset();
        }
        Ok(false)
    }

    /// The next piece of the body as it arrives, never empty and at most [`PIECE_BYTES_MAX`]; `None`
    /// at its proper end.
    ///
    /// A drop breaks the connection.
    ///
    /// # Errors
    /// A body that is cut short or not framed as it should be.
    pub async fn body(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        let mut piece = Vec::new();
        Ok(self.more(&mut piece, PIECE_BYTES_MAX).await?.then_some(piece))
    }

    /// The whole body, if it came with the head, was announced with its length, and has at most `max`
    /// bytes; nothing is read for it.
    pub fn at_hand(&mut self, max: usize) -> Option<Vec<u8>> {
        if self.state != State::Body || !self.decoder.is_plain() {
            return None;
        }
        let len = self.decoder.expected().filter(|len| *len <= max as u64)? as usize;
        let rest = &self.input[self.at..];
        let body = match (rest.len(), self.ahead.bytes.len()) {
            (0, ahead) if ahead == len => std::mem::take(&mut self.ahead.bytes),
            (here, 0) if here == len => {
                let mut body = rt::spare::buffer(len);
                body.extend_from_slice(rest);
                self.at += len;
                body
            }
            _ => return None,
        };
        self.state = State::Broken;
        self.decoder.took(len).ok()?;
        self.end_exchange();
        Some(body)
    }

    /// The rest of the body, if it has at most `max` bytes.
    ///
    /// A drop breaks the connection.
    ///
    /// # Errors
    /// As for [`ClientConnection::body`]; `TooLarge`, before it is read if its length is known.
    pub async fn whole(&mut self, max: usize) -> Result<Vec<u8>, Fault> {
        let announced = self.decoder.expected().filter(|_| self.decoder.is_plain());
        if announced.is_some_and(|length| length > max as u64) {
            return self.fault(FaultKind::Body(FramingFault::TooLarge));
        }
        // Announced bytes get memory at once only as far as one read could bring them.
        let room = announced.map_or(0, |length| length.min(PIECE_BYTES_MAX as u64) as usize);
        let mut body = match self.ahead.bytes.is_empty() {
            true => rt::spare::buffer(room),
            // What was read ahead takes its place.
            false => Vec::new(),
        };
        while self.more(&mut body, PIECE_BYTES_MAX).await? {
            if body.len() > max {
                return self.fault(FaultKind::Body(FramingFault::TooLarge));
            }
        }
        Ok(body)
    }

    /// Appends at most `max` bytes of the body to `out`; `false` at its end.
    async fn more(&mut self, out: &mut Vec<u8>, max: usize) -> Result<bool, Fault> {
        match self.state {
            State::Idle => return Ok(false),
            State::Body => {}
            State::Sending | State::Broken => return self.fault(FaultKind::Unusable),
        }
        self.state = State::Broken;
        match self.next_piece(out, max).await {
            Ok(true) => {
                self.state = State::Body;
                Ok(true)
            }
            Ok(false) => {
                self.end_exchange();
                Ok(false)
            }
            Err(kind) => self.fault(kind),
        }
    }

    /// Whether the body is over with what has been received, which is dropped.
    pub fn is_at_end(&mut self) -> bool {
        if self.state == State::Body && self.ahead.bytes.is_empty() {
            let mut rest = Vec::new();
            match self.decoder.decode(&self.input[self.at..], &mut rest) {
                Ok(used) => self.at += used,
                Err(_) => self.state = State::Broken,
            }
            if self.state == State::Body && self.decoder.is_done() {
                self.end_exchange();
            }
        }
        self.state == State::Idle
    }

    async fn next_piece(&mut self, out: &mut Vec<u8>, max: usize) -> Result<bool, FaultKind> {
        let before = out.len();
        if !self.ahead.bytes.is_empty() {
            let mut ahead = std::mem::take(&mut self.ahead.bytes);
            let mine = self.decoder.took(ahead.len()).map_err(FaultKind::Body)?;
            // More than was announced: nobody asked for that.
            self.keep_alive &= mine == ahead.len();
            ahead.truncate(mine);
            match out.is_empty() {
                true => *out = ahead,
                false => out.append(&mut ahead),
            }
            return Ok(true);
        }
        loop {
            // What is here already.
            if self.at < self.input.len() && !self.decoder.is_done() {
                let end = self.input.len().min(self.at + max);
                let used = self.decoder.decode(&self.input[self.at..end], out);
                self.at += used.map_err(FaultKind::Body)?;
                if out.len() > before {
                    return Ok(true);
                }
                continue;
            }
            if self.decoder.is_done() {
                return Ok(false);
            }
            self.input.clear();
            self.at = 0;
            let announced = self.decoder.expected();
            let room = announced.map_or(self.room, |length| length.min(max as u64) as usize);
            if self.tls.is_none() && self.decoder.is_plain() {
                // Straight to where it belongs.
                let (received, buffer) = self.reader.read(std::mem::take(out), room).await;
                *out = buffer;
                let count = received.map_err(|error| FaultKind::Io(error.kind()))?;
                if count == 0 {
                    self.decoder.end().map_err(FaultKind::Body)?;
                    self.keep_alive = false;
                    return Ok(false);
                }
                let mine = self.decoder.took(count).map_err(FaultKind::Body)?;
                // More than was announced: nobody asked for that.
                self.keep_alive &= mine == count;
                out.truncate(before + mine);
                self.widen(count, room);
                return Ok(true);
            }
            let plain = self.tls.is_none();
            let mut over = self.is_ended();
            if !over {
                let buffer = std::mem::take(if plain { &mut self.input } else { &mut self.cipher });
                let room = room.max(self.room);
                let (received, buffer) = self.reader.read(buffer, room).await;
                let count = self.received(received, buffer)?;
                if plain {
                    self.widen(count, room);
                }
                over = count == 0;
            }
            if over {
                // Without the end of the TLS session anybody may have cut the stream.
                if !plain && !self.is_ended() {
                    return Err(FaultKind::Body(FramingFault::Truncated));
                }
                self.decoder.end().map_err(FaultKind::Body)?;
                self.keep_alive = false;
                return Ok(false);
            }
        }
    }

    /// Whether the backend has ended the TLS session.
    fn is_ended(&self) -> bool {
        self.tls.as_ref().is_some_and(|session| session.is_ended())
    }

    /// A read that filled its room makes the next one larger.
    fn widen(&mut self, count: usize, room: usize) {
        if count >= room {
            self.room = (self.room * 2).min(PIECE_BYTES_MAX);
        }
    }

    /// The body has ended properly.
    fn end_exchange(&mut self) {
        self.state = State::Idle;
        // Bytes behind an answer are an answer to nothing: never used, never trusted again.
        self.keep_alive &= self.at == self.input.len() && self.ahead.bytes.is_empty();
        self.ahead.bytes = Vec::new();
        self.input.clear();
        self.at = 0;
        self.room = HEAD_ROOM;
        // A pooled connection keeps little.
        self.input.shrink_to(HEAD_ROOM);
        self.cipher.shrink_to(HEAD_ROOM);
        if let Writer::Away { done, .. } = &mut self.writer {
            // It has been read whole, or it was answered without.
            let mut done = pin!(done);
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            match done.as_mut().poll(&mut cx) {
                Poll::Ready(Some((Ok(()), writer, _))) => {
                    self.sent = true;
                    self.writer = Writer::Here(writer);
                }
                _ => self.keep_alive = false,
            }
        }
        match Rc::get_mut(&mut self.head) {
            Some(head) => head.remember(),
            // Somebody still reads it; the next answer must not go on where it ended.
            None => self.head = Rc::default(),
        }
    }

    /// Whether the last exchange ended so that another may follow.
    pub fn reusable(&self) -> bool {
        self.state == State::Idle
            && self.keep_alive
            && self.at == self.input.len()
            && matches!(self.writer, Writer::Here(_))
            && !self.is_ended()
    }

    /// Whether the connection is open and silent: a pooled one that is not is dropped unused.
    pub fn is_quiet(&self) -> bool {
        self.reader.is_quiet()
    }

    /// The backend's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.reader.peer_addr()
    }
}

#[cfg(test)]
mod tests;
