//! Owns: one client's connection: requests in, answers out, its time limits and its end.
//! Never: what a request asks for; and it never reads on after bytes that it refused.
//! Next: `client`, the same wire from the other side.
//!
//! RFC 9112 §9; RFC 9110 §10.1.1 (Expect), §6.6.1 (Date).
//!
//! An answer is written together with the read of the next request, in one entry to the kernel:
//! [`Connection::answer`] and [`Connection::finish`] leave it in a buffer and
//! [`Connection::head`], which has to follow, does both. Everything else is written at once.

mod moving;
mod sealed;

use super::body::{Decoder, FramingFault, LAST_CHUNK, write_chunk};
use super::head::{Framing, Method, RequestHead, Version, are_lines, length_line, status_line};
use crate::limits;
use crate::rt;
use crate::rt::alarm::Alarm;
use crate::rt::net::{ReadHalf, Stream, WriteHalf};
use std::fmt;
use std::fmt::Write as _;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

pub use moving::Moving;
pub use sealed::SealFault;
use sealed::Sealed;

/// Room lent to the kernel while a connection waits for a request: what an idle one costs.
const IDLE_ROOM: usize = 1024;
/// The same for one whose last request was larger than that.
const BUSY_ROOM: usize = 8 * 1024;
/// Bytes of a body asked for at a time: announced bytes get no memory before they come.
const BODY_ROOM: usize = 64 * 1024;
/// Bodies from here on go out from where they are instead of being copied behind their head: two
/// buffers cost a write about as much as a copy of this.
const TAIL_BYTES_MIN: usize = 8 * 1024;
/// Bytes written at a time; each piece has [`Timing::stall`] to go.
const WRITE_PIECE: usize = 256 * 1024;
/// A connection without a request for this long gives its buffers back.
const SETTLE: Duration = Duration::from_secs(1);

/// Time limits of a connection; the default is that of `limits`.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For the handshake of TLS.
    pub handshake: Duration,
    /// Without a request.
    pub idle: Duration,
    /// From the first byte of a head to its last.
    pub head: Duration,
    /// From the end of a head to the end of its body.
    pub body: Duration,
    /// Between two reads of a body.
    pub body_idle: Duration,
    /// For each piece of an answer to be taken.
    pub stall: Duration,
    /// After a refusal, for the client to read it.
    pub linger: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            handshake: limits::TLS_HANDSHAKE_TIMEOUT,
            idle: limits::CONNECTION_IDLE_TIMEOUT,
            head: limits::HEAD_READ_TIMEOUT,
            body: limits::BODY_READ_TIMEOUT,
            body_idle: limits::BODY_IDLE_TIMEOUT,
            stall: limits::WRITE_STALL_TIMEOUT,
            linger: limits::LINGER_TIMEOUT,
        }
    }
}

/// Why a request's body did not come. The connection closes after the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFault {
    /// Over the bound; nothing beyond it was read.
    TooLarge,
    /// Chunks that do not follow the grammar, or too much between them.
    Malformed,
    /// It came too slowly.
    Timeout,
    /// The client left: an answer would reach nobody.
    Gone,
}

impl BodyFault {
    /// The status to answer with; `None` if nobody is there.
    pub const fn status(self) -> Option<u16> {
        match self {
            BodyFault::TooLarge => Some(413),
            BodyFault::Malformed => Some(400),
            BodyFault::Timeout => Some(408),
            BodyFault::Gone => None,
        }
    }
}

impl fmt::Display for BodyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BodyFault::TooLarge => "body too large",
            BodyFault::Malformed => "malformed body",
            BodyFault::Timeout => "body too slow",
            BodyFault::Gone => "client left",
        })
    }
}

impl std::error::Error for BodyFault {}

impl From<FramingFault> for BodyFault {
    fn from(fault: FramingFault) -> BodyFault {
        match fault {
            FramingFault::TooLarge => BodyFault::TooLarge,
            FramingFault::Malformed | FramingFault::Overhead => BodyFault::Malformed,
            FramingFault::Truncated => BodyFault::Gone,
        }
    }
}

/// What has become of the answer to the request at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Every request is answered.
    Done,
    /// A request waits for its answer.
    Due,
    /// A body is being sent: in chunks, with this many bytes to go, up to the end of the
    /// connection, or not at all since the request was HEAD.
    Chunks,
    Length(u64),
    UntilClose,
    Mute,
}

/// Why waiting for the socket ended otherwise than with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// A time limit passed.
    Elapsed,
    /// The socket failed.
    Gone,
    /// The caller's own reason.
    Told,
}

/// The server's side of one connection.
///
/// Dropping it closes the connection; an answer that [`Connection::head`] or
/// [`Connection::flush`] has not written is lost with it.
pub struct Connection {
    reader: ReadHalf,
    writer: WriteHalf,
    /// TLS, once its handshake is over.
    sealed: Option<Box<Sealed>>,
    peer: SocketAddr,
    /// Others than the default.
    timing: Option<Box<Timing>>,
    alarm: Alarm,
    /// Received and, from `at` on, not consumed.
    input: Vec<u8>,
    at: usize,
    head: Rc<RequestHead>,
    /// How the body of the request at hand is framed, until it has been read.
    unread: Option<Framing>,
    /// The next answer, as far as it is ready.
    output: Vec<u8>,
    /// The rest of it, if that is a body of its own; empty while there is no output.
    tail: Vec<u8>,
    answer: Answer,
    /// Bytes of the last request.
    size: usize,
    served: u32,
    /// No request is taken after this one.
    closing: bool,
    /// Bytes that nobody will read may still come: see [`limits::LINGER_TIMEOUT`].
    lingering: bool,
    /// Nothing more can be written.
    dead: bool,
    /// It was made by the program that embeds the proxy.
    inside: bool,
    /// Status of the last answer.
    status: u16,
    /// Bytes of its body so far, before framing.
    carried: u64,
}

impl Connection {
    /// Takes over an accepted stream.
    pub fn new(stream: Stream, peer: SocketAddr) -> Connection {
        Connection::timed(stream, peer, None)
    }

    /// Takes over an accepted stream, with other time limits.
    pub fn with_timing(stream: Stream, peer: SocketAddr, timing: Timing) -> Connection {
        Connection::timed(stream, peer, Some(Box::new(timing)))
    }

    fn timed(stream: Stream, peer: SocketAddr, timing: Option<Box<Timing>>) -> Connection {
        let (reader, writer) = stream.split();
        Connection {
            reader,
            writer,
            sealed: None,
            peer,
            timing,
            alarm: Alarm::new(),
            input: Vec::new(),
            at: 0,
            head: Rc::default(),
            unread: None,
            output: Vec::new(),
            tail: Vec::new(),
            answer: Answer::Done,
            size: 0,
            served: 0,
            closing: false,
            lingering: false,
            dead: false,
            inside: false,
            status: 0,
            carried: 0,
        }
    }

    fn timing(&self) -> Timing {
        self.timing.as_deref().copied().unwrap_or_default()
    }

    /// The client's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// From now on it counts as one that the program that embeds the proxy has made.
    pub fn come_from_inside(&mut self) {
        self.inside = true;
    }

    /// Whether the program that embeds the proxy has made it: whoever is behind it may be anywhere.
    pub fn is_inside(&self) -> bool {
        self.inside
    }

    /// The client is another one than the other end.
    pub fn speaks_for(&mut self, client: SocketAddr) {
        self.peer = client;
    }

    /// Status of the last answer, and the bytes of its body so far; 0 = it has not begun.
    pub fn answered(&self) -> (u16, u64) {
        (self.status, self.carried)
    }

    /// The head of the next request, after the answer to the last one has been written.
    ///
    /// `None`: the connection is over: closed, idle for too long, or refused with an answer that
    /// has been sent. A drop is safe only together with the connection.
    pub async fn head(&mut self) -> Option<Rc<RequestHead>> {
        self.head_unless(pending()).await
    }

    /// As [`Connection::head`], but ends with `None` once `stop` is ready while no request has
    /// begun; the answer to the last one is written in any case.
    pub async fn head_unless(&mut self, stop: impl Future<Output = ()>) -> Option<Rc<RequestHead>> {
        if self.dead || self.closing || self.answer != Answer::Done {
            Box::pin(self.close()).await;
            return None;
        }
        let head = self.next_head(pin!(stop)).await;
        // Its read may have been given up with bytes in it.
        self.dead |= head.is_none();
        head
    }

    async fn next_head<S: Future<Output = ()>>(
        &mut self,
        mut stop: Pin<&mut S>,
    ) -> Option<Rc<RequestHead>> {
        let room = room_for(self.size);
        self.compact(room);
        match Rc::get_mut(&mut self.head) {
            Some(head) => head.remember(),
            None => self.head = Rc::default(),
        }
        // Taken when there is something to wait for; a pipelined request costs no clock.
        let mut limits: Option<(Instant, Option<Instant>)> = None;
        loop {
            let head = Rc::get_mut(&mut self.head)?;
            match head.parse(&self.input) {
                Ok(Some(length)) => {
                    self.at = length;
                    self.begin_request();
                    // Whoever sends requests without waiting for answers still gets each answer
                    // before the next request is worked on, which may take long.
                    if !self.output.is_empty() || self.dead {
                        Box::pin(self.flush()).await.ok()?;
                    }
                    return Some(self.head.clone());
                }
                Ok(None) => {}
                Err(fault) => {
                    // Boxed, as `close` is: what is rare must not make every connection larger.
                    Box::pin(self.refuse(fault.status(), &fault)).await;
                    return None;
                }
            }
            let started = !self.input.is_empty();
            let now = rt::time::now();
            let (idle_by, head_by) = limits.get_or_insert((now + self.timing().idle, None));
            let by =
                if started { *head_by.get_or_insert(now + self.timing().head) } else { *idle_by };
            let input = std::mem::take(&mut self.input);
            let stop = (!started).then_some(stop.as_mut());
            let (received, input) = self.pump(input, room, now, by, stop).await;
            self.input = input;
            match received {
                Ok(0) | Err(Stop::Gone) => return None,
                Ok(_) => {}
                Err(Stop::Elapsed) if started => {
                    Box::pin(self.refuse(408, &"head too slow")).await;
                    return None;
                }
                Err(Stop::Elapsed | Stop::Told) => return None,
            }
        }
    }

    fn begin_request(&mut self) {
        self.served += 1;
        self.status = 0;
        self.carried = 0;
        self.size = self.at;
        self.answer = Answer::Due;
        self.unread = match self.head.framing() {
            Framing::Empty => None,
            framing => Some(framing),
        };
        self.closing =
            !self.head.keep_alive() || self.served >= limits::REQUESTS_PER_CONNECTION_MAX;
    }

    /// Forgets consumed input, so that it starts with what comes next.
    fn compact(&mut self, room: usize) {
        if self.at == self.input.len() {
            self.input.clear();
        } else {
            self.input.drain(..self.at);
        }
        self.at = 0;
        if self.input.is_empty() && self.input.capacity() > room {
            self.input = Vec::new();
        }
    }

    /// The whole body of the request at hand; empty if it has none or was read already.
    ///
    /// A client that waits for 100 Continue gets it. A drop leaves the connection unusable: drop it
    /// too.
    ///
    /// # Errors
    /// Before anything is read if the announced length is over `max`. The connection closes after
    /// the answer, which is the caller's to give, with [`BodyFault::status`].
    pub async fn body(&mut self, max: usize) -> Result<Vec<u8>, BodyFault> {
        let Some(framing) = self.unread else { return Ok(Vec::new()) };
        let mut decoder = Decoder::new(framing, max as u64)?;
        let mut body = rt::spare::buffer(self.input.len() - self.at);
        // The usual request: all of it came in one read.
        self.at += decoder.decode(&self.input[self.at..], &mut body)?;
        if !decoder.is_done() {
            body = self.rest_of_body(&mut decoder, body).await?;
        }
        self.size += body.len();
        self.unread = None;
        Ok(body)
    }

    async fn rest_of_body(
        &mut self,
        decoder: &mut Decoder,
        mut body: Vec<u8>,
    ) -> Result<Vec<u8>, BodyFault> {
        if self.head.expect_continue() && body.is_empty() {
            self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let mut now = rt::time::now();
        let whole_by = now + self.timing().body;
        while !decoder.is_done() {
            let by = whole_by.min(now + self.timing().body_idle);
            let announced = decoder.expected().unwrap_or(0);
            let never: Option<Pin<&mut std::future::Pending<()>>> = None;
            let received = if decoder.is_plain() {
                // Straight to where it belongs. All input was consumed before.
                let room = announced.min(BODY_ROOM as u64) as usize;
                let (received, buffer) = self.pump(body, room, now, by, never).await;
                body = buffer;
                if let Ok(count) = received {
                    let excess = count - decoder.took(count)?;
                    self.input.clear();
                    self.at = 0;
                    self.input.extend_from_slice(&body[body.len() - excess..]);
                    body.truncate(body.len() - excess);
                }
                received
            } else {
                self.input.clear();
                self.at = 0;
                let room = (announced as usize).clamp(IDLE_ROOM, BODY_ROOM);
                let input = std::mem::take(&mut self.input);
                let (received, input) = self.pump(input, room, now, by, never).await;
                self.input = input;
                self.at = decoder.decode(&self.input, &mut body)?;
                received
            };
            match received {
                Ok(0) => return Err(BodyFault::Gone),
                Ok(_) => now = rt::time::now(),
                Err(Stop::Elapsed) => return Err(BodyFault::Timeout),
                Err(Stop::Gone | Stop::Told) => return Err(BodyFault::Gone),
            }
        }
        Ok(body)
    }

    /// Answers the request at hand: `lines` are whole field lines, each ended by CRLF; Date,
    /// Content-Length and Connection are added. The connection closes afterwards if the body of
    /// the request has not been read.
    ///
    /// The answer is written by the call of [`Connection::head`] that has to follow (or by
    /// [`Connection::flush`]), unless it is large.
    ///
    /// # Errors
    /// Those of the socket, for a large answer.
    pub async fn answer(&mut self, status: u16, lines: &str, body: &[u8]) -> io::Result<()> {
        self.lay(status, lines, body)?;
        self.write_if_large().await
    }

    /// As [`Connection::answer`], with a body that need not be copied.
    ///
    /// # Errors
    /// As there.
    pub async fn answer_with(&mut self, status: u16, lines: &str, body: Vec<u8>) -> io::Result<()> {
        self.lay_whole(status, lines, body)?;
        self.write_if_large().await
    }

    /// Leaves an answer to be written.
    fn lay(&mut self, status: u16, lines: &str, body: &[u8]) -> io::Result<()> {
        self.output.reserve(160 + lines.len() + body.len());
        self.start(status, lines, Some(body.len() as u64))?;
        debug_assert!(body.is_empty() || !is_bodiless(status), "status {status} has no body");
        if !self.is_mute(status) {
            self.output.extend_from_slice(body);
            self.carried = body.len() as u64;
        }
        self.answer = Answer::Done;
        Ok(())
    }

    /// As `lay`; a body that is worth it goes from where it is.
    fn lay_whole(&mut self, status: u16, lines: &str, body: Vec<u8>) -> io::Result<()> {
        let is_tail = (TAIL_BYTES_MIN..=WRITE_PIECE).contains(&body.len());
        // What is encrypted is copied anyway.
        if !is_tail || self.sealed.is_some() || self.is_mute(status) {
            let laid = self.lay(status, lines, &body);
            rt::spare::give(body);
            return laid;
        }
        self.start(status, lines, Some(body.len() as u64))?;
        self.carried = body.len() as u64;
        self.tail = body;
        self.answer = Answer::Done;
        Ok(())
    }

    /// Whether an answer is sent without its body.
    fn is_mute(&self, status: u16) -> bool {
        self.head.method() == Method::Head || is_bodiless(status)
    }

    /// Starts an answer whose body follows in pieces: `length` bytes in all, or in chunks. Its head
    /// is written at once.
    ///
    /// # Errors
    /// Those of the socket, and a client that takes nothing for too long.
    pub async fn begin(&mut self, status: u16, lines: &str, length: Option<u64>) -> io::Result<()> {
        self.begin_with(status, lines, length, &[]).await
    }

    /// As [`Connection::begin`], with the first piece of the body in the same write.
    ///
    /// # Errors
    /// As there.
    pub async fn begin_with(
        &mut self,
        status: u16,
        lines: &str,
        length: Option<u64>,
        first: &[u8],
    ) -> io::Result<()> {
        self.open(status, lines, length)?;
        self.put(first)?;
        self.flush().await
    }

    /// As [`Connection::begin`], but the head goes out with the first piece.
    ///
    /// # Errors
    /// The connection is of no further use.
    pub fn open(&mut self, status: u16, lines: &str, length: Option<u64>) -> io::Result<()> {
        self.start(status, lines, length)?;
        self.answer = match length {
            _ if self.is_mute(status) => Answer::Mute,
            Some(length) => Answer::Length(length),
            None if self.head.version() == Version::Http11 => Answer::Chunks,
            None => Answer::UntilClose,
        };
        Ok(())
    }

    /// Sends the next piece of the body and waits until the socket has taken it.
    ///
    /// # Errors
    /// Those of the socket; a client that takes nothing for too long; more bytes than announced.
    pub async fn chunk(&mut self, data: Vec<u8>) -> io::Result<()> {
        let is_plain = matches!(self.answer, Answer::Length(_) | Answer::UntilClose);
        let is_tail = self.sealed.is_none() && data.len() >= TAIL_BYTES_MIN;
        if is_plain && data.len() <= WRITE_PIECE && (self.output.is_empty() || is_tail) {
            // As it is, without a copy.
            self.count(data.len())?;
            self.carried += data.len() as u64;
            match self.output.is_empty() {
                true => self.output = data,
                false => self.tail = data,
            }
        } else {
            self.put(&data)?;
        }
        self.flush().await
    }

    /// Ends the body; written as [`Connection::answer`] says. A body shorter than announced closes
    /// the connection, so that the client notices.
    ///
    /// # Errors
    /// None so far.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.finish_with(&[]).await
    }

    /// As [`Connection::finish`], with the last piece of the body in the same write.
    ///
    /// # Errors
    /// Those of the socket, if the piece is large; more bytes than announced.
    pub async fn finish_with(&mut self, last: &[u8]) -> io::Result<()> {
        self.put(last)?;
        match self.answer {
            Answer::Chunks => self.output.extend_from_slice(LAST_CHUNK),
            Answer::Length(0) | Answer::Mute => {}
            Answer::UntilClose => self.closing = true,
            Answer::Length(_) | Answer::Due | Answer::Done => {
                self.abort();
                return Ok(());
            }
        }
        self.answer = Answer::Done;
        self.write_if_large().await
    }

    /// Gives the answer up: the connection closes without its proper end, so that the client
    /// cannot take it for whole.
    pub fn abort(&mut self) {
        self.dead = true;
        self.output.clear();
        self.tail = Vec::new();
    }

    /// Closes the connection after the request at hand, and says so in an answer not yet begun.
    pub fn close_after(&mut self) {
        self.closing = true;
    }

    /// Waits for `limit` in the midst of an answer. Safe to drop, and the timer it takes is the one
    /// that the connection has anyway.
    pub fn pause(&mut self, limit: Duration) -> impl Future<Output = ()> + '_ {
        self.alarm.set(rt::time::now() + limit);
        poll_fn(|cx| self.alarm.poll(cx))
    }

    /// Waits until the client has left. Safe to drop. Requests that it has sent ahead may delay the
    /// notice.
    pub async fn closed(&self) {
        self.reader.closed().await;
    }

    /// Writes what [`Connection::answer`] or [`Connection::finish`] left to be written.
    ///
    /// # Errors
    /// Those of the socket, and a client that takes nothing for too long.
    pub async fn flush(&mut self) -> io::Result<()> {
        if self.dead {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if self.output.is_empty() {
            return Ok(());
        }
        let whole = std::mem::take(&mut self.output);
        let tail = std::mem::take(&mut self.tail);
        if whole.len() <= WRITE_PIECE {
            self.output = self.write(whole, tail).await?;
        } else {
            debug_assert!(tail.is_empty(), "a head is never that large");
            let mut buffer = Vec::with_capacity(WRITE_PIECE);
            for piece in whole.chunks(WRITE_PIECE) {
                buffer.extend_from_slice(piece);
                buffer = self.write(buffer, Vec::new()).await?;
            }
        }
        Ok(())
    }

    /// Writes one piece, and what follows it; returns the storage of the first, empty.
    async fn write(&mut self, mut piece: Vec<u8>, tail: Vec<u8>) -> io::Result<Vec<u8>> {
        if let Some(sealed) = &mut self.sealed {
            debug_assert!(tail.is_empty(), "what is encrypted is copied anyway");
            piece = sealed.seal(&piece)?;
        }
        self.alarm.set(rt::time::now() + self.timing().stall);
        // A write that is cut short leaves an unknown part behind.
        self.dead = true;
        let alarm = &mut self.alarm;
        let write = self.writer.write_both(piece, tail);
        let (result, mut buffer) = match rt::race(write, poll_fn(|cx| alarm.poll(cx))).await {
            rt::Either::Left(done) => done,
            rt::Either::Right(()) => return Err(io::ErrorKind::TimedOut.into()),
        };
        result?;
        self.dead = false;
        buffer.clear();
        Ok(buffer)
    }

    async fn write_if_large(&mut self) -> io::Result<()> {
        // Boxed: the usual answer waits for the next read, and needs no room for a write.
        if self.output.len() > WRITE_PIECE { Box::pin(self.flush()).await } else { Ok(()) }
    }

    /// Appends the head of an answer.
    fn start(&mut self, status: u16, lines: &str, length: Option<u64>) -> io::Result<()> {
        debug_assert!(are_lines(lines), "not whole field lines: {lines:?}");
        if self.answer != Answer::Due {
            crate::bug!("an answer that no request waits for");
            self.abort();
        }
        if self.dead {
            return Err(io::ErrorKind::NotConnected.into());
        }
        // What is left of the request cannot be told from the next one by whoever did not read it.
        if self.unread.is_some() {
            self.closing = true;
            self.lingering = true;
        }
        let old = self.head.version() == Version::Http10;
        self.closing |= old && length.is_none();
        self.status = status;
        let out = &mut self.output;
        out.reserve(160 + lines.len());
        status_line(out, status);
        date_line(out);
        out.extend_from_slice(lines.as_bytes());
        match length {
            _ if is_bodiless(status) => {}
            Some(length) => length_line(out, length),
            None if old => {}
            None => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        }
        if self.closing {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if old {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// Counts bytes of the body that are about to be sent as they are.
    fn count(&mut self, sent: usize) -> io::Result<()> {
        if let Answer::Length(left) = &mut self.answer {
            match left.checked_sub(sent as u64) {
                Some(rest) => *left = rest,
                None => {
                    self.abort();
                    return Err(io::Error::other("more bytes than the answer announced"));
                }
            }
        }
        Ok(())
    }

    /// Frames a piece of the body into the output.
    fn put(&mut self, data: &[u8]) -> io::Result<()> {
        self.carried += data.len() as u64;
        match self.answer {
            Answer::Chunks => write_chunk(&mut self.output, data),
            Answer::Length(_) | Answer::UntilClose => {
                self.count(data.len())?;
                self.output.extend_from_slice(data);
            }
            Answer::Mute => {}
            Answer::Due | Answer::Done if self.dead => {
                return Err(io::ErrorKind::NotConnected.into());
            }
            Answer::Due | Answer::Done => {
                crate::bug!("a piece of an answer that has not begun");
                self.abort();
            }
        }
        Ok(())
    }

    /// Answers what could not even be read, and closes.
    async fn refuse(&mut self, status: u16, why: &dyn fmt::Display) {
        tracing::debug!(peer = %self.peer, status, %why, "request refused");
        self.output.append(&mut self.tail);
        status_line(&mut self.output, status);
        date_line(&mut self.output);
        self.output.extend_from_slice(b"Content-Length: 0\r\nConnection: close\r\n\r\n");
        self.lingering = true;
        self.answer = Answer::Done;
        Box::pin(self.close()).await;
    }

    /// Writes what is due and ends the connection in stages (§9.6): closing a socket that holds
    /// unread bytes resets it, and a reset may overtake the answer.
    async fn close(&mut self) {
        if self.dead || self.answer != Answer::Done || self.flush().await.is_err() {
            // Unfinished: the end of the connection has to be seen as what it is.
            self.dead = true;
            return;
        }
        if let Some(sealed) = self.sealed.take() {
            Box::pin(self.end_sealed(sealed)).await;
        }
        self.dead = true;
        if !(self.lingering || self.at < self.input.len()) {
            return;
        }
        self.writer.shutdown_write();
        let by = rt::time::now() + self.timing().linger;
        self.alarm.set(by);
        let mut left = limits::LINGER_BYTES_MAX;
        let mut rubbish = std::mem::take(&mut self.input);
        while left > 0 {
            rubbish.clear();
            let alarm = &mut self.alarm;
            let read = self.reader.read(rubbish, BUSY_ROOM);
            match rt::race(read, poll_fn(|cx| alarm.poll(cx))).await {
                rt::Either::Left((Ok(count @ 1..), buffer)) => {
                    rubbish = buffer;
                    left = left.saturating_sub(count);
                }
                _ => return,
            }
        }
    }

    /// Reads once behind the end of `buffer`, and meanwhile writes what is to be written. Ends
    /// early, with the read lost, when `by` passes, when nothing of the answer is taken for too
    /// long, or when `stop` is ready and all is written.
    async fn pump<S: Future<Output = ()>>(
        &mut self,
        buffer: Vec<u8>,
        room: usize,
        now: Instant,
        by: Instant,
        mut stop: Option<Pin<&mut S>>,
    ) -> (Result<usize, Stop>, Vec<u8>) {
        if self.sealed.is_some() {
            // Boxed, as TLS must not make plain connections larger.
            return Box::pin(self.pump_sealed(buffer, room, now, by, stop)).await;
        }
        let output = std::mem::take(&mut self.output);
        let tail = std::mem::take(&mut self.tail);
        let mut wrote = output.is_empty();
        let mut settled = false;
        let stall = now + self.timing().stall;
        let (writer, alarm) = (&mut self.writer, &mut self.alarm);
        let mut write = pin!(writer.write_both(output, tail));
        let mut read = pin!(self.reader.read(buffer, room));
        let mut received = None;
        let mut buffers = (Vec::new(), Vec::new());
        let settle = by.min(now + SETTLE);
        alarm.set(if wrote { settle } else { stall });
        let result = poll_fn(|cx| {
            if !wrote && let Poll::Ready((result, mut output)) = write.as_mut().poll(cx) {
                wrote = true;
                output.clear();
                buffers.1 = output;
                if result.is_err() {
                    return Poll::Ready(Err(Stop::Gone));
                }
                alarm.set(settle);
            }
            if received.is_none()
                && let Poll::Ready((result, buffer)) = read.as_mut().poll(cx)
            {
                buffers.0 = buffer;
                received = Some(result.map_err(|_| Stop::Gone));
            }
            if wrote && let Some(received) = received {
                return Poll::Ready(received);
            }
            loop {
                if alarm.poll(cx).is_pending() {
                    break;
                }
                if !wrote || settled || settle == by {
                    return Poll::Ready(Err(Stop::Elapsed));
                }
                // Quiet for a while: what was needed for answers goes back.
                settled = true;
                buffers.1 = Vec::new();
                if stop.is_some() {
                    self.head = Rc::default();
                }
                alarm.set(by);
            }
            if wrote
                && let Some(stop) = &mut stop
                && stop.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Err(Stop::Told));
            }
            Poll::Pending
        })
        .await;
        if !wrote {
            self.dead = true;
        }
        self.output = buffers.1;
        (result, buffers.0)
    }
}

/// Room for a request that is as large as the last one, and some more.
fn room_for(size: usize) -> usize {
    let fits = |room: &usize| size <= room - room / 8;
    [IDLE_ROOM, 2 * IDLE_ROOM].into_iter().find(fits).unwrap_or(BUSY_ROOM)
}

/// Statuses whose answers have no body (RFC 9110 §6.4.1).
fn is_bodiless(status: u16) -> bool {
    status < 200 || status == 204 || status == 304
}

/// `Date: Tue, 24 Nov 2026 18:00:00 GMT` (RFC 9110 §5.6.7).
const DATE_LINE_BYTES: usize = 37;

/// Appends a Date line, formatted once a second; the calendar is looked at no more often.
fn date_line(out: &mut Vec<u8>) {
    use std::cell::Cell;
    thread_local! {
        /// The line, and until when it is right.
        static DATE: Cell<(Option<Instant>, [u8; DATE_LINE_BYTES])> =
            const { Cell::new((None, [0; DATE_LINE_BYTES])) };
    }
    let now = rt::time::now();
    let (until, mut line) = DATE.get();
    if until.is_none_or(|until| now >= until) {
        let today =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        line.copy_from_slice(date(today.as_secs()).as_bytes());
        let left = Duration::from_secs(1) - Duration::from_nanos(today.subsec_nanos().into());
        DATE.set((now.checked_add(left), line));
    }
    out.extend_from_slice(&line);
}

/// The civil date of a Unix time, after Howard Hinnant's "chrono-compatible low-level date
/// algorithms": years begin in March, so that the leap day is the last.
fn date(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb"];
    // The field has four digits for the year.
    let seconds = seconds.min(253_402_300_799);
    let days = seconds / 86_400;
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year_of_era + u64::from(month >= 10);
    let mut line = String::with_capacity(DATE_LINE_BYTES);
    let _ = write!(
        line,
        "Date: {}, {day:02} {} {year:04} {:02}:{:02}:{:02} GMT\r\n",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize],
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60
    );
    line
}

#[cfg(test)]
mod tests;
