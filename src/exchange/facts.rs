//! Owns: what is remembered of one message, and the account of it at its end: metrics, the line of
//! the audit log, spans.
//! Never: a decision about the message.
//! Next: `trace`, how its context travels on.
//!
//! Facts are noted where they are known, through cells, since many look at one exchange. Without an
//! audit log and tracing that is a few stores; what needs memory is in [`Detail`].

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use memchr::memmem::Finder;

use super::mirror::Twins;
use super::trace::Tracing;
use crate::backend::{CallHandle, Share};
use crate::error::{Error, Kind};
use crate::http::RequestHead;
use crate::jsonrpc::{self, Envelope, Kind as MessageKind, walk};
use crate::limits;
use crate::mcp::method::Method;
use crate::mcp::session::SessionRecord;
use crate::middleware::reuse::Use;
use crate::plan::{BackendId, WorkerId};
use crate::rt;
use crate::telemetry::clock;
use crate::telemetry::lines::{Line, Object, cut};
use crate::telemetry::metrics::{AttemptKind, Lost, Outcome, PROXY, Reason, ToolRow};
use crate::world::World;

/// What kind of message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// No message of MCP: a stream, a DELETE, a page.
    None,
    /// A request; also a body that could not be read, since whoever sent it waits for an answer.
    Request,
    /// A notification or a response.
    OneWay,
}

/// See the head of this file.
pub(super) struct Facts {
    pub(super) began: Instant,
    what: Cell<What>,
    method: Cell<Method>,
    backend: Cell<Option<BackendId>>,
    /// Row of the tool that is called; `Some(None)` = one that has no row.
    tool: Cell<Option<Option<ToolRow>>>,
    ended: Cell<Option<(Outcome, Option<i32>)>>,
    reason: Cell<Option<Reason>>,
    bytes_in: Cell<usize>,
    modern: Cell<bool>,
    used: Cell<Option<Use>>,
    handle: OnceCell<Rc<CallHandle>>,
    /// How copies of it ended.
    twins: OnceCell<Rc<Twins>>,
    pub(super) detail: OnceCell<Rc<Detail>>,
}

/// What only lines and spans need.
#[derive(Default)]
pub(super) struct Detail {
    /// As it was sent.
    id: Option<Vec<u8>>,
    /// As it was sent; of methods that are not known too.
    pub(super) method: Option<String>,
    /// The name or URI as it was called.
    pub(super) target: Option<String>,
    own_name: RefCell<Option<String>>,
    arguments: Option<Vec<u8>>,
    record: OnceCell<Arc<SessionRecord>>,
    pub(super) tracing: Option<Tracing>,
}

/// Who sent it, and how it was answered.
pub(super) struct Ends<'a> {
    pub(super) peer: SocketAddr,
    pub(super) principal: Option<&'a str>,
    /// Bytes of the answer.
    pub(super) bytes_out: u64,
}

impl Facts {
    /// Nothing is known but the time.
    pub(super) fn new(began: Instant) -> Facts {
        Facts {
            began,
            what: Cell::new(What::None),
            method: Cell::new(Method::Other),
            backend: Cell::new(None),
            tool: Cell::new(None),
            ended: Cell::new(None),
            reason: Cell::new(None),
            bytes_in: Cell::new(0),
            modern: Cell::new(false),
            used: Cell::new(None),
            handle: OnceCell::new(),
            twins: OnceCell::new(),
            detail: OnceCell::new(),
        }
    }

    /// The same, for what goes on after the exchange: this one is accounted for no more.
    pub(super) fn hand_on(&self) -> Facts {
        Facts {
            began: self.began,
            what: Cell::new(self.what.replace(What::None)),
            method: self.method.clone(),
            backend: self.backend.clone(),
            tool: self.tool.clone(),
            ended: self.ended.clone(),
            reason: self.reason.clone(),
            bytes_in: self.bytes_in.clone(),
            modern: self.modern.clone(),
            used: self.used.clone(),
            handle: self.handle.clone(),
            twins: self.twins.clone(),
            detail: self.detail.clone(),
        }
    }

    /// A message is expected: whatever becomes of it, it is accounted for.
    pub(super) fn expect_message(&self) {
        self.what.set(What::Request);
    }

    /// So it is nothing that is accounted for by itself.
    pub(super) fn is_array(&self) {
        self.what.set(What::None);
    }

    /// The body came.
    pub(super) fn body(&self, bytes: usize) {
        self.bytes_in.set(bytes);
    }

    /// The message was understood.
    pub(super) fn message(
        &self,
        world: &World,
        method: Method,
        message: &[u8],
        envelope: &Envelope,
        context: Option<&(Vec<u8>, Vec<u8>)>,
    ) {
        self.what.set(match envelope.kind {
            MessageKind::Request => What::Request,
            _ => What::OneWay,
        });
        self.method.set(method);
        self.bytes_in.set(message.len());
        if world.plan.watch.audit.is_some() || world.spans.is_some() {
            let detail = Detail::of(world, message, envelope, context);
            let _ = self.detail.set(Rc::new(detail));
        }
    }

    /// Its session was found.
    pub(super) fn session(&self, record: &Arc<SessionRecord>) {
        if let Some(detail) = self.detail.get() {
            let _ = detail.record.set(record.clone());
        }
    }

    /// Its backend was found; `message` has the backend's own name in it, or nearly.
    pub(super) fn aimed(
        &self,
        world: &World,
        backend: BackendId,
        message: &[u8],
        envelope: &Envelope,
    ) {
        self.backend.set(Some(backend));
        if self.method.get() == Method::ToolsCall && world.meter.enabled() {
            let raw = envelope.name.map_or(&b"\"\""[..], |span| span.of(message));
            // Without escapes the bytes are the name.
            let known = world.meter.known_tool(backend, &raw[1..raw.len() - 1]);
            self.tool.set(Some(known.or_else(|| new_tool(world, backend, raw))));
        }
    }

    /// The cache of its backend did this for it; `None` = there is none for such calls.
    pub(super) fn cache(&self, world: &World, backend: BackendId, used: Option<Use>) {
        self.used.set(used);
        if let Some(used) = used {
            world.backends.count_cache(backend, used);
        }
    }

    /// What it asks for.
    pub(super) fn method(&self) -> Method {
        self.method.get()
    }

    /// A tool of the proxy's own is called.
    pub(super) fn own_tool(&self, world: &World, name: &str) {
        self.tool.set(Some(world.meter.tool(PROXY, name, || true)));
    }

    /// The call, so that its attempts are known in the end.
    pub(super) fn called(&self, handle: &Rc<CallHandle>) {
        let _ = self.handle.set(handle.clone());
    }

    /// Copies of it were sent.
    pub(super) fn copied(&self, twins: &Rc<Twins>) {
        let _ = self.twins.set(twins.clone());
    }

    /// The backend's own name, where it is known.
    pub(super) fn own_name(&self, name: Option<&str>) {
        if let (Some(detail), Some(name)) = (self.detail.get(), name) {
            detail.sent_as(name);
        }
    }

    /// It says by itself who sends it: it is no part of a session.
    pub(super) fn modern(&self) {
        self.modern.set(true);
    }

    /// A rule may have refused it; its error alone.
    pub(super) fn ruled(&self, (error, reason): (Error, Option<Reason>)) -> Error {
        if let Some(reason) = reason {
            self.ruled_out(reason);
        }
        error
    }

    /// A rule refused it.
    pub(super) fn ruled_out(&self, reason: Reason) {
        self.reason.set(Some(reason));
    }

    /// A rule of that backend refused it, to which it does not come.
    pub(super) fn ruled_out_by(&self, backend: BackendId, reason: Reason) {
        self.backend.set(Some(backend));
        self.ruled_out(reason);
    }

    /// It needs no answer, or was answered without an error.
    pub(super) fn well(&self) {
        self.ended.set(Some((Outcome::Ok, None)));
    }

    /// A whole answer.
    pub(super) fn answered(&self, answer: &[u8]) {
        let (outcome, code) = outcome_of(answer);
        let denied = outcome == Outcome::Error && self.reason.get() == Some(Reason::Filter);
        self.ended.set(Some((if denied { Outcome::Denied } else { outcome }, code)));
    }

    /// It failed, or was refused.
    pub(super) fn failed(&self, error: &Error) {
        let kind = error.kind();
        if self.reason.get().is_none() {
            let ejected = self.handle.get().is_some_and(|handle| handle.trail().was_ejected());
            self.reason.set(reason_of(kind, ejected));
        }
        let outcome = match self.reason.get() {
            Some(Reason::Filter | Reason::Auth) => Outcome::Denied,
            Some(_) => Outcome::Refused,
            None if (400..500).contains(&kind.status()) => Outcome::Refused,
            None => Outcome::Error,
        };
        let code = (kind != Kind::Cancelled).then_some(kind.code());
        self.ended.set(Some((outcome, code)));
    }

    /// Accounts for the message, once, at the end of its exchange.
    pub(super) fn account(&self, world: &World, ends: &Ends<'_>) {
        let detail = self.detail.get();
        let audits = world.plan.watch.audit.is_some();
        if self.what.get() == What::None || !(world.meter.enabled() || audits || detail.is_some()) {
            return;
        }
        let total = rt::time::exact().saturating_duration_since(self.began);
        if let Some(twins) = self.twins.get() {
            // What the proxy refused has no end that a backend gave it, nor has what was cancelled.
            let compared = match self.ended.get() {
                Some((Outcome::Denied | Outcome::Refused, _) | (Outcome::Error, None)) => None,
                ended => ended.map(|(outcome, _)| outcome),
            };
            twins.called(world, compared);
        }
        // Without an end its client left before there was one.
        let (outcome, code) = self.ended.get().unwrap_or((Outcome::Error, None));
        if world.meter.enabled() {
            self.measure(world, total, outcome);
        }
        if audits && let Some(out) = &world.lines {
            let text = self.line(world, ends, total, outcome, code);
            let weight = text.len();
            if !out.put(Line { is_access: false, text }, weight) {
                world.meter.metrics().lose(Lost::Line, 1);
            }
        }
        if let Some(detail) = detail
            && let (Some(tracing), Some(out)) = (&detail.tracing, &world.spans)
        {
            let handle = self.handle.get().map(|handle| &**handle);
            let told = super::trace::Told {
                method: self.method.get(),
                session: detail.record.get().map(|record| &**record),
                id: detail.id.as_deref(),
                own_name: detail.own_name.borrow().clone(),
                peer: ends.peer,
                began: self.began,
                total,
                outcome,
                code,
            };
            let report = tracing.report(world, detail, handle, &told);
            if let Some(report) = report {
                let spans = 1 + report.attempts.len() as u64;
                if !out.put(report, spans as usize) {
                    world.meter.metrics().lose(Lost::Span, spans);
                }
            }
        }
    }

    /// All is accounted for.
    pub(super) fn retire(mut self) {
        if let Some(handle) = self.handle.take() {
            CallHandle::retire(handle);
        }
    }

    /// The line of an HTTP request in the access log.
    pub(super) fn access(&self, world: &World, head: &RequestHead, ends: &Ends<'_>, status: u16) {
        let Some(out) = &world.lines else { return };
        let total = rt::time::exact().saturating_duration_since(self.began);
        let method = format!("{:?}", head.method()).to_ascii_uppercase();
        let mut line = Object::new();
        line.text("ts", Some(&clock::rfc3339(clock::unix_now().saturating_sub(total))))
            .text("client", Some(&ends.peer.to_string()))
            .text("principal", ends.principal)
            .text("http_method", Some(&method))
            .text("path", Some(head.path()))
            .number("status", Some(status.into()).filter(|status| *status != 0))
            .millis("duration_ms", total)
            .number("bytes_in", Some(self.bytes_in.get() as i64))
            .number("bytes_out", Some(ends.bytes_out as i64));
        let text = line.finish();
        let weight = text.len();
        if !out.put(Line { is_access: true, text }, weight) {
            world.meter.metrics().lose(Lost::Line, 1);
        }
    }

    /// The worker whose child or event stream was asked, if one was.
    pub(super) fn worker(&self) -> Option<WorkerId> {
        self.handle.get().and_then(|handle| handle.trail().worker())
    }

    /// The backend that was called, whoever answers.
    pub(super) fn called_backend(&self) -> Option<BackendId> {
        self.backend.get()
    }

    /// The backend that answered, or that was to.
    fn backend(&self) -> Option<BackendId> {
        let asked = self.handle.get().and_then(|handle| handle.trail().backend());
        asked.or(self.backend.get())
    }

    fn measure(&self, world: &World, total: Duration, outcome: Outcome) {
        let meter = &world.meter;
        let backend = self.backend().unwrap_or(PROXY);
        if self.what.get() == What::OneWay {
            return;
        }
        let method = self.method.get().index();
        meter.add(|m| &m.requests, [backend, method, outcome as usize], 1);
        meter.time(|m| &m.durations, [backend, method], total);
        let mut overhead = total;
        if let Some(handle) = self.handle.get() {
            let trail = handle.trail();
            overhead = trail.overhead(self.began, total);
            for Share { backend, attempts, hedges } in trail.shares() {
                // Of attempts side by side the first one may be the one that was not made.
                let others = attempts.saturating_sub(hedges);
                let first = others.min(1);
                for (kind, count) in [
                    (AttemptKind::First, first),
                    (AttemptKind::Retry, others - first),
                    (AttemptKind::Hedge, hedges),
                ] {
                    if count > 0 {
                        meter.add(|m| &m.attempts, [backend, kind as usize], count.into());
                    }
                }
            }
        }
        meter.time(|m| &m.overhead, [], overhead);
        if let Some(reason) = self.reason.get() {
            meter.add(|m| &m.refused, [backend, reason as usize], 1);
        }
        if let Some(mut row) = self.tool.get() {
            if self.backend.get().is_some_and(|called| called != backend) {
                // Another one has answered: its tool of the same name.
                let name = row.and_then(|row| meter.tool_name(row));
                row = name
                    .and_then(|name| meter.tool(backend, name, || exists(world, backend, name)));
            }
            meter.tool_call(backend, row, outcome);
        }
    }

    /// Its line in the audit log.
    fn line(
        &self,
        world: &World,
        ends: &Ends<'_>,
        total: Duration,
        outcome: Outcome,
        code: Option<i32>,
    ) -> Vec<u8> {
        let none = Detail::default();
        let detail = self.detail.get().map_or(&none, |detail| &**detail);
        let record = detail.record.get();
        let attempts = self.handle.get().map_or(0, |handle| handle.trail().attempts());
        let backend = self.backend().and_then(|id| world.plan.backends.get(id));
        let backend = backend.map(|backend| &*backend.name);
        let own = detail.own_name.borrow();
        let mut line = Object::new();
        line.text("ts", Some(&clock::rfc3339(clock::unix_now().saturating_sub(total))))
            .raw("request_id", detail.id.as_deref())
            .text("client", Some(&ends.peer.to_string()))
            .text("principal", ends.principal)
            .text("session", record.map(|record| record.id.public()).as_deref())
            .text("era", if self.modern.get() { Some("modern") } else { record.map(|_| "legacy") })
            .text("method", detail.method.as_deref())
            .text("target", detail.target.as_deref())
            .text("backend", backend)
            .text("own_name", own.as_deref())
            .text("outcome", Some(outcome.as_str()))
            .number("code", code.map(i64::from))
            .millis("duration_ms", total)
            .number("attempts", Some(attempts.into()))
            .text("cache", self.used.get().map(Use::as_str))
            .number("bytes_in", Some(self.bytes_in.get() as i64))
            .number("bytes_out", Some(ends.bytes_out as i64));
        if world.plan.watch.audit.as_ref().is_some_and(|audit| audit.arguments) {
            line.raw("arguments", detail.arguments.as_deref());
        }
        line.finish()
    }
}

impl Detail {
    /// The name that the backend gets.
    pub(super) fn sent_as(&self, name: &str) {
        *self.own_name.borrow_mut() = Some(cut(name).to_owned());
    }

    fn of(
        world: &World,
        message: &[u8],
        envelope: &Envelope,
        context: Option<&(Vec<u8>, Vec<u8>)>,
    ) -> Detail {
        let target = envelope.name.or(envelope.uri).and_then(|span| span.text(message));
        let wanted = world.plan.watch.audit.as_ref().is_some_and(|audit| audit.arguments);
        let short = |span: &jsonrpc::Span| span.len() <= limits::LINE_ARGUMENTS_BYTES_MAX;
        let arguments = envelope.arguments.filter(|span| wanted && short(span));
        Detail {
            id: envelope.id.map(|id| id.of(message).to_vec()),
            method: envelope.method_name(message).map(|name| cut(&name).to_owned()),
            target: target.map(|text| cut(&text).to_owned()),
            arguments: arguments.map(|span| span.of(message).to_vec()),
            tracing: Tracing::of(world, message, envelope, context),
            ..Detail::default()
        }
    }
}

/// The row of a tool that is called for the first time, or by an unusual spelling.
fn new_tool(world: &World, backend: BackendId, raw: &[u8]) -> Option<ToolRow> {
    let name = jsonrpc::unquote(raw)?;
    world.meter.tool(backend, &name, || exists(world, backend, &name))
}

/// Whether the catalogue has a tool.
fn exists(world: &World, backend: BackendId, name: &str) -> bool {
    let catalog = world.catalog.borrow();
    catalog.slice(backend).is_some_and(|slice| slice.tools.find(name).is_some())
}

/// Why an error of the proxy's own is a refusal.
fn reason_of(kind: Kind, ejected: bool) -> Option<Reason> {
    Some(match kind {
        Kind::RateLimited => Reason::Rate,
        Kind::Crowded => Reason::Concurrency,
        Kind::Resting if ejected => Reason::Ejected,
        Kind::Resting => Reason::Breaker,
        Kind::BodyTooLarge => Reason::Size,
        Kind::Capacity | Kind::Busy => Reason::Capacity,
        _ if matches!(kind.status(), 401 | 403) => Reason::Auth,
        _ => return None,
    })
}

/// What a whole answer says of itself.
pub(super) fn outcome_of(answer: &[u8]) -> (Outcome, Option<i32>) {
    // The end of `"error"` and of `"isError"`: nearly every answer has neither, and one fast search
    // finds that out.
    static MARK: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"rror\""));
    if MARK.find(answer).is_none() {
        return (Outcome::Ok, None);
    }
    let Ok(envelope) = jsonrpc::scan(answer) else { return (Outcome::Error, None) };
    if let Some(error) = envelope.error.map(|span| span.of(answer)) {
        let code = walk::member(error, "code");
        let code = code.and_then(|code| std::str::from_utf8(code.of(error)).ok()?.parse().ok());
        return (Outcome::Error, code);
    }
    (if envelope.tool_error { Outcome::ToolError } else { Outcome::Ok }, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_of_answers() {
        for (answer, outcome, code) in [
            (r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, Outcome::Ok, None),
            (r#"{"jsonrpc":"2.0","id":1,"result":{"isError":true}}"#, Outcome::ToolError, None),
            (r#"{"jsonrpc":"2.0","id":1,"result":{"isError":false}}"#, Outcome::Ok, None),
            (r#"{"jsonrpc":"2.0","id":1,"result":{"a":{"isError":true}}}"#, Outcome::Ok, None),
            (r#"{"jsonrpc":"2.0","id":1,"result":{"t":"\"isError\":true"}}"#, Outcome::Ok, None),
            (r#"{"jsonrpc":"2.0","id":1,"result":{"error":{"code":1}}}"#, Outcome::Ok, None),
            (
                r#"{"jsonrpc":"2.0","id":1,"error":{"message":"m","code":-32602}}"#,
                Outcome::Error,
                Some(-32602),
            ),
        ] {
            assert_eq!(outcome_of(answer.as_bytes()), (outcome, code), "{answer}");
        }
    }

    #[test]
    fn errors_of_our_own() {
        for (kind, outcome, reason) in [
            (Kind::Parse, Outcome::Refused, None),
            (Kind::SessionNotFound, Outcome::Refused, None),
            (Kind::Forbidden, Outcome::Denied, Some(Reason::Auth)),
            (Kind::RateLimited, Outcome::Refused, Some(Reason::Rate)),
            (Kind::Resting, Outcome::Refused, Some(Reason::Breaker)),
            (Kind::BodyTooLarge, Outcome::Refused, Some(Reason::Size)),
            (Kind::UnknownTool, Outcome::Error, None),
            (Kind::Lost, Outcome::Error, None),
        ] {
            let facts = Facts::new(Instant::now());
            facts.failed(&Error::new(kind));
            let (seen, code) = facts.ended.get().unwrap();
            assert_eq!((seen, code), (outcome, Some(kind.code())), "{kind:?}");
            assert_eq!(facts.reason.get(), reason, "{kind:?}");
        }
        let facts = Facts::new(Instant::now());
        facts.ruled_out(Reason::Filter);
        facts.failed(&Error::new(Kind::UnknownTool));
        assert_eq!(facts.ended.get(), Some((Outcome::Denied, Some(-32602))));
    }
}
