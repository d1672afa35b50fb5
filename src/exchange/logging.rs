//! Owns: `logging/setLevel`.
//! Never: the levels of backends (`backend`), log messages (`mcp::logging`).
//! Next: `subscribe`.

use std::rc::Rc;
use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, Envelope};
use crate::mcp::logging::Level;
use crate::mcp::session::SessionRecord;
use crate::world::World;

/// `logging/setLevel`: the answer. From then on the level holds at all backends that the session
/// talks to, as far as they could be told in a short time; others are told when they are there.
pub(super) async fn set_level(
    world: &Rc<World>,
    record: &Arc<SessionRecord>,
    message: &[u8],
    envelope: &Envelope,
    id: &[u8],
) -> Result<Vec<u8>> {
    #[derive(serde::Deserialize)]
    struct Params {
        level: String,
    }
    if !world.catalog.borrow().can("logging") {
        return Err(Error::new(Kind::MethodNotFound).context("logging/setLevel"));
    }
    let invalid = |text: String| Error::new(Kind::InvalidParams).context(text);
    let params = envelope.params.map_or(&b"null"[..], |params| params.of(message));
    let params: Params =
        serde_json::from_slice(params).map_err(|fault| invalid(fault.to_string()))?;
    let Some(level) = Level::parse(&params.level) else {
        let level: String = params.level.chars().take(64).collect();
        return Err(invalid(format!("unknown level {level:?}")));
    };
    record.set_level(level);
    world.backends.set_level(record).await;
    let mut answer = Vec::with_capacity(64);
    jsonrpc::result(&mut answer, id, b"{}");
    Ok(answer)
}
