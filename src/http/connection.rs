//! Owns: one client's connection: requests in, answers out, its time limits and its end.
//! Never: what a request asks for; and it never reads on after bytes that it refused.
//! Next: `answering`, what it sends.
//!
//! RFC 9112 §9; RFC 9110 §10.1.1 (Expect), §6.6.1 (Date).
//!
//! An answer is written together with the read of the next request, in one entry to the kernel:
//! [`Connection::answer`] and [`Connection::finish`] leave it in a buffer and
//! [`Connection::head`], which has to follow, does both. Everything else is written at once.

mod answering;
mod date;
mod moving;
mod sealed;

use self::date::date_line;
use super::body::{Decoder, FramingFault};
use super::head::{Framing, RequestHead, status_line};
use crate::limits;
use crate::rt;
use crate::rt::alarm::Alarm;
use crate::rt::local::Event;
use crate::rt::net::{ReadHalf, Stream, WriteHalf};
use std::fmt;
use std::future::{Future, pending, poll_fn};
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
    /// See [`Connection::hurry_when`].
    hurry: Option<Rc<Event>>,
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
            hurry: None,
            status: 0,
            carried: 0,
        }
    }

    fn timing(&self) -> Timing {
        self.timing.as_deref().copied().unwrap_or_default()
    }

    /// From that event on, nobody is waited for who is slow: a handshake or a head that is not
    /// complete is given up, nothing is read behind a refusal, and a client that takes no bytes or
    /// sends none of its body has [`limits::HURRY_STALL`].
    pub fn hurry_when(&mut self, hurry: Rc<Event>) {
        self.hurry = Some(hurry);
    }

    /// Whether that has happened.
    fn is_hurried(&self) -> bool {
        self.hurry.as_ref().is_some_and(|hurry| hurry.is_set())
    }

    /// Waits for it.
    fn hurry(&self) -> impl Future<Output = ()> + 'static {
        let hurry = self.hurry.clone();
        async move {
            match hurry {
                Some(hurry) => hurry.wait().await,
                None => pending().await,
            }
        }
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

    /// As [`Connection::head`], but ends with `None` once `stop` is ready and no head has come whole;
    /// the answer to the last request is written in any case.
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
                // An empty line is forgiven (RFC 9112 §2.2), and begins no request: whoever sends one
                // behind a body is idle.
                Ok(None) if self.input == b"\r\n" => {
                    head.reset();
                    self.input.clear();
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
            let (received, input) =
                self.pump(input, room, now, by, Some(stop.as_mut()), !started).await;
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
            let hurry = self.hurry();
            let mut late = pin!(async move {
                hurry.await;
                rt::time::sleep(limits::HURRY_STALL).await;
            });
            let stop = Some(late.as_mut());
            let received = if decoder.is_plain() {
                // Straight to where it belongs. All input was consumed before.
                let room = announced.min(BODY_ROOM as u64) as usize;
                let (received, buffer) = self.pump(body, room, now, by, stop, false).await;
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
                let (received, input) = self.pump(input, room, now, by, stop, false).await;
                self.input = input;
                self.at = decoder.decode(&self.input, &mut body)?;
                received
            };
            match received {
                Ok(0) => return Err(BodyFault::Gone),
                Ok(_) => now = rt::time::now(),
                Err(Stop::Elapsed | Stop::Told) => return Err(BodyFault::Timeout),
                Err(Stop::Gone) => return Err(BodyFault::Gone),
            }
        }
        Ok(body)
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
        if !(self.lingering || self.at < self.input.len()) || self.is_hurried() {
            return;
        }
        self.writer.shutdown_write();
        let by = rt::time::now() + self.timing().linger;
        self.alarm.set(by);
        let mut left = limits::LINGER_BYTES_MAX;
        let mut rubbish = std::mem::take(&mut self.input);
        while left > 0 {
            rubbish.clear();
            let hurry = self.hurry();
            let alarm = &mut self.alarm;
            let read = self.reader.read(rubbish, BUSY_ROOM);
            match rt::race(read, rt::race(hurry, poll_fn(|cx| alarm.poll(cx)))).await {
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
    /// long, or when `stop` is ready and all is written, for which there is little time then.
    /// `is_idle`: no request has begun.
    async fn pump<S: Future<Output = ()>>(
        &mut self,
        buffer: Vec<u8>,
        room: usize,
        now: Instant,
        by: Instant,
        mut stop: Option<Pin<&mut S>>,
        is_idle: bool,
    ) -> (Result<usize, Stop>, Vec<u8>) {
        if self.sealed.is_some() {
            // Boxed, as TLS must not make plain connections larger.
            return Box::pin(self.pump_sealed(buffer, room, now, by, stop, is_idle)).await;
        }
        let output = std::mem::take(&mut self.output);
        let tail = std::mem::take(&mut self.tail);
        let mut wrote = output.is_empty();
        let mut settled = false;
        let mut told = false;
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
            if wrote
                && !told
                && let Some(received) = received
            {
                return Poll::Ready(received);
            }
            if !told
                && let Some(stop) = &mut stop
                && stop.as_mut().poll(cx).is_ready()
            {
                told = true;
                alarm.set(stall.min(rt::time::now() + limits::HURRY_STALL));
            }
            if wrote && told {
                return Poll::Ready(Err(Stop::Told));
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
                if is_idle {
                    self.head = Rc::default();
                }
                alarm.set(by);
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

#[cfg(test)]
mod tests;
