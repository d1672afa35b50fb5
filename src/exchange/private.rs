//! Owns: lists of backends that look different to each client, as its own Authorization goes there.
//! Never: keeping them: they are read when they are asked for.
//! Next: `batch`, several messages at once.

use std::rc::Rc;
use std::sync::Arc;

use crate::backend::Viewer;
use crate::mcp::catalog::ListKind;
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
        let Some(list) = world.backends.list_of_client(backend.id, viewer, kind).await else {
            continue;
        };
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
