//! Owns: a call of a backend for which others may stand in (`canary_of`, `failover_for`), as each of
//! them is to get it.
//! Never: who is asked when (`backend`).
//! Next: `relay`, the way back.
//!
//! To clients there is only the backend that they called: its names, its lists, its rules. Another one
//! gets the call as that one would, and then through rules of its own; what these refuse is not meant
//! for it.

use std::rc::Rc;
use std::sync::Arc;

use super::Ask;
use super::call::{Who, shape};
use super::facts::Detail;
use crate::backend::{Call, CallHandle, Caller, Lead, Prepared, Replies};
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
    if canary.is_some()
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

/// What stands before the state of a call that goes on at another backend than the one that was
/// called; no backend's name has it.
const MARK: char = '~';

/// An answer that asks for input (2026-07-28), with the name of the backend in its state, if that is
/// another one than the one that was called: there the call has to go on.
pub(super) fn marked(world: &World, ask: &Ask, backend: BackendId, answer: Vec<u8>) -> Vec<u8> {
    if ask.facts.called_backend().is_none_or(|called| called == backend) {
        return answer;
    }
    let state = || {
        let result = jsonrpc::scan(&answer).ok()?.result?;
        let state = envelope::member(result.of(&answer), "requestState")?;
        let own = state.text(result.of(&answer))?;
        let whole = format!("{MARK}{}{MARK}{own}", world.plan.backends.get(backend)?.name);
        let mut quoted = Vec::with_capacity(whole.len() + 2);
        jsonrpc::quote(&whole, &mut quoted);
        let (start, end) = (result.start + state.start, result.start + state.end);
        Some((Span { start, end }, quoted))
    };
    match state() {
        Some((span, quoted)) => jsonrpc::splice(&answer, &[(span, &quoted)]),
        None => answer,
    }
}

/// Whether a raw state has such a name in it.
pub(super) fn is_marked(state: &[u8]) -> bool {
    state.get(1) == Some(&(MARK as u8))
}

/// The backend at which a call goes on; its name is taken out of the state.
///
/// # Errors
/// The name is not one of those that stand behind the one that was called.
pub(super) fn unmarked(
    world: &World,
    route: &Route,
    message: &mut Vec<u8>,
    envelope: &mut Envelope,
) -> Result<Option<BackendId>> {
    let Some(params) = envelope.params else { return Ok(None) };
    let Some(span) = envelope::member(params.of(message), "requestState") else { return Ok(None) };
    let span = Span { start: params.start + span.start, end: params.start + span.end };
    if !is_marked(span.of(message)) {
        return Ok(None);
    }
    let unknown = || Error::new(Kind::BadEnvelope).context("requestState is unknown");
    let state = span.text(message).ok_or_else(unknown)?.into_owned();
    let mut parts = state.splitn(3, MARK).skip(1);
    let (name, own) = parts.next().zip(parts.next()).ok_or_else(unknown)?;
    let is_it = |id: &BackendId| world.plan.backends.get(*id).is_some_and(|b| *b.name == *name);
    let found = route.all().find(is_it);
    let found = found.ok_or_else(unknown)?;
    let mut quoted = Vec::with_capacity(own.len() + 2);
    jsonrpc::quote(own, &mut quoted);
    *message = jsonrpc::splice(message, &[(span, &quoted)]);
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
            None => Who::fresh(),
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
