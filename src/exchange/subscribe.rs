//! Owns: `resources/subscribe` and `resources/unsubscribe`: whose resource it is.
//! Never: who hears of updates (`backend`).
//! Next: `private`, lists that go there too.

use std::rc::Rc;
use std::sync::Arc;

use super::Ask;
use super::call::{aim, permit, refer, view_of};
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, Envelope};
use crate::mcp::catalog::ListKind;
use crate::mcp::method::Method;
use crate::mcp::session::SessionRecord;
use crate::world::World;

/// Subscribes to the updates of a resource, or ends that: the backend's answer.
pub(super) async fn subscribe(
    world: &Rc<World>,
    ask: &Ask,
    record: &Arc<SessionRecord>,
    method: Method,
    mut message: Vec<u8>,
    mut envelope: Envelope,
    id: &[u8],
) -> Result<Vec<u8>> {
    if let Some(rights) = ask.who.rights() {
        let like = Method::ResourcesRead;
        Box::pin(permit(world, ask, Some(record), rights, like, &message, &envelope)).await?;
    }
    let view = view_of(world, record).await;
    let backend = aim(world, view.as_deref(), Method::ResourcesRead, &mut message, &mut envelope)?;
    ask.facts.aimed(world, backend, &message, &envelope);
    let invalid = || Error::new(Kind::InvalidParams).context("uri is required");
    let uri = envelope.uri.and_then(|uri| uri.text(&message)).ok_or_else(invalid)?.into_owned();
    let (view, what) = (view.as_deref(), ListKind::Resources);
    refer(world, ask, view, backend, what, &uri, uri.clone()).await?;
    let params = envelope.params.ok_or_else(invalid)?.of(&message);
    let on = method == Method::Subscribe;
    let answer = world.backends.subscribe_session(record, backend, &uri, params, on).await?;
    let found = jsonrpc::scan(&answer).ok().and_then(|envelope| envelope.id);
    let found = found.ok_or_else(|| Error::new(Kind::BadAnswer))?;
    Ok(jsonrpc::splice(&answer, &[(found, id)]))
}
