//! Owns: channels over HTTP with SSE, the transport of 2024-11-05: the stream that answers come on,
//! and the posting of messages.
//! Never: whose an answer is (`link`); opening a stream again (`supervise`, `stdio`).
//! Next: `endpoint`, where they post.
//!
//! MCP 2024-11-05, Transports, HTTP with SSE: a GET opens a stream whose first event names the
//! endpoint; every message is a POST to it, accepted with 202; what the server has to say comes as
//! events. So a stream is to a server what a pipe is to a child: requests of many callers on one
//! line, under numbers of the proxy's own.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::entry::Entry;
use super::failure::Failure;
use super::judge::{self, Verdict};
use super::link::{CloseOnDrop, Link};
use super::own::{self, Channel};
use super::stdio::{self, Life, Newborn};
use super::{Backends, endpoint, http, names, wishes};
use crate::error::Kind;
use crate::http::{ClientConnection, Fault, request_head, sse};
use crate::jsonrpc::{self, Kind as Message, Raw};
use crate::limits;
use crate::mcp::catalog::Can;
use crate::mcp::revision::Era;
use crate::mcp::session::SessionRecord;
use crate::plan::HttpPlan;
use crate::rt::local::Notify;
use crate::rt::{self, Either, race};

/// A writer's buffer is kept up to this size.
const KEEP_BYTES: usize = 256 * 1024;

/// Whether a refusal of `initialize` may come from a server that only speaks the older transport
/// (2025-11-25, Transports, Backwards Compatibility).
pub(super) fn may_be_older(failure: &Failure) -> bool {
    matches!(failure.status, 400 | 404 | 405)
}

/// Hangs up when it is dropped: the tasks of a stream end with their link.
pub(super) struct Hangup(Rc<Link>);

impl Hangup {
    /// Closes the stream.
    pub(super) fn now(&self) {
        self.0.close(Failure::new(Kind::Lost, "the event stream was closed"));
    }
}

impl Drop for Hangup {
    fn drop(&mut self) {
        self.now();
    }
}

/// An open stream whose endpoint is known.
struct Stream {
    connection: Box<ClientConnection>,
    reader: sse::Reader,
    /// What came behind the first event.
    rest: Vec<u8>,
    target: String,
}

/// Opens a stream and shakes hands over it. A drop leaves nothing behind.
///
/// # Errors
/// There is no stream, no endpoint of the same origin, or no answer within the start-up deadline.
pub(super) async fn bring_up(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    plan: &HttpPlan,
    session: Option<&Arc<SessionRecord>>,
) -> Result<Newborn, Failure> {
    let limit = entry.plan.startup_timeout;
    let opening = open(backends, entry, plan);
    let stream = rt::time::timeout(limits::ENDPOINT_TIMEOUT.min(limit), opening)
        .await
        .map_err(|_| Failure::new(Kind::Timeout, "no endpoint on the event stream"))??;
    let link = stdio::link(backends, entry, session);
    let hangup = Hangup(link.clone());
    let poster = Rc::new(Poster {
        backends: backends.clone(),
        entry: entry.clone(),
        link: link.clone(),
        target: stream.target,
        under_way: Cell::new(0),
        turn: Notify::new(),
    });
    rt::spawn("event stream writer", poster.write());
    rt::spawn("event stream", read(link.clone(), stream.connection, stream.reader, stream.rest));
    let channel = Channel::Line(link.clone());
    let init =
        own::greet(backends, entry, &channel, session.map(|session| &**session), limit).await?;
    link.can.set(Can::of(&init));
    wishes::restore(backends, entry, session, &channel).await;
    Ok(Newborn { link, life: Life::Stream(hangup), init, era: Era::Session })
}

/// The GET, up to the event that names the endpoint.
async fn open(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    plan: &HttpPlan,
) -> Result<Stream, Failure> {
    let mut connection = http::connect(backends, entry).await?;
    let lines = format!("{}Accept: text/event-stream\r\n", plan.header_lines);
    let mut bytes = connection.buffer();
    request_head(&mut bytes, "GET", &plan.target, &plan.authority, &lines, None);
    let lost = |fault: &dyn std::fmt::Display| Failure::new(Kind::Lost, fault.to_string());
    connection.send(bytes).await.map_err(|fault| lost(&fault))?;
    let head = connection.head().await.map_err(|fault| lost(&fault))?;
    if head.status() != 200 {
        return Err(judge::failed(head.status()));
    }
    if !matches!(http::media(&head), http::Media::Events) {
        return Err(Failure::new(Kind::BadAnswer, "no event stream"));
    }
    drop(head);
    let mut reader = sse::Reader::default();
    loop {
        let piece = match connection.body().await {
            Ok(Some(piece)) => piece,
            Ok(None) => return Err(Failure::new(Kind::Lost, "the event stream ended")),
            Err(fault) => return Err(lost(&fault)),
        };
        let mut input = &piece[..];
        match reader.take(&mut input) {
            Ok(Some(event)) if event.event.as_deref() == Some(b"endpoint") => {
                let target = endpoint::resolve(plan, &event.data)?;
                return Ok(Stream { connection, reader, rest: input.to_vec(), target });
            }
            Ok(Some(_)) => {
                return Err(Failure::new(Kind::BadAnswer, "the first event names no endpoint"));
            }
            Ok(None) => {}
            Err(fault) => return Err(Failure::new(Kind::BadAnswer, fault.to_string())),
        }
    }
}

/// The reader: ends with the stream, or when the link is closed.
async fn read(
    link: Rc<Link>,
    mut connection: Box<ClientConnection>,
    mut reader: sse::Reader,
    mut piece: Vec<u8>,
) {
    let _close = CloseOnDrop(&link);
    let mut closed = pin!(link.closed());
    loop {
        let mut input = &piece[..];
        loop {
            match reader.take(&mut input) {
                Ok(Some(event)) if event.is_message() => {
                    link.line(&event.data);
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(fault) => {
                    return link.close(Failure::new(Kind::BadAnswer, fault.to_string()));
                }
            }
        }
        // Dropped on close, and the connection with it.
        piece = match race(connection.body(), closed.as_mut()).await {
            Either::Left(Ok(Some(piece))) => piece,
            Either::Left(Ok(None)) => {
                return link.close(Failure::new(Kind::Lost, "the event stream ended"));
            }
            Either::Left(Err(fault)) => {
                return link.close(Failure::new(Kind::Lost, fault.to_string()));
            }
            Either::Right(()) => return,
        };
    }
}

/// What posts the messages of one stream.
struct Poster {
    backends: Rc<Backends>,
    entry: Rc<Entry>,
    link: Rc<Link>,
    target: String,
    /// Requests that are being posted.
    under_way: Cell<usize>,
    /// One of them was.
    turn: Notify,
}

/// What became of a POST.
enum Posted {
    Accepted,
    /// What the server says of it.
    Refused(u16, Vec<u8>),
}

impl Poster {
    /// The writer: requests go side by side, as a server may take its time to accept one. What is
    /// no request goes behind those before it: a cancellation must not overtake what it cancels,
    /// and nothing may overtake `initialized`.
    async fn write(self: Rc<Poster>) {
        let mut spare = Vec::new();
        while let Some(mut batch) = self.link.queued(spare).await {
            self.link.hold(batch.len() as isize);
            for line in batch.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let patience = limits::POST_ORDER_WAIT;
                match request_id(line) {
                    Some(id) => {
                        self.room(limits::POSTS_MAX).await;
                        let message = line.to_vec();
                        self.under_way.set(self.under_way.get() + 1);
                        let poster = self.clone();
                        rt::spawn("post", async move {
                            let _done = Done(&poster, message.len() + 1);
                            poster.request(id, &message).await;
                        });
                    }
                    None => {
                        let _ = rt::time::timeout(patience, self.room(1)).await;
                        let told = race(self.post(line, true), self.link.closed()).await;
                        self.link.hold(-(line.len() as isize + 1));
                        match told {
                            Either::Right(()) => return,
                            Either::Left(Ok(Posted::Refused(status, body))) => {
                                self.refused(None, status, &body);
                            }
                            Either::Left(Err(failure)) => {
                                let backend = self.entry.name();
                                tracing::debug!(backend, %failure, "side message not taken");
                            }
                            Either::Left(Ok(Posted::Accepted)) => {}
                        }
                    }
                }
            }
            batch.clear();
            spare = batch;
            if spare.capacity() > KEEP_BYTES {
                spare = Vec::new();
            }
        }
    }

    /// Waits until fewer than `max` requests are being posted.
    async fn room(&self, max: usize) {
        loop {
            let turn = self.turn.notified();
            if self.under_way.get() < max || !self.link.is_open() {
                return;
            }
            turn.await;
        }
    }

    /// Posts one request; if it was not accepted its caller is told.
    async fn request(&self, id: u64, message: &[u8]) {
        // Dropped on close: its caller has been told then.
        let Either::Left(posted) = race(self.post(message, false), self.link.closed()).await else {
            return;
        };
        match posted {
            Ok(Posted::Accepted) => {}
            Ok(Posted::Refused(status, body)) => self.refused(Some(id), status, &body),
            // It may be at work: the stream will tell.
            Err(failure) if failure.kind == Kind::Timeout => {}
            Err(failure) => self.link.refuse(id, failure),
        }
    }

    /// A message, the request `id` or another one, was not accepted.
    fn refused(&self, id: Option<u64>, status: u16, body: &[u8]) {
        let asked = id.map(Raw::number);
        let verdict = judge::refusal(status, body, asked.as_deref().unwrap_or(b""), true, false);
        let lost = matches!(verdict, Verdict::SessionLost);
        let failure = match verdict {
            Verdict::Answer => return self.link.line(body),
            Verdict::Failed(failure) => failure,
            Verdict::SessionLost => judge::failed(status).unsent(),
        };
        if let Some(id) = id {
            self.link.refuse(id, failure);
        }
        if lost {
            // The stream may stay open for ever, and nothing would come on it.
            let cause = "the server does not know the event stream any more";
            self.link.close(Failure::new(Kind::Lost, cause));
        }
    }

    /// One POST; `twice` = it may be sent twice.
    async fn post(&self, message: &[u8], twice: bool) -> Result<Posted, Failure> {
        // The connection is closed with the exchange.
        match rt::time::timeout(limits::POST_TIMEOUT, Box::pin(self.exchange(message, twice))).await
        {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::new(Kind::Timeout, "a message was not accepted")),
        }
    }

    async fn exchange(&self, message: &[u8], twice: bool) -> Result<Posted, Failure> {
        let (plan, http) = self.entry.http();
        let lines = format!(
            "{}Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n",
            plan.header_lines
        );
        let mut pooled = http.pool.take(Instant::now(), |connection| connection.is_quiet());
        loop {
            let reused = pooled.is_some();
            let mut connection = match pooled.take() {
                Some(connection) => connection,
                None => http::connect(&self.backends, &self.entry).await?,
            };
            let mut bytes = connection.buffer();
            let (target, host) = (&self.target, &plan.authority);
            request_head(&mut bytes, "POST", target, host, &lines, Some(message.len()));
            bytes.extend_from_slice(message);
            let head = match connection.send(bytes).await {
                Ok(()) => {
                    connection.head().await.map_err(|f: Fault| (f.sent, f.answered, f.to_string()))
                }
                Err(fault) => Err((false, false, fault.to_string())),
            };
            let head = match head {
                Ok(head) => head,
                Err((sent, false, _)) if reused && (twice || !sent) => continue,
                Err((false, _, cause)) => return Err(Failure::new(Kind::Unavailable, cause)),
                Err((_, _, cause)) => return Err(Failure::new(Kind::Lost, cause)),
            };
            let status = head.status();
            drop(head);
            // What it says beside "accepted" is for nobody.
            let body = connection.whole(limits::WHOLE_BODY_BYTES_MAX).await.unwrap_or_default();
            if connection.reusable() {
                http.pool.put(connection, Instant::now());
            }
            return Ok(match status {
                200..300 => Posted::Accepted,
                _ => Posted::Refused(status, body),
            });
        }
    }
}

/// A POST that ended, however it did.
struct Done<'a>(&'a Poster, usize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.link.hold(-(self.1 as isize));
        self.0.under_way.set(self.0.under_way.get() - 1);
        self.0.turn.notify_all();
    }
}

/// The number of a request; `None` for anything else that goes out.
fn request_id(message: &[u8]) -> Option<u64> {
    let envelope = jsonrpc::scan(message).ok()?;
    let id = envelope.id.filter(|_| envelope.kind == Message::Request)?;
    names::number(id.of(message))
}
