//! Owns: lists of backends that look different to each client, as its own Authorization goes there.
//! Never: keeping them: they are read when they are asked for.
//! Next: `batch`, several messages at once.

use std::rc::Rc;
use std::sync::Arc;

use crate::backend::Viewer;
use crate::error::Result;
use crate::mcp::catalog::{List, ListKind};
use crate::middleware::filter::Filter;
use crate::plan::{BackendId, BackendPlan};
use crate::world::World;

fn backends(world: &World) -> impl Iterator<Item = &Arc<BackendPlan>> {
    world.plan.backends.iter().filter(|backend| backend.forwards() && !backend.unlisted)
}

/// The one backend with such lists, if it is only one.
pub(super) fn only(world: &World) -> Option<BackendId> {
    if !world.forwards {
        return None;
    }
    let mut all = backends(world);
    all.next().map(|backend| backend.id).filter(|_| all.next().is_none())
}

/// The list that all see, and behind it what this client alone sees. One that cannot be read is left
/// out, as one of a backend that is down is.
pub(super) async fn with_private(
    world: &Rc<World>,
    viewer: Viewer<'_>,
    kind: ListKind,
    merged: Rc<[u8]>,
) -> Rc<[u8]> {
    let Some(mut out) = merged.strip_suffix(b"]}").map(<[u8]>::to_vec) else { return merged };
    for backend in backends(world) {
        let read = world.backends.list_of_client(backend.id, viewer, kind).await;
        let Ok(list) = read else { continue };
        let catalog = world.catalog.borrow();
        let named = matches!(kind, ListKind::Tools | ListKind::Prompts);
        for (key, entry) in list.iter() {
            // What another backend has already is that one's.
            let taken = match (named, backend.prefix.is_empty()) {
                (true, true) => catalog.owner_of_name(kind, key).is_some(),
                (true, false) => false,
                (false, _) => kind == ListKind::Resources && catalog.owner_of_uri(key).is_some(),
            };
            if !taken {
                if out.last() != Some(&b'[') {
                    out.push(b',');
                }
                out.extend_from_slice(entry);
            }
        }
    }
    out.extend_from_slice(b"]}");
    out.into()
}

/// The tools that a client itself sees of such a backend, if the rules there ask what a tool says of
/// itself: they are read before each call, as nothing is kept that was said to one token.
///
/// # Errors
/// They cannot be read now.
pub(super) async fn tools(
    world: &Rc<World>,
    viewer: Option<Viewer<'_>>,
    plan: &BackendPlan,
    what: ListKind,
) -> Result<Option<List>> {
    let asked = plan.chain.filter.as_ref().is_some_and(Filter::looks_at_hints);
    let Some(viewer) = viewer.filter(|_| asked && plan.forwards() && what == ListKind::Tools)
    else {
        return Ok(None);
    };
    Box::pin(world.backends.list_of_client(plan.id, viewer, what)).await.map(Some)
}
