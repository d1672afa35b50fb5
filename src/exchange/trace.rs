//! Owns: the trace context of one message: where it comes from, and how it goes on to the backend;
//! the spans that are told of it.
//! Never: a message that is touched while nobody traces, or whose trace nobody records.
//! Next: `door`, who is let in.
//!
//! OpenTelemetry semantic conventions for MCP; W3C Trace Context.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::facts::Detail;
use crate::backend::{CallHandle, Traced};
use crate::error::{Kind, Result};
use crate::jsonrpc::{self, Envelope, Span, walk};
use crate::limits;
use crate::mcp::method::Method;
use crate::mcp::session::SessionRecord;
use crate::plan::{BackendPlan, TransportPlan};
use crate::telemetry::clock;
use crate::telemetry::metrics::Outcome;
use crate::telemetry::trace::{
    Attributes, Context, PARENT_SPAN_AT, Report, Span as TraceSpan, Value, is_sampled,
};
use crate::world::World;

/// The trace that a message belongs to.
pub(super) struct Tracing {
    trace: u128,
    /// 0 = it begins here.
    parent: u64,
    span: u64,
    /// For the ids of attempts.
    seed: u64,
    /// `tracestate`, as it came.
    state: String,
    /// When the message came, since 1970.
    since: Duration,
}

impl Tracing {
    /// The trace of a message, if it is to be recorded: `_meta` counts, then the fields of the HTTP
    /// request.
    pub(super) fn of(
        world: &World,
        message: &[u8],
        envelope: &Envelope,
        fields: Option<&(Vec<u8>, Vec<u8>)>,
    ) -> Option<Tracing> {
        let ratio = world.plan.watch.trace_ratio.filter(|_| world.spans.is_some())?;
        let mut random = [0; 32];
        if !world.random(&mut random) {
            return None;
        }
        let number = |at: usize| {
            let bytes = random[at..at + 8].try_into().unwrap_or([1; 8]);
            u64::from_be_bytes(bytes).max(1)
        };
        let meta = envelope.meta.map(|meta| meta.of(message));
        let of_meta = |name: &str| {
            let meta = meta?;
            Some(walk::member(meta, name)?.text(meta)?.into_owned())
        };
        let context = match of_meta("traceparent").map(|text| Context::parse(text.as_bytes())) {
            Some(context) => context.map(|context| (context, of_meta("tracestate"))),
            None => fields.and_then(|(parent, state)| {
                let context = Context::parse(parent)?;
                Some((context, String::from_utf8(state.clone()).ok()))
            }),
        };
        let (trace, parent, state) = match context {
            Some((context, _)) if !context.sampled => return None,
            Some((context, state)) => (context.trace, context.span, state.unwrap_or_default()),
            None => {
                let trace = u128::from(number(0)) << 64 | u128::from(number(8));
                if !is_sampled(trace, ratio) {
                    return None;
                }
                (trace, 0, String::new())
            }
        };
        let state = Some(state).filter(|state| state.len() <= 512).unwrap_or_default();
        let (span, seed, since) = (number(16), number(24), clock::unix_now());
        Some(Tracing { trace, parent, span, seed, state, since })
    }

    /// Puts the context into a message on its way to a backend; each attempt then writes the id of
    /// its own span there.
    ///
    /// # Errors
    /// None, but those of a message that was not scanned.
    pub(super) fn pass_on(
        &self,
        message: &mut Vec<u8>,
        envelope: &mut Envelope,
        handle: &CallHandle,
    ) -> Result<()> {
        let context = Context { trace: self.trace, span: self.span, sampled: true };
        let Some((old, new, digits)) = edit(message, envelope, &context.write(), &self.state)
        else {
            return Ok(());
        };
        let at = old.start as usize + digits;
        *message = jsonrpc::splice(message, &[(old, &new)]);
        *envelope = jsonrpc::scan(message)?;
        handle.trail().set_trace(Traced {
            at: Cell::new(at),
            seed: self.seed,
            spans: RefCell::default(),
        });
        Ok(())
    }

    /// What is told of the exchange.
    pub(super) fn report(
        &self,
        world: &World,
        detail: &Detail,
        handle: Option<&CallHandle>,
        told: &Told<'_>,
    ) -> Option<Box<Report>> {
        let unix = |then: Instant| {
            (self.since + then.saturating_duration_since(told.began)).as_nanos() as u64
        };
        let method = detail.method.as_deref().unwrap_or("unknown");
        let target = detail.target.as_deref();
        let name: Arc<str> = match target.filter(|_| told.method != Method::ResourcesRead) {
            Some(target) => format!("{method} {target}").into(),
            None => method.into(),
        };
        let mut attributes = told.common(method, target);
        attributes.push(("client.address", Value::Text(told.peer.ip().to_string())));
        attributes.push(("client.port", Value::Number(told.peer.port().into())));
        attributes.push(("network.transport", Value::Text("tcp".into())));
        attributes.push(("network.protocol.name", Value::Text("http".into())));
        let server = TraceSpan {
            id: self.span,
            parent: self.parent,
            name: name.clone(),
            began: unix(told.began),
            ended: unix(told.began + told.total),
            attributes,
            failed: match told.outcome {
                Outcome::Ok => None,
                other => Some(other.as_str()),
            },
        };
        let traced = handle.and_then(|handle| handle.trail().trace());
        let mut attempts = Vec::new();
        if let Some(traced) = traced {
            let own = told.own_name.as_deref().or(target);
            for attempt in traced.spans.borrow().iter() {
                let Some(backend) = world.plan.backends.get(attempt.backend) else { continue };
                let mut attributes = told.common(method, own);
                attributes.push(("mcp.proxy.backend", Value::Text(backend.name.to_string())));
                attributes.extend(reached(backend));
                let failed = match (attempt.failed, attempt.ended) {
                    (Some(kind), _) => Some(kind_name(kind)),
                    // It went on beside the one that answered, and was abandoned with it.
                    (None, None) if handle.is_some_and(CallHandle::is_cancelled) => {
                        Some("cancelled")
                    }
                    _ => None,
                };
                attempts.push(TraceSpan {
                    id: attempt.id,
                    parent: self.span,
                    name: name.clone(),
                    began: unix(attempt.began),
                    ended: unix(attempt.ended.unwrap_or(told.began + told.total)),
                    attributes,
                    failed,
                });
            }
            // A failure that the backend itself reported is the last attempt's.
            let reported = matches!(told.outcome, Outcome::Error | Outcome::ToolError);
            if let Some(last) = attempts.last_mut().filter(|last| reported && last.failed.is_none())
            {
                last.failed = Some(told.outcome.as_str());
            }
        }
        Some(Box::new(Report { trace: self.trace, state: self.state.clone(), server, attempts }))
    }
}

/// What the account of an exchange knows.
pub(super) struct Told<'a> {
    pub(super) method: Method,
    pub(super) session: Option<&'a SessionRecord>,
    pub(super) id: Option<&'a [u8]>,
    pub(super) own_name: Option<String>,
    pub(super) peer: SocketAddr,
    pub(super) began: Instant,
    pub(super) total: Duration,
    pub(super) outcome: Outcome,
    pub(super) code: Option<i32>,
}

impl Told<'_> {
    fn common(&self, method: &str, target: Option<&str>) -> Attributes {
        let text = |text: &str| Value::Text(text.to_owned());
        let mut out: Attributes = vec![("mcp.method.name", text(method))];
        if let Some(target) = target {
            match self.method {
                Method::ToolsCall => {
                    out.push(("gen_ai.operation.name", text("execute_tool")));
                    out.push(("gen_ai.tool.name", text(target)));
                }
                Method::PromptsGet => out.push(("gen_ai.prompt.name", text(target))),
                Method::ResourcesRead => out.push(("mcp.resource.uri", text(target))),
                _ => {}
            }
        }
        if let Some(session) = self.session {
            // Hashed: whoever has the id has the session.
            out.push(("mcp.session.id", Value::Text(session.id.public())));
            out.push(("mcp.protocol.version", text(session.revision.as_str())));
        }
        if let Some(id) = self.id {
            let id = jsonrpc::unquote(id).unwrap_or_else(|| String::from_utf8_lossy(id));
            let id = id.chars().take(limits::LINE_FIELD_BYTES_MAX).collect();
            out.push(("jsonrpc.request.id", Value::Text(id)));
        }
        if let Some(code) = self.code {
            out.push(("rpc.response.status_code", Value::Text(code.to_string())));
        }
        out
    }
}

/// How a backend is reached.
fn reached(backend: &BackendPlan) -> Attributes {
    let text = |text: &str| Value::Text(text.to_owned());
    match &backend.transport {
        TransportPlan::Stdio(_) => vec![("network.transport", text("pipe"))],
        TransportPlan::Http(http) => vec![
            ("network.transport", text("tcp")),
            ("network.protocol.name", text("http")),
            ("server.address", text(&http.host)),
            ("server.port", Value::Number(http.port.into())),
        ],
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Timeout => "timeout",
        Kind::Cancelled => "cancelled",
        Kind::Unavailable => "unavailable",
        Kind::Lost => "connection_lost",
        Kind::BadAnswer => "bad_answer",
        Kind::Busy | Kind::Capacity => "over_capacity",
        _ => "_OTHER",
    }
}

/// What to put where, and where in it the digits of the span's id stand; `None` = the message has
/// no place for it.
fn edit(
    message: &[u8],
    envelope: &Envelope,
    parent: &str,
    state: &str,
) -> Option<(Span, Vec<u8>, usize)> {
    let member = |name: &str, text: &str| {
        let mut out = format!("\"{name}\":").into_bytes();
        jsonrpc::quote(text, &mut out);
        out
    };
    // Of a raw string that holds the parent.
    let digits = 1 + PARENT_SPAN_AT;
    if let Some(meta) = envelope.meta {
        let object = meta.of(message);
        let mut found = walk::members_of_checked(object)?
            .filter(|(key, _)| walk::key_is(key.of(object), "traceparent"));
        return match (found.next(), found.next()) {
            (Some((_, value)), None) => {
                let start = meta.start as usize;
                let span = Span::new(start + value.start as usize, start + value.end as usize);
                let mut new = Vec::new();
                jsonrpc::quote(parent, &mut new);
                Some((span, new, digits))
            }
            // Of two, nobody knows which counts.
            (Some(_), Some(_)) => None,
            (None, _) => {
                let at = meta.start as usize + 1;
                let empty = walk::members_of_checked(object)?.next().is_none();
                let has_state = walk::member(object, "tracestate").is_some();
                let mut new = member("traceparent", parent);
                if !state.is_empty() && !has_state {
                    new.push(b',');
                    new.extend(member("tracestate", state));
                }
                if !empty {
                    new.push(b',');
                }
                Some((Span::new(at, at), new, "\"traceparent\":".len() + digits))
            }
        };
    }
    let params = envelope.params?;
    let object = params.of(message);
    let mut members = walk::members_of_checked(object)?;
    // One that is no object stays what it is.
    if members.clone().any(|(key, _)| walk::key_is(key.of(object), "_meta")) {
        return None;
    }
    let mut new = b"\"_meta\":{".to_vec();
    let before = new.len() + "\"traceparent\":".len() + digits;
    new.extend(member("traceparent", parent));
    if !state.is_empty() {
        new.push(b',');
        new.extend(member("tracestate", state));
    }
    new.push(b'}');
    if members.next().is_some() {
        new.push(b',');
    }
    let at = params.start as usize + 1;
    Some((Span::new(at, at), new, before))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn edited(params: &str, state: &str) -> Option<String> {
        let message = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{params}}}"#);
        let message = message.as_bytes();
        let envelope = jsonrpc::scan(message).unwrap();
        let (old, new, digits) = edit(message, &envelope, PARENT, state)?;
        let out = jsonrpc::splice(message, &[(old, &new)]);
        let at = old.start as usize + digits;
        assert_eq!(&out[at..at + 16], b"00f067aa0ba902b7", "{params}");
        let seen = jsonrpc::scan(&out).unwrap();
        let meta = seen.meta.unwrap().of(&out);
        assert_eq!(walk::member(meta, "traceparent").unwrap().text(meta).unwrap(), PARENT);
        let params = seen.params.unwrap();
        Some(String::from_utf8(params.of(&out).to_vec()).unwrap())
    }

    #[test]
    fn the_context_finds_its_place() {
        let with = |rest: &str| Some(format!(r#"{{"_meta":{{"traceparent":"{PARENT}"{rest}"#));
        assert_eq!(edited("{}", ""), with("}}"));
        assert_eq!(edited(r#"{"name":"x"}"#, ""), with(r#"},"name":"x"}"#));
        let state = r#","tracestate":"a=b"},"name":"x"}"#;
        assert_eq!(edited(r#"{"name":"x"}"#, "a=b"), with(state));
        assert_eq!(edited(r#"{"_meta":{}}"#, ""), with("}}"));
        let progress = r#"{"_meta":{"progressToken":1.0}}"#;
        assert_eq!(edited(progress, ""), with(r#","progressToken":1.0}}"#));
        let old = r#"{"_meta":{"traceparent":"00-old","tracestate":"c=d"}}"#;
        assert_eq!(edited(old, "a=b"), with(r#","tracestate":"c=d"}}"#));
        assert_eq!(edited(r#"{"_meta":null}"#, ""), None);
        assert_eq!(edited(r#"{"_meta":{"traceparent":1,"traceparent":2}}"#, ""), None);
    }
}
