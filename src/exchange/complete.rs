//! Owns: `completion/complete`: whose prompt or resource it is about.
//! Never: what is completed.
//! Next: `logging`.
//!
//! MCP 2025-11-25, Server Features, Utilities, Completion. Only the name in `ref` is rewritten.

use std::rc::Rc;
use std::sync::Arc;

use super::Ask;
use super::call::{refer, send, view_of};
use super::relay::Relay;
use crate::auth::policy::Rights;
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, Envelope, Span, walk};
use crate::mcp::catalog::{Catalog, ListKind};
use crate::mcp::name::Target;
use crate::mcp::session::SessionRecord;
use crate::plan::BackendId;
use crate::telemetry::metrics::Reason;
use crate::world::World;

fn invalid(text: impl Into<String>) -> Error {
    Error::new(Kind::InvalidParams).context(text.into())
}

/// Sends it to the backend whose prompt or resource it is about.
pub(super) async fn complete(
    world: &Rc<World>,
    ask: &Ask,
    record: &Arc<SessionRecord>,
    mut message: Vec<u8>,
    mut envelope: Envelope,
    id: &[u8],
) -> Result<Relay> {
    let params = envelope.params.ok_or_else(|| invalid("params are required"))?;
    let about = only(&message, params, "ref")?.ok_or_else(|| invalid("ref is required"))?;
    let text = |name: &str| -> Result<Option<(Span, String)>> {
        let Some(span) = only(&message, about, name)? else { return Ok(None) };
        let text = span.text(&message).ok_or_else(|| invalid(format!("ref.{name} is a string")))?;
        Ok(Some((span, text.into_owned())))
    };
    let view = view_of(world, record).await;
    let view = view.as_deref();
    let kind = text("type")?.map(|(_, kind)| kind);
    let (backend, edit) = match kind.as_deref() {
        Some("ref/prompt") => {
            let (span, name) = text("name")?.ok_or_else(|| invalid("ref.name is required"))?;
            if !may(ask, &[ListKind::Prompts], &name) {
                return Err(Error::new(Kind::UnknownPrompt).context(name));
            }
            let (backend, own) = prompt(world, ask, view, &name).await?;
            (backend, (own != name).then_some((span, own)))
        }
        Some("ref/resource") => {
            let (_, uri) = text("uri")?.ok_or_else(|| invalid("ref.uri is required"))?;
            if !may(ask, &[ListKind::Resources, ListKind::Templates], &uri) {
                return Err(invalid(format!("Unknown resource: {uri}")));
            }
            (resource(world, ask, view, uri).await?, None)
        }
        _ => return Err(invalid("ref.type is ref/prompt or ref/resource")),
    };
    if let Some((span, own)) = edit {
        let mut quoted = Vec::with_capacity(own.len() + 2);
        jsonrpc::quote(&own, &mut quoted);
        message = jsonrpc::splice(&message, &[(span, &quoted)]);
        envelope = jsonrpc::scan(&message)
            .map_err(|fault| Error::new(fault.kind()).cause("after renaming"))?;
    }
    let timeout = world.plan.backends[backend].request_timeout;
    send(world, ask, record, backend, message, envelope, id, timeout).await
}

/// Whether the caller may have what is referred to, as one of these.
fn may(ask: &Ask, kinds: &[ListKind], name: &str) -> bool {
    let there = |rights: &Rights| kinds.iter().any(|kind| rights.shows(*kind, name));
    let may = ask.who.rights().is_none_or(there);
    if !may {
        ask.facts.ruled_out(Reason::Auth);
    }
    may
}

/// The backend of a prompt, and its own name there.
async fn prompt(
    world: &World,
    ask: &Ask,
    view: Option<&Catalog>,
    called: &str,
) -> Result<(BackendId, String)> {
    let unknown = || Error::new(Kind::UnknownPrompt).context(called.to_owned());
    let (backend, behind) = match world.names.resolve(called) {
        Target::Prefixed(backend, prefix) => (backend, &called[prefix..]),
        Target::Bare => {
            let owner = in_view(world, view, |all| all.owner_of_name(ListKind::Prompts, called));
            (owner.unwrap_or(world.names.bare[0]), called)
        }
        Target::Unknown => return Err(unknown()),
    };
    let own =
        refer(world, ask, view, backend, ListKind::Prompts, called, behind.to_owned()).await?;
    Ok((backend, own))
}

/// The backend of a resource, or of a template by its text.
async fn resource(
    world: &World,
    ask: &Ask,
    view: Option<&Catalog>,
    uri: String,
) -> Result<BackendId> {
    let unknown = || invalid(format!("Unknown resource: {uri}"));
    let template = in_view(world, view, |all| all.owner_of_template(&uri));
    let (backend, what) = match template {
        Some(backend) => (backend, ListKind::Templates),
        None => {
            let owner = in_view(world, view, |all| all.owner_of_uri(&uri)).or(world.only);
            (owner.ok_or_else(unknown)?, ListKind::Resources)
        }
    };
    match refer(world, ask, view, backend, what, &uri, uri.clone()).await {
        Err(error) if error.kind() == Kind::ResourceNotFound => Err(unknown()),
        outcome => outcome.map(|_| backend),
    }
}

/// Asks the catalogue that a client sees; `None` = the common one.
fn in_view<T>(world: &World, view: Option<&Catalog>, ask: impl Fn(&Catalog) -> T) -> T {
    match view {
        Some(view) => ask(view),
        None => ask(&world.catalog.borrow()),
    }
}

/// The member of that name in an object of the message. Of two, each reader may take another one:
/// both are refused.
pub(super) fn only(message: &[u8], object: Span, name: &str) -> Result<Option<Span>> {
    let members = walk::members_of_checked(object.of(message));
    let members = members.ok_or_else(|| invalid(format!("{name} stands in an object")))?;
    let text = object.of(message);
    let mut found = members.filter(|(key, _)| walk::key_is(key.of(text), name));
    let first = found.next().map(|(_, value)| value);
    if found.next().is_some() {
        return Err(invalid(format!("{name} stands there twice")));
    }
    Ok(first.map(|span| Span { start: object.start + span.start, end: object.start + span.end }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_found_once_or_refused() {
        let message = br#"{"params": {"a":1,"b":{"c":"x"},"a\u0064":2,"b2":3}}"#;
        let whole = Span::new(0, message.len());
        let params = only(message, whole, "params").unwrap().unwrap();
        let b = only(message, params, "b").unwrap().unwrap();
        assert_eq!(only(message, b, "c").unwrap().unwrap().of(message), br#""x""#);
        assert_eq!(only(message, params, "ad").unwrap().unwrap().of(message), b"2");
        assert_eq!(only(message, params, "z").unwrap(), None);
        let twice = br#"{"a":1,"\u0061":2}"#;
        assert!(only(twice, Span::new(0, twice.len()), "a").is_err());
        assert!(only(b"[1]", Span::new(0, 3), "a").is_err());
    }
}
