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

use super::call::{Who, shape};
use super::facts::Detail;
use crate::backend::{Call, CallHandle, Caller, Lead, Prepared, Replies};
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::Envelope;
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
    let canary = world.backends.canary(route);
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
    world.backends.call_any(own, canary, &handle, Box::new(prepare)).await
}

impl Origin {
    /// What a backend gets of what the caller showed.
    fn shown_to(&self, backend: BackendId) -> Option<Arc<Authorization>> {
        let forwards = self.world.plan.backends[backend].forwards();
        self.authorization.clone().filter(|_| forwards)
    }

    /// The call for a backend other than the one that was called.
    async fn prepare(&self, backend: BackendId) -> Result<Prepared> {
        let (world, method) = (&self.world, self.method);
        let plan = &world.plan.backends[backend];
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
