//! Owns: the way back to a client of the request era.
//! Never: what a backend says before it gets here (`backend`).
//! Next: `listen`.
//!
//! MCP 2026-07-28: a result says of what type it is, one of a read how long it may be kept; log
//! messages come only where they were asked for. What a backend of that era says goes through as it
//! is, what one of the session era leaves out is put in.

use std::io;
use std::pin::pin;
use std::rc::Rc;

use super::{fail, failed, reworded, tasks};
use crate::backend::{Attended, CallHandle, Piece, Replies, Reply, Seal};
use crate::error::{Kind, Result};
use crate::exchange::Ask;
use crate::exchange::answer::{EVENTS, JSON, after, with};
use crate::exchange::relay::whole;
use crate::exchange::route;
use crate::exchange::session::Outcome;
use crate::http::{Connection, sse};
use crate::jsonrpc::{self, Kind as MessageKind, Span, walk};
use crate::limits;
use crate::mcp::envelope;
use crate::mcp::logging::{self, Level};
use crate::mcp::method::Method;
use crate::mcp::revision::modern_status;
use crate::mcp::task_ids;
use crate::plan::BackendId;
use crate::rt::{self, Either};
use crate::world::World;

/// Cancels a call when it is dropped, to be dropped before the call itself. After the answer it does
/// nothing.
pub(super) struct Cancel<'a>(pub(super) Option<&'a Rc<CallHandle>>);

impl Drop for Cancel<'_> {
    fn drop(&mut self) {
        if let Some(handle) = self.0 {
            handle.cancel(Some("the client has left".to_owned()));
        }
    }
}

/// What is needed to answer a caller.
pub(super) struct Way {
    /// Its id, as it was sent.
    pub(super) id: Vec<u8>,
    /// What it asked for.
    pub(super) method: Method,
    /// The least level of log messages that it wants.
    pub(super) level: Option<Level>,
    /// Whose messages they are, once that is known.
    pub(super) backend: Option<BackendId>,
    /// What a caller may see depends on who it is.
    pub(super) private: bool,
    /// Its progress token, as it was sent.
    pub(super) token: Option<Vec<u8>>,
    /// What a call is sealed for whose backend asks for input; `None`: nobody can be asked.
    pub(super) seal: Option<Seal>,
    /// Its answer may name a task.
    pub(super) tasks: bool,
}

/// Waits until a call has begun, and passes on what comes of it. A client that leaves takes it back.
pub(super) async fn answer(
    world: &World,
    connection: &mut Connection,
    ask: &Ask,
    way: Way,
    begin: impl Future<Output = Result<Replies>>,
    handle: &Rc<CallHandle>,
) -> io::Result<()> {
    let begun = {
        let begin = pin!(begin);
        rt::race(begin, connection.closed()).await
    };
    match begun {
        Either::Left(Ok(replies)) => pass_on(world, connection, ask, way, replies, handle).await,
        Either::Left(Err(error)) => fail(connection, ask, &reworded(error), &way.id).await,
        Either::Right(()) => {
            // What was sent is dropped with its future, which told the backend.
            connection.abort();
            Ok(())
        }
    }
}

/// Passes a backend's messages on: as JSON when the response comes first, as an event stream when
/// something precedes it. A client that leaves cancels its call at once.
pub(super) async fn pass_on(
    world: &World,
    connection: &mut Connection,
    ask: &Ask,
    mut way: Way,
    mut replies: Replies,
    handle: &Rc<CallHandle>,
) -> io::Result<()> {
    let mut cancel = Cancel(Some(handle));
    let mut events = Events::default();
    loop {
        let reply = if let Some(reply) = replies.at_hand() {
            Some(reply)
        } else {
            let mut next = pin!(replies.next());
            let mut ready = rt::at_once(next.as_mut()).await;
            if ready.is_none() {
                events.flush(connection, ask).await?;
            }
            loop {
                if let Some(reply) = ready.take() {
                    break Some(reply);
                }
                let silence = rt::time::sleep(limits::SSE_COMMENT_INTERVAL);
                let wait = rt::race(silence, connection.closed());
                match rt::race(next.as_mut(), wait).await {
                    Either::Left(reply) => break Some(reply),
                    Either::Right(Either::Right(())) => break None,
                    Either::Right(Either::Left(())) => events.comment(connection, ask).await?,
                }
            }
        };
        let Some(reply) = reply else {
            connection.abort();
            return Ok(());
        };
        let reply = match reply {
            // Its state, which may stand anywhere in it, is not the client's to have as it is.
            Ok(Reply::Streaming { .. }) if route::may_be_marked(world, ask, replies.backend()) => {
                let whole = Box::pin(whole(&mut replies, &way.id));
                match rt::race(whole, connection.closed()).await {
                    Either::Left(answer) => Ok(Reply::Answer(answer)),
                    Either::Right(()) => {
                        connection.abort();
                        return Ok(());
                    }
                }
            }
            reply => reply,
        };
        match reply {
            Ok(Reply::Notification(message)) => {
                let backend = Some(replies.backend());
                let Some(message) = wanted(message, way.level, world, backend) else { continue };
                events.put(connection, ask, &message).await?;
            }
            // No request can be sent to this caller: a result asks for input instead.
            Ok(Reply::Ask(question)) => match way.seal.take() {
                Some(seal) => {
                    cancel.0 = None;
                    way.backend = Some(replies.backend());
                    let attended = world.backends.ask_caller(replies, handle, question, seal);
                    return Box::pin(follow(world, connection, ask, way, attended, events)).await;
                }
                None => world.backends.decline(&question),
            },
            Ok(Reply::Away { .. }) => {}
            Ok(Reply::Answer(answer)) => {
                let answer = route::marked(world, ask, replies.backend(), answer);
                let answer = match way.tasks {
                    true => tasks::shown(world, ask, replies.backend(), way.method, answer),
                    false => answer,
                };
                let (status, answer) = completed(answer, way.method, way.private);
                ask.facts.answered(&answer);
                if events.are_none() {
                    let mut lines = with(JSON, &ask.cors);
                    if let Some(wait) = replies.wait() {
                        lines.to_mut().push_str(&after(wait));
                    }
                    return connection.answer_with(status, &lines, answer).await;
                }
                return events.end(connection, ask, &answer).await;
            }
            Ok(Reply::Streaming { len }) => {
                ask.facts.well();
                return stream_on(connection, ask, events, len, &mut replies).await;
            }
            Err(error) => {
                tracing::debug!(%error, "a call failed");
                let (status, lines, answer) = failed(ask, &reworded(error), &way.id);
                if events.are_none() {
                    return connection.answer(status, &lines, &answer).await;
                }
                return events.end(connection, ask, &answer).await;
            }
        }
    }
}

/// Passes on what comes of a call whose backend has asked its caller something, up to the answer or
/// the next question. A client that leaves cancels it.
pub(super) async fn follow(
    world: &World,
    connection: &mut Connection,
    ask: &Ask,
    way: Way,
    mut attended: Attended,
    mut events: Events,
) -> io::Result<()> {
    loop {
        events.flush(connection, ask).await?;
        let silence = rt::time::sleep(limits::SSE_COMMENT_INTERVAL);
        let wait = rt::race(silence, connection.closed());
        let piece = match rt::race(attended.next(), wait).await {
            Either::Left(piece) => piece,
            Either::Right(Either::Left(())) => {
                events.comment(connection, ask).await?;
                continue;
            }
            Either::Right(Either::Right(())) => {
                connection.abort();
                return Ok(());
            }
        };
        let (status, lines, answer) = match piece {
            Piece::Note(message) => {
                if let Some(message) = retold(message, way.token.as_deref())
                    && let Some(message) = wanted(message, way.level, world, way.backend)
                {
                    events.put(connection, ask, &message).await?;
                }
                continue;
            }
            Piece::Input(result) => {
                let mut answer = Vec::with_capacity(result.len() + 64);
                jsonrpc::result(&mut answer, &way.id, &result);
                ask.facts.answered(&answer);
                (200, with(JSON, &ask.cors).into_owned(), answer)
            }
            Piece::End(answer) => {
                let id = jsonrpc::scan(&answer).ok().and_then(|message| message.id);
                let answer = match id {
                    Some(id) => jsonrpc::splice(&answer, &[(id, &way.id)]),
                    None => answer,
                };
                let (status, answer) = completed(answer, way.method, way.private);
                ask.facts.answered(&answer);
                (status, with(JSON, &ask.cors).into_owned(), answer)
            }
            Piece::Failed(error) => {
                tracing::debug!(%error, "a call failed");
                failed(ask, &reworded(error), &way.id)
            }
        };
        if events.are_none() {
            return connection.answer(status, &lines, &answer).await;
        }
        return events.end(connection, ask, &answer).await;
    }
}

/// A notification under the token of the request that is being answered; `None`: it wants none.
fn retold(message: Vec<u8>, token: Option<&[u8]>) -> Option<Vec<u8>> {
    let envelope = jsonrpc::scan(&message).ok()?;
    if envelope.method_name(&message).as_deref() != Some("notifications/progress") {
        return Some(message);
    }
    Some(jsonrpc::splice(&message, &[(envelope.progress_token?, token?)]))
}

/// Answers with what a tool of the proxy's own says.
pub(super) async fn own(
    connection: &mut Connection,
    ask: &Ask,
    outcome: Outcome,
) -> io::Result<()> {
    match outcome {
        Outcome::Answer(answer) => {
            let (status, answer) = completed(answer, Method::ToolsCall, false);
            ask.facts.answered(&answer);
            connection.answer(status, &with(JSON, &ask.cors), &answer).await
        }
        Outcome::Refused { error, id } => {
            let (status, lines, answer) = failed(ask, &error, &id);
            connection.answer(status, &lines, &answer).await
        }
        // None of these is what such a tool does.
        Outcome::Accepted | Outcome::Relay(_) | Outcome::Task(_) => {
            connection.answer(202, &ask.cors, b"").await
        }
    }
}

/// The event stream of an answer, if it becomes one.
#[derive(Default)]
pub(super) struct Events {
    /// Its head was sent.
    begun: bool,
    /// Events that wait for company: those that are there already go out in one write.
    held: Vec<u8>,
}

impl Events {
    /// Whether the answer can still be a document.
    fn are_none(&self) -> bool {
        !self.begun && self.held.is_empty()
    }

    /// Adds a message, to be written with the next one or by [`Events::flush`].
    async fn put(
        &mut self,
        connection: &mut Connection,
        ask: &Ask,
        message: &[u8],
    ) -> io::Result<()> {
        sse::write(&mut self.held, None, message);
        match self.held.len() >= limits::EVENTS_HELD_BYTES {
            true => self.flush(connection, ask).await,
            false => Ok(()),
        }
    }

    /// Says something to keep the connection open.
    async fn comment(&mut self, connection: &mut Connection, ask: &Ask) -> io::Result<()> {
        self.held.extend_from_slice(sse::COMMENT);
        self.flush(connection, ask).await
    }

    /// Writes what is held.
    async fn flush(&mut self, connection: &mut Connection, ask: &Ask) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let held = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.begun, true) {
            true => connection.chunk(held).await,
            false => connection.begin_with(200, &with(EVENTS, &ask.cors), None, &held).await,
        }
    }

    /// Ends the stream with the answer.
    async fn end(
        mut self,
        connection: &mut Connection,
        ask: &Ask,
        answer: &[u8],
    ) -> io::Result<()> {
        sse::write(&mut self.held, None, answer);
        match self.begun {
            true => connection.finish_with(&self.held).await,
            false => connection.answer_with(200, &with(EVENTS, &ask.cors), self.held).await,
        }
    }
}

/// Sends a response that is too large to hold, piece by piece; each piece waits for the client.
async fn stream_on(
    connection: &mut Connection,
    ask: &Ask,
    mut events: Events,
    len: Option<u64>,
    replies: &mut Replies,
) -> io::Result<()> {
    let mut whole = Vec::new();
    let streaming = !events.are_none();
    if streaming {
        events.flush(connection, ask).await?;
    } else {
        connection.open(200, &with(JSON, &ask.cors), len)?;
    }
    loop {
        let piece = {
            let piece = pin!(replies.chunk());
            rt::race(piece, connection.closed()).await
        };
        match piece {
            Either::Left(Ok(Some(piece))) if !streaming => connection.chunk(piece).await?,
            // Only a whole document can be framed as an event.
            Either::Left(Ok(Some(piece)))
                if whole.len() + piece.len() <= limits::MESSAGE_BYTES_MAX =>
            {
                whole.extend_from_slice(&piece);
            }
            Either::Left(Ok(None)) if !streaming => return connection.finish().await,
            Either::Left(Ok(None)) => return events.end(connection, ask, &whole).await,
            Either::Left(_) => {
                tracing::debug!("a streamed answer broke off");
                connection.abort();
                return Ok(());
            }
            Either::Right(()) => {
                connection.abort();
                return Ok(());
            }
        }
    }
}

/// A notification as it belongs on the stream of a request, if it does: a log message names in its
/// logger the backend that it is of.
fn wanted(
    message: Vec<u8>,
    level: Option<Level>,
    world: &World,
    backend: Option<BackendId>,
) -> Option<Vec<u8>> {
    let envelope = jsonrpc::scan(&message).ok()?;
    let name = envelope.method_name(&message)?;
    if name == logging::MESSAGE {
        let least = level?;
        return match backend {
            Some(backend) => logging::shaped(message, Some(least), &world.plan.backends[backend]),
            None => Some(message),
        };
    }
    // Those come where they are listened for.
    let listened = name.starts_with("notifications/resources/") || name == task_ids::NOTIFICATION;
    (!listened).then_some(message)
}

/// An answer as the request era asks for it, and its status. `private`: what a caller may see depends
/// on who it is, so that what it reads is for no cache that others use, whatever its server says.
fn completed(answer: Vec<u8>, method: Method, private: bool) -> (u16, Vec<u8>) {
    let Ok(seen) = jsonrpc::scan(&answer) else { return (200, answer) };
    if let (MessageKind::ErrorResponse, Some(error)) = (seen.kind, seen.error) {
        return refused(answer, error);
    }
    let Some(span) = seen.result else { return (200, answer) };
    let result = span.of(&answer);
    if !result.starts_with(b"{") {
        return (200, answer);
    }
    let member = |name| envelope::member(result, name);
    let kind = seen.result_type;
    let is_complete = kind.is_none_or(|kind| kind.of(&answer) == b"\"complete\"");
    let mut missing: Vec<&str> = Vec::new();
    if kind.is_none() {
        missing.push(r#""resultType":"complete""#);
    }
    if method == Method::ResourcesRead && is_complete {
        if member("ttlMs").is_none() {
            missing.push(r#""ttlMs":0"#);
        }
        if member("cacheScope").is_none() {
            missing.push(r#""cacheScope":"private""#);
        }
    }
    let shared = member("cacheScope").filter(|scope| {
        private && method == Method::ResourcesRead && scope.of(result) != br#""private""#
    });
    let shared =
        shared.map(|scope| Span { start: scope.start + span.start, end: scope.end + span.start });
    let mut edits: Vec<(Span, &[u8])> = Vec::new();
    edits.extend(shared.map(|scope| (scope, &br#""private""#[..])));
    if missing.is_empty() {
        return match edits.is_empty() {
            true => (200, answer),
            false => (200, jsonrpc::splice(&answer, &edits)),
        };
    }
    let mut more = missing.join(",");
    let is_empty = result[1..].trim_ascii_start().starts_with(b"}");
    if !is_empty {
        more.push(',');
    }
    let at = Span { start: span.start + 1, end: span.start + 1 };
    edits.insert(0, (at, more.as_bytes()));
    (200, jsonrpc::splice(&answer, &edits))
}

/// An error, with the code that the request era has for it.
fn refused(answer: Vec<u8>, error: Span) -> (u16, Vec<u8>) {
    let Some(code) = walk::member(error.of(&answer), "code") else { return (200, answer) };
    let code = Span { start: code.start + error.start, end: code.end + error.start };
    let number = std::str::from_utf8(code.of(&answer)).ok().and_then(|text| text.parse().ok());
    let fresh = match number {
        Some(-32002) => Some(Kind::UnknownResource.code()),
        // "URL elicitation required" of 2025-11-25, which the request era must not see: there a result
        // asks for input.
        Some(-32042) => Some(Kind::NeedsInput.code()),
        _ => None,
    };
    if let Some(fresh) = fresh {
        let text = fresh.to_string();
        let answer = jsonrpc::splice(&answer, &[(code, text.as_bytes())]);
        return (modern_status(fresh.into()), answer);
    }
    (number.map_or(200, modern_status), answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(answer: &str, method: Method) -> (u16, String) {
        let (status, answer) = completed(answer.as_bytes().to_vec(), method, false);
        assert!(jsonrpc::scan(&answer).is_ok());
        (status, String::from_utf8(answer).unwrap())
    }

    #[test]
    fn what_is_missing_is_put_in_and_nothing_else() {
        let result = |result: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
        for (before, method, after) in [
            ("{}", Method::ToolsCall, r#"{"resultType":"complete"}"#),
            (
                r#"{ "content":[] }"#,
                Method::ToolsCall,
                r#"{"resultType":"complete", "content":[] }"#,
            ),
            (
                r#"{"contents":[]}"#,
                Method::ResourcesRead,
                r#"{"resultType":"complete","ttlMs":0,"cacheScope":"private","contents":[]}"#,
            ),
            (
                r#"{"resultType":"input_required","requestState":"x"}"#,
                Method::ResourcesRead,
                r#"{"resultType":"input_required","requestState":"x"}"#,
            ),
            (
                r#"{"resultType":"complete","ttlMs":5,"cacheScope":"public"}"#,
                Method::ResourcesRead,
                r#"{"resultType":"complete","ttlMs":5,"cacheScope":"public"}"#,
            ),
        ] {
            assert_eq!(text(&result(before), method), (200, result(after)));
        }
    }

    #[test]
    fn what_was_read_is_private_where_callers_differ() {
        let text = |result: &str, method| {
            let answer = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
            let (_, answer) = completed(answer.into_bytes(), method, true);
            let envelope = jsonrpc::scan(&answer).unwrap();
            String::from_utf8(envelope.result.unwrap().of(&answer).to_vec()).unwrap()
        };
        let whole = r#"{"resultType":"complete","ttlMs":5,"cacheScope":"public"}"#;
        let private = r#"{"resultType":"complete","ttlMs":5,"cacheScope":"private"}"#;
        for kept in [whole, private] {
            assert_eq!(text(kept, Method::ResourcesRead), private);
            assert_eq!(text(kept, Method::ToolsCall), kept);
        }
        assert_eq!(
            text(r#"{"cacheScope":"public","contents":[]}"#, Method::ResourcesRead),
            r#"{"resultType":"complete","ttlMs":0,"cacheScope":"private","contents":[]}"#
        );
    }

    #[test]
    fn errors_have_the_codes_and_the_status_of_the_era() {
        let error = |code: i32| {
            format!(r#"{{"jsonrpc":"2.0","id":1,"error":{{"message":"m","code":{code}}}}}"#)
        };
        for (before, status, after) in [
            (-32002, 400, -32602),
            (-32602, 400, -32602),
            (-32042, 200, -32014),
            (-32601, 404, -32601),
            (-32021, 400, -32021),
            (-32603, 200, -32603),
            (1, 200, 1),
        ] {
            assert_eq!(text(&error(before), Method::ToolsCall), (status, error(after)));
        }
    }
}
