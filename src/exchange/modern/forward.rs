//! Owns: a request on its way to the backend that owns its target.
//! Never: what the revision of the next hop asks for (`backend`).
//! Next: `complete`, then `relay`.

use std::io;
use std::pin::pin;
use std::rc::Rc;

use super::{Asked, check, complete, fail, relay, reworded};
use crate::backend::{Call, CallHandle, Replies};
use crate::error::{Error, Kind, Result};
use crate::exchange::Ask;
use crate::exchange::call::{aim, mirror, permit, shape};
use crate::http::{Connection, RequestHead};
use crate::jsonrpc;
use crate::mcp::catalog::ListKind;
use crate::mcp::hints::Hints;
use crate::mcp::method::Method;
use crate::mcp::mirrored::{self, Mirrored};
use crate::mcp::name::Target;
use crate::rt::{self, Either};
use crate::world::World;

/// Sends a call, read, get or completion to its backend, and passes on what comes back.
pub(super) async fn forward(
    world: &Rc<World>,
    connection: &mut Connection,
    ask: &Ask,
    head: &RequestHead,
    mut asked: Asked,
) -> io::Result<()> {
    // Before anything that tells whether it is there.
    if let Some(rights) = ask.who.rights()
        && asked.method != Method::Complete
    {
        let Asked { method, message, envelope, .. } = &asked;
        let permitted = permit(world, ask, None, rights, *method, message, envelope);
        if let Err(error) = Box::pin(permitted).await {
            return fail(connection, ask, &reworded(error), &asked.id).await;
        }
    }
    let known = match asked.method {
        Method::ToolsCall => mirrored(world, &asked),
        _ => Vec::new(),
    };
    let arguments = asked.envelope.arguments.map(|span| span.of(&asked.message));
    match check::params(head, &known, arguments) {
        Ok(lines) => asked.caller.lines = lines,
        Err(error) => return fail(connection, ask, &error, &asked.id).await,
    }
    let way = relay::Way { id: asked.id.clone(), method: asked.method, level: asked.log_level };
    let handle = Rc::new(CallHandle::deaf());
    let begun = {
        let begin = pin!(begin(world, ask, asked, &handle));
        rt::race(begin, connection.closed()).await
    };
    match begun {
        Either::Left(Ok(replies)) => {
            relay::pass_on(world, connection, ask, way, replies, &handle).await
        }
        Either::Left(Err(error)) => fail(connection, ask, &reworded(error), &way.id).await,
        Either::Right(()) => {
            // What was sent is dropped with its future, which told the backend.
            connection.abort();
            Ok(())
        }
    }
}

async fn begin(
    world: &Rc<World>,
    ask: &Ask,
    asked: Asked,
    handle: &Rc<CallHandle>,
) -> Result<Replies> {
    let Asked { caller, method, mut message, mut envelope, .. } = asked;
    let caller = Rc::new(caller);
    let (backend, own) = if method == Method::Complete {
        (complete::target(world, ask, &mut message, &mut envelope).await?, None)
    } else {
        let backend = aim(world, None, method, &mut message, &mut envelope)?;
        ask.facts.aimed(world, backend, &message, &envelope);
        let plan = &world.plan.backends[backend];
        let mut own = None;
        if !(plan.chain.spares_calls() && plan.around.is_empty()) {
            let shaped =
                Box::pin(shape(world, plan, None, method, &mut message, &mut envelope)).await;
            let shaped = shaped.map_err(|ruled| ask.facts.ruled(ruled))?;
            for copy in shaped.copies {
                mirror(world, None, Some(caller.clone()), method, copy);
            }
            own = Some((shaped.own, shaped.hints));
        }
        (backend, own)
    };
    let (tool, hints) = own.unzip();
    ask.facts.called(handle);
    if let Some(detail) = ask.facts.detail.get() {
        let name = envelope.name.or(envelope.uri).and_then(|span| span.text(&message));
        ask.facts.own_name(tool.as_deref().or(name.as_deref()));
        if let Some(tracing) = &detail.tracing {
            tracing.pass_on(&mut message, &mut envelope, handle)?;
        }
    }
    let plan = &world.plan.backends[backend];
    if let Some(authorization) = caller.authorization.as_ref().filter(|_| plan.forwards()) {
        handle.forward(authorization.clone());
    }
    let tool_call = method == Method::ToolsCall;
    let call = Call {
        backend,
        session: None,
        modern: Some(caller),
        tool_call,
        safe: !tool_call || hints.is_some_and(Hints::repeatable),
        tool: tool.filter(|_| tool_call),
        again: false,
        id: envelope.id.ok_or_else(|| Error::new(Kind::InvalidRequest))?,
        progress_token: envelope.progress_token,
        body: message,
        timeout: if tool_call { plan.call_timeout } else { plan.request_timeout },
        handle: handle.clone(),
    };
    let mut calling = Box::pin(world.backends.call(call));
    // After the future, so that it is dropped first.
    let mut cancel = relay::Cancel(Some(handle));
    let replies = calling.as_mut().await;
    cancel.0 = None;
    replies
}

/// The arguments of a tool that are repeated in fields, under the names that clients see.
fn mirrored(world: &World, asked: &Asked) -> Vec<Mirrored> {
    let name = asked.envelope.name.and_then(|span| jsonrpc::unquote(span.of(&asked.message)));
    let Some(name) = name else { return Vec::new() };
    let catalog = world.catalog.borrow();
    let (backend, shown) = match world.names.resolve(&name) {
        Target::Prefixed(backend, prefix) => (Some(backend), &name[prefix..]),
        Target::Bare => (catalog.owner_of_name(ListKind::Tools, &name), &*name),
        Target::Unknown => (None, &*name),
    };
    let slice = backend.and_then(|backend| catalog.slice(backend));
    let entry = slice.and_then(|slice| slice.tools.find(shown));
    entry.map_or_else(Vec::new, mirrored::of_tool)
}
