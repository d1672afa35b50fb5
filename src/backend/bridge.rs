//! Owns: backend sessions for callers that have none, so that a backend of the session era can serve
//! requests that stand alone.
//! Never: sessions that a client can name: those are `world`'s, and these are in no table of it.
//! Next: `leg`, which opens them as any other.
//!
//! One for each principal, set of capabilities and name of a client: what a server may make depend on
//! its session. Each worker has its own.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use ahash::AHashMap;
use ring::rand::{SecureRandom, SystemRandom};

use super::failure::Failure;
use super::{Backends, Caller};
use crate::error::Kind;
use crate::limits;
use crate::mcp::revision::Revision;
use crate::mcp::session::{SessionId, SessionRecord};

type Key = (Option<Arc<str>>, Box<str>, Box<str>);

/// See the head of this file.
#[derive(Default)]
pub(super) struct Bridges(RefCell<AHashMap<Key, Arc<SessionRecord>>>);

/// The session that stands for `caller` at backends of the session era.
///
/// # Errors
/// What would be kept of it is too large, or there is no room.
pub(super) fn record(
    backends: &Rc<Backends>,
    caller: &Caller,
) -> Result<Arc<SessionRecord>, Failure> {
    let now = Instant::now();
    let key = (caller.principal.clone(), caller.capabilities.clone(), caller.client.clone());
    if let Some(record) = backends.bridges.0.borrow().get(&key) {
        record.touch(now);
        return Ok(record.clone());
    }
    if caller.capabilities.len() + caller.client.len() > limits::CALLER_BYTES_MAX {
        return Err(Failure::new(Kind::Busy, "the caller's capabilities are too large to keep"));
    }
    let mut random = [0; 16];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| Failure::new(Kind::Internal, "no random bytes"))?;
    // Requests of servers do not reach these callers yet, so no capability is promised for them.
    let record = Arc::new(SessionRecord::new(
        SessionId::mint(backends.me, random),
        Revision::NEWEST,
        "{}".into(),
        caller.client.clone(),
    ));
    let evicted = {
        let mut bridges = backends.bridges.0.borrow_mut();
        let full = bridges.len() >= limits::BRIDGES_MAX;
        let oldest = full
            .then(|| bridges.iter().max_by_key(|(_, record)| record.idle(now)))
            .flatten()
            .map(|(key, _)| key.clone());
        let evicted = oldest.and_then(|key| bridges.remove(&key));
        bridges.insert(key, record.clone());
        evicted
    };
    if let Some(evicted) = evicted {
        end(backends, &evicted);
    }
    Ok(record)
}

fn end(backends: &Rc<Backends>, record: &Arc<SessionRecord>) {
    record.end();
    backends.end_session(record);
}

/// Ends those that nobody used for too long.
pub(super) fn sweep(backends: &Rc<Backends>, now: Instant) {
    if backends.bridges.0.borrow().is_empty() {
        return;
    }
    let idle = backends.plan.session_idle;
    let mut over = Vec::new();
    backends.bridges.0.borrow_mut().retain(|_, record| {
        let keep = record.idle(now) <= idle;
        if !keep {
            over.push(record.clone());
        }
        keep
    });
    for record in over {
        end(backends, &record);
    }
}
