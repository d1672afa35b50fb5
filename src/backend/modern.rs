//! Owns: calls where one side, or both, is of the request era.
//! Never: calls of sessions to backends with sessions: those never come here (`attempt`).
//! Next: `rounds`, what such a backend asks for in mid-call.
//!
//! MCP 2026-07-28: a request stands alone. What the revision of a hop asks for is put into a request
//! or taken out of it here, head and body together; all else keeps its bytes.

use std::rc::Rc;
use std::sync::Arc;

use super::attempt::{self, Ended};
use super::entry::{self, Entry};
use super::failure::Failure;
use super::http::{HttpReplies, Request};
use super::leg::Leg;
use super::names::Own;
use super::rounds::Crossed;
use super::{Backends, Call, Wire, aside, bridge, line, listen, supervise, wishes};
use crate::error::Kind;
use crate::jsonrpc::{self, Envelope, Raw};
use crate::mcp::envelope::{self, key};
use crate::mcp::header;
use crate::mcp::logging::Level;
use crate::mcp::method::Method;
use crate::mcp::mirrored;
use crate::mcp::session::Authorization;
use crate::mcp::task_ids::{self, TaskIds};
use crate::plan::{BackendId, Isolation};
use crate::rt;

/// Who sent a request of the request era.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Who it is, where that is known.
    pub principal: Option<Arc<str>>,
    /// What it showed, for backends that are to get it.
    pub authorization: Option<Arc<Authorization>>,
    /// What it can do: a JSON object, as it was sent.
    pub capabilities: Box<str>,
    /// Its name: a JSON object, as it was sent.
    pub client: Box<str>,
    /// Fields to pass on to a backend over HTTP: whole lines.
    pub lines: String,
    /// It declares the tasks extension.
    pub tasks: bool,
}

/// One request, by whichever way its backend is spoken to.
pub(super) async fn wire(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    mut call: Call,
) -> Result<Wire, Ended> {
    if !entry.era.get().is_modern() {
        return down(backends, entry, call).await;
    }
    let crossed = call.modern.is_none();
    if crossed {
        let session = call.session.as_deref();
        let capabilities = session.map_or("{}", |session| &session.capabilities);
        let client = session.map_or(UNNAMED, |session| &session.client_info);
        let carried = envelope::carried(capabilities.as_bytes(), &envelope::CARRIED);
        let carried = carried.as_deref().map(String::from_utf8_lossy);
        let capabilities = carried.as_deref().unwrap_or(capabilities);
        let level = session.and_then(|session| session.level());
        let level = level.map(|level| format!("\"{}\"", level.as_str()));
        let with = envelope::members(capabilities, client, level.as_deref());
        let message = scan(&call.body)?;
        if !envelope::may_be_wrapped(&call.body, &message) {
            return Err(Failure::new(Kind::InvalidParams, "").note("_meta is no object").into());
        }
        call.body = envelope::wrap(&call.body, &message, &with);
    }
    if !crossed {
        return up(backends, entry, call, false).await;
    }
    // Kept: with what its backend asks for it is sent again.
    let sent = Call {
        body: call.body.clone(),
        session: call.session.clone(),
        tool: None,
        modern: None,
        handle: call.handle.clone(),
        ..call
    };
    let wire = up(backends, entry, sent, true).await?;
    Ok(Wire::Crossed(Box::new(Crossed::new(backends, entry, call, wire))))
}

/// A client that does not name itself.
const UNNAMED: &str = r#"{"name":"unknown","version":"0"}"#;

/// Reads a message of ours.
pub(super) fn scan(body: &[u8]) -> Result<Envelope, Failure> {
    // It was scanned before, and what was put into it is sound.
    jsonrpc::scan(body).map_err(|fault| Failure::new(Kind::Internal, fault.text()))
}

/// To a backend of the request era. A call that has `crossed` is the proxy's own there: its answer
/// is whole, and each time that it is sent it has another id.
pub(super) async fn up(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    mut call: Call,
    crossed: bool,
) -> Result<Wire, Ended> {
    let message = scan(&call.body)?;
    let id = message.id.ok_or_else(|| Failure::new(Kind::Internal, "a request without an id"))?;
    (call.id, call.progress_token) = (id, message.progress_token);
    if let entry::Wire::Stdio(_) = &entry.wire {
        return line::call(backends, entry, call).await.map(Wire::Line);
    }
    let lines = lines_of(entry, &call, &message);
    let leg = Rc::new(Leg::modern(entry.http().0, &lines));
    // What it says of who else may see a resource is looked at where not everybody may see all.
    let is_read = message.method_name(&call.body).as_deref() == Some("resources/read");
    let whole = crossed
        || (is_read && backends.plan.borrow().access.is_some())
        || names_task(backends, entry, &call, &message);
    let request = if crossed && call.again {
        let own = Own::of(&call.body, call.id, call.progress_token);
        let rename = Some((call.id, call.progress_token, own));
        // Among ids of the client's own, which are numbers as a rule.
        let asked = Raw::new(format!("\"again-{}\"", backends.number()).as_bytes());
        Request { body: &call.body, rename, asked, whole: true, caller: None, renewed: false }
    } else {
        // A stream of its own: its id and token are unique there as they are.
        let asked = Raw::new(call.id.of(&call.body));
        Request { body: &call.body, rename: None, asked, whole, caller: None, renewed: false }
    };
    let sent = attempt::sent(backends, entry, &leg, &request, &call.handle, call.safe).await;
    if let Err(Ended::Failed(failure)) = &sent
        && failure.session_lost
    {
        // It speaks of sessions: it is not the server that it was.
        backends.hint(entry, supervise::LOST);
    }
    if let Ok(replies) = &sent
        && replies.is_of_unknown_revision()
    {
        // The caller's revision is spoken here: that another is needed there is not its concern.
        backends.hint(entry, supervise::LOST);
        return Err(Failure::new(Kind::BadAnswer, "it refuses the revision").into());
    }
    sent.map(Wire::Http)
}

/// Whether the answer may name a task, by another id than the caller is to read.
fn names_task(backends: &Backends, entry: &Entry, call: &Call, message: &Envelope) -> bool {
    let Some(caller) = call.modern.as_ref().filter(|caller| caller.tasks) else { return false };
    let may = match call.tool_call {
        true => offers_tasks(entry) == Some(true),
        false => task_ids::asked(&call.body, message).is_some(),
    };
    may && task_ids::differ(&backends.plan.borrow(), caller.principal.as_deref(), entry.id)
}

/// Whether a backend has the tasks extension; `None`: it has not said yet what it has.
fn offers_tasks(entry: &Entry) -> Option<bool> {
    let slice = entry.slice.borrow();
    let slice = slice.as_ref()?;
    Some(entry.era.get().is_modern() && slice.offers_tasks())
}

impl Backends {
    /// Whether a backend has the tasks extension; `None`: it has not said yet what it has.
    pub fn offers_tasks(&self, backend: BackendId) -> Option<bool> {
        offers_tasks(&*self.entry(backend)?)
    }

    /// Whether no backend has the tasks extension, as far as each has said what it has.
    pub fn lack_tasks(&self) -> bool {
        self.entries().iter().all(|entry| offers_tasks(entry) == Some(false))
    }

    /// Ids of tasks, as callers of the request era have them.
    pub fn task_ids(&self) -> &TaskIds {
        self.board.task_ids()
    }
}

/// The fields that repeat what stands in a request.
fn lines_of(entry: &Entry, call: &Call, message: &Envelope) -> String {
    let body = &call.body[..];
    let name = message.method_name(body).unwrap_or_default();
    let method = Method::parse(name.as_bytes());
    let about = match method {
        Method::ToolsCall | Method::PromptsGet => message.name,
        Method::ResourcesRead => message.uri,
        Method::TasksGet | Method::TasksUpdate | Method::TasksCancel => {
            task_ids::asked(body, message)
        }
        _ => None,
    };
    let about = about.and_then(|span| span.text(body));
    let mut lines = lines(&name, about.as_deref());
    let slice = entry.slice.borrow();
    let known = match (method, &about, &*slice) {
        (Method::ToolsCall, Some(tool), Some(slice)) => slice.tools.mirrored(tool),
        _ => &[],
    };
    let arguments = message.arguments.map(|span| span.of(body));
    mirrored::write(known, arguments, &mut lines);
    // Of an argument that the caller does not see, only what is sent is said.
    let others = call.modern.as_ref().map_or("", |caller| &caller.lines);
    for line in others.split_inclusive("\r\n") {
        let name = line.split(':').next().unwrap_or_default();
        if !known.iter().any(|one| one.is(name.as_bytes())) {
            lines.push_str(line);
        }
    }
    lines
}

/// The fields that every request has.
pub(super) fn lines(method: &str, about: Option<&str>) -> String {
    let mut lines = String::with_capacity(96);
    mirrored::line(header::METHOD, method, &mut lines);
    if let Some(about) = about {
        mirrored::line(header::NAME, about, &mut lines);
    }
    lines
}

/// The log messages that a request asks for.
fn level(body: &[u8], message: &Envelope) -> Option<Level> {
    let meta = message.meta?.of(body);
    Level::parse(&envelope::member(meta, key::LOG_LEVEL)?.text(meta)?)
}

/// To a backend of the session era, from a caller without one.
async fn down(backends: &Rc<Backends>, entry: &Rc<Entry>, mut call: Call) -> Result<Wire, Ended> {
    let sent = scan(&call.body)?;
    let level = level(&call.body, &sent);
    call.body = envelope::unwrap(&call.body, &sent);
    if sent.task {
        // It would make a task (2025-11-25) that this caller has no way to follow.
        call.body = without_task(&call.body)?;
    }
    let message = scan(&call.body)?;
    let id = message.id.ok_or_else(|| Failure::new(Kind::Internal, "a request without an id"))?;
    (call.id, call.progress_token) = (id, message.progress_token);
    if let (Isolation::Session, Some(caller)) = (entry.plan.isolation, &call.modern) {
        let in_use = bridge::record(backends, entry, caller)?;
        if let Some(level) = level {
            let told = wishes::want_level(backends, entry, &in_use.record, level);
            call.handle.watch(Box::pin(told)).await?;
        }
        call.session = Some(in_use.record.clone());
        call.handle.keep(in_use);
    }
    let over_line = match &entry.wire {
        entry::Wire::Stdio(_) => true,
        entry::Wire::Http(http) => http.is_sse.get(),
    };
    if over_line {
        return line::call(backends, entry, call).await.map(Wire::Line);
    }
    let Some(session) = call.session.clone().filter(|session| !session.class.is_empty()) else {
        return posted(backends.clone(), entry.clone(), call).await.map(Wire::Http);
    };
    // It may be asked something, also beside the stream of the call.
    let handle = call.handle.clone();
    let sent = posted(backends.clone(), entry.clone(), call);
    Ok(Wire::Aside(aside::start(entry, &session, &handle, sent)))
}

/// A request whose call is not to become a task.
fn without_task(body: &[u8]) -> Result<Vec<u8>, Failure> {
    let Some(params) = scan(body)?.params else { return Ok(body.to_vec()) };
    let rest = envelope::rebuilt(params.of(body), &["task"], &[]);
    Ok(jsonrpc::splice(body, &[(params, &rest)]))
}

/// Sends such a request over HTTP. A drop abandons it.
async fn posted(
    backends: Rc<Backends>,
    entry: Rc<Entry>,
    call: Call,
) -> Result<rt::Place<HttpReplies>, Ended> {
    // Several calls share the session, and each may have chosen the same id.
    let own = Own::of(&call.body, call.id, call.progress_token);
    let mut request = Request {
        body: &call.body,
        rename: Some((call.id, call.progress_token, own)),
        asked: Raw::number(backends.number()),
        // Its result lacks what its caller's revision asks for.
        whole: true,
        caller: None,
        renewed: false,
    };
    let session = call.session.as_ref();
    let mut lost = None;
    loop {
        let leg = attempt::open(&backends, &entry, session, lost, &call.handle).await?;
        if let Some(opened) = session.and_then(|session| listen::opened(&entry, session.id)) {
            // A question without a stream to put it on would be lost (2025-11-25, Transports).
            call.handle.watch(Box::pin(opened)).await?;
        }
        match attempt::sent(&backends, &entry, &leg, &request, &call.handle, call.safe).await {
            // Refused, so not executed: once more with a new session.
            Err(Ended::Failed(failure)) if failure.session_lost && lost.is_none() => {
                backends.hint(&entry, supervise::LOST);
                lost = Some(leg.generation);
                request.renewed = true;
            }
            sent => return sent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_in_a_field_as_it_may() {
        assert_eq!(lines("tools/call", Some("a")), "Mcp-Method: tools/call\r\nMcp-Name: a\r\n");
        assert_eq!(
            lines("tools/call", Some("é")),
            "Mcp-Method: tools/call\r\nMcp-Name: =?base64?w6k=?=\r\n"
        );
    }
}
