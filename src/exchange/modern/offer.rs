//! Owns: what the proxy answers from its catalogue: `server/discover` and the lists.
//! Never: waiting for backends.
//! Next: `forward`.
//!
//! MCP 2026-07-28, Discovery, Caching. A merged result is good for as long, and for as many, as each
//! of its parts.

use std::borrow::Cow;

use crate::exchange::{Ask, own};
use crate::jsonrpc;
use crate::mcp::cache;
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
pub(super) fn discover(world: &World, id: &[u8]) -> Vec<u8> {
    let catalog = world.catalog.borrow();
    let mut result = Vec::with_capacity(512);
    result.extend_from_slice(b"{\"resultType\":\"complete\",\"supportedVersions\":[\"");
    result.extend_from_slice(MODERN.as_bytes());
    result.extend_from_slice(b"\"],\"capabilities\":");
    result.extend_from_slice(catalog.modern_capabilities().as_bytes());
    let joined = match &world.plan.instructions {
        Some(own) => Some(Cow::Borrowed(own.as_str())),
        None => catalog.instructions().map(Cow::Owned),
    };
    if let Some(instructions) = joined {
        result.extend_from_slice(b",\"instructions\":");
        jsonrpc::quote(&instructions, &mut result);
    }
    cache::write(catalog.discover_fresh(), rt::time::now(), &mut result);
    signature(world, &[], &mut result);
    result.push(b'}');
    respond(id, &result)
}

/// The answer to a list request.
pub(super) fn list(world: &World, ask: &Ask, kind: ListKind, id: &[u8]) -> Vec<u8> {
    let catalog = world.catalog.borrow();
    let list = catalog.list(kind);
    let mut result = Vec::with_capacity(list.len() + 256);
    result.extend_from_slice(b"{\"resultType\":\"complete\",");
    // Between the braces: the one member, in one page.
    result.extend_from_slice(&list[1..list.len() - 1]);
    if kind == ListKind::Tools {
        own::list(world, ask, b"]", &mut result);
    }
    cache::write(catalog.fresh(kind), rt::time::now(), &mut result);
    signature(world, &[], &mut result);
    result.push(b'}');
    respond(id, &result)
}

fn respond(id: &[u8], result: &[u8]) -> Vec<u8> {
    let mut answer = Vec::with_capacity(result.len() + id.len() + 48);
    jsonrpc::result(&mut answer, id, result);
    answer
}
