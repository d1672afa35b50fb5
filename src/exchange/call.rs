//! Owns: a call, read or get on its way to the backend that owns its target: name, rules, copies.
//! Never: attempts (`backend`).
//! Next: `relay`, the way back.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use super::Who;
use super::private;
use super::relay::Relay;
use crate::auth::policy::Rights;
use crate::backend::{Call, CallHandle, Reply};
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, Envelope, Span};
use crate::limits;
use crate::mcp::catalog::{Catalog, ListKind};
use crate::mcp::hints::Hints;
use crate::mcp::method::Method;
use crate::mcp::name::Target;
use crate::mcp::session::SessionRecord;
use crate::middleware::{Copy, Known, Request};
use crate::plan::{BackendId, BackendPlan};
use crate::rt;
use crate::world::World;

/// Sends a call, read or get to the backend that owns its target.
pub(super) async fn call(
    world: &Rc<World>,
    record: &Arc<SessionRecord>,
    who: &Who,
    method: Method,
    mut message: Vec<u8>,
    mut envelope: Envelope,
    id: &[u8],
) -> Result<Relay> {
    if let Some(rights) = who.rights() {
        Box::pin(permit(world, record, rights, method, &message, &envelope)).await?;
    }
    // Where it is the lists that tell whose a name is, they must be those that the client sees.
    let view = match method == Method::ResourcesRead || world.names.bare.len() > 1 {
        true => view_of(world, record).await,
        false => None,
    };
    let backend = aim(world, view.as_deref(), method, &mut message, &mut envelope)?;
    let plan = &world.plan.backends[backend];
    let own = if plan.chain.spares_calls() && plan.around.is_empty() {
        None
    } else {
        let view = match view {
            None => view_of(world, record).await,
            view => view,
        };
        let shaped = shape(world, plan, view.as_deref(), method, &mut message, &mut envelope);
        let shaped = Box::pin(shaped).await?;
        for copy in shaped.copies {
            mirror(world, record, method, copy);
        }
        Some((shaped.own, shaped.hints))
    };
    let (tool, hints) = own.unzip();
    let handle = Rc::new(CallHandle::new());
    if let Some(authorization) = who.authorization.as_ref().filter(|_| plan.forwards()) {
        handle.forward(authorization.clone());
    }
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

/// Whether a caller may have what he asks for. Who may not is answered as if it were not there; and
/// where rights apply, a name that no list has is answered here too, so that both look alike.
async fn permit(
    world: &World,
    record: &Arc<SessionRecord>,
    rights: &Rights,
    method: Method,
    message: &[u8],
    envelope: &Envelope,
) -> Result<()> {
    let (what, span, unknown) = match method {
        Method::ToolsCall => (ListKind::Tools, envelope.name, Kind::UnknownTool),
        Method::ResourcesRead => (ListKind::Resources, envelope.uri, Kind::ResourceNotFound),
        _ => (ListKind::Prompts, envelope.name, Kind::UnknownPrompt),
    };
    // What is missing or no string is refused further on, with its reason.
    let Some(name) = span.and_then(|span| jsonrpc::unquote(span.of(message))) else {
        return Ok(());
    };
    let mut there = rights.shows(what, &name);
    // Resources may be readable without being listed.
    if there && what != ListKind::Resources {
        world.backends.settled().await;
        let view = view_of(world, record).await;
        let shared = world.catalog.borrow();
        let catalog = view.as_deref().unwrap_or(&*shared);
        there = match world.names.resolve(&name) {
            Target::Unknown => false,
            Target::Prefixed(backend, prefix) => {
                let slice = catalog.slice(backend);
                slice.is_none_or(|slice| slice.list(what).behind(&name[prefix..]).is_some())
            }
            Target::Bare => {
                let known = |id: &BackendId| catalog.slice(*id).is_some();
                catalog.owner_of_name(what, &name).is_some() || !world.names.bare.iter().all(known)
            }
        };
    }
    if there { Ok(()) } else { Err(Error::new(unknown).context(name.into_owned())) }
}

/// The catalogue of a session that sees other lists than the proxy.
async fn view_of(world: &World, record: &Arc<SessionRecord>) -> Option<Rc<Catalog>> {
    match record.may_see_other_lists() {
        true => Box::pin(world.view(record)).await,
        false => None,
    }
}

/// Finds the backend of a call, and puts the backend's own name into it.
fn aim(
    world: &World,
    view: Option<&Catalog>,
    method: Method,
    message: &mut Vec<u8>,
    envelope: &mut Envelope,
) -> Result<BackendId> {
    let invalid = |text: &'static str| Error::new(Kind::InvalidParams).context(text);
    if method == Method::ResourcesRead {
        let uri = envelope.uri.ok_or_else(|| invalid("uri is required"))?;
        let uri = jsonrpc::unquote(uri.of(message)).ok_or_else(|| invalid("uri is a string"))?;
        let owner = match view {
            Some(view) => view.owner_of_uri(&uri),
            None => world.catalog.borrow().owner_of_uri(&uri),
        };
        return match owner {
            Some(backend) => Ok(backend),
            // With one backend there is no question whose it is, and its own answer is the truth.
            None if world.only.is_some() => Ok(world.only.unwrap_or_default()),
            // Of one backend nobody here knows the lists.
            None if private::only(world).is_some() => Ok(private::only(world).unwrap_or_default()),
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
            let owner = match view {
                Some(view) => view.owner_of_name(kind, &name),
                None => world.catalog.borrow().owner_of_name(kind, &name),
            };
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
            let shaped = shape(&world, plan, None, method, &mut message, &mut envelope).await?;
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
                handle: Rc::new(CallHandle::deaf()),
            };
            let mut replies = world.backends.call(call).await?;
            loop {
                match replies.next().await? {
                    Reply::Notification(_) => {}
                    Reply::Ask(question) => world.backends.decline(&question),
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
    view: Option<&Catalog>,
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
    let slice = match view {
        Some(view) => view.slice(plan.id).cloned(),
        None => world.catalog.borrow().slice(plan.id).cloned(),
    };
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
