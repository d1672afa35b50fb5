//! Owns: the way of a completion to the backend that has the prompt or the resource.
//! Never: what is completed.
//! Next: `tasks`.

use std::rc::Rc;

use crate::error::{Error, Kind, Result};
use crate::exchange::Ask;
use crate::exchange::call::{Who, aim, permit, shape};
use crate::jsonrpc::{self, Envelope, Span, walk};
use crate::mcp::catalog::ListKind;
use crate::mcp::method::Method;
use crate::plan::BackendId;
use crate::world::World;

/// Finds the backend of a completion, and puts the backend's own name into it. What is hidden is as
/// unknown here as anywhere.
pub(super) async fn target(
    world: &Rc<World>,
    ask: &Ask,
    message: &mut Vec<u8>,
    envelope: &mut Envelope,
) -> Result<BackendId> {
    let invalid = |text: &'static str| Error::new(Kind::InvalidParams).context(text);
    let params = envelope.params.ok_or_else(|| invalid("ref is required"))?;
    let reference = inside(message, params, "ref").ok_or_else(|| invalid("ref is required"))?;
    let kind = inside(message, reference, "type").and_then(|span| span.text(message));
    let (method, member) = match kind.as_deref() {
        Some("ref/prompt") => (Method::PromptsGet, "name"),
        Some("ref/resource") => (Method::ResourcesRead, "uri"),
        _ => return Err(invalid("ref is a ref/prompt or a ref/resource")),
    };
    let span = inside(message, reference, member).ok_or_else(|| invalid("ref lacks its target"))?;
    let name = span.text(message).ok_or_else(|| invalid("ref names its target by a string"))?;
    if method == Method::ResourcesRead
        && ask.who.rights().is_none_or(|rights| rights.shows(ListKind::Templates, &name))
        && let Some(backend) = template_of(world, &name)
    {
        return Ok(backend);
    }
    // As a request for the thing itself would go.
    let mut like = b"{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"".to_vec();
    like.extend_from_slice(match method {
        Method::PromptsGet => b"prompts/get\",\"params\":{\"name\":",
        _ => b"resources/read\",\"params\":{\"uri\":",
    });
    jsonrpc::quote(&name, &mut like);
    like.extend_from_slice(b"}}");
    let mut seen = jsonrpc::scan(&like)?;
    if let Some(rights) = ask.who.rights() {
        Box::pin(permit(world, ask, None, rights, method, &like, &seen)).await?;
    }
    let backend = aim(world, None, method, &mut like, &mut seen)?;
    let plan = &world.plan.backends[backend];
    let shaped =
        Box::pin(shape(world, &Who::fresh(), plan, None, method, &mut like, &mut seen)).await;
    let shaped = shaped.map_err(|ruled| ask.facts.ruled(ruled))?;
    if shaped.own != name {
        let mut own = Vec::new();
        jsonrpc::quote(&shaped.own, &mut own);
        *message = jsonrpc::splice(message, &[(span, &own)]);
        *envelope = jsonrpc::scan(message)?;
    }
    Ok(backend)
}

/// A member of an object within a scanned message.
fn inside(message: &[u8], object: Span, name: &str) -> Option<Span> {
    let value = walk::member(object.of(message), name)?;
    Some(Span { start: value.start + object.start, end: value.end + object.start })
}

/// The first backend that shows a template of exactly this text.
fn template_of(world: &World, text: &str) -> Option<BackendId> {
    let catalog = world.catalog.borrow();
    let listed = world.plan.backends.iter().filter(|backend| !backend.unlisted);
    listed.map(|backend| backend.id).find(|backend| {
        catalog.slice(*backend).is_some_and(|slice| slice.templates.find(text).is_some())
    })
}
