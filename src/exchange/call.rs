//! Owns: a call, read or get on its way to the backend that owns its target: name, rules, copies.
//! Never: attempts (`backend`).
//! Next: `route`, where others may answer.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Ask;
use super::mirror;
use super::private;
use super::relay::Relay;
use super::route::{self, Origin};
use crate::auth::policy::Rights;
use crate::backend::{Call, CallHandle, Lead, Replies, Viewer};
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, Envelope, Raw, Span};
use crate::mcp::catalog::{Catalog, ListKind};
use crate::mcp::hints::Hints;
use crate::mcp::method::Method;
use crate::mcp::name::Target;
use crate::mcp::session::SessionRecord;
use crate::mcp::tasks;
use crate::middleware::custom::{Hooks, Watch};
use crate::middleware::reuse::{Held, Reusable, Use};
use crate::middleware::{Copy, Known, Request, Row};
use crate::plan::{BackendId, BackendPlan};
use crate::telemetry::metrics::Reason;
use crate::world::World;

/// Sends a call, read or get to the backend that owns its target.
pub(super) async fn call(
    world: &Rc<World>,
    ask: &Ask,
    record: &Arc<SessionRecord>,
    method: Method,
    mut message: Vec<u8>,
    envelope: &mut Envelope,
    id: &[u8],
) -> Result<Relay> {
    if let Some(rights) = ask.who.rights() {
        Box::pin(permit(world, ask, Some(record), rights, method, &message, envelope)).await?;
    }
    // Where it is the lists that tell whose a name is, they must be those that the client sees.
    let view = match method == Method::ResourcesRead || world.names.bare.len() > 1 {
        true => view_of(world, record).await,
        false => None,
    };
    let backend = aim(world, view.as_deref(), method, &mut message, envelope)?;
    if envelope.task {
        related(world, backend, &mut message, envelope)?;
    }
    ask.facts.aimed(world, backend, &message, envelope);
    let plan = &world.plan.backends[backend];
    let (mut reusable, mut watch) = (None, None);
    let spared = plan.chain.spares_calls() && world.custom.is_none();
    let own = if spared && plan.around.is_empty() {
        None
    } else {
        let view = match view {
            None => view_of(world, record).await,
            view => view,
        };
        let look = |reusable: &Reusable| world.backends.held(backend, reusable);
        let who = Who { custom: world.custom.as_deref(), ..Who::of(record, &look) };
        let view = view.as_deref();
        let shaped = shape(world, &who, plan, view, method, &mut message, envelope);
        let shaped = Box::pin(shaped).await.map_err(|ruled| ask.facts.ruled(ruled))?;
        // What a backend says to one token is for nobody else.
        let used = shaped.used.map(|used| if plan.forwards() { Use::Bypass } else { used });
        ask.facts.cache(world, backend, used);
        if let Some(held) = shaped.held {
            if shaped.decided == Some(true) {
                ask.facts.ruled_out(Reason::Filter);
            }
            let in_flight = world.enter_call(record.id, id, Rc::new(CallHandle::new()));
            let replies = Replies::ready(held.to(id), backend).watched(shaped.watch);
            return Ok(Relay { replies, id: Raw::new(id), _in_flight: in_flight });
        }
        let twins = mirror::twins(ask, &shaped.copies);
        let (world, record, copies) = (world.clone(), record.clone(), shaped.copies);
        let mirrors = move || {
            for copy in copies {
                mirror::send(&world, Some(record.clone()), None, method, copy, twins.clone());
            }
        };
        match shaped.reusable.filter(|_| !plan.forwards()) {
            None => mirrors(),
            // Of calls that run together a mirror hears one.
            Some(found) => reusable = Some((found, Box::new(mirrors) as Lead)),
        }
        watch = shaped.watch;
        Some((shaped.own, shaped.hints))
    };
    let (tool, hints) = own.unzip();
    let handle = CallHandle::fresh();
    if let Some(authorization) = ask.who.authorization.as_ref().filter(|_| plan.forwards()) {
        handle.forward(authorization.clone());
    }
    ask.facts.called(&handle);
    let route = route::of(world, backend, envelope);
    let origin = route.map(|route| {
        let origin = Origin {
            world: world.clone(),
            method,
            session: Some(record.clone()),
            modern: None,
            authorization: ask.who.authorization.clone(),
            message: message.clone(),
            envelope: *envelope,
            detail: ask.facts.detail.get().cloned(),
            only: None,
            handle: handle.clone(),
        };
        (route, Box::new(origin))
    });
    if let Some(detail) = ask.facts.detail.get() {
        let name = envelope.name.or(envelope.uri).and_then(|span| span.text(&message));
        ask.facts.own_name(tool.as_deref().or(name.as_deref()));
        if let Some(tracing) = &detail.tracing {
            tracing.pass_on(&mut message, envelope, &handle)?;
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
    let replies = match (origin, reusable) {
        (Some((route, origin)), reuse) => Box::pin(route::send(*origin, route, call, reuse)).await,
        (None, None) => world.backends.call(call).await,
        (None, Some((found, lead))) => {
            Box::pin(world.backends.call_reusing(call, found, lead)).await
        }
    };
    let replies = seen(replies, watch)?;
    Ok(Relay { replies, id: Raw::new(id), _in_flight: in_flight })
}

/// Lets a program's own middleware see what becomes of a call, if that wants to.
pub(super) fn seen(replies: Result<Replies>, watch: Option<Watch>) -> Result<Replies> {
    match (replies, watch) {
        (Ok(replies), watch) => Ok(replies.watched(watch)),
        (Err(error), None) => Err(error),
        (Err(error), Some(watch)) => {
            watch.failed(&error);
            Err(error)
        }
    }
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
    let handle = CallHandle::fresh();
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
    Ok(Relay { replies, id: Raw::new(id), _in_flight: in_flight })
}

/// What the rules of a backend say of a name that is only referred to: the backend's own name, or
/// that it is unknown, which a hidden one is too.
pub(super) async fn refer(
    world: &World,
    ask: &Ask,
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
        backend: &plan.name,
        custom: None,
        watch: None,
        decided: None,
        reusable: None,
    };
    let mut ruled = match &chain.alias {
        Some(alias) => alias.request(&mut request),
        None => Ok(()),
    };
    if let (Ok(()), Some(filter)) = (&ruled, &chain.filter) {
        ruled = filter.request(&mut request);
    }
    if ruled.is_err() {
        ask.facts.ruled_out_by(backend, Reason::Filter);
    }
    ruled.map(|()| request.own)
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
    // The usual name has a prefix and no escapes: it is known by its bytes.
    let raw = span.of(message);
    let inside = &raw[1..raw.len() - 1];
    if let Target::Prefixed(backend, prefix) = world.names.resolve_bytes(inside)
        && !inside.contains(&b'\\')
    {
        cut_prefix(span, prefix, message, envelope);
        return Ok(backend);
    }
    let name = jsonrpc::unquote(span.of(message)).ok_or_else(|| invalid("name is a string"))?;
    let (kind, unknown) = match method {
        Method::ToolsCall => (ListKind::Tools, Kind::UnknownTool),
        _ => (ListKind::Prompts, Kind::UnknownPrompt),
    };
    match world.names.resolve(&name) {
        Target::Prefixed(backend, prefix) => {
            match name {
                Cow::Borrowed(_) => cut_prefix(span, prefix, message, envelope),
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

/// Cuts a prefix out of a name without escapes, in which it stands as it is.
fn cut_prefix(name: Span, prefix: usize, message: &mut Vec<u8>, envelope: &mut Envelope) {
    let start = name.start + 1;
    let cut = Span { start, end: start + prefix as u32 };
    message.drain(cut.start as usize..cut.end as usize);
    envelope.cut(cut);
}

/// For whom a request goes through the rules of a backend.
pub(super) struct Who<'a> {
    pub(super) principal: Option<&'a str>,
    /// With what else tells callers apart.
    pub(super) revision: &'a str,
    /// Looks for an answer that is kept.
    pub(super) look: &'a dyn Fn(&Reusable) -> Option<Held>,
    /// A program's own middleware.
    pub(super) custom: Option<&'a dyn Hooks>,
    /// Whose own list tells what a tool says of itself, where each client has its own.
    pub(super) viewer: Option<Viewer<'a>>,
}

impl Who<'_> {
    /// The client of a session.
    pub(super) fn of<'w>(
        record: &'w Arc<SessionRecord>,
        look: &'w dyn Fn(&Reusable) -> Option<Held>,
    ) -> Who<'w> {
        let principal = record.principal.as_deref();
        let viewer = Some(Viewer::Session(record));
        Who { principal, revision: record.revision.as_str(), look, custom: None, viewer }
    }

    /// Nobody whose answer is kept, or taken from what is kept.
    pub(super) fn fresh() -> Who<'static> {
        Who { principal: None, revision: "", look: &|_| None, custom: None, viewer: None }
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
    /// A program's own middleware wants to see its end.
    pub(super) watch: Option<Watch>,
    /// The answer is that middleware's, and whether it is a refusal.
    pub(super) decided: Option<bool>,
    /// What the cache did, if there is one for such calls.
    pub(super) used: Option<Use>,
}

/// Takes a request through the rules of its backend. A refusal says which kind of rule it was.
pub(super) async fn shape(
    world: &Rc<World>,
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
    let own = private::tools(world, who.viewer, plan, what).await.map_err(|error| (error, None))?;
    let listed = slice.is_some() || own.is_some();
    let called = match what {
        ListKind::Resources => name.clone(),
        _ => format!("{}{name}", plan.prefix),
    };
    let list = own.as_ref().or_else(|| slice.as_ref().map(|slice| slice.list(what)));
    let known = list.and_then(|list| list.behind(&name));
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
        backend: &plan.name,
        custom: who.custom,
        watch: None,
        decided: None,
        reusable: None,
    };
    if let Err(error) = plan.chain.request(&mut request) {
        if let Some(watch) = request.watch.take() {
            watch.failed(&error);
        }
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
    let Request { own, copies, held, reusable, watch, decided, .. } = request;
    // What a program's own middleware says was never asked of the cache.
    let reuse = plan.chain.reuse.as_ref().filter(|_| decided.is_none());
    let used = reuse.and_then(|reuse| reuse.used(what, held.as_ref(), reusable.as_deref()));
    Ok(Shaped { own, hints, copies, held, reusable, watch, decided, used })
}
