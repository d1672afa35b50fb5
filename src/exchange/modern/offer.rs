//! Owns: what the proxy answers from its catalogue: `server/discover` and the lists.
//! Never: waiting for backends, but for lists that are the caller's alone.
//! Next: `forward`.
//!
//! MCP 2026-07-28, Discovery, Caching. A merged result is good for as long, and for as many, as each
//! of its parts.

use std::rc::Rc;

use crate::backend::{Caller, Viewer};
use crate::exchange::session::instructions;
use crate::exchange::{Ask, own, private};
use crate::jsonrpc;
use crate::mcp::cache::{self, Fresh};
use crate::mcp::catalog::ListKind;
use crate::mcp::envelope::key;
use crate::mcp::revision::MODERN;
use crate::rt;
use crate::world::World;

/// Appends `_meta` with the proxy's own name, a comma before it, and further members of it.
pub(super) fn signature(world: &World, more: &[(&str, &[u8])], out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"_meta\":{");
    jsonrpc::quote(key::SERVER, out);
    out.extend_from_slice(b":{\"name\":");
    jsonrpc::quote(&world.plan.name, out);
    out.extend_from_slice(b",\"version\":");
    jsonrpc::quote(&world.plan.version, out);
    out.push(b'}');
    for (name, value) in more {
        out.push(b',');
        jsonrpc::quote(name, out);
        out.push(b':');
        out.extend_from_slice(value);
    }
    out.push(b'}');
}

/// The answer to `server/discover`.
pub(super) fn discover(world: &World, ask: &Ask, id: &[u8]) -> Vec<u8> {
    let catalog = world.catalog.borrow();
    let mut result = Vec::with_capacity(512);
    result.extend_from_slice(b"{\"resultType\":\"complete\",\"supportedVersions\":[\"");
    result.extend_from_slice(MODERN.as_bytes());
    result.extend_from_slice(b"\"],\"capabilities\":");
    let promised = catalog.modern_capabilities();
    result.extend_from_slice(own::capabilities(world, ask, &promised).as_bytes());
    instructions(world, ask, &catalog, &mut result);
    cache::write(hint(world, catalog.discover_fresh()), rt::time::now(), &mut result);
    signature(world, &[], &mut result);
    result.push(b'}');
    respond(id, &result)
}

/// The answer to a list request.
pub(super) async fn list(
    world: &Rc<World>,
    caller: &Caller,
    ask: &Ask,
    kind: ListKind,
    id: &[u8],
) -> Vec<u8> {
    let mut list = match world.backends.viewer(caller) {
        Some(record) => Box::pin(world.list(&record, kind)).await,
        None => world.catalog.borrow().list(kind),
    };
    let fresh = hint(world, world.catalog.borrow().fresh(kind));
    if world.forwards {
        let viewer = Viewer::Caller(caller);
        list = Box::pin(private::with_private(world, viewer, kind, list)).await;
    }
    if let Some(rights) = ask.who.rights() {
        list = world.desk.list(rights, kind, list);
    }
    let mut result = Vec::with_capacity(list.len() + 256);
    result.extend_from_slice(b"{\"resultType\":\"complete\",");
    // Between the braces: the one member, in one page.
    result.extend_from_slice(&list[1..list.len() - 1]);
    if kind == ListKind::Tools {
        own::list(world, ask, b"]", &mut result);
    }
    cache::write(fresh, rt::time::now(), &mut result);
    signature(world, &[], &mut result);
    result.push(b'}');
    respond(id, &result)
}

/// How long a result may be kept, and by whom: where callers differ in what they see, what one was
/// told is no other's.
fn hint(world: &World, fresh: Option<Fresh>) -> Option<Fresh> {
    let public = world.plan.access.is_none() && !world.forwards;
    fresh.map(|fresh| Fresh { public: fresh.public && public, ..fresh })
}

fn respond(id: &[u8], result: &[u8]) -> Vec<u8> {
    let mut answer = Vec::with_capacity(result.len() + id.len() + 48);
    jsonrpc::result(&mut answer, id, result);
    answer
}
