//! Owns: a request on its way to the backend that owns its target.
//! Never: what the revision of the next hop asks for (`backend`).
//! Next: `complete`.

use std::io;
use std::pin::Pin;
use std::rc::Rc;

use super::{Asked, check, complete, fail, relay, reworded};
use crate::backend::{Attended, Call, CallHandle, Caller, Claim, Lead, Replies, Seal, Viewer};
use crate::error::{Error, Kind, Result};
use crate::exchange::Ask;
use crate::exchange::call::{Who, aim, permit, seen, shape};
use crate::exchange::mirror;
use crate::exchange::route::{self, Origin};
use crate::http::{Connection, RequestHead};
use crate::jsonrpc;
use crate::mcp::capable;
use crate::mcp::catalog::ListKind;
use crate::mcp::envelope;
use crate::mcp::hints::Hints;
use crate::mcp::method::Method;
use crate::mcp::mirrored::{self, Mirrored};
use crate::mcp::name::Target;
use crate::mcp::revision::MODERN;
use crate::middleware::reuse::{Reusable, Use};
use crate::plan::BackendId;
use crate::telemetry::metrics::Reason;
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
    let token = asked.envelope.progress_token.map(|token| token.of(&asked.message).to_vec());
    let seal = seal(&asked);
    let handle = match seal {
        Some(_) => CallHandle::fresh(),
        None => Rc::new(CallHandle::deaf()),
    };
    let (id, method, level) = (asked.id.clone(), asked.method, asked.log_level);
    let private = world.plan.access.is_some();
    let tasks = asked.caller.tasks && method == Method::ToolsCall;
    let mut way = relay::Way { id, method, level, backend: None, private, token, seal, tasks };
    if way.seal.is_some()
        && let Some(state) = part(&asked, "requestState")
    {
        let resumed = Box::pin(resume(world, ask, &asked, &way, state)).await;
        match resumed {
            Ok(Some((backend, attended))) => {
                way.backend = Some(backend);
                return Box::pin(relay::follow(
                    world,
                    connection,
                    ask,
                    way,
                    attended,
                    relay::Events::default(),
                ))
                .await;
            }
            // Its backend's own.
            Ok(None) => {}
            Err(error) => return fail(connection, ask, &reworded(error), &way.id).await,
        }
    }
    let begin = begin(world, ask, asked, &handle);
    relay::answer(world, connection, ask, way, begin, &handle).await
}

/// What a call is sealed for, if its backend may ask for input.
fn seal(asked: &Asked) -> Option<Seal> {
    let target = match asked.method {
        Method::ToolsCall | Method::PromptsGet => asked.envelope.name,
        Method::ResourcesRead => asked.envelope.uri,
        _ => None,
    };
    let target = target?.text(&asked.message)?;
    let method = asked.envelope.method_name(&asked.message)?;
    let what = [method.into(), target.into()];
    Some(Seal { principal: asked.caller.principal.clone(), what })
}

/// A member of the parameters.
fn part<'a>(asked: &'a Asked, name: &str) -> Option<&'a [u8]> {
    let params = asked.envelope.params?.of(&asked.message);
    Some(envelope::member(params, name)?.of(params))
}

/// A caller comes back to a call that was parked; `None`: the state is a modern backend's own.
async fn resume(
    world: &Rc<World>,
    ask: &Ask,
    asked: &Asked,
    way: &relay::Way,
    state: &[u8],
) -> Result<Option<(BackendId, Attended)>> {
    let bad = |text: &'static str| Error::new(Kind::BadEnvelope).context(text);
    let (mut message, mut envelope) = (asked.message.clone(), asked.envelope);
    let backend = aim(world, None, asked.method, &mut message, &mut envelope)?;
    world.backends.settled_one(backend).await;
    let routed = world.plan.backends[backend].around.route.is_some();
    let keeps_its_own = world.backends.is_modern(backend);
    if route::is_marked(state) || !routed && keeps_its_own {
        return Ok(None);
    }
    ask.facts.aimed(world, backend, &message, &envelope);
    let state = jsonrpc::unquote(state).ok_or_else(|| bad("requestState is a string"))?;
    let responses = part(asked, "inputResponses").unwrap_or(b"{}");
    if !responses.starts_with(b"{") {
        return Err(bad("inputResponses is an object"));
    }
    let Some(seal) = way.seal.clone() else { return Ok(None) };
    let claim = Claim { state: (*state).into(), seal, responses: responses.to_vec() };
    match world.backends.resume(claim) {
        // Of a call that is parked at one that stands behind it, or that backend's own.
        Err(error) if keeps_its_own && error.kind() == Kind::BadEnvelope => Ok(None),
        resumed => Ok(Some((backend, resumed?))),
    }
}

async fn begin(
    world: &Rc<World>,
    ask: &Ask,
    asked: Asked,
    handle: &Rc<CallHandle>,
) -> Result<Replies> {
    let Asked { caller, method, mut message, mut envelope, id, .. } = asked;
    let caller = Rc::new(caller);
    let (mut only, mut watch, mut reusable) = (None, None, None);
    let (backend, own) = if method == Method::Complete {
        (complete::target(world, ask, &mut message, &mut envelope).await?, None)
    } else {
        let backend = aim(world, None, method, &mut message, &mut envelope)?;
        ask.facts.aimed(world, backend, &message, &envelope);
        let plan = &world.plan.backends[backend];
        // Also where nobody stands behind it any more: such a state is not for it.
        let behind = route::of(world, backend, &envelope);
        only = route::unmarked(world, backend, behind, &mut message, &mut envelope)?;
        let mut own = None;
        let spared = plan.chain.spares_calls() && world.custom.is_none();
        if !(spared && plan.around.is_empty()) {
            let alike = plan.chain.reuse.as_ref().and_then(|_| alike(&caller));
            let look = |reusable: &Reusable| world.backends.held(backend, reusable);
            let who = match &alike {
                Some(alike) => Who { revision: alike, look: &look, ..Who::fresh() },
                None => Who::fresh(),
            };
            let (principal, custom) = (caller.principal.as_deref(), world.custom.as_deref());
            let viewer = Some(Viewer::Caller(&caller));
            let who = Who { principal, custom, viewer, ..who };
            let shaped = shape(world, &who, plan, None, method, &mut message, &mut envelope);
            let shaped = Box::pin(shaped).await.map_err(|ruled| ask.facts.ruled(ruled))?;
            let for_itself = plan.forwards() || alike.is_none();
            let used = shaped.used.map(|used| if for_itself { Use::Bypass } else { used });
            ask.facts.cache(world, backend, used);
            if let Some(held) = shaped.held {
                if shaped.decided == Some(true) {
                    ask.facts.ruled_out(Reason::Filter);
                }
                return Ok(Replies::ready(held.to(&id), backend).watched(shaped.watch));
            }
            watch = shaped.watch;
            let twins = mirror::twins(ask, &shaped.copies);
            let (world, caller, copies) = (world.clone(), caller.clone(), shaped.copies);
            let can_nothing = alike.as_deref() == Some(MODERN);
            let to_itself = caller.lines.is_empty();
            let mirrors = move || {
                for copy in copies {
                    mirror::send(&world, None, Some(caller.clone()), method, copy, twins.clone());
                }
            };
            // What a backend says to one token is for nobody else.
            match shaped.reusable.filter(|_| alike.is_some() && !plan.forwards()) {
                None => mirrors(),
                Some(mut found) => {
                    // What may be asked something, or says more in its head, runs alone.
                    found.flight = found.flight.filter(|_| can_nothing && to_itself);
                    reusable = Some((found, Box::new(mirrors) as Lead));
                }
            }
            own = Some((shaped.own, shaped.hints));
        }
        (backend, own)
    };
    let (tool, hints) = own.unzip();
    ask.facts.called(handle);
    let route = route::of(world, backend, &envelope).filter(|_| method != Method::Complete);
    let origin = route.map(|route| {
        let origin = Origin {
            world: world.clone(),
            method,
            session: None,
            modern: Some(caller.clone()),
            authorization: caller.authorization.clone(),
            message: message.clone(),
            envelope,
            detail: ask.facts.detail.get().cloned(),
            only,
            handle: handle.clone(),
        };
        (route, Box::new(origin))
    });
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
    let mut calling: Pin<Box<dyn Future<Output = Result<Replies>>>> = match (origin, reusable) {
        (Some((route, origin)), reuse) => Box::pin(route::send(*origin, route, call, reuse)),
        (None, None) => Box::pin(world.backends.call(call)),
        (None, Some((found, lead))) => Box::pin(world.backends.call_reusing(call, found, lead)),
    };
    // After the future, so that it is dropped first.
    let mut cancel = relay::Cancel(Some(handle));
    let replies = calling.as_mut().await;
    cancel.0 = None;
    seen(replies, watch)
}

/// What callers of one kind have in common, beside who they are, on which an answer may depend; `None`:
/// what this one can do is too much to be told apart by it.
fn alike(caller: &Caller) -> Option<String> {
    let class = capable::class(&caller.capabilities);
    let can_nothing = || {
        let mut text = caller.capabilities.bytes().filter(|byte| !byte.is_ascii_whitespace());
        text.by_ref().take(2).eq(*b"{}") && text.next().is_none()
    };
    match class.is_empty() {
        false => Some(format!("{MODERN} {class}")),
        true => can_nothing().then(|| MODERN.to_owned()),
    }
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
