//! Owns: the life of one exchange, from a request's head to its answer, in a straight line.
//! Never: sockets of backends (`backend`), who holds the tables (`world`), repetition of
//! a call (`backend`).
//! Next: `facts`, what is remembered of it all along.
//!
//! MCP 2025-11-25, Basic, Transports (Streamable HTTP) and Lifecycle; JSON-RPC 2.0.

mod admin;
mod answer;
mod batch;
mod call;
mod complete;
mod door;
mod facts;
mod logging;
mod mirror;
mod modern;
mod outlet;
mod own;
mod private;
mod relay;
mod route;
mod session;
mod stream;
mod subscribe;
mod tasks;
mod trace;

use std::fmt::Write;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use crate::auth::Caller;
use crate::auth::policy::Rights;
use crate::error::{Error, Kind, Result};
use crate::http::{BodyFault, Connection, Method as HttpMethod, RequestHead};
use crate::jsonrpc::{self, Envelope, Kind as MessageKind, Shape};
use crate::limits;
use crate::mcp::envelope::names_version;
use crate::mcp::header;
use crate::mcp::method::Method;
use crate::mcp::revision::{MODERN, Revision};
use crate::mcp::session::{Authorization, SessionId, SessionRecord};
use crate::plan::WorkerId;
use crate::rt;
use crate::world::World;
use answer::{JSON, refuse, refused, respond};
use facts::{Ends, Facts};
use session::Outcome;

/// What the head of a request says, as far as an exchange needs it.
struct Ask {
    method: HttpMethod,
    /// Lines to add to every answer: CORS for an allowed origin, else nothing.
    cors: String,
    /// `None`: no session was named; `Some(None)`: one that cannot exist.
    session: Option<Option<SessionId>>,
    /// Who asks; `None` without `[auth]`.
    principal: Option<Arc<str>>,
    /// `Some(None)`: a revision that is not spoken.
    version: Option<Option<Revision>>,
    /// The revision named is one of the request era.
    modern: bool,
    json: bool,
    accepts_json: bool,
    accepts_events: bool,
    who: Who,
    /// It comes through the program that embeds the proxy.
    inside: bool,
    /// `traceparent` and `tracestate`, where somebody traces.
    context: Option<Box<(Vec<u8>, Vec<u8>)>>,
    /// What is remembered of the message.
    facts: Facts,
}

/// Who calls.
#[derive(Clone, Default)]
struct Who {
    /// What his token says; `None` = nothing, where nothing is asked for.
    caller: Option<Arc<Caller>>,
    /// What he showed, for backends that are to get it; `None` if there are none.
    authorization: Option<Arc<Authorization>>,
}

impl Who {
    /// What he may see; `None` = everything.
    fn rights(&self) -> Option<&Rights> {
        self.caller.as_ref().and_then(|caller| caller.rights.as_ref())
    }
}

impl Ask {
    fn new(world: &World, head: &RequestHead, said: Said, cors: String) -> Ask {
        Ask {
            method: said.method,
            cors,
            session: said.session,
            version: said.version,
            modern: said.modern,
            json: said.json,
            accepts_json: said.accepts_json,
            accepts_events: said.accepts_events,
            principal: None,
            who: Who::default(),
            inside: false,
            context: world.spans.as_ref().map(|_| {
                let field = |name| head.field(name).unwrap_or_default().to_vec();
                Box::new((field("traceparent"), field("tracestate")))
            }),
            facts: Facts::new(rt::time::now()),
        }
    }

    /// The same for one message of several.
    fn again(&self) -> Ask {
        Ask {
            method: self.method,
            cors: String::new(),
            session: self.session,
            version: self.version,
            modern: self.modern,
            json: self.json,
            accepts_json: self.accepts_json,
            accepts_events: self.accepts_events,
            principal: self.principal.clone(),
            who: self.who.clone(),
            inside: self.inside,
            context: self.context.clone(),
            facts: Facts::new(self.facts.began),
        }
    }

    /// What goes on after the exchange, and is accounted for at its own end.
    fn handed_on(&self) -> Ask {
        Ask { facts: self.facts.hand_on(), ..self.again() }
    }
}

/// Serves the request whose head `connection` has just read; `known` is kept from one request of the
/// connection to the next. Says which worker's child or event stream had to do with it, if one had. A
/// drop leaves the connection without an answer: drop it too.
///
/// # Errors
/// The client's connection failed; it is of no use any more.
pub async fn exchange(
    world: &Rc<World>,
    connection: &mut Connection,
    head: &RequestHead,
    known: &mut Known,
) -> io::Result<Option<WorkerId>> {
    let (mut ask, refusal) = read_ask(world, head, known);
    ask.inside = connection.is_inside();
    let served = route(world, connection, head, &mut ask, refusal).await;
    let (status, bytes_out) = connection.answered();
    let ends = Ends { peer: connection.peer(), principal: ask.principal.as_deref(), bytes_out };
    ask.facts.account(world, &ends);
    if world.plan.watch.access_log {
        ask.facts.access(world, head, &ends, status);
    }
    let worker = ask.facts.worker();
    ask.facts.retire();
    served.map(|()| worker)
}

/// To whoever serves the path.
async fn route(
    world: &Rc<World>,
    connection: &mut Connection,
    head: &RequestHead,
    ask: &mut Ask,
    refusal: Option<Error>,
) -> io::Result<()> {
    let is_mcp = matches!(head.path(), "/mcp" | "/");
    if is_mcp && ask.method == HttpMethod::Post {
        ask.facts.expect_message();
    }
    if !is_mcp && let Some(path) = admin::path(head) {
        return Box::pin(admin::serve(world, connection, ask, head, path, refusal)).await;
    }
    if let Some(error) = refusal {
        return refuse(connection, ask, &error, b"null").await;
    }
    if !is_mcp {
        return match head.path() {
            path if is_health(path) => health(world, connection, head).await,
            path if door::is_metadata(world, path) => {
                Box::pin(door::metadata(world, connection, ask, head)).await
            }
            _ => refuse(connection, ask, &Error::new(Kind::NotFound), b"null").await,
        };
    }
    // A preflight carries no token (Fetch, §3.2.2).
    if let Some(access) = &world.plan.access
        && ask.method != HttpMethod::Options
        && let Err(error) = door::admit(world, access, ask, head).await
    {
        return Box::pin(door::turn_away(world, connection, ask, head, &error)).await;
    }
    if world.forwards {
        ask.who.authorization = door::forwarded(ask, head);
    }
    match ask.method {
        HttpMethod::Post => post(world, connection, ask, head).await,
        HttpMethod::Get | HttpMethod::Delete if ask.modern => {
            refuse(connection, ask, &Error::new(Kind::NotPost), b"null").await
        }
        // In boxes of their own, as all that is not a call: a call has room for what is largest.
        HttpMethod::Get => Box::pin(stream::listen(world, connection, ask, head)).await,
        HttpMethod::Delete => Box::pin(delete(world, connection, ask)).await,
        HttpMethod::Options => options(connection, ask).await,
        _ => refuse(connection, ask, &Error::new(Kind::MethodNotAllowed), b"null").await,
    }
}

/// The first field of each name that every request is asked for, found in one walk.
#[derive(Default)]
struct Fields<'h> {
    origin: Option<&'h [u8]>,
    host: Option<&'h [u8]>,
    accept: Option<&'h [u8]>,
    /// How many there are of these.
    accepts: usize,
    content_type: Option<&'h [u8]>,
    session: Option<&'h [u8]>,
    version: Option<&'h [u8]>,
    /// One of them, but for Accept, stands there again.
    repeated: bool,
}

impl<'h> Fields<'h> {
    fn of(head: &'h RequestHead) -> Fields<'h> {
        let mut fields = Fields::default();
        let mut again = 0;
        for (name, value) in head.each_field() {
            // The usual spellings are words to compare, the others letters.
            let is = |one: &[u8], other: &[u8]| {
                name == one || name == other || name.eq_ignore_ascii_case(one)
            };
            let place = match name.len() {
                4 if is(b"Host", b"host") => &mut fields.host,
                6 if is(b"Accept", b"accept") => {
                    fields.accepts += 1;
                    &mut fields.accept
                }
                6 if is(b"Origin", b"origin") => &mut fields.origin,
                12 if is(b"Content-Type", b"content-type") => &mut fields.content_type,
                14 if is(header::SESSION.as_bytes(), b"mcp-session-id") => &mut fields.session,
                20 if is(header::VERSION.as_bytes(), b"mcp-protocol-version") => {
                    &mut fields.version
                }
                _ => continue,
            };
            match place {
                None => *place = Some(value),
                // Of several Accepts the first is as good as any; of the others each says one thing.
                Some(_) => again += 1,
            }
        }
        fields.repeated = again > fields.accepts.saturating_sub(1);
        fields
    }
}

const _: () = assert!(header::SESSION.len() == 14 && header::VERSION.len() == 20);

/// What a head says for every request that has it.
#[derive(Clone, Copy)]
struct Said {
    method: HttpMethod,
    session: Option<Option<SessionId>>,
    version: Option<Option<Revision>>,
    modern: bool,
    json: bool,
    accepts_json: bool,
    accepts_events: bool,
}

/// What the last head of a connection said, for the next one if that is the same.
#[derive(Default)]
pub struct Known(Option<(Weak<World>, Said)>);

impl Known {
    /// What `head` says, if it repeats one that was read under the same settings.
    fn again(&self, world: &Rc<World>, head: &RequestHead) -> Option<Said> {
        let (under, said) = self.0.as_ref()?;
        (head.is_repeated() && under.as_ptr() == Rc::as_ptr(world)).then_some(*said)
    }
}

/// Reads the fields and checks who calls: Origin and Host come before everything else, so that a
/// page that may not call learns nothing.
fn read_ask(world: &Rc<World>, head: &RequestHead, known: &mut Known) -> (Ask, Option<Error>) {
    if let Some(said) = known.again(world, head) {
        return (Ask::new(world, head, said, String::new()), None);
    }
    let mut cors = String::new();
    let mut refusal = None;
    let fields = Fields::of(head);
    if let Some(origin) = fields.origin {
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
    // What names no host at all (HTTP/1.0) is no browser. It may ask whether the proxy is well.
    let is_probe = fields.host.is_none() && is_health(head.path());
    let hosts = &world.plan.listen.hosts;
    if refusal.is_none() && !is_probe && !hosts.allows(fields.host.unwrap_or(b"")) {
        refusal = Some(Error::new(Kind::Forbidden).context("Host not allowed"));
    }
    // Whoever takes the first of two and whoever takes the last see two requests (RFC 9110 §5.3).
    if refusal.is_none() && fields.repeated {
        refusal = Some(Error::new(Kind::BadHeader).context(
            "Origin, Content-Type, Mcp-Session-Id and MCP-Protocol-Version stand there once each",
        ));
    }
    let version = fields.version;
    let (accepts_json, accepts_events) = match fields.accept {
        Some(header::USUAL_ACCEPT) if fields.accepts == 1 => (true, true),
        _ => header::accepted(head.fields("accept")),
    };
    let said = Said {
        method: head.method(),
        session: fields.session.map(SessionId::parse),
        version: version.map(Revision::parse),
        modern: version == Some(MODERN.as_bytes()),
        json: fields.content_type.is_some_and(header::is_json),
        accepts_json,
        accepts_events,
    };
    // Pages and those who are refused are looked at each time.
    let plain = fields.origin.is_none() && refusal.is_none();
    known.0 = plain.then(|| (Rc::downgrade(world), said));
    (Ask::new(world, head, said, cors), refusal)
}

fn is_health(path: &str) -> bool {
    matches!(path, "/livez" | "/health" | "/readyz")
}

/// `GET /livez`, `/health`: the process serves. `GET /readyz`: no backend is in its first start.
async fn health(world: &World, connection: &mut Connection, head: &RequestHead) -> io::Result<()> {
    if !matches!(head.method(), HttpMethod::Get | HttpMethod::Head) {
        let error = Error::new(Kind::MethodNotAllowed);
        let lines = format!("{JSON}Allow: GET, HEAD\r\n");
        let body = answer::error_answer(&error, b"null");
        return connection.answer(error.kind().status(), &lines, &body).await;
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
             {}, {}, {}, {}\r\nAccess-Control-Max-Age: 7200\r\n",
            header::SESSION,
            header::VERSION,
            header::METHOD,
            header::NAME
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
    // An id gives no right: to others than its principal there is no such session.
    if record.principal != ask.principal {
        return Err(Error::new(Kind::SessionNotFound));
    }
    if ask.version == Some(None) {
        let mut text = String::from("Unsupported protocol version (supported versions:");
        for revision in Revision::ALL {
            let _ = write!(text, " {}", revision.as_str());
        }
        return Err(Error::new(Kind::BadHeader).context(text + ")"));
    }
    if world.forwards {
        record.show(ask.who.authorization.as_ref());
    }
    record.touch(ask.facts.began);
    ask.facts.session(&record);
    Ok(record)
}

/// `DELETE`: the client ends its session.
async fn delete(world: &World, connection: &mut Connection, ask: &Ask) -> io::Result<()> {
    match session_of(world, ask).await {
        Ok(record) => {
            world.delete_session(&record);
            connection.answer(200, &ask.cors, b"").await
        }
        Err(error) => refuse(connection, ask, &error, b"null").await,
    }
}

/// `POST`: one message, or in 2025-03-26 an array of them.
async fn post(
    world: &Rc<World>,
    connection: &mut Connection,
    ask: &Ask,
    head: &RequestHead,
) -> io::Result<()> {
    let refusal = if !ask.json {
        Some(Kind::MediaType)
    } else if !(ask.accepts_json && ask.accepts_events) {
        Some(Kind::NotAcceptable)
    } else {
        None
    };
    if let Some(kind) = refusal {
        return refuse(connection, ask, &Error::new(kind), b"null").await;
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
            return refuse(connection, ask, &error, b"null").await;
        }
    };
    ask.facts.body(body.len());
    let envelope = match jsonrpc::shape(&body) {
        Ok(Shape::One(envelope)) => envelope,
        Ok(Shape::Batch(_)) if ask.modern => {
            let error = Error::new(Kind::InvalidRequest).context("one message for each POST");
            return refuse(connection, ask, &error, b"null").await;
        }
        Ok(Shape::Batch(messages)) => {
            let messages = messages.take(limits::BATCH_MAX + 1).collect();
            return Box::pin(batch::batch(world, connection, ask, &body, messages)).await;
        }
        Err(fault) => return refuse(connection, ask, &fault.into(), b"null").await,
    };
    let method = method_of(&body, &envelope);
    ask.facts.message(world, method, &body, &envelope, ask.context.as_deref());
    let id = envelope.id.map_or(&b"null"[..], |id| id.of(&body));
    let names_version = || envelope.meta.is_some_and(|meta| names_version(meta.of(&body)));
    // `initialize` begins a session, unless it says itself that it does not.
    if names_version() || (ask.modern && method != Method::Initialize) {
        return Box::pin(modern::post(world, connection, ask, head, body, envelope)).await;
    }
    if envelope.kind == MessageKind::Request && method == Method::Initialize {
        if let Err(error) = admit(world, ask) {
            return refused(connection, ask, &error, id).await;
        }
        return Box::pin(session::initialize(world, connection, ask, &body, &envelope)).await;
    }
    let record = match session_of(world, ask).await {
        Ok(record) => record,
        Err(error) => return refuse(connection, ask, &error, id).await,
    };
    match session::perform(world, ask, &record, body, envelope).await {
        Outcome::Accepted => {
            ask.facts.well();
            connection.answer(202, &ask.cors, b"").await
        }
        Outcome::Answer(answer) => {
            ask.facts.answered(&answer);
            respond(connection, &ask.cors, answer).await
        }
        Outcome::Refused { error, id } => refused(connection, ask, &error, &id).await,
        Outcome::Relay(relay) => relay::pass_on(world, &record, connection, ask, relay, None).await,
        Outcome::Task(task) => {
            let (relay, shape) = *task;
            let task = relay::pass_on(world, &record, connection, ask, relay, Some(shape));
            Box::pin(task).await
        }
    }
}

/// `proxy.rate_limit`: every request counts, whatever it asks for.
fn admit(world: &World, ask: &Ask) -> Result<()> {
    let Some(rate) = &world.plan.rate else { return Ok(()) };
    rate.admit(world.backends.elapsed(), ask.principal.as_deref())
        .map_err(|wait| Error::new(Kind::RateLimited).retry_after(Some(wait)))
}

/// The method that a message names.
fn method_of(message: &[u8], envelope: &Envelope) -> Method {
    let Some(raw) = envelope.method.map(|span| span.of(message)) else { return Method::Other };
    // Escapes in it are rare enough to pay for, and no name that is known has any.
    match Method::parse(&raw[1..raw.len() - 1]) {
        Method::Other => {
            Method::parse(envelope.method_name(message).unwrap_or_default().as_bytes())
        }
        method => method,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    fn size_of_six<A, B, C, D, E, F, G>(_: fn(A, B, C, D, E, F) -> G) -> usize {
        size_of::<G>()
    }

    fn align<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
        align_of::<F>()
    }

    /// An exchange is moved into its place once per request: what is rare, and every timer, has a
    /// box of its own.
    #[test]
    fn an_exchange_stays_small() {
        assert!(size(exchange) <= 4_224, "{} bytes", size(exchange));
        assert!(size_of_six(relay::pass_on) <= 1_800, "{} bytes", size_of_six(relay::pass_on));
        assert!(align(exchange) <= 16);
    }
}
