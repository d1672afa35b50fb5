//! Owns: a call, read or get on its way to the backend that owns its target: name, rules, copies.
//! Never: attempts (`backend`).
//! Next: `relay`, the way back.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Ask;
use super::private;
use super::relay::Relay;
use crate::auth::policy::Rights;
use crate::backend::{Call, CallHandle, Caller, Lead, Replies, Reply};
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, Envelope, Span};
use crate::limits;
use crate::mcp::catalog::{Catalog, ListKind};
use crate::mcp::hints::Hints;
use crate::mcp::method::Method;
use crate::mcp::name::Target;
use crate::mcp::session::SessionRecord;
use crate::mcp::tasks;
use crate::middleware::reuse::{Held, Reusable, Use};
use crate::middleware::{Copy, Known, Request, Row};
use crate::plan::{BackendId, BackendPlan};
use crate::rt;
use crate::telemetry::metrics::{AttemptKind, Reason};
use crate::world::World;

/// Sends a call, read or get to the backend that owns its target.
pub(super) async fn call(
    world: &Rc<World>,
    ask: &Ask,
    record: &Arc<SessionRecord>,
    method: Method,
    mut message: Vec<u8>,
    mut envelope: Envelope,
    id: &[u8],
) -> Result<Relay> {
    if let Some(rights) = ask.who.rights() {
        Box::pin(permit(world, ask, Some(record), rights, method, &message, &envelope)).await?;
    }
    // Where it is the lists that tell whose a name is, they must be those that the client sees.
    let view = match method == Method::ResourcesRead || world.names.bare.len() > 1 {
        true => view_of(world, record).await,
        false => None,
    };
    let backend = aim(world, view.as_deref(), method, &mut message, &mut envelope)?;
    if envelope.task {
        related(world, backend, &mut message, &mut envelope)?;
    }
    ask.facts.aimed(world, backend, &message, &envelope);
    let plan = &world.plan.backends[backend];
    let mut reusable = None;
    let own = if plan.chain.spares_calls() && plan.around.is_empty() {
        None
    } else {
        let view = match view {
            None => view_of(world, record).await,
            view => view,
        };
        let look = |reusable: &Reusable| world.backends.held(backend, reusable);
        let who = Who {
            principal: record.principal.as_deref(),
            revision: record.revision.as_str(),
            look: &look,
        };
        let view = view.as_deref();
        let shaped = shape(world, &who, plan, view, method, &mut message, &mut envelope);
        let shaped = Box::pin(shaped).await.map_err(|ruled| ask.facts.ruled(ruled))?;
        // What a backend says to one token is for nobody else.
        let used = shaped.used.map(|used| if plan.forwards() { Use::Bypass } else { used });
        ask.facts.cache(world, backend, used);
        if let Some(held) = shaped.held {
            let in_flight = world.enter_call(record.id, id, Rc::new(CallHandle::new()));
            let replies = Replies::ready(held.to(id), backend);
            return Ok(Relay { replies, id: id.to_vec(), _in_flight: in_flight });
        }
        let (world, record, copies) = (world.clone(), record.clone(), shaped.copies);
        let mirrors = move || {
            for copy in copies {
                mirror(&world, Some(record.clone()), None, method, copy);
            }
        };
        match shaped.reusable.filter(|_| !plan.forwards()) {
            None => mirrors(),
            // Of calls that run together a mirror hears one.
            Some(found) => reusable = Some((found, Box::new(mirrors) as Lead)),
        }
        Some((shaped.own, shaped.hints))
    };
    let (tool, hints) = own.unzip();
    let handle = Rc::new(CallHandle::new());
    if let Some(authorization) = ask.who.authorization.as_ref().filter(|_| plan.forwards()) {
        handle.forward(authorization.clone());
    }
    ask.facts.called(&handle);
    if let Some(detail) = ask.facts.detail.get() {
        let name = envelope.name.or(envelope.uri).and_then(|span| span.text(&message));
        ask.facts.own_name(tool.as_deref().or(name.as_deref()));
        if let Some(tracing) = &detail.tracing {
            tracing.pass_on(&mut message, &mut envelope, &handle)?;
        }
    }
    let in_flight = world.enter_call(record.id, id, handle.clone());
    let tool_call = method == Method::ToolsCall;
    let call = Call {
        backend,
        session: Some(record.clone()),
        modern: None,
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
    let replies = match reusable {
        None => world.backends.call(call).await?,
        Some((found, lead)) => Box::pin(world.backends.call_reusing(call, found, lead)).await?,
    };
    Ok(Relay { replies, id: id.to_vec(), _in_flight: in_flight })
}

/// A request that is to become a task may be related to one.
fn related(
    world: &World,
    backend: BackendId,
    message: &mut Vec<u8>,
    envelope: &mut Envelope,
) -> Result<()> {
    if envelope.meta.is_some() {
        *message = tasks::own(std::mem::take(message), &tasks::prefix(&world.plan, backend));
        *envelope = jsonrpc::scan(message)
            .map_err(|fault| Error::new(fault.kind()).cause("after renaming"))?;
    }
    Ok(())
}

/// Sends a request of any other kind to a backend, as it is.
#[expect(clippy::too_many_arguments, reason = "the parts of one request")]
pub(super) async fn send(
    world: &Rc<World>,
    ask: &Ask,
    record: &Arc<SessionRecord>,
    backend: BackendId,
    mut message: Vec<u8>,
    mut envelope: Envelope,
    id: &[u8],
    timeout: Duration,
) -> Result<Relay> {
    ask.facts.aimed(world, backend, &message, &envelope);
    let handle = Rc::new(CallHandle::new());
    ask.facts.called(&handle);
    if let Some(tracing) = ask.facts.detail.get().and_then(|detail| detail.tracing.as_ref()) {
        tracing.pass_on(&mut message, &mut envelope, &handle)?;
    }
    let in_flight = world.enter_call(record.id, id, handle.clone());
    let call = Call {
        backend,
        session: Some(record.clone()),
        modern: None,
        tool_call: false,
        safe: true,
        tool: None,
        again: false,
        id: envelope.id.ok_or_else(|| Error::new(Kind::InvalidRequest))?,
        progress_token: envelope.progress_token,
        body: message,
        timeout,
        handle,
    };
    let replies = world.backends.call(call).await?;
    Ok(Relay { replies, id: id.to_vec(), _in_flight: in_flight })
}

/// What the rules of a backend say of a name that is only referred to: the backend's own name, or
/// that it is unknown, which a hidden one is too.
pub(super) async fn refer(
    world: &World,
    view: Option<&Catalog>,
    backend: BackendId,
    what: ListKind,
    called: &str,
    behind: String,
) -> Result<String> {
    let plan = &world.plan.backends[backend];
    let chain = &plan.chain;
    if chain.alias.is_none() && chain.filter.is_none() {
        return Ok(behind);
    }
    if chain.filter.is_some() {
        world.backends.settled_one(plan.id).await;
    }
    let slice = match view {
        Some(view) => view.slice(plan.id).cloned(),
        None => world.catalog.borrow().slice(plan.id).cloned(),
    };
    let known = slice.as_ref().and_then(|slice| slice.list(what).behind(&behind));
    let known = known.map(|(own, hints)| Known { own, hints });
    let listed = slice.is_some();
    // The rules look at names, not at what stands around them.
    let mut message = br#"{"jsonrpc":"2.0","id":0,"method":"ping"}"#.to_vec();
    let mut envelope = jsonrpc::scan(&message)
        .map_err(|fault| Error::new(fault.kind()).cause("a message of our own"))?;
    let mut request = Request {
        what,
        called,
        own: behind,
        known,
        listed,
        message: &mut message,
        envelope: &mut envelope,
        copies: Vec::new(),
        principal: None,
        revision: "",
        look: &|_| None,
        held: None,
        reusable: None,
    };
    if let Some(alias) = &chain.alias {
        alias.request(&mut request)?;
    }
    if let Some(filter) = &chain.filter {
        filter.request(&mut request)?;
    }
    Ok(request.own)
}

/// Whether a caller may have what he asks for. Who may not is answered as if it were not there; and
/// where rights apply, a name that no list has is answered here too, so that both look alike.
pub(super) async fn permit(
    world: &World,
    ask: &Ask,
    record: Option<&Arc<SessionRecord>>,
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
    if !there {
        ask.facts.ruled_out(Reason::Auth);
    }
    // Resources may be readable without being listed.
    if there && what != ListKind::Resources {
        world.backends.settled().await;
        let view = match record {
            Some(record) => view_of(world, record).await,
            None => None,
        };
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
pub(super) async fn view_of(world: &World, record: &Arc<SessionRecord>) -> Option<Rc<Catalog>> {
    match record.may_see_other_lists() {
        true => Box::pin(world.view(record)).await,
        false => None,
    }
}

/// Finds the backend of a call, and puts the backend's own name into it.
pub(super) fn aim(
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

/// For whom a request goes through the rules of a backend.
pub(super) struct Who<'a> {
    pub(super) principal: Option<&'a str>,
    /// With what else tells callers apart.
    pub(super) revision: &'a str,
    /// Looks for an answer that is kept.
    pub(super) look: &'a dyn Fn(&Reusable) -> Option<Held>,
}

impl Who<'_> {
    /// Nobody whose answer is kept, or taken from what is kept.
    pub(super) fn fresh() -> Who<'static> {
        Who { principal: None, revision: "", look: &|_| None }
    }
}

/// What the rules of a backend made of a request.
pub(super) struct Shaped {
    /// The backend's own name.
    pub(super) own: String,
    /// What its tool says about itself.
    pub(super) hints: Hints,
    /// For other backends.
    pub(super) copies: Vec<Copy>,
    /// The answer that is kept for it.
    pub(super) held: Option<Held>,
    /// What may be done with its answer.
    pub(super) reusable: Option<Box<Reusable>>,
    /// What the cache did, if there is one for such calls.
    pub(super) used: Option<Use>,
}

/// Sends a copy of a request to another backend. Nobody waits for it, and nothing that becomes of
/// it is anybody's answer.
pub(super) fn mirror(
    world: &Rc<World>,
    session: Option<Arc<SessionRecord>>,
    modern: Option<Rc<Caller>>,
    method: Method,
    copy: Copy,
) {
    let under_way = world.copies.get();
    if under_way >= limits::COPIES_MAX {
        return;
    }
    world.copies.set(under_way + 1);
    let world = world.clone();
    rt::spawn("mirrored call", async move {
        let Copy { backend, mut message, mut envelope } = copy;
        let plan = &world.plan.backends[backend];
        let shown = match (&session, &modern) {
            (Some(session), _) => session.authorization(),
            (None, modern) => modern.as_ref().and_then(|caller| caller.authorization.clone()),
        };
        let sent = async {
            // A copy is to be heard: no answer that is kept stands in for it.
            let who = Who::fresh();
            let shaped = shape(&world, &who, plan, None, method, &mut message, &mut envelope);
            let shaped = shaped.await.map_err(|(error, _)| error)?;
            if world.meter.enabled() {
                world.meter.add(|m| &m.attempts, [backend, AttemptKind::Mirror as usize], 1);
            }
            let tool_call = method == Method::ToolsCall;
            let call = Call {
                backend,
                session,
                modern,
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
            if let Some(authorization) = shown.filter(|_| plan.forwards()) {
                call.handle.forward(authorization);
            }
            let mut replies = world.backends.call(call).await?;
            loop {
                match replies.next().await? {
                    Reply::Notification(_) | Reply::Away { .. } => {}
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

/// Takes a request through the rules of its backend. A refusal says which kind of rule it was.
pub(super) async fn shape(
    world: &World,
    who: &Who<'_>,
    plan: &BackendPlan,
    view: Option<&Catalog>,
    method: Method,
    message: &mut Vec<u8>,
    envelope: &mut Envelope,
) -> std::result::Result<Shaped, (Error, Option<Reason>)> {
    let (what, span) = match method {
        Method::ToolsCall => (ListKind::Tools, envelope.name),
        Method::ResourcesRead => (ListKind::Resources, envelope.uri),
        _ => (ListKind::Prompts, envelope.name),
    };
    let Some(name) = span.and_then(|span| jsonrpc::unquote(span.of(message))) else {
        let error = Error::new(Kind::InvalidParams).context("a name or uri is required");
        return Err((error, None));
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
        principal: who.principal,
        revision: who.revision,
        look: who.look,
        held: None,
        reusable: None,
    };
    if let Err(error) = plan.chain.request(&mut request) {
        let reason = match error.kind() {
            Kind::UnknownTool | Kind::UnknownPrompt | Kind::ResourceNotFound => {
                Some(Reason::Filter)
            }
            Kind::InvalidParams => {
                let size = request.arguments().map_or(0, <[u8]>::len);
                let max = plan.chain.validation.as_ref().map_or(usize::MAX, |max| max.0);
                (what == ListKind::Tools && size > max).then_some(Reason::Size)
            }
            _ => None,
        };
        return Err((error, reason));
    }
    let hints = request.hints();
    let Request { own, copies, held, reusable, .. } = request;
    let reuse = plan.chain.reuse.as_ref();
    let used = reuse.and_then(|reuse| reuse.used(what, held.as_ref(), reusable.as_deref()));
    Ok(Shaped { own, hints, copies, held, reusable, used })
}
