//! Owns: the life of one exchange, from a request's head to its answer, in a straight line.
//! Never: sockets of backends (`backend`), who holds the tables (`world`), retries (`attempt`).
//! Next: `worker`, whose connections call it.
//!
//! MCP 2025-11-25, Basic, Transports (Streamable HTTP) and Lifecycle; JSON-RPC 2.0.

use std::borrow::Cow;
use std::fmt::Write;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use crate::backend::{Call, CallHandle, Replies, Reply};
use crate::error::{Error, Kind, Result};
use crate::http::{BodyFault, Connection, Method as HttpMethod, RequestHead, sse};
use crate::jsonrpc::{self, Envelope, Kind as MessageKind, Shape, Span};
use crate::limits;
use crate::mcp::catalog::ListKind;
use crate::mcp::header;
use crate::mcp::hints::Hints;
use crate::mcp::method::Method;
use crate::mcp::name::Target;
use crate::mcp::revision::Revision;
use crate::mcp::session::{SessionId, SessionRecord};
use crate::middleware::{Copy, Known, Request};
use crate::plan::{BackendId, BackendPlan};
use crate::rt;
use crate::world::World;

const JSON: &str = "Content-Type: application/json\r\n";
const EVENTS: &str = "Content-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n\
                      X-Accel-Buffering: no\r\n";

/// What the head of a request says, as far as an exchange needs it.
struct Ask {
    method: HttpMethod,
    /// Lines to add to every answer: CORS for an allowed origin, else nothing.
    cors: String,
    /// `None`: no session was named; `Some(None)`: one that cannot exist.
    session: Option<Option<SessionId>>,
    /// `Some(None)`: a revision that is not spoken.
    version: Option<Option<Revision>>,
    json: bool,
    accepts_json: bool,
    accepts_events: bool,
}

/// Serves the request whose head `connection` has just read. A drop leaves the connection without
/// an answer: drop it too.
///
/// # Errors
/// The client's connection failed; it is of no use any more.
pub async fn exchange(
    world: &Rc<World>,
    connection: &mut Connection,
    head: &RequestHead,
) -> io::Result<()> {
    let (ask, refusal) = read_ask(world, head);
    if let Some(error) = refusal {
        return refuse(connection, &ask.cors, &error, b"null").await;
    }
    match head.path() {
        "/mcp" | "/" => {}
        "/livez" | "/health" | "/readyz" => return health(world, connection, head).await,
        _ => return refuse(connection, &ask.cors, &Error::new(Kind::NotFound), b"null").await,
    }
    match ask.method {
        HttpMethod::Post => post(world, connection, &ask).await,
        HttpMethod::Get => listen(world, connection, &ask).await,
        HttpMethod::Delete => delete(world, connection, &ask).await,
        HttpMethod::Options => options(connection, &ask).await,
        _ => refuse(connection, &ask.cors, &Error::new(Kind::MethodNotAllowed), b"null").await,
    }
}

/// Reads the fields and checks who calls: Origin and Host come before everything else, so that a
/// page that may not call learns nothing.
fn read_ask(world: &World, head: &RequestHead) -> (Ask, Option<Error>) {
    let mut cors = String::new();
    let mut refusal = None;
    if let Some(origin) = head.field("origin") {
        if world.plan.listen.origins.allows(origin) {
            let origin = String::from_utf8_lossy(origin);
            let _ = write!(
                cors,
                "Access-Control-Allow-Origin: {origin}\r\nVary: Origin\r\n\
                 Access-Control-Expose-Headers: {}, {}\r\n",
                header::SESSION,
                header::VERSION
            );
        } else {
            refusal = Some(Error::new(Kind::Forbidden).context("Origin not allowed"));
        }
    }
    if refusal.is_none() && !world.plan.listen.hosts.allows(head.field("host").unwrap_or(b"")) {
        refusal = Some(Error::new(Kind::Forbidden).context("Host not allowed"));
    }
    let ask = Ask {
        method: head.method(),
        cors,
        session: head.field(header::SESSION).map(SessionId::parse),
        version: head.field(header::VERSION).map(Revision::parse),
        json: head.field("content-type").is_some_and(header::is_json),
        accepts_json: header::accepts(head.fields("accept"), "application", "json"),
        accepts_events: header::accepts(head.fields("accept"), "text", "event-stream"),
    };
    (ask, refusal)
}

/// `GET /livez`, `/health`: the process serves. `GET /readyz`: no backend is in its first start.
async fn health(world: &World, connection: &mut Connection, head: &RequestHead) -> io::Result<()> {
    if !matches!(head.method(), HttpMethod::Get | HttpMethod::Head) {
        let error = Error::new(Kind::MethodNotAllowed);
        return refuse(connection, "Allow: GET, HEAD\r\n", &error, b"null").await;
    }
    let ready = head.path() != "/readyz" || world.settled_now();
    let (status, body): (u16, &[u8]) = match (ready, world.draining.is_set()) {
        (true, false) => (200, b"{\"status\":\"ok\"}"),
        (false, false) => (503, b"{\"status\":\"starting\"}"),
        (_, true) => (503, b"{\"status\":\"stopping\"}"),
    };
    connection.answer(status, JSON, body).await
}

/// A CORS preflight (Fetch, §3.2): who got here may call, or named no origin.
async fn options(connection: &mut Connection, ask: &Ask) -> io::Result<()> {
    let mut lines = ask.cors.clone();
    lines.push_str("Allow: GET, POST, DELETE, OPTIONS\r\n");
    if !ask.cors.is_empty() {
        let _ = write!(
            lines,
            "Access-Control-Allow-Methods: GET, POST, DELETE, OPTIONS\r\n\
             Access-Control-Allow-Headers: Content-Type, Accept, Authorization, Last-Event-ID, \
             {}, {}\r\nAccess-Control-Max-Age: 7200\r\n",
            header::SESSION,
            header::VERSION
        );
    }
    connection.answer(204, &lines, b"").await
}

/// Finds the session that a request names, and checks its revision field.
async fn session_of(world: &World, ask: &Ask) -> Result<Arc<SessionRecord>> {
    let id = match ask.session {
        Some(Some(id)) => id,
        Some(None) => return Err(Error::new(Kind::SessionNotFound)),
        None => {
            return Err(Error::new(Kind::BadHeader).context("Mcp-Session-Id header is required"));
        }
    };
    let record = world.session(id).await?;
    if ask.version == Some(None) {
        let mut text = String::from("Unsupported protocol version (supported versions:");
        for revision in Revision::ALL {
            let _ = write!(text, " {}", revision.as_str());
        }
        return Err(Error::new(Kind::BadHeader).context(text + ")"));
    }
    record.touch(rt::time::now());
    Ok(record)
}

/// `DELETE`: the client ends its session.
async fn delete(world: &World, connection: &mut Connection, ask: &Ask) -> io::Result<()> {
    match session_of(world, ask).await {
        Ok(record) => {
            world.delete_session(&record);
            connection.answer(200, &ask.cors, b"").await
        }
        Err(error) => refuse(connection, &ask.cors, &error, b"null").await,
    }
}

/// `GET`: a stream of messages that belong to no request of the client.
async fn listen(world: &Rc<World>, connection: &mut Connection, ask: &Ask) -> io::Result<()> {
    if !ask.accepts_events {
        let error = Error::new(Kind::NotAcceptable);
        return refuse(connection, &ask.cors, &error, b"null").await;
    }
    let record = match session_of(world, ask).await {
        Ok(record) => record,
        Err(error) => return refuse(connection, &ask.cors, &error, b"null").await,
    };
    let lines = with(EVENTS, &ask.cors);
    let (_open, mut messages) = world.open_stream(&record);
    connection.begin_with(200, &lines, None, sse::COMMENT).await?;
    loop {
        let wait = rt::time::timeout(limits::SSE_COMMENT_INTERVAL, messages.recv());
        match rt::race(wait, connection.closed()).await {
            rt::Either::Left(Ok(Some(Some(message)))) => {
                let mut event = Vec::with_capacity(message.len() + 16);
                sse::write(&mut event, None, &message);
                connection.chunk(event).await?;
            }
            rt::Either::Left(Err(rt::time::Elapsed)) => {
                record.touch(rt::time::now());
                connection.chunk(sse::COMMENT.to_vec()).await?;
            }
            rt::Either::Left(Ok(_)) => return connection.finish().await,
            rt::Either::Right(()) => {
                connection.abort();
                return Ok(());
            }
        }
    }
}

/// `POST`: one message, or in 2025-03-26 an array of them.
async fn post(world: &Rc<World>, connection: &mut Connection, ask: &Ask) -> io::Result<()> {
    let refusal = if !ask.json {
        Some(Kind::MediaType)
    } else if !(ask.accepts_json && ask.accepts_events) {
        Some(Kind::NotAcceptable)
    } else {
        None
    };
    if let Some(kind) = refusal {
        return refuse(connection, &ask.cors, &Error::new(kind), b"null").await;
    }
    let body = match connection.body(world.plan.body_bytes_max).await {
        Ok(body) => body,
        Err(fault) => {
            let kind = match fault {
                BodyFault::TooLarge => Kind::BodyTooLarge,
                BodyFault::Malformed => Kind::BadHeader,
                BodyFault::Timeout => Kind::RequestTimeout,
                BodyFault::Gone => return Err(io::ErrorKind::UnexpectedEof.into()),
            };
            let error = Error::new(kind).cause(fault);
            return refuse(connection, &ask.cors, &error, b"null").await;
        }
    };
    let envelope = match jsonrpc::shape(&body) {
        Ok(Shape::One(envelope)) => envelope,
        Ok(Shape::Batch(messages)) => {
            let messages = messages.take(limits::BATCH_MAX + 1).collect();
            return batch(world, connection, ask, &body, messages).await;
        }
        Err(fault) => return refuse(connection, &ask.cors, &fault.into(), b"null").await,
    };
    let id = envelope.id.map_or(&b"null"[..], |id| id.of(&body));
    if envelope.kind == MessageKind::Request && method_of(&body, &envelope) == Method::Initialize {
        if let Err(error) = admit(world) {
            return refused(connection, &ask.cors, false, &error, id).await;
        }
        return initialize(world, connection, ask, &body, &envelope).await;
    }
    let record = match session_of(world, ask).await {
        Ok(record) => record,
        Err(error) => return refuse(connection, &ask.cors, &error, id).await,
    };
    match perform(world, &record, body, envelope).await {
        Outcome::Accepted => connection.answer(202, &ask.cors, b"").await,
        Outcome::Answer(answer) => connection.answer(200, &with(JSON, &ask.cors), &answer).await,
        Outcome::Refused { error, id } => refused(connection, &ask.cors, false, &error, &id).await,
        Outcome::Relay(relay) => pass_on(connection, &ask.cors, relay).await,
    }
}

/// `initialize`: a session begins on the worker that received it.
async fn initialize(
    world: &Rc<World>,
    connection: &mut Connection,
    ask: &Ask,
    body: &[u8],
    envelope: &Envelope,
) -> io::Result<()> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params<'a> {
        protocol_version: Cow<'a, str>,
        #[serde(borrow)]
        capabilities: &'a serde_json::value::RawValue,
        #[serde(borrow)]
        client_info: &'a serde_json::value::RawValue,
    }
    let id = envelope.id.map_or(&b"null"[..], |id| id.of(body));
    let params = envelope.params.map_or(&b"null"[..], |params| params.of(body));
    let params: Params<'_> = match serde_json::from_slice(params) {
        Ok(params) => params,
        Err(fault) => {
            let error = Error::new(Kind::InvalidParams).context(format!("initialize: {fault}"));
            let answer = error_answer(&error, id);
            return connection.answer(200, &with(JSON, &ask.cors), &answer).await;
        }
    };
    let revision = Revision::negotiate(params.protocol_version.as_bytes());
    let record = world.open_session(|id| {
        SessionRecord::new(
            id,
            revision,
            params.capabilities.get().into(),
            params.client_info.get().into(),
        )
    });
    let record = match record {
        Ok(record) => record,
        Err(error) => return refuse(connection, &ask.cors, &error, id).await,
    };
    let mut result = Vec::with_capacity(512);
    {
        let catalog = world.catalog.borrow();
        result.extend_from_slice(b"{\"protocolVersion\":\"");
        result.extend_from_slice(revision.as_str().as_bytes());
        result.extend_from_slice(b"\",\"capabilities\":");
        result.extend_from_slice(catalog.capabilities().as_bytes());
        result.extend_from_slice(b",\"serverInfo\":{\"name\":");
        jsonrpc::quote(&world.plan.name, &mut result);
        result.extend_from_slice(b",\"version\":");
        jsonrpc::quote(&world.plan.version, &mut result);
        result.push(b'}');
        let joined = match &world.plan.instructions {
            Some(own) => Some(Cow::Borrowed(own.as_str())),
            None => catalog.instructions().map(Cow::Owned),
        };
        if let Some(instructions) = joined {
            result.extend_from_slice(b",\"instructions\":");
            jsonrpc::quote(&instructions, &mut result);
        }
        result.push(b'}');
    }
    let mut answer = Vec::with_capacity(result.len() + 64);
    jsonrpc::result(&mut answer, id, &result);
    let lines = format!("{JSON}{}: {}\r\n{}", header::SESSION, record.id, ask.cors);
    connection.answer(200, &lines, &answer).await
}

/// The method that a message names.
fn method_of(message: &[u8], envelope: &Envelope) -> Method {
    // Escapes in it are rare enough to pay for.
    Method::parse(envelope.method_name(message).unwrap_or_default().as_bytes())
}

/// What becomes of one message.
enum Outcome {
    /// It needs no answer.
    Accepted,
    /// The proxy answers by itself: a whole JSON-RPC response.
    Answer(Vec<u8>),
    /// The proxy answers that it will not, or cannot.
    Refused {
        /// Why.
        error: Error,
        /// The client's id, as it was sent.
        id: Vec<u8>,
    },
    /// A backend answers.
    Relay(Relay),
}

/// A call at a backend, and what is needed to answer its caller.
struct Relay {
    replies: Replies,
    /// The client's id, as it was sent.
    id: Vec<u8>,
    _in_flight: crate::world::InFlight,
}

/// Does what one message of a session asks for, up to the point where a backend has it.
async fn perform(
    world: &Rc<World>,
    record: &Arc<SessionRecord>,
    message: Vec<u8>,
    envelope: Envelope,
) -> Outcome {
    let method = method_of(&message, &envelope);
    match envelope.kind {
        MessageKind::Request => {}
        MessageKind::Notification => {
            if method == Method::Cancelled {
                cancelled(world, record, &message, &envelope);
            }
            return Outcome::Accepted;
        }
        // No request goes to a client yet, so no response can belong to one.
        MessageKind::Response | MessageKind::ErrorResponse => return Outcome::Accepted,
    }
    let id = envelope.id.map_or_else(|| b"null".to_vec(), |id| id.of(&message).to_vec());
    if let Err(error) = admit(world) {
        return Outcome::Refused { error, id };
    }
    let list = match method {
        Method::ToolsList => ListKind::Tools,
        Method::ResourcesList => ListKind::Resources,
        Method::TemplatesList => ListKind::Templates,
        Method::PromptsList => ListKind::Prompts,
        Method::Ping => {
            let mut answer = Vec::with_capacity(64);
            jsonrpc::result(&mut answer, &id, b"{}");
            return Outcome::Answer(answer);
        }
        Method::ToolsCall | Method::ResourcesRead | Method::PromptsGet => {
            return match call(world, record, method, message, envelope, &id).await {
                Ok(relay) => Outcome::Relay(relay),
                Err(error) => {
                    tracing::debug!(%error, "a call failed");
                    Outcome::Refused { error, id }
                }
            };
        }
        _ => {
            let method = envelope.method_name(&message).unwrap_or_default();
            let error = Error::new(Kind::MethodNotFound)
                .context(method.chars().take(128).collect::<String>());
            return Outcome::Answer(error_answer(&error, &id));
        }
    };
    match cursor(&message, &envelope) {
        Ok(()) => {
            world.settled().await;
            let result = world.catalog.borrow().list(list);
            let mut answer = Vec::with_capacity(result.len() + id.len() + 48);
            jsonrpc::result(&mut answer, &id, &result);
            Outcome::Answer(answer)
        }
        Err(error) => Outcome::Answer(error_answer(&error, &id)),
    }
}

/// A list has one page, so no cursor was ever given out.
fn cursor(message: &[u8], envelope: &Envelope) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Params<'a> {
        #[serde(borrow, default)]
        cursor: Option<&'a serde_json::value::RawValue>,
    }
    let Some(params) = envelope.params else { return Ok(()) };
    match serde_json::from_slice(params.of(message)) {
        Ok(Params { cursor: None }) => Ok(()),
        Ok(Params { cursor: Some(_) }) => {
            Err(Error::new(Kind::InvalidParams).context("unknown cursor: lists have one page"))
        }
        Err(_) => Err(Error::new(Kind::InvalidParams).context("params must be an object")),
    }
}

/// `notifications/cancelled`, wherever the request is being served.
fn cancelled(world: &World, record: &SessionRecord, message: &[u8], envelope: &Envelope) {
    #[derive(serde::Deserialize)]
    struct Params<'a> {
        #[serde(borrow, rename = "requestId")]
        request_id: &'a serde_json::value::RawValue,
        #[serde(default)]
        reason: Option<String>,
    }
    let params = envelope.params.map_or(&b"null"[..], |params| params.of(message));
    match serde_json::from_slice::<Params<'_>>(params) {
        Ok(params) => {
            world.cancel(record.id, params.request_id.get().as_bytes(), params.reason);
        }
        Err(fault) => tracing::debug!(%fault, "a cancellation that names no request"),
    }
}

/// Sends a call, read or get to the backend that owns its target.
async fn call(
    world: &Rc<World>,
    record: &Arc<SessionRecord>,
    method: Method,
    mut message: Vec<u8>,
    mut envelope: Envelope,
    id: &[u8],
) -> Result<Relay> {
    let backend = aim(world, method, &mut message, &mut envelope)?;
    let plan = &world.plan.backends[backend];
    let own = if plan.chain.spares_calls() && plan.around.is_empty() {
        None
    } else {
        let shaped = Box::pin(shape(world, plan, method, &mut message, &mut envelope)).await?;
        for copy in shaped.copies {
            mirror(world, record, method, copy);
        }
        Some((shaped.own, shaped.hints))
    };
    let (tool, hints) = own.unzip();
    let handle = Rc::new(CallHandle::new());
    let in_flight = world.enter_call(record.id, id, handle.clone());
    let tool_call = method == Method::ToolsCall;
    let call = Call {
        backend,
        session: Some(record.clone()),
        tool_call,
        safe: !tool_call || hints.is_some_and(Hints::repeatable),
        tool: tool.filter(|_| tool_call),
        again: false,
        id: envelope.id.ok_or_else(|| Error::new(Kind::InvalidRequest))?,
        progress_token: envelope.progress_token,
        body: message,
        timeout: if tool_call { plan.call_timeout } else { plan.request_timeout },
        handle,
    };
    let replies = world.backends.call(call).await?;
    Ok(Relay { replies, id: id.to_vec(), _in_flight: in_flight })
}

/// Finds the backend of a call, and puts the backend's own name into it.
fn aim(
    world: &World,
    method: Method,
    message: &mut Vec<u8>,
    envelope: &mut Envelope,
) -> Result<BackendId> {
    let invalid = |text: &'static str| Error::new(Kind::InvalidParams).context(text);
    if method == Method::ResourcesRead {
        let uri = envelope.uri.ok_or_else(|| invalid("uri is required"))?;
        let uri = jsonrpc::unquote(uri.of(message)).ok_or_else(|| invalid("uri is a string"))?;
        return match world.catalog.borrow().owner_of_uri(&uri) {
            Some(backend) => Ok(backend),
            // With one backend there is no question whose it is, and its own answer is the truth.
            None if world.only.is_some() => Ok(world.only.unwrap_or_default()),
            None => Err(Error::new(Kind::ResourceNotFound).context(uri.into_owned())),
        };
    }
    let span = envelope.name.ok_or_else(|| invalid("name is required"))?;
    let name = jsonrpc::unquote(span.of(message)).ok_or_else(|| invalid("name is a string"))?;
    let (kind, unknown) = match method {
        Method::ToolsCall => (ListKind::Tools, Kind::UnknownTool),
        _ => (ListKind::Prompts, Kind::UnknownPrompt),
    };
    match world.names.resolve(&name) {
        Target::Prefixed(backend, prefix) => {
            match name {
                // Without escapes the prefix stands in the message as it is: cut it out.
                Cow::Borrowed(_) => {
                    let start = span.start + 1;
                    let cut = Span { start, end: start + prefix as u32 };
                    message.drain(cut.start as usize..cut.end as usize);
                    envelope.cut(cut);
                }
                Cow::Owned(name) => {
                    let mut own = Vec::with_capacity(name.len() + 2);
                    jsonrpc::quote(&name[prefix..], &mut own);
                    *message = jsonrpc::splice(message, &[(span, &own)]);
                    *envelope = jsonrpc::scan(message)
                        .map_err(|fault| Error::new(fault.kind()).cause("after renaming"))?;
                }
            }
            Ok(backend)
        }
        Target::Bare => {
            let owner = world.catalog.borrow().owner_of_name(kind, &name);
            Ok(owner.unwrap_or(world.names.bare[0]))
        }
        Target::Unknown => Err(Error::new(unknown).context(name.into_owned())),
    }
}

/// What the rules of a backend made of a request.
struct Shaped {
    /// The backend's own name.
    own: String,
    /// What its tool says about itself.
    hints: Hints,
    /// For other backends.
    copies: Vec<Copy>,
}

/// Sends a copy of a request to another backend. Nobody waits for it, and nothing that becomes of
/// it is anybody's answer.
fn mirror(world: &Rc<World>, record: &Arc<SessionRecord>, method: Method, copy: Copy) {
    let under_way = world.copies.get();
    if under_way >= limits::COPIES_MAX {
        return;
    }
    world.copies.set(under_way + 1);
    let (world, record) = (world.clone(), record.clone());
    rt::spawn("mirrored call", async move {
        let Copy { backend, mut message, mut envelope } = copy;
        let plan = &world.plan.backends[backend];
        let sent = async {
            let shaped = shape(&world, plan, method, &mut message, &mut envelope).await?;
            let tool_call = method == Method::ToolsCall;
            let call = Call {
                backend,
                session: Some(record),
                tool_call,
                safe: !tool_call || shaped.hints.repeatable(),
                id: envelope.id.ok_or_else(|| Error::new(Kind::InvalidRequest))?,
                progress_token: envelope.progress_token,
                body: message,
                timeout: if tool_call { plan.call_timeout } else { plan.request_timeout },
                tool: Some(shaped.own).filter(|_| tool_call),
                again: false,
                handle: Rc::new(CallHandle::new()),
            };
            let mut replies = world.backends.call(call).await?;
            loop {
                match replies.next().await? {
                    Reply::Notification(_) => {}
                    Reply::Answer(_) => return Ok(()),
                    Reply::Streaming { .. } => {
                        while replies.chunk().await?.is_some() {}
                        return Ok(());
                    }
                }
            }
        };
        let sent: Result<()> = sent.await;
        world.copies.set(world.copies.get() - 1);
        if let Err(error) = sent {
            tracing::debug!(%error, "a mirrored call failed");
        }
    });
}

/// Takes a request through the rules of its backend.
async fn shape(
    world: &World,
    plan: &BackendPlan,
    method: Method,
    message: &mut Vec<u8>,
    envelope: &mut Envelope,
) -> Result<Shaped> {
    let (what, span) = match method {
        Method::ToolsCall => (ListKind::Tools, envelope.name),
        Method::ResourcesRead => (ListKind::Resources, envelope.uri),
        _ => (ListKind::Prompts, envelope.name),
    };
    let Some(name) = span.and_then(|span| jsonrpc::unquote(span.of(message))) else {
        return Err(Error::new(Kind::InvalidParams).context("a name or uri is required"));
    };
    let name = name.into_owned();
    if plan.chain.filter.is_some() {
        // Whether a tool may be called can depend on what its list says of it.
        world.backends.settled_one(plan.id).await;
    }
    let slice = world.catalog.borrow().slice(plan.id).cloned();
    let listed = slice.is_some();
    let called = match what {
        ListKind::Resources => name.clone(),
        _ => format!("{}{name}", plan.prefix),
    };
    let known = slice.as_ref().and_then(|slice| slice.list(what).behind(&name));
    let known = known.map(|(own, hints)| Known { own, hints });
    let mut request = Request {
        what,
        called: &called,
        own: name,
        known,
        listed,
        message,
        envelope,
        copies: Vec::new(),
    };
    plan.chain.request(&mut request)?;
    let hints = request.hints();
    Ok(Shaped { own: request.own, hints, copies: request.copies })
}

/// Passes a backend's messages on to the client: as JSON when the response comes first, as an
/// event stream when something precedes it.
async fn pass_on(connection: &mut Connection, cors: &str, mut relay: Relay) -> io::Result<()> {
    let mut streaming = false;
    loop {
        let reply = {
            let mut next = pin!(relay.replies.next());
            loop {
                // Long silence: a comment keeps what is between us and the client from cutting it.
                let silence = rt::time::sleep(limits::SSE_COMMENT_INTERVAL);
                match rt::race(next.as_mut(), silence).await {
                    rt::Either::Left(reply) => break reply,
                    rt::Either::Right(()) => {
                        event_out(connection, cors, &mut streaming, sse::COMMENT.to_vec()).await?;
                    }
                }
            }
        };
        let event = match reply {
            Ok(Reply::Notification(message)) => {
                let mut event = Vec::with_capacity(message.len() + 16);
                sse::write(&mut event, None, &message);
                event
            }
            Ok(Reply::Answer(answer)) => return respond(connection, cors, streaming, answer).await,
            Ok(Reply::Streaming { len }) => {
                return stream_on(connection, cors, streaming, len, &mut relay.replies).await;
            }
            Err(error) if error.kind() == Kind::Cancelled => {
                // The client said that it wants no answer (Utilities, Cancellation).
                if !streaming {
                    connection.begin(200, &with(EVENTS, cors), None).await?;
                }
                return connection.finish().await;
            }
            Err(error) => {
                tracing::debug!(%error, "a call failed");
                return refused(connection, cors, streaming, &error, &relay.id).await;
            }
        };
        event_out(connection, cors, &mut streaming, event).await?;
    }
}

/// Sends one event; the first one begins the stream.
async fn event_out(
    connection: &mut Connection,
    cors: &str,
    streaming: &mut bool,
    event: Vec<u8>,
) -> io::Result<()> {
    if std::mem::replace(streaming, true) {
        return connection.chunk(event).await;
    }
    connection.begin_with(200, &with(EVENTS, cors), None, &event).await
}

/// `proxy.rate_limit`: every request counts, whatever it asks for.
fn admit(world: &World) -> Result<()> {
    let Some(rate) = &world.plan.rate else { return Ok(()) };
    rate.admit(world.backends.elapsed())
        .map_err(|wait| Error::new(Kind::RateLimited).retry_after(Some(wait)))
}

/// Sends an error as the response to a request, and when to try again if that is known.
async fn refused(
    connection: &mut Connection,
    cors: &str,
    streaming: bool,
    error: &Error,
    id: &[u8],
) -> io::Result<()> {
    let answer = error_answer(error, id);
    match error.wait() {
        Some(wait) if !streaming => {
            let seconds = wait.as_millis().div_ceil(1000).max(1);
            let lines = format!("{JSON}{cors}Retry-After: {seconds}\r\n");
            connection.answer(200, &lines, &answer).await
        }
        _ => respond(connection, cors, streaming, answer).await,
    }
}

/// Sends the response of an exchange that is whole.
async fn respond(
    connection: &mut Connection,
    cors: &str,
    streaming: bool,
    answer: Vec<u8>,
) -> io::Result<()> {
    if !streaming {
        return connection.answer(200, &with(JSON, cors), &answer).await;
    }
    let mut event = Vec::with_capacity(answer.len() + 16);
    sse::write(&mut event, None, &answer);
    connection.finish_with(&event).await
}

/// Sends a response that is too large to hold, piece by piece; each piece waits for the client.
async fn stream_on(
    connection: &mut Connection,
    cors: &str,
    streaming: bool,
    len: Option<u64>,
    replies: &mut Replies,
) -> io::Result<()> {
    if streaming {
        // A JSON body behind an event: only a whole one can be framed as an event.
        let mut whole = Vec::new();
        loop {
            match replies.chunk().await {
                Ok(Some(piece)) if whole.len() + piece.len() <= limits::MESSAGE_BYTES_MAX => {
                    whole.extend_from_slice(&piece);
                }
                Ok(None) => return respond(connection, cors, true, whole).await,
                _ => {
                    connection.abort();
                    return Ok(());
                }
            }
        }
    }
    connection.begin(200, &with(JSON, cors), len).await?;
    loop {
        match replies.chunk().await {
            Ok(Some(piece)) => connection.chunk(piece).await?,
            Ok(None) => return connection.finish().await,
            Err(error) => {
                // The status is gone; a body that ends early is the only way left to say it.
                tracing::debug!(%error, "a streamed answer broke off");
                connection.abort();
                return Ok(());
            }
        }
    }
}

/// An array of messages (2025-03-26, Basic): the calls run side by side.
async fn batch(
    world: &Rc<World>,
    connection: &mut Connection,
    ask: &Ask,
    body: &[u8],
    messages: Vec<Span>,
) -> io::Result<()> {
    let refused = |text: &'static str| Error::new(Kind::InvalidRequest).context(text);
    let record = match session_of(world, ask).await {
        Ok(record) if record.revision.batches() => record,
        Ok(_) => {
            let error = refused("batches exist in revision 2025-03-26 only");
            return refuse(connection, &ask.cors, &error, b"null").await;
        }
        Err(error) => return refuse(connection, &ask.cors, &error, b"null").await,
    };
    if messages.is_empty() || messages.len() > limits::BATCH_MAX {
        let error = refused("a batch has 1 to 100 messages");
        return refuse(connection, &ask.cors, &error, b"null").await;
    }
    let mut requests = 0;
    let (sender, mut answers) = rt::local::queue::<(bool, Vec<u8>)>(limits::BATCH_MAX);
    for span in messages {
        let element = span.of(body).to_vec();
        let envelope = match jsonrpc::scan(&element) {
            Ok(envelope) => envelope,
            Err(fault) => {
                requests += 1;
                let _ = sender.try_send((true, error_answer(&fault.into(), b"null")));
                continue;
            }
        };
        requests += usize::from(envelope.kind == MessageKind::Request);
        let (world, record, sender) = (world.clone(), record.clone(), sender.clone());
        rt::spawn("batch element", async move {
            let outcome = if envelope.kind == MessageKind::Request
                && method_of(&element, &envelope) == Method::Initialize
            {
                let id = envelope.id.map_or(&b"null"[..], |id| id.of(&element));
                Outcome::Answer(error_answer(&refused("initialize stands alone"), id))
            } else {
                perform(&world, &record, element, envelope).await
            };
            match outcome {
                Outcome::Accepted => {}
                Outcome::Answer(answer) => drop(sender.send((true, answer)).await),
                Outcome::Refused { error, id } => {
                    drop(sender.send((true, error_answer(&error, &id))).await);
                }
                Outcome::Relay(relay) => collect(relay, &sender).await,
            }
        });
    }
    drop(sender);
    if requests == 0 {
        return connection.answer(202, &ask.cors, b"").await;
    }
    let mut held: Vec<Vec<u8>> = Vec::new();
    let mut streaming = false;
    while let Some((is_answer, message)) = answers.recv().await {
        if !is_answer && !streaming {
            connection.begin(200, &with(EVENTS, &ask.cors), None).await?;
            streaming = true;
            for answer in held.drain(..) {
                let mut event = Vec::new();
                sse::write(&mut event, None, &answer);
                connection.chunk(event).await?;
            }
        }
        if streaming {
            let mut event = Vec::new();
            sse::write(&mut event, None, &message);
            connection.chunk(event).await?;
        } else {
            held.push(message);
        }
    }
    if streaming {
        return connection.finish().await;
    }
    let mut array = vec![b'['];
    array.extend_from_slice(&held.join(&b','));
    array.push(b']');
    connection.answer(200, &with(JSON, &ask.cors), &array).await
}

/// Runs one call of a batch to its end.
async fn collect(mut relay: Relay, out: &rt::local::Sender<(bool, Vec<u8>)>) {
    let answer = loop {
        match relay.replies.next().await {
            Ok(Reply::Notification(message)) => drop(out.send((false, message)).await),
            Ok(Reply::Answer(answer)) => break answer,
            Ok(Reply::Streaming { .. }) => {
                let mut whole = Vec::new();
                let error = loop {
                    match relay.replies.chunk().await {
                        Ok(Some(piece)) => whole.extend_from_slice(&piece),
                        Ok(None) => break None,
                        Err(error) => break Some(error),
                    }
                    if whole.len() > limits::MESSAGE_BYTES_MAX {
                        break Some(Error::new(Kind::BadAnswer).context("too large for a batch"));
                    }
                };
                break error.map_or(whole, |error| error_answer(&error, &relay.id));
            }
            Err(error) if error.kind() == Kind::Cancelled => return,
            Err(error) => break error_answer(&error, &relay.id),
        }
    };
    let _ = out.send((true, answer)).await;
}

/// `lines`, and what CORS adds to them.
fn with<'a>(lines: &'a str, cors: &str) -> Cow<'a, str> {
    if cors.is_empty() { Cow::Borrowed(lines) } else { Cow::Owned(format!("{lines}{cors}")) }
}

/// A JSON-RPC error response of our own.
fn error_answer(error: &Error, id: &[u8]) -> Vec<u8> {
    let mut answer = Vec::with_capacity(128);
    let mut data = Vec::new();
    if error.kind() == Kind::ResourceNotFound {
        // 2025-11-25, Server Features, Resources, Error Handling.
        data.extend_from_slice(b"{\"uri\":");
        jsonrpc::quote(error.public_context(), &mut data);
        data.push(b'}');
    } else if let Some(wait) = error.wait() {
        let millis = wait.as_micros().div_ceil(1000);
        let _ = io::Write::write_fmt(&mut data, format_args!("{{\"retryAfterMs\":{millis}}}"));
    }
    let data = (!data.is_empty()).then_some(&data[..]);
    jsonrpc::error(&mut answer, id, error.kind().code(), &error.public(), data);
    answer
}

/// Refuses a request before or beside JSON-RPC: an HTTP status, and an error body.
async fn refuse(
    connection: &mut Connection,
    cors: &str,
    error: &Error,
    id: &[u8],
) -> io::Result<()> {
    tracing::debug!(%error, peer = %connection.peer(), "refused");
    let mut lines = format!("{JSON}{cors}");
    match error.kind() {
        Kind::MethodNotAllowed => lines.push_str("Allow: GET, POST, DELETE, OPTIONS\r\n"),
        Kind::Capacity => lines.push_str("Retry-After: 1\r\n"),
        _ => {}
    }
    connection.answer(error.kind().status(), &lines, &error_answer(error, id)).await
}
