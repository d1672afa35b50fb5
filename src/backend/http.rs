//! Owns: one exchange over Streamable HTTP: request out, replies in, connection kept or closed.
//! Never: repeating anything (`attempt`), opening sessions (`leg`).
//! Next: `events`, answers that are streams.
//!
//! MCP, Transports, Streamable HTTP: a request is a POST, answered by one JSON document or by an
//! event stream that may carry other messages before the answer. A connection is used again only
//! when a whole response was read from it.

mod events;
mod side;

pub(super) use side::{send, side, tell};

use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::asks;
use super::attempt::Ended;
use super::entry::Entry;
use super::failure::Failure;
use super::handle::{CallHandle, Stop};
use super::judge::{self, Verdict};
use super::leg::Leg;
use super::names::{self, Own};
use super::resume::Place;
use super::{Backends, Reply};
use crate::error::Kind;
use crate::http::{ClientConnection, Fault, ResponseHead, retry_after, sse};
use crate::jsonrpc::{self, Envelope, Kind as Message, Raw, Span, Watch};
use crate::limits;
use crate::mcp::session::SessionRecord;
use crate::rt;

/// A request to send.
pub(super) struct Request<'a> {
    /// The message.
    pub(super) body: &'a [u8],
    /// On a shared channel: where its id and its token stand, and what the caller calls it. Both
    /// become `asked`.
    pub(super) rename: Option<(Span, Option<Span>, Own)>,
    /// Its id as the backend sees it.
    pub(super) asked: Raw,
    /// The answer is to be collected, however long.
    pub(super) whole: bool,
    /// In a session that all share: the client whose call it is.
    pub(super) caller: Option<&'a Arc<SessionRecord>>,
    /// Its session was opened in the place of one that was lost: what names this request is an answer
    /// to it, however it sounds.
    pub(super) renewed: bool,
}

/// What HTTP says beside an error in JSON-RPC.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Beside {
    /// The status; 0 = there was none.
    pub(super) status: u16,
    /// How long the backend wants to be left alone.
    pub(super) wait: Option<Duration>,
}

/// Why an exchange came to nothing.
pub(super) enum Broken {
    /// A connection from the pool was dead: no byte of an answer came. `taken` = the request may
    /// have been taken whole.
    Stale { taken: bool, cause: String },
    /// Anything else.
    Ended(Ended),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Broken {
        Broken::Ended(failure.into())
    }
}

impl From<Stop> for Broken {
    fn from(stop: Stop) -> Broken {
        Broken::Ended(stop.into())
    }
}

/// The replies to one POST.
pub(super) struct HttpReplies {
    backends: Rc<Backends>,
    entry: Rc<Entry>,
    leg: Rc<Leg>,
    handle: Rc<CallHandle>,
    /// `None` once it was given back or closed.
    connection: Option<Box<ClientConnection>>,
    asked: Raw,
    own: Option<Own>,
    whole: bool,
    /// The answer is a result, and no tool says in it that it failed.
    succeeded: bool,
    caller: Option<Arc<SessionRecord>>,
    /// See [`Request::renewed`].
    renewed: bool,
    /// What stands beside an error, if the answer is one.
    beside: Beside,
    /// Where to go on, once its event stream has ended early.
    place: Option<Box<Place>>,
    mode: Mode,
}

enum Mode {
    /// The head of the response has not come.
    Waiting,
    /// A document of that length.
    Json(Option<u64>),
    /// An event stream; the rest of the piece that came last.
    Events {
        reader: Box<sse::Reader>,
        piece: Vec<u8>,
        at: usize,
        queue: VecDeque<Vec<u8>>,
    },
    /// An event stream that ended, and is to be taken up again.
    Away,
    /// A document that is passed on piece by piece, one piece behind.
    Long {
        watch: Box<Watch>,
        held: Option<Vec<u8>>,
    },
    /// An answer that was read already.
    Ready(Vec<u8>),
    Over,
}

/// Sends a request and awaits the head of its response, over a connection of the pool or (`pooled`
/// = false, or none there) a new one. Cancellation and deadline end it; both are told to the
/// backend once the request may have left.
pub(super) async fn post(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    leg: &Rc<Leg>,
    request: &Request<'_>,
    handle: &Rc<CallHandle>,
    pooled: bool,
) -> Result<rt::Place<HttpReplies>, Broken> {
    let pool = &entry.http().1.pool;
    let idle =
        if pooled { pool.take(rt::time::now(), |connection| connection.is_quiet()) } else { None };
    let reused = idle.is_some();
    let mut connection = match idle {
        Some(connection) => connection,
        // Boxed, as all that is rare on this path: each connection of a client has room for a call.
        None => handle.watch(Box::pin(connect(backends, entry))).await??,
    };
    let bytes = message(connection.buffer(), leg, request, handle.authorization());
    if let Err(fault) = connection.send(bytes).await {
        return Err(match reused {
            true => Broken::Stale { taken: false, cause: fault.to_string() },
            false => Failure::new(Kind::Unavailable, fault.to_string()).into(),
        });
    }
    let mut replies = rt::Place::new(|| HttpReplies {
        backends: backends.clone(),
        entry: entry.clone(),
        leg: leg.clone(),
        handle: handle.clone(),
        connection: Some(connection),
        asked: request.asked.clone(),
        own: request.rename.as_ref().map(|(_, _, own)| own.clone()),
        whole: request.whole,
        succeeded: false,
        caller: request.caller.cloned(),
        renewed: request.renewed,
        beside: Beside::default(),
        place: None,
        mode: Mode::Waiting,
    });
    replies.begin(reused).await?;
    Ok(replies)
}

/// The whole POST.
fn message(
    mut out: Vec<u8>,
    leg: &Leg,
    request: &Request<'_>,
    authorization: Option<&str>,
) -> Vec<u8> {
    let body = request.body;
    let Some((id, token, _)) = &request.rename else {
        leg.post(&mut out, body.len(), authorization);
        out.extend_from_slice(body);
        return out;
    };
    let cut = id.len() + token.map_or(0, Span::len);
    let put = request.asked.len() * (1 + usize::from(token.is_some()));
    let length = body.len() - cut + put;
    leg.post(&mut out, length, authorization);
    let start = out.len();
    names::renamed(&mut out, body, *id, *token, &request.asked);
    debug_assert_eq!(out.len() - start, length);
    out
}

/// A new connection: every address is tried, in less time when the backend is known to be down.
pub(super) async fn connect(
    backends: &Rc<Backends>,
    entry: &Entry,
) -> Result<Box<ClientConnection>, Failure> {
    let (plan, http) = entry.http();
    let limit = match backends.is_down(entry) {
        true => limits::CONNECT_TIMEOUT_DOWN,
        false => limits::CONNECT_TIMEOUT,
    };
    let unavailable = |cause: String| Failure::new(Kind::Unavailable, cause);
    let addresses = rt::time::timeout(limit, http.addresses.all(Instant::now()))
        .await
        .map_err(|_| unavailable("name lookup: no answer".to_owned()))?
        .map_err(|fault| unavailable(format!("name lookup: {fault}")))?;
    let share = limit / addresses.len().max(1) as u32;
    let mut causes = String::new();
    for address in addresses.iter() {
        let tls = plan.tls.as_ref().map(|config| (config.clone(), &*plan.host));
        match ClientConnection::connect(*address, tls, share).await {
            Ok(connection) => {
                http.addresses.prefer(*address);
                // In a box from here on: it is moved from the pool to a call and back for every
                // request.
                return Ok(Box::new(connection));
            }
            Err(fault) => {
                let separator = if causes.is_empty() { "" } else { "; " };
                causes.push_str(&format!("{separator}{address}: {fault}"));
            }
        }
    }
    http.addresses.doubt();
    Err(unavailable(causes))
}

impl HttpReplies {
    /// Awaits the head of the response and finds out what follows it.
    async fn begin(&mut self, reused: bool) -> Result<(), Broken> {
        let head = match self.wait_head().await? {
            Ok(head) => head,
            Err(fault) => {
                self.connection = None;
                self.mode = Mode::Over;
                let cause = fault.to_string();
                if reused && !fault.answered {
                    return Err(Broken::Stale { taken: fault.sent, cause });
                }
                let kind = match (fault.sent, fault.answered) {
                    (false, false) => Kind::Unavailable,
                    (true, false) => Kind::Lost,
                    (_, true) => Kind::BadAnswer,
                };
                return Err(Failure::new(kind, cause).into());
            }
        };
        if head.field("content-encoding").is_some_and(|coding| coding != b"identity") {
            return Err(self.bad("an encoding that was not asked for").into());
        }
        let status = head.status();
        self.beside = Beside { status, wait: wait(&head) };
        if !(200..300).contains(&status) {
            // The connection clears its head for the next answer only when nobody holds it.
            drop(head);
            return Box::pin(self.refused(status)).await;
        }
        self.mode = match media(&head) {
            Media::Json => Mode::Json(head.content_length()),
            Media::Events => Mode::Events {
                reader: Box::default(),
                piece: Vec::new(),
                at: 0,
                queue: VecDeque::new(),
            },
            Media::Other => {
                let failure = self.bad("neither JSON nor an event stream");
                return Err(failure.note(format!("HTTP {status}")).into());
            }
        };
        if self.leg.is_provisional() {
            self.leg.note_session(head.field("mcp-session-id"));
        }
        Ok(())
    }

    async fn wait_head(&mut self) -> Result<Result<Rc<ResponseHead>, Fault>, Stop> {
        let HttpReplies { backends, entry, leg, handle, connection, asked, .. } = self;
        let Some(connection) = connection else { return Err(Stop::Expired) };
        let tell = || cancel(backends, entry, leg, handle, asked);
        let head = {
            let head = pin!(connection.head());
            handle.watch_telling(head, tell).await
        };
        if head.is_err() {
            self.expired();
        }
        head
    }

    /// The deadline passed: the backend is told, unless it was by a cancellation.
    fn expired(&mut self) {
        if !self.handle.is_cancelled() {
            self.cancel();
        }
        self.connection = None;
        self.mode = Mode::Over;
    }

    /// A response with a status other than 2xx.
    async fn refused(&mut self, status: u16) -> Result<(), Broken> {
        // One that is too long says nothing that is understood here.
        let body = self.whole(limits::WHOLE_BODY_BYTES_MAX).await?.unwrap_or_default();
        self.release();
        let in_session = self.leg.has_session();
        let verdict = match self.leg.is_modern() || self.leg.is_provisional() {
            false if judge::is_of_another_era(&body) => Verdict::SessionLost,
            _ => judge::refusal(status, &body, &self.asked, in_session, self.renewed),
        };
        match verdict {
            Verdict::Answer => {
                self.mode = Mode::Ready(body);
                Ok(())
            }
            Verdict::SessionLost => {
                self.mode = Mode::Over;
                let mut failure = judge::failed(status);
                failure.session_lost = true;
                Err(failure.into())
            }
            Verdict::Failed(mut failure) => {
                self.mode = Mode::Over;
                failure.retry_after = self.beside.wait;
                Err(failure.into())
            }
        }
    }

    /// Whether the backend refused the request for its revision.
    pub(super) fn is_of_unknown_revision(&self) -> bool {
        matches!(&self.mode, Mode::Ready(body) if judge::error_code(body) == Some(-32022))
    }

    /// See [`super::Replies::has_succeeded`].
    pub(super) fn has_succeeded(&self) -> bool {
        self.succeeded
    }

    /// What stood beside the answer, if it is an error.
    pub(super) fn beside(&self) -> Beside {
        self.beside
    }

    /// See [`super::Replies::at_hand`].
    pub(super) fn at_hand(&mut self) -> Option<Result<Reply, Ended>> {
        let Mode::Json(Some(_)) = self.mode else { return None };
        let body = self.connection.as_mut()?.at_hand(limits::WHOLE_BODY_BYTES_MAX)?;
        self.release();
        Some(self.answered(body))
    }

    /// See [`super::Replies::next`].
    pub(super) async fn next(&mut self) -> Result<Reply, Ended> {
        match &mut self.mode {
            Mode::Json(length) => {
                let length = *length;
                self.document(length).await
            }
            Mode::Events { .. } => self.event().await,
            Mode::Away => {
                Box::pin(self.come_back()).await?;
                self.event().await
            }
            Mode::Ready(body) => {
                let body = std::mem::take(body);
                self.answered(body)
            }
            Mode::Waiting | Mode::Long { .. } | Mode::Over => {
                Err(Failure::new(Kind::Internal, "asked for a reply after the answer").into())
            }
        }
    }

    /// See [`super::Replies::chunk`].
    pub(super) async fn chunk(&mut self) -> Result<Option<Vec<u8>>, Ended> {
        if !matches!(self.mode, Mode::Long { .. }) {
            return Ok(None);
        }
        loop {
            let piece = self.piece().await?;
            let Mode::Long { watch, held } = &mut self.mode else { return Ok(None) };
            let Some(piece) = piece else {
                let (watch, last) = (std::mem::take(&mut **watch), held.take());
                let id = match watch.finish() {
                    Ok((id, _)) => id,
                    Err(fault) => return Err(self.bad(fault.text()).into()),
                };
                if !id.is_some_and(|id| names::same(&self.asked, &id)) {
                    return Err(self.bad("an answer to another request").into());
                }
                self.release();
                self.mode = Mode::Over;
                self.backends.succeeded(&self.entry);
                return Ok(last);
            };
            if let Err(fault) = watch.feed(&piece) {
                return Err(self.bad(fault.text()).into());
            }
            // The last piece goes out only when all that was said of the answer has been checked.
            if let Some(earlier) = held.replace(piece) {
                return Ok(Some(earlier));
            }
        }
    }

    /// The next piece of the body.
    async fn piece(&mut self) -> Result<Option<Vec<u8>>, Ended> {
        match self.piece_or_fault().await? {
            Ok(piece) => Ok(piece),
            Err(fault) => Err(self.lost(fault.to_string()).into()),
        }
    }

    async fn piece_or_fault(&mut self) -> Result<Result<Option<Vec<u8>>, Fault>, Ended> {
        let HttpReplies { backends, entry, leg, handle, connection, asked, .. } = self;
        let Some(connection) = connection else {
            return Err(Failure::new(Kind::Lost, "connection closed").into());
        };
        let tell = || cancel(backends, entry, leg, handle, asked);
        let piece = {
            let piece = pin!(connection.body());
            handle.watch_telling(piece, tell).await
        };
        match piece {
            Ok(piece) => Ok(piece),
            Err(stop) => {
                self.expired();
                Err(stop.into())
            }
        }
    }

    /// The rest of the body, if it has at most `max` bytes.
    async fn whole(&mut self, max: usize) -> Result<Result<Vec<u8>, Fault>, Stop> {
        let HttpReplies { backends, entry, leg, handle, connection, asked, .. } = self;
        let Some(connection) = connection else { return Err(Stop::Expired) };
        let tell = || cancel(backends, entry, leg, handle, asked);
        let whole = {
            let whole = pin!(connection.whole(max));
            handle.watch_telling(whole, tell).await
        };
        if whole.is_err() {
            self.expired();
        }
        whole
    }

    /// A JSON document: collected if it is short or must be, else passed on as it comes.
    async fn document(&mut self, length: Option<u64>) -> Result<Reply, Ended> {
        let short = match self.whole {
            true => limits::MESSAGE_BYTES_MAX,
            false => limits::WHOLE_BODY_BYTES_MAX,
        };
        if length.is_some_and(|length| length <= short as u64) {
            return match self.whole(short).await? {
                Ok(body) => {
                    self.release();
                    self.answered(body)
                }
                Err(fault) => Err(self.lost(fault.to_string()).into()),
            };
        }
        let mut watch = Box::new(Watch::new());
        let mut body = Vec::new();
        loop {
            let Some(piece) = self.piece().await? else {
                self.release();
                return self.answered(body);
            };
            if let Err(fault) = watch.feed(&piece) {
                return Err(self.bad(fault.text()).into());
            }
            if body.is_empty() {
                body = piece
            } else {
                body.extend_from_slice(&piece)
            }
            if body.len() > limits::MESSAGE_BYTES_MAX {
                return Err(self.bad("over the bound of one message").into());
            }
            let long = length.is_some() || body.len() > short;
            if self.whole || !long {
                continue;
            }
            let Some(range) = watch.id_at() else {
                // Without a name of the caller's own to put there, the id may come at the end.
                if self.own.is_none() {
                    self.mode = Mode::Long { watch, held: Some(body) };
                    return Ok(Reply::Streaming { len: length });
                }
                continue;
            };
            let span = Span::new(range.start as usize, range.end as usize);
            if !names::same(&self.asked, span.of(&body)) {
                return Err(self.bad("an answer to another request").into());
            }
            let mut len = length;
            if let Some(own) = &self.own {
                let grown = own.id.len() as u64;
                len = length.map(|length| length - span.len() as u64 + grown);
                body = own.answer(&body, span);
            }
            self.mode = Mode::Long { watch, held: Some(body) };
            return Ok(Reply::Streaming { len });
        }
    }

    /// A whole answer that was collected.
    fn answered(&mut self, body: Vec<u8>) -> Result<Reply, Ended> {
        let envelope = match jsonrpc::scan(&body) {
            Ok(envelope) => envelope,
            Err(fault) => return Err(self.bad(fault.text()).into()),
        };
        self.checked(body, &envelope).map(Reply::Answer)
    }

    /// The answer as the caller should see it, if it is the answer to this request.
    fn checked(&mut self, body: Vec<u8>, envelope: &Envelope) -> Result<Vec<u8>, Ended> {
        if !matches!(envelope.kind, Message::Response | Message::ErrorResponse) {
            return Err(self.bad("not an answer").into());
        }
        let id = envelope.id.filter(|id| names::same(&self.asked, id.of(&body)));
        let Some(id) = id else {
            return Err(self.bad("an answer to another request").into());
        };
        self.mode = Mode::Over;
        if envelope.kind == Message::Response {
            self.beside = Beside::default();
        }
        self.succeeded = envelope.kind == Message::Response && !envelope.tool_error;
        self.backends.succeeded(&self.entry);
        Ok(match &self.own {
            Some(own) => own.answer(&body, id),
            // The same id in another spelling.
            None if id.of(&body) != &*self.asked => jsonrpc::splice(&body, &[(id, &self.asked)]),
            None => body,
        })
    }

    /// Gives the connection back, if its response was read to the end.
    fn release(&mut self) {
        if let Some(connection) = self.connection.take()
            && connection.reusable()
        {
            // Exact to a millisecond: see `POOL_TRUST`.
            self.entry.http().1.pool.put(connection, rt::time::now());
        }
    }

    fn cancel(&self) {
        cancel(&self.backends, &self.entry, &self.leg, &self.handle, &self.asked);
    }

    fn bad(&mut self, cause: impl Into<std::borrow::Cow<'static, str>>) -> Failure {
        self.connection = None;
        self.mode = Mode::Over;
        Failure::new(Kind::BadAnswer, cause)
    }

    fn lost(&mut self, cause: impl Into<std::borrow::Cow<'static, str>>) -> Failure {
        self.connection = None;
        self.mode = Mode::Over;
        Failure::new(Kind::Lost, cause)
    }
}

impl Drop for HttpReplies {
    fn drop(&mut self) {
        if self.handle.is_asked() {
            asks::call_over(&self.backends, &self.handle);
        }
        if !matches!(self.mode, Mode::Over) && self.handle.is_untold() {
            self.cancel();
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Media {
    Json,
    Events,
    Other,
}

/// How long the backend wants to be left alone.
pub(super) fn wait(head: &ResponseHead) -> Option<Duration> {
    head.field("retry-after").and_then(|field| retry_after(field, SystemTime::now()))
}

pub(super) fn media(head: &ResponseHead) -> Media {
    head.field("content-type").map_or(Media::Other, media_type)
}

fn media_type(field: &[u8]) -> Media {
    if field == b"application/json" {
        return Media::Json;
    }
    let name = field.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    if name.eq_ignore_ascii_case(b"application/json") {
        Media::Json
    } else if name.eq_ignore_ascii_case(b"text/event-stream") {
        Media::Events
    } else {
        Media::Other
    }
}

/// Tells the backend that the answer to `asked` is not wanted any more.
fn cancel(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    leg: &Rc<Leg>,
    handle: &Rc<CallHandle>,
    asked: &[u8],
) {
    if handle.is_asked() {
        asks::call_over(backends, handle);
    }
    if leg.is_modern() {
        // To close the stream is to cancel (2026-07-28, Cancellation): nothing is waited for.
        handle.expire();
    // `initialize` must not be cancelled (2025-11-25, Cancellation).
    } else if !leg.is_provisional() {
        send(backends, entry, leg, names::cancellation(asked, handle.reason().as_deref()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types() {
        for (field, wanted) in [
            ("application/json", Media::Json),
            ("Application/JSON; charset=utf-8", Media::Json),
            ("text/event-stream;charset=UTF-8", Media::Events),
            ("application/jsonl", Media::Other),
            ("text/html", Media::Other),
            ("", Media::Other),
        ] {
            assert_eq!(media_type(field.as_bytes()), wanted, "{field}");
        }
    }
}
