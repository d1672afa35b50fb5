//! Owns: a call of a backend for which others may stand in (`canary_of`, `failover_for`), as each of
//! them is to get it.
//! Never: who is asked when (`backend`).
//! Next: `mirror`, and others only hear.
//!
//! To clients there is only the backend that they called: its names, its lists, its rules. Another one
//! gets the call as that one would, and then through rules of its own; what these refuse is not meant
//! for it.

use std::rc::Rc;
use std::sync::Arc;

use super::Ask;
use super::call::{Who, shape};
use super::facts::Detail;
use crate::backend::{Call, CallHandle, Caller, Lead, Prepared, Replies, Viewer};
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, Envelope, Span};
use crate::mcp::envelope;
use crate::mcp::hints::Hints;
use crate::mcp::method::Method;
use crate::mcp::session::{Authorization, SessionRecord};
use crate::middleware::reuse::Reusable;
use crate::middleware::route::Route;
use crate::plan::BackendId;
use crate::world::World;

/// What the calls of all of them are made from.
pub(super) struct Origin {
    pub(super) world: Rc<World>,
    pub(super) method: Method,
    pub(super) session: Option<Arc<SessionRecord>>,
    pub(super) modern: Option<Rc<Caller>>,
    /// What the caller showed, for backends that are to get it.
    pub(super) authorization: Option<Arc<Authorization>>,
    /// As the rules of the backend that was called have left it.
    pub(super) message: Vec<u8>,
    pub(super) envelope: Envelope,
    pub(super) detail: Option<Rc<Detail>>,
    /// The only one that is asked: there the call has begun.
    pub(super) only: Option<BackendId>,
    /// Of the whole call.
    pub(super) handle: Rc<CallHandle>,
}

/// Whether others may answer a call of a backend. What is to become a task is not for them: what is
/// said of it later goes to the one that was called.
pub(super) fn of<'w>(
    world: &'w World,
    backend: BackendId,
    envelope: &Envelope,
) -> Option<&'w Route> {
    world.plan.backends[backend].around.route.as_ref().filter(|_| !envelope.task)
}

/// Sends a call to whichever backend is to answer it; `call` is the one for the backend that was
/// called, and `reuse` what may be done with its answer.
///
/// # Errors
/// As for [`Backends::call_any`](crate::backend::Backends::call_any).
pub(super) async fn send(
    origin: Origin,
    route: &Route,
    mut call: Call,
    mut reuse: Option<(Box<Reusable>, Lead)>,
) -> Result<Replies> {
    let (world, handle, own) = (origin.world.clone(), origin.handle.clone(), call.backend);
    call.handle = CallHandle::part(&handle, origin.shown_to(own));
    let only = origin.only;
    let canary = only.or_else(|| world.backends.canary(route));
    if canary.is_some_and(|canary| canary != own)
        && let Some((_, lead)) = &mut reuse
    {
        // Mirrors hear it whoever answers.
        std::mem::replace(lead, Box::new(|| {}))();
    }
    let (origin, mut first) = (Rc::new(origin), Some(Prepared::Call(call, reuse)));
    let prepare = move |backend| {
        let (origin, first) = (origin.clone(), first.take_if(|_| backend == own));
        let made: std::pin::Pin<Box<dyn Future<Output = Result<Prepared>>>> =
            Box::pin(async move {
                match first {
                    Some(first) => Ok(first),
                    None => origin.prepare(backend).await,
                }
            });
        made
    };
    world.backends.call_any(own, canary, only.is_some(), &handle, Box::new(prepare)).await
}

/// What stands before the name of a backend in a state, and between that and the backend's own state.
/// No backend's name has it.
const MARK: char = '~';

/// An answer that asks for input (2026-07-28), with the name of the backend in its state, if that is
/// another one than the one that was called: there the call has to go on. One without a state gets
/// one, and a state that looks like one with a name gets its backend's too, so that none is mistaken.
pub(super) fn marked(world: &World, ask: &Ask, backend: BackendId, answer: Vec<u8>) -> Vec<u8> {
    let Some(called) = ask.facts.called_backend() else { return answer };
    if called == backend && memchr::memmem::find(&answer, b"requestState").is_none() {
        return answer;
    }
    let edit = || {
        let name = &world.plan.backends.get(backend)?.name;
        let result = jsonrpc::scan(&answer).ok()?.result?;
        let raw = result.of(&answer);
        let at =
            |span: Span| Span { start: result.start + span.start, end: result.start + span.end };
        let mut quoted = Vec::new();
        if let Some(state) = envelope::member(raw, "requestState") {
            let own = state.text(raw)?;
            if called == backend && !own.starts_with(MARK) {
                return None;
            }
            jsonrpc::quote(&format!("{MARK}{name}{MARK}{own}"), &mut quoted);
            return Some((at(state), quoted));
        }
        let asks = envelope::member(raw, "resultType")?.of(raw) == b"\"input_required\"";
        if called == backend || !asks {
            return None;
        }
        // Before the type, as it is not the only member.
        quoted.extend_from_slice(b"\"requestState\":");
        jsonrpc::quote(&format!("{MARK}{name}"), &mut quoted);
        quoted.push(b',');
        Some((at(Span { start: 1, end: 1 }), quoted))
    };
    match edit() {
        Some((span, text)) => jsonrpc::splice(&answer, &[(span, &text)]),
        None => answer,
    }
}

/// Whether an answer may have to be marked, so that it is needed whole.
pub(super) fn may_be_marked(world: &World, ask: &Ask, backend: BackendId) -> bool {
    ask.facts.called_backend().is_some_and(|called| called != backend)
        && world.backends.is_modern(backend)
}

/// Whether a raw state has a backend's name in it.
pub(super) fn is_marked(state: &[u8]) -> bool {
    jsonrpc::unquote(state).is_some_and(|state| state.starts_with(MARK))
}

/// The backend at which a call of `called` goes on, whose name is taken out of the state; `None` = the
/// call begins. What a client says to a question is for nobody but who has asked it.
///
/// # Errors
/// The name is neither of `called` nor of one that stands behind it: a reload may have removed that.
pub(super) fn unmarked(
    world: &World,
    called: BackendId,
    route: Option<&Route>,
    message: &mut Vec<u8>,
    envelope: &mut Envelope,
) -> Result<Option<BackendId>> {
    let Some(params) = envelope.params else { return Ok(None) };
    let raw = params.of(message);
    let Some(span) = envelope::member(raw, "requestState") else {
        return Ok(envelope::member(raw, "inputResponses").map(|_| called));
    };
    if !is_marked(span.of(raw)) {
        return Ok(Some(called));
    }
    let state = span.text(raw).unwrap_or_default();
    let marked = state.strip_prefix(MARK).unwrap_or_default();
    let (name, own) = match marked.split_once(MARK) {
        Some((name, own)) => (name, Some(own)),
        None => (marked, None),
    };
    let is_it = |id: &BackendId| world.plan.backends.get(*id).is_some_and(|b| *b.name == *name);
    let behind = route.into_iter().flat_map(Route::all);
    let found = std::iter::once(called).chain(behind).find(is_it).ok_or_else(|| {
        let text = "requestState is of a backend that is not asked any more: call again without it";
        Error::new(Kind::BadEnvelope).context(text)
    })?;
    let (span, text) = match own {
        Some(own) => {
            let mut quoted = Vec::with_capacity(own.len() + 2);
            jsonrpc::quote(own, &mut quoted);
            let (start, end) = (params.start + span.start, params.start + span.end);
            (Span { start, end }, quoted)
        }
        None => (params, envelope::rebuilt(raw, &["requestState"], &[])),
    };
    *message = jsonrpc::splice(message, &[(span, &text)]);
    *envelope = jsonrpc::scan(message)
        .map_err(|fault| Error::new(fault.kind()).cause("after a state was unmarked"))?;
    Ok(Some(found))
}

impl Origin {
    /// What a backend gets of what the caller showed.
    fn shown_to(&self, backend: BackendId) -> Option<Arc<Authorization>> {
        let forwards = self.world.plan.backends.get(backend).is_some_and(|plan| plan.forwards());
        self.authorization.clone().filter(|_| forwards)
    }

    /// The call for a backend other than the one that was called.
    async fn prepare(&self, backend: BackendId) -> Result<Prepared> {
        let (world, method) = (&self.world, self.method);
        // A reload may have brought one that this exchange knows nothing of.
        let gone = || Error::new(Kind::Resting);
        let plan = world.plan.backends.get(backend).ok_or_else(gone)?;
        let (mut message, mut envelope) = (self.message.clone(), self.envelope);
        let look = |reusable: &Reusable| world.backends.held(backend, reusable);
        let who = match &self.session {
            Some(record) => Who::of(record, &look),
            None => {
                let viewer = self.modern.as_deref().map(Viewer::Caller);
                Who { viewer, ..Who::fresh() }
            }
        };
        let shaped = shape(world, &who, plan, None, method, &mut message, &mut envelope);
        let shaped = shaped.await.map_err(|(error, _)| error)?;
        let id = envelope.id.ok_or_else(|| Error::new(Kind::InvalidRequest))?;
        if let Some(held) = shaped.held {
            return Ok(Prepared::Held(held.to(id.of(&message))));
        }
        let handle = CallHandle::part(&self.handle, self.shown_to(backend));
        if let Some(detail) = &self.detail {
            detail.sent_as(&shaped.own);
            if let Some(tracing) = &detail.tracing {
                tracing.pass_on(&mut message, &mut envelope, &handle)?;
            }
        }
        let tool_call = method == Method::ToolsCall;
        let call = Call {
            backend,
            session: self.session.clone(),
            modern: self.modern.clone(),
            tool_call,
            safe: !tool_call || Hints::repeatable(shaped.hints),
            tool: Some(shaped.own).filter(|_| tool_call),
            again: false,
            id: envelope.id.unwrap_or(id),
            progress_token: envelope.progress_token,
            body: message,
            timeout: if tool_call { plan.call_timeout } else { plan.request_timeout },
            handle,
        };
        let reusable = shaped.reusable.filter(|_| self.session.is_some() && !plan.forwards());
        let nobody: fn() -> Lead = || Box::new(|| {});
        Ok(Prepared::Call(call, reusable.map(|reusable| (reusable, nobody()))))
    }
}
